//! The whole state at once: written into a fresh database, or picked out of a damaged one pair by pair.

use crate::{
    backend::Batch,
    codec::{self, Kind},
    error::StoreError,
    id::StoreId,
    op::{self, Limits, SignedOp},
    replica::{
        Replica,
        keep::{self, HISTORY, META, Meta, OP, ORIGIN, RECORD, StoredOp, StoredOrigin, StoredRecord, unencodable},
    },
    sign::OriginRecord,
    store::Delta,
};

impl Replica {
    /// True where the storage takes no writes until [`Replica::rebuild`] succeeds: a sync to disk failed, or the
    /// database was found damaged while in use. What is in memory is all that was acknowledged.
    #[must_use]
    pub fn needs_rebuild(&self) -> bool {
        self.storage.is_broken()
    }

    /// Writes the whole state into a fresh database that takes the place of the one in use; writes are taken again
    /// when it returns `Ok`. It writes everything, so a caller leaves a few seconds between two attempts.
    ///
    /// # Errors
    /// What the storage says; then nothing has changed, and it may be tried again.
    pub fn rebuild(&mut self) -> Result<(), StoreError> {
        let all = self.whole()?;
        self.storage.rebuild(&all, self.boot_mark).map_err(|error| {
            self.counters.storage_failures += 1;
            error.into()
        })
    }

    /// Lets go of the memory that the storage took for reading and writing. To be called now and then.
    pub fn rest(&mut self) {
        self.storage.rest();
    }

    /// Tells the storage that a durable copy of everything lies elsewhere (a bundle, written just now): it lets go of what
    /// it kept for the case that its database does not open, and of the memory that writing took. A node does so with
    /// each snapshot; without it the journal of the storage grows to its limit.
    ///
    /// # Errors
    /// What the storage says; nothing is lost, and it may be tried again.
    pub fn compact(&mut self) -> Result<(), StoreError> {
        // No bundle has the node's own records.
        let mut kept = Batch::new();
        for (key, value) in &self.records {
            kept.put(key.clone(), encode_record(value)?);
        }
        Ok(self.storage.compact(&kept)?)
    }

    /// Every pair of a database that holds this state.
    fn whole(&self) -> Result<Batch, StoreError> {
        let mut batch = Batch::new();
        for (key, value) in &self.records {
            batch.put(key.clone(), encode_record(value)?);
        }
        self.outcomes.store_all(&mut batch)?;
        self.readable_history(&mut batch);
        let everything = Delta {
            added: self.store.ops().map(|held| held.dot).collect(),
            marked: self.store.ops().filter(|held| !held.gone.is_empty()).map(|held| held.dot).collect(),
            origins: self.store.origins().copied().collect(),
            ..Delta::default()
        };
        let meta = Meta::new(&self.store, self.life.incarnation, self.life.counter, self.boot_mark);
        keep::batch(&self.store, &meta, &everything, true, batch)
    }

    /// The history lies on disk alone: as much of it as the old database still gives, up to a limit. It helps people and
    /// nothing depends on it.
    fn readable_history(&self, batch: &mut Batch) {
        let mut room = HISTORY_BYTES_MAX;
        for (key, value) in self.storage.scan(HISTORY).unwrap_or_default() {
            let Some(left) = room.checked_sub(key.len() + value.len()) else {
                tracing::warn!("part of the policy history is left behind in the old database");
                return;
            };
            room = left;
            batch.put(key, value);
        }
    }

    /// Puts back records of the node, by their keys on disk, in one durable batch; those that are here stay.
    pub(crate) fn restore_records(&mut self, records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<usize, StoreError> {
        let mut batch = Batch::new();
        let mut fresh = Vec::new();
        for (key, value) in records {
            if key.starts_with(RECORD) && !self.records.contains_key(&key) {
                batch.put(key.clone(), encode_record(&value)?);
                fresh.push((key, value));
            }
        }
        if fresh.is_empty() {
            return Ok(0);
        }
        self.storage.apply(&batch)?;
        let count = fresh.len();
        self.records.extend(fresh);
        Ok(count)
    }
}

/// Bytes of history that are carried over into a database written anew.
const HISTORY_BYTES_MAX: usize = 8 << 20;

/// What one pair of a database holds.
#[derive(Debug)]
pub(crate) enum Stored {
    /// The meta record, intact.
    Meta,
    /// An op, with its canonical bytes read and not yet verified.
    Op(SignedOp),
    /// The record of an origin, not yet verified.
    Origin(OriginRecord),
    /// A record of the node.
    Record(Vec<u8>),
    /// Something intact that only the replica needs.
    Other,
}

/// Reads one pair by itself; says what is wrong with it.
pub(crate) fn stored(id: &StoreId, key: &[u8], bytes: &[u8]) -> Result<Stored, String> {
    let told = |error: codec::CodecError| error.to_string();
    if key == META {
        return codec::decode_stored::<Meta>(Kind::Meta, bytes).map(|_| Stored::Meta).map_err(told);
    }
    if key.starts_with(OP) {
        let stored: StoredOp = codec::decode_stored(Kind::Op, bytes).map_err(told)?;
        let op = op::decode(id, &stored.signed.bytes, &Limits::none()).map_err(|fault| fault.to_string())?;
        let is_at_home = keep::op_key(op.dot) == key;
        return if is_at_home { Ok(Stored::Op(stored.signed)) } else { Err("lies under another's key".to_owned()) };
    }
    if key.starts_with(ORIGIN) {
        let stored: StoredOrigin = codec::decode_stored(Kind::Origin, bytes).map_err(told)?;
        return Ok(Stored::Origin(stored.record));
    }
    if key.starts_with(RECORD) {
        let stored: StoredRecord = codec::decode_stored(Kind::Record, bytes).map_err(told)?;
        return Ok(Stored::Record(stored.value));
    }
    codec::check_stored(bytes).map(|()| Stored::Other).map_err(told)
}

fn encode_record(value: &[u8]) -> Result<Vec<u8>, StoreError> {
    let stored = StoredRecord { value: value.to_vec() };
    codec::encode_stored(Kind::Record, &stored).map_err(|error| unencodable(&error))
}

/// A stored op as somebody without the key could write it: another signature, a right checksum.
#[cfg(test)]
pub(crate) fn forged(bytes: &[u8]) -> Vec<u8> {
    let mut stored: StoredOp = codec::decode_stored(Kind::Op, bytes).expect("a stored op");
    stored.signed.signature[0] ^= 1;
    codec::encode_stored(Kind::Op, &stored).expect("encodes")
}

#[cfg(test)]
mod tests;
