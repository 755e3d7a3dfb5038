//! What one side has told is not told again: growths of contexts, and records that the other side holds.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    Author, Authority, OriginRecord,
    context::ContextImage,
    op::SignedOp,
    testing::{body, replica_on},
};

/// A member whose chain is as long as one of two real certificates.
struct LongChain(Arc<dyn Authority>);

/// Bytes of a record as nodes issue them.
const RECORD_BYTES: usize = 860;

impl LongChain {
    fn replica(name: &str) -> Replica {
        let authority = Arc::new(Self(HashAuthority::member(name)));
        let mut random = [7; 16];
        random.iter_mut().zip(name.bytes()).for_each(|(byte, of_name)| *byte ^= of_name);
        Replica::open(Box::new(MemoryStorage::new()), authority, MESH, random, NOW).expect("opens")
    }
}

impl Authority for LongChain {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes)
    }

    fn public_key(&self) -> [u8; 32] {
        self.0.public_key()
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        let mut chain = self.0.chain();
        let plain = 16 + 32 + 64 + chain.iter().map(Vec::len).sum::<usize>();
        chain.push(vec![1; RECORD_BYTES - plain]);
        chain
    }

    fn verify(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify(public_key, bytes, signature)
    }

    fn admit(&self, record: &OriginRecord) -> Result<Author, String> {
        let mut short = record.clone();
        short.chain.pop();
        self.0.admit(&short)
    }
}

/// One message after the other as it was said, by the side that began or the one that was called, until both are done.
fn heard(a: &mut Replica, b: &mut Replica) -> Vec<(bool, Bytes)> {
    let (mut from, mut to) = (initiate(), accept());
    let mut heard = Vec::new();
    while !(from.is_done() && to.is_done()) {
        for message in all(&mut from, a) {
            to.handle_message(b, &message, NOW).expect("takes it");
            heard.push((true, message));
        }
        for message in all(&mut to, b) {
            from.handle_message(a, &message, NOW).expect("takes it");
            heard.push((false, message));
        }
    }
    heard
}

fn records(said: &[(bool, Bytes)]) -> Vec<Incarnation> {
    let ops = said.iter().filter_map(|(_, message)| codec::decode::<Ops>(Kind::Ops, message).ok());
    ops.flat_map(|ops| ops.origins).map(|record| record.incarnation).collect()
}

/// As in the benchmark, where 10,000 documents come from ten writers: only the counters' size depends on how many there
/// are, and from 251 on it is theirs.
#[test]
fn one_missing_op_costs_at_most_2048_bytes_both_ways_and_one_and_a_half_round_trips() {
    let (mut a, mut b) = (LongChain::replica("a"), LongChain::replica("b"));
    for n in 0..10 {
        let mut writer = LongChain::replica(&format!("writer-{n}"));
        let edit = |version: u32| crate::Edit::put(key(&format!("of-{n}")), body(&[("x", &version.to_string())]));
        let request = |version| crate::WriteRequest { edits: vec![edit(version)], ..Default::default() };
        let written = (0..300).map(request).collect::<Vec<_>>();
        for group in written.chunks(100) {
            assert!(writer.write_group(group.to_vec(), NOW).iter().all(Result::is_ok));
        }
        sync(&mut writer, &mut a).expect("syncs");
    }
    put(&mut a, "mine", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!((a.context(), a.root()), (b.context(), b.root()));
    assert_eq!(a.context().origin_count(), 11);
    assert_eq!(a.context().clock().iter().filter(|dot| dot.counter > 250).count(), 10);

    let written = put(&mut a, "of-3", &[("spec", &"z".repeat(640)), ("x", "2")]);
    let dot = written.dot.expect("an op");
    let op_bytes = a.signed_op(dot).map_or(0, SignedOp::weight);
    let record = a.origin_record(&dot.origin).expect("held").clone();
    let record_bytes = codec::encode(Kind::Push, &record).expect("encodes").len();
    assert!((RECORD_BYTES..RECORD_BYTES + 20).contains(&record_bytes), "{record_bytes}");
    let said = heard(&mut a, &mut b);
    assert_eq!((a.context(), a.root()), (b.context(), b.root()));

    let mut parts: BTreeMap<(u8, bool), usize> = BTreeMap::new();
    for (is_calling, message) in &said {
        *parts.entry((message[1], *is_calling)).or_default() += message.len();
    }
    let bytes: usize = parts.values().sum();
    assert!(op_bytes > 860, "an op as large as that of the benchmark: {op_bytes}");
    // With `--nocapture` this says where the bytes go.
    let parts = format!("{bytes} bytes, the op {op_bytes}; by kind, and whether the caller spoke: {parts:?}");
    println!("{parts}");
    assert!(bytes <= 2_048, "{parts}");
    // Hello, hello, ops: the op is there with the third time that the direction changes.
    let at = said.iter().position(|(_, message)| message[1] == Kind::Ops as u8).expect("the op is sent");
    let turns = said[..=at].chunk_by(|one, other| one.0 == other.0).count();
    assert_eq!(turns, 3, "half round trips; {parts}");
}

#[test]
fn a_record_travels_to_those_alone_who_do_not_hold_it() {
    let (mut a, mut b, mut c) = (replica("a"), replica("b"), replica("c"));
    put(&mut a, "one", &[("x", "1")]);
    put(&mut b, "two", &[("x", "1")]);
    assert_eq!(records(&heard(&mut a, &mut b)), [b.incarnation(), a.incarnation()]);
    put(&mut a, "one", &[("x", "2")]);
    assert_eq!(records(&heard(&mut a, &mut b)), []);
    assert_eq!(records(&heard(&mut b, &mut a)), []);
    // Somebody else needs both, each once.
    put(&mut a, "three", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    let mut told = records(&heard(&mut b, &mut c));
    told.sort_unstable();
    let mut both = [a.incarnation(), b.incarnation()];
    both.sort_unstable();
    assert_eq!(told, both);
    assert_eq!((c.context(), c.root()), (b.context(), b.root()));
}

/// Coverage is credited without records: a context that names an origin does not say that its record is held.
#[test]
fn who_has_seen_all_of_an_origin_and_holds_no_record_is_sent_it() {
    let (mut a, mut b, mut c) = (replica("a"), replica("b"), replica("c"));
    put(&mut a, "one", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    put(&mut b, "one", &[("x", "2")]);
    sync(&mut b, &mut c).expect("syncs");
    assert!(c.context().highest(&a.incarnation()) == 1 && c.origin_record(&a.incarnation()).is_none());
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "one", &[("x", "3")]);
    assert_eq!(records(&heard(&mut a, &mut c)), [a.incarnation()]);
    assert_eq!(text(&c, "one"), text(&a, "one"));
}

/// A disk that goes back in time under a running conversation: the peer was told that a record is held, and it is not.
#[test]
fn an_op_whose_record_was_said_to_be_held_is_refused_and_comes_with_the_next_conversation() {
    let disk = Disk::new();
    let (mut a, mut b) = (replica("a"), replica_on("b", on(&disk), 0));
    let copy = disk.copy();
    put(&mut a, "one", &[("x", "1")]);
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "one", &[("x", "2")]);
    let (mut from, mut to) = (initiate(), accept());
    to.handle_message(&mut b, &from.poll_send(&a).expect("speaks first"), NOW).expect("takes it");
    for message in all(&mut to, &b) {
        from.handle_message(&mut a, &message, NOW).expect("takes it");
    }
    let life = b.incarnation();
    let mut b = replica_on("b", on(&copy), 0);
    assert_eq!(b.incarnation(), life, "nothing tells the conversation that it is another state");
    for message in all(&mut from, &a) {
        to.handle_message(&mut b, &message, NOW).expect("the peer did right");
    }
    assert_eq!((b.counters().refused.get("unknown_origin"), b.context()), (Some(&1), &Context::new()));
    assert!(to.poll_send(&b).is_none() && to.is_done(), "nothing can be said on top of what is not here any more");
    sync(&mut a, &mut b).expect("syncs");
    assert_eq!((b.context(), b.root()), (a.context(), a.root()));
    // Without such a word of ours, an op of nobody is the peer's fault.
    put(&mut a, "one", &[("x", "3")]);
    let mut to = accept();
    let mut c = replica("c");
    to.handle_message(&mut c, &initiate().poll_send(&a).expect("speaks first"), NOW).expect("takes it");
    all(&mut to, &c);
    let ops = ops_without_records(&a, c.incarnation());
    let refused = to.handle_message(&mut c, &ops, NOW);
    assert!(matches!(refused, Err(SyncError::Hostile(Refusal::UnknownOrigin))), "{refused:?}");
}

fn ops_without_records(of: &Replica, to: Incarnation) -> Bytes {
    let ops = of.live_dots().iter().filter_map(|(_, dot)| of.signed_op(*dot)).cloned().collect();
    codec::encode(Kind::Ops, &Ops { to, is_repair: false, origins: Vec::new(), ops }).expect("encodes")
}

/// Each side writes, and hears from a third, while they talk: what they tell each other at the end is what they have
/// seen by then, to the last dot.
#[test]
fn what_comes_in_during_a_conversation_is_told_at_its_end() {
    let (mut a, mut b, mut c) = (replica("a"), replica("b"), replica("c"));
    for (replica, name) in [(&mut a, "of-a"), (&mut b, "of-b"), (&mut c, "of-c")] {
        put(replica, name, &[("x", "1")]);
    }
    sync(&mut a, &mut b).expect("syncs");
    sync(&mut a, &mut c).expect("syncs");
    let (mut from, mut to) = (initiate(), accept());
    let mut contexts = BTreeMap::new();
    let mut seen = 0;
    while !(from.is_done() && to.is_done()) {
        for is_calling in [true, false] {
            let (here, there) = if is_calling { (&mut a, &mut b) } else { (&mut b, &mut a) };
            let (speaker, listener) = if is_calling { (&mut from, &mut to) } else { (&mut to, &mut from) };
            while let Some(message) = speaker.poll_send(here) {
                contexts.insert((message[1], is_calling), here.context().clone());
                listener.handle_message(there, &message, NOW).expect("takes it");
                if message[1] != Kind::Ack as u8 && seen < 12 {
                    seen += 1;
                    // Every second one of them is missed, so there are gaps as well.
                    let skipped = put(&mut c, "of-c", &[("x", &seen.to_string())]);
                    let pushed = put(&mut c, "of-c-too", &[("x", &seen.to_string())]);
                    there.merge_push(&pushed.push, NOW).expect("merges");
                    drop(skipped);
                    put(here, "more", &[("x", &seen.to_string())]);
                }
            }
        }
    }
    assert!(seen >= 6, "{seen}");
    let told = [&from, &to].map(|session| session.outcome().peer_context.as_ref());
    let acks = [false, true].map(|is_calling| contexts.get(&(Kind::Ack as u8, is_calling)));
    assert_eq!(told, acks);
    assert!(acks.iter().flatten().any(|context| context.range_count() > 0), "gaps were told as well");
    // And each end credited all that the other had seen when it said so.
    for (is_calling, listener) in [(true, &b), (false, &a)] {
        let said = contexts.get(&(Kind::Fin as u8, is_calling)).expect("it ended");
        assert!(listener.context().covers(said));
    }
}

#[test]
fn growths_that_are_none_are_refused_and_credit_nothing() {
    let (mut a, mut b) = (replica("a"), replica("b"));
    put(&mut a, "one", &[("x", "1")]);
    put(&mut a, "one", &[("x", "2")]);
    let whole = a.context().image(usize::MAX);
    let less = {
        let mut less = Context::new();
        less.insert(Dot::new(a.incarnation(), 1));
        less.image(usize::MAX)
    };
    let to_b = b.incarnation();
    let fin = |cover: &ContextImage| codec::encode(Kind::Fin, &Fin { to: to_b, cover: Some(cover.clone()) });
    let ack =
        |context: &ContextImage| codec::encode(Kind::Ack, &Ack { to: to_b, context: context.clone(), root: [0; 16] });
    for growth in [whole, less] {
        for message in [fin(&growth), ack(&growth)] {
            let message = message.expect("encodes");
            let (mut from, mut to) = (initiate(), accept());
            to.handle_message(&mut b, &from.poll_send(&a).expect("speaks first"), NOW).expect("takes it");
            all(&mut to, &b);
            let refused = to.handle_message(&mut b, &message, NOW);
            assert!(matches!(refused, Err(SyncError::Implausible { .. })), "{refused:?}");
            assert!(to.is_done() && to.outcome().peer_context.is_none());
            assert_eq!(b.context(), &Context::new());
        }
    }
}

#[test]
fn a_list_of_records_that_is_not_one_is_refused() {
    let mut a = replica("a");
    for n in 0..9 {
        let mut writer = replica(&format!("writer-{n}"));
        put(&mut writer, &format!("of-{n}"), &[("x", "1")]);
        sync(&mut writer, &mut a).expect("syncs");
    }
    let hello = Opening::of(&a).hello(&a);
    assert_eq!(hello.records, [0xff, 0x80], "nine origins, the first one highest");
    let bad: [&[u8]; 5] = [&[], &[0xff], &[0xff, 0x80, 0], &[0xff, 0xc0], &[0xff, 0x01]];
    for records in bad {
        let hello = Hello { records: records.to_vec(), ..hello.clone() };
        let hello = codec::encode(Kind::Hello, &hello).expect("encodes");
        let refused = accept().handle_message(&mut replica("b"), &hello, NOW);
        assert!(matches!(refused, Err(SyncError::Implausible { .. })), "{records:?}: {refused:?}");
    }
    // Which bit stands for which: all but one, each in turn.
    let origins: BTreeSet<Incarnation> = a.context().origins().copied().collect();
    for (at, origin) in origins.iter().enumerate() {
        let mut records = hello.records.clone();
        records[at / 8] ^= 0x80 >> (at % 8);
        let heard = Opening::heard(&Hello { records, ..hello.clone() }).expect("canonical");
        let missing: Vec<_> = origins.difference(&heard.records).collect();
        assert_eq!(missing, [origin]);
    }
}
