//! The part of a conversation that is needed where one side has not seen all that the other has collected.
//!
//! The listener may hold what was deleted so long ago that the speaker has let go of the tombstone. So the speaker shows
//! a digest of what it sees, the listener lists what is live in its documents where that differs, and the speaker claims
//! what of it it has seen and does not hold: deleted, for certain. Everything takes effect with the last message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    context::Clock,
    document::Document,
    id::{Dot, Incarnation},
    replica::{Pair, Replica},
    root::{BUCKETS, RootTree},
    store::covers,
    sync::SyncError,
    wire::{Claims, Lists, PAIRS_MAX},
};

/// Pairs of document and dot that one side takes in one conversation; four times the documents that a store takes from
/// peers by default.
const LISTED_MAX: usize = 65_536;

/// The speaker's part.
#[derive(Debug, Default)]
pub(super) struct Claimant {
    /// The floor when the conversation began, and from the digest on when that was shown.
    floor: Clock,
    has_asked: bool,
    /// An op of several documents was sent. It may be gone from one of them here, or go before the conversation ends.
    pub(super) has_sent_shared: bool,
    has_all_lists: bool,
    listed: usize,
    claims: VecDeque<Vec<Pair>>,
}

impl Claimant {
    /// The conversation begins; nothing was sent yet.
    pub(super) fn begin(&mut self, replica: &Replica) {
        self.floor = replica.floor().clone();
    }

    /// An op goes out.
    pub(super) fn note_sent(&mut self, replica: &Replica, dot: Dot) {
        self.has_sent_shared |= replica.store().held(dot).is_some_and(|held| held.is_shared);
    }

    pub(super) const fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// True while the peer's lists are due.
    pub(super) const fn is_waiting(&self) -> bool {
        self.has_asked && !self.has_all_lists
    }

    /// Shows the digest; what is collected from now on makes the answer useless.
    pub(super) fn ask(&mut self, replica: &Replica) -> Vec<[u8; 16]> {
        self.has_asked = true;
        self.floor = replica.floor().clone();
        replica.store().buckets()
    }

    /// True where nothing was collected since then but what the peer had seen before: what was sent, or listed, since
    /// may have been deleted meanwhile, and the peer would never hear of it.
    pub(super) fn holds(&self, floor: &Clock, seen_by_peer: &Clock) -> bool {
        let known = |origin| self.floor.get(origin).max(seen_by_peer.get(origin));
        floor.dots.iter().all(|(origin, counter)| known(origin) >= *counter)
    }

    /// Takes a list, and claims what of it was seen here and is gone.
    pub(super) fn handle_lists(&mut self, replica: &Replica, lists: Lists) -> Result<(), SyncError> {
        if !self.is_waiting() {
            return Err(SyncError::OutOfTurn);
        }
        self.listed += lists.pairs.len();
        if self.listed > LISTED_MAX {
            return Err(SyncError::TooMuch { what: "entries of its lists", max: LISTED_MAX });
        }
        self.has_all_lists = lists.is_last;
        let claims = gone(replica, lists.pairs);
        if !claims.is_empty() {
            self.claims.push_back(claims);
        }
        Ok(())
    }

    pub(super) fn next_claims(&mut self, to: Incarnation) -> Option<Claims> {
        self.claims.pop_front().map(|pairs| Claims { to, pairs })
    }
}

/// What of these was seen here and is not live any more.
fn gone(replica: &Replica, pairs: Vec<Pair>) -> Vec<Pair> {
    let store = replica.store();
    let keys = store.keys_by_id();
    let mut live: BTreeMap<[u8; 16], BTreeSet<Dot>> = BTreeMap::new();
    let mut gone = pairs;
    gone.retain(|(id, dot)| {
        let document = || keys.get(id).and_then(|key| store.document(key));
        let live = live.entry(*id).or_insert_with(|| document().map(Document::live).unwrap_or_default());
        replica.context().contains(*dot) && !live.contains(dot)
    });
    gone
}

/// The listener's part.
#[derive(Debug, Default)]
pub(super) struct Listener {
    is_asked: bool,
    lists: VecDeque<Vec<Pair>>,
    listed: usize,
    pub(super) claims: BTreeSet<Pair>,
    /// Every op that the peer sent.
    pub(super) told: BTreeSet<Dot>,
}

impl Listener {
    /// True where the peer has had an answer to what it asked.
    pub(super) fn has_answered(&self) -> bool {
        self.is_asked && self.lists.is_empty()
    }

    /// Compares a digest with what is seen here and makes the lists.
    pub(super) fn handle_digest(&mut self, replica: &Replica, buckets: &[[u8; 16]]) -> Result<(), SyncError> {
        if self.is_asked {
            return Err(SyncError::OutOfTurn);
        }
        if buckets.len() != BUCKETS {
            return Err(SyncError::Implausible { what: "digest" });
        }
        self.is_asked = true;
        let here = replica.store().buckets();
        let differs = |id: &[u8; 16]| buckets.get(usize::from(id[0])) != here.get(usize::from(id[0]));
        let mut pairs = Vec::new();
        for (id, key) in replica.store().keys_by_id().into_iter().filter(|(id, _)| differs(id)) {
            if let Some(document) = replica.store().document(&key).filter(|_| replica.store().read(&key).is_some()) {
                pairs.extend(document.live().into_iter().map(|dot| (id, dot)));
            }
        }
        self.listed = pairs.len();
        self.lists = pairs.chunks(PAIRS_MAX).map(<[Pair]>::to_vec).collect();
        if self.lists.is_empty() {
            self.lists.push_back(Vec::new());
        }
        Ok(())
    }

    pub(super) fn next_lists(&mut self, to: Incarnation) -> Option<Lists> {
        let pairs = self.lists.pop_front()?;
        Some(Lists { to, is_last: self.lists.is_empty(), pairs })
    }

    pub(super) fn handle_claims(&mut self, claims: Claims) -> Result<(), SyncError> {
        if !self.is_asked {
            return Err(SyncError::OutOfTurn);
        }
        self.claims.extend(claims.pairs);
        if self.claims.len() > self.listed {
            return Err(SyncError::Implausible { what: "claims about more than was listed" });
        }
        Ok(())
    }
}

/// The root of a store in which nothing is visible.
pub(super) fn empty_root() -> [u8; 16] {
    RootTree::default().root()
}

/// A floor as it travels: where it has risen since `base`. `None` where that is not an earlier state of it.
pub(super) fn floor_growth(floor: &Clock, base: &Clock) -> Option<Vec<(Incarnation, u64)>> {
    let has_risen = |(origin, counter): &(Incarnation, u64)| *counter > base.get(origin);
    let entries = floor.dots.iter().map(|(origin, counter)| (*origin, *counter));
    covers(floor, base).then(|| entries.filter(has_risen).collect())
}

/// The floor that has risen so since `base`; what is said of it is sorted, and lies above the base and within what its
/// owner has seen.
pub(super) fn floor_from(base: &Clock, growth: &[(Incarnation, u64)], seen: &Clock) -> Result<Clock, SyncError> {
    let is_sorted = growth.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b));
    let has_risen = growth.iter().all(|(origin, counter)| *counter > base.get(origin));
    let is_seen = growth.iter().all(|(origin, counter)| seen.get(origin) >= *counter);
    if !is_sorted || !has_risen || !is_seen {
        return Err(SyncError::Implausible { what: "floor" });
    }
    let mut floor = base.clone();
    floor.dots.extend(growth.iter().copied());
    Ok(floor)
}
