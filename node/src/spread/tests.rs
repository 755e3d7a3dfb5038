use std::collections::HashMap;
use std::time::Duration;

use policy::explain::{CapacitySource, DistanceSource};
use policy::{BackendPolicy, Capacity, Limits, RouteTable, compile, parse_documents};
use rand::{RngExt as _, SeedableRng as _};
use transport::NodeId;

use super::*;
use crate::config::Protocol;
use crate::pick::{Asked, Eligible, NoPick, eligible, pick};
use crate::snapshot::{EndpointStats, ExcludedEndpoint, Snapshot};

const NOW: Duration = Duration::from_secs(100);

/// An instance called `ZONE-N` on a node in that zone of `eu`; or of another region, as `us/z1`.
fn endpoint(place: &str, n: u8) -> Arc<Endpoint> {
    let (region, zone) = place.split_once('/').unwrap_or(("eu", place));
    let mut facts = Facts { region: region.to_owned(), zone: zone.to_owned(), ..Facts::default() };
    facts.capabilities.gpu = u32::from(n);
    Arc::new(Endpoint {
        service: "hello".into(),
        instance: format!("{zone}-{n}").into(),
        node: NodeId::from_bytes([n; 16]),
        node_name: format!("on-{zone}-{n}"),
        zone: zone.to_owned(),
        facts: Arc::new(facts),
        locality: 0,
        protocol: Protocol::Http,
        capacity: Capacity::new(10.0).unwrap(),
        capacity_source: CapacitySource::Declared,
        distance_ms: f64::from(n),
        distance_source: DistanceSource::Rtt,
        local: None,
        suspect: false,
        stats: Arc::new(EndpointStats::default()),
        via: std::sync::OnceLock::new(),
    })
}

fn down(place: &str, missing: Missing) -> ExcludedEndpoint {
    endpoint(place, 9).excluded("its node is dead".to_owned(), missing)
}

fn table(documents: &str) -> RouteTable {
    let documents = parse_documents(documents, &Limits::default()).unwrap();
    let compiled = compile(&documents, &Place { node_name: "me".into(), region: "eu".into(), zone: "z1".into() }, 0);
    assert_eq!(compiled.problems, []);
    compiled.table
}

fn balanced(spec: &str) -> RouteTable {
    table(&format!(
        "apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: {{ name: hello }}
targetRef: {{ kind: Service, name: hello }}
spec: {spec}
"
    ))
}

/// `hello` as a node in `z1` of `eu` sees it.
fn snapshot(endpoints: &[Arc<Endpoint>], excluded: Vec<ExcludedEndpoint>, table: RouteTable) -> Snapshot {
    let here = Here {
        node: NodeId::from_bytes([99; 16]),
        name: "me".to_owned(),
        region: "eu".to_owned(),
        zone: "z1".to_owned(),
        mesh: "shop".to_owned(),
    };
    let view = ServiceView {
        name: "hello".to_owned(),
        endpoints: endpoints.to_vec(),
        excluded,
        active_clients: 1.0,
        stats: Arc::default(),
        fleet_share: None,
        placed: None,
    };
    let services = BTreeMap::from([("hello".to_owned(), Arc::new(view))]);
    Snapshot::new(1, here, Arc::new(table), services, HashMap::new())
}

/// How many of ten thousand requests each zone gets.
fn by_zone(snapshot: &Snapshot, asked: Asked<'_>) -> BTreeMap<String, u32> {
    let mut chance = rand::rngs::StdRng::seed_from_u64(5);
    let mut counts = BTreeMap::new();
    for _ in 0..10_000 {
        let pick = pick(snapshot, "hello", asked, [chance.random(), chance.random()], NOW).unwrap();
        let all: f64 = pick.weighed.iter().map(|one| one.probability).sum();
        assert!((all - 1.0).abs() < 1e-9, "{:?}", pick.weighed);
        *counts.entry(pick.endpoint.zone.clone()).or_default() += 1;
    }
    counts
}

fn is_near(count: Option<&u32>, percent: u32) -> bool {
    count.copied().unwrap_or(0).abs_diff(percent * 100) <= 150
}

const SPLIT: &str = "{ locality: { distribute: [ { from: eu/z1, to: { eu/z1: 80, eu/z2: 20 } } ] } }";

#[test]
fn ten_thousand_requests_follow_the_split_however_many_instances_each_zone_has() {
    let endpoints = [endpoint("z2", 1), endpoint("z1", 40), endpoint("z2", 3), endpoint("z2", 4), endpoint("us/z9", 5)];
    let counts = by_zone(&snapshot(&endpoints, Vec::new(), balanced(SPLIT)), Asked::default());
    assert!(is_near(counts.get("z1"), 80) && is_near(counts.get("z2"), 20), "{counts:?}");
    assert_eq!(counts.values().sum::<u32>(), 10_000, "nobody is asked elsewhere: {counts:?}");
}

#[test]
fn a_zone_that_is_gone_leaves_its_part_to_the_other_and_takes_it_back_when_it_is_there_again() {
    let endpoints = [endpoint("z1", 1), endpoint("z1", 2), endpoint("z2", 3)];
    let whole = snapshot(&endpoints, Vec::new(), balanced(SPLIT));
    for gone in &endpoints[..2] {
        gone.stats.failed(NOW + Duration::from_secs(5));
    }
    assert_eq!(by_zone(&whole, Asked::default()), BTreeMap::from([("z2".to_owned(), 10_000)]), "ejected here");
    let spilling = pick(&whole, "hello", Asked::default(), [0.5; 2], NOW).unwrap();
    assert!(spilling.is_spilling);
    let later = pick(&whole, "hello", Asked::default(), [0.5; 2], NOW + Duration::from_secs(6)).unwrap();
    assert_eq!((later.endpoint.zone.as_str(), later.is_spilling), ("z1", false));

    let dead = snapshot(&endpoints[2..], vec![down("z1", Missing::Yes); 2], balanced(SPLIT));
    assert_eq!(by_zone(&dead, Asked::default()), BTreeMap::from([("z2".to_owned(), 10_000)]), "dead");
}

#[test]
fn half_a_zone_keeps_seven_tenths_of_its_part_and_what_left_for_good_does_not_count() {
    // 80 * 0.5 * 1.4 = 56 beside 20: 73.7 %.
    let endpoints = [endpoint("z1", 1), endpoint("z2", 3)];
    let half = snapshot(&endpoints, vec![down("z1", Missing::Yes)], balanced(SPLIT));
    let counts = by_zone(&half, Asked::default());
    assert!(counts["z1"].abs_diff(7368) <= 150, "{counts:?}");
    let left = snapshot(&endpoints, vec![down("z1", Missing::No)], balanced(SPLIT));
    assert!(is_near(by_zone(&left, Asked::default()).get("z1"), 80), "one that has left is not missed");
    let suspect = Arc::new(Endpoint { suspect: true, ..Arc::unwrap_or_clone(endpoint("z1", 2)) });
    let doubted = snapshot(&[suspect, endpoint("z2", 3)], Vec::new(), balanced(SPLIT));
    // A suspect counts a quarter: 80 * 0.25 * 1.4 = 28 beside 20.
    let counts = by_zone(&doubted, Asked::default());
    assert!(counts["z1"].abs_diff(5833) <= 150, "{counts:?}");
}

#[test]
fn with_nobody_left_in_the_split_the_nearest_of_the_others_answer() {
    let endpoints = [endpoint("us/z1", 1), endpoint("z3", 2)];
    let gone = snapshot(&endpoints, vec![down("z1", Missing::Yes), down("z2", Missing::Yes)], balanced(SPLIT));
    assert_eq!(by_zone(&gone, Asked::default()), BTreeMap::from([("z3".to_owned(), 10_000)]), "the own region first");
    endpoints[1].stats.failed(NOW + Duration::from_secs(5));
    let pick = pick(&gone, "hello", Asked::default(), [0.5; 2], NOW).unwrap();
    assert_eq!(pick.endpoint.node_name, "on-z1-1", "then anywhere");
}

#[test]
fn tiers_keep_requests_in_the_own_zone_and_spill_when_it_is_short() {
    let table = || balanced("{ locality: { tiers: [ zone, region, any ] } }");
    let endpoints = [endpoint("us/z9", 1), endpoint("z2", 2), endpoint("z1", 3)];
    let counts = by_zone(&snapshot(&endpoints, Vec::new(), table()), Asked::default());
    assert_eq!(counts, BTreeMap::from([("z1".to_owned(), 10_000)]));
    let short = snapshot(&endpoints, vec![down("z1", Missing::Yes)], table());
    let counts = by_zone(&short, Asked::default());
    assert!(is_near(counts.get("z1"), 70) && is_near(counts.get("z2"), 30), "{counts:?}");
}

#[test]
fn a_second_try_goes_to_any_locality() {
    let endpoints = [endpoint("z1", 1), endpoint("us/z9", 2)];
    let known = snapshot(&endpoints, Vec::new(), balanced("{ locality: { tiers: [ zone ] } }"));
    let first = pick(&known, "hello", Asked::default(), [0.5; 2], NOW).unwrap();
    assert_eq!(first.endpoint.zone, "z1");
    let tried = [first.endpoint];
    let second = pick(&known, "hello", Asked { tried: &tried, ..Asked::default() }, [0.5; 2], NOW).unwrap();
    assert_eq!(second.endpoint.zone, "z9");
}

#[test]
fn the_nearest_are_counted_in_each_locality() {
    let endpoints = [endpoint("z1", 1), endpoint("z1", 2), endpoint("z2", 50), endpoint("z2", 60)];
    let spec = SPLIT.replace("{ locality", "{ loadBalancer: { subset: { nearest: 1 } }, locality");
    let known = snapshot(&endpoints, Vec::new(), balanced(&spec));
    let backend = known.table.backend("hello");
    let Eligible { candidates, out, .. } = eligible(&known.services["hello"], Asked::default(), NOW, backend);
    let names: Vec<&str> = candidates.iter().map(|endpoint| &*endpoint.instance).collect();
    assert_eq!(names, ["z1-1", "z2-50"]);
    assert_eq!(out.len(), 2);
    let counts = by_zone(&known, Asked::default());
    assert!(is_near(counts.get("z1"), 80), "{counts:?}");
}

#[test]
fn explain_shows_each_locality_and_why_others_get_nothing() {
    let endpoints = [endpoint("z1", 1), endpoint("z2", 2), endpoint("us/z9", 3)];
    let known = snapshot(&endpoints, vec![down("z1", Missing::Yes)], balanced(SPLIT));
    let view = &known.services["hello"];
    let Eligible { out, spread, .. } = eligible(view, Asked::default(), NOW, known.table.backend("hello"));
    let told: Vec<String> = (explained(view, spread.as_ref()).iter())
        .map(|one| {
            format!("{} {:?} {} of {} {:.3} {}", one.name, one.percent, one.sound, one.known, one.share, one.candidates)
        })
        .collect();
    assert_eq!(
        told,
        [
            "eu/z1 Some(80) 1 of 2 0.737 1",
            "eu/z2 Some(20) 1 of 1 0.263 1",
            "own zone None 0 of 0 0.000 0",
            "own region None 0 of 0 0.000 0",
            "anywhere None 1 of 1 0.000 0"
        ]
    );
    let reason = out[0].1.sentence(&known.services["hello"], &out[0].0);
    assert_eq!(reason, "its locality (anywhere) gets nothing while others have enough sound instances");
}

const RESIDENCY: &str = "
apiVersion: marram.dev/v1
kind: Residency
metadata: { name: hello }
targetRef: { kind: Service, name: hello }
spec: { allowRegions: [ eu ] }
";

#[test]
fn residency_stands_before_every_weight_and_refuses_rather_than_lets_a_request_leave() {
    let endpoints = [endpoint("z1", 1), endpoint("us/z1", 2), endpoint("/z1", 3)];
    let known = snapshot(&endpoints, Vec::new(), table(RESIDENCY));
    let reasons: Vec<&str> = known.services["hello"].excluded.iter().map(|out| out.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "its region `us` is not one that Residency lets answer",
            "its node is in no region, and a Residency says which may answer"
        ]
    );
    for _ in 0..2 {
        let only = pick(&known, "hello", Asked::default(), [0.99; 2], NOW).unwrap();
        assert_eq!(only.endpoint.node_name, "on-z1-1", "also when it is ejected");
        endpoints[0].stats.failed(NOW + Duration::from_secs(5));
    }
    let tried = [Arc::clone(&endpoints[0])];
    let second = pick(&known, "hello", Asked { tried: &tried, ..Asked::default() }, [0.5; 2], NOW);
    assert!(matches!(second, Err(NoPick::NoneHealthy(_))), "a second try does not leave either: {second:?}");
    let nobody = snapshot(&endpoints[1..], Vec::new(), table(RESIDENCY));
    let refused = pick(&nobody, "hello", Asked::default(), [0.5; 2], NOW).unwrap_err();
    assert!(matches!(&refused, NoPick::Forbidden(reasons) if reasons.len() == 2), "{refused:?}");
}

#[test]
fn below_the_panic_threshold_ejections_do_not_count_and_above_it_they_do() {
    let endpoints: Vec<Arc<Endpoint>> = (1..=4).map(|n| endpoint("z1", n)).collect();
    let spec = "{ healthCheck: { panicThreshold: 50 } }";
    let known = snapshot(&endpoints, vec![down("z1", Missing::Yes); 4], balanced(spec));
    let (view, backend) = (&known.services["hello"], known.table.backend("hello"));
    let inside = || {
        let eligible = eligible(view, Asked::default(), NOW, backend);
        (eligible.candidates.len(), eligible.is_panic)
    };
    let mut told = vec![inside()];
    for endpoint in &endpoints {
        endpoint.stats.failed(NOW + Duration::from_secs(5));
        told.push(inside());
    }
    assert_eq!(
        told,
        [(4, false), (3, false), (2, false), (4, true), (4, true)],
        "what its owner calls down never counts"
    );
    let without = eligible(view, Asked::default(), NOW, &BackendPolicy::default());
    assert_eq!((without.candidates.len(), without.is_panic), (4, false), "without one all are drawn when all are out");
    let pick = pick(&known, "hello", Asked::default(), [0.5; 2], NOW).unwrap();
    assert!(pick.is_panic);
}

#[test]
fn a_newcomer_gets_a_part_of_its_weight_that_grows() {
    let endpoints = [endpoint("z1", 1), endpoint("z1", 1)];
    let spec = "{ loadBalancer: { draw: Single, slowStart: { window: 20s } } }";
    let known = snapshot(&endpoints, Vec::new(), balanced(spec));
    endpoints[0].stats.mark_present(Duration::ZERO);
    endpoints[1].stats.mark_present(NOW);
    endpoints[1].stats.mark_present(NOW + Duration::from_secs(3));
    for (seconds, factor) in [(0, 0.1), (2, 0.1), (5, 0.25), (10, 0.5), (20, 1.0), (60, 1.0)] {
        let pick = pick(&known, "hello", Asked::default(), [0.5; 2], NOW + Duration::from_secs(seconds)).unwrap();
        let ratio = pick.weighed[1].probability / pick.weighed[0].probability;
        assert!((ratio - factor).abs() < 1e-9, "{seconds} s: {ratio}");
    }
    endpoints[0].stats.mark_absent();
    endpoints[0].stats.mark_present(NOW + Duration::from_secs(60));
    let pick = pick(&known, "hello", Asked::default(), [0.5; 2], NOW + Duration::from_secs(60)).unwrap();
    assert!(pick.weighed[0].probability < 0.1, "who was away starts again");
}

fn needing(gpu: u32, on_unmatched: &str) -> Arc<policy::Requirements> {
    let text = format!(
        "apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: {{ name: see }}
spec:
  hostnames: [ see.mesh ]
  rules:
  - backendRefs: [ {{ name: hello }} ]
    requirements: [ {{ name: gpu, atLeast: {gpu} }} ]
    onUnmatched: {on_unmatched}
"
    );
    let (_, requirements) = table(&text).requirements("hello").pop().unwrap();
    requirements
}

#[test]
fn only_nodes_that_are_what_is_required_are_asked_and_the_others_say_what_they_lack() {
    let endpoints = [endpoint("z1", 0), endpoint("z1", 2), endpoint("z2", 4)];
    let known = snapshot(&endpoints, Vec::new(), balanced(SPLIT));
    let required = needing(2, "deny");
    let asked = Asked { requirements: Some(&required), ..Asked::default() };
    let Eligible { candidates, out, .. } = eligible(&known.services["hello"], asked, NOW, known.table.backend("hello"));
    assert_eq!(candidates.iter().map(|one| &*one.instance).collect::<Vec<_>>(), ["z1-2", "z2-4"]);
    assert_eq!(out[0].1.sentence(&known.services["hello"], &out[0].0), "needs gpu >= 2, node has 0");
    let counts = by_zone(&known, asked);
    assert!(is_near(counts.get("z1"), 80), "what does not count for this request is not missed: {counts:?}");

    let too_much = needing(9, "deny");
    let refused =
        pick(&known, "hello", Asked { requirements: Some(&too_much), ..Asked::default() }, [0.5; 2], NOW).unwrap_err();
    let NoPick::Unfit(reasons) = refused else { panic!("{refused:?}") };
    assert_eq!(reasons[0], ("z1-0@on-z1-0".to_owned(), "needs gpu >= 9, node has 0".to_owned()));
    let passing = needing(9, "pass-through");
    let counts = by_zone(&known, Asked { requirements: Some(&passing), ..Asked::default() });
    assert!(is_near(counts.get("z1"), 80), "as if nothing had been required: {counts:?}");
}
