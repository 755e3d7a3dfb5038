//! What the system says about this process.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Resident memory in bytes; `None` where `/proc` is not there.
pub(super) fn resident_memory_bytes() -> Option<u64> {
    resident_of(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Processor time of all threads since the start.
pub(super) fn cpu_time() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(spent.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// Open file descriptors; `None` where `/proc` is not there.
pub(super) fn open_files() -> Option<usize> {
    // Reading the folder opens one more.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

/// Threads; `None` where `/proc` is not there.
pub(super) fn threads() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_status_file() {
        assert_eq!(resident_of("Name:\tmarram\nVmRSS:\t   18432 kB\nThreads:\t4\n"), Some(18_432 * 1024));
        assert_eq!(resident_of("Name:\tmarram\n"), None);
    }

    #[test]
    fn this_process_has_memory_files_and_threads() {
        assert!(resident_memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert!(open_files().is_some_and(|files| files > 0));
        assert!(threads().is_some_and(|threads| threads > 0));
        assert!(cpu_time() > Duration::ZERO);
    }
}
