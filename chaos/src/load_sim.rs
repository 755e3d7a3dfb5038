//! Clients, servers and queues in virtual time: which way to choose a server gives the shortest tail.
//!
//! The two draws of Marram are the real functions of the policy crate (`weigh`, `inflight_estimate`, `choose`,
//! `PeakEwma`), fed as a node feeds them. Beside them stand what other proxies do, and an oracle that knows every queue.
//! Nothing reads a clock or the system's chance: a seed gives the same run, and one seed gives every balancer the same
//! arrivals and the same work.
//!
//! The model: twelve servers with 2, 4 or 8 slots and a queue without a limit, first come first served; the work of a
//! request is exponential with a mean of 10 ms; requests arrive at each client as a Poisson stream; the way there and the
//! way back take half of the round trip each. Once a second each server tells all clients how many requests it holds; where
//! `answers_tell`, each answer does so too, as between two nodes of a mesh. A request is in flight for its client until its
//! answer is there.
//!
//! What the model leaves out: failures, retries, connections to be made, servers that slow down as they fill, bodies,
//! and work of a heavier tail.

#![expect(
    clippy::indexing_slicing,
    reason = "clients and servers are named by their places in lists that never change; a wrong one is a bug of the simulator and must stop it"
)]

mod client;
mod command;
mod world;

use std::fmt;
use std::time::Duration;

pub use command::{LoadSimArguments, command};

/// Servers of every scenario, by their slots.
const SLOTS: [u16; 12] = [2, 4, 8, 2, 4, 8, 2, 4, 8, 2, 4, 8];
/// The mean time that a request takes in a slot.
const SERVICE: Duration = Duration::from_millis(10);
/// Round trip within a zone.
const NEAR: Duration = Duration::from_micros(500);
/// Round trip between two zones.
const FAR: Duration = Duration::from_millis(20);
/// Requests sent before this are not counted.
const WARM_UP: Duration = Duration::from_secs(5);

/// How a client chooses a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancer {
    /// At random, by capacity; load is not looked at.
    Capacity,
    /// Of two different ones drawn by capacity the one with fewer of the client's own requests for its capacity.
    LeastRequest,
    /// Of two different ones, drawn alike, the one with the smaller peak EWMA * (own requests + 1).
    PeakEwma,
    /// One draw by the formula.
    Single,
    /// Two draws by the formula, and the cheaper one.
    BestOfTwo,
    /// The server with the shortest round trip and service for its true queue.
    Oracle,
}

impl Balancer {
    /// In the order of the table, the oracle last.
    pub const ALL: [Self; 6] =
        [Self::Capacity, Self::LeastRequest, Self::PeakEwma, Self::Single, Self::BestOfTwo, Self::Oracle];
}

impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capacity => "random by capacity",
            Self::LeastRequest => "two draws, least own requests",
            Self::PeakEwma => "two draws, peak EWMA",
            Self::Single => "Single",
            Self::BestOfTwo => "BestOfTwo",
            Self::Oracle => "oracle",
        })
    }
}

/// Who sends how much to what.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line and in the table.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// Requests that arrive, by what all slots can work off at 10 ms each.
    pub utilisation: f64,
    /// How many clients.
    pub clients: u16,
    /// Every second client sends this many times as much as the others.
    pub skew: f64,
    /// The place of a server that takes ten times as long.
    pub slow: Option<usize>,
    /// Two zones with one half of the servers and clients each, else one.
    pub two_zones: bool,
    /// How often each server tells its requests in flight to all clients; `None` is never.
    pub gossip: Option<Duration>,
    /// Whether each answer tells them too.
    pub answers_tell: bool,
}

/// What every scenario changes something of.
const EQUAL: Scenario = Scenario {
    name: "equal-0.9",
    what: "utilisation 0.9, 24 equal clients",
    utilisation: 0.9,
    clients: 24,
    skew: 1.0,
    slow: None,
    two_zones: false,
    gossip: Some(Duration::from_secs(1)),
    answers_tell: true,
};

/// The scenarios of the table.
pub const SCENARIOS: [Scenario; 10] = [
    Scenario { name: "equal-0.6", what: "utilisation 0.6, 24 equal clients", utilisation: 0.6, ..EQUAL },
    Scenario { name: "equal-0.8", what: "utilisation 0.8, 24 equal clients", utilisation: 0.8, ..EQUAL },
    EQUAL,
    Scenario {
        name: "gossip-alone",
        what: "utilisation 0.9, 24 equal clients, answers tell no load",
        answers_tell: false,
        ..EQUAL
    },
    Scenario {
        name: "slow-gossip",
        what: "utilisation 0.9, 24 equal clients, answers tell no load, gossip every 5 s",
        gossip: Some(Duration::from_secs(5)),
        answers_tell: false,
        ..EQUAL
    },
    Scenario { name: "few", what: "utilisation 0.9, 6 equal clients", clients: 6, ..EQUAL },
    Scenario { name: "many", what: "utilisation 0.9, 240 equal clients", clients: 240, ..EQUAL },
    Scenario { name: "unequal", what: "utilisation 0.9, 24 clients, rates 1:10", skew: 10.0, ..EQUAL },
    Scenario {
        name: "slow-server",
        what: "utilisation 0.6, one server ten times slower",
        utilisation: 0.6,
        slow: Some(4),
        ..EQUAL
    },
    Scenario {
        name: "two-zones",
        what: "utilisation 0.8, two zones, 0.5 and 20 ms apart",
        utilisation: 0.8,
        two_zones: true,
        ..EQUAL
    },
];

impl Scenario {
    /// The scenario of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }
}

/// What the requests of one or more runs took.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Latencies {
    sorted_us: Vec<u32>,
    far: usize,
}

impl Latencies {
    /// All requests of these runs together.
    #[must_use]
    pub fn of_all(runs: &[Self]) -> Self {
        let mut sorted_us: Vec<u32> = runs.iter().flat_map(|run| &run.sorted_us).copied().collect();
        sorted_us.sort_unstable();
        Self { sorted_us, far: runs.iter().map(|run| run.far).sum() }
    }

    /// How many requests were counted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted_us.len()
    }

    /// The latency in milliseconds that `per_mille` of a thousand requests stayed within; 0 without requests.
    #[must_use]
    pub fn quantile_ms(&self, per_mille: usize) -> f64 {
        let rank = (self.count() * per_mille).div_ceil(1_000).saturating_sub(1);
        self.sorted_us.get(rank).map_or(0.0, |us| f64::from(*us) / 1e3)
    }

    /// The part of the requests that left their client's zone, within 0 and 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share of some millions")]
    pub fn far_share(&self) -> f64 {
        if self.sorted_us.is_empty() { 0.0 } else { self.far as f64 / self.count() as f64 }
    }
}

/// One run: what `duration` of requests took after the warm-up, when every client chooses by `balancer`.
#[must_use]
pub fn run(scenario: &Scenario, balancer: Balancer, duration: Duration, seed: u64) -> Latencies {
    world::World::new(scenario, balancer, seed).run(WARM_UP, WARM_UP + duration)
}

#[cfg(test)]
mod tests;
