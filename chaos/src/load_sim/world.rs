//! The events of one run, in the order of their time.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use policy::Capacity;

use super::client::{Client, Seen};
use super::{Balancer, FAR, Latencies, NEAR, SERVICE, SLOTS, Scenario};
use crate::chance::Chance;

/// One request on its way.
#[derive(Debug, Clone, Copy)]
struct Trip {
    client: usize,
    server: usize,
    sent: Duration,
    /// Of the server's mean.
    work: f64,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// A client sends a request.
    Send { client: usize },
    /// It is at the server.
    Arrive(Trip),
    /// The server is done with it.
    Done(Trip),
    /// The answer is back; the server held so many requests when it left.
    Answer { trip: Trip, held: u32 },
    /// A server tells all clients what it holds.
    Tell { server: usize, every: Duration },
}

/// Something at its time; what is due at the same time happens in the order it was planned.
#[derive(Debug)]
struct Event {
    at: Duration,
    number: u64,
    what: What,
}

impl Ord for Event {
    /// The earliest is the greatest: the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Event {}

#[derive(Debug)]
struct Server {
    slots: u16,
    mean: Duration,
    is_far_zone: bool,
    busy: u16,
    queue: VecDeque<Trip>,
    /// Sent to it and not answered: what the oracle knows.
    assigned: u32,
}

impl Server {
    fn held(&self) -> u32 {
        u32::from(self.busy) + u32::try_from(self.queue.len()).unwrap_or(u32::MAX)
    }
}

#[derive(Debug)]
struct Sender {
    client: Client,
    mean_pause: Duration,
    is_far_zone: bool,
}

/// Every client and server of a run, and what is to come.
#[derive(Debug)]
pub(super) struct World {
    balancer: Balancer,
    answers_tell: bool,
    senders: Vec<Sender>,
    servers: Vec<Server>,
    events: BinaryHeap<Event>,
    planned: u64,
    now: Duration,
    /// Arrivals and work: the same for every balancer.
    arrivals: Chance,
    choices: Chance,
}

impl World {
    pub(super) fn new(scenario: &Scenario, balancer: Balancer, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let (arrivals, choices) = (Chance::new(chance.draw()), Chance::new(chance.draw()));
        let servers: Vec<Server> = SLOTS.iter().enumerate().map(|(at, slots)| server(scenario, at, *slots)).collect();
        let senders = (0..scenario.clients).map(|at| sender(scenario, at, &servers)).collect();
        let mut world = Self {
            balancer,
            answers_tell: scenario.answers_tell,
            senders,
            servers,
            events: BinaryHeap::new(),
            planned: 0,
            now: Duration::ZERO,
            arrivals,
            choices,
        };
        for client in 0..world.senders.len() {
            world.plan_send(client);
        }
        if let Some(every) = scenario.gossip {
            for server in 0..world.servers.len() {
                let first = every.mul_f64(unit(&mut chance));
                world.plan(first, What::Tell { server, every });
            }
        }
        world
    }

    /// What the requests took that were sent from `from` on, up to `until`.
    pub(super) fn run(mut self, from: Duration, until: Duration) -> Latencies {
        let mut taken = Latencies::default();
        while let Some(Event { at, what, .. }) = self.events.pop() {
            self.now = at;
            match what {
                // Without new requests the last ones come to their end, and then nothing more happens.
                What::Send { .. } | What::Tell { .. } if at >= until => {}
                What::Send { client } => self.send(client),
                What::Arrive(trip) => self.arrive(trip),
                What::Done(trip) => self.done(trip),
                What::Answer { trip, held } => {
                    let latency = self.answer(trip, held);
                    if trip.sent >= from {
                        taken.sorted_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
                        taken.far += usize::from(self.is_far(trip.client, trip.server));
                    }
                }
                What::Tell { server, every } => self.tell(server, every),
            }
        }
        taken.sorted_us.sort_unstable();
        taken
    }

    fn send(&mut self, client: usize) {
        self.plan_send(client);
        let work = exponential(&mut self.arrivals);
        let chances = [unit(&mut self.choices), unit(&mut self.choices)];
        let server = match self.balancer {
            Balancer::Oracle => self.shortest(client, chances[0]),
            of_its_own => self.senders[client].client.choose(of_its_own, chances, self.now),
        };
        self.senders[client].client.servers[server].own += 1;
        self.servers[server].assigned += 1;
        let trip = Trip { client, server, sent: self.now, work };
        self.plan(self.now + self.round_trip(client, server) / 2, What::Arrive(trip));
    }

    fn arrive(&mut self, trip: Trip) {
        let server = &mut self.servers[trip.server];
        if server.busy < server.slots {
            server.busy += 1;
            self.begin(trip);
        } else {
            server.queue.push_back(trip);
        }
    }

    fn begin(&mut self, trip: Trip) {
        let done = self.now + self.servers[trip.server].mean.mul_f64(trip.work);
        self.plan(done, What::Done(trip));
    }

    fn done(&mut self, trip: Trip) {
        let held = self.servers[trip.server].held();
        self.plan(self.now + self.round_trip(trip.client, trip.server) / 2, What::Answer { trip, held });
        let server = &mut self.servers[trip.server];
        match server.queue.pop_front() {
            Some(next) => self.begin(next),
            None => server.busy -= 1,
        }
    }

    fn answer(&mut self, trip: Trip, held: u32) -> Duration {
        let latency = self.now.saturating_sub(trip.sent);
        self.servers[trip.server].assigned -= 1;
        let seen = &mut self.senders[trip.client].client.servers[trip.server];
        if self.answers_tell {
            seen.tell(held, self.now);
        }
        seen.answered(latency, self.now);
        latency
    }

    fn tell(&mut self, server: usize, every: Duration) {
        let held = self.servers[server].held();
        for sender in &mut self.senders {
            sender.client.servers[server].tell(held, self.now);
        }
        self.plan(self.now + every, What::Tell { server, every });
    }

    /// The server where the request is done soonest on average, for its true queue; among equals by chance.
    fn shortest(&self, client: usize, chance: f64) -> usize {
        let cost = |at: usize| {
            let server = &self.servers[at];
            let rounds = (f64::from(server.assigned) + 1.0) / f64::from(server.slots);
            self.round_trip(client, at).as_secs_f64() + server.mean.as_secs_f64() * rounds.max(1.0)
        };
        let costs: Vec<f64> = (0..self.servers.len()).map(cost).collect();
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let equals: Vec<usize> = (0..costs.len()).filter(|at| costs[*at] <= least).collect();
        let count = f64::from(u32::try_from(equals.len()).unwrap_or(1));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and the count")]
        let drawn = (chance * count) as usize;
        equals[drawn]
    }

    fn is_far(&self, client: usize, server: usize) -> bool {
        self.senders[client].is_far_zone != self.servers[server].is_far_zone
    }

    fn round_trip(&self, client: usize, server: usize) -> Duration {
        if self.is_far(client, server) { FAR } else { NEAR }
    }

    fn plan_send(&mut self, client: usize) {
        let pause = self.senders[client].mean_pause.mul_f64(exponential(&mut self.arrivals));
        self.plan(self.now + pause, What::Send { client });
    }

    fn plan(&mut self, at: Duration, what: What) {
        self.planned += 1;
        self.events.push(Event { at, number: self.planned, what });
    }
}

fn server(scenario: &Scenario, at: usize, slots: u16) -> Server {
    Server {
        slots,
        mean: if scenario.slow == Some(at) { SERVICE * 10 } else { SERVICE },
        is_far_zone: scenario.two_zones && at >= SLOTS.len() / 2,
        busy: 0,
        queue: VecDeque::new(),
        assigned: 0,
    }
}

fn sender(scenario: &Scenario, at: u16, servers: &[Server]) -> Sender {
    let is_far_zone = scenario.two_zones && at >= scenario.clients / 2;
    let seen = |server: &Server| {
        let distance = if server.is_far_zone == is_far_zone { NEAR } else { FAR };
        let capacity = Capacity::new(f64::from(server.slots)).expect("a server has slots");
        Seen::new(capacity, distance.as_secs_f64() * 1e3)
    };
    let slots: f64 = SLOTS.iter().map(|slots| f64::from(*slots)).sum();
    let all_per_second = scenario.utilisation * slots / SERVICE.as_secs_f64();
    let part = |at: u16| if at % 2 == 1 { scenario.skew } else { 1.0 };
    let parts: f64 = (0..scenario.clients).map(part).sum();
    let per_second = all_per_second * part(at) / parts;
    Sender {
        client: Client::new(servers.iter().map(seen).collect(), f64::from(scenario.clients)),
        mean_pause: Duration::from_secs_f64(1.0 / per_second),
        is_far_zone,
    }
}

/// Uniform in [0, 1).
fn unit(chance: &mut Chance) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    let numerator = (chance.draw() >> 11) as f64;
    numerator / 9_007_199_254_740_992.0
}

/// Exponential with a mean of 1.
fn exponential(chance: &mut Chance) -> f64 {
    -(1.0 - unit(chance)).ln()
}
