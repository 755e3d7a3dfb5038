//! How much memory a store holds after many writes, counted byte by byte: a test program of its own, because it puts its
//! own allocator in place.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chaos::clock;
use chaos::power_cut::LoneNode;
use crdt_store::{DocKey, Edit, Replica, SledStorage, WriteMeta};

/// Bytes that are allocated now.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a count.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature; this one hands everything to the system's")]
// SAFETY: every call goes to `System` with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DOCUMENTS: usize = 500;
const VERSIONS: usize = 8;
/// Documents of one write.
const TOGETHER: usize = 50;
/// What a store that was written may hold beyond one that was opened anew.
const MORE_BYTES_MAX: usize = 1 << 20;

fn open(folder: &Path, boot: u8) -> Replica {
    let storage = SledStorage::open(folder).expect("a store");
    let authority = Arc::new(LoneNode::new().expect("a key"));
    Replica::open(Box::new(storage), authority, "memory", [boot; 16], clock::unix_ms()).expect("a replica")
}

fn edit(number: usize, version: usize) -> Edit {
    let body = BTreeMap::from([("rules".to_owned(), format!("{number}-{version}-").repeat(80).into_bytes())]);
    Edit::put(DocKey::new("HTTPRoute", "global", format!("route-{number}")), body)
}

#[test]
fn a_store_that_was_written_often_holds_no_more_than_one_that_was_opened_anew() {
    let folder = tempfile::tempdir().expect("temp dir");
    let mut written = open(folder.path(), 1);
    for version in 0..VERSIONS {
        for first in (0..DOCUMENTS).step_by(TOGETHER) {
            let edits = (first..first + TOGETHER).map(|number| edit(number, version)).collect();
            written.write(edits, WriteMeta::default(), clock::unix_ms()).expect("a write");
        }
    }
    written.compact().expect("the database takes what the journal has");
    let after_writing = LIVE.load(Ordering::Relaxed);
    written.close().expect("closed");

    let mut opened = open(folder.path(), 2);
    opened.rest();
    assert_eq!(opened.documents().count(), DOCUMENTS);
    let after_opening = LIVE.load(Ordering::Relaxed);
    println!("{after_writing} bytes after writing, {after_opening} after opening");
    assert!(
        after_writing <= after_opening + MORE_BYTES_MAX,
        "{after_writing} bytes after writing, {after_opening} after opening"
    );
}
