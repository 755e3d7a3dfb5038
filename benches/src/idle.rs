//! An idle agent among three: resident memory and processor.

use std::time::{Duration, Instant};

use anyhow::Context;
use tests::Fleet;

use crate::process::{cpu_seconds, load_average, status_kib};

/// Watches three idle agents for `watch` and prints a table.
pub(crate) fn run(watch: Duration) -> anyhow::Result<()> {
    let fleet = Fleet::start(3, &|_, _| {});
    let pids: Vec<u32> =
        fleet.nodes.iter().map(|node| node.pid().context("a running agent")).collect::<Result<_, _>>()?;
    // Joining and the first exchanges are over once the roots have been equal for the length of one watch.
    wait(Duration::from_secs(10));
    let before: Vec<f64> = pids.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<_, _>>()?;
    let took = wait(watch);
    println!("Idle agent among three, watched for {} s (load average {}).\n", watch.as_secs(), load_average());
    println!("| agent | resident MB | of it anonymous MB | threads | CPU % of a core |\n|---|---|---|---|---|");
    for ((pid, node), before) in pids.iter().zip(&fleet.nodes).zip(before) {
        let cpu = (cpu_seconds(*pid)? - before) / took.as_secs_f64() * 100.0;
        let mb = |key| status_kib(*pid, key).map(|kib| kib / 1024.0);
        let threads = status_kib(*pid, "Threads")?;
        println!("| {} | {:.1} | {:.1} | {threads} | {cpu:.2} |", node.name, mb("VmRSS")?, mb("RssAnon")?);
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a measurement takes as long as it was asked to take")]
fn wait(duration: Duration) -> Duration {
    let began = Instant::now();
    std::thread::sleep(duration);
    began.elapsed()
}
