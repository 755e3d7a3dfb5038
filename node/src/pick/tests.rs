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
        service: "hello".into(),
        instance: name.into(),
        node: NodeId::from_bytes([1; 16]),
        node_name: format!("on-{name}"),
        zone: String::new(),
        facts: Arc::default(),
        locality: 0,
        protocol: Protocol::Http,
        capacity: Capacity::new(capacity).unwrap(),
        capacity_source: CapacitySource::Declared,
        distance_ms,
        distance_source: DistanceSource::Rtt,
        local: None,
        suspect: false,
        stats: Arc::new(EndpointStats::default()),
        via: std::sync::OnceLock::new(),
    })
}

fn view(endpoints: Vec<Arc<Endpoint>>) -> ServiceView {
    let out = ExcludedEndpoint {
        instance: "z".to_owned(),
        node: "far".to_owned(),
        reason: "its node is dead".to_owned(),
        protocol: None,
        facts: Arc::default(),
        missing: Missing::Yes,
    };
    let (excluded, stats) = (vec![out], Arc::default());
    ServiceView {
        name: "hello".to_owned(),
        endpoints,
        excluded,
        active_clients: 1.0,
        stats,
        fleet_share: None,
        placed: None,
    }
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
    Snapshot::new(1, here, Arc::new(table), services, HashMap::new())
}

/// One that is left out, with the reason.
type Told = (Arc<Endpoint>, String);

/// Candidates, and those left out with the reason as people read it.
fn eligible(
    view: &ServiceView,
    tried: &[Arc<Endpoint>],
    now: Duration,
    backend: &BackendPolicy,
) -> (Vec<Arc<Endpoint>>, Vec<Told>) {
    let Eligible { candidates, out, .. } =
        super::eligible(view, Asked { tried, with_candidates: true, ..Asked::default() }, now, backend);
    let told = out.into_iter().map(|(endpoint, reason)| {
        let sentence = reason.sentence(view, &endpoint);
        (endpoint, sentence)
    });
    (candidates, told.collect())
}

fn asked(tried: &[Arc<Endpoint>]) -> Asked<'_> {
    Asked { tried, with_candidates: true, ..Asked::default() }
}

fn balanced(load_balancer: &str) -> RouteTable {
    let text = format!(
        "\
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: {{ name: hello, scope: global }}
targetRef: {{ kind: Service, name: hello }}
spec: {{ loadBalancer: {load_balancer} }}
"
    );
    let documents = parse_documents(&text, &policy::Limits::default()).unwrap();
    compile(&documents, &Place::default(), 0).table
}

fn names(endpoints: &[Arc<Endpoint>]) -> Vec<&str> {
    endpoints.iter().map(|endpoint| &*endpoint.instance).collect()
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
    let (view, table) = (view(far_first), balanced("{ subset: { nearest: 2 } }"));
    let (inside, out) = eligible(&view, &[], NOW, table.backend("hello"));
    assert_eq!(names(&inside), ["near", "mid"]);
    assert_eq!(&*out[0].0.instance, "far");
    assert!(out[0].1.contains("nearest 2"), "{}", out[0].1);
}

#[test]
fn a_suspected_owner_counts_a_quarter() {
    let suspect = Endpoint { suspect: true, ..Arc::into_inner(endpoint("a", 8.0, 1.0)).unwrap() };
    assert!((capacity(&suspect, &BackendPolicy::default(), NOW).requests() - 2.0).abs() < 1e-12);
}

#[test]
fn no_pick_names_every_known_instance_and_why() {
    let known = snapshot(view(Vec::new()), RouteTable::default());
    assert_eq!(pick(&known, "nobody", asked(&[]), [0.5; 2], NOW).unwrap_err(), NoPick::UnknownService);
    let NoPick::NoneHealthy(reasons) = pick(&known, "hello", asked(&[]), [0.5; 2], NOW).unwrap_err() else {
        panic!("hello is known");
    };
    assert_eq!(reasons, [("z@far".to_owned(), "its node is dead".to_owned())]);
}

#[test]
fn picks_follow_the_sum_of_the_probabilities_recorded_at_each_decision() {
    let endpoints = vec![endpoint("a", 10.0, 1.0), endpoint("b", 20.0, 30.0), endpoint("c", 40.0, 60.0)];
    let known = snapshot(view(endpoints.clone()), balanced("{ draw: Single }"));
    let mut chance = rand::rngs::StdRng::seed_from_u64(7);
    let mut held = Vec::new();
    for turn in 0..20_000 {
        let chosen = pick(&known, "hello", asked(&[]), [chance.random(), chance.random()], NOW).unwrap();
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
    let first = pick(&known, "hello", asked(&[]), [0.0; 2], NOW).unwrap();
    let second = pick(&known, "hello", asked(&[Arc::clone(&first.endpoint)]), [0.0; 2], NOW).unwrap();
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

/// Ten thousand picks under the best of two, each over before the next; how often each endpoint was picked.
fn picks_by_best_of_two(endpoints: &[Arc<Endpoint>]) -> Vec<u64> {
    let known = snapshot(view(endpoints.to_vec()), balanced("{ draw: BestOfTwo }"));
    let mut chance = rand::rngs::StdRng::seed_from_u64(11);
    for _ in 0..10_000 {
        let chosen = pick(&known, "hello", asked(&[]), [chance.random(), chance.random()], NOW).unwrap();
        assert!(chosen.passed_over.is_some() && chosen.draw == Draw::BestOfTwo, "two were drawn");
    }
    endpoints.iter().map(|endpoint| endpoint.stats.picks().0).collect()
}

fn answers_after(endpoint: &Endpoint, ms: u64) {
    endpoint.stats.learn_latency(|known| known.answered(Duration::from_millis(ms), NOW));
}

#[test]
fn of_two_that_are_drawn_the_slower_endpoint_is_left_alone() {
    let endpoints = ["slow", "b", "c", "d"].map(|name| endpoint(name, 10.0, 1.0));
    for (endpoint, ms) in endpoints.iter().zip([100, 10, 10, 10]) {
        answers_after(endpoint, ms);
    }
    let picks = picks_by_best_of_two(&endpoints);
    assert_eq!((picks[0], picks.iter().sum::<u64>()), (0, 10_000));
}

#[test]
fn an_endpoint_that_errs_at_once_does_not_attract() {
    let endpoints = ["broken", "b", "c", "d"].map(|name| endpoint(name, 10.0, 1.0));
    for endpoint in &endpoints {
        answers_after(endpoint, 10);
    }
    for _ in 0..100 {
        endpoints[0].stats.learn_latency(|known| known.erred(Duration::from_micros(100), NOW));
    }
    let picks = picks_by_best_of_two(&endpoints)[0];
    assert!(picks < 2_700, "a quarter at most: {picks}");
    let newcomers = ["broken", "b", "c", "d"].map(|name| endpoint(name, 10.0, 1.0));
    newcomers[0].stats.learn_latency(|known| known.erred(Duration::from_micros(100), NOW));
    newcomers[1..].iter().for_each(|endpoint| answers_after(endpoint, 10));
    assert_eq!(picks_by_best_of_two(&newcomers)[0], 0, "nothing but an error is known of it");
}

#[test]
fn an_endpoint_that_failed_comes_back_with_one_request_at_a_time() {
    let endpoints = ["back", "b", "c", "d"].map(|name| endpoint(name, 10.0, 1.0));
    for endpoint in &endpoints {
        answers_after(endpoint, 10);
    }
    endpoints[0].stats.failed(NOW);
    assert_eq!(endpoints[0].stats.latency_ms(NOW), None);
    let trial = endpoints[0].stats.begin();
    assert_eq!(picks_by_best_of_two(&endpoints)[0], 0, "it has not answered yet");
    drop(trial);
    assert!(picks_by_best_of_two(&endpoints)[0] > 0, "it is asked again");
}

#[test]
fn an_endpoint_that_nobody_has_heard_an_answer_of_is_tried() {
    let endpoints = ["new", "b", "c", "d"].map(|name| endpoint(name, 10.0, 1.0));
    for endpoint in &endpoints[1..] {
        answers_after(endpoint, 10);
    }
    let picks = picks_by_best_of_two(&endpoints)[0];
    assert!((4_700..5_300).contains(&picks), "drawn in half of the decisions and first in each: {picks}");
}

#[test]
fn picks_by_the_best_of_two_make_no_difference_between_picks_and_expectation() {
    let endpoints = ["a", "b", "c"].map(|name| endpoint(name, 10.0, 1.0));
    answers_after(&endpoints[0], 100);
    picks_by_best_of_two(&endpoints);
    for endpoint in &endpoints {
        let (picks, expected) = endpoint.stats.picks();
        assert!((f64::from(u32::try_from(picks).unwrap()) - expected).abs() < 1e-6, "{picks}, {expected}");
    }
}

#[test]
fn an_old_report_of_load_yields_to_what_is_seen_from_here() {
    let view = view(vec![endpoint("a", 10.0, 1.0)]);
    let stats = &view.endpoints[0].stats;
    stats.report_inflight(80, NOW);
    assert_eq!(stats.reported(NOW + Duration::from_micros(1_500)).age_us, 1_500);
    assert_eq!(stats.reported(NOW - Duration::from_secs(1)).age_us, 0, "another thread's clock is behind");
    assert!((inflight(&view, &view.endpoints[0], NOW) - 40.0).abs() < 1e-9);
    answers_after(&view.endpoints[0], 10);
    let later = inflight(&view, &view.endpoints[0], NOW + Duration::from_secs(1));
    assert!(later < 0.1, "after the time of a hundred answers all of those are done: {later}");
}

#[test]
fn a_node_that_is_heard_again_starts_without_a_latency() {
    let endpoint = endpoint("a", 10.0, 1.0);
    answers_after(&endpoint, 10);
    assert!(endpoint.stats.latency_ms(NOW).is_some());
    endpoint.stats.readmit();
    assert_eq!(endpoint.stats.latency_ms(NOW), None);
}
