//! What clients ask: puts, deletes, several documents, compare-and-set, rollbacks, and what they have asked before.

use std::collections::BTreeSet;

use crdt_store::{Dot, ETag, Edit, OpKind, WriteMeta, WriteRequest};

use super::{Body, DAY_MS, Reach, World};
use crate::sim::{
    chance::Chance,
    model::{Broken, SECTIONS},
};

/// A write under an idempotency key that a client may send again.
pub(super) struct Keyed {
    at: usize,
    generation: u32,
    request: WriteRequest,
    /// Its op, if it made one.
    dot: Option<Dot>,
    at_ms: u64,
    /// Some clock reading was a day after it, so it may be forgotten.
    is_old: bool,
}

/// What a write has to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Whatever the state says.
    Anything,
    /// The outcome of an earlier write under its key.
    Replay(Option<Dot>),
    /// The outcome of some earlier write under its key, or whatever the state says: outcomes are forgotten after a day,
    /// and come back with an old disk.
    PerhapsReplay,
    /// Its key is another write's.
    KeyInUse,
    /// The version named is not the current one.
    Stale,
}

impl World {
    /// A client that did not hear the answer, or lost it, sends its write again; or another one under the same key.
    pub(super) fn repeat(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        if self.keyed.is_empty() {
            return Ok(());
        }
        let keyed = &self.keyed[chance.below(self.keyed.len())];
        let at = keyed.at;
        let is_known = keyed.generation == self.nodes[at].generation && !keyed.is_old;
        let mut request = keyed.request.clone();
        let due = if is_known { Due::Replay(keyed.dot) } else { Due::PerhapsReplay };
        let is_other = is_known && chance.one_in(4);
        if is_other {
            request.meta.message.push('!');
        }
        let is_allowed = match self.reach(at) {
            Reach::Nothing => false,
            Reach::Shared => request.edits.iter().all(|edit| edit.key == *self.model.shared_key()),
            Reach::All => true,
        };
        if !is_allowed {
            return Ok(());
        }
        self.trace.tell(|| format!("{} hears `{}` again", self.nodes[at].letter, request.meta.idempotency_key));
        self.perform(at, &[(request, if is_other { Due::KeyInUse } else { due })], chance)
    }

    /// After a clock has moved: outcomes a day old may be forgotten.
    pub(super) fn age_keys(&mut self) {
        let clocks: Vec<u64> = (0..self.nodes.len()).map(|at| self.now(at)).collect();
        for keyed in &mut self.keyed {
            keyed.is_old |= clocks[keyed.at].saturating_sub(keyed.at_ms) >= DAY_MS;
        }
    }

    /// What a client asks of a node; `is_alone` where it may name the version that it has read.
    pub(super) fn request(&mut self, at: usize, chance: &mut Chance, is_alone: bool) -> Option<(WriteRequest, Due)> {
        let first = match self.reach(at) {
            Reach::Nothing => return None,
            Reach::Shared => self.model.keys.len() - 1,
            Reach::All => chance.below(self.model.keys.len() - 1),
        };
        let mut documents = BTreeSet::from([first]);
        if self.reach(at) == Reach::All && chance.one_in(6) {
            documents.extend((0..2).map(|_| chance.below(self.model.keys.len() - 1)));
        }
        let mut kind = if chance.one_in(8) { OpKind::Patch } else { OpKind::Put };
        let conflicts = |document: &usize| {
            let view = self.replica(at).document(&self.model.keys[*document]);
            view.is_some_and(|view| !view.conflicts.is_empty() || view.deleted_concurrently)
        };
        if documents.iter().any(conflicts) && chance.one_in(3) {
            kind = OpKind::Resolve;
        }
        let mut edits = Vec::new();
        for document in documents {
            edits.push(self.edit(at, document, chance));
        }
        let mut due = Due::Anything;
        let is_comparing = is_alone && chance.one_in(6);
        if is_comparing {
            due = self.compare(at, &mut edits[0], chance);
        }
        if edits.iter().all(|edit| edit.body.is_none()) {
            kind = OpKind::Delete;
        } else if chance.one_in(16)
            && let Some(of) = self.roll_back(first, &mut edits)
        {
            kind = OpKind::Rollback(of);
        }
        self.values += 1;
        let idempotency_key =
            if !is_comparing && chance.one_in(5) { format!("k{}", self.values) } else { String::new() };
        let schema = u16::try_from(1 + at % 3).expect("it is small");
        let message = if chance.one_in(4) { format!("because {}", self.values) } else { String::new() };
        let meta = WriteMeta { op_kind: kind, message, idempotency_key, schema };
        Some((WriteRequest { edits, meta }, due))
    }

    fn edit(&mut self, at: usize, document: usize, chance: &mut Chance) -> Edit {
        let key = self.model.keys[document].clone();
        if chance.one_in(4) {
            return Edit::delete(key);
        }
        let view = self.replica(at).document(&key);
        let mut body: Body = view.map_or_else(Body::new, |view| {
            view.sections.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect()
        });
        if body.is_empty() {
            for name in SECTIONS.iter().filter(|_| chance.one_in(2)) {
                body.insert((*name).to_owned(), b"0".to_vec());
            }
        }
        for _ in 0..=chance.below(2) {
            let name = chance.pick(&SECTIONS);
            if body.len() > 1 && chance.one_in(6) {
                body.remove(name);
            } else {
                body.insert(name.to_owned(), self.value(chance));
            }
        }
        if body.is_empty() {
            return Edit::delete(key);
        }
        let mask = chance.one_in(8).then(|| [chance.pick(&SECTIONS).to_owned()].into());
        Edit { mask, ..Edit::put(key, body) }
    }

    /// Mostly a value that nobody has written before, now and then a common one.
    fn value(&mut self, chance: &mut Chance) -> Vec<u8> {
        self.values += 1;
        match chance.below(8) {
            0 => b"same".to_vec(),
            1 => format!("{:>300}", self.values).into_bytes(),
            _ => self.values.to_string().into_bytes(),
        }
    }

    /// Makes an edit conditional on a version, the current one or another.
    fn compare(&self, at: usize, edit: &mut Edit, chance: &mut Chance) -> Due {
        let current = self.replica(at).document(&edit.key).map(|view| view.etag);
        match chance.below(3) {
            0 => {
                edit.create_only = edit.body.is_some();
                if edit.create_only && current.is_some() { Due::Stale } else { Due::Anything }
            }
            1 => {
                edit.context = current;
                Due::Anything
            }
            _ => {
                let other: Option<ETag> = format!("{:032x}", chance.next()).parse().ok();
                edit.context = other;
                Due::Stale
            }
        }
    }

    /// Puts the content of an earlier op in place of the first edit's.
    fn roll_back(&self, document: usize, edits: &mut [Edit]) -> Option<Dot> {
        let key = &self.model.keys[document];
        let edit = edits.iter_mut().find(|edit| edit.key == *key && edit.body.is_some())?;
        let is_edit = |number: &usize| self.model.part(*number, document).is_some_and(|part| !part.is_tombstone);
        let of = (0..self.model.ops.len()).find(is_edit)?;
        let part = self.model.part(of, document)?;
        let body: Body = SECTIONS
            .iter()
            .zip(&part.sections)
            .filter_map(|(name, value)| Some(((*name).to_owned(), value.as_ref()?.to_vec())))
            .collect();
        if body.is_empty() {
            return None;
        }
        edit.body = Some(body);
        edit.mask = None;
        Some(self.model.ops[of].dot)
    }

    /// Keeps a write that a client may send again.
    pub(super) fn remember(&mut self, at: usize, request: &WriteRequest, dot: Option<Dot>, at_ms: u64) {
        let key = &request.meta.idempotency_key;
        if key.is_empty() {
            return;
        }
        self.keyed.retain(|keyed| keyed.at != at || keyed.request.meta.idempotency_key != *key);
        let generation = self.nodes[at].generation;
        self.keyed.push(Keyed { at, generation, request: request.clone(), dot, at_ms, is_old: false });
    }
}
