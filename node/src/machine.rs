//! What this machine is and how busy: cores and memory after cgroup limits, processor use, the agent's own memory.
//!
//! Reading files is the thin part; every parser is a pure function over text. Sources: proc(5), the kernel's
//! `Documentation/admin-guide/cgroup-v2.rst` (`cpu.max`, `memory.max`) and cgroup v1 (`cpu.cfs_quota_us`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::view::Capabilities;

/// Clock ticks per second in `/proc/*/stat`; fixed at 100 for user space on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads what does not change while the process runs.
#[must_use]
pub fn capabilities(labels: BTreeMap<String, String>) -> Capabilities {
    Capabilities {
        arch: std::env::consts::ARCH.to_owned(),
        os: std::env::consts::OS.to_owned(),
        cores: cores(),
        memory_bytes: memory_bytes(),
        gpu: gpus(Path::new("/sys/class/drm")),
        labels,
    }
}

/// Cores this process may use: the affinity mask, cut by the cgroup's quota.
#[must_use]
pub fn cores() -> f64 {
    let mask = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mask = u32::try_from(mask).map_or(f64::from(u32::MAX), f64::from);
    cgroup_file("cpu.max")
        .as_deref()
        .and_then(parse_cpu_max)
        .or_else(cpu_quota_v1)
        .map_or(mask, |quota| mask.min(quota))
}

/// Memory this process may use in bytes: the machine's, cut by the cgroup's limit. 0 when unknown.
#[must_use]
pub fn memory_bytes() -> u64 {
    let machine = read("/proc/meminfo").and_then(|text| parse_meminfo_total(&text)).unwrap_or(0);
    let limit = cgroup_file("memory.max")
        .or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
        .and_then(|text| text.trim().parse::<u64>().ok());
    limit.map_or(machine, |limit| machine.min(limit))
}

/// Resident memory of this process in bytes; 0 when `/proc` is not there.
#[must_use]
pub fn resident_bytes() -> u64 {
    read("/proc/self/status").and_then(|text| parse_status_kib(&text, "VmRSS:")).unwrap_or(0) * 1024
}

/// Follows the processor time of the whole machine and turns it into a share of the cores this process may use.
#[derive(Debug, Default)]
pub struct CpuMeter {
    last: Option<(Duration, f64)>,
    share: f64,
}

impl CpuMeter {
    /// Reads the counters at `now` (monotonic) and returns the share in use since the last call, 0..=1.
    pub fn measure(&mut self, now: Duration, cores: f64) -> f64 {
        let busy = cgroup_file("cpu.stat")
            .filter(|_| in_own_cgroup() || cgroup_file("cpu.max").as_deref().and_then(parse_cpu_max).is_some())
            .and_then(|text| parse_usage_usec(&text))
            .or_else(|| read("/proc/stat").and_then(|text| parse_busy_seconds(&text)));
        busy.map_or(self.share, |busy| self.advance(now, busy, cores))
    }

    /// The pure half of [`CpuMeter::measure`]: `busy` is processor seconds used since some fixed moment.
    pub fn advance(&mut self, now: Duration, busy: f64, cores: f64) -> f64 {
        if let Some((then, busy_then)) = self.last {
            let wall = now.saturating_sub(then).as_secs_f64() * cores.max(f64::MIN_POSITIVE);
            if wall > 0.0 {
                self.share = ((busy - busy_then) / wall).clamp(0.0, 1.0);
            }
        }
        self.last = Some((now, busy));
        self.share
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn cgroup_file(name: &str) -> Option<String> {
    let own = read("/proc/self/cgroup")?;
    let group = own.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
    fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join(name)).ok()
}

/// In a container the cgroup namespace shows `/`: then the group's counters are the container's own.
fn in_own_cgroup() -> bool {
    read("/proc/self/cgroup").is_some_and(|text| text.trim() == "0::/") && Path::new("/sys/fs/cgroup/cpu.max").exists()
}

fn cpu_quota_v1() -> Option<f64> {
    let quota: f64 = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?.trim().parse().ok()?;
    let period: f64 = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?.trim().parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn gpus(drm: &Path) -> u32 {
    let Ok(entries) = fs::read_dir(drm) else { return 0 };
    let cards = entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_prefix("renderD"))
                .is_some_and(|n| n.parse::<u32>().is_ok())
        })
        .count();
    u32::try_from(cards).unwrap_or(u32::MAX)
}

/// `cpu.max`: `max 100000` or `50000 100000`.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = words.next()?.parse().ok()?;
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn parse_usage_usec(text: &str) -> Option<f64> {
    let usec: f64 = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.trim().parse().ok()?;
    Some(usec / 1e6)
}

fn parse_meminfo_total(text: &str) -> Option<u64> {
    parse_status_kib(text, "MemTotal:").map(|kib| kib * 1024)
}

fn parse_status_kib(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// First line of `/proc/stat`: user nice system idle iowait irq softirq steal ... in ticks.
fn parse_busy_seconds(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    let fields: Vec<f64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    let idle: f64 = fields.iter().skip(3).take(2).sum();
    // Guest time (fields 8 and 9) is already inside user and nice.
    let all: f64 = fields.iter().take(8).sum();
    (fields.len() >= 5).then(|| (all - idle) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_quota_reads_as_cores() {
        assert_eq!(parse_cpu_max("50000 100000\n"), Some(0.5));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max("garbage"), None);
    }

    #[test]
    fn busy_time_leaves_out_idle_and_waiting() {
        let text = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n";
        assert_eq!(parse_busy_seconds(text), Some(1.5));
    }

    #[test]
    fn cpu_share_is_busy_time_over_the_cores_allowed() {
        let mut meter = CpuMeter::default();
        assert!(meter.advance(Duration::from_secs(1), 10.0, 2.0).abs() < 1e-9);
        let share = meter.advance(Duration::from_secs(3), 11.0, 2.0);
        assert!((share - 0.25).abs() < 1e-9, "1 s of 2 cores over 2 s is a quarter, not {share}");
    }

    #[test]
    fn cpu_share_never_leaves_zero_to_one_when_counters_jump() {
        let mut meter = CpuMeter::default();
        meter.advance(Duration::from_secs(1), 10.0, 1.0);
        assert!((meter.advance(Duration::from_secs(2), 100.0, 1.0) - 1.0).abs() < 1e-9);
        assert!(meter.advance(Duration::from_secs(3), 50.0, 1.0).abs() < 1e-9);
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let found = capabilities(BTreeMap::new());
        assert!(found.cores > 0.0, "{found:?}");
        assert!(found.memory_bytes > 1 << 20, "{found:?}");
        assert!(resident_bytes() > 1 << 16);
    }
}
