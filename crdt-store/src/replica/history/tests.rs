use super::*;
use crate::{
    Edit, Limits, MemoryStorage, StoreId, WriteMeta,
    backend::Disk,
    testing::{HashAuthority, MESH, NOW, body, delete, key, on, put, replica, replica_on, sync},
};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn write_at(replica: &mut Replica, name: &str, value: &str, now_ms: u64) -> Dot {
    let edits = vec![Edit::put(key(name), body(&[("x", value)]))];
    replica.write(edits, WriteMeta::default(), now_ms).expect("writes").dot.expect("an op")
}

fn values(replica: &Replica, name: &str) -> Vec<Option<String>> {
    let text = |body: &Sections| String::from_utf8_lossy(&body["x"]).into_owned();
    replica.history(&key(name)).expect("reads").iter().map(|revision| revision.body.as_ref().map(text)).collect()
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

#[test]
fn every_change_is_remembered_with_its_author_and_its_reason() {
    let disk = Disk::new();
    let (mut a, mut b) = (replica_on("a", on(&disk), 0), replica("b"));
    let first = write_at(&mut a, "r", "1", NOW);
    sync(&mut a, &mut b).expect("syncs");
    let meta = WriteMeta { op_kind: OpKind::Rollback(first), message: "back".to_owned(), ..WriteMeta::default() };
    let edits = vec![Edit::put(key("r"), body(&[("x", "2"), ("y", "2")])), Edit::put(key("s"), body(&[("x", "s")]))];
    let second = b.write(edits, meta, NOW + 1).expect("writes").dot.expect("an op");
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "r");
    drop(a);
    let a = replica_on("a", on(&disk), 1);
    let history = a.history(&key("r")).expect("reads");
    assert_eq!(history.iter().map(|revision| revision.is_live).collect::<Vec<_>>(), [true, false, false]);
    let [gone, back, made] = history.as_slice() else { panic!("three, not {history:?}") };
    assert!(gone.body.is_none() && gone.mask.is_empty() && gone.kind == OpKind::Put);
    assert_eq!((back.dot, back.kind, back.message.as_str()), (second, OpKind::Rollback(first), "back"));
    assert_eq!((back.author.as_str(), back.author_name.as_str()), ("node-b", "b"));
    assert_eq!(back.body.as_ref().expect("an edit")["y"], b"2"[..]);
    assert_eq!(back.past.get(&first.origin), first.counter);
    assert_eq!((made.dot, made.hlc.millis), (first, NOW));
    assert_eq!(a.history(&key("s")).expect("reads").len(), 1);
    assert_eq!(a.revision(&key("r"), second).expect("reads").as_ref(), Some(back));
    assert_eq!(a.revision(&key("s"), first).expect("reads"), None);
    assert!(a.history(&key("none")).expect("reads").is_empty());
}

#[test]
fn an_op_that_was_superseded_before_it_came_is_remembered_too() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    let first = put(&mut a, "r", &[("x", "1")]).push;
    let second = put(&mut a, "r", &[("x", "2")]).push;
    b.merge_push(&second, NOW).expect("merges");
    b.merge_push(&first, NOW).expect("merges");
    b.merge_push(&first, NOW).expect("merges");
    assert_eq!(values(&b, "r"), some(&["2", "1"]));
}

#[test]
fn what_both_sides_of_a_conflict_come_from_is_found() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    write_at(&mut a, "r", "0", NOW);
    let base = write_at(&mut a, "r", "1", NOW + 1);
    sync(&mut a, &mut b).expect("syncs");
    write_at(&mut a, "r", "a1", NOW + 2);
    let left = write_at(&mut a, "r", "a2", NOW + 3);
    let right = write_at(&mut b, "r", "b", NOW + 2);
    sync(&mut a, &mut b).expect("syncs");
    for replica in [&a, &b] {
        let view = replica.document(&key("r")).expect("there");
        assert_eq!(BTreeSet::from_iter(view.live.clone()), [left, right].into());
        let ancestor = replica.common_ancestor(&key("r"), &view.live).expect("reads").expect("remembered");
        assert_eq!(ancestor.dot, base);
    }
    let of = |dots: &[Dot]| a.common_ancestor(&key("r"), dots).expect("reads").map(|revision| revision.dot);
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[left, base]), None, "a dot that is not live has nothing to be compared");
    assert_ne!(of(&[left]), Some(base), "one side alone comes from its own last edit");
    let siblings = &a.document(&key("r")).expect("there").conflicts[0].siblings;
    assert!(siblings.iter().all(|side| side.kind == OpKind::Put && side.message.is_empty()));
}

fn limited(history_revisions: usize) -> (Replica, Disk) {
    let (disk, limits) = (Disk::new(), Limits { history_revisions, ..Limits::default() });
    let storage = Box::new(MemoryStorage::on(&disk));
    let id = StoreId::global(MESH);
    (Replica::open_with(storage, HashAuthority::member("a"), id, limits, [1; 16], NOW).expect("opens"), disk)
}

fn stored(disk: &Disk) -> usize {
    disk.pairs().iter().filter(|(key, _)| key.first() == Some(&b'h')).count()
}

#[test]
fn a_document_remembers_its_newest_changes_only() {
    let (mut a, disk) = limited(3);
    for n in 0..40 {
        write_at(&mut a, "r", &n.to_string(), NOW + n);
        assert!(stored(&disk) <= 3 + SLACK, "{} records", stored(&disk));
        let newest = values(&a, "r");
        assert_eq!(newest.first(), Some(&Some(n.to_string())));
        assert!(newest.len() > usize::try_from(n.min(2)).expect("small"));
    }
    // After a restart a write does not look at what is there; it is found once as much has come again, or by collecting.
    drop(a);
    let limits = Limits { history_revisions: 3, ..Limits::default() };
    let (id, storage) = (StoreId::global(MESH), Box::new(MemoryStorage::on(&disk)));
    let mut a = Replica::open_with(storage, HashAuthority::member("a"), id, limits, [2; 16], NOW).expect("opens");
    for n in 40..60 {
        write_at(&mut a, "r", &n.to_string(), NOW + n);
        assert!(stored(&disk) <= 2 * (3 + SLACK));
    }
    assert!(stored(&disk) <= 3 + SLACK, "{} records", stored(&disk));
    for _ in 0..=u8::MAX / SLICES {
        a.collect(NOW + 60, u64::MAX).expect("collects");
    }
    assert_eq!(stored(&disk), 3);
}

#[test]
fn old_changes_are_forgotten_but_for_what_is_in_force_and_what_was_before_it() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    for n in 0..4 {
        write_at(&mut a, "r", &n.to_string(), NOW + n);
    }
    write_at(&mut a, "gone", "1", NOW);
    delete(&mut a, "gone");
    let round = |a: &mut Replica, now_ms| -> usize {
        (0..=u8::MAX / SLICES).map(|_| a.collect(now_ms, u64::MAX).expect("collects").revisions).sum()
    };
    assert_eq!(round(&mut a, NOW + 30 * DAY_MS), 0);
    assert_eq!(round(&mut a, NOW + 31 * DAY_MS), 2);
    assert_eq!(values(&a, "r"), some(&["3", "2"]));
    assert_eq!(values(&a, "gone").len(), 2, "the tombstone is in force");
    a.collect(NOW + 31 * DAY_MS, 0).expect("collects");
    assert_eq!(round(&mut a, NOW + 31 * DAY_MS), 2, "of a document that does not exist nothing old is kept");
    assert_eq!(stored(&disk), 2);
    assert_eq!(round(&mut a, NOW + 90 * DAY_MS), 0);
}

#[test]
fn a_damaged_record_of_the_history_is_left_out_and_harms_nothing() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    for n in 0..3 {
        write_at(&mut a, "r", &n.to_string(), NOW + n);
    }
    drop(a);
    let (at, mut value) = disk.pairs().into_iter().find(|(key, _)| key.first() == Some(&b'h')).expect("there");
    value[12] ^= 1;
    disk.damage(&at, Some(value));
    // And one whose key has another shape.
    disk.damage(&[&at[..17], b"junk"].concat(), Some(vec![1, 2, 3]));
    let mut a = replica_on("a", on(&disk), 1);
    assert_eq!(values(&a, "r"), some(&["2", "1"]));
    write_at(&mut a, "r", "3", NOW + 3);
    a.collect(NOW + 90 * DAY_MS, 0).expect("collects");
    assert_eq!(values(&a, "r").first(), Some(&Some("3".to_owned())));
}
