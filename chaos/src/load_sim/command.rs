//! `chaos load-sim`: runs the scenarios and prints what they took as a Markdown table.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::{Balancer, Latencies, SCENARIOS, Scenario, run};

/// Arguments of `chaos load-sim`.
#[derive(Debug, Clone, Args)]
pub struct LoadSimArguments {
    /// Run these scenarios, not all
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// How many seeds
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Virtual time of each run, beside 5 s before anything is counted
    #[arg(long = "for", default_value = "60s", value_parser = humantime::parse_duration)]
    duration: Duration,
}

/// Runs what is asked and prints the table.
///
/// # Errors
/// A scenario that does not exist.
pub fn command(arguments: &LoadSimArguments) -> Result<()> {
    let scenarios = asked(&arguments.scenarios)?;
    let seeds = arguments.seed..arguments.seed.saturating_add(arguments.seeds.max(1));
    println!(
        "seeds {} to {}, {} of virtual time each; ms; the ratio is p99 / the oracle's p99\n",
        seeds.start,
        seeds.end - 1,
        humantime::format_duration(arguments.duration)
    );
    println!("| scenario | balancer | p50 | p99 | p99.9 | ratio | p99 by seed | other zone |");
    println!("|---|---|---|---|---|---|---|---|");
    for scenario in scenarios {
        let of = |balancer: Balancer| -> Vec<Latencies> {
            seeds.clone().map(|seed| run(scenario, balancer, arguments.duration, seed)).collect()
        };
        let oracle = of(Balancer::Oracle);
        let best_ms = Latencies::of_all(&oracle).quantile_ms(990);
        for balancer in Balancer::ALL {
            let runs = if balancer == Balancer::Oracle { oracle.clone() } else { of(balancer) };
            println!("{}", row(scenario, balancer, &runs, best_ms));
        }
    }
    Ok(())
}

fn asked(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    let known = || SCENARIOS.map(|scenario| scenario.name).join(", ");
    let find = |name: &String| match Scenario::named(name) {
        Some(scenario) => Ok(scenario),
        None => bail!("no scenario `{name}`; there are {}", known()),
    };
    names.iter().map(find).collect()
}

fn row(scenario: &Scenario, balancer: Balancer, runs: &[Latencies], best_ms: f64) -> String {
    let all = Latencies::of_all(runs);
    let [p50, p99, p999] = [500, 990, 999].map(|per_mille| all.quantile_ms(per_mille));
    let by_seed: Vec<String> = runs.iter().map(|run| format!("{:.0}", run.quantile_ms(990))).collect();
    let far = if scenario.two_zones { format!("{:.0} %", all.far_share() * 100.0) } else { "-".to_owned() };
    let what = scenario.what;
    let ratio = p99 / best_ms;
    format!("| {what} | {balancer} | {p50:.1} | {p99:.1} | {p999:.1} | {ratio:.2} | {} | {far} |", by_seed.join(", "))
}
