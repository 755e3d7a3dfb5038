//! Every kept input again, and seeds made from real conversations and databases.
//!
//! With `MARRAM_WRITE_SEEDS` set to a folder, the seeds are written there for a fuzzer to start from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use bytes::Bytes;

use super::{FORGED, NOW, accept, initiate, open, put, sync_handlers::start, talk};
use crate::{
    Change, Dot, Edit, Hlc, Op, OpKind, Replica, SignedOp, StoreError, WriteMeta,
    backend::Disk,
    codec::{self, FRAME_HEAD_BYTES, Kind},
    context::{Clock, Context, ContextImage},
    id::{Incarnation, StoreId},
    op,
    wire::{Ack, Fin, Hello, Ops, Push},
};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 3] =
    [("codec", super::codec), ("stored", super::stored), ("sync_handlers", super::sync_handlers)];

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

#[test]
fn every_kept_input_is_survived() {
    for (name, target) in TARGETS {
        let files = fs::read_dir(folder(name)).expect("the corpus is in the repository");
        let mut paths: Vec<PathBuf> = files.map(|file| file.expect("the folder reads").path()).collect();
        paths.sort();
        assert!(paths.len() >= 10, "{name}: {} inputs are no corpus", paths.len());
        for path in paths {
            let bytes = fs::read(&path).expect("the file reads");
            // A panic names the assertion; the output names the input.
            println!("{}", path.display());
            target(&bytes);
        }
    }
}

#[test]
fn every_seed_is_survived() {
    let written = std::env::var_os("MARRAM_WRITE_SEEDS").map(PathBuf::from);
    for ((target, name), bytes) in seeds() {
        if let Some(folder) = written.as_ref().map(|folder| folder.join(target)) {
            fs::create_dir_all(&folder).expect("the folder is made");
            fs::write(folder.join(name.as_str()), &bytes).expect("the seed is written");
        }
        println!("{target} {name}");
        let run = TARGETS.iter().find(|(known, _)| *known == target).expect("a known target").1;
        run(&bytes);
    }
}

/// The seeds reach what they were made for; without this they could all be refused at the first byte.
#[test]
fn recorded_conversations_are_understood_by_the_world_that_replays_them() {
    let (disk, other) = (Disk::new(), Disk::new());
    let (mut live, _) = start(&disk, &other).expect("the world is made");
    let before = live.root();
    let mut called = accept();
    for message in conversation(true) {
        called.handle_message(&mut live, &message, NOW).expect("takes it");
        while called.poll_send(&live).is_some() {}
    }
    assert_ne!(live.root(), before, "the conversation brought ops");
    let mut caller = initiate();
    caller.poll_send(&live).expect("speaks first");
    // Each lets go of a tombstone that the other has not seen, so what is said below a floor is there as well.
    let said: BTreeSet<u8> = conversation(true).iter().chain(&conversation(false)).map(|message| message[1]).collect();
    let kinds = [Kind::Hello, Kind::Ops, Kind::Ack, Kind::Digest, Kind::Lists, Kind::Claims, Kind::FinBelow];
    let missing: Vec<Kind> = kinds.into_iter().filter(|kind| !said.contains(&(*kind as u8))).collect();
    assert!(missing.is_empty(), "never said: {missing:?}");
    for message in conversation(false) {
        caller.handle_message(&mut live, &message, NOW).expect("takes it");
        while caller.poll_send(&live).is_some() {}
    }
}

/// Found by the target `stored`: an outcome that lay under the empty key was taken for that of every write without a
/// key, so that no such write was possible any more.
#[test]
fn an_outcome_under_no_key_is_damage() {
    let disk = Disk::new();
    let mut replica = open("live", &disk, 0).expect("opens");
    let meta = WriteMeta { idempotency_key: "once".to_owned(), ..WriteMeta::default() };
    replica.write(vec![Edit::put(super::key(1), super::body(1, 1))], meta, NOW).expect("writes");
    drop(replica);
    let (key, value) = disk.pairs().into_iter().find(|(key, _)| key.ends_with(b"once")).expect("the outcome is stored");
    disk.damage(&key, None);
    disk.damage(b"i", Some(value));
    assert!(matches!(open("live", &disk, 1), Err(StoreError::Damaged(_))));
}

/// The same world again, and somebody who knows what it knows and has written since.
fn strangers() -> (Replica, Replica) {
    let (live, mut honest) = start(&Disk::new(), &Disk::new()).expect("the world is made");
    let mut stranger = open("evil", &Disk::new(), 0).expect("opens");
    talk(&mut stranger, &mut honest, &mut |_, _| ()).expect("talks");
    put(&mut stranger, 0, 50).expect("writes");
    put(&mut stranger, 5, 51).expect("writes");
    super::delete(&mut stranger, 3).expect("deletes");
    stranger.collect(NOW, 0).expect("collects");
    (live, stranger)
}

/// What a stranger says to the replica in a conversation that it starts, or answers.
fn conversation(is_starting: bool) -> Vec<Vec<u8>> {
    let (mut live, mut stranger) = strangers();
    let mut said = Vec::new();
    let mut hear = |is_first: bool, message: &[u8]| {
        if is_first == is_starting {
            said.push(message.to_vec());
        }
    };
    let talked =
        if is_starting { talk(&mut stranger, &mut live, &mut hear) } else { talk(&mut live, &mut stranger, &mut hear) };
    talked.expect("talks");
    said
}

fn seeds() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut seeds = BTreeMap::new();
    for (name, bytes) in codec_seeds() {
        seeds.insert(("codec", name), bytes);
    }
    for (name, bytes) in sync_seeds() {
        seeds.insert(("sync_handlers", name), bytes);
    }
    for (name, bytes) in stored_seeds() {
        seeds.insert(("stored", name), bytes);
    }
    seeds
}

fn codec_seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let (_, stranger) = strangers();
    let push = stranger.encode_push(&stranger.live_dots().into_iter().map(|(_, dot)| dot).collect::<Vec<_>>());
    for (at, message) in conversation(true).into_iter().chain([push.to_vec()]).enumerate() {
        seeds.push((format!("message-{at}"), message.clone()));
        seeds.push((format!("payload-{at}"), message[FRAME_HEAD_BYTES..].to_vec()));
        seeds.push((format!("cut-{at}"), message[..message.len() * 2 / 3].to_vec()));
    }
    for (at, (_, value)) in super::stored::made().0.into_iter().enumerate().step_by(2) {
        seeds.push((format!("record-{at}"), value[FRAME_HEAD_BYTES..value.len() - 4].to_vec()));
    }
    for (name, op) in forged_ops(&stranger, Incarnation::from_bytes([9; 16])) {
        seeds.push((format!("op-{name}"), op.bytes.to_vec()));
    }
    seeds
}

/// A step of the target `sync_handlers`: a verb and its message.
fn step(verb: u8, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("seeds are small");
    [&[verb][..], &length.to_be_bytes(), message].concat()
}

const TO_CALLED: u8 = 0;
const TO_CALLER: u8 = 2;
const PUSH: u8 = 4;
const RAW_TO_CALLED: u8 = 5;
const AGAIN: u8 = 8;
const WRITE: u8 = 9;
const CLOCK: u8 = 10;
const HONEST: u8 = 11;
const COLLECT: u8 = 12;

fn sync_seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let (live, stranger) = strangers();
    let (asked, answered) = (conversation(true), conversation(false));
    let steps = |verb: u8, said: &[Vec<u8>]| said.iter().flat_map(|message| step(verb, message)).collect::<Vec<u8>>();
    let (asking, answering) = (steps(TO_CALLED, &asked), steps(TO_CALLER, &answered));
    seeds.push(("called".to_owned(), asking.clone()));
    seeds.push(("caller".to_owned(), answering.clone()));
    seeds.push(("both".to_owned(), [asking.clone(), answering.clone(), vec![HONEST]].concat()));
    seeds.push(("twice".to_owned(), [&asking[..], &[AGAIN], &asking[..]].concat()));
    seeds.push(("writes".to_owned(), [&[WRITE, 3, 7, WRITE, 2, 0, WRITE, 4, 200, HONEST][..], &asking[..]].concat()));
    let late = steps(TO_CALLED, &asked[1..]);
    let collecting = [&step(TO_CALLED, &asked[0])[..], &[WRITE, 2, 0, COLLECT, 0], &late[..], &[HONEST]].concat();
    seeds.push(("collects".to_owned(), collecting));
    seeds.push(("clock".to_owned(), [&[CLOCK, 255, 255, 40][..], &answering[..], &[WRITE, 1, 1]].concat()));
    seeds.push(("swapped".to_owned(), [steps(TO_CALLER, &asked), steps(TO_CALLED, &answered)].concat()));
    let mut backwards = asked.clone();
    backwards.reverse();
    seeds.push(("backwards".to_owned(), steps(TO_CALLED, &backwards)));
    let dots: Vec<Dot> = stranger.live_dots().into_iter().map(|(_, dot)| dot).collect();
    let push = stranger.encode_push(&dots);
    seeds.push(("push".to_owned(), [step(PUSH, &push), asking.clone()].concat()));
    for at in 0..asked.len() {
        let before = steps(TO_CALLED, &asked[..at]);
        let cut = &asked[at][..asked[at].len() * 3 / 4];
        seeds.push((format!("cut-{at}"), [before.clone(), step(RAW_TO_CALLED, cut)].concat()));
        seeds.push((format!("cut-mended-{at}"), [before.clone(), step(TO_CALLED, cut)].concat()));
        for place in [FRAME_HEAD_BYTES, asked[at].len() / 2, asked[at].len() - 3] {
            let mut flipped = asked[at].clone();
            flipped[place] ^= 0x11;
            let all = [before.clone(), step(TO_CALLED, &flipped), steps(TO_CALLED, &asked[at + 1..])].concat();
            seeds.push((format!("flip-{at}-{place}"), all));
        }
    }
    for (name, op) in forged_ops(&stranger, live.incarnation()) {
        let record = stranger.origin_record(&stranger.incarnation()).cloned();
        let ops = Ops {
            to: live.incarnation(),
            is_repair: false,
            origins: record.iter().cloned().collect(),
            ops: vec![op.clone()],
        };
        let ops = codec::encode(Kind::Ops, &ops).expect("encodes");
        seeds.push((format!("ops-{name}"), [step(TO_CALLED, &asked[0]), step(TO_CALLED, &ops)].concat()));
        let push = Push { origins: record.into_iter().collect(), ops: vec![op] };
        seeds.push((format!("push-{name}"), step(PUSH, &codec::encode(Kind::Push, &push).expect("encodes"))));
    }
    let nothing = ContextImage::default();
    let fin = |cover: &ContextImage| {
        let fin = Fin { to: live.incarnation(), cover: Some(cover.clone()) };
        step(TO_CALLED, &codec::encode(Kind::Fin, &fin).expect("encodes"))
    };
    for (name, context) in forged_contexts(&live) {
        let hello = Hello {
            store: live.store_id().clone(),
            incarnation: stranger.incarnation(),
            context: context.image(usize::MAX),
            floor: Vec::new(),
            records: records_of_all(&context),
            root: stranger.root(),
        };
        let hello = step(TO_CALLED, &codec::encode(Kind::Hello, &hello).expect("encodes"));
        let mut later = context.clone();
        later.insert(Dot::new(stranger.incarnation(), 1 << 20));
        let growth = later.growth(&context).expect("it grew");
        let ack = Ack { to: live.incarnation(), context: growth, root: live.root() };
        let ack = step(TO_CALLED, &codec::encode(Kind::Ack, &ack).expect("encodes"));
        seeds.push((format!("hello-{name}"), [&hello[..], &step(TO_CALLED, &asked[1])].concat()));
        seeds.push((format!("ack-{name}"), [&hello[..], &fin(&nothing), &ack].concat()));
        // On top of an honest hello: as its growth, and whole, which is refused.
        let mut grown = stranger.context().clone();
        grown.merge(&context);
        let growth = grown.growth(stranger.context()).expect("it grew");
        seeds.push((format!("fin-{name}"), [step(TO_CALLED, &asked[0]), fin(&growth)].concat()));
        let whole = context.image(usize::MAX);
        seeds.push((format!("fin-whole-{name}"), [step(TO_CALLED, &asked[0]), fin(&whole)].concat()));
    }
    seeds
}

/// Every record is said to be held.
fn records_of_all(context: &Context) -> Vec<u8> {
    let count = context.origin_count();
    let mut bits = vec![0xff; count.div_ceil(8)];
    bits.iter_mut().skip(count / 8).for_each(|byte| *byte <<= 8 - count % 8);
    bits
}

/// An op as an honest program writes it.
fn plain(own: Incarnation) -> Op {
    Op {
        dot: Dot::new(own, 9),
        hlc: Hlc { millis: NOW, counter: 1 },
        author_key: [3; 16],
        kind: OpKind::Put,
        schema: 0,
        idempotency_key: String::new(),
        message: String::new(),
        changes: vec![Change {
            key: super::key(0),
            mask: ["spec".to_owned()].into(),
            past: Clock::new(),
            beside: [].into(),
            body: Some([("spec".to_owned(), Bytes::from_static(b"x"))].into()),
        }],
    }
}

fn signed(op: &Op) -> SignedOp {
    let bytes = Bytes::from(op::encode(&StoreId::global(super::MESH), op));
    SignedOp { bytes, signature: [1; 64] }
}

/// Ops that no honest program writes, or not here: each by a member who may sign.
fn forged_ops(stranger: &Replica, victim: Incarnation) -> Vec<(&'static str, SignedOp)> {
    let own = stranger.incarnation();
    let plain = plain(own);
    let at = |dot: Dot| Op { dot, ..plain.clone() };
    let seen = |past: &[(Incarnation, u64)]| {
        let mut op = plain.clone();
        op.changes[0].past.dots = past.iter().copied().collect();
        op
    };
    let mut grave = seen(&[(victim, 1 << 40)]);
    grave.changes[0].body = None;
    grave.changes[0].mask.clear();
    let mut beside = seen(&[(victim, 7)]);
    beside.changes[0].beside = [Dot::new(victim, 2)].into();
    let mut late = plain.clone();
    late.hlc = Hlc { millis: (1 << 48) - 1, counter: u16::MAX };
    let mut ops = vec![
        ("counter-end", signed(&at(Dot::new(own, u64::MAX)))),
        ("counter-last", signed(&at(Dot::new(own, (1 << 63) - 1)))),
        ("counter-step", signed(&at(Dot::new(own, 1 << 32)))),
        ("counter-zero", signed(&at(Dot::new(own, 0)))),
        ("future-past", signed(&seen(&[(victim, 1_000_000)]))),
        ("future-grave", signed(&grave)),
        ("own-past", signed(&seen(&[(own, 9)]))),
        ("beside", signed(&beside)),
        ("late", signed(&late)),
        ("victims-next", signed(&at(Dot::new(victim, 100)))),
        ("double", signed(&at(Dot::new(own, 1)))),
        ("double-victim", signed(&at(Dot::new(victim, 3)))),
        ("unknown-origin", signed(&at(Dot::new(Incarnation::from_bytes([8; 16]), 1)))),
    ];
    let mut wrong = signed(&plain);
    wrong.signature = [FORGED; 64];
    ops.push(("wrong-signature", wrong));
    let mut trailing = signed(&plain);
    trailing.bytes = [&trailing.bytes[..], &[0]].concat().into();
    ops.push(("trailing", trailing));
    ops
}

/// What a liar claims to have seen.
fn forged_contexts(live: &Replica) -> Vec<(&'static str, Context)> {
    let with = |dots: &[Dot]| {
        let mut context = live.context().clone();
        dots.iter().for_each(|dot| context.insert(*dot));
        context
    };
    let stranger = Incarnation::from_bytes([8; 16]);
    vec![
        ("nothing", Context::new()),
        ("equal", live.context().clone()),
        ("victims-next", with(&[Dot::new(live.incarnation(), live.summary().counter + 1)])),
        ("victims-last", with(&[Dot::new(live.incarnation(), (1 << 63) - 1)])),
        ("gaps", with(&(1..40).map(|n| Dot::new(stranger, n * 2)).collect::<Vec<_>>())),
    ]
}

fn stored_seeds() -> Vec<(String, Vec<u8>)> {
    let pairs = super::stored::made().0;
    let mut seeds = vec![("intact".to_owned(), Vec::new())];
    for (at, (key, value)) in pairs.iter().enumerate() {
        let pair = u8::try_from(at).expect("few pairs");
        let kind = char::from(key[0]);
        let middle = u16::try_from(value.len() / 2).expect("small").to_be_bytes();
        seeds.push((format!("gone-{at}-{kind}"), vec![pair, 0]));
        seeds.push((format!("cut-{at}-{kind}"), [&[pair, 1][..], &middle].concat()));
        seeds.push((format!("flip-{at}-{kind}"), [&[pair, 3][..], &middle, &[0x10]].concat()));
        seeds.push((format!("flip-seen-{at}-{kind}"), [&[pair, 0x83][..], &middle, &[0x10]].concat()));
        seeds.push((format!("swapped-{at}-{kind}"), vec![pair, 6, pair.wrapping_add(1)]));
        seeds.push((format!("moved-{at}-{kind}"), [&[pair, 7, 0, 3][..], &[key[0], 0, 1]].concat()));
    }
    seeds
}

/// A member signed an op far ahead in its count, and one as far ahead again that superseded the first. Replicas that saw
/// both in turn held the second; whoever joined later saw only that one, refused the step, and took every honest peer
/// for hostile.
#[test]
fn whoever_joins_late_takes_counters_that_jumped_far_in_steps() {
    let mut live = open("live", &Disk::new(), 0).expect("opens");
    let mut liar = open("evil", &Disk::new(), 0).expect("opens");
    put(&mut liar, 1, 1).expect("writes");
    talk(&mut liar, &mut live, &mut |_, _| ()).expect("talks");
    let own = liar.incarnation();
    for (counter, past) in [(1 << 32, 0), (1 << 33, 1 << 32), ((1 << 63) - 1, 1 << 33)] {
        let mut op = plain(own);
        op.dot.counter = counter;
        op.changes[0].past.dots = [(own, past)].into_iter().filter(|(_, past)| *past > 0).collect();
        let merged = live.merge(vec![(None, signed(&op))], NOW).expect("merges");
        assert_eq!(merged.new_ops, [op.dot]);
    }
    let mut new = open("new", &Disk::new(), 0).expect("opens");
    talk(&mut new, &mut live, &mut |_, _| ()).expect("an honest peer is not refused");
    assert_eq!(new.root(), live.root());
    assert_eq!(new.context(), live.context());
}
