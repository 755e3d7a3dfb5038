//! Hybrid logical time: wall clock where it can be trusted, a count where it cannot.
//!
//! It serves display, audit and the tie-break between concurrent edits. Causality never looks at it, so a wrong clock
//! cannot freeze or erase a document.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A remote clock is followed this far ahead of ours and no further.
pub const CLOCK_LEAD_MAX_MS: u64 = 60_000;

/// Largest wall clock that fits the 48 bits of the op layout: the year 10889.
pub(crate) const MILLIS_MAX: u64 = (1 << 48) - 1;

/// A hybrid stamp: milliseconds since 1970, then a count within the millisecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Hlc {
    /// Milliseconds since 1970, at most 2^48 - 1.
    pub millis: u64,
    /// Orders stamps within one millisecond.
    pub counter: u16,
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis, self.counter)
    }
}

/// Gives out stamps that never repeat or go back on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HlcClock {
    last: Hlc,
}

impl HlcClock {
    /// A clock that continues after `last`, also when the wall clock has fallen behind it.
    #[must_use]
    pub const fn new(last: Hlc) -> Self {
        Self { last }
    }

    /// The newest stamp given out or followed.
    #[must_use]
    pub const fn last(&self) -> Hlc {
        self.last
    }

    /// The stamp for a write at wall clock `now_ms` (milliseconds since 1970): greater than every earlier one.
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        let now = Hlc { millis: now_ms.min(MILLIS_MAX), counter: 0 };
        self.last = if now > self.last { now } else { next(self.last) };
        self.last
    }

    /// Follows a stamp seen in a peer's op, at most [`CLOCK_LEAD_MAX_MS`] ahead of `now_ms`.
    ///
    /// True where the stamp was further ahead than that: the peer's clock is suspect.
    pub fn observe(&mut self, remote: Hlc, now_ms: u64) -> bool {
        let bound = now_ms.saturating_add(CLOCK_LEAD_MAX_MS).min(MILLIS_MAX);
        let is_suspect = remote.millis > bound;
        let followed = if is_suspect { Hlc { millis: bound, counter: 0 } } else { remote };
        self.last = self.last.max(followed);
        is_suspect
    }
}

/// The smallest stamp above another; it stays where it is at the end of time.
fn next(stamp: Hlc) -> Hlc {
    match stamp.counter.checked_add(1) {
        Some(counter) => Hlc { counter, ..stamp },
        None if stamp.millis < MILLIS_MAX => Hlc { millis: stamp.millis + 1, counter: 0 },
        None => stamp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_while_the_wall_clock_stands_still_or_falls_back() {
        let mut clock = HlcClock::default();
        let mut last = Hlc::default();
        for now in [1_000, 1_000, 400, 0, 1_001] {
            let stamp = clock.tick(now);
            assert!(stamp > last, "{stamp} after {last}");
            last = stamp;
        }
        assert_eq!(last, Hlc { millis: 1_001, counter: 0 });
    }

    #[test]
    fn a_full_counter_borrows_a_millisecond() {
        let mut clock = HlcClock::new(Hlc { millis: 5, counter: u16::MAX });
        assert_eq!(clock.tick(0), Hlc { millis: 6, counter: 0 });
    }

    #[test]
    fn a_remote_clock_leads_ours_by_a_minute_at_most() {
        let mut clock = HlcClock::default();
        assert!(!clock.observe(Hlc { millis: 60_000, counter: 3 }, 0));
        assert_eq!(clock.last(), Hlc { millis: 60_000, counter: 3 });
        assert!(clock.observe(Hlc { millis: 31_536_000_000, counter: 0 }, 1_000));
        assert_eq!(clock.last(), Hlc { millis: 61_000, counter: 0 });
        assert_eq!(clock.tick(1_000), Hlc { millis: 61_000, counter: 1 });
    }

    #[test]
    fn the_end_of_time_is_reached_without_a_panic() {
        let mut clock = HlcClock::default();
        assert!(!clock.observe(Hlc { millis: MILLIS_MAX, counter: u16::MAX }, u64::MAX));
        assert_eq!(clock.tick(u64::MAX), Hlc { millis: MILLIS_MAX, counter: u16::MAX });
    }
}
