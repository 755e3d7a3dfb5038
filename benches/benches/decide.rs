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
    fn candidate(&self) -> Candidate {
        let latency_ms = self.latency.latency_ms(NOW);
        let inflight = inflight_estimate(self.report, f64::from(self.own), CLIENTS, latency_ms);
        Candidate::with_inflight(self.capacity, inflight, self.distance_ms)
    }

    fn contender(&self, candidate: &Candidate) -> Contender {
        Contender {
            capacity: self.capacity,
            inflight: candidate.load_used() * self.capacity.requests(),
            own_inflight: self.own,
            distance_ms: self.distance_ms,
            latency_ms: self.latency.latency_ms(NOW),
        }
    }
}

fn known(count: u32) -> Vec<Known> {
    (1..=count)
        .filter_map(|n| {
            let age = Duration::from_millis(u64::from(n % 50) * 20);
            let answered = NOW.saturating_sub(age);
            Some(Known {
                capacity: Capacity::new(f64::from(n % 7 + 1) * 16.0).ok()?,
                report: Report { inflight: f64::from(n % 40), own: f64::from(n % 3), age },
                own: n % 4,
                distance_ms: f64::from(n % 90),
                latency: PeakEwma::default().answered(Duration::from_millis(u64::from(n % 30) + 1), answered),
            })
        })
        .collect()
}

fn whole(
    policy: &BackendPolicy,
    known: &[Known],
    candidates: &mut Vec<Candidate>,
    weighed: &mut Vec<Weighed>,
) -> Option<usize> {
    candidates.clear();
    candidates.extend(known.iter().map(Known::candidate));
    weigh(policy, candidates, weighed);
    let contender = |at: usize| Some(known.get(at)?.contender(candidates.get(at)?));
    choose(policy.draw, weighed, CHANCES, contender).map(|choice| choice.chosen)
}

fn decide(criterion: &mut Criterion) {
    let table = RouteTable::default();
    let policy = table.backend("hello");
    let single = BackendPolicy { draw: Draw::Single, ..BackendPolicy::default() };
    let mut group = criterion.benchmark_group("decide");
    for count in [10, 100, 1000] {
        let known = known(count);
        let candidates: Vec<Candidate> = known.iter().map(Known::candidate).collect();
        let mut weighed: Vec<Weighed> = Vec::new();
        group.bench_function(BenchmarkId::new("weigh", count), |bencher| {
            bencher.iter(|| weigh(policy, black_box(&candidates), &mut weighed));
        });
        group.bench_function(BenchmarkId::new("draw", count), |bencher| {
            bencher.iter(|| draw(black_box(&weighed), black_box(0.7)));
        });
        group.bench_function(BenchmarkId::new("better of two draws", count), |bencher| {
            let contender = |at: usize| Some(known.get(at)?.contender(candidates.get(at)?));
            bencher.iter(|| choose(Draw::BestOfTwo, black_box(&weighed), black_box(CHANCES), contender));
        });
        let half = candidates.len() / 2;
        let parts = [Part { len: half, share: 0.8 }, Part { len: candidates.len() - half, share: 0.2 }];
        group.bench_function(BenchmarkId::new("weigh and choose within two localities", count), |bencher| {
            let contender = |at: usize| Some(known.get(at)?.contender(candidates.get(at)?));
            bencher.iter(|| {
                weigh_parts(policy, black_box(&candidates), black_box(&parts), &mut weighed);
                choose_within(Draw::BestOfTwo, &weighed, &parts, black_box(CHANCES), contender)
            });
        });
        for policy in [policy, &single] {
            let (mut candidates, mut weighed) = (Vec::new(), Vec::new());
            group.bench_function(BenchmarkId::new(format!("estimate, weigh, {}", policy.draw), count), |bencher| {
                bencher.iter(|| whole(policy, black_box(&known), &mut candidates, &mut weighed));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
