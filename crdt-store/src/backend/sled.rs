//! Storage on disk by sled 0.34.7, with what sled leaves undone.
//!
//! - `flush()` does not sync on Linux: an own handle on the file `db` is synced after it, always.
//! - Leaves above 128 KiB go to files of their own that sled never syncs. A leaf has up to some 20 pairs, so values are
//!   cut into parts of [`PART_BYTES`]; files that appear there all the same are synced before a batch is acknowledged.
//! - After a write error an open database fails for ever: it is closed, and opened again for the next batch.
//! - A failed batch may have reached the log. Its opposite is kept and written together with the next batch, and reads
//!   see the database through it, so a failed batch is never seen.
//! - Closing returns before sled's threads have let go of the lock: a lock that is taken is tried for two seconds.
//! - Opening a damaged folder returns an error or panics; both become [`StorageError::Damaged`].
//!
//! Layout in the folder: `db`, `conf`, `blobs/`, `snap.*` are sled's, `boot` is ours. Keys are `v` and the caller's
//! key, with the number of parts (u16 BE) before the first part; further parts are at `p`, key, part (u16 BE).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    backend::{Batch, Pairs, Storage, StorageStats},
    error::StorageError,
};

/// Bytes of a value kept under one sled key.
const PART_BYTES: usize = 1280;
const SEGMENT_BYTES: usize = 128 << 10;
const CACHE_BYTES: u64 = 1 << 20;
const FLUSH_EVERY_MS: u64 = 1_000;
const BOOT_FILE: &str = "boot";
/// How often a taken lock is tried again, and the pause between two tries.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Values by the caller's keys; `None` where there is none.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A database in a folder of its own.
pub struct SledStorage {
    path: PathBuf,
    /// `None` after an error, until the next batch opens it again.
    open: Option<Handle>,
    /// What undoes the last failed batch, in the caller's keys; empty after a success.
    undo: Changes,
    is_read_only: bool,
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
    /// Opens or creates the database in `path`; its parent must exist.
    ///
    /// The caller makes sure that one process uses the folder; sled's own lock is a second line.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] for a folder that does not open, [`StorageError::InUse`] for one that is open
    /// elsewhere, [`StorageError::Full`] and [`StorageError::Io`].
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let open = Handle::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            open: Some(open),
            undo: Changes::new(),
            is_read_only: false,
            stats: StorageStats::default(),
        })
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
        if self.is_read_only {
            return Err(StorageError::ReadOnly);
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Handle::open(&self.path)?,
        };
        let mut wanted = self.undo.clone();
        wanted.extend(batch.changes().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))));
        // What was there before, as callers know it: the undo of an earlier failure hides what that one left.
        let mut before = Changes::new();
        for key in wanted.keys() {
            let value = match self.undo.get(key) {
                Some(value) => value.clone(),
                None => open.get(key)?,
            };
            before.insert(key.clone(), value);
        }
        match open.write(&wanted) {
            Ok(()) => {
                self.open = Some(open);
                self.undo.clear();
                self.stats.batches += 1;
                Ok(())
            }
            Err(failure) => {
                self.undo = before;
                self.stats.failures += 1;
                self.is_read_only = failure.is_in_sync;
                // Closing flushes what it can; sled may panic over its own earlier error.
                let _closed = catch_unwind(AssertUnwindSafe(move || drop(open)));
                Err(failure.error)
            }
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match self.undo.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.handle()?.get(key),
        }
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        let mut pairs = self.handle()?.scan(prefix)?;
        for (key, value) in self.undo.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix)) {
            match value {
                Some(value) => pairs.insert(key.clone(), value.clone()),
                None => pairs.remove(key),
            };
        }
        Ok(pairs.into_iter().collect())
    }

    fn boot_mark(&self) -> Result<Option<[u8; 16]>, StorageError> {
        match fs::read(self.path.join(BOOT_FILE)) {
            // A mark of another length is no mark: the store then starts a new life, which is always safe.
            Ok(bytes) => Ok(bytes.try_into().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading the boot mark", error)),
        }
    }

    fn set_boot_mark(&mut self, mark: [u8; 16]) -> Result<(), StorageError> {
        let write = || -> io::Result<()> {
            let beside = self.path.join("boot.new");
            let mut file = File::create(&beside)?;
            file.write_all(&mark)?;
            file.sync_all()?;
            fs::rename(&beside, self.path.join(BOOT_FILE))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| io_error("writing the boot mark", error))
    }

    fn stats(&self) -> StorageStats {
        let disk_bytes = fs::metadata(self.path.join("db")).map_or(0, |meta| meta.len());
        StorageStats { disk_bytes, ..self.stats }
    }

    fn close(mut self: Box<Self>) -> Result<(), StorageError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let synced = guarded("flushing", || open.db.flush()).map_err(Failure::from).and_then(|_| open.sync_log());
        let _closed = catch_unwind(AssertUnwindSafe(move || drop(open)));
        synced.map_err(|failure| failure.error)
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
        let is_new = !path.join("db").exists();
        let config = ::sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .mode(::sled::Mode::LowSpace);
        let mut tries = 0..LOCK_TRIES;
        let db = loop {
            match catch_unwind(AssertUnwindSafe(|| config.open())) {
                Ok(Ok(db)) => break db,
                Ok(Err(error)) => match open_error(path, error) {
                    // A handle closed just before keeps the lock until sled's own threads have let go of it.
                    StorageError::InUse { .. } if tries.next().is_some() => pause(),
                    error => return Err(error),
                },
                Err(_panic) => return Err(damaged(path, "opening it panicked".to_owned())),
            }
        };
        let log = File::open(path.join("db")).map_err(|error| io_error("opening the log", error))?;
        let open = Self { folder: path.to_owned(), db, log, blobs: Vec::new() };
        if is_new {
            open.settle(path).map_err(|error| io_error("creating the database", error))?;
        }
        Ok(open)
    }

    /// Makes a new folder durable: every file in it, the folder, and its entry in the parent.
    fn settle(&self, path: &Path) -> io::Result<()> {
        self.db.flush().map_err(|error| io::Error::other(error.to_string()))?;
        for entry in fs::read_dir(path)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(path)?.sync_all()?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
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
        guarded("writing a batch", || self.db.apply_batch(batch))?;
        guarded("flushing", || self.db.flush())?;
        self.sync_blobs()?;
        self.sync_log()
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

    fn part_count(&self, key: &[u8]) -> Result<u16, StorageError> {
        let head = guarded("reading", || self.db.get(head_key(key)))?;
        Ok(head.and_then(|head| head.first_chunk::<2>().copied()).map_or(0, u16::from_be_bytes))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(head) = guarded("reading", || self.db.get(head_key(key)))? else { return Ok(None) };
        self.assemble(key, &head).map(Some)
    }

    fn scan(&self, prefix: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, StorageError> {
        let heads =
            guarded("scanning", || self.db.scan_prefix(head_key(prefix)).collect::<Result<Vec<_>, ::sled::Error>>())?;
        let mut pairs = BTreeMap::new();
        for (key, head) in heads {
            let key = key.get(1..).unwrap_or_default().to_vec();
            let value = self.assemble(&key, &head)?;
            pairs.insert(key, value);
        }
        Ok(pairs)
    }

    fn assemble(&self, key: &[u8], head: &[u8]) -> Result<Vec<u8>, StorageError> {
        let broken = || damaged(&self.folder, "a value is incomplete".to_owned());
        let (count, first) = head.split_first_chunk::<2>().ok_or_else(broken)?;
        let mut value = first.to_vec();
        for part in 1..u16::from_be_bytes(*count) {
            let bytes = guarded("reading", || self.db.get(part_key(key, part)))?.ok_or_else(broken)?;
            value.extend_from_slice(&bytes);
        }
        Ok(value)
    }
}

#[expect(clippy::disallowed_methods, reason = "opening waits for the disk anyway, on a thread of its own")]
fn pause() {
    std::thread::sleep(LOCK_PAUSE);
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

/// Runs a call into sled; a panic inside counts as damage would, for it leaves the database unusable.
fn guarded<T>(doing: &'static str, call: impl FnOnce() -> Result<T, ::sled::Error>) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(::sled::Error::Io(error))) => Err(io_error(doing, error)),
        Ok(Err(error)) => Err(io_error(doing, io::Error::other(error.to_string()))),
        Err(_panic) => Err(io_error(doing, io::Error::other("the database panicked"))),
    }
}

fn open_error(path: &Path, error: ::sled::Error) -> StorageError {
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
            _other => io_error("opening", error),
        },
        other => damaged(path, other.to_string()),
    }
}

fn damaged(path: &Path, reason: String) -> StorageError {
    StorageError::Damaged { path: path.to_owned(), reason }
}

fn io_error(doing: &'static str, source: io::Error) -> StorageError {
    // sled rebuilds errors from kind and text, so the raw code may be gone; the kind remains.
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => StorageError::Full,
        _other => StorageError::Io { doing, source },
    }
}
