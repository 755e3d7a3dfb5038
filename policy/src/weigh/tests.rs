use proptest::prelude::*;

use super::{Candidate, Capacity, DISTANCE_MS_MAX, Decay, LOAD_MAX, Weighed, nearest, weigh};
use crate::backend::BackendPolicy;

fn candidate(capacity: f64, load: f64, distance_ms: f64) -> Candidate {
    Candidate { capacity: Capacity::new(capacity).unwrap(), load, distance_ms }
}

fn weighed(policy: &BackendPolicy, candidates: &[Candidate]) -> Vec<Weighed> {
    let mut out = vec![Weighed::default(); 3];
    weigh(policy, candidates, &mut out);
    out
}

#[test]
fn the_formula_gives_the_numbers_worked_out_by_hand() {
    // Half-distance 25 ms and epsilon 1: west 100 / 1.3 * e^-0.005545 = 76.498, east 100 / 1.1 * 2^-1.6 = 29.989, north
    // 200 / 1.1 * 2^-3.6 = 14.995; together 121.482.
    let candidates = [candidate(100.0, 0.3, 0.2), candidate(100.0, 0.1, 40.0), candidate(200.0, 0.1, 90.0)];
    let found = weighed(&BackendPolicy::default(), &candidates);
    for (found, (weight, probability)) in found.iter().zip([(76.50, 0.630), (29.99, 0.247), (14.99, 0.123)]) {
        assert!((found.weight - weight).abs() < 0.006, "{found:?}, expected w {weight}");
        assert!((found.probability - probability).abs() < 0.0005, "{found:?}, expected P {probability}");
    }
}

#[test]
fn no_candidates_give_no_weights_and_one_has_all() {
    assert_eq!(weighed(&BackendPolicy::default(), &[]), []);
    for alone in
        [candidate(5e-324, f64::NAN, f64::INFINITY), candidate(f64::MAX, 0.0, 0.0), candidate(1.0, 1e308, 1e308)]
    {
        let found = weighed(&BackendPolicy::default(), &[alone]);
        assert!((found[0].probability - 1.0).abs() < 1e-12, "{alone:?} {found:?}");
    }
}

#[test]
fn shares_hold_when_all_are_so_far_that_exp_underflows() {
    // lambda * d is about 1386 and more; relative to the nearest the second counts half.
    let found = weighed(&BackendPolicy::default(), &[candidate(10.0, 0.0, 50_000.0), candidate(10.0, 0.0, 50_025.0)]);
    assert!((found[0].probability - 2.0 / 3.0).abs() < 1e-9, "{found:?}");
    assert!((found[1].probability - 1.0 / 3.0).abs() < 1e-9, "{found:?}");
    assert!(found.iter().all(|weighed| weighed.weight.abs() < f64::MIN_POSITIVE), "{found:?}");
}

#[test]
fn unknown_loads_and_distances_repel_and_negative_ones_count_as_zero() {
    let policy = BackendPolicy::default();
    let found = weighed(&policy, &[candidate(1.0, f64::NAN, 0.0), candidate(1.0, 5.0, 0.0)]);
    assert!(found[0].probability < 1e-9 && found[0].probability > 0.0, "{found:?}");
    let found = weighed(&policy, &[candidate(1.0, 0.0, f64::NAN), candidate(1.0, 0.0, 300.0)]);
    assert!(found[0].probability < 1e-9, "{found:?}");
    let found = weighed(&policy, &[candidate(1.0, -3.0, -7.0), candidate(1.0, 0.0, 0.0)]);
    assert!((found[0].probability - 0.5).abs() < 1e-12, "{found:?}");
    let unknown = candidate(1.0, f64::INFINITY, f64::NAN);
    assert!((unknown.load_used() - LOAD_MAX).abs() < 1.0 && (unknown.distance_used_ms() - DISTANCE_MS_MAX).abs() < 1.0);
}

#[test]
fn capacity_is_finite_and_above_zero() {
    for wrong in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(Capacity::new(wrong).is_err(), "{wrong}");
    }
    for right in [5e-324, 0.5, 64.0, f64::MAX] {
        assert!(Capacity::new(right).is_ok(), "{right}");
    }
}

#[test]
fn load_is_inflight_by_capacity() {
    let built = Candidate::with_inflight(Capacity::new(64.0).unwrap(), 16.0, 3.0);
    assert_eq!(built, candidate(64.0, 0.25, 3.0));
    let odd = Candidate::with_inflight(Capacity::new(5e-324).unwrap(), f64::NAN, f64::NAN);
    assert!(odd.load.is_finite() && odd.distance_ms.is_finite());
}

#[test]
fn a_policy_without_usable_parameters_weighs_by_the_defaults() {
    let candidates = [candidate(1.0, 0.0, 0.0), candidate(1.0, 0.5, 25.0)];
    let expected = weighed(&BackendPolicy::default(), &candidates);
    for (lambda_per_ms, epsilon) in [(f64::NAN, f64::NAN), (-1.0, 0.0), (f64::INFINITY, -1.0)] {
        let policy = BackendPolicy { lambda_per_ms, epsilon, ..BackendPolicy::default() };
        assert_eq!(weighed(&policy, &candidates), expected);
    }
}

#[test]
fn the_nearest_are_kept_in_order_and_ties_go_to_the_first() {
    let candidates = [
        candidate(1.0, 0.0, 9.0),
        candidate(1.0, 0.0, 1.0),
        candidate(1.0, 0.0, 5.0),
        candidate(1.0, 0.0, 5.0),
        candidate(1.0, 0.0, f64::NAN),
    ];
    for (count, expected) in [
        (0, &[][..]),
        (1, &[1]),
        (2, &[1, 2]),
        (3, &[1, 2, 3]),
        (4, &[0, 1, 2, 3]),
        (5, &[0, 1, 2, 3, 4]),
        (9, &[0, 1, 2, 3, 4]),
    ] {
        let mut out = vec![7; 7];
        nearest(&candidates, count, &mut out);
        assert_eq!(out, expected, "nearest {count}");
    }
}

/// Numbers that break careless arithmetic, and any others.
fn odd() -> impl Strategy<Value = f64> {
    prop_oneof![
        prop::sample::select(vec![
            0.0,
            -0.0,
            5e-324,
            f64::MIN_POSITIVE,
            1e-308,
            1e-100,
            1.0,
            1e100,
            1e308,
            f64::MAX,
            -1.0,
            -1e308,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            745.2,
            26_900.0,
            1e9,
        ]),
        0.0..1e6,
        prop::num::f64::ANY,
    ]
}

fn odd_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let capacity = odd().prop_map(|value| Capacity::new(value.abs()).or_else(|_| Capacity::new(1.0)).unwrap());
    let candidate =
        (capacity, odd(), odd()).prop_map(|(capacity, load, distance_ms)| Candidate { capacity, load, distance_ms });
    prop::collection::vec(candidate, 1..40)
}

fn plain_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let candidate = (0.5..1000.0, 0.0..100.0, 0.0..300.0);
    prop::collection::vec(candidate.prop_map(|(c, l, d)| self::candidate(c, l, d)), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn probabilities_are_finite_and_sum_to_one_whatever_the_numbers(
        candidates in odd_candidates(), lambda_per_ms in odd(), epsilon in odd(),
    ) {
        let policy = BackendPolicy { lambda_per_ms, epsilon, ..BackendPolicy::default() };
        let found = weighed(&policy, &candidates);
        prop_assert_eq!(found.len(), candidates.len());
        let mut sum = 0.0;
        for weighed in &found {
            prop_assert!((0.0..=1.0).contains(&weighed.probability), "{weighed:?}");
            prop_assert!(weighed.weight.is_finite() && weighed.weight >= 0.0, "{weighed:?}");
            sum += weighed.probability;
        }
        prop_assert!((sum - 1.0).abs() < 1e-9, "sum {sum}");
    }

    #[test]
    fn ordinary_numbers_follow_the_formula_as_written(
        candidates in plain_candidates(), lambda_per_ms in 0.0..0.2, epsilon in 1e-3..10.0,
    ) {
        let policy = BackendPolicy { lambda_per_ms, epsilon, ..BackendPolicy::default() };
        let plain = |c: &Candidate| c.capacity.requests() / (c.load + epsilon) * (-lambda_per_ms * c.distance_ms).exp();
        let sum: f64 = candidates.iter().map(plain).sum();
        for (candidate, weighed) in candidates.iter().zip(weighed(&policy, &candidates)) {
            let weight = plain(candidate);
            prop_assert!((weighed.weight - weight).abs() <= 1e-11 * weight);
            prop_assert!((weighed.probability - weight / sum).abs() < 1e-11);
        }
    }

    #[test]
    fn both_ways_to_the_shares_agree(candidates in plain_candidates(), lambda in 0.0..0.2, epsilon in 1e-3..10.0) {
        let decay = Decay { lambda, epsilon };
        let nearest = candidates.iter().map(|candidate| candidate.distance_ms).fold(f64::MAX, f64::min);
        let quotient = |candidate: &Candidate| Weighed { weight: decay.quotient(candidate), probability: 0.0 };
        let (mut plain, mut logarithm): (Vec<_>, _) = (candidates.iter().map(quotient).collect(), Vec::new());
        decay.weigh_plain(&candidates, nearest, &mut plain);
        decay.weigh_by_logarithm(&candidates, nearest, &mut logarithm);
        prop_assert_eq!((plain.len(), logarithm.len()), (candidates.len(), candidates.len()));
        for (plain, logarithm) in plain.iter().zip(&logarithm) {
            prop_assert!((plain.probability - logarithm.probability).abs() < 1e-11);
            prop_assert!((plain.weight - logarithm.weight).abs() <= 1e-11 * plain.weight);
        }
    }
}
