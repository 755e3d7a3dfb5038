use std::collections::{BTreeMap, HashMap};

use policy::explain::{CapacitySource, DistanceSource};
use policy::{Place, RouteTable, compile, parse_documents};
use rand::{RngExt as _, SeedableRng as _};
use transport::NodeId;

use super::*;
use crate::config::Protocol;
use crate::snapshot::{EndpointStats, ExcludedEndpoint, Here};

const NOW: Duration = Duration::from_secs(100);

fn endpoint(name: &str, capacity: f64, distance_ms: f64) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        service: "hello".to_owned(),
        instance: name.to_owned(),
        node: NodeId::from_bytes([1; 16]),
        node_name: format!("on-{name}"),
        zone: String::new(),
        protocol: Protocol::Http,
        capacity: Capacity::new(capacity).unwrap(),
        capacity_source: CapacitySource::Declared,
        distance_ms,
        distance_source: DistanceSource::Rtt,
        local: None,
        suspect: false,
        stats: Arc::new(EndpointStats::default()),
    })
}

fn view(endpoints: Vec<Arc<Endpoint>>) -> ServiceView {
    let out =
        ExcludedEndpoint { instance: "z".to_owned(), node: "far".to_owned(), reason: "its node is dead".to_owned() };
    ServiceView { name: "hello".to_owned(), endpoints, excluded: vec![out], active_clients: 1.0 }
}

fn snapshot(view: ServiceView, table: RouteTable) -> Snapshot {
    let here = Here {
        node: NodeId::from_bytes([9; 16]),
        name: "me".to_owned(),
        region: String::new(),
        zone: String::new(),
        mesh: "shop".to_owned(),
    };
    let services = BTreeMap::from([("hello".to_owned(), Arc::new(view))]);
    Snapshot { version: 1, here, table: Arc::new(table), services, local: HashMap::new() }
}

fn nearest_two() -> RouteTable {
    let text = "\
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: hello, scope: global }
targetRef: { kind: Service, name: hello }
spec: { loadBalancer: { subset: { nearest: 2 } } }
";
    let documents = parse_documents(text, &policy::Limits::default()).unwrap();
    compile(&documents, &Place::default(), 0).table
}

fn names(endpoints: &[Arc<Endpoint>]) -> Vec<&str> {
    endpoints.iter().map(|endpoint| endpoint.instance.as_str()).collect()
}

#[test]
fn an_ejected_endpoint_is_left_out_with_the_reason_until_its_time_is_over() {
    let view = view(vec![endpoint("a", 1.0, 1.0), endpoint("b", 1.0, 1.0)]);
    view.endpoints[0].stats.failed(NOW + Duration::from_secs(5));
    let table = RouteTable::default();
    let (inside, out) = eligible(&view, &[], NOW, table.backend("hello"));
    assert_eq!(names(&inside), ["b"]);
    assert!(out[0].1.contains("1 failures in a row"), "{:?}", out[0].1);
    let (later, _) = eligible(&view, &[], NOW + Duration::from_secs(6), table.backend("hello"));
    assert_eq!(names(&later), ["a", "b"]);
}

#[test]
fn when_all_are_ejected_all_are_drawn_again_except_the_one_that_this_request_tried() {
    let view = view(vec![endpoint("a", 1.0, 1.0), endpoint("b", 1.0, 1.0)]);
    for endpoint in &view.endpoints {
        endpoint.stats.failed(NOW + Duration::from_secs(5));
    }
    let table = RouteTable::default();
    assert_eq!(names(&eligible(&view, &[], NOW, table.backend("hello")).0), ["a", "b"]);
    let tried = vec![Arc::clone(&view.endpoints[0])];
    assert_eq!(names(&eligible(&view, &tried, NOW, table.backend("hello")).0), ["b"]);
}

#[test]
fn only_the_nearest_that_policy_asks_for_take_part_and_the_rest_say_so() {
    let far_first = vec![endpoint("far", 1.0, 90.0), endpoint("near", 1.0, 1.0), endpoint("mid", 1.0, 20.0)];
    let (view, table) = (view(far_first), nearest_two());
    let (inside, out) = eligible(&view, &[], NOW, table.backend("hello"));
    assert_eq!(names(&inside), ["near", "mid"]);
    assert_eq!(out[0].0.instance, "far");
    assert!(out[0].1.contains("nearest 2"), "{}", out[0].1);
}

#[test]
fn a_suspected_owner_counts_a_quarter() {
    let suspect = Endpoint { suspect: true, ..Arc::into_inner(endpoint("a", 8.0, 1.0)).unwrap() };
    assert!((capacity(&suspect).requests() - 2.0).abs() < 1e-12);
}

#[test]
fn no_pick_names_every_known_instance_and_why() {
    let known = snapshot(view(Vec::new()), RouteTable::default());
    assert_eq!(pick(&known, "nobody", &[], 0.5, NOW).unwrap_err(), NoPick::UnknownService);
    let NoPick::NoneHealthy(reasons) = pick(&known, "hello", &[], 0.5, NOW).unwrap_err() else {
        panic!("hello is known");
    };
    assert_eq!(reasons, [("z@far".to_owned(), "its node is dead".to_owned())]);
}

#[test]
fn picks_follow_the_sum_of_the_probabilities_recorded_at_each_decision() {
    let endpoints = vec![endpoint("a", 10.0, 1.0), endpoint("b", 20.0, 30.0), endpoint("c", 40.0, 60.0)];
    let known = snapshot(view(endpoints.clone()), RouteTable::default());
    let mut chance = rand::rngs::StdRng::seed_from_u64(7);
    let mut held = Vec::new();
    for turn in 0..20_000 {
        let chosen = pick(&known, "hello", &[], chance.random(), NOW).unwrap();
        // Requests stay in flight for a while, so that the probabilities move.
        held.push(chosen.endpoint.stats.begin());
        if turn % 50 == 49 {
            held.clear();
        }
    }
    let chi_square: f64 = endpoints
        .iter()
        .map(|endpoint| {
            let (picks, expected) = endpoint.stats.picks();
            (f64::from(u32::try_from(picks).unwrap()) - expected).powi(2) / expected
        })
        .sum();
    // 13.8 is the 0.999 quantile of chi-square with two degrees of freedom.
    assert!(chi_square < 13.8, "chi-square {chi_square}: {endpoints:?}");
}

#[test]
fn a_second_try_is_not_counted_as_a_decision() {
    let known = snapshot(view(vec![endpoint("a", 1.0, 1.0), endpoint("b", 1.0, 1.0)]), RouteTable::default());
    let first = pick(&known, "hello", &[], 0.0, NOW).unwrap();
    let second = pick(&known, "hello", &[Arc::clone(&first.endpoint)], 0.0, NOW).unwrap();
    assert_ne!(first.endpoint.instance, second.endpoint.instance);
    assert_eq!(second.endpoint.stats.picks().0, 0);
}

#[test]
fn a_second_try_goes_to_a_sound_endpoint_while_there_is_one() {
    // Two unreachable endpoints came back from ejection together; a request drew one and spent its retry on the other.
    let view = view(vec![endpoint("a", 1.0, 1.0), endpoint("b", 1.0, 1.0), endpoint("c", 1.0, 1.0)]);
    for cut in &view.endpoints[..2] {
        cut.stats.failed(NOW);
    }
    let (table, later) = (RouteTable::default(), NOW + Duration::from_secs(1));
    let first = eligible(&view, &[], later, table.backend("hello")).0;
    assert_eq!(names(&first), ["a", "b", "c"], "a first draw takes all that are back");
    let second = eligible(&view, &first[..1], later, table.backend("hello")).0;
    assert_eq!(names(&second), ["c"]);
    let last = eligible(&view, &[Arc::clone(&view.endpoints[2])], later, table.backend("hello")).0;
    assert_eq!(names(&last), ["a", "b"], "without a sound one left, a guess beats a refusal");
}
