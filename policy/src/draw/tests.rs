use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use statrs::distribution::{ChiSquared, ContinuousCDF};

use super::{draw, draw_excluding};
use crate::{
    backend::BackendPolicy,
    weigh::{Candidate, Capacity, Weighed, weigh},
};

const DRAWS: u32 = 20_000;
/// What chance alone stays above in 999 of 1000 runs; with fixed seeds it does in every run.
const P_LEAST: f64 = 0.001;

fn weighed(candidates: &[(f64, f64, f64)], lambda_per_ms: f64) -> Vec<Weighed> {
    let policy = BackendPolicy { lambda_per_ms, ..BackendPolicy::default() };
    let candidates: Vec<Candidate> = candidates
        .iter()
        .map(|(capacity, load, distance_ms)| Candidate {
            capacity: Capacity::new(*capacity).unwrap(),
            load: *load,
            distance_ms: *distance_ms,
        })
        .collect();
    let mut out = Vec::new();
    weigh(&policy, &candidates, &mut out);
    out
}

/// Sets of C, L, d, each with its lambda: the explained example; five unlike ones; many, near and far, idle and full;
/// all so far that exp alone underflows.
fn sets() -> Vec<Vec<Weighed>> {
    let lambda = BackendPolicy::default().lambda_per_ms;
    vec![
        weighed(&[(100.0, 0.3, 0.2), (100.0, 0.1, 40.0), (200.0, 0.1, 90.0)], lambda),
        weighed(&[(8.0, 0.9, 1.0), (4.0, 0.0, 2.0), (2.0, 1.5, 0.0), (8.0, 3.0, 12.0), (64.0, 0.5, 30.0)], 0.1),
        weighed(
            &[
                (2.0, 0.0, 0.0),
                (4.0, 0.5, 5.0),
                (8.0, 1.0, 10.0),
                (16.0, 2.0, 15.0),
                (2.0, 4.0, 20.0),
                (4.0, 0.0, 25.0),
                (8.0, 0.5, 30.0),
                (16.0, 1.0, 35.0),
            ],
            0.01,
        ),
        weighed(&[(10.0, 0.0, 50_000.0), (10.0, 0.0, 50_025.0), (30.0, 2.0, 50_010.0)], lambda),
    ]
}

fn counts(seed: u64, candidates: usize, mut one: impl FnMut(f64) -> Option<usize>) -> Vec<u32> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut counts = vec![0; candidates];
    for _ in 0..DRAWS {
        counts[one(chance.random::<f64>()).expect("there are candidates")] += 1;
    }
    counts
}

/// The probability that chance alone strays at least as far from `expected` shares as `counts` do (Pearson's test).
fn p_value(counts: &[u32], expected: &[f64]) -> f64 {
    let total = f64::from(counts.iter().sum::<u32>());
    let statistic: f64 = counts
        .iter()
        .zip(expected)
        .map(|(count, share)| {
            let expected = share * total;
            assert!(expected >= 5.0, "the test needs at least 5 expected draws of each, not {expected}");
            (f64::from(*count) - expected).powi(2) / expected
        })
        .sum();
    let freedom = u32::try_from(expected.len() - 1).unwrap();
    1.0 - ChiSquared::new(f64::from(freedom)).unwrap().cdf(statistic)
}

/// A way to draw that is not by P.
type Crooked<'f> = &'f dyn Fn(f64) -> Option<usize>;

fn shares(weighed: &[Weighed]) -> Vec<f64> {
    weighed.iter().map(|weighed| weighed.probability).collect()
}

#[test]
fn twenty_thousand_draws_pass_a_chi_square_test_against_p() {
    for (index, set) in sets().iter().enumerate() {
        for seed in [1, 2, 3] {
            let counts = counts(seed, set.len(), |u| draw(set, u));
            let p = p_value(&counts, &shares(set));
            assert!(p > P_LEAST, "set {index}, seed {seed}: p = {p}, counts {counts:?}");
        }
    }
}

#[test]
fn the_chi_square_test_rejects_shares_that_are_a_little_wrong() {
    // What the formula would say with the load left out, with distance counting twice, and with one share moved by a
    // twentieth: draws by the right P must fail against each, or the test above proves nothing.
    let lambda = BackendPolicy::default().lambda_per_ms;
    let right = weighed(&[(100.0, 0.3, 0.2), (100.0, 0.1, 40.0), (200.0, 0.1, 90.0)], lambda);
    let without_load = weighed(&[(100.0, 0.0, 0.2), (100.0, 0.0, 40.0), (200.0, 0.0, 90.0)], lambda);
    let distance_twice = weighed(&[(100.0, 0.3, 0.4), (100.0, 0.1, 80.0), (200.0, 0.1, 180.0)], lambda);
    let mut moved = shares(&right);
    moved[0] *= 0.95;
    moved[1] += 0.05 * shares(&right)[0];
    let counts = counts(1, right.len(), |u| draw(&right, u));
    for (what, wrong) in [("load", shares(&without_load)), ("distance", shares(&distance_twice)), ("moved", moved)] {
        let p = p_value(&counts, &wrong);
        assert!(p < P_LEAST, "{what}: p = {p}");
    }
}

#[test]
fn the_chi_square_test_rejects_draws_that_are_not_by_p() {
    let set = &sets()[0];
    let crooked: [(&str, Crooked<'_>); 3] = [
        ("squared chance", &|u| draw(set, u * u)),
        ("the first a little more often", &|u| if u > 0.95 { Some(0) } else { draw(set, u) }),
        ("everyone alike", &|u| draw(&[Weighed { weight: 1.0, probability: 1.0 / 3.0 }; 3], u)),
    ];
    for (what, one) in crooked {
        let p = p_value(&counts(1, 3, one), &shares(set));
        assert!(p < P_LEAST, "{what}: p = {p}");
    }
}

#[test]
fn a_draw_that_leaves_some_out_keeps_the_proportions_of_the_others() {
    for (seed, set) in (7..).zip(sets()) {
        let tried = [0];
        let counts = counts(seed, set.len(), |u| draw_excluding(&set, &tried, u));
        assert_eq!(counts[0], 0);
        let rest: f64 = shares(&set)[1..].iter().sum();
        let expected: Vec<f64> = shares(&set)[1..].iter().map(|share| share / rest).collect();
        let p = p_value(&counts[1..], &expected);
        assert!(p > P_LEAST, "seed {seed}: p = {p}");
    }
}

#[test]
fn a_draw_scans_the_cumulated_shares() {
    let set: Vec<Weighed> =
        [0.0, 0.25, 0.0, 0.5, 0.25, 0.0].iter().map(|&probability| Weighed { weight: 0.0, probability }).collect();
    for (u, expected) in [
        (0.0, 1),
        (0.249, 1),
        (0.25, 3),
        (0.749, 3),
        (0.75, 4),
        (0.999_999, 4),
        (1.0, 4),
        (7.0, 4),
        (-1.0, 1),
        (f64::NAN, 1),
    ] {
        assert_eq!(draw(&set, u), Some(expected), "{u}");
    }
    for (tried, u, expected) in [
        (&[3][..], 0.499, Some(1)),
        (&[3], 0.5, Some(4)),
        (&[1, 3], 0.0, Some(4)),
        (&[1, 3, 4], 0.0, Some(0)),
        (&[1, 3, 4], 0.99, Some(5)),
        (&[0, 1, 2, 3, 4, 5], 0.0, None),
        (&[99], 0.0, Some(1)),
    ] {
        assert_eq!(draw_excluding(&set, tried, u), expected, "{tried:?} {u}");
    }
    assert_eq!(draw(&[], 0.5), None);
}

proptest! {
    #[test]
    fn a_draw_always_finds_somebody_who_was_not_tried(
        loads in prop::collection::vec(0.0..9.0, 1..20), tried in prop::collection::vec(0_usize..20, 0..20), u in 0.0..1.0,
    ) {
        let candidates: Vec<_> = loads.iter().map(|load| (1.0, *load, load * 1e6)).collect();
        let set = weighed(&candidates, 0.03);
        let left = (0..set.len()).any(|index| !tried.contains(&index));
        let drawn = draw_excluding(&set, &tried, u);
        prop_assert_eq!(drawn.is_some(), left);
        if let Some(index) = drawn {
            prop_assert!(index < set.len() && !tried.contains(&index));
        }
        prop_assert!(draw(&set, u).is_some_and(|index| set[index].probability > 0.0));
    }

    #[test]
    fn a_draw_falls_where_the_cumulated_shares_say(
        candidates in prop::collection::vec((1.0..100.0, 0.0..3.0, 0.0..200.0), 1..60), u in 0.0..1.0, part in 1_usize..60,
    ) {
        let whole = weighed(&candidates, 0.03);
        // A part of the candidates, whose shares do not sum to 1, is drawn from in the same proportions.
        let set = &whole[..part.min(whole.len())];
        let sum: f64 = set.iter().map(|weighed| weighed.probability).sum();
        let u = u * sum;
        let index = draw(set, u / sum).unwrap();
        let before: f64 = set[..index].iter().map(|weighed| weighed.probability).sum();
        let after = before + set[index].probability;
        prop_assert!(before - 1e-9 <= u && u < after + 1e-9, "{u} is outside of {before}..{after}");
    }

    #[test]
    fn a_draw_that_leaves_one_out_falls_where_the_cumulated_shares_of_the_others_say(
        candidates in prop::collection::vec((1.0..100.0, 0.0..3.0, 0.0..200.0), 2..60), u in 0.0..1.0, tried in 0_usize..60,
    ) {
        let mut set = weighed(&candidates, 0.03);
        let tried = tried % set.len();
        let index = draw_excluding(&set, &[tried], u).unwrap();
        prop_assert_ne!(index, tried);
        set[tried].probability = 0.0;
        let sum = |set: &[Weighed]| set.iter().map(|weighed| weighed.probability).sum::<f64>();
        let (before, after, target) = (sum(&set[..index]), sum(&set[..=index]), u * sum(&set));
        prop_assert!(before - 1e-9 <= target && target < after + 1e-9, "{target} is outside of {before}..{after}");
    }
}
