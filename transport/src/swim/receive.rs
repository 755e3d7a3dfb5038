//! What a packet does.

use std::time::Duration;

use rand::Rng;

use super::member::{Liveness, ProbeFailure, VerdictReason};
use super::message::{Body, Packet, Unreadable, Update};
use super::prober::{Pending, RELAYS_MAX, Relay, Swim, SwimOutput};
use crate::id::NodeId;

impl Swim {
    /// A packet came from `from`, as proven by the link. Whatever it holds: bad bytes are counted and change nothing.
    pub fn handle_packet(&mut self, now: Duration, from: NodeId, bytes: &[u8], rng: &mut impl Rng) {
        let Some(packet) = self.read(from, bytes) else { return };
        self.counters.received += 1;
        // A live sender vouches for its own incarnation: this is what brings a restarted or healed member back.
        self.hear_alive(now, from, packet.incarnation);
        if let (Some(status), Some(member)) = (packet.status, self.members.get_mut(&from)) {
            member.load = Some(status.load);
            member.coord = status.coord.or(member.coord);
        }
        let incarnation = self.incarnation;
        for update in &packet.updates {
            self.hear(now, from, update, rng);
        }
        self.correct(from, incarnation, &packet);
        self.told.clone_from(&packet.updates);
        self.answer(now, from, &packet);
        self.told.clear();
    }

    /// A sender that still holds an earlier incarnation of this node for absent hears the present one at once. An
    /// answer to a probe says it anyway, and a fresh objection was sent already.
    fn correct(&mut self, from: NodeId, incarnation_before: u32, packet: &Packet) {
        let is_outdated = |update: &Update| {
            update.node == self.me && update.liveness != Liveness::Alive && update.incarnation < incarnation_before
        };
        let is_probe = matches!(packet.body, Body::Probe { .. });
        if !is_probe && !self.has_left && packet.updates.iter().any(is_outdated) {
            self.send(from, Body::News);
        }
    }

    fn read(&mut self, from: NodeId, bytes: &[u8]) -> Option<Packet> {
        let counter = match Packet::decode(bytes) {
            Err(Unreadable::Version) => &mut self.counters.unknown_version,
            Err(Unreadable::Malformed) => &mut self.counters.malformed,
            Ok(packet) if packet.cell != self.config.cell => &mut self.counters.wrong_cell,
            Ok(packet) if packet.from != from || from == self.me => &mut self.counters.wrong_sender,
            Ok(packet) => return Some(packet),
        };
        *counter += 1;
        None
    }

    fn answer(&mut self, now: Duration, from: NodeId, packet: &Packet) {
        match packet.body {
            Body::Probe { sequence } => {
                self.send(from, Body::Ack { sequence });
                // Whoever probes us can be reached: no need to wait for its turn.
                if self.members.get(&from).is_some_and(|member| member.liveness == Liveness::Joining) {
                    self.probe_soon(now, from);
                }
            }
            Body::Ack { sequence } => self.handle_ack(now, from, sequence, packet),
            Body::Ask { sequence, target, patience } => self.handle_ask(now, from, sequence, target, patience),
            Body::Relayed { sequence, target } => self.handle_relayed(from, sequence, target),
            Body::Nack { sequence, target } => self.handle_nack(from, sequence, target),
            Body::News => {}
        }
    }

    fn handle_ack(&mut self, now: Duration, from: NodeId, sequence: u32, packet: &Packet) {
        let Some(pending) = self.pending.get(&sequence).copied().filter(|pending| pending.target == from) else {
            self.counters.stray_acks += 1;
            return;
        };
        self.pending.remove(&sequence);
        let rtt = now.saturating_sub(pending.sent_at);
        self.note_answer(now, from, rtt);
        if self.round.as_ref().is_some_and(|round| round.sequences.contains(&sequence)) {
            self.answered();
        }
        self.tell_asker(from, &pending);
        let load = packet.status.map_or(0, |status| status.load);
        let coord = packet.status.and_then(|status| status.coord);
        if self.is_round_trip(rtt) {
            self.outputs.push_back(SwimOutput::Rtt { node: from, rtt, coord, load });
        }
    }

    /// An ack past every timeout proves life and nothing about the way: a process that was stopped answers all that
    /// waited in its socket at once, and those are not round trips.
    fn is_round_trip(&self, rtt: Duration) -> bool {
        rtt <= self.config.timeout_max
    }

    fn note_answer(&mut self, now: Duration, from: NodeId, rtt: Duration) {
        let is_round_trip = self.is_round_trip(rtt);
        let Some(member) = self.members.get_mut(&from) else { return };
        if is_round_trip {
            member.round_trips.observe(rtt);
        }
        member.last_ack = Some(now);
        member.failure = ProbeFailure::default();
        if member.liveness == Liveness::Joining {
            self.judge(now, from, Liveness::Alive, VerdictReason::Acked { rtt });
        }
    }

    fn answered(&mut self) {
        let Some(round) = self.round.as_mut() else { return };
        if !round.answered {
            round.answered = true;
            self.health.improve();
        }
    }

    fn tell_asker(&mut self, target: NodeId, pending: &Pending) {
        let Some((asker, sequence)) = pending.asked_by else { return };
        self.relays.retain(|relay| (relay.asker, relay.sequence) != (asker, sequence));
        self.send(asker, Body::Relayed { sequence, target });
    }

    fn handle_ask(&mut self, now: Duration, asker: NodeId, sequence: u32, target: NodeId, patience: Duration) {
        if self.relays.len() >= RELAYS_MAX || !self.members.contains_key(&target) || self.has_left {
            self.counters.relays_refused += 1;
            return;
        }
        let nack_at = now + patience.min(self.config.timeout_max * 8) * self.config.nack_percent / 100;
        self.relays.push(Relay { asker, sequence, target, nack_at });
        self.probe(now, target, Some((asker, sequence)));
    }

    fn handle_relayed(&mut self, from: NodeId, sequence: u32, target: NodeId) {
        let Some(round) = self.round.as_ref() else { return };
        if round.target != target || !round.sequences.contains(&sequence) || !round.relays.contains(&from) {
            return;
        }
        self.answered();
        if let Some(member) = self.members.get_mut(&target) {
            // It lives, though not for us: the direct probe still counts as lost.
            member.failure = ProbeFailure::default();
            member.round_trips.lost();
        }
    }

    fn handle_nack(&mut self, from: NodeId, sequence: u32, target: NodeId) {
        let Some(round) = self.round.as_mut() else { return };
        let is_ours = round.target == target && round.sequences.contains(&sequence) && round.relays.contains(&from);
        if is_ours && !round.nacks.contains(&from) {
            round.nacks.push(from);
        }
    }
}
