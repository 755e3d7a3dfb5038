//! One conversation between two replicas, pure: bytes in, bytes out.
//!
//! Both sides say `Hello` with all they have seen, send the live ops that the other lacks, oldest first, end with
//! `Fin`, and confirm with `Ack` once everything received is durable. Rules that keep invariant I1:
//!
//! - an op credits its own dot only; the sender's whole context (`Fin.cover`) is credited only when nothing is left to
//!   send, and is computed in the same step that finds this out;
//! - every message names the life of the receiver's store, and one that names another is refused, so that a message
//!   from before a restore cannot credit what was lost;
//! - a receiver that refused an op takes no cover. A conversation that breaks off loses no progress and credits nothing
//!   false.
//!
//! What one side has told is not told again: its cover and its `Ack` say what came since its `Hello`, and the record of
//! an origin travels only to a side that has not said it holds it.
//!
//! A side that has not seen all that the other has collected may hold what was deleted; how that is found out is told in
//! `below`. Until then its listener credits neither coverage nor floor, and asks the next peer.
//!
//! Where contexts are equal and roots are not, each side sends everything it holds live and the other takes what it
//! lacks: an op that was superseded is superseded again.
//!
//! Order of calls: `poll_send` until `None`, then wait for a message; `handle_message`; `poll_send` until `None`; and
//! so on until `is_done`. Reading and writing must not wait for each other: both sides may be sending at once.

mod below;
mod opening;

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    codec::{self, CodecError, Kind},
    context::Context,
    error::{Refusal, StoreError},
    id::{DocKey, Dot, Incarnation},
    mutation::Mutation,
    replica::{Merged, Replica, Settlement, pair},
    store::covers,
    sync::{
        below::{Claimant, Listener, floor_from},
        opening::Opening,
    },
    wire::{Ack, Claims, Digest, Fin, FinBelow, Hello, Lists, OPS_MAX, Ops},
};

/// Sizes of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncConfig {
    /// Bytes of ops in one message, as soon as one op reaches it; 64 KiB. Smaller chunks lose less on a bad link.
    pub chunk_bytes: usize,
    /// Bytes of ops that one side sends in one conversation; 4 MiB. What is left waits for the next one.
    pub budget_bytes: usize,
    /// Peers who must say of an op that it was deleted and its tombstone collected before it is removed here; 1. Such a
    /// claim carries no signature, so 2 are better where there are as many peers. 0 counts as 1.
    pub claims_needed: usize,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self { chunk_bytes: 64 << 10, budget_bytes: 4 << 20, claims_needed: 1 }
    }
}

/// The conversation is over before its end; what was merged until then stays, nothing else is credited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// Bytes that do not decode: the peer is broken or hostile. Close, count, sync with others.
    #[error("sync message is malformed")]
    Malformed(#[source] CodecError),
    /// A message out of turn: the peer is broken or hostile.
    #[error("sync message out of turn")]
    OutOfTurn,
    /// The peer replicates another store; a mistake in somebody's configuration.
    #[error("peer replicates another store")]
    OtherStore,
    /// The peer speaks of things that no honest replica has: the peer is broken or hostile. Close, count, sync with
    /// others.
    #[error("sync message is not plausible: {what}")]
    Implausible {
        /// Which part.
        what: &'static str,
    },
    /// The peer sent more than one conversation takes. Nothing of it was used; a larger store needs a newer program.
    #[error("peer sent too many {what}; the limit is {max}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The message was meant for an earlier life of this store, or this store took a new life meanwhile. Start again.
    #[error("sync message is for another incarnation")]
    OtherIncarnation,
    /// The peer sent an op that no honest replica holds. Close, count, sync with others.
    #[error("peer sent an op that is not acceptable")]
    Hostile(#[source] Refusal),
    /// The store could not keep what came; its state is as it was.
    #[error("store failed during sync")]
    Store(#[source] StoreError),
}

impl SyncError {
    /// A short constant word for a metric's label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::OutOfTurn => "out_of_turn",
            Self::OtherStore => "other_store",
            Self::Implausible { .. } => "implausible",
            Self::TooMuch { .. } => "too_much",
            Self::OtherIncarnation => "other_incarnation",
            Self::Hostile(_) => "hostile",
            Self::Store(_) => "store",
        }
    }
}

impl From<StoreError> for SyncError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What one message changed here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncProgress {
    /// Documents that changed.
    pub changed: Vec<DocKey>,
    /// Ops that were not here before.
    pub new_ops: Vec<Dot>,
    /// Dots under which another op is held here: their author signed two histories.
    pub equivocations: Vec<Dot>,
}

/// How a conversation went, for metrics and for `wait`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncOutcome {
    /// Ops sent.
    pub sent_ops: usize,
    /// Their bytes.
    pub sent_bytes: usize,
    /// Ops received that were new here.
    pub received_ops: usize,
    /// True where this side told everything it had; false where the budget ended first.
    pub is_complete: bool,
    /// True where this side had not seen all that the peer has collected.
    pub is_below_floor: bool,
    /// True where everything was sent because the roots did not match.
    pub is_repair: bool,
    /// All that the peer has durably seen, from its last word.
    pub peer_context: Option<Context>,
    /// The peer's root at that time.
    pub peer_root: Option<[u8; 16]>,
}

/// One side of a conversation.
#[derive(Debug)]
pub struct SyncSession {
    config: SyncConfig,
    /// Who the other side is, for counting who claims what.
    peer_id: [u8; 16],
    is_initiator: bool,
    /// What our `Hello` said; set when it goes out.
    me: Option<Opening>,
    /// What the other side's said.
    peer: Option<Opening>,
    /// Dots to send, the next one last; rebuilt when it runs out.
    queue: Vec<Dot>,
    sent: BTreeSet<Dot>,
    sent_origins: BTreeSet<Incarnation>,
    claimant: Claimant,
    listener: Listener,
    outgoing: Telling,
    incoming: Telling,
    /// An op was refused, so the peer's cover would credit what is not here.
    is_tainted: bool,
    is_over: bool,
    outcome: SyncOutcome,
}

/// How far one direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    /// Ops may follow.
    Open,
    /// `Fin` was said.
    Finished,
    /// And `Ack` was answered.
    Confirmed,
}

impl SyncSession {
    /// The side that opens the stream and speaks first. `peer` are the proven id bytes of the node at the other end.
    #[must_use]
    pub fn initiate(config: SyncConfig, peer: [u8; 16]) -> Self {
        Self::new(config, peer, true)
    }

    /// The side that was called. `peer` are the proven id bytes of the node that called.
    #[must_use]
    pub fn accept(config: SyncConfig, peer: [u8; 16]) -> Self {
        Self::new(config, peer, false)
    }

    fn new(config: SyncConfig, peer_id: [u8; 16], is_initiator: bool) -> Self {
        Self {
            config,
            peer_id,
            is_initiator,
            me: None,
            peer: None,
            queue: Vec::new(),
            sent: BTreeSet::new(),
            sent_origins: BTreeSet::new(),
            claimant: Claimant::default(),
            listener: Listener::default(),
            outgoing: Telling::Open,
            incoming: Telling::Open,
            is_tainted: false,
            is_over: false,
            outcome: SyncOutcome {
                sent_ops: 0,
                sent_bytes: 0,
                received_ops: 0,
                is_complete: false,
                is_below_floor: false,
                is_repair: false,
                peer_context: None,
                peer_root: None,
            },
        }
    }

    /// True once both sides have confirmed, or the conversation broke off: the stream can be closed.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.is_over || matches!((self.outgoing, self.incoming), (Telling::Confirmed, Telling::Confirmed))
    }

    /// How it went so far.
    #[must_use]
    pub const fn outcome(&self) -> &SyncOutcome {
        &self.outcome
    }

    /// Takes one whole message; `now_ms` are milliseconds since 1970. What it brought is durable when this returns.
    ///
    /// # Errors
    /// [`SyncError`]; the conversation is then over.
    pub fn handle_message(
        &mut self,
        replica: &mut Replica,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<SyncProgress, SyncError> {
        let handled = self.dispatch(replica, bytes, now_ms);
        self.is_over |= handled.is_err();
        handled
    }

    /// The next message to send; `None` when it is the other side's turn. Call it until `None` after the start and
    /// after each message.
    pub fn poll_send(&mut self, replica: &Replica) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        if self.is_outlived(replica) {
            // Our `Hello` named a life that is over.
            self.is_over = true;
            return None;
        }
        let message = self.next_message(replica)?;
        // Our own messages always encode; a conversation that cannot speak is over.
        self.is_over |= message.is_err();
        message.ok()
    }

    fn next_message(&mut self, replica: &Replica) -> Option<Result<Bytes, CodecError>> {
        if self.me.is_none() {
            return (self.is_initiator || self.peer.is_some()).then(|| self.hello(replica));
        }
        let to = self.peer.as_ref()?.incarnation;
        if self.incoming == Telling::Finished {
            self.incoming = Telling::Confirmed;
            let Some(context) = self.me.as_ref()?.seen_since(replica) else { return self.break_off() };
            return Some(codec::encode(Kind::Ack, &Ack { to, context, root: replica.root() }));
        }
        if let Some(lists) = self.listener.next_lists(to) {
            return Some(codec::encode(Kind::Lists, &lists));
        }
        if self.outgoing != Telling::Open {
            return None;
        }
        if let Some(claims) = self.claimant.next_claims(to) {
            return Some(codec::encode(Kind::Claims, &claims));
        }
        let chunk = self.next_chunk(replica, to);
        if !chunk.ops.is_empty() {
            return Some(codec::encode(Kind::Ops, &chunk));
        }
        self.ending(replica, to)
    }

    /// What comes when nothing is left at this very moment, or the budget is spent; `None` while lists are due.
    fn ending(&mut self, replica: &Replica, to: Incarnation) -> Option<Result<Bytes, CodecError>> {
        let (me, peer) = (self.me.as_ref()?, self.peer.as_ref()?);
        let is_complete = self.queue.is_empty();
        let is_below = !covers(peer.context.clock(), replica.floor());
        if is_complete && is_below {
            let holds = self.claimant.holds(replica.floor(), peer.context.clock());
            // An op of several documents may bring one back that was deleted, also where nothing was there.
            let has_nothing = peer.is_empty && holds && !self.claimant.has_sent_shared;
            if !self.claimant.has_asked() && !has_nothing {
                let buckets = self.claimant.ask(replica);
                return Some(codec::encode(Kind::Digest, &Digest { to, buckets }));
            }
            if self.claimant.is_waiting() {
                return None;
            }
            if holds {
                let (Some(cover), Some(floor)) = (me.seen_since(replica), me.collected_since(replica)) else {
                    return self.break_off();
                };
                (self.outgoing, self.outcome.is_complete) = (Telling::Finished, true);
                return Some(codec::encode(Kind::FinBelow, &FinBelow { to, cover, floor }));
            }
        }
        let Some(seen) = me.seen_since(replica) else { return self.break_off() };
        // Tombstones that were collected while we spoke may concern what the peer did not list: next time.
        (self.outgoing, self.outcome.is_complete) = (Telling::Finished, is_complete);
        let cover = (is_complete && !is_below).then_some(seen);
        Some(codec::encode(Kind::Fin, &Fin { to, cover }))
    }

    /// Ends a conversation in which our `Hello` says more than is here now, so that nothing can be said on top of it.
    const fn break_off<T>(&mut self) -> Option<T> {
        self.is_over = true;
        None
    }

    fn hello(&mut self, replica: &Replica) -> Result<Bytes, CodecError> {
        let me = Opening::of(replica);
        let hello = codec::encode(Kind::Hello, &me.hello(replica));
        self.me = Some(me);
        hello
    }

    /// The next ops, oldest first; none when nothing is left or the budget is spent.
    fn next_chunk(&mut self, replica: &Replica, to: Incarnation) -> Ops {
        let mut chunk = Ops { to, is_repair: self.outcome.is_repair, origins: Vec::new(), ops: Vec::new() };
        if self.queue.is_empty() {
            self.queue = self.missing(replica);
        }
        let mut bytes = 0;
        let is_in_budget = |sent: usize| self.outcome.is_repair || sent < self.config.budget_bytes;
        while bytes < self.config.chunk_bytes && chunk.ops.len() < OPS_MAX && is_in_budget(self.outcome.sent_bytes) {
            let Some(dot) = self.queue.pop() else { break };
            // Superseded since the queue was built: what superseded it comes when the queue is built again.
            let Some(signed) = replica.signed_op(dot) else { continue };
            bytes += signed.weight();
            self.outcome.sent_bytes += signed.weight();
            self.outcome.sent_ops += 1;
            self.sent.insert(dot);
            self.claimant.note_sent(replica, dot);
            chunk.ops.push(signed.clone());
            if self.peer.as_ref().is_some_and(|peer| !peer.records.contains(&dot.origin))
                && self.sent_origins.insert(dot.origin)
                && let Some(record) = replica.origin_record(&dot.origin)
            {
                chunk.origins.push(record.clone());
            }
        }
        if chunk.ops.is_empty() && is_in_budget(self.outcome.sent_bytes) {
            // All that was queued has been superseded; look again, so that `Fin` is said only when nothing is left.
            self.queue = self.missing(replica);
            if !self.queue.is_empty() {
                return self.next_chunk(replica, to);
            }
        }
        chunk
    }

    /// Live ops that the peer lacks and was not sent, newest first.
    fn missing(&self, replica: &Replica) -> Vec<Dot> {
        let Some(peer) = &self.peer else { return Vec::new() };
        let mut dots = replica.live_dots();
        // In a repair, an op of several documents would bring back the one in which it was deleted and the tombstone
        // collected: the peer has seen it, so nobody would claim it there.
        let is_due = |dot: Dot| match self.outcome.is_repair {
            true => replica.store().held(dot).is_some_and(|held| held.gone.is_empty()),
            false => !peer.context.contains(dot),
        };
        dots.retain(|(_, dot)| is_due(*dot) && !self.sent.contains(dot));
        dots.sort_unstable_by(|a, b| b.cmp(a));
        dots.into_iter().map(|(_, dot)| dot).collect()
    }

    fn dispatch(&mut self, replica: &mut Replica, bytes: &[u8], now_ms: u64) -> Result<SyncProgress, SyncError> {
        if self.is_over {
            return Err(SyncError::OutOfTurn);
        }
        let kind = codec::frame_kind(bytes);
        let is = |wanted: Kind| kind == Some(wanted as u8);
        if self.peer.is_none() {
            let hello = codec::decode(Kind::Hello, bytes).map_err(SyncError::Malformed)?;
            return self.handle_hello(replica, &hello);
        }
        if is(Kind::Ops) {
            let ops = codec::decode(Kind::Ops, bytes).map_err(SyncError::Malformed)?;
            return self.handle_ops(replica, ops, now_ms);
        }
        if is(Kind::Fin) {
            let fin = codec::decode(Kind::Fin, bytes).map_err(SyncError::Malformed)?;
            return self.handle_fin(replica, &fin);
        }
        if is(Kind::Digest) {
            let digest: Digest = codec::decode(Kind::Digest, bytes).map_err(SyncError::Malformed)?;
            self.check_turn(replica, digest.to)?;
            self.listener.handle_digest(replica, &digest.buckets)?;
            return Ok(SyncProgress::default());
        }
        if is(Kind::Lists) {
            let lists: Lists = codec::decode(Kind::Lists, bytes).map_err(SyncError::Malformed)?;
            Self::check_life(replica, lists.to)?;
            self.claimant.handle_lists(replica, lists)?;
            return Ok(SyncProgress::default());
        }
        if is(Kind::Claims) {
            let claims: Claims = codec::decode(Kind::Claims, bytes).map_err(SyncError::Malformed)?;
            self.check_turn(replica, claims.to)?;
            self.listener.handle_claims(claims)?;
            return Ok(SyncProgress::default());
        }
        if is(Kind::FinBelow) {
            let fin = codec::decode(Kind::FinBelow, bytes).map_err(SyncError::Malformed)?;
            return self.handle_fin_below(replica, &fin);
        }
        let ack = codec::decode(Kind::Ack, bytes).map_err(SyncError::Malformed)?;
        self.handle_ack(replica, &ack)
    }

    fn handle_hello(&mut self, replica: &mut Replica, hello: &Hello) -> Result<SyncProgress, SyncError> {
        if hello.store != *replica.store_id() {
            return Err(SyncError::OtherStore);
        }
        let peer = Opening::heard(hello)?;
        replica.heed(&peer.context)?;
        if self.is_outlived(replica) {
            return Err(SyncError::OtherIncarnation);
        }
        self.outcome.is_below_floor = !covers(replica.context().clock(), &peer.floor);
        if peer.context == *replica.context() && hello.root != replica.root() {
            tracing::warn!("contexts are equal and roots are not; exchanging everything");
            replica.count_root_mismatch();
            self.outcome.is_repair = true;
        }
        self.claimant.begin(replica);
        self.peer = Some(peer);
        Ok(SyncProgress::default())
    }

    fn handle_ops(&mut self, replica: &mut Replica, ops: Ops, now_ms: u64) -> Result<SyncProgress, SyncError> {
        self.check_turn(replica, ops.to)?;
        self.listener.told.extend(ops.ops.iter().filter_map(|op| crate::op::dot_of(&op.bytes)));
        let merged: Merged = replica.merge_with(pair(ops.origins, ops.ops), ops.is_repair, now_ms)?;
        if replica.is_mutated(Mutation::CreditPerChunk)
            && let Some(peer) = &self.peer
        {
            replica.credit(&peer.context)?;
        }
        self.outcome.received_ops += merged.new_ops.len();
        self.is_tainted |= !merged.refused.is_empty();
        let is_hostile =
            |(dot, refusal): &(Option<Dot>, Refusal)| refusal.is_hostile() && !self.has_misled(*dot, refusal);
        if let Some((_, refusal)) = merged.refused.into_iter().find(is_hostile) {
            return Err(SyncError::Hostile(refusal));
        }
        Ok(SyncProgress { changed: merged.new, new_ops: merged.new_ops, equivocations: merged.equivocations })
    }

    /// True where an op came without the record of its origin because we said that we hold it. The peer did right; the
    /// next conversation begins with what is here now.
    fn has_misled(&self, dot: Option<Dot>, refusal: &Refusal) -> bool {
        let said = |dot: Dot| self.me.as_ref().is_some_and(|me| me.records.contains(&dot.origin));
        matches!(refusal, Refusal::UnknownOrigin) && dot.is_some_and(said)
    }

    fn handle_fin(&mut self, replica: &mut Replica, fin: &Fin) -> Result<SyncProgress, SyncError> {
        self.check_turn(replica, fin.to)?;
        let Some(peer) = &self.peer else { return Err(SyncError::OutOfTurn) };
        self.incoming = Telling::Finished;
        if let Some(growth) = &fin.cover {
            let cover = peer.context_after(growth)?;
            if !self.is_tainted {
                replica.credit(&cover)?;
            }
        }
        Ok(SyncProgress::default())
    }

    fn handle_fin_below(&mut self, replica: &mut Replica, fin: &FinBelow) -> Result<SyncProgress, SyncError> {
        self.check_turn(replica, fin.to)?;
        let (Some(me), Some(peer)) = (&self.me, &self.peer) else { return Err(SyncError::OutOfTurn) };
        if !me.is_empty && !self.listener.has_answered() {
            return Err(SyncError::OutOfTurn);
        }
        self.incoming = Telling::Finished;
        let cover = peer.context_after(&fin.cover)?;
        let floor = floor_from(&peer.floor, &fin.floor, cover.clock())?;
        if self.is_tainted {
            return Ok(SyncProgress::default());
        }
        let changed = replica.settle(&Settlement {
            peer: self.peer_id,
            needed: self.config.claims_needed,
            claims: &self.listener.claims,
            cover: &cover,
            floor: &floor,
            before: &me.context,
            told: &self.listener.told,
        })?;
        Ok(SyncProgress { changed, ..SyncProgress::default() })
    }

    fn handle_ack(&mut self, replica: &Replica, ack: &Ack) -> Result<SyncProgress, SyncError> {
        if self.outgoing != Telling::Finished {
            return Err(SyncError::OutOfTurn);
        }
        Self::check_life(replica, ack.to)?;
        let Some(peer) = &self.peer else { return Err(SyncError::OutOfTurn) };
        let context = peer.context_after(&ack.context)?;
        self.outgoing = Telling::Confirmed;
        self.outcome.peer_context = Some(context);
        self.outcome.peer_root = Some(ack.root);
        Ok(SyncProgress::default())
    }

    fn check_turn(&self, replica: &Replica, to: Incarnation) -> Result<(), SyncError> {
        if self.me.is_none() || self.incoming != Telling::Open {
            return Err(SyncError::OutOfTurn);
        }
        Self::check_life(replica, to)
    }

    fn check_life(replica: &Replica, to: Incarnation) -> Result<(), SyncError> {
        if to != replica.incarnation() && !replica.is_mutated(Mutation::UnboundSessions) {
            return Err(SyncError::OtherIncarnation);
        }
        Ok(())
    }

    /// True where our `Hello` named a life that is over.
    fn is_outlived(&self, replica: &Replica) -> bool {
        let is_over = self.me.as_ref().is_some_and(|me| me.incarnation != replica.incarnation());
        is_over && !replica.is_mutated(Mutation::UnboundSessions)
    }
}

#[cfg(test)]
mod tests;
