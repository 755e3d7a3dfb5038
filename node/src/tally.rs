//! Carries the counters that `transport` keeps as plain atomics over to the metrics of the process.
//!
//! `transport` knows no metrics; the control loop calls [`Tally::export`] about once a second. Every label is a reason
//! from a closed set.

use std::sync::{Arc, OnceLock};

use transport::Links;
use transport::cell::Cell;
use transport::swim::SwimCounters;
use transport::trust::{JoinCounters, TrustCounters};

/// Where the counters are.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Links: handshakes, frames, drops.
    pub links: Links,
    /// Certificates refused.
    pub trust: Arc<TrustCounters>,
    /// Gossip.
    pub cell: Cell,
    /// The door for newcomers, on a node that has one.
    pub join: Arc<OnceLock<Arc<JoinCounters>>>,
}

impl Tally {
    /// Copies every counter; `swim` are the prober's.
    pub fn export(&self, swim: &SwimCounters) {
        let links = self.links.counters();
        add("marram_handshakes_total", "direction", "inbound", links.handshakes_inbound.count());
        add("marram_handshakes_total", "direction", "outbound", links.handshakes_outbound.count());
        for (reason, count) in links.handshakes_refused.iter() {
            add("marram_handshakes_refused_total", "reason", reason, count);
        }
        for (refusal, count) in self.trust.snapshot() {
            add("marram_certificates_refused_total", "reason", refusal.reason(), count);
        }
        for (reason, count) in links.frames_refused.iter() {
            add("marram_frames_refused_total", "reason", reason, count);
        }
        for (reason, count) in links.tcp_faults.iter() {
            add("marram_tcp_faults_total", "reason", reason, count);
        }
        for (transport, count) in links.carrier_changes.iter() {
            add("marram_link_transport_changes_total", "transport", transport, count);
        }
        for (reason, count) in links.dials_failed.iter() {
            add("marram_dials_failed_total", "reason", reason, count);
        }
        for (reason, count) in links.datagrams_dropped.iter() {
            add("marram_datagrams_dropped_total", "reason", reason, count);
        }
        for (reason, count) in links.messages_dropped.iter() {
            add("marram_messages_dropped_total", "reason", reason, count);
        }
        metrics::counter!("marram_redials_total").absolute(links.redials.count());
        metrics::counter!("marram_migrations_total").absolute(links.migrations.count());
        metrics::counter!("marram_links_silent_total").absolute(links.links_silent.count());
        metrics::counter!("marram_socket_rebinds_total").absolute(links.rebinds.count());
        add("marram_packets_steered_total", "result", "delivered", links.packets_steered.count());
        add("marram_packets_steered_total", "result", "dropped", links.packets_steered_dropped.count());
        self.export_gossip();
        export_prober(swim);
        if let Some(join) = self.join.get() {
            add("marram_joins_total", "result", "admitted", join.admitted());
            for (refusal, count) in join.refused() {
                add("marram_joins_total", "result", refusal.reason(), count);
            }
            add("marram_joins_total", "result", "broken", join.broken());
        }
    }

    fn export_gossip(&self) {
        let (counters, health) = (self.cell.counters(), self.cell.health());
        add("marram_gossip_messages_total", "direction", "received", counters.received);
        add("marram_gossip_messages_total", "direction", "sent", counters.sent);
        for (refused, count) in counters.refused {
            add("marram_gossip_messages_refused_total", "reason", refused.label(), count);
        }
        metrics::counter!("marram_gossip_restarts_total").absolute(health.restarts);
        #[expect(clippy::cast_precision_loss, reason = "a size of some kilobytes")]
        metrics::gauge!("marram_gossip_digest_bytes").set(health.digest_bytes as f64);
        metrics::gauge!("marram_gossip_alive").set(if health.loop_alive { 1.0 } else { 0.0 });
    }
}

fn export_prober(swim: &SwimCounters) {
    let results = [
        ("sent", swim.sent),
        ("received", swim.received),
        ("malformed", swim.malformed),
        ("unknown_version", swim.unknown_version),
        ("wrong_cell", swim.wrong_cell),
        ("wrong_sender", swim.wrong_sender),
        ("stray_ack", swim.stray_acks),
        ("implausible", swim.implausible_updates),
        ("member_refused", swim.members_refused),
        ("relay_refused", swim.relays_refused),
    ];
    for (result, count) in results {
        add("marram_probe_packets_total", "result", result, count);
    }
    metrics::counter!("marram_probes_failed_total").absolute(swim.probes_failed);
    metrics::counter!("marram_refutations_total").absolute(swim.refutations);
}

/// Sets a counter to what its source counted.
fn add(name: &'static str, label: &'static str, value: &'static str, count: u64) {
    metrics::counter!(name, label => value).absolute(count);
}
