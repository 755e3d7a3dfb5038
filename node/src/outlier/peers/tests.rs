use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const RATE: SuccessRate = SuccessRate { stdev_factor: 1.9, minimum_hosts: 5, request_volume: 100 };

fn only(rate: Option<SuccessRate>, failures: Option<FailurePercentage>, latency: Option<Slowness>) -> Outlier {
    Outlier { success_rate: rate, failure_percentage: failures, latency, ..Outlier::default() }
}

fn seen(good: u64, bad: u64) -> Seen {
    Seen { good, bad, ..Seen::default() }
}

/// As many answers as the default volume, each after so long.
fn timed(ms: u64) -> Seen {
    Seen { timed: 50, timed_us: 50 * ms * 1000, ..Seen::default() }
}

/// Which of them are left out.
fn found(seen: &[Seen], rule: &Outlier) -> Vec<usize> {
    let verdicts = judge(seen, rule);
    assert_eq!(verdicts.len(), seen.len());
    verdicts.iter().enumerate().filter(|(_, verdict)| verdict.finding.is_some()).map(|(at, _)| at).collect()
}

fn five(last: Seen) -> [Seen; 5] {
    [seen(100, 0), seen(100, 0), seen(100, 0), seen(100, 0), last]
}

#[test]
fn who_is_more_than_so_many_standard_deviations_below_the_mean_is_left_out() {
    // Mean 0.934; deviations 0.066 four times and 0.264, so their standard deviation is 0.132; the line is at 0.6832.
    let verdicts = judge(&five(seen(67, 33)), &only(Some(RATE), None, None));
    let Some(Finding::SuccessRate { percent, requests: 100, mean_percent, hosts: 5 }) = verdicts[4].finding else {
        panic!("{verdicts:?}")
    };
    assert!((percent - 67.0).abs() < 1e-9 && (mean_percent - 93.4).abs() < 1e-9, "{verdicts:?}");
    assert!(verdicts[..4].iter().all(|verdict| verdict.finding.is_none() && verdict.is_sound));
    assert!(!verdicts[4].is_sound);
    // Of five no one can be more than two standard deviations from the mean.
    let strict = SuccessRate { stdev_factor: 2.01, ..RATE };
    assert_eq!(found(&five(seen(67, 33)), &only(Some(strict), None, None)), [0_usize; 0]);
}

#[test]
fn where_all_fail_alike_nobody_is_left_out() {
    let failures = FailurePercentage::of(50);
    for bad in [1, 60, 100] {
        let verdicts = judge(&[seen(100 - bad, bad); 5], &only(Some(RATE), Some(failures), None));
        assert!(verdicts.iter().all(|verdict| verdict.finding.is_none() && verdict.is_sound), "{bad}: {verdicts:?}");
    }
}

#[test]
fn too_few_instances_with_enough_requests_are_not_compared() {
    let rule = only(Some(RATE), None, None);
    let bad = seen(0, 100);
    for (what, few) in [
        ("four", vec![seen(100, 0), seen(100, 0), seen(100, 0), bad]),
        ("a fifth with one request too few", vec![seen(100, 0), seen(100, 0), seen(100, 0), seen(99, 0), bad]),
    ] {
        let verdicts = judge(&few, &rule);
        assert!(verdicts.iter().all(|verdict| *verdict == Verdict::default()), "{what}: {verdicts:?}");
    }
    let mut six = five(seen(100, 0)).to_vec();
    six.push(seen(0, 99));
    assert_eq!(found(&six, &rule), [0_usize; 0], "who has too few requests is not judged");
    six[5].bad += 1;
    assert_eq!(found(&six, &rule), [5]);
    assert!(judge(&[], &rule).is_empty());
}

#[test]
fn a_few_errors_are_no_reason_though_they_are_two_standard_deviations() {
    let rule = only(Some(RATE), None, None);
    for (bad, expected) in [(1, vec![]), (4, vec![]), (5, vec![4]), (6, vec![4])] {
        assert_eq!(found(&five(seen(100 - bad, bad)), &rule), expected, "{bad} of 100, the others none");
    }
}

#[test]
fn what_chance_explains_is_no_reason() {
    // Mean 0.696, standard deviation 0.048, line 0.6048. The others fail 28 %, all together 30.4 %: with 100 requests the
    // standard error of the difference is 5.14 points, and 12 are less than three of them; with 1,000 it is 1.63.
    let rule = only(Some(RATE), None, None);
    let fleet = |times: u64| {
        let mut all = [seen(72 * times, 28 * times); 5];
        all[2] = seen(60 * times, 40 * times);
        all
    };
    assert_eq!(found(&fleet(1), &rule), [0_usize; 0]);
    assert_eq!(found(&fleet(10), &rule), [2]);
}

/// In how many of a thousand intervals somebody is left out, where each has a hundred requests and fails this part.
fn intervals_with_a_verdict(failing: &[f64]) -> usize {
    let (rule, mut chance) = (only(Some(RATE), None, None), StdRng::seed_from_u64(1));
    let mut one = |part: f64| {
        let bad = (0..100).filter(|_| chance.random_bool(part)).count() as u64;
        seen(100 - bad, bad)
    };
    let mut interval = || -> Vec<Seen> { failing.iter().map(|part| one(*part)).collect() };
    (0..1000).filter(|_| !found(&interval(), &rule).is_empty()).count()
}

#[test]
fn chance_puts_few_sound_ones_out_and_hides_few_that_are_not() {
    let wrong = intervals_with_a_verdict(&[0.1; 10]);
    assert!(wrong < 50, "all ten fail alike: {wrong} of 1,000 intervals; the standard deviation alone: about 320");
    let right = intervals_with_a_verdict(&[0.01, 0.01, 0.01, 0.01, 0.2]);
    assert!(right > 980, "one of five fails a fifth: {right} of 1,000");
}

#[test]
fn of_two_the_one_that_fails_its_part_and_twice_as_often_as_the_other_is_left_out() {
    let rule = |threshold| only(None, Some(FailurePercentage::of(threshold)), None);
    let good = seen(100, 0);
    assert_eq!(found(&[seen(70, 30), good], &rule(30)), [0]);
    assert_eq!(found(&[seen(70, 30), good], &rule(31)), [0_usize; 0], "below the threshold");
    assert_eq!(found(&[seen(34, 15), good], &rule(30)), [0_usize; 0], "49 requests");
    assert_eq!(found(&[seen(70, 30)], &rule(30)), [0_usize; 0], "nobody to compare it with");
    assert_eq!(found(&[seen(700, 300), seen(860, 140)], &rule(30)), [0]);
    assert_eq!(
        found(&[seen(700, 300), seen(840, 160)], &rule(30)),
        [0_usize; 0],
        "the other fails more than half as often"
    );
    // 30 % and 14 % of 100 differ by 16 points, and three standard errors are 17.6.
    assert_eq!(found(&[seen(70, 30), seen(86, 14)], &rule(30)), [0_usize; 0], "that may be chance");
    let three = FailurePercentage { minimum_hosts: 3, ..FailurePercentage::of(30) };
    assert_eq!(found(&[seen(70, 30), good], &only(None, Some(three), None)), [0_usize; 0]);
}

#[test]
fn who_is_slower_than_the_others_in_three_intervals_in_a_row_is_left_out() {
    let rule = only(None, None, Some(Slowness::of(3.0)));
    let mut slow = timed(100);
    for intervals in 1..=3 {
        let verdict = judge(&[timed(20), slow, timed(30)], &rule)[1];
        let expected = Finding::Latency { own_ms: 100.0, median_ms: 25.0, intervals: 3 };
        assert_eq!(verdict.finding, (intervals == 3).then_some(expected), "{intervals}");
        assert_eq!((verdict.slow_intervals, verdict.is_sound), (intervals, false));
        slow.slow_intervals = verdict.slow_intervals;
    }
    let back = Seen { has_relapsed: true, slow_intervals: 0, ..slow };
    assert!(
        judge(&[timed(20), back, timed(30)], &rule)[1].finding.is_some(),
        "of one that came back the first decides"
    );
    let quick = Seen { slow_intervals: 2, ..timed(30) };
    let verdict = judge(&[timed(20), quick, timed(30)], &rule)[1];
    assert_eq!((verdict.slow_intervals, verdict.is_sound), (0, true));
    let idle = Seen { timed: 49, slow_intervals: 2, ..timed(30) };
    let verdict = judge(&[timed(20), idle, timed(30), timed(30)], &rule)[1];
    assert_eq!((verdict.slow_intervals, verdict.is_sound), (2, false), "an interval with little to do says nothing");
}

#[test]
fn slow_is_so_many_times_the_median_of_the_others_and_longer_by_the_least_difference() {
    let rule = only(None, None, Some(Slowness { intervals: 1, ..Slowness::of(3.0) }));
    for (own, others, expected) in [
        (71, [20, 20], vec![2]),
        (70, [20, 20], vec![]),
        (121, [40, 40], vec![2]),
        (120, [40, 40], vec![]),
        (52, [1, 1], vec![2]),
        (51, [1, 1], vec![]),
        (500, [500, 500], vec![]),
    ] {
        assert_eq!(found(&[timed(others[0]), timed(others[1]), timed(own)], &rule), expected, "{own} and {others:?}");
    }
    assert_eq!(found(&[timed(20), timed(100)], &rule), [0_usize; 0], "of two nobody says which one is as it should be");
}

#[test]
fn who_is_far_is_not_slow_for_that() {
    let rule = only(None, None, Some(Slowness { intervals: 1, ..Slowness::of(3.0) }));
    let far = |ms| Seen { distance_ms: 100.0, ..timed(ms) };
    // Itself it takes so long as it takes less 100 ms; slow is more than 20 + 2 * 100.
    for (ms, expected) in [(120, vec![]), (180, vec![]), (320, vec![]), (321, vec![2])] {
        assert_eq!(found(&[timed(20), timed(20), far(ms)], &rule), expected, "{ms}");
    }
    // Nearer than was thought: they take no less than nothing, and 45 ms is not 50 more than that.
    assert_eq!(found(&[far(90), far(90), timed(45)], &rule), [0_usize; 0]);
}

#[test]
fn who_is_in_order_by_one_rule_and_slow_by_another_is_not_sound() {
    let rule = only(None, Some(FailurePercentage::of(50)), Some(Slowness::of(3.0)));
    let both = |ms| Seen { good: 50, ..timed(ms) };
    let verdicts = judge(&[both(20), both(20), both(100)], &rule);
    let told: Vec<_> = verdicts.iter().map(|verdict| (verdict.finding.is_some(), verdict.is_sound)).collect();
    assert_eq!(told, [(false, true), (false, true), (false, false)]);
}

#[test]
fn the_median_leaves_one_out() {
    for (sorted, value, expected) in [
        (&[1.0, 2.0, 3.0, 10.0][..], 10.0, 2.0),
        (&[1.0, 2.0, 3.0, 10.0], 1.0, 3.0),
        (&[1.0, 3.0, 100.0], 100.0, 2.0),
        (&[1.0, 3.0, 100.0], 3.0, 50.5),
        (&[7.0, 7.0, 7.0], 7.0, 7.0),
        (&[7.0], 7.0, 7.0),
    ] {
        assert!((median_without(sorted, value) - expected).abs() < 1e-9, "{sorted:?} without {value}");
    }
}

#[test]
fn a_finding_says_what_it_had_and_what_the_others_have() {
    for (finding, expected) in [
        (
            Finding::SuccessRate { percent: 67.0, requests: 100, mean_percent: 93.4, hosts: 5 },
            "its success rate is 67.0 % of 100 answers, that of the 5 instances compared 93.4 % on average",
        ),
        (
            Finding::FailurePercentage { percent: 30.0, requests: 50, others_percent: 1.3 },
            "it fails 30.0 % of 50 answers, the others 1.3 % of theirs",
        ),
        (
            Finding::Latency { own_ms: 100.0, median_ms: 25.0, intervals: 3 },
            "its answers take 100.0 ms on average without the way there, the others' 25.0 ms, 3 intervals in a row",
        ),
        (
            Finding::Latency { own_ms: 100.0, median_ms: 25.0, intervals: 1 },
            "its answers take 100.0 ms on average without the way there, the others' 25.0 ms",
        ),
    ] {
        assert_eq!(finding.to_string(), expected);
    }
}
