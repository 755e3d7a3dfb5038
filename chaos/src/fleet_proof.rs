//! Proofs with real agents on loopback: the `marram` binary, joined by tokens, driven through its admin API.
//!
//! - [`kills`]: agents are killed at random moments while all of them take writes; no acknowledged write may be missing.
//! - [`damage`]: a stopped agent's database is damaged; it comes back with what was written, and never with anything else.
//! - [`rolling`]: every agent is restarted in turn under load; no request may fail.
//! - [`away`]: an agent misses deletions until nobody remembers them, and edits alone meanwhile.
//!
//! None needs root or containers. What was written and what must be seen of it is kept by the [`ledger`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::clock;
use crate::report::Report;

pub mod away;
pub mod damage;
pub mod kills;
pub mod ledger;
pub mod rolling;

mod desk;
mod library;
mod writers;

/// What to prove.
#[derive(Debug, Clone, Subcommand)]
pub enum Proof {
    /// Kills agents at random moments while all take policy writes; exit 1 when an acknowledged write is missing
    Kills(kills::KillsOptions),
    /// Damages a stopped agent's database, file by file; exit 1 when it serves what was never written, or stays damaged
    Damage(damage::DamageOptions),
    /// Keeps an agent away past the collection of tombstones; exit 1 when something deleted returns
    Away(away::AwayOptions),
    /// Restarts every agent in turn while applications ask through all of them; exit 1 when a request fails
    Rolling(rolling::RollingOptions),
}

/// What all proofs take.
#[derive(Debug, Clone, Args)]
pub struct CommonOptions {
    /// Seed of every choice; the moments at which choices take effect are the machine's
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The `marram` binary; built by cargo when none is named
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Folder for the report
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/report"))]
    pub report: PathBuf,
}

/// Runs a proof on a thread where waiting is allowed; exit code 1 when an invariant broke.
///
/// # Errors
/// When the agents cannot be started, or something other than an invariant goes wrong.
pub async fn run(proof: Proof) -> Result<ExitCode> {
    let proving = tokio::task::spawn_blocking(move || match proof {
        Proof::Kills(options) => prove("kills", &options.common, |report| kills::steps(&options, report)),
        Proof::Damage(options) => prove("damage", &options.common, |report| damage::steps(&options, report)),
        Proof::Away(options) => prove("away", &options.common, |report| away::steps(&options, report)),
        Proof::Rolling(options) => prove("rolling", &options.common, |report| rolling::steps(&options, report)),
    });
    proving.await.context("the proof broke off")?
}

fn prove(name: &str, common: &CommonOptions, steps: impl FnOnce(&mut Report) -> Result<()>) -> Result<ExitCode> {
    if let Some(binary) = &common.binary {
        tests::use_binary(binary);
    }
    let mut report = Report::new(name);
    report.event(format!("seed {}, binary {}", common.seed, tests::binary().display()));
    let done = steps(&mut report);
    if let Err(error) = &done {
        report.invariant("proof-runs-to-its-end", false, format!("{error:#}"));
    }
    let path = report.write(&common.report)?;
    println!("\n{}\nreport: {}", report.markdown(), path.display());
    done?;
    let broken = report.broken();
    if broken.is_empty() {
        println!("{name}: every invariant held");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{name}: broken: {}", broken.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Asks `is_so` every 25 ms until it says yes: the time that took, or `None` after `at_most`.
fn until(at_most: Duration, mut is_so: impl FnMut() -> bool) -> Option<Duration> {
    let begin = clock::now();
    loop {
        if is_so() {
            return Some(begin.elapsed());
        }
        if begin.elapsed() > at_most {
            return None;
        }
        tests::pause(POLL);
    }
}

/// A count for the report.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

/// Median, 99th percentile and maximum of durations, as three figures of the report.
fn spread(report: &mut Report, name: &str, times: &[Duration], detail: &str) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    for (part, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let Some(time) = percentile(&sorted, share) else { continue };
        report.figure(
            &format!("{name}-{part}"),
            time.as_secs_f64(),
            "s",
            &format!("{detail}, {part} of {}", sorted.len()),
        );
    }
}

/// The smallest of `sorted` that at least `share` of them do not exceed.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small count, never negative")]
fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (count(sorted.len()) * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Between two looks at something awaited; several agents share the machine with the one who looks.
const POLL: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests_of_spread {
    use std::time::Duration;

    use super::percentile;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let at = |share| percentile(&times, share).map(|time| time.as_millis());
        assert_eq!([at(0.5), at(0.99), at(1.0)], [Some(100), Some(198), Some(200)]);
        assert_eq!(percentile(&times[..1], 0.5), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
