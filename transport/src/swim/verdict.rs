//! What is believed of whom, and what changes it.

use std::time::Duration;

use rand::Rng;

use super::member::{Liveness, Member, ProbeFailure, VerdictReason};
use super::message::Update;
use super::prober::{Round, Swim, SwimOutput};
use super::suspicion::Suspicion;
use crate::id::NodeId;

impl Swim {
    /// Somebody told of a node, or its link came up.
    pub(super) fn discover(&mut self, now: Duration, node: NodeId) {
        if node == self.me || self.has_left {
            return;
        }
        match self.members.get(&node).map(|member| member.liveness) {
            None => {
                self.admit(now, node, 0);
            }
            Some(Liveness::Alive) => {}
            Some(Liveness::Joining | Liveness::Suspect | Liveness::Dead | Liveness::Left) => {
                self.probe_soon(now, node);
            }
        }
    }

    /// One update of a packet from `from`.
    pub(super) fn hear(&mut self, now: Duration, from: NodeId, update: &Update, rng: &mut impl Rng) {
        if update.incarnation > INCARNATION_MAX {
            self.counters.implausible_updates += 1;
            return;
        }
        if update.node == self.me {
            return self.hear_about_me(from, update, rng);
        }
        match update.liveness {
            Liveness::Joining | Liveness::Alive => self.hear_alive(now, update.node, update.incarnation),
            Liveness::Suspect => self.hear_suspect(now, update, rng),
            Liveness::Dead => self.hear_dead(now, update),
            Liveness::Left => self.hear_left(now, update),
        }
    }

    /// A node exists with this incarnation. Only a newer one changes what is believed.
    pub(super) fn hear_alive(&mut self, now: Duration, node: NodeId, incarnation: u32) {
        let Some(member) = self.members.get_mut(&node) else {
            self.admit(now, node, incarnation);
            return;
        };
        if incarnation <= member.incarnation {
            return;
        }
        member.incarnation = incarnation;
        let liveness = member.liveness;
        self.updates.push(Update { liveness: Liveness::Alive, node, incarnation, by: node });
        match liveness {
            Liveness::Joining | Liveness::Alive => {}
            Liveness::Suspect => self.judge(now, node, Liveness::Alive, VerdictReason::Refuted { incarnation }),
            Liveness::Dead | Liveness::Left => {
                self.judge(now, node, Liveness::Joining, VerdictReason::Returned { incarnation });
                self.probe_soon(now, node);
            }
        }
    }

    fn hear_suspect(&mut self, now: Duration, update: &Update, rng: &mut impl Rng) {
        let Some(member) = self.members.get(&update.node) else { return };
        if update.incarnation < member.incarnation {
            return;
        }
        // Who is accused under a newer incarnation was alive under it.
        self.hear_alive(now, update.node, update.incarnation);
        let is_witness = |by: &NodeId| *by == self.me || self.members.contains_key(by);
        if update.by == update.node || !is_witness(&update.by) {
            return;
        }
        self.suspect(now, update.node, update.by, rng);
    }

    /// memberlist's rule: a death loses to a newer incarnation. Deaths of strangers are no news.
    fn hear_dead(&mut self, now: Duration, update: &Update) {
        let Some(member) = self.members.get_mut(&update.node) else { return };
        if update.incarnation < member.incarnation {
            return;
        }
        let is_news = match member.liveness {
            Liveness::Joining | Liveness::Alive | Liveness::Suspect => true,
            Liveness::Dead | Liveness::Left => update.incarnation > member.incarnation,
        };
        if !is_news {
            return;
        }
        member.incarnation = update.incarnation;
        let reason = VerdictReason::Declared { by: update.by, own: member.own_failure() };
        self.updates.push(*update);
        self.judge(now, update.node, Liveness::Dead, reason);
    }

    fn hear_left(&mut self, now: Duration, update: &Update) {
        let Some(member) = self.members.get_mut(&update.node) else { return };
        let is_known = member.liveness == Liveness::Left && update.incarnation == member.incarnation;
        if update.incarnation < member.incarnation || is_known || update.by != update.node {
            return;
        }
        member.incarnation = update.incarnation;
        self.updates.push(*update);
        self.judge(now, update.node, Liveness::Left, VerdictReason::Goodbye);
    }

    /// Objects to whatever is said of this node under its present incarnation or a newer one (an earlier life).
    fn hear_about_me(&mut self, from: NodeId, update: &Update, rng: &mut impl Rng) {
        let is_accused = update.liveness != Liveness::Alive;
        let objects =
            if is_accused { update.incarnation >= self.incarnation } else { update.incarnation > self.incarnation };
        if !objects || self.has_left {
            return;
        }
        self.incarnation = update.incarnation.saturating_add(1);
        self.outputs.push_back(SwimOutput::Incarnation(self.incarnation));
        let objection = self.about_me();
        self.updates.push(objection);
        if update.liveness == Liveness::Suspect {
            // Somebody thinks this node slow; it may be right.
            self.counters.refutations += 1;
            self.health.worsen(1);
        }
        let mut first = vec![from];
        if update.by != from {
            first.push(update.by);
        }
        self.spread(&first, rng);
    }

    /// The probe round ended without an answer.
    pub(super) fn accuse(&mut self, now: Duration, round: &Round, rng: &mut impl Rng) {
        let Some(member) = self.members.get_mut(&round.target) else { return };
        let count = |list: usize| u32::try_from(list).unwrap_or(u32::MAX);
        member.failure = ProbeFailure {
            direct: member.failure.direct.saturating_add(count(round.sequences.len())),
            relays: count(round.relays.len()),
            nacks: count(round.nacks.len()),
        };
        member.round_trips.lost();
        self.suspect(now, round.target, self.me, rng);
    }

    /// `by` accuses a member under its present incarnation.
    fn suspect(&mut self, now: Duration, node: NodeId, by: NodeId, rng: &mut impl Rng) {
        let wanted = self.confirmations_wanted();
        let Some(member) = self.members.get_mut(&node) else { return };
        let is_news = match (member.liveness, member.suspicion.as_mut()) {
            (Liveness::Alive, _) => {
                let (min, max) = (self.config.suspicion_min, self.config.suspicion_max);
                member.suspicion = Some(Suspicion::new(now, by, wanted, min, max));
                true
            }
            (Liveness::Suspect, Some(suspicion)) => suspicion.confirm(by),
            (Liveness::Joining | Liveness::Suspect | Liveness::Dead | Liveness::Left, _) => false,
        };
        if !is_news {
            return;
        }
        let incarnation = member.incarnation;
        let reason = VerdictReason::Accused { own: member.own_failure(), by: accusers(member, self.me) };
        let is_first = member.liveness == Liveness::Alive;
        self.updates.push(Update { liveness: Liveness::Suspect, node, incarnation, by });
        if is_first {
            self.judge(now, node, Liveness::Suspect, reason);
        } else {
            member_reason(self.members.get_mut(&node), reason);
        }
        if by == self.me {
            self.spread(&[node], rng);
        } else if is_first {
            self.check_soon(node, rng);
        }
    }

    /// Gives every suspect the last word: a direct probe, which carries the accusation, one period before the verdict.
    /// Whoever objected long ago, while news of it got lost on the way here, clears itself so.
    pub(super) fn ask_suspects(&mut self, now: Duration) {
        let notice = self.config.period;
        let suspicions = self.members.values_mut().filter_map(|member| Some((member.node, member.suspicion.as_mut()?)));
        let due: Vec<NodeId> =
            suspicions.filter_map(|(node, suspicion)| suspicion.ask(now, notice).then_some(node)).collect();
        for node in due {
            self.probe_soon(now, node);
        }
    }

    pub(super) fn expire_suspicions(&mut self, now: Duration, rng: &mut impl Rng) {
        let is_due = |member: &&Member| member.suspicion.as_ref().is_some_and(|suspicion| suspicion.deadline() <= now);
        let due: Vec<NodeId> = self.members.values().filter(is_due).map(|member| member.node).collect();
        for node in due {
            self.expire(now, node, rng);
        }
    }

    fn expire(&mut self, now: Duration, node: NodeId, rng: &mut impl Rng) {
        let Some(member) = self.members.get(&node) else { return };
        let waited = member.suspicion.as_ref().map_or(Duration::ZERO, |s| now.saturating_sub(s.started()));
        let reason = VerdictReason::Expired { own: member.own_failure(), by: accusers(member, self.me), waited };
        let update = Update { liveness: Liveness::Dead, node, incarnation: member.incarnation, by: self.me };
        self.updates.push(update);
        self.judge(now, node, Liveness::Dead, reason);
        self.spread(&[], rng);
    }

    /// Two confirmations are wanted, or as many as there can be; where fewer than wanted could exist, none, or every
    /// death in a small fleet would wait for the longest time.
    fn confirmations_wanted(&self) -> usize {
        if self.population().saturating_sub(2) < self.config.confirmations { 0 } else { self.config.confirmations }
    }

    /// Puts a verdict in force and tells it.
    pub(super) fn judge(&mut self, now: Duration, node: NodeId, liveness: Liveness, reason: VerdictReason) {
        let Some(member) = self.members.get_mut(&node) else { return };
        member.liveness = liveness;
        member.since = now;
        member.reason = reason.clone();
        if liveness != Liveness::Suspect {
            member.suspicion = None;
        }
        if matches!(liveness, Liveness::Alive | Liveness::Joining) {
            member.failure = ProbeFailure::default();
        }
        let incarnation = member.incarnation;
        self.outputs.push_back(SwimOutput::Verdict { node, liveness, incarnation, reason });
    }

    /// Takes a newcomer into the list, passes it on and probes it.
    fn admit(&mut self, now: Duration, node: NodeId, incarnation: u32) {
        if node == self.me || !self.make_room() {
            return;
        }
        self.members.insert(node, Member::new(node, incarnation, now));
        self.updates.push(Update { liveness: Liveness::Alive, node, incarnation, by: node });
        self.judge(now, node, Liveness::Joining, VerdictReason::Discovered);
        self.probe_soon(now, node);
    }

    /// Room for one more: at the limit the one gone or absent for longest leaves.
    fn make_room(&mut self) -> bool {
        if self.members.len() < self.config.members_max {
            return true;
        }
        let is_gone = |member: &&Member| matches!(member.liveness, Liveness::Dead | Liveness::Left);
        let oldest = |list: &mut dyn Iterator<Item = &Member>| list.min_by_key(|m| m.since).map(|m| m.node);
        let leaver = oldest(&mut self.members.values().filter(is_gone))
            .or_else(|| oldest(&mut self.members.values().filter(|member| member.is_absent())));
        let Some(leaver) = leaver else {
            self.counters.members_refused += 1;
            return false;
        };
        self.members.remove(&leaver);
        self.updates.forget(&leaver);
        true
    }
}

/// Everybody but this node who accuses the member.
fn accusers(member: &Member, me: NodeId) -> Vec<NodeId> {
    let accusers = member.suspicion.iter().flat_map(Suspicion::accusers).copied();
    accusers.filter(|accuser| *accuser != me).collect()
}

fn member_reason(member: Option<&mut Member>, reason: VerdictReason) {
    if let Some(member) = member {
        member.reason = reason;
    }
}

/// Updates above this are refused: whoever is accused there could object only a few more times.
const INCARNATION_MAX: u32 = u32::MAX - 65_536;
