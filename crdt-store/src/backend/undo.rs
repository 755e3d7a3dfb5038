//! Changes laid over a database: those that it has not heard of yet, and those that hide a failed batch, which may have
//! reached the disk all the same.

use std::collections::BTreeMap;

use crate::backend::Pairs;
#[cfg(any(test, feature = "redb"))]
use crate::{backend::Batch, error::StorageError};

/// Values by the caller's keys; `None` where there is none.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The opposite of the last failed batch. It is written together with the next batch, and reads see the database
/// through it, so that a failed batch is never seen. Empty after a success.
#[cfg(any(test, feature = "redb"))]
#[derive(Debug, Default)]
pub(super) struct Undo(Changes);

/// A batch with the undo before it, and what undoes both should they fail.
#[cfg(any(test, feature = "redb"))]
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) wanted: Changes,
    before: Changes,
}

#[cfg(any(test, feature = "redb"))]
impl Undo {
    /// What to write for a batch; `get` reads the database itself.
    pub(super) fn attempt(
        &self,
        batch: &Batch,
        get: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StorageError>,
    ) -> Result<Attempt, StorageError> {
        let mut wanted = self.0.clone();
        wanted.extend(batch.changes().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))));
        // What was there before, as callers know it: the undo of an earlier failure hides what that one left.
        let mut before = Changes::new();
        for key in wanted.keys() {
            let value = match self.0.get(key) {
                Some(value) => value.clone(),
                None => get(key)?,
            };
            before.insert(key.clone(), value);
        }
        Ok(Attempt { wanted, before })
    }

    /// The attempt failed.
    pub(super) fn failed(&mut self, attempt: Attempt) {
        self.0 = attempt.before;
    }

    /// An attempt succeeded, or the whole database was written anew.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The value of a key where the undo speaks about it.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.0.get(key)
    }

    /// What the database holds below `prefix`, as callers know it.
    pub(super) fn overlay(&self, prefix: &[u8], pairs: BTreeMap<Vec<u8>, Vec<u8>>) -> Pairs {
        overlay(&self.0, prefix, pairs)
    }
}

/// What is found below `prefix` once changes are laid over what is there.
pub(super) fn overlay(changes: &Changes, prefix: &[u8], mut pairs: BTreeMap<Vec<u8>, Vec<u8>>) -> Pairs {
    for (key, value) in changes.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix)) {
        match value {
            Some(value) => pairs.insert(key.clone(), value.clone()),
            None => pairs.remove(key),
        };
    }
    pairs.into_iter().collect()
}
