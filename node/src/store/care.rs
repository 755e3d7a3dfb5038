//! What keeps the database well while it is in use: a snapshot now and then, and writing it anew after a failed sync.

use std::path::PathBuf;
use std::time::Duration;

use crdt_store::{Replica, StoreError, save_bundle};
use tracing::{debug, info, warn};

/// Two attempts to write the database anew are at least this far apart: each writes all of it.
const REBUILD_EVERY: Duration = Duration::from_secs(5);
/// Bytes of journal that are not waited with until the minute is over.
const JOURNAL_BYTES: u64 = 8 << 20;
/// Two snapshots for that reason are at least this far apart.
const EARLY_EVERY: Duration = Duration::from_secs(5);
/// Bytes of journal from which on it begins anew with the minute's snapshot.
const COMPACT_BYTES: u64 = 1 << 20;

/// The care of one database.
#[derive(Debug)]
pub(super) struct Care {
    snapshot: PathBuf,
    /// Root and context hash of what the snapshot holds; `None` before the first.
    saved: Option<([u8; 16], [u8; 8])>,
    is_failing: bool,
    next_rebuild: Duration,
    next_early: Duration,
}

impl Care {
    /// Care with its snapshot at a path.
    pub(super) fn new(snapshot: PathBuf) -> Self {
        Self { snapshot, saved: None, is_failing: false, next_rebuild: Duration::ZERO, next_early: Duration::ZERO }
    }

    /// Writes the snapshot where the store has changed since the last one, and lets the database rest. The snapshot
    /// replaces the old one whole; a store that holds nothing needs none. A short journal is left as it is: writing all of
    /// it to the database holds up other writes.
    pub(super) fn snapshot(&mut self, replica: &mut Replica) {
        if self.save(replica) && replica.storage_stats().journal_bytes >= COMPACT_BYTES {
            compact(replica);
        }
        replica.rest();
    }

    /// The last snapshot, before the database is closed. Damage that shows when it is written now is not left for the
    /// next start.
    pub(super) fn end(&mut self, replica: &mut Replica) {
        if self.save(replica) {
            compact(replica);
        }
        if replica.needs_rebuild()
            && let Err(fault) = replica.rebuild()
        {
            debug!(%fault, "database not written anew; the next start brings back what it holds");
        }
    }

    /// Like [`Care::snapshot`], where the journal has grown so long that it should not wait for the minute.
    pub(super) fn snapshot_early(&mut self, replica: &mut Replica, now: Duration) {
        if now >= self.next_early && replica.storage_stats().journal_bytes >= JOURNAL_BYTES {
            self.next_early = now + EARLY_EVERY;
            self.snapshot(replica);
        }
    }

    /// True where there is a snapshot of what the store holds now.
    fn save(&mut self, replica: &Replica) -> bool {
        let now = (replica.root(), replica.context_hash());
        if self.saved == Some(now) || replica.context().origin_count() == 0 {
            return true;
        }
        match save_bundle(replica, &self.snapshot) {
            Ok(ops) => {
                debug!(ops, "snapshot of the store written");
                self.saved = Some(now);
                self.is_failing = false;
                return true;
            }
            // Said once, not every minute: a full disk is told elsewhere as well.
            Err(fault) if self.is_failing => debug!(%fault, "snapshot of the store not written"),
            Err(fault) => {
                warn!(%fault, path = %self.snapshot.display(), "snapshot of the store not written; trying again");
                self.is_failing = true;
            }
        }
        false
    }

    /// Writes the database anew where it takes no writes since a sync failed; `None` where there was nothing to do, or
    /// the last attempt is too short ago. `now` is monotonic.
    pub(super) fn mend(&mut self, replica: &mut Replica, now: Duration) -> Option<Result<(), StoreError>> {
        if !replica.needs_rebuild() || now < self.next_rebuild {
            return None;
        }
        self.next_rebuild = now + REBUILD_EVERY;
        let outcome = replica.rebuild();
        match &outcome {
            Ok(()) => {
                info!("database written anew after a failed sync; writes are taken again");
                // The journal that had everything since the last snapshot is gone.
                self.snapshot(replica);
            }
            Err(fault) => debug!(%fault, "database not written anew; trying again"),
        }
        Some(outcome)
    }
}

fn compact(replica: &mut Replica) {
    if let Err(fault) = replica.compact() {
        debug!(%fault, "database not compacted; trying again with the next snapshot");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crdt_store::{
        Author, Authority, DocKey, Edit, Fault, FaultyStorage, MemoryStorage, OriginRecord, Plan, WriteMeta,
    };

    use super::*;

    /// Everybody is believed.
    struct Trusting;

    impl Authority for Trusting {
        fn sign(&self, _: &[u8]) -> [u8; 64] {
            [0; 64]
        }
        fn public_key(&self) -> [u8; 32] {
            [0; 32]
        }
        fn chain(&self) -> Vec<Vec<u8>> {
            Vec::new()
        }
        fn verify(&self, _: &[u8; 32], _: &[u8], _: &[u8; 64]) -> bool {
            true
        }
        fn admit(&self, _: &OriginRecord) -> Result<Author, String> {
            Ok(Author { node: "n".to_owned(), name: "n".to_owned(), may_author: true })
        }
    }

    fn replica() -> (Replica, Plan) {
        let (storage, plan) = FaultyStorage::new(MemoryStorage::new());
        (Replica::open(Box::new(storage), Arc::new(Trusting), "shop", [1; 16], 1).unwrap(), plan)
    }

    fn write(replica: &mut Replica, value: &str) -> Result<(), StoreError> {
        let body = [("spec".to_owned(), value.as_bytes().to_vec())].into();
        let edit = Edit::put(DocKey::new("K", "global", "n"), body);
        replica.write(vec![edit], WriteMeta::default(), 1).map(drop)
    }

    #[test]
    fn a_snapshot_is_written_when_something_changed_and_not_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.snapshot");
        let mut care = Care::new(path.clone());
        let (mut replica, _plan) = replica();
        care.snapshot(&mut replica);
        assert!(!path.exists(), "there is nothing to keep yet");
        write(&mut replica, "1").unwrap();
        care.snapshot(&mut replica);
        let first = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        care.snapshot(&mut replica);
        assert!(!path.exists(), "written again without a change");
        write(&mut replica, "2").unwrap();
        care.snapshot(&mut replica);
        assert_ne!(std::fs::read(&path).unwrap(), first);
    }

    #[test]
    fn a_snapshot_that_fails_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later").join("store.snapshot");
        let mut care = Care::new(path.clone());
        let (mut replica, _plan) = replica();
        write(&mut replica, "1").unwrap();
        care.snapshot(&mut replica);
        std::fs::create_dir(dir.path().join("later")).unwrap();
        care.snapshot(&mut replica);
        assert!(path.exists());
    }

    #[test]
    fn a_failed_sync_is_mended_at_once_and_then_every_five_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let mut care = Care::new(dir.path().join("store.snapshot"));
        let (mut replica, plan) = replica();
        let at = |ms: u64| Duration::from_millis(90_000 + ms);
        assert!(care.mend(&mut replica, at(0)).is_none());
        plan.push(Fault::Sync);
        write(&mut replica, "1").unwrap_err();
        plan.push(Fault::Io);
        assert!(matches!(care.mend(&mut replica, at(0)), Some(Err(_))));
        assert!(care.mend(&mut replica, at(4_999)).is_none());
        assert!(matches!(write(&mut replica, "1"), Err(StoreError::ReadOnly)));
        assert!(matches!(care.mend(&mut replica, at(5_000)), Some(Ok(()))));
        write(&mut replica, "1").unwrap();
        assert!(care.mend(&mut replica, at(60_000)).is_none());
    }
}
