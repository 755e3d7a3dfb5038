//! Real faults of a disk under a real store. Needs root and /dev/fuse; where they are missing, each test says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chaos::clock;
use chaos::lossfs::{self, Call, Cut, LossFs};
use chaos::power_cut::{self, LoneNode, PowerCutOptions, Sabotage, Tally};
use crdt_store::{DocKey, Edit, Replica, SledStorage, StorageError, StoreError, WriteMeta};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A mounted disk; `None`, with one line, where that cannot be.
fn disk(test: &str) -> Option<(LossFs, TempDir)> {
    if let Some(reason) = lossfs::obstacle() {
        eprintln!("skipped: {test}: {reason}");
        return None;
    }
    let folder = tempfile::tempdir().expect("temp dir");
    match LossFs::mount(folder.path(), 64 * MIB) {
        Ok(disk) => Some((disk, folder)),
        Err(error) => {
            eprintln!("skipped: {test}: a FUSE file system does not mount here: {error}");
            None
        }
    }
}

fn open(disk: &LossFs, boot: u8) -> Result<Replica, StoreError> {
    let storage = SledStorage::open(&disk.folder().join("store"))?;
    let authority = Arc::new(LoneNode::new().expect("a key"));
    Replica::open(Box::new(storage), authority, "disk-faults", [boot; 16], clock::unix_ms())
}

/// The power goes while the store is open, and comes back.
fn cut(disk: &LossFs, replica: Replica) {
    assert!(disk.cut(Cut::Clean));
    // Nothing can be synced any more; only the threads and files of the handle are to go away.
    replica.close().ok();
    disk.power_on();
}

/// Writes one document of so many repetitions of its number.
fn put(replica: &mut Replica, number: usize, repeats: usize) -> Result<(), StoreError> {
    let body = BTreeMap::from([("rules".to_owned(), format!("{number}-").repeat(repeats).into_bytes())]);
    let edit = Edit::put(DocKey::new("HTTPRoute", "global", format!("route-{number}")), body);
    replica.write(vec![edit], WriteMeta::default(), clock::unix_ms()).map(drop)
}

fn numbers(replica: &Replica) -> Vec<usize> {
    let number = |name: &str| name.strip_prefix("route-").and_then(|number| number.parse().ok());
    let mut numbers: Vec<usize> = replica.documents().filter_map(|view| number(&view.key.name)).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_full_disk_refuses_writes_and_takes_them_again_once_there_is_room() {
    let Some((disk, _folder)) = disk("a_full_disk_refuses_writes_and_takes_them_again_once_there_is_room") else {
        return;
    };
    let mut replica = open(&disk, 1).expect("a new store opens");
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        put(&mut replica, number, 300).expect("there is room");
        acknowledged.push(number);
    }
    for round in 1..=3 {
        disk.set_capacity(disk.used());
        // The pages that the log has may take a few more.
        let refused = (100 * round..100 * (round + 1)).find_map(|number| match put(&mut replica, number, 300) {
            Ok(()) => {
                acknowledged.push(number);
                None
            }
            Err(error) => Some(error),
        });
        assert!(matches!(refused, Some(StoreError::Full)), "round {round}: {refused:?}");
        let again = put(&mut replica, 1_000, 300);
        assert!(matches!(again, Err(StoreError::Full)), "round {round}: {again:?}");
        assert_eq!(numbers(&replica), acknowledged, "round {round}: reads go on, and a refused write is not seen");
        disk.set_capacity(64 * MIB);
        put(&mut replica, 100 * (round + 1) - 1, 300).expect("there is room again");
        acknowledged.push(100 * (round + 1) - 1);
    }
    cut(&disk, replica);
    let replica = open(&disk, 2).expect("the store opens after the cut");
    assert_eq!(numbers(&replica), acknowledged, "what was acknowledged on the full disk survives a power cut");
}

#[test]
fn a_failed_write_is_refused_leaves_nothing_and_the_next_one_is_taken() {
    const NAME: &str = "a_failed_write_is_refused_leaves_nothing_and_the_next_one_is_taken";
    let Some((disk, _folder)) = disk(NAME) else { return };
    let mut replica = open(&disk, 1).expect("a new store opens");
    put(&mut replica, 0, 300).expect("the disk works");
    disk.fail_next(Call::Write, 1);
    let refused = put(&mut replica, 1, 300);
    assert!(matches!(refused, Err(StoreError::Storage(StorageError::Io { .. }))), "{refused:?}");
    assert_eq!(numbers(&replica), [0]);
    put(&mut replica, 2, 300).expect("writes are taken again");
    cut(&disk, replica);
    assert_eq!(numbers(&open(&disk, 2).expect("the store opens after the cut")), [0, 2]);
}

#[test]
fn after_a_failed_sync_nothing_is_written_until_the_database_was_written_anew() {
    const NAME: &str = "after_a_failed_sync_nothing_is_written_until_the_database_was_written_anew";
    let Some((disk, _folder)) = disk(NAME) else { return };
    let mut replica = open(&disk, 1).expect("a new store opens");
    put(&mut replica, 0, 300).expect("the disk works");
    disk.fail_next(Call::Sync, 1);
    let refused = put(&mut replica, 1, 300);
    assert!(matches!(refused, Err(StoreError::Storage(StorageError::Io { .. }))), "{refused:?}");
    for number in 2..4 {
        let refused = put(&mut replica, number, 300);
        assert!(matches!(refused, Err(StoreError::ReadOnly)), "{refused:?}");
    }
    assert_eq!(numbers(&replica), [0], "everything acknowledged can be read");
    replica.rebuild().expect("the disk works again");
    put(&mut replica, 4, 300).expect("writes are taken again");
    cut(&disk, replica);
    assert_eq!(numbers(&open(&disk, 2).expect("the store opens after the cut")), [0, 4]);
}

/// Found with this file system: Linux drops pages that it could not write and calls them clean, so a database that is
/// opened again in place goes on behind a hole, in front of which nothing may be read after a power cut. So a running store
/// is written anew after a failed sync, and one that is opened by a new process writes its journal anew.
#[test]
fn a_store_opened_again_after_a_failed_sync_keeps_what_it_acknowledges() {
    let Some((disk, _folder)) = disk("a_store_opened_again_after_a_failed_sync_keeps_what_it_acknowledges") else {
        return;
    };
    let mut replica = open(&disk, 1).expect("a new store opens");
    put(&mut replica, 0, 300).expect("the disk works");
    disk.fail_next(Call::Sync, 1);
    put(&mut replica, 1, 6_000).expect_err("the sync fails");
    drop(replica);
    let mut replica = open(&disk, 2).expect("the store opens again");
    for number in 2..10 {
        put(&mut replica, number, 300).expect("the disk works again");
    }
    let acknowledged = numbers(&replica);
    cut(&disk, replica);
    assert_eq!(numbers(&open(&disk, 3).expect("the store opens after the cut")), acknowledged);
}

fn cuts(runs: u32, sabotage: Option<Sabotage>) -> Option<Tally> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_chaos"));
    let options = PowerCutOptions { runs, seed: 7, keep: None, sabotage, torn: true, program };
    match power_cut::run(&options, &AtomicBool::new(false), &|_| {}).expect("writers start") {
        Ok(tally) => Some(tally),
        Err(reason) => {
            eprintln!("skipped: power cuts: {reason}");
            None
        }
    }
}

#[test]
fn acknowledged_writes_survive_power_cuts() {
    let Some(tally) = cuts(12, None) else { return };
    assert!(tally.held(), "{tally}\n{}", tally.findings.join("\n"));
    assert!(tally.acknowledged > 100 && tally.torn > 0, "{tally}");
}

#[test]
fn a_storage_that_does_not_sync_loses_acknowledged_writes() {
    let Some(tally) = cuts(6, Some(Sabotage::NoFdatasync)) else { return };
    assert!(tally.lost > 0, "the sabotage went unnoticed: {tally}");
}
