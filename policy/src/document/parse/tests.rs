use super::{Limits, accept_documents, parse_documents};
use crate::{document::Document, problem::Problem};

/// The one fault of a text that cannot be read at all.
fn only_fault(text: &str) -> String {
    let problems = accept_documents(text, &Limits::default()).expect_err("the text is to be refused");
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert_eq!(problems[0].field, "document");
    problems[0].message.clone()
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

const BACKEND: &str = r#"apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata:
  name: hello
  scope: region:eu
  labels: { team: edge }
  description: "half at 40 ms"
targetRef: { kind: Service, name: hello }
spec:
  loadBalancer: { algorithm: EdgeDecay, halfDistance: 40ms, epsilon: 1.0, draw: Single, subset: { nearest: 3 } }
"#;

fn backend() -> Document {
    parse_documents(BACKEND, &Limits::default()).unwrap().remove(0)
}

#[test]
fn yaml_and_json_with_or_without_mark_and_carriage_returns_read_the_same() {
    let document = backend();
    assert_eq!(document.id().to_string(), "region:eu/BackendTrafficPolicy/hello");
    assert_eq!(document.metadata.labels["team"], "edge");
    let json = document.to_json();
    let texts = [
        BACKEND.replace('\n', "\r\n"),
        format!("\u{feff}{BACKEND}"),
        format!("\u{feff}{}", BACKEND.replace('\n', "\r\n")),
        format!("--- # first\n{BACKEND}...\n"),
        json.to_string(),
        serde_json::to_string_pretty(&json).unwrap(),
        format!("[{json}]"),
        document.to_yaml(),
    ];
    for text in texts {
        assert_eq!(accept_documents(&text, &Limits::default()), Ok(vec![document.clone()]), "{text}");
    }
}

#[test]
fn several_documents_come_in_order_and_empty_ones_are_left_out() {
    let second = BACKEND.replace("name: hello\n", "name: other\n");
    let (first_json, second_json) =
        (backend().to_json(), parse_documents(&second, &Limits::default()).unwrap()[0].to_json());
    let texts = [
        format!("---\n---\n{BACKEND}---\n# nothing here\n---\n{second}"),
        format!("{first_json}\n{second_json}"),
        format!("{first_json}{second_json}"),
        format!("[{first_json}, {second_json}]"),
    ];
    for text in texts {
        let documents = parse_documents(&text, &Limits::default()).expect(&text);
        let names: Vec<_> = documents.iter().map(|document| document.metadata.name.as_str()).collect();
        assert_eq!(names, ["hello", "other"], "{text}");
    }
    for text in ["", "\u{feff}", "---\n---\n", "# nothing\n", "[]", "null"] {
        assert_eq!(parse_documents(text, &Limits::default()), Ok(vec![]), "{text:?}");
        assert_eq!(only_fault(text), "the text holds no document", "{text:?}");
    }
}

#[test]
fn faults_of_envelope_and_spec_of_every_document_come_in_one_answer_with_their_lines() {
    let text = r"
apiVersion: marram.dev/v2
kind: BackendTrafficPolicy
metadata:
  name: Hello World
  scope: zone:z1
  lables: { a: b }
  labels: { size: 10, owner: '-x' }
targetRef: { kind: Node, name: hello }
spec:
  loadBalancer:
    algorithm: EdgeAdditive
    half_distance: 25ms
    lambda: -1
    epsilon: one
    draw: single
    subset: { nearest: 0 }
  outlier: {}
---
kind: HTTPRoute
metadata: shop
extra: 1
spec:
  hostnames: [ 'shop.mesh:80', 7, '*.Shop.mesh' ]
  rules:
  - name: api
    matches: [ { path: { type: PathPreffix, value: api } }, { paths: 1 } ]
    backendRefs: [ { name: Shop, weight: 1000001 }, { weight: 1.5 } ]
    timeouts: { request: 5 }
  - name: api
    backendRefs: [ { name: a, weight: 0 } ]
  - backendRefs: []
";
    let problems = accept_documents(text, &Limits::default()).unwrap_err();
    let expected = "\
field `documents[0].metadata.lables`: line 7: unknown field
  hint: did you mean `labels`?
field `documents[0].metadata.labels.size`: line 8: expected text, found the number 10
  hint: put it in quotes
field `documents[0].apiVersion`: line 2: `marram.dev/v2` is not a version this node reads
  hint: write `apiVersion: marram.dev/v1`
field `documents[0].metadata.name`: line 5: `Hello World` is not made of DNS labels
  hint: write `hello-world`
field `documents[0].metadata.scope`: line 6: `zone:z1` names a zone without its region
  hint: write `zone:REGION.z1`
field `documents[0].metadata.labels.owner`: line 8: `-x` is not a label's value
  hint: up to 63 letters and digits, with - _ . / in between
field `documents[0].targetRef.kind`: line 9: `Node` is not what this kind is about
  hint: write `targetRef: { kind: Service, name: SERVICE }`
field `documents[0].spec.outlier`: line 18: unknown field
  hint: known here: loadBalancer, healthCheck, locality, retryConstraint, circuitBreaker, rateLimit, faultInjection, hedging
field `documents[0].spec.loadBalancer.half_distance`: line 13: unknown field
  hint: did you mean `halfDistance`?
field `documents[0].spec.loadBalancer.algorithm`: line 12: `EdgeAdditive` is not carried by this version
  hint: this version carries EdgeDecay
field `documents[0].spec.loadBalancer.lambda`: line 14: -1 is outside 0..=1000
field `documents[0].spec.loadBalancer.epsilon`: line 15: expected a number, found the text `one`
field `documents[0].spec.loadBalancer.draw`: line 16: `single` is not a known word
  hint: did you mean `Single`?
field `documents[0].spec.loadBalancer.subset.nearest`: line 17: 0 is outside 1..=10000
  hint: write a whole number within
field `documents[1].extra`: line 22: unknown field
  hint: known here: apiVersion, kind, metadata, targetRef, spec
field `documents[1].apiVersion`: line 20: is missing
  hint: write `apiVersion: marram.dev/v1`
field `documents[1].metadata`: line 21: expected an object, found the text `shop`
field `documents[1].spec.hostnames[0]`: line 24: `shop.mesh:80` has a port
  hint: write `shop.mesh`; a route is for a host on any port
field `documents[1].spec.hostnames[1]`: line 24: expected text, found the number 7
  hint: put it in quotes
field `documents[1].spec.hostnames[2]`: line 24: `*.Shop.mesh` has upper-case letters
  hint: write `*.shop.mesh`
field `documents[1].spec.rules[0].matches[0].path.type`: line 27: `PathPreffix` is not a known word
  hint: did you mean `PathPrefix`?
field `documents[1].spec.rules[0].matches[0].path.value`: line 27: `api` does not begin with `/`
  hint: a path begins with `/`
field `documents[1].spec.rules[0].matches[1].paths`: line 27: unknown field
  hint: did you mean `path`?
field `documents[1].spec.rules[0].backendRefs[0].name`: line 28: `Shop` is not a DNS label
  hint: write `shop`
field `documents[1].spec.rules[0].backendRefs[0].weight`: line 28: 1000001 is outside 0..=1000000
  hint: write a whole number within
field `documents[1].spec.rules[0].backendRefs[1].name`: line 28: is missing
  hint: name the service
field `documents[1].spec.rules[0].backendRefs[1].weight`: line 28: 1.5 is outside 0..=1000000
  hint: write a whole number within
field `documents[1].spec.rules[0].timeouts.request`: line 29: a duration needs a unit
  hint: write `5ms` or `5s`
field `documents[1].spec.rules[1].backendRefs`: line 31: every weight is 0, so nothing would answer
  hint: give one of them a weight above 0
field `documents[1].spec.rules[1].name`: line 30: another rule of this document has this name
  hint: rename one of them
field `documents[1].spec.rules[2].backendRefs`: line 32: is empty
  hint: name at least one service, as `backendRefs: [ { name: shop } ]`
";
    assert_eq!(listed(&problems), expected);
}

#[test]
fn text_that_cannot_be_read_names_line_fault_and_source() {
    for (text, expected) in [
        (
            "kind: X\nmetadata:\n  name: a\n  name: b\n",
            "line 4, column 3: duplicate mapping key `name` is not allowed here: `name: b`",
        ),
        ("kind: X\nspec: [a\n", "line 2, column 7: unclosed bracket '[': `spec: [a`"),
        ("kind: X\nspec: {a: .nan}\n", "line 2, column 11: value `.nan` is not a finite number: `spec: {a: .nan}`"),
        ("kind: X\nspec: !env HOME\n", "line 2, column 12: unsupported tag `!env`: `spec: !env HOME`"),
        ("a: *nope\n", "line 1, column 4: reference to unknown value: `a: *nope`"),
        ("{\"a\":1}{\"b\":1,\"b\":2}", "duplicate mapping key: b at line 1 column 17"),
        ("just words", "expected an object, found the text `just words`"),
    ] {
        assert_eq!(only_fault(text), expected, "{text}");
    }
}

#[test]
fn aliases_and_merge_keys_work_within_their_budget() {
    let text = "apiVersion: marram.dev/v1\nkind: Other\nmetadata: { name: a }\nspec:\n  base: &base { x: 1 }\n  more: { <<: *base, y: 2 }\n";
    let documents = accept_documents(text, &Limits::default()).unwrap();
    assert_eq!(documents[0].spec["more"], serde_json::json!({"x": 1, "y": 2}));
}

#[test]
fn bombs_are_refused_before_they_unfold() {
    const X: &str = "x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x,x";
    let nine = |name: &str| vec![format!("*{name}"); 9].join(",");
    let mut levels = format!("a: &a [{X}]\n");
    for (below, level) in [("a", "b"), ("b", "c")] {
        levels += &format!("{level}: &{level} [{}]\n", nine(below));
    }
    let by_values = format!("{levels}d: &d [{}]\ne: [*d,*d,*d,*d,*d]\n", "*c,*c,*c,*c,*c,*c,*c,*c");
    let by_bytes = by_values.replacen(X, &"x".repeat(100_000), 1);
    let aliases = format!("a: &a 1\nb: [{}]\n", "*a,".repeat(33));
    let merges = format!("a: &a {{ x: 1 }}\nb:\n{}", "- { <<: *a }\n".repeat(33));
    for (what, text) in [
        ("values", by_values),
        ("bytes", by_bytes),
        ("aliases", aliases),
        ("merges", merges),
        ("flow depth", "[".repeat(100_000)),
        ("object depth", "{\"a\":".repeat(100_000)),
        ("closed depth", format!("{}{}", "[".repeat(100), "]".repeat(100))),
        ("block depth", "- ".repeat(100_000)),
        ("documents", "---\na\n".repeat(70)),
        ("values in all", format!("[{}]", "1,".repeat(60_000))),
        ("itself", "a: &a [*a]\n".to_owned()),
        ("length", format!("a: {}", "x".repeat(1 << 20))),
    ] {
        let message = only_fault(&text);
        assert!(message.len() < 400, "{what}: {message}");
    }
}

#[test]
fn faults_of_one_document_are_listed_up_to_a_limit() {
    let fields: String = (0..1000).map(|index| format!("field{index}: 1\n")).collect();
    let problems = accept_documents(&fields, &Limits::default()).unwrap_err();
    assert_eq!(problems.len(), 257);
    assert_eq!(problems[256].message, "has more faults than are listed here");
}

#[test]
fn the_same_document_twice_in_a_text_is_a_fault() {
    let problems = parse_documents(&format!("{BACKEND}---\n{BACKEND}"), &Limits::default()).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field, "documents[1].metadata.name");
    assert!(problems[0].message.contains("region:eu/BackendTrafficPolicy/hello stands in this text twice"));
}

#[test]
fn parsing_alone_leaves_the_meaning_to_validation() {
    let text = BACKEND.replace("40ms", "soon");
    let documents = parse_documents(&text, &Limits::default()).unwrap();
    assert_eq!(documents.len(), 1);
    let problems = crate::validate(&documents[0]).unwrap_err();
    assert_eq!(problems[0].field, "spec.loadBalancer.halfDistance");
    assert_eq!(problems[0].message, "line 10: `soon` is not a duration");
}

#[test]
fn scope_may_be_left_out_and_is_global_then() {
    let document = &accept_documents(&BACKEND.replace("  scope: region:eu\n", ""), &Limits::default()).unwrap()[0];
    assert_eq!(document.metadata.scope, "global");
}
