use proptest::prelude::*;

use super::*;

/// What each of these may take, each computed by itself.
fn shares(limit: f64, demands: &[f64]) -> Vec<f64> {
    let others = |at: usize| [&demands[..at], &demands[at + 1..]].concat();
    demands.iter().enumerate().map(|(at, own)| fair_share(limit, *own, &others(at), 0)).collect()
}

fn check(limit: f64, demands: &[f64], expected: &[f64]) {
    let shares = shares(limit, demands);
    let is_near = |(share, expected): (&f64, &f64)| (share - expected).abs() < 1e-6 * limit;
    assert!(shares.iter().zip(expected).all(is_near), "{limit} for {demands:?}: {shares:?} and not {expected:?}");
}

#[test]
fn who_asks_for_less_than_an_even_part_gets_it_and_the_others_share_the_rest() {
    check(1000.0, &[5000.0], &[1000.0]);
    check(1000.0, &[800.0, 800.0], &[500.0, 500.0]);
    // 100 are met; of 900 left 400 are met; 500 are left for the last one.
    check(1000.0, &[100.0, 400.0, 900.0], &[100.0, 400.0, 500.0]);
    check(1000.0, &[100.0, 460.0, 900.0], &[100.0, 450.0, 450.0]);
    check(1000.0, &[900.0, 100.0, 900.0, 460.0], &[300.0, 100.0, 300.0, 300.0]);
}

#[test]
fn what_nobody_asks_for_is_there_for_all_alike() {
    // 600 are asked for; each gets a third of the 300 left besides.
    check(900.0, &[100.0, 200.0, 300.0], &[200.0, 300.0, 400.0]);
    check(900.0, &[0.0, 0.0, 0.0], &[300.0, 300.0, 300.0]);
    check(900.0, &[300.0, 300.0, 300.0], &[300.0, 300.0, 300.0]);
}

#[test]
fn who_asks_for_nothing_keeps_a_little_and_all_of_them_a_twentieth() {
    // Floors are 1000 / 20 / 5 = 10.
    check(1000.0, &[9000.0, 0.0, 0.0, 0.0, 0.0], &[960.0, 10.0, 10.0, 10.0, 10.0]);
    assert!((fair_share(1000.0, 9000.0, &[], 4) - 960.0).abs() < 1e-6);
    assert!((fair_share(1000.0, 0.0, &[9000.0], 3) - 10.0).abs() < 1e-6);
    assert!((floor_share(1000.0, 5) - 10.0).abs() < 1e-6);
}

#[test]
fn a_claim_beyond_all_measure_gets_what_the_others_that_ask_for_much_get() {
    check(1000.0, &[f64::MAX, 600.0, 600.0], &[1000.0 / 3.0; 3]);
    check(1000.0, &[f64::INFINITY, f64::NAN, -7.0], &[1000.0 - 2.0 * 50.0 / 3.0, 50.0 / 3.0, 50.0 / 3.0]);
}

proptest! {
    #[test]
    fn shares_are_max_min_fair_and_come_to_the_limit(
        limit in 0.01_f64..1e6,
        parts in prop::collection::vec(0.0_f64..3.0, 1..40),
    ) {
        let demands: Vec<f64> = parts.iter().map(|part| part * limit / 4.0).collect();
        let shares = shares(limit, &demands);
        let (near, floor) = (1e-9 * limit, floor_share(limit, demands.len()));
        prop_assert!((shares.iter().sum::<f64>() - limit).abs() < 1e-6 * limit, "{shares:?}");
        let most = shares.iter().copied().fold(0.0, f64::max);
        for (share, demand) in shares.iter().zip(&demands) {
            prop_assert!(*share >= floor - near, "{share} is below the floor");
            // Who does not get what it asks for has as much as anybody.
            prop_assert!(*share >= demand.min(limit) - near || *share >= most - near, "{share} of {demand}, {most} at most");
        }
    }

    #[test]
    fn who_hears_of_more_takes_no_more_and_who_asks_for_more_gets_no_less(
        own in 0.0_f64..300.0,
        others in prop::collection::vec(0.0_f64..300.0, 1..20),
        more in 0.0_f64..300.0,
        at in any::<prop::sample::Index>(),
    ) {
        let share = fair_share(100.0, own, &others, 2);
        let mut risen = others.clone();
        risen[at.index(others.len())] += more;
        prop_assert!(fair_share(100.0, own, &risen, 2) <= share + 1e-9);
        prop_assert!(fair_share(100.0, own + more, &others, 2) >= share - 1e-9);
    }
}
