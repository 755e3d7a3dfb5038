//! Taking in ops: a message of 80 merged into an empty store in memory, and merged again when all of it is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use crdt_store::{Author, Authority, DocKey, Edit, MemoryStorage, OriginRecord, Replica, WriteMeta};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

const NOW_MS: u64 = 1_795_305_600_000;
const OPS: usize = 80;

/// Takes every signature as good: what is measured is the store.
#[derive(Debug)]
struct Trusting;

impl Authority for Trusting {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [1; 64]
    }

    fn public_key(&self) -> [u8; 32] {
        [1; 32]
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn verify(&self, _: &[u8; 32], _: &[u8], _: &[u8; 64]) -> bool {
        true
    }

    fn admit(&self, _: &OriginRecord) -> Result<Author, String> {
        Ok(Author { node: "node".to_owned(), name: "name".to_owned(), may_author: true })
    }
}

fn open(random: u8) -> Replica {
    let storage = Box::new(MemoryStorage::new());
    Replica::open(storage, Arc::new(Trusting), "bench", [random; 16], NOW_MS).expect("an empty store opens")
}

fn push() -> Bytes {
    let mut replica = open(1);
    let dots: Vec<_> = (0..OPS)
        .filter_map(|number| {
            let key = DocKey::new("HTTPRoute", "global", format!("route-{number}"));
            let edit = Edit::put(key, BTreeMap::from([("spec".to_owned(), vec![b'x'; 600])]));
            replica.write(vec![edit], WriteMeta::default(), NOW_MS).expect("a plain write works").dot
        })
        .collect();
    replica.encode_push(&dots)
}

fn apply(criterion: &mut Criterion) {
    let push = push();
    let mut group = criterion.benchmark_group("apply");
    group.throughput(criterion::Throughput::Elements(OPS as u64));
    group.bench_function("80 new ops", |bencher| {
        bencher.iter_batched(
            || open(2),
            |mut replica| replica.merge_push(&push, NOW_MS).map(|merged| (merged, replica)),
            BatchSize::SmallInput,
        );
    });
    let mut known = open(3);
    known.merge_push(&push, NOW_MS).expect("an honest push is taken");
    group.bench_function("80 known ops", |bencher| bencher.iter(|| known.merge_push(&push, NOW_MS)));
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
