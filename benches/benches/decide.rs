//! The decision for one request: weighing 10, 100 and 1,000 candidates, and the draw from what was weighed.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policy::{Candidate, Capacity, RouteTable, Weighed, draw, weigh};

fn candidates(count: u32) -> Vec<Candidate> {
    (1..=count)
        .filter_map(|n| {
            let capacity = Capacity::new(f64::from(n % 7 + 1) * 16.0).ok()?;
            Some(Candidate::with_inflight(capacity, f64::from(n % 40), f64::from(n % 90)))
        })
        .collect()
}

fn decide(criterion: &mut Criterion) {
    let table = RouteTable::default();
    let policy = table.backend("hello");
    let mut group = criterion.benchmark_group("decide");
    for count in [10, 100, 1000] {
        let candidates = candidates(count);
        let mut weighed: Vec<Weighed> = Vec::new();
        group.bench_function(BenchmarkId::new("weigh", count), |bencher| {
            bencher.iter(|| weigh(policy, black_box(&candidates), &mut weighed));
        });
        group.bench_function(BenchmarkId::new("draw", count), |bencher| {
            bencher.iter(|| draw(black_box(&weighed), black_box(0.7)));
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
