//! The oracle: every op that ever became durable somewhere, and which of them must be live where.
//!
//! It knows one rule. Of the ops that a replica has seen and that speak about a section, those are live which no other of
//! them supersedes there; an op supersedes another where its clock for the document (what its author had seen of it, and
//! its own dot) is greater. From a replica's context alone it so follows, exactly, what must be live on it.

use std::collections::BTreeMap;

use bytes::Bytes;
use crdt_store::{Context, DocKey, Dot, Hlc, Incarnation, Op, OpKind};

use super::bits::{Bits, OPS_MAX};

/// The sections of every document.
pub(super) const SECTIONS: [&str; 3] = ["s1", "s2", "s3"];
/// The registers of every document: its sections, and last the one for sections that no edit has named.
pub(super) const REGISTERS: [&str; 4] = ["s1", "s2", "s3", ""];

/// All that is known of a schedule's ops.
#[derive(Debug)]
pub(super) struct Model {
    /// The documents, the last of which only lives that exist twice write to.
    pub(super) keys: Vec<DocKey>,
    pub(super) ops: Vec<Recorded>,
    lives: BTreeMap<Incarnation, (usize, String)>,
    by_dot: BTreeMap<Dot, usize>,
    /// Per document and register, the ops that speak about it.
    speaks: Vec<[Bits; REGISTERS.len()]>,
}

/// An op that became durable somewhere.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) dot: Dot,
    pub(super) hash: [u8; 32],
    pub(super) hlc: Hlc,
    /// What its author's replica had seen when it was written.
    pub(super) seen: Bits,
    pub(super) parts: Vec<Part>,
    /// A person settled the documents: all that is known to be there was superseded, seen or not.
    pub(super) is_settling: bool,
    /// At some time nobody who has seen it was left: it may be missing, though not on some replicas only.
    pub(super) may_be_lost: bool,
}

/// What an op does to one document.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) document: usize,
    pub(super) is_tombstone: bool,
    /// Content by section.
    pub(super) sections: [Option<Bytes>; SECTIONS.len()],
    /// Which registers it enters.
    pub(super) speaks: [bool; REGISTERS.len()],
    /// What its author saw beside it; whoever lacks one of these may not claim its whole past as seen.
    pub(super) beside: Vec<Dot>,
    /// By number of the life; what is missing is 0.
    clock: Vec<u64>,
    /// Ops with a greater clock for this document.
    pub(super) over: Bits,
}

impl Model {
    pub(super) fn new(documents: usize) -> Self {
        let scopes = ["global", "region:eu", "zone:eu.a", "node:n1"];
        let kinds = ["HTTPRoute", "AuthorizationPolicy", "KindOfTomorrow", "RateLimit"];
        let key = |at: usize| DocKey::new(kinds[at % 4], scopes[at % 4], format!("d{at}"));
        let keys: Vec<DocKey> = (0..documents).map(key).chain([DocKey::new("Twice", "global", "e")]).collect();
        let speaks = vec![Default::default(); keys.len()];
        Self { keys, ops: Vec::new(), lives: BTreeMap::new(), by_dot: BTreeMap::new(), speaks }
    }

    /// Documents that every check is exact for.
    pub(super) fn exact(&self) -> std::ops::Range<usize> {
        0..self.keys.len() - 1
    }

    /// The document that lives which exist twice may write to.
    pub(super) fn shared_key(&self) -> &DocKey {
        &self.keys[self.keys.len() - 1]
    }

    pub(super) fn is_full(&self) -> bool {
        self.ops.len() >= OPS_MAX
    }

    /// Names a life for the trace.
    pub(super) fn name_life(&mut self, life: Incarnation, label: String) {
        let number = self.lives.len();
        self.lives.entry(life).or_insert((number, label));
    }

    pub(super) fn knows_life(&self, life: &Incarnation) -> bool {
        self.lives.contains_key(life)
    }

    pub(super) fn life_label(&self, life: &Incarnation) -> String {
        self.lives.get(life).map_or_else(|| "?".to_owned(), |(_, label)| label.clone())
    }

    pub(super) fn label(&self, dot: Dot) -> String {
        format!("{}:{}", self.life_label(&dot.origin), dot.counter)
    }

    pub(super) fn labels(&self, dots: impl IntoIterator<Item = Dot>) -> String {
        let labels: Vec<String> = dots.into_iter().map(|dot| self.label(dot)).collect();
        if labels.is_empty() { "nothing".to_owned() } else { labels.join(" ") }
    }

    pub(super) fn number(&self, dot: Dot) -> Option<usize> {
        self.by_dot.get(&dot).copied()
    }

    /// The numbers of the ops that a context holds.
    pub(super) fn seen(&self, context: &Context) -> Bits {
        (0..self.ops.len()).filter(|at| context.contains(self.ops[*at].dot)).collect()
    }

    /// Takes an op down; the first one under a dot counts.
    pub(super) fn record(&mut self, op: &Op, hash: [u8; 32], seen: Bits) {
        if self.by_dot.contains_key(&op.dot) || self.is_full() {
            return;
        }
        let number = self.ops.len();
        let mut parts: Vec<Part> = Vec::with_capacity(op.changes.len());
        for change in &op.changes {
            let Some(document) = self.keys.iter().position(|key| *key == change.key) else { continue };
            let speaks = REGISTERS.map(|name| change.mask.is_empty() || change.mask.contains(name));
            for (register, _) in speaks.iter().enumerate().filter(|(_, speaks)| **speaks) {
                self.speaks[document][register].insert(number);
            }
            let body = change.body.as_ref();
            let sections = SECTIONS.map(|name| body.and_then(|body| body.get(name)).cloned());
            let clock = self.dense(&change.clock(op.dot));
            let mut over = Bits::default();
            for (at, other) in self.ops.iter_mut().enumerate() {
                let Some(part) = other.parts.iter_mut().find(|part| part.document == document) else { continue };
                if is_greater(&clock, &part.clock) {
                    part.over.insert(number);
                } else if is_greater(&part.clock, &clock) {
                    over.insert(at);
                }
            }
            let beside = change.beside.iter().copied().collect();
            parts.push(Part { document, is_tombstone: body.is_none(), sections, speaks, beside, clock, over });
        }
        let is_settling = op.kind == OpKind::Resolve;
        self.by_dot.insert(op.dot, number);
        self.ops.push(Recorded { dot: op.dot, hash, hlc: op.hlc, seen, parts, is_settling, may_be_lost: false });
    }

    /// The ops that must be live in a register of whoever has seen `seen`.
    pub(super) fn live(&self, seen: &Bits, document: usize, register: usize) -> Bits {
        let candidates = self.speaks[document][register].and(seen);
        let is_live = |at: &usize| self.part(*at, document).is_some_and(|part| part.over.and(&candidates).is_empty());
        candidates.iter().filter(is_live).collect()
    }

    pub(super) fn part(&self, at: usize, document: usize) -> Option<&Part> {
        self.ops[at].parts.iter().find(|part| part.document == document)
    }

    /// Ops of a life beyond a counter.
    pub(super) fn beyond(&self, life: Incarnation, counter: u64) -> impl Iterator<Item = &Recorded> {
        let dots = Dot::new(life, counter + 1)..=Dot::new(life, u64::MAX);
        self.by_dot.range(dots).map(|(_, at)| &self.ops[*at])
    }

    /// True for an op that is only about the document of lives that exist twice.
    pub(super) fn is_shared(&self, op: &Recorded) -> bool {
        op.parts.iter().all(|part| part.document == self.keys.len() - 1)
    }

    /// An edit that is superseded although nobody who superseded it had seen it, if there is one: it was lost.
    pub(super) fn superseded_unseen(&self) -> Option<String> {
        for (at, op) in self.ops.iter().enumerate() {
            for part in op.parts.iter().filter(|part| !part.is_tombstone && self.exact().contains(&part.document)) {
                // Whoever settles a document claims it whole, with what is known to be there and has not arrived.
                let is_settled = part.over.iter().any(|by| self.ops[by].is_settling);
                for register in (0..REGISTERS.len()).filter(|register| part.speaks[*register]) {
                    let over = part.over.and(&self.speaks[part.document][register]);
                    let is_seen = over.iter().any(|by| self.ops[by].seen.contains(at));
                    if !over.is_empty() && !is_seen && !is_settled {
                        let by = self.labels(over.iter().map(|by| self.ops[by].dot));
                        return Some(format!(
                            "{} in `{}` of {} was superseded by {by}, whose authors had not seen it",
                            self.label(op.dot),
                            REGISTERS[register],
                            self.keys[part.document]
                        ));
                    }
                }
            }
        }
        None
    }

    fn dense(&mut self, clock: &crdt_store::Clock) -> Vec<u64> {
        let mut dense = vec![0; self.lives.len()];
        for (life, counter) in &clock.dots {
            if !self.knows_life(life) {
                self.name_life(*life, "unknown".to_owned());
            }
            let number = self.lives[life].0;
            dense.resize(dense.len().max(number + 1), 0);
            dense[number] = *counter;
        }
        dense
    }
}

/// True where a clock holds all of the other and more.
fn is_greater(clock: &[u64], other: &[u64]) -> bool {
    let at = |clock: &[u64], life: usize| clock.get(life).copied().unwrap_or(0);
    let lives = clock.len().max(other.len());
    let covers = (0..lives).all(|life| at(clock, life) >= at(other, life));
    covers && (0..lives).any(|life| at(clock, life) > at(other, life))
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Nothing that was superseded or deleted is live.
    Return,
    /// Nothing that stands is gone.
    Loss,
    /// Nothing is superseded by somebody who had not seen it.
    Observed,
    /// What was acknowledged is there, also after a crash; what failed is not.
    Durability,
    /// A life never puts two ops under one dot.
    Dots,
    /// Replicas that have seen the same are the same, and all see the same in the end.
    Agreement,
    /// Readers get what the live ops amount to.
    Reading,
    /// Clients get the answer that is due, and read what they wrote.
    Answers,
    /// Lives and second ops are counted when they occur and never else.
    Counters,
    /// Collecting changes nothing visible, and leaves nothing that could go.
    Garbage,
    /// The store fails when its disk fails, and only then.
    Storage,
    /// Nothing panics.
    Panic,
}

/// What was found broken, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The step that showed it, from 0; `None` where the faults had stopped.
    pub step: Option<usize>,
    /// What does not hold.
    pub rule: Rule,
    /// The sentence.
    pub what: String,
}

impl Broken {
    pub(super) fn new(rule: Rule, what: impl Into<String>) -> Self {
        Self { step: None, rule, what: what.into() }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}: {:?}: {}", self.rule, self.what),
            None => write!(f, "after the faults stopped: {:?}: {}", self.rule, self.what),
        }
    }
}
