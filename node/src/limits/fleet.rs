//! What one node may begin of a rate that all nodes share.

use std::time::Duration;

use policy::RateLimit;

use super::bucket::Fill;

/// One node's part of a rate, as it stands in a snapshot: requests look at it and do no sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FleetShare {
    /// Requests per second that may begin here.
    pub per_second: f64,
    /// Requests per second that ask to begin here, averaged; the whole rate at most.
    pub demand: f64,
    /// The nodes that share, this one among them.
    pub nodes: usize,
    /// Those of them that ask for more than the little that each may always take.
    pub asking: usize,
    /// The bucket of such a rate.
    pub(super) fill: Fill,
}

impl FleetShare {
    /// `per_second` of `limit`, as one of `nodes` nodes. Of the burst it is the same part, and one request at least.
    #[must_use]
    pub fn new(limit: &RateLimit, per_second: f64, demand: f64, nodes: usize, asking: usize) -> Self {
        let each = Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::MAX);
        Self { per_second, demand, nodes, asking, fill: Fill::of(limit).slowed_to(each) }
    }

    /// All of `limit`: that of a node that knows of no other.
    #[must_use]
    pub fn alone(limit: &RateLimit) -> Self {
        Self::new(limit, limit.per_second(), 0.0, 1, 1)
    }
}
