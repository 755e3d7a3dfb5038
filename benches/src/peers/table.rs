//! What the rounds came to, as Markdown.

use crate::load::Outcome;

use super::{Layer, Pair, Workload, median};

/// All rounds of one pair and one workload.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) layer: Layer,
    per_second: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    cpu_us: Vec<f64>,
    failures: u64,
}

impl Row {
    pub(super) fn of(pair: &Pair) -> Self {
        Self {
            name: pair.name.clone(),
            layer: pair.layer,
            per_second: Vec::new(),
            p50_ms: Vec::new(),
            p99_ms: Vec::new(),
            cpu_us: Vec::new(),
            failures: 0,
        }
    }

    pub(super) fn add(&mut self, (outcome, cpu_us): &(Outcome, f64)) {
        self.per_second.push(outcome.per_second());
        self.p50_ms.push(outcome.quantile_ms(0.5));
        self.p99_ms.push(outcome.quantile_ms(0.99));
        self.cpu_us.push(*cpu_us);
        self.failures += outcome.failures;
    }

    /// The median of the rounds.
    pub(super) fn per_second(&self) -> f64 {
        median(self.per_second.clone())
    }
}

/// A table for one workload; ratios are to the same round of `direct`, and medians of those.
pub(super) fn print(workload: &Workload, rows: &[Row]) {
    println!("### {}\n", workload.name);
    println!("| pair | carries | req/s | MiB/s | of direct | p50/p99 ms | CPU us/request, A+B | failed |");
    println!("|---|---|---|---|---|---|---|---|");
    let direct: &[f64] = rows.iter().find(|row| row.layer == Layer::None).map_or(&[], |row| &row.per_second);
    for row in rows {
        let ratios = row.per_second.iter().zip(direct).map(|(own, direct)| own / direct).collect();
        let cpu = if row.layer == Layer::None { String::new() } else { format!("{:.0}", median(row.cpu_us.clone())) };
        #[expect(clippy::cast_precision_loss, reason = "a body of at most 1 MiB")]
        let mib = row.per_second() * workload.body_bytes as f64 / f64::from(1 << 20);
        println!(
            "| {} | {} | {:.0} | {mib:.0} | {:.3} | {:.3}/{:.3} | {cpu} | {} |",
            row.name,
            row.layer,
            row.per_second(),
            median(ratios),
            median(row.p50_ms.clone()),
            median(row.p99_ms.clone()),
            row.failures,
        );
    }
    println!();
}

/// Resident memory of A and of B in MB.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: String,
    /// After all the load.
    pub(super) after: Vec<f64>,
    /// With many connections held open.
    pub(super) with: Vec<f64>,
}

pub(super) fn print_memory(all: &[Held]) {
    println!("| pair | resident MB after the load, A and B | with 1,000 connections, A and B |");
    println!("|---|---|---|");
    for Held { name, after, with } in all {
        println!("| {name} | {} | {} |", figures(after), figures(with));
    }
}

/// Figures with one decimal, separated by a slash.
pub(super) fn figures(all: &[f64]) -> String {
    all.iter().map(|mb| format!("{mb:.1}")).collect::<Vec<_>>().join(" / ")
}
