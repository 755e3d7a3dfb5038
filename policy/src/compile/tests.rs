use std::f64::consts::LN_2;

use super::{Compiled, compile};
use crate::{
    backend::BackendPolicy,
    document::{Document, Limits, parse_documents},
    scope::Place,
};

fn here() -> Place {
    Place { node_name: "n1".into(), region: "eu".into(), zone: "z1".into() }
}

fn policy(scope: &str, name: &str, service: &str, balancer: &str) -> Document {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {name}, scope: '{scope}' }}\n\
         targetRef: {{ kind: Service, name: {service} }}\nspec: {{ loadBalancer: {balancer} }}\n"
    );
    parse_documents(&text, &Limits::default()).unwrap().remove(0)
}

fn compiled(documents: &[Document]) -> Compiled {
    let forward = compile(documents, &here());
    let reversed: Vec<_> = documents.iter().rev().cloned().collect();
    let backward = compile(&reversed, &here());
    for service in ["hello", "cart"] {
        assert_eq!(forward.table.backend(service), backward.table.backend(service), "the order does not matter");
    }
    forward
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-12
}

#[test]
fn a_service_without_a_policy_gets_the_default() {
    let table = compiled(&[policy("global", "a", "hello", "{ lambda: 1 }")]).table;
    assert_eq!(table.backend("cart"), &BackendPolicy::default());
    let default = table.backend("cart");
    assert!(close(default.lambda_per_ms, LN_2 / 25.0) && close(default.epsilon, 1.0));
    assert!(close(default.half_distance_ms().unwrap(), 25.0));
    assert_eq!(default.nearest, None);
}

#[test]
fn each_field_comes_from_the_narrowest_scope_that_sets_it() {
    let table = compiled(&[
        policy("global", "a", "hello", "{ halfDistance: 50ms, epsilon: 2, subset: { nearest: 9 } }"),
        policy("region:eu", "b", "hello", "{ epsilon: 3 }"),
        policy("zone:eu.z1", "c", "hello", "{ lambda: 0.5 }"),
        policy("zone:eu.z2", "d", "hello", "{ lambda: 7, epsilon: 7 }"),
        policy("node:n2", "e", "hello", "{ lambda: 8, epsilon: 8 }"),
        policy("node:n1", "f", "hello", "{}"),
    ])
    .table;
    let hello = table.backend("hello");
    assert!(close(hello.lambda_per_ms, 0.5) && close(hello.epsilon, 3.0), "{hello:?}");
    assert_eq!(hello.nearest, Some(9));
    assert_eq!(
        hello.source,
        "zone:eu.z1/BackendTrafficPolicy/c, region:eu/BackendTrafficPolicy/b, global/BackendTrafficPolicy/a"
    );
}

#[test]
fn within_a_scope_the_first_name_wins_and_a_policy_that_sets_nothing_is_no_source() {
    let table = compiled(&[
        policy("global", "b", "hello", "{ epsilon: 5 }"),
        policy("global", "a", "hello", "{ epsilon: 4 }"),
        policy("global", "c", "cart", "{}"),
    ])
    .table;
    assert!(close(table.backend("hello").epsilon, 4.0));
    assert_eq!(table.backend("hello").source, "global/BackendTrafficPolicy/a");
    assert_eq!(table.backend("cart").source, "default");
}

#[test]
fn a_half_distance_becomes_its_lambda_and_lambda_zero_has_none() {
    let table = compiled(&[
        policy("global", "a", "hello", "{ halfDistance: 40ms }"),
        policy("global", "b", "cart", "{ lambda: 0 }"),
    ])
    .table;
    assert!(close(table.backend("hello").half_distance_ms().unwrap(), 40.0));
    assert_eq!(table.backend("cart").half_distance_ms(), None);
}

#[test]
fn what_does_not_validate_is_listed_and_skipped_and_the_rest_is_in_force() {
    let compiled = compiled(&[
        policy("global", "bad", "hello", "{ lambda: -1, epsilon: 0 }"),
        policy("region:us", "bad-elsewhere", "hello", "{ lambda: -1 }"),
        policy("global", "good", "hello", "{ epsilon: 4 }"),
        Document::new("Other", "global", "unknown"),
    ]);
    let listed: Vec<_> = compiled.problems.iter().map(|(id, faults)| (id.to_string(), faults.len())).collect();
    assert_eq!(
        listed,
        [
            ("global/BackendTrafficPolicy/bad".to_owned(), 2),
            ("region:us/BackendTrafficPolicy/bad-elsewhere".to_owned(), 1)
        ]
    );
    assert_eq!(compiled.table.backend("hello").source, "global/BackendTrafficPolicy/good");
}
