//! What the node tells people and programs: the bodies of the admin API, as plain data.
//!
//! The CLI reads the same types back, so a field is renamed in one place or not at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{CheckConfig, Location, Protocol};

pub use documents::{
    Applied, AppliedDocument, ConflictSide, ConflictView, DocumentDiff, EffectiveKindView, EffectiveView,
    FieldChangeView, FieldSourceView, ImpactView, OverriddenView, PeerSyncView, PlanView, PolicyView, Replicated,
    RevisionView, SideChangeView, SyncCounters, SyncStatus, TouchedView,
};

mod documents;

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Status {
    /// The mesh's name.
    pub mesh: String,
    /// This node's label.
    pub node: String,
    /// This node's id.
    pub node_id: String,
    /// Version of the binary.
    pub version: String,
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Seconds since the start of the process.
    pub uptime_s: u64,
    /// Members by liveness, this node counted as alive.
    pub members: MemberCounts,
    /// The policy store.
    pub policy: PolicyStatus,
    /// Live links to other nodes.
    pub links: Vec<LinkView>,
    /// Unix seconds at which this node's leaf certificate ends.
    pub leaf_not_after: u64,
    /// Unix seconds at which this node's admission ends.
    pub node_not_after: u64,
}

/// Members by liveness.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct MemberCounts {
    /// Answering, this node included.
    pub alive: usize,
    /// Silent, not yet given up.
    pub suspect: usize,
    /// Given up.
    pub dead: usize,
    /// Known but never answered.
    pub joining: usize,
    /// Gone on their own word.
    pub left: usize,
}

/// The policy store in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct PolicyStatus {
    /// Hash over everything visible; equal on two nodes means equal policy. 32 hex digits.
    pub root: String,
    /// Live documents.
    pub documents: usize,
    /// Documents with concurrent edits that a person should look at.
    pub conflicts: usize,
    /// Deleted documents that are still remembered.
    #[serde(default)]
    pub tombstones: usize,
    /// False while the disk refuses writes.
    pub writable: bool,
}

/// A live link to another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct LinkView {
    /// The peer's label.
    pub node: String,
    /// Where it is.
    pub remote: String,
    /// Smoothed round trip of the transport in milliseconds.
    pub rtt_ms: f64,
    /// Share of packets lost, 0..=1.
    pub loss: f64,
    /// Key exchange of the TLS handshake.
    pub key_exchange: String,
    /// What carries it: `quic` or `tcp`.
    #[serde(default)]
    pub transport: String,
    /// True when this node dialled.
    pub outbound: bool,
    /// `control` or `data`.
    pub purpose: String,
}

/// One element of `GET /v1/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct NodeView {
    /// The operator's label.
    pub name: String,
    /// NodeId in base32.
    pub id: String,
    /// `alive`, `suspect`, `dead`, `joining` or `left`; this node says `alive`.
    pub state: String,
    /// Why it is in this state, as a sentence.
    pub reason: String,
    /// Seconds in this state.
    pub since_s: f64,
    /// True for the node that answers.
    pub this_node: bool,
    /// SWIM incarnation.
    pub incarnation: u32,
    /// Large place.
    pub region: String,
    /// Small place.
    pub zone: String,
    /// Where peers reach it.
    pub address: String,
    /// Position, when configured.
    pub location: Option<Location>,
    /// Role of its admission.
    pub role: String,
    /// Distance from the answering node in milliseconds of round trip.
    pub distance_ms: Option<f64>,
    /// `local`, `rtt`, `vivaldi`, `great-circle` or `unknown`.
    pub distance_source: String,
    /// Mean change between round trips in milliseconds.
    pub jitter_ms: Option<f64>,
    /// Share of probes lost, 0..=1.
    pub loss: Option<f64>,
    /// Requests in flight on it, all services.
    pub inflight: u32,
    /// Share of its processor in use, 0..=1 (cgroup limits respected).
    pub cpu: f64,
    /// Resident memory of its agent in bytes.
    pub agent_memory_bytes: u64,
    /// What the machine is.
    pub capabilities: Capabilities,
    /// Version of its binary.
    pub version: String,
    /// First 8 hex digits of its policy root.
    pub policy_root: String,
    /// Services it offers.
    pub services: Vec<String>,
    /// Seconds since its state was last heard.
    pub age_s: Option<f64>,
}

/// What a machine is, measured and not configured except for labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Capabilities {
    /// Processor architecture.
    pub arch: String,
    /// Operating system.
    pub os: String,
    /// Cores this process may use, after cgroup limits.
    pub cores: f64,
    /// Memory this process may use in bytes, after cgroup limits.
    pub memory_bytes: u64,
    /// Graphics processors seen by the kernel.
    pub gpu: u32,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// One element of `GET /v1/services`; `GET /v1/services/{name}` gives one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ServiceSummary {
    /// The service's name.
    pub name: String,
    /// Its instances on every node.
    pub instances: Vec<InstanceView>,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct InstanceView {
    /// Id within the owning node.
    pub id: String,
    /// The owning node's label.
    pub node: String,
    /// `up`, or why it is not drawn.
    pub state: String,
    /// Where the process listens on the owning node; empty for other nodes' instances.
    pub address: String,
    /// What it speaks; `null` for what this version does not know.
    pub protocol: Option<Protocol>,
    /// Concurrent requests it serves well.
    pub capacity: f64,
    /// `declared` or `cores`.
    pub capacity_source: String,
    /// Requests in flight as its owner last told.
    pub inflight: u32,
    /// The last verdict of each check (own instances only).
    pub checks: Vec<CheckView>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

/// The last verdict of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct CheckView {
    /// `http`, `tcp` or `ttl`.
    pub kind: String,
    /// Whether it passes.
    pub passing: bool,
    /// What it saw last.
    pub detail: String,
}

/// Body of `PUT /v1/services/{name}/instances/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// The port the process listens on.
    pub port: u16,
    /// Where it listens; default `127.0.0.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = Option<String>))]
    pub address: Option<std::net::IpAddr>,
    /// What it speaks; default `http`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Concurrent requests it serves well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<f64>,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Health checks.
    #[serde(default)]
    pub checks: Vec<CheckConfig>,
}

/// One element of `GET /v1/problems`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ProblemView {
    /// Where: a document, a service, the disk.
    pub about: String,
    /// Stable code.
    pub code: String,
    /// What is wrong and what is done meanwhile.
    pub detail: String,
    /// Faults field by field.
    #[cfg_attr(test, schema(value_type = Vec<Object>))]
    pub problems: Vec<policy::Problem>,
}
