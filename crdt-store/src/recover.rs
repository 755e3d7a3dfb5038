//! Opening a store whatever has become of its database.
//!
//! A database that does not check out is set aside, a fresh one with a new life takes its place, and what can be proven
//! comes back as ordinary ops: from the last snapshot and from every record of the damaged database that still reads.
//! Each op is verified by its signature and credits its own dot; context and identity are never salvaged, for a
//! database that lost something must not claim to have seen it. Peers bring the rest.
//!
//! Beside the folder `store`: `store.opening` counts attempts to open it that died, `store.snapshot` is a bundle of what
//! was last known to be good, `store.bad-…` are databases that were set aside, named by the second.

mod examine;
mod marker;
mod salvage;

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use examine::{Report, examine, open_frozen};

use crate::{
    backend::{SledStorage, folder},
    error::{StorageError, StoreError},
    id::{head, sha256},
    recover::marker::Marker,
    replica::Replica,
    sign::Authority,
};

/// Attempts to open a database that may die in a row; the next one takes it for damaged.
const ATTEMPTS_MAX: u32 = 3;
/// Databases set aside that are kept; older ones are removed.
const SET_ASIDE_MAX: usize = 2;

/// A store that is open.
#[derive(Debug)]
pub struct Opened {
    /// The replica, with whatever could be brought back.
    pub replica: Replica,
    /// What had to be done for it; `None` where all was well.
    pub recovered: Option<Recovered>,
}

/// What became of a database that was not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Where the damaged database is now; `None` where it opened and had lost some of what it held, which the snapshot
    /// brought back.
    pub set_aside: Option<PathBuf>,
    /// What was wrong with it.
    pub reason: String,
    /// Ops that came back from the snapshot and the damaged database.
    pub salvaged_ops: usize,
    /// Documents that exist now.
    pub documents: usize,
    /// Records of the node that came back.
    pub records: usize,
}

/// Where the snapshot of the store in `folder` lies.
#[must_use]
pub fn snapshot_path(folder: &Path) -> PathBuf {
    folder::beside(folder, "snapshot")
}

/// Opens the store `global` of a mesh in `folder`, whose parent must exist; what is damaged is set aside and refilled.
///
/// Arguments as of [`Replica::open`]. One process at a time uses the folder and what lies beside it: the caller holds a
/// lock of its own. An attempt that dies (killed, out of memory) is counted, and after three in a row the database
/// counts as damaged.
///
/// # Errors
/// What is not damage, and leaves all as it is: a folder in use, a full or failing disk, another mesh's store, a newer
/// format. [`StoreError::Storage`] where a damaged folder cannot be moved.
pub fn open_or_recover(
    folder: &Path,
    authority: Arc<dyn Authority>,
    mesh: &str,
    random: [u8; 16],
    now_ms: u64,
) -> Result<Opened, StoreError> {
    let opening = Opening { folder, authority, mesh, now_ms };
    let mut marker = Marker::read(folder);
    let is_deadly = marker.attempts >= ATTEMPTS_MAX;
    let opened = if is_deadly {
        Err(StoreError::Damaged(format!("the last {} attempts to open it died", marker.attempts)))
    } else {
        marker.attempts += 1;
        marker.write(folder);
        opening.open(random)
    };
    let error = match opened {
        Ok(replica) => return opening.complete(replica, marker.recovering),
        Err(error) => error,
    };
    let Some(reason) = damage(&error) else {
        // It failed and did not die.
        Marker { attempts: 0, ..marker }.write(folder);
        return Err(error);
    };
    tracing::warn!(reason, "database is damaged");
    opening.recover(&reason, !is_deadly, random)
}

/// What opening needs, by whichever way it goes.
struct Opening<'a> {
    folder: &'a Path,
    authority: Arc<dyn Authority>,
    mesh: &'a str,
    now_ms: u64,
}

impl Opening<'_> {
    fn open(&self, random: [u8; 16]) -> Result<Replica, StoreError> {
        let storage = SledStorage::open(self.folder)?;
        let authority = Arc::clone(&self.authority);
        catch_unwind(AssertUnwindSafe(|| Replica::open(Box::new(storage), authority, self.mesh, random, self.now_ms)))
            .unwrap_or_else(|_panic| Err(StoreError::Damaged("reading it panicked".to_owned())))
    }

    /// The database opened: go on with a recovery that was cut short, or look whether it has lost something.
    fn complete(&self, mut replica: Replica, cut_short: Option<marker::Recovering>) -> Result<Opened, StoreError> {
        let recovered = match cut_short.filter(|it| self.folder.with_file_name(&it.set_aside).exists()) {
            Some(it) => Some(self.refill(&mut replica, self.folder.with_file_name(&it.set_aside), it.reason, true)),
            None => self.catch_up(&mut replica),
        };
        Marker::remove(self.folder);
        Ok(Opened { replica, recovered })
    }

    fn recover(&self, reason: &str, may_open: bool, random: [u8; 16]) -> Result<Opened, StoreError> {
        let set_aside = self.set_aside(reason)?;
        // The attempt before may have named a life after these bytes already.
        let mut replica = self.open(head(&sha256(&[b"marram-recovery", &random])))?;
        let recovered = self.refill(&mut replica, set_aside, reason.to_owned(), may_open);
        Marker::remove(self.folder);
        Ok(Opened { replica, recovered: Some(recovered) })
    }

    /// Moves the damaged database out of the way, after it was written down that this is being done.
    fn set_aside(&self, reason: &str) -> Result<PathBuf, StoreError> {
        // Threads of the handle that found the damage may still be writing.
        folder::wait_unlocked(&self.folder.join("db"));
        let seconds = self.now_ms / 1_000;
        let names = std::iter::once(format!("bad-{seconds}")).chain((1..).map(|n| format!("bad-{seconds}-{n}")));
        let free = names.map(|name| folder::beside(self.folder, &name)).find(|path| !path.exists());
        let set_aside = free.unwrap_or_else(|| folder::beside(self.folder, "bad"));
        let name = set_aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let recovering = marker::Recovering { set_aside: name, reason: reason.to_owned() };
        Marker { attempts: 1, recovering: Some(recovering) }.write(self.folder);
        let rename = || -> io::Result<()> {
            match fs::rename(self.folder, &set_aside) {
                // Three deaths while there was no database yet.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            folder::sync(folder::parent(self.folder))
        };
        rename().map_err(|error| folder::io_error("setting the damaged database aside", error))?;
        self.prune(&set_aside);
        Ok(set_aside)
    }

    /// Removes all databases that were set aside but the newest.
    fn prune(&self, newest: &Path) {
        let prefix = folder::beside(self.folder, "bad");
        let prefix = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = fs::read_dir(folder::parent(self.folder)).into_iter().flatten().flatten();
        let mut aside: Vec<((u64, u64), PathBuf)> = entries
            .filter_map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let stamp = name.strip_prefix(&prefix)?.strip_prefix('-')?;
                let (seconds, n) = stamp.split_once('-').unwrap_or((stamp, "0"));
                Some(((seconds.parse().ok()?, n.parse().ok()?), entry.path()))
            })
            .filter(|(_, path)| path != newest)
            .collect();
        aside.sort();
        let surplus = (aside.len() + 1).saturating_sub(SET_ASIDE_MAX);
        for (_, path) in aside.into_iter().take(surplus) {
            if let Err(error) = folder::remove(&path) {
                tracing::warn!(path = %path.display(), %error, "a database set aside long ago was not removed");
            }
        }
    }

    /// Brings back what can be proven; without `may_open` from snapshot and journal alone. What cannot be stored now comes
    /// from peers later.
    fn refill(&self, replica: &mut Replica, set_aside: PathBuf, reason: String, may_open: bool) -> Recovered {
        let from_snapshot = salvage::snapshot(replica, self.folder, self.now_ms);
        let found = salvage::database(replica, &set_aside, may_open, self.now_ms);
        let (salvaged_ops, records) = (from_snapshot + found.ops, found.records);
        let documents = replica.documents().count();
        Recovered { set_aside: Some(set_aside), reason, salvaged_ops, documents, records }
    }

    /// A database that has seen less than its own snapshot went back in time: a file was cut, or a copy put back. Its
    /// content is sound, but its life is over, and the snapshot has more.
    fn catch_up(&self, replica: &mut Replica) -> Option<Recovered> {
        let seen = salvage::seen_by_snapshot(self.folder)?;
        if replica.context().covers(&seen) {
            return None;
        }
        let life = replica.incarnation();
        if let Err(error) = replica.heed(&seen) {
            tracing::error!(%error, "database has lost writes and takes no new ones");
        }
        let salvaged_ops = salvage::snapshot(replica, self.folder, self.now_ms);
        if salvaged_ops == 0 && life == replica.incarnation() {
            return None;
        }
        let reason = "it has seen less than its snapshot".to_owned();
        let documents = replica.documents().count();
        Some(Recovered { set_aside: None, reason, salvaged_ops, documents, records: 0 })
    }
}

/// What is damaged, where an error says that something is.
fn damage(error: &StoreError) -> Option<String> {
    match error {
        StoreError::Damaged(reason) | StoreError::Storage(StorageError::Damaged { reason, .. }) => Some(reason.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
