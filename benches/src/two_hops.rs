//! Requests client → agent A → QUIC with mutual TLS → agent B → backend, beside client → backend, taking turns.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tests::{Fleet, Node};

use crate::load::{self, Asking, Outcome};
use crate::process::{cpu_seconds, load_average, status_kib};

const CONNECTIONS: [usize; 3] = [1, 32, 128];
const HOST: &str = "bench.mesh";

/// One point: the same requests direct and through two hops.
#[derive(Debug, Default)]
struct Point {
    direct: Vec<Outcome>,
    hops: Vec<Outcome>,
    cpu_us: Vec<f64>,
}

/// Measures every point `rounds` times, `each` long, and prints a table of medians.
pub(crate) fn run(each: Duration, rounds: usize) -> anyhow::Result<()> {
    let backend = load::backend()?;
    let fleet = Fleet::start(2, &|n, config| {
        if n == 1 {
            Node::serve(config, "bench", backend, Some(1000.0));
        }
    });
    fleet.wait_service("bench", 1);
    let [near, far] = fleet.nodes.as_slice() else { anyhow::bail!("two agents") };
    let pids = [near.pid().context("a running agent")?, far.pid().context("a running agent")?];
    let mut points: Vec<Point> = CONNECTIONS.iter().map(|_| Point::default()).collect();
    for _ in 0..rounds {
        for (point, connections) in points.iter_mut().zip(CONNECTIONS) {
            point.direct.push(measure(backend, connections, each)?);
            let before = total_cpu(&pids)?;
            let hops = measure(near.proxy, connections, each)?;
            #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
            point.cpu_us.push((total_cpu(&pids)? - before) * 1e6 / hops.requests.max(1) as f64);
            point.hops.push(hops);
        }
    }
    print(&points, each, rounds);
    for (pid, name) in pids.iter().zip(["A", "B"]) {
        println!("\nAgent {name} after the load: {:.1} MB resident.", status_kib(*pid, "VmRSS")? / 1024.0);
    }
    Ok(())
}

fn measure(address: SocketAddr, connections: usize, each: Duration) -> anyhow::Result<Outcome> {
    // A short run first: connections are made, pools filled, links dialled.
    load::run(address, Asking::small(HOST), connections, Duration::from_millis(300))?;
    load::run(address, Asking::small(HOST), connections, each)
}

fn total_cpu(pids: &[u32]) -> anyhow::Result<f64> {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

fn print(points: &[Point], each: Duration, rounds: usize) {
    println!(
        "1 KiB responses, {rounds} rounds of {} s taking turns, medians (load average at the end {}).\n",
        each.as_secs(),
        load_average()
    );
    println!(
        "| connections | direct req/s | two hops req/s | ratio | direct p50/p99 ms | two hops p50/p99 ms | CPU us/request, A+B | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (point, connections) in points.iter().zip(CONNECTIONS) {
        let rate = |outcomes: &[Outcome]| median(outcomes.iter().map(Outcome::per_second).collect());
        let quantile = |outcomes: &[Outcome], q| median(outcomes.iter().map(|o| o.quantile_ms(q)).collect());
        let ratios = point.hops.iter().zip(&point.direct).map(|(hops, direct)| hops.per_second() / direct.per_second());
        let failures: u64 = point.hops.iter().chain(&point.direct).map(|outcome| outcome.failures).sum();
        println!(
            "| {connections} | {:.0} | {:.0} | {:.3} | {:.3}/{:.3} | {:.3}/{:.3} | {:.0} | {failures} |",
            rate(&point.direct),
            rate(&point.hops),
            median(ratios.collect()),
            quantile(&point.direct, 0.5),
            quantile(&point.direct, 0.99),
            quantile(&point.hops, 0.5),
            quantile(&point.hops, 0.99),
            median(point.cpu_us.clone()),
        );
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
