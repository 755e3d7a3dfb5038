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
mod bundle;
mod codec;
mod context;
mod document;
mod error;
mod hlc;
mod id;
mod mutation;
mod op;
mod recover;
mod replica;
mod root;
mod sign;
mod store;
mod sync;
mod wire;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

#[cfg(test)]
mod testing;

#[cfg(any(test, feature = "redb"))]
pub use backend::RedbStorage;
pub use backend::{Batch, Disk, Fault, FaultyStorage, MemoryStorage, Pairs, Plan, SledStorage, Storage, StorageStats};
pub use bundle::{
    BundleError, BundleFault, BundleHead, BundleReader, BundledOp, Imported, merge_bundle, save_bundle, write_bundle,
};
pub use codec::{CodecError, FRAME_BYTES_MAX, FRAME_HEAD_BYTES, STORED_VERSION, WIRE_VERSION, frame_length};
pub use context::{BadContext, CLOUD_RANGES_MAX, Clock, Context, ORIGINS_MAX};
pub use error::{Refusal, StorageError, StoreError};
pub use hlc::{CLOCK_LEAD_MAX_MS, Hlc, HlcClock};
pub use id::{BadId, DocKey, Dot, ETag, Incarnation, StoreId};
#[cfg(feature = "mutations")]
pub use mutation::Mutation;
pub use op::{Change, Limits, Op, OpFault, OpKind, Sections, SignedOp};
pub use recover::{Opened, Recovered, Report, examine, open_frozen, open_or_recover, snapshot_path};
pub use replica::{
    Collected, Conflict, Counters, DocumentView, Edit, GROUP_MAX, Merged, Records, Replica, Revision, Sibling, Summary,
    TOMBSTONE_AGE_MS, WriteMeta, WriteRequest, Written,
};
pub use sign::{Author, Authority, OriginRecord};
pub use sync::{SyncConfig, SyncError, SyncOutcome, SyncProgress, SyncSession};
