//! The one door to a running node: what the admin API asks of it.
//!
//! [`NodeApi`] is implemented by the agent; the admin server and nothing else calls it.

use std::pin::Pin;

use policy::{Document, Problem, explain::Explanation};
use tokio::sync::broadcast;

use crate::view::{Applied, ConflictView, NodeView, PolicyView, ProblemView, Registration, ServiceSummary, Status};

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
    /// What is wrong and what is done about it.
    fn problems(&self) -> Vec<ProblemView>;
    /// Ready to take work: listening, store open, not draining.
    ///
    /// # Errors
    /// Why not, as a sentence.
    fn is_ready(&self) -> Result<(), String>;
    /// Events for `GET /v1/watch`; a slow reader sees `Lagged` and gets a `resync`.
    fn events(&self) -> broadcast::Receiver<WatchEvent>;
    /// Adds or replaces one of this node's own instances; durable when it returns.
    fn put_instance(&self, service: String, id: String, registration: Registration) -> ApiFuture<'_, ()>;
    /// Removes one of this node's own instances.
    fn delete_instance(&self, service: String, id: String) -> ApiFuture<'_, ()>;
    /// Feeds the ttl check of an instance.
    fn heartbeat(&self, service: String, id: String) -> ApiFuture<'_, ()>;
    /// Every live policy document.
    fn policies(&self) -> ApiFuture<'_, Vec<PolicyView>>;
    /// One document.
    fn policy(&self, scope: String, kind: String, name: String) -> ApiFuture<'_, PolicyView>;
    /// Writes all `documents` as one change or none; durable when it returns.
    fn apply(&self, documents: Vec<Document>, condition: Condition) -> ApiFuture<'_, Applied>;
    /// Deletes one document; durable when it returns.
    fn delete_policy(&self, scope: String, kind: String, name: String, condition: Condition) -> ApiFuture<'_, Applied>;
    /// Concurrent edits that a person should look at.
    fn conflicts(&self) -> ApiFuture<'_, Vec<ConflictView>>;
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
#[derive(Debug, Clone, serde::Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WatchEvent {
    /// Policy changed on this node.
    Policy {
        /// New root.
        root: String,
        /// `scope/kind/name` of what changed.
        documents: Vec<String>,
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
