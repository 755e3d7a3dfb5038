//! One document: a multi-value register per section, and what the registers amount to for a reader.
//!
//! A section is what makes sense together; two people who edit different sections do not meet, two who edit one leave
//! both edits visible until a person settles it. Registers are `crdts`' [`MVReg`], used through `apply(Op::Put)` alone.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use crdts::{CmRDT, MVReg, mvreg};

use crate::{
    context::Clock,
    hlc::Hlc,
    id::{DocKey, Dot, ETag, Incarnation, head, sha256},
    op::Sections,
};

type Register = MVReg<Dot, Incarnation>;

/// The registers of one document. Each holds the dots of the ops that nothing later has superseded there.
///
/// `rest` stands for every section that has no register of its own: tombstones speak about all sections, also those
/// not heard of yet. A section's register begins as a copy of `rest` and is dropped while it holds the same dots.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document {
    rest: Register,
    sections: BTreeMap<String, Register>,
}

impl Document {
    /// Enters one change: into the registers of its mask, or into all where the mask is empty (a tombstone).
    ///
    /// The result depends on the set of changes entered and not on their order. `clock_of` gives the clock of a dot
    /// that is live here.
    pub(crate) fn apply(
        &mut self,
        dot: Dot,
        clock: &Clock,
        mask: &BTreeSet<String>,
        clock_of: &dyn Fn(Dot) -> Option<Clock>,
    ) {
        if mask.is_empty() {
            put(&mut self.rest, dot, clock, clock_of);
            self.sections.values_mut().for_each(|register| put(register, dot, clock, clock_of));
        } else {
            for section in mask {
                let register = self.sections.entry(section.clone()).or_insert_with(|| self.rest.clone());
                put(register, dot, clock, clock_of);
            }
        }
        let rest = dots(&self.rest);
        self.sections.retain(|_, register| dots(register) != rest);
    }

    /// Every dot that is live in some section.
    pub(crate) fn live(&self) -> BTreeSet<Dot> {
        self.sections.values().chain([&self.rest]).flat_map(dots).collect()
    }

    /// The dots live in one section; in the sections never named, for an empty name.
    pub(crate) fn live_in(&self, section: &str) -> BTreeSet<Dot> {
        dots(self.sections.get(section).unwrap_or(&self.rest))
    }

    /// True where nothing was ever entered.
    pub(crate) fn is_empty(&self) -> bool {
        self.sections.is_empty() && dots(&self.rest).is_empty()
    }

    /// The section of the mask with the most edits, and their number; tombstones count as well.
    pub(crate) fn widest(&self, mask: &BTreeSet<String>) -> Option<(&str, usize)> {
        let widths = self.sections.iter().filter(|(name, _)| mask.contains(*name));
        widths.map(|(name, register)| (name.as_str(), dots(register).len())).max_by_key(|(_, width)| *width)
    }

    /// What a reader sees; `None` where the document does not exist or was deleted.
    pub(crate) fn read<'a>(&'a self, find: &dyn Fn(Dot) -> Option<Part<'a>>) -> Option<Reading<'a>> {
        let live: Vec<Part<'a>> = self.live().into_iter().filter_map(find).collect();
        let edits: Vec<&Part<'a>> = live.iter().filter(|part| part.body.is_some()).collect();
        let newest = edits.iter().max_by_key(|part| part.rank())?;
        let mut reading = Reading::new((*newest).clone());
        let named = self.sections.keys().map(String::as_str);
        let held = edits.iter().filter_map(|part| part.body).flat_map(|body| body.keys().map(String::as_str));
        for name in named.chain(held).collect::<BTreeSet<_>>() {
            let register = self.sections.get(name).unwrap_or(&self.rest);
            let (siblings, graves): (Vec<_>, Vec<_>) =
                dots(register).into_iter().filter_map(find).partition(|part| part.body.is_some());
            match siblings.iter().max_by_key(|part| part.rank()) {
                Some(winner) => {
                    reading.is_deleted_concurrently |= !graves.is_empty();
                    let ids = |parts: &[Part<'a>]| parts.iter().map(Part::id).collect();
                    reading.visible.push(Visible { name, edits: ids(&siblings), graves: ids(&graves) });
                    let value = winner.section(name);
                    if siblings.iter().any(|sibling| sibling.section(name) != value) {
                        reading.conflicts.push((name, siblings.clone()));
                    }
                    reading.sections.extend(value.map(|value| (name, value)));
                }
                // Deleted here, or its own edit has not arrived: a live edit carries the whole document as its author
                // knew it, so the document stays whole. Whether the deletion is still held plays no part, for some
                // replicas have collected it and must show the same.
                None => {
                    let holds = |part: &&&Part<'a>| part.section(name).is_some();
                    if let Some(part) = edits.iter().filter(holds).max_by_key(|part| part.rank()) {
                        reading.sections.extend(part.section(name).map(|value| (name, value)));
                    }
                }
            }
        }
        Some(reading)
    }
}

/// The dots a register holds, in order.
fn dots(register: &Register) -> BTreeSet<Dot> {
    register.read().val.into_iter().collect()
}

/// Puts a dot under its clock, keeping the outcome independent of order where two clocks are equal.
fn put(register: &mut Register, dot: Dot, clock: &Clock, clock_of: &dyn Fn(Dot) -> Option<Clock>) {
    // A clock holds its op's own dot, so equal clocks mean two authors who each claim to have seen the other's op
    // first. `MVReg` would keep whichever came last; the higher dot stands for both instead.
    let outranked = |other: &Dot| *other > dot && clock_of(*other).is_some_and(|other_clock| other_clock == *clock);
    if register.read().val.iter().any(outranked) {
        return;
    }
    register.apply(mvreg::Op::Put { clock: clock.clone(), val: dot });
}

/// One op's part in a document, as reading needs it.
#[derive(Debug, Clone)]
pub(crate) struct Part<'a> {
    pub(crate) dot: Dot,
    pub(crate) hlc: Hlc,
    pub(crate) hash: [u8; 32],
    pub(crate) body: Option<&'a Sections>,
}

impl<'a> Part<'a> {
    /// Orders concurrent edits the same way on every replica: later wins, then origin and hash decide.
    pub(crate) fn rank(&self) -> (Hlc, Incarnation, [u8; 32]) {
        (self.hlc, self.dot.origin, self.hash)
    }

    fn id(&self) -> OpId {
        (self.dot, self.hash)
    }

    /// The section's content in this op's document; `None` where the op left it out.
    pub(crate) fn section(&self, name: &str) -> Option<&'a Bytes> {
        self.body.and_then(|body| body.get(name))
    }
}

/// An op for certain: its dot and the hash of its bytes.
type OpId = (Dot, [u8; 32]);

/// What the registers of a document amount to.
#[derive(Debug, Clone)]
pub(crate) struct Reading<'a> {
    /// The effective content.
    pub(crate) sections: BTreeMap<&'a str, &'a Bytes>,
    /// Sections whose concurrent edits differ, with those edits.
    pub(crate) conflicts: Vec<(&'a str, Vec<Part<'a>>)>,
    /// Someone deleted the document without having seen an edit that lives on.
    pub(crate) is_deleted_concurrently: bool,
    /// The highest-ranking live edit.
    pub(crate) newest: Part<'a>,
    visible: Vec<Visible<'a>>,
}

/// A section that has an edit.
#[derive(Debug, Clone)]
struct Visible<'a> {
    name: &'a str,
    edits: BTreeSet<OpId>,
    /// Deletions whose authors had not seen one of the edits.
    graves: BTreeSet<OpId>,
}

impl<'a> Reading<'a> {
    fn new(newest: Part<'a>) -> Self {
        Self {
            sections: BTreeMap::new(),
            conflicts: Vec::new(),
            is_deleted_concurrently: false,
            newest,
            visible: Vec::new(),
        }
    }

    /// Sections in which an edit lives, also one that removed the section.
    pub(crate) fn edited(&self) -> impl Iterator<Item = &'a str> {
        self.visible.iter().map(|seen| seen.name)
    }

    /// Sections in which no edit lives, and which are read of an edit that did not change them.
    pub(crate) fn borrowed(&self) -> impl Iterator<Item = &'a str> {
        self.sections.keys().copied().filter(|name| self.edited().all(|edited| edited != *name))
    }

    /// The dots that make up what is seen.
    pub(crate) fn dots(&self) -> BTreeSet<Dot> {
        self.visible.iter().flat_map(|seen| seen.edits.union(&seen.graves).map(|(dot, _)| *dot)).collect()
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
        self.hash_of(key, |seen| seen.edits.union(&seen.graves).collect())
    }

    fn hash_of<'s>(&'s self, key: &DocKey, ids: impl Fn(&'s Visible<'a>) -> BTreeSet<&'s OpId>) -> [u8; 16] {
        let mut bytes = b"marram-document".to_vec();
        let mut text = |text: &str| {
            bytes.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        text(&key.kind);
        text(&key.scope);
        text(&key.name);
        for seen in &self.visible {
            let (name, ids) = (seen.name, ids(seen));
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
