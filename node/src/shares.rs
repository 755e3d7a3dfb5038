//! What share of a service's requests each endpoint really got over the last minute. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// How far back the share looks.
const WINDOW: Duration = Duration::from_secs(60);
/// How often a mark is set; the window is exact to within this.
const MARK_EVERY: Duration = Duration::from_secs(5);

/// Identifies one endpoint: service, instance, node label.
pub type EndpointKey = (String, String, String);

/// Marks of the counts of every endpoint.
#[derive(Debug, Default)]
pub struct Shares {
    marks: VecDeque<(Duration, HashMap<EndpointKey, u64>)>,
}

impl Shares {
    /// Sets a mark of `picks` at `now` when one is due; marks older than the window are dropped.
    pub fn mark(&mut self, now: Duration, picks: impl FnOnce() -> HashMap<EndpointKey, u64>) {
        if self.marks.back().is_some_and(|(at, _)| now.saturating_sub(*at) < MARK_EVERY) {
            return;
        }
        self.marks.push_back((now, picks()));
        while self.marks.len() > 2 && self.marks.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.marks.pop_front();
        }
    }

    /// The share of each endpoint in the picks of the window; 0 for all when there were none.
    ///
    /// `current` are the counts now, in any order; the answer has the same order.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of one minute")]
    pub fn observed(&self, current: &[(EndpointKey, u64)]) -> Vec<f64> {
        let then = |key: &EndpointKey| self.marks.front().and_then(|(_, counts)| counts.get(key)).copied().unwrap_or(0);
        let deltas: Vec<u64> = current.iter().map(|(key, count)| count.saturating_sub(then(key))).collect();
        let all: u64 = deltas.iter().sum();
        deltas.into_iter().map(|delta| if all == 0 { 0.0 } else { delta as f64 / all as f64 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> EndpointKey {
        ("hello".to_owned(), name.to_owned(), "n1".to_owned())
    }

    #[test]
    fn shares_count_only_the_last_minute() {
        let mut shares = Shares::default();
        shares.mark(Duration::ZERO, || HashMap::from([(key("a"), 0), (key("b"), 0)]));
        shares.mark(Duration::from_secs(30), || HashMap::from([(key("a"), 1000), (key("b"), 0)]));
        let first = shares.observed(&[(key("a"), 1000), (key("b"), 0)]);
        assert!((first[0] - 1.0).abs() < 1e-9);
        shares.mark(Duration::from_secs(95), || HashMap::from([(key("a"), 1000), (key("b"), 30)]));
        let later = shares.observed(&[(key("a"), 1010), (key("b"), 30)]);
        assert!((later[0] - 0.25).abs() < 1e-9, "10 of 40 since the mark at 30 s, not {later:?}");
    }

    #[test]
    fn no_picks_means_no_share_and_no_division_by_zero() {
        assert_eq!(Shares::default().observed(&[(key("a"), 0), (key("b"), 0)]), [0.0, 0.0]);
    }
}
