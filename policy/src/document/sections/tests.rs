use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use crate::document::{Document, Limits, TargetRef, accept_documents, canonical, parse_documents};

/// Any JSON value of a few levels.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-1000_i32..1000).prop_map(|whole| Value::from(f64::from(whole))),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn policy() -> Document {
    let text = "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: { name: a, scope: 'node:n1', labels: { b: '2', a: '1' } }\n\
                targetRef: { name: hello, kind: Service }\nspec: { loadBalancer: { lambda: 1.0, epsilon: 2e0 } }\n";
    accept_documents(text, &Limits::default()).unwrap().remove(0)
}

fn texts(sections: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, &str)> {
    sections.iter().map(|(name, bytes)| (name.as_str(), std::str::from_utf8(bytes).unwrap())).collect()
}

#[test]
fn sections_are_metadata_target_and_one_for_each_field_of_the_spec_in_canonical_json() {
    assert_eq!(
        texts(&policy().to_sections()),
        [
            ("metadata", r#"{"labels":{"a":"1","b":"2"}}"#),
            ("spec.loadBalancer", r#"{"epsilon":2,"lambda":1}"#),
            ("targetRef", r#"{"kind":"Service","name":"hello"}"#),
        ]
    );
    assert_eq!(texts(&Document::new("Other", "global", "a").to_sections()), [("metadata", "{}")]);
}

#[test]
fn a_document_comes_back_from_its_sections() {
    let document = policy();
    let sections = document.to_sections();
    assert_eq!(Document::from_sections("BackendTrafficPolicy", "node:n1", "a", &sections), Ok(document));
}

#[test]
fn the_key_decides_who_a_document_is() {
    let sections = BTreeMap::from([("metadata".to_owned(), br#"{"name":"other","scope":"global"}"#.to_vec())]);
    let document = Document::from_sections("Other", "node:n1", "a", &sections).unwrap();
    assert_eq!(document.id().to_string(), "node:n1/Other/a");
}

#[test]
fn sections_that_merged_into_something_invalid_give_every_fault_and_what_could_be_read() {
    // Both writes were valid; together they name the decay twice.
    let sections = BTreeMap::from([
        ("metadata".to_owned(), b"{}".to_vec()),
        ("targetRef".to_owned(), br#"{"kind":"Service","name":"hello"}"#.to_vec()),
        ("spec.loadBalancer".to_owned(), br#"{"halfDistance":"25ms","lambda":0.1}"#.to_vec()),
        ("spec.rules".to_owned(), b"[".to_vec()),
        ("status".to_owned(), b"{}".to_vec()),
    ]);
    let problems = Document::from_sections("BackendTrafficPolicy", "global", "a", &sections).unwrap_err();
    let found: Vec<_> = problems.iter().map(|problem| (problem.field.as_str(), problem.message.as_str())).collect();
    assert_eq!(
        found,
        [
            ("spec.rules", "the stored section is not JSON"),
            ("status", "`status` is not a section this version knows"),
            ("spec.loadBalancer.halfDistance", "stands beside `lambda`, which says the same"),
        ]
    );
    let (document, problems) = Document::read_sections("BackendTrafficPolicy", "global", "a", &sections);
    assert_eq!(problems.len(), 2);
    assert_eq!(document.spec["loadBalancer"]["lambda"], 0.1);
}

#[test]
fn locks_and_expiry_travel_in_the_metadata() {
    let mut document = policy();
    document.metadata.locked = vec!["loadBalancer.lambda".into()];
    document.metadata.expires_at = Some("2026-12-01T18:00:00Z".into());
    let sections = document.to_sections();
    assert_eq!(
        std::str::from_utf8(&sections["metadata"]).unwrap(),
        r#"{"expiresAt":"2026-12-01T18:00:00Z","labels":{"a":"1","b":"2"},"locked":["loadBalancer.lambda"]}"#
    );
    assert_eq!(Document::from_sections("BackendTrafficPolicy", "node:n1", "a", &sections).unwrap(), document);
    for text in [document.to_yaml(), document.to_json().to_string()] {
        assert_eq!(accept_documents(&text, &Limits::default()).unwrap(), [document.clone()], "{text}");
    }
}

/// What a newer version may write: fields and sections this one has never heard of, numbers spelled otherwise.
fn newer() -> BTreeMap<String, Vec<u8>> {
    [
        ("metadata", r#"{"labels":{"a":"1"},"owner":{"team":"edge"},"weight":1.0}"#),
        ("targetRef", r#"{"kind":"Service","name":"hello","selector":{"v":"2"}}"#),
        ("spec.loadBalancer", r#"{"epsilon": 2,"hedging":{"after":"10ms"}}"#),
        ("spec.later", r#"[1,{"deep":null}]"#),
        ("spec.broken", "not json"),
        ("status", r#"{"phase":"new"}"#),
    ]
    .map(|(section, text)| (section.to_owned(), text.as_bytes().to_vec()))
    .into()
}

#[test]
fn what_this_version_does_not_know_goes_back_byte_by_byte() {
    for kind in ["BackendTrafficPolicy", "Later"] {
        let (document, problems) = Document::read_sections(kind, "global", "a", &newer());
        assert_eq!(document.to_sections(), newer(), "{kind}");
        let faults: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
        if kind == "Later" {
            assert_eq!(faults, ["spec.broken"]);
        } else {
            assert_eq!(faults, ["spec.broken", "status", "metadata.owner", "metadata.weight", "targetRef.selector"]);
        }
        // It does not pass as a document that says less than it does.
        assert!(crate::validate(&document).is_err(), "{kind}");
    }
    let mut sound = newer();
    sound.remove("spec.broken");
    let document = Document::from_sections("Later", "global", "a", &sound).unwrap();
    assert_eq!(document.to_sections(), sound);
    assert_eq!(document.metadata.unknown["owner"]["team"], "edge");
    assert!(Document::from_sections("BackendTrafficPolicy", "global", "a", &sound).is_err());
}

#[test]
fn what_a_person_changes_in_a_document_of_a_newer_version_does_not_cost_the_rest() {
    let (mut document, _) = Document::read_sections("Later", "global", "a", &newer());
    document.metadata.description = Some("seen".into());
    document.spec["later"] = Value::from(7);
    let sections = document.to_sections();
    let text = |section: &str| std::str::from_utf8(&sections[section]).unwrap();
    assert_eq!(text("metadata"), r#"{"description":"seen","labels":{"a":"1"},"owner":{"team":"edge"},"weight":1}"#);
    assert_eq!(text("spec.later"), "7");
    for untouched in ["targetRef", "spec.loadBalancer", "spec.broken", "status"] {
        assert_eq!(sections[untouched], newer()[untouched], "{untouched}");
    }
}

#[test]
fn text_with_unknown_fields_of_the_envelope_is_a_slip_also_for_unknown_kinds() {
    let text =
        "apiVersion: marram.dev/v1\nkind: Later\nmetadata: { name: a, expireAt: '2026-12-01T18:00:00Z' }\nspec: {}\n";
    let problems = accept_documents(text, &Limits::default()).unwrap_err();
    assert_eq!(problems[0].hint.as_deref(), Some("did you mean `expiresAt`?"));
}

#[test]
fn junk_in_sections_is_refused_and_does_not_panic() {
    for bytes in [&b""[..], b"\xff\xfe", b"nul", b"1 2", b"[[[[", &[b'['; 4096]] {
        for section in ["metadata", "targetRef", "spec.loadBalancer", "", "spec."] {
            let sections = BTreeMap::from([(section.to_owned(), bytes)]);
            assert!(Document::from_sections("HTTPRoute", "global", "a", &sections).is_err(), "{section} {bytes:?}");
        }
    }
}

/// A document of a kind nobody enforces, with any spec.
fn any_document() -> impl Strategy<Value = Document> {
    let spec = prop::collection::btree_map("[a-zA-Z0-9_.-]{1,12}", any_json(), 0..6);
    let labels = prop::collection::btree_map("[a-z0-9]{1,8}", "[a-z0-9]{0,8}", 0..4);
    let description = prop::option::of(any::<String>());
    let target = prop::option::of(any::<String>());
    (spec, labels, description, target).prop_map(|(spec, labels, description, target)| {
        let mut document = Document::new("Other", "region:eu", "some.name");
        document.spec = canonical::settled(Value::Object(spec.into_iter().collect()));
        document.metadata.labels = labels;
        document.metadata.description = description;
        document.target_ref = target.map(|name| TargetRef { kind: "Service".into(), name });
        document
    })
}

proptest! {
    #[test]
    fn any_document_survives_sections_yaml_and_json(document in any_document()) {
        let sections = document.to_sections();
        let (read, problems) = Document::read_sections("Other", "region:eu", "some.name", &sections);
        prop_assert_eq!(&problems, &[]);
        prop_assert_eq!(&read, &document);
        prop_assert_eq!(read.to_sections(), sections);
        for text in [document.to_yaml(), document.to_json().to_string()] {
            let read = parse_documents(&text, &Limits::default());
            prop_assert_eq!(read, Ok(vec![document.clone()]), "{}", text);
        }
    }

    #[test]
    fn any_sections_go_back_byte_by_byte(values in prop::collection::btree_map("metadata|targetRef|status|spec\\.[a-z]{1,3}", any_json(), 0..5), junk in "[a-z]{0,5}") {
        let mut sections: BTreeMap<String, Vec<u8>> =
            values.into_iter().map(|(section, value)| (section, value.to_string().into_bytes())).collect();
        sections.entry("metadata".to_owned()).or_insert_with(|| b"{}".to_vec());
        sections.insert("spec.junk".to_owned(), junk.into_bytes());
        for kind in ["HTTPRoute", "Later"] {
            let (document, _) = Document::read_sections(kind, "global", "a", &sections);
            prop_assert_eq!(document.to_sections(), sections.clone());
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}|[a-z:\\[\\]{}&*!|>%@`\"'#, \n-]{0,200}") {
        drop(accept_documents(&text, &Limits::default()));
    }

    #[test]
    fn no_sections_make_the_reader_panic(name in "metadata|targetRef|spec\\.(rules|loadBalancer|hostnames)|.{0,9}", value in any_json()) {
        let sections = BTreeMap::from([(name, value.to_string().into_bytes())]);
        for kind in ["HTTPRoute", "BackendTrafficPolicy", "Other"] {
            drop(Document::from_sections(kind, "global", "a", &sections));
        }
    }
}
