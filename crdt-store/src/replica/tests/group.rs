//! Groups of writes: ops of their own, one wait for the disk.

use super::*;
use crate::{GROUP_MAX, WriteRequest};

fn request(name: &str, value: &str) -> WriteRequest {
    WriteRequest { edits: vec![Edit::put(key(name), body(&[("x", value)]))], meta: WriteMeta::default() }
}

fn keyed(name: &str, value: &str, idempotency_key: &str) -> WriteRequest {
    let meta = WriteMeta { idempotency_key: idempotency_key.to_owned(), ..WriteMeta::default() };
    WriteRequest { meta, ..request(name, value) }
}

#[test]
fn a_group_is_one_batch_of_ops_that_fail_one_by_one_and_see_each_other() {
    let disk = Disk::new();
    let (mut a, mut b) = (replica_on("a", on(&disk), 0), replica("b"));
    put(&mut a, "r", &[("x", "0")]);
    let stale = Edit { context: tag(&a, "r"), ..Edit::put(key("r"), body(&[("x", "late")])) };
    let batches = a.storage_stats().batches;
    let results = a.write_group(
        vec![
            request("r", "1"),
            WriteRequest { edits: vec![stale], meta: WriteMeta::default() },
            request("r", "2"),
            WriteRequest { edits: vec![Edit::delete(key("none"))], meta: WriteMeta::default() },
            request("s", "1"),
            WriteRequest { edits: vec![Edit::delete(key("s"))], meta: WriteMeta::default() },
        ],
        NOW,
    );
    assert_eq!(a.storage_stats().batches, batches + 1);
    let [one, late, two, missing, made, gone] = results.as_slice() else { panic!("six results, not {results:?}") };
    assert!(matches!(late, Err(StoreError::Stale { .. })) && matches!(missing, Err(StoreError::NotFound { .. })));
    let dot = |result: &Result<Written, StoreError>| result.as_ref().expect("writes").dot.expect("an op").counter;
    assert_eq!([dot(one), dot(two), dot(made), dot(gone)], [2, 3, 4, 5], "no counter is skipped");
    assert_ne!(one.as_ref().expect("writes").etags, two.as_ref().expect("writes").etags);
    assert_eq!(text(&a, "r"), sections(&[("x", "2")]));
    assert_eq!((text(&a, "s"), a.counters().written), (None, 5));
    // Each has its own message for peers, also where a later one of the group has superseded it.
    for result in [one, two, made, gone] {
        b.merge_push(&result.as_ref().expect("writes").push, NOW).expect("merges");
    }
    assert_eq!(b.history(&key("r")).expect("reads").len(), 2);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(b.root(), a.root());
    let before = seen(&a);
    drop(a);
    assert_eq!(seen(&replica_on("a", on(&disk), 1)), before);
}

#[test]
fn a_group_that_the_disk_refuses_leaves_nothing_of_any_write() {
    for (fault, label) in [(Fault::Full, "full"), (Fault::Io, "io")] {
        let disk = Disk::new();
        let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
        let mut a = replica_on("a", Box::new(storage), 0);
        put(&mut a, "r", &[("x", "0")]);
        let before = (seen(&a), disk.pairs());
        plan.push(fault);
        let group = || vec![keyed("r", "1", "k1"), request("", "bad"), keyed("n", "1", "k2"), keyed("n", "1", "k2")];
        let results = a.write_group(group(), NOW);
        let is_disk = |result: &Result<Written, StoreError>| match fault {
            Fault::Full => matches!(result, Err(StoreError::Full)),
            _ => matches!(result, Err(StoreError::Storage(_))),
        };
        assert!(is_disk(&results[0]) && is_disk(&results[2]) && is_disk(&results[3]), "{label}: {results:?}");
        assert!(matches!(results[1], Err(StoreError::Invalid { .. })), "its own fault is told");
        assert_eq!((seen(&a), disk.pairs()), before, "{label}");
        assert_eq!((a.counters().storage_failures, a.counters().written), (1, 1));
        // Nothing is remembered of it either: the same keys write.
        let results = a.write_group(group(), NOW);
        let written = |at: usize| results[at].as_ref().expect("writes");
        assert!(!written(0).is_replay && !written(2).is_replay && written(3).is_replay);
        assert_eq!(written(3).dot, written(2).dot, "one key within a group is one op");
        assert_eq!(written(2).dot, Some(Dot::new(a.incarnation(), 3)));
        drop(a);
        let mut a = replica_on("a", on(&disk), 1);
        let meta = keyed("n", "1", "k2");
        assert!(a.write(meta.edits, meta.meta, NOW).expect("replays").is_replay);
    }
}

#[test]
fn a_group_of_nothing_new_does_not_touch_the_disk_and_one_too_long_is_cut() {
    let mut a = replica("a");
    put(&mut a, "r", &[("x", "0")]);
    let batches = a.storage_stats().batches;
    assert!(a.write_group(Vec::new(), NOW).is_empty());
    let same = a.write_group(vec![request("r", "0"), request("r", "0")], NOW);
    assert!(same.iter().all(|result| result.as_ref().is_ok_and(|written| written.dot.is_none())));
    assert_eq!(a.storage_stats().batches, batches);
    let results = a.write_group((0..GROUP_MAX + 2).map(|_| request("r", "0")).collect(), NOW);
    let refused = results.iter().filter(|result| matches!(result, Err(StoreError::TooLarge { .. }))).count();
    assert_eq!(refused, 2);
}

#[test]
fn the_oldest_outcomes_give_way_also_when_many_come_at_once() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    let keyed = |n: usize| keyed("r", "0", &format!("k{n:04}"));
    for (at, from) in [0, 700].into_iter().enumerate() {
        let now = NOW + u64::try_from(at).expect("small");
        let results = a.write_group((from..from + 700).map(keyed).collect(), now);
        assert!(results.iter().all(Result::is_ok));
    }
    let stored = || disk.pairs().iter().filter(|(key, _)| key.first() == Some(&b'i')).count();
    assert_eq!(stored(), 1_024);
    let replay = |a: &mut Replica, n: usize| a.write(keyed(n).edits, keyed(n).meta, NOW + 2).expect("writes").is_replay;
    assert!(!replay(&mut a, 0) && replay(&mut a, 1_399));
    assert_eq!(stored(), 1_024);
}
