//! What peers say of ops that are live here: seen there, and deleted so long ago that the tombstone is gone.
//!
//! Such a claim is not signed. It is believed when enough peers have made it, and then taken over together with what
//! the peer has seen and its floor: all of it or nothing, so that no dot is without backing in between.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    backend::Batch,
    context::{Clock, Context},
    error::StoreError,
    id::{DocKey, Dot},
    replica::Replica,
    store::Leaving,
};

/// Claims that wait for another peer; one more is not remembered, and has to be made again.
const PENDING_MAX: usize = 65_536;

/// An op in a document, by the id of the document's key.
pub(crate) type Pair = ([u8; 16], Dot);

/// Who has made which claim about what is live here.
pub(super) type Pending = BTreeMap<(DocKey, Dot), BTreeSet<[u8; 16]>>;

/// The end of a conversation with a peer whose floor lies above what was seen here.
#[derive(Debug)]
pub(crate) struct Settlement<'a> {
    pub(crate) peer: [u8; 16],
    /// How many peers must agree.
    pub(crate) needed: usize,
    pub(crate) claims: &'a BTreeSet<Pair>,
    /// All that the peer has seen, and up to where it has collected.
    pub(crate) cover: &'a Context,
    pub(crate) floor: &'a Clock,
    /// What was seen here when the conversation began, and what the peer has sent since.
    pub(crate) before: &'a Context,
    pub(crate) told: &'a BTreeSet<Dot>,
}

impl Replica {
    /// Takes over a peer's claims, coverage and floor in one durable batch, or none of them where a claim waits for
    /// another peer or something came in that the peer was not asked about. Returns the documents that changed.
    pub(crate) fn settle(&mut self, end: &Settlement<'_>) -> Result<Vec<DocKey>, StoreError> {
        let mut leaving = Leaving::new();
        let by_id = self.store.keys_by_id();
        for (id, dot) in end.claims {
            if let Some(key) = by_id.get(id).filter(|key| self.store.is_live(key, *dot)) {
                leaving.entry(key.clone()).or_default().insert(*dot);
            }
        }
        let waiting = self.note_claims(&leaving, end.peer, end.needed);
        if waiting > 0 {
            tracing::info!(waiting, "peer says that edits here were deleted; waiting for another peer to say so");
            self.counters.claims_pending += count(waiting);
            return Ok(Vec::new());
        }
        self.store.begin();
        self.store.retire(&leaving);
        // An edit that came from someone else meanwhile and that this peer has seen and does not hold was deleted
        // there. It was not in our list, so it would stay for ever once the coverage is taken.
        let is_unasked = |dot: Dot| end.cover.contains(dot) && !end.before.contains(dot) && !end.told.contains(&dot);
        if self.store.live_edits().any(is_unasked) || !self.store.adopt(end.cover, end.floor) {
            self.store.roll_back();
            return Ok(Vec::new());
        }
        let life = self.life_after(end.cover.highest(&self.life.incarnation));
        let delta = self.keep(life, Batch::new())?;
        self.counters.claims_applied += count(leaving.values().map(BTreeSet::len).sum());
        Ok(delta.documents)
    }

    /// Remembers who claims what; how many of these claims have too few peers behind them.
    fn note_claims(&mut self, claims: &Leaving, peer: [u8; 16], needed: usize) -> usize {
        if needed <= 1 {
            return 0;
        }
        let mut waiting = 0;
        for pair in claims.iter().flat_map(|(key, dots)| dots.iter().map(move |dot| (key.clone(), *dot))) {
            if self.pending.len() >= PENDING_MAX && !self.pending.contains_key(&pair) {
                waiting += 1;
                continue;
            }
            let peers = self.pending.entry(pair).or_default();
            // More peers than are needed add nothing.
            if peers.len() < needed {
                peers.insert(peer);
            }
            waiting += usize::from(peers.len() < needed);
        }
        waiting
    }

    /// Forgets claims about what is not live any more in these documents.
    pub(super) fn drop_settled_claims(&mut self, documents: &[DocKey]) {
        if self.pending.is_empty() {
            return;
        }
        let store = &self.store;
        let is_touched: BTreeSet<&DocKey> = documents.iter().collect();
        self.pending.retain(|(key, dot), _| !is_touched.contains(key) || store.is_live(key, *dot));
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
