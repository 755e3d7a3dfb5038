//! The replicated policy store: what is replicated, how it merges, how it is kept.
//!
//! A causal delta store. A write is one signed [`Op`] that carries the full resulting documents and says which sections
//! it changed and what of each document its author had seen. Per section a multi-value register keeps every edit that
//! nothing later has superseded: concurrent edits stay visible as a conflict, while one of them, the same on every
//! replica, is in force. Replicas that have seen the same ops have the same [`Replica::root`].
//!
//! [`Replica`] is the place to start: it opens on a [`Storage`], takes local writes and peers' ops, and gives documents
//! back. [`SyncSession`] is one conversation with a peer, bytes in and bytes out. The node brings what this crate does
//! not have: time, chance, threads, sockets, and through [`Authority`] its keys.
//!
//! What it is not: a database for applications, or a consensus. Compare-and-set holds on one replica only.

mod backend;
mod codec;
mod context;
mod document;
mod error;
mod hlc;
mod id;
mod op;
mod replica;
mod root;
mod sign;
mod store;
mod sync;
mod wire;

#[cfg(test)]
mod testing;

pub use backend::{Batch, Disk, Fault, FaultyStorage, MemoryStorage, Pairs, Plan, SledStorage, Storage, StorageStats};
pub use codec::{CodecError, FRAME_BYTES_MAX, FRAME_HEAD_BYTES, STORED_VERSION, WIRE_VERSION, frame_length};
pub use context::{BadContext, CLOUD_RANGES_MAX, Clock, Context, ORIGINS_MAX};
pub use error::{Refusal, StorageError, StoreError};
pub use hlc::{CLOCK_LEAD_MAX_MS, Hlc, HlcClock};
pub use id::{BadId, DocKey, Dot, ETag, Incarnation, StoreId};
pub use op::{Change, Limits, Op, OpFault, OpKind, Sections, SignedOp};
pub use replica::{
    Conflict, Counters, DocumentView, Edit, Merged, Records, Replica, Sibling, Summary, WriteMeta, Written,
};
pub use sign::{Author, Authority, OriginRecord};
pub use sync::{SyncConfig, SyncError, SyncOutcome, SyncProgress, SyncSession};
