//! A folder that an earlier version left opens with everything that was in it.

use std::path::{Path, PathBuf};

use crate::{
    Edit, OpKind, Replica, SledStorage, WriteMeta,
    testing::{NOW, body, delete, key, put, replica, replica_on, sync, text},
};

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join("stored-v1")
}

/// What the folder was made with, by the program before tombstones were collected. With `MARRAM_WRITE_GOLDEN` set it
/// is written where it is missing; never over one that is there.
fn make(path: &Path) {
    let mut a = replica_on("a", Box::new(SledStorage::open(path).expect("opens")), 0);
    let mut b = replica("b");
    let meta = WriteMeta { idempotency_key: "k".to_owned(), message: "first".to_owned(), ..WriteMeta::default() };
    a.write(vec![Edit::put(key("plain"), body(&[("x", "1"), ("y", "2")]))], meta, NOW).expect("writes");
    put(&mut a, "conflict", &[("x", "0")]);
    put(&mut a, "edited-beside", &[("x", "0"), ("y", "0")]);
    put(&mut a, "gone", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "conflict", &[("x", "a")]);
    put(&mut b, "conflict", &[("x", "b")]);
    delete(&mut a, "edited-beside");
    put(&mut b, "edited-beside", &[("x", "kept"), ("y", "0")]);
    put(&mut b, "theirs", &[("x", "3")]);
    delete(&mut a, "gone");
    sync(&mut a, &mut b).expect("syncs");
    a.records().put_record("addresses", b"n1", b"10.0.0.1:7440").expect("stores");
    a.close().expect("closes");
}

/// A copy that sled may write to.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("temp dir");
    for entry in std::fs::read_dir(from).expect("the folder is in the repository") {
        let entry = entry.expect("reads");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copies");
        }
    }
}

fn open(path: &Path, boot: u64) -> Replica {
    replica_on("a", Box::new(SledStorage::open(path).expect("opens")), boot)
}

#[test]
fn a_folder_of_version_1_opens_with_all_it_held() {
    if !kept().exists() && std::env::var_os("MARRAM_WRITE_GOLDEN").is_some() {
        make(&kept());
    }
    let folder = tempfile::tempdir().expect("temp dir");
    let path = folder.path().join("db");
    copy(&kept(), &path);
    let mut a = open(&path, 1);
    let life = a.incarnation();
    assert_eq!(text(&a, "plain"), Some([("x", "1"), ("y", "2")].map(|(n, v)| (n.to_owned(), v.to_owned())).into()));
    assert_eq!(a.document(&key("plain")).expect("there").message, "first");
    assert_eq!(a.document(&key("conflict")).expect("there").conflicts.len(), 1);
    let beside = a.document(&key("edited-beside")).expect("there");
    assert!(beside.deleted_concurrently && beside.sections["x"] == b"kept"[..]);
    assert_eq!(text(&a, "gone"), None);
    assert!(text(&a, "theirs").is_some());
    let summary = a.summary();
    assert_eq!((summary.documents, summary.conflicts, summary.tombstones, summary.counter), (4, 2, 1, 7));
    assert_eq!(a.records().get("addresses", b"n1"), Some(&b"10.0.0.1:7440"[..]));
    let meta = || WriteMeta { idempotency_key: "k".to_owned(), message: "first".to_owned(), ..WriteMeta::default() };
    let edits = vec![Edit::put(key("plain"), body(&[("x", "1"), ("y", "2")]))];
    assert!(a.write(edits, meta(), NOW + 1).expect("replays").is_replay);
    // It goes on from there, and opens again.
    let settle = WriteMeta { op_kind: OpKind::Resolve, ..WriteMeta::default() };
    a.write(vec![Edit::put(key("conflict"), body(&[("x", "both")]))], settle, NOW).expect("writes");
    put(&mut a, "plain", &[("x", "2")]);
    a.close().expect("closes");
    let mut a = open(&path, 2);
    assert_eq!(a.incarnation(), life);
    assert_eq!((a.summary().documents, a.summary().conflicts, a.summary().counter), (4, 1, 9));
    let mut b = replica("new");
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(a.root(), b.root());
}
