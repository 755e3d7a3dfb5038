use super::*;
use crate::{Limits, accept_documents};

fn documents(text: &str) -> Vec<Document> {
    accept_documents(text, &Limits::default()).expect("the documents are valid")
}

fn route(name: &str, scope: &str, host: &str, service: &str, locked: &str) -> Document {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, scope: {scope}, locked: [{locked}] }}\n\
         spec: {{ hostnames: [{host}], rules: [{{ backendRefs: [{{ name: {service}, weight: 1 }}] }}] }}\n"
    );
    documents(&text).remove(0)
}

fn decay(name: &str, scope: &str, service: &str, half: &str) -> Document {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {name}, scope: {scope} }}\n\
         targetRef: {{ kind: Service, name: {service} }}\nspec: {{ loadBalancer: {{ halfDistance: {half} }} }}\n"
    );
    documents(&text).remove(0)
}

fn deny(name: &str, principal: &str, expires: &str) -> Document {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: {name}, expiresAt: \"{expires}\" }}\ntargetRef: {{ kind: Service, name: shop }}\n\
         spec: {{ action: DENY, rules: [{{ from: [{{ principals: [\"{principal}\"] }}] }}] }}\n"
    );
    documents(&text).remove(0)
}

/// Everything that compilation says, for comparing.
fn told(compiled: &Compiled) -> String {
    // Tables by name: their maps have no order of their own.
    let table = &compiled.table;
    let mut lines: Vec<String> = Vec::new();
    lines.extend(table.backends.iter().map(|(service, policy)| format!("backend {service} {policy:?}")));
    lines.extend(table.routes.exact.iter().map(|(host, rules)| format!("host {host} {rules:?}")));
    lines.extend(table.authorizations.iter().map(|(service, all)| format!("authorization {service} {all:?}")));
    lines.extend(table.tiers.iter().map(|tier| format!("tier {tier:?}")));
    lines.sort();
    format!(
        "{lines:#?} {:?} {:?} {:?} {:?}",
        compiled.problems, compiled.expired, compiled.next_expiry_ms, compiled.locked_out
    )
}

fn everything() -> Vec<Document> {
    vec![
        route("shop", "global", "shop.example", "shop", "rules"),
        route("shop", "zone:eu.a", "shop.example", "other", ""),
        decay("shop", "global", "shop", "10ms"),
        decay("shop", "zone:eu.a", "shop", "20ms"),
        deny("one", "spiffe://m/node/*", "2026-12-01T00:00:00Z"),
        deny("two", "spiffe://m/node/b", "2020-12-01T00:00:00Z"),
    ]
}

const NOW_MS: u64 = 1_790_000_000_000;

fn here() -> Place {
    Place { node_name: "n".to_owned(), region: "eu".to_owned(), zone: "a".to_owned() }
}

#[test]
fn filing_documents_one_by_one_compiles_as_all_of_them_at_once() {
    let documents = everything();
    let mut library = Library::default();
    for document in documents.iter().rev() {
        library.file(document.id(), Filed::new([document], Vec::new()));
    }
    let expected = crate::compile(&documents, &here(), NOW_MS);
    assert!(!expected.locked_out.is_empty() && !expected.expired.is_empty() && expected.next_expiry_ms.is_some());
    assert_eq!(told(&library.compile(&here(), NOW_MS)), told(&expected));
}

#[test]
fn a_document_that_is_filed_again_counts_as_it_is_now_and_one_taken_out_does_not_count() {
    let mut documents = everything();
    let mut library = Library::default();
    for document in &documents {
        library.file(document.id(), Filed::new([document], Vec::new()));
    }
    documents[3] = decay("shop", "zone:eu.a", "shop", "30ms");
    library.file(documents[3].id(), Filed::new([&documents[3]], Vec::new()));
    let gone = documents.remove(0);
    library.file(gone.id(), Filed::default());
    assert_eq!(library.len(), documents.len());
    assert_eq!(told(&library.compile(&here(), NOW_MS)), told(&crate::compile(&documents, &here(), NOW_MS)));
}

#[test]
fn concurrent_edits_of_one_document_count_each_in_the_same_order_on_every_node() {
    let (left, right) = (
        deny("one", "spiffe://m/node/a", "2027-12-01T00:00:00Z"),
        deny("one", "spiffe://m/node/b", "2027-12-01T00:00:00Z"),
    );
    let compiled = |edits: [&Document; 2]| {
        let mut library = Library::default();
        library.file(left.id(), Filed::new(edits, Vec::new()));
        told(&library.compile(&here(), NOW_MS))
    };
    assert_eq!(compiled([&left, &right]), compiled([&right, &left]));
    assert_eq!(compiled([&left, &right]), told(&crate::compile(&[right.clone(), left.clone()], &here(), NOW_MS)));
    assert!(compiled([&left, &right]).contains("node/a") && compiled([&left, &right]).contains("node/b"));
}

#[test]
fn faults_of_the_merged_document_are_told_instead_of_those_of_the_edit_that_stands_in() {
    let good = decay("shop", "global", "shop", "10ms");
    let fault = Problem::new("spec", "the two edits do not go together", None);
    let mut library = Library::default();
    library.file(good.id(), Filed::new([&good], vec![fault.clone()]));
    let compiled = library.compile(&here(), NOW_MS);
    assert_eq!(compiled.problems, vec![(good.id(), vec![fault.clone()])]);
    assert!(compiled.table.backend("shop").source.contains("BackendTrafficPolicy/shop"), "the good edit is in force");

    library.file(good.id(), Filed::new([], vec![fault]));
    assert_eq!(library.compile(&here(), NOW_MS).table.backend("shop").source, "default");
    assert_eq!(library.compile(&here(), NOW_MS).problems.len(), 1);
}

#[test]
fn a_route_is_kept_without_its_text() {
    let document = route("shop", "global", "shop.example", "shop", "");
    let filed = Filed::new([&document], Vec::new());
    assert!(filed.readings[0].spec.is_null());
    assert_eq!(filed.readings[0].id(), &document.id());
}
