//! Many seeds, on several threads.

use std::{
    ops::RangeInclusive,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    Broken, Mutation, Run, Tally,
    schedule::{Schedule, Step},
    shrink::shrink,
};

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimOptions {
    /// The seeds.
    pub seeds: RangeInclusive<u64>,
    /// Threads; 0 counts as 1.
    pub jobs: usize,
    /// A rule to break.
    pub mutation: Option<Mutation>,
    /// Failures after which no more seeds are begun; 0 for never.
    pub failures_max: usize,
    /// Make the first failure small.
    pub shrinks: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Schedules carried out.
    pub schedules: u64,
    /// Sums over them.
    pub tally: Tally,
    /// What failed, by ascending seed.
    pub failures: Vec<Failure>,
}

/// A seed that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Why.
    pub broken: Broken,
    /// The smallest schedule found that fails, and how it fails; for the first failure, where asked for.
    pub smallest: Option<(Schedule, Broken)>,
}

impl Failure {
    /// The line that repeats it.
    #[must_use]
    pub fn repeat(&self, mutation: Option<Mutation>) -> String {
        let seed = self.seed;
        mutation.map_or_else(
            || format!("repeat: cargo run --release -p chaos -- sim --only {seed:#x} --trace"),
            |mutation| {
                let name = mutation.name();
                let features = "--features mutations";
                format!(
                    "repeat: cargo run --release -p chaos {features} -- sim --mutation {name} --only {seed:#x} --trace"
                )
            },
        )
    }
}

/// Carries out the schedules of all seeds. Which ones fail, and how, does not depend on the number of threads.
#[must_use]
pub fn sweep(options: &SimOptions) -> Report {
    let next = AtomicU64::new(*options.seeds.start());
    let is_over = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| work(options, &next, &is_over, &report));
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.failures.sort_by_key(|failure| failure.seed);
    if let Some(first) = report.failures.first_mut().filter(|_| options.shrinks) {
        first.smallest = Some(shrink(&Schedule::of(first.seed), &first.broken, options.mutation));
    }
    report
}

fn work(options: &SimOptions, next: &AtomicU64, is_over: &AtomicBool, report: &Mutex<Report>) {
    while !is_over.load(Ordering::Relaxed) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if !options.seeds.contains(&seed) {
            return;
        }
        let run = Run::of(&Schedule::of(seed), options.mutation, false);
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        report.schedules += 1;
        report.tally.add(&run.tally);
        if let Some(broken) = run.broken {
            report.failures.push(Failure { seed, broken, smallest: None });
            is_over.fetch_or(report.failures.len() == options.failures_max, Ordering::Relaxed);
        }
    }
}

impl Schedule {
    /// The schedule as a person reads it.
    #[must_use]
    pub fn text(&self) -> String {
        let step = |step: &Step| format!("{:?} {:#x}", step.act, step.roll);
        let steps: Vec<String> = self.steps.iter().map(step).collect();
        format!("{:?}\n{} steps: {}", self.shape, steps.len(), steps.join(", "))
    }
}
