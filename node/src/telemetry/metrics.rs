//! Metrics: every series of the node is described here, and nothing is recorded that is not.
//!
//! Names are `marram_<area>_<what>_<unit>`; counters end in `_total`. Labels come from closed sets. Record with the
//! macros of the `metrics` crate at the place where something happens, and look the series up each time, or at least once a minute as
//! `proxy::meters` does: histograms that nobody touched for ten minutes are forgotten, so a handle kept for ever would write into
//! nothing. Gauges are kept: one that is counted up and down would come back wrong.
//! `docs/metrics.md` lists the same table; tests hold the two and the code together.

use std::fmt::Write as _;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::process;
use crate::view::Status;

mod table;
#[cfg(test)]
mod tests;

pub use table::{Kind, METRICS, Metric};

/// Histograms that nothing touched for this long are forgotten; they cost the most, and their labels name services.
pub const IDLE: Duration = Duration::from_secs(600);

/// Upper bounds of latency histograms in seconds: OpenTelemetry's, and four finer ones, for a mesh adds less than a millisecond.
const SECONDS: [f64; 18] =
    [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Upper bounds of size histograms.
const BYTES: [f64; 7] = [256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// Reads the recorder of this process.
#[derive(Debug, Clone)]
pub struct MetricsHandle {
    recorder: PrometheusHandle,
}

impl MetricsHandle {
    /// Installs the recorder for the whole process and describes every metric.
    ///
    /// # Errors
    /// When a recorder was installed before.
    pub fn install() -> Result<Self, BuildError> {
        let recorder = builder()?.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder)?;
        describe();
        Ok(Self { recorder: handle })
    }

    /// A recorder that nobody records into: for tests, which share one process.
    #[must_use]
    pub fn detached() -> Self {
        let builder = builder().unwrap_or_default();
        Self { recorder: builder.build_recorder().handle() }
    }

    /// The text that Prometheus reads, with the process, `status` and the count of `problems` and of what is `in_flight` as they are
    /// now.
    #[must_use]
    pub fn render(&self, status: &Status, problems: usize, in_flight: usize) -> String {
        record_status(status, problems, in_flight);
        record_process();
        let mut text = self.recorder.render();
        write_cpu(&mut text);
        text
    }

    /// Folds recorded histogram samples together; call it every few seconds so that they do not pile up between scrapes.
    pub fn upkeep(&self) {
        self.recorder.run_upkeep();
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .idle_timeout(MetricKindMask::HISTOGRAM, Some(IDLE))
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, Unit::Count, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and Unix seconds are far below 2^52")]
fn record_status(status: &Status, problems: usize, in_flight: usize) {
    gauge!("marram_build_info", "version" => status.version.clone()).set(1.0);
    let members = &status.members;
    for (state, count) in [
        ("alive", members.alive),
        ("suspect", members.suspect),
        ("dead", members.dead),
        ("joining", members.joining),
        ("left", members.left),
    ] {
        gauge!("marram_members", "state" => state).set(count as f64);
    }
    for purpose in ["control", "data"] {
        let count = status.links.iter().filter(|link| link.purpose == purpose).count();
        gauge!("marram_links", "purpose" => purpose).set(count as f64);
    }
    gauge!("marram_policy_documents").set(status.policy.documents as f64);
    gauge!("marram_policy_conflicts").set(status.policy.conflicts as f64);
    gauge!("marram_store_tombstones").set(status.policy.tombstones as f64);
    gauge!("marram_policy_writable").set(f64::from(u8::from(status.policy.writable)));
    gauge!("marram_problems").set(problems as f64);
    gauge!("marram_inflight").set(in_flight as f64);
    for (certificate, not_after) in [("leaf", status.leaf_not_after), ("node", status.node_not_after)] {
        gauge!("marram_certificate_not_after_timestamp_seconds", "certificate" => certificate).set(not_after as f64);
    }
    gauge!("marram_process_uptime_seconds").set(status.uptime_s as f64);
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory and counts are far below 2^52")]
fn record_process() {
    if let Some(bytes) = process::resident_memory_bytes() {
        gauge!("marram_process_resident_memory_bytes").set(bytes as f64);
    }
    if let Some(files) = process::open_files() {
        gauge!("marram_process_open_files").set(files as f64);
    }
    if let Some(threads) = process::threads() {
        gauge!("marram_process_threads").set(threads as f64);
    }
}

/// Counters of the `metrics` crate hold whole numbers; seconds of processor time are not, so this one is written by hand.
fn write_cpu(text: &mut String) {
    let name = "marram_process_cpu_seconds_total";
    let help = METRICS.iter().find(|metric| metric.name == name).map_or("", |metric| metric.help);
    let seconds = process::cpu_time().as_secs_f64();
    // Writing into a string cannot fail.
    let _written = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {seconds:.3}\n\n");
}
