use serde_json::json;

use super::*;

/// The filters of a rule, and what is wrong with them.
fn filters(rule: &Value) -> (Filters, Vec<String>) {
    let lines = crate::document::SourceLines::default();
    let mut faults = Faults::new(&lines);
    let matches: Vec<RouteMatch> = (rule["matches"].as_array().into_iter().flatten())
        .filter_map(|value| super::super::route_match::read(value, "matches", &mut faults))
        .collect();
    let fields = Fields::open_any(rule, "rule", &mut faults).unwrap();
    let filters = read(&fields, &matches, &mut faults);
    let told = faults.into_problems().iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
    (filters, told)
}

#[test]
fn every_filter_is_read_as_gateway_api_writes_it() {
    let (filters, faults) = filters(&json!({ "filters": [
        { "type": "RequestHeaderModifier", "requestHeaderModifier":
            { "set": [ { "name": "X-A", "value": "1" } ], "add": [ { "name": "b", "value": "2" } ], "remove": [ "C" ] } },
        { "type": "ResponseHeaderModifier", "responseHeaderModifier": { "remove": [ "server" ] } },
        { "type": "URLRewrite", "urlRewrite":
            { "hostname": "old.example", "path": { "type": "ReplaceFullPath", "replaceFullPath": "/x" } } },
        { "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "shadow" }, "percent": 10 } },
        { "type": "RequestMirror", "requestMirror":
            { "backendRef": { "name": "other" }, "fraction": { "numerator": 1, "denominator": 1000 } } },
    ] }));
    assert_eq!(faults, Vec::<String>::new());
    assert_eq!(
        filters,
        Filters {
            request_headers: HeaderChanges {
                remove: vec!["c".to_owned()],
                set: vec![("x-a".to_owned(), "1".to_owned())],
                add: vec![("b".to_owned(), "2".to_owned())],
            },
            response_headers: HeaderChanges { remove: vec!["server".to_owned()], ..HeaderChanges::default() },
            redirect: None,
            rewrite: Some(Rewrite {
                hostname: Some("old.example".to_owned()),
                path: Some(PathChange::Full("/x".to_owned())),
            }),
            mirrors: vec![
                Mirror { service: "shadow".to_owned(), share: 0.1 },
                Mirror { service: "other".to_owned(), share: 0.001 },
            ],
        }
    );
}

#[test]
fn a_redirect_names_the_place_that_its_fields_say() {
    let to = |value: Value| {
        let rule = json!({
            "matches": [ { "path": { "value": "/old" } } ],
            "filters": [ { "type": "RequestRedirect", "requestRedirect": value } ],
        });
        let (filters, faults) = filters(&rule);
        assert_eq!(faults, Vec::<String>::new());
        filters.redirect.unwrap()
    };
    let asked = ("shop.mesh:7081", "/old/a?b=c", "/old".len());
    for (redirect, expected) in [
        (json!({}), "http://shop.mesh:7081/old/a?b=c"),
        (json!({ "hostname": "new.mesh" }), "http://new.mesh:7081/old/a?b=c"),
        (json!({ "scheme": "https" }), "https://shop.mesh/old/a?b=c"),
        (json!({ "scheme": "https", "port": 443 }), "https://shop.mesh/old/a?b=c"),
        (json!({ "port": 8080 }), "http://shop.mesh:8080/old/a?b=c"),
        (json!({ "port": 80 }), "http://shop.mesh/old/a?b=c"),
        (json!({ "path": { "type": "ReplaceFullPath", "replaceFullPath": "/x" } }), "http://shop.mesh:7081/x?b=c"),
        (
            json!({ "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new/" } }),
            "http://shop.mesh:7081/new/a?b=c",
        ),
        (json!({ "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/" } }), "http://shop.mesh:7081/a?b=c"),
    ] {
        assert_eq!(to(redirect.clone()).location(asked.0, asked.1, asked.2), expected, "{redirect}");
    }
    assert_eq!(to(json!({})).status, 302);
    assert_eq!(to(json!({ "statusCode": 308 })).status, 308);
}

#[test]
fn a_prefix_is_replaced_by_whole_elements() {
    let rewrite = |path: &str| Rewrite { hostname: None, path: Some(PathChange::Prefix(path.to_owned())) };
    for (new, target, prefix, expected) in [
        ("/new", "/old", "/old", "/new"),
        ("/new", "/old/", "/old", "/new/"),
        ("/new", "/old/a", "/old", "/new/a"),
        ("/", "/old", "/old", "/"),
        ("/", "/old?q", "/old", "/?q"),
        ("/", "/old/a", "/old", "/a"),
        ("/new", "/a/b", "", "/new/a/b"),
        ("/new", "/", "", "/new/"),
    ] {
        assert_eq!(rewrite(new).target(target, prefix.len()), expected, "{new} for {prefix} of {target}");
    }
}

#[test]
fn what_is_wrong_with_a_filter_is_said_with_the_way_out() {
    let set = |name: &str, value: &str| {
        json!({ "filters": [ { "type": "RequestHeaderModifier",
            "requestHeaderModifier": { "set": [ { "name": name, "value": value } ] } } ] })
    };
    let redirect = json!({ "type": "RequestRedirect", "requestRedirect": { "hostname": "a.example" } });
    let rewrite = json!({ "type": "URLRewrite", "urlRewrite": { "hostname": "a.example" } });
    for (rule, expected) in [
        (
            json!({ "filters": [ { "type": "RequestRedirct" } ] }),
            "rule.filters[0].type: `RequestRedirct` is not a known",
        ),
        (json!({ "filters": [ { "type": "ExtensionRef" } ] }), "`ExtensionRef` is not carried by this version"),
        (json!({ "filters": [ { "type": "URLRewrite" } ] }), "rule.filters[0].urlRewrite: is missing"),
        (json!({ "filters": [ redirect, redirect ] }), "rule.filters[1].type: this filter stands here twice"),
        (json!({ "filters": [ redirect, rewrite ] }), "redirected or rewritten, not both"),
        (
            json!({ "filters": [ { "type": "URLRewrite", "urlRewrite": {}, "requestMirror": {} } ] }),
            "rule.filters[0].requestMirror: does not belong to URLRewrite",
        ),
        (set("Content-Length", "3"), "`content-length` is not for a rule to change"),
        (set("marram-via", "x"), "`marram-via` is not for a rule to change"),
        (set("x", "a\r\nb: c"), "is not a header's value"),
        (
            json!({
                "matches": [ { "path": { "type": "Exact", "value": "/a" } } ],
                "filters": [ { "type": "URLRewrite", "urlRewrite":
                    { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/b" } } } ],
            }),
            "there is no prefix to replace",
        ),
        (
            json!({ "filters": [ { "type": "RequestRedirect", "requestRedirect": { "statusCode": 304 } } ] }),
            "304 does not redirect",
        ),
        (
            json!({ "filters": [ { "type": "RequestMirror", "requestMirror":
                { "backendRef": { "name": "a" }, "percent": 1, "fraction": { "numerator": 1 } } } ] }),
            "stands beside `percent`",
        ),
    ] {
        let (_, told) = filters(&rule);
        assert!(told.iter().any(|fault| fault.contains(expected)), "{rule}: {told:?}");
    }
}
