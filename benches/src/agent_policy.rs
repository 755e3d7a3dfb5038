//! A whole agent that holds many policy documents: its memory, and what one more write costs over its API.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use tests::{Fleet, Node};

use crate::process::{cpu_seconds, load_average, status_kib};

/// Documents of one write while the store is filled.
const CHUNK: usize = 50;
/// Single writes that are timed.
const WRITES: usize = 300;
/// The store writes its snapshot five seconds after the start and then every minute; memory is read after both.
const SETTLE: Duration = Duration::from_secs(70);

/// Fills an agent of its own with so many documents for each of `counts`, and prints a table.
pub(crate) fn run(counts: &[usize], kind: &str) -> anyhow::Result<()> {
    println!("Documents of the kind {kind}; MB are resident, of them anonymous.\n");
    println!("| documents | filled in s | MB once filled | MB after a restart | write p50/p99 ms | CPU ms/write |");
    println!("|---|---|---|---|---|---|");
    for count in counts {
        one(*count, kind)?;
    }
    println!("\nLoad average at the end {}.", load_average());
    Ok(())
}

fn one(count: usize, kind: &str) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(1, &|_, _| {});
    let began = now();
    for first in (0..count).step_by(CHUNK) {
        let documents: Vec<String> =
            (first..count.min(first + CHUNK)).map(|number| document(kind, number, 0)).collect();
        let node = fleet.nodes.first().context("an agent")?;
        let answer = node.write("POST", "/v1/apply", &documents.join("---\n"));
        ensure!(answer.status < 300, "documents from {first}: {} {}", answer.status, answer.body);
    }
    let filled = began.elapsed().as_secs_f64();
    let node = fleet.nodes.first_mut().context("an agent")?;
    wait(SETTLE);
    let after_filling = resident(node)?;
    ensure!(node.terminate() == Some(0), "the agent did not stop by itself");
    node.start();
    node.wait_ready();
    wait(SETTLE);
    let restarted = resident(node)?;
    let mut times = Histogram::<u64>::new(3)?;
    let pid = node.pid().context("a running agent")?;
    let before = cpu_seconds(pid)?;
    for version in 1..=WRITES {
        let number = version * 7919 % count.max(1);
        let path = format!("/v1/policies/global/{kind}/{}", name(number));
        let began = now();
        let answer = node.write("PUT", &path, &document(kind, number, version));
        times.record(u64::try_from(began.elapsed().as_micros())?)?;
        ensure!(answer.status < 300, "{path}: {} {}", answer.status, answer.body);
    }
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let cpu = (cpu_seconds(pid)? - before) * 1e3 / WRITES as f64;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of one write")]
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    println!("| {count} | {filled:.1} | {after_filling} | {restarted} | {:.2}/{:.2} | {cpu:.2} |", ms(0.5), ms(0.99));
    Ok(())
}

fn resident(node: &Node) -> anyhow::Result<String> {
    let pid = node.pid().context("a running agent")?;
    let mb = |key| status_kib(pid, key).map(|kib| kib / 1024.0);
    Ok(format!("{:.1}, {:.1}", mb("VmRSS")?, mb("RssAnon")?))
}

fn name(number: usize) -> String {
    format!("route-{number:05}")
}

/// A route of two rules, about 500 bytes of YAML, or the same under the name of another kind.
fn document(kind: &str, number: usize, version: usize) -> String {
    format!(
        "apiVersion: marram.dev/v1\n\
         kind: {kind}\n\
         metadata: {{ name: {}, scope: global, description: \"written as version {version} to be measured\" }}\n\
         spec:\n\
         \x20 hostnames: [ app-{number}.shop.example ]\n\
         \x20 rules:\n\
         \x20   - name: api\n\
         \x20     matches: [ {{ path: {{ type: PathPrefix, value: /api/v{} }} }} ]\n\
         \x20     backendRefs: [ {{ name: app-{number}, weight: 90 }}, {{ name: app-{number}-next, weight: 10 }} ]\n\
         \x20   - name: rest\n\
         \x20     matches: [ {{ path: {{ type: PathPrefix, value: / }} }} ]\n\
         \x20     backendRefs: [ {{ name: app-{number}, weight: 1 }} ]\n",
        name(number),
        version % 10
    )
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a measurement takes as long as it was asked to take")]
fn wait(duration: Duration) {
    std::thread::sleep(duration);
}
