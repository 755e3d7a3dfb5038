use std::cmp::Ordering;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use statrs::distribution::{ChiSquared, ContinuousCDF};

use super::{Choice, Contender, choose};
use crate::{
    backend::Draw,
    weigh::{Capacity, Weighed},
};

fn weighed(probabilities: &[f64]) -> Vec<Weighed> {
    probabilities.iter().map(|&probability| Weighed { weight: probability, probability }).collect()
}

/// Of capacity 4, idle, a millisecond away, answering after ten.
fn contender() -> Contender {
    let capacity = Capacity::new(4.0).unwrap();
    Contender { capacity, inflight: 0.0, own_inflight: 0, distance_ms: 1.0, latency_ms: Some(10.0) }
}

/// A candidate that has never answered.
fn unknown() -> Contender {
    Contender { latency_ms: None, ..contender() }
}

#[test]
fn the_cost_is_latency_times_how_often_the_place_is_full() {
    let base = contender();
    for (what, other, expected) in [
        ("room for one more costs the latency alone", Contender { inflight: 3.0, ..base }, Ordering::Equal),
        ("one more than it can work on costs more", Contender { inflight: 3.1, ..base }, Ordering::Less),
        (
            "nine in flight cost two and a half times",
            Contender { inflight: 9.0, latency_ms: Some(4.1), ..base },
            Ordering::Less,
        ),
        (
            "and that is still better than more",
            Contender { inflight: 9.0, latency_ms: Some(3.9), ..base },
            Ordering::Greater,
        ),
        ("more than twice as slow costs more", Contender { latency_ms: Some(20.1), ..base }, Ordering::Less),
        (
            "no answer comes before the round trip",
            Contender { distance_ms: 40.0, latency_ms: Some(0.1), ..base },
            Ordering::Less,
        ),
    ] {
        assert_eq!(base.compare(&other), expected, "{what}");
        assert_eq!(other.compare(&base), expected.reverse(), "{what}, the other way round");
    }
}

#[test]
fn places_with_room_that_are_about_as_quick_share_and_busy_ones_are_told_apart() {
    let of = |inflight, latency_ms| Contender { inflight, latency_ms: Some(latency_ms), ..contender() };
    for (what, one, other, expected) in [
        ("both idle, within a factor of two", of(0.0, 5.0), of(0.0, 10.0), Ordering::Equal),
        ("both half full with the new request", of(1.0, 5.0), of(1.0, 10.0), Ordering::Equal),
        ("beyond a factor of two", of(0.0, 5.0), of(0.0, 10.1), Ordering::Less),
        ("one more than half full", of(0.0, 5.0), of(1.1, 5.1), Ordering::Less),
        ("the slower one more than half full", of(1.1, 5.1), of(0.0, 5.0), Ordering::Greater),
        ("what nobody feels, also under load", of(3.0, 0.2), of(3.0, 1.9), Ordering::Equal),
        ("there the queue decides", of(3.0, 1.9), of(4.0, 0.2), Ordering::Less),
    ] {
        let near = |contender: Contender| Contender { distance_ms: 0.1, ..contender };
        assert_eq!(near(one).compare(&near(other)), expected, "{what}");
        assert_eq!(near(other).compare(&near(one)), expected.reverse(), "{what}, the other way round");
    }
}

#[test]
fn a_candidate_without_an_answer_yet_is_asked_one_request_at_a_time() {
    let known = contender();
    for (what, unknown, known, expected) in [
        ("idle, it goes first", unknown(), known, Ordering::Less),
        (
            "with a request of ours there, it waits",
            Contender { own_inflight: 1, inflight: 1.0, ..unknown() },
            known,
            Ordering::Greater,
        ),
        (
            "a busy one is not left out where the other is as busy",
            Contender { inflight: 11.0, ..unknown() },
            Contender { inflight: 11.0, ..known },
            Ordering::Less,
        ),
        (
            "a busy one does not win against an idle one",
            Contender { inflight: 11.0, ..unknown() },
            known,
            Ordering::Greater,
        ),
        (
            "it takes a second one where the other is more than twice as full",
            Contender { own_inflight: 1, inflight: 1.0, ..unknown() },
            Contender { inflight: 11.0, ..known },
            Ordering::Less,
        ),
        (
            "a place whose round trip alone is longer waits",
            Contender { distance_ms: 20.0, ..unknown() },
            known,
            Ordering::Greater,
        ),
    ] {
        assert_eq!(unknown.compare(&known), expected, "{what}");
        assert_eq!(known.compare(&unknown), expected.reverse(), "{what}, the other way round");
    }
    assert_eq!(unknown().compare(&Contender { inflight: 40.0, own_inflight: 9, ..unknown() }), Ordering::Less);
}

#[test]
fn a_newcomer_is_neither_starved_nor_flooded() {
    // Four alike, one of them new: 10,000 requests, each answered before the next, then each while one of ours is there.
    let set = weighed(&[0.25; 4]);
    let mut chance = StdRng::seed_from_u64(5);
    let mut wins = |own_inflight: u32| {
        let newcomer = Contender { own_inflight, inflight: f64::from(own_inflight), ..unknown() };
        let mut take = || {
            let of = |index| Some(if index == 0 { newcomer } else { contender() });
            choose(Draw::BestOfTwo, &set, [chance.random(), chance.random()], of).unwrap().chosen
        };
        (0..10_000).filter(|_| take() == 0).count()
    };
    let idle = wins(0);
    // It is one of the two in half of the draws; that is the most it can get.
    assert!((4_700..5_300).contains(&idle), "{idle} of 10000");
    assert_eq!(wins(1), 0, "until it answers, the others are asked");
}

#[test]
fn both_draws_follow_p_and_the_second_leaves_the_first_out() {
    let p = [0.5, 0.2, 0.2, 0.1];
    let set = weighed(&p);
    let mut chance = StdRng::seed_from_u64(3);
    let mut pairs = [[0_u32; 4]; 4];
    const DRAWS: u32 = 40_000;
    for _ in 0..DRAWS {
        // All cost the same, so the first drawn is chosen and the second passed over.
        let of = |_| Some(contender());
        let choice = choose(Draw::BestOfTwo, &set, [chance.random(), chance.random()], of).unwrap();
        pairs[choice.chosen][choice.passed_over.expect("a second one is there")] += 1;
    }
    let mut statistic = 0.0;
    for (first, row) in pairs.iter().enumerate() {
        for (second, count) in row.iter().enumerate() {
            if first == second {
                assert_eq!(*count, 0, "{first} was drawn beside itself");
            } else {
                let expected = f64::from(DRAWS) * p[first] * p[second] / (1.0 - p[first]);
                statistic += (f64::from(*count) - expected).powi(2) / expected;
            }
        }
    }
    let chance = ChiSquared::new(11.0).unwrap().sf(statistic);
    assert!(chance > 0.001, "chi-square {statistic}, p = {chance}: {pairs:?}");
}

#[test]
fn the_cheaper_of_the_two_is_chosen_whichever_was_drawn_first() {
    let set = weighed(&[0.5, 0.5]);
    let of = |index| Some(Contender { latency_ms: Some([30.0, 10.0][index]), ..contender() });
    for (first_chance, second_chance) in [(0.1, 0.5), (0.9, 0.5)] {
        let choice = choose(Draw::BestOfTwo, &set, [first_chance, second_chance], of);
        assert_eq!(choice, Some(Choice { chosen: 1, passed_over: Some(0) }));
        let single = choose(Draw::Single, &set, [first_chance, second_chance], of);
        assert_eq!(single.map(|choice| choice.passed_over), Some(None));
    }
    assert_eq!(choose(Draw::Single, &set, [0.1, 0.5], of).map(|choice| choice.chosen), Some(0));
}

#[test]
fn where_only_one_can_be_drawn_it_is_chosen_without_a_comparison() {
    let never = |_| -> Option<Contender> { panic!("nobody to compare with") };
    let alone = Some(Choice { chosen: 0, passed_over: None });
    assert_eq!(choose(Draw::BestOfTwo, &weighed(&[1.0]), [0.7, 0.3], never), alone);
    assert_eq!(choose(Draw::BestOfTwo, &weighed(&[1.0, 0.0, 0.0]), [0.7, 0.3], never), alone, "the others are too far");
    assert_eq!(choose(Draw::BestOfTwo, &[], [0.7, 0.3], never), None);
    assert_eq!(choose(Draw::Single, &[], [0.7, 0.3], never), None);
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(0.0), Just(5e-324), Just(1e308), 0.0..100.0]
}

fn any_contender() -> impl Strategy<Value = Contender> {
    let numbers = (any_number(), 0_u32..4, any_number(), prop::option::of(any_number()), 0.1..64.0_f64);
    numbers.prop_map(|(inflight, own_inflight, distance_ms, latency_ms, capacity)| Contender {
        capacity: Capacity::new(capacity).unwrap(),
        inflight,
        own_inflight,
        distance_ms,
        latency_ms,
    })
}

proptest! {
    #[test]
    fn a_comparison_says_the_opposite_the_other_way_round(left in any_contender(), right in any_contender()) {
        prop_assert_eq!(left.compare(&right), right.compare(&left).reverse());
    }

    #[test]
    fn the_two_are_different_candidates_that_exist(
        shares in prop::collection::vec(0.0..1.0_f64, 1..12), first in any_number(), second in any_number(),
        contenders in prop::collection::vec(any_contender(), 12),
    ) {
        let set = weighed(&shares);
        let choice = choose(Draw::BestOfTwo, &set, [first, second], |index| contenders.get(index).copied()).unwrap();
        prop_assert!(choice.chosen < set.len());
        prop_assert!(choice.passed_over.is_none_or(|other| other < set.len() && other != choice.chosen));
    }
}
