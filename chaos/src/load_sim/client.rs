//! One client: what it knows of each server, and whom it asks next.

use std::time::Duration;

use policy::{
    BackendPolicy, Candidate, Capacity, Contender, Draw, PeakEwma, Report, Weighed, choose, draw, draw_excluding,
    inflight_estimate, inflight_from_own, weigh,
};

use super::Balancer;

/// What a server whose latency is not known is taken to need, by the peak EWMA that stands for other proxies.
const FIRST_GUESS_MS: f64 = 30.0;

/// A server as a client sees it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) capacity: Capacity,
    pub(super) distance_ms: f64,
    pub(super) own: u32,
    /// The server's requests in flight when it told them last, and this client's among them.
    told: Option<(u32, u32, Duration)>,
    latency: PeakEwma,
}

impl Seen {
    pub(super) fn new(capacity: Capacity, distance_ms: f64) -> Self {
        Self { capacity, distance_ms, own: 0, told: None, latency: PeakEwma::default() }
    }

    pub(super) fn tell(&mut self, inflight: u32, now: Duration) {
        self.told = Some((inflight, self.own, now));
    }

    pub(super) fn answered(&mut self, latency: Duration, now: Duration) {
        self.latency = self.latency.answered(latency, now);
        self.own -= 1;
    }

    fn inflight(&self, clients: f64, now: Duration) -> f64 {
        match self.told {
            Some((told, own_then, at)) => {
                let age_us = u64::try_from(now.saturating_sub(at).as_micros()).unwrap_or(u64::MAX);
                let report = Report { inflight: told, own: own_then, age_us };
                inflight_estimate(report, self.own, clients, self.latency.latency_ms(now))
            }
            None => inflight_from_own(self.own, clients),
        }
    }

    fn own_for_capacity(&self) -> f64 {
        (f64::from(self.own) + 1.0) / self.capacity.requests()
    }

    fn peak_ewma_cost(&self, now: Duration) -> f64 {
        self.latency.latency_ms(now).unwrap_or(FIRST_GUESS_MS) * (f64::from(self.own) + 1.0)
    }
}

/// A client and what it needs to choose.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) servers: Vec<Seen>,
    /// How many clients send requests, this one included.
    clients: f64,
    policy: BackendPolicy,
    candidates: Vec<Candidate>,
    weighed: Vec<Weighed>,
    by_capacity: Vec<Weighed>,
    alike: Vec<Weighed>,
}

impl Client {
    pub(super) fn new(servers: Vec<Seen>, clients: f64) -> Self {
        let share = |of: f64| Weighed { weight: of, probability: of };
        let all: f64 = servers.iter().map(|server| server.capacity.requests()).sum();
        let by_capacity = servers.iter().map(|server| share(server.capacity.requests() / all)).collect();
        let alike = servers.iter().map(|_| share(1.0)).collect();
        let (candidates, weighed) = (Vec::new(), Vec::new());
        Self { servers, clients, policy: BackendPolicy::default(), candidates, weighed, by_capacity, alike }
    }

    /// The place of the server that the next request goes to; the oracle does not ask the client.
    pub(super) fn choose(&mut self, balancer: Balancer, chances: [f64; 2], now: Duration) -> usize {
        let servers = &self.servers;
        let chosen = match balancer {
            Balancer::Capacity | Balancer::Oracle => draw(&self.by_capacity, chances[0]),
            Balancer::LeastRequest => better(&self.by_capacity, chances, |at| servers[at].own_for_capacity()),
            Balancer::PeakEwma => better(&self.alike, chances, |at| servers[at].peak_ewma_cost(now)),
            Balancer::Single => self.by_formula(Draw::Single, chances, now),
            Balancer::BestOfTwo => self.by_formula(Draw::BestOfTwo, chances, now),
        };
        chosen.expect("there are servers")
    }

    fn by_formula(&mut self, draw_by: Draw, chances: [f64; 2], now: Duration) -> Option<usize> {
        let (servers, clients) = (&self.servers, self.clients);
        let candidate =
            |seen: &Seen| Candidate::with_inflight(seen.capacity, seen.inflight(clients, now), seen.distance_ms);
        self.candidates.clear();
        self.candidates.extend(servers.iter().map(candidate));
        weigh(&self.policy, &self.candidates, &mut self.weighed);
        let contender = |at: usize| {
            let seen = servers.get(at)?;
            Some(Contender {
                capacity: seen.capacity,
                inflight: seen.inflight(clients, now),
                own_inflight: seen.own,
                distance_ms: seen.distance_ms,
                latency_ms: seen.latency.latency_ms(now),
            })
        };
        choose(draw_by, &self.weighed, chances, contender).map(|choice| choice.chosen)
    }
}

/// Of two different ones drawn from `weighed` the one with the smaller cost, the first among equals.
fn better(weighed: &[Weighed], chances: [f64; 2], cost: impl Fn(usize) -> f64) -> Option<usize> {
    let first = draw(weighed, chances[0])?;
    let second = draw_excluding(weighed, &[first], chances[1])?;
    Some(if cost(second) < cost(first) { second } else { first })
}
