//! What a document was before: a local record of every change that entered here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    backend::{Batch, Storage},
    codec::{self, Kind, blob},
    context::Clock,
    error::StoreError,
    hlc::Hlc,
    id::{DocKey, Dot, Incarnation},
    op::{Change, Op, OpKind, Sections},
    replica::{
        Replica,
        keep::{HISTORY, unencodable},
    },
    root::key_id,
    store::Store,
};

/// A document's history may exceed its limit by this many changes before the oldest are looked for.
const SLACK: usize = 4;
/// Slices of the history, of 256, that one collection looks through; so a whole round takes 16.
const SLICES: u8 = 16;
/// Bytes of a record's key: prefix, document, stamp, dot.
const KEY_BYTES: usize = 1 + 16 + 8 + 24;

/// One change of a document, as it came to be known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// Its op.
    pub dot: Dot,
    /// When it was written.
    pub hlc: Hlc,
    /// What its author meant to do.
    pub kind: OpKind,
    /// Id of the node that wrote it.
    pub author: String,
    /// That node's label.
    pub author_name: String,
    /// Why, in the author's words.
    pub message: String,
    /// The sections it spoke about; empty for a tombstone, which spoke about all.
    pub mask: BTreeSet<String>,
    /// What of the document its author had seen.
    pub past: Clock,
    /// The full document that it left; `None` for a deletion.
    pub body: Option<Sections>,
    /// True where nothing has superseded it in at least one section.
    pub is_live: bool,
}

impl Replica {
    /// The changes of a document that are remembered here, the newest first by their authors' clocks.
    ///
    /// History is an aid for people, not replicated state: a node remembers what it has seen itself, for as long and as
    /// many as the limits say (`history_ms`, `history_revisions`).
    ///
    /// # Errors
    /// Whatever the storage says. A record that does not read is left out.
    pub fn history(&self, key: &DocKey) -> Result<Vec<Revision>, StoreError> {
        let live = self.store.document(key).map(crate::document::Document::live).unwrap_or_default();
        let mut revisions = Vec::new();
        for (_, bytes) in self.storage.scan(&prefix(&key_id(key)))? {
            match codec::decode_stored::<StoredRevision>(Kind::Revision, &bytes) {
                Ok(stored) => revisions.push(stored.revision(&live)),
                Err(error) => tracing::warn!(document = %key, %error, "a record of the history does not read"),
            }
        }
        revisions.reverse();
        Ok(revisions)
    }

    /// One change of a document; `None` where it is not remembered.
    ///
    /// # Errors
    /// As [`Replica::history`].
    pub fn revision(&self, key: &DocKey, dot: Dot) -> Result<Option<Revision>, StoreError> {
        Ok(self.history(key)?.into_iter().find(|revision| revision.dot == dot))
    }

    /// The newest change that the authors of all these live changes had seen: what a person compares both sides of a
    /// conflict with. `None` where none is remembered, no dot is given, or one of them is not live.
    ///
    /// # Errors
    /// As [`Replica::history`].
    pub fn common_ancestor(&self, key: &DocKey, dots: &[Dot]) -> Result<Option<Revision>, StoreError> {
        let past = |dot: &Dot| {
            let held = self.store.held(*dot).filter(|_| self.store.is_live(key, *dot))?;
            held.change(key).map(|change| change.past())
        };
        let Some(pasts) = dots.iter().map(past).collect::<Option<Vec<Clock>>>().filter(|pasts| !pasts.is_empty())
        else {
            return Ok(None);
        };
        let is_seen = |dot: Dot| pasts.iter().all(|past| past.get(&dot.origin) >= dot.counter);
        Ok(self.history(key)?.into_iter().find(|revision| is_seen(revision.dot)))
    }
}

/// How much history each document may have on disk, and where the next look for old records begins.
///
/// A write reads nothing: what a document had when the store was opened is looked at with the age of records, slice by
/// slice, or once it has gathered as many again.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Records by document, at least; those of before the store was opened are not in it until they were looked at.
    counts: HashMap<[u8; 16], usize>,
    slice: u8,
}

/// Counts that hold once the batch is durable.
pub(crate) type Counts = BTreeMap<[u8; 16], usize>;

impl History {
    /// Adds records of what entered to the batch, and removes the oldest where a document has too many.
    pub(crate) fn note(
        &self,
        storage: &dyn Storage,
        store: &Store,
        entered: &[Arc<Op>],
        batch: &mut Batch,
    ) -> Result<Counts, StoreError> {
        let mut counts = Counts::new();
        for op in entered {
            for change in &op.changes {
                let id = key_id(&change.key);
                let count = counts.get(&id).or_else(|| self.counts.get(&id)).copied().unwrap_or_default();
                let stored = StoredRevision::new(store, op, change);
                let bytes = codec::encode_stored(Kind::Revision, &stored).map_err(|error| unencodable(&error))?;
                batch.put(record_key(&id, op.hlc, op.dot), bytes);
                counts.insert(id, count + 1);
            }
        }
        let max = store.limits.history_revisions;
        for (id, count) in counts.iter_mut().filter(|(_, count)| **count > max.saturating_add(SLACK)) {
            let old = keys(storage, &prefix(id));
            // What this batch adds is not in the storage yet.
            let added = batch.changes().filter(|(key, value)| value.is_some() && key.starts_with(&prefix(id))).count();
            let excess = (old.len() + added).saturating_sub(max).min(old.len());
            *count = old.len() + added - excess;
            old.into_iter().take(excess).for_each(|key| batch.delete(key));
        }
        Ok(counts)
    }

    pub(crate) fn commit(&mut self, counts: Counts) {
        self.counts.extend(counts);
    }

    /// Adds to the batch the removal of records that are too old or too many, in the next slices of the history. Returns
    /// how many.
    pub(crate) fn expire(&mut self, storage: &dyn Storage, store: &Store, now_ms: u64, batch: &mut Batch) -> usize {
        let mut removed = 0;
        let is_old =
            |key: &[u8]| stamp(key).is_some_and(|(hlc, _)| now_ms.saturating_sub(hlc.millis) > store.limits.history_ms);
        let by_id = store.keys_by_id();
        for _ in 0..SLICES {
            let mut by_document: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
            for key in keys(storage, &[HISTORY, &[self.slice]].concat()) {
                by_document.entry(key.get(1..17).unwrap_or_default().to_vec()).or_default().push(key);
            }
            self.slice = self.slice.wrapping_add(1);
            for (id, records) in by_document {
                let Ok(id) = <[u8; 16]>::try_from(id) else { continue };
                let excess = records.len().saturating_sub(store.limits.history_revisions);
                if excess == 0 && !records.iter().any(|key| is_old(key)) {
                    continue;
                }
                let document = by_id.get(&id).and_then(|key| store.document(key));
                let live = document.map(crate::document::Document::live).unwrap_or_default();
                let is_live = |key: &Vec<u8>| stamp(key).is_some_and(|(_, dot)| live.contains(&dot));
                // What was there before the edits in force is what a conflict will be compared with.
                let before = records.iter().rev().find(|key| document.is_some() && !is_live(key));
                let mut left = records.len();
                for (place, key) in records.iter().enumerate() {
                    let is_outlived = is_old(key) && !is_live(key) && Some(key) != before;
                    if place < excess || is_outlived {
                        batch.delete(key.clone());
                        left -= 1;
                    }
                }
                removed += records.len() - left;
                self.counts.insert(id, left);
            }
        }
        removed
    }
}

/// The keys of all records with a prefix, the oldest first within a document; none, with a warning, where the disk
/// does not give them: history is no reason to refuse a write.
fn keys(storage: &dyn Storage, prefix: &[u8]) -> Vec<Vec<u8>> {
    match storage.scan(prefix) {
        Ok(pairs) => pairs.into_iter().map(|(key, _)| key).collect(),
        Err(error) => {
            tracing::warn!(%error, "history cannot be read");
            Vec::new()
        }
    }
}

fn prefix(id: &[u8; 16]) -> Vec<u8> {
    [HISTORY, id].concat()
}

fn record_key(id: &[u8; 16], hlc: Hlc, dot: Dot) -> Vec<u8> {
    let millis = hlc.millis.to_be_bytes();
    let stamp = [millis.split_at(2).1, &hlc.counter.to_be_bytes()].concat();
    [HISTORY, id, &stamp, dot.origin.as_bytes(), &dot.counter.to_be_bytes()].concat()
}

/// Time and dot from a record's key; `None` for a key of another shape.
fn stamp(key: &[u8]) -> Option<(Hlc, Dot)> {
    if key.len() != KEY_BYTES {
        return None;
    }
    let (time, dot) = key.get(17..)?.split_at_checked(8)?;
    let (millis, counter) = time.split_at_checked(6)?;
    let millis = u64::from_be_bytes([&[0, 0], millis].concat().try_into().ok()?);
    let (origin, number) = dot.split_at_checked(16)?;
    let origin = Incarnation::from_bytes(origin.try_into().ok()?);
    let hlc = Hlc { millis, counter: u16::from_be_bytes(counter.try_into().ok()?) };
    Some((hlc, Dot::new(origin, u64::from_be_bytes(number.try_into().ok()?))))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredRevision {
    dot: Dot,
    hlc: Hlc,
    /// As in the layout of ops: 1 put, 2 patch, 3 delete, 4 rollback, 5 resolve.
    kind: u8,
    rollback_of: Option<Dot>,
    author: String,
    author_name: String,
    message: String,
    mask: BTreeSet<String>,
    past: Vec<(Incarnation, u64)>,
    body: Option<Vec<StoredSection>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredSection {
    name: String,
    #[serde(with = "blob")]
    value: Bytes,
}

impl StoredRevision {
    fn new(store: &Store, op: &Op, change: &Change) -> Self {
        let author = store.origin(&op.dot.origin).map(|origin| &origin.author);
        let (kind, rollback_of) = match op.kind {
            OpKind::Put => (1, None),
            OpKind::Patch => (2, None),
            OpKind::Delete => (3, None),
            OpKind::Rollback(of) => (4, Some(of)),
            OpKind::Resolve => (5, None),
        };
        let section = |(name, value): (&String, &Bytes)| StoredSection { name: name.clone(), value: value.clone() };
        Self {
            dot: op.dot,
            hlc: op.hlc,
            kind,
            rollback_of,
            author: author.map(|author| author.node.clone()).unwrap_or_default(),
            author_name: author.map(|author| author.name.clone()).unwrap_or_default(),
            message: op.message.clone(),
            mask: change.mask.clone(),
            past: change.past.dots.iter().map(|(origin, counter)| (*origin, *counter)).collect(),
            body: change.body.as_ref().map(|body| body.iter().map(section).collect()),
        }
    }

    fn revision(self, live: &BTreeSet<Dot>) -> Revision {
        let kind = match (self.kind, self.rollback_of) {
            (2, _) => OpKind::Patch,
            (3, _) => OpKind::Delete,
            (4, Some(of)) => OpKind::Rollback(of),
            (5, _) => OpKind::Resolve,
            _ => OpKind::Put,
        };
        Revision {
            dot: self.dot,
            hlc: self.hlc,
            kind,
            author: self.author,
            author_name: self.author_name,
            message: self.message,
            mask: self.mask,
            past: Clock { dots: self.past.into_iter().collect() },
            body: self.body.map(|body| body.into_iter().map(|section| (section.name, section.value)).collect()),
            is_live: live.contains(&self.dot),
        }
    }
}

#[cfg(test)]
mod tests;
