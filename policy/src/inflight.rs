//! How many requests an instance is working on now, estimated between two reports.

/// What an instance told last of its requests in flight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Those of all clients, at that moment; never smoothed.
    pub inflight: u32,
    /// This node's own at that moment.
    pub own: u32,
    /// How many microseconds ago that was.
    pub age_us: u64,
}

/// Requests in flight at an instance, estimated from two views that err in different ways:
///
/// - what it told last, of all clients, and what this node changed since (`own_now - report.own`): right in sum, but old,
///   and every node reacts to the same old figure;
/// - this node's own requests in flight (`own_now`) times the clients that are active (`active_clients`, this node
///   included): always fresh, but guessing that the others do as we do.
///
/// Either alone herds or drifts. A report that is new counts half, and less as the requests it counted are answered: at an
/// age of a times twice the `latency_ms` of an answer there, half of 1 / (1 + a)^2. Where no latency is known (nothing was
/// answered yet, or what is in flight are tunnels, which stay for long) it counts half at any age. `docs/design/0010` has
/// the simulation behind this: with half at any age, clients that hear from an instance a few times a second at most
/// waited two to three times as long.
///
/// Clients or a latency that are not finite or below zero count as zero, fewer than one client as one, and each view is at
/// least zero, so the result is finite and never negative.
#[inline]
#[must_use]
pub fn inflight_estimate(report: Report, own_now: u32, active_clients: f64, latency_ms: Option<f64>) -> f64 {
    let seen_from_there = f64::from(report.inflight.saturating_add(own_now).saturating_sub(report.own));
    let belief = belief(report.age_us, latency_ms);
    belief * seen_from_there + (1.0 - belief) * inflight_from_own(own_now, active_clients)
}

/// How much a report counts, within 0 and a half.
#[inline]
fn belief(age_us: u64, latency_ms: Option<f64>) -> f64 {
    let Some(latency_ms) = latency_ms else { return 0.5 };
    // 1 / (1 + age / turnover) with one division and no exponential: this is asked for every candidate of every decision.
    let turnover_ms = ANSWERS * count(latency_ms).max(LATENCY_LEAST_MS);
    let kept = turnover_ms / (turnover_ms + millis(age_us));
    0.5 * kept * kept
}

/// The own half alone, for an instance whose gossip is missing or too old to be believed.
#[inline]
#[must_use]
pub fn inflight_from_own(own_now: u32, active_clients: f64) -> f64 {
    f64::from(own_now) * count(active_clients).max(1.0)
}

#[inline]
fn count(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, COUNT_MAX) } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "ages of more than 285 years are not told apart")]
#[inline]
fn millis(us: u64) -> f64 {
    us as f64 * 1e-3
}

/// A report counts a quarter of what it did after the time of so many answers.
const ANSWERS: f64 = 2.0;
/// A microsecond, so that quotients stay numbers.
const LATENCY_LEAST_MS: f64 = 1e-3;
/// More requests than any instance holds, small enough that a product of two stays finite.
const COUNT_MAX: f64 = 1e15;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Report, inflight_estimate, inflight_from_own};

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-12
    }

    fn told(inflight: u32, own: u32, age_ms: u64) -> Report {
        Report { inflight, own, age_us: age_ms * 1000 }
    }

    #[test]
    fn a_new_report_with_the_own_change_counts_half_and_own_times_clients_the_other_half() {
        // 20 were told when 3 were ours; now 5 are ours and 4 clients are active: (20 + 2) / 2 + 5 * 4 / 2.
        assert!(near(inflight_estimate(told(20, 3, 0), 5, 4.0, Some(10.0)), 21.0));
        assert!(near(inflight_estimate(told(0, 0, 0), 0, 7.0, None), 0.0));
        assert!(near(inflight_from_own(5, 4.0), 20.0));
    }

    #[test]
    fn a_report_counts_less_as_the_requests_it_counted_are_answered() {
        // Answers take 10 ms: after 20 ms the report counts an eighth, after a second next to nothing.
        assert!(near(inflight_estimate(told(80, 0, 20), 0, 4.0, Some(10.0)), 10.0));
        assert!(inflight_estimate(told(80, 0, 1_000), 0, 4.0, Some(10.0)) < 0.02);
        assert!(
            inflight_estimate(told(80, 0, 1_000), 0, 4.0, Some(5_000.0)) > 30.0,
            "it is new where answers take 5 s"
        );
        assert!(near(inflight_estimate(told(80, 0, 60_000), 0, 4.0, None), 40.0), "tunnels stay");
    }

    #[test]
    fn a_report_older_than_our_own_requests_does_not_go_below_zero() {
        assert!(near(inflight_estimate(told(1, 9, 0), 0, 1.0, None), 0.0));
    }

    #[test]
    fn odd_inputs_give_a_finite_estimate_of_at_least_zero() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0, 0.0, 1e308, 5e-324];
        let counts = [0, 1, 5, u32::MAX];
        for inflight in counts {
            for own in counts {
                for own_now in counts {
                    for clients in odd {
                        for latency in odd.map(Some).into_iter().chain([None]) {
                            for age_us in [0, u64::MAX] {
                                let estimate =
                                    inflight_estimate(Report { inflight, own, age_us }, own_now, clients, latency);
                                let place = format!("{inflight} {own} {own_now} {clients} {latency:?}");
                                assert!(estimate.is_finite() && estimate >= 0.0, "{place}: {estimate}");
                            }
                        }
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn ordinary_numbers_follow_the_two_views_as_written(
            (inflight, own, own_now) in (0_u32..10_000, 0_u32..1_000, 0_u32..1_000), age_us in 0_u64..100_000_000,
            clients in 0.0..100.0_f64, latency_ms in prop::option::of(0.01..10_000.0_f64),
        ) {
            let told = (f64::from(inflight) + f64::from(own_now) - f64::from(own)).max(0.0);
            let guessed = f64::from(own_now) * clients.max(1.0);
            let ages = |latency_ms: f64| f64::from(u32::try_from(age_us).unwrap()) / 1000.0 / (2.0 * latency_ms);
            let belief = 0.5 / (1.0 + latency_ms.map_or(0.0, ages)).powi(2);
            let expected = belief * told + (1.0 - belief) * guessed;
            let found = inflight_estimate(Report { inflight, own, age_us }, own_now, clients, latency_ms);
            prop_assert!((found - expected).abs() <= 1e-9 * expected.max(1.0), "{found}, not {expected}");
        }
    }
}
