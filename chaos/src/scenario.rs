//! What is done to a cluster, and what must hold while and after it is done.
//!
//! A scenario needs a Docker engine with docker-compose, root and iptables; where one is missing it is skipped with one
//! line and [`Outcome::Skipped`].

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

mod cluster;
mod split_heal;
mod traffic;

pub use cluster::build_if_missing;

/// How to run a scenario.
#[derive(Debug, Clone)]
pub struct ScenarioOptions {
    /// Folder of the compose file, with the static binaries in `bin/`.
    pub compose: PathBuf,
    /// Folder for the report, and for the containers' logs when an invariant broke.
    pub report: PathBuf,
    /// Leave the cluster running at the end; the network is mended all the same.
    pub keep: bool,
    /// How long the network stays cut.
    pub split_for: Duration,
}

/// How a scenario ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every invariant held.
    Held,
    /// These did not.
    Broken(Vec<String>),
    /// It cannot run here, for this reason.
    Skipped(String),
}

/// Cuts {n1, n2} from {n3, n4, n5}, writes policy on both sides, deletes on one what the other edits, heals, settles the
/// conflict by one request, kills a serving node and starts it again.
///
/// # Errors
/// When the cluster cannot be brought up, or something other than an invariant goes wrong. Everything that was made is
/// removed all the same.
pub async fn split_heal(options: &ScenarioOptions) -> Result<Outcome> {
    split_heal::run(options).await
}
