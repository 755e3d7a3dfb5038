//! The clocks of this crate: it measures a cluster from outside, in real time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time now.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "chaos measures real processes in real time; this is its only monotonic clock"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time since 1970, zero for a clock before it. Containers of one engine share it with the host, so times
/// written by a load generator and times taken by a scenario can be compared.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "chaos compares times across processes; this is its only wall clock")]
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Wall-clock milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    u64::try_from(unix().as_millis()).unwrap_or(u64::MAX)
}

/// `duration` in milliseconds, for reports.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
