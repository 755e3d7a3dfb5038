//! Messages between replicas, as bincode sees them. Every list is bounded while it is read.

use serde::{Deserialize, Serialize};

use crate::{
    codec::bounded,
    context::{ContextImage, ORIGINS_MAX},
    id::{Incarnation, StoreId},
    op::SignedOp,
    replica::Pair,
    root::BUCKETS,
    sign::OriginRecord,
};

/// Origins whose records one message may bring.
const RECORDS_MAX: usize = 1_024;
/// Ops in one message.
pub(crate) const OPS_MAX: usize = 4_096;
/// Pairs of document and dot in one message; at 41 bytes each they stay well within one frame.
pub(crate) const PAIRS_MAX: usize = 16_384;

/// Bytes that hold one bit for each origin of a context.
const ORIGIN_BITS_MAX: usize = ORIGINS_MAX.div_ceil(8);

/// First message of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) store: StoreId,
    /// The sender's life; whatever is sent to it afterwards names it.
    pub(crate) incarnation: Incarnation,
    pub(crate) context: ContextImage,
    /// Up to where the sender has collected tombstones, ascending.
    #[serde(deserialize_with = "bounded::<_, _, ORIGINS_MAX>")]
    pub(crate) floor: Vec<(Incarnation, u64)>,
    /// Of which origins in the context, in ascending order, the sender holds the records: a bit for each.
    #[serde(deserialize_with = "bounded::<_, _, ORIGIN_BITS_MAX>")]
    pub(crate) records: Vec<u8>,
    pub(crate) root: [u8; 16],
}

/// Some ops; each credits its own dot and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ops {
    pub(crate) to: Incarnation,
    /// The contexts were equal and the roots were not: take what is not held, whatever the context says.
    pub(crate) is_repair: bool,
    /// Of the ops' origins those that the receiver has not said it holds, and that no earlier message brought.
    #[serde(deserialize_with = "bounded::<_, _, RECORDS_MAX>")]
    pub(crate) origins: Vec<OriginRecord>,
    #[serde(deserialize_with = "bounded::<_, _, OPS_MAX>")]
    pub(crate) ops: Vec<SignedOp>,
}

/// The sender has no more to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fin {
    pub(crate) to: Incarnation,
    /// What the sender has seen since its `Hello`, once the receiver has every op it lacked; `None` where the budget
    /// ended first.
    pub(crate) cover: Option<ContextImage>,
}

/// The sender has no more to send to a peer that has not seen all up to the sender's floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FinBelow {
    pub(crate) to: Incarnation,
    /// What the sender has seen since its `Hello`.
    pub(crate) cover: ContextImage,
    /// Up to where it has collected tombstones since then, ascending.
    #[serde(deserialize_with = "bounded::<_, _, ORIGINS_MAX>")]
    pub(crate) floor: Vec<(Incarnation, u64)>,
}

/// What the sender sees, in 256 hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) to: Incarnation,
    #[serde(deserialize_with = "bounded::<_, _, BUCKETS>")]
    pub(crate) buckets: Vec<[u8; 16]>,
}

/// What is live in the sender's documents, in the buckets where the digest differs from its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lists {
    pub(crate) to: Incarnation,
    /// True where no more of them follow.
    pub(crate) is_last: bool,
    #[serde(deserialize_with = "bounded::<_, _, PAIRS_MAX>")]
    pub(crate) pairs: Vec<Pair>,
}

/// What of a list the sender has seen and does not hold any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) to: Incarnation,
    #[serde(deserialize_with = "bounded::<_, _, PAIRS_MAX>")]
    pub(crate) pairs: Vec<Pair>,
}

/// Everything received is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ack {
    pub(crate) to: Incarnation,
    /// What the sender has seen since its `Hello`.
    pub(crate) context: ContextImage,
    pub(crate) root: [u8; 16],
}

/// Ops sent outside a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Push {
    #[serde(deserialize_with = "bounded::<_, _, RECORDS_MAX>")]
    pub(crate) origins: Vec<OriginRecord>,
    #[serde(deserialize_with = "bounded::<_, _, OPS_MAX>")]
    pub(crate) ops: Vec<SignedOp>,
}
