//! What is counted of one endpoint until the interval ends, in atomics that all data threads share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::peers::{Finding, Seen, Verdict};

/// The counts of one interval, and what the intervals before it came to.
///
/// Data threads only add; the control thread takes everything once an interval. A request that ends at that moment may
/// have one of its counts in this interval and one in the next.
#[derive(Debug, Default)]
pub struct Window {
    good: AtomicU64,
    bad: AtomicU64,
    timed: AtomicU64,
    timed_us: AtomicU64,
    slow_intervals: AtomicU32,
    /// Times it was left out by comparison; one less for each interval that it passes well.
    relapses: AtomicU32,
    /// What it was left out for last; `None` where that was errors in a row.
    finding: ArcSwapOption<Finding>,
}

impl Window {
    /// One more good answer.
    pub fn good(&self) {
        self.good.fetch_add(1, Ordering::Relaxed);
    }

    /// One more error.
    pub fn bad(&self) {
        self.bad.fetch_add(1, Ordering::Relaxed);
    }

    /// A good answer took so long.
    pub fn timed(&self, took: Duration) {
        self.timed.fetch_add(1, Ordering::Relaxed);
        self.timed_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What was counted since the last call, of an endpoint that is `distance_ms` away.
    pub fn take(&self, distance_ms: f64) -> Seen {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Seen {
            good: take(&self.good),
            bad: take(&self.bad),
            timed: take(&self.timed),
            timed_us: take(&self.timed_us),
            distance_ms,
            slow_intervals: self.slow_intervals.load(Ordering::Relaxed),
            has_relapsed: self.relapses() > 0,
        }
    }

    /// Keeps what came of the interval.
    pub fn note(&self, verdict: &Verdict) {
        self.slow_intervals.store(verdict.slow_intervals, Ordering::Relaxed);
        if verdict.is_sound {
            self.relapses.store(self.relapses().saturating_sub(1), Ordering::Relaxed);
        }
    }

    /// Times it was left out by comparison that are not forgotten.
    pub fn relapses(&self) -> u32 {
        self.relapses.load(Ordering::Relaxed)
    }

    /// It is left out for this.
    pub fn found(&self, finding: Finding) {
        self.slow_intervals.store(0, Ordering::Relaxed);
        self.relapses.store(self.relapses().saturating_add(1), Ordering::Relaxed);
        self.finding.store(Some(Arc::new(finding)));
    }

    /// It is left out for errors in a row.
    pub fn found_streak(&self) {
        self.finding.store(None);
    }

    /// What it was left out for last.
    pub fn finding(&self) -> Option<Finding> {
        self.finding.load().as_deref().copied()
    }

    /// Begins as if nothing was known of it.
    pub fn forget(&self) {
        self.take(0.0);
        self.slow_intervals.store(0, Ordering::Relaxed);
        self.relapses.store(0, Ordering::Relaxed);
        self.finding.store(None);
    }
}
