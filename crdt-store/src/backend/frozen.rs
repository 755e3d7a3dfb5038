//! A storage that is read and never written: for looking at a database without leaving a trace in it.

use crate::{
    backend::{Batch, Pairs, Storage, StorageStats},
    error::StorageError,
};

/// A storage around another; what is written to it goes nowhere and is said to have succeeded.
#[derive(Debug)]
pub(crate) struct FrozenStorage<S>(pub(crate) S);

impl<S: Storage> Storage for FrozenStorage<S> {
    fn apply(&mut self, _: &Batch) -> Result<(), StorageError> {
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.0.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        self.0.scan(prefix)
    }

    fn boot_mark(&self) -> Result<Option<[u8; 16]>, StorageError> {
        self.0.boot_mark()
    }

    fn set_boot_mark(&mut self, _: [u8; 16]) -> Result<(), StorageError> {
        Ok(())
    }

    fn stats(&self) -> StorageStats {
        self.0.stats()
    }

    fn close(self: Box<Self>) -> Result<(), StorageError> {
        Box::new(self.0).close()
    }
}
