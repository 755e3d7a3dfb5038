//! What is on disk, key by key, and how it is read back and checked.
//!
//! `m` is the meta record, `o` + dot a live op, `k` + incarnation an origin, `i` + key an idempotency key's outcome,
//! `r` + table, NUL, key a record of the node, `f` the floor, `x` + dot the marks of a live op, `h` + document, stamp, dot
//! a change in the history. Every value is a frame with a checksum. Registers are not stored: they
//! follow from the live ops and their marks, and the root in the meta record proves that no edit is missing or altered.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Batch, Storage},
    codec::{self, CodecError, Kind, blob, bounded},
    context::{Clock, Context, ContextImage, ORIGINS_MAX},
    error::StoreError,
    hlc::{Hlc, HlcClock},
    id::{Dot, Incarnation, StoreId},
    op::{self, Limits, SignedOp},
    replica::idempotency::Outcomes,
    sign::{Author, OriginRecord},
    store::{Delta, Held, Store, covers},
};

pub(super) const META: &[u8] = b"m";
pub(super) const OP: &[u8] = b"o";
pub(super) const ORIGIN: &[u8] = b"k";
const FLOOR: &[u8] = b"f";
const MARKS: &[u8] = b"x";
/// Prefix of the history.
pub(crate) const HISTORY: &[u8] = b"h";
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
pub(super) struct StoredOp {
    pub(super) signed: SignedOp,
    is_clock_suspect: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredOrigin {
    pub(super) record: OriginRecord,
    author: Author,
}

/// How today's root is made; databases of before have no floor record and a root that covers deletions beside edits.
const ROOT_VERSION: u8 = 2;

/// Up to where tombstones were collected. Written by the first batch of a program that collects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredFloor {
    root_version: u8,
    #[serde(deserialize_with = "bounded::<_, _, ORIGINS_MAX>")]
    floor: Vec<(Incarnation, u64)>,
}

/// Places of an op's changes that do not count any more, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredMarks {
    #[serde(deserialize_with = "bounded::<_, _, MARKS_MAX>")]
    gone: Vec<u16>,
}

/// Changes that an op may have, whatever the limits.
const MARKS_MAX: usize = 65_536;

/// A node's record, so that it carries version and checksum like all else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredRecord {
    #[serde(with = "blob")]
    pub(crate) value: Vec<u8>,
}

/// The batch of one transaction; with `has_floor` the floor is written whether or not it rose.
pub(crate) fn batch(
    store: &Store,
    meta: &Meta,
    delta: &Delta,
    has_floor: bool,
    extra: Batch,
) -> Result<Batch, StoreError> {
    let mut batch = extra;
    if has_floor || delta.has_floor {
        let floor = store.floor.dots.iter().map(|(origin, counter)| (*origin, *counter)).collect();
        let stored = StoredFloor { root_version: ROOT_VERSION, floor };
        let bytes = codec::encode_stored(Kind::Floor, &stored).map_err(|error| unencodable(&error))?;
        batch.put(FLOOR.to_vec(), bytes);
    }
    for dot in &delta.marked {
        let Some(held) = store.held(*dot) else { continue };
        let stored = StoredMarks { gone: held.gone.iter().filter_map(|at| u16::try_from(*at).ok()).collect() };
        let bytes = codec::encode_stored(Kind::Marks, &stored).map_err(|error| unencodable(&error))?;
        batch.put(dot_key(MARKS, *dot), bytes);
    }
    for dot in &delta.unmarked {
        batch.delete(dot_key(MARKS, *dot));
    }
    for dot in &delta.added {
        let Some(held) = store.held(*dot) else { continue };
        let stored = StoredOp { signed: held.signed.clone(), is_clock_suspect: held.is_clock_suspect };
        batch.put(dot_key(OP, *dot), codec::encode_stored(Kind::Op, &stored).map_err(|error| unencodable(&error))?);
    }
    for dot in &delta.removed {
        batch.delete(dot_key(OP, *dot));
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
    /// True where the floor is on disk.
    pub(crate) has_floor: bool,
}

/// Reads and checks a whole database.
pub(crate) fn load(storage: &dyn Storage, id: StoreId, limits: Limits) -> Result<Loaded, StoreError> {
    let mut store = Store::new(id, limits);
    let meta = storage.get(META)?.map(|bytes| codec::decode_stored::<Meta>(Kind::Meta, &bytes)).transpose();
    let meta = meta.map_err(|error| unreadable("meta record", &error))?;
    let Some(meta) = meta else {
        if storage.scan(&[])?.is_empty() {
            let (records, outcomes) = (BTreeMap::new(), Outcomes::default());
            return Ok(Loaded { store, meta: None, records, outcomes, has_floor: false });
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
    let floor = load_floor(storage, &store)?;
    let has_floor = floor.is_some();
    store.floor = floor.unwrap_or_default();
    let root = if has_floor { store.root() } else { store.root_with_graves() };
    if root != meta.root {
        return Err(StoreError::Damaged("documents do not add up to the stored root".to_owned()));
    }
    // Nobody but us writes under our life, and we write without gaps.
    if store.context.highest(&meta.incarnation) != meta.counter {
        return Err(StoreError::Damaged("own counter and causal context disagree".to_owned()));
    }
    let records = load_records(storage)?;
    let outcomes = Outcomes::load(storage)?;
    Ok(Loaded { store, meta: Some(meta), records, outcomes, has_floor })
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
    let mut marks = load_marks(storage)?;
    for (key, bytes) in storage.scan(OP)? {
        let stored: StoredOp = codec::decode_stored(Kind::Op, &bytes).map_err(|error| unreadable("op", &error))?;
        let op = op::decode(&store.id, &stored.signed.bytes, &Limits::none())
            .map_err(|fault| StoreError::Damaged(format!("stored op: {fault}")))?;
        let dot = op.dot;
        if key != dot_key(OP, dot) {
            return Err(StoreError::Damaged("an op lies under another's key".to_owned()));
        }
        if !context.contains(dot) || store.origin(&dot.origin).is_none() {
            return Err(StoreError::Damaged(format!("op {dot} is stored but not accounted for")));
        }
        let gone = marks.remove(&dot_key(MARKS, dot)).unwrap_or_default();
        if gone.last().is_some_and(|last| *last >= op.changes.len()) {
            return Err(StoreError::Damaged(format!("marks of {dot} name changes that it does not have")));
        }
        let mut held = Held::new(&op, stored.signed, stored.is_clock_suspect);
        held.gone = gone;
        store.enter(op, held);
        count += 1;
    }
    if !marks.is_empty() {
        return Err(StoreError::Damaged("marks of an op that is not stored".to_owned()));
    }
    if store.ops().count() != count {
        return Err(StoreError::Damaged("superseded ops are stored as live".to_owned()));
    }
    Ok(())
}

/// The floor; `None` in a database of before there was one.
fn load_floor(storage: &dyn Storage, store: &Store) -> Result<Option<Clock>, StoreError> {
    let Some(bytes) = storage.get(FLOOR)? else {
        let is_used = |prefix: &[u8]| Ok::<_, StoreError>(!storage.scan(prefix)?.is_empty());
        // The history of a large store is read in slices.
        let mut has_history = false;
        for slice in 0..=u8::MAX {
            has_history = has_history || is_used(&[HISTORY, &[slice]].concat())?;
        }
        if has_history || is_used(MARKS)? {
            return Err(StoreError::Damaged("the record of the floor is missing".to_owned()));
        }
        return Ok(None);
    };
    let stored: StoredFloor = codec::decode_stored(Kind::Floor, &bytes).map_err(|error| unreadable("floor", &error))?;
    if stored.root_version != ROOT_VERSION {
        return Err(StoreError::Newer);
    }
    let floor = Clock { dots: stored.floor.into_iter().collect() };
    if !covers(store.context.clock(), &floor) {
        return Err(StoreError::Damaged("floor lies beyond what was seen".to_owned()));
    }
    Ok(Some(floor))
}

/// Marks by their key on disk.
fn load_marks(storage: &dyn Storage) -> Result<BTreeMap<Vec<u8>, BTreeSet<usize>>, StoreError> {
    let mut marks = BTreeMap::new();
    for (key, bytes) in storage.scan(MARKS)? {
        let stored: StoredMarks =
            codec::decode_stored(Kind::Marks, &bytes).map_err(|error| unreadable("marks", &error))?;
        marks.insert(key, stored.gone.into_iter().map(usize::from).collect());
    }
    Ok(marks)
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

/// Where a live op lies.
pub(super) fn op_key(dot: Dot) -> Vec<u8> {
    dot_key(OP, dot)
}

fn dot_key(prefix: &[u8], dot: Dot) -> Vec<u8> {
    [prefix, dot.origin.as_bytes(), &dot.counter.to_be_bytes()].concat()
}

/// Reads bytes as each kind of record, for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_stored(data: &[u8]) {
    use crate::{
        fuzzing::record,
        replica::{history::StoredRevision, idempotency::Outcome},
    };

    record::<Meta>(Kind::Meta, data);
    record::<StoredOrigin>(Kind::Origin, data);
    record::<StoredOp>(Kind::Op, data);
    record::<Outcome>(Kind::Idempotency, data);
    record::<StoredRecord>(Kind::Record, data);
    record::<StoredFloor>(Kind::Floor, data);
    record::<StoredMarks>(Kind::Marks, data);
    record::<StoredRevision>(Kind::Revision, data);
}
