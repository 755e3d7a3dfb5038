//! One op: an immutable, signed change of whole documents under one dot.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use crdts::CmRDT;
use serde::{Deserialize, Serialize};

use crate::{
    codec::{blob, signature},
    context::Clock,
    hlc::Hlc,
    id::{DocKey, Dot, StoreId, sha256},
};

mod layout;
mod slice;

pub(crate) use layout::{IDEMPOTENCY_BYTES_MAX, decode, dot_of, encode};
pub(crate) use slice::{Slice, intent, slices};

/// The content of a document: section name to its canonical bytes, which only the policy layer understands.
pub type Sections = BTreeMap<String, Bytes>;

/// What an op's author meant to do. It is for display and history; merging looks at masks and clocks alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OpKind {
    /// Whole documents were given.
    #[default]
    Put,
    /// Parts of documents were given.
    Patch,
    /// Documents were deleted.
    Delete,
    /// An earlier state was restored.
    Rollback(
        /// The op whose result was restored.
        Dot,
    ),
    /// A person settled a conflict: everything live in the documents is superseded.
    Resolve,
}

/// One document's part in an op.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which document.
    pub key: DocKey,
    /// The sections this change speaks about; empty for a tombstone, which speaks about all.
    pub mask: BTreeSet<String>,
    /// What of this document the author had seen; superseded by this change.
    pub past: Clock,
    /// Dots within `past` that stayed live beside this change. Whoever lacks one of them has not seen all that the
    /// author saw, and so must not claim the whole of `past` as seen: a version vector cannot express the gap.
    pub beside: BTreeSet<Dot>,
    /// The full resulting document, valid by itself; `None` is a tombstone.
    pub body: Option<Sections>,
}

impl Change {
    /// The clock under which the change enters the registers: its past and its own dot.
    #[must_use]
    pub fn clock(&self, dot: Dot) -> Clock {
        let mut clock = self.past.clone();
        clock.apply(crdts::Dot::new(dot.origin, dot.counter));
        clock
    }
}

/// What is signed, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Its stamp.
    pub dot: Dot,
    /// When it was written, by the author's hybrid clock.
    pub hlc: Hlc,
    /// First 16 bytes of the SHA-256 of the signing key.
    pub author_key: [u8; 16],
    /// What the author meant to do.
    pub kind: OpKind,
    /// Version of the documents' schema; carried, not interpreted.
    pub schema: u16,
    /// The client's key for this write, or empty.
    pub idempotency_key: String,
    /// Why, in the author's words, or empty.
    pub message: String,
    /// The changes, by ascending key; they take effect together on each replica.
    pub changes: Vec<Change>,
}

impl Op {
    /// The part that concerns a document.
    #[must_use]
    pub fn change(&self, key: &DocKey) -> Option<&Change> {
        self.changes.get(self.place(key)?)
    }

    /// Which of the changes concerns a document.
    pub(crate) fn place(&self, key: &DocKey) -> Option<usize> {
        self.changes.binary_search_by(|change| change.key.cmp(key)).ok()
    }
}

/// An op as it travels and is stored: its canonical bytes, untouched, and the author's signature over them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOp {
    /// The canonical layout, version byte first.
    #[serde(with = "blob")]
    pub bytes: Bytes,
    /// Ed25519, by the key of the origin record.
    #[serde(with = "signature")]
    pub signature: [u8; 64],
}

impl SignedOp {
    /// What the bytes say; the signature is not looked at, nor any limit. For tools that read ops beside the store.
    ///
    /// # Errors
    /// [`OpFault`] for bytes that are not a canonical op of this store.
    pub fn read(&self, store: &StoreId) -> Result<Op, OpFault> {
        decode(store, &self.bytes, &Limits::none())
    }

    /// SHA-256 of the canonical bytes; which op this is.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(&[&self.bytes])
    }

    /// Bytes it takes in a message or in memory, without what surrounds it.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bytes.len() + self.signature.len()
    }
}

impl std::fmt::Debug for SignedOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedOp").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// How large things may be. Defaults suit a gateway with 20 MB for the whole process.
///
/// Limits of an op are part of what all replicas must agree on: a replica with a smaller one refuses ops that others
/// hold and cannot converge with them. Raise them on every node before using the room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// One op's canonical bytes; 256 KiB.
    pub op_bytes: usize,
    /// One document's sections together; 64 KiB.
    pub body_bytes: usize,
    /// Documents changed by one op; 64.
    pub changes: usize,
    /// Sections of one document; 32.
    pub sections: usize,
    /// Concurrent edits of one section that a local write may raise a section to; 16. Ops from peers may exceed it.
    pub siblings: usize,
    /// Origins in one change's past; 256.
    pub past: usize,
    /// Bytes of a kind, scope or document name; 253.
    pub name_bytes: usize,
    /// Bytes of an op's message; 256.
    pub message_bytes: usize,
    /// Documents that local writes may bring the store to; 4,000. Four times as many come in from peers.
    pub documents: usize,
    /// Bytes of live ops that local writes may bring the store to; 8 MiB. Four times as many come in from peers.
    pub live_bytes: usize,
    /// How far an origin's counter may jump ahead of what was seen of it; 2^63, which limits nothing. With less, whether
    /// an op is taken depends on which came before it, and who joins late may lack for ever what others hold.
    pub counter_step: u64,
    /// Origins known; 4,096.
    pub origins: usize,
    /// Ranges of dots beyond a gap; 16,384.
    pub cloud_ranges: usize,
    /// Bytes of the node's own records together; 4 MiB.
    pub record_bytes: usize,
    /// How long a superseded change of a document is remembered in the history, in milliseconds; 30 days. Changes that
    /// are live, and of a document that exists the newest one that is not, are remembered longer.
    pub history_ms: u64,
    /// Changes of one document that the history remembers; 20. The oldest give way, a few at a time.
    pub history_revisions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            op_bytes: 256 << 10,
            body_bytes: 64 << 10,
            changes: 64,
            sections: 32,
            siblings: 16,
            past: 256,
            name_bytes: 253,
            message_bytes: 256,
            documents: 4_000,
            live_bytes: 8 << 20,
            counter_step: crate::context::COUNTER_END,
            origins: crate::context::ORIGINS_MAX,
            cloud_ranges: crate::context::CLOUD_RANGES_MAX,
            record_bytes: 4 << 20,
            history_ms: 30 * 24 * 60 * 60 * 1_000,
            history_revisions: 20,
        }
    }
}

impl Limits {
    /// The limit that a fault names.
    pub(crate) fn of(&self, what: &str) -> usize {
        match what {
            "past" => self.past,
            "changes" => self.changes,
            "sections" => self.sections,
            "mask" => self.sections.saturating_mul(2),
            "beside" => layout::BESIDE_MAX,
            "message" => self.message_bytes,
            "body bytes" => self.body_bytes,
            _ => self.op_bytes,
        }
    }

    /// Limits for what is stored already: what was accepted under larger ones stays.
    pub(crate) const fn none() -> Self {
        Self {
            op_bytes: usize::MAX,
            body_bytes: usize::MAX,
            changes: usize::MAX,
            sections: usize::MAX,
            siblings: usize::MAX,
            past: usize::MAX,
            name_bytes: usize::MAX,
            message_bytes: usize::MAX,
            documents: usize::MAX,
            live_bytes: usize::MAX,
            counter_step: u64::MAX,
            origins: usize::MAX,
            cloud_ranges: usize::MAX,
            record_bytes: usize::MAX,
            history_ms: u64::MAX,
            history_revisions: usize::MAX,
        }
    }
}

/// Canonical bytes that are not an acceptable op. From a peer: refused, not credited, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpFault {
    /// The bytes end too early.
    #[error("op is cut short")]
    Truncated,
    /// Bytes follow the end.
    #[error("bytes follow the end of the op")]
    Trailing,
    /// Not an op, or one of a format this program does not know.
    #[error("op format is not known here")]
    Version,
    /// An op of another mesh or store.
    #[error("op belongs to another store")]
    OtherStore,
    /// A value outside its domain, an unsorted list, or text that is not UTF-8 without control characters.
    #[error("op field `{0}` is not canonical")]
    Field(
        /// Which field.
        &'static str,
    ),
    /// A limit is exceeded.
    #[error("op exceeds the limit on {0}")]
    Limit(
        /// Of what.
        &'static str,
    ),
}

/// True for text that may be a kind, scope, name or section: not empty, no control characters, within the limit.
pub(crate) fn is_name(text: &str, bytes_max: usize) -> bool {
    !text.is_empty() && text.len() <= bytes_max && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;
