//! Every kind of damage to real folders, many times: opening gives what was written, or less of it that says so, and
//! never anything else; an intact peer makes it whole again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::*;
use crate::{
    MemoryStorage, SyncError,
    backend::Disk,
    testing::{Chance, on, replica_on},
};

/// Damaged folders of each kind, after a clean stop and after a kill each.
const CASES: usize = 15;

/// An older state that nothing on this disk gives away.
const UNNOTICED: &str = "went back unnoticed";

type Damage = fn(&mut Vec<u8>, usize);

/// What happens to a file from a place on.
const DAMAGES: [(&str, Damage); 5] = [
    ("truncated", Vec::truncate),
    ("tail zeroed", |bytes, at| zero(bytes, at..usize::MAX)),
    ("bits flipped", |bytes, at| {
        for bit in 0..8 {
            let place = (at + bit * 997) % bytes.len();
            bytes[place] ^= 1 << bit;
        }
    }),
    ("4 KiB garbage", |bytes, at| {
        let mut chance = Chance(at as u64);
        bytes.iter_mut().skip(at).take(4096).for_each(|byte| *byte = chance.next().to_le_bytes()[0]);
    }),
    ("4 KiB zeros", |bytes, at| zero(bytes, at..at + 4096)),
];

fn zero(bytes: &mut [u8], range: Range<usize>) {
    bytes.iter_mut().skip(range.start).take(range.len()).for_each(|byte| *byte = 0);
}

/// Each body that a document ever had.
type Written = BTreeMap<DocKey, BTreeSet<BTreeMap<String, Vec<u8>>>>;

/// A well-used store, an intact peer that has all of it, and all that was ever written.
struct World {
    home: Home,
    peer: Disk,
    written: Written,
    root: [u8; 16],
}

impl World {
    /// With `is_killed` the store is found as a process leaves it that was killed.
    fn new(is_killed: bool) -> Self {
        let mut home = Home::new();
        let mut own = home.open().replica;
        let disk = Disk::new();
        let mut peer = replica_on("peer", on(&disk), 0);
        let mut written = Written::new();
        let mut chance = Chance(7);
        for step in 0..150_u32 {
            let at = if chance.one_in(4) { &mut peer } else { &mut own };
            let name = format!("doc-{:02}", chance.below(40));
            if chance.one_in(6) && text(at, &name).is_some() {
                delete(at, &name);
            } else {
                let filling = "x".repeat(chance.below(1_500));
                let value = format!("{step}");
                put(at, &name, &[("spec", &value), ("filling", &filling)]);
            }
            remember(&mut written, at);
            if step % 10 == 9 {
                sync(&mut own, &mut peer).expect("syncs");
                remember(&mut written, &own);
            }
            // Up to a minute before a kill.
            if step == 100 {
                home.snapshot(&mut own);
            }
        }
        own.records().put_record("book", b"k", b"v").expect("keeps");
        for _ in 0..2 {
            sync(&mut own, &mut peer).expect("syncs");
        }
        let root = own.root();
        assert_eq!((root, own.context()), (peer.root(), peer.context()));
        let kept = home.dir.path().join("kept");
        if is_killed {
            copy(&home.store(), &kept);
            own.close().expect("closes");
        } else {
            // The last thing a node does.
            home.snapshot(&mut own);
            own.close().expect("closes");
            copy(&home.store(), &kept);
        }
        Self { home, peer: disk, written, root }
    }

    /// A fresh folder with the same store and snapshot.
    fn copied(&self) -> Home {
        let home = Home { dir: tempfile::tempdir().expect("temp dir"), boots: 100 };
        copy(&self.home.dir.path().join("kept"), &home.store());
        fs::copy(snapshot_path(&self.home.store()), snapshot_path(&home.store())).expect("copies");
        home
    }

    /// Opens a damaged folder, checks what is promised, and says what came of it.
    fn check(&self, mut home: Home, what: &str) -> &'static str {
        let mut opened = home.try_open().unwrap_or_else(|error| panic!("{what}: {error:?}"));
        self.check_content(&opened.replica, what);
        let outcome = match &opened.recovered {
            Some(Recovered { set_aside: Some(_), .. }) => "set aside and refilled",
            Some(Recovered { set_aside: None, .. }) => "went back, caught up",
            None if opened.replica.root() == self.root => "as it was",
            None => UNNOTICED,
        };
        let peers = self.peer.copy();
        peers_mark(&peers, &self.peer);
        let mut peer = replica_on("peer", on(&peers), 1);
        let own = &mut opened.replica;
        for _ in 0..3 {
            match sync(own, &mut peer) {
                // The peer knows ops of this life that are gone here; under a new one they talk again.
                Ok(_) | Err(SyncError::OtherIncarnation) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
        assert_eq!(own.root(), self.root, "{what}: with an intact peer all comes back");
        assert_eq!((own.root(), own.context()), (peer.root(), peer.context()), "{what}");
        // Whatever it writes now stands under a dot that was never used.
        put(own, "afterwards", &[("spec", what)]);
        sync(own, &mut peer).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((own.root(), own.counters().equivocations), (peer.root(), 0), "{what}");
        assert_eq!(peer.counters().equivocations, 0, "{what}");
        let root = own.root();
        // Damage that nothing has read before shows when the database is written; a node then writes it anew.
        if own.compact().is_err() {
            assert!(own.needs_rebuild(), "{what}");
            own.rebuild().expect("writes it anew");
        }
        opened.replica.close().expect("closes");
        let again = home.open();
        assert_eq!((again.recovered, again.replica.root()), (None, root), "{what}: it stays well");
        outcome
    }

    /// Every document is one that was written, and every op is by whom it says.
    fn check_content(&self, replica: &Replica, what: &str) {
        for view in replica.documents() {
            let body = view.sections.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect();
            let is_known = self.written.get(&view.key).is_some_and(|bodies| bodies.contains(&body));
            // A part of what is known may have merged into a mixture of two writes of one document.
            let is_mixture = !view.conflicts.is_empty()
                || view.sections.iter().all(|(name, value)| {
                    self.written.get(&view.key).is_some_and(|bodies| {
                        bodies.iter().any(|body| body.get(name).is_some_and(|known| known == value.as_ref()))
                    })
                });
            assert!(is_known || is_mixture, "{what}: {}", view.key);
        }
        let authority = HashAuthority::member("me");
        for (_, dot) in replica.live_dots() {
            let signed = replica.signed_op(dot).expect("live ops are held");
            let record = replica.origin_record(&dot.origin).expect("origins are known");
            assert!(authority.verify(&record.public_key, &signed.bytes, &signed.signature), "{what}: {dot}");
        }
    }
}

fn remember(written: &mut Written, replica: &Replica) {
    for view in replica.documents() {
        let body = view.sections.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect();
        written.entry(view.key).or_default().insert(body);
    }
}

/// A copy of a disk forgets the mark beside it, as a backup would; the peer did not go back in time.
fn peers_mark(copy: &Disk, of: &Disk) {
    if let Some(mark) = MemoryStorage::on(of).boot_mark().expect("reads") {
        MemoryStorage::on(copy).set_boot_mark(mark).expect("marks");
    }
}

/// Counts by kind and outcome, for the table.
type Table = BTreeMap<(&'static str, &'static str), usize>;

fn run(is_killed: bool) {
    let world = World::new(is_killed);
    let intact = world.check(world.copied(), "intact");
    assert_eq!(intact, "as it was");
    let mut table = Table::new();
    let mut chance = Chance(if is_killed { 11 } else { 12 });
    for (kind, damage) in DAMAGES {
        for case in 0..CASES {
            let home = world.copied();
            // sled's log and the journal are nearly all there is; now and then one of the small files beside them.
            let files = files(&home.store());
            let file = match case % 5 {
                4 => &files[chance.below(files.len())],
                3 => &home.store().join("journal"),
                _ => &home.store().join("db"),
            };
            let mut bytes = fs::read(file).expect("reads");
            if bytes.is_empty() {
                continue;
            }
            let at = chance.below(bytes.len());
            damage(&mut bytes, at);
            fs::write(file, bytes).expect("writes");
            let name = file.file_name().expect("a name").display();
            let outcome = world.check(home, &format!("{kind} {name} at {at}, case {case}"));
            *table.entry((kind, outcome)).or_default() += 1;
        }
    }
    for case in 0..CASES {
        let home = world.copied();
        let files = files(&home.store());
        // Every file alone, then several at once.
        let mask = if case < files.len() { 1 << case } else { 1 + chance.below((1 << files.len()) - 1) };
        for (n, file) in files.iter().enumerate() {
            if mask & (1 << n) != 0 {
                fs::remove_file(file).expect("removes");
            }
        }
        let outcome = world.check(home, &format!("removed {mask:b} of {files:?}"));
        *table.entry(("file removed", outcome)).or_default() += 1;
    }
    println!("{}", if is_killed { "after a kill" } else { "after a clean stop" });
    for ((kind, outcome), count) in &table {
        println!("  {kind:<14} {outcome:<24} {count}");
    }
    let recovered: usize = table.iter().filter(|((_, outcome), _)| *outcome != "as it was").map(|(_, n)| n).sum();
    let is_unnoticed = |(_, outcome): &(_, &str)| *outcome == UNNOTICED;
    // After a kill the snapshot may be older than what was lost: a peer has to say so.
    assert!(is_killed || !table.keys().any(is_unnoticed), "the snapshot of a clean stop knows better: {table:?}");
    assert!(recovered > CASES, "hardly anything was damaged: {table:?}");
}

/// The plain files of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("reads").map(|entry| entry.expect("entry").path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

#[test]
fn damage_after_a_clean_stop_never_shows_as_content() {
    run(false);
}

#[test]
fn damage_after_a_kill_never_shows_as_content() {
    run(true);
}
