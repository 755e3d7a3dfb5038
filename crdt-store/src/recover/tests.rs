use std::fs;

use super::*;
use crate::{
    DocKey, Storage,
    backend::tests::copy,
    bundle::save_bundle,
    testing::{HashAuthority, MESH, NOW, delete, put, replica, sync, text},
};

mod matrix;

/// A node's folder and how often its store was opened.
struct Home {
    dir: tempfile::TempDir,
    boots: u64,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temp dir"), boots: 0 }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn try_open(&mut self) -> Result<Opened, StoreError> {
        self.boots += 1;
        let random: [u8; 16] = head(&sha256(&[b"boot", &self.boots.to_be_bytes()]));
        open_or_recover(&self.store(), HashAuthority::member("me"), MESH, random, NOW + self.boots * 1_000)
    }

    fn open(&mut self) -> Opened {
        self.try_open().expect("opens")
    }

    /// Names in the folder, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("reads");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn spoil(&self) {
        let log = self.store().join("db");
        let length = fs::metadata(&log).expect("exists").len();
        fs::write(log, vec![0xa5; usize::try_from(length).expect("small")]).expect("writes");
    }

    /// What a node does once a minute.
    fn snapshot(&self, replica: &mut Replica) {
        save_bundle(replica, &snapshot_path(&self.store())).expect("saves");
        replica.compact().expect("compacts");
    }
}

#[test]
fn a_sound_store_opens_as_it_was_and_leaves_nothing_beside_it() {
    let mut home = Home::new();
    let mut first = home.open();
    assert_eq!(first.recovered, None);
    put(&mut first.replica, "a", &[("spec", "1")]);
    home.snapshot(&mut first.replica);
    put(&mut first.replica, "a", &[("spec", "2")]);
    let life = first.replica.incarnation();
    first.replica.close().expect("closes");
    let second = home.open();
    assert_eq!(second.recovered, None);
    assert_eq!(second.replica.incarnation(), life);
    assert_eq!(text(&second.replica, "a").expect("exists")["spec"], "2");
    assert_eq!(home.names(), ["store", "store.snapshot"]);
}

#[test]
fn a_damaged_database_is_set_aside_and_the_snapshot_comes_back_under_a_new_life() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    for n in 0..30 {
        put(&mut first, &format!("d{n}"), &[("spec", "1")]);
    }
    delete(&mut first, "d7");
    home.snapshot(&mut first);
    let (life, root) = (first.incarnation(), first.root());
    first.close().expect("closes");
    home.spoil();
    let opened = home.open();
    let recovered = opened.recovered.expect("it was damaged");
    assert_eq!((recovered.salvaged_ops, recovered.documents), (30, 29), "{recovered:?}");
    let aside = recovered.set_aside.expect("set aside");
    assert!(aside.join("db").exists() && !recovered.reason.is_empty());
    assert_eq!(aside.file_name().expect("a name").to_string_lossy(), format!("store.bad-{}", NOW / 1_000 + 2));
    assert_ne!(opened.replica.incarnation(), life);
    assert_eq!(opened.replica.root(), root);
    opened.replica.close().expect("closes");
    let after = home.open();
    assert_eq!(after.recovered, None, "once is enough");
    assert_eq!(after.replica.root(), root);
}

#[test]
fn what_still_reads_in_a_damaged_database_comes_back_with_the_nodes_records() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    for n in 0..30 {
        put(&mut first, &format!("d{n}"), &[("spec", "1")]);
    }
    first.records().put_record("book", b"k", b"v").expect("keeps");
    let root = first.root();
    first.close().expect("closes");
    // The meta record is gone: nothing says any more what the database has seen.
    let mut storage = SledStorage::open(&home.store()).expect("opens");
    let mut batch = crate::Batch::new();
    batch.delete(b"m".to_vec());
    storage.apply(&batch).expect("applies");
    Box::new(storage).close().expect("closes");
    let mut opened = home.open();
    let recovered = opened.recovered.expect("it was damaged");
    assert_eq!((recovered.salvaged_ops, recovered.documents, recovered.records), (30, 30, 1), "{recovered:?}");
    assert_eq!(opened.replica.root(), root);
    assert_eq!(opened.replica.records().get("book", b"k"), Some(&b"v"[..]));
    opened.replica.close().expect("closes");
    let mut after = home.open();
    assert_eq!(after.replica.records().get("book", b"k"), Some(&b"v"[..]), "durably");
}

#[test]
fn after_three_openings_that_died_in_a_row_the_database_counts_as_damaged() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    put(&mut first, "a", &[("spec", "1")]);
    home.snapshot(&mut first);
    put(&mut first, "b", &[("spec", "1")]);
    first.close().expect("closes");
    for died in 1..=3 {
        let mut marker = Marker::read(&home.store());
        assert_eq!(marker.attempts, died - 1);
        marker.attempts += 1;
        marker.write(&home.store());
    }
    let opened = home.open();
    let recovered = opened.recovered.expect("three deaths are damage");
    assert!(recovered.reason.contains("3 attempts"), "{recovered:?}");
    assert_eq!((recovered.documents, recovered.salvaged_ops), (2, 2), "snapshot and journal are read all the same");
    assert!(!home.names().contains(&"store.opening".to_owned()));
}

#[test]
fn two_deaths_and_a_good_opening_are_forgotten() {
    let mut home = Home::new();
    home.open().replica.close().expect("closes");
    Marker { attempts: 2, recovering: None }.write(&home.store());
    assert_eq!(home.open().recovered, None);
    assert_eq!(home.names(), ["store"]);
}

#[test]
fn the_two_newest_databases_that_were_set_aside_are_kept() {
    let mut home = Home::new();
    for _ in 0..4 {
        let mut replica = home.open().replica;
        replica.compact().expect("compacts");
        replica.close().expect("closes");
        home.spoil();
    }
    home.open().replica.close().expect("closes");
    let seconds = NOW / 1_000;
    assert_eq!(
        home.names(),
        ["store".to_owned(), format!("store.bad-{}", seconds + 4), format!("store.bad-{}", seconds + 5)]
    );
}

#[test]
fn what_is_not_damage_is_an_error_and_nothing_is_moved() {
    let mut home = Home::new();
    let first = home.open().replica;
    let in_use = home.try_open();
    assert!(matches!(in_use, Err(StoreError::Storage(StorageError::InUse { .. }))), "{in_use:?}");
    first.close().expect("closes");
    let other = open_or_recover(&home.store(), HashAuthority::member("me"), "elsewhere", [1; 16], NOW);
    assert!(matches!(other, Err(StoreError::OtherStore { .. })), "{other:?}");
    assert_eq!(home.names(), ["store"]);
    let nowhere = home.dir.path().join("file");
    fs::write(&nowhere, b"").expect("writes");
    let failed = open_or_recover(&nowhere.join("store"), HashAuthority::member("me"), MESH, [1; 16], NOW);
    assert!(matches!(failed, Err(StoreError::Storage(StorageError::Io { .. }))), "{failed:?}");
}

/// sled alone would have lost all of it; the snapshot has nothing yet.
#[test]
fn what_came_after_the_snapshot_comes_back_from_the_journal_when_sled_does_not_open() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    put(&mut first, "kept", &[("spec", "1")]);
    put(&mut first, "old", &[("spec", "1")]);
    put(&mut first, "gone", &[("spec", "1")]);
    home.snapshot(&mut first);
    for n in 0..30 {
        put(&mut first, &format!("d{n}"), &[("spec", "1")]);
    }
    put(&mut first, "old", &[("spec", "2")]);
    delete(&mut first, "gone");
    first.records().put_record("book", b"k", b"v").expect("keeps");
    let root = first.root();
    first.close().expect("closes");
    home.spoil();
    let mut opened = home.open();
    assert_eq!(opened.replica.root(), root, "{:?}", opened.recovered);
    assert_eq!(text(&opened.replica, "old").expect("exists")["spec"], "2");
    assert_eq!(opened.replica.records().get("book", b"k"), Some(&b"v"[..]));
    let recovered = opened.recovered.expect("sled was damaged");
    assert_eq!(recovered.documents, 32);
}

/// A file cut back to an earlier end opens without complaint; only the snapshot knows that there was more.
#[test]
fn a_database_that_went_back_in_time_takes_a_new_life_and_what_the_snapshot_has() {
    let mut home = Home::new();
    let mut own = home.open().replica;
    put(&mut own, "a", &[("spec", "1")]);
    // What a log cut at this point holds, with the same mark beside it.
    let earlier = home.dir.path().join("earlier");
    copy(&home.store(), &earlier);
    let life = own.incarnation();
    put(&mut own, "a", &[("spec", "2")]);
    put(&mut own, "b", &[("spec", "1")]);
    home.snapshot(&mut own);
    let root = own.root();
    own.close().expect("closes");
    fs::remove_dir_all(home.store()).expect("removes");
    fs::rename(&earlier, home.store()).expect("renames");
    let opened = home.open();
    let recovered = opened.recovered.expect("it has seen less");
    assert_eq!((recovered.set_aside, recovered.salvaged_ops, recovered.documents), (None, 2, 2));
    assert_ne!(opened.replica.incarnation(), life, "the next op would stand under a dot that was used");
    assert_eq!(opened.replica.root(), root);
}

/// Nothing of what this life wrote later is live any more; the head of the snapshot alone tells that it was written.
#[test]
fn a_database_that_lost_only_superseded_writes_takes_a_new_life_too() {
    let mut home = Home::new();
    let mut own = home.open().replica;
    put(&mut own, "a", &[("spec", "1")]);
    let earlier = home.dir.path().join("earlier");
    copy(&home.store(), &earlier);
    let life = own.incarnation();
    let mut peer = replica("peer");
    put(&mut own, "a", &[("spec", "2")]);
    sync(&mut own, &mut peer).expect("syncs");
    put(&mut peer, "a", &[("spec", "3")]);
    sync(&mut own, &mut peer).expect("syncs");
    home.snapshot(&mut own);
    own.close().expect("closes");
    fs::remove_dir_all(home.store()).expect("removes");
    fs::rename(&earlier, home.store()).expect("renames");
    let opened = home.open();
    assert_eq!(opened.recovered.expect("it has seen less").salvaged_ops, 1);
    assert_ne!(opened.replica.incarnation(), life, "the next op would stand under a dot that was used");
    assert_eq!(text(&opened.replica, "a").expect("exists")["spec"], "3");
}

#[test]
fn a_folder_that_was_removed_is_refilled_from_the_snapshot() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    put(&mut first, "a", &[("spec", "1")]);
    home.snapshot(&mut first);
    first.close().expect("closes");
    fs::remove_dir_all(home.store()).expect("removes");
    let opened = home.open();
    assert_eq!(opened.recovered.expect("it has seen less").documents, 1);
}

#[test]
fn a_recovery_that_was_cut_short_goes_on_where_it_stopped() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    put(&mut first, "a", &[("spec", "1")]);
    let root = first.root();
    first.close().expect("closes");
    // Power went after the database was moved and before anything was brought back.
    let aside = home.dir.path().join("store.bad-77");
    fs::rename(home.store(), &aside).expect("renames");
    let recovering = marker::Recovering { set_aside: "store.bad-77".to_owned(), reason: "bits".to_owned() };
    Marker { attempts: 1, recovering: Some(recovering) }.write(&home.store());
    let opened = home.open();
    let recovered = opened.recovered.expect("a recovery was going on");
    assert_eq!((recovered.reason.as_str(), recovered.salvaged_ops), ("bits", 1));
    assert_eq!(recovered.set_aside, Some(aside));
    assert_eq!(opened.replica.root(), root);
    assert!(!home.names().contains(&"store.opening".to_owned()));
}

#[test]
fn a_marker_that_is_rubbish_counts_as_one_attempt() {
    let mut home = Home::new();
    home.open().replica.close().expect("closes");
    for rubbish in ["", "x", "-1\n", "99999999999999999999\n", "\u{0}\u{0}"] {
        fs::write(home.dir.path().join("store.opening"), rubbish).expect("writes");
        let marker = Marker::read(&home.store());
        assert_eq!(marker, Marker { attempts: 1, recovering: None }, "{rubbish:?}");
    }
    for outside in ["1\n../other\nx\n", "1\n..\nx\n", "1\n/etc\nx\n"] {
        fs::write(home.dir.path().join("store.opening"), outside).expect("writes");
        assert_eq!(Marker::read(&home.store()).recovering, None, "{outside:?}");
    }
    assert_eq!(home.open().recovered, None);
}

#[test]
fn looking_at_a_store_tells_what_it_holds_and_changes_nothing() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    let mut peer = replica("peer");
    put(&mut first, "a", &[("spec", "1")]);
    sync(&mut first, &mut peer).expect("syncs");
    put(&mut first, "a", &[("spec", "2")]);
    put(&mut peer, "a", &[("spec", "3")]);
    put(&mut peer, "gone", &[("spec", "3")]);
    delete(&mut peer, "gone");
    sync(&mut first, &mut peer).expect("syncs");
    home.snapshot(&mut first);
    let (root, life) = (first.root(), first.incarnation());
    first.close().expect("closes");
    let mark = fs::read(home.store().join("boot")).expect("reads");
    let look = || examine(&home.store(), HashAuthority::member("me"), MESH, [9; 16], NOW).expect("looks");
    for _ in 0..2 {
        let report = look();
        assert_eq!(report.faults, Vec::<String>::new());
        assert_eq!((report.documents, report.conflicts, report.tombstones, report.ops), (1, 1, 1, 3));
        assert_eq!((report.root, report.snapshot_ops), (Some(root), Some(3)));
        assert!(report.disk_bytes > 0);
        folder::wait_unlocked(&home.store().join("db"));
    }
    let frozen = open_frozen(&home.store(), HashAuthority::member("me"), MESH, [9; 16], NOW).expect("opens");
    assert_eq!((frozen.root(), frozen.incarnation()), (root, life));
    frozen.close().expect("closes");
    assert_eq!(fs::read(home.store().join("boot")).expect("reads"), mark);
    assert_eq!(home.names(), ["store", "store.snapshot"]);
    assert_eq!(home.open().replica.incarnation(), life);
}

#[test]
fn looking_at_a_damaged_store_names_each_fault() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    for n in 0..4 {
        put(&mut first, &format!("d{n}"), &[("spec", "1")]);
    }
    home.snapshot(&mut first);
    first.close().expect("closes");
    let mut storage = SledStorage::open(&home.store()).expect("opens");
    let mut ops = storage.scan(b"o").expect("scans");
    let mut batch = crate::Batch::new();
    ops[0].1[40] ^= 1;
    batch.put(ops[0].0.clone(), ops[0].1.clone());
    batch.put(ops[1].0.clone(), ops[2].1.clone());
    storage.apply(&batch).expect("applies");
    Box::new(storage).close().expect("closes");
    let snapshot = snapshot_path(&home.store());
    let bytes = fs::read(&snapshot).expect("reads");
    fs::write(&snapshot, &bytes[..bytes.len() - 1]).expect("writes");
    let report = examine(&home.store(), HashAuthority::member("me"), MESH, [9; 16], NOW).expect("looks");
    let faults = report.faults.join("\n");
    assert_eq!(report.faults.len(), 4, "{faults}");
    for word in ["snapshot does not read", ":1: checksum", ":2: lies under another's key", "store does not open"] {
        assert!(faults.contains(word), "{word}: {faults}");
    }
    assert_eq!(report.root, None);
    folder::wait_unlocked(&home.store().join("db"));
    home.spoil();
    let report = examine(&home.store(), HashAuthority::member("me"), MESH, [9; 16], NOW).expect("looks");
    assert!(report.faults.iter().any(|fault| fault.contains("database does not open")), "{report:?}");
    assert_eq!(home.names(), ["store", "store.snapshot"]);
}

#[test]
fn documents_that_nobody_signed_are_not_salvaged() {
    let mut home = Home::new();
    let mut first = home.open().replica;
    put(&mut first, "a", &[("spec", "1")]);
    put(&mut first, "b", &[("spec", "1")]);
    first.close().expect("closes");
    let mut storage = SledStorage::open(&home.store()).expect("opens");
    let mut batch = crate::Batch::new();
    batch.delete(b"m".to_vec());
    for (n, (key, bytes)) in storage.scan(b"o").expect("scans").into_iter().enumerate() {
        if n == 0 {
            // Rewritten by somebody who knows the format and not the key.
            batch.put(key, crate::replica::forged(&bytes));
        }
    }
    storage.apply(&batch).expect("applies");
    Box::new(storage).close().expect("closes");
    let opened = home.open();
    assert_eq!(opened.recovered.expect("damaged").documents, 1);
    assert!(opened.replica.document(&DocKey::new("HTTPRoute", "global", "a")).is_none());
}
