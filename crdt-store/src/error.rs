//! What can go wrong with the store, by whose fault, and what is left.

use std::{io, path::PathBuf};

use crate::{
    codec::CodecError,
    id::{DocKey, ETag},
    op::OpFault,
};

/// A storage backend could not do what was asked. After a failed `apply` nothing of the batch is visible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// No space is left; nothing was stored. Make room; the next write tries again.
    #[error("no space is left for the database")]
    Full,
    /// The operating system refused; nothing was stored. The next write tries again.
    #[error("database: {doing} failed")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Syncing failed once, so that nobody knows what the disk holds; refused until the process starts again.
    #[error("database takes no writes since a sync to disk failed")]
    ReadOnly,
    /// The folder holds something that is not an intact database; it was left as it is.
    #[error("database in {path} is damaged: {reason}")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Another process, or an earlier handle of this one, has the folder open.
    #[error("database in {path} is in use by another process")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

/// An operation of the replica failed. Whatever is said here, the replica's state is as it was before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk is full; nothing was stored or acknowledged. Make room and write again.
    #[error("no space is left on the disk")]
    Full,
    /// The disk failed; nothing was acknowledged.
    #[error("storage failed")]
    Storage(#[source] StorageError),
    /// The disk failed earlier in a way that leaves its content unknown; restart the process to write again.
    #[error("store takes no writes since a sync to disk failed")]
    ReadOnly,
    /// The database is readable but its content contradicts itself; nothing was changed. Set it aside and refill.
    #[error("stored state is damaged: {0}")]
    Damaged(
        /// What was found.
        String,
    ),
    /// The database belongs to another mesh or store; the folder is the wrong one.
    #[error("database belongs to store `{found}`")]
    OtherStore {
        /// The mesh and store it belongs to.
        found: String,
    },
    /// The database was written by a newer program; run that one.
    #[error("database has a newer format")]
    Newer,
    /// The node's role does not let it author policy; nothing was stored. Write at another node.
    #[error("this node's role may not author policy")]
    NotAuthor,
    /// The node's own certificates do not admit it to the mesh; nothing was stored.
    #[error("this node is not admitted: {reason}")]
    NotAdmitted {
        /// The authority's reason.
        reason: String,
    },
    /// The document is not in the version that the caller asked for; nothing was stored. Read, merge, write again.
    #[error("{key} was changed meanwhile")]
    Stale {
        /// Which document.
        key: DocKey,
        /// The version it is in; `None` where it does not exist.
        current: Option<ETag>,
    },
    /// The document to delete does not exist here; nothing was stored.
    #[error("{key} does not exist")]
    NotFound {
        /// Which document.
        key: DocKey,
    },
    /// The write is larger than allowed; nothing was stored.
    #[error("{what} exceed the limit of {max}")]
    TooLarge {
        /// Of what there is too much.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The write is not well-formed; nothing was stored.
    #[error("{what} is not acceptable")]
    Invalid {
        /// What is wrong.
        what: &'static str,
    },
    /// A section has as many concurrent edits as allowed; nothing was stored. Settle the conflict first.
    #[error("{key}: section `{section}` has too many concurrent edits")]
    TooManySiblings {
        /// Which document.
        key: DocKey,
        /// Which section.
        section: String,
    },
    /// The idempotency key was used for another write within 24 hours; nothing was stored.
    #[error("idempotency key was used for another write")]
    IdempotencyReuse,
    /// Bytes from a peer that do not decode; nothing was stored.
    #[error("message from a peer is malformed")]
    Malformed(#[source] CodecError),
}

impl From<StorageError> for StoreError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full => Self::Full,
            StorageError::ReadOnly => Self::ReadOnly,
            other @ (StorageError::Io { .. } | StorageError::Damaged { .. } | StorageError::InUse { .. }) => {
                Self::Storage(other)
            }
        }
    }
}

/// Why an op from a peer was not taken. Its dot is not credited, so it is asked for again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The bytes are not an acceptable op of this store.
    #[error(transparent)]
    Malformed(OpFault),
    /// No record ties its origin to a node.
    #[error("origin is not known")]
    UnknownOrigin,
    /// The origin's record proves nothing.
    #[error("origin is not admitted: {0}")]
    BadOrigin(
        /// The authority's reason.
        String,
    ),
    /// The signature is not by the origin's key.
    #[error("signature is wrong")]
    BadSignature,
    /// The origin's role does not let it author policy.
    #[error("origin may not author policy")]
    NotAuthor,
    /// The counter is further ahead of what was seen than the limit here allows.
    #[error("counter jumps too far ahead")]
    CounterStep,
    /// The store knows as many origins as it may.
    #[error("too many origins")]
    TooManyOrigins,
    /// Too many gaps; anti-entropy closes them.
    #[error("too many gaps in the causal context")]
    TooManyGaps,
    /// The store holds as much as it takes from peers.
    #[error("store is full")]
    StoreFull,
}

impl Refusal {
    /// A short constant word for a metric's label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::UnknownOrigin => "unknown_origin",
            Self::BadOrigin(_) => "bad_origin",
            Self::BadSignature => "bad_signature",
            Self::NotAuthor => "not_author",
            Self::CounterStep => "counter_step",
            Self::TooManyOrigins => "too_many_origins",
            Self::TooManyGaps => "too_many_gaps",
            Self::StoreFull => "store_full",
        }
    }

    /// True where an honest peer would never have sent the op.
    #[must_use]
    pub const fn is_hostile(&self) -> bool {
        match self {
            Self::Malformed(_) | Self::UnknownOrigin | Self::BadOrigin(_) | Self::BadSignature | Self::NotAuthor => {
                true
            }
            // Of an op that is fine by itself and does not fit what is here.
            Self::CounterStep | Self::TooManyOrigins | Self::TooManyGaps | Self::StoreFull => false,
        }
    }
}
