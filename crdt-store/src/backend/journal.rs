//! A file that batches are appended to and synced, before the database behind it hears of them.
//!
//! The database is written now and then, many batches at once; whatever becomes of it, the journal has every batch that
//! was acknowledged since the last time somebody else kept a copy of everything. Read from its beginning it gives the
//! final value of each key that was touched, so it may be laid over a database that has some of it already.
//!
//! Layout, all numbers big-endian: `MAGIC`, salt (8 bytes), then records: salt, number of the record (u64), length of
//! the body (u32), CRC-32C over number and body, body. A body is a run of changes: length of the key (u16), key, length
//! of the value (u32; all ones for a removal), value. A record is synced before the next one is written, so only the
//! last one can be unfinished. The salt is drawn anew for each file, so that no document can look like a record.

use std::{
    fs::{File, OpenOptions, TryLockError},
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    backend::{
        Batch,
        folder::{self, damaged, io_error},
        undo::Changes,
    },
    error::StorageError,
};

/// Name of the file in the database's folder.
pub(super) const JOURNAL_FILE: &str = "journal";
/// Its lock: who holds it uses the folder.
const LOCK_FILE: &str = "lock";
const MAGIC: &[u8; 16] = b"marram journal 1";
const RECORD_HEAD_BYTES: usize = 24;
/// Room that a disk must have again once it was full.
const ROOM_BYTES: u64 = 256 << 10;
/// Stands for the length of a value that is removed.
const REMOVED: u32 = u32::MAX;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    salt: [u8; 8],
    /// Number of the next record.
    next: u64,
    /// Bytes up to the end of the last record that was acknowledged.
    end: u64,
    /// True where bytes may lie behind the end, or where nobody knows whether the disk has what the file shows: it is
    /// written anew before it is appended to.
    is_doubtful: bool,
    is_new: bool,
    /// The disk was full: nothing is taken until it has room for more than the next record, so that small batches do not
    /// slip in between refused ones and make the disk look well.
    is_full: bool,
}

/// What a journal holds.
#[derive(Debug, Default)]
pub(super) struct Content {
    salt: [u8; 8],
    records: u64,
    end: usize,
    /// The last value of each key.
    pub(super) changes: Changes,
}

/// Why appending failed.
pub(super) enum AppendError {
    /// Nothing of it counts; the next batch may succeed.
    Undone(StorageError),
    /// The kernel may have dropped what it could not write.
    Unknown(StorageError),
}

/// Takes the lock of a folder, which must exist; waits two seconds for one that is let go of late.
pub(super) fn lock(folder: &Path) -> Result<File, StorageError> {
    let taking = |error| io_error("taking the lock of the database", error);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(LOCK_FILE));
    let file = file.map_err(taking)?;
    let mut tries = 0..folder::LOCK_TRIES;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tries.next().is_some() => folder::pause(),
            Err(TryLockError::WouldBlock) => return Err(StorageError::InUse { path: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(taking(error)),
        }
    }
}

/// What the journal of a folder holds; an unfinished record at its end is left out.
///
/// # Errors
/// [`StorageError::Damaged`] where something is wrong before the end, [`StorageError::Io`].
pub(super) fn read(folder: &Path) -> Result<Content, StorageError> {
    match std::fs::read(folder.join(JOURNAL_FILE)) {
        Ok(bytes) => {
            let (content, fault) = parse(&bytes);
            fault.map_or(Ok(content), |fault| Err(damaged(folder, fault)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Content::default()),
        Err(error) => Err(io_error("reading the journal", error)),
    }
}

/// What can be read of a damaged journal: every record before the fault.
pub(super) fn readable(folder: &Path) -> Changes {
    std::fs::read(folder.join(JOURNAL_FILE)).map(|bytes| parse(&bytes).0.changes).unwrap_or_default()
}

impl Journal {
    /// Goes on with what was read. The file is written anew: a process that failed to sync it before this one may have
    /// left pages that the kernel calls clean and the disk does not have.
    pub(super) fn resume(folder: &Path, content: &Content) -> Result<Self, StorageError> {
        let path = folder.join(JOURNAL_FILE);
        match Self::create(&path, &content.changes) {
            Ok(journal) => Ok(journal),
            // A disk that takes no writes must not keep a node from starting.
            Err(error) if path.exists() => {
                tracing::warn!(%error, "journal not written anew; trying again with the next write");
                let file = OpenOptions::new().write(true).open(&path);
                let file = file.map_err(|error| io_error("opening the journal", error))?;
                let end = u64::try_from(content.end).unwrap_or(u64::MAX);
                Ok(Self {
                    path,
                    file,
                    salt: content.salt,
                    next: content.records,
                    end,
                    is_doubtful: true,
                    is_new: false,
                    is_full: false,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// A new file in the place of the old one, durable, that holds these changes.
    fn create(path: &Path, changes: &Changes) -> Result<Self, StorageError> {
        let fresh = folder::beside(path, "new");
        let salt = RandomState::new().hash_one(path).to_be_bytes();
        let write = || -> io::Result<(File, u64, u64)> {
            let mut bytes = [MAGIC.as_slice(), &salt].concat();
            let mut records = 0;
            if !changes.is_empty() {
                bytes.extend_from_slice(&record(&salt, 0, changes.iter().map(|(k, v)| (k.as_slice(), v.as_deref())))?);
                records = 1;
            }
            let mut file = File::create(&fresh)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&fresh, path)?;
            folder::sync(folder::parent(path))?;
            Ok((file, records, u64::try_from(bytes.len()).unwrap_or(u64::MAX)))
        };
        let (file, next, end) = write().map_err(|error| io_error("writing a new journal", error))?;
        Ok(Self { path: path.to_owned(), file, salt, next, end, is_doubtful: false, is_new: false, is_full: false })
    }

    /// Appends a batch and, with `syncs`, makes it durable.
    pub(super) fn append(&mut self, batch: &Batch, syncs: bool) -> Result<(), AppendError> {
        if self.is_doubtful {
            self.write_anew().map_err(AppendError::Undone)?;
        }
        let writing = |error| io_error("writing to the journal", error);
        if self.is_full {
            self.make_room().map_err(|error| AppendError::Undone(writing(error)))?;
            self.is_full = false;
        }
        let bytes = record(&self.salt, self.next, batch.changes()).map_err(|e| AppendError::Undone(writing(e)))?;
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            // What was written of it is cut off; where that fails too, the file is written anew before the next batch.
            self.is_doubtful = self.file.set_len(self.end).is_err();
            let error = writing(error);
            self.is_full = matches!(error, StorageError::Full);
            return Err(AppendError::Undone(error));
        }
        if syncs && let Err(error) = self.file.sync_data() {
            self.is_doubtful = true;
            return Err(AppendError::Unknown(io_error("syncing the journal", error)));
        }
        self.next += 1;
        self.is_new = false;
        self.end += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Claims room for the next batches on a disk that was full; an error where it still is. File systems that cannot
    /// claim room are taken at their word when they are written to.
    fn make_room(&self) -> io::Result<()> {
        let claim = rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::KEEP_SIZE, self.end, ROOM_BYTES);
        match claim {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) | Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another file with the same content in its place, of which the disk has all.
    fn write_anew(&mut self) -> Result<(), StorageError> {
        let mut bytes = std::fs::read(&self.path).map_err(|error| io_error("reading the journal", error))?;
        bytes.truncate(usize::try_from(self.end).unwrap_or(usize::MAX));
        let (content, fault) = parse(&bytes);
        if let Some(fault) = fault.or((content.records != self.next).then_some("the journal lost records")) {
            return Err(damaged(folder::parent(&self.path), fault));
        }
        *self = Self::create(&self.path, &content.changes)?;
        Ok(())
    }

    /// Begins anew with some pairs: all else that it holds is kept elsewhere.
    pub(super) fn restart(&mut self, kept: &Batch) -> Result<(), StorageError> {
        let kept = kept.changes().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
        *self = Self::create(&self.path, &kept)?;
        self.is_new = true;
        Ok(())
    }

    /// Bytes of the file.
    pub(super) const fn bytes(&self) -> u64 {
        self.end
    }

    /// True where nothing was appended since it was begun anew.
    pub(super) const fn is_new(&self) -> bool {
        self.is_new
    }
}

fn checksum(number: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_be_bytes()), body)
}

/// One record.
fn record<'a>(
    salt: &[u8; 8],
    number: u64,
    changes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let mut bytes = vec![0; RECORD_HEAD_BYTES];
    for (key, value) in changes {
        bytes.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_be_bytes());
        bytes.extend_from_slice(key);
        let length = value.map_or(Ok(REMOVED), |value| u32::try_from(value.len()).map_err(too_long))?;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(value.unwrap_or_default());
    }
    let (head, body) = bytes.split_at_mut(RECORD_HEAD_BYTES);
    let length = u32::try_from(body.len()).map_err(too_long)?;
    let sum = checksum(number, body).to_be_bytes();
    head.copy_from_slice(&[salt.as_slice(), &number.to_be_bytes(), &length.to_be_bytes(), &sum].concat());
    Ok(bytes)
}

/// Reads as far as it goes; the second value says what is wrong where it should go further.
fn parse(bytes: &[u8]) -> (Content, Option<&'static str>) {
    let Some((magic, (salt, mut rest))) =
        bytes.split_first_chunk::<16>().and_then(|(magic, rest)| Some((magic, rest.split_first_chunk::<8>()?)))
    else {
        // A file is complete before it gets its name.
        return (Content::default(), Some("the journal is cut short"));
    };
    if magic != MAGIC {
        return (Content::default(), Some("the journal begins with something else"));
    }
    let mut content = Content { salt: *salt, records: 0, end: bytes.len() - rest.len(), changes: Changes::new() };
    while let Some((number, body, after)) = next_record(salt, rest).filter(|(number, ..)| *number == content.records) {
        if read_changes(body, &mut content.changes).is_none() {
            return (content, Some("a record of the journal does not read"));
        }
        content.records = number + 1;
        content.end = bytes.len() - after.len();
        rest = after;
    }
    // The last record may be unfinished; one that follows a broken one proves that something acknowledged is missing.
    let mut places = rest.windows(salt.len()).enumerate().filter(|(_, window)| window == salt).map(|(at, _)| at);
    let is_followed = places.any(|at| rest.get(at..).and_then(|later| next_record(salt, later)).is_some());
    (content, is_followed.then_some("a record in the middle of the journal is damaged"))
}

/// Number and body of a record, and what follows it; `None` where there is no whole one.
fn next_record<'a>(salt: &[u8; 8], bytes: &'a [u8]) -> Option<(u64, &'a [u8], &'a [u8])> {
    let (tag, rest) = bytes.split_first_chunk::<8>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let number = u64::from_be_bytes(*number);
    let is_whole = tag == salt && checksum(number, body) == u32::from_be_bytes(*sum);
    is_whole.then_some((number, body, rest))
}

fn read_changes(mut body: &[u8], changes: &mut Changes) -> Option<()> {
    while !body.is_empty() {
        let (length, rest) = body.split_first_chunk::<2>()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length);
        let (value, rest) = match length {
            REMOVED => (None, rest),
            _ => rest.split_at_checked(usize::try_from(length).ok()?).map(|(value, rest)| (Some(value), rest))?,
        };
        changes.insert(key.to_vec(), value.map(<[u8]>::to_vec));
        body = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests;
