//! What the node tells machines about itself: logs and metrics.

pub(crate) mod access;
pub mod logs;
pub mod metrics;
mod process;

pub use logs::{LogError, LogFormat, LogGuard, init};
pub use metrics::MetricsHandle;
