//! Letting go of tombstones and of old history.

use crate::{backend::Batch, error::StoreError, mutation::Mutation, replica::Replica};

/// The age from which a tombstone is collected unless the operator says otherwise: 7 days, in milliseconds.
///
/// Nothing depends on it for being right. A replica that was away for less is brought up to date by ops alone; one that
/// was away for longer compares what it holds, which costs some kilobytes more.
pub const TOMBSTONE_AGE_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Tombstones that one call lets go of.
const TOMBSTONES_MAX: usize = 1_024;

/// What a collection let go of; durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Tombstones.
    pub tombstones: usize,
    /// Revisions of the history that were older than they are kept.
    pub revisions: usize,
    /// True where there are more tombstones than one call takes; call again soon.
    pub has_more: bool,
}

impl Replica {
    /// Lets go of tombstones that are at least `age_ms` old, and of old history, in one durable batch. `now_ms` are
    /// milliseconds since 1970. One call removes at most 1,024 tombstones and looks through a sixteenth of the history.
    ///
    /// A tombstone goes where its document is wholly deleted and everything that it superseded was seen here; the
    /// floor then rises to it, so that peers who have not seen it compare what they hold with what is here.
    ///
    /// # Errors
    /// Whatever the storage says; then everything is still there.
    pub fn collect(&mut self, now_ms: u64, age_ms: u64) -> Result<Collected, StoreError> {
        let mut tombstones = self.store.collectable(now_ms, age_ms, TOMBSTONES_MAX + 1);
        let has_more = tombstones.len() > TOMBSTONES_MAX;
        tombstones.truncate(TOMBSTONES_MAX);
        let mut batch = Batch::new();
        let revisions = self.history.expire(self.storage.as_ref(), &self.store, now_ms, &mut batch);
        let collected = Collected { tombstones: tombstones.len(), revisions, has_more };
        if tombstones.is_empty() && batch.is_empty() {
            return Ok(collected);
        }
        self.store.begin();
        self.store.collect(tombstones, !self.is_mutated(Mutation::CollectWithoutFloor));
        self.keep(self.life, batch)?;
        self.counters.collected += u64::try_from(collected.tombstones).unwrap_or(u64::MAX);
        Ok(collected)
    }
}

#[cfg(test)]
mod tests;
