//! What a process has used so far, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Clock ticks per second in `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor seconds (user and system, all threads) of a process.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("read /proc/PID/stat")?;
    let (_, fields) = text.rsplit_once(')').context("/proc/PID/stat has a command in parentheses")?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    anyhow::ensure!(ticks.len() == 2, "unexpected /proc/PID/stat: {text}");
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// A figure of `/proc/PID/status` in KiB, such as `VmRSS` or `RssAnon`.
pub(crate) fn status_kib(pid: u32, key: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("read /proc/PID/status")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).with_context(|| key.to_owned())?;
    Ok(line.split_whitespace().next().context("a number")?.parse()?)
}

/// A process and all its children, and theirs.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(parent) = all.get(at) {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        at += 1;
    }
    all
}

/// Processor seconds of a process and all its children that still run.
pub(crate) fn family_cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    family(pid).into_iter().map(cpu_seconds).sum()
}

/// Resident memory in KiB of a process and all its children; pages that they share count once for each.
pub(crate) fn family_resident_kib(pid: u32) -> anyhow::Result<f64> {
    family(pid).into_iter().map(|pid| status_kib(pid, "VmRSS")).sum()
}

/// Resident memory of this process in KiB: anonymous, and pages of files.
pub(crate) fn resident_kib() -> anyhow::Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").context("read /proc/self/smaps_rollup")?;
    let figure = |key: &str| -> anyhow::Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned())?;
        Ok(line.split_whitespace().next().context("a number")?.parse()?)
    };
    let anonymous = figure("Anonymous:")?;
    Ok((anonymous, figure("Rss:")? - anonymous))
}

/// Processor time that this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(used.tv_sec).unwrap_or(0), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// The machine's load average over a minute, as text.
pub(crate) fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split_whitespace().next().unwrap_or("?").to_owned()
}
