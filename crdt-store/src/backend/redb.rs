//! Storage on disk by redb, behind the feature `redb`: the same promises as sled's, with less beside it.
//!
//! redb syncs by itself and commits a batch whole or not at all. What it leaves undone:
//!
//! - After an error of the disk an open database fails for ever: it is closed, and opened again for the next batch.
//! - A commit that failed may be found there all the same; see `undo`.
//! - After a failed sync nobody knows what the file holds: no batch is taken until the database was written anew.
//! - Damage it meets is an error or a panic; both become [`StorageError::Damaged`].
//!
//! Layout in the folder: `redb` is the database, with one table of the caller's keys and values, and `boot` is ours.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use ::redb::{Database, DatabaseError, ReadableDatabase, TableDefinition};

use crate::{
    backend::{
        Batch, Pairs, Storage, StorageStats,
        folder::{self, damaged, io_error},
        undo::{Changes, Undo},
    },
    error::StorageError,
};

const FILE: &str = "redb";
const CACHE_BYTES: usize = 1 << 20;
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("s");

/// A database in a folder of its own.
pub struct RedbStorage {
    path: PathBuf,
    /// `None` after an error, until the next batch opens it again.
    open: Option<Database>,
    undo: Undo,
    is_broken: bool,
    stats: StorageStats,
}

impl RedbStorage {
    /// Opens or creates the database in `path`; its parent must exist.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] for a folder that does not open, [`StorageError::InUse`] for one that is open
    /// elsewhere, [`StorageError::Full`] and [`StorageError::Io`].
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        folder::finish_swap(path)?;
        let open = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            open: Some(open),
            undo: Undo::default(),
            is_broken: false,
            stats: StorageStats::default(),
        })
    }

    #[cfg(test)]
    pub(super) const fn break_it(&mut self) {
        self.is_broken = true;
    }

    fn database(&self) -> Result<&Database, StorageError> {
        self.open.as_ref().ok_or_else(|| io_error("reading", io::Error::other("closed after an error")))
    }

    fn try_apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        let database = match self.open.take() {
            Some(database) => database,
            None => open(&self.path)?,
        };
        let attempt = self.undo.attempt(batch, |key| get(&self.path, &database, key))?;
        match guarded(&self.path, "writing a batch", || write(&database, &attempt.wanted)) {
            Ok(()) => {
                self.open = Some(database);
                self.undo.clear();
                Ok(())
            }
            Err(error) => {
                self.undo.failed(attempt);
                close(database);
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for RedbStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStorage").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Storage for RedbStorage {
    fn apply(&mut self, batch: &Batch) -> Result<(), StorageError> {
        if self.is_broken {
            return Err(StorageError::ReadOnly);
        }
        let applied = self.try_apply(batch);
        match &applied {
            Ok(()) => self.stats.batches += 1,
            Err(error) => {
                self.stats.failures += 1;
                // redb does not tell a failed sync from other errors of the disk.
                self.is_broken = !matches!(error, StorageError::Full);
            }
        }
        applied
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match self.undo.get(key) {
            Some(value) => Ok(value.clone()),
            None => get(&self.path, self.database()?, key),
        }
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, StorageError> {
        let pairs = guarded(&self.path, "reading", || scan(self.database()?, prefix))?;
        Ok(self.undo.overlay(prefix, pairs))
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
        let write_anew = || {
            let database = open(&fresh)?;
            let all = all.changes().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
            guarded(&fresh, "writing the database anew", || write(&database, &all))?;
            close(database);
            folder::set_mark(&fresh, mark)
        };
        if let Err(error) = write_anew() {
            // The next attempt clears the place as well.
            folder::remove(&fresh).ok();
            return Err(error);
        }
        if let Some(database) = self.open.take() {
            close(database);
        }
        folder::swap(&self.path)?;
        self.undo.clear();
        self.open = Some(open(&self.path)?);
        self.is_broken = false;
        Ok(())
    }

    fn stats(&self) -> StorageStats {
        let disk_bytes = fs::metadata(self.path.join(FILE)).map_or(0, |meta| meta.len());
        StorageStats { disk_bytes, ..self.stats }
    }

    fn close(mut self: Box<Self>) -> Result<(), StorageError> {
        if let Some(database) = self.open.take() {
            close(database);
        }
        Ok(())
    }
}

/// Why a call failed, in either crate's words.
enum Failure {
    Redb(::redb::Error),
    Storage(StorageError),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

fn redb(error: impl Into<::redb::Error>) -> Failure {
    Failure::Redb(error.into())
}

fn open(path: &Path) -> Result<Database, StorageError> {
    let file = path.join(FILE);
    let is_new = !file.exists();
    fs::create_dir_all(path).map_err(|error| io_error("creating the folder", error))?;
    let mut tries = 0..folder::LOCK_TRIES;
    let database = loop {
        let opened = catch_unwind(AssertUnwindSafe(|| Database::builder().set_cache_size(CACHE_BYTES).create(&file)));
        match opened {
            Ok(Ok(database)) => break database,
            // A handle closed just before may keep the lock for a moment.
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) if tries.next().is_some() => folder::pause(),
            Ok(Err(error)) => return Err(fault(path, "opening", error.into())),
            Err(_panic) => return Err(damaged(path, "opening it panicked")),
        }
    };
    guarded(path, "opening", || {
        let transaction = database.begin_write().map_err(redb)?;
        transaction.open_table(TABLE).map_err(redb)?;
        transaction.commit().map_err(redb)
    })?;
    if is_new {
        folder::settle(path).map_err(|error| io_error("creating the database", error))?;
    }
    Ok(database)
}

fn write(database: &Database, changes: &Changes) -> Result<(), Failure> {
    let transaction = database.begin_write().map_err(redb)?;
    {
        let mut table = transaction.open_table(TABLE).map_err(redb)?;
        for (key, value) in changes {
            match value {
                Some(value) => drop(table.insert(key.as_slice(), value.as_slice()).map_err(redb)?),
                None => drop(table.remove(key.as_slice()).map_err(redb)?),
            }
        }
    }
    // Durable when it returns: that is redb's default.
    transaction.commit().map_err(redb)
}

fn get(path: &Path, database: &Database, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
    guarded(path, "reading", || {
        let table = database.begin_read().map_err(redb)?.open_table(TABLE).map_err(redb)?;
        Ok(table.get(key).map_err(redb)?.map(|value| value.value().to_vec()))
    })
}

fn scan(database: &Database, prefix: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failure> {
    let table = database.begin_read().map_err(redb)?.open_table(TABLE).map_err(redb)?;
    let mut pairs = BTreeMap::new();
    for pair in table.range(prefix..).map_err(redb)? {
        let (key, value) = pair.map_err(redb)?;
        if !key.value().starts_with(prefix) {
            break;
        }
        pairs.insert(key.value().to_vec(), value.value().to_vec());
    }
    Ok(pairs)
}

/// Closing a database that met an error may panic over it.
fn close(database: Database) {
    let _closed = catch_unwind(AssertUnwindSafe(move || drop(database)));
}

/// Runs a call into redb; a panic inside means content that it cannot make sense of.
fn guarded<T>(path: &Path, doing: &'static str, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure::Redb(error))) => Err(fault(path, doing, error)),
        Ok(Err(Failure::Storage(error))) => Err(error),
        Err(_panic) => Err(damaged(path, format!("{doing} panicked"))),
    }
}

fn fault(path: &Path, doing: &'static str, error: ::redb::Error) -> StorageError {
    match error {
        ::redb::Error::DatabaseAlreadyOpen => StorageError::InUse { path: path.to_owned() },
        ::redb::Error::Io(error) => match error.kind() {
            // What a file that is too short or holds something else is called.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                damaged(path, error.to_string())
            }
            _other => io_error(doing, error),
        },
        error @ (::redb::Error::PreviousIo | ::redb::Error::DatabaseClosed) => {
            io_error(doing, io::Error::other(error.to_string()))
        }
        other => damaged(path, other.to_string()),
    }
}
