use proptest::prelude::*;

use super::*;
use crate::{
    Limits, MemoryStorage, StoreId,
    backend::Disk,
    replica::tests::fork,
    testing::{HashAuthority, MESH, NOW, delete, golden, key, on, put, replica, replica_on, sync, sync_with, text},
};

mod below;
mod simulation;
mod told;

fn accept() -> SyncSession {
    SyncSession::accept(SyncConfig::default(), [1; 16])
}

fn initiate() -> SyncSession {
    SyncSession::initiate(SyncConfig::default(), [2; 16])
}

fn all(session: &mut SyncSession, replica: &Replica) -> Vec<Bytes> {
    std::iter::from_fn(|| session.poll_send(replica)).collect()
}

#[test]
fn both_sides_end_with_everything() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "one", &[("x", "1")]);
    put(&mut b, "two", &[("x", "2")]);
    put(&mut a, "gone", &[("x", "1")]);
    delete(&mut a, "gone");
    let (from, to) = sync(&mut a, &mut b).expect("syncs");
    assert_eq!(a.root(), b.root());
    assert_eq!(a.context(), b.context());
    assert_eq!(a.context().range_count(), 0, "the cover closes the gap that the superseded op left");
    assert!(from.outcome().is_complete && to.outcome().is_complete);
    assert_eq!((from.outcome().sent_ops, from.outcome().received_ops), (2, 1));
    assert_eq!(to.outcome().peer_context.as_ref(), Some(a.context()));
    assert_eq!(from.outcome().peer_root, Some(b.root()));
}

#[test]
fn replicas_that_agree_say_little() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "one", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    let (from, to) = sync(&mut a, &mut b).expect("syncs");
    assert_eq!((from.outcome().sent_ops, to.outcome().sent_ops), (0, 0));
}

#[test]
fn one_op_among_a_thousand_costs_one_op() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    for n in 0..1_000 {
        put(&mut a, &format!("n{n}"), &[("x", "1")]);
    }
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "n7", &[("x", "2")]);
    let (from, _) = sync(&mut a, &mut b).expect("syncs");
    assert_eq!(from.outcome().sent_ops, 1);
}

#[test]
fn a_budget_ends_a_conversation_without_cover_and_the_next_goes_on() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    for n in 0..40 {
        put(&mut a, &format!("n{n}"), &[("x", &"z".repeat(1_000))]);
        put(&mut a, &format!("n{n}"), &[("x", &"y".repeat(1_000))]);
    }
    let config = SyncConfig { chunk_bytes: 2_000, budget_bytes: 10_000, ..SyncConfig::default() };
    let mut rounds = 0;
    while a.root() != b.root() {
        let before = b.summary().ops;
        let (from, _) = sync_with(&mut a, &mut b, config).expect("syncs");
        assert!(from.outcome().sent_bytes <= 12_000);
        assert_eq!(from.outcome().is_complete, b.summary().ops == 40);
        assert!(b.summary().ops > before, "each conversation moves on");
        rounds += 1;
    }
    assert!(rounds >= 4);
    assert_eq!(a.context(), b.context());
}

#[test]
fn a_large_op_travels_alone() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    let edits = (0..4).map(|n| {
        let sections = crate::testing::body(&[("x", &"z".repeat(60 << 10))]);
        crate::Edit::put(key(&format!("n{n}")), sections)
    });
    a.write(edits.collect(), crate::WriteMeta::default(), NOW).expect("writes");
    put(&mut a, "small", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(a.root(), b.root());
}

#[test]
fn a_conversation_cut_anywhere_credits_nothing_false_and_the_next_one_heals() {
    let config = SyncConfig { chunk_bytes: 600, ..SyncConfig::default() };
    for cut in 0..60 {
        let (mut a, mut b) = (replica("a"), replica("b"));
        for n in 0..6 {
            put(&mut a, &format!("a{n}"), &[("x", "0"), ("y", "0")]);
            put(&mut a, &format!("a{n}"), &[("x", "1"), ("y", "0")]);
            put(&mut b, &format!("b{n}"), &[("x", "1")]);
        }
        delete(&mut a, "a5");
        let mut sessions = (SyncSession::initiate(config, [2; 16]), SyncSession::accept(config, [1; 16]));
        let mut delivered = 0;
        'talk: while !(sessions.0.is_done() && sessions.1.is_done()) {
            for from_a in [true, false] {
                loop {
                    let message = if from_a { sessions.0.poll_send(&a) } else { sessions.1.poll_send(&b) };
                    let Some(message) = message else { break };
                    if delivered == cut {
                        break 'talk;
                    }
                    delivered += 1;
                    let handled = if from_a {
                        sessions.1.handle_message(&mut b, &message, NOW)
                    } else {
                        sessions.0.handle_message(&mut a, &message, NOW)
                    };
                    handled.expect("honest messages are taken");
                }
            }
        }
        sync(&mut a, &mut b).expect("syncs");
        assert_eq!(a.root(), b.root(), "cut after {cut}");
        assert_eq!(a.context(), b.context(), "cut after {cut}");
        assert_eq!(a.summary().documents, 11, "cut after {cut}");
    }
}

#[test]
fn messages_for_an_earlier_life_are_refused() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "one", &[("x", "1")]);
    let (mut from, mut to) = (initiate(), accept());
    let hello = from.poll_send(&a).expect("speaks first");
    to.handle_message(&mut b, &hello, NOW).expect("takes it");
    for message in all(&mut to, &b) {
        from.handle_message(&mut a, &message, NOW).expect("takes it");
    }
    // What a says to b now names b's life. b loses its disk before it arrives.
    let late = all(&mut from, &a);
    let mut b = replica_on("b", Box::new(MemoryStorage::new()), 1);
    let mut to = accept();
    to.handle_message(&mut b, &hello, NOW).expect("takes it");
    all(&mut to, &b);
    for message in late {
        assert!(to.handle_message(&mut b, &message, NOW).is_err());
    }
    assert_eq!(b.context(), &Context::new());
    assert_eq!(text(&b, "one"), None);
}

#[test]
fn a_conversation_whose_life_ends_stops() {
    let (disk, mut b) = (Disk::new(), replica("b"));
    let mut a = replica_on("a", on(&disk), 0);
    put(&mut a, "r", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    // The same seed and an empty disk: a life that was used before.
    let mut a = replica_on("a", Box::new(MemoryStorage::new()), 0);
    let (mut from, mut to) = (initiate(), accept());
    let hello = from.poll_send(&a).expect("speaks first");
    to.handle_message(&mut b, &hello, NOW).expect("takes it");
    let answer = to.poll_send(&b).expect("answers");
    assert!(matches!(from.handle_message(&mut a, &answer, NOW), Err(SyncError::OtherIncarnation)));
    assert!(from.is_done() && from.poll_send(&a).is_none());
    sync(&mut a, &mut b).expect("the next conversation works");
    assert_eq!(a.root(), b.root());
}

#[test]
fn equal_contexts_with_different_roots_exchange_everything() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "one", &[("x", "1")]);
    put(&mut b, "two", &[("x", "1")]);
    // A peer that lies about what it has told: coverage without the ops.
    let (cover_a, cover_b) = (a.context().clone(), b.context().clone());
    a.credit(&cover_b).expect("credits");
    b.credit(&cover_a).expect("credits");
    assert_eq!(a.context(), b.context());
    assert_ne!(a.root(), b.root());
    let (from, _) = sync(&mut a, &mut b).expect("syncs");
    assert!(from.outcome().is_repair);
    assert_eq!(a.counters().root_mismatches, 1);
    assert_eq!(a.root(), b.root());
    assert_eq!(a.summary().documents, 2);
}

#[test]
fn a_receiver_that_refused_an_op_takes_no_cover() {
    let limits = Limits { documents: 1, ..Limits::default() };
    let storage = Box::new(MemoryStorage::new());
    let id = StoreId::global(MESH);
    let mut small = Replica::open_with(storage, HashAuthority::member("s"), id, limits, [1; 16], NOW).expect("opens");
    let mut a = replica("a");
    for n in 0..6 {
        put(&mut a, &format!("n{n}"), &[("x", "1")]);
    }
    sync(&mut a, &mut small).expect("a full store is nobody's fault");
    assert_eq!(small.summary().ops, 4);
    assert!(!small.context().covers(a.context()), "what was refused is not credited");
}

#[test]
fn replicas_of_different_stores_do_not_talk() {
    let mut a = replica("a");
    let storage = Box::new(MemoryStorage::new());
    let mut other = Replica::open(storage, HashAuthority::member("b"), "other", [1; 16], NOW).expect("opens");
    let (mut from, mut to) = (initiate(), accept());
    let hello = from.poll_send(&a).expect("speaks first");
    assert!(matches!(to.handle_message(&mut other, &hello, NOW), Err(SyncError::OtherStore)));
    assert!(to.poll_send(&other).is_none());
    let hello = initiate().poll_send(&other).expect("speaks first");
    assert!(matches!(accept().handle_message(&mut a, &hello, NOW), Err(SyncError::OtherStore)));
}

#[test]
fn messages_out_of_turn_are_refused() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "one", &[("x", "1")]);
    let (mut from, mut to) = (initiate(), accept());
    let hello = from.poll_send(&a).expect("speaks first");
    assert!(to.poll_send(&b).is_none(), "the one called waits");
    to.handle_message(&mut b, &hello, NOW).expect("takes it");
    let answers = all(&mut to, &b);
    for message in &answers {
        from.handle_message(&mut a, message, NOW).expect("takes it");
    }
    // A second hello, an ack before our fin, ops after a fin.
    assert!(to.handle_message(&mut b, &hello, NOW).is_err());
    let (mut from, mut to) = (initiate(), accept());
    let hello = from.poll_send(&a).expect("speaks first");
    to.handle_message(&mut b, &hello, NOW).expect("takes it");
    let ack = Ack { to: b.incarnation(), context: Context::new().image(0), root: [0; 16] };
    let ack = codec::encode(Kind::Ack, &ack).expect("encodes");
    assert!(matches!(to.handle_message(&mut b, &ack, NOW), Err(SyncError::OutOfTurn)));
    assert!(matches!(to.handle_message(&mut b, &hello, NOW), Err(SyncError::OutOfTurn)), "it is over");
}

/// One honest conversation's messages from the initiator, after which a copy of the receiver can be tried.
fn transcript() -> (Vec<Bytes>, Disk) {
    let disk = Disk::new();
    let (mut a, mut b) = (replica("a"), replica_on("b", on(&disk), 0));
    put(&mut b, "two", &[("x", "2")]);
    put(&mut a, "one", &[("x", "1")]);
    put(&mut a, "one", &[("x", "2")]);
    delete(&mut a, "one");
    put(&mut a, "three", &[("x", "3"), ("y", "4")]);
    let (mut from, mut to) = (initiate(), accept());
    let mut said = vec![from.poll_send(&a).expect("speaks first")];
    to.handle_message(&mut b, &said[0], NOW).expect("takes it");
    for message in all(&mut to, &b) {
        from.handle_message(&mut a, &message, NOW).expect("takes it");
    }
    said.extend(all(&mut from, &a));
    (said, disk)
}

#[test]
fn every_truncated_message_is_refused() {
    let (said, disk) = transcript();
    for (at, message) in said.iter().enumerate() {
        for length in 0..message.len() {
            let mut b = replica_on("b", on(&disk), 0);
            let mut to = accept();
            for before in &said[..at] {
                to.handle_message(&mut b, before, NOW).expect("takes it");
                all(&mut to, &b);
            }
            let before = (b.root(), b.context().clone());
            assert!(to.handle_message(&mut b, &message[..length], NOW).is_err(), "message {at} cut at {length}");
            assert_eq!((b.root(), b.context().clone()), before);
            if at > 1 && length > 40 {
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn hostile_bytes_never_panic_and_never_break_the_store(
        at in 0..4_usize,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        junk in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (said, disk) = transcript();
        let mut b = replica_on("b", on(&disk), 0);
        let mut to = accept();
        let at = at.min(said.len() - 1);
        for (index, message) in said.iter().enumerate() {
            let mut bytes = message.to_vec();
            if index == at {
                flips.iter().for_each(|(place, with)| { let place = place.index(bytes.len()); bytes[place] = *with; });
            }
            let _either = to.handle_message(&mut b, &bytes, NOW);
            all(&mut to, &b);
        }
        let _refused = accept().handle_message(&mut b, &junk, NOW);
        let _refused = b.merge_push(&junk, NOW);
        // Whatever happened, an honest peer heals it, and what is on disk opens.
        let root = b.root();
        drop(b);
        let mut b = replica_on("b", on(&disk), 1);
        prop_assert_eq!(b.root(), root);
        let mut a = replica("c");
        put(&mut a, "four", &[("x", "4")]);
        sync(&mut a, &mut b).expect("syncs");
        prop_assert!(b.document(&key("two")).is_some());
    }
}

#[test]
fn a_hostile_cover_does_not_silence_a_writer_for_good() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "r", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    // b is told by someone that it has seen a thousand ops of a that do not exist.
    let mut lie = Context::new();
    (1..=1_000).for_each(|counter| lie.insert(Dot::new(a.incarnation(), counter)));
    b.credit(&lie).expect("credits");
    put(&mut a, "r", &[("x", "2")]);
    // The next conversation tells a that its name is spoilt; it takes another, and what it wrote arrives.
    let _first = sync(&mut a, &mut b);
    sync(&mut a, &mut b).expect("syncs");
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(a.root(), b.root());
    put(&mut a, "r", &[("x", "3")]);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!(text(&b, "r"), text(&a, "r"));
}

/// The messages of version 1: today's program says the same, and understands what was kept.
#[test]
fn a_conversation_of_version_1_is_understood() {
    let (said, disk) = transcript();
    let kept = golden("sync-v1.bin", &said.concat());
    let mut b = replica_on("b", on(&disk), 0);
    let mut to = accept();
    let mut rest: &[u8] = &kept;
    while let Some(length) = codec::frame_length(rest).expect("a known version") {
        let (message, behind) = rest.split_at(length);
        to.handle_message(&mut b, message, NOW).expect("takes it");
        all(&mut to, &b);
        rest = behind;
    }
    assert!(b.document(&key("three")).is_some());
    assert_eq!(b.context().range_count(), 0);
}

/// The writer's disk was copied: its second history differs under a dot that all have seen.
#[test]
fn a_conversation_names_the_dots_under_which_two_ops_were_signed() {
    let (author, [stands, other]) = fork();
    let (mut a, mut b) = (replica("a"), replica("b"));
    a.merge(vec![stands], NOW).expect("merges");
    b.merge(vec![other], NOW).expect("merges");
    let (mut from, mut to) = (initiate(), accept());
    let mut named = Vec::new();
    while !(from.is_done() && to.is_done()) {
        for message in all(&mut from, &a) {
            named.extend(to.handle_message(&mut b, &message, NOW).expect("takes it").equivocations);
        }
        for message in all(&mut to, &b) {
            named.extend(from.handle_message(&mut a, &message, NOW).expect("takes it").equivocations);
        }
    }
    let dot = Dot::new(author.incarnation(), 1);
    assert_eq!(named, [dot, dot], "both sides see it");
    assert_eq!(a.root(), b.root());
}
