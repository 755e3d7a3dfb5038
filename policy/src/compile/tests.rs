use std::f64::consts::LN_2;

use super::{Compiled, compile};
use crate::{
    backend::BackendPolicy,
    document::{Document, Limits, parse_documents},
    scope::Place,
};

/// 2026-12-01T18:00:00Z.
const NOW_MS: u64 = 1_796_148_000_000;

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
    let forward = compile(documents, &here(), NOW_MS);
    let reversed: Vec<_> = documents.iter().rev().cloned().collect();
    let backward = compile(&reversed, &here(), NOW_MS);
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

#[test]
fn an_expired_document_is_not_in_force_and_the_next_expiry_is_told() {
    let at = |mut document: Document, time: &str| {
        document.metadata.expires_at = Some(time.to_owned());
        document
    };
    let compiled = compiled(&[
        at(policy("node:n1", "over", "hello", "{ epsilon: 9 }"), "2026-12-01T18:00:00Z"),
        at(policy("zone:eu.z1", "later", "hello", "{ epsilon: 8 }"), "2026-12-01T19:00:00.001+01:00"),
        at(policy("node:other", "much-later", "hello", "{ epsilon: 7 }"), "2027-01-01T00:00:00Z"),
        policy("global", "always", "hello", "{ epsilon: 6 }"),
    ]);
    assert!(close(compiled.table.backend("hello").epsilon, 8.0), "{:?}", compiled.table.backend("hello"));
    let expired: Vec<_> = compiled.expired.iter().map(ToString::to_string).collect();
    assert_eq!(expired, ["node:n1/BackendTrafficPolicy/over"]);
    assert_eq!(compiled.next_expiry_ms, Some(NOW_MS + 1));
    assert_eq!(compiled.problems, []);
    assert_eq!(compile(&[], &here(), NOW_MS).next_expiry_ms, None);
}

#[test]
fn the_lock_of_an_expired_document_is_over_too() {
    let mut wide = policy("global", "wide", "hello", "{ epsilon: 6 }");
    wide.metadata.locked = vec!["loadBalancer.epsilon".into()];
    let narrow = policy("node:n1", "narrow", "hello", "{ epsilon: 2 }");
    let locked = compiled(&[wide.clone(), narrow.clone()]);
    assert!(close(locked.table.backend("hello").epsilon, 6.0));
    assert_eq!(locked.table.backend("hello").source, "global/BackendTrafficPolicy/wide");
    assert_eq!(locked.locked_out.len(), 1);
    assert_eq!(locked.locked_out[0].0, narrow.id());
    wide.metadata.expires_at = Some("2026-12-01T17:00:00Z".into());
    let free = compiled(&[wide, narrow]);
    assert!(close(free.table.backend("hello").epsilon, 2.0));
    assert_eq!(free.locked_out, []);
}
