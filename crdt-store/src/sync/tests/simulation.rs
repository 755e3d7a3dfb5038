//! Several replicas, everything that can go wrong between and below them, one seed.
//!
//! Writes, deletes, pushes that are lost, doubled and reordered, conversations cut anywhere, partitions, disks that fail
//! or crash before or after a batch, clocks a year off, tombstones collected at any moment whatever their age; in half of
//! the runs also disks wiped or put back from a copy. After the faults stop and everyone has talked, all must agree,
//! nothing that was deleted may be there, and no edit may be gone unless somebody who had truly seen it wrote over it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    Context, Dot, Edit, Fault, FaultyStorage, MemoryStorage, Op, OpKind, Plan, Replica, StoreError, SyncConfig,
    SyncSession, WriteMeta,
    backend::Disk,
    id::ETag,
    testing::{Chance, NOW, body, key, replica_on, sync_with},
};

const SECTIONS: [&str; 3] = ["s1", "s2", "s3"];
const YEAR_MS: u64 = 365 * 24 * 60 * 60 * 1_000;

struct Node {
    name: String,
    disk: Disk,
    backup: Disk,
    plan: Plan,
    replica: Replica,
    boots: u64,
    clock: u64,
}

impl Node {
    fn new(name: String, clock: u64) -> Self {
        let disk = Disk::new();
        let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
        let replica = start(&name, Box::new(storage), 0);
        Self { name, backup: disk.copy(), disk, plan, replica, boots: 0, clock }
    }

    fn boot(&mut self, disk: Disk) {
        self.boots += 1;
        let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
        self.replica = start(&self.name, Box::new(storage), self.boots);
        (self.disk, self.plan) = (disk, plan);
    }
}

/// A replica, with a rule broken where a test says so.
fn start(name: &str, storage: Box<dyn crate::Storage>, boots: u64) -> Replica {
    #[cfg(feature = "mutations")]
    if let Some(mutation) = broken::rule() {
        // A life that is to be kept begins with the same seed each time.
        let boots = if mutation == crate::Mutation::KeepIncarnation { 0 } else { boots };
        let mut replica = replica_on(name, storage, boots);
        replica.mutate(mutation);
        return replica;
    }
    replica_on(name, storage, boots)
}

/// A conversation in the middle, with the messages on their way each way.
struct Talk {
    nodes: [usize; 2],
    sessions: [SyncSession; 2],
    ways: [VecDeque<bytes::Bytes>; 2],
}

/// An op that became durable somewhere, and what its author had truly seen.
struct Recorded {
    op: std::sync::Arc<Op>,
    seen: Context,
}

struct World {
    chance: Chance,
    nodes: Vec<Node>,
    talks: Vec<Talk>,
    pushes: Vec<(usize, usize, bytes::Bytes)>,
    /// Which side each node is on while the network is split.
    sides: Option<Vec<bool>>,
    recorded: BTreeMap<Dot, Recorded>,
    loses_disks: bool,
    /// How many peers must claim that something was deleted.
    claims_needed: usize,
    collected: usize,
    steps: u64,
}

impl World {
    fn new(seed: u64, loses_disks: bool) -> Self {
        let mut chance = Chance(seed);
        let count = 2 + chance.below(4);
        let clocks = [NOW, NOW, NOW + YEAR_MS, NOW - YEAR_MS, NOW + 30_000];
        let nodes = (0..count).map(|n| Node::new(format!("{seed}-{n}"), clocks[n])).collect();
        let (talks, pushes, recorded) = (Vec::new(), Vec::new(), BTreeMap::new());
        let claims_needed = 1 + usize::from(count > 2 && chance.one_in(2));
        let (sides, collected, steps) = (None, 0, 0);
        Self { chance, nodes, talks, pushes, sides, recorded, loses_disks, claims_needed, collected, steps }
    }

    fn step(&mut self) {
        self.steps += 1;
        match self.chance.below(26) {
            0..=4 => self.write(),
            5 => self.start_talk(),
            6..=14 => self.deliver(),
            15..=17 => self.push(),
            18 => self.split_or_heal(),
            19 => self.crash(),
            20 => self.break_disk(),
            21 => drop(self.pick_talk().map(|at| self.talks.swap_remove(at))),
            22 => self.tick(),
            23 | 24 => self.collect(),
            _ => self.lose_disk(),
        }
    }

    fn pick(&mut self) -> usize {
        self.chance.below(self.nodes.len())
    }

    fn pick_talk(&mut self) -> Option<usize> {
        (!self.talks.is_empty()).then(|| self.chance.below(self.talks.len()))
    }

    fn pair(&mut self) -> Option<[usize; 2]> {
        let (a, b) = (self.pick(), self.pick());
        (a != b && self.reaches(a, b)).then_some([a, b])
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.sides.as_ref().is_none_or(|sides| sides[a] == sides[b])
    }

    fn tick(&mut self) {
        let at = self.pick();
        self.nodes[at].clock += self.chance.next() % 10_000;
    }

    fn write(&mut self) {
        let at = self.pick();
        let name = ["x", "y", "z"][self.chance.below(3)];
        let (edit, kind) = self.edit(at, name);
        let mut edits = vec![edit];
        if self.chance.one_in(4) {
            let other = ["x", "y", "z"].into_iter().find(|other| *other != name).expect("there are three");
            edits.push(self.edit(at, other).0);
        }
        let node = &mut self.nodes[at];
        let life = node.replica.incarnation();
        let next = Dot::new(life, node.replica.summary().counter + 1);
        let seen = node.replica.context().clone();
        let written = node.replica.write(edits, WriteMeta { op_kind: kind, ..WriteMeta::default() }, node.clock);
        match written {
            Ok(written) => {
                let Some(dot) = written.dot else { return };
                assert_eq!(dot, next);
                assert!(node.replica.op(dot).is_some(), "a write must be live where it was made");
                self.record(at, dot, seen);
                for _ in 0..self.chance.below(3) {
                    let to = self.pick();
                    self.pushes.push((at, to, written.push.clone()));
                }
            }
            Err(StoreError::Full | StoreError::Storage(_)) => {
                // A crash may have come after the disk had it: then it is there again, and nobody was told.
                self.reboot(at);
                self.record(at, next, seen);
            }
            Err(StoreError::NotFound { .. } | StoreError::TooManySiblings { .. }) => {}
            Err(other) => panic!("a plain write failed: {other:?}"),
        }
    }

    fn collect(&mut self) {
        let at = self.pick();
        let node = &mut self.nodes[at];
        match node.replica.collect(node.clock, 0) {
            Ok(collected) => self.collected += collected.tombstones,
            Err(StoreError::Full | StoreError::Storage(_)) => self.reboot(at),
            Err(other) => panic!("a collection failed: {other:?}"),
        }
    }

    fn record(&mut self, at: usize, dot: Dot, seen: Context) {
        if let Some(op) = self.nodes[at].replica.op(dot) {
            self.recorded.insert(dot, Recorded { op, seen });
        }
    }

    fn edit(&mut self, at: usize, name: &str) -> (Edit, OpKind) {
        let view = self.nodes[at].replica.document(&key(name));
        if self.chance.one_in(4) {
            return (Edit::delete(key(name)), OpKind::Delete);
        }
        let kept = |view: &crate::DocumentView| {
            view.sections.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect::<BTreeMap<_, _>>()
        };
        let mut sections = view.as_ref().map_or_else(|| body(&[("s1", "0"), ("s2", "0")]), kept);
        for _ in 0..=self.chance.below(2) {
            let section = SECTIONS[self.chance.below(3)];
            if sections.len() > 1 && self.chance.one_in(6) {
                sections.remove(section);
            } else {
                sections.insert(section.to_owned(), self.chance.next().to_string().into_bytes());
            }
        }
        if sections.is_empty() {
            return (Edit::delete(key(name)), OpKind::Delete);
        }
        let kind = if self.chance.one_in(8) { OpKind::Patch } else { OpKind::Put };
        (Edit::put(key(name), sections), kind)
    }

    fn push(&mut self) {
        if self.pushes.is_empty() {
            return;
        }
        let at = self.chance.below(self.pushes.len());
        let (from, to, bytes) = self.pushes[at].clone();
        // Two of four are delivered once, one twice or later again, one is lost.
        if !self.chance.one_in(4) {
            self.pushes.swap_remove(at);
        }
        if self.chance.one_in(4) || !self.reaches(from, to) {
            return;
        }
        let node = &mut self.nodes[to];
        match node.replica.merge_push(&bytes, node.clock) {
            Ok(merged) => assert!(merged.refused.is_empty(), "{:?}", merged.refused),
            Err(StoreError::Full | StoreError::Storage(_)) => self.reboot(to),
            Err(other) => panic!("a push failed: {other:?}"),
        }
    }

    fn start_talk(&mut self) {
        let Some(nodes) = self.pair() else { return };
        let budget_bytes = if self.chance.one_in(3) { 1_500 } else { 1 << 20 };
        let config = SyncConfig { chunk_bytes: 400, budget_bytes, claims_needed: self.claims_needed };
        let id = |at: usize| [u8::try_from(at).expect("few"); 16];
        let sessions = [SyncSession::initiate(config, id(nodes[1])), SyncSession::accept(config, id(nodes[0]))];
        self.talks.push(Talk { nodes, sessions, ways: Default::default() });
    }

    fn deliver(&mut self) {
        let Some(at) = self.pick_talk() else { return };
        let talk = &mut self.talks[at];
        let side = self.chance.below(2);
        let me = talk.nodes[side];
        if let Some(message) = talk.sessions[side].poll_send(&self.nodes[me].replica) {
            talk.ways[side].push_back(message);
        }
        let to = talk.nodes[1 - side];
        if !self.reaches(me, to) {
            self.talks.swap_remove(at);
            return;
        }
        let talk = &mut self.talks[at];
        let Some(message) = talk.ways[side].pop_front() else { return };
        let node = &mut self.nodes[to];
        let handled = talk.sessions[1 - side].handle_message(&mut node.replica, &message, node.clock);
        match handled {
            Ok(_) => {}
            Err(crate::SyncError::Store(_)) => self.reboot(to),
            Err(crate::SyncError::OtherIncarnation | crate::SyncError::OutOfTurn) if self.loses_disks => {
                drop(self.talks.swap_remove(at));
            }
            Err(other) => panic!("honest peers fell out: {other:?}"),
        }
    }

    fn split_or_heal(&mut self) {
        self.sides = match self.sides {
            Some(_) => None,
            None => Some((0..self.nodes.len()).map(|_| self.chance.one_in(2)).collect()),
        };
    }

    fn crash(&mut self) {
        let at = self.pick();
        self.reboot(at);
    }

    fn reboot(&mut self, at: usize) {
        let disk = self.nodes[at].disk.clone();
        self.restart_on(at, disk);
    }

    fn restart_on(&mut self, at: usize, disk: Disk) {
        self.talks.retain(|talk| !talk.nodes.contains(&at));
        self.nodes[at].boot(disk);
    }

    fn break_disk(&mut self) {
        let fault = [Fault::Full, Fault::Io, Fault::CrashBefore, Fault::CrashAfter][self.chance.below(4)];
        let at = self.pick();
        self.nodes[at].plan.push(fault);
    }

    fn lose_disk(&mut self) {
        let at = self.pick();
        if !self.loses_disks {
            return;
        }
        match self.chance.below(3) {
            0 => self.nodes[at].backup = self.nodes[at].disk.copy(),
            1 => self.swap_disk(at, Disk::new()),
            _ => {
                let copy = self.nodes[at].backup.copy();
                self.swap_disk(at, copy);
            }
        }
    }

    /// Puts another disk under a node; half the time its conversations do not notice, and go on with what is there now.
    fn swap_disk(&mut self, at: usize, disk: Disk) {
        if self.chance.one_in(2) {
            self.restart_on(at, disk);
        } else {
            self.nodes[at].boot(disk);
        }
    }

    /// The faults stop, everyone talks to everyone until nothing changes.
    ///
    /// A deletion that only one replica has seen before it let go of the tombstone has one witness for ever. Where two
    /// are asked for, claims of it wait; then one is enough in the end, as where an operator says so.
    fn heal(&mut self) {
        self.talks.clear();
        for at in 0..self.nodes.len() {
            self.reboot(at);
        }
        for round in 0..12 {
            if round > 0 && self.agrees() {
                return;
            }
            let is_waiting = self.nodes.iter().any(|node| node.replica.summary().pending_claims > 0);
            assert!(round < 6 || is_waiting || self.claims_needed == 1, "they do not agree and nothing waits");
            let claims_needed = if round < 6 { self.claims_needed } else { 1 };
            let config = SyncConfig { claims_needed, ..SyncConfig::default() };
            for to in 1..self.nodes.len() {
                for from in 0..to {
                    let (left, right) = self.nodes.split_at_mut(to);
                    let talked = sync_with(&mut left[from].replica, &mut right[0].replica, config);
                    let is_repair = talked.as_ref().is_ok_and(|(session, _)| session.outcome().is_repair);
                    assert!(talked.is_ok() || self.loses_disks, "{:?}", talked.err());
                    assert!(!is_repair || self.loses_disks, "equal contexts and different roots");
                }
            }
        }
    }

    fn agrees(&self) -> bool {
        let state = |node: &Node| (node.replica.context_hash(), node.replica.root());
        self.nodes.iter().all(|node| state(node) == state(&self.nodes[0]))
    }

    /// Invariant I1: what a replica claims to have seen is live in it, or something live in it has superseded it, or a
    /// tombstone under its floor did of which it has seen the whole past.
    fn check_backed(&self) {
        for node in &self.nodes {
            for (dot, x) in self.recorded.iter().filter(|(dot, _)| node.replica.context().contains(**dot)) {
                for change in &x.op.changes {
                    let clock = change.clock(*dot);
                    for section in sections(&change.mask) {
                        let live = node.replica.section_ops(&change.key, section);
                        let covers = |held: &Dot| {
                            let op = node.replica.op(*held).expect("live ops are held");
                            op.change(&change.key).is_some_and(|part| part.clock(*held) >= clock)
                        };
                        let is_under_floor = |(dot, y): (&Dot, &Recorded)| {
                            let tombstone = y.op.change(&change.key).filter(|part| part.body.is_none());
                            tombstone.is_some_and(|part| {
                                part.clock(*dot) >= clock
                                    && node.replica.floor().get(&dot.origin) >= dot.counter
                                    && covers_clock(node.replica.context().clock(), &part.past)
                            })
                        };
                        assert!(
                            live.iter().any(covers) || self.recorded.iter().any(is_under_floor),
                            "{}: {dot:?} in `{section}` of {} is claimed and gone",
                            node.name,
                            change.key
                        );
                    }
                }
            }
        }
    }

    fn check(&self) {
        let first = &self.nodes[0].replica;
        for node in &self.nodes {
            let replica = &node.replica;
            assert_eq!(replica.context(), first.context(), "contexts differ");
            assert_eq!(replica.root(), first.root(), "contexts are equal and roots are not");
            // Whether a clock was suspect is each receiver's own opinion; a deletion beside an edit shows where it was
            // not collected before the edit came.
            let plain = |view: crate::DocumentView| crate::DocumentView {
                clock_suspect: false,
                deleted_concurrently: false,
                etag: ETag([0; 16]),
                live: Vec::new(),
                ..view
            };
            let shown = |replica: &Replica| -> Vec<crate::DocumentView> { replica.documents().map(plain).collect() };
            assert_eq!(shown(replica), shown(first), "roots are equal and documents are not");
            assert_eq!(replica.counters().equivocations, 0);
        }
        self.check_nothing_is_lost(first);
    }

    /// What is known everywhere is live exactly where nothing that is known has superseded it; without lost disks
    /// everything acknowledged is known.
    fn check_nothing_is_lost(&self, replica: &Replica) {
        let is_known = |dot: &Dot| replica.context().contains(*dot);
        for (dot, x) in &self.recorded {
            assert!(is_known(dot) || self.loses_disks, "{dot:?} was acknowledged and is unknown");
            for change in &x.op.changes {
                for section in sections(&change.mask) {
                    let is_live = replica.section_ops(&change.key, section).contains(dot);
                    let over = |y: &&Recorded| {
                        let put = y.op.change(&change.key).filter(|c| c.mask.is_empty() || c.mask.contains(section));
                        put.filter(|_| y.op.dot != *dot).is_some_and(|put| put.clock(y.op.dot) > change.clock(*dot))
                    };
                    let known = self.recorded.values().filter(|y| is_known(&y.op.dot));
                    let superseded_by: Vec<&Recorded> = known.filter(over).collect();
                    // A tombstone is collected in one place and still held in another, also where a later one is not.
                    if change.body.is_none() {
                        continue;
                    }
                    assert!(!is_live || superseded_by.is_empty(), "{dot:?} in `{section}` of {} is back", change.key);
                    if !is_known(dot) {
                        continue;
                    }
                    assert_eq!(is_live, superseded_by.is_empty(), "{dot:?} in `{section}` of {}", change.key);
                    // What is gone was written over by someone who had it.
                    assert!(
                        is_live || self.recorded.values().filter(over).any(|y| y.seen.contains(*dot)),
                        "{dot:?} in `{section}` of {} was lost: nobody who superseded it had seen it",
                        change.key
                    );
                }
            }
        }
    }
}

/// The sections a mask speaks about; the empty name stands for those never named.
fn sections(mask: &BTreeSet<String>) -> BTreeSet<&str> {
    if mask.is_empty() { [""].into() } else { mask.iter().map(String::as_str).collect() }
}

/// True where one clock has reached another everywhere; the tests' own, so that they do not believe the store.
fn covers_clock(clock: &crate::Clock, other: &crate::Clock) -> bool {
    other.dots.iter().all(|(origin, counter)| clock.get(origin) >= *counter)
}

fn run(seed: u64, loses_disks: bool) -> ([u8; 16], u64) {
    let mut world = World::new(seed, loses_disks);
    for step in 0..160 {
        world.step();
        if step % 16 == 0 {
            world.check_backed();
        }
    }
    world.heal();
    world.check_backed();
    world.check();
    // Letting go of tombstones on some replicas changes nothing that anybody sees.
    let root = world.nodes[0].replica.root();
    for node in world.nodes.iter_mut().step_by(2) {
        node.replica.collect(u64::MAX, 0).expect("memory does not fail");
    }
    world.heal();
    world.check_backed();
    world.check();
    assert_eq!(world.nodes[0].replica.root(), root);
    (world.nodes[0].replica.root(), world.chance.next())
}

/// Which schedules: a few in each test run, any others by `MARRAM_STORE_SEEDS=COUNT` and `MARRAM_STORE_SEED_FIRST`.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("MARRAM_STORE_SEED_FIRST").unwrap_or(0);
    first..first + number("MARRAM_STORE_SEEDS").unwrap_or(100)
}

fn run_all(loses_disks: bool) {
    for seed in seeds() {
        let outcome = std::panic::catch_unwind(|| run(seed, loses_disks));
        assert!(outcome.is_ok(), "seed {seed} fails; the reason stands above");
    }
}

#[test]
fn replicas_agree_and_lose_nothing_whatever_the_network_and_the_disks_do() {
    run_all(false);
}

#[test]
fn replicas_agree_when_disks_are_wiped_and_put_back() {
    run_all(true);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(7, true), run(7, true));
}

/// The simulation finds each broken rule. With the feature `mutations` alone.
#[cfg(feature = "mutations")]
mod broken {
    use std::cell::Cell;

    use super::run;
    use crate::Mutation;

    thread_local! {
        static RULE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    pub(super) fn rule() -> Option<Mutation> {
        RULE.get()
    }

    /// The first schedule that fails.
    fn found_by(mutation: Mutation) -> Option<u64> {
        RULE.set(Some(mutation));
        let fails = |seed: &u64| std::panic::catch_unwind(|| run(*seed, true)).is_err();
        let found = (0..1_000).find(fails);
        RULE.set(None);
        found
    }

    #[test]
    fn every_broken_rule_is_found() {
        let rules = [
            Mutation::CreditPerChunk,
            Mutation::KeepIncarnation,
            Mutation::UnboundSessions,
            Mutation::CollectWithoutFloor,
        ];
        let found = rules.map(|mutation| (mutation, found_by(mutation)));
        assert!(found.iter().all(|(_, seed)| seed.is_some()), "{found:?}");
    }
}
