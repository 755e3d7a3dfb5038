//! What is on disk, key by key, and how it is read back and checked.
//!
//! `m` is the meta record, `o` + dot a live op, `k` + incarnation an origin, `i` + key an idempotency key's outcome,
//! `r` + table, NUL, key a record of the node. Every value is a frame with a checksum. Registers are not stored: they
//! follow from the live ops, and the root in the meta record proves that none of them is missing or altered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Batch, Storage},
    codec::{self, CodecError, Kind, blob},
    context::{Context, ContextImage},
    error::StoreError,
    hlc::{Hlc, HlcClock},
    id::{Dot, Incarnation, StoreId},
    op::{self, Limits, SignedOp},
    replica::idempotency::Outcomes,
    sign::{Author, OriginRecord},
    store::{Delta, Held, Store},
};

const META: &[u8] = b"m";
const OP: &[u8] = b"o";
const ORIGIN: &[u8] = b"k";
/// Prefix of idempotency outcomes.
pub(crate) const IDEMPOTENCY: &[u8] = b"i";
/// Prefix of the node's records.
pub(crate) const RECORD: &[u8] = b"r";

/// The one record that ties all others together; written in every batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    id: StoreId,
    pub(crate) incarnation: Incarnation,
    pub(crate) counter: u64,
    pub(crate) boot_mark: [u8; 16],
    hlc: Hlc,
    root: [u8; 16],
    context: ContextImage,
}

impl Meta {
    pub(crate) fn new(store: &Store, incarnation: Incarnation, counter: u64, boot_mark: [u8; 16]) -> Self {
        Self {
            id: store.id.clone(),
            incarnation,
            counter,
            boot_mark,
            hlc: store.clock.last(),
            root: store.root(),
            context: store.context.image(usize::MAX),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredOp {
    signed: SignedOp,
    is_clock_suspect: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredOrigin {
    record: OriginRecord,
    author: Author,
}

/// A node's record, so that it carries version and checksum like all else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredRecord {
    #[serde(with = "blob")]
    pub(crate) value: Vec<u8>,
}

/// The batch of one transaction.
pub(crate) fn batch(store: &Store, meta: &Meta, delta: &Delta, extra: Batch) -> Result<Batch, StoreError> {
    let mut batch = extra;
    for dot in &delta.added {
        let Some(held) = store.held(*dot) else { continue };
        let stored = StoredOp { signed: held.signed.clone(), is_clock_suspect: held.is_clock_suspect };
        batch.put(op_key(*dot), codec::encode_stored(Kind::Op, &stored).map_err(|error| unencodable(&error))?);
    }
    for dot in &delta.removed {
        batch.delete(op_key(*dot));
    }
    for incarnation in &delta.origins {
        let Some(origin) = store.origin(incarnation) else { continue };
        let stored = StoredOrigin { record: origin.record.clone(), author: origin.author.clone() };
        let key = [ORIGIN, incarnation.as_bytes()].concat();
        batch.put(key, codec::encode_stored(Kind::Origin, &stored).map_err(|error| unencodable(&error))?);
    }
    batch.put(META.to_vec(), codec::encode_stored(Kind::Meta, meta).map_err(|error| unencodable(&error))?);
    Ok(batch)
}

/// Everything that a database holds.
pub(crate) struct Loaded {
    pub(crate) store: Store,
    /// `None` for a new database.
    pub(crate) meta: Option<Meta>,
    pub(crate) records: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) outcomes: Outcomes,
}

/// Reads and checks a whole database.
pub(crate) fn load(storage: &dyn Storage, id: StoreId, limits: Limits) -> Result<Loaded, StoreError> {
    let mut store = Store::new(id, limits);
    let meta = storage.get(META)?.map(|bytes| codec::decode_stored::<Meta>(Kind::Meta, &bytes)).transpose();
    let meta = meta.map_err(|error| unreadable("meta record", &error))?;
    let Some(meta) = meta else {
        if storage.scan(&[])?.is_empty() {
            return Ok(Loaded { store, meta: None, records: BTreeMap::new(), outcomes: Outcomes::default() });
        }
        return Err(StoreError::Damaged("records without the meta record".to_owned()));
    };
    if meta.id != store.id {
        return Err(StoreError::OtherStore { found: format!("{}/{}", meta.id.mesh, meta.id.store) });
    }
    let context = Context::from_image(&meta.context).map_err(|error| StoreError::Damaged(error.to_string()))?;
    load_origins(storage, &mut store)?;
    load_ops(storage, &mut store, &context)?;
    store.context = context;
    store.clock = HlcClock::new(meta.hlc);
    if store.root() != meta.root {
        return Err(StoreError::Damaged("documents do not add up to the stored root".to_owned()));
    }
    // Nobody but us writes under our life, and we write without gaps.
    if store.context.highest(&meta.incarnation) != meta.counter {
        return Err(StoreError::Damaged("own counter and causal context disagree".to_owned()));
    }
    let records = load_records(storage)?;
    let outcomes = Outcomes::load(storage)?;
    Ok(Loaded { store, meta: Some(meta), records, outcomes })
}

fn load_origins(storage: &dyn Storage, store: &mut Store) -> Result<(), StoreError> {
    for (key, bytes) in storage.scan(ORIGIN)? {
        let stored: StoredOrigin =
            codec::decode_stored(Kind::Origin, &bytes).map_err(|error| unreadable("origin", &error))?;
        if key.strip_prefix(ORIGIN) != Some(stored.record.incarnation.as_bytes().as_slice()) {
            return Err(StoreError::Damaged("an origin lies under another's key".to_owned()));
        }
        store.add_origin(stored.record, stored.author);
    }
    Ok(())
}

fn load_ops(storage: &dyn Storage, store: &mut Store, context: &Context) -> Result<(), StoreError> {
    let mut count = 0;
    for (key, bytes) in storage.scan(OP)? {
        let stored: StoredOp = codec::decode_stored(Kind::Op, &bytes).map_err(|error| unreadable("op", &error))?;
        let op = op::decode(&store.id, &stored.signed.bytes, &Limits::none())
            .map_err(|fault| StoreError::Damaged(format!("stored op: {fault}")))?;
        let dot = op.dot;
        if key != op_key(dot) {
            return Err(StoreError::Damaged("an op lies under another's key".to_owned()));
        }
        if !context.contains(dot) || store.origin(&dot.origin).is_none() {
            return Err(StoreError::Damaged(format!("op {dot} is stored but not accounted for")));
        }
        store.enter(Held::new(op, stored.signed, stored.is_clock_suspect));
        count += 1;
    }
    if store.ops().count() != count {
        return Err(StoreError::Damaged("superseded ops are stored as live".to_owned()));
    }
    Ok(())
}

fn load_records(storage: &dyn Storage) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StoreError> {
    let mut records = BTreeMap::new();
    for (key, bytes) in storage.scan(RECORD)? {
        let stored: StoredRecord =
            codec::decode_stored(Kind::Record, &bytes).map_err(|error| unreadable("record", &error))?;
        records.insert(key, stored.value);
    }
    Ok(records)
}

/// Why a record does not fit its frame; only a context of very many origins and gaps comes near.
pub(crate) fn unencodable(error: &CodecError) -> StoreError {
    tracing::error!(%error, "a record does not encode");
    StoreError::TooLarge { what: "bytes of one stored record", max: codec::FRAME_BYTES_MAX }
}

/// Why a record does not read: a newer format is not damage.
pub(crate) fn unreadable(what: &str, error: &CodecError) -> StoreError {
    match error {
        CodecError::Version { .. } => StoreError::Newer,
        other => StoreError::Damaged(format!("{what}: {other}")),
    }
}

fn op_key(dot: Dot) -> Vec<u8> {
    [OP, dot.origin.as_bytes(), &dot.counter.to_be_bytes()].concat()
}
