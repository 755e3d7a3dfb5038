//! Taking what peers have: ops one by one, and coverage at the end of a conversation.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    backend::Batch,
    codec::{self, Kind},
    context::Context,
    error::{Refusal, StoreError},
    id::{DocKey, Dot},
    mutation::Mutation,
    op::SignedOp,
    replica::Replica,
    sign::OriginRecord,
    store::{Held, Reception},
    wire::Push,
};

/// What came of a merge; durable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merged {
    /// Documents that changed in some way.
    pub new: Vec<DocKey>,
    /// Ops that were not here before and are live now; worth passing on.
    pub new_ops: Vec<Dot>,
    /// Ops that were here already, or that something here had superseded.
    pub duplicates: usize,
    /// Ops not taken, and why; no dot where the bytes did not even read.
    pub refused: Vec<(Option<Dot>, Refusal)>,
    /// Dots under which a second op came: their writer signed two histories.
    pub equivocations: Vec<Dot>,
    /// There are gaps in what was seen; a conversation with the sender closes them.
    pub has_gaps: bool,
}

impl Replica {
    /// Merges ops from a peer in one durable batch; `now_ms` are milliseconds since 1970.
    ///
    /// Each op is checked by itself, and a bad one does not keep the others out. The record of an origin is needed with
    /// its first op only.
    ///
    /// # Errors
    /// Only what the storage says; then nothing of it was merged.
    pub fn merge(&mut self, ops: Vec<(Option<OriginRecord>, SignedOp)>, now_ms: u64) -> Result<Merged, StoreError> {
        self.merge_with(ops, false, now_ms)
    }

    /// Merges a message of [`Replica::encode_push`].
    ///
    /// # Errors
    /// [`StoreError::Malformed`] for bytes that are not such a message; else as [`Replica::merge`].
    pub fn merge_push(&mut self, bytes: &[u8], now_ms: u64) -> Result<Merged, StoreError> {
        let push: Push = codec::decode(Kind::Push, bytes).map_err(StoreError::Malformed)?;
        self.merge_with(pair(push.origins, push.ops), false, now_ms)
    }

    /// The message that carries these ops to peers, oldest first, with the records of their origins. Ops that are not
    /// live are left out, and so is what does not fit one message; anti-entropy brings it. Empty for nothing.
    #[must_use]
    pub fn encode_push(&self, dots: &[Dot]) -> Bytes {
        let mut held: Vec<_> = dots.iter().filter_map(|dot| self.store.held(*dot)).collect();
        held.sort_by_key(|held| (held.hlc, held.dot));
        let mut push = Push::default();
        let mut room = codec::FRAME_BYTES_MAX / 2;
        for held in held {
            room = room.saturating_sub(held.signed.weight());
            if room == 0 {
                break;
            }
            push.ops.push(held.signed.clone());
            let origin = self.store.origin(&held.dot.origin);
            let is_listed = push.origins.iter().any(|record| record.incarnation == held.dot.origin);
            if let Some(origin) = origin.filter(|_| !is_listed) {
                room = room.saturating_sub(crate::sign::CHAIN_BYTES_MAX);
                push.origins.push(origin.record.clone());
            }
        }
        if push.ops.is_empty() {
            return Bytes::new();
        }
        codec::encode(Kind::Push, &push).unwrap_or_default()
    }

    /// Merges ops; with `is_repair` also those that the context claims to have seen and that are not held.
    pub(crate) fn merge_with(
        &mut self,
        ops: Vec<(Option<OriginRecord>, SignedOp)>,
        is_repair: bool,
        now_ms: u64,
    ) -> Result<Merged, StoreError> {
        let mut merged = Merged::default();
        let mut life = self.life;
        let mut is_changed = false;
        self.store.begin();
        for (record, signed) in ops {
            match self.store.receive(record.as_ref(), signed, is_repair, self.authority.as_ref(), now_ms) {
                Reception::New(dot) => {
                    merged.new_ops.push(dot);
                    is_changed = true;
                    if life == self.life {
                        life = self.life_after(self.shown_by(dot));
                    }
                }
                Reception::Duplicate => merged.duplicates += 1,
                Reception::Equivocation { dot, is_replaced } => {
                    merged.equivocations.push(dot);
                    is_changed |= is_replaced;
                    // Somebody writes under our life; the next dots would be used twice as well.
                    if dot.origin == life.incarnation && !self.is_mutated(Mutation::KeepIncarnation) {
                        life = self.next_life();
                        is_changed = true;
                    }
                }
                Reception::Refused(dot, refusal) => merged.refused.push((dot, refusal)),
            }
        }
        self.count_refusals(&merged);
        merged.has_gaps = self.store.context.range_count() > 0;
        if !is_changed {
            self.store.roll_back();
            return Ok(merged);
        }
        merged.new = self.keep(life, Batch::new())?.documents;
        self.counters.merged += u64::try_from(merged.new_ops.len()).unwrap_or(u64::MAX);
        merged.new_ops.retain(|dot| self.store.held(*dot).is_some());
        let is_suspect = |dot: &&Dot| self.store.held(**dot).is_some_and(|held| held.is_clock_suspect);
        self.counters.clock_suspects +=
            u64::try_from(merged.new_ops.iter().filter(is_suspect).count()).unwrap_or(u64::MAX);
        Ok(merged)
    }

    /// How far our life has counted, by an op that came in: as its origin, or as what its author had seen.
    fn shown_by(&self, dot: Dot) -> u64 {
        let me = self.life.incarnation;
        let own = if dot.origin == me { dot.counter } else { 0 };
        let changes = self.store.held(dot).into_iter().flat_map(Held::changes);
        changes.map(|change| change.past().get(&me)).max().unwrap_or(0).max(own)
    }

    /// Credits what a peer has seen, at the end of a conversation in which it sent all that was missing here.
    pub(crate) fn credit(&mut self, cover: &Context) -> Result<(), StoreError> {
        let life = self.life_after(cover.highest(&self.life.incarnation));
        if life == self.life && self.store.context.covers(cover) {
            return Ok(());
        }
        self.store.begin();
        self.store.context.merge(cover);
        if self.store.context.origin_count() > self.store.limits.origins
            || self.store.context.range_count() > self.store.limits.cloud_ranges
        {
            // Crediting less than was offered is always safe; the ops themselves are here.
            self.store.roll_back();
            return Ok(());
        }
        self.keep(life, Batch::new()).map(drop)
    }

    /// Takes note of what a peer has seen before anything is exchanged: if that includes ops of this life that are not
    /// known here, this life is over.
    pub(crate) fn heed(&mut self, theirs: &Context) -> Result<(), StoreError> {
        if self.is_mutated(Mutation::KeepIncarnation) {
            return Ok(());
        }
        let life = self.life_after(theirs.highest(&self.life.incarnation));
        if life == self.life {
            return Ok(());
        }
        self.store.begin();
        self.keep(life, Batch::new()).map(drop)
    }

    pub(crate) const fn count_root_mismatch(&mut self) {
        self.counters.root_mismatches += 1;
    }

    fn count_refusals(&mut self, merged: &Merged) {
        self.counters.duplicates += u64::try_from(merged.duplicates).unwrap_or(u64::MAX);
        self.counters.equivocations += u64::try_from(merged.equivocations.len()).unwrap_or(u64::MAX);
        for (dot, refusal) in &merged.refused {
            tracing::debug!(?dot, %refusal, "op refused");
            *self.counters.refused.entry(refusal.label()).or_default() += 1;
        }
        for dot in &merged.equivocations {
            tracing::error!(%dot, "a writer signed two different ops under one stamp");
        }
    }
}

/// Each op with the record of its origin, where the message brings one.
pub(crate) fn pair(origins: Vec<OriginRecord>, ops: Vec<SignedOp>) -> Vec<(Option<OriginRecord>, SignedOp)> {
    let by_life: BTreeMap<_, _> = origins.into_iter().map(|record| (record.incarnation, record)).collect();
    ops.into_iter()
        .map(|signed| {
            let dot = crate::op::dot_of(&signed.bytes);
            (dot.and_then(|dot| by_life.get(&dot.origin).cloned()), signed)
        })
        .collect()
}
