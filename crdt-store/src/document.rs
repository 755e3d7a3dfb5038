//! One document: a multi-value register per section, and what the registers amount to for a reader.
//!
//! A section is what makes sense together; two people who edit different sections do not meet, two who edit one leave
//! both edits visible until a person settles it. Registers are `crdts`' [`MVReg`], used through `apply(Op::Put)` alone.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use crdts::{CmRDT, MVReg, mvreg};

use crate::{
    context::Clock,
    hlc::Hlc,
    id::{DocKey, Dot, ETag, Incarnation, head, sha256},
    op::Slice,
};

/// What is kept of a document: which ops are live in it. Its registers follow from these, see [`Registers::of`].
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// One op, as in nearly all documents.
    One(Dot),
    /// Some ops, in order.
    Few(Box<[Dot]>),
    /// So many that it is dear to compare all with all each time; the registers themselves.
    Crowd(Box<Registers>),
}

/// From so many live ops on a document's registers are kept.
pub(crate) const CROWD: usize = 17;

impl Document {
    /// What is kept of these registers; `None` where nothing is live in them.
    pub(crate) fn new(registers: Registers) -> Option<Self> {
        let live = registers.live();
        match live.len() {
            0 => None,
            1 => live.first().copied().map(Self::One),
            2..CROWD => Some(Self::Few(live.into_iter().collect())),
            CROWD.. => Some(Self::Crowd(Box::new(registers))),
        }
    }

    /// Every dot that is live in some section.
    pub(crate) fn live(&self) -> BTreeSet<Dot> {
        match self {
            Self::One(dot) => [*dot].into(),
            Self::Few(dots) => dots.iter().copied().collect(),
            Self::Crowd(registers) => registers.live(),
        }
    }

    /// The registers; `find` gives the change of a dot that is live here.
    pub(crate) fn registers<'s, 'a>(&'s self, find: &dyn Fn(Dot) -> Option<Slice<'a>>) -> Cow<'s, Registers> {
        match self {
            Self::One(dot) => Cow::Owned(Registers::of([*dot], find)),
            Self::Few(dots) => Cow::Owned(Registers::of(dots.iter().copied(), find)),
            Self::Crowd(registers) => Cow::Borrowed(registers),
        }
    }
}

/// One section's register: the dots of the ops that nothing later has superseded there.
#[derive(Debug, Clone, Default)]
struct Register {
    values: MVReg<Dot, Incarnation>,
    /// The same dots in order, for reading a register copies every clock.
    dots: Vec<Dot>,
}

impl Register {
    /// Puts a dot under its clock, keeping the outcome independent of order where two clocks are equal.
    fn put(&mut self, dot: Dot, clock: &Clock, clock_of: &dyn Fn(Dot) -> Option<Clock>) {
        // A clock holds its op's own dot, so equal clocks mean two authors who each claim to have seen the other's op
        // first. `MVReg` would keep whichever came last; the higher dot stands for both instead.
        let outranked = |other: &Dot| *other > dot && clock_of(*other).is_some_and(|other_clock| other_clock == *clock);
        if self.dots.iter().any(outranked) {
            return;
        }
        self.values.apply(mvreg::Op::Put { clock: clock.clone(), val: dot });
        if self.dots.is_empty() {
            self.dots.push(dot);
            return;
        }
        self.dots = self.values.read().val;
        self.dots.sort_unstable();
    }
}

/// The registers of one document.
///
/// `rest` stands for every section that has no register of its own: tombstones speak about all sections, also those
/// not heard of yet. A section's register begins as a copy of `rest` and is dropped while it holds the same dots.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registers {
    rest: Register,
    sections: BTreeMap<Arc<str>, Register>,
}

impl Registers {
    /// The registers in which these changes were entered, in any order.
    ///
    /// A register holds those that no other has superseded. Each of them is live in the document; what is not has been
    /// superseded by one that is. So entering what is live gives the same registers as entering all that ever came.
    pub(crate) fn of<'a>(dots: impl IntoIterator<Item = Dot>, find: &dyn Fn(Dot) -> Option<Slice<'a>>) -> Self {
        let mut registers = Self::default();
        let clock_of = |dot| find(dot).map(|change| change.clock(dot));
        for dot in dots {
            if let Some(change) = find(dot) {
                registers.apply(dot, &change.clock(dot), change.mask(), &clock_of);
            }
        }
        registers
    }

    /// Enters one change: into the registers of its mask, or into all where the mask is empty (a tombstone).
    ///
    /// The result depends on the set of changes entered and not on their order. `clock_of` gives the clock of a dot
    /// that is live here.
    pub(crate) fn apply<'m>(
        &mut self,
        dot: Dot,
        clock: &Clock,
        mask: impl IntoIterator<Item = &'m str>,
        clock_of: &dyn Fn(Dot) -> Option<Clock>,
    ) {
        let mut mask = mask.into_iter().peekable();
        if mask.peek().is_none() {
            self.rest.put(dot, clock, clock_of);
            self.sections.values_mut().for_each(|register| register.put(dot, clock, clock_of));
        }
        for section in mask {
            match self.sections.get_mut(section) {
                Some(register) => register.put(dot, clock, clock_of),
                None => {
                    let mut register = self.rest.clone();
                    register.put(dot, clock, clock_of);
                    self.sections.insert(section.into(), register);
                }
            }
        }
        let rest = &self.rest.dots;
        self.sections.retain(|_, register| register.dots != *rest);
    }

    /// Every dot that is live in some section.
    pub(crate) fn live(&self) -> BTreeSet<Dot> {
        self.registers().flat_map(|register| &register.dots).copied().collect()
    }

    /// The dots live in one section; in the sections never named, for an empty name.
    pub(crate) fn live_in(&self, section: &str) -> BTreeSet<Dot> {
        self.register(section).dots.iter().copied().collect()
    }

    /// The section of the mask with the most edits, and their number; tombstones count as well.
    pub(crate) fn widest(&self, mask: &BTreeSet<String>) -> Option<(&str, usize)> {
        let widths = self.sections.iter().filter(|(name, _)| mask.contains(&***name));
        widths.map(|(name, register)| (&**name, register.dots.len())).max_by_key(|(_, width)| *width)
    }

    fn register(&self, section: &str) -> &Register {
        self.sections.get(section).unwrap_or(&self.rest)
    }

    fn registers(&self) -> impl Iterator<Item = &Register> {
        self.sections.values().chain([&self.rest])
    }

    /// What a reader sees; `None` where the document does not exist or was deleted. `find` gives the part of a dot that
    /// is live here.
    pub(crate) fn read<'a>(&self, find: &dyn Fn(Dot) -> Option<Part<'a>>) -> Option<Reading<'a>> {
        let live: Vec<Arc<Part<'a>>> = self.live().into_iter().filter_map(find).map(Arc::new).collect();
        let part_of = |dot: &Dot| live.binary_search_by_key(dot, |part| part.dot).ok().and_then(|at| live.get(at));
        let edits: Vec<&Arc<Part<'a>>> = live.iter().filter(|part| part.body.is_some()).collect();
        let newest = edits.iter().max_by_key(|part| part.rank())?;
        let mut reading = Reading::new(Arc::clone(newest));
        for name in self.names(&edits) {
            let here = self.register(&name).dots.iter().filter_map(part_of);
            let (siblings, graves): (Vec<_>, Vec<_>) = here.partition(|part| part.body.is_some());
            match siblings.iter().max_by_key(|part| part.rank()) {
                Some(winner) => {
                    reading.is_deleted_concurrently |= !graves.is_empty();
                    let ids = |parts: &[&Arc<Part<'a>>]| parts.iter().map(|part| part.id()).collect();
                    let (edits, graves) = (ids(&siblings), ids(&graves));
                    let value = winner.section(&name);
                    if siblings.iter().any(|sibling| sibling.section(&name) != value) {
                        reading.conflicts.push((Arc::clone(&name), siblings.into_iter().map(Arc::clone).collect()));
                    }
                    reading.sections.extend(value.map(|value| (Arc::clone(&name), value.clone())));
                    reading.visible.push(Visible { name, edits, graves });
                }
                // Deleted here, or its own edit has not arrived: a live edit carries the whole document as its author
                // knew it, so the document stays whole. Whether the deletion is still held plays no part, for some
                // replicas have collected it and must show the same.
                None => {
                    let holds = |part: &&&Arc<Part<'a>>| part.section(&name).is_some();
                    if let Some(part) = edits.iter().filter(holds).max_by_key(|part| part.rank()) {
                        reading.sections.extend(part.section(&name).map(|value| (Arc::clone(&name), value.clone())));
                    }
                }
            }
        }
        Some(reading)
    }

    /// Every section that has a register of its own or that one of these edits holds.
    fn names(&self, edits: &[&Arc<Part<'_>>]) -> BTreeSet<Arc<str>> {
        let mut names: BTreeSet<Arc<str>> = self.sections.keys().map(Arc::clone).collect();
        for (name, _) in edits.iter().filter_map(|part| part.body.as_deref()).flatten() {
            if !names.contains(*name) {
                names.insert((*name).into());
            }
        }
        names
    }
}

/// One op's part in a document, as reading needs it.
#[derive(Debug, Clone)]
pub(crate) struct Part<'a> {
    pub(crate) dot: Dot,
    pub(crate) hlc: Hlc,
    pub(crate) hash: [u8; 32],
    /// The document's sections by ascending name; `None` for a tombstone.
    pub(crate) body: Option<Vec<(&'a str, Bytes)>>,
}

impl Part<'_> {
    /// Orders concurrent edits the same way on every replica: later wins, then origin and hash decide.
    pub(crate) fn rank(&self) -> (Hlc, Incarnation, [u8; 32]) {
        (self.hlc, self.dot.origin, self.hash)
    }

    fn id(&self) -> OpId {
        (self.dot, self.hash)
    }

    /// The section's content in this op's document; `None` where the op left it out.
    pub(crate) fn section(&self, name: &str) -> Option<&Bytes> {
        let body = self.body.as_ref()?;
        let at = body.binary_search_by(|(held, _)| (*held).cmp(name)).ok()?;
        body.get(at).map(|(_, value)| value)
    }
}

/// An op for certain: its dot and the hash of its bytes.
type OpId = (Dot, [u8; 32]);

/// What the registers of a document amount to.
#[derive(Debug, Clone)]
pub(crate) struct Reading<'a> {
    /// The effective content.
    pub(crate) sections: BTreeMap<Arc<str>, Bytes>,
    /// Sections whose concurrent edits differ, with those edits.
    pub(crate) conflicts: Vec<(Arc<str>, Vec<Arc<Part<'a>>>)>,
    /// Someone deleted the document without having seen an edit that lives on.
    pub(crate) is_deleted_concurrently: bool,
    /// The highest-ranking live edit.
    pub(crate) newest: Arc<Part<'a>>,
    visible: Vec<Visible>,
}

/// A section that has an edit.
#[derive(Debug, Clone)]
struct Visible {
    name: Arc<str>,
    /// By ascending dot.
    edits: Vec<OpId>,
    /// Deletions whose authors had not seen one of the edits.
    graves: Vec<OpId>,
}

impl<'a> Reading<'a> {
    fn new(newest: Arc<Part<'a>>) -> Self {
        Self {
            sections: BTreeMap::new(),
            conflicts: Vec::new(),
            is_deleted_concurrently: false,
            newest,
            visible: Vec::new(),
        }
    }

    /// Sections in which an edit lives, also one that removed the section.
    pub(crate) fn edited(&self) -> impl Iterator<Item = &str> {
        self.visible.iter().map(|seen| &*seen.name)
    }

    /// Sections in which no edit lives, and which are read of an edit that did not change them.
    pub(crate) fn borrowed(&self) -> impl Iterator<Item = &str> {
        self.sections.keys().map(|name| &**name).filter(|name| self.edited().all(|edited| edited != *name))
    }

    /// The dots that make up what is seen.
    pub(crate) fn dots(&self) -> BTreeSet<Dot> {
        self.visible.iter().flat_map(|seen| seen.edits.iter().chain(&seen.graves)).map(|(dot, _)| *dot).collect()
    }

    /// The version tag: a hash over the sorted live dots.
    pub(crate) fn etag(&self) -> ETag {
        let mut bytes = b"marram-etag".to_vec();
        for dot in self.dots() {
            bytes.extend_from_slice(dot.origin.as_bytes());
            bytes.extend_from_slice(&dot.counter.to_be_bytes());
        }
        ETag(head(&sha256(&[&bytes])))
    }

    /// The document's share in the visible root: which edits are live in which section. Deletions beside them are not
    /// part of it: whether they are still there depends on when tombstones were collected.
    pub(crate) fn hash(&self, key: &DocKey) -> [u8; 16] {
        self.hash_of(key, |seen| seen.edits.iter().collect())
    }

    /// The share as it was before tombstones were collected, for databases of that time.
    pub(crate) fn hash_with_graves(&self, key: &DocKey) -> [u8; 16] {
        self.hash_of(key, |seen| seen.edits.iter().chain(&seen.graves).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn hash_of<'s>(&'s self, key: &DocKey, ids: impl Fn(&'s Visible) -> Vec<&'s OpId>) -> [u8; 16] {
        let mut bytes = b"marram-document".to_vec();
        let mut text = |text: &str| {
            bytes.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        text(&key.kind);
        text(&key.scope);
        text(&key.name);
        for seen in &self.visible {
            let (name, ids) = (&seen.name, ids(seen));
            bytes.extend_from_slice(&u64::try_from(name.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&u64::try_from(ids.len()).unwrap_or(u64::MAX).to_be_bytes());
            for (dot, hash) in ids {
                bytes.extend_from_slice(dot.origin.as_bytes());
                bytes.extend_from_slice(&dot.counter.to_be_bytes());
                bytes.extend_from_slice(hash);
            }
        }
        head(&sha256(&[&bytes]))
    }
}

#[cfg(test)]
mod tests;
