//! The one door to a running node: what the admin API asks of it.
//!
//! [`NodeApi`] is implemented by the agent; the admin server and nothing else calls it.

use std::pin::Pin;
use std::time::Duration;

use crdt_store::Dot;
use policy::{DocId, Document, Problem, explain::Explanation};
use serde_json::Value;

use crate::view::{
    Applied, ConflictView, DocumentDiff, EffectiveView, NodeView, PlanView, PolicyView, ProblemView, Registration,
    RevisionView, ServiceSummary, Status, SyncStatus,
};
use crate::watch::Watch;

/// A boxed future, so that the trait can be an object.
pub type ApiFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// What a running node answers.
pub trait NodeApi: Send + Sync + 'static {
    /// The node in short.
    fn status(&self) -> Status;
    /// Every known node.
    fn nodes(&self) -> Vec<NodeView>;
    /// Every known service.
    fn services(&self) -> Vec<ServiceSummary>;
    /// The decision for `service` as it would be taken now; `None` when nobody is known to offer it.
    fn explain(&self, service: &str) -> Option<Explanation>;
    /// Requests and tunnels in flight through this node.
    fn in_flight(&self) -> usize;
    /// What is wrong and what is done about it.
    fn problems(&self) -> Vec<ProblemView>;
    /// Ready to take work: listening, store open, not draining.
    ///
    /// # Errors
    /// Why not, as a sentence.
    fn is_ready(&self) -> Result<(), String>;
    /// Events for `GET /v1/watch`, after the one called `since` where that is still known; a slow reader sees `Lagged`
    /// and gets a `resync`.
    fn watch(&self, since: Option<&str>) -> Watch;
    /// Adds or replaces one of this node's own instances; durable when it returns.
    fn put_instance(&self, service: String, id: String, registration: Registration) -> ApiFuture<'_, ()>;
    /// Removes one of this node's own instances.
    fn delete_instance(&self, service: String, id: String) -> ApiFuture<'_, ()>;
    /// Feeds the ttl check of an instance.
    fn heartbeat(&self, service: String, id: String) -> ApiFuture<'_, ()>;
    /// Every live policy document.
    fn policies(&self) -> ApiFuture<'_, Vec<PolicyView>>;
    /// One document, as it is or as the write `at` left it.
    fn policy(&self, id: DocId, at: Option<Dot>) -> ApiFuture<'_, PolicyView>;
    /// What was written of one document, newest first.
    fn history(&self, id: DocId) -> ApiFuture<'_, Vec<RevisionView>>;
    /// Carries out a write or nothing of it; durable when it returns, and at as many other nodes as `options` ask for.
    fn write(&self, write: Write, options: WriteOptions) -> ApiFuture<'_, Applied>;
    /// What writing `documents` would change in each of them.
    fn diff(&self, documents: Vec<Document>) -> ApiFuture<'_, Vec<DocumentDiff>>;
    /// What writing `documents` would do; nothing is stored.
    fn plan(&self, documents: Vec<Document>) -> ApiFuture<'_, PlanView>;
    /// Concurrent edits that a person should look at.
    fn conflicts(&self) -> ApiFuture<'_, Vec<ConflictView>>;
    /// What is in force for a service at a node, at this one for `None`, and which document each field comes from.
    fn effective(&self, service: String, node: Option<String>) -> ApiFuture<'_, EffectiveView>;
    /// How far this node and its peers have seen the same.
    fn sync_status(&self) -> ApiFuture<'_, SyncStatus>;
}

/// One policy write.
#[derive(Debug, Clone)]
pub enum Write {
    /// Writes all documents as one change.
    Apply(Vec<Document>),
    /// Deletes one document.
    Delete(DocId),
    /// Changes fields of one document that exists, by RFC 7396.
    Patch {
        /// Which document.
        id: DocId,
        /// The merge patch.
        patch: Value,
    },
    /// Restores what an earlier write left.
    Rollback {
        /// Which document.
        id: DocId,
        /// The earlier write.
        to: Dot,
    },
    /// Settles everything that is in conflict in one document.
    Resolve {
        /// Which document.
        id: DocId,
        /// With what.
        settle: Settle,
    },
}

/// What settles a conflict.
#[derive(Debug, Clone)]
pub enum Settle {
    /// One of its sides.
    Take(Dot),
    /// A document that somebody has put together.
    With(Box<Document>),
}

/// How a write is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteOptions {
    /// What must hold for it to be taken.
    pub condition: Condition,
    /// The same key and the same request within 24 hours are one write; empty for none.
    pub idempotency_key: String,
    /// Why, in the author's words; may be empty.
    pub reason: String,
    /// Whom to wait for.
    pub wait: Wait,
}

/// How long to wait for how many other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wait {
    /// How many other nodes are to have it on disk.
    pub peers: WaitFor,
    /// The longest wait.
    pub timeout: Duration,
}

/// How many other nodes are to have a write on disk before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitFor {
    /// None: it is on this node's disk, and spreads.
    #[default]
    Nobody,
    /// So many.
    Peers(usize),
    /// With this one, more than half of the nodes that have not left.
    Majority,
    /// Every node that has not left.
    All,
}

/// What must hold for a write to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Condition {
    /// Supersede whatever this node has seen.
    #[default]
    Any,
    /// `If-Match`: the document still has this ETag.
    Match(String),
    /// `If-None-Match: *`: the document does not exist.
    Absent,
}

/// One event of `GET /v1/watch`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchEvent {
    /// Policy changed on this node.
    Policy {
        /// New root.
        root: String,
        /// `scope/kind/name` of what changed.
        documents: Vec<String>,
    },
    /// A conflict appeared in a document, changed or was settled.
    Conflict {
        /// `scope/kind/name` of the document.
        document: String,
        /// Sections in conflict now, an empty name where it was deleted meanwhile; none when all is settled.
        sections: Vec<String>,
    },
    /// A member changed its state.
    Node {
        /// The node's label.
        node: String,
        /// New state.
        state: String,
        /// Why.
        reason: String,
    },
    /// A service gained or lost an instance, or one changed its health.
    Service {
        /// The service's name.
        service: String,
    },
}

/// Why the node refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// Documents do not validate; nothing was stored. 422, `policy_invalid`.
    #[error("{} fault(s) in the documents; nothing was stored", problems.len())]
    Invalid {
        /// Every fault.
        problems: Vec<Problem>,
    },
    /// Nothing of that name. 404, `not_found`.
    #[error("{0}")]
    NotFound(String),
    /// The condition does not hold any more; nothing was stored. 412, `stale_context`.
    #[error("the document changed meanwhile: it is at {current}")]
    Stale {
        /// The ETag now.
        current: String,
    },
    /// There is nothing to settle in the document; nothing was stored. 409, `no_conflict`.
    #[error("{0}")]
    NoConflict(String),
    /// The idempotency key was used for another write within 24 hours; nothing was stored. 409, `idempotency_reuse`.
    #[error("this Idempotency-Key was used for another write; use a new key for each write")]
    IdempotencyReuse,
    /// This node may not author policy. 403, `denied`.
    #[error("{0}")]
    Denied(String),
    /// A limit of the store. 409 or 413, `limit`.
    #[error("{0}")]
    Limit(String),
    /// The disk is full or refuses; not stored, routing goes on. 507, `storage_full`.
    #[error("{0}")]
    Storage(String),
    /// The node is stopping or a part of it does not answer. 503, `unavailable`.
    #[error("{0}")]
    Unavailable(String),
}
