//! Many probers on one virtual network: one seed, one run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::*;
use crate::id::NodeId;
use crate::vivaldi::Coord;

pub(super) struct Sim {
    pub(super) now: Duration,
    pub(super) nodes: Vec<Node>,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) loss: f64,
    pub(super) latency_us: Range<u64>,
    pub(super) packets: u64,
    rng: StdRng,
    queue: BinaryHeap<Reverse<(Duration, u64, usize, Event)>>,
    order: u64,
    trace: DefaultHasher,
}

pub(super) struct Node {
    pub(super) swim: Swim,
    pub(super) is_up: bool,
    /// Nodes of different groups do not hear each other.
    pub(super) group: u8,
    /// Deaf for the first duration, awake for the second, over and over; sends all the while.
    pub(super) deaf: Option<(Duration, Duration)>,
    pub(super) incarnations: Vec<u32>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "every field is printed when a test fails")]
pub(super) struct Verdict {
    pub(super) at: Duration,
    pub(super) observer: usize,
    pub(super) node: usize,
    pub(super) liveness: Liveness,
    pub(super) reason: String,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake,
    Packet { from: usize, bytes: Bytes },
}

impl Sim {
    /// `count` nodes that know each other's names, 0.2 to 2 ms apart.
    pub(super) fn new(seed: u64, count: usize, config: &SwimConfig) -> Self {
        let nodes = (0..count)
            .map(|number| Node {
                swim: Swim::new(id(number), 0, config.clone()),
                is_up: true,
                group: 0,
                deaf: None,
                incarnations: Vec::new(),
            })
            .collect();
        let mut sim = Self {
            now: Duration::from_secs(1000),
            nodes,
            verdicts: Vec::new(),
            loss: 0.0,
            latency_us: 200..2000,
            packets: 0,
            rng: StdRng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            order: 0,
            trace: DefaultHasher::new(),
        };
        for node in 0..count {
            sim.introduce(node);
        }
        sim
    }

    /// A fleet in which everybody has found everybody alive.
    pub(super) fn settled(seed: u64, count: usize, config: &SwimConfig) -> Self {
        let mut sim = Self::new(seed, count, config);
        sim.run_for(Duration::from_secs(10));
        assert!(sim.all_agree(Liveness::Alive), "{:?}", sim.disagreement(Liveness::Alive));
        sim.verdicts.clear();
        sim
    }

    fn introduce(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if other != node {
                self.nodes[node].swim.handle_peer(self.now, id(other), PeerChange::Discovered);
            }
        }
        self.drain(node);
    }

    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].is_up = false;
    }

    /// A new process with nothing but the names of the others.
    pub(super) fn restart(&mut self, node: usize, config: &SwimConfig) {
        self.nodes[node].swim = Swim::new(id(node), 0, config.clone());
        self.nodes[node].is_up = true;
        self.introduce(node);
    }

    pub(super) fn leave(&mut self, node: usize) {
        self.nodes[node].swim.leave(self.now);
        self.drain(node);
    }

    pub(super) fn inject(&mut self, to: usize, from: usize, bytes: &[u8]) {
        self.nodes[to].swim.handle_packet(self.now, id(from), bytes, &mut self.rng);
        self.drain(to);
    }

    pub(super) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
        self.now = end;
    }

    /// Runs until `done` holds after an event, or `end`. Returns whether it held.
    pub(super) fn run_until(&mut self, end: Duration, done: impl Fn(&Self) -> bool) -> bool {
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Reverse((at, _, node, event)) = self.queue.pop().unwrap();
            self.now = at;
            self.happen(node, event);
            if done(self) {
                return true;
            }
        }
        false
    }

    fn happen(&mut self, node: usize, event: Event) {
        if !self.nodes[node].is_up {
            return;
        }
        match event {
            Event::Wake => {
                if self.nodes[node].swim.poll_timeout().is_none_or(|due| due > self.now) {
                    return;
                }
                self.nodes[node].swim.handle_timeout(self.now, &mut self.rng);
            }
            Event::Packet { from, bytes } => {
                if self.is_deaf(node) || self.nodes[from].group != self.nodes[node].group {
                    return;
                }
                (self.now, from, node, &bytes).hash(&mut self.trace);
                self.nodes[node].swim.handle_packet(self.now, id(from), &bytes, &mut self.rng);
            }
        }
        self.drain(node);
    }

    fn is_deaf(&self, node: usize) -> bool {
        let Some((deaf, awake)) = self.nodes[node].deaf else { return false };
        let cycle = (deaf + awake).as_micros();
        let phase = (self.now.as_micros() + node as u128 * 977_000) % cycle;
        phase < deaf.as_micros()
    }

    fn drain(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].swim.poll_output() {
            match output {
                SwimOutput::Send { to, bytes } => self.post(node, number(to), bytes),
                SwimOutput::Verdict { node: about, liveness, reason, .. } => self.verdicts.push(Verdict {
                    at: self.now,
                    observer: node,
                    node: number(about),
                    liveness,
                    reason: reason.to_string(),
                }),
                SwimOutput::Rtt { .. } => {}
                SwimOutput::Incarnation(incarnation) => self.nodes[node].incarnations.push(incarnation),
            }
        }
        if let Some(due) = self.nodes[node].swim.poll_timeout() {
            self.push(due.max(self.now), node, Event::Wake);
        }
    }

    fn post(&mut self, from: usize, to: usize, bytes: Bytes) {
        assert!(bytes.len() <= 1178, "{} bytes", bytes.len());
        self.packets += 1;
        let latency = Duration::from_micros(self.rng.random_range(self.latency_us.clone()));
        if to < self.nodes.len() && !self.rng.random_bool(self.loss) {
            self.push(self.now + latency, to, Event::Packet { from, bytes });
        }
    }

    fn push(&mut self, at: Duration, node: usize, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, node, event)));
    }

    /// The first pair of running nodes where the observer does not hold the other for `liveness`.
    pub(super) fn disagreement(&self, liveness: Liveness) -> Option<(usize, usize, Option<Liveness>)> {
        let up = || (0..self.nodes.len()).filter(|node| self.nodes[*node].is_up);
        up().flat_map(|observer| up().map(move |node| (observer, node)))
            .filter(|(observer, node)| observer != node)
            .map(|(observer, node)| (observer, node, self.view(observer, node)))
            .find(|(_, _, view)| *view != Some(liveness))
    }

    pub(super) fn all_agree(&self, liveness: Liveness) -> bool {
        self.disagreement(liveness).is_none()
    }

    pub(super) fn view(&self, observer: usize, node: usize) -> Option<Liveness> {
        self.nodes[observer].swim.member(&id(node)).map(|member| member.liveness)
    }

    /// Running nodes that hold `node` for `liveness`.
    pub(super) fn count_view(&self, node: usize, liveness: Liveness) -> usize {
        let up = (0..self.nodes.len()).filter(|observer| self.nodes[*observer].is_up && *observer != node);
        up.filter(|observer| self.view(*observer, node) == Some(liveness)).count()
    }

    pub(super) fn deaths(&self) -> Vec<&Verdict> {
        self.verdicts.iter().filter(|verdict| verdict.liveness == Liveness::Dead).collect()
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace.finish()
    }
}

pub(super) fn id(number: usize) -> NodeId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    // The last bytes set the phase of the rounds; spread them.
    bytes[14..].copy_from_slice(&(u16::try_from(number % 60_000).unwrap().wrapping_mul(40_503)).to_be_bytes());
    NodeId::from_bytes(bytes)
}

pub(super) fn number(node: NodeId) -> usize {
    let (head, _) = node.as_bytes().split_first_chunk::<8>().unwrap();
    usize::try_from(u64::from_be_bytes(*head)).unwrap()
}

/// A coordinate with a recognisable first part.
pub(super) fn coord(first: f32) -> Coord {
    let mut coord = Coord::origin();
    coord.vec[0] = first;
    coord
}
