//! Where bytes are kept: an ordered map with durable batches. The only folder that opens a database.

mod faulty;
pub(crate) mod folder;
pub(crate) mod frozen;
mod journal;
mod memory;
#[cfg(any(test, feature = "redb"))]
mod redb;
mod sled;
mod undo;

use std::{collections::BTreeMap, fmt};

pub use faulty::{Fault, FaultyStorage, Plan};
pub use memory::{Disk, MemoryStorage};

#[cfg(any(test, feature = "redb"))]
pub use self::redb::RedbStorage;
pub use self::sled::SledStorage;
use crate::error::StorageError;

/// An ordered map of byte strings, written in durable batches.
///
/// One handle per database, used from one thread. Keys are at most 1 KiB, values at most 1 MiB.
pub trait Storage: Send + fmt::Debug {
    /// Applies a batch: when it returns `Ok`, all of it survives a power cut.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing of the batch is visible through this handle, and the next batch may succeed. After a
    /// crash in between, the batch may be found there whole or not at all.
    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError>;

    /// The value of a key.
    ///
    /// # Errors
    /// [`StorageError`] where it cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// All pairs whose key begins with `prefix`, by ascending key.
    ///
    /// # Errors
    /// [`StorageError`] where they cannot be read.
    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError>;

    /// The mark left beside the database by the last opening, `None` for none. The same mark is kept inside: where
    /// they differ, the database was put back from a copy.
    ///
    /// # Errors
    /// [`StorageError`] where it cannot be read.
    fn boot_mark(&self) -> Result<Option<[u8; 16]>, StorageError>;

    /// Leaves a new mark beside the database, durably.
    ///
    /// # Errors
    /// [`StorageError`]; then the old mark, or none, is there.
    fn set_boot_mark(&mut self, mark: [u8; 16]) -> Result<(), StorageError>;

    /// True where a failure left unknown what the disk holds: every batch is refused with [`StorageError::ReadOnly`]
    /// until [`Storage::rebuild`] succeeds.
    fn is_broken(&self) -> bool {
        false
    }

    /// Writes a fresh database that holds `all` and nothing else, with `mark` as its boot mark, and puts it in the place
    /// of the one in use, which is set aside. A crash in between leaves the one or the other.
    ///
    /// # Errors
    /// [`StorageError`]; then all is as it was, and it may be tried again. A storage that cannot do it says
    /// [`StorageError::ReadOnly`].
    fn rebuild(&mut self, all: &Batch, mark: [u8; 16]) -> Result<(), StorageError> {
        let _not_here = (all, mark);
        Err(StorageError::ReadOnly)
    }

    /// Lets go of the memory that reading and writing took; the next call that needs it takes it again.
    fn rest(&mut self) {}

    /// Somebody has a durable copy of everything but `kept`, pairs that are in the database as well: what was held for the
    /// case that the database does not open may go, down to these, and with it the memory that writing took.
    ///
    /// # Errors
    /// [`StorageError`]; nothing is lost, and it may be tried again.
    fn compact(&mut self, kept: &Batch) -> Result<(), StorageError> {
        let _nothing_to_do = kept;
        Ok(())
    }

    /// Sizes, for metrics.
    fn stats(&self) -> StorageStats;

    /// Syncs and closes. Dropping a handle closes it as well, without a word about errors.
    ///
    /// # Errors
    /// [`StorageError`] where the last sync failed; all acknowledged batches are durable anyway.
    fn close(self: Box<Self>) -> Result<(), StorageError>;
}

/// Keys and values, by ascending key.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Changes that happen together; a later change of a key replaces an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Batch {
    /// A batch of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    /// Removes a key; it need not exist.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// True where there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes by key; `None` removes.
    pub fn changes(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.changes.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }
}

/// Sizes of a database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StorageStats {
    /// Bytes on disk, garbage included; 0 in memory.
    pub disk_bytes: u64,
    /// Bytes of them in the journal, which grows until [`Storage::compact`]; 0 where there is none.
    pub journal_bytes: u64,
    /// Durable batches since opening.
    pub batches: u64,
    /// Batches that failed since opening.
    pub failures: u64,
}

#[cfg(test)]
pub(crate) mod tests;
