//! The table of all metrics.

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, and starts at zero with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts per bucket.
    Histogram,
}

impl Kind {
    /// The word used in `docs/metrics.md`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// `marram_<area>_<what>_<unit>`.
    pub name: &'static str,
    /// What it is to Prometheus.
    pub kind: Kind,
    /// Names of its labels; their values come from closed sets.
    pub labels: &'static [&'static str],
    /// A stable metric keeps name, labels and meaning within a major version; others may change with any release.
    pub stable: bool,
    /// What it says, as a sentence.
    pub help: &'static str,
}

const fn stable(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind, labels, stable: true, help }
}

const fn unstable(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind, labels, stable: false, help }
}

use Kind::{Counter, Gauge};

/// Every metric, in the order of `docs/metrics.md`.
pub const METRICS: &[Metric] = &[
    // The process.
    stable("marram_build_info", Gauge, &["version"], "1, labelled with the version of the binary"),
    stable("marram_process_resident_memory_bytes", Gauge, &[], "Resident memory of the agent"),
    stable("marram_process_cpu_seconds_total", Counter, &[], "Processor time of all threads since the start"),
    stable("marram_process_open_files", Gauge, &[], "Open file descriptors"),
    stable("marram_process_threads", Gauge, &[], "Threads"),
    stable("marram_process_uptime_seconds", Gauge, &[], "Time since the agent started"),
    // Membership, links, trust.
    stable("marram_members", Gauge, &["state"], "Known nodes by state, this one among the alive"),
    stable("marram_links", Gauge, &["purpose"], "Live links to other nodes by purpose"),
    stable("marram_certificate_not_after_timestamp_seconds", Gauge, &["certificate"], "When the certificate ends, in Unix seconds"),
    // Policy.
    stable("marram_policy_documents", Gauge, &[], "Live policy documents"),
    stable("marram_policy_conflicts", Gauge, &[], "Documents with concurrent edits that a person should look at"),
    stable("marram_policy_writable", Gauge, &[], "1 while the disk takes policy writes, else 0"),
    stable("marram_problems", Gauge, &[], "Entries of GET /v1/problems"),
    // Admin API and logs.
    stable("marram_admin_requests_total", Counter, &["listener", "class"], "Finished requests to the admin API by listener and status class"),
    stable("marram_admin_refused_total", Counter, &["reason"], "Requests to the admin API refused before any handler, by reason"),
    stable("marram_admin_panics_total", Counter, &[], "Panics in handlers of the admin API; each one is a bug"),
    unstable("marram_admin_watchers", Gauge, &[], "Open event streams of GET /v1/watch"),
    stable("marram_log_dropped_lines_total", Counter, &[], "Log lines dropped because stderr did not take them in time"),
];
