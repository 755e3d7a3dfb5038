//! A token bucket in one atomic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use policy::RateLimit;

use super::whole_ns;

/// A token bucket as one moment: that at which all its tokens would be back, in nanoseconds of monotonic time. This is the
/// generic cell rate algorithm (ITU-T I.371, its virtual scheduling form), which needs no timer and no lock.
///
/// With T = interval / requests a token costs T, and the bucket holds `burst` of them. The default is full.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at_ns: AtomicU64,
}

impl Bucket {
    /// Takes one token.
    ///
    /// # Errors
    /// After how long there is one.
    pub fn take(&self, rule: &RateLimit, now: Duration) -> Result<(), Duration> {
        let now = whole_ns(now);
        let cost = (whole_ns(rule.interval) / u64::from(rule.requests.max(1))).max(1);
        let depth = cost.saturating_mul(u64::from(rule.burst.max(1)));
        let next = |full_at: u64| {
            // A policy that lets more through at once counts from now on: what is owed is never above the bucket.
            let next = full_at.max(now).min(now.saturating_add(depth)).saturating_add(cost);
            (next - now <= depth).then_some(next)
        };
        match self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(_) => Ok(()),
            Err(full_at) => {
                let owed = full_at.min(now.saturating_add(depth)).saturating_add(cost) - now;
                Err(Duration::from_nanos(owed.saturating_sub(depth).max(1)))
            }
        }
    }
}
