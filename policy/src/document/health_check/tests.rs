use serde_json::{Value, json};

use super::*;
use crate::{Document, Place, TargetRef, compile, effective, validate};

fn document(scope: &str, passive: &Value) -> Document {
    let mut document = Document::new("BackendTrafficPolicy", scope, "hello");
    document.target_ref = Some(TargetRef { kind: "Service".into(), name: "hello".into() });
    document.spec = json!({ "healthCheck": { "passive": passive } });
    document
}

fn in_force(documents: &[Document]) -> Outlier {
    let here = Place { region: "eu".into(), zone: "z1".into(), node_name: "n1".into() };
    let compiled = compile(documents, &here, 0);
    assert!(compiled.problems.is_empty(), "{:?}", compiled.problems);
    compiled.table.backend("hello").outlier
}

/// The only fault of a document with this below `passive`: the path below that, the message and the hint.
fn fault(passive: &Value) -> (String, String, String) {
    let problems = validate(&document("global", passive)).expect_err("it has a fault");
    let [problem] = &problems[..] else { panic!("{passive}: {problems:?}") };
    let field = problem.field.strip_prefix("spec.healthCheck.passive.").unwrap_or(&problem.field).to_owned();
    (field, problem.message.clone(), problem.hint.clone().unwrap_or_default())
}

#[test]
fn a_document_with_everything_is_read_as_it_says() {
    let passive = json!({
        "consecutive5XxErrors": 1, "interval": "2s", "baseEjectionTime": "3s", "maxEjectionPercent": 4,
        "successRate": { "stdevFactor": 1.5, "minimumHosts": 6, "requestVolume": 7 },
        "failurePercentage": { "threshold": 8, "minimumHosts": 9, "requestVolume": 10 },
        "latency": {
            "factor": 1.25, "minimumDifference": "11ms", "intervals": 12, "minimumHosts": 13, "requestVolume": 14,
        },
    });
    let expected = Outlier {
        consecutive_errors: 1,
        interval: Duration::from_secs(2),
        base_ejection: Duration::from_secs(3),
        max_ejection_percent: 4,
        success_rate: Some(SuccessRate { stdev_factor: 1.5, minimum_hosts: 6, request_volume: 7 }),
        failure_percentage: Some(FailurePercentage { threshold: 8, minimum_hosts: 9, request_volume: 10 }),
        latency: Some(Slowness {
            factor: 1.25,
            minimum_difference: Duration::from_millis(11),
            intervals: 12,
            minimum_hosts: 13,
            request_volume: 14,
        }),
    };
    assert_eq!(in_force(&[document("global", &passive)]), expected);
}

#[test]
fn by_default_the_success_rate_counts_as_envoy_has_it_and_what_needs_a_number_of_the_owners_does_not() {
    let default = in_force(&[]);
    assert_eq!(default.success_rate, Some(SuccessRate { stdev_factor: 1.9, minimum_hosts: 5, request_volume: 100 }));
    assert_eq!((default.failure_percentage, default.latency), (None, None));
    let little = json!({ "failurePercentage": { "threshold": 50 }, "latency": { "factor": 3 } });
    let little = in_force(&[document("global", &little)]);
    let expected = FailurePercentage { threshold: 50, minimum_hosts: 2, request_volume: 50 };
    assert_eq!(little.failure_percentage, Some(expected));
    let (difference, intervals) = (Duration::from_millis(50), 3);
    let expected =
        Slowness { factor: 3.0, minimum_difference: difference, intervals, minimum_hosts: 3, request_volume: 50 };
    assert_eq!((little.latency, little.success_rate), (Some(expected), default.success_rate));
}

#[test]
fn zero_is_for_never_also_over_what_a_wider_document_says() {
    let all = json!({
        "successRate": { "requestVolume": 7 }, "failurePercentage": { "threshold": 8 }, "latency": { "factor": 2 },
    });
    let none = json!({
        "successRate": { "stdevFactor": 0 }, "failurePercentage": { "threshold": 0 }, "latency": { "factor": 0 },
    });
    let read = in_force(&[document("global", &all), document("zone:eu.z1", &none)]);
    assert_eq!((read.success_rate, read.failure_percentage, read.latency), (None, None, None));
    assert_eq!(read.consecutive_errors, 5, "that is a rule of its own");
}

#[test]
fn each_field_counts_for_itself_and_tells_where_it_comes_from() {
    let wide = json!({ "successRate": { "stdevFactor": 3, "minimumHosts": 4 } });
    let narrow = json!({ "successRate": { "minimumHosts": 8 } });
    let documents = [document("global", &wide), document("node:n1", &narrow)];
    let expected = SuccessRate { stdev_factor: 3.0, minimum_hosts: 8, request_volume: 100 };
    assert_eq!(in_force(&documents).success_rate, Some(expected));
    let here = Place { region: "eu".into(), zone: "z1".into(), node_name: "n1".into() };
    let told = format!("{:?}", effective(&documents, "hello", &here, 0));
    assert!(told.contains("healthCheck.passive.successRate.minimumHosts"), "{told}");
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_the_way_out() {
    for (passive, field, message, hint) in [
        (
            json!({ "successRate": { "stdevFactor": 1900 } }),
            "successRate.stdevFactor",
            "1900 is outside 0..=10",
            "its 1900 is 1.9 here",
        ),
        (
            json!({ "successRate": { "stdevFactor": -1 } }),
            "successRate.stdevFactor",
            "-1 is outside 0..=10",
            "0 is for never",
        ),
        (
            json!({ "successRate": { "minimumHosts": 1 } }),
            "successRate.minimumHosts",
            "1 is outside 2..=10000",
            "write a whole number within",
        ),
        (
            json!({ "successRate": { "requestVolume": 0 } }),
            "successRate.requestVolume",
            "0 is outside 1..=1000000",
            "write a whole number within",
        ),
        (
            json!({ "successRate": { "stdevfactor": 2 } }),
            "successRate.stdevfactor",
            "unknown field",
            "did you mean `stdevFactor`?",
        ),
        (json!({ "successRate": 99 }), "successRate", "expected an object, found the number 99", ""),
        (
            json!({ "failurePercentage": { "requestVolume": 5 } }),
            "failurePercentage.threshold",
            "is missing",
            "`threshold: 50`; 0 is for never",
        ),
        (
            json!({ "failurePercentage": { "threshold": 101 } }),
            "failurePercentage.threshold",
            "101 is outside 0..=100",
            "write a whole number within",
        ),
        (json!({ "latency": {} }), "latency.factor", "is missing", "`factor: 3`; 0 is for never"),
        (
            json!({ "latency": { "factor": 0.5 } }),
            "latency.factor",
            "0.5 is outside 1..=100",
            "3 is three times the median of the others",
        ),
        (
            json!({ "latency": { "factor": 3, "minimumDifference": 50 } }),
            "latency.minimumDifference",
            "a duration needs a unit",
            "write `50ms` or `50s`",
        ),
        (
            json!({ "latency": { "factor": 3, "intervals": 0 } }),
            "latency.intervals",
            "0 is outside 1..=100",
            "write a whole number within",
        ),
    ] {
        let told = fault(&passive);
        assert_eq!((told.0.as_str(), told.1.as_str()), (field, message), "{passive}");
        assert!(told.2.contains(hint), "{passive}: {told:?}");
    }
}
