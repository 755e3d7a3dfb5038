//! `chaos sim`: runs seeds and says what came of it.

use anyhow::{Result, bail};
use clap::Args;

use super::{Failure, Mutation, Report, Run, Schedule, SimOptions, sweep};
use crate::clock;

/// Arguments of `chaos sim`.
#[derive(Debug, Clone, Args)]
pub struct SimArguments {
    /// How many schedules, each from its own seed
    #[arg(long, default_value_t = 1_000)]
    pub schedules: u64,
    /// The first seed
    #[arg(long, default_value = "1", value_parser = seed)]
    pub seed: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    pub jobs: usize,
    /// Run this seed and no other
    #[arg(long, value_name = "SEED", value_parser = seed, conflicts_with_all = ["schedules", "seed"])]
    pub only: Option<u64>,
    /// Failures after which no more seeds are begun; 0 for never
    #[arg(long, default_value_t = 1)]
    pub failures: usize,
    /// One line for each thing that happens
    #[arg(long, requires = "only")]
    pub trace: bool,
    /// Break a rule of the store on purpose; then a failure is what is hoped for. Needs the cargo feature `mutations`
    #[arg(long, value_enum)]
    pub mutation: Option<Mutation>,
}

/// Runs what is asked and prints what came of it; true where everything held.
///
/// # Errors
/// A mutation in a build that has none.
pub fn command(arguments: &SimArguments) -> Result<bool> {
    if let Some(mutation) = arguments.mutation.filter(|_| !Mutation::is_built_in()) {
        bail!("this build cannot break `{}`; build it with `--features mutations`", mutation.name());
    }
    if arguments.trace {
        trace(arguments.only.unwrap_or(arguments.seed), arguments.mutation);
    } else {
        // A panic is a failure like others, told with its seed; a thousand runs to make it small need no backtraces.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let seeds = arguments.only.map_or_else(
        || arguments.seed..=arguments.seed.saturating_add(arguments.schedules.saturating_sub(1)),
        |only| only..=only,
    );
    let began = clock::now();
    let report = sweep(&SimOptions {
        seeds: seeds.clone(),
        jobs: arguments.jobs,
        mutation: arguments.mutation,
        failures_max: arguments.failures,
        shrinks: !arguments.trace,
    });
    let seconds = began.elapsed().as_secs_f64();
    println!("seeds {:#x} to {:#x}: {}", seeds.start(), seeds.end(), summary(&report));
    println!("{} failures, {seconds:.1} s", report.failures.len());
    for failure in &report.failures {
        tell(failure, arguments.mutation);
    }
    Ok(report.failures.is_empty())
}

fn trace(seed: u64, mutation: Option<Mutation>) {
    let schedule = Schedule::of(seed);
    println!("seed {seed:#x}: {:?}, {} steps", schedule.shape, schedule.steps.len());
    for line in Run::of(&schedule, mutation, true).trace {
        println!("{line}");
    }
}

fn summary(report: &Report) -> String {
    let tally = &report.tally;
    format!(
        "{} schedules, {} steps, {} writes, {} pushes, {} conversations ({} to their end, {} messages), {} disk faults, \
         {} restarts, {} disks lost, {} collections of {} tombstones, {} claims, {} equivocations",
        report.schedules,
        tally.steps,
        tally.writes,
        tally.pushes,
        tally.talks,
        tally.talks_ended,
        tally.messages,
        tally.faults,
        tally.restarts,
        tally.disks_lost,
        tally.collections,
        tally.tombstones,
        tally.claims,
        tally.equivocations
    )
}

fn tell(failure: &Failure, mutation: Option<Mutation>) {
    println!("FAILED: seed {:#x}: {}", failure.seed, failure.broken);
    if let Some((schedule, broken)) = &failure.smallest {
        println!("smallest schedule found that breaks the same rule: {}", schedule.text());
        for line in Run::of(schedule, mutation, true).trace {
            println!("  {line}");
        }
        println!("  {broken}");
    }
    println!("{}", failure.repeat(mutation));
}

/// A seed in decimal, or in hexadecimal with `0x`.
fn seed(text: &str) -> Result<u64, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
}
