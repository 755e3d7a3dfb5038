use serde_json::json;

use super::*;
use crate::problem::valid;

fn one(value: &Value) -> RouteMatch {
    valid(|faults| read(value, "match", faults).expect("it can be read"))
}

#[test]
fn a_request_has_to_be_as_every_condition_says() {
    let all = one(&json!({
        "method": "GET",
        "headers": [ { "name": "X-Tenant", "value": "a" }, { "type": "RegularExpression", "name": "version", "value": "v[12]" } ],
        "queryParams": [ { "name": "q", "value": "a b" } ],
    }));
    let headers: &[(&str, &str)] = &[("x-tenant", "b"), ("x-tenant", "a"), ("version", "v2")];
    for (what, method, headers, query, expected) in [
        ("all of it", "GET", headers, "q=a+b", true),
        ("a parameter encoded otherwise, beside others", "GET", headers, "x=1&q=a%20b", true),
        ("another method", "POST", headers, "q=a+b", false),
        ("a header missing", "GET", &headers[..2], "q=a+b", false),
        ("an expression that matches a part", "GET", &[("x-tenant", "a"), ("version", "v12")][..], "q=a+b", false),
        ("another value", "GET", headers, "q=ab", false),
        ("of a repeated parameter the first counts", "GET", headers, "q=x&q=a+b", false),
        ("no parameter", "GET", headers, "", false),
    ] {
        assert_eq!(all.conditions.hold(method, &headers, query), expected, "{what}");
    }
    assert!(RouteMatch::ALL.conditions.hold("BREW", &(), ""), "without conditions every request");
}

#[test]
fn what_covers_what_can_be_read_off() {
    let paths = |form: &str, value: &str| json!({ "path": { "type": form, "value": value } });
    let with_method = |value: Value| {
        let mut value = value;
        value["method"] = json!("GET");
        value
    };
    for (wide, narrow, expected) in [
        (paths("PathPrefix", "/"), paths("RegularExpression", "/a.*"), true),
        (paths("PathPrefix", "/a"), paths("RegularExpression", "/a/.*"), false),
        (paths("RegularExpression", "/a.*"), paths("Exact", "/ab"), true),
        (paths("RegularExpression", "/a"), paths("Exact", "/ab"), false),
        (paths("PathPrefix", "/a"), with_method(paths("PathPrefix", "/a/b")), true),
        (with_method(paths("PathPrefix", "/a")), paths("PathPrefix", "/a/b"), false),
    ] {
        assert_eq!(one(&wide).covers(&one(&narrow)), expected, "{wide} {narrow}");
    }
}

#[test]
fn a_match_is_told_as_it_stands_in_a_document() {
    let written = json!({
        "path": { "type": "RegularExpression", "value": "/v[0-9]+/.*" },
        "method": "PUT",
        "headers": [ { "type": "Exact", "name": "a", "value": "1" } ],
        "queryParams": [ { "type": "RegularExpression", "name": "b", "value": "2|3" } ],
    });
    assert_eq!(Value::Object(one(&written).to_json()), written);
}

#[test]
fn what_is_wrong_with_a_match_is_said_with_the_way_out() {
    for (value, expected) in [
        (
            json!({ "path": { "type": "RegularExpression", "value": "/a(" } }),
            "match.path.value: `/a(` is not a regular expression",
        ),
        (json!({ "path": { "type": "RegularExpression", "value": ")|(" } }), "is not a regular expression"),
        (json!({ "path": { "type": "RegularExpression", "value": "a".repeat(513) } }), "is longer than 512 bytes"),
        (
            json!({ "path": { "type": "RegularExpression", "value": "((a{100}){100}){100}" } }),
            "is not a regular expression",
        ),
        (json!({ "method": "get" }), "match.method: `get` is not a known word"),
        (
            json!({ "headers": [ { "name": "a b", "value": "1" } ] }),
            "match.headers[0].name: `a b` is not a header's name",
        ),
        (json!({ "headers": [ { "name": "Host", "value": "1" } ] }), "`host` is not matched here"),
        (
            json!({ "headers": [ { "name": "a", "value": "1" }, { "name": "A", "value": "2" } ] }),
            "match.headers[1].name: `a` stands here twice",
        ),
        (json!({ "queryParams": [ { "name": "a" } ] }), "match.queryParams[0].value: is missing"),
    ] {
        let lines = crate::document::SourceLines::default();
        let mut faults = Faults::new(&lines);
        read(&value, "match", &mut faults);
        let told: Vec<String> =
            faults.into_problems().iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
        assert!(told.iter().any(|fault| fault.contains(expected)), "{value}: {told:?}");
    }
}

#[test]
fn an_expression_is_not_tried_on_what_is_too_long_for_it() {
    let pattern = Pattern::read("a*").unwrap();
    assert!(pattern.matches(&"a".repeat(4096)));
    assert!(!pattern.matches(&"a".repeat(4097)));
}
