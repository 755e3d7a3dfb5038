//! What every database on disk does with its folder: marks it, makes it durable, puts another in its place.
//!
//! Beside the folder `store`, `store.new` is one being written to take its place and `store.old` the one that a
//! rebuilding replaced last; the mark inside is written last, so a folder with a mark is a whole one.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::error::StorageError;

/// The mark of the last opening.
const BOOT_FILE: &str = "boot";
/// How often a taken lock is tried again, and the pause between two tries.
pub(super) const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A name beside the folder: `store` and `bad` make `store.bad`.
pub(crate) fn beside(folder: &Path, word: &str) -> PathBuf {
    let mut name = folder.file_name().map(OsString::from).unwrap_or_default();
    name.push(".");
    name.push(word);
    folder.with_file_name(name)
}

/// The folder that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes names in a folder durable.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Replaces a small file whole and durably.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = beside(path, "new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync(parent(path))
}

/// The mark in a folder; one of another length is none: the store then starts a new life, which is always safe.
pub(super) fn mark(folder: &Path) -> Result<Option<[u8; 16]>, StorageError> {
    match fs::read(folder.join(BOOT_FILE)) {
        Ok(bytes) => Ok(bytes.try_into().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("reading the boot mark", error)),
    }
}

/// Leaves a mark in a folder.
pub(super) fn set_mark(folder: &Path, mark: [u8; 16]) -> Result<(), StorageError> {
    replace(&folder.join(BOOT_FILE), &mark).map_err(|error| io_error("writing the boot mark", error))
}

/// Makes a new folder durable: every file in it, the folder, and its entry in the parent.
pub(super) fn settle(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        File::open(entry?.path())?.sync_all()?;
    }
    sync(folder)?;
    sync(parent(folder))
}

/// Makes the folder, durably, where there is none; its parent must exist.
pub(super) fn create(folder: &Path) -> Result<(), StorageError> {
    let create = || match fs::create_dir(folder) {
        Ok(()) => sync(parent(folder)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    create().map_err(|error| io_error("creating the folder of the database", error))
}

/// An empty place beside the folder for the database that is to replace it.
pub(super) fn fresh(folder: &Path) -> Result<PathBuf, StorageError> {
    let fresh = beside(folder, "new");
    remove(&fresh).map_err(|error| io_error("clearing the place for a new database", error))?;
    Ok(fresh)
}

/// Puts the finished database beside the folder in its place; the one that was there is kept as `.old`.
pub(super) fn swap(folder: &Path) -> Result<(), StorageError> {
    let swap = || -> io::Result<()> {
        let old = beside(folder, "old");
        remove(&old)?;
        match fs::rename(folder, &old) {
            // An earlier swap failed after this step.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if let Err(error) = fs::rename(beside(folder, "new"), folder) {
            fs::rename(&old, folder).ok();
            return Err(error);
        }
        sync(parent(folder))
    };
    swap().map_err(|error| io_error("putting the new database in its place", error))
}

/// Ends a swap that a crash cut between its two renamings: nothing is in the place, and a whole database beside it.
pub(super) fn finish_swap(folder: &Path) -> Result<(), StorageError> {
    let fresh = beside(folder, "new");
    if folder.exists() || !fresh.join(BOOT_FILE).exists() {
        return Ok(());
    }
    let finish = || -> io::Result<()> {
        fs::rename(&fresh, folder)?;
        sync(parent(folder))
    };
    finish().map_err(|error| io_error("putting the new database in its place", error))
}

/// Waits until nobody holds the lock of a database's file any more, at most two seconds: threads of a handle that was
/// closed just before still write by name into their folder, which must not be another one by then.
pub(crate) fn wait_unlocked(file: &Path) {
    for _ in 0..LOCK_TRIES {
        let Ok(file) = File::open(file) else { return };
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => pause(),
            Ok(()) | Err(_) => return,
        }
    }
}

/// Waits a moment between two tries to take a lock.
#[expect(clippy::disallowed_methods, reason = "opening waits for the disk anyway, on a thread of its own")]
pub(super) fn pause() {
    std::thread::sleep(LOCK_PAUSE);
}

/// Removes a folder and what is in it; it need not exist.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The error of a storage for an error of the system.
pub(crate) fn io_error(doing: &'static str, source: io::Error) -> StorageError {
    // Databases rebuild errors from kind and text, so the raw code may be gone; the kind remains.
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => StorageError::Full,
        _other => StorageError::Io { doing, source },
    }
}

/// The error of a storage for content that is not an intact database.
pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> StorageError {
    StorageError::Damaged { path: path.to_owned(), reason: reason.into() }
}
