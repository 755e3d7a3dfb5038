//! Conversations in which one side, or both, have not seen all that the other has collected.

use super::*;
use crate::{
    Fault, FaultyStorage,
    context::ContextImage,
    testing::{body, replica_on},
    wire::Claims,
};

fn collect(replica: &mut Replica) -> usize {
    replica.collect(NOW, 0).expect("collects").tombstones
}

/// Everyone has `gone` and `kept`; then a deletes `gone` and lets go of the tombstone while the others are away.
fn away(names: &[&str]) -> (Replica, Vec<Replica>) {
    let mut a = replica("a");
    put(&mut a, "gone", &[("x", "0"), ("y", "0")]);
    put(&mut a, "kept", &[("x", "0")]);
    let mut others: Vec<Replica> = names.iter().map(|name| replica(name)).collect();
    for other in &mut others {
        sync(&mut a, other).expect("syncs");
    }
    delete(&mut a, "gone");
    put(&mut a, "new", &[("x", "0")]);
    assert_eq!(collect(&mut a), 1);
    (a, others)
}

fn one_away() -> (Replica, Replica) {
    let (a, mut others) = away(&["b"]);
    (a, others.remove(0))
}

#[test]
fn what_was_deleted_beyond_the_horizon_goes_and_an_offline_edit_stays() {
    for edits in [false, true] {
        for b_calls in [false, true] {
            let (mut a, mut b) = one_away();
            put(&mut b, "mine", &[("x", "1")]);
            if edits {
                put(&mut b, "gone", &[("x", "edited"), ("y", "0")]);
            }
            let ends = if b_calls { sync(&mut b, &mut a) } else { sync(&mut a, &mut b) };
            let (from, to) = ends.expect("syncs");
            let (at_a, at_b) = if b_calls { (&to, &from) } else { (&from, &to) };
            assert!(at_b.outcome().is_below_floor && !at_a.outcome().is_below_floor);
            assert!(at_a.outcome().is_complete && at_b.outcome().is_complete);
            assert_eq!(a.context(), b.context());
            assert_eq!(a.root(), b.root());
            assert_eq!(text(&b, "gone"), text(&a, "gone"));
            assert_eq!(text(&b, "gone").is_some(), edits);
            assert_eq!(b.floor(), a.floor());
            assert_eq!(b.counters().claims_applied, 1);
            let (again, _) = sync(&mut a, &mut b).expect("syncs");
            assert_eq!(again.outcome().sent_ops, 0);
            assert!(!again.outcome().is_repair);
        }
    }
}

#[test]
fn a_claim_takes_effect_when_enough_different_peers_have_made_it() {
    let (mut a, mut others) = away(&["b", "c"]);
    let (mut c, mut b) = (others.pop().expect("two"), others.pop().expect("two"));
    sync(&mut a, &mut c).expect("syncs");
    let disk_like = |b: &Replica| (b.context().clone(), b.floor().clone(), text(b, "gone").is_some());
    let two = SyncConfig { claims_needed: 2, ..SyncConfig::default() };
    for round in 1..=2 {
        sync_with(&mut a, &mut b, two).expect("syncs");
        assert!(text(&b, "gone").is_some(), "the same peer counts once");
        assert!(text(&b, "new").is_some(), "ops come all the same");
        assert!(!b.context().covers(a.context()) && b.floor().is_empty(), "{:?}", disk_like(&b));
        assert_eq!((b.summary().pending_claims, b.counters().claims_pending), (1, round));
    }
    sync_with(&mut c, &mut b, two).expect("syncs");
    assert_eq!((text(&b, "gone"), b.summary().pending_claims, b.counters().claims_applied), (None, 0, 1));
    assert_eq!((b.root(), b.floor()), (a.root(), a.floor()));
    assert!(b.context().covers(a.context()));
}

#[test]
fn a_pending_claim_is_forgotten_with_the_op_it_speaks_about() {
    let (mut a, mut b) = one_away();
    sync_with(&mut a, &mut b, SyncConfig { claims_needed: 2, ..SyncConfig::default() }).expect("syncs");
    assert_eq!(b.summary().pending_claims, 1);
    put(&mut b, "gone", &[("x", "1"), ("y", "1")]);
    assert_eq!(b.summary().pending_claims, 0);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(text(&a, "gone"), text(&b, "gone"));
    assert!(text(&a, "gone").is_some(), "the edit beside the collected deletion wins");
}

#[test]
fn a_wiped_replica_is_filled_without_comparing() {
    let (mut a, _) = one_away();
    let mut b = replica("wiped");
    let (mut from, mut to) = (initiate(), accept());
    let hello = from.poll_send(&a).expect("speaks first");
    to.handle_message(&mut b, &hello, NOW).expect("takes it");
    for message in all(&mut to, &b) {
        from.handle_message(&mut a, &message, NOW).expect("takes it");
    }
    let said = all(&mut from, &a);
    let kinds: Vec<_> = said.iter().filter_map(|message| codec::frame_kind(message)).collect();
    assert!(!kinds.contains(&(Kind::Digest as u8)) && kinds.contains(&(Kind::FinBelow as u8)), "{kinds:?}");
    for message in said {
        to.handle_message(&mut b, &message, NOW).expect("takes it");
    }
    assert_eq!((b.root(), b.context(), b.floor()), (a.root(), a.context(), a.floor()));
}

/// A replica that held nothing was sent a document, which was then deleted and its tombstone collected before the
/// conversation ended; it took over that all of this was seen, and kept the document. One schedule in 5,000 showed it.
#[test]
fn what_was_sent_and_collected_in_the_same_conversation_goes() {
    let (mut a, _) = one_away();
    let mut b = replica("wiped");
    let (mut from, mut to) = (initiate(), accept());
    to.handle_message(&mut b, &from.poll_send(&a).expect("speaks first"), NOW).expect("takes it");
    for message in all(&mut to, &b) {
        from.handle_message(&mut a, &message, NOW).expect("takes it");
    }
    while text(&b, "new").is_none() {
        to.handle_message(&mut b, &from.poll_send(&a).expect("has ops"), NOW).expect("takes it");
    }
    delete(&mut a, "new");
    assert_eq!(collect(&mut a), 1);
    while !(from.is_done() && to.is_done()) {
        for message in all(&mut from, &a) {
            to.handle_message(&mut b, &message, NOW).expect("takes it");
        }
        for message in all(&mut to, &b) {
            from.handle_message(&mut a, &message, NOW).expect("takes it");
        }
    }
    assert_eq!(text(&b, "new"), None);
    assert_eq!((b.root(), b.context(), b.floor()), (a.root(), a.context(), a.floor()));
}

/// The same with an op of two documents, gone from one of them: it was sent, then superseded in the other as well, so
/// that nothing was left here to say what of it was gone. Another schedule in 5,000.
#[test]
fn what_is_gone_from_one_of_its_documents_goes_also_when_the_op_is_superseded_meanwhile() {
    let mut a = replica("a");
    let edits = ["gone", "kept"].map(|name| crate::Edit::put(key(name), body(&[("x", "1")])));
    a.write(edits.into(), crate::WriteMeta::default(), NOW).expect("writes");
    delete(&mut a, "gone");
    assert_eq!(collect(&mut a), 1);
    let mut b = replica("wiped");
    let (mut from, mut to) = (initiate(), accept());
    to.handle_message(&mut b, &from.poll_send(&a).expect("speaks first"), NOW).expect("takes it");
    for message in all(&mut to, &b) {
        from.handle_message(&mut a, &message, NOW).expect("takes it");
    }
    while text(&b, "kept").is_none() {
        to.handle_message(&mut b, &from.poll_send(&a).expect("has ops"), NOW).expect("takes it");
    }
    put(&mut a, "kept", &[("x", "2")]);
    while !(from.is_done() && to.is_done()) {
        for message in all(&mut from, &a) {
            to.handle_message(&mut b, &message, NOW).expect("takes it");
        }
        for message in all(&mut to, &b) {
            from.handle_message(&mut a, &message, NOW).expect("takes it");
        }
    }
    assert_eq!(text(&b, "gone"), None);
    assert_eq!((b.root(), b.context(), b.floor()), (a.root(), a.context(), a.floor()));
}

#[test]
fn a_replica_put_back_from_an_old_copy_learns_what_is_gone() {
    let disk = Disk::new();
    let (mut a, mut b) = (replica("a"), replica_on("b", on(&disk), 0));
    put(&mut b, "gone", &[("x", "1")]);
    put(&mut b, "kept", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    let copy = disk.copy();
    delete(&mut b, "gone");
    sync(&mut a, &mut b).expect("syncs");
    for replica in [&mut a, &mut b] {
        assert_eq!(collect(replica), 1);
    }
    let mut b = replica_on("b", on(&copy), 1);
    assert!(text(&b, "gone").is_some());
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(text(&b, "gone"), None);
    assert_eq!(a.root(), b.root());
    let root = b.root();
    drop(b);
    assert_eq!(replica_on("b", on(&copy), 2).root(), root, "the claim is durable");
}

#[test]
fn two_sides_that_have_both_collected_beyond_each_other_settle_in_one_conversation() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    for name in ["one", "two", "three"] {
        put(&mut a, name, &[("x", "1")]);
    }
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "one");
    delete(&mut b, "two");
    assert_eq!((collect(&mut a), collect(&mut b)), (1, 1));
    let (from, to) = sync(&mut a, &mut b).expect("syncs");
    assert!(from.outcome().is_below_floor && to.outcome().is_below_floor);
    for replica in [&a, &b] {
        assert_eq!([text(replica, "one"), text(replica, "two")], [None, None]);
        assert_eq!(replica.summary().documents, 1);
    }
    assert_eq!((a.root(), a.context(), a.floor()), (b.root(), b.context(), b.floor()));
}

/// Runs a conversation of a, who speaks first, with b, and does something before each message is handled there.
fn talk(
    config: SyncConfig,
    a: &mut Replica,
    b: &mut Replica,
    mut before_a: impl FnMut(&mut Replica, u8),
    mut before_b: impl FnMut(&mut Replica, u8),
) {
    let (mut from, mut to) = (SyncSession::initiate(config, [2; 16]), SyncSession::accept(config, [1; 16]));
    while !(from.is_done() && to.is_done()) {
        for message in all(&mut from, a) {
            before_b(b, codec::frame_kind(&message).expect("a frame"));
            to.handle_message(b, &message, NOW).expect("takes it");
        }
        for message in all(&mut to, b) {
            before_a(a, codec::frame_kind(&message).expect("a frame"));
            from.handle_message(a, &message, NOW).expect("takes it");
        }
    }
}

#[test]
fn an_old_edit_that_comes_from_a_third_replica_meanwhile_does_not_stay() {
    // c wrote an edit that a has seen deleted and collected, and that b has never seen.
    let (mut a, mut b, mut c) = (replica("a"), replica("b"), replica("c"));
    put(&mut a, "kept", &[("x", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    let old = put(&mut c, "gone", &[("x", "1")]).push;
    sync(&mut a, &mut c).expect("syncs");
    delete(&mut a, "gone");
    assert_eq!(collect(&mut a), 1);
    let mut pushes = 0;
    talk(
        SyncConfig::default(),
        &mut a,
        &mut b,
        |_, _| {},
        |b, kind| {
            if kind == Kind::FinBelow as u8 {
                pushes += 1;
                b.merge_push(&old, NOW).expect("merges");
            }
        },
    );
    assert_eq!(pushes, 1);
    assert!(text(&b, "gone").is_some() && b.floor().is_empty(), "not settled in this conversation");
    assert!(!b.context().covers(a.context()));
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(text(&b, "gone"), None);
    assert_eq!((a.root(), a.context()), (b.root(), b.context()));
}

#[test]
fn what_is_collected_while_a_conversation_runs_waits_for_the_next_one() {
    let (mut a, mut b) = one_away();
    put(&mut a, "late", &[("x", "1")]);
    sync_with(&mut a, &mut b, SyncConfig { claims_needed: 2, ..SyncConfig::default() }).expect("syncs");
    assert!(text(&b, "late").is_some());
    let mut collected = 0;
    talk(
        SyncConfig::default(),
        &mut a,
        &mut b,
        |a, kind| {
            if kind == Kind::Lists as u8 {
                delete(a, "late");
                collected += collect(a);
            }
        },
        |_, _| {},
    );
    assert_eq!(collected, 1);
    assert!(b.floor().is_empty() && !b.context().covers(a.context()));
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!((text(&b, "late"), text(&b, "gone")), (None, None));
    assert_eq!((a.root(), a.context(), a.floor()), (b.root(), b.context(), b.floor()));
}

#[test]
fn a_disk_that_refuses_the_end_leaves_what_was_and_the_next_conversation_settles() {
    let (mut a, disk) = (replica("a"), Disk::new());
    let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
    let mut b = replica_on("b", Box::new(storage), 0);
    put(&mut a, "gone", &[("x", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "gone");
    assert_eq!(collect(&mut a), 1);
    let before = (b.root(), b.context().clone(), disk.pairs());
    plan.push(Fault::Full);
    assert!(matches!(sync(&mut a, &mut b), Err(SyncError::Store(StoreError::Full))));
    assert_eq!((b.root(), b.context().clone(), disk.pairs()), before);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!((text(&b, "gone"), b.root()), (None, a.root()));
    drop(b);
    assert_eq!(replica_on("b", on(&disk), 1).floor(), a.floor());
}

#[test]
fn a_claim_about_one_document_leaves_the_op_in_the_others() {
    let disk = Disk::new();
    let (mut a, mut b) = (replica("a"), replica_on("b", on(&disk), 0));
    let edits = ["gone", "kept"].map(|name| crate::Edit::put(key(name), body(&[("x", "1")])));
    a.write(edits.into(), crate::WriteMeta::default(), NOW).expect("writes");
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "gone");
    assert_eq!(collect(&mut a), 1);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!((text(&b, "gone"), text(&b, "kept").is_some()), (None, true));
    let root = b.root();
    assert_eq!(root, a.root());
    drop(b);
    assert_eq!(replica_on("b", on(&disk), 1).root(), root);
}

#[test]
fn long_lists_travel_in_several_messages() {
    let limits = Limits { documents: 20_000, live_bytes: 64 << 20, ..Limits::default() };
    let open = |name: &str, seed: u8| {
        let (id, storage) = (StoreId::global(MESH), Box::new(MemoryStorage::new()));
        Replica::open_with(storage, HashAuthority::member(name), id, limits, [seed; 16], NOW).expect("opens")
    };
    let (mut a, mut b) = (open("a", 1), open("b", 2));
    put(&mut a, "gone", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    delete(&mut a, "gone");
    assert_eq!(collect(&mut a), 1);
    let names: Vec<String> = (0..17_000).map(|n| format!("n{n}")).collect();
    let edit = |name: &String| crate::Edit::put(key(name), body(&[("x", "1")]));
    let request =
        |names: &[String]| crate::WriteRequest { edits: names.iter().map(edit).collect(), ..Default::default() };
    assert!(b.write_group(names.chunks(64).map(request).collect(), NOW).iter().all(Result::is_ok));
    let mut lists = 0;
    // b tells nothing of its own, so that all of it differs.
    let config = SyncConfig { budget_bytes: 0, ..SyncConfig::default() };
    talk(config, &mut a, &mut b, |_, kind| lists += usize::from(kind == Kind::Lists as u8), |_, _| {});
    assert_eq!(lists, 2);
    assert_eq!((text(&b, "gone"), b.floor()), (None, a.floor()));
}

/// A conversation in which b, below a's floor, was asked and has answered; what a says next is not sent yet.
fn asked() -> (Replica, Replica, SyncSession, SyncSession) {
    let (mut a, mut b) = one_away();
    let (mut from, mut to) = (initiate(), accept());
    for _ in 0..2 {
        for message in all(&mut from, &a) {
            to.handle_message(&mut b, &message, NOW).expect("takes it");
        }
        for message in all(&mut to, &b) {
            from.handle_message(&mut a, &message, NOW).expect("takes it");
        }
    }
    (a, b, from, to)
}

#[test]
fn implausible_words_about_what_is_gone_are_refused_and_change_nothing() {
    let fin = |b: &Replica, cover: ContextImage, floor: Vec<(Incarnation, u64)>| {
        let fin = FinBelow { to: b.incarnation(), cover, floor };
        codec::encode(Kind::FinBelow, &fin).expect("encodes")
    };
    let claims = |b: &Replica, count: u64| {
        let pairs = (1..=count).map(|n| ([7; 16], Dot::new(b.incarnation(), n))).collect();
        codec::encode(Kind::Claims, &Claims { to: b.incarnation(), pairs }).expect("encodes")
    };
    let digest = |b: &Replica, count: usize| {
        let digest = Digest { to: b.incarnation(), buckets: vec![[1; 16]; count] };
        codec::encode(Kind::Digest, &digest).expect("encodes")
    };
    let nothing = ContextImage::default;
    let again = |a: &Replica| a.floor().dots.iter().map(|(origin, counter)| (*origin, *counter)).collect::<Vec<_>>();
    type Case<'a> = (&'a str, bool, Box<dyn Fn(&Replica, &Replica) -> Bytes + 'a>);
    let cases: Vec<Case<'_>> = vec![
        ("claims about more than was listed", true, Box::new(|_, b| claims(b, 3))),
        ("a floor beyond the cover", true, Box::new(|a, b| fin(b, nothing(), vec![(a.incarnation(), 1_000)]))),
        ("a floor that was told before", true, Box::new(|a, b| fin(b, nothing(), again(a)))),
        ("a floor that fell", true, Box::new(|a, b| fin(b, nothing(), vec![(a.incarnation(), 1)]))),
        ("a cover that was told before", true, Box::new(|a, b| fin(b, a.context().image(usize::MAX), Vec::new()))),
        ("a second digest", true, Box::new(|_, b| digest(b, 256))),
        ("claims that nobody asked for", false, Box::new(|_, b| claims(b, 1))),
        ("a digest of another size", false, Box::new(|_, b| digest(b, 255))),
        ("an end without the question", false, Box::new(|_, b| fin(b, nothing(), Vec::new()))),
    ];
    for (what, is_asked, message) in cases {
        let (a, mut b, _from, mut to) = if is_asked {
            asked()
        } else {
            let (a, mut b) = one_away();
            let (mut from, mut to) = (initiate(), accept());
            to.handle_message(&mut b, &from.poll_send(&a).expect("speaks first"), NOW).expect("takes it");
            all(&mut to, &b);
            (a, b, from, to)
        };
        let before = (b.root(), b.context().clone(), b.floor().clone());
        let message = message(&a, &b);
        let refused = to.handle_message(&mut b, &message, NOW);
        assert!(matches!(refused, Err(SyncError::Implausible { .. } | SyncError::OutOfTurn)), "{what}: {refused:?}");
        assert_eq!((b.root(), b.context().clone(), b.floor().clone()), before, "{what}");
    }
    // Lists that nobody asked for, and a hello whose floor is not sorted.
    let (a, mut b) = one_away();
    let mut to = accept();
    to.handle_message(&mut b, &initiate().poll_send(&a).expect("speaks first"), NOW).expect("takes it");
    all(&mut to, &b);
    let lists = Lists { to: b.incarnation(), is_last: true, pairs: Vec::new() };
    let lists = codec::encode(Kind::Lists, &lists).expect("encodes");
    assert!(matches!(to.handle_message(&mut b, &lists, NOW), Err(SyncError::OutOfTurn)));
    let floor = vec![(a.incarnation(), 2), (a.incarnation(), 1)];
    let hello = Hello { floor, ..Opening::of(&a).hello(&a) };
    let hello = codec::encode(Kind::Hello, &hello).expect("encodes");
    assert!(matches!(accept().handle_message(&mut b, &hello, NOW), Err(SyncError::Implausible { .. })));
}

#[test]
fn every_truncated_message_below_the_floor_is_refused() {
    let (mut a, mut b, mut from, mut to) = asked();
    for message in all(&mut from, &a) {
        let before = (b.root(), b.context().clone(), b.floor().clone());
        for length in 0..message.len() {
            let mut lists = SyncSession::accept(SyncConfig::default(), [1; 16]);
            std::mem::swap(&mut lists, &mut to);
            assert!(lists.handle_message(&mut b, &message[..length], NOW).is_err());
            lists.is_over = false;
            std::mem::swap(&mut lists, &mut to);
            assert_eq!((b.root(), b.context().clone(), b.floor().clone()), before);
        }
        to.handle_message(&mut b, &message, NOW).expect("whole, it is taken");
    }
    for message in all(&mut to, &b) {
        from.handle_message(&mut a, &message, NOW).expect("takes it");
    }
    assert_eq!((a.root(), text(&b, "gone")), (b.root(), None));
}

/// Roots differed for another reason, so everything was exchanged; an op that deletes one document and wrote another came
/// along, and the other, deleted and collected long ago, was back.
#[test]
fn a_repair_does_not_bring_back_what_was_collected() {
    let (mut a, mut b, mut c, mut d) = (replica("a"), replica("b"), replica("c"), replica("d"));
    put(&mut a, "other", &[("x", "0")]);
    sync(&mut a, &mut b).expect("syncs");
    let edits = vec![crate::Edit::delete(key("other")), crate::Edit::put(key("gone"), body(&[("x", "0")]))];
    let both = a.write(edits, crate::WriteMeta::default(), NOW).expect("writes");
    b.merge_push(&both.push, NOW).expect("merges");
    delete(&mut a, "gone");
    assert_eq!(collect(&mut a), 2);
    sync(&mut a, &mut b).expect("syncs");
    sync(&mut a, &mut c).expect("syncs");
    assert!(b.signed_op(both.dot.expect("an op")).is_some(), "b keeps the deletion of `other`");
    // c claims to have seen what it does not hold.
    let new = put(&mut d, "new", &[("x", "0")]);
    b.merge_push(&new.push, NOW).expect("merges");
    c.credit(d.context()).expect("credits");
    assert_eq!(b.context(), c.context());
    let (session, _) = sync(&mut b, &mut c).expect("syncs");
    assert!(session.outcome().is_repair);
    assert!(text(&c, "new").is_some());
    assert_eq!(text(&c, "gone"), None);
    assert_eq!(b.root(), c.root());
}
