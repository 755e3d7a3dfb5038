use serde_json::{Value, json};

use super::{
    CapacitySource, DistanceSource, Excluded, ExplainedLocality, Explanation, Subject, explain, explain_parts,
};
use crate::{
    backend::{BackendPolicy, Draw},
    weigh::Capacity,
};

fn subject(node: &str, capacity: f64, inflight: f64, distance_ms: f64, picks: u64) -> Subject {
    Subject {
        instance: format!("hello@{node}"),
        node: node.to_owned(),
        zone: "z1".to_owned(),
        capacity: Capacity::new(capacity).unwrap(),
        capacity_source: CapacitySource::Declared,
        inflight,
        distance_ms,
        distance_source: DistanceSource::Rtt,
        latency_ms: Some(12.5),
        picks,
        expected_picks: 1.5,
        state: "ok".to_owned(),
        slow_start: None,
    }
}

fn excluded() -> Vec<Excluded> {
    vec![Excluded { instance: "hello@south".into(), node: "south".into(), reason: "check fails: 503".into() }]
}

#[test]
fn an_explanation_shows_the_numbers_of_the_worked_example() {
    let subjects = vec![
        subject("west", 100.0, 30.0, 0.2, 632),
        subject("east", 100.0, 10.0, 40.0, 245),
        subject("north", 200.0, 20.0, 90.0, 123),
    ];
    let explanation = explain("hello", &BackendPolicy::default(), "west", subjects, excluded());
    let rows: Vec<String> = explanation
        .candidates
        .iter()
        .map(|row| {
            format!(
                "{} {} {} {:.2} {:.1} {:.2} {:.1} {:.1}",
                row.instance,
                row.capacity,
                row.inflight,
                row.load,
                row.distance_ms,
                row.weight,
                100.0 * row.probability,
                100.0 * row.observed_share.unwrap(),
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            "hello@west 100 30 0.30 0.2 76.50 63.0 63.2",
            "hello@east 100 10 0.10 40.0 29.99 24.7 24.5",
            "hello@north 200 20 0.10 90.0 14.99 12.3 12.3",
        ]
    );
}

#[test]
fn the_answer_has_the_shape_that_scripts_rely_on() {
    let policy = BackendPolicy {
        lambda_per_ms: 0.0,
        draw: Draw::Single,
        source: "global/BackendTrafficPolicy/hello".into(),
        ..BackendPolicy::default()
    };
    let explanation = explain("hello", &policy, "west", vec![subject("east", 4.0, 2.0, 1.0, 0)], excluded());
    let value = serde_json::to_value(&explanation).unwrap();
    assert_eq!(
        value,
        json!({
            "service": "hello",
            "algorithm": "EdgeDecay",
            "lambda_per_ms": 0.0,
            "epsilon": 1.0,
            "draw": "Single",
            "policy": "global/BackendTrafficPolicy/hello",
            "as_known_by": "west",
            "candidates": [{
                "instance": "hello@east",
                "node": "east",
                "zone": "z1",
                "capacity": 4.0,
                "inflight": 2.0,
                "load": 0.5,
                "distance_ms": 1.0,
                "distance_source": "rtt",
                "weight": 4.0 / 1.5,
                "probability": 1.0,
                "latency_ms": 12.5,
                "observed_share": null,
                "picks": 0,
                "expected_picks": 1.5,
                "state": "ok",
                "capacity_source": "declared",
            }],
            "excluded": [{ "instance": "hello@south", "node": "south", "reason": "check fails: 503" }],
        })
    );
    assert_eq!(serde_json::from_value::<Explanation>(value).unwrap(), explanation);
}

#[test]
fn localities_stand_in_the_answer_with_their_shares_and_p_is_within_them() {
    let part = |name: &str, percent, share, candidates| ExplainedLocality {
        name: name.to_owned(),
        percent,
        sound: 1.0,
        known: 1.0,
        share,
        candidates,
    };
    let localities = vec![part("eu/z1", Some(80), 0.8, 1), part("eu/z2", Some(20), 0.2, 2)];
    let subjects = ["a", "b", "c"].map(|node| subject(node, 4.0, 0.0, 1.0, 0)).to_vec();
    let policy = BackendPolicy::default();
    let explanation = explain_parts("hello", &policy, "west", subjects, localities, Vec::new());
    let rows =
        explanation.candidates.iter().map(|row| (row.locality.as_deref(), (row.probability * 1e3).round() / 10.0));
    assert_eq!(rows.collect::<Vec<_>>(), [(Some("eu/z1"), 80.0), (Some("eu/z2"), 10.0), (Some("eu/z2"), 10.0)]);
    let value = serde_json::to_value(&explanation).unwrap();
    assert_eq!((&value["localities"][0]["percent"], &value["localities"][1]["share"]), (&json!(80), &json!(0.2)));
}

#[test]
fn no_candidates_and_odd_numbers_still_make_an_answer_without_holes() {
    let empty = explain("hello", &BackendPolicy::default(), "west", vec![], excluded());
    assert_eq!((empty.candidates.len(), empty.excluded.len()), (0, 1));
    let mut odd = subject("east", 5e-324, f64::NAN, f64::NAN, 1);
    odd.expected_picks = f64::INFINITY;
    odd.latency_ms = Some(f64::NAN);
    let single = BackendPolicy { draw: Draw::Single, ..BackendPolicy::default() };
    let value = serde_json::to_value(explain("hello", &single, "west", vec![odd], vec![])).unwrap();
    let row = value["candidates"][0].as_object().unwrap();
    assert_eq!(row.iter().filter(|(_, value)| **value == Value::Null).count(), 0, "{row:?}");
}

#[test]
fn with_the_best_of_two_nothing_is_said_of_what_the_picks_should_come_to() {
    let policy = BackendPolicy { draw: Draw::BestOfTwo, ..BackendPolicy::default() };
    let explanation = explain("hello", &policy, "west", vec![subject("east", 4.0, 2.0, 1.0, 7)], vec![]);
    let value = serde_json::to_value(&explanation).unwrap();
    assert_eq!((&value["draw"], &value["candidates"][0]["expected_picks"]), (&json!("BestOfTwo"), &Value::Null));
    assert_eq!((explanation.candidates[0].picks, explanation.candidates[0].observed_share), (7, Some(1.0)));
}
