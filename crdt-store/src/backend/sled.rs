//! Storage on disk: a journal, and sled 0.34.7 behind it, with what sled leaves undone.
//!
//! A batch is acknowledged when the journal has it on the disk (see `journal`). sled is written now and then, many batches
//! at once, for what a batch costs it, and because power cuts that tear pages made it unreadable about once in sixty.
//! The journal is laid over it when it is opened, and begins anew only when a copy of everything was kept elsewhere, or
//! when it has grown to [`JOURNAL_BYTES_MAX`]. Between two uses sled is closed, which gives back several MiB of memory.
//!
//! - `flush()` does not sync on Linux: an own handle on the file `db` is synced after it, always.
//! - Leaves above 128 KiB go to files of their own that sled never syncs. A leaf has up to some 20 pairs, so values are
//!   cut into parts of [`PART_BYTES`]; files that appear there all the same are synced before a batch counts.
//! - After a write error an open database fails for ever: it is closed, and opened again for the next batch.
//! - Who waits for a flush whose write another of sled's threads has failed at may wait for ever: a second thread uses
//!   the log once a second meanwhile, which wakes it.
//! - After an error of the disk while syncing nobody knows what a file holds, for the kernel drops pages that it could
//!   not write and calls them clean. No batch is taken then until the whole database was written anew, beside the old
//!   one, and put in its place.
//! - Closing returns before sled's threads have let go of the lock: a lock that is taken is tried for two seconds.
//! - A crash while sled writes a snapshot of its page table, at the end of opening, leaves half a file that sled takes
//!   for the newest snapshot and then for damage. It is removed before opening; the older snapshot is still there.
//! - Opening a damaged folder returns an error or panics; both become [`StorageError::Damaged`].
//!
//! Layout in the folder: `db`, `conf`, `blobs/`, `snap.*` are sled's, `boot`, `journal`, `lock` are ours. Keys are `v` and
//! the caller's key, with the number of parts (u16 BE) before the first part; further parts are at `p`, key, part (u16
//! BE), and where there are any, their number is at `n`, key as well.

use std::{
    cell::{RefCell, RefMut},
    collections::BTreeMap,
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    backend::{
        Batch, Pairs, Storage, StorageStats,
        folder::{self, damaged, io_error},
        journal::{self, AppendError, Journal},
        undo::{Changes, overlay},
    },
    error::StorageError,
};

/// Bytes of a value kept under one sled key.
const PART_BYTES: usize = 1280;
const SEGMENT_BYTES: usize = 128 << 10;
const CACHE_BYTES: u64 = 1 << 20;
/// Prefix of the numbers of parts.
const COUNTS: &[u8] = b"n";
/// sled's log.
const LOG_FILE: &str = "db";
/// Bytes of batches that sled has not heard of, from which on it does; they are held in memory until then.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// Bytes of journal from which on it begins anew whether or not somebody has kept a copy of everything.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// Rounds in which what sled replaced is dropped.
const GARBAGE_ROUNDS: usize = 512;
/// Pairs and bytes that go to sled at once.
const BATCH_PAIRS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// Faults in a row after which a scan for what can still be read turns round.
const FAULTS_MAX: u32 = 8;
/// How long a flush may take before it is woken, again and again.
const STALL: Duration = Duration::from_secs(1);

/// A database in a folder of its own.
pub struct SledStorage {
    path: PathBuf,
    /// Held as long as the folder is in use; sled is closed now and then and its own lock with it.
    lock: File,
    journal: Journal,
    /// What sled has not heard of yet, or not for certain.
    pending: Changes,
    /// Bytes of `pending`, at least.
    pending_bytes: usize,
    /// `None` while nobody needs it, and after an error.
    sled: RefCell<Option<Handle>>,
    is_broken: bool,
    #[cfg(feature = "mutations")]
    skips_sync: bool,
    stats: StorageStats,
}

/// An open database and an own handle on its log.
struct Handle {
    folder: PathBuf,
    db: ::sled::Db,
    log: File,
    /// Files of oversized leaves that were synced already.
    blobs: Vec<PathBuf>,
}

impl SledStorage {
    /// Opens or creates the database in `path`; its parent must exist. One handle at a time uses the folder.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] for a folder that does not open, [`StorageError::InUse`] for one that is open
    /// elsewhere, [`StorageError::Full`] and [`StorageError::Io`].
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        folder::finish_swap(path)?;
        folder::create(path)?;
        let lock = journal::lock(path)?;
        let content = journal::read(path)?;
        let sled = Handle::open(path)?;
        let journal = Journal::resume(path, &content)?;
        let pending_bytes = bytes_of(content.changes.iter().map(|(key, value)| (key.as_slice(), value.as_deref())));
        Ok(Self {
            path: path.to_owned(),
            lock,
            journal,
            pending: content.changes,
            pending_bytes,
            sled: RefCell::new(Some(sled)),
            is_broken: false,
            #[cfg(feature = "mutations")]
            skips_sync: false,
            stats: StorageStats::default(),
        })
    }

    /// The pairs below `prefix` that can still be read in the folder of a damaged database, by key; without `may_open`
    /// those of the journal alone.
    ///
    /// # Errors
    /// As [`SledStorage::open`]; [`StorageError::Damaged`] where nothing at all can be read.
    pub(crate) fn salvage(path: &Path, prefix: &[u8], may_open: bool) -> Result<Pairs, StorageError> {
        let _lock = journal::lock(path)?;
        let journal = journal::readable(path);
        if !may_open {
            return Ok(overlay(&journal, prefix, BTreeMap::new()));
        }
        match Handle::open(path) {
            Ok(open) => {
                let pairs = overlay(&journal, prefix, open.readable(prefix));
                close(open);
                Ok(pairs)
            }
            Err(error) if journal.is_empty() => Err(error),
            Err(error) => {
                tracing::warn!(%error, "the database does not open; its journal is used alone");
                Ok(overlay(&journal, prefix, BTreeMap::new()))
            }
        }
    }

    /// The pairs below `prefix` that can be read, by key.
    pub(crate) fn readable(&self, prefix: &[u8]) -> Pairs {
        let found = self.sled().map(|open| open.readable(prefix)).unwrap_or_default();
        overlay(&self.pending, prefix, found)
    }

    #[cfg(test)]
    pub(super) const fn break_it(&mut self) {
        self.is_broken = true;
    }

    /// Opens or creates the database and leaves out every sync: acknowledged batches are lost in a power cut. It proves
    /// that a test of power cuts can fail.
    ///
    /// # Errors
    /// As [`SledStorage::open`].
    #[cfg(feature = "mutations")]
    pub fn without_fdatasync(path: &Path) -> Result<Self, StorageError> {
        let mut storage = Self::open(path)?;
        storage.skips_sync = true;
        Ok(storage)
    }

    /// sled, opened where it is not.
    fn sled(&self) -> Result<RefMut<'_, Handle>, StorageError> {
        let mut open = self.sled.borrow_mut();
        if open.is_none() {
            *open = Some(Handle::open(&self.path)?);
        }
        // Just filled where it was empty.
        RefMut::filter_map(open, Option::as_mut)
            .map_err(|_closed| io_error("reading", io::Error::other("it is closed")))
    }

    const fn syncs(&self) -> bool {
        #[cfg(feature = "mutations")]
        return !self.skips_sync;
        #[cfg(not(feature = "mutations"))]
        true
    }

    /// Writes to sled what it has not heard of, durably.
    fn check_point(&mut self) -> Result<(), StorageError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let syncs = self.syncs();
        let pending = self.pending.iter().map(|(key, value)| (key.as_slice(), value.as_deref()));
        let written = self.sled().map_err(Failure::from).and_then(|mut open| open.write(pending, syncs));
        match written {
            Ok(()) => {
                self.pending.clear();
                self.pending_bytes = 0;
                let_go();
                Ok(())
            }
            Err(failure) => {
                self.close_sled();
                self.is_broken |= failure.is_in_sync || matches!(failure.error, StorageError::Damaged { .. });
                self.stats.failures += 1;
                Err(failure.error)
            }
        }
    }

    /// Closes sled until it is needed again.
    fn close_sled(&self) {
        if let Some(open) = self.sled.take() {
            close(open);
        }
    }
}

impl std::fmt::Debug for SledStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStorage").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for SledStorage {
    fn drop(&mut self) {
        self.close_sled();
    }
}

impl Storage for SledStorage {
    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        if self.is_broken {
            return Err(StorageError::ReadOnly);
        }
        if batch.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.journal.append(batch, self.syncs()) {
            self.stats.failures += 1;
            return Err(match error {
                AppendError::Undone(error) => {
                    self.is_broken |= matches!(error, StorageError::Damaged { .. });
                    error
                }
                AppendError::Unknown(error) => {
                    self.is_broken = true;
                    error
                }
            });
        }
        self.stats.batches += 1;
        self.pending_bytes += bytes_of(batch.changes());
        self.pending.extend(batch.changes().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))));
        if self.pending_bytes >= PENDING_BYTES_MAX {
            // The batch is durable whatever comes of this. A disk that is full is asked again some batches later.
            self.pending_bytes = 0;
            if let Err(error) = self.check_point() {
                tracing::debug!(%error, "sled does not take what the journal has; it stays in the journal");
            } else if self.journal.bytes() >= JOURNAL_BYTES_MAX {
                self.journal.restart(&Batch::new()).ok();
            }
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match self.pending.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.sled()?.get(key),
        }
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        let found = self.sled()?.scan(prefix)?;
        Ok(overlay(&self.pending, prefix, found))
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
        self.close_sled();
        folder::wait_unlocked(&fresh.join(LOG_FILE));
        folder::wait_unlocked(&self.path.join(LOG_FILE));
        let lock = journal::lock(&fresh)?;
        folder::swap(&self.path)?;
        // All that was pending is in the new database.
        self.lock = lock;
        self.pending.clear();
        self.pending_bytes = 0;
        self.journal = Journal::resume(&self.path, &journal::read(&self.path)?)?;
        self.is_broken = false;
        Ok(())
    }

    fn rest(&mut self) {
        self.close_sled();
    }

    fn compact(&mut self, kept: &Batch) -> Result<(), StorageError> {
        let is_new = self.journal.is_new();
        let done = self.check_point().and_then(|()| if is_new { Ok(()) } else { self.journal.restart(kept) });
        self.close_sled();
        done
    }

    fn stats(&self) -> StorageStats {
        let log_bytes = fs::metadata(self.path.join(LOG_FILE)).map_or(0, |meta| meta.len());
        let journal_bytes = self.journal.bytes();
        StorageStats { disk_bytes: log_bytes + journal_bytes, journal_bytes, ..self.stats }
    }

    fn close(mut self: Box<Self>) -> Result<(), StorageError> {
        self.check_point()
    }
}

/// Bytes of some changes.
fn bytes_of<'a>(changes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> usize {
    changes.map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len)).sum()
}

/// Writes a whole database into a new folder; complete and durable once its mark is there.
fn write_anew(path: &Path, all: &Batch, mark: [u8; 16]) -> Result<(), StorageError> {
    let mut open = Handle::open(path)?;
    open.write(all.changes(), true).map_err(|failure| failure.error)?;
    close(open);
    Journal::resume(path, &journal::Content::default())?;
    folder::set_mark(path, mark)
}

/// Closing flushes what it can; sled may panic over its own earlier error.
fn close(open: Handle) {
    let _closed = catch_unwind(AssertUnwindSafe(move || drop(open)));
    let_go();
}

/// Has the pages dropped that sled replaced. It leaves that to its next uses of the log, and there may be none for long:
/// some 10 MiB stayed in an agent after 12,000 writes.
fn let_go() {
    // Each round drops up to 8 bags of 64 objects, and once nobody reads any more moves on to those of the next epoch.
    for _ in 0..GARBAGE_ROUNDS {
        crossbeam_epoch::pin().flush();
    }
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
            .flush_every_ms(None)
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
        let open = Self { folder: path.to_owned(), db, log, blobs: Vec::new() };
        if is_new {
            open.flush().map_err(|failure| failure.error)?;
            folder::settle(path).map_err(|error| io_error("creating the database", error))?;
        }
        Ok(open)
    }

    /// Writes changes, and with `syncs` makes them durable.
    fn write<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        syncs: bool,
    ) -> Result<(), Failure> {
        let has_parts = self.reading(|| self.db.scan_prefix(COUNTS).next().transpose())?.is_some();
        let mut batch = ::sled::Batch::default();
        let (mut pairs, mut bytes) = (0, 0);
        for (key, value) in changes {
            let old_parts = if has_parts { self.part_count(key)? } else { 0 };
            add(&mut batch, key, value, old_parts);
            pairs += 1;
            bytes += value.map_or(0, <[u8]>::len);
            if pairs >= BATCH_PAIRS || bytes >= BATCH_BYTES {
                let full = std::mem::take(&mut batch);
                self.writing("writing a batch", || self.db.apply_batch(full))?;
                (pairs, bytes) = (0, 0);
            }
        }
        self.writing("writing a batch", || self.db.apply_batch(batch))?;
        if !syncs {
            return Ok(());
        }
        self.flush()?;
        self.sync_blobs()?;
        self.sync_log()
    }

    /// Hands everything to the kernel, which on Linux begins to write it out: an error then may be about pages that are
    /// lost. A disk that has no room says so before that.
    fn flush(&self) -> Result<(), Failure> {
        let flushed = thread::scope(|scope| {
            let (end, ended) = mpsc::channel::<()>();
            scope.spawn(move || {
                while ended.recv_timeout(STALL) == Err(mpsc::RecvTimeoutError::Timeout) {
                    self.wake();
                }
            });
            let flushed = self.writing("flushing", || self.db.flush());
            drop(end);
            flushed
        });
        flushed.map(drop).map_err(|error| {
            let is_in_sync = !matches!(error, StorageError::Full);
            Failure { error, is_in_sync }
        })
    }

    /// Uses the log: where a write has failed, sled then tells whoever waits for it.
    fn wake(&self) {
        let _failed = catch_unwind(AssertUnwindSafe(|| self.db.insert(b"w", &[])));
    }

    fn sync_log(&self) -> Result<(), Failure> {
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

    /// Parts of the value that is there, where it has several. They are counted apart, for hardly a value has several, and
    /// looking at the value itself would bring its whole leaf from the disk.
    fn part_count(&self, key: &[u8]) -> Result<u16, StorageError> {
        let count = self.reading(|| self.db.get(count_key(key)))?;
        Ok(count.and_then(|count| count.first_chunk::<2>().copied()).map_or(0, u16::from_be_bytes))
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
    fn readable(&self, prefix: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut heads = self.db.scan_prefix(head_key(prefix));
        let mut pairs = BTreeMap::new();
        let mut is_whole = self.collect_readable(&mut pairs, || heads.next());
        if !is_whole {
            let mut heads = self.db.scan_prefix(head_key(prefix));
            is_whole = self.collect_readable(&mut pairs, || heads.next_back());
        }
        tracing::debug!(is_whole, pairs = pairs.len(), "salvaged pairs");
        pairs
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

    /// Runs a call that writes. Writing reads as well, and may come upon damage that nothing has read before; a panic is
    /// taken for that.
    fn writing<T>(&self, doing: &'static str, call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, StorageError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(::sled::Error::Io(error))) => Err(io_error(doing, error)),
            Ok(Err(error @ ::sled::Error::Corruption { .. })) => Err(damaged(&self.folder, error.to_string())),
            Ok(Err(error)) => Err(io_error(doing, io::Error::other(error.to_string()))),
            Err(_panic) => Err(damaged(&self.folder, format!("{doing} panicked"))),
        }
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

/// Adds a change of a value that had so many parts before.
fn add(batch: &mut ::sled::Batch, key: &[u8], value: Option<&[u8]>, old_parts: u16) {
    let parts = value.map_or(0, |value| add_parts(batch, key, value));
    if value.is_none() {
        batch.remove(head_key(key));
    }
    for part in parts.max(1)..old_parts {
        batch.remove(part_key(key, part));
    }
    if parts > 1 {
        batch.insert(count_key(key), &parts.to_be_bytes());
    } else if old_parts > 1 {
        batch.remove(count_key(key));
    }
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

fn count_key(key: &[u8]) -> Vec<u8> {
    [COUNTS, key].concat()
}

fn part_key(key: &[u8], part: u16) -> Vec<u8> {
    [b"p", key, &part.to_be_bytes()].concat()
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
