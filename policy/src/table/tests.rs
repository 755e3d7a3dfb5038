use std::time::Duration;

use super::{RequestHead, RouteDecision, RouteTable};
use crate::{
    compile::compile,
    document::{Limits, accept_documents},
    scope::Place,
};

fn table(text: &str) -> RouteTable {
    let documents = accept_documents(text, &Limits::default()).expect("the documents are valid");
    let compiled = compile(&documents, &Place { node_name: "n1".into(), region: "eu".into(), zone: "z1".into() }, 0);
    assert_eq!(compiled.problems, []);
    compiled.table
}

fn route(table: &RouteTable, host: &str, path: &str, u: f64) -> Option<(String, String, Option<Duration>)> {
    match table.route(&RequestHead::new("GET", host, path), u) {
        RouteDecision::Service { service, timeout, route_name, .. } => {
            Some((service.to_string(), route_name.to_string(), timeout))
        }
        RouteDecision::Redirect { .. } | RouteDecision::NoRoute => None,
    }
}

#[track_caller]
fn check(table: &RouteTable, host: &str, path: &str, expected: Option<&str>) {
    let found = route(table, host, path, 0.0).map(|(service, ..)| service);
    assert_eq!(found.as_deref(), expected, "{host}{path}");
}

const RULES: &str = r"
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: shop }
spec:
  hostnames: [ shop.mesh ]
  rules:
  - { name: root, backendRefs: [ { name: root } ] }
  - { matches: [ { path: { value: /api } } ], backendRefs: [ { name: api } ], timeouts: { request: 2s } }
  - { matches: [ { path: { value: /api/v2/ } } ], backendRefs: [ { name: v2 } ] }
  - { matches: [ { path: { type: Exact, value: /api/v2 } } ], backendRefs: [ { name: exact } ] }
  - { matches: [ { path: { type: Exact, value: /dir/ } }, { path: { type: Exact, value: /file } } ], backendRefs: [ { name: files } ] }
---
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: wild }
spec:
  hostnames: [ '*.shop.mesh', '*.example.com' ]
  rules: [ { matches: [ { path: { value: /only } } ], backendRefs: [ { name: wild } ] } ]
---
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: wider }
spec:
  hostnames: [ '*.com' ]
  rules: [ { backendRefs: [ { name: wider } ] } ]
---
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: exact-under-wild }
spec:
  hostnames: [ one.example.com ]
  rules: [ { matches: [ { path: { value: /one } } ], backendRefs: [ { name: one } ] } ]
";

#[test]
fn requests_match_by_gateway_api_precedence() {
    let table = table(RULES);
    for (host, path, expected) in [
        // Exact before prefix, longest prefix by whole elements, a final slash of the rule does not count.
        ("shop.mesh", "/", Some("root")),
        ("shop.mesh", "", Some("root")),
        ("shop.mesh", "/apix", Some("root")),
        ("shop.mesh", "/api", Some("api")),
        ("shop.mesh", "/api/", Some("api")),
        ("shop.mesh", "/api/v1", Some("api")),
        ("shop.mesh", "/api/v2", Some("exact")),
        ("shop.mesh", "/api/v2/", Some("v2")),
        ("shop.mesh", "/api/v2/x", Some("v2")),
        ("shop.mesh", "/api/v20", Some("api")),
        ("shop.mesh", "/API", Some("root")),
        ("shop.mesh", "/dir", Some("root")),
        ("shop.mesh", "/dir/", Some("files")),
        ("shop.mesh", "/file", Some("files")),
        ("shop.mesh", "/file/", Some("root")),
        // Query and fragment do not take part.
        ("shop.mesh", "/api?x=/api/v2", Some("api")),
        ("shop.mesh", "/api/v2?x", Some("exact")),
        ("shop.mesh", "/api/v2#x", Some("exact")),
        // Hosts compare without case, port and final dot.
        ("SHOP.mesh:7080", "/api", Some("api")),
        ("shop.mesh.", "/api", Some("api")),
        // A wildcard is for every depth below, not for itself, and yields to a longer host.
        ("a.shop.mesh", "/only/x", Some("wild")),
        ("a.b.shop.mesh", "/only", Some("wild")),
        ("example.com", "/", Some("wider")),
        ("a.example.com", "/only", Some("wild")),
        ("one.example.com", "/one", Some("one")),
        // A host whose rules do not match the path yields to the next shorter one.
        ("one.example.com", "/only", Some("wild")),
        ("one.example.com", "/else", Some("wider")),
        ("a.example.com", "/else", Some("wider")),
        ("com", "/", None),
        // A host that a route is for has no default; others of the mesh have.
        ("a.shop.mesh", "/else", None),
        ("hello.mesh", "/any", Some("hello")),
        ("Hello.mesh.localhost:7080", "/any", Some("hello")),
        ("v2.hello.mesh", "/", None),
        ("hello", "/", None),
        ("", "/", None),
        ("localhost:7080", "/", None),
        ("127.0.0.1:7080", "/", None),
    ] {
        check(&table, host, path, expected);
    }
}

#[test]
fn the_decision_names_rule_and_timeout() {
    let table = table(RULES);
    let named = |service: &str, rule: &str, timeout| Some((service.to_owned(), rule.to_owned(), timeout));
    let two = Some(Duration::from_secs(2));
    assert_eq!(route(&table, "shop.mesh", "/", 0.5), named("root", "global/HTTPRoute/shop#root", None));
    assert_eq!(route(&table, "shop.mesh", "/api", 0.5), named("api", "global/HTTPRoute/shop#1", two));
    assert_eq!(route(&table, "hello.mesh", "/", 0.5), named("hello", "default", None));
    let mut hosts: Vec<_> = table.hosts().collect();
    hosts.sort();
    assert_eq!(hosts, ["*.com", "*.example.com", "*.shop.mesh", "one.example.com", "shop.mesh"]);
}

#[test]
fn weights_divide_the_unit_interval_and_zero_is_never_drawn() {
    let table = table(
        r"
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: split }
spec:
  hostnames: [ split.mesh ]
  rules: [ { backendRefs: [ { name: off, weight: 0 }, { name: a, weight: 90 }, { name: none, weight: 0 }, { name: b, weight: 10 }, { name: last, weight: 0 } ] } ]
",
    );
    for (u, expected) in [
        (0.0, "a"),
        (0.899, "a"),
        (0.901, "b"),
        (0.999_999_999, "b"),
        (1.0, "b"),
        (5.0, "b"),
        (-1.0, "a"),
        (f64::NAN, "a"),
    ] {
        assert_eq!(route(&table, "split.mesh", "/", u).unwrap().0, expected, "{u}");
    }
    let hits = (0..1000_u32)
        .filter(|step| route(&table, "split.mesh", "/", (f64::from(*step) + 0.5) / 1000.0).unwrap().0 == "a");
    assert_eq!(hits.count(), 900);
}

#[test]
fn ties_go_to_the_narrower_scope_then_the_first_name_then_the_first_rule() {
    let document = |name: &str, scope: &str, service: &str, path: &str| {
        format!(
            "---\napiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, scope: '{scope}' }}\nspec:\n  hostnames: [ t.mesh ]\n  \
             rules: [ {{ matches: [ {{ path: {{ value: {path} }} }} ], backendRefs: [ {{ name: {service} }} ] }} ]\n"
        )
    };
    let text = [
        document("a", "global", "everywhere", "/x"),
        document("z", "node:n1", "node", "/x"),
        document("b", "zone:eu.z1", "zone", "/x"),
        document("a", "node:other", "elsewhere", "/x"),
        document("c", "region:eu", "region", "/x/y"),
        document("beta", "zone:eu.z1", "second", "/n"),
        document("alpha", "zone:eu.z1", "first", "/n"),
    ];
    for text in [text.concat(), text.iter().rev().cloned().collect()] {
        let table = table(&text);
        check(&table, "t.mesh", "/x", Some("node"));
        check(&table, "t.mesh", "/n", Some("first"));
        // The longer prefix comes before the narrower scope.
        check(&table, "t.mesh", "/x/y", Some("region"));
    }
    let twice = table(
        "apiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: { name: a }\nspec:\n  hostnames: [ t.mesh ]\n  rules: [ { backendRefs: [ { name: one } ] }, { backendRefs: [ { name: two } ] } ]\n",
    );
    check(&twice, "t.mesh", "/", Some("one"));
}

#[test]
fn the_table_of_no_documents_knows_the_default_route_and_the_default_policy() {
    let table = RouteTable::default();
    check(&table, "hello.mesh", "/", Some("hello"));
    assert_eq!(table.backend("hello").source, "default");
    assert_eq!(table.hosts().count(), 0);
}

#[test]
fn odd_hosts_and_paths_find_no_route_and_do_not_panic() {
    let table = table(RULES);
    for host in [
        "..",
        ".shop.mesh",
        "shop.mesh..",
        "\u{0}",
        "ä.mesh",
        "[::1]:80",
        ":",
        "*.shop.mesh/",
        &".".repeat(253),
        &"a.".repeat(200),
    ] {
        for path in ["", "*", "//", "/\u{0}", "http://x/"] {
            drop(route(&table, host, path, 0.5));
        }
    }
}

const CASES: &str = r"
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: cases }
spec:
  hostnames: [ cases.mesh ]
  rules:
  - { name: rest, backendRefs: [ { name: rest } ] }
  - { name: tenant, matches: [ { headers: [ { name: X-Tenant, value: a } ] } ], backendRefs: [ { name: tenant } ] }
  - name: both
    matches: [ { headers: [ { name: x-tenant, value: a }, { name: x-beta, type: RegularExpression, value: 'on|yes' } ] } ]
    backendRefs: [ { name: both } ]
  - { name: asked, matches: [ { queryParams: [ { name: v, value: '2' } ] } ], backendRefs: [ { name: asked } ] }
  - { name: put, matches: [ { method: PUT } ], backendRefs: [ { name: put } ] }
  - { name: deep, matches: [ { path: { value: /deep }, method: GET } ], backendRefs: [ { name: deep } ] }
  - { name: number, matches: [ { path: { type: RegularExpression, value: '/deep/[0-9]+' } } ], backendRefs: [ { name: number } ] }
  - { name: seven, matches: [ { path: { type: Exact, value: /deep/7 }, method: HEAD } ], backendRefs: [ { name: seven } ] }
---
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: later }
spec:
  hostnames: [ cases.mesh ]
  rules:
  - { matches: [ { method: PUT } ], backendRefs: [ { name: later } ] }
  - { matches: [ { method: DELETE } ], backendRefs: [ { name: delete } ] }
";

#[test]
fn what_says_more_of_a_request_comes_first() {
    let table = table(CASES);
    let both: &[(&str, &str)] = &[("x-tenant", "a"), ("x-beta", "yes")];
    for (method, path, headers, expected) in [
        ("GET", "/", &[][..], "rest"),
        ("GET", "/", &both[..1], "tenant"),
        ("GET", "/?v=2", &both[..1], "tenant"),
        ("GET", "/", both, "both"),
        ("GET", "/?v=2", &[], "asked"),
        ("GET", "/?v=3", &[], "rest"),
        ("PUT", "/", both, "put"),
        ("DELETE", "/", both, "delete"),
        // A path that says more comes before whatever says more of the rest; without its method the next one is asked.
        ("GET", "/deep/x", both, "deep"),
        ("POST", "/deep/x", both, "both"),
        ("GET", "/deep/7", both, "number"),
        ("GET", "/deep/7?v=2", &[], "number"),
        ("HEAD", "/deep/7", both, "seven"),
        ("GET", "/deep/7/8", &[], "deep"),
    ] {
        let head = RequestHead { headers: &headers, ..RequestHead::new(method, "cases.mesh", path) };
        let RouteDecision::Service { service, .. } = table.route(&head, 0.0) else { panic!("{method} {path}") };
        assert_eq!(&*service, expected, "{method} {path} {headers:?}");
    }
}

#[test]
fn a_rule_hands_on_its_filters_and_how_much_of_the_path_it_matched() {
    let table = table(
        "apiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: { name: moved }\nspec:\n  hostnames: [ moved.mesh ]\n  rules:\n\
         \x20 - matches: [ { path: { value: /old/ } } ]\n\
         \x20   filters: [ { type: RequestRedirect, requestRedirect: { hostname: new.mesh, statusCode: 301 } } ]\n\
         \x20 - filters: [ { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /v1 } } } ]\n\
         \x20   backendRefs: [ { name: moved } ]\n\
         \x20   timeouts: { request: 5s, backendRequest: 1s }\n",
    );
    let RouteDecision::Redirect { filters, prefix, route_name } =
        table.route(&RequestHead::new("GET", "moved.mesh", "/old/a?b"), 0.0)
    else {
        panic!("it redirects")
    };
    let redirect = filters.redirect.as_ref().unwrap();
    assert_eq!((redirect.status, &*route_name), (301, "global/HTTPRoute/moved#0"));
    assert_eq!(redirect.location("moved.mesh", "/old/a?b", prefix), "http://new.mesh/old/a?b");
    let RouteDecision::Service { filters, prefix, timeout, try_timeout, .. } =
        table.route(&RequestHead::new("GET", "moved.mesh", "/x?y"), 0.0)
    else {
        panic!("somebody is asked")
    };
    let rewrite = filters.as_ref().unwrap().rewrite.clone().unwrap();
    assert_eq!(rewrite.target("/x?y", prefix), "/v1/x?y");
    assert_eq!([timeout, try_timeout], [5, 1].map(|seconds| Some(Duration::from_secs(seconds))));
}
