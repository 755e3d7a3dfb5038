mod group;
mod limits;
mod stored;

use std::collections::BTreeSet;

use super::*;
use crate::{
    Fault, FaultyStorage, MemoryStorage, OpKind, Refusal, SledStorage,
    backend::Disk,
    id::ETag,
    testing::{
        HashAuthority, MESH, NOW, body, delete, golden, key, on, ops_of, put, replica, replica_on, sync, text,
        try_replica_on,
    },
};

fn sections(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    Some(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn tag(replica: &Replica, name: &str) -> Option<ETag> {
    replica.document(&key(name)).map(|view| view.etag)
}

fn resolve() -> WriteMeta {
    WriteMeta { op_kind: OpKind::Resolve, ..WriteMeta::default() }
}

/// Everything one can see of a replica.
fn seen(replica: &Replica) -> (Vec<DocumentView>, [u8; 16], Context, Incarnation, u64) {
    let documents = replica.documents().collect();
    (documents, replica.root(), replica.context().clone(), replica.life.incarnation, replica.life.counter)
}

#[test]
fn a_replica_and_a_conversation_can_live_on_a_thread_of_their_own() {
    fn is_send<T: Send>() {}
    is_send::<Replica>();
    is_send::<crate::SyncSession>();
}

#[test]
fn a_document_is_written_read_and_deleted() {
    let mut a = replica("a");
    let written = put(&mut a, "r", &[("metadata", "m"), ("spec", "1")]);
    assert_eq!(written.dot, Some(Dot::new(a.incarnation(), 1)));
    assert_eq!(written.etags[&key("r")], tag(&a, "r"));
    assert_eq!(text(&a, "r"), sections(&[("metadata", "m"), ("spec", "1")]));
    let view = a.document(&key("r")).expect("it is there");
    assert_eq!((view.author.as_str(), view.author_name.as_str()), ("node-a", "a"));
    assert!(view.conflicts.is_empty() && !view.deleted_concurrently && !view.clock_suspect);

    let gone = delete(&mut a, "r");
    assert_eq!(gone.etags[&key("r")], None);
    assert_eq!(a.document(&key("r")), None);
    assert_eq!(a.documents().count(), 0);
    assert_eq!(a.summary().tombstones, 1);

    put(&mut a, "r", &[("spec", "2")]);
    assert_eq!(text(&a, "r"), sections(&[("spec", "2")]), "nothing of before the deletion comes back");
}

#[test]
fn writing_what_is_there_writes_nothing() {
    let mut a = replica("a");
    let first = put(&mut a, "r", &[("spec", "1")]);
    let again = put(&mut a, "r", &[("spec", "1")]);
    assert_eq!((again.dot, again.push.len()), (None, 0));
    assert_eq!(again.etags, first.etags);
    assert_eq!(a.summary().counter, 1);
}

#[test]
fn several_documents_change_together() {
    let mut a = replica("a");
    let mut b = replica("b");
    put(&mut a, "old", &[("spec", "1")]);
    let edits = vec![
        Edit::put(key("x"), body(&[("spec", "1")])),
        Edit::delete(key("old")),
        Edit::put(key("y"), body(&[("s", "2")])),
    ];
    let written = a.write(edits, WriteMeta::default(), NOW).expect("writes");
    assert_eq!(written.etags.len(), 3);
    let merged = b.merge_push(&written.push, NOW).expect("merges");
    assert_eq!(merged.new.len(), 3);
    assert!(b.document(&key("x")).is_some() && b.document(&key("y")).is_some());
}

#[test]
fn preconditions_are_checked_against_what_is_here() {
    let mut a = replica("a");
    put(&mut a, "r", &[("spec", "1")]);
    let old = tag(&a, "r");
    put(&mut a, "r", &[("spec", "2")]);
    let before = seen(&a);
    let stale = Edit { context: old, ..Edit::put(key("r"), body(&[("spec", "3")])) };
    let refused = a.write(vec![stale], WriteMeta::default(), NOW);
    assert!(matches!(refused, Err(StoreError::Stale { current, .. }) if current == tag(&a, "r")), "{refused:?}");
    let create = Edit { create_only: true, ..Edit::put(key("r"), body(&[("spec", "3")])) };
    assert!(matches!(a.write(vec![create], WriteMeta::default(), NOW), Err(StoreError::Stale { .. })));
    let missing = a.write(vec![Edit::delete(key("none"))], WriteMeta::default(), NOW);
    assert!(matches!(missing, Err(StoreError::NotFound { .. })));
    // One bad edit keeps the good ones out as well.
    let mixed = vec![Edit::put(key("good"), body(&[("s", "1")])), Edit::delete(key("none"))];
    assert!(a.write(mixed, WriteMeta::default(), NOW).is_err());
    assert_eq!(seen(&a), before);
    let fresh = Edit { context: tag(&a, "r"), ..Edit::put(key("r"), body(&[("spec", "3")])) };
    assert!(a.write(vec![fresh], WriteMeta::default(), NOW).is_ok());
}

#[test]
fn concurrent_edits_of_different_sections_both_take_effect() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "0"), ("y", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "r", &[("x", "a"), ("y", "0")]);
    put(&mut b, "r", &[("x", "0"), ("y", "b")]);
    sync(&mut a, &mut b).expect("syncs");
    for replica in [&a, &b] {
        assert_eq!(text(replica, "r"), sections(&[("x", "a"), ("y", "b")]));
        assert!(replica.document(&key("r")).expect("there").conflicts.is_empty());
    }
    assert_eq!(a.root(), b.root());
}

#[test]
fn a_conflict_shows_on_both_sides_with_the_same_winner_until_it_is_settled() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("weights", "50/50"), ("other", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "r", &[("weights", "90/10"), ("other", "1")]);
    let later = vec![Edit::put(key("r"), body(&[("weights", "80/20"), ("other", "1")]))];
    b.write(later, WriteMeta::default(), NOW + 5).expect("writes");
    sync(&mut a, &mut b).expect("syncs");

    let (at_a, at_b) = (a.document(&key("r")).expect("there"), b.document(&key("r")).expect("there"));
    assert_eq!(at_a, at_b);
    assert_eq!(text(&a, "r"), sections(&[("weights", "80/20"), ("other", "1")]), "the later edit is in force");
    let [conflict] = at_a.conflicts.as_slice() else { panic!("one conflict, not {:?}", at_a.conflicts) };
    assert_eq!(conflict.section, "weights");
    let shown: Vec<_> = conflict.siblings.iter().map(|s| (s.author_name.as_str(), s.body.as_deref())).collect();
    assert_eq!(shown, [("b", Some(&b"80/20"[..])), ("a", Some(&b"90/10"[..]))]);
    assert_eq!(a.summary().conflicts, 1);

    // A write to another section leaves the conflict; writing the winner's value again does too.
    put(&mut a, "r", &[("weights", "80/20"), ("other", "2")]);
    assert_eq!(a.summary().conflicts, 1);
    let settle = Edit::put(key("r"), body(&[("weights", "80/20"), ("other", "2")]));
    a.write(vec![settle], resolve(), NOW).expect("writes");
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!((a.summary().conflicts, b.summary().conflicts), (0, 0));
    assert_eq!(a.root(), b.root());
}

#[test]
fn equal_concurrent_edits_are_no_conflict() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "1")]);
    put(&mut b, "r", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    assert!(a.document(&key("r")).expect("there").conflicts.is_empty());
    assert_eq!(a.root(), b.root());
}

#[test]
fn an_edit_survives_a_concurrent_deletion_whole_and_flagged() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "0"), ("y", "0"), ("z", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "r");
    put(&mut b, "r", &[("x", "edited"), ("y", "0"), ("z", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    for replica in [&a, &b] {
        assert_eq!(text(replica, "r"), sections(&[("x", "edited"), ("y", "0"), ("z", "0")]));
        assert!(replica.document(&key("r")).expect("there").deleted_concurrently);
        assert_eq!(replica.summary().conflicts, 1);
    }
    assert_eq!(a.root(), b.root());

    // Any edit settles it, and the document stays whole.
    put(&mut a, "r", &[("x", "again"), ("y", "0"), ("z", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    for replica in [&a, &b] {
        assert_eq!(text(replica, "r"), sections(&[("x", "again"), ("y", "0"), ("z", "0")]));
        assert!(!replica.document(&key("r")).expect("there").deleted_concurrently);
    }
    // And so does deleting it once more.
    delete(&mut b, "r");
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!((text(&a, "r"), text(&b, "r")), (None, None));
}

/// An op whose clock was a year ahead, and the later op of its author that a write supersedes: `x`, which neither had
/// changed, was read of the later one, and of the old one after the write.
#[test]
fn what_is_written_on_unchanged_is_still_read_when_its_edit_has_not_arrived() {
    let (mut ahead, mut b) = (replica("ahead"), replica("b"));
    let mut write = |edit: Edit| {
        ahead.write(vec![edit], WriteMeta::default(), NOW + 365 * 24 * 60 * 60 * 1_000).expect("writes").push
    };
    write(Edit::put(key("r"), body(&[("x", "old"), ("y", "1")])));
    let early = write(Edit::put(key("r"), body(&[("x", "old"), ("y", "2")])));
    write(Edit::delete(key("r")));
    write(Edit::put(key("r"), body(&[("x", "new"), ("y", "2"), ("z", "1")])));
    let late = write(Edit::put(key("r"), body(&[("x", "new"), ("y", "2"), ("z", "2")])));
    for push in [early, late] {
        b.merge_push(&push, NOW).expect("merges");
    }
    assert_eq!(text(&b, "r"), sections(&[("x", "new"), ("y", "2"), ("z", "2")]));
    let settled = Edit::put(key("r"), body(&[("x", "new"), ("y", "2"), ("z", "3")]));
    b.write(vec![settled], resolve(), NOW).expect("writes");
    assert_eq!(text(&b, "r"), sections(&[("x", "new"), ("y", "2"), ("z", "3")]));
}

/// The edit beside the deletion had removed a section. Nobody names that section again, so the deletion stayed beside the
/// edit there, and the document was shown as deleted concurrently whatever a person did.
#[test]
fn a_deletion_beside_the_removal_of_a_section_is_settled_by_any_edit() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "0"), ("y", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "r", &[("y", "0")]);
    delete(&mut b, "r");
    sync(&mut a, &mut b).expect("syncs");
    assert!(b.document(&key("r")).expect("stays").deleted_concurrently);
    put(&mut b, "r", &[("y", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    for replica in [&a, &b] {
        assert_eq!(text(replica, "r"), sections(&[("y", "1")]));
        assert!(!replica.document(&key("r")).expect("there").deleted_concurrently);
    }
}

#[test]
fn an_old_edit_of_a_deleted_document_does_not_bring_it_back() {
    let (mut a, mut b, mut c) = (replica("a"), replica("b"), replica("c"));
    put(&mut a, "r", &[("x", "1")]);
    let old = ops_of(&a);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut b, "r");
    sync(&mut b, &mut c).expect("syncs");
    c.merge(old, NOW).expect("merges");
    assert_eq!(text(&c, "r"), None);
    assert_eq!(c.root(), b.root());
}

/// An edit that has not arrived must not be superseded by someone who saw a later op of its author.
#[test]
fn an_edit_that_was_overtaken_on_its_way_is_not_lost() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "0"), ("y", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "r", &[("x", "0"), ("y", "from a")]);
    let second = put(&mut a, "r", &[("x", "from a"), ("y", "from a")]);
    // The push of the first edit is lost, that of the second arrives.
    assert!(b.merge_push(&second.push, NOW).expect("merges").has_gaps);
    put(&mut b, "r", &[("x", "from b"), ("y", "from b")]);
    sync(&mut a, &mut b).expect("syncs");
    let view = a.document(&key("r")).expect("there");
    let conflicts: BTreeSet<&str> = view.conflicts.iter().map(|conflict| conflict.section.as_str()).collect();
    assert!(conflicts.contains("y"), "the edit of `y` that b never saw must show: {conflicts:?}");
    assert_eq!(a.root(), b.root());
    assert_eq!(text(&a, "r"), text(&b, "r"));
}

#[test]
fn a_person_can_settle_a_document_whose_author_named_ops_that_do_not_exist() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "0"), ("y", "0")]);
    put(&mut a, "r", &[("x", "0"), ("y", "1")]);
    let last = put(&mut a, "r", &[("x", "1"), ("y", "1")]);
    b.merge_push(&last.push, NOW).expect("merges");
    assert!(b.document(&key("r")).is_some());
    delete(&mut b, "r");
    assert!(b.document(&key("r")).expect("stays").deleted_concurrently, "what b cannot know whole is not superseded");
    b.write(vec![Edit::delete(key("r"))], resolve(), NOW).expect("writes");
    assert_eq!(b.document(&key("r")), None);
}

#[test]
fn a_repeated_write_under_one_idempotency_key_is_one_op() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    let meta = || WriteMeta { idempotency_key: "k1".to_owned(), ..WriteMeta::default() };
    let edits = |value| vec![Edit::put(key("r"), body(&[("x", value)]))];
    let first = a.write(edits("1"), meta(), NOW).expect("writes");
    put(&mut a, "r", &[("x", "2")]);
    let again = a.write(edits("1"), meta(), NOW + 1).expect("replays");
    assert!(again.is_replay && again.dot == first.dot && !first.is_replay);
    assert_eq!(text(&a, "r"), sections(&[("x", "2")]));
    assert!(matches!(a.write(edits("3"), meta(), NOW + 2), Err(StoreError::IdempotencyReuse)));
    drop(a);
    let mut a = replica_on("a", on(&disk), 1);
    assert!(a.write(edits("1"), meta(), NOW + 3).expect("replays").is_replay, "keys survive a restart");
    let day = 24 * 60 * 60 * 1_000;
    let later = a.write(edits("3"), meta(), NOW + day).expect("the key is forgotten");
    assert!(!later.is_replay && later.dot.is_some());
}

#[test]
fn oversized_and_malformed_writes_are_refused_with_their_limit() {
    let mut a = replica("a");
    put(&mut a, "r", &[("x", "1")]);
    let before = seen(&a);
    let one = || body(&[("s", "1")]);
    let fat: BTreeMap<String, Vec<u8>> = [("s".to_owned(), vec![0; (64 << 10) + 1])].into();
    let wide: BTreeMap<String, Vec<u8>> = (0..33).map(|n| (format!("s{n}"), vec![])).collect();
    let heavy = || [("s".to_owned(), vec![0; 60 << 10])].into();
    let cases: Vec<(&str, Vec<Edit>, WriteMeta)> = vec![
        ("no edit", vec![], WriteMeta::default()),
        ("the same document twice", vec![Edit::put(key("r"), one()), Edit::delete(key("r"))], WriteMeta::default()),
        ("65 documents", (0..65).map(|n| Edit::put(key(&format!("n{n}")), one())).collect(), WriteMeta::default()),
        ("a fat body", vec![Edit::put(key("n"), fat)], WriteMeta::default()),
        ("33 sections", vec![Edit::put(key("n"), wide)], WriteMeta::default()),
        ("no section", vec![Edit::put(key("n"), BTreeMap::new())], WriteMeta::default()),
        ("a nameless document", vec![Edit::put(key(""), one())], WriteMeta::default()),
        ("a control character", vec![Edit::put(key("a\0b"), one())], WriteMeta::default()),
        ("a long name", vec![Edit::put(key(&"n".repeat(254)), one())], WriteMeta::default()),
        ("a section without name", vec![Edit::put(key("n"), body(&[("", "1")]))], WriteMeta::default()),
        (
            "a long message",
            vec![Edit::put(key("n"), one())],
            WriteMeta { message: "m".repeat(257), ..WriteMeta::default() },
        ),
        (
            "a long idempotency key",
            vec![Edit::put(key("n"), one())],
            WriteMeta { idempotency_key: "k".repeat(129), ..WriteMeta::default() },
        ),
        (
            "an op over 256 KiB",
            (0..5).map(|n| Edit::put(key(&format!("n{n}")), heavy())).collect(),
            WriteMeta::default(),
        ),
    ];
    for (what, edits, meta) in cases {
        let refused = a.write(edits, meta, NOW);
        assert!(
            matches!(refused, Err(StoreError::TooLarge { .. } | StoreError::Invalid { .. })),
            "{what}: {refused:?}"
        );
        assert_eq!(seen(&a), before, "{what}");
    }
}

#[test]
fn a_store_at_its_limits_refuses_growth_and_lets_go() {
    let limits = Limits { documents: 3, live_bytes: 4_000, ..Limits::default() };
    let open = |limits| {
        let authority = HashAuthority::member("a");
        let storage = Box::new(MemoryStorage::new());
        Replica::open_with(storage, authority, StoreId::global(MESH), limits, [1; 16], NOW).expect("opens")
    };
    let mut a = open(limits);
    for name in ["1", "2", "3"] {
        put(&mut a, name, &[("x", "1")]);
    }
    let edit = |name: &str, value: &str| vec![Edit::put(key(name), body(&[("x", value)]))];
    let refused = a.write(edit("4", "1"), WriteMeta::default(), NOW);
    assert!(matches!(refused, Err(StoreError::TooLarge { what: "documents and tombstones", .. })), "{refused:?}");
    let refused = a.write(edit("3", &"x".repeat(4_000)), WriteMeta::default(), NOW);
    assert!(matches!(refused, Err(StoreError::TooLarge { what: "bytes of all documents", .. })), "{refused:?}");
    delete(&mut a, "1");
    put(&mut a, "2", &[("x", "2")]);

    // From peers come four times as many, and no more.
    let mut b = replica("b");
    for n in 0..20 {
        put(&mut b, &format!("b{n}"), &[("x", "1")]);
    }
    let merged = a.merge(ops_of(&b), NOW).expect("merges");
    assert_eq!((merged.new_ops.len(), merged.refused.len()), (9, 11));
    assert!(merged.refused.iter().all(|(_, refusal)| *refusal == Refusal::StoreFull));
    assert_eq!(a.counters().refused["store_full"], 11);
}

#[test]
fn a_seventeenth_concurrent_edit_is_refused_here_and_taken_from_peers() {
    let mut a = replica("a");
    put(&mut a, "r", &[("x", "0"), ("y", "0")]);
    put(&mut a, "r", &[("x", "0"), ("y", "1")]);
    let last = put(&mut a, "r", &[("x", "1"), ("y", "1")]);
    // Each of these has seen the last op and not the one before it, so none may supersede it.
    let mut full = replica("full");
    for n in 0..16 {
        let mut other = replica(&format!("n{n}"));
        other.merge_push(&last.push, NOW).expect("merges");
        let written = put(&mut other, "r", &[("x", &format!("n{n}")), ("y", "1")]);
        assert!(full.merge_push(&written.push, NOW).expect("merges").refused.is_empty());
    }
    full.merge_push(&last.push, NOW).expect("merges");
    assert_eq!(full.document(&key("r")).expect("there").conflicts[0].siblings.len(), 17);
    let mut late = replica("late");
    late.merge_push(&last.push, NOW).expect("merges");
    for n in 0..15 {
        let mut one = replica(&format!("n{n}"));
        one.merge_push(&last.push, NOW).expect("merges");
        let pushed = put(&mut one, "r", &[("x", &format!("n{n}")), ("y", "1")]);
        late.merge_push(&pushed.push, NOW).expect("merges");
    }
    // `late` holds 16; it may supersede all but the one it does not know whole, which leaves two.
    assert!(late.write(vec![Edit::put(key("r"), body(&[("x", "l"), ("y", "1")]))], WriteMeta::default(), NOW).is_ok());
}

#[test]
fn a_gateway_neither_writes_nor_is_believed() {
    let storage = Box::new(MemoryStorage::new());
    let mut gateway = Replica::open(storage, HashAuthority::gateway("g"), MESH, [1; 16], NOW).expect("opens");
    let edit = || vec![Edit::put(key("r"), body(&[("x", "1")]))];
    assert!(matches!(gateway.write(edit(), WriteMeta::default(), NOW), Err(StoreError::NotAuthor)));
    assert_eq!(gateway.summary().counter, 0);

    // It relays what others write, and does not get its own writes past them by cheating.
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "1")]);
    sync(&mut a, &mut gateway).expect("syncs");
    sync(&mut gateway, &mut b).expect("syncs");
    assert_eq!(b.root(), a.root());
    let mut forged = replica("g");
    put(&mut forged, "r", &[("x", "forged")]);
    let mut ops = ops_of(&forged);
    ops[0].0.as_mut().expect("with its record").chain[0] = b"gateway".to_vec();
    let merged = a.merge(ops, NOW).expect("merges");
    assert_eq!(merged.refused[0].1, Refusal::NotAuthor);
    assert_eq!(text(&a, "r"), sections(&[("x", "1")]));
}

#[test]
fn forged_ops_are_refused_one_by_one_and_not_credited() {
    let mut source = replica("s");
    put(&mut source, "r", &[("x", "1")]);
    let good = ops_of(&source).remove(0);
    let other = {
        let mut other = replica("t");
        put(&mut other, "r", &[("x", "2")]);
        ops_of(&other).remove(0)
    };
    let mut wrong_signature = good.clone();
    wrong_signature.1.signature[5] ^= 1;
    let mut wrong_bytes = good.clone();
    let mut bytes = wrong_bytes.1.bytes.to_vec();
    *bytes.last_mut().expect("not empty") ^= 1;
    wrong_bytes.1.bytes = bytes.into();
    let no_record = (None, good.1.clone());
    let others_record = (other.0.clone(), good.1.clone());
    let mut forged_record = good.clone();
    forged_record.0.as_mut().expect("record").signature[0] ^= 1;
    let mut stolen_key = good.clone();
    stolen_key.0.as_mut().expect("record").public_key[0] ^= 1;
    let mut long_chain = good.clone();
    long_chain.0.as_mut().expect("record").chain.push(vec![0; 20_000]);
    let cases = [
        (wrong_signature, "bad_signature"),
        (wrong_bytes, "bad_signature"),
        (no_record, "unknown_origin"),
        (others_record, "unknown_origin"),
        (forged_record, "bad_origin"),
        (stolen_key, "bad_origin"),
        (long_chain, "bad_origin"),
        ((None, SignedOp { bytes: Default::default(), signature: [0; 64] }), "malformed"),
    ];
    let mut a = replica("a");
    let before = seen(&a);
    for (op, label) in cases {
        let merged = a.merge(vec![op], NOW).expect("a peer's fault is no error");
        assert_eq!(merged.refused[0].1.label(), label);
        assert!(merged.refused[0].1.is_hostile());
        assert_eq!(seen(&a), before, "{label}");
    }
    let mut bad = good.clone();
    bad.1.signature[0] ^= 1;
    let merged = a.merge(vec![bad, good, other], NOW).expect("merges");
    assert_eq!((merged.new_ops.len(), merged.refused.len()), (2, 1), "a bad op keeps no good one out");
    assert_eq!(a.counters().refused["bad_signature"], 3);
}

/// An op as its author would have signed it, with any content.
pub(crate) fn forge(author: &Replica, change: impl FnOnce(&mut crate::Op)) -> (Option<OriginRecord>, SignedOp) {
    let (record, signed) = ops_of(author).remove(0);
    let id = author.store_id();
    let mut op = crate::op::decode(id, &signed.bytes, author.limits()).expect("an honest op reads");
    change(&mut op);
    let bytes: bytes::Bytes = crate::op::encode(id, &op).into();
    (record, SignedOp { signature: author.authority.sign(&bytes), bytes })
}

/// An author, and two ops that it signed under one dot; the one that stands first.
pub(crate) fn fork() -> (Replica, [(Option<OriginRecord>, SignedOp); 2]) {
    let mut author = replica("author");
    put(&mut author, "r", &[("x", "one")]);
    let mut two = [ops_of(&author).remove(0), forge(&author, |op| op.message = "two".to_owned())];
    two.sort_by_key(|(_, signed)| signed.hash());
    (author, two)
}

#[test]
fn a_counter_that_jumps_over_the_limit_is_refused() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "1")]);
    b.store.limits.counter_step = 1 << 32;
    for (counter, is_taken) in [((1 << 63) - 1, false), ((1 << 32) + 1, false), (1 << 32, true)] {
        let merged = b.merge(vec![forge(&a, |op| op.dot.counter = counter)], NOW).expect("merges");
        assert_eq!(merged.new_ops.len() == 1, is_taken, "{counter}: {merged:?}");
    }
}

#[test]
fn a_second_op_under_one_dot_ends_with_the_lower_hash_everywhere() {
    let (author, [one, two]) = fork();
    let lower = one.1.hash();
    let (mut a, mut b) = (replica("a"), replica("b"));
    for (replica, first, second) in [(&mut a, &one, &two), (&mut b, &two, &one)] {
        replica.merge(vec![first.clone()], NOW).expect("merges");
        let merged = replica.merge(vec![second.clone()], NOW).expect("merges");
        assert_eq!(merged.equivocations.len(), 1);
        assert_eq!(replica.counters().equivocations, 1);
        let dot = Dot::new(author.incarnation(), 1);
        assert_eq!(replica.signed_op(dot).expect("held").hash(), lower);
    }
    assert_eq!(a.root(), b.root());
    assert!(a.documents().eq(b.documents()));
}

#[test]
fn a_clock_a_year_ahead_is_stored_counted_and_does_not_drag_ours() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    let year = 365 * 24 * 60 * 60 * 1_000;
    let edits = vec![Edit::put(key("r"), body(&[("x", "1")]))];
    a.write(edits, WriteMeta::default(), NOW + year).expect("writes");
    b.merge(ops_of(&a), NOW).expect("merges");
    assert_eq!(b.counters().clock_suspects, 1);
    assert!(b.document(&key("r")).expect("there").clock_suspect);
    put(&mut b, "r", &[("x", "2")]);
    let view = b.document(&key("r")).expect("there");
    assert_eq!(view.sections["x"], b"2"[..], "causality decides, not the clock");
    assert!(view.hlc.millis <= NOW + crate::CLOCK_LEAD_MAX_MS);
}

#[test]
fn everything_acknowledged_is_there_after_opening_again() {
    let folder = tempfile::tempdir().expect("temp dir");
    let path = folder.path().join("db");
    let open = |boot| replica_on("a", Box::new(SledStorage::open(&path).expect("opens")), boot);
    let mut a = open(0);
    let mut b = replica("b");
    put(&mut a, "mine", &[("x", "1")]);
    put(&mut b, "theirs", &[("x", "2"), ("y", "3")]);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "mine");
    let large = "z".repeat(60 << 10);
    put(&mut a, "large", &[("x", &large)]);
    a.records().put_record("addresses", b"n1", b"10.0.0.1:7440").expect("stores");
    let before = seen(&a);
    // Dropped without a word, as a killed process would.
    drop(a);
    let mut a = open(1);
    assert_eq!(seen(&a), before);
    assert_eq!(a.records().get("addresses", b"n1"), Some(&b"10.0.0.1:7440"[..]));
    assert_eq!(put(&mut a, "more", &[("x", "1")]).dot, Some(Dot::new(a.incarnation(), before.4 + 1)));
    a.close().expect("closes");
    assert_eq!(open(2).summary().documents, 3);
}

#[test]
fn a_failed_write_leaves_nothing_and_the_next_one_works() {
    for fault in [Fault::Full, Fault::Io] {
        let disk = Disk::new();
        let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
        let mut a = replica_on("a", Box::new(storage), 0);
        put(&mut a, "r", &[("x", "1"), ("y", "1")]);
        let mut b = replica("b");
        put(&mut b, "other", &[("x", "1")]);
        let before = (seen(&a), disk.pairs());

        plan.push(fault);
        let edits = vec![Edit::put(key("r"), body(&[("x", "2")])), Edit::put(key("new"), body(&[("x", "2")]))];
        let failed = a.write(edits.clone(), WriteMeta::default(), NOW);
        match fault {
            Fault::Full => assert!(matches!(failed, Err(StoreError::Full)), "{failed:?}"),
            _ => assert!(matches!(failed, Err(StoreError::Storage(_))), "{failed:?}"),
        }
        assert_eq!((seen(&a), disk.pairs()), before);
        plan.push(fault);
        assert!(a.merge(ops_of(&b), NOW).is_err());
        plan.push(fault);
        assert!(a.write(vec![Edit::delete(key("r"))], WriteMeta::default(), NOW).is_err());
        plan.push(fault);
        assert!(a.records().put_record("t", b"k", b"v").is_err());
        assert_eq!(a.records().get("t", b"k"), None);
        assert_eq!((seen(&a), disk.pairs()), before);
        assert_eq!(a.counters().storage_failures, 4);

        let written = a.write(edits, WriteMeta::default(), NOW).expect("the next write works");
        assert_eq!(written.dot, Some(Dot::new(a.incarnation(), 2)), "no counter is skipped");
        assert_eq!(a.merge(ops_of(&b), NOW).expect("merges").new_ops.len(), 1);
        let after = seen(&a);
        drop(a);
        assert_eq!(seen(&replica_on("a", on(&disk), 1)), after);
    }
}

#[test]
fn a_crash_around_a_write_leaves_it_whole_or_not_at_all() {
    for (fault, is_there) in [(Fault::CrashBefore, false), (Fault::CrashAfter, true)] {
        let disk = Disk::new();
        let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
        let mut a = replica_on("a", Box::new(storage), 0);
        put(&mut a, "r", &[("x", "1")]);
        plan.push(fault);
        let edits = vec![Edit::put(key("r"), body(&[("x", "2")])), Edit::put(key("s"), body(&[("x", "2")]))];
        assert!(a.write(edits, WriteMeta::default(), NOW).is_err());
        drop(a);
        let mut a = replica_on("a", on(&disk), 1);
        assert_eq!(text(&a, "r"), sections(&[("x", if is_there { "2" } else { "1" })]));
        assert_eq!(a.document(&key("s")).is_some(), is_there);
        let next = put(&mut a, "r", &[("x", "3")]).dot.expect("written");
        assert_eq!(next.counter, if is_there { 3 } else { 2 });
    }
}

#[test]
fn a_node_starts_on_a_disk_that_takes_no_writes() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    let before = seen(&a);
    drop(a);
    let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
    plan.push(Fault::Full);
    let mut a = replica_on("a", Box::new(storage), 1);
    assert_eq!(seen(&a), before);
    put(&mut a, "r", &[("x", "2")]);
    let life = a.incarnation();
    drop(a);
    assert_eq!(replica_on("a", on(&disk), 2).incarnation(), life, "the life goes on as well");
}

#[test]
fn every_damaged_record_is_reported() {
    let disk = Disk::new();
    let (mut a, mut b) = (replica_on("a", on(&disk), 0), replica("b"));
    put(&mut b, "theirs", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    let meta = WriteMeta { idempotency_key: "k".to_owned(), ..WriteMeta::default() };
    a.write(vec![Edit::put(key("mine"), body(&[("x", "1")]))], meta, NOW).expect("writes");
    a.records().put_record("t", b"k", b"v").expect("stores");
    drop(a);
    let pairs = disk.pairs();
    assert_eq!(pairs.len(), 10, "meta, floor, two origins, two ops, two revisions, one outcome, one record");
    for (at, value) in pairs {
        for byte in 0..value.len() {
            let mut bad = value.clone();
            bad[byte] ^= 0x10;
            disk.damage(&at, Some(bad));
            let opened = try_replica_on("a", on(&disk), 1);
            let is_history = at.first() == Some(&b'h');
            assert_eq!(matches!(opened, Err(StoreError::Damaged(_))), !is_history, "{at:?} byte {byte}: {opened:?}");
        }
        // A record that is gone altogether is noticed where the state depends on it.
        disk.damage(&at, None);
        let opened = try_replica_on("a", on(&disk), 1);
        let is_needed = !matches!(at.first(), Some(b'i' | b'r' | b'h'));
        if is_needed {
            assert!(matches!(opened, Err(StoreError::Damaged(_))), "{at:?} gone: {opened:?}");
        }
        drop(opened);
        disk.damage(&at, Some(value));
    }
    let opened = try_replica_on("a", on(&disk), 1);
    assert!(opened.is_ok() || matches!(opened, Err(StoreError::Damaged(_))));
}

/// Damage to sled's own files: what opens is a state that was once written, and everything else is reported.
#[test]
fn a_damaged_folder_is_reported_or_holds_a_state_that_was_written() {
    let folder = tempfile::tempdir().expect("temp dir");
    let path = folder.path().join("db");
    let mut roots = BTreeSet::new();
    let mut a = replica_on("a", Box::new(SledStorage::open(&path).expect("opens")), 0);
    roots.insert(a.root());
    for n in 0..80 {
        put(&mut a, &format!("n{}", n % 30), &[("x", &format!("{n}{}", "z".repeat(n * 20)))]);
        roots.insert(a.root());
    }
    a.compact().expect("compacts");
    a.close().expect("closes");
    let intact = std::fs::read(path.join("db")).expect("reads");
    let length = intact.len();
    let mut reported = 0;
    for case in 0..60 {
        let mut bytes = intact.clone();
        let at = case * 7_919 * 31 % length;
        match case % 5 {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 4,
            2 => bytes[at..length.min(at + 4_096)].fill(0),
            3 => bytes[at..length.min(at + 4_096)].fill(0xa5),
            _ => bytes[at..].fill(0),
        }
        std::fs::write(path.join("db"), bytes).expect("writes");
        let opened = match SledStorage::open(&path) {
            Ok(storage) => try_replica_on("a", Box::new(storage), 1),
            Err(error) => Err(error.into()),
        };
        match opened {
            Ok(opened) => assert!(roots.contains(&opened.root()), "case {case} shows what was never written"),
            Err(StoreError::Damaged(_) | StoreError::Storage(_)) => reported += 1,
            Err(other) => panic!("case {case}: {other:?}"),
        }
    }
    assert!(reported > 10, "{reported} of 60 damages reported");
}

#[test]
fn a_database_that_lost_everything_is_reported_and_not_begun_anew() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    drop(a);
    disk.pairs().iter().for_each(|(key, _)| disk.damage(key, None));
    assert!(matches!(try_replica_on("a", on(&disk), 1), Err(StoreError::Damaged(_))));
}

#[test]
fn a_database_of_another_store_or_a_newer_program_is_refused_as_such() {
    let disk = Disk::new();
    drop(replica_on("a", on(&disk), 0));
    let other = Replica::open(on(&disk), HashAuthority::member("a"), "other-mesh", [1; 16], NOW);
    assert!(matches!(other, Err(StoreError::OtherStore { .. })), "{other:?}");
    let (_, mut meta) = disk.pairs().into_iter().find(|(key, _)| key == b"m").expect("there");
    meta[0] = crate::STORED_VERSION + 1;
    let end = meta.len() - 4;
    let sum = crc32c::crc32c(&meta[..end]).to_be_bytes();
    meta[end..].copy_from_slice(&sum);
    disk.damage(b"m", Some(meta));
    let newer = try_replica_on("a", on(&disk), 1);
    assert!(matches!(newer, Err(StoreError::Newer)), "{newer:?}");
}

#[test]
fn a_new_life_begins_with_a_new_disk_a_copy_and_a_new_key() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    let first = a.incarnation();
    drop(a);
    assert_eq!(replica_on("a", on(&disk), 1).incarnation(), first, "a restart goes on");
    let copy = disk.copy();
    let restored = replica_on("a", on(&copy), 2);
    assert_ne!(restored.incarnation(), first, "a copy does not");
    assert_eq!(text(&restored, "r"), sections(&[("x", "1")]), "but keeps what it holds");
    let renewed = Replica::open(on(&disk), HashAuthority::member("new-key"), MESH, [9; 16], NOW).expect("opens");
    assert_ne!(renewed.incarnation(), first);
    assert_ne!(replica("a").incarnation(), replica_on("a", Box::new(MemoryStorage::new()), 7).incarnation());
}

#[test]
fn a_replica_set_back_in_time_takes_a_new_life_when_peers_know_better() {
    let disk = Disk::new();
    let mut b = replica("b");
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    let old = disk.copy();
    put(&mut a, "r", &[("x", "2")]);
    sync(&mut a, &mut b).expect("syncs");
    let first = a.incarnation();
    // The whole folder is put back, the mark beside the database as well: nothing local shows it.
    let mark = MemoryStorage::on(&disk).boot_mark().expect("reads").expect("marked");
    drop(a);
    MemoryStorage::on(&old).set_boot_mark(mark).expect("marks");
    let mut a = replica_on("a", on(&old), 1);
    assert_eq!(a.incarnation(), first);
    // It answers a peer's call: the peer's context shows an op of ours that we do not know.
    sync(&mut b, &mut a).expect("syncs");
    assert_ne!(a.incarnation(), first);
    assert_eq!(text(&a, "r"), sections(&[("x", "2")]));
    put(&mut a, "r", &[("x", "3")]);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(a.root(), b.root());
    assert_eq!(b.counters().equivocations, 0);
}

/// The whole machine went back in time, and before any conversation somebody pushed an op that was written over ours. Our
/// next write got a dot that this op supersedes: it was acknowledged and gone at once.
#[test]
fn a_pushed_op_that_names_more_of_our_life_than_we_know_ends_it() {
    let disk = Disk::new();
    let mut b = replica("b");
    let mut a = replica_on("a", on(&disk), 0);
    let old = disk.copy();
    put(&mut a, "r", &[("x", "1")]);
    put(&mut a, "r", &[("x", "2")]);
    sync(&mut a, &mut b).expect("syncs");
    let later = put(&mut b, "r", &[("x", "3")]);
    let first = a.incarnation();
    let mark = MemoryStorage::on(&disk).boot_mark().expect("reads").expect("marked");
    MemoryStorage::on(&old).set_boot_mark(mark).expect("marks");
    let mut a = replica_on("a", on(&old), 1);
    assert_eq!(a.incarnation(), first);
    a.merge_push(&later.push, NOW).expect("merges");
    assert_ne!(a.incarnation(), first);
    put(&mut a, "r", &[("x", "4")]);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(text(&b, "r"), sections(&[("x", "4")]));
}

#[test]
fn a_second_op_under_a_dot_of_our_own_life_ends_it() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    // Another machine is a copy of this one, the mark beside the database included.
    let copy = disk.copy();
    let mark = MemoryStorage::on(&disk).boot_mark().expect("reads").expect("marked");
    MemoryStorage::on(&copy).set_boot_mark(mark).expect("marks");
    let mut twin = replica_on("a", on(&copy), 1);
    let life = a.incarnation();
    assert_eq!(twin.incarnation(), life);
    let ours = put(&mut a, "r", &[("x", "1")]);
    let theirs = put(&mut twin, "r", &[("x", "2")]);
    a.merge_push(&theirs.push, NOW).expect("merges");
    twin.merge_push(&ours.push, NOW).expect("merges");
    let lives = BTreeSet::from([life, a.incarnation(), twin.incarnation()]);
    assert_eq!(lives.len(), 3, "both go on under lives of their own");
    assert_eq!(text(&a, "r"), text(&twin, "r"));
}

/// A disk that was full when a new life was due: the life stayed, and the count of lives went up with each attempt.
#[test]
fn a_new_life_that_the_disk_refused_is_not_counted() {
    let (disk, mut b) = (Disk::new(), replica("b"));
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    // The same seed and an empty disk: a life that was used before.
    let (storage, plan) = FaultyStorage::new(MemoryStorage::new());
    let mut a = replica_on("a", Box::new(storage), 0);
    let (life, lives) = (a.incarnation(), a.counters().incarnations);
    plan.push(Fault::Full);
    sync(&mut a, &mut b).expect_err("the disk is full");
    assert_eq!((a.incarnation(), a.counters().incarnations), (life, lives));
    sync(&mut a, &mut b).expect_err("the life changes, which ends the conversation");
    assert_ne!(a.incarnation(), life);
    assert_eq!(a.counters().incarnations, lives + 1);
}

/// The same seed, handed in twice, once gave the life that was just given up: counters began again under a used name.
#[test]
fn a_new_life_is_never_one_that_was_used() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    drop(a);
    let mut a = replica_on("a", on(&disk), 0);
    let first = a.incarnation();
    let mut theirs = a.context().clone();
    theirs.insert(Dot::new(first, 2));
    a.heed(&theirs).expect("stores");
    assert_ne!(a.incarnation(), first);
    drop(a);
    assert_ne!(replica_on("a", on(&disk), 1).incarnation(), first);
}

#[test]
fn a_pushed_op_under_our_own_name_that_we_do_not_know_ends_our_life() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    let push = put(&mut a, "r", &[("x", "1")]).push;
    let first = a.incarnation();
    drop(a);
    let empty = Disk::new();
    let mut a = replica_on("a", on(&empty), 0);
    assert_eq!(a.incarnation(), first, "the same seed stands for a copy made before the first write");
    a.merge_push(&push, NOW).expect("merges");
    assert_ne!(a.incarnation(), first);
    assert_eq!(put(&mut a, "r", &[("x", "2")]).dot.expect("written").origin, a.incarnation());
    let after = seen(&a);
    drop(a);
    assert_eq!(seen(&replica_on("a", on(&empty), 1)), after);
}

#[test]
fn pushed_messages_carry_ops_and_junk_is_refused() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    let push = put(&mut a, "r", &[("x", "1")]).push;
    assert_eq!(b.merge_push(&push, NOW).expect("merges").new_ops.len(), 1);
    assert_eq!(b.merge_push(&push, NOW).expect("merges").duplicates, 1);
    let before = seen(&b);
    for length in 0..push.len() {
        assert!(matches!(b.merge_push(&push[..length], NOW), Err(StoreError::Malformed(_))), "cut at {length}");
    }
    assert!(a.encode_push(&[]).is_empty());
    assert!(a.encode_push(&[Dot::new(b.incarnation(), 9)]).is_empty());
    assert_eq!(seen(&b), before);
    // More than one message holds: what does not fit is left to anti-entropy.
    let heavy = "z".repeat(60 << 10);
    let dots: Vec<Dot> = (0..20).filter_map(|n| put(&mut a, &format!("n{n}"), &[("x", &heavy)]).dot).collect();
    let push = a.encode_push(&dots);
    assert!(push.len() <= crate::FRAME_BYTES_MAX);
    assert!(b.merge_push(&push, NOW).expect("merges").new_ops.len() >= 4);
}

#[test]
fn records_are_small_durable_and_bounded() {
    let disk = Disk::new();
    let mut a = replica_on("a", on(&disk), 0);
    let mut records = a.records();
    records.put_record("t", b"b", b"2").expect("stores");
    records.put_record("t", b"a", b"1").expect("stores");
    records.put_record("tt", b"c", b"3").expect("stores");
    records.put_record("t", b"gone", b"4").expect("stores");
    records.delete("t", b"gone").expect("removes");
    records.delete("t", b"never").expect("removes nothing");
    let large = vec![0; (64 << 10) + 1];
    assert!(matches!(records.put_record("t", b"k", &large), Err(StoreError::TooLarge { .. })));
    assert!(matches!(records.put_record("t", &[0; 513], b""), Err(StoreError::TooLarge { .. })));
    assert!(matches!(records.put_record("", b"k", b""), Err(StoreError::Invalid { .. })));
    assert!(matches!(records.put_record("a\0b", b"k", b""), Err(StoreError::Invalid { .. })));
    for n in 0..63_u8 {
        records.put_record("many", &[n], &large[1..]).expect("stores");
    }
    assert!(matches!(records.put_record("many", b"xx", &large[1..]), Err(StoreError::TooLarge { .. })));
    let root = a.root();
    drop(a);
    let mut a = replica_on("a", on(&disk), 1);
    let records = a.records();
    let table: Vec<_> = records.scan("t").collect();
    assert_eq!(table, [(&b"a"[..], &b"1"[..]), (b"b", b"2")]);
    assert_eq!(a.root(), root, "records are nobody else's");
}

/// Bytes written by version 1 open for ever, and today's program still writes the same.
#[test]
fn a_database_of_version_1_opens() {
    // Floor, marks and history came later; a database of before opens without them.
    let is_of_version_1 = |key: &[u8]| !matches!(key.first(), Some(b'f' | b'x' | b'h'));
    let mut pairs = golden_disk().pairs();
    pairs.retain(|(key, _)| is_of_version_1(key));
    let bytes = golden("store-v1.bin", &flat(&pairs));
    let kept = Disk::new();
    unflatten(&bytes, &kept);
    let mut a = replica_on("a", on(&kept), 9);
    assert_eq!(text(&a, "mine"), sections(&[("x", "1"), ("y", "2")]));
    assert_eq!(text(&a, "theirs"), sections(&[("x", "3")]));
    assert_eq!(a.document(&key("both")).expect("there").conflicts.len(), 1);
    assert_eq!(a.summary().tombstones, 1);
    assert_eq!(a.records().get("t", b"k"), Some(&b"v"[..]));
}

fn golden_disk() -> Disk {
    let disk = Disk::new();
    let (mut a, mut b) = (replica_on("a", on(&disk), 0), replica("b"));
    let meta = WriteMeta { idempotency_key: "k".to_owned(), message: "first".to_owned(), ..WriteMeta::default() };
    a.write(vec![Edit::put(key("mine"), body(&[("x", "1"), ("y", "2")]))], meta, NOW).expect("writes");
    put(&mut a, "gone", &[("x", "1")]);
    delete(&mut a, "gone");
    put(&mut a, "both", &[("x", "a")]);
    put(&mut b, "both", &[("x", "b")]);
    put(&mut b, "theirs", &[("x", "3")]);
    sync(&mut a, &mut b).expect("syncs");
    // One op overtakes another, so that the context has a gap.
    put(&mut b, "lost", &[("x", "5")]);
    let push = put(&mut b, "overtaking", &[("x", "6")]).push;
    assert!(a.merge_push(&push, NOW).expect("merges").has_gaps);
    a.records().put_record("t", b"k", b"v").expect("stores");
    disk
}

fn flat(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in pairs.iter().flat_map(|(key, value)| [key, value]) {
        bytes.extend_from_slice(&u32::try_from(part.len()).expect("small").to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn unflatten(mut bytes: &[u8], disk: &Disk) {
    let mut part = || {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (part, rest) = rest.split_at(usize::try_from(u32::from_be_bytes(*length)).expect("small"));
        bytes = rest;
        Some(part.to_vec())
    };
    while let (Some(key), Some(value)) = (part(), part()) {
        disk.damage(&key, Some(value));
    }
}
