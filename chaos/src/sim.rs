//! A mesh of replicas in one thread: a seed is a schedule of writes, messages and faults, and an oracle knows what must
//! come of it.
//!
//! [`Schedule::of`] draws what happens; [`Run::of`] lets it happen, on real [`crdt_store::Replica`]s and real sync
//! conversations over simulated disks and a simulated network, and checks after each step; then the faults stop and all
//! replicas must agree. Nothing reads a clock or the system's chance, so a seed gives the same run everywhere.
//!
//! After every step, on each node that it changed:
//! - live in each section is exactly what follows from what the node has seen: the ops that no other op it has seen
//!   supersedes. Nothing that was superseded or deleted is back, nothing that stands is gone; a tombstone may be gone if
//!   it lies under the floor;
//! - whatever the node acknowledged since it last lost its disk, it knows, also after a crash;
//! - nodes that have seen the same have the same root;
//! - lives and second ops under a dot are counted when they occur and never else; a write gets the next dot, once;
//! - a client reads what it has written.
//!
//! In the end all contexts, floors, roots and documents are equal, every op that became durable is known (unless every
//! disk that had it was lost), and nothing was superseded by somebody who had not seen it.
//!
//! [`sweep`] runs many seeds, and makes the first failure as small as it can.

#![expect(
    clippy::indexing_slicing,
    reason = "indices are drawn below the length of what they index; a wrong one is a bug of the simulator and must stop it"
)]

mod authority;
mod bits;
mod chance;
mod command;
mod disk;
mod model;
mod schedule;
mod shrink;
mod sweep;
mod trace;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use command::{SimArguments, command};
pub use model::{Broken, Rule};
pub use schedule::{Act, Schedule, Shape, Step};
pub use sweep::{Failure, Report, SimOptions, sweep};
use world::World;

/// A rule of the store that can be broken on purpose, to see that the simulator finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutation {
    /// Coverage is credited with the first chunk of ops, not at the end of a conversation.
    CreditPerChunk,
    /// A store keeps its life after its disk was lost or put back.
    KeepIncarnation,
    /// Messages for another life are taken.
    UnboundSessions,
    /// Tombstones are collected and the floor stays.
    CollectWithoutFloor,
}

impl Mutation {
    /// True where this build can break rules at all.
    #[must_use]
    pub const fn is_built_in() -> bool {
        cfg!(any(test, feature = "mutations"))
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreditPerChunk => "credit-per-chunk",
            Self::KeepIncarnation => "keep-incarnation",
            Self::UnboundSessions => "unbound-sessions",
            Self::CollectWithoutFloor => "collect-without-floor",
        }
    }

    #[cfg(any(test, feature = "mutations"))]
    fn apply(self, replica: &mut crdt_store::Replica) -> Result<(), Broken> {
        replica.mutate(match self {
            Self::CreditPerChunk => crdt_store::Mutation::CreditPerChunk,
            Self::KeepIncarnation => crdt_store::Mutation::KeepIncarnation,
            Self::UnboundSessions => crdt_store::Mutation::UnboundSessions,
            Self::CollectWithoutFloor => crdt_store::Mutation::CollectWithoutFloor,
        });
        Ok(())
    }

    #[cfg(not(any(test, feature = "mutations")))]
    fn apply(self, _: &mut crdt_store::Replica) -> Result<(), Broken> {
        Err(Broken::new(
            Rule::Panic,
            format!("this build cannot break `{}`: it lacks the feature `mutations`", self.name()),
        ))
    }
}

/// What was counted, in one run or in many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Steps done.
    pub steps: u64,
    /// Writes acknowledged that made an op.
    pub writes: u64,
    /// Pushed messages that arrived.
    pub pushes: u64,
    /// Conversations begun.
    pub talks: u64,
    /// Conversations that came to their end.
    pub talks_ended: u64,
    /// Messages of conversations that arrived.
    pub messages: u64,
    /// Disk faults that struck.
    pub faults: u64,
    /// Processes started again on their disk, by a step of its own.
    pub restarts: u64,
    /// Disks lost, put back or replaced by a copy.
    pub disks_lost: u64,
    /// Collections that ran.
    pub collections: u64,
    /// Tombstones collected.
    pub tombstones: u64,
    /// Ops removed because peers claimed that they were deleted.
    pub claims: u64,
    /// Second ops under a dot that arrived by push.
    pub equivocations: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.writes += other.writes;
        self.pushes += other.pushes;
        self.talks += other.talks;
        self.talks_ended += other.talks_ended;
        self.messages += other.messages;
        self.faults += other.faults;
        self.restarts += other.restarts;
        self.disks_lost += other.disks_lost;
        self.collections += other.collections;
        self.tombstones += other.tombstones;
        self.claims += other.claims;
        self.equivocations += other.equivocations;
    }
}

/// One schedule, carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What broke; `None` where all held.
    pub broken: Option<Broken>,
    /// Hash over all that happened.
    pub hash: u64,
    /// One line for each thing that happened, where asked for.
    pub trace: Vec<String>,
    /// What was counted.
    pub tally: Tally,
}

impl Run {
    /// Carries out a schedule; a panic anywhere counts as a failure.
    #[must_use]
    pub fn of(schedule: &Schedule, mutation: Option<Mutation>, is_traced: bool) -> Self {
        let run = catch_unwind(AssertUnwindSafe(|| Self::carry_out(schedule, mutation, is_traced)));
        run.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
            let broken = Some(Broken::new(Rule::Panic, format!("panic: {text}")));
            Self { broken, hash: 0, trace: Vec::new(), tally: Tally::default() }
        })
    }

    fn carry_out(schedule: &Schedule, mutation: Option<Mutation>, is_traced: bool) -> Self {
        let mut world = match World::new(schedule, mutation, is_traced) {
            Ok(world) => world,
            Err(broken) => {
                return Self { broken: Some(broken), hash: 0, trace: Vec::new(), tally: Tally::default() };
            }
        };
        let broken = world.run(&schedule.steps).err();
        let (hash, trace, tally) = world.end();
        Self { broken, hash, trace, tally }
    }
}

#[cfg(test)]
mod tests;
