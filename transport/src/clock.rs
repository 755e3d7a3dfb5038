//! Where time comes from: this crate never reads a clock itself.

use std::time::Duration;

/// Both clocks a node needs. The only implementation that reads real clocks lives in the node; tests own theirs.
pub trait Clock: Send + Sync + 'static {
    /// Time since the process started. Never goes back.
    fn now(&self) -> Duration;

    /// Wall-clock time since 1970-01-01T00:00:00Z. May jump; used only for what certificates and tokens say.
    fn unix(&self) -> Duration;
}

impl std::fmt::Debug for dyn Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").field("now", &self.now()).field("unix", &self.unix()).finish()
    }
}
