use super::*;
use crate::config::{Location, Protocol};
use crate::view::Capabilities;

const NOW: Duration = Duration::from_secs(100);

fn id(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 16])
}

fn facts(name: &str) -> Facts {
    Facts {
        name: name.to_owned(),
        region: "eu".to_owned(),
        zone: "a".to_owned(),
        addresses: vec!["127.0.0.1:7440".to_owned()],
        location: None,
        capabilities: Capabilities::default(),
        version: "0.1.0".to_owned(),
        chain: Vec::new(),
    }
}

fn offer(down: Option<&str>) -> Offers {
    let instance = Offer {
        service: "hello".to_owned(),
        instance: "1".to_owned(),
        protocol: Protocol::Http.into(),
        capacity: 10.0,
        declared: true,
        down: down.map(str::to_owned),
        labels: BTreeMap::new(),
    };
    Offers { instances: vec![instance], draining: false }
}

/// This node is 0; nodes 1 and 2 offer `hello`.
fn catalog() -> Catalog {
    let mut catalog = Catalog::new(id(0));
    for byte in 0..3 {
        let admitted = (Role::Member, [byte; 32]);
        catalog.take_facts(id(byte), admitted, (1, 1), facts(&format!("n{byte}")), NOW).unwrap();
    }
    for byte in 1..3 {
        catalog.take_offers(id(byte), (1, 1), offer(None)).unwrap();
        catalog.take_verdict(id(byte), Liveness::Alive, 1, "answers", NOW);
    }
    catalog
}

fn hello(catalog: &mut Catalog) -> Arc<ServiceView> {
    let far = Distance { ms: 1.0, source: DistanceSource::Rtt };
    catalog.services(&HashMap::new(), |_| far, NOW).remove("hello").expect("two nodes offer hello")
}

fn nodes_of(view: &ServiceView) -> Vec<&str> {
    view.endpoints.iter().map(|endpoint| endpoint.node_name.as_str()).collect()
}

#[test]
fn an_instance_leaves_with_its_owner_and_comes_back_with_it() {
    let mut catalog = catalog();
    assert_eq!(nodes_of(&hello(&mut catalog)), ["n1", "n2"]);
    assert!(catalog.take_verdict(id(1), Liveness::Dead, 1, "no ack to 3 probes", NOW));
    let without = hello(&mut catalog);
    assert_eq!(nodes_of(&without), ["n2"]);
    assert!(without.excluded[0].reason.contains("no ack to 3 probes"), "{:?}", without.excluded);
    catalog.take_verdict(id(1), Liveness::Alive, 2, "refuted", NOW);
    assert_eq!(nodes_of(&hello(&mut catalog)), ["n1", "n2"]);
}

#[test]
fn an_instance_whose_check_fails_is_listed_with_the_reason_instead_of_drawn() {
    let mut catalog = catalog();
    catalog.take_offers(id(2), (1, 2), offer(Some("GET /healthz: 503"))).unwrap();
    let view = hello(&mut catalog);
    assert_eq!(nodes_of(&view), ["n1"]);
    assert_eq!(view.excluded[0].reason, "GET /healthz: 503");
}

#[test]
fn an_older_record_never_replaces_a_newer_one() {
    let mut catalog = catalog();
    catalog.take_offers(id(1), (2, 1), Offers::default()).unwrap();
    assert_eq!(catalog.take_offers(id(1), (1, 99), offer(None)), Err(Refusal::Old));
    assert_eq!(nodes_of(&hello(&mut catalog)), ["n2"]);
}

#[test]
fn offers_of_a_node_without_facts_are_refused_until_its_facts_arrive() {
    let mut catalog = catalog();
    assert_eq!(catalog.take_offers(id(9), (1, 1), offer(None)), Err(Refusal::NoFacts));
}

#[test]
fn a_node_that_never_answered_a_probe_gets_no_traffic() {
    let mut catalog = catalog();
    catalog.take_facts(id(3), (Role::Member, [3; 32]), (1, 1), facts("n3"), NOW).unwrap();
    catalog.take_offers(id(3), (1, 1), offer(None)).unwrap();
    assert_eq!(nodes_of(&hello(&mut catalog)), ["n1", "n2"]);
}

#[test]
fn loads_reach_the_counters_that_requests_read_and_outlive_the_snapshot() {
    let mut catalog = catalog();
    let before = hello(&mut catalog);
    let loads = Loads { inflight: vec![("hello".to_owned(), "1".to_owned(), 7)], ..Loads::default() };
    catalog.take_loads(id(1), (1, 1), loads, NOW).unwrap();
    assert_eq!(before.endpoints[0].stats.reported(Duration::ZERO).inflight, 7);
    let after = hello(&mut catalog);
    assert!(Arc::ptr_eq(&before.endpoints[0].stats, &after.endpoints[0].stats));
}

#[test]
fn active_clients_are_the_alive_nodes_that_said_so_and_this_one() {
    let mut catalog = catalog();
    let loads = Loads { clients: vec!["hello".to_owned()], ..Loads::default() };
    catalog.take_loads(id(1), (1, 1), loads.clone(), NOW).unwrap();
    catalog.take_loads(id(2), (1, 1), loads, NOW).unwrap();
    assert!((hello(&mut catalog).active_clients - 3.0).abs() < 1e-9);
    catalog.take_verdict(id(2), Liveness::Dead, 1, "silent", NOW);
    assert!((hello(&mut catalog).active_clients - 2.0).abs() < 1e-9);
}

#[test]
fn an_instance_whose_capacity_is_no_capacity_is_not_drawn_and_says_so() {
    let mut catalog = catalog();
    for (sequence, wrong) in (2..).zip([0.0, -3.0, f64::NAN, f64::INFINITY]) {
        let mut offers = offer(None);
        offers.instances[0].capacity = wrong;
        catalog.take_offers(id(1), (1, sequence), offers).unwrap();
        let view = hello(&mut catalog);
        assert_eq!(nodes_of(&view), ["n2"], "capacity {wrong}");
        assert!(view.excluded[0].reason.contains("capacity"), "{:?}", view.excluded);
    }
}

#[test]
fn the_great_circle_from_london_to_new_york_takes_about_56_ms() {
    let london = Location { lat: 51.5, lon: -0.13 };
    let new_york = Location { lat: 40.71, lon: -74.0 };
    let ms = great_circle_ms(london, new_york);
    assert!((ms - 55.7).abs() < 0.5, "{ms}");
}

#[test]
fn one_that_was_down_is_new_when_it_is_back_and_one_that_has_left_is_not_missed() {
    let mut catalog = catalog();
    let second = Duration::from_secs;
    let at = |catalog: &mut Catalog, now: Duration| {
        let far = Distance { ms: 1.0, source: DistanceSource::Rtt };
        let view = catalog.services(&HashMap::new(), |_| far, now).remove("hello").unwrap();
        let age = view.endpoints.iter().find(|endpoint| endpoint.node == id(1)).and_then(|one| one.stats.age(now));
        (age, view.excluded.iter().map(|out| out.missing).collect::<Vec<_>>())
    };
    assert_eq!(at(&mut catalog, NOW), (Some(Duration::ZERO), vec![]));
    assert_eq!(at(&mut catalog, NOW + second(5)), (Some(second(5)), vec![]));
    catalog.take_offers(id(1), (1, 2), offer(Some("GET /healthz: 503"))).unwrap();
    assert_eq!(at(&mut catalog, NOW + second(6)), (None, vec![Missing::Yes]));
    catalog.take_offers(id(1), (1, 3), offer(None)).unwrap();
    catalog.take_verdict(id(2), Liveness::Left, 2, "it said so", NOW);
    assert_eq!(at(&mut catalog, NOW + second(7)), (Some(Duration::ZERO), vec![Missing::No]));
}

/// What node 0 counts of `hello`: the other nodes that share, and what each that told is asked for.
fn asks_of(catalog: &Catalog) -> (usize, Vec<f64>) {
    let (others, mut by_service) = (catalog.sharers().count(), catalog.asks());
    (others, by_service.remove("hello").unwrap_or_default())
}

fn asks(per_second: u64) -> Asks {
    Asks { services: vec![("hello".to_owned(), per_second * 1_000_000)] }
}

#[test]
fn demands_count_of_every_node_that_is_not_known_to_be_gone() {
    let mut catalog = catalog();
    assert_eq!(asks_of(&catalog), (2, vec![]), "who told nothing is there all the same");
    catalog.take_asks(id(1), (1, 5), asks(70)).unwrap();
    catalog.take_asks(id(2), (1, 5), asks(30)).unwrap();
    assert_eq!(asks_of(&catalog), (2, vec![70.0, 30.0]));
    for (liveness, expected) in [
        (Liveness::Suspect, (2, vec![70.0, 30.0])),
        (Liveness::Dead, (1, vec![70.0])),
        (Liveness::Alive, (2, vec![70.0, 30.0])),
        (Liveness::Left, (1, vec![70.0])),
    ] {
        catalog.take_verdict(id(2), liveness, 1, "so it is", NOW);
        assert_eq!(asks_of(&catalog), expected, "{liveness}");
    }
    // It is known to be somewhere and will take requests in a moment.
    catalog.take_facts(id(3), (Role::Member, [3; 32]), (1, 1), facts("n3"), NOW).unwrap();
    assert_eq!(asks_of(&catalog).0, 2);
    catalog.take_asks(id(0), (1, 5), asks(900)).unwrap();
    assert_eq!(asks_of(&catalog), (2, vec![70.0]), "what is asked here is counted apart");
}

#[test]
fn a_demand_is_of_one_life_of_its_node_and_counts_once() {
    let mut catalog = catalog();
    catalog.take_asks(id(1), (1, 5), asks(70)).unwrap();
    assert_eq!(catalog.take_asks(id(1), (1, 5), asks(80)), Err(Refusal::Old));
    assert_eq!(catalog.take_asks(id(9), (1, 5), asks(80)), Err(Refusal::NoFacts));
    catalog.take_facts(id(1), (Role::Member, [1; 32]), (1, 9), facts("n1"), NOW).unwrap();
    assert_eq!(asks_of(&catalog).1, [70.0], "another address is no other life");
    catalog.take_facts(id(1), (Role::Member, [1; 32]), (2, 1), facts("n1"), NOW).unwrap();
    assert_eq!(asks_of(&catalog), (2, vec![]), "a node that starts anew is asked for nothing yet");
    assert_eq!(catalog.take_asks(id(1), (1, 99), asks(80)), Err(Refusal::Old));
    let again = Asks { services: [asks(40).services, asks(50).services, asks(60).services].concat() };
    catalog.take_asks(id(1), (2, 2), again).unwrap();
    assert_eq!(asks_of(&catalog), (2, vec![40.0]), "named three times it would count as three nodes");
    let many = (0..1000).map(|number| (format!("s{number}"), 1));
    catalog.take_asks(id(1), (2, 3), Asks { services: many.collect() }).unwrap();
    assert_eq!(catalog.node(id(1)).unwrap().asks.services.len(), ASKS_MAX);
}
