//! How ops leave the registers for good: tombstones that are collected, and ops that peers saw deleted.

use std::collections::{BTreeMap, BTreeSet};

use crdts::{CmRDT, CvRDT};

use crate::{
    context::{Clock, Context},
    document::Document,
    id::{DocKey, Dot, PackedKey},
    root::key_id,
    store::Store,
};

/// Which ops are to leave which documents.
pub(crate) type Leaving = BTreeMap<DocKey, BTreeSet<Dot>>;

impl Store {
    /// Tombstones that may go, at most `max`: of documents that are wholly deleted, where everything that the tombstone
    /// superseded was seen here, and at least `age_ms` old.
    ///
    /// What it superseded and comes again is known as seen then, and not taken. A deletion beside an edit stays: a
    /// person has to see it.
    pub(crate) fn collectable(&self, now_ms: u64, age_ms: u64, max: usize) -> Vec<(DocKey, Dot)> {
        let mut found = Vec::new();
        for (key, document) in self.by_key() {
            let live = document.live();
            if live.iter().any(|dot| self.is_edit(&key, *dot)) {
                continue;
            }
            for dot in live {
                if found.len() == max {
                    return found;
                }
                if self.is_collectable(&key, dot, now_ms, age_ms) {
                    found.push((key.clone(), dot));
                }
            }
        }
        found
    }

    fn is_collectable(&self, key: &DocKey, dot: Dot, now_ms: u64, age_ms: u64) -> bool {
        let Some(held) = self.held(dot) else { return false };
        let Some(change) = held.change(key) else { return false };
        let seen = self.context.clock();
        covers(seen, &change.past())
            && seen.get(&dot.origin) >= dot.counter
            && now_ms.saturating_sub(held.hlc.millis) >= age_ms
    }

    /// Takes tombstones out, and raises the floor to them.
    pub(crate) fn collect(&mut self, tombstones: Vec<(DocKey, Dot)>, raises_floor: bool) {
        let mut leaving = Leaving::new();
        for (key, dot) in tombstones {
            if raises_floor {
                self.floor.apply(crdts::Dot::new(dot.origin, dot.counter));
            }
            leaving.entry(key).or_default().insert(dot);
        }
        self.retire(&leaving);
    }

    /// Takes over what a peer has seen and up to where it has collected. False, and nothing done, where that is more
    /// than is kept here.
    pub(crate) fn adopt(&mut self, cover: &Context, floor: &Clock) -> bool {
        self.context.merge(cover);
        self.floor.merge(floor.clone());
        self.context.origin_count() <= self.limits.origins && self.context.range_count() <= self.limits.cloud_ranges
    }

    /// Takes ops out of documents for good. An op that is live elsewhere stays, with a mark that this change of it
    /// does not count any more; so do ops that only those which leave had superseded here.
    pub(crate) fn retire(&mut self, leaving: &Leaving) {
        let shared = self.shared();
        for (key, dots) in leaving {
            let Some(live) = self.document(key).map(Document::live) else { continue };
            let stays: BTreeSet<Dot> = live.difference(dots).copied().collect();
            for dot in shared.get(key).into_iter().flatten().filter(|dot| !stays.contains(dot)) {
                self.mark(*dot, key);
            }
            self.rebuild(key, &stays);
        }
    }

    /// Ops of several documents, by each of them.
    fn shared(&self) -> BTreeMap<DocKey, Vec<Dot>> {
        let mut shared: BTreeMap<DocKey, Vec<Dot>> = BTreeMap::new();
        for held in self.ops().filter(|held| held.is_shared) {
            for change in held.changes() {
                shared.entry(change.key()).or_default().push(held.dot);
            }
        }
        shared
    }

    fn mark(&mut self, dot: Dot, key: &DocKey) {
        self.journal_op(dot);
        let Some(held) = self.ops.get_mut(&dot) else { return };
        if let Some(at) = held.place(key) {
            held.gone.insert(at);
        }
    }

    /// Every edit that is live in some document.
    pub(crate) fn live_edits(&self) -> impl Iterator<Item = Dot> {
        self.by_key()
            .flat_map(move |(key, document)| document.live().into_iter().filter(move |dot| self.is_edit(&key, *dot)))
    }

    fn by_key(&self) -> impl Iterator<Item = (DocKey, &Document)> {
        self.documents.iter().map(|(key, document)| (key.key(), document))
    }

    /// Documents by the id of their key.
    pub(crate) fn keys_by_id(&self) -> BTreeMap<[u8; 16], DocKey> {
        self.documents.keys().map(PackedKey::key).map(|key| (key_id(&key), key)).collect()
    }

    pub(crate) fn is_live(&self, key: &DocKey, dot: Dot) -> bool {
        self.document(key).is_some_and(|document| document.live().contains(&dot))
    }

    fn is_edit(&self, key: &DocKey, dot: Dot) -> bool {
        self.change_of(key, dot).is_some_and(|change| change.is_edit())
    }
}

/// True where one clock has reached another for every origin.
pub(crate) fn covers(clock: &Clock, other: &Clock) -> bool {
    other.dots.iter().all(|(origin, counter)| clock.get(origin) >= *counter)
}
