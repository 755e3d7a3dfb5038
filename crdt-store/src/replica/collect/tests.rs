use crate::{
    Collected, Context, Dot, Edit, Fault, FaultyStorage, MemoryStorage, Replica, StoreError, TOMBSTONE_AGE_MS,
    WriteMeta, WriteRequest,
    backend::Disk,
    testing::{NOW, body, delete, key, on, ops_of, put, replica, replica_on, sync, text, try_replica_on},
};

/// Everything that collecting must not change.
fn shown(replica: &Replica) -> (Vec<crate::DocumentView>, [u8; 16], Context) {
    (replica.documents().collect(), replica.root(), replica.context().clone())
}

fn collect(replica: &mut Replica) -> usize {
    replica.collect(NOW, 0).expect("collects").tombstones
}

/// One op that edits `keep` and `lose`.
fn put_both(replica: &mut Replica, value: &str) -> Dot {
    let edits = ["keep", "lose"].map(|name| Edit::put(key(name), body(&[("x", value)])));
    replica.write(edits.into(), WriteMeta::default(), NOW).expect("writes").dot.expect("an op")
}

#[test]
fn a_tombstone_goes_at_its_age_and_the_floor_rises_to_it() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    put(&mut a, "stays", &[("x", "1")]);
    let gone = delete(&mut a, "r").dot.expect("an op");
    let before = shown(&a);
    assert_eq!(a.collect(NOW + TOMBSTONE_AGE_MS - 1, TOMBSTONE_AGE_MS).expect("collects"), Collected::default());
    let hash = a.floor_hash();
    let collected = a.collect(NOW + TOMBSTONE_AGE_MS, TOMBSTONE_AGE_MS).expect("collects");
    assert_eq!((collected.tombstones, collected.has_more), (1, false));
    assert_eq!((a.summary().tombstones, a.summary().ops, a.counters().collected), (0, 1, 1));
    assert_eq!(a.floor().get(&gone.origin), gone.counter);
    assert_ne!(a.floor_hash(), hash);
    assert_eq!(shown(&a), before);
    let floor = a.floor().clone();
    drop(a);
    let mut a = replica_on("a", on(&disk), 1);
    assert_eq!((shown(&a), a.floor()), (before, &floor));
    assert_eq!(collect(&mut a), 0);
    put(&mut a, "r", &[("x", "2")]);
    assert!(text(&a, "r").is_some());
}

#[test]
fn what_a_collected_tombstone_superseded_does_not_come_back() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "1")]);
    let old = ops_of(&a);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut b, "r");
    assert_eq!(collect(&mut b), 1);
    assert_eq!(b.merge(old, NOW).expect("merges").duplicates, 1);
    assert_eq!(text(&b, "r"), None);
}

#[test]
fn a_tombstone_stays_until_all_that_it_superseded_was_seen() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "1")]);
    let pushed = delete(&mut a, "r").push;
    // The edit itself has not come: were the tombstone let go of now, it would come and stay.
    b.merge_push(&pushed, NOW).expect("merges");
    assert_eq!(collect(&mut b), 0);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(collect(&mut b), 1);
}

#[test]
fn a_deletion_beside_an_edit_stays_until_somebody_settles_it() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "0"), ("y", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "r");
    put(&mut b, "r", &[("x", "edited"), ("y", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(collect(&mut a), 0);
    assert!(a.document(&key("r")).expect("there").deleted_concurrently);
    delete(&mut a, "r");
    assert_eq!(collect(&mut a), 1);
    assert_eq!(a.summary().ops, 0);
}

#[test]
fn when_tombstones_are_collected_does_not_show_in_the_root() {
    let (mut a, mut b, mut c) = (replica("a"), replica("b"), replica("c"));
    put(&mut a, "r", &[("x", "0"), ("y", "0")]);
    for other in [&mut b, &mut c] {
        sync(&mut a, other).expect("syncs");
    }
    delete(&mut a, "r");
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(collect(&mut a), 1);
    // c has not heard of the deletion. Its edit meets the tombstone at b, and nothing at a.
    let edit = put(&mut c, "r", &[("x", "edited"), ("y", "0")]).push;
    a.merge_push(&edit, NOW).expect("merges");
    b.merge_push(&edit, NOW).expect("merges");
    assert_eq!(text(&a, "r"), text(&b, "r"));
    assert_eq!(a.context(), b.context());
    assert_eq!(a.root(), b.root());
    let flags = [&a, &b].map(|replica| replica.document(&key("r")).expect("there").deleted_concurrently);
    assert_eq!(flags, [false, true]);
}

#[test]
fn a_document_made_again_after_the_collection_does_not_look_deleted_to_those_who_still_hold_the_tombstone() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut b, "r", &[("x", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "r");
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(collect(&mut a), 1);
    put(&mut a, "r", &[("x", "again")]);
    sync(&mut a, &mut b).expect("syncs");
    assert!(!b.document(&key("r")).expect("there").deleted_concurrently);
    assert_eq!(b.document(&key("r")).map(|view| view.etag), a.document(&key("r")).map(|view| view.etag));
}

#[test]
fn an_op_that_is_live_elsewhere_does_not_count_any_more_where_it_was_deleted() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    let dot = put_both(&mut a, "1");
    delete(&mut a, "lose");
    assert_eq!(collect(&mut a), 1);
    let before = shown(&a);
    assert!(a.signed_op(dot).is_some() && text(&a, "lose").is_none());
    let marks =
        |disk: &Disk| disk.pairs().into_iter().filter(|(key, _)| key.first() == Some(&b'x')).collect::<Vec<_>>();
    assert_eq!(marks(&disk).len(), 1);
    drop(a);
    // The op is entered again when the database opens, and from a peer that holds it whole.
    let mut a = replica_on("a", on(&disk), 1);
    assert_eq!(shown(&a), before);
    let again = ops_of(&a);
    assert_eq!(a.merge(again, NOW).expect("merges").duplicates, 1);
    assert_eq!(shown(&a), before);
    // A replica that has nothing is given the op whole, and told what of it is gone.
    let mut new = replica("new");
    sync(&mut a, &mut new).expect("syncs");
    assert_eq!((text(&new, "lose"), new.root()), (None, a.root()));
    assert!(text(&new, "keep").is_some());
    assert_eq!(new.floor(), a.floor());
    // The mark goes with the op.
    put(&mut a, "keep", &[("x", "2")]);
    assert!(a.signed_op(dot).is_none() && marks(&disk).is_empty());
    let before = shown(&a);
    drop(a);
    assert_eq!(shown(&replica_on("a", on(&disk), 2)), before);
}

#[test]
fn marks_hold_for_a_second_op_under_the_same_dot() {
    let disk = Disk::new();
    let mut author = replica("author");
    put_both(&mut author, "1");
    let one = ops_of(&author).remove(0);
    let two = super::super::tests::forge(&author, |op| op.message = "two".to_owned());
    let (low, high) = if one.1.hash() < two.1.hash() { (one, two) } else { (two, one) };
    let mut a = replica_on("a", on(&disk), 0);
    a.merge(vec![high], NOW).expect("merges");
    delete(&mut a, "lose");
    assert_eq!(collect(&mut a), 1);
    let merged = a.merge(vec![low], NOW).expect("merges");
    assert_eq!(merged.equivocations.len(), 1);
    assert_eq!(text(&a, "lose"), None);
    let before = shown(&a);
    drop(a);
    assert_eq!(shown(&replica_on("a", on(&disk), 1)), before);
}

#[test]
fn one_call_takes_a_bounded_share_and_says_when_more_is_left() {
    let mut a = replica("a");
    let names: Vec<String> = (0..1_100).map(|n| format!("n{n}")).collect();
    let group = |edit: &dyn Fn(&String) -> Edit| {
        let request = |names: &[String]| WriteRequest { edits: names.iter().map(edit).collect(), ..Default::default() };
        names.chunks(64).map(request).collect::<Vec<_>>()
    };
    let puts = a.write_group(group(&|name| Edit::put(key(name), body(&[("x", "1")]))), NOW);
    let deletes = a.write_group(group(&|name| Edit::delete(key(name))), NOW);
    assert!(puts.iter().chain(&deletes).all(Result::is_ok));
    let first = a.collect(NOW, 0).expect("collects");
    assert_eq!((first.tombstones, first.has_more), (1_024, true));
    let second = a.collect(NOW, 0).expect("collects");
    assert_eq!((second.tombstones, second.has_more), (76, false));
    assert_eq!((a.summary().tombstones, a.summary().ops), (0, 0));
}

#[test]
fn a_collection_that_the_disk_refuses_leaves_everything() {
    let disk = Disk::new();
    let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
    let mut a = replica_on("a", Box::new(storage), 0);
    put_both(&mut a, "1");
    delete(&mut a, "lose");
    let before = (shown(&a), a.floor().clone(), a.summary(), disk.pairs());
    plan.push(Fault::Full);
    assert!(matches!(a.collect(NOW, 0), Err(StoreError::Full)));
    assert_eq!((shown(&a), a.floor().clone(), a.summary(), disk.pairs()), before);
    assert_eq!(collect(&mut a), 1);
}

#[test]
fn a_floor_or_marks_that_do_not_fit_the_rest_are_reported() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    put_both(&mut a, "1");
    delete(&mut a, "lose");
    let (_, low) = disk.pairs().into_iter().find(|(key, _)| key == b"f").expect("there");
    assert_eq!(collect(&mut a), 1);
    drop(a);
    let pairs = disk.pairs();
    let find = |first: u8| pairs.iter().find(|(key, _)| key.first() == Some(&first)).expect("there").clone();
    let is_damaged = || matches!(try_replica_on("a", on(&disk), 1), Err(StoreError::Damaged(_)));
    let (marks, value) = find(b'x');
    disk.damage(&marks, None);
    assert!(is_damaged(), "without its mark the deleted document is back, and the root says so");
    disk.damage(&[b'x'; 25], Some(value.clone()));
    assert!(is_damaged(), "a mark of an op that is not there");
    disk.damage(&[b'x'; 25], None);
    disk.damage(&marks, Some(value));
    let (floor, high) = find(b'f');
    disk.damage(&floor, None);
    assert!(is_damaged(), "no floor beside marks");
    disk.damage(&floor, Some(high.clone()));
    assert!(!is_damaged());
    // A floor of another database: beyond what was seen here.
    let other = Disk::new();
    drop(replica_on("b", on(&other), 0));
    assert!(other.pairs().iter().any(|(key, value)| key == b"f" && *value == low));
    other.damage(b"f", Some(high));
    assert!(matches!(try_replica_on("b", on(&other), 1), Err(StoreError::Damaged(_))));
}
