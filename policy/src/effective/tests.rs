use serde_json::{Value, json};

use super::{Effective, effective};
use crate::{
    compile::compile,
    document::{Document, Limits, accept_documents, parse_documents},
    scope::Place,
};

fn here() -> Place {
    Place { node_name: "n1".into(), region: "eu".into(), zone: "z1".into() }
}

fn documents(text: &str) -> Vec<Document> {
    accept_documents(text, &Limits::default()).unwrap()
}

/// The answer for `hello`, the same for every order of the documents.
fn asked(documents: &[Document]) -> Effective {
    let answer = effective(documents, "hello", &here(), 0);
    let reversed: Vec<Document> = documents.iter().rev().cloned().collect();
    assert_eq!(effective(&reversed, "hello", &here(), 0), answer, "the order does not matter");
    answer
}

/// `path = value < document [locked by]`, then what is overridden, a line each.
fn told(effective: &Effective, kind: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for field in effective.kinds.iter().filter(|other| other.kind == kind).flat_map(|kind| &kind.fields) {
        let lock = field.locked_by.as_ref().map(|lock| format!(" locked by {lock}")).unwrap_or_default();
        lines.push(format!("{} = {} < {}{lock}", field.path, field.value, field.document));
        let overridden = field.overridden.iter();
        lines.extend(overridden.map(|other| format!("  not {} < {}: {}", other.value, other.document, other.why)));
    }
    lines
}

fn spec(effective: &Effective, kind: &str) -> Value {
    effective.kinds.iter().find(|other| other.kind == kind).map(|kind| kind.spec.clone()).unwrap_or_default()
}

const BACKENDS: &str = "
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: wide, locked: [ loadBalancer.lambda, loadBalancer.subset ] }
targetRef: { kind: Service, name: hello }
spec: { loadBalancer: { lambda: 0.1, epsilon: 1, algorithm: EdgeDecay, subset: {} } }
---
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: b, scope: 'zone:eu.z1' }
targetRef: { kind: Service, name: hello }
spec: { loadBalancer: { halfDistance: 10ms, epsilon: 2, subset: { nearest: 3 } } }
---
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: a, scope: 'zone:eu.z1' }
targetRef: { kind: Service, name: hello }
spec: { loadBalancer: { epsilon: 3 } }
---
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: over, scope: 'node:n1', expiresAt: '1970-01-01T00:00:00Z' }
targetRef: { kind: Service, name: hello }
spec: { loadBalancer: { epsilon: 4 } }
";

#[test]
fn each_field_names_its_document_and_what_it_overrides() {
    let documents = documents(BACKENDS);
    let found = asked(&documents);
    assert_eq!(
        told(&found, "BackendTrafficPolicy"),
        [
            "spec.loadBalancer.algorithm = \"EdgeDecay\" < global/BackendTrafficPolicy/wide",
            "spec.loadBalancer.epsilon = 3 < zone:eu.z1/BackendTrafficPolicy/a",
            "  not 2 < zone:eu.z1/BackendTrafficPolicy/b: within a scope the first name wins",
            "  not 1 < global/BackendTrafficPolicy/wide: narrower scope wins",
            "spec.loadBalancer.lambda = 0.1 < global/BackendTrafficPolicy/wide locked by global/BackendTrafficPolicy/wide",
            "  not \"10ms\" < zone:eu.z1/BackendTrafficPolicy/b: locked by global/BackendTrafficPolicy/wide",
            "spec.loadBalancer.subset.nearest = null < global/BackendTrafficPolicy/wide locked by global/BackendTrafficPolicy/wide",
            "  not 3 < zone:eu.z1/BackendTrafficPolicy/b: locked by global/BackendTrafficPolicy/wide",
        ]
    );
    let merged = json!({"loadBalancer": {"algorithm": "EdgeDecay", "epsilon": 3, "lambda": 0.1}});
    assert_eq!(spec(&found, "BackendTrafficPolicy"), merged);
    // The table says the same.
    let table = compile(&documents, &here(), 0).table;
    let backend = table.backend("hello");
    assert_eq!((backend.epsilon, backend.lambda_per_ms, backend.nearest), (3.0, 0.1, None));
    assert_eq!(backend.source, "zone:eu.z1/BackendTrafficPolicy/a, global/BackendTrafficPolicy/wide");
}

#[test]
fn a_service_that_nobody_speaks_of_has_nothing() {
    let found = effective(&documents(BACKENDS), "cart", &here(), 0);
    assert_eq!(found.kinds, []);
    let elsewhere = Place { region: "us".into(), zone: "z1".into(), node_name: "n2".into() };
    assert_eq!(told(&effective(&documents(BACKENDS), "hello", &elsewhere, 0), "BackendTrafficPolicy").len(), 3);
}

#[test]
fn routes_that_lead_to_the_service_are_listed_by_host_and_path() {
    let route = |scope: &str, name: &str, locked: &str, service: &str, path: &str| {
        format!(
            "---\napiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, scope: '{scope}', locked: [{locked}] }}\nspec:\n  hostnames: [ shop.mesh ]\n  \
             rules: [ {{ name: r, matches: [ {{ path: {{ value: {path} }} }} ], backendRefs: [ {{ name: {service} }} ] }} ]\n"
        )
    };
    let text = [
        route("global", "keep", "rules", "hello", "/kept"),
        route("region:eu", "taker", "", "cart", "/kept/below"),
        route("region:eu", "thief", "", "cart", "/kept"),
        route("global", "one", "", "cart", "/one"),
        route("node:n1", "mine", "", "hello", "/one"),
        route("global", "away", "", "hello", "/away"),
        route("node:n1", "gone", "", "cart", "/away"),
    ];
    let found = asked(&documents(&text.concat()));
    let lines = told(&found, "HTTPRoute");
    let value = |service: &str, path: &str| {
        format!(
            "{{\"backendRefs\":[{{\"name\":\"{service}\"}}],\"host\":\"shop.mesh\",\"name\":\"r\",\"path\":{{\"type\":\"PathPrefix\",\"value\":\"{path}\"}}}}"
        )
    };
    let lock = " locked by global/HTTPRoute/keep";
    assert_eq!(
        lines,
        [
            format!("spec.routes[0] = {} < global/HTTPRoute/keep{lock}", value("hello", "/kept")),
            format!("  not {} < region:eu/HTTPRoute/thief:{lock}", value("cart", "/kept")),
            format!("spec.routes[1] = {} < node:n1/HTTPRoute/mine", value("hello", "/one")),
            format!("  not {} < global/HTTPRoute/one: narrower scope wins", value("cart", "/one")),
        ]
    );
}

#[test]
fn what_is_permitted_lists_every_document_that_counts() {
    let mut all = documents(
        "
apiVersion: marram.dev/v1
kind: AuthorizationPolicy
metadata: { name: a }
targetRef: { kind: Service, name: hello }
spec: { action: ALLOW, rules: [ { name: all }, { to: [ { ports: [ 1 ] } ] } ] }
---
apiVersion: marram.dev/v1
kind: AuthorizationPolicy
metadata: { name: nobody, scope: 'node:n1' }
targetRef: { kind: Service, name: hello }
spec: { action: ALLOW, rules: [] }
---
apiVersion: marram.dev/v1
kind: AuthorizationPolicy
metadata: { name: d, scope: 'region:eu' }
targetRef: { kind: Service, name: hello }
spec: { action: DENY, rules: [ {} ] }
---
apiVersion: marram.dev/v1
kind: PeerAuthentication
metadata: { name: mesh }
targetRef: { kind: Mesh, name: factory7 }
spec: { mtls: { mode: STRICT } }
---
apiVersion: marram.dev/v1
kind: PeerAuthentication
metadata: { name: p, scope: 'node:n1' }
targetRef: { kind: Service, name: hello }
spec: { mtls: { mode: PERMISSIVE } }
---
apiVersion: marram.dev/v1
kind: Residency
metadata: { name: wide }
targetRef: { kind: Service, name: hello }
spec: { allowRegions: [ eu, us ] }
---
apiVersion: marram.dev/v1
kind: Residency
metadata: { name: narrow, scope: 'region:eu' }
targetRef: { kind: Service, name: hello }
spec: { allowRegions: [ eu ] }
",
    );
    let broken = "apiVersion: marram.dev/v1\nkind: AuthorizationPolicy\nmetadata: { name: new }\ntargetRef: { kind: Service, name: hello }\nspec: { later: 1 }\n";
    all.extend(parse_documents(broken, &Limits::default()).unwrap());
    let found = asked(&all);
    assert_eq!(
        told(&found, "AuthorizationPolicy"),
        [
            "spec.allow[\"node:n1\"] = [] < node:n1/AuthorizationPolicy/nobody",
            "spec.deny[0] = {} < region:eu/AuthorizationPolicy/d",
            "spec.allow[\"global\"][0] = {\"name\":\"all\"} < global/AuthorizationPolicy/a",
            "spec.allow[\"global\"][1] = {\"to\":[{\"ports\":[1]}]} < global/AuthorizationPolicy/a",
            "spec.closed[0] = \"global/AuthorizationPolicy/new\" < global/AuthorizationPolicy/new",
        ]
    );
    assert_eq!(spec(&found, "AuthorizationPolicy")["allow"]["node:n1"], json!([]));
    assert_eq!(
        told(&found, "PeerAuthentication"),
        [
            "spec.mtls.mode = \"STRICT\" < global/PeerAuthentication/mesh",
            "  not \"PERMISSIVE\" < node:n1/PeerAuthentication/p: the strictest mode wins",
        ]
    );
    assert_eq!(
        told(&found, "Residency"),
        [
            "spec.allowRegions = [\"eu\"] < region:eu/Residency/narrow",
            "  not [\"eu\",\"us\"] < global/Residency/wide: only regions that every document allows remain",
        ]
    );
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Effective>(&text).unwrap(), found);
}
