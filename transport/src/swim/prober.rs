//! The machine: who is probed when, and what follows when nobody answers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

use super::config::SwimConfig;
use super::health::LocalHealth;
use super::member::{Liveness, Member, VerdictReason};
use super::message::{Body, Packet, Status, UPDATES_MAX, Update};
use super::updates::{Updates, transmissions};
use crate::id::NodeId;
use crate::vivaldi::Coord;

/// What the links or the catalog know of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerChange {
    /// A node exists, or its link just came up: it is probed at once unless it is alive already.
    Discovered,
    /// A node was expelled or forgotten: it is removed without a verdict. A packet from it would bring it back.
    Removed,
}

/// What the machine asks its driver to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum SwimOutput {
    /// Send these bytes (at most 1,178) as one datagram; losing them is expected and harmless.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        bytes: Bytes,
    },
    /// What is believed of a member changed.
    Verdict {
        /// Of whom.
        node: NodeId,
        /// To what.
        liveness: Liveness,
        /// The member's incarnation.
        incarnation: u32,
        /// Why.
        reason: VerdictReason,
    },
    /// A member answered a probe.
    Rtt {
        /// Who.
        node: NodeId,
        /// After which time, unfiltered.
        rtt: Duration,
        /// Where it says it is; `None` when it said nothing usable.
        coord: Option<Coord>,
        /// Its load, in its own unit; 0 when it said nothing.
        load: u16,
    },
    /// This node's incarnation rose: keep it, and give it to [`Swim::new`] in the next life.
    Incarnation(u32),
}

/// What was refused or given up, by reason, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwimCounters {
    /// Packets sent.
    pub sent: u64,
    /// Packets heard and understood.
    pub received: u64,
    /// Packets that are not packets.
    pub malformed: u64,
    /// Packets of a version not spoken here.
    pub unknown_version: u64,
    /// Packets of another cell.
    pub wrong_cell: u64,
    /// Packets whose sender is not who the link says.
    pub wrong_sender: u64,
    /// Acks nobody waits for.
    pub stray_acks: u64,
    /// Updates with an incarnation so high that objecting would soon be impossible.
    pub implausible_updates: u64,
    /// Members refused because the list was full.
    pub members_refused: u64,
    /// Requests to probe for others that were refused because too many were under way.
    pub relays_refused: u64,
    /// Probe rounds that ended without an answer.
    pub probes_failed: u64,
    /// Suspicions against this node that it objected to.
    pub refutations: u64,
}

/// The prober of one node. Order of use: any `handle_*`, then [`Swim::poll_output`] until it is `None`, then keep one
/// timer for [`Swim::poll_timeout`]. Early or repeated [`Swim::handle_timeout`] calls change nothing.
#[derive(Debug)]
pub struct Swim {
    pub(super) me: NodeId,
    pub(super) incarnation: u32,
    pub(super) config: SwimConfig,
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) health: LocalHealth,
    pub(super) updates: Updates,
    pub(super) counters: SwimCounters,
    pub(super) outputs: VecDeque<SwimOutput>,
    /// Probes under way by sequence: those of the round, those of absent members, those for others.
    pub(super) pending: BTreeMap<u32, Pending>,
    pub(super) round: Option<Round>,
    pub(super) relays: Vec<Relay>,
    pub(super) has_left: bool,
    /// Updates of the packet being answered: its sender need not hear them again.
    pub(super) told: Vec<Update>,
    /// Members of this turn that were not probed yet, last first.
    turn: Vec<NodeId>,
    absent_turn: Vec<NodeId>,
    /// The member whose state was last repeated.
    repaired: NodeId,
    sequence: u32,
    next_round: Option<Duration>,
    next_absent: Option<Duration>,
    burst_left: usize,
    load: u16,
    coord: Coord,
}

/// A probe whose ack is awaited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) target: NodeId,
    pub(super) sent_at: Duration,
    /// For whom, and under which sequence of theirs.
    pub(super) asked_by: Option<(NodeId, u32)>,
}

/// The probe round under way.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) target: NodeId,
    /// Sequences of the direct probes; the first also names the round to relays.
    pub(super) sequences: Vec<u32>,
    /// When relays are asked; `None` once they were.
    pub(super) ask_at: Option<Duration>,
    pub(super) ends_at: Duration,
    pub(super) relays: Vec<NodeId>,
    pub(super) nacks: Vec<NodeId>,
    pub(super) answered: bool,
}

/// A probe made for somebody else.
#[derive(Debug, Clone, Copy)]
pub(super) struct Relay {
    pub(super) asker: NodeId,
    pub(super) sequence: u32,
    pub(super) target: NodeId,
    pub(super) nack_at: Duration,
}

impl Swim {
    /// A prober that knows nobody. `incarnation` is the last one of an earlier life, or 0.
    pub fn new(me: NodeId, incarnation: u32, config: SwimConfig) -> Self {
        Self {
            me,
            incarnation,
            health: LocalHealth::new(config.health_max),
            burst_left: config.burst,
            config,
            members: BTreeMap::new(),
            updates: Updates::default(),
            counters: SwimCounters::default(),
            outputs: VecDeque::new(),
            pending: BTreeMap::new(),
            round: None,
            relays: Vec::new(),
            has_left: false,
            told: Vec::new(),
            turn: Vec::new(),
            absent_turn: Vec::new(),
            repaired: me,
            sequence: 0,
            next_round: None,
            next_absent: None,
            load: 0,
            coord: Coord::origin(),
        }
    }

    /// The links or the catalog learned of a node, or dropped it.
    pub fn handle_peer(&mut self, now: Duration, node: NodeId, change: PeerChange) {
        self.start(now);
        match change {
            PeerChange::Discovered => self.discover(now, node),
            PeerChange::Removed => self.remove(&node),
        }
    }

    /// Time passed. Carries out whatever is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration, rng: &mut impl Rng) {
        self.start(now);
        self.forgive_own_pause(now);
        self.ask_relays(now, rng);
        self.nack_for_others(now);
        self.ask_suspects(now);
        self.expire_suspicions(now, rng);
        if self.has_left {
            return;
        }
        if self.next_round.is_some_and(|due| due <= now) {
            self.end_round(now, rng);
            self.begin_round(now, rng);
        }
        if self.next_absent.is_some_and(|due| due <= now) {
            self.probe_absent(now, rng);
        }
    }

    /// What acks and probes tell others of this node: its load, in any unit the mesh agrees on, and its coordinate.
    pub fn set_local(&mut self, load: u16, coord: Coord) {
        self.load = load;
        self.coord = coord;
    }

    /// Says goodbye to some members, who pass it on, and stops probing. Probes of others are still answered.
    pub fn leave(&mut self, now: Duration) {
        self.start(now);
        self.has_left = true;
        self.round = None;
        self.pending.clear();
        let goodbye = self.about_me();
        self.updates.push(goodbye);
        let to: Vec<NodeId> = self.members.values().filter(|member| member.is_probed()).map(|m| m.node).collect();
        for node in to.into_iter().take(GOODBYES) {
            self.send(node, Body::News);
        }
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_output(&mut self) -> Option<SwimOutput> {
        self.outputs.pop_front()
    }

    /// When [`Swim::handle_timeout`] wants to be called; `None` before anybody is known.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let suspicions = self.members.values().filter_map(|member| member.suspicion.as_ref());
        let suspicions = suspicions.map(|suspicion| suspicion.due(self.config.period));
        let relays = self.relays.iter().map(|relay| relay.nack_at);
        let round = self.round.as_ref().and_then(|round| round.ask_at);
        let rounds = [self.next_round, self.next_absent].into_iter().flatten().filter(|_| !self.has_left);
        suspicions.chain(relays).chain(round).chain(rounds).min()
    }

    /// All members but this node, in order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One member.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.members.get(node)
    }

    /// This node.
    pub const fn me(&self) -> NodeId {
        self.me
    }

    /// This node's incarnation.
    pub const fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Score of local health: 0 is healthy; periods are stretched by one more than the score.
    pub const fn health(&self) -> u32 {
        self.health.score()
    }

    /// What was sent, refused and given up so far.
    pub const fn counters(&self) -> &SwimCounters {
        &self.counters
    }

    /// Alive and suspect members and this node itself.
    pub(super) fn population(&self) -> usize {
        1 + self.members.values().filter(|member| member.is_probed()).count()
    }

    /// The clock of rounds starts with the first event, at a phase of its own, so that nodes do not tick in step.
    fn start(&mut self, now: Duration) {
        if self.next_round.is_some() {
            return;
        }
        let [.., high, low] = *self.me.as_bytes();
        let phase = self.config.period.mul_f64(f64::from(u16::from_be_bytes([high, low])) / f64::from(u16::MAX));
        self.next_round = Some(now + phase);
        self.next_absent = Some(now + phase);
    }

    /// When the process did not run (a stopped machine, a debugger), nobody had a chance to answer: the round under way
    /// proves nothing, and suspects get the pause added to their time.
    fn forgive_own_pause(&mut self, now: Duration) {
        let Some(late) = self.poll_timeout().and_then(|due| now.checked_sub(due)) else { return };
        if late <= self.config.period {
            return;
        }
        self.round = None;
        self.pending.clear();
        self.relays.clear();
        for suspicion in self.members.values_mut().filter_map(|member| member.suspicion.as_mut()) {
            suspicion.forgive(late);
        }
    }

    fn begin_round(&mut self, now: Duration, rng: &mut impl Rng) {
        self.tidy(now);
        self.burst_left = self.config.burst;
        let period = self.health.stretch(self.config.period);
        self.next_round = Some(now + period);
        let Some(target) = self.next_target(rng) else { return };
        let sequence = self.probe(now, target, None);
        self.round = Some(Round {
            target,
            sequences: vec![sequence],
            ask_at: Some(now + self.timeout(&target).min(period * 8 / 10)),
            ends_at: now + period,
            relays: Vec::new(),
            nacks: Vec::new(),
            answered: false,
        });
    }

    fn end_round(&mut self, now: Duration, rng: &mut impl Rng) {
        let Some(round) = self.round.take() else { return };
        if round.answered {
            return;
        }
        self.counters.probes_failed += 1;
        // Relays that did not even say that they heard nothing tell of a fault here; with nobody to ask, every failed
        // round does.
        let silent = round.relays.len() - round.nacks.len();
        self.health.worsen(if round.relays.is_empty() { 1 } else { saturated(silent) });
        self.accuse(now, &round, rng);
    }

    /// Asks others when the direct probe was not answered, and probes once more itself: one lost packet is no failure.
    fn ask_relays(&mut self, now: Duration, rng: &mut impl Rng) {
        let Some(round) = self.round.as_mut() else { return };
        if round.ask_at.is_none_or(|due| due > now) {
            return;
        }
        round.ask_at = None;
        if round.answered {
            return;
        }
        // Called late, the round is drawn out: relays need their time too.
        let ends_at = round.ends_at.max(now + self.config.period / 5);
        round.ends_at = ends_at;
        let (target, patience) = (round.target, ends_at - now);
        let Some(sequence) = round.sequences.first().copied() else { return };
        self.next_round = self.next_round.map(|due| due.max(ends_at));
        let relays = self.some_alive(self.config.indirect, &[target], rng);
        for relay in &relays {
            self.send(*relay, Body::Ask { sequence, target, patience });
        }
        let again = self.probe(now, target, None);
        if let Some(round) = self.round.as_mut() {
            round.relays = relays;
            round.sequences.push(again);
        }
    }

    fn nack_for_others(&mut self, now: Duration) {
        let (due, waiting) = std::mem::take(&mut self.relays).into_iter().partition(|relay| relay.nack_at <= now);
        self.relays = waiting;
        for Relay { asker, sequence, target, .. } in due {
            self.send(asker, Body::Nack { sequence, target });
        }
    }

    /// The next member in a shuffled order that visits everybody once before anybody twice, which bounds how long a
    /// dead member can stay unnoticed (SWIM, section 4.3).
    fn next_target(&mut self, rng: &mut impl Rng) -> Option<NodeId> {
        for _ in 0..2 {
            while let Some(node) = self.turn.pop() {
                if self.members.get(&node).is_some_and(Member::is_probed) {
                    return Some(node);
                }
            }
            self.turn = self.members.values().filter(|member| member.is_probed()).map(|member| member.node).collect();
            self.turn.shuffle(rng);
        }
        None
    }

    /// A few of those who hear of a new suspect probe it in their next round, so that it does not depend on luck how
    /// soon others agree. A few and not all, or every false alarm would bring a wave of probes.
    pub(super) fn check_soon(&mut self, suspect: NodeId, rng: &mut impl Rng) {
        if rng.random_range(0..self.population()) < CHECKERS {
            self.turn.push(suspect);
        }
    }

    fn probe_absent(&mut self, now: Duration, rng: &mut impl Rng) {
        self.next_absent = Some(now + self.config.period);
        if self.absent_turn.is_empty() {
            let absent = self.members.values().filter(|member| member.is_absent());
            self.absent_turn = absent.map(|member| member.node).collect();
            self.absent_turn.shuffle(rng);
        }
        let mut left = self.config.reprobes;
        while left > 0 {
            let Some(node) = self.absent_turn.pop() else { return };
            if self.members.get(&node).is_some_and(Member::is_absent) {
                self.probe(now, node, None);
                left -= 1;
            }
        }
    }

    /// Probes outside the rounds, as far as the burst allows.
    pub(super) fn probe_soon(&mut self, now: Duration, node: NodeId) {
        if self.burst_left == 0 || self.has_left {
            return;
        }
        self.burst_left -= 1;
        self.probe(now, node, None);
    }

    pub(super) fn probe(&mut self, now: Duration, target: NodeId, asked_by: Option<(NodeId, u32)>) -> u32 {
        while self.pending.len() >= PENDING_MAX {
            self.pending.pop_first();
        }
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.pending.insert(sequence, Pending { target, sent_at: now, asked_by });
        self.send(target, Body::Probe { sequence });
        sequence
    }

    /// How long a direct probe waits before relays are asked: four filtered round trips within bounds, stretched while
    /// this node doubts itself.
    fn timeout(&self, target: &NodeId) -> Duration {
        let rtt = self.members.get(target).and_then(|member| member.round_trips.rtt());
        let (min, max) = (self.config.timeout_min, self.config.timeout_max);
        self.health.stretch(rtt.map_or(max, |rtt| (rtt * 4).clamp(min, max)))
    }

    /// Up to `count` alive members in a random order, without those named.
    pub(super) fn some_alive(&self, count: usize, but: &[NodeId], rng: &mut impl Rng) -> Vec<NodeId> {
        let alive = self.members.values().filter(|member| member.liveness == Liveness::Alive);
        let nodes: Vec<NodeId> = alive.map(|member| member.node).filter(|node| !but.contains(node)).collect();
        nodes.sample(rng, count).copied().collect()
    }

    pub(super) fn send(&mut self, to: NodeId, body: Body) {
        let updates = self.updates_for(&to);
        let packet = Packet {
            cell: self.config.cell,
            from: self.me,
            incarnation: self.incarnation,
            status: Some(Status { load: self.load, coord: Some(self.coord) }),
            body,
            updates,
        };
        self.counters.sent += 1;
        self.outputs.push_back(SwimOutput::Send { to, bytes: packet.encode() });
    }

    /// News for a packet. Whoever is suspected or dead hears that first, so that it can object at once (Lifeguard's
    /// buddy system), and a node that left says so in every packet. Room that is left repairs what rumours missed.
    fn updates_for(&mut self, to: &NodeId) -> Vec<Update> {
        let mut updates = Vec::with_capacity(UPDATES_MAX);
        updates.extend(self.members.get(to).and_then(|member| self.accusation(member)));
        updates.extend(self.has_left.then(|| self.about_me()));
        let limit = transmissions(self.config.retransmit, self.population());
        updates.extend(self.updates.take(UPDATES_MAX - updates.len(), limit, &self.told));
        self.repair(to, &mut updates);
        updates
    }

    /// Adds up to two members that are not alive, in turn. A rumour passed on a few times misses somebody now and then,
    /// in small fleets especially; this way everybody hears of a death within a few packets, and while all are alive it
    /// costs nothing.
    fn repair(&mut self, to: &NodeId, updates: &mut Vec<Update>) {
        let room = REPAIRS.min(UPDATES_MAX.saturating_sub(updates.len()));
        let after = (Bound::Excluded(self.repaired), Bound::Unbounded);
        let in_turn = self.members.range(after).chain(&self.members).map(|(_, member)| member);
        let wanted = in_turn.filter(|member| member.node != *to && !updates.iter().any(|u| u.node == member.node));
        let mut chosen: Vec<Update> = wanted.filter_map(|member| self.accusation(member)).take(room).collect();
        chosen.dedup();
        self.repaired = chosen.last().map_or(self.repaired, |update| update.node);
        updates.extend(chosen);
    }

    /// What is held against a member. Of several accusers each is named in turn, so that all become known.
    fn accusation(&self, member: &Member) -> Option<Update> {
        let by = match (member.liveness, &member.suspicion) {
            (Liveness::Suspect, Some(suspicion)) => suspicion.accuser(self.sequence).unwrap_or(self.me),
            (Liveness::Left, _) => member.node,
            (Liveness::Dead | Liveness::Suspect, _) => self.me,
            (Liveness::Joining | Liveness::Alive, _) => return None,
        };
        Some(Update { liveness: member.liveness, node: member.node, incarnation: member.incarnation, by })
    }

    pub(super) fn about_me(&self) -> Update {
        let liveness = if self.has_left { Liveness::Left } else { Liveness::Alive };
        Update { liveness, node: self.me, incarnation: self.incarnation, by: self.me }
    }

    /// Spreads one's own news at once to a few members, ahead of the probes it would ride on.
    pub(super) fn spread(&mut self, first: &[NodeId], rng: &mut impl Rng) {
        let others = self.some_alive(self.config.indirect, first, rng);
        for node in first.iter().chain(&others) {
            if *node != self.me && self.members.contains_key(node) {
                self.send(*node, Body::News);
            }
        }
    }

    /// Forgets probes too old to be answered and members gone for long.
    fn tidy(&mut self, now: Duration) {
        let oldest = now.saturating_sub(crate::rtt::RTT_MAX);
        self.pending.retain(|_, pending| pending.sent_at >= oldest);
        let (dead_keep, left_keep) = (self.config.dead_keep, self.config.left_keep);
        let gone: Vec<NodeId> = self
            .members
            .values()
            .filter(|member| match member.liveness {
                Liveness::Alive | Liveness::Suspect => false,
                Liveness::Joining | Liveness::Dead => now.saturating_sub(member.since) > dead_keep,
                Liveness::Left => now.saturating_sub(member.since) > left_keep,
            })
            .map(|member| member.node)
            .collect();
        for node in gone {
            self.remove(&node);
        }
    }

    fn remove(&mut self, node: &NodeId) {
        self.members.remove(node);
        self.updates.forget(node);
        if self.round.as_ref().is_some_and(|round| round.target == *node) {
            self.round = None;
        }
    }
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Probes whose answer is awaited; past that the oldest is given up.
const PENDING_MAX: usize = 2048;
/// States repeated in one packet.
const REPAIRS: usize = 2;
/// Members, on average, that probe a new suspect out of turn.
const CHECKERS: usize = 5;
/// Members that hear a goodbye directly; they pass it on.
const GOODBYES: usize = 32;
/// Probes made for others at one time; more are refused and counted.
pub(super) const RELAYS_MAX: usize = 256;
