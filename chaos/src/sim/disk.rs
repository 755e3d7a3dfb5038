//! A disk that fails as planned, outlives the process that wrote it, and can be copied with or without the mark that
//! lies beside the database.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crdt_store::{Batch, Fault, Pairs, Storage, StorageError, StorageStats};

/// What a [`SimStorage`] writes to.
#[derive(Debug, Default)]
pub(super) struct SimDisk(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    mark: Option<[u8; 16]>,
    plan: VecDeque<Fault>,
    /// The next mark does not reach the disk; the power goes.
    cuts_mark: bool,
    is_dead: bool,
    /// The last fault that struck, until somebody asks.
    struck: Option<Fault>,
}

impl SimDisk {
    /// Another handle on the same disk.
    pub(super) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// What a backup holds: the database alone.
    pub(super) fn copy(&self) -> Self {
        let content = Content { map: self.lock().map.clone(), ..Content::default() };
        Self(Arc::new(Mutex::new(content)))
    }

    /// What a snapshot of the whole machine holds: the mark beside the database as well.
    pub(super) fn copy_whole(&self) -> Self {
        let whole = self.copy();
        whole.lock().mark = self.lock().mark;
        whole
    }

    /// The storage that a process opens on it; the power is back.
    pub(super) fn open(&self) -> SimStorage {
        self.lock().is_dead = false;
        SimStorage(self.share())
    }

    pub(super) fn plan(&self, fault: Fault) {
        self.lock().plan.push_back(fault);
    }

    pub(super) fn plan_mark_cut(&self) {
        self.lock().cuts_mark = true;
    }

    pub(super) fn forget_plans(&self) {
        let mut content = self.lock();
        content.plan.clear();
        content.cuts_mark = false;
        content.struck = None;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    /// The fault that struck since the last question.
    pub(super) fn take_struck(&self) -> Option<Fault> {
        self.lock().struck.take()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // A panic while the lock was held cannot leave half a change behind that matters: the schedule has failed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle on a [`SimDisk`].
#[derive(Debug)]
pub(super) struct SimStorage(SimDisk);

impl Storage for SimStorage {
    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        let mut content = self.0.lock();
        if content.is_dead {
            return Err(failed());
        }
        let fault = content.plan.pop_front().unwrap_or(Fault::None);
        if matches!(fault, Fault::None | Fault::CrashAfter) {
            for (key, value) in batch.changes() {
                match value {
                    Some(value) => content.map.insert(key.to_vec(), value.to_vec()),
                    None => content.map.remove(key),
                };
            }
        }
        if fault != Fault::None {
            content.struck = Some(fault);
        }
        match fault {
            Fault::None => Ok(()),
            Fault::Full => Err(StorageError::Full),
            Fault::Io | Fault::Sync => Err(failed()),
            Fault::CrashBefore | Fault::CrashAfter => {
                content.is_dead = true;
                Err(failed())
            }
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.0.lock().map.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        let content = self.0.lock();
        let from = content.map.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        let within = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(within.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn boot_mark(&self) -> Result<Option<[u8; 16]>, StorageError> {
        Ok(self.0.lock().mark)
    }

    fn set_boot_mark(&mut self, mark: [u8; 16]) -> Result<(), StorageError> {
        let mut content = self.0.lock();
        if content.cuts_mark {
            content.cuts_mark = false;
            content.is_dead = true;
            content.struck = Some(Fault::CrashBefore);
        }
        if content.is_dead {
            return Err(failed());
        }
        content.mark = Some(mark);
        Ok(())
    }

    fn stats(&self) -> StorageStats {
        StorageStats::default()
    }

    fn close(self: Box<Self>) -> Result<(), StorageError> {
        Ok(())
    }
}

fn failed() -> StorageError {
    StorageError::Io { doing: "planned fault", source: io::ErrorKind::Other.into() }
}
