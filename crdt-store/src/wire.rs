//! Messages between replicas, as bincode sees them. Every list is bounded while it is read.

use serde::{Deserialize, Serialize};

use crate::{
    codec::bounded,
    context::{ContextImage, ORIGINS_MAX},
    id::{Incarnation, StoreId},
    op::SignedOp,
    sign::OriginRecord,
};

/// Origins whose records one message may bring.
const RECORDS_MAX: usize = 1_024;
/// Ops in one message.
pub(crate) const OPS_MAX: usize = 4_096;

/// First message of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) store: StoreId,
    /// The sender's life; whatever is sent to it afterwards names it.
    pub(crate) incarnation: Incarnation,
    pub(crate) context: ContextImage,
    /// Up to where the sender has collected tombstones; this version collects none.
    #[serde(deserialize_with = "bounded::<_, _, ORIGINS_MAX>")]
    pub(crate) floor: Vec<(Incarnation, u64)>,
    pub(crate) root: [u8; 16],
}

/// Some ops; each credits its own dot and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ops {
    pub(crate) to: Incarnation,
    /// The contexts were equal and the roots were not: take what is not held, whatever the context says.
    pub(crate) is_repair: bool,
    #[serde(deserialize_with = "bounded::<_, _, RECORDS_MAX>")]
    pub(crate) origins: Vec<OriginRecord>,
    #[serde(deserialize_with = "bounded::<_, _, OPS_MAX>")]
    pub(crate) ops: Vec<SignedOp>,
}

/// The sender has no more to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fin {
    pub(crate) to: Incarnation,
    /// All that the sender has seen, once the receiver has every op it lacked; `None` where the budget ended first.
    pub(crate) cover: Option<ContextImage>,
}

/// Everything received is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ack {
    pub(crate) to: Incarnation,
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
