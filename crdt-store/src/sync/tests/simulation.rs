//! Several replicas, everything that can go wrong between and below them, one seed.
//!
//! Writes, deletes, pushes that are lost, doubled and reordered, conversations cut anywhere, partitions, disks that fail
//! or crash before or after a batch, clocks a year off; in half of the runs also disks wiped or put back from a copy.
//! After the faults stop and everyone has talked, all must agree, and no edit may be gone unless somebody who had truly
//! seen it wrote over it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    Context, Dot, Edit, Fault, FaultyStorage, MemoryStorage, Op, OpKind, Plan, Replica, StoreError, SyncConfig,
    SyncSession, WriteMeta,
    backend::Disk,
    testing::{Chance, NOW, body, key, replica_on, sync},
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
        let replica = replica_on(&name, Box::new(storage), 0);
        Self { name, backup: disk.copy(), disk, plan, replica, boots: 0, clock }
    }

    fn boot(&mut self, disk: Disk) {
        self.boots += 1;
        let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
        self.replica = replica_on(&self.name, Box::new(storage), self.boots);
        (self.disk, self.plan) = (disk, plan);
    }
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
    steps: u64,
}

impl World {
    fn new(seed: u64, loses_disks: bool) -> Self {
        let mut chance = Chance(seed);
        let count = 2 + chance.below(4);
        let clocks = [NOW, NOW, NOW + YEAR_MS, NOW - YEAR_MS, NOW + 30_000];
        let nodes = (0..count).map(|n| Node::new(format!("{seed}-{n}"), clocks[n])).collect();
        let (talks, pushes, recorded) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { chance, nodes, talks, pushes, sides: None, recorded, loses_disks, steps: 0 }
    }

    fn step(&mut self) {
        self.steps += 1;
        match self.chance.below(24) {
            0..=4 => self.write(),
            5 => self.start_talk(),
            6..=14 => self.deliver(),
            15..=17 => self.push(),
            18 => self.split_or_heal(),
            19 => self.crash(),
            20 => self.break_disk(),
            21 => drop(self.pick_talk().map(|at| self.talks.swap_remove(at))),
            22 => self.tick(),
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
        let node = &mut self.nodes[at];
        let life = node.replica.incarnation();
        let next = Dot::new(life, node.replica.summary().counter + 1);
        let seen = node.replica.context().clone();
        let written = node.replica.write(vec![edit], WriteMeta { op_kind: kind, ..WriteMeta::default() }, node.clock);
        match written {
            Ok(written) => {
                let Some(dot) = written.dot else { return };
                assert_eq!(dot, next);
                let held = node.replica.document_ops(&key(name));
                assert!(held.contains(&dot), "a write must be live where it was made");
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
        let config = SyncConfig { chunk_bytes: 400, budget_bytes: if self.chance.one_in(3) { 1_500 } else { 1 << 20 } };
        let sessions = [SyncSession::initiate(config), SyncSession::accept(config)];
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
            Err(crate::SyncError::OtherIncarnation) if self.loses_disks => drop(self.talks.swap_remove(at)),
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
            1 => self.restart_on(at, Disk::new()),
            _ => {
                let copy = self.nodes[at].backup.copy();
                self.restart_on(at, copy);
            }
        }
    }

    /// The faults stop, everyone talks to everyone until nothing changes.
    fn heal(&mut self) {
        self.talks.clear();
        for at in 0..self.nodes.len() {
            self.reboot(at);
        }
        for _ in 0..6 {
            for to in 1..self.nodes.len() {
                for from in 0..to {
                    let (left, right) = self.nodes.split_at_mut(to);
                    let talked = sync(&mut left[from].replica, &mut right[0].replica);
                    let is_repair = talked.as_ref().is_ok_and(|(session, _)| session.outcome().is_repair);
                    assert!(talked.is_ok() || self.loses_disks, "{:?}", talked.err());
                    assert!(!is_repair || self.loses_disks, "equal contexts and different roots");
                }
            }
        }
    }

    /// Invariant I1: what a replica claims to have seen is live in it, or something live in it has superseded it.
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
                        assert!(live.iter().any(covers), "{}: {dot:?} in `{section}` is claimed and gone", node.name);
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
            // Whether a clock was suspect is each receiver's own opinion.
            let shown = |replica: &Replica| -> Vec<crate::DocumentView> {
                replica.documents().map(|view| crate::DocumentView { clock_suspect: false, ..view }).collect()
            };
            assert_eq!(shown(replica), shown(first), "roots are equal and documents are not");
            assert_eq!(replica.counters().equivocations, 0);
        }
        if !self.loses_disks {
            self.check_nothing_is_lost(first);
        }
    }

    fn check_nothing_is_lost(&self, replica: &Replica) {
        for (dot, x) in &self.recorded {
            assert!(replica.context().contains(*dot), "{dot:?} was acknowledged and is unknown");
            for change in &x.op.changes {
                for section in sections(&change.mask) {
                    let is_live = replica.section_ops(&change.key, section).contains(dot);
                    let over = |y: &&Recorded| {
                        let put = y.op.change(&change.key).filter(|c| c.mask.is_empty() || c.mask.contains(section));
                        put.filter(|_| y.op.dot != *dot).is_some_and(|put| put.clock(y.op.dot) > change.clock(*dot))
                    };
                    let superseded_by: Vec<&Recorded> = self.recorded.values().filter(over).collect();
                    assert_eq!(is_live, superseded_by.is_empty(), "{dot:?} in `{section}` of {}", change.key);
                    // What is gone was written over by someone who had it.
                    assert!(
                        is_live || superseded_by.iter().any(|y| y.seen.contains(*dot)),
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

fn run(seed: u64, loses_disks: bool) -> ([u8; 16], u64) {
    let mut world = World::new(seed, loses_disks);
    for step in 0..160 {
        world.step();
        if step % 8 == 0 {
            world.check_backed();
        }
    }
    world.heal();
    world.check();
    (world.nodes[0].replica.root(), world.chance.next())
}

/// How many schedules: a few in each test run, any number by `MARRAM_STORE_SEEDS`.
fn seeds() -> u64 {
    std::env::var("MARRAM_STORE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150)
}

fn run_all(loses_disks: bool) {
    for seed in 0..seeds() {
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
