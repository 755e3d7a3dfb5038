//! The simulated mesh: replicas on disks that fail, a network that loses and repeats, clocks that jump.

mod check;
mod disks;
mod heal;
mod network;
mod request;
mod talk;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crdt_store::{Authority, Fault, Incarnation, Replica, StoreError, StoreId};

use self::{disks::Snapshot, network::Pushed, request::Keyed, talk::Talk};
use super::{
    Mutation, Tally,
    authority::{SimAuthority, spread},
    bits::Bits,
    chance::{Chance, mix},
    disk::SimDisk,
    model::{Broken, Model, Rule},
    schedule::{Act, Schedule, Shape, Step},
    trace::Trace,
};

const MESH: &str = "sim";
/// The wall clock at the start: 2026-11-22.
const START_MS: u64 = 1_795_305_600_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const YEAR_MS: u64 = 365 * DAY_MS;

/// Everything that exists in one run.
pub(super) struct World {
    seed: u64,
    shape: Shape,
    mutation: Option<Mutation>,
    nodes: Vec<Node>,
    talks: Vec<Talk>,
    pushes: Vec<Pushed>,
    /// Which side each node is on while the network is split.
    sides: Option<Vec<bool>>,
    model: Model,
    /// Lives that two stores had at some time.
    doubled: BTreeSet<Incarnation>,
    keyed: Vec<Keyed>,
    now_ms: u64,
    boots: u64,
    /// Numbers the values written, so that each is written once.
    values: u64,
    /// Nodes that the current step has changed.
    touched: BTreeSet<usize>,
    trace: Trace,
    tally: Tally,
}

/// One node: a machine with a disk, a clock and a key.
struct Node {
    letter: char,
    /// Whose key it has; that of another node where it is a twin.
    key_name: String,
    authority: Arc<dyn Authority>,
    disk: SimDisk,
    backup: Option<Snapshot>,
    replica: Replica,
    life: Incarnation,
    lives: usize,
    /// How far its clock is from the true time.
    skew_ms: i64,
    /// How often it lost its disk.
    generation: u32,
    /// Ops acknowledged here since.
    acked: Bits,
    /// The last start could not leave its mark, so the next one may begin a new life.
    is_mark_missing: bool,
    incarnations: u64,
    claims: u64,
    look: Look,
}

/// The state of a replica in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Look {
    context_hash: [u8; 8],
    root: [u8; 16],
    floor_hash: [u8; 8],
}

/// What a node may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Its life has written elsewhere what it does not know of: whatever it wrote would be a second op under a dot.
    Nothing,
    /// Its life exists twice: only the document set apart for that.
    Shared,
    /// All that is checked exactly.
    All,
}

impl World {
    pub(super) fn new(schedule: &Schedule, mutation: Option<Mutation>, is_told: bool) -> Result<Self, Broken> {
        let shape = schedule.shape;
        let mut world = Self {
            seed: schedule.seed,
            shape,
            mutation,
            nodes: Vec::new(),
            talks: Vec::new(),
            pushes: Vec::new(),
            sides: None,
            model: Model::new(shape.documents),
            doubled: BTreeSet::new(),
            keyed: Vec::new(),
            now_ms: START_MS,
            boots: 0,
            values: 0,
            touched: BTreeSet::new(),
            trace: Trace::new(is_told),
            tally: Tally::default(),
        };
        let mut chance = Chance::new(mix(schedule.seed, 0x0c10_c450));
        for (at, letter) in ('a'..='z').take(shape.nodes).enumerate() {
            let year = i64::try_from(YEAR_MS).expect("a year fits");
            let skew_ms = chance.pick(&[0, 0, 0, 30_000, 120_000, year, -year]);
            world.add_node(at, letter, skew_ms)?;
        }
        Ok(world)
    }

    fn add_node(&mut self, at: usize, letter: char, skew_ms: i64) -> Result<(), Broken> {
        let key_name = letter.to_string();
        let authority: Arc<dyn Authority> = Arc::new(SimAuthority::new(&key_name));
        let disk = SimDisk::default();
        let replica = self.open(&disk, &authority, shifted(self.now_ms, skew_ms))?;
        let life = replica.incarnation();
        self.nodes.push(Node {
            letter,
            key_name,
            authority,
            disk,
            backup: None,
            incarnations: replica.counters().incarnations,
            replica,
            life,
            lives: 0,
            skew_ms,
            generation: 0,
            acked: Bits::default(),
            is_mark_missing: false,
            claims: 0,
            look: Look::default(),
        });
        self.name_life(at);
        self.nodes[at].look = self.look(at);
        Ok(())
    }

    /// All steps, and then the end of all faults.
    pub(super) fn run(&mut self, steps: &[Step]) -> Result<(), Broken> {
        for (number, step) in steps.iter().enumerate() {
            self.step(number, *step)?;
        }
        self.settle()
    }

    /// Does one step and checks what it changed.
    fn step(&mut self, number: usize, step: Step) -> Result<(), Broken> {
        self.touched.clear();
        self.tally.steps += 1;
        let done = self.act(step).and_then(|()| self.check_touched());
        done.map_err(|broken| Broken { step: Some(number), ..broken })
    }

    fn act(&mut self, step: Step) -> Result<(), Broken> {
        let mut chance = Chance::new(step.roll);
        let chance = &mut chance;
        self.trace.note(u64::from(step.act as u8));
        match step.act {
            Act::Write => self.write(chance),
            Act::Group => self.write_group(chance),
            Act::Repeat => self.repeat(chance),
            Act::Read => self.read(chance),
            Act::Push => self.push(chance),
            Act::Resend => self.resend(chance),
            Act::Talk => self.start_talk(chance),
            Act::Deliver => self.deliver(chance),
            Act::Finish => self.finish_talk(chance),
            Act::Cut => self.cut_talk(chance),
            Act::Split => self.split(chance),
            Act::Isolate => self.isolate(chance),
            Act::Join => self.join(),
            Act::Restart => self.restart(chance),
            Act::Fault => self.plan_fault(chance),
            Act::Backup => self.back_up(chance),
            Act::Wipe => self.wipe(chance),
            Act::Restore => self.restore(chance),
            Act::Clone => self.clone_disk(chance),
            Act::Rewind => self.rewind(chance),
            Act::Twin => self.twin(chance),
            Act::Fork => self.fork(chance),
            Act::Clock => self.jump(chance),
            Act::Pass => self.pass(chance),
            Act::Collect => self.collect(chance),
        }
    }

    // Nodes.

    fn pick(&self, chance: &mut Chance) -> usize {
        chance.below(self.nodes.len())
    }

    fn replica(&self, at: usize) -> &Replica {
        &self.nodes[at].replica
    }

    fn letter(&self, at: usize) -> char {
        self.nodes[at].letter
    }

    fn now(&self, at: usize) -> u64 {
        shifted(self.now_ms, self.nodes[at].skew_ms)
    }

    fn look(&self, at: usize) -> Look {
        let replica = self.replica(at);
        Look { context_hash: replica.context_hash(), root: replica.root(), floor_hash: replica.floor_hash() }
    }

    fn open(&mut self, disk: &SimDisk, authority: &Arc<dyn Authority>, now_ms: u64) -> Result<Replica, Broken> {
        self.boots += 1;
        let random = spread(mix(mix(self.seed, 0xb007), self.boots));
        let opened = Replica::open(Box::new(disk.open()), Arc::clone(authority), MESH, random, now_ms);
        let mut replica =
            opened.map_err(|error| Broken::new(Rule::Storage, format!("a database does not open: {error}")))?;
        if let Some(mutation) = self.mutation {
            mutation.apply(&mut replica)?;
        }
        Ok(replica)
    }

    fn name_life(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if !self.model.knows_life(&node.life) {
            node.lives += 1;
            self.model.name_life(node.life, format!("{}{}", node.letter, node.lives));
        }
    }

    /// What a node may write without making an op that no check could judge.
    fn reach(&self, at: usize) -> Reach {
        let life = self.replica(at).incarnation();
        let mut beyond = self.model.beyond(life, self.replica(at).context().highest(&life));
        if !self.doubled.contains(&life) {
            return Reach::All;
        }
        if beyond.any(|op| !self.model.is_shared(op)) { Reach::Nothing } else { Reach::Shared }
    }

    /// Judges a failure of the store: a planned fault is part of the game, anything else is not. A process whose disk died
    /// starts again. Says which fault it was.
    fn take_fault(&mut self, at: usize, error: &StoreError) -> Result<Fault, Broken> {
        let is_storage = matches!(error, StoreError::Full | StoreError::Storage(_) | StoreError::ReadOnly);
        let struck = self.nodes[at].disk.take_struck();
        let Some(fault) = struck.filter(|_| is_storage) else {
            return Err(Broken::new(Rule::Storage, format!("{} failed without cause: {error}", self.letter(at))));
        };
        self.tally.faults += 1;
        self.trace.tell(|| format!("    the disk failed: {fault:?}"));
        if self.look(at) != self.nodes[at].look {
            return Err(Broken::new(
                Rule::Storage,
                format!("{} changed in memory by what its disk refused", self.letter(at)),
            ));
        }
        if self.nodes[at].disk.is_dead() {
            self.reboot(at, fault == Fault::CrashAfter, &mut Chance::new(self.boots))?;
        }
        Ok(fault)
    }

    // Time.

    fn jump(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let reach = chance.pick(&[1_000, 60_000, DAY_MS, YEAR_MS]);
        let by = i64::try_from(chance.next() % reach).expect("it is under a year");
        let by = if chance.one_in(2) { by } else { -by };
        self.nodes[at].skew_ms = if chance.one_in(3) { 0 } else { self.nodes[at].skew_ms.saturating_add(by) };
        self.trace.tell(|| format!("{}'s clock is {} ms off", self.nodes[at].letter, self.nodes[at].skew_ms));
        self.age_keys();
        Ok(())
    }

    fn pass(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let reach = chance.pick(&[1_000, 60_000, DAY_MS, 9 * DAY_MS]);
        self.now_ms += chance.next() % reach;
        self.trace.tell(|| format!("time passes, {} ms so far", self.now_ms - START_MS));
        self.age_keys();
        Ok(())
    }

    fn collect(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let age_ms = chance.pick(&[0, 0, DAY_MS, crdt_store::TOMBSTONE_AGE_MS]);
        self.collect_at(at, age_ms)
    }

    fn collect_at(&mut self, at: usize, age_ms: u64) -> Result<(), Broken> {
        let now = self.now(at);
        self.touched.insert(at);
        match self.nodes[at].replica.collect(now, age_ms) {
            Ok(collected) => {
                self.tally.collections += 1;
                self.tally.tombstones += u64::try_from(collected.tombstones).expect("a count fits");
                self.trace
                    .tell(|| format!("{} collects what is {age_ms} ms old: {collected:?}", self.nodes[at].letter));
                Ok(())
            }
            Err(error) => self.take_fault(at, &error).map(drop),
        }
    }

    fn store_id() -> StoreId {
        StoreId::global(MESH)
    }

    /// The trace's hash and lines, and what was counted.
    pub(super) fn end(self) -> (u64, Vec<String>, Tally) {
        let (hash, lines) = self.trace.end();
        (hash, lines, self.tally)
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = |bytes: &[u8]| bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
        let [context, root, floor] = [head(&self.context_hash), head(&self.root), head(&self.floor_hash)];
        write!(f, "context {context} root {root} floor {floor}")
    }
}

/// A time moved by a signed number of milliseconds.
const fn shifted(now_ms: u64, by_ms: i64) -> u64 {
    now_ms.saturating_add_signed(by_ms)
}

/// A document's sections as a client sends them.
type Body = BTreeMap<String, Vec<u8>>;
