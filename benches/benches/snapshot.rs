//! What a request reads, made anew: 2,000 documents of 1,000 services compiled, and 10,000 endpoints put together. Both
//! happen on the control thread when a document or an instance changed; requests go on with the snapshot before.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use node::catalog::{Catalog, Distance};
use node::config::Protocol;
use node::gossip::Spoken;
use node::pick::Asked;
use node::snapshot::{Here, Snapshot};
use node::view::Capabilities;
use policy::explain::DistanceSource;
use policy::{Filed, Library, Limits, Place, RouteTable, parse_documents};
use transport::NodeId;
use transport::trust::Role;

const SERVICES: usize = 1000;
const NODES: u8 = 100;
const NOW: Duration = Duration::from_secs(100);
const NOW_MS: u64 = 1_795_305_600_000;

/// A route and a way to balance for each service.
fn library() -> Library {
    let mut library = Library::default();
    for number in 0..SERVICES {
        let text = format!(
            "apiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: {{ name: s{number}, scope: global }}\n\
             spec:\n  hostnames: [s{number}.example.org]\n  rules:\n  - matches: [{{ path: {{ type: PathPrefix, value: /api }} }}]\n    \
             backendRefs: [{{ name: s{number}, weight: 9 }}, {{ name: canary, weight: 1 }}]\n\
             ---\napiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: s{number}, scope: global }}\n\
             targetRef: {{ kind: Service, name: s{number} }}\nspec: {{ loadBalancer: {{ halfDistance: 10ms }} }}\n"
        );
        for document in parse_documents(&text, &Limits::default()).expect("the documents are good") {
            library.file(document.id(), Filed::new([&document], Vec::new()));
        }
    }
    library
}

/// Nodes that offer 100 of the services each, and `wide` all of them.
fn catalog() -> Catalog {
    let id = |byte| NodeId::from_bytes([byte; 16]);
    let mut catalog = Catalog::new(id(u8::MAX));
    for byte in 0..NODES {
        let facts = node::gossip::Facts {
            name: format!("n{byte}"),
            region: "eu".to_owned(),
            zone: "a".to_owned(),
            addresses: vec!["192.0.2.1:7440".to_owned()],
            location: None,
            capabilities: Capabilities::default(),
            version: "0.1.0".to_owned(),
            chain: Vec::new(),
        };
        catalog.take_facts(id(byte), (Role::Member, [byte; 32]), (1, 1), facts, NOW).expect("a node joins");
        let names = (0..100).map(|number| format!("s{}", usize::from(byte % 10) * 100 + number));
        let instances = names.chain(["wide".to_owned()]).map(|service| node::gossip::Offer {
            service,
            instance: "1".to_owned(),
            protocol: Spoken::Known(Protocol::Http),
            capacity: 64.0,
            declared: true,
            down: None,
            labels: BTreeMap::new(),
        });
        let offers = node::gossip::Offers { instances: instances.collect(), draining: false };
        catalog.take_offers(id(byte), (1, 1), offers).expect("offers are taken");
        catalog.take_verdict(id(byte), transport::swim::Liveness::Alive, 1, "answers", NOW);
    }
    catalog
}

fn snapshot(criterion: &mut Criterion) {
    let (library, place) = (library(), Place::default());
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(20);
    assert_eq!(library.len(), 2 * SERVICES);
    group.bench_function("compile 2,000 documents", |bencher| {
        bencher.iter(|| library.compile(black_box(&place), NOW_MS));
    });
    let mut catalog = catalog();
    let near = Distance { ms: 1.0, source: DistanceSource::Rtt };
    let services = catalog.services(&HashMap::new(), |_| near, NOW);
    assert_eq!(services.values().map(|view| view.endpoints.len()).sum::<usize>(), 10_100);
    group.bench_function("put 10,000 endpoints together", |bencher| {
        bencher.iter(|| catalog.services(&HashMap::new(), |_| near, black_box(NOW)));
    });
    let here = Here {
        node: NodeId::from_bytes([u8::MAX; 16]),
        name: "me".to_owned(),
        region: String::new(),
        zone: String::new(),
        mesh: "bench".to_owned(),
    };
    let snapshot = Snapshot::new(1, here, RouteTable::default().into(), services, HashMap::new());
    for (service, count) in [("s7", 10), ("wide", 100)] {
        let endpoints = snapshot.services.get(service).map_or(&[][..], |view| &view.endpoints);
        assert_eq!(endpoints.len(), count);
        for (number, endpoint) in (1..).zip(endpoints) {
            endpoint.stats.report_inflight(number % 40, NOW.saturating_sub(Duration::from_millis(20)));
            endpoint.stats.learn_latency(|known| known.answered(Duration::from_millis(u64::from(number % 30)), NOW));
        }
        group.bench_function(format!("pick one of {count} endpoints"), |bencher| {
            bencher.iter(|| node::pick::pick(&snapshot, black_box(service), Asked::default(), [0.7, 0.3], NOW));
        });
    }
    group.finish();
}

criterion_group!(benches, snapshot);
criterion_main!(benches);
