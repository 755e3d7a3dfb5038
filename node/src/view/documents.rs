//! Bodies about policy documents: what is stored, what was, what differs, what is in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One policy document with what the store knows of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct PolicyView {
    /// `global`, `region:R`, `zone:R.Z` or `node:N`.
    pub scope: String,
    /// Kind of the document.
    pub kind: String,
    /// Name within scope and kind.
    pub name: String,
    /// Hash of the document's live dots; the ETag. Empty for an earlier version.
    pub etag: String,
    /// The write that is newest in it, `incarnation:counter`.
    #[serde(default)]
    pub dot: String,
    /// The node that wrote the newest part of it.
    pub author: String,
    /// Unix milliseconds of that write by its author's clock.
    pub written_ms: u64,
    /// Why, in its author's words; may be empty.
    #[serde(default)]
    pub message: String,
    /// Sections with concurrent edits.
    pub conflicts: Vec<String>,
    /// True when somebody deleted it while somebody else edited it; the edit stayed.
    pub deleted_concurrently: bool,
    /// True when its `metadata.expiresAt` has passed: it is stored and not in force.
    #[serde(default)]
    pub expired: bool,
    /// The document itself.
    #[cfg_attr(test, schema(value_type = Object))]
    pub document: Value,
}

/// One element of `GET /v1/policies/{scope}/{kind}/{name}/history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct RevisionView {
    /// The write, `incarnation:counter`.
    pub dot: String,
    /// `put`, `patch`, `delete`, `rollback` or `resolve`.
    pub op: String,
    /// For a rollback: the write whose result was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<String>,
    /// Unix milliseconds of that write by its author's clock.
    pub written_ms: u64,
    /// The node that wrote it.
    pub author: String,
    /// Why, in its author's words; may be empty.
    pub message: String,
    /// The sections it changed; empty for a deletion, which speaks about all.
    pub sections: Vec<String>,
    /// True when it deleted the document.
    pub deleted: bool,
    /// True while nothing has superseded it.
    pub live: bool,
    /// The whole document as this write left it at its author; `null` for a deletion.
    #[cfg_attr(test, schema(value_type = Object))]
    pub document: Value,
}

/// One element of `GET /v1/conflicts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ConflictView {
    /// Scope of the document.
    pub scope: String,
    /// Kind of the document.
    pub kind: String,
    /// Name of the document.
    pub name: String,
    /// The section that several sides wrote; empty where one side deleted the document that another one edited.
    pub section: String,
    /// Every side; the first is in force.
    pub sides: Vec<ConflictSide>,
    /// What the section said when the sides parted; `null` where this node does not know it any more.
    #[serde(default)]
    #[cfg_attr(test, schema(value_type = Object))]
    pub base: Value,
    /// Field by field what at least one side changed.
    #[serde(default)]
    pub changes: Vec<SideChangeView>,
}

/// One side of a conflict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ConflictSide {
    /// The write, `incarnation:counter`.
    pub dot: String,
    /// The node that wrote it.
    pub author: String,
    /// Unix milliseconds of that write by its author's clock; 0 where it is not known any more.
    pub written_ms: u64,
    /// Why, in its author's words; may be empty.
    #[serde(default)]
    pub message: String,
    /// True for the side in force on every node.
    pub in_force: bool,
    /// True for a side that deleted the document.
    #[serde(default)]
    pub deleted: bool,
    /// What it wrote; `null` where it removed the section or the document.
    #[cfg_attr(test, schema(value_type = Object))]
    pub value: Value,
}

/// One field in a conflict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct SideChangeView {
    /// Path of the field.
    pub path: String,
    /// What it said when the sides parted; `null` where it was not there or is not known.
    #[cfg_attr(test, schema(value_type = Object))]
    pub base: Option<Value>,
    /// What it says on each side, in the order of the sides; `null` where it is not there.
    #[cfg_attr(test, schema(value_type = Vec<Object>))]
    pub sides: Vec<Option<Value>>,
    /// True when all sides say the same.
    pub agrees: bool,
}

/// One field that differs between two versions of a document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct FieldChangeView {
    /// Path of the field, for instance `spec.rules[0].backendRefs[1].weight`.
    pub path: String,
    /// What it says in the first version; `null` where it is not there.
    #[cfg_attr(test, schema(value_type = Object))]
    pub before: Option<Value>,
    /// What it says in the second; `null` where it is not there.
    #[cfg_attr(test, schema(value_type = Object))]
    pub after: Option<Value>,
}

/// One element of `POST /v1/diff`: what a write would change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct DocumentDiff {
    /// Scope of the document.
    pub scope: String,
    /// Kind of the document.
    pub kind: String,
    /// Name of the document.
    pub name: String,
    /// `created`, `changed` or `unchanged`.
    pub change: String,
    /// Field by field, from what this node has to what was given.
    pub changes: Vec<FieldChangeView>,
}

/// Answer to a policy write.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Applied {
    /// The write, `incarnation:counter`; empty where nothing had to be written.
    pub dot: String,
    /// Policy root after it.
    pub root: String,
    /// Each document with its new ETag; `changed` is false when it already said the same.
    pub documents: Vec<AppliedDocument>,
    /// True when this is what an earlier write under the same Idempotency-Key did; nothing was written now.
    #[serde(default)]
    pub replayed: bool,
    /// Who else has it on disk; only where the write asked to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicated_to: Option<Replicated>,
}

/// One document of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct AppliedDocument {
    /// Scope of the document.
    pub scope: String,
    /// Kind of the document.
    pub kind: String,
    /// Name of the document.
    pub name: String,
    /// `created`, `changed`, `unchanged` or `deleted`.
    pub change: String,
    /// Its ETag now; empty when deleted.
    pub etag: String,
}

/// Which other nodes have a write on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Replicated {
    /// Their labels, in order.
    pub nodes: Vec<String>,
    /// How many were asked for.
    pub wanted: usize,
}

impl Replicated {
    /// True when as many have it as were asked for.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.nodes.len() >= self.wanted
    }
}

/// Answer to a dry run: what the write would do. Nothing is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct PlanView {
    /// True: faults are answered as a refusal instead.
    pub valid: bool,
    /// What would change in each document.
    pub documents: Vec<DocumentDiff>,
    /// What the author should know although nothing is wrong.
    #[cfg_attr(test, schema(value_type = Vec<Object>))]
    pub notes: Vec<policy::Problem>,
    /// Whom it would touch.
    pub impact: ImpactView,
    /// Documents, as `SCOPE/KIND/NAME`, that the write would leave in conflict with what this node has seen. A write
    /// supersedes all of that, so there are none; what other nodes write meanwhile nobody can know.
    pub would_conflict: Vec<String>,
}

/// Whom a write would touch, as this node knows places and traffic.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ImpactView {
    /// Each service for which something in force changes.
    pub services: Vec<TouchedView>,
    /// Their part of the requests that this node sent in the last minute, 0..=1.
    pub traffic_share_total: f64,
}

/// One service that a write would touch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct TouchedView {
    /// The service's name.
    pub service: String,
    /// Labels of the nodes where it changes.
    pub nodes: Vec<String>,
    /// What changes, for instance `algorithm` or `routes`.
    pub what: Vec<String>,
    /// Its part of the requests that this node sent in the last minute, 0..=1.
    pub traffic_share: f64,
}

/// `GET /v1/effective/{service}`: what is in force for a service at a place, and where each field comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct EffectiveView {
    /// The service's name.
    pub service: String,
    /// Label of the node it is about.
    pub node: String,
    /// That node's region.
    pub region: String,
    /// That node's zone.
    pub zone: String,
    /// Per kind of document what is in force; a kind without a document about the service is not listed.
    pub kinds: Vec<EffectiveKindView>,
}

/// What the documents of one kind come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct EffectiveKindView {
    /// The kind.
    pub kind: String,
    /// The spec they come to together.
    #[cfg_attr(test, schema(value_type = Object))]
    pub spec: Value,
    /// Each field with its source.
    pub fields: Vec<FieldSourceView>,
}

/// One field in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct FieldSourceView {
    /// Path of the field, for instance `spec.loadBalancer.lambda`.
    pub path: String,
    /// What is in force.
    #[cfg_attr(test, schema(value_type = Object))]
    pub value: Value,
    /// The document that says so, as `SCOPE/KIND/NAME`.
    pub document: String,
    /// The document that keeps narrower ones from changing it.
    pub locked_by: Option<String>,
    /// What other documents say, without effect.
    pub overridden: Vec<OverriddenView>,
}

/// What a document says without effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct OverriddenView {
    /// The document, as `SCOPE/KIND/NAME`.
    pub document: String,
    /// What it says.
    #[cfg_attr(test, schema(value_type = Object))]
    pub value: Value,
    /// Why that is not in force.
    pub why: String,
}

/// `GET /v1/sync/status`: how far this node and its peers have seen the same.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct SyncStatus {
    /// Hash over everything visible, 32 hex digits.
    pub root: String,
    /// Hash over every write seen, 16 hex digits.
    pub context_hash: String,
    /// Hash over what collected deletions stand for, 16 hex digits.
    pub floor_hash: String,
    /// This life of the store; a new one begins when its disk was lost or put back.
    pub incarnation: String,
    /// Writes in this life.
    pub counter: u64,
    /// Live documents.
    pub documents: usize,
    /// Deleted documents that are still remembered.
    pub tombstones: usize,
    /// Documents with concurrent edits that a person should look at.
    pub conflicts: usize,
    /// Bytes of live writes.
    pub live_bytes: usize,
    /// Lives of stores that writes came from.
    pub origins: usize,
    /// Gaps in what was seen.
    pub gaps: usize,
    /// Counts since the process started.
    pub counters: SyncCounters,
    /// Every peer that has not left.
    pub peers: Vec<PeerSyncView>,
}

/// Counts of the store since the process started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct SyncCounters {
    /// Writes made here.
    pub written: u64,
    /// Writes taken from peers.
    pub merged: u64,
    /// Writes from peers that were here already.
    pub duplicates: u64,
    /// Writes from peers that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Second writes under one dot: their author signed two histories.
    pub equivocations: u64,
    /// Removals that one peer has claimed and another has to confirm.
    pub claims_pending: u64,
    /// Removals carried out because enough peers claimed them.
    pub claims_applied: u64,
    /// Writes stamped more than a minute ahead of the clock here.
    pub clock_suspects: u64,
    /// Lives that this store has begun.
    pub incarnations: u64,
}

/// How far one peer is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct PeerSyncView {
    /// The peer's label.
    pub node: String,
    /// Its state as a member.
    pub state: String,
    /// Whether the policy root it told last equals ours.
    pub root_equal: bool,
    /// Seconds since it last confirmed what it has; `null` when it has not since this process started.
    pub last_sync_s: Option<f64>,
    /// Writes we have that it had not when it last confirmed; `null` when it has not since this process started.
    pub lag: Option<u64>,
}
