//! Round trips to one peer, filtered: what routing may believe of a handful of noisy samples.

use std::time::Duration;

/// Filters the round trips and losses of one peer.
///
/// A sample first passes a median of the last three, so that one stall of either machine changes nothing; the medians
/// are smoothed with weight 1/4. Jitter is smoothed as RFC 3550 does (section 6.4.1, weight 1/16), here over the
/// differences of neighbouring round trips. Loss is the share of lost probes among the last 32.
#[derive(Debug, Clone, Default)]
pub struct RttFilter {
    /// The last three samples, newest last.
    recent: [Duration; 3],
    /// Samples seen, saturating.
    samples: u32,
    smoothed: Duration,
    jitter: Duration,
    /// One bit a probe, the newest lowest; a set bit is a loss.
    outcomes: u32,
    /// How many of the bits of `outcomes` mean something.
    outcomes_seen: u32,
}

impl RttFilter {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A probe was answered after `rtt`. Samples over ten seconds are taken for a stopped machine and not counted.
    pub fn observe(&mut self, rtt: Duration) {
        if rtt > RTT_MAX {
            return;
        }
        let [_, older, newer] = self.recent;
        if self.samples > 0 {
            self.jitter = self.jitter * 15 / 16 + rtt.abs_diff(newer) / 16;
        }
        self.recent = [older, newer, rtt];
        self.samples = self.samples.saturating_add(1);
        self.smooth();
        self.record_outcome(0);
    }

    /// A probe was not answered in its time.
    pub fn lost(&mut self) {
        self.record_outcome(1);
    }

    /// The filtered round trip, once three samples are in.
    pub fn rtt(&self) -> Option<Duration> {
        (self.samples >= SAMPLES_MIN).then_some(self.smoothed)
    }

    /// The smoothed difference between neighbouring round trips; zero before the second sample.
    pub const fn jitter(&self) -> Duration {
        self.jitter
    }

    /// Share of the last 32 probes that were lost, 0 to 1; 0 before the first probe.
    pub fn loss(&self) -> f64 {
        if self.outcomes_seen == 0 {
            return 0.0;
        }
        f64::from(self.outcomes.count_ones()) / f64::from(self.outcomes_seen)
    }

    fn smooth(&mut self) {
        match self.samples {
            0..SAMPLES_MIN => {}
            SAMPLES_MIN => self.smoothed = median(self.recent),
            _ => self.smoothed = self.smoothed * 3 / 4 + median(self.recent) / 4,
        }
    }

    fn record_outcome(&mut self, lost: u32) {
        self.outcomes = self.outcomes << 1 | lost;
        self.outcomes_seen = (self.outcomes_seen + 1).min(u32::BITS);
    }
}

/// The middle one of three.
pub(crate) fn median(samples: [Duration; 3]) -> Duration {
    let [a, b, c] = samples;
    a.max(b).min(a.min(b).max(c))
}

/// Samples above this are not round trips but stopped machines.
pub(crate) const RTT_MAX: Duration = Duration::from_secs(10);
/// Samples that a filtered round trip needs.
const SAMPLES_MIN: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(samples_ms: &[u64]) -> RttFilter {
        let mut filter = RttFilter::new();
        for sample in samples_ms {
            filter.observe(Duration::from_millis(*sample));
        }
        filter
    }

    #[test]
    fn two_samples_are_not_enough() {
        assert_eq!(filter(&[5, 5]).rtt(), None);
        assert_eq!(filter(&[5, 5, 5]).rtt(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn one_stall_changes_nothing() {
        assert_eq!(filter(&[5, 5, 5, 900, 5, 5]).rtt(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn a_longer_route_is_learned() {
        let rtt = filter(&[5, 5, 5, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50]).rtt().unwrap();
        assert!(rtt > Duration::from_millis(48), "{rtt:?}");
    }

    #[test]
    fn a_stopped_machine_is_not_a_round_trip() {
        assert_eq!(filter(&[5, 5, 11_000]).rtt(), None);
    }

    #[test]
    fn loss_is_the_share_of_the_last_32() {
        let mut filter = filter(&[5; 40]);
        assert!(filter.loss() < 0.001);
        for _ in 0..8 {
            filter.lost();
        }
        assert!((filter.loss() - 0.25).abs() < 0.001);
    }

    #[test]
    fn jitter_follows_the_differences() {
        assert_eq!(filter(&[5, 5, 5, 5]).jitter(), Duration::ZERO);
        let jitter = filter(&[5, 15].repeat(100)).jitter();
        assert!(jitter > Duration::from_millis(9) && jitter < Duration::from_millis(11), "{jitter:?}");
    }

    #[test]
    fn the_median_is_the_middle_one_in_any_order() {
        let [one, two, three] = [1, 2, 3].map(Duration::from_secs);
        for order in [
            [one, two, three],
            [one, three, two],
            [two, one, three],
            [two, three, one],
            [three, one, two],
            [three, two, one],
        ] {
            assert_eq!(median(order), two);
        }
    }
}
