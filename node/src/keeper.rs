//! What outlives a restart besides policy: this life's number, the SWIM incarnation, and where peers were last.
//!
//! The two numbers stand in `DIR/life`, a small file that is replaced whole and synced. The address book is a record
//! in the store; losing its newest seconds costs nothing but a slower first contact.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;
use transport::NodeId;
use transport::addressbook::AddressBook;

use crate::store::StoreHandle;

/// Table of the address book in the store.
pub const BOOK_TABLE: &str = "addressbook";
/// Key of the address book in its table.
pub const BOOK_KEY: &[u8] = b"book";
/// A changed address book is written at most this often.
const BOOK_EVERY_MS: u64 = 10_000;

/// The numbers of one life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// Strictly rising over restarts: at least one more than the last, and not below the wall clock in milliseconds.
    pub generation: u64,
    /// SWIM incarnation, at least one more than the last.
    pub incarnation: u32,
}

/// Reads `DIR/life`, takes the next numbers and makes them durable before anybody sees them.
///
/// # Errors
/// When the file cannot be written; a node whose numbers could repeat must not start.
pub fn next_life(dir: &Path, unix_ms: u64) -> std::io::Result<Lives> {
    let path = dir.join(LIFE_FILE);
    let last = fs::read_to_string(&path).ok().and_then(|text| parse(&text));
    let lives = Lives {
        generation: last.map_or(0, |last| last.generation.saturating_add(1)).max(unix_ms),
        incarnation: last.map_or(1, |last| last.incarnation.saturating_add(1)),
    };
    write(dir, lives)?;
    Ok(lives)
}

/// Keeps the numbers and the address book of a running node.
#[derive(Debug)]
pub struct Keeper {
    dir: PathBuf,
    generation: u64,
    book: Mutex<AddressBook>,
    changed: AtomicBool,
    written_ms: AtomicU64,
    highest: Arc<Mutex<u32>>,
    store: StoreHandle,
}

impl Keeper {
    /// Starts with what was kept.
    #[must_use]
    pub fn new(dir: &Path, generation: u64, book: AddressBook, store: StoreHandle) -> Self {
        Self {
            dir: dir.to_owned(),
            generation,
            book: Mutex::new(book),
            changed: AtomicBool::new(false),
            written_ms: AtomicU64::new(0),
            highest: Arc::default(),
            store,
        }
    }

    /// The SWIM incarnation rose: the next life must begin above it.
    pub fn incarnation(&self, incarnation: u32) {
        let (dir, lives) = (self.dir.clone(), Lives { generation: self.generation, incarnation });
        let highest = Arc::clone(&self.highest);
        tokio::task::spawn_blocking(move || {
            // One writer at a time, and never a lower number over a higher one.
            let mut highest = highest.lock().unwrap_or_else(PoisonError::into_inner);
            if incarnation <= *highest {
                return;
            }
            match write(&dir, lives) {
                Ok(()) => *highest = incarnation,
                Err(fault) => {
                    warn!(%fault, "incarnation not kept; a restart may take a moment longer to be believed");
                }
            }
        });
    }

    /// A peer told where it is.
    pub fn met(&self, node: NodeId, name: &str, address: SocketAddr, unix: Duration) {
        if self.book().seen(node, name, address, unix.as_secs()) {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// The node that carries this label, also when it was last heard in an earlier life of this one.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<NodeId> {
        self.book().named(name)
    }

    /// A node is gone for good; its label is free again.
    pub fn forget(&self, node: NodeId) {
        self.book().forget(&node);
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Writes the address book when it changed and the last writing is long enough ago.
    pub fn tick(&self, now: Duration) {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let written_ms = self.written_ms.load(Ordering::Relaxed);
        // The first addresses are kept at once: a node that dies young must find its way back too.
        let due = written_ms == 0 || now_ms.saturating_sub(written_ms) >= BOOK_EVERY_MS;
        if !due || !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        self.written_ms.store(now_ms.max(1), Ordering::Relaxed);
        let bytes = self.book().to_bytes();
        self.store.keep_record(BOOK_TABLE, BOOK_KEY.to_vec(), bytes);
    }

    fn book(&self) -> MutexGuard<'_, AddressBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const LIFE_FILE: &str = "life";

fn parse(text: &str) -> Option<Lives> {
    let mut words = text.split_whitespace();
    Some(Lives { generation: words.next()?.parse().ok()?, incarnation: words.next()?.parse().ok()? })
}

fn write(dir: &Path, lives: Lives) -> std::io::Result<()> {
    let (path, next) = (dir.join(LIFE_FILE), dir.join("life.next"));
    let mut file = fs::File::create(&next)?;
    writeln!(file, "{} {}", lives.generation, lives.incarnation)?;
    file.sync_all()?;
    fs::rename(&next, &path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_with_every_life_even_when_the_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = next_life(dir.path(), 1_000_000).unwrap();
        assert_eq!(first, Lives { generation: 1_000_000, incarnation: 1 });
        let second = next_life(dir.path(), 5).unwrap();
        assert_eq!(second, Lives { generation: 1_000_001, incarnation: 2 });
    }

    #[test]
    fn a_damaged_file_falls_back_to_the_wall_clock() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LIFE_FILE), "rubbish").unwrap();
        assert_eq!(next_life(dir.path(), 42).unwrap().generation, 42);
    }
}
