//! The only place of the node that reads clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine's clocks: a monotonic one since the start of the process and the wall clock.
#[derive(Debug, Clone)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Starts the monotonic clock at zero.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the module that reads clocks")]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }
}

impl transport::Clock for SystemClock {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the module that reads clocks")]
    fn unix(&self) -> Duration {
        // A clock before 1970 is a gateway without a battery: it counts as 1970 until somebody sets it.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
    }
}
