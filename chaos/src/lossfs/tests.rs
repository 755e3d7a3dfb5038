//! The memory of the file system, without mounting it.

use std::ffi::OsStr;

use fuser::Errno;

use super::disk::{Disk, ROOT};
use super::{Call, Cut};

const MIB: u64 = 1 << 20;

fn disk() -> Disk {
    Disk::new(16 * MIB)
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// A file whose name and empty content are on the disk; the result is its handle.
fn settled_file(disk: &mut Disk, file: &str) -> u64 {
    let (_, handle) = disk.create(ROOT, name(file), 0o644).unwrap();
    disk.sync_file(handle).unwrap();
    disk.sync_folder(ROOT).unwrap();
    handle
}

/// The content after a cut; `None` for no such file.
fn after(disk: &mut Disk, cut: Cut, file: &str) -> Option<Vec<u8>> {
    assert!(disk.cut(cut));
    disk.power_on();
    let found = disk.find(ROOT, name(file)).ok()?;
    let handle = disk.open(found.number).unwrap();
    Some(disk.read(handle, 0, usize::try_from(found.length).unwrap()).unwrap())
}

#[test]
fn only_what_was_synced_survives_a_clean_cut() {
    let mut disk = disk();
    let handle = settled_file(&mut disk, "a");
    disk.write(handle, 0, b"kept").unwrap();
    disk.sync_file(handle).unwrap();
    disk.write(handle, 2, b"lost, and longer than a page".repeat(400).as_slice()).unwrap();
    assert_eq!(disk.read(handle, 0, 6).unwrap(), b"kelost", "processes see what was written");
    assert_eq!(after(&mut disk, Cut::Clean, "a").unwrap(), b"kept");
}

#[test]
fn a_shortened_file_is_long_again_unless_it_was_synced() {
    let mut disk = disk();
    let handle = settled_file(&mut disk, "a");
    disk.write(handle, 0, &[7; 10_000]).unwrap();
    disk.sync_file(handle).unwrap();
    let number = disk.find(ROOT, name("a")).unwrap().number;
    disk.resize(number, 5).unwrap();
    disk.resize(number, 9_000).unwrap();
    assert_eq!(disk.read(handle, 0, 10_000).unwrap(), [&[7; 5][..], &[0; 8_995]].concat());
    assert_eq!(after(&mut disk, Cut::Clean, "a").unwrap(), [7; 10_000]);

    let handle = disk.open(number).unwrap();
    disk.resize(number, 5).unwrap();
    disk.resize(number, 9_000).unwrap();
    disk.sync_file(handle).unwrap();
    assert_eq!(after(&mut disk, Cut::Clean, "a").unwrap(), [&[7; 5][..], &[0; 8_995]].concat());
}

#[test]
fn names_survive_only_where_their_folder_was_synced() {
    let mut disk = disk();
    let folder = disk.make_folder(ROOT, name("folder"), 0o755).unwrap().number;
    let (_, handle) = disk.create(folder, name("inner"), 0o644).unwrap();
    disk.write(handle, 0, b"x").unwrap();
    disk.sync_file(handle).unwrap();
    disk.sync_folder(folder).unwrap();
    assert!(disk.cut(Cut::Clean));
    disk.power_on();
    assert_eq!(disk.list(ROOT).unwrap(), [], "syncing a folder does not keep its own name");

    let folder = disk.make_folder(ROOT, name("folder"), 0o755).unwrap().number;
    disk.create(folder, name("inner"), 0o644).unwrap();
    disk.sync_folder(ROOT).unwrap();
    assert!(disk.cut(Cut::Clean));
    disk.power_on();
    assert_eq!(disk.list(folder).unwrap(), [], "syncing the parent keeps the folder without its names");
}

#[test]
fn a_rename_and_a_removal_are_undone_by_a_cut_unless_the_folder_was_synced() {
    let mut disk = disk();
    for file in ["old", "gone", "target"] {
        let handle = settled_file(&mut disk, file);
        disk.write(handle, 0, file.as_bytes()).unwrap();
        disk.sync_file(handle).unwrap();
        disk.release(handle);
    }
    let change = |disk: &mut Disk| {
        disk.rename(ROOT, name("old"), ROOT, name("target"), true).unwrap();
        disk.remove_file(ROOT, name("gone")).unwrap();
    };
    let names = |disk: &Disk| disk.list(ROOT).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    change(&mut disk);
    assert_eq!(names(&disk), ["target"]);
    assert_eq!(after(&mut disk, Cut::Clean, "target").unwrap(), b"target");
    assert_eq!(names(&disk), ["gone", "old", "target"]);

    change(&mut disk);
    disk.sync_folder(ROOT).unwrap();
    assert_eq!(after(&mut disk, Cut::Clean, "target").unwrap(), b"old");
    assert_eq!(names(&disk), ["target"]);
}

/// A file of 64 synced pages of 1s, written over with 2s, 32 pages longer, and not synced.
fn torn(seed: u64) -> Vec<u8> {
    let mut disk = disk();
    let handle = settled_file(&mut disk, "a");
    disk.write(handle, 0, &[1; 64 * 4096]).unwrap();
    disk.sync_file(handle).unwrap();
    disk.write(handle, 0, &[2; 96 * 4096]).unwrap();
    after(&mut disk, Cut::Torn(seed), "a").unwrap()
}

#[test]
fn a_torn_cut_mixes_old_and_new_sectors_the_same_way_for_the_same_seed() {
    assert!(torn(1) == torn(1), "one seed, two outcomes");
    let outcomes: Vec<Vec<u8>> = (0..20).map(torn).collect();
    assert!(outcomes.windows(2).all(|pair| pair[0] != pair[1]), "the seed changes nothing");
    for (seed, bytes) in outcomes.iter().enumerate() {
        assert!(bytes.len() >= 64 * 4096 && bytes.len() <= 96 * 4096, "seed {seed}: {} bytes", bytes.len());
        let synced = &bytes[..64 * 4096];
        assert!(synced.iter().all(|byte| [1, 2].contains(byte)), "seed {seed}: bytes that nobody wrote");
        assert!(
            synced.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])),
            "seed {seed}: a sector tore"
        );
        let is_mixed = |page: &[u8]| page.contains(&1) && page.contains(&2);
        let whole = |value: u8| synced.chunks(4096).filter(|page| page.iter().all(|byte| *byte == value)).count();
        assert!(synced.chunks(4096).any(is_mixed), "seed {seed}: no page tore");
        assert!(whole(1) > 0 && whole(2) > 0, "seed {seed}: all pages had the same fate");
    }
    let lengths = |test: fn(usize) -> bool| outcomes.iter().any(|bytes| test(bytes.len()));
    assert!(lengths(|length| length == 64 * 4096) && lengths(|length| length == 96 * 4096), "the length never varied");
}

#[test]
fn a_torn_cut_never_touches_what_was_synced() {
    for seed in 0..50 {
        let mut disk = disk();
        let handle = settled_file(&mut disk, "a");
        disk.write(handle, 0, &[1; 3 * 4096]).unwrap();
        disk.sync_file(handle).unwrap();
        disk.write(handle, 3 * 4096, &[2; 4096]).unwrap();
        let bytes = after(&mut disk, Cut::Torn(seed), "a").unwrap();
        assert_eq!(bytes[..3 * 4096], [1; 3 * 4096], "seed {seed}");
    }
}

#[test]
fn names_survive_a_torn_cut_up_to_some_point_in_their_order() {
    let mut counts = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let mut disk = disk();
        for file in ["1", "2", "3", "4"] {
            disk.create(ROOT, name(file), 0o644).unwrap();
        }
        disk.rename(ROOT, name("1"), ROOT, name("5"), true).unwrap();
        assert!(disk.cut(Cut::Torn(seed)));
        disk.power_on();
        let names: Vec<_> = disk.list(ROOT).unwrap().into_iter().map(|(name, _)| name.into_string().unwrap()).collect();
        let expected: [&[&str]; 6] =
            [&[], &["1"], &["1", "2"], &["1", "2", "3"], &["1", "2", "3", "4"], &["2", "3", "4", "5"]];
        let at = expected.iter().position(|expected| names == *expected);
        counts.insert(at.unwrap_or_else(|| panic!("seed {seed}: {names:?} never was")));
    }
    assert_eq!(counts.len(), 6, "every point comes up");
}

#[test]
fn a_planned_cut_comes_instead_of_the_step_after() {
    let mut disk = disk();
    let handle = settled_file(&mut disk, "a");
    disk.cut_after(2, Cut::Clean);
    disk.write(handle, 0, b"one").unwrap();
    disk.sync_file(handle).unwrap();
    assert_eq!(disk.write(handle, 0, b"two"), Err(Errno::EIO));
    assert!(!disk.is_on());
    assert_eq!(disk.status(ROOT), Err(Errno::EIO), "nothing works without power");
    assert!(!disk.cut(Cut::Torn(1)), "the power is off already");
    disk.power_on();
    assert_eq!(disk.read(handle, 0, 9), Err(Errno::EIO), "handles die with the power");
    assert_eq!(after(&mut disk, Cut::Clean, "a").unwrap(), b"one");
}

#[test]
fn a_full_disk_refuses_new_pages_and_takes_old_ones() {
    let mut disk = Disk::new(8 * 4096);
    let handle = settled_file(&mut disk, "a");
    disk.write(handle, 0, &[1; 4 * 4096]).unwrap();
    disk.set_capacity(4 * 4096);
    assert_eq!(disk.write(handle, 4 * 4096, &[1]), Err(Errno::ENOSPC));
    disk.write(handle, 4096, &[2; 4096]).unwrap();
    assert_eq!(disk.create(ROOT, name("b"), 0o644), Err(Errno::ENOSPC));
    disk.set_capacity(8 * 4096);
    disk.write(handle, 4 * 4096, &[1]).unwrap();
    disk.remove_file(ROOT, name("a")).unwrap();
    disk.release(handle);
    assert!(disk.room().1 > 4, "a removed file keeps its room until the removal is on the disk");
    disk.sync_folder(ROOT).unwrap();
    assert_eq!(disk.room().1, 1);
}

#[test]
fn a_failed_sync_is_told_to_every_open_handle_once_and_its_pages_are_gone() {
    let mut disk = disk();
    let first = settled_file(&mut disk, "a");
    let number = disk.find(ROOT, name("a")).unwrap().number;
    let second = disk.open(number).unwrap();
    disk.write(first, 0, b"one").unwrap();
    disk.fail_next(Call::Sync, 1);
    assert_eq!(disk.sync_file(first), Err(Errno::EIO));
    let third = disk.open(number).unwrap();
    assert_eq!(disk.sync_file(second), Err(Errno::EIO), "the other handle hears of it too");
    for handle in [first, second, third] {
        disk.sync_file(handle).unwrap();
    }
    assert_eq!(disk.read(first, 0, 3).unwrap(), b"one", "processes still see it");
    assert_eq!(after(&mut disk, Cut::Clean, "a").unwrap(), [0; 3], "a later sync does not bring it back");
}

#[test]
fn writes_fail_as_often_as_asked() {
    let mut disk = disk();
    let handle = settled_file(&mut disk, "a");
    disk.fail_next(Call::Write, 2);
    assert_eq!(disk.write(handle, 0, b"x"), Err(Errno::EIO));
    assert_eq!(disk.write(handle, 0, b"x"), Err(Errno::EIO));
    disk.write(handle, 0, b"x").unwrap();
    disk.sync_file(handle).unwrap();
}
