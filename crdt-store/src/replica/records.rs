//! Small tables that the node keeps for itself: address book, registered instances. Durable, never replicated.

use crate::{
    backend::Batch,
    codec::{self, Kind},
    error::StoreError,
    replica::{
        Replica,
        keep::{RECORD, StoredRecord, unencodable},
    },
};

const TABLE_BYTES_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 512;
const VALUE_BYTES_MAX: usize = 64 << 10;

/// The node's own tables. All of it is in memory as well, so reading cannot fail.
#[derive(Debug)]
pub struct Records<'a> {
    replica: &'a mut Replica,
}

impl<'a> Records<'a> {
    pub(super) fn new(replica: &'a mut Replica) -> Self {
        Self { replica }
    }

    /// Sets a record; durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for a table name over 64 bytes, a key over 512, a value over 64 KiB, or all records
    /// together over the limit; [`StoreError::Invalid`] for a table name that is empty or has a NUL; the storage's
    /// errors. The old value, or none, is then still there.
    pub fn put_record(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let disk_key = disk_key(table, key)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(StoreError::TooLarge { what: "bytes of a record", max: VALUE_BYTES_MAX });
        }
        let held = |(key, value): (&Vec<u8>, &Vec<u8>)| key.len() + value.len();
        let all: usize = self.replica.records.iter().filter(|(other, _)| **other != disk_key).map(held).sum();
        let max = self.replica.store.limits.record_bytes;
        if all + disk_key.len() + value.len() > max {
            return Err(StoreError::TooLarge { what: "bytes of all records", max });
        }
        let stored = StoredRecord { value: value.to_vec() };
        let bytes = codec::encode_stored(Kind::Record, &stored).map_err(|error| unencodable(&error))?;
        let mut batch = Batch::new();
        batch.put(disk_key.clone(), bytes);
        self.apply(&batch)?;
        self.replica.records.insert(disk_key, stored.value);
        Ok(())
    }

    /// Removes a record; durable when it returns. It need not exist.
    ///
    /// # Errors
    /// As [`Records::put_record`].
    pub fn delete(&mut self, table: &str, key: &[u8]) -> Result<(), StoreError> {
        let disk_key = disk_key(table, key)?;
        if !self.replica.records.contains_key(&disk_key) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.delete(disk_key.clone());
        self.apply(&batch)?;
        self.replica.records.remove(&disk_key);
        Ok(())
    }

    /// The value of a record.
    #[must_use]
    pub fn get(&self, table: &str, key: &[u8]) -> Option<&[u8]> {
        self.replica.records.get(&disk_key(table, key).ok()?).map(Vec::as_slice)
    }

    /// Keys and values of a table, by ascending key.
    pub fn scan(&self, table: &str) -> impl Iterator<Item = (&[u8], &[u8])> {
        let prefix = disk_key(table, &[]).unwrap_or_default();
        let length = prefix.len();
        let from = self.replica.records.range(prefix.clone()..);
        from.take_while(move |(key, _)| length > 0 && key.starts_with(&prefix))
            .map(move |(key, value)| (key.get(length..).unwrap_or_default(), value.as_slice()))
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.replica.storage.apply(batch).map_err(|error| {
            self.replica.counters.storage_failures += 1;
            error.into()
        })
    }
}

fn disk_key(table: &str, key: &[u8]) -> Result<Vec<u8>, StoreError> {
    if table.is_empty() || table.contains('\0') {
        return Err(StoreError::Invalid { what: "name of a table" });
    }
    if table.len() > TABLE_BYTES_MAX {
        return Err(StoreError::TooLarge { what: "bytes of a table's name", max: TABLE_BYTES_MAX });
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(StoreError::TooLarge { what: "bytes of a record's key", max: KEY_BYTES_MAX });
    }
    Ok([RECORD, table.as_bytes(), b"\0", key].concat())
}
