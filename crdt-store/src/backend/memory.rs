//! Storage in memory, for tests and simulations: its disk outlives the handle, as a real one outlives the process.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    backend::{Batch, Pairs, Storage, StorageStats},
    error::StorageError,
};

/// What a [`MemoryStorage`] writes to. Clones share the content; [`Disk::copy`] does not.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Content>>);

#[derive(Debug, Clone, Default)]
struct Content {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    boot_mark: Option<[u8; 16]>,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A backup: the database without the mark beside it.
    #[must_use]
    pub fn copy(&self) -> Self {
        let content = Content { map: self.lock().map.clone(), boot_mark: None };
        Self(Arc::new(Mutex::new(content)))
    }

    /// The pairs in it, for tests that damage them.
    #[must_use]
    pub fn pairs(&self) -> Pairs {
        self.lock().map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Overwrites one value behind the store's back, or removes it.
    pub fn damage(&self, key: &[u8], value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.lock().map.insert(key.to_vec(), value),
            None => self.lock().map.remove(key),
        };
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // A panic while the lock was held cannot leave half a change: each is one call on the map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A storage that forgets with the last clone of its disk.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    disk: Disk,
    stats: StorageStats,
}

impl MemoryStorage {
    /// A storage on an empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A storage on a disk that may hold something already.
    #[must_use]
    pub fn on(disk: &Disk) -> Self {
        Self { disk: disk.clone(), stats: StorageStats::default() }
    }
}

impl Storage for MemoryStorage {
    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        let mut content = self.disk.lock();
        for (key, value) in batch.changes() {
            match value {
                Some(value) => content.map.insert(key.to_vec(), value.to_vec()),
                None => content.map.remove(key),
            };
        }
        self.stats.batches += 1;
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.disk.lock().map.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        let content = self.disk.lock();
        let from = content.map.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        Ok(from
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn boot_mark(&self) -> Result<Option<[u8; 16]>, StorageError> {
        Ok(self.disk.lock().boot_mark)
    }

    fn set_boot_mark(&mut self, mark: [u8; 16]) -> Result<(), StorageError> {
        self.disk.lock().boot_mark = Some(mark);
        Ok(())
    }

    fn rebuild(&mut self, all: &Batch, mark: [u8; 16]) -> Result<(), StorageError> {
        let kept = all.changes().filter_map(|(key, value)| Some((key.to_vec(), value?.to_vec())));
        let map = kept.collect();
        *self.disk.lock() = Content { map, boot_mark: Some(mark) };
        self.stats.batches += 1;
        Ok(())
    }

    fn stats(&self) -> StorageStats {
        self.stats
    }

    fn close(self: Box<Self>) -> Result<(), StorageError> {
        Ok(())
    }
}
