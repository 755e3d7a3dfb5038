//! How many queries a second are answered. Pure.

use std::time::Duration;

/// A token bucket that holds what one second brings.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    left: f64,
    at: Duration,
}

impl Bucket {
    /// A full one at `now`, monotonic.
    pub(super) fn full(per_second: u32, now: Duration) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, at: now }
    }

    /// Takes one token; false when there is none at `now`.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        let since = now.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + since * self.per_second).min(self.per_second);
        self.at = self.at.max(now);
        let taken = self.left >= 1.0;
        if taken {
            self.left -= 1.0;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_brings_as_many_as_it_may_and_quiet_hours_no_more_than_that() {
        let mut bucket = Bucket::full(10, Duration::ZERO);
        let mut taken = |ms: u64| (0..100).filter(|_| bucket.take(Duration::from_millis(ms))).count();
        assert_eq!([taken(0), taken(50), taken(100), taken(150), taken(3_600_000)], [10, 0, 1, 0, 10]);
        assert_eq!(taken(3_599_000), 0, "a clock that is late brings nothing");
    }
}
