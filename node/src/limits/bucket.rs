//! A token bucket in one atomic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use policy::RateLimit;

use super::whole_ns;

/// A token bucket as one moment: that at which all its tokens would be back, in nanoseconds of monotonic time. This is the
/// generic cell rate algorithm (ITU-T I.371, its virtual scheduling form), which needs no timer and no lock.
///
/// The default is full.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at_ns: AtomicU64,
}

/// How a bucket fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// The time that brings one token, above zero.
    cost_ns: u64,
    /// The time that fills an empty bucket, `cost_ns` at least.
    depth_ns: u64,
}

impl Fill {
    /// With T = interval / requests a token costs T, and the bucket holds `burst` of them.
    #[must_use]
    pub fn of(rule: &RateLimit) -> Self {
        let cost_ns = (whole_ns(rule.interval) / u64::from(rule.requests.max(1))).max(1);
        Self { cost_ns, depth_ns: cost_ns.saturating_mul(u64::from(rule.burst.max(1))) }
    }

    /// The same with a token each `cost`. It fills in the same time, so a bucket whose cost changes now and then stays as
    /// full as it is; but it has room for one.
    #[must_use]
    pub fn slowed_to(self, cost: Duration) -> Self {
        let cost_ns = whole_ns(cost).max(1);
        Self { cost_ns, depth_ns: self.depth_ns.max(cost_ns) }
    }
}

impl Bucket {
    /// Takes one token.
    ///
    /// # Errors
    /// After how long there is one.
    pub fn take(&self, fill: Fill, now: Duration) -> Result<(), Duration> {
        let now = whole_ns(now);
        let Fill { cost_ns: cost, depth_ns: depth } = fill;
        // A policy that lets more through counts from now on: what is owed is never above the bucket.
        let empty = now.saturating_add(depth);
        if self.full_at_ns.load(Ordering::Relaxed) > empty {
            self.full_at_ns.fetch_min(empty, Ordering::Relaxed);
        }
        let next = |full_at: u64| {
            let next = full_at.max(now).saturating_add(cost);
            (next - now <= depth).then_some(next)
        };
        match self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(_) => Ok(()),
            Err(full_at) => {
                let owed = full_at.min(empty).saturating_add(cost) - now;
                Err(Duration::from_nanos(owed.saturating_sub(depth).max(1)))
            }
        }
    }
}
