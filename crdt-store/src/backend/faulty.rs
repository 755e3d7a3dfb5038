//! A storage that fails when it is told to, for tests and simulations.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    backend::{Batch, Pairs, Storage, StorageStats},
    error::StorageError,
};

/// How one batch goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It goes well.
    None,
    /// No space is left; nothing happened.
    Full,
    /// The disk answers with an error; nothing happened.
    Io,
    /// Syncing fails; what the disk holds is unknown, and every batch is refused until the database was rebuilt.
    Sync,
    /// The power goes before the batch reached the disk. The handle is dead from then on.
    CrashBefore,
    /// The power goes after the batch reached the disk and before anyone heard of it. The handle is dead from then on.
    CrashAfter,
}

/// A storage around another that takes one planned fault per batch; without a plan all goes well.
#[derive(Debug)]
pub struct FaultyStorage<S> {
    inner: S,
    plan: Plan,
    is_dead: bool,
    is_broken: bool,
}

/// The faults to come, shared with the test that plans them.
#[derive(Debug, Clone, Default)]
pub struct Plan(Arc<Mutex<VecDeque<Fault>>>);

impl Plan {
    /// Adds a fault for the batch after those planned already.
    pub fn push(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(fault);
    }

    fn pop(&self) -> Fault {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(Fault::None)
    }
}

impl<S: Storage> FaultyStorage<S> {
    /// Wraps a storage; the plan says what goes wrong.
    pub fn new(inner: S) -> (Self, Plan) {
        let plan = Plan::default();
        (Self { inner, plan: plan.clone(), is_dead: false, is_broken: false }, plan)
    }
}

impl<S: Storage> Storage for FaultyStorage<S> {
    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        if self.is_dead {
            return Err(failed());
        }
        if self.is_broken {
            return Err(StorageError::ReadOnly);
        }
        match self.plan.pop() {
            Fault::None => self.inner.apply(batch),
            Fault::Full => Err(StorageError::Full),
            Fault::Io => Err(failed()),
            Fault::Sync => {
                self.is_broken = true;
                Err(failed())
            }
            Fault::CrashBefore => {
                self.is_dead = true;
                Err(failed())
            }
            Fault::CrashAfter => {
                self.is_dead = true;
                self.inner.apply(batch)?;
                Err(failed())
            }
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.inner.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        self.inner.scan(prefix)
    }

    fn boot_mark(&self) -> Result<Option<[u8; 16]>, StorageError> {
        self.inner.boot_mark()
    }

    fn set_boot_mark(&mut self, mark: [u8; 16]) -> Result<(), StorageError> {
        self.inner.set_boot_mark(mark)
    }

    fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Takes a planned fault as a batch does; only [`Fault::None`] lets it succeed.
    fn rebuild(&mut self, all: &Batch, mark: [u8; 16]) -> Result<(), StorageError> {
        if self.is_dead {
            return Err(failed());
        }
        match self.plan.pop() {
            Fault::None => {
                self.inner.rebuild(all, mark)?;
                self.is_broken = false;
                Ok(())
            }
            Fault::Full => Err(StorageError::Full),
            Fault::Io | Fault::Sync => Err(failed()),
            Fault::CrashBefore => {
                self.is_dead = true;
                Err(failed())
            }
            Fault::CrashAfter => {
                self.is_dead = true;
                self.inner.rebuild(all, mark)?;
                Err(failed())
            }
        }
    }

    fn rest(&mut self) {
        self.inner.rest();
    }

    fn compact(&mut self, kept: &Batch) -> Result<(), StorageError> {
        self.inner.compact(kept)
    }

    fn stats(&self) -> StorageStats {
        self.inner.stats()
    }

    fn close(self: Box<Self>) -> Result<(), StorageError> {
        Box::new(self.inner).close()
    }
}

fn failed() -> StorageError {
    StorageError::Io { doing: "planned fault", source: io::ErrorKind::Other.into() }
}
