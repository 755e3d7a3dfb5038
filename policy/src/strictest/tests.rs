use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    authorization::AuthzRequest,
    compile::compile,
    document::{Document, PeerMode, TargetRef},
    scope::Place,
    table::RouteTable,
    validate::validate,
};

fn here() -> Place {
    Place { node_name: "n1".into(), region: "eu".into(), zone: "z1".into() }
}

fn document(kind: &str, scope: &str, name: &str, target: (&str, &str), spec: Value) -> Document {
    let mut document = Document::new(kind, scope, name);
    document.target_ref = Some(TargetRef { kind: target.0.into(), name: target.1.into() });
    document.spec = spec;
    document
}

fn peer(scope: &str, target: (&str, &str), mode: &str) -> Document {
    document("PeerAuthentication", scope, "p", target, json!({ "mtls": { "mode": mode } }))
}

fn residency(scope: &str, regions: &[&str]) -> Document {
    document("Residency", scope, "r", ("Service", "db"), json!({ "allowRegions": regions }))
}

fn table(documents: &[Document]) -> RouteTable {
    compile(documents, &here(), 0).table
}

#[test]
fn the_strictest_mode_of_every_scope_and_of_the_mesh_holds() {
    let db = ("Service", "db");
    let mesh = ("Mesh", "factory7");
    for (documents, expected) in [
        (vec![], None),
        (vec![peer("global", db, "DISABLE")], Some(PeerMode::Disable)),
        (vec![peer("global", db, "PERMISSIVE"), peer("node:n1", db, "DISABLE")], Some(PeerMode::Permissive)),
        (vec![peer("global", mesh, "STRICT"), peer("node:n1", db, "DISABLE")], Some(PeerMode::Strict)),
        (vec![peer("node:n1", mesh, "PERMISSIVE")], Some(PeerMode::Permissive)),
        (vec![peer("node:n2", mesh, "STRICT")], None),
        (vec![peer("global", ("Service", "other"), "STRICT")], None),
        // What cannot be read is as strict as it can be.
        (vec![peer("global", db, "LATER")], Some(PeerMode::Strict)),
    ] {
        assert_eq!(table(&documents).peer_mode("db"), expected, "{documents:?}");
    }
}

#[test]
fn only_regions_that_every_document_allows_remain_and_none_is_nowhere() {
    for (documents, expected) in [
        (vec![], None),
        (vec![residency("global", &["eu", "us"])], Some(vec!["eu", "us"])),
        (vec![residency("global", &["eu", "us"]), residency("region:eu", &["ap", "eu"])], Some(vec!["eu"])),
        (vec![residency("global", &["us"]), residency("node:n1", &["eu"])], Some(vec![])),
        // Two edits of one document.
        (vec![residency("global", &["eu", "us"]), residency("global", &["us"])], Some(vec!["us"])),
        (vec![residency("node:n2", &["us"])], None),
        (vec![residency("global", &[])], Some(vec![])),
    ] {
        let table = table(&documents);
        let found = table.residency("db").map(|regions| regions.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(found, expected, "{documents:?}");
        for region in ["eu", "us", ""] {
            let may = expected.as_ref().is_none_or(|regions| regions.contains(&region));
            assert_eq!(table.may_answer_in("db", region), may, "{region} {documents:?}");
        }
    }
}

#[test]
fn faults_of_modes_and_regions_name_the_way_out() {
    let faults = |document: &Document| {
        let problems = validate(document).err().unwrap_or_default();
        problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect::<Vec<_>>()
    };
    assert_eq!(faults(&peer("global", ("Service", "db"), "STRICT")), [""; 0]);
    assert_eq!(
        faults(&peer("global", ("Mesh", "factory7"), "strict")),
        ["spec.mtls.mode: `strict` is not a known word"]
    );
    assert_eq!(
        faults(&peer("global", ("Node", "n1"), "STRICT")),
        ["targetRef.kind: `Node` is not what this kind is about"]
    );
    let empty = document("PeerAuthentication", "global", "p", ("Service", "db"), json!({}));
    assert_eq!(faults(&empty), ["spec.mtls: is missing"]);
    assert_eq!(faults(&residency("global", &[])), ["spec.allowRegions: is empty"]);
    assert_eq!(faults(&residency("global", &["EU"])), ["spec.allowRegions[0]: `EU` is not a DNS label"]);
    let mut queue = residency("global", &["eu"]);
    queue.spec["appliesTo"] = json!(["traffic", "queue", "trafic"]);
    assert_eq!(
        faults(&queue),
        [
            "spec.appliesTo[1]: `queue` is not carried by this version",
            "spec.appliesTo[2]: `trafic` is not a known word"
        ]
    );
}

const SCOPES: [&str; 5] = ["global", "region:eu", "zone:eu.z1", "node:n1", "zone:eu.z2"];
const WHO: [&str; 3] = ["spiffe://m/a", "spiffe://m/b", "spiffe://n/a"];
const PATHS: [&str; 3] = ["/a", "/a/b", "/c"];

/// A document of one of the three kinds for the service `db`, sometimes expired, sometimes unreadable.
fn any_document() -> impl Strategy<Value = Document> {
    let scope = prop::sample::select(&SCOPES[..]);
    let name = prop::sample::select(&["x", "y"][..]);
    let spec = prop_oneof![4 => any_authorization(), 1 => any_peer(), 1 => any_residency()];
    let target = prop::sample::select(&["db", "db", "db", "other"][..]);
    let oddity = 0..12_u8;
    (scope, name, spec, target, oddity).prop_map(|(scope, name, (kind, spec), target, oddity)| {
        let mut document = document(kind, scope, name, ("Service", target), spec);
        match oddity {
            0 => document.metadata.expires_at = Some("1970-01-01T00:00:00Z".into()),
            1 => document.spec["later"] = json!(true),
            _ => {}
        }
        document
    })
}

fn any_authorization() -> impl Strategy<Value = (&'static str, Value)> {
    let principals = prop::sample::subsequence(&["spiffe://m/a", "spiffe://m/*", "*/a", "*"][..], 1..=2);
    let paths = prop::sample::subsequence(&["/a", "/a*", "*b", "/c"][..], 1..=2);
    let rule = (prop::option::of(principals), prop::option::of(paths)).prop_map(|(principals, paths)| {
        let mut rule = json!({});
        if let Some(principals) = principals {
            rule["from"] = json!([{ "principals": principals }]);
        }
        if let Some(paths) = paths {
            rule["to"] = json!([{ "paths": paths }]);
        }
        rule
    });
    let action = prop::sample::select(&["ALLOW", "ALLOW", "DENY"][..]);
    (action, prop::collection::vec(rule, 1..3))
        .prop_map(|(action, rules)| ("AuthorizationPolicy", json!({ "action": action, "rules": rules })))
}

fn any_peer() -> impl Strategy<Value = (&'static str, Value)> {
    prop::sample::select(&["DISABLE", "PERMISSIVE", "STRICT"][..])
        .prop_map(|mode| ("PeerAuthentication", json!({ "mtls": { "mode": mode } })))
}

fn any_residency() -> impl Strategy<Value = (&'static str, Value)> {
    prop::sample::subsequence(&["ap", "eu", "us"][..], 1..=3)
        .prop_map(|regions| ("Residency", json!({ "allowRegions": regions })))
}

/// Every request that the property looks at.
fn requests() -> Vec<AuthzRequest<'static>> {
    let who = WHO.into_iter().map(Some).chain([None]);
    who.flat_map(|principal| {
        PATHS.map(|path| AuthzRequest { principal, method: Some("GET"), path: Some(path), port: 80 })
    })
    .collect()
}

/// Whether `more` is a new ALLOW document of a scope that has one for the service already: the one thing that may permit
/// what the others of that scope do not.
fn is_a_further_allow(more: &Document, documents: &[Document]) -> bool {
    let is_allow = |document: &Document| document.spec["action"] == "ALLOW";
    let is_known = documents.iter().any(|document| document.id() == more.id());
    is_allow(more)
        && !is_known
        && documents.iter().any(|document| is_allow(document) && document.metadata.scope == more.metadata.scope)
}

proptest! {
    #[test]
    fn whatever_is_added_permits_nothing_more(documents in prop::collection::vec(any_document(), 0..6), more in any_document()) {
        let before = table(&documents);
        let mut all = documents.clone();
        all.push(more.clone());
        let after = table(&all);
        if !is_a_further_allow(&more, &documents) {
            for request in requests() {
                let (was, is) = (before.authorization("db").decide(&request), after.authorization("db").decide(&request));
                prop_assert!(was.allowed || !is.allowed, "{:?}: {:?} then {:?}", request, was, is);
            }
        }
        prop_assert!(after.peer_mode("db") >= before.peer_mode("db"));
        for region in ["ap", "eu", "us", ""] {
            prop_assert!(before.may_answer_in("db", region) || !after.may_answer_in("db", region), "{}", region);
        }
    }

    #[test]
    fn a_further_allow_never_permits_what_another_scope_or_a_deny_refuses(documents in prop::collection::vec(any_document(), 0..6), more in any_document()) {
        let others: Vec<Document> =
            documents.iter().filter(|document| document.metadata.scope != more.metadata.scope || document.spec["action"] == "DENY").cloned().collect();
        let before = table(&others);
        let mut all = documents;
        all.push(more);
        let after = table(&all);
        for request in requests() {
            let (was, is) = (before.authorization("db").decide(&request), after.authorization("db").decide(&request));
            prop_assert!(was.allowed || !is.allowed, "{:?}: {:?} then {:?}", request, was, is);
        }
    }

    #[test]
    fn the_order_of_documents_does_not_matter(documents in prop::collection::vec(any_document(), 0..6), turn in 0..6_usize) {
        let mut turned = documents.clone();
        turned.rotate_left(turn.min(documents.len()));
        turned.reverse();
        let (one, other) = (table(&documents), table(&turned));
        for request in requests() {
            prop_assert_eq!(one.authorization("db").decide(&request), other.authorization("db").decide(&request));
        }
        prop_assert_eq!(one.peer_mode("db"), other.peer_mode("db"));
        prop_assert_eq!(one.residency("db"), other.residency("db"));
    }
}
