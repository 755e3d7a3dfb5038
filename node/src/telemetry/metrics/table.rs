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

use Kind::{Counter, Gauge, Histogram};

/// Every metric, in the order of `docs/metrics.md`.
pub const METRICS: &[Metric] = &[
    // The process.
    stable("marram_build_info", Gauge, &["version"], "1, labelled with the version of the binary"),
    stable("marram_process_resident_memory_bytes", Gauge, &[], "Resident memory of the agent"),
    stable("marram_process_cpu_seconds_total", Counter, &[], "Processor time of all threads since the start"),
    unstable("marram_memory_limit_bytes", Gauge, &[], "Memory the agent may use, by its configuration or the system"),
    unstable("marram_memory_short", Gauge, &[], "1 while new requests are refused for want of memory, else 0"),
    stable("marram_process_open_files", Gauge, &[], "Open file descriptors"),
    stable("marram_process_threads", Gauge, &[], "Threads"),
    stable("marram_process_uptime_seconds", Gauge, &[], "Time since the agent started"),
    // Membership, links, trust.
    stable("marram_members", Gauge, &["state"], "Known nodes by state, this one among the alive"),
    stable("marram_links", Gauge, &["purpose"], "Live links to other nodes by purpose"),
    stable(
        "marram_certificate_not_after_timestamp_seconds",
        Gauge,
        &["certificate"],
        "When the certificate ends, in Unix seconds",
    ),
    stable("marram_membership_verdicts_total", Counter, &["state"], "Changes of a member's state, by the new state"),
    stable("marram_handshakes_total", Counter, &["direction"], "Finished handshakes with nodes"),
    stable("marram_handshakes_refused_total", Counter, &["reason"], "Handshakes that were refused or failed"),
    stable("marram_certificates_refused_total", Counter, &["reason"], "Certificates of peers that were refused"),
    stable(
        "marram_frames_refused_total",
        Counter,
        &["reason"],
        "Oversized, truncated or unknown frames; each closed its connection",
    ),
    stable("marram_joins_total", Counter, &["result"], "Newcomers admitted, refused by reason, or broken off"),
    unstable(
        "marram_tcp_faults_total",
        Counter,
        &["reason"],
        "Frames over TCP that break its rules; each closed its connection",
    ),
    unstable(
        "marram_link_transport_changes_total",
        Counter,
        &["transport"],
        "Control links that moved to the other transport, by the new one",
    ),
    unstable("marram_dials_failed_total", Counter, &["reason"], "Attempts to reach a node that failed"),
    unstable(
        "marram_redials_total",
        Counter,
        &[],
        "Connections replaced before a certificate ended or after one was lost",
    ),
    unstable("marram_migrations_total", Counter, &[], "Connections whose peer went on from another address"),
    unstable(
        "marram_links_silent_total",
        Counter,
        &[],
        "Links over which nothing came back for a while; new work went over another",
    ),
    unstable(
        "marram_socket_rebinds_total",
        Counter,
        &[],
        "Times the connections of a core went on from a new socket after an address had changed or nobody answered",
    ),
    unstable(
        "marram_packets_steered_total",
        Counter,
        &["result"],
        "Packets that came out of another core's socket than their connection's: delivered to it, or dropped at the limit",
    ),
    unstable("marram_datagrams_dropped_total", Counter, &["reason"], "Datagrams to and from nodes that were dropped"),
    unstable("marram_messages_dropped_total", Counter, &["reason"], "Messages to nodes that were dropped"),
    unstable(
        "marram_probe_packets_total",
        Counter,
        &["result"],
        "Packets of the membership prober: sent, received, or refused by reason",
    ),
    unstable("marram_probes_failed_total", Counter, &[], "Probes that nobody answered, directly or indirectly"),
    unstable("marram_refutations_total", Counter, &[], "Times this node answered a suspicion of itself"),
    // Gossip.
    stable("marram_gossip_alive", Gauge, &[], "1 while the gossip loop turns, else 0"),
    stable("marram_gossip_restarts_total", Counter, &[], "Times the gossip loop was started again after it ended"),
    stable("marram_gossip_messages_total", Counter, &["direction"], "Gossip messages sent and received"),
    stable(
        "marram_gossip_messages_refused_total",
        Counter,
        &["reason"],
        "Gossip messages refused before they were decoded",
    ),
    stable(
        "marram_gossip_refused_total",
        Counter,
        &["reason"],
        "Gossiped records refused: forged, malformed or of unknown nodes",
    ),
    unstable(
        "marram_gossip_dropped_total",
        Counter,
        &["reason"],
        "Gossip messages dropped because the loop was behind",
    ),
    unstable("marram_gossip_digest_bytes", Gauge, &[], "Bytes of the digest that stands in every gossip message"),
    // Requests.
    stable(
        "marram_requests_total",
        Counter,
        &["service", "direction", "code_class"],
        "Finished requests and tunnels; inbound came from another node",
    ),
    stable(
        "marram_request_duration_seconds",
        Histogram,
        &["service", "direction"],
        "Time from the whole request head to the end of the answer",
    ),
    stable("marram_inflight", Gauge, &[], "Requests and tunnels in flight through this node"),
    stable("marram_request_timeouts_total", Counter, &[], "Requests whose answer did not begin within their time"),
    stable(
        "marram_locality_spills_total",
        Counter,
        &["service"],
        "Decisions while a locality had too few sound instances and others got of its part",
    ),
    stable(
        "marram_panic_picks_total",
        Counter,
        &["service"],
        "Decisions while so many instances were ejected that ejections did not count",
    ),
    stable("marram_requests_shed_total", Counter, &["priority"], "Requests refused for more important ones"),
    stable("marram_retries_total", Counter, &["service"], "Requests tried again on another candidate"),
    stable(
        "marram_retries_denied_total",
        Counter,
        &["service", "reason"],
        "Second tries that were not made: budget used up, too many at once, or the client said off",
    ),
    stable(
        "marram_hedges_total",
        Counter,
        &["service", "result"],
        "Requests sent to a second instance beside the first: whose answer counted (won is the second), or denied by the budget",
    ),
    stable(
        "marram_limits_reached_total",
        Counter,
        &["service", "limit"],
        "Times a limit of a service was met, by the field that sets it",
    ),
    stable(
        "marram_rate_limit_share",
        Gauge,
        &["service"],
        "Requests per second that may begin at this node of a rate that all nodes share; 0 once there is no such rate",
    ),
    stable(
        "marram_faults_injected_total",
        Counter,
        &["service", "fault"],
        "Requests that a policy delayed or answered with an error on purpose",
    ),
    stable(
        "marram_mirrored_requests_total",
        Counter,
        &["service", "result"],
        "Copies of requests for the services that mirror them, sent or dropped",
    ),
    stable(
        "marram_ejections_total",
        Counter,
        &["reason"],
        "Endpoints ejected by this node after a failure or beside their peers, by reason",
    ),
    stable("marram_proxy_connections_total", Counter, &["kind"], "Connections accepted from local applications"),
    stable(
        "marram_proxy_refused_total",
        Counter,
        &["reason"],
        "Requests, tunnels and connections that this node refused itself",
    ),
    stable("marram_udp_flows", Gauge, &["side"], "Flows of datagrams at listeners and at instances"),
    stable("marram_udp_datagrams_total", Counter, &["from"], "Datagrams taken from clients, peers and instances"),
    stable("marram_udp_dropped_total", Counter, &["reason"], "Datagrams that this node dropped itself"),
    stable("marram_udp_flows_closed_total", Counter, &["reason"], "Flows of datagrams that ended"),
    stable(
        "marram_transparent_connections_total",
        Counter,
        &["to"],
        "Connections that the kernel led here, by what became of them",
    ),
    stable("marram_dns_up", Gauge, &[], "1 while names are answered, else 0"),
    stable("marram_dns_queries_total", Counter, &["result"], "Queries for names that were answered, by what was said"),
    stable("marram_dns_dropped_total", Counter, &["reason"], "Queries for names that were not answered"),
    unstable(
        "marram_peers_given_up_total",
        Counter,
        &[],
        "Times a peer no longer answered while requests waited for it",
    ),
    unstable(
        "marram_large_links_given_up_total",
        Counter,
        &[],
        "Times a peer no longer answered over TCP while large requests waited for it",
    ),
    unstable(
        "marram_outcomes_dropped_total",
        Counter,
        &[],
        "Verdicts about endpoints that the control thread was too late to take",
    ),
    // Policy.
    stable("marram_policy_documents", Gauge, &[], "Live policy documents"),
    stable("marram_policy_conflicts", Gauge, &[], "Documents with concurrent edits that a person should look at"),
    stable(
        "marram_store_tombstones",
        Gauge,
        &[],
        "Deleted documents that are still remembered, so that nobody brings them back",
    ),
    stable("marram_store_collected_total", Counter, &[], "Deleted documents let go of after `store.tombstone_age`"),
    stable("marram_policy_writable", Gauge, &[], "1 while the disk takes policy writes, else 0"),
    stable("marram_problems", Gauge, &[], "Entries of GET /v1/problems"),
    stable("marram_policy_ops_refused_total", Counter, &["reason"], "Policy writes from peers that were refused"),
    stable("marram_sync_conversations_total", Counter, &["result"], "Anti-entropy conversations with peers that ended"),
    unstable("marram_sync_failures_total", Counter, &["reason"], "Anti-entropy conversations that a fault ended"),
    unstable(
        "marram_store_commands_dropped_total",
        Counter,
        &[],
        "Messages from peers that the busy store dropped; a later sync brings them",
    ),
    stable(
        "marram_store_recoveries_total",
        Counter,
        &[],
        "Times a damaged policy store was set aside or caught up at start",
    ),
    stable(
        "marram_store_rebuilds_total",
        Counter,
        &["result"],
        "Attempts to write the policy store anew after a sync to disk had failed",
    ),
    // Tasks.
    stable(
        "marram_task_restarts_total",
        Counter,
        &["task"],
        "Times a supervised task was started again after it ended",
    ),
    unstable("marram_control_events_dropped_total", Counter, &[], "Events that the control loop was too late to take"),
    // Admin API and logs.
    stable(
        "marram_admin_requests_total",
        Counter,
        &["listener", "class"],
        "Finished requests to the admin API by listener and status class",
    ),
    stable(
        "marram_admin_refused_total",
        Counter,
        &["reason"],
        "Requests to the admin API refused before any handler, by reason",
    ),
    stable("marram_admin_panics_total", Counter, &[], "Panics in handlers of the admin API; each one is a bug"),
    unstable("marram_admin_watchers", Gauge, &[], "Open event streams of GET /v1/watch"),
    stable(
        "marram_log_dropped_lines_total",
        Counter,
        &[],
        "Log lines dropped because stderr refused them or did not take them in time",
    ),
];
