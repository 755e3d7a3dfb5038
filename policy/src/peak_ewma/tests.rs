use std::time::Duration;

use proptest::prelude::*;

use super::PeakEwma;

const START: Duration = Duration::from_secs(1_000);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn after(seconds: u64) -> Duration {
    START + Duration::from_secs(seconds)
}

fn near(found: Option<f64>, expected_ms: f64) {
    let found = found.expect("something is known");
    assert!((found - expected_ms).abs() < 1e-3 * expected_ms, "{found} ms, not {expected_ms}");
}

#[test]
fn the_first_answer_is_the_estimate_and_a_peak_is_at_once() {
    assert_eq!(PeakEwma::default().latency_ms(START), None);
    let first = PeakEwma::default().answered(ms(10), START);
    near(first.latency_ms(START), 10.0);
    near(first.answered(ms(400), START).latency_ms(START), 400.0);
}

#[test]
fn a_peak_decays_with_a_time_constant_of_ten_seconds() {
    let peak = PeakEwma::default().answered(ms(1_000), START);
    near(peak.latency_ms(after(10)), 1_000.0 / std::f64::consts::E);
    // An answer of 100 ms ten seconds later: 1000/e + 100 (1 - 1/e).
    near(peak.answered(ms(100), after(10)).latency_ms(after(10)), 431.09);
    // The peak alone is below another's 100 ms after 10 ln 10 = 23.03 s.
    assert!(peak.latency_ms(after(23)).unwrap() > 100.0);
    assert!(peak.latency_ms(after(24)).unwrap() < 100.0);
}

#[test]
fn many_quick_answers_bring_a_peak_down_as_time_passes_and_not_by_their_number() {
    let mut ewma = PeakEwma::default().answered(ms(1_000), START);
    for _ in 0..10_000 {
        ewma = ewma.answered(ms(10), START);
    }
    near(ewma.latency_ms(START), 1_000.0);
    for step in 1..=10_000 {
        ewma = ewma.answered(ms(10), START + ms(step));
    }
    near(ewma.latency_ms(after(10)), 10.0 + 990.0 / std::f64::consts::E);
}

#[test]
fn errors_never_lower_the_estimate_however_many_and_however_fast() {
    let mut refusing = PeakEwma::default().answered(ms(20), START);
    for second in 1..=600 {
        refusing = refusing.erred(ms(1), after(second));
    }
    near(refusing.latency_ms(after(600)), 20.0);
    near(refusing.erred(ms(90), after(601)).latency_ms(after(601)), 90.0);
    near(PeakEwma::default().erred(ms(1), START).latency_ms(START), 250.0);
}

#[test]
fn a_wait_without_an_answer_is_a_lower_bound() {
    let known = PeakEwma::default().answered(ms(100), START);
    assert_eq!(known.waited(ms(90), START), known);
    near(known.waited(ms(5_000), after(5)).latency_ms(after(5)), 5_000.0);
    assert_eq!(PeakEwma::default().waited(ms(3), START), PeakEwma::default(), "giving up at once tells nothing");
    near(PeakEwma::default().waited(ms(1_000), START).latency_ms(START), 1_000.0);
}

#[test]
fn a_clock_that_is_behind_or_went_round_is_no_reason_to_forget() {
    let later = PeakEwma::default().answered(ms(100), after(60));
    near(later.latency_ms(START), 100.0);
    near(later.answered(ms(1), START).latency_ms(after(60)), 100.0);
    let round = Duration::from_millis(u64::from(u32::MAX) + 1);
    let before = PeakEwma::default().answered(ms(100), round - Duration::from_secs(5));
    near(before.latency_ms(round + Duration::from_secs(5)), 100.0 / std::f64::consts::E);
}

proptest! {
    #[test]
    fn an_estimate_is_what_its_bits_say(latency in 0_u64..100_000_000, at in 0_u64..10_000_000_000) {
        let ewma = PeakEwma::default().answered(Duration::from_micros(latency), ms(at));
        prop_assert_eq!(PeakEwma::from_bits(ewma.to_bits()), ewma);
        prop_assert_eq!(PeakEwma::from_bits(0), PeakEwma::default());
    }

    #[test]
    fn whatever_happens_the_estimate_is_a_number_within_what_was_seen(
        steps in prop::collection::vec((0..3, 0_u64..10_000, 0_u64..30_000), 1..40),
    ) {
        let (mut ewma, mut now, mut most) = (PeakEwma::default(), START, 250.0_f64);
        for (what, latency, pause) in steps {
            now += ms(pause);
            most = most.max(f64::from(u32::try_from(latency).unwrap()));
            ewma = match what {
                0 => ewma.answered(ms(latency), now),
                1 => ewma.erred(ms(latency), now),
                _ => ewma.waited(ms(latency), now),
            };
            if let Some(found) = ewma.latency_ms(now) {
                prop_assert!(found > 0.0 && found <= most * 1.000_001, "{found} ms, {most} at most");
            }
        }
    }

    #[test]
    fn any_bits_are_some_estimate(bits: u64, now in 0_u64..u64::MAX) {
        let ewma = PeakEwma::from_bits(bits);
        let found = ewma.answered(ms(1), ms(now)).latency_ms(ms(now)).unwrap();
        prop_assert!(found.is_finite() && found > 0.0);
    }
}
