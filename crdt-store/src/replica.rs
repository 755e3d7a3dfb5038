//! The public face: a store that is kept on disk, written here and merged with peers.
//!
//! Every call that changes something is one durable batch: when it returns `Ok`, all of it survives a power cut; when
//! it returns an error, nothing of it is there. Reading never touches the disk.

mod claims;
mod collect;
mod history;
mod idempotency;
mod inspect;
mod keep;
mod merge;
mod records;
mod restore;
mod view;
mod write;

use std::{collections::BTreeMap, sync::Arc};

pub(crate) use claims::{Pair, Settlement};
pub use collect::{Collected, TOMBSTONE_AGE_MS};
pub use history::Revision;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use keep::fuzz_stored;
pub use merge::Merged;
pub(crate) use merge::pair;
pub use records::Records;
#[cfg(test)]
pub(crate) use restore::forged;
pub(crate) use restore::{Stored, stored};
pub use view::{Conflict, DocumentView, Sibling};
pub use write::{Edit, GROUP_MAX, WriteMeta, WriteRequest, Written};

use crate::{
    backend::{Batch, Storage, StorageStats},
    context::{Clock, Context},
    error::StoreError,
    hlc::Hlc,
    id::{DocKey, Dot, Incarnation, StoreId, head, sha256},
    mutation::Mutation,
    op::{Limits, SignedOp},
    replica::{
        claims::Pending,
        history::{Counts, History},
        idempotency::Outcomes,
        keep::Meta,
    },
    sign::{Author, Authority, OriginRecord},
    store::{Delta, Store},
};

/// One node's copy of the replicated store, and the small tables that the node keeps for itself.
///
/// Synchronous: calls that write wait for the disk, so it belongs on a thread of its own.
pub struct Replica {
    storage: Box<dyn Storage>,
    authority: Arc<dyn Authority>,
    store: Store,
    life: Life,
    seed: [u8; 16],
    boot_mark: [u8; 16],
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    outcomes: Outcomes,
    history: History,
    pending: Pending,
    /// True once the floor is on disk; a database of before has none.
    has_floor: bool,
    counters: Counters,
    /// The life that the database names, also where a new one began.
    #[cfg(feature = "mutations")]
    former: Option<Life>,
    #[cfg(feature = "mutations")]
    mutations: std::collections::BTreeSet<Mutation>,
}

/// Who this replica is as a writer, and how far it has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    incarnation: Incarnation,
    counter: u64,
    /// How many incarnations were minted from this process's seed.
    mints: u32,
}

/// Counts since the replica was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Ops written here.
    pub written: u64,
    /// Ops taken from peers.
    pub merged: u64,
    /// Ops from peers that were here already.
    pub duplicates: u64,
    /// Ops refused, by [`crate::Refusal::label`].
    pub refused: BTreeMap<&'static str, u64>,
    /// Second ops under a dot: a writer signed two histories. A person must look at that node.
    pub equivocations: u64,
    /// Ops stamped more than a minute ahead of the clock here.
    pub clock_suspects: u64,
    /// Times this replica took a new incarnation, the first one included.
    pub incarnations: u64,
    /// Conversations that ended with equal contexts and different roots.
    pub root_mismatches: u64,
    /// Tombstones let go of here.
    pub collected: u64,
    /// Ops removed because peers had seen them and their deletion.
    pub claims_applied: u64,
    /// Such claims that wait for another peer to say the same; one that is made in several conversations counts in each.
    pub claims_pending: u64,
    /// Batches that the storage refused.
    pub storage_failures: u64,
}

/// The state of a replica in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Documents that exist.
    pub documents: usize,
    /// Documents with a conflict, or deleted by someone who had not seen their latest edit.
    pub conflicts: usize,
    /// Documents of which only a tombstone is left.
    pub tombstones: usize,
    /// Live ops.
    pub ops: usize,
    /// Bytes of live ops.
    pub live_bytes: usize,
    /// Origins ever seen.
    pub origins: usize,
    /// Claims of deletion that wait for another peer to make them.
    pub pending_claims: usize,
    /// Ranges of seen dots beyond a gap; 0 when all is contiguous.
    pub gaps: usize,
    /// The visible root.
    pub root: [u8; 16],
    /// The hash of the causal context.
    pub context_hash: [u8; 8],
    /// This replica's own life.
    pub incarnation: Incarnation,
    /// Ops written in this life.
    pub counter: u64,
}

impl Replica {
    /// Opens the store `global` of a mesh with the default limits. `random` are 16 bytes from the system's generator,
    /// new for each call; a new life is drawn from them where one is due. `now_ms` are milliseconds since 1970.
    ///
    /// All that is stored is read and checked: checksums, context, root. A new life begins where the database is new,
    /// was put back from a copy, or the node's key has changed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for content that contradicts itself, [`StoreError::OtherStore`], [`StoreError::Newer`],
    /// and whatever the storage says.
    pub fn open(
        storage: Box<dyn Storage>,
        authority: Arc<dyn Authority>,
        mesh: &str,
        random: [u8; 16],
        now_ms: u64,
    ) -> Result<Self, StoreError> {
        Self::open_with(storage, authority, StoreId::global(mesh), Limits::default(), random, now_ms)
    }

    /// Like [`Replica::open`], for any store and limits.
    ///
    /// # Errors
    /// As [`Replica::open`]; [`StoreError::Invalid`] for a mesh or store name that is empty or over 255 bytes.
    pub fn open_with(
        storage: Box<dyn Storage>,
        authority: Arc<dyn Authority>,
        id: StoreId,
        limits: Limits,
        random: [u8; 16],
        now_ms: u64,
    ) -> Result<Self, StoreError> {
        if !crate::op::is_name(&id.mesh, 255) || !crate::op::is_name(&id.store, 255) {
            return Err(StoreError::Invalid { what: "name of mesh or store" });
        }
        let loaded = keep::load(storage.as_ref(), id, limits)?;
        let mark_beside = storage.boot_mark()?;
        if loaded.meta.is_none() && mark_beside.is_some() {
            return Err(StoreError::Damaged("the database is empty and was not empty before".to_owned()));
        }
        let mut replica = Self {
            storage,
            authority,
            store: loaded.store,
            life: Life { incarnation: Incarnation::from_bytes([0; 16]), counter: 0, mints: 0 },
            seed: random,
            boot_mark: head(&sha256(&[b"marram-boot-mark", &random])),
            records: loaded.records,
            outcomes: loaded.outcomes,
            history: History::default(),
            pending: Pending::new(),
            has_floor: loaded.has_floor,
            counters: Counters::default(),
            #[cfg(feature = "mutations")]
            former: None,
            #[cfg(feature = "mutations")]
            mutations: std::collections::BTreeSet::new(),
        };
        #[cfg(feature = "mutations")]
        if let Some(meta) = &loaded.meta {
            replica.former = Some(Life { incarnation: meta.incarnation, counter: meta.counter, mints: 0 });
        }
        let own_key = replica.authority.public_key();
        let kept = loaded.meta.filter(|meta| {
            let is_own = replica.store.origin(&meta.incarnation).is_none_or(|o| o.record.public_key == own_key);
            is_own && mark_beside == Some(meta.boot_mark)
        });
        replica.life = match kept {
            Some(meta) => Life { incarnation: meta.incarnation, counter: meta.counter, mints: 0 },
            None => {
                replica.counters.incarnations = 1;
                replica.next_life()
            }
        };
        replica.outcomes.expire(now_ms);
        replica.leave_mark(mark_beside);
        Ok(replica)
    }

    /// Leaves a new mark inside the database and beside it, so that a copy put back later is known as one.
    fn leave_mark(&mut self, mark_beside: Option<[u8; 16]>) {
        // The mark inside goes first: a crash between the two costs a new life and nothing else. A disk that takes no
        // writes must not keep a node from starting with the policy it has. The old mark then stands, or a new life
        // that was not written down and not used either; the next write stores it.
        self.store.begin();
        let left = self.keep(self.life, Batch::new()).and_then(|_| Ok(self.storage.set_boot_mark(self.boot_mark)?));
        if let Err(error) = left {
            tracing::error!(%error, "database takes no writes; going on with what it holds");
            self.boot_mark = mark_beside.unwrap_or(self.boot_mark);
        }
    }

    /// This replica's own life; it may change when a peer shows that ours was used before.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.life.incarnation
    }

    /// Which store this is.
    #[must_use]
    pub const fn store_id(&self) -> &StoreId {
        &self.store.id
    }

    /// The limits in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.store.limits
    }

    /// Hash of everything visible; equal on replicas that have seen the same ops.
    #[must_use]
    pub fn root(&self) -> [u8; 16] {
        self.store.root()
    }

    /// Hash of the causal context, for gossip: with equal roots and hashes there is nothing to talk about.
    #[must_use]
    pub fn context_hash(&self) -> [u8; 8] {
        self.store.context.hash()
    }

    /// Everything this replica has seen.
    #[must_use]
    pub const fn context(&self) -> &Context {
        &self.store.context
    }

    /// Up to where tombstones were collected, here or at peers whose state was taken over: a peer that has not seen all
    /// of it may hold what was deleted, and compares documents before it is told everything.
    #[must_use]
    pub const fn floor(&self) -> &Clock {
        &self.store.floor
    }

    /// Hash of the floor, for gossip.
    #[must_use]
    pub fn floor_hash(&self) -> [u8; 8] {
        let mut bytes = b"marram-floor".to_vec();
        for (origin, counter) in &self.store.floor.dots {
            bytes.extend_from_slice(origin.as_bytes());
            bytes.extend_from_slice(&counter.to_be_bytes());
        }
        head(&sha256(&[&bytes]))
    }

    /// Breaks a rule from here on, for simulations that prove that they notice.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: Mutation) {
        self.mutations.insert(mutation);
        if let Some(former) = self.former.take().filter(|_| mutation == Mutation::KeepIncarnation) {
            // As if the open had not noticed that the database was put back from a copy.
            self.store.begin();
            if let Err(error) = self.keep(former, Batch::new()) {
                tracing::error!(%error, "the former life was not written down");
            }
        }
    }

    #[cfg(feature = "mutations")]
    pub(crate) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutations.contains(&mutation)
    }

    #[cfg(not(feature = "mutations"))]
    #[expect(clippy::unused_self, reason = "the same call with the feature asks the replica")]
    pub(crate) const fn is_mutated(&self, _: Mutation) -> bool {
        false
    }

    /// One op as it was signed, while it is live.
    #[must_use]
    pub fn signed_op(&self, dot: Dot) -> Option<&SignedOp> {
        self.store.held(dot).map(|held| &held.signed)
    }

    /// Who wrote under a life.
    #[must_use]
    pub fn author(&self, origin: &Incarnation) -> Option<&Author> {
        self.store.origin(origin).map(|origin| &origin.author)
    }

    /// The state, for a conversation.
    pub(crate) const fn store(&self) -> &Store {
        &self.store
    }

    /// The record that ties a life to its node.
    pub(crate) fn origin_record(&self, origin: &Incarnation) -> Option<&OriginRecord> {
        self.store.origin(origin).map(|origin| &origin.record)
    }

    /// Every live op's stamp, with the time to send them by.
    pub(crate) fn live_dots(&self) -> Vec<(Hlc, Dot)> {
        self.store.ops().map(|held| (held.hlc, held.dot)).collect()
    }

    /// Every document that exists, by key.
    pub fn documents(&self) -> impl Iterator<Item = DocumentView> {
        self.store.keys().filter_map(|key| self.document(&key))
    }

    /// How many documents there are, those of which only a tombstone is left included.
    #[must_use]
    pub fn held_documents(&self) -> usize {
        self.store.document_count()
    }

    /// One document; `None` where it does not exist or was deleted.
    #[must_use]
    pub fn document(&self, key: &DocKey) -> Option<DocumentView> {
        view::view(&self.store, key)
    }

    /// The state in numbers; reads every document.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let (mut documents, mut conflicts, mut tombstones) = (0, 0, 0);
        for key in self.store.keys() {
            match self.store.read(&key) {
                Some(reading) => {
                    documents += 1;
                    conflicts += usize::from(!reading.conflicts.is_empty() || reading.is_deleted_concurrently);
                }
                None => tombstones += 1,
            }
        }
        Summary {
            documents,
            conflicts,
            tombstones,
            ops: self.store.ops().count(),
            live_bytes: self.store.live_bytes,
            origins: self.store.context.origin_count(),
            pending_claims: self.pending.len(),
            gaps: self.store.context.range_count(),
            root: self.root(),
            context_hash: self.context_hash(),
            incarnation: self.life.incarnation,
            counter: self.life.counter,
        }
    }

    /// Counts since opening.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Sizes of the database.
    #[must_use]
    pub fn storage_stats(&self) -> StorageStats {
        self.storage.stats()
    }

    /// The node's own tables, kept beside the store and never replicated.
    pub fn records(&mut self) -> Records<'_> {
        Records::new(self)
    }

    /// Syncs and closes the database.
    ///
    /// # Errors
    /// Whatever the storage says; everything acknowledged is durable anyway.
    pub fn close(self) -> Result<(), StoreError> {
        Ok(self.storage.close()?)
    }

    /// The life after this one, drawn from the seed of this process; never one that was heard of before, also where a
    /// caller breaks the rule and hands in the same seed twice.
    fn next_life(&self) -> Life {
        let mut life = self.life;
        let is_used =
            |life: Life| life.incarnation == self.life.incarnation || self.store.context.highest(&life.incarnation) > 0;
        while is_used(life) {
            let mints = life.mints.saturating_add(1);
            let hash = sha256(&[b"marram-incarnation", &self.seed, &mints.to_be_bytes()]);
            life = Life { incarnation: Incarnation::from_bytes(head(&hash)), counter: 0, mints };
        }
        life
    }

    /// The life to go on with once someone has shown ops under our name that we do not know: our disk went back in
    /// time, and counting on would put two ops under one dot.
    fn life_after(&self, seen: u64) -> Life {
        if seen <= self.life.counter {
            return self.life;
        }
        if self.is_mutated(Mutation::KeepIncarnation) {
            return Life { counter: seen, ..self.life };
        }
        tracing::warn!(
            seen,
            own = self.life.counter,
            "peers know ops of ours that we do not; taking a new incarnation"
        );
        self.next_life()
    }

    /// Our record under a life, known to the store or made now.
    fn own_origin(&self, life: Life) -> Result<Option<(OriginRecord, Author)>, StoreError> {
        if let Some(known) = self.store.origin(&life.incarnation) {
            return if known.author.may_author { Ok(None) } else { Err(StoreError::NotAuthor) };
        }
        let record = OriginRecord::issue(&self.store.id, life.incarnation, self.authority.as_ref());
        let author = record
            .admit(&self.store.id, self.authority.as_ref())
            .map_err(|reason| StoreError::NotAdmitted { reason })?;
        if !author.may_author {
            return Err(StoreError::NotAuthor);
        }
        Ok(Some((record, author)))
    }

    /// Ends the store's open transaction: durable and kept, or failed and undone. On success `life` is ours.
    fn keep(&mut self, life: Life, extra: Batch) -> Result<Delta, StoreError> {
        let delta = self.store.delta();
        match self.apply(life, &delta, extra) {
            Ok(counts) => {
                self.store.commit();
                self.counters.incarnations += u64::from(life.incarnation != self.life.incarnation);
                self.life = life;
                self.has_floor = true;
                self.history.commit(counts);
                self.drop_settled_claims(&delta.documents);
                Ok(delta)
            }
            Err(error) => {
                self.store.roll_back();
                self.counters.storage_failures += 1;
                Err(error)
            }
        }
    }

    fn apply(&mut self, life: Life, delta: &Delta, mut extra: Batch) -> Result<Counts, StoreError> {
        let meta = Meta::new(&self.store, life.incarnation, life.counter, self.boot_mark);
        let counts = self.history.note(self.storage.as_ref(), &self.store, &delta.entered, &mut extra)?;
        let batch = keep::batch(&self.store, &meta, delta, !self.has_floor, extra)?;
        self.storage.apply(&batch)?;
        Ok(counts)
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("store", &self.store.id).field("life", &self.life).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Replica {
    pub(crate) fn op(&self, dot: Dot) -> Option<Arc<crate::Op>> {
        let signed = self.signed_op(dot)?;
        Some(Arc::new(signed.read(&self.store.id).expect("what is held was read before")))
    }

    /// The dots live in one section; in the sections never named, for an empty name.
    pub(crate) fn section_ops(&self, key: &DocKey, section: &str) -> std::collections::BTreeSet<Dot> {
        self.store.registers(key).live_in(section)
    }
}

#[cfg(test)]
pub(crate) mod tests;
