//! What must hold at every moment, on the nodes that a step has changed.

use std::collections::{BTreeMap, BTreeSet};

use crdt_store::{DocumentView, Dot};

use super::{Look, World};
use crate::sim::{
    Mutation,
    bits::Bits,
    chance::Chance,
    model::{Broken, REGISTERS, Rule, SECTIONS},
};

impl World {
    /// Checks every node that the current step has changed.
    pub(super) fn check_touched(&mut self) -> Result<(), Broken> {
        for at in std::mem::take(&mut self.touched) {
            self.check_node(at)?;
        }
        Ok(())
    }

    /// Everything about one node that can be checked without its peers, and that peers in the same state agree with it.
    pub(super) fn check_node(&mut self, at: usize) -> Result<(), Broken> {
        self.check_counters(at)?;
        let look = self.look(at);
        if look != self.nodes[at].look {
            self.trace.tell(|| format!("    {}: {look}", self.nodes[at].letter));
        }
        self.nodes[at].look = look;
        self.trace.note_bytes(&look.context_hash);
        self.trace.note_bytes(&look.root);
        let seen = self.model.seen(self.replica(at).context());
        let unknown = self.nodes[at].acked.minus(&seen);
        if let Some(lost) = unknown.iter().next() {
            let dot = self.model.label(self.model.ops[lost].dot);
            return Err(Broken::new(
                Rule::Durability,
                format!("{} acknowledged {dot} and does not know it", self.letter(at)),
            ));
        }
        self.check_floor(at)?;
        for document in self.model.exact() {
            for register in 0..REGISTERS.len() {
                self.check_register(at, &seen, document, register)?;
            }
        }
        self.check_peers(at, look)
    }

    /// What is live must be what follows from what was seen: nothing that was superseded is back, nothing that stands is
    /// gone, but for tombstones under the floor.
    fn check_register(&self, at: usize, seen: &Bits, document: usize, register: usize) -> Result<(), Broken> {
        let key = &self.model.keys[document];
        let due = self.model.live(seen, document, register);
        let mut live = Bits::default();
        for dot in self.replica(at).live_in(key, REGISTERS[register]) {
            let Some(number) = self.model.number(dot) else {
                return Err(Broken::new(
                    Rule::Return,
                    format!("{} holds {dot:?}, which nobody wrote", self.letter(at)),
                ));
            };
            live.insert(number);
        }
        let place = || format!("in `{}` of {key} on {}", REGISTERS[register], self.letter(at));
        let dots = |bits: Bits| self.model.labels(bits.iter().map(|number| self.model.ops[number].dot));
        let is_collected = |number: &usize| self.is_collected(at, *number, document);
        // A tombstone may outlive the later one that superseded it and is collected: it deletes what was deleted anyway.
        let is_left = |number: &usize| {
            let part = self.model.part(*number, document).filter(|part| part.is_tombstone);
            part.is_some_and(|part| part.over.and(seen).iter().any(|over| is_collected(&over)))
        };
        let back: Bits = live.minus(&due).iter().filter(|number| !is_left(number)).collect();
        if !back.is_empty() {
            let what = format!("{} came back {}, where {} is live", dots(back), place(), dots(due));
            return Err(Broken::new(Rule::Return, what));
        }
        let gone = due.minus(&live);
        if !gone.iter().all(|number| is_collected(&number)) {
            let what = format!("{} vanished {}, where {} is live", dots(gone), place(), dots(live));
            return Err(Broken::new(Rule::Loss, what));
        }
        Ok(())
    }

    /// True for a tombstone that a node may have let go of.
    fn is_collected(&self, at: usize, number: usize, document: usize) -> bool {
        let dot = self.model.ops[number].dot;
        let is_tombstone = self.model.part(number, document).is_some_and(|part| part.is_tombstone);
        let is_under_floor = self.replica(at).floor().get(&dot.origin) >= dot.counter;
        // Whoever collects and leaves the floor where it is, is to be caught by what comes of it.
        is_tombstone && (is_under_floor || self.mutation == Some(Mutation::CollectWithoutFloor))
    }

    /// The floor never passes what was seen without a gap.
    fn check_floor(&self, at: usize) -> Result<(), Broken> {
        let replica = self.replica(at);
        let clock = replica.context().clock();
        let is_within = replica.floor().dots.iter().all(|(origin, counter)| clock.get(origin) >= *counter);
        if is_within {
            Ok(())
        } else {
            Err(Broken::new(Rule::Garbage, format!("{}'s floor is above its context", self.letter(at))))
        }
    }

    /// Lives and second ops are counted when they occur and at no other time.
    fn check_counters(&mut self, at: usize) -> Result<(), Broken> {
        let letter = self.letter(at);
        let node = &self.nodes[at];
        let (life, counters) = (node.replica.incarnation(), node.replica.counters());
        let minted = counters.incarnations - node.incarnations;
        if minted != u64::from(life != node.life) {
            return Err(Broken::new(Rule::Counters, format!("{letter} counted {minted} new lives")));
        }
        if life != node.life && !self.doubled.contains(&node.life) {
            return Err(Broken::new(Rule::Counters, format!("{letter} gave up a life that nobody else has had")));
        }
        if counters.equivocations > 0 && self.doubled.is_empty() {
            return Err(Broken::new(
                Rule::Counters,
                format!("{letter} saw two ops under a dot, and no life exists twice"),
            ));
        }
        let node = &mut self.nodes[at];
        node.incarnations = node.replica.counters().incarnations;
        self.tally.claims += node.replica.counters().claims_applied - node.claims;
        node.claims = node.replica.counters().claims_applied;
        node.life = life;
        self.name_life(at);
        Ok(())
    }

    /// Equal contexts mean equal roots, whatever was collected when.
    fn check_peers(&self, at: usize, look: Look) -> Result<(), Broken> {
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            let theirs = self.nodes[other].look;
            if theirs.context_hash == look.context_hash && theirs.root != look.root && self.doubled.is_empty() {
                let (a, b) = (self.letter(at), self.letter(other));
                return Err(Broken::new(
                    Rule::Agreement,
                    format!("{a} and {b} have seen the same and have different roots"),
                ));
            }
        }
        Ok(())
    }

    // Reading.

    pub(super) fn read(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        self.trace.tell(|| format!("{} is read", self.nodes[at].letter));
        self.check_views(at)?;
        let other = self.pick(chance);
        if self.replica(at).context() == self.replica(other).context() {
            self.check_same_views(at, other)?;
        }
        Ok(())
    }

    /// What a reader of a node gets is what the live ops amount to.
    pub(super) fn check_views(&self, at: usize) -> Result<(), Broken> {
        let listed: BTreeSet<_> = self.replica(at).documents().map(|view| view.key).collect();
        let seen = self.model.seen(self.replica(at).context());
        for document in self.model.exact() {
            let key = &self.model.keys[document];
            let live: [Bits; REGISTERS.len()] =
                std::array::from_fn(|register| self.model.live(&seen, document, register));
            let exists = live.iter().any(|bits| bits.iter().any(|number| self.is_edit(number, document)));
            let view = self.replica(at).document(key);
            if view.is_some() != exists || listed.contains(key) != exists {
                return Err(Broken::new(
                    Rule::Reading,
                    format!("{} shows {key}: {}; it exists: {exists}", self.letter(at), view.is_some()),
                ));
            }
            if let Some(view) = view {
                self.check_view(at, document, &live, &view)?;
            }
        }
        Ok(())
    }

    fn check_view(&self, at: usize, document: usize, live: &[Bits], view: &DocumentView) -> Result<(), Broken> {
        for (section, name) in SECTIONS.iter().enumerate() {
            let edits: Vec<usize> = live[section].iter().filter(|number| self.is_edit(*number, document)).collect();
            let rank = |number: &usize| {
                let op = &self.model.ops[*number];
                (op.hlc, op.dot.origin, op.hash)
            };
            // Where no edit lives, the section is filled from one that did not change it.
            let Some(winner) = edits.iter().copied().max_by_key(rank) else { continue };
            let value =
                |number: usize| self.model.part(number, document).and_then(|part| part.sections[section].as_ref());
            if view.sections.get(*name) != value(winner) {
                let winner = self.model.label(self.model.ops[winner].dot);
                let place = format!("`{name}` of {} on {}", view.key, self.letter(at));
                return Err(Broken::new(
                    Rule::Reading,
                    format!("{place} does not read as {winner} has it, which is in force"),
                ));
            }
            let differ = edits.iter().any(|number| value(*number) != value(winner));
            let shown = view.conflicts.iter().find(|conflict| conflict.section == *name);
            let siblings: BTreeSet<Dot> =
                shown.iter().flat_map(|conflict| conflict.siblings.iter().map(|sibling| sibling.dot)).collect();
            let due: BTreeSet<Dot> =
                edits.iter().filter(|_| differ).map(|number| self.model.ops[*number].dot).collect();
            if siblings != due {
                let (shown, due) = (self.model.labels(siblings), self.model.labels(due));
                let place = format!("`{name}` of {} on {}", view.key, self.letter(at));
                return Err(Broken::new(Rule::Reading, format!("{place} shows a conflict of {shown}; due: {due}")));
            }
        }
        Ok(())
    }

    fn is_edit(&self, number: usize, document: usize) -> bool {
        self.model.part(number, document).is_some_and(|part| !part.is_tombstone)
    }

    /// Two nodes that have seen the same show the same.
    pub(super) fn check_same_views(&self, a: usize, b: usize) -> Result<(), Broken> {
        let (ours, theirs) = (self.shown(a), self.shown(b));
        for (key, view) in &ours {
            if theirs.get(key) != Some(view) {
                let (a, b, theirs) = (self.letter(a), self.letter(b), theirs.get(key));
                return Err(Broken::new(
                    Rule::Agreement,
                    format!("{a} and {b} have seen the same; {a} shows {view:?}, {b} {theirs:?}"),
                ));
            }
        }
        let keys = |shown: &BTreeMap<_, _>| shown.keys().cloned().collect::<Vec<crdt_store::DocKey>>();
        if ours.len() == theirs.len() {
            return Ok(());
        }
        let (a, b) = (self.letter(a), self.letter(b));
        Err(Broken::new(Rule::Agreement, format!("{a} shows {:?} and {b} {:?}", keys(&ours), keys(&theirs))))
    }

    /// The documents without what is each node's own opinion (whether a clock was suspect) or depends on when tombstones
    /// were collected (whether a deletion is still shown beside an edit, and so the version).
    fn shown(&self, at: usize) -> BTreeMap<crdt_store::DocKey, DocumentView> {
        let is_exact = |view: &DocumentView| self.doubled.is_empty() || view.key != *self.model.shared_key();
        let views = self.replica(at).documents().filter(is_exact);
        let etag = "0".repeat(32).parse().expect("32 digits are a version");
        let bare = |view: DocumentView| DocumentView {
            clock_suspect: false,
            deleted_concurrently: false,
            live: Vec::new(),
            etag,
            ..view
        };
        views.map(|view| (view.key.clone(), bare(view))).collect()
    }
}
