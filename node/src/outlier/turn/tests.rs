use std::collections::{BTreeMap, HashMap};

use policy::explain::{CapacitySource, DistanceSource};
use policy::{Capacity, Place, compile, parse_documents};
use transport::NodeId;

use super::*;
use crate::config::Protocol;
use crate::limits::ServiceStats;
use crate::pick::{Asked, eligible};
use crate::snapshot::{EndpointStats, Here};

const START: Duration = Duration::from_secs(100);

fn after(seconds: u64) -> Duration {
    START + Duration::from_secs(seconds)
}

/// A service with so many instances, whose first interval begins at `START`.
fn begun(count: usize, passive: &str) -> (Snapshot, Vec<Arc<Endpoint>>) {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: hello }}\n\
         targetRef: {{ kind: Service, name: hello }}\nspec: {{ healthCheck: {{ passive: {{ {passive} }} }} }}\n"
    );
    let table = compile(&parse_documents(&text, &policy::Limits::default()).unwrap(), &Place::default(), 0).table;
    let endpoints: Vec<Arc<Endpoint>> = (0..count).map(endpoint).collect();
    let view = ServiceView {
        name: "hello".to_owned(),
        endpoints: endpoints.clone(),
        excluded: Vec::new(),
        active_clients: 1.0,
        stats: Arc::default(),
        placed: None,
        fleet_share: None,
    };
    let here = Here {
        node: NodeId::from_bytes([9; 16]),
        name: "me".to_owned(),
        region: String::new(),
        zone: String::new(),
        mesh: "test".to_owned(),
    };
    let services = BTreeMap::from([("hello".to_owned(), Arc::new(view))]);
    let snapshot = Snapshot::new(1, here, Arc::new(table), services, HashMap::new());
    assert!(turn(&snapshot, START).is_empty());
    (snapshot, endpoints)
}

fn endpoint(at: usize) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        service: "hello".into(),
        instance: format!("i{at}").into(),
        node: NodeId::from_bytes([1; 16]),
        node_name: "n1".to_owned(),
        zone: String::new(),
        facts: Arc::default(),
        locality: 0,
        protocol: Protocol::Http,
        capacity: Capacity::new(10.0).unwrap(),
        capacity_source: CapacitySource::Declared,
        distance_ms: 1.0,
        distance_source: DistanceSource::Rtt,
        local: None,
        suspect: false,
        stats: Arc::new(EndpointStats::default()),
        via: std::sync::OnceLock::new(),
    })
}

/// Of a hundred answers so many are errors, never five in a row that count; the last is a good one.
fn answers(endpoint: &Endpoint, bad: usize, now: Duration) {
    let rule = Outlier { consecutive_errors: 0, ..Outlier::default() };
    for _ in 0..bad {
        assert_eq!(endpoint.stats.answered_badly(now, &rule, || true), None);
    }
    (bad..100).for_each(|_| endpoint.stats.answered_well(now));
}

/// Who was left out, for how many seconds.
fn told(ejections: &[Ejection]) -> Vec<(&str, u64)> {
    ejections.iter().map(|ejection| (&*ejection.endpoint.instance, ejection.out_for.as_secs())).collect()
}

#[test]
fn an_interval_is_over_once_and_a_shorter_one_is_not_waited_for() {
    let (ten, stats) = (Duration::from_secs(10), ServiceStats::default());
    let ends: Vec<bool> = [0, 9, 10, 11, 19, 25, 34].map(|at| stats.ends_interval(ten, after(at))).to_vec();
    assert_eq!(ends, [false, false, true, false, false, true, false]);
    assert!(!stats.ends_interval(Duration::from_secs(3600), after(34)));
    assert!(stats.ends_interval(Duration::from_secs(3600), after(35)));
    assert!(!stats.ends_interval(ten, after(36)), "the next one would be over in an hour");
    assert!(stats.ends_interval(ten, after(46)));
}

#[test]
fn the_one_below_the_others_is_out_for_the_base_time_and_twice_as_long_when_it_is_no_better() {
    let (snapshot, endpoints) = begun(5, "baseEjectionTime: 10s");
    let bad = Arc::clone(&endpoints[4]);
    let mut out_for = Vec::new();
    // Out from 10 to 20, back from 20 to 30, out from 30 to 50, back from 50 to 60, out from 60 to 100.
    for interval in 0..7 {
        for endpoint in &endpoints {
            // While it is out it gets none.
            let now = after(10 * interval + 5);
            if !endpoint.stats.is_ejected(now) {
                answers(endpoint, if Arc::ptr_eq(endpoint, &bad) { 30 } else { 0 }, now);
            }
        }
        assert!(turn(&snapshot, after(10 * interval + 9)).is_empty(), "the interval is not over");
        out_for.push(told(&turn(&snapshot, after(10 * interval + 10))).iter().map(|(_, out)| *out).sum::<u64>());
    }
    assert_eq!(out_for, [10, 0, 20, 0, 0, 40, 0], "its good answers between do not make it forgotten");
    assert!(bad.stats.is_outlier(after(99)) && !bad.stats.is_outlier(after(100)));
}

#[test]
fn each_interval_that_it_passes_well_takes_one_from_what_it_was_left_out_before() {
    let (snapshot, endpoints) = begun(5, "baseEjectionTime: 10s");
    let mut out_for = Vec::new();
    for (interval, bad) in [30, 0, 0, 30, 0, 0, 30].into_iter().enumerate() {
        let at = 10 * interval as u64;
        for endpoint in &endpoints[..4] {
            answers(endpoint, 0, after(at + 5));
        }
        if !endpoints[4].stats.is_ejected(after(at + 5)) {
            answers(&endpoints[4], bad, after(at + 5));
        }
        out_for.extend(told(&turn(&snapshot, after(at + 10))).iter().map(|(_, out)| *out));
    }
    assert_eq!(out_for, [10, 10, 10]);
}

#[test]
fn no_more_than_the_part_is_left_out_the_worst_first_and_those_out_for_errors_in_a_row_count() {
    let rule = "failurePercentage: { threshold: 20 }, successRate: { stdevFactor: 0 }";
    for (percent, already, expected) in [
        (50, 0, vec![("i2", 10), ("i1", 10)]),
        (25, 0, vec![("i2", 10)]),
        (0, 0, vec![]),
        (50, 1, vec![("i2", 10)]),
        (50, 2, vec![]),
        (75, 2, vec![("i2", 10)]),
    ] {
        let (snapshot, endpoints) = begun(4, &format!("maxEjectionPercent: {percent}, {rule}"));
        let once = Outlier { consecutive_errors: 1, ..Outlier::default() };
        for endpoint in [&endpoints[0], &endpoints[3]].into_iter().take(already) {
            assert!(endpoint.stats.answered_badly(after(5), &once, || true).is_some());
        }
        for (endpoint, bad) in endpoints.iter().zip([0, if already == 2 { 0 } else { 90 }, 99, 0]) {
            answers(endpoint, bad, after(9));
        }
        assert_eq!(told(&turn(&snapshot, after(10))), expected, "{percent} %, {already} out before");
    }
}

#[test]
fn who_is_out_already_is_not_judged_by_what_it_did_before() {
    let (snapshot, endpoints) = begun(6, "baseEjectionTime: 10s");
    for (endpoint, bad) in endpoints.iter().zip([0, 0, 0, 0, 0, 40]) {
        answers(endpoint, bad, after(5));
    }
    let once = Outlier { consecutive_errors: 1, ..Outlier::default() };
    assert_eq!(endpoints[5].stats.answered_badly(after(9), &once, || true), Some(Duration::from_secs(10)));
    assert!(turn(&snapshot, after(10)).is_empty());
    assert!(endpoints[5].stats.is_outlier(after(18)) && !endpoints[5].stats.is_outlier(after(19)));
}

#[test]
fn the_last_one_is_never_left_out() {
    let (snapshot, endpoints) = begun(2, "maxEjectionPercent: 100, failurePercentage: { threshold: 20 }");
    answers(&endpoints[0], 99, after(5));
    answers(&endpoints[1], 0, after(5));
    assert_eq!(told(&turn(&snapshot, after(10))), [("i0", 10)]);
    answers(&endpoints[1], 99, after(15));
    assert!(turn(&snapshot, after(20)).is_empty());
    answers(&endpoints[0], 0, after(25));
    answers(&endpoints[1], 99, after(25));
    assert_eq!(told(&turn(&snapshot, after(30))), [("i1", 10)], "and now there is the other one");
}

#[test]
fn what_was_sent_before_does_not_end_the_probation_and_the_first_answer_after_it_decides() {
    let (snapshot, endpoints) = begun(5, "baseEjectionTime: 10s");
    let [.., bad] = &endpoints[..] else { panic!("five") };
    for endpoint in &endpoints {
        answers(endpoint, if Arc::ptr_eq(endpoint, bad) { 30 } else { 0 }, after(5));
    }
    assert_eq!(told(&turn(&snapshot, after(10))), [("i4", 10)]);
    bad.stats.answered_well(after(11));
    let _asked = bad.stats.begin();
    assert!(bad.stats.is_on_probation());
    let rule = Outlier::default();
    let again = bad.stats.answered_badly(after(21), &rule, || true);
    assert_eq!(again, Some(Duration::from_secs(20)), "its first answer is an error");
    bad.stats.answered_well(after(42));
    assert!(!bad.stats.is_on_probation());
}

#[test]
fn who_looks_reads_what_it_had_and_what_the_others_have_until_it_is_out_for_something_else() {
    let (snapshot, endpoints) = begun(5, "baseEjectionTime: 10s");
    for (endpoint, bad) in endpoints.iter().zip([0, 0, 0, 0, 33]) {
        answers(endpoint, bad, after(5));
    }
    turn(&snapshot, after(10));
    let view = &snapshot.services["hello"];
    let sentence = |now| {
        let out = eligible(view, Asked::default(), now, snapshot.table.backend("hello")).out;
        out.iter().map(|(endpoint, why)| why.sentence(view, endpoint)).collect::<Vec<_>>()
    };
    let expected = "ejected here: its success rate is 67.0 % of 100 answers, that of the 5 instances compared 93.4 % on \
                    average";
    assert_eq!(sentence(after(11)), [expected]);
    assert_eq!(sentence(after(20)), [""; 0]);
    endpoints[4].stats.answered_badly(after(21), &Outlier::default(), || true);
    assert_eq!(sentence(after(22)), ["ejected here for answering with errors"]);
}

#[test]
fn one_whose_node_was_dead_begins_anew() {
    let (snapshot, endpoints) = begun(5, "baseEjectionTime: 10s");
    for (round, expected) in [(0, 10), (20, 10)] {
        for (endpoint, bad) in endpoints.iter().zip([0, 0, 0, 0, 33]) {
            answers(endpoint, bad, after(round + 5));
        }
        assert_eq!(told(&turn(&snapshot, after(round + 10))), [("i4", expected)]);
        endpoints[4].stats.readmit();
        assert_eq!((endpoints[4].stats.is_ejected(after(round + 10)), endpoints[4].stats.finding()), (false, None));
        assert!(turn(&snapshot, after(round + 20)).is_empty());
    }
}
