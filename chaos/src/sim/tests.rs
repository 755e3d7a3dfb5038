use super::*;

fn options(seeds: std::ops::RangeInclusive<u64>, mutation: Option<Mutation>) -> SimOptions {
    SimOptions { seeds, jobs: 2, mutation, failures_max: 1, shrinks: true }
}

/// The failure as a person wants to see it.
fn story(failure: &Failure, mutation: Option<Mutation>) -> String {
    let (schedule, broken) = failure.smallest.as_ref().expect("shrinking was asked for");
    let trace = Run::of(schedule, mutation, true).trace.join("\n");
    format!("{}\n{}\n{trace}\n{broken}\n{}", failure.broken, schedule.text(), failure.repeat(mutation))
}

#[test]
fn whatever_is_drawn_nothing_is_lost_and_nothing_returns() {
    let report = sweep(&options(1..=300, None));
    if let Some(failure) = report.failures.first() {
        panic!("{}", story(failure, None));
    }
    assert_eq!(report.schedules, 300);
    println!("{report:?}");
}
