use serde_json::json;

use super::{fault, locked_conflicts};
use crate::{
    compile::compile,
    document::{Document, Limits, accept_documents},
    scope::Place,
    table::{RequestHead, RouteDecision, RouteTable},
};

fn here() -> Place {
    Place { node_name: "n1".into(), region: "eu".into(), zone: "z1".into() }
}

fn documents(text: &str) -> Vec<Document> {
    accept_documents(text, &Limits::default()).unwrap()
}

fn backend(scope: &str, name: &str, locked: &str, balancer: &str) -> Document {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {name}, scope: '{scope}', locked: [{locked}] }}\n\
         targetRef: {{ kind: Service, name: hello }}\nspec: {{ loadBalancer: {balancer} }}\n"
    );
    documents(&text).remove(0)
}

/// A route of `shop.mesh` to `service`.
fn route(scope: &str, locked: &str, host: &str, service: &str, path: &str) -> Document {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: {{ name: {service}, scope: '{scope}', locked: [{locked}] }}\n\
         spec:\n  hostnames: [ '{host}' ]\n  rules: [ {{ matches: [ {{ path: {{ value: {path} }} }} ], backendRefs: [ {{ name: {service} }} ] }} ]\n"
    );
    documents(&text).remove(0)
}

fn service(table: &RouteTable, host: &str, path: &str) -> Option<String> {
    match table.route(&RequestHead::new("GET", host, path), 0.0) {
        RouteDecision::Service { service, .. } => Some(service.to_string()),
        RouteDecision::Redirect { .. } | RouteDecision::NoRoute => None,
    }
}

fn fields(document: &Document, others: &[Document]) -> Vec<String> {
    locked_conflicts(document, others).into_iter().map(|problem| problem.field).collect()
}

#[test]
fn a_locked_field_keeps_its_value_and_the_rest_stays_with_the_narrower_document() {
    for (locked, expected) in [
        ("", (0.5, 3.0, Some(5))),
        ("loadBalancer.epsilon", (0.5, 2.0, Some(5))),
        // Both spellings are one field.
        ("loadBalancer.lambda", (0.1, 3.0, Some(5))),
        // The whole subtree, also what the document does not set itself.
        ("loadBalancer", (0.1, 2.0, None)),
    ] {
        let compiled = compile(
            &[
                backend("node:n1", "a", "", "{ lambda: 0.5, subset: { nearest: 5 } }"),
                backend("zone:eu.z1", "b", "", "{ epsilon: 3 }"),
                backend("global", "c", locked, "{ lambda: 0.1, epsilon: 2 }"),
            ],
            &here(),
            0,
        );
        let found = compiled.table.backend("hello");
        assert_eq!((found.lambda_per_ms, found.epsilon, found.nearest), expected, "{locked}: {found:?}");
    }
}

#[test]
fn the_widest_lock_wins_and_a_lock_on_half_distance_is_one_on_lambda() {
    let table = compile(
        &[
            backend("node:n1", "a", "loadBalancer", "{ lambda: 0.5, epsilon: 5 }"),
            backend("region:eu", "b", "loadBalancer.epsilon", "{ epsilon: 4 }"),
            backend("global", "c", "loadBalancer.halfDistance", "{ halfDistance: 40ms, epsilon: 3 }"),
            backend("global", "d", "loadBalancer.halfDistance", "{ halfDistance: 80ms }"),
        ],
        &here(),
        0,
    )
    .table;
    let found = table.backend("hello");
    assert!((found.half_distance_ms().unwrap() - 40.0).abs() < 1e-9, "{found:?}");
    assert!((found.epsilon - 4.0).abs() < 1e-9, "the region's lock binds what is narrower, not the world: {found:?}");
}

#[test]
fn a_locked_host_belongs_to_its_document_and_a_locked_rule_keeps_its_requests() {
    let narrow = [
        route("node:n1", "", "shop.mesh", "taken", "/api"),
        route("zone:eu.z1", "", "a.shop.mesh", "deep", "/"),
        route("node:n1", "", "shop.mesh", "below", "/api/v2"),
    ];
    for (locked, host, expected) in [
        // Host and path of the narrower documents against the wider route of the same host and of those below it.
        ("", "shop.mesh", ["taken", "below", "root", "deep"]),
        ("rules", "shop.mesh", ["root", "root", "root", "deep"]),
        ("hostnames", "shop.mesh", ["root", "root", "root", "deep"]),
        ("rules", "'*.mesh'", ["root", "root", "root", "root"]),
    ] {
        let mut all = narrow.to_vec();
        let host = host.trim_matches('\'');
        all.push(route("global", locked, host, "root", "/"));
        let compiled = compile(&all, &here(), 0);
        let table = compiled.table;
        let found = [("shop.mesh", "/api"), ("shop.mesh", "/api/v2/x"), ("shop.mesh", "/x"), ("a.shop.mesh", "/")];
        let found = found.map(|(host, path)| service(&table, host, path).unwrap_or_default());
        if host == "shop.mesh" || !locked.is_empty() {
            assert_eq!(found, expected, "{locked} on {host}");
        }
        assert_eq!(compiled.locked_out.is_empty(), locked.is_empty(), "{:?}", compiled.locked_out);
    }
}

#[test]
fn of_two_locked_routes_for_a_request_the_one_of_the_widest_scope_has_it() {
    let all = [
        route("region:eu", "rules", "shop.mesh", "region", "/api/v2"),
        route("global", "rules", "shop.mesh", "world", "/api"),
        route("zone:eu.z1", "hostnames", "shop.mesh", "zone", "/"),
        route("node:n1", "", "shop.mesh", "node", "/own"),
    ];
    let table = compile(&all, &here(), 0).table;
    let found = ["/api", "/api/v2", "/", "/own"].map(|path| service(&table, "shop.mesh", path).unwrap_or_default());
    assert_eq!(found, ["world", "world", "zone", "zone"]);
}

#[test]
fn a_locked_host_has_no_other_paths_than_wide_documents_give_it() {
    let host = |locked: &str| {
        let all = [
            route("global", locked, "shop.mesh", "wide", "/api"),
            route("global", "", "shop.mesh", "beside", "/beside"),
            route("region:eu", "", "shop.mesh", "narrow", "/extra"),
        ];
        let table = compile(&all, &here(), 0).table;
        ["/api", "/beside", "/extra"].map(|path| service(&table, "shop.mesh", path).unwrap_or_default())
    };
    assert_eq!(host("rules"), ["wide", "beside", "narrow"]);
    assert_eq!(host("hostnames"), ["wide", "beside", ""]);
}

#[test]
fn conflicts_with_a_lock_are_told_by_field_with_the_locking_document() {
    let wide = backend(
        "global",
        "wide",
        "loadBalancer.subset, loadBalancer.halfDistance",
        "{ halfDistance: 25ms, subset: { nearest: 3 } }",
    );
    let narrow = backend("region:eu", "narrow", "", "{ lambda: 1, epsilon: 2, subset: { nearest: 4 } }");
    let problems = locked_conflicts(&narrow, std::slice::from_ref(&wide));
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "field `spec.loadBalancer.lambda`: line 5: is locked by global/BackendTrafficPolicy/wide\n  \
             hint: leave it out, or change it in global/BackendTrafficPolicy/wide",
            "field `spec.loadBalancer.subset.nearest`: line 5: is locked by global/BackendTrafficPolicy/wide\n  \
             hint: leave it out, or change it in global/BackendTrafficPolicy/wide",
        ]
    );
    // Neither of the same scope, nor narrower, nor of another place, nor about another service.
    assert_eq!(fields(&wide, &[wide.clone(), narrow.clone()]), [""; 0]);
    let elsewhere = backend("region:us", "x", "loadBalancer", "{ lambda: 1 }");
    assert_eq!(fields(&narrow, std::slice::from_ref(&elsewhere)), [""; 0]);
    assert_eq!(fields(&backend("node:n1", "n", "", "{ lambda: 2 }"), &[elsewhere]), [""; 0]);
    let mut other = wide.clone();
    other.target_ref.as_mut().unwrap().name = "cart".into();
    assert_eq!(fields(&narrow, &[other]), [""; 0]);
}

#[test]
fn conflicts_of_routes_are_hosts_or_rules() {
    let narrow = route("region:eu", "", "a.shop.mesh", "mine", "/api/v2");
    let rules = ["spec.rules[0].matches[0]"];
    for (locked, host, path, expected) in [
        ("hostnames", "a.shop.mesh", "/x", &["spec.hostnames[0]"][..]),
        ("hostnames", "*.mesh", "/x", &["spec.hostnames[0]"]),
        ("hostnames", "shop.mesh", "/", &[]),
        ("rules", "a.shop.mesh", "/api", &rules),
        ("rules", "*.shop.mesh", "/", &rules),
        ("rules", "a.shop.mesh", "/apis", &[]),
        ("rules", "a.shop.mesh", "/api/v2/x", &[]),
        ("", "a.shop.mesh", "/", &[]),
    ] {
        assert_eq!(fields(&narrow, &[route("global", locked, host, "wide", path)]), expected, "{locked} {host}{path}");
    }
}

#[test]
fn a_lock_on_what_the_document_does_not_say_is_a_fault_with_a_way_out() {
    let spec = json!({"loadBalancer": {"halfDistance": "25ms", "subset": {"nearest": 3}}, "rules": [{"name": "a"}]});
    for (path, expected) in [
        ("loadBalancer", None),
        ("loadBalancer.subset.nearest", None),
        ("rules", None),
        ("loadBalancer.epsilon", Some("a document locks what it sets itself")),
        ("loadBalancer.half_distance", Some("did you mean `halfDistance`?")),
        ("spec.loadBalancer", Some("write `loadBalancer`")),
        ("rules[0].name", Some("lists are locked as a whole: leave out what is in brackets")),
        ("rules.name", Some("lock `rules` as a whole")),
        ("loadBalancer.subset.nearest.x", Some("lock `loadBalancer.subset.nearest` as a whole")),
        ("", Some("a document locks what it sets itself")),
        ("loadBalancer.", Some("a document locks what it sets itself")),
    ] {
        let found = fault(&spec, path).map(|(_, hint)| hint.unwrap());
        assert_eq!(found.as_deref(), expected, "{path}");
    }
}
