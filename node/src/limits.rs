//! What this node has under way to one service, and what it may still begin: counts shared by all data threads.
//!
//! Every count is an atomic; nobody waits for a lock. Two threads may look at the same moment, so a budget or bucket can
//! be passed by as many requests as there are threads; a count with a limit ([`Count`]) cannot. What the limits are is in
//! [`policy::ServiceLimits`]; the time comes in as an argument.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use policy::{RateLimit, RetryConstraint};
use tokio::sync::Notify;

mod bucket;
mod budget;
mod fleet;

pub use bucket::{Bucket, Fill};
pub use budget::RetryBudget;
pub use fleet::FleetShare;

/// Live counters of one service as seen from this node: the same object in every snapshot that names the service.
#[derive(Debug, Default)]
pub struct ServiceStats {
    requests: AtomicU32,
    connections: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    freed: Notify,
    budget: RetryBudget,
    bucket: Bucket,
    /// When the endpoints are compared next; 0 before the first interval.
    interval_ends_ns: AtomicU64,
    /// Requests that asked to begin while all nodes share a rate.
    asked: AtomicU64,
    fleet_bucket: Bucket,
}

/// Which of a service's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Requests from their beginning to the end of their answer.
    Requests,
    /// Connections in use.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests that were sent a second time and are not at their end.
    Retries,
}

impl Count {
    /// The field of a policy that limits it.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Requests => "circuitBreaker.maxParallelRequests",
            Self::Connections => "circuitBreaker.maxConnections",
            Self::Pending => "circuitBreaker.maxPendingRequests",
            Self::Retries => "circuitBreaker.maxParallelRetries",
        }
    }
}

impl ServiceStats {
    /// Counts one more until the guard is dropped; `None` where that would be above `limit`.
    #[must_use]
    pub fn take(self: &Arc<Self>, count: Count, limit: u32) -> Option<Taken> {
        take_within(self.of(count), limit).then(|| Taken { stats: Arc::clone(self), count })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self, count: Count) -> u32 {
        self.of(count).load(Ordering::Relaxed)
    }

    /// One more connection, waited for as one of at most `pending` where `limit` are in use. The longest waiting is
    /// woken first; whoever calls sets the time.
    ///
    /// # Errors
    /// So many wait already.
    pub async fn connection(self: &Arc<Self>, limit: u32, pending: u32) -> Result<Taken, Full> {
        if let Some(taken) = self.take(Count::Connections, limit) {
            return Ok(taken);
        }
        let _waiting = self.take(Count::Pending, pending).ok_or(Full)?;
        loop {
            // In the queue before the look, so that what becomes free after it is not missed.
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(taken) = self.take(Count::Connections, limit) {
                return Ok(taken);
            }
            freed.await;
        }
    }

    /// A request begins.
    pub fn begun(&self, rule: &RetryConstraint, now: Duration) {
        self.budget.begun(rule, now);
    }

    /// Whether a request may be sent once more; takes it from the budget where it may.
    #[must_use]
    pub fn may_retry(&self, rule: &RetryConstraint, now: Duration) -> bool {
        self.budget.take(rule, now)
    }

    /// Takes one from the bucket.
    ///
    /// # Errors
    /// After how long there is one.
    pub fn pass(&self, rule: &RateLimit, now: Duration) -> Result<(), Duration> {
        self.bucket.take(Fill::of(rule), now)
    }

    /// Counts a request that asks to begin, and takes one from the bucket of this node's share.
    ///
    /// # Errors
    /// After how long there is one, at the share of now.
    pub fn pass_fleet(&self, share: &FleetShare, now: Duration) -> Result<(), Duration> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.fleet_bucket.take(share.fill, now)
    }

    /// Requests that asked to begin while all nodes shared a rate, refused ones included.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether an interval in which its endpoints are compared is over at `now`; then the next one begins. The first call
    /// begins the first. For one thread, the control thread.
    #[must_use]
    pub fn ends_interval(&self, interval: Duration, now: Duration) -> bool {
        let ends = self.interval_ends_ns.load(Ordering::Relaxed);
        let (now, next) = (whole_ns(now), whole_ns(now.saturating_add(interval)));
        let is_over = ends != 0 && ends <= now;
        // Policy may have made it shorter meanwhile.
        if ends == 0 || is_over || ends > next {
            self.interval_ends_ns.store(next, Ordering::Relaxed);
        }
        is_over
    }

    const fn of(&self, count: Count) -> &AtomicU32 {
        match count {
            Count::Requests => &self.requests,
            Count::Connections => &self.connections,
            Count::Pending => &self.pending,
            Count::Retries => &self.retries,
        }
    }
}

/// As many wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// One of a service's counts, until it is dropped.
pub struct Taken {
    stats: Arc<ServiceStats>,
    count: Count,
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.stats.of(self.count).fetch_sub(1, Ordering::Release);
        if self.count == Count::Connections {
            self.stats.freed.notify_one();
        }
    }
}

/// Adds one where that stays within `limit`.
pub fn take_within(count: &AtomicU32, limit: u32) -> bool {
    let more = |now: u32| (now < limit).then(|| now + 1);
    count.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).is_ok()
}

/// In 64 bits: 584 years.
fn whole_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
