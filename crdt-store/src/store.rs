//! The replica's state in memory and the only ways it changes: an op enters, coverage is credited, ops leave for good.
//!
//! Invariant I1: every dot in the context is backed: its op is live here, or a live op or tombstone held here has
//! superseded it, or a tombstone did that was collected: then everything it superseded is in the context, and the floor
//! has risen to it. So an op that comes twice does nothing.

mod garbage;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    context::{COUNTER_END, Clock, Context},
    document::{Document, Part, Reading, Registers},
    error::Refusal,
    hlc::{Hlc, HlcClock},
    id::{DocKey, Dot, Incarnation, PackedKey, StoreId},
    op::{self, Limits, Op, SignedOp, Slice},
    root::RootTree,
    sign::{Author, Authority, OriginRecord},
};

/// Peers may bring the store to this many times the limits of local writes, so that nodes at their limits converge.
const PEER_ROOM: usize = 4;

/// A live op: one that nothing has superseded in at least one section of one document.
///
/// Thousands of them are held, so they are held as bytes: what is needed of an op is read out of them each time.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) signed: SignedOp,
    pub(crate) hash: [u8; 32],
    pub(crate) dot: Dot,
    pub(crate) hlc: Hlc,
    /// Its stamp was more than a minute ahead of our clock when it came.
    pub(crate) is_clock_suspect: bool,
    /// It changes several documents.
    pub(crate) is_shared: bool,
    /// In how many documents it is live.
    live_in: u32,
    /// Which of its changes do not count any more: a tombstone had superseded them and was collected.
    pub(crate) gone: BTreeSet<usize>,
}

impl Held {
    /// Holds an op that was decoded of these bytes.
    pub(crate) fn new(op: &Op, signed: SignedOp, is_clock_suspect: bool) -> Self {
        Self {
            hash: signed.hash(),
            signed,
            dot: op.dot,
            hlc: op.hlc,
            is_clock_suspect,
            is_shared: op.changes.len() > 1,
            live_in: 0,
            gone: BTreeSet::new(),
        }
    }

    /// Its changes, in order.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Slice<'_>> {
        op::slices(&self.signed.bytes)
    }

    /// The change that concerns a document.
    pub(crate) fn change(&self, key: &DocKey) -> Option<Slice<'_>> {
        self.changes().find(|change| change.is_of(key))
    }

    /// Which of the changes concerns a document.
    fn place(&self, key: &DocKey) -> Option<usize> {
        self.changes().position(|change| change.is_of(key))
    }

    fn part(&self, key: &DocKey) -> Option<Part<'_>> {
        let body = self.change(key)?.body();
        Some(Part { dot: self.dot, hlc: self.hlc, hash: self.hash, body })
    }
}

/// A store's life that ops came from, and who stands behind it.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) record: OriginRecord,
    pub(crate) author: Author,
}

/// What one transaction changed, for the disk and for whoever listens.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    pub(crate) added: Vec<Dot>,
    pub(crate) removed: Vec<Dot>,
    pub(crate) origins: Vec<Incarnation>,
    pub(crate) documents: Vec<DocKey>,
    /// Ops whose marks changed, and that have some.
    pub(crate) marked: Vec<Dot>,
    /// Ops that had marks, and have none or are gone.
    pub(crate) unmarked: Vec<Dot>,
    /// Every op that entered, also those that were superseded at once.
    pub(crate) entered: Vec<Arc<Op>>,
    /// True where the floor rose.
    pub(crate) has_floor: bool,
}

/// How an op was received.
#[derive(Debug)]
pub(crate) enum Reception {
    New(Dot),
    Duplicate,
    /// A second op under a dot; the one with the lower hash is held, the new one where `is_replaced`.
    Equivocation {
        dot: Dot,
        is_replaced: bool,
    },
    Refused(Option<Dot>, Refusal),
}

/// What a transaction has to restore when the disk refuses it.
#[derive(Debug)]
struct Journal {
    documents: BTreeMap<PackedKey, Option<Document>>,
    ops: BTreeMap<Dot, Option<Box<Held>>>,
    origins: BTreeSet<Incarnation>,
    context: Context,
    floor: Clock,
    clock: HlcClock,
    live_bytes: usize,
    entered: Vec<Arc<Op>>,
}

/// The state; pure, no disk, no clock of its own.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) id: StoreId,
    pub(crate) limits: Limits,
    pub(crate) context: Context,
    /// Up to where tombstones were collected; never beyond the contiguous part of the context.
    pub(crate) floor: Clock,
    pub(crate) clock: HlcClock,
    pub(crate) live_bytes: usize,
    origins: BTreeMap<Incarnation, Origin>,
    ops: BTreeMap<Dot, Box<Held>>,
    documents: BTreeMap<PackedKey, Document>,
    root: RootTree,
    journal: Option<Journal>,
}

pub(crate) use garbage::{Leaving, covers};

impl Store {
    pub(crate) fn new(id: StoreId, limits: Limits) -> Self {
        Self {
            id,
            limits,
            context: Context::new(),
            floor: Clock::new(),
            clock: HlcClock::default(),
            live_bytes: 0,
            origins: BTreeMap::new(),
            ops: BTreeMap::new(),
            documents: BTreeMap::new(),
            root: RootTree::default(),
            journal: None,
        }
    }

    // Reading.

    pub(crate) fn root(&self) -> [u8; 16] {
        self.root.root()
    }

    /// The root as it was before tombstones were collected, for databases of that time.
    pub(crate) fn root_with_graves(&self) -> [u8; 16] {
        let mut root = RootTree::default();
        for key in self.keys() {
            root.set(&key, self.read(&key).map(|reading| reading.hash_with_graves(&key)));
        }
        root.root()
    }

    /// The hashes of the root's buckets.
    pub(crate) fn buckets(&self) -> Vec<[u8; 16]> {
        self.root.buckets().collect()
    }

    pub(crate) fn held(&self, dot: Dot) -> Option<&Held> {
        self.ops.get(&dot).map(Box::as_ref)
    }

    pub(crate) fn ops(&self) -> impl Iterator<Item = &Held> {
        self.ops.values().map(Box::as_ref)
    }

    pub(crate) fn origins(&self) -> impl Iterator<Item = &Incarnation> {
        self.origins.keys()
    }

    pub(crate) fn origin(&self, incarnation: &Incarnation) -> Option<&Origin> {
        self.origins.get(incarnation)
    }

    /// Every document, tombstones included.
    pub(crate) fn keys(&self) -> impl Iterator<Item = DocKey> {
        self.documents.keys().map(PackedKey::key)
    }

    pub(crate) fn document_count(&self) -> usize {
        self.documents.len()
    }

    pub(crate) fn document(&self, key: &DocKey) -> Option<&Document> {
        self.documents.get(&PackedKey::from(key))
    }

    /// A document's registers; empty ones where nothing is known of it.
    pub(crate) fn registers(&self, key: &DocKey) -> Cow<'_, Registers> {
        let document = self.document(key);
        document.map(|document| document.registers(&|dot| self.change_of(key, dot))).unwrap_or_default()
    }

    pub(crate) fn read(&self, key: &DocKey) -> Option<Reading<'_>> {
        self.read_from(key, &self.registers(key))
    }

    /// What a document's registers amount to.
    pub(crate) fn read_from(&self, key: &DocKey, registers: &Registers) -> Option<Reading<'_>> {
        registers.read(&|dot| self.held(dot)?.part(key))
    }

    /// A held op's change of a document.
    pub(crate) fn change_of(&self, key: &DocKey, dot: Dot) -> Option<Slice<'_>> {
        self.held(dot)?.change(key)
    }

    /// True where all that the op's author had seen of the document has arrived here, so that superseding the op may
    /// claim its whole past as seen.
    pub(crate) fn is_complete(&self, key: &DocKey, dot: Dot) -> bool {
        self.change_of(key, dot).is_some_and(|change| change.beside().all(|other| self.context.contains(other)))
    }

    // Transactions.

    /// Starts a transaction; [`Store::commit`] or [`Store::roll_back`] ends it.
    pub(crate) fn begin(&mut self) {
        debug_assert!(self.journal.is_none(), "transactions do not nest");
        self.journal = Some(Journal {
            documents: BTreeMap::new(),
            ops: BTreeMap::new(),
            origins: BTreeSet::new(),
            context: self.context.clone(),
            floor: self.floor.clone(),
            clock: self.clock,
            live_bytes: self.live_bytes,
            entered: Vec::new(),
        });
    }

    /// What the transaction has changed so far.
    pub(crate) fn delta(&self) -> Delta {
        let Some(journal) = &self.journal else { return Delta::default() };
        let mut delta = Delta {
            origins: journal.origins.iter().copied().collect(),
            documents: journal.documents.keys().map(PackedKey::key).collect(),
            entered: journal.entered.clone(),
            has_floor: journal.floor != self.floor,
            ..Delta::default()
        };
        let marks = |held: Option<&Held>| held.map(|held| held.gone.clone()).unwrap_or_default();
        for (dot, before) in &journal.ops {
            let (before, now) = (before.as_deref(), self.held(*dot));
            if marks(before) != marks(now) {
                let list = if marks(now).is_empty() { &mut delta.unmarked } else { &mut delta.marked };
                list.push(*dot);
            }
            match (before, now) {
                (None, Some(_)) => delta.added.push(*dot),
                (Some(_), None) => delta.removed.push(*dot),
                (Some(before), Some(now)) if before.hash != now.hash => delta.added.push(*dot),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        delta
    }

    /// Ends the transaction and keeps it.
    pub(crate) fn commit(&mut self) {
        self.journal = None;
    }

    /// Ends the transaction and restores what was before it.
    pub(crate) fn roll_back(&mut self) {
        let Some(journal) = self.journal.take() else { return };
        let touched: Vec<DocKey> = journal.documents.keys().map(PackedKey::key).collect();
        for (key, before) in journal.documents {
            match before {
                Some(document) => self.documents.insert(key, document),
                None => self.documents.remove(&key),
            };
        }
        for (dot, before) in journal.ops {
            match before {
                Some(held) => self.ops.insert(dot, held),
                None => self.ops.remove(&dot),
            };
        }
        for incarnation in &journal.origins {
            self.origins.remove(incarnation);
        }
        self.context = journal.context;
        self.floor = journal.floor;
        self.clock = journal.clock;
        self.live_bytes = journal.live_bytes;
        for key in touched {
            let hash = self.read(&key).map(|reading| reading.hash(&key));
            self.root.set(&key, hash);
        }
    }

    // Changing.

    /// Makes an origin known.
    pub(crate) fn add_origin(&mut self, record: OriginRecord, author: Author) {
        let incarnation = record.incarnation;
        if self.origins.insert(incarnation, Origin { record, author }).is_none()
            && let Some(journal) = &mut self.journal
        {
            journal.origins.insert(incarnation);
        }
    }

    /// Takes an op from a peer, after everything about it was checked. With `is_repair` an op that the context
    /// claims to have seen is taken as well when it is not held; that is safe while tombstones are kept.
    pub(crate) fn receive(
        &mut self,
        record: Option<&OriginRecord>,
        signed: SignedOp,
        is_repair: bool,
        authority: &dyn Authority,
        now_ms: u64,
    ) -> Reception {
        let op = match op::decode(&self.id, &signed.bytes, &self.limits) {
            Ok(op) => op,
            Err(fault) => return Reception::Refused(None, Refusal::Malformed(fault)),
        };
        let dot = op.dot;
        let is_held = self.ops.contains_key(&dot);
        if self.ops.get(&dot).map_or(self.context.contains(dot) && !is_repair, |held| held.hash == signed.hash()) {
            return Reception::Duplicate;
        }
        if let Err(refusal) = self.check(&op, record, &signed, authority) {
            return Reception::Refused(Some(dot), refusal);
        }
        let is_clock_suspect = self.clock.observe(op.hlc, now_ms);
        let held = Held::new(&op, signed, is_clock_suspect);
        if is_held {
            let is_replaced = self.replace(op, held);
            return Reception::Equivocation { dot, is_replaced };
        }
        let was_seen = self.context.contains(dot);
        self.enter(op, held);
        // An op that was superseded before it came is credited and not new to anyone.
        if was_seen && !self.ops.contains_key(&dot) {
            self.journal.as_mut().map(|journal| journal.entered.pop());
            return Reception::Duplicate;
        }
        Reception::New(dot)
    }

    /// Enters an op known to be right, and the bytes it was decoded of: into the registers, the context and the root.
    pub(crate) fn enter(&mut self, op: Op, held: Held) {
        let dot = op.dot;
        let gone = held.gone.clone();
        self.journal_op(dot);
        self.live_bytes += held.signed.weight();
        self.ops.insert(dot, Box::new(held));
        for (_, change) in op.changes.iter().enumerate().filter(|(at, _)| !gone.contains(at)) {
            let (clock, mask) = (change.clock(dot), change.mask.iter().map(String::as_str));
            self.change(&change.key, |registers, clock_of| registers.apply(dot, &clock, mask, clock_of));
        }
        self.drop_if_dead(dot);
        self.context.insert(dot);
        if let Some(journal) = &mut self.journal {
            journal.entered.push(Arc::new(op));
        }
    }

    fn check(
        &mut self,
        op: &Op,
        record: Option<&OriginRecord>,
        signed: &SignedOp,
        authority: &dyn Authority,
    ) -> Result<(), Refusal> {
        let origin = op.dot.origin;
        if op.dot.counter >= COUNTER_END
            || op.dot.counter.saturating_sub(self.context.highest(&origin)) > self.limits.counter_step
        {
            return Err(Refusal::CounterStep);
        }
        if self.context.highest(&origin) == 0 && self.context.origin_count() >= self.limits.origins {
            return Err(Refusal::TooManyOrigins);
        }
        if self.context.range_count() >= self.limits.cloud_ranges && !self.closes_a_gap(op.dot) {
            return Err(Refusal::TooManyGaps);
        }
        let is_known = self.origins.contains_key(&origin);
        let (key, may_author, new) = match self.origins.get(&origin) {
            Some(known) => (known.record.public_key, known.author.may_author, None),
            None => {
                let record = record.filter(|record| record.incarnation == origin).ok_or(Refusal::UnknownOrigin)?;
                let author = record.admit(&self.id, authority).map_err(Refusal::BadOrigin)?;
                (record.public_key, author.may_author, Some((record.clone(), author)))
            }
        };
        if !is_known && self.origins.len() >= self.limits.origins {
            return Err(Refusal::TooManyOrigins);
        }
        if !authority.verify(&key, &signed.bytes, &signed.signature) {
            return Err(Refusal::BadSignature);
        }
        if !may_author {
            return Err(Refusal::NotAuthor);
        }
        let new_documents = op.changes.iter().filter(|change| self.document(&change.key).is_none()).count();
        if self.live_bytes.saturating_add(signed.weight()) > self.limits.live_bytes.saturating_mul(PEER_ROOM)
            || self.documents.len().saturating_add(new_documents) > self.limits.documents.saturating_mul(PEER_ROOM)
        {
            return Err(Refusal::StoreFull);
        }
        if let Some((record, author)) = new {
            self.add_origin(record, author);
        }
        Ok(())
    }

    fn closes_a_gap(&self, dot: Dot) -> bool {
        let before = Dot::new(dot.origin, dot.counter - 1);
        let after = Dot::new(dot.origin, dot.counter.saturating_add(1));
        dot.counter == 1 || self.context.contains(before) || self.context.contains(after)
    }

    /// Two ops under one dot: their author broke its word. The lower hash stands, on every replica alike.
    fn replace(&mut self, op: Op, mut other: Held) -> bool {
        let dot = op.dot;
        let Some(current) = self.ops.get(&dot).cloned() else { return false };
        if current.hash <= other.hash {
            return false;
        }
        let keys: Vec<DocKey> = current.changes().map(|change| change.key()).collect();
        for key in &keys {
            self.journal_op(dot);
            let mut others = self.entered_in(key);
            others.remove(&dot);
            self.rebuild(key, &others);
        }
        self.drop_if_dead(dot);
        // What was said about the dot holds for whatever op is under it.
        other.gone = current.gone.iter().filter_map(|at| op.place(keys.get(*at)?)).collect();
        self.enter(op, other);
        true
    }

    /// Ops held that count in a document, whether or not another has superseded them there.
    fn entered_in(&self, key: &DocKey) -> BTreeSet<Dot> {
        // An op of one document is held while it is live there.
        let counts = |held: &&Held| held.is_shared && held.place(key).is_some_and(|at| !held.gone.contains(&at));
        let live = self.document(key).map(Document::live).unwrap_or_default();
        self.ops().filter(counts).map(|held| held.dot).chain(live).collect()
    }

    /// Builds a document anew from these ops alone.
    fn rebuild(&mut self, key: &DocKey, dots: &BTreeSet<Dot>) {
        let registers = Registers::of(dots.iter().copied(), &|dot| self.change_of(key, dot));
        self.set(key, registers);
    }

    /// Changes one document's registers.
    fn change(&mut self, key: &DocKey, edit: impl FnOnce(&mut Registers, &dyn Fn(Dot) -> Option<Clock>)) {
        let mut registers = self.registers(key).into_owned();
        edit(&mut registers, &|dot| self.change_of(key, dot).map(|change| change.clock(dot)));
        self.set(key, registers);
    }

    /// Sets one document's registers and its share in the root, and keeps count of where ops are live.
    fn set(&mut self, key: &DocKey, registers: Registers) {
        let hash = self.read_from(key, &registers).map(|reading| reading.hash(key));
        self.root.set(key, hash);
        let is = registers.live();
        let packed = PackedKey::from(key);
        let before = match Document::new(registers) {
            Some(document) => self.documents.insert(packed.clone(), document),
            None => self.documents.remove(&packed),
        };
        let was = before.as_ref().map(Document::live).unwrap_or_default();
        if let Some(journal) = &mut self.journal {
            journal.documents.entry(packed).or_insert(before);
        }
        for dot in is.difference(&was) {
            self.journal_op(*dot);
            if let Some(held) = self.ops.get_mut(dot) {
                held.live_in += 1;
            }
        }
        for dot in was.difference(&is) {
            self.journal_op(*dot);
            if let Some(held) = self.ops.get_mut(dot) {
                held.live_in = held.live_in.saturating_sub(1);
            }
            self.drop_if_dead(*dot);
        }
    }

    fn journal_op(&mut self, dot: Dot) {
        let Some(journal) = &mut self.journal else { return };
        let ops = &self.ops;
        journal.ops.entry(dot).or_insert_with(|| ops.get(&dot).cloned());
    }

    fn drop_if_dead(&mut self, dot: Dot) {
        if self.ops.get(&dot).is_some_and(|held| held.live_in == 0)
            && let Some(dead) = self.ops.remove(&dot)
        {
            self.live_bytes = self.live_bytes.saturating_sub(dead.signed.weight());
        }
    }
}

#[cfg(test)]
mod tests;
