use serde_json::json;

use super::{notes, validate};
use crate::document::{Document, KNOWN_KINDS, Limits, TargetRef, accept_documents};

fn backend(balancer: &serde_json::Value) -> Document {
    let mut document = Document::new("BackendTrafficPolicy", "global", "hello");
    document.target_ref = Some(TargetRef { kind: "Service".into(), name: "hello".into() });
    document.spec = json!({ "loadBalancer": balancer });
    document
}

fn faults(document: &Document) -> Vec<String> {
    let problems = validate(document).err().unwrap_or_default();
    problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
}

#[test]
fn a_backend_policy_may_say_much_or_nothing() {
    for balancer in [
        json!({}),
        json!({"halfDistance": "25ms"}),
        json!({"halfDistance": "1s 500ms"}),
        json!({"lambda": 0}),
        json!({"lambda": 0.0277, "epsilon": 1e-3}),
        json!({"algorithm": "EdgeDecay", "draw": "Single", "subset": {"nearest": 3}}),
        json!({"draw": "BestOfTwo"}),
        json!({"subset": {}}),
        json!({"slowStart": {"window": "30s"}}),
    ] {
        assert_eq!(validate(&backend(&balancer)), Ok(()), "{balancer}");
    }
}

#[test]
fn each_fault_of_a_backend_policy_is_named() {
    let at = "spec.loadBalancer";
    for (balancer, expected) in [
        (json!({"algorithm": "PredictedLatency"}), ".algorithm: `PredictedLatency` is not carried by this version"),
        (json!({"algorithm": "edgeDecay"}), ".algorithm: `edgeDecay` is not a known word"),
        (json!({"algorithm": 1}), ".algorithm: expected text, found the number 1"),
        (json!({"draw": "BestOfThree"}), ".draw: `BestOfThree` is not a known word"),
        (json!({"halfDistance": 25}), ".halfDistance: a duration needs a unit"),
        (json!({"halfDistance": "25"}), ".halfDistance: `25` is not a duration"),
        (json!({"halfDistance": "-25ms"}), ".halfDistance: `-25ms` is not a duration"),
        (json!({"halfDistance": "0ms"}), ".halfDistance: `0ms` is not above zero and at most 1h"),
        (json!({"halfDistance": "2h"}), ".halfDistance: `2h` is not above zero and at most 1h"),
        (json!({"lambda": 1e308}), ".lambda: 1e308 is outside 0..=1000"),
        (json!({"lambda": null}), ".lambda: expected a number, found nothing"),
        (json!({"epsilon": 0}), ".epsilon: 0 is outside 0.000000001..=1000000000"),
        (json!({"subset": {"nearest": 2.5}}), ".subset.nearest: 2.5 is outside 1..=10000"),
        (json!({"subset": {"nearest": "3"}}), ".subset.nearest: expected a whole number, found the text `3`"),
        (json!({"slowStart": {}}), ".slowStart.window: is missing"),
        (json!({"slowStart": {"window": "2h"}}), ".slowStart.window: `2h` is not above zero and at most 1h"),
        (json!({"subset": 3}), ".subset: expected an object, found the number 3"),
        (json!({"lambda": 1, "halfDistance": "1ms"}), ".halfDistance: stands beside `lambda`, which says the same"),
    ] {
        let found: Vec<String> = faults(&backend(&balancer)).iter().map(|fault| fault.replacen(at, "", 1)).collect();
        assert_eq!(found.len(), 1, "{balancer}: {found:?}");
        // Numbers may print in either of two forms; what counts is place and fault.
        assert_eq!(found[0].replace("1e308", &1e308.to_string()), expected.replace("1e308", &1e308.to_string()));
    }
    let mut without_target = backend(&json!({}));
    without_target.target_ref = None;
    assert_eq!(faults(&without_target), ["targetRef: is missing"]);
}

#[test]
fn a_route_takes_no_target_and_needs_hosts_and_rules() {
    let mut route = Document::new("HTTPRoute", "global", "shop");
    assert_eq!(faults(&route), ["spec.hostnames: is missing", "spec.rules: is missing"]);
    route.spec = json!({"hostnames": [], "rules": {}});
    assert_eq!(faults(&route), ["spec.hostnames: is empty", "spec.rules: expected a list, found an object"]);
    route.spec = json!({"hostnames": ["shop.mesh"], "rules": [{"backendRefs": [{"name": "shop"}]}]});
    assert_eq!(validate(&route), Ok(()));
    route.target_ref = Some(TargetRef { kind: "Service".into(), name: "shop".into() });
    assert_eq!(faults(&route), ["targetRef: an HTTPRoute has none"]);
}

#[test]
fn a_path_that_could_never_match_is_refused() {
    for (path, fault) in [
        ("api", "does not begin with `/`"),
        ("", "does not begin with `/`"),
        ("/a//b", "has an empty element"),
        ("/a/../b", "has a relative element"),
        ("/a/.", "has a relative element"),
        ("/a?b", "is more than a path"),
        ("/a#b", "is more than a path"),
        ("/a b", "has bytes that a path cannot have"),
        ("/ä", "has bytes that a path cannot have"),
    ] {
        let mut route = Document::new("HTTPRoute", "global", "shop");
        route.spec = json!({"hostnames": ["shop.mesh"], "rules": [
            {"matches": [{"path": {"value": path}}], "backendRefs": [{"name": "shop"}]}
        ]});
        assert_eq!(faults(&route), [format!("spec.rules[0].matches[0].path.value: `{path}` {fault}")]);
    }
}

#[test]
fn lists_longer_than_their_limit_are_refused() {
    let mut route = Document::new("HTTPRoute", "global", "shop");
    let hosts: Vec<String> = (0..65).map(|index| format!("h{index}.mesh")).collect();
    route.spec = json!({"hostnames": hosts, "rules": [{"backendRefs": [{"name": "shop"}]}]});
    assert_eq!(faults(&route), ["spec.hostnames: has 65 items, more than 64"]);
}

#[test]
fn unknown_kinds_pass_untouched_with_a_note() {
    let mut document = Document::new("RateLimit", "global", "readonly");
    document.spec = json!({"action": "ALLOW", "rules": [{"anything": [1, 2, {"x": null}]}]});
    document.target_ref = Some(TargetRef { kind: "Mesh".into(), name: "Any Thing".into() });
    assert_eq!(validate(&document), Ok(()));
    let note = &notes(&document)[0];
    assert_eq!(note.message, "`RateLimit` is stored and passed on, but not enforced by this version");
    assert_eq!(
        notes(&Document::new("HTTPRoutes", "global", "a"))[0].hint.as_deref(),
        Some("did you mean `HTTPRoute`?")
    );
    assert_eq!(notes(&Document::new("HTTPRoute", "global", "a")), []);
}

#[test]
fn a_kind_that_differs_from_ours_in_case_alone_is_a_slip() {
    for kind in ["HttpRoute", "backendtrafficpolicy", "BackendTrafficpolicy"] {
        let problems = validate(&Document::new(kind, "global", "a")).unwrap_err();
        assert_eq!(problems[0].field, "kind", "{kind}");
        assert!(problems[0].hint.as_deref().unwrap().starts_with("did you mean"), "{kind}");
    }
}

#[test]
fn names_and_scopes_are_checked_with_a_way_out() {
    for (name, hint) in [
        ("Gateway_A", Some("write `gateway-a`")),
        ("a..b", Some("up to 253 of a-z, 0-9 and -, in labels joined by dots")),
        ("", Some("up to 253 of a-z, 0-9 and -, in labels joined by dots")),
    ] {
        let problems = validate(&Document::new("Other", "global", name)).unwrap_err();
        assert_eq!((problems[0].field.as_str(), problems[0].hint.as_deref()), ("metadata.name", hint), "{name}");
    }
    assert_eq!(validate(&Document::new("Other", "global", "a.b-2.c3")), Ok(()));
    assert!(validate(&Document::new("Other", "global", "a".repeat(64))).is_err());
    assert!(validate(&Document::new("Other", "global", vec!["a"; 128].join("."))).is_err());
    for (scope, hint) in [
        ("golbal", "did you mean `global`?"),
        ("regoin:eu", "did you mean `region:NAME`?"),
        ("zones:eu.z1", "did you mean `zone:REGION.ZONE`?"),
        ("zone:z1", "write `zone:REGION.z1`"),
        ("region:EU", "names in a scope are DNS labels: a-z, 0-9 and -"),
        ("everywhere", "write `global`, `region:REGION`, `zone:REGION.ZONE` or `node:NODE`"),
    ] {
        let problems = validate(&Document::new("Other", scope, "a")).unwrap_err();
        assert_eq!(
            (problems[0].field.as_str(), problems[0].hint.as_deref()),
            ("metadata.scope", Some(hint)),
            "{scope}"
        );
    }
}

#[test]
fn what_the_store_could_not_hold_is_refused_here() {
    let mut document = Document::new("Other", "global", "a");
    document.spec = json!({"text": "x".repeat(64 * 1024)});
    assert!(faults(&document)[0].starts_with("spec: the document has 655"), "{:?}", faults(&document));
    document.spec = (0..32).map(|index| (format!("f{index}"), json!(1))).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(faults(&document), ["spec: the document has 33 sections, more than 32"]);
    document.spec = json!({"": 1});
    assert_eq!(faults(&document).len(), 1);
    document.spec = json!([]);
    assert_eq!(faults(&document), ["spec: expected an object, found a list"]);
    document.spec = json!({});
    document.metadata.description = Some("x".repeat(1025));
    document.metadata.labels.insert("a b".into(), "c d".into());
    assert_eq!(faults(&document).len(), 3);
}

#[test]
fn a_document_is_at_most_64_levels_deep() {
    let deep = |levels: usize| (1..levels).fold(json!(1), |inner, _| json!([inner]));
    let mut document = Document::new("Other", "global", "a");
    // The document and its spec are two of them.
    document.spec = json!({ "deep": deep(63) });
    assert_eq!(validate(&document), Ok(()));
    document.spec = json!({ "deep": deep(64) });
    assert_eq!(faults(&document), ["spec: the document is more than 64 objects and lists deep"]);
}

#[test]
fn locks_and_expiry_are_checked_with_a_way_out() {
    let mut document = backend(&json!({"epsilon": 2}));
    document.metadata.locked = ["loadBalancer", "loadBalancer.epsilon"].map(str::to_owned).to_vec();
    document.metadata.expires_at = Some("2026-12-01T18:00:00+01:00".into());
    assert_eq!(validate(&document), Ok(()));
    document.metadata.locked = ["loadBalancer.epsilom", "loadBalancer", "loadBalancer"].map(str::to_owned).to_vec();
    document.metadata.expires_at = Some("in two hours".into());
    let told: String = validate(&document).unwrap_err().iter().map(|problem| format!("{problem}\n")).collect();
    assert_eq!(
        told,
        "field `metadata.locked[0]`: `loadBalancer.epsilom` names no field that stands in `spec.loadBalancer`\n  \
         hint: did you mean `epsilon`?\n\
         field `metadata.locked[2]`: `loadBalancer` stands here twice\n  hint: keep one of them\n\
         field `metadata.expiresAt`: `in two hours` is not a point in time after 1970 with its offset\n  \
         hint: write it as `2026-12-01T18:00:00Z`\n"
    );
    // Of a kind nobody knows as well: the envelope is the same for all.
    let mut other = Document::new("Other", "global", "a");
    other.metadata.locked = vec!["nothing".into()];
    assert_eq!(faults(&other), ["metadata.locked[0]: `nothing` names no field that stands in `spec`"]);
}

#[test]
fn kinds_that_compose_to_the_strictest_come_with_their_notes() {
    let mut document = Document::new("Residency", "global", "a");
    let messages = |document: &Document| notes(document).into_iter().map(|note| note.field).collect::<Vec<_>>();
    assert_eq!(messages(&document), [""; 0], "it is enforced");
    document.metadata.locked = vec!["allowRegions".into()];
    assert_eq!(messages(&document), ["metadata.locked"]);
    document.kind = "AuthorizationPolicy".into();
    assert_eq!(messages(&document), ["kind", "metadata.locked"]);
}

#[test]
fn every_example_of_the_policy_page_is_valid_and_every_known_kind_has_one() {
    let page = include_str!("../../../docs/policy.md");
    let mut kinds = std::collections::BTreeSet::new();
    for example in page.split("```yaml\n").skip(1) {
        let text = example.split("```").next().unwrap();
        match accept_documents(text, &Limits::default()) {
            Ok(documents) => kinds.extend(documents.into_iter().map(|document| document.kind)),
            Err(problems) => panic!("{problems:#?} in\n{text}"),
        }
    }
    assert_eq!(kinds, KNOWN_KINDS.map(str::to_owned).into());
}
