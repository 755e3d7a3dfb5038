use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::{
    BackendPolicy, Document, Place, TargetRef, compile,
    document::{DocId, backend_traffic},
    effective,
    problem::valid,
    validate,
};

fn document(scope: &str, spec: Value) -> Document {
    let mut document = Document::new("BackendTrafficPolicy", scope, "hello");
    document.target_ref = Some(TargetRef { kind: "Service".into(), name: "hello".into() });
    document.spec = spec;
    document
}

fn faults(spec: Value) -> Vec<String> {
    let problems = validate(&document("global", spec)).err().unwrap_or_default();
    problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
}

fn in_force(documents: &[Document]) -> BackendPolicy {
    let here = Place { region: "eu".into(), zone: "z1".into(), node_name: "n1".into() };
    let compiled = compile(documents, &here, 0);
    assert!(compiled.problems.is_empty(), "{:?}", compiled.problems);
    compiled.table.backend("hello").clone()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_document_with_everything_is_read_as_it_says() {
    let spec = json!({
        "retryConstraint": { "budget": { "percent": 5, "interval": "20s" }, "minRetryRate": { "count": 2, "interval": "500ms" } },
        "circuitBreaker": {
            "maxConnections": 1, "maxPendingRequests": 2, "maxParallelRequests": 3, "maxParallelRetries": 4,
            "perEndpoint": { "maxConnections": 5, "maxParallelRequests": 6 },
        },
        "rateLimit": {
            "local": { "requests": 7, "unit": "Minute", "burst": 8 },
            "global": { "requests": 1000, "interval": "10s" },
        },
        "faultInjection": {
            "delay": { "fixedDelay": "9ms", "percentage": 12.5 },
            "abort": { "httpStatus": 503, "grpcStatus": 14 },
        },
        "hedging": { "delay": "10ms", "maxAttempts": 2 },
    });
    assert_eq!(validate(&document("global", spec.clone())), Ok(()), "no other section is needed");
    let expected = ServiceLimits {
        retries: RetryConstraint {
            percent: 5,
            interval: 20 * SECOND,
            min_count: 2,
            min_interval: Duration::from_millis(500),
        },
        breaker: CircuitBreaker {
            max_connections: Some(1),
            max_pending_requests: Some(2),
            max_parallel_requests: Some(3),
            max_parallel_retries: Some(4),
            endpoint_connections: Some(5),
            endpoint_requests: Some(6),
        },
        rate: Some(RateLimit { requests: 7, interval: 60 * SECOND, burst: 8 }),
        fleet_rate: Some(RateLimit { requests: 1000, interval: 10 * SECOND, burst: 1000 }),
        faults: FaultInjection {
            delay: Some(FaultDelay { fixed: Duration::from_millis(9), share: 0.125 }),
            abort: Some(FaultAbort { http_status: Some(503), grpc_status: Some(14), share: 1.0 }),
        },
        hedging: Some(Hedging { delay: Duration::from_millis(10) }),
    };
    assert_eq!(valid(|faults| backend_traffic::read(&spec, faults)).limits, expected);
    assert_eq!(in_force(&[document("global", spec)]).limits, expected);
}

#[test]
fn each_fault_is_named_with_its_place() {
    for (spec, expected) in [
        (json!({}), "spec.loadBalancer: is missing"),
        (
            json!({ "retryConstraint": { "budget": { "percent": 120 } } }),
            "spec.retryConstraint.budget.percent: 120 is outside 0..=100",
        ),
        (
            json!({ "retryConstraint": { "budget": { "interval": 10 } } }),
            "spec.retryConstraint.budget.interval: a duration needs a unit",
        ),
        (json!({ "retryConstraint": { "minRate": {} } }), "spec.retryConstraint.minRate: unknown field"),
        (
            json!({ "circuitBreaker": { "maxConnections": -1 } }),
            "spec.circuitBreaker.maxConnections: -1 is outside 0..=1000000",
        ),
        (
            json!({ "circuitBreaker": { "perEndpoint": { "maxParallelRequests": 0 } } }),
            "spec.circuitBreaker.perEndpoint.maxParallelRequests: 0 is outside 1..=1000000",
        ),
        (json!({ "rateLimit": {} }), "spec.rateLimit.local: is missing, and so is `global`"),
        (json!({ "rateLimit": { "local": { "unit": "Second" } } }), "spec.rateLimit.local.requests: is missing"),
        (
            json!({ "rateLimit": { "local": { "requests": 1, "unit": "second" } } }),
            "spec.rateLimit.local.unit: `second` is not a known word",
        ),
        (
            json!({ "rateLimit": { "local": { "requests": 1, "unit": "Second", "interval": "1s" } } }),
            "spec.rateLimit.local.unit: stands beside `interval`, which says the same",
        ),
        (json!({ "rateLimit": { "global": {} } }), "spec.rateLimit.global.requests: is missing"),
        (
            json!({ "rateLimit": { "global": { "requests": 0 } } }),
            "spec.rateLimit.global.requests: 0 is outside 1..=1000000",
        ),
        (
            json!({ "rateLimit": { "global": { "requests": 1, "unit": "Minute", "interval": "1m" } } }),
            "spec.rateLimit.global.unit: stands beside `interval`, which says the same",
        ),
        (
            json!({ "rateLimit": { "globl": { "requests": 1 }, "local": { "requests": 1 } } }),
            "spec.rateLimit.globl: unknown field",
        ),
        (json!({ "faultInjection": {} }), "spec.faultInjection.abort: is missing, and so is `delay`"),
        (json!({ "faultInjection": { "delay": {} } }), "spec.faultInjection.delay.fixedDelay: is missing"),
        (
            json!({ "faultInjection": { "abort": {} } }),
            "spec.faultInjection.abort.httpStatus: is missing, and so is `grpcStatus`",
        ),
        (
            json!({ "faultInjection": { "abort": { "httpStatus": 503, "percentage": 101 } } }),
            "spec.faultInjection.abort.percentage: 101 is outside 0..=100",
        ),
        (json!({ "hedging": {} }), "spec.hedging.delay: is missing"),
        (json!({ "hedging": { "delay": "5ms", "maxAttempts": 3 } }), "spec.hedging.maxAttempts: 3 is outside 1..=2"),
    ] {
        assert_eq!(faults(spec.clone()), [expected], "{spec}");
    }
}

#[test]
fn narrower_documents_override_single_fields_and_the_two_spellings_of_a_time_are_one() {
    let wide = document(
        "global",
        json!({
            "circuitBreaker": { "maxConnections": 10, "maxParallelRequests": 20 },
            "rateLimit": { "local": { "requests": 100, "interval": "10s" } },
            "hedging": { "delay": "10ms" },
        }),
    );
    let narrow = document(
        "zone:eu.z1",
        json!({
            "circuitBreaker": { "maxParallelRequests": 5 },
            "rateLimit": { "local": { "requests": 50, "unit": "Second" } },
            "hedging": { "maxAttempts": 1 },
        }),
    );
    let policy = in_force(&[wide.clone(), narrow.clone()]);
    let breaker =
        CircuitBreaker { max_connections: Some(10), max_parallel_requests: Some(5), ..CircuitBreaker::default() };
    assert_eq!(policy.limits.breaker, breaker);
    assert_eq!(policy.limits.rate, Some(RateLimit { requests: 50, interval: SECOND, burst: 50 }));
    assert_eq!(policy.limits.hedging, None, "one attempt is none beside it");
    assert_eq!(policy.source, "zone:eu.z1/BackendTrafficPolicy/hello, global/BackendTrafficPolicy/hello");

    let here = Place { region: "eu".into(), zone: "z1".into(), node_name: "n1".into() };
    let told = effective(&[wide, narrow], "hello", &here, 0);
    let field = |path: &str| {
        let fields = told.kinds.iter().flat_map(|kind| &kind.fields);
        fields.filter(|field| field.path == path).map(|field| field.document.clone()).collect::<Vec<DocId>>()
    };
    let scopes = |path: &str| field(path).iter().map(|id| id.scope.clone()).collect::<Vec<String>>();
    assert_eq!(scopes("spec.circuitBreaker.maxConnections"), ["global"]);
    assert_eq!(scopes("spec.circuitBreaker.maxParallelRequests"), ["zone:eu.z1"]);
    assert_eq!(scopes("spec.rateLimit.local.unit"), ["zone:eu.z1"]);
    assert_eq!(scopes("spec.rateLimit.local.interval"), Vec::<String>::new());
}

#[test]
fn a_rate_of_all_nodes_stands_in_a_document_for_all_nodes() {
    let spec = json!({ "rateLimit": { "global": { "requests": 1000, "unit": "Minute" } } });
    assert_eq!(validate(&document("global", spec.clone())), Ok(()));
    let problems = validate(&document("zone:eu.z1", spec.clone())).unwrap_err();
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(problem.field, "spec.rateLimit.global");
    assert_eq!(problem.message, "is for all nodes, and the scope is `zone:eu.z1`");
    assert!(problem.hint.as_ref().unwrap().contains("scope `global`"), "{problem:?}");

    // What one node may is a narrower document's to say, and both hold.
    let policy = in_force(&[
        document("global", spec),
        document("zone:eu.z1", json!({ "rateLimit": { "local": { "requests": 5 } } })),
    ]);
    assert_eq!(policy.limits.rate, Some(RateLimit { requests: 5, interval: SECOND, burst: 5 }));
    let all = policy.limits.fleet_rate.unwrap();
    assert_eq!(all, RateLimit { requests: 1000, interval: 60 * SECOND, burst: 1000 });
    assert!((all.per_second() - 16.667).abs() < 0.001);
}

#[test]
fn of_two_documents_that_spell_the_time_of_a_rate_differently_the_first_name_holds() {
    let of = |name: &str, time: Value| {
        let mut document = document("global", json!({ "rateLimit": { "global": time } }));
        name.clone_into(&mut document.metadata.name);
        document
    };
    let first = of("a", json!({ "requests": 7, "unit": "Minute" }));
    let second = of("b", json!({ "requests": 9, "interval": "10s", "burst": 3 }));
    let rate = in_force(&[second, first]).limits.fleet_rate;
    assert_eq!(rate, Some(RateLimit { requests: 7, interval: 60 * SECOND, burst: 3 }));
}
