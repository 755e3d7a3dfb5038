//! What was written by whom having seen what, and so what must be seen of it in the end.
//!
//! Each write carries its number and a text of its own, so a reader can tell which write it sees and whether it is the
//! one that was made. A write names the writes of the same document that its author had read, and a condition on the
//! document's ETag makes sure that it took effect on just those; from that follows, without asking any node, which
//! writes must be visible, which may be, and which must not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

/// The number of a write.
pub type WriteId = usize;

/// One write of one document.
#[derive(Debug, Clone, Serialize)]
pub struct Write {
    /// Name of the document.
    pub document: String,
    /// Number of the node that was asked.
    pub node: usize,
    /// The text written; `None` deletes.
    pub text: Option<String>,
    /// Writes of the document that its author had read; those may be superseded by it.
    pub seen: Vec<WriteId>,
    /// Those of `seen` that it superseded for certain, if it took effect.
    pub superseded: Vec<WriteId>,
    /// What became of it.
    pub outcome: Outcome,
    /// Seconds since the run began until the answer, or until it was given up.
    pub ended_s: f64,
    /// Writes of several documents in one request have the same.
    request: usize,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// No answer, or one that leaves it open: it may have taken effect or not.
    InDoubt,
    /// Answered with success: it is durable.
    Acknowledged {
        /// The write as the store counts it.
        dot: String,
        /// The document's ETag after it; empty when deleted.
        etag: String,
    },
    /// Answered with a refusal, or not sent at all: it never takes effect.
    Refused,
}

/// A write as a node shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// The number it carries.
    pub id: WriteId,
    /// The text beside it.
    pub text: String,
}

/// Everything one node shows: of each document every side that is in force or listed as a conflict.
pub type View = BTreeMap<String, BTreeSet<Shown>>;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An acknowledged write is neither visible nor superseded.
    Lost(WriteId),
    /// A write is visible although an acknowledged one superseded it.
    Returned(WriteId),
    /// A document shows what nobody wrote into it.
    Invented(String, Shown),
    /// Two acknowledged requests have one dot.
    DotTwice(WriteId, WriteId),
    /// Nodes with equal roots show different content of a document.
    Differs(String),
    /// A node does not show what it had acknowledged before, with what it says instead.
    Forgotten(WriteId, String),
}

impl Fault {
    /// Whether nodes disagree, rather than something being lost or made up.
    #[must_use]
    pub const fn is_divergence(&self) -> bool {
        matches!(self, Self::Differs(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(id) => write!(f, "write {id} was acknowledged and is neither visible nor superseded"),
            Self::Returned(id) => write!(f, "write {id} is visible although an acknowledged write superseded it"),
            Self::Invented(document, shown) => write!(f, "{document} shows what nobody wrote: {shown:?}"),
            Self::DotTwice(one, other) => write!(f, "writes {one} and {other} were acknowledged under one dot"),
            Self::Differs(document) => write!(f, "nodes with equal roots show different content of {document}"),
            Self::Forgotten(id, said) => write!(f, "write {id} is not there when its own node is asked again: {said}"),
        }
    }
}

/// How many writes ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered with success.
    pub acknowledged: usize,
    /// Of these, deletions.
    pub deletions: usize,
    /// Refused or not sent.
    pub refused: usize,
    /// Left open.
    pub in_doubt: usize,
}

/// Every write, in the order in which they began.
#[derive(Debug, Default)]
pub struct Ledger {
    writes: Vec<Write>,
    dots: BTreeMap<String, WriteId>,
    requests: usize,
    faults: BTreeSet<Fault>,
}

impl Write {
    /// A write that node number `node` is about to be asked for, by an author who had read `seen`.
    #[must_use]
    pub fn new(document: &str, node: usize, text: Option<String>, seen: Vec<WriteId>) -> Self {
        let document = document.to_owned();
        Self { document, node, text, seen, superseded: Vec::new(), outcome: Outcome::InDoubt, ended_s: 0.0, request: 0 }
    }
}

impl Ledger {
    /// Enters the writes of one request that is about to be sent; in doubt until [`Ledger::settle`] says more.
    pub fn begin(&mut self, writes: Vec<Write>) -> Vec<WriteId> {
        self.requests += 1;
        let first = self.writes.len();
        self.writes.extend(writes.into_iter().map(|write| Write { request: self.requests, ..write }));
        (first..self.writes.len()).collect()
    }

    /// What became of a write.
    pub fn settle(&mut self, id: WriteId, outcome: Outcome, ended_s: f64) {
        let Some(write) = self.writes.get_mut(id) else { return };
        write.ended_s = ended_s;
        write.outcome = outcome;
        let request = write.request;
        let Outcome::Acknowledged { dot, .. } = &write.outcome else { return };
        let first = *self.dots.entry(dot.clone()).or_insert(id);
        if self.writes.get(first).is_some_and(|first| first.request != request) {
            self.faults.insert(Fault::DotTwice(first, id));
        }
    }

    /// An acknowledged write superseded these for certain.
    pub fn superseded(&mut self, id: WriteId, superseded: Vec<WriteId>) {
        if let Some(write) = self.writes.get_mut(id) {
            write.superseded = superseded;
        }
    }

    /// A fault that showed itself before any comparison.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.insert(fault);
    }

    /// Every write.
    #[must_use]
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// How many ended in which way.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for write in &self.writes {
            match write.outcome {
                Outcome::Acknowledged { .. } => {
                    counts.acknowledged += 1;
                    counts.deletions += usize::from(write.text.is_none());
                }
                Outcome::Refused => counts.refused += 1,
                Outcome::InDoubt => counts.in_doubt += 1,
            }
        }
        counts
    }

    /// Compares what the nodes show, at rest and with equal roots, with what was written; all faults so far, those
    /// found earlier included.
    pub fn check(&mut self, views: &[View]) -> &BTreeSet<Fault> {
        for view in views {
            self.check_one(view);
        }
        for pair in views.windows(2) {
            let [one, other] = pair else { continue };
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            let differing = names.into_iter().filter(|name| one.get(*name) != other.get(*name));
            self.faults.extend(differing.map(|name| Fault::Differs(name.clone())));
        }
        &self.faults
    }

    /// What of a view nobody wrote, at whatever moment it was taken.
    #[must_use]
    pub fn invented(&self, view: &View) -> Vec<Fault> {
        let unwritten = shown(view).filter(|(document, shown)| !self.is_written(document, shown));
        unwritten.map(|(document, shown)| Fault::Invented(document.to_owned(), shown.clone())).collect()
    }

    fn is_written(&self, document: &str, shown: &Shown) -> bool {
        self.writes.get(shown.id).is_some_and(|write| {
            write.document == document && write.text.as_ref() == Some(&shown.text) && write.outcome != Outcome::Refused
        })
    }

    fn check_one(&mut self, view: &View) {
        let invented = self.invented(view);
        self.faults.extend(invented);
        let sound = shown(view).filter(|(document, shown)| self.is_written(document, shown));
        let visible: BTreeSet<WriteId> = sound.map(|(_, shown)| shown.id).collect();
        let certain = || {
            let acknowledged = |write: &Write| matches!(write.outcome, Outcome::Acknowledged { .. });
            (0..).zip(&self.writes).filter(move |(_, write)| acknowledged(write)).map(|(id, _)| id)
        };
        let gone = self.below(certain().chain(visible.iter().copied()), |write| &write.superseded);
        let returned = visible.intersection(&gone).map(|id| Fault::Returned(*id));
        // A deletion in doubt leaves no trace when it took effect, so it explains what it may have removed.
        let deletions =
            (0..).zip(&self.writes).filter(|(_, write)| write.outcome == Outcome::InDoubt && write.text.is_none());
        let existing = certain().chain(visible.iter().copied()).chain(deletions.map(|(id, _)| id));
        let explained = self.below(existing, |write| &write.seen);
        let is_put = |id: &WriteId| self.writes.get(*id).is_some_and(|write| write.text.is_some());
        let lost = certain().filter(|id| is_put(id) && !visible.contains(id) && !explained.contains(id));
        let found: Vec<Fault> = returned.chain(lost.map(Fault::Lost)).collect();
        self.faults.extend(found);
    }

    /// All writes below those of `from`, however far.
    fn below<'a>(
        &'a self,
        from: impl Iterator<Item = WriteId>,
        down: impl Fn(&'a Write) -> &'a Vec<WriteId>,
    ) -> BTreeSet<WriteId> {
        let mut found = BTreeSet::new();
        let mut open: Vec<WriteId> = from.collect();
        while let Some(write) = open.pop().and_then(|id| self.writes.get(id)) {
            open.extend(down(write).iter().copied().filter(|id| found.insert(*id)));
        }
        found
    }
}

/// Everything shown, with the name of its document.
fn shown(view: &View) -> impl Iterator<Item = (&str, &Shown)> {
    view.iter().flat_map(|(document, sides)| sides.iter().map(move |shown| (document.as_str(), shown)))
}

#[cfg(test)]
mod tests;
