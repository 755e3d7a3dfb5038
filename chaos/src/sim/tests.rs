use std::{collections::BTreeSet, sync::LazyLock};

use super::*;

fn options(seeds: std::ops::RangeInclusive<u64>, mutation: Option<Mutation>) -> SimOptions {
    SimOptions { seeds, jobs: 2, mutation, failures_max: 1, shrinks: true }
}

/// The failure as a person wants to see it.
fn story(failure: &Failure) -> String {
    let (schedule, broken) = failure.smallest.as_ref().expect("shrinking was asked for");
    let trace = Run::of(schedule, None, true).trace.join("\n");
    format!("{}\n{}\n{trace}\n{broken}\n{}", failure.broken, schedule.text(), failure.repeat(None))
}

#[test]
fn whatever_is_drawn_nothing_is_lost_and_nothing_returns() {
    let report = sweep(&options(1..=150, None));
    if let Some(failure) = report.failures.first() {
        panic!("{}", story(failure));
    }
    assert_eq!(report.schedules, 150);
    // What never happened was not tested.
    let Tally { writes, pushes, talks_ended, faults, restarts, disks_lost, tombstones, claims, equivocations, .. } =
        report.tally;
    for (what, count) in [
        ("writes", writes),
        ("pushes", pushes),
        ("conversations", talks_ended),
        ("disk faults", faults),
        ("restarts", restarts),
        ("lost disks", disks_lost),
        ("collected tombstones", tombstones),
        ("claims", claims),
        ("equivocations", equivocations),
    ] {
        assert!(count > 0, "no {what} in 150 schedules: {report:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let mut hashes = BTreeSet::new();
    for seed in 1..=10 {
        let schedule = Schedule::of(seed);
        let (first, second) = (Run::of(&schedule, None, true), Run::of(&schedule, None, true));
        assert_eq!(first, second, "seed {seed}");
        assert!(!first.trace.is_empty());
        assert_eq!(first.hash, Run::of(&schedule, None, false).hash, "seed {seed}: watching must not change anything");
        hashes.insert(first.hash);
    }
    assert_eq!(hashes.len(), 10, "different seeds give different runs");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let run = |jobs| sweep(&SimOptions { jobs, ..options(1..=10, None) });
    assert_eq!(run(1), run(3));
}

#[test]
fn steps_can_be_left_out_of_any_schedule() {
    for seed in 1..=15 {
        let whole = Schedule::of(seed);
        for part in 0..2 {
            let steps = whole.steps.iter().skip(part).step_by(2).copied().collect();
            let half = Schedule { steps, ..whole.clone() };
            assert_eq!(Run::of(&half, None, false).broken, None, "seed {seed}, half {part}");
        }
    }
}

/// How many seeds it may take to notice that a rule is broken.
const SEEDS_TO_CATCH: u64 = 30;

fn caught(mutation: Mutation) -> Failure {
    let report = sweep(&options(1..=SEEDS_TO_CATCH, Some(mutation)));
    let failure = report.failures.into_iter().next();
    failure.unwrap_or_else(|| panic!("{} was not noticed in {SEEDS_TO_CATCH} schedules", mutation.name()))
}

/// Each broken rule is noticed by what becomes of somebody's edits, and shrinks to a handful of steps.
fn check_caught(failure: &Failure, mutation: Mutation) {
    let (smallest, broken) = failure.smallest.as_ref().expect("shrinking was asked for");
    assert!(matches!(broken.rule, Rule::Return | Rule::Loss | Rule::Dots | Rule::Agreement), "{broken}");
    assert!(smallest.steps.len() <= 20, "{} steps are left: {}", smallest.steps.len(), smallest.text());
    assert_eq!(Run::of(smallest, None, false).broken, None, "with the rule kept, all holds");
    assert!(failure.repeat(Some(mutation)).contains(mutation.name()));
}

#[test]
fn coverage_credited_before_the_end_is_noticed() {
    check_caught(&caught(Mutation::CreditPerChunk), Mutation::CreditPerChunk);
}

#[test]
fn a_life_kept_after_a_restore_is_noticed() {
    check_caught(&caught(Mutation::KeepIncarnation), Mutation::KeepIncarnation);
}

#[test]
fn messages_for_an_earlier_life_are_noticed() {
    check_caught(&caught(Mutation::UnboundSessions), Mutation::UnboundSessions);
}

/// Found once for all tests about it: making it small takes a second.
static WITHOUT_FLOOR: LazyLock<Failure> = LazyLock::new(|| caught(Mutation::CollectWithoutFloor));

#[test]
fn tombstones_collected_without_a_floor_are_noticed() {
    check_caught(&WITHOUT_FLOOR, Mutation::CollectWithoutFloor);
}

#[test]
fn a_schedule_shrinks_to_one_that_breaks_the_same_rule() {
    let failure = &*WITHOUT_FLOOR;
    let (smallest, broken) = failure.smallest.as_ref().expect("shrinking was asked for");
    assert_eq!(broken.rule, failure.broken.rule);
    assert!(smallest.steps.len() < Schedule::of(failure.seed).steps.len());
    let again = Run::of(smallest, Some(Mutation::CollectWithoutFloor), false).broken;
    assert_eq!(again.as_ref(), Some(broken), "the smallest schedule fails again as it was reported");
    for at in 0..smallest.steps.len() {
        let mut fewer = smallest.clone();
        fewer.steps.remove(at);
        let still = Run::of(&fewer, Some(Mutation::CollectWithoutFloor), false).broken;
        assert!(still.is_none_or(|still| still.rule != broken.rule), "step {at} could be left out");
    }
}

#[test]
fn a_trace_names_who_did_what() {
    let (smallest, _) = WITHOUT_FLOOR.smallest.as_ref().expect("shrinking was asked for");
    let trace = Run::of(smallest, Some(Mutation::CollectWithoutFloor), true).trace.join("\n");
    for word in ["writes", "deleted over", "collects", "syncs with", "root"] {
        assert!(trace.contains(word), "`{word}` is missing in\n{trace}");
    }
}
