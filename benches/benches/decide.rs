//! The decision for one request over 10, 100 and 1,000 candidates: estimating what is in flight at each, weighing them, one draw,
//! the better of two draws, and all of it together.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policy::{
    BackendPolicy, Candidate, Capacity, Contender, Draw, Part, PeakEwma, Report, RouteTable, Weighed, choose,
    choose_within, draw, inflight_estimate, weigh, weigh_parts,
};

const NOW: Duration = Duration::from_secs(100);
const CHANCES: [f64; 2] = [0.7, 0.3];
const CLIENTS: f64 = 24.0;

/// What a node keeps of an endpoint.
struct Known {
    capacity: Capacity,
    report: Report,
    own: u32,
    distance_ms: f64,
    latency: PeakEwma,
}

impl Known {
    fn latency_ms(&self) -> Option<f64> {
        self.latency.latency_ms(NOW)
    }

    fn candidate(&self, latency_ms: Option<f64>) -> Candidate {
        let inflight = inflight_estimate(self.report, self.own, CLIENTS, latency_ms);
        Candidate::with_inflight(self.capacity, inflight, self.distance_ms)
    }

    fn contender(&self, candidate: &Candidate, latency_ms: Option<f64>) -> Contender {
        Contender {
            capacity: self.capacity,
            inflight: candidate.load_used() * self.capacity.requests(),
            own_inflight: self.own,
            distance_ms: self.distance_ms,
            latency_ms,
        }
    }
}

/// What one decision works with, in vectors that the next one uses again.
#[derive(Default)]
struct Decision {
    latencies_ms: Vec<Option<f64>>,
    candidates: Vec<Candidate>,
    weighed: Vec<Weighed>,
}

impl Decision {
    /// The latencies before the rest, as a node does it.
    fn estimate(&mut self, known: &[Known]) {
        self.latencies_ms.clear();
        self.latencies_ms.extend(known.iter().map(Known::latency_ms));
        self.candidates.clear();
        let with_latencies = known.iter().zip(&self.latencies_ms);
        self.candidates.extend(with_latencies.map(|(known, latency_ms)| known.candidate(*latency_ms)));
    }

    fn contender(&self, known: &[Known], at: usize) -> Option<Contender> {
        Some(known.get(at)?.contender(self.candidates.get(at)?, *self.latencies_ms.get(at)?))
    }
}

fn known(count: u32) -> Vec<Known> {
    (1..=count)
        .filter_map(|n| {
            let age_us = u64::from(n % 50) * 20_000;
            let answered = NOW.saturating_sub(Duration::from_micros(age_us));
            Some(Known {
                capacity: Capacity::new(f64::from(n % 7 + 1) * 16.0).ok()?,
                report: Report { inflight: n % 40, own: n % 3, age_us },
                own: n % 4,
                distance_ms: f64::from(n % 90),
                latency: PeakEwma::default().answered(Duration::from_millis(u64::from(n % 30) + 1), answered),
            })
        })
        .collect()
}

fn whole(policy: &BackendPolicy, known: &[Known], decision: &mut Decision) -> Option<usize> {
    decision.estimate(known);
    weigh(policy, &decision.candidates, &mut decision.weighed);
    choose(policy.draw, &decision.weighed, CHANCES, |at| decision.contender(known, at)).map(|choice| choice.chosen)
}

fn decide(criterion: &mut Criterion) {
    let table = RouteTable::default();
    let policy = table.backend("hello");
    let single = BackendPolicy { draw: Draw::Single, ..BackendPolicy::default() };
    let mut group = criterion.benchmark_group("decide");
    for count in [10, 100, 1000] {
        let known = known(count);
        let mut decision = Decision::default();
        decision.estimate(&known);
        let candidates = &decision.candidates;
        let contender = |at: usize| decision.contender(&known, at);
        let mut weighed: Vec<Weighed> = Vec::new();
        group.bench_function(BenchmarkId::new("weigh", count), |bencher| {
            bencher.iter(|| weigh(policy, black_box(candidates), &mut weighed));
        });
        group.bench_function(BenchmarkId::new("draw", count), |bencher| {
            bencher.iter(|| draw(black_box(&weighed), black_box(0.7)));
        });
        group.bench_function(BenchmarkId::new("better of two draws", count), |bencher| {
            bencher.iter(|| choose(Draw::BestOfTwo, black_box(&weighed), black_box(CHANCES), contender));
        });
        let half = candidates.len() / 2;
        let parts = [Part { len: half, share: 0.8 }, Part { len: candidates.len() - half, share: 0.2 }];
        group.bench_function(BenchmarkId::new("weigh and choose within two localities", count), |bencher| {
            bencher.iter(|| {
                weigh_parts(policy, black_box(candidates), black_box(&parts), &mut weighed);
                choose_within(Draw::BestOfTwo, &weighed, &parts, black_box(CHANCES), contender)
            });
        });
        for policy in [policy, &single] {
            let mut decision = Decision::default();
            group.bench_function(BenchmarkId::new(format!("estimate, weigh, {}", policy.draw), count), |bencher| {
                bencher.iter(|| whole(policy, black_box(&known), &mut decision));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
