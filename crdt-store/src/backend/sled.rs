//! Storage on disk by sled 0.34.7, with what sled leaves undone.
//!
//! - `flush()` does not sync on Linux: an own handle on the file `db` is synced after it, always.
//! - Leaves above 128 KiB go to files of their own that sled never syncs. A leaf has up to some 20 pairs, so values are
//!   cut into parts of [`PART_BYTES`]; files that appear there all the same are synced before a batch is acknowledged.
//! - After a write error an open database fails for ever: it is closed, and opened again for the next batch.
//! - A failed batch may have reached the log; see `undo`.
//! - After an error of the disk while syncing nobody knows what the log holds, for the kernel drops pages that it could
//!   not write and calls them clean. No batch is taken then until the whole database was written anew, beside the old
//!   one, and put in its place.
//! - Closing returns before sled's threads have let go of the lock: a lock that is taken is tried for two seconds.
//! - A crash while sled writes a snapshot of its page table, at the end of opening, leaves half a file that sled takes
//!   for the newest snapshot and then for damage. It is removed before opening; the older snapshot is still there.
//! - Opening a damaged folder returns an error or panics; both become [`StorageError::Damaged`].
//!
//! Layout in the folder: `db`, `conf`, `blobs/`, `snap.*` are sled's, `boot` is ours. Keys are `v` and the caller's
//! key, with the number of parts (u16 BE) before the first part; further parts are at `p`, key, part (u16 BE).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use crate::{
    backend::{
        Batch, Pairs, Storage, StorageStats,
        folder::{self, damaged, io_error},
        undo::{Changes, Undo},
    },
    error::StorageError,
};

/// Bytes of a value kept under one sled key.
const PART_BYTES: usize = 1280;
const SEGMENT_BYTES: usize = 128 << 10;
const CACHE_BYTES: u64 = 1 << 20;
const FLUSH_EVERY_MS: u64 = 1_000;
/// sled's log.
const LOG_FILE: &str = "db";
/// Pairs and bytes that a rebuilding writes at once.
const REBUILD_PAIRS: usize = 512;
const REBUILD_BYTES: usize = 1 << 20;
/// Faults in a row after which a scan for what can still be read turns round.
const FAULTS_MAX: u32 = 8;

/// A database in a folder of its own.
pub struct SledStorage {
    path: PathBuf,
    /// `None` after an error, until the next batch opens it again.
    open: Option<Handle>,
    undo: Undo,
    is_broken: bool,
    stats: StorageStats,
}

/// An open database and an own handle on its log.
struct Handle {
    folder: PathBuf,
    db: ::sled::Db,
    log: File,
    /// Files of oversized leaves that were synced already.
    blobs: Vec<PathBuf>,
    #[cfg(feature = "mutations")]
    skips_sync: bool,
}

impl SledStorage {
    /// Opens or creates the database in `path`; its parent must exist.
    ///
    /// The caller makes sure that one process uses the folder; sled's own lock is a second line.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] for a folder that does not open, [`StorageError::InUse`] for one that is open
    /// elsewhere, [`StorageError::Full`] and [`StorageError::Io`].
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        folder::finish_swap(path)?;
        let open = Handle::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            open: Some(open),
            undo: Undo::default(),
            is_broken: false,
            stats: StorageStats::default(),
        })
    }

    /// The pairs below `prefix` that can still be read in a damaged database, in no particular order.
    pub(crate) fn readable(&self, prefix: &[u8]) -> Pairs {
        self.open.as_ref().map(|open| open.readable(prefix)).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) const fn break_it(&mut self) {
        self.is_broken = true;
    }

    /// Opens or creates the database and leaves out the sync of its log after each batch, until an error makes it open
    /// again: acknowledged batches are lost in a power cut. It proves that a test of power cuts can fail.
    ///
    /// # Errors
    /// As [`SledStorage::open`].
    #[cfg(feature = "mutations")]
    pub fn without_fdatasync(path: &Path) -> Result<Self, StorageError> {
        let mut storage = Self::open(path)?;
        if let Some(open) = &mut storage.open {
            open.skips_sync = true;
        }
        Ok(storage)
    }

    fn handle(&self) -> Result<&Handle, StorageError> {
        self.open.as_ref().ok_or_else(|| io_error("reading", io::Error::other("closed after an error")))
    }
}

impl std::fmt::Debug for SledStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStorage").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Storage for SledStorage {
    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        if self.is_broken {
            return Err(StorageError::ReadOnly);
        }
        let applied = self.try_apply(batch);
        match &applied {
            Ok(()) => self.stats.batches += 1,
            Err(_) => self.stats.failures += 1,
        }
        // Found damaged while it is in use: what is in memory is sound and can be written anew.
        self.is_broken |= matches!(applied, Err(StorageError::Damaged { .. }));
        applied
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match self.undo.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.handle()?.get(key),
        }
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        Ok(self.undo.overlay(prefix, self.handle()?.scan(prefix)?))
    }

    fn boot_mark(&self) -> Result<Option<[u8; 16]>, StorageError> {
        folder::mark(&self.path)
    }

    fn set_boot_mark(&mut self, mark: [u8; 16]) -> Result<(), StorageError> {
        folder::set_mark(&self.path, mark)
    }

    fn is_broken(&self) -> bool {
        self.is_broken
    }

    fn rebuild(&mut self, all: &Batch, mark: [u8; 16]) -> Result<(), StorageError> {
        let fresh = folder::fresh(&self.path)?;
        if let Err(error) = write_anew(&fresh, all, mark) {
            // The next attempt clears the place as well.
            folder::remove(&fresh).ok();
            return Err(error);
        }
        if let Some(open) = self.open.take() {
            close(open);
        }
        folder::wait_unlocked(&fresh.join(LOG_FILE));
        folder::wait_unlocked(&self.path.join(LOG_FILE));
        folder::swap(&self.path)?;
        self.undo.clear();
        self.open = Some(Handle::open(&self.path)?);
        self.is_broken = false;
        Ok(())
    }

    fn stats(&self) -> StorageStats {
        let disk_bytes = fs::metadata(self.path.join(LOG_FILE)).map_or(0, |meta| meta.len());
        StorageStats { disk_bytes, ..self.stats }
    }

    fn close(mut self: Box<Self>) -> Result<(), StorageError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let synced = open.flush().and_then(|()| open.sync_log());
        close(open);
        synced.map_err(|failure| failure.error)
    }
}

impl SledStorage {
    fn try_apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Handle::open(&self.path)?,
        };
        let attempt = self.undo.attempt(batch, |key| open.get(key))?;
        match open.write(&attempt.wanted) {
            Ok(()) => {
                self.open = Some(open);
                self.undo.clear();
                Ok(())
            }
            Err(failure) => {
                self.undo.failed(attempt);
                self.is_broken = failure.is_in_sync;
                close(open);
                Err(failure.error)
            }
        }
    }
}

/// Writes a whole database into a new folder; complete and durable once its mark is there.
fn write_anew(path: &Path, all: &Batch, mark: [u8; 16]) -> Result<(), StorageError> {
    let mut open = Handle::open(path)?;
    let mut some = Changes::new();
    let mut bytes = 0;
    for (key, value) in all.changes() {
        bytes += key.len() + value.map_or(0, <[u8]>::len);
        some.insert(key.to_vec(), value.map(<[u8]>::to_vec));
        if bytes >= REBUILD_BYTES || some.len() >= REBUILD_PAIRS {
            open.write(&std::mem::take(&mut some)).map_err(|failure| failure.error)?;
            bytes = 0;
        }
    }
    open.write(&some).map_err(|failure| failure.error)?;
    close(open);
    folder::set_mark(path, mark)
}

/// Closing flushes what it can; sled may panic over its own earlier error.
fn close(open: Handle) {
    let _closed = catch_unwind(AssertUnwindSafe(move || drop(open)));
}

/// Why a batch failed.
struct Failure {
    error: StorageError,
    /// True from the moment on where the kernel may have dropped pages that it could not write.
    is_in_sync: bool,
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self { error, is_in_sync: false }
    }
}

impl Handle {
    fn open(path: &Path) -> Result<Self, StorageError> {
        let is_new = !path.join(LOG_FILE).exists();
        remove_unfinished_snapshots(path).map_err(|error| io_error("removing an unfinished snapshot", error))?;
        let config = ::sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .mode(::sled::Mode::LowSpace);
        let mut tries = 0..folder::LOCK_TRIES;
        let db = loop {
            match catch_unwind(AssertUnwindSafe(|| config.open())) {
                Ok(Ok(db)) => break db,
                Ok(Err(error)) => match found(path, "opening", error) {
                    // A handle closed just before keeps the lock until sled's own threads have let go of it.
                    StorageError::InUse { .. } if tries.next().is_some() => folder::pause(),
                    error => return Err(error),
                },
                Err(_panic) => return Err(damaged(path, "opening it panicked")),
            }
        };
        let log = File::open(path.join(LOG_FILE)).map_err(|error| io_error("opening the log", error))?;
        let open = Self {
            folder: path.to_owned(),
            db,
            log,
            blobs: Vec::new(),
            #[cfg(feature = "mutations")]
            skips_sync: false,
        };
        if is_new {
            open.flush().map_err(|failure| failure.error)?;
            folder::settle(path).map_err(|error| io_error("creating the database", error))?;
        }
        Ok(open)
    }

    fn write(&mut self, pairs: &Changes) -> Result<(), Failure> {
        let mut batch = ::sled::Batch::default();
        for (key, value) in pairs {
            let old_parts = self.part_count(key)?;
            let parts = value.as_deref().map_or(0, |value| add_parts(&mut batch, key, value));
            if value.is_none() {
                batch.remove(head_key(key));
            }
            for part in parts.max(1)..old_parts {
                batch.remove(part_key(key, part));
            }
        }
        writing("writing a batch", || self.db.apply_batch(batch))?;
        self.flush()?;
        self.sync_blobs()?;
        self.sync_log()
    }

    /// Hands everything to the kernel, which on Linux begins to write it out: an error then may be about pages that are
    /// lost. A disk that has no room says so before that.
    fn flush(&self) -> Result<(), Failure> {
        writing("flushing", || self.db.flush()).map(drop).map_err(|error| {
            let is_in_sync = !matches!(error, StorageError::Full);
            Failure { error, is_in_sync }
        })
    }

    fn sync_log(&self) -> Result<(), Failure> {
        #[cfg(feature = "mutations")]
        if self.skips_sync {
            return Ok(());
        }
        rustix::fs::fdatasync(&self.log)
            .map_err(|errno| Failure { error: io_error("syncing the log", errno.into()), is_in_sync: true })
    }

    /// Syncs files of oversized leaves that are new since the last time; there are none as long as parts are small.
    fn sync_blobs(&mut self) -> Result<(), Failure> {
        let folder = self.folder.join("blobs");
        let sync = || -> io::Result<Vec<PathBuf>> {
            let mut files = Vec::new();
            for entry in fs::read_dir(&folder)? {
                files.push(entry?.path());
            }
            let is_changed = files.iter().any(|file| !self.blobs.contains(file));
            for file in files.iter().filter(|file| !self.blobs.contains(file)) {
                // sled removes such files in the background; one that is gone needs no sync.
                match File::open(file) {
                    Ok(file) => file.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            if is_changed {
                File::open(&folder)?.sync_all()?;
            }
            Ok(files)
        };
        match sync() {
            Ok(files) => {
                self.blobs = files;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure { error: io_error("syncing large leaves", error), is_in_sync: true }),
        }
    }

    fn part_count(&self, key: &[u8]) -> Result<u16, StorageError> {
        let head = self.reading(|| self.db.get(head_key(key)))?;
        Ok(head.and_then(|head| head.first_chunk::<2>().copied()).map_or(0, u16::from_be_bytes))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(head) = self.reading(|| self.db.get(head_key(key)))? else { return Ok(None) };
        self.assemble(key, &head).map(Some)
    }

    fn scan(&self, prefix: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StorageError> {
        let heads =
            self.reading(|| self.db.scan_prefix(head_key(prefix)).collect::<Result<Vec<_>, ::sled::Error>>())?;
        let mut pairs = BTreeMap::new();
        for (key, head) in heads {
            let key = key.get(1..).unwrap_or_default().to_vec();
            let value = self.assemble(&key, &head)?;
            pairs.insert(key, value);
        }
        Ok(pairs)
    }

    fn assemble(&self, key: &[u8], head: &[u8]) -> Result<Vec<u8>, StorageError> {
        let broken = || damaged(&self.folder, "a value is incomplete");
        let (count, first) = head.split_first_chunk::<2>().ok_or_else(broken)?;
        let mut value = first.to_vec();
        for part in 1..u16::from_be_bytes(*count) {
            let bytes = self.reading(|| self.db.get(part_key(key, part)))?.ok_or_else(broken)?;
            value.extend_from_slice(&bytes);
        }
        Ok(value)
    }

    /// What is readable from the front, and from the back where something in between is not.
    fn readable(&self, prefix: &[u8]) -> Pairs {
        let mut heads = self.db.scan_prefix(head_key(prefix));
        let mut pairs = BTreeMap::new();
        let mut is_whole = self.collect_readable(&mut pairs, || heads.next());
        if !is_whole {
            let mut heads = self.db.scan_prefix(head_key(prefix));
            is_whole = self.collect_readable(&mut pairs, || heads.next_back());
        }
        tracing::debug!(is_whole, pairs = pairs.len(), "salvaged pairs");
        pairs.into_iter().collect()
    }

    /// Takes pairs until there are no more, or until the database fails again and again.
    fn collect_readable(
        &self,
        pairs: &mut BTreeMap<Vec<u8>, Vec<u8>>,
        mut next: impl FnMut() -> Option<::sled::Result<(::sled::IVec, ::sled::IVec)>>,
    ) -> bool {
        let mut faults = 0;
        while faults < FAULTS_MAX {
            match catch_unwind(AssertUnwindSafe(&mut next)) {
                Ok(None) => return faults == 0,
                Ok(Some(Ok((key, head)))) => {
                    let key = key.get(1..).unwrap_or_default().to_vec();
                    if let Ok(value) = self.assemble(&key, &head) {
                        pairs.insert(key, value);
                    }
                }
                Ok(Some(Err(_))) => faults += 1,
                Err(_panic) => return false,
            }
        }
        false
    }

    /// Runs a call that reads. What sled finds wrong with its own files is damage, and so is a panic over them.
    fn reading<T>(&self, call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, StorageError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(found(&self.folder, "reading", error)),
            Err(_panic) => Err(damaged(&self.folder, "reading it panicked")),
        }
    }
}

/// Removes what a crash left of sled's writing a snapshot; sled looks for such files under another name.
fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

/// Adds a value in parts; returns how many.
fn add_parts(batch: &mut ::sled::Batch, key: &[u8], value: &[u8]) -> u16 {
    let count = u16::try_from(value.len().div_ceil(PART_BYTES).max(1)).unwrap_or(u16::MAX);
    let mut parts = value.chunks(PART_BYTES);
    let mut head = count.to_be_bytes().to_vec();
    head.extend_from_slice(parts.next().unwrap_or_default());
    batch.insert(head_key(key), head);
    for (part, bytes) in (1..count).zip(parts) {
        batch.insert(part_key(key, part), bytes);
    }
    count
}

fn head_key(key: &[u8]) -> Vec<u8> {
    [b"v", key].concat()
}

fn part_key(key: &[u8], part: u16) -> Vec<u8> {
    [b"p", key, &part.to_be_bytes()].concat()
}

/// Runs a call that writes; a panic inside counts as an error, for it leaves the handle unusable.
fn writing<T>(doing: &'static str, call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(::sled::Error::Io(error))) => Err(io_error(doing, error)),
        Ok(Err(error)) => Err(io_error(doing, io::Error::other(error.to_string()))),
        Err(_panic) => Err(io_error(doing, io::Error::other("the database panicked"))),
    }
}

/// What an error while opening or reading says about the folder.
fn found(path: &Path, doing: &'static str, error: ::sled::Error) -> StorageError {
    match error {
        // sled has no error of its own for a lock that is taken.
        ::sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            StorageError::InUse { path: path.to_owned() }
        }
        ::sled::Error::Io(error) => match error.kind() {
            // sled reports several kinds of damage as these.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                damaged(path, error.to_string())
            }
            _other => io_error(doing, error),
        },
        other => damaged(path, other.to_string()),
    }
}
