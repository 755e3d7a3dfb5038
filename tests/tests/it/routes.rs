//! `HTTPRoute`: which requests a rule is for, what it does to them, and what it sends elsewhere.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tests::{Answer, App, Fleet, Node, Shared, Stopwatch, eventually, get};

use crate::policy::apply;

static TWO: Shared<Two> = Shared::new();

/// The applications run on the second node, the requests come in at the first.
struct Two {
    fleet: Fleet,
    shadow: App,
    _apps: [App; 2],
    _silent: TcpListener,
}

const ROUTES: &str = r"
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: shop }
spec:
  hostnames: [ shop.mesh ]
  rules:
  - name: beta
    matches: [ { headers: [ { name: X-Beta, value: 'on' } ] }, { queryParams: [ { name: beta, value: 'on' } ] } ]
    backendRefs: [ { name: new } ]
  - name: number
    matches: [ { path: { type: RegularExpression, value: '/orders/[0-9]+' }, method: GET } ]
    backendRefs: [ { name: new } ]
  - name: seen
    matches: [ { path: { value: /seen } } ]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [ { name: x-set, value: by-rule } ], remove: [ x-secret ] }
    - type: ResponseHeaderModifier
      responseHeaderModifier: { add: [ { name: x-seen, value: 'yes' } ] }
    - type: URLRewrite
      urlRewrite: { hostname: inner.example, path: { type: ReplaceFullPath, replaceFullPath: /head } }
    backendRefs: [ { name: old } ]
  - name: copied
    matches: [ { path: { value: /copied } } ]
    filters: [ { type: RequestMirror, requestMirror: { backendRef: { name: shadow } } } ]
    backendRefs: [ { name: old } ]
  - name: moved
    matches: [ { path: { value: /moved } } ]
    filters:
    - type: RequestRedirect
      requestRedirect: { hostname: www.example.com, statusCode: 308, path: { type: ReplacePrefixMatch, replacePrefixMatch: /to } }
  - backendRefs: [ { name: old } ]
---
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: patient }
spec:
  hostnames: [ patient.mesh ]
  rules: [ { backendRefs: [ { name: half } ], timeouts: { request: 10s, backendRequest: 300ms } } ]
";

fn two() -> Two {
    let apps = [App::start("old"), App::start("new")];
    let shadow = App::start("shadow");
    // The kernel takes connections, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let fleet = Fleet::start(2, &|n, config| {
        if n == 1 {
            Node::serve(config, "old", apps[0].address(), None);
            Node::serve(config, "new", apps[1].address(), None);
            Node::serve(config, "shadow", shadow.address(), None);
            Node::serve(config, "half", apps[0].address(), None);
        } else {
            Node::serve(config, "half", silent.local_addr().unwrap(), None);
        }
    });
    for (service, count) in [("old", 1), ("new", 1), ("shadow", 1), ("half", 2)] {
        fleet.wait_service(service, count);
    }
    apply(&fleet.nodes[0], ROUTES);
    Two { fleet, shadow, _apps: apps, _silent: silent }
}

fn ask(two: &Two, target: &str, headers: &[(&str, &str)]) -> Answer {
    let proxy: SocketAddr = two.fleet.nodes[0].proxy;
    let headers = [&[("host", "shop.mesh")], headers].concat();
    get(proxy, target, &headers).unwrap()
}

#[test]
fn a_request_goes_by_its_headers_its_query_its_method_and_an_expression() {
    let two = TWO.get(two);
    for (target, headers, expected) in [
        ("/", &[][..], "hello from old"),
        ("/", &[("x-beta", "on")], "hello from new"),
        ("/", &[("x-beta", "off")], "hello from old"),
        ("/?a=b&beta=on", &[], "hello from new"),
        ("/orders/12", &[], "hello from new"),
        ("/orders/12x", &[], "hello from old"),
    ] {
        let answer = ask(&two, target, headers);
        assert_eq!((answer.status, answer.body.as_str()), (200, expected), "{target} {headers:?}: {answer:?}");
    }
}

#[test]
fn a_rule_changes_headers_host_and_path_on_the_way_there_and_headers_on_the_way_back() {
    let two = TWO.get(two);
    let answer = ask(&two, "/seen/x", &[("x-secret", "s"), ("x-set", "by client")]);
    assert_eq!((answer.status, answer.header("x-seen")), (200, Some("yes")), "{answer:?}");
    let head = answer.body.to_ascii_lowercase();
    let [line, ..] = head.lines().collect::<Vec<_>>()[..] else { panic!("{head}") };
    assert_eq!(line, "get /head http/1.1", "{head}");
    assert!(head.contains("host: inner.example"), "{head}");
    assert!(head.contains("x-set: by-rule") && !head.contains("by client") && !head.contains("x-secret"), "{head}");
}

#[test]
fn a_redirect_names_the_other_place_and_asks_nobody() {
    let two = TWO.get(two);
    let answer = ask(&two, "/moved/a?b=c", &[]);
    assert_eq!(
        (answer.status, answer.header("location")),
        (308, Some("http://www.example.com/to/a?b=c")),
        "{answer:?}"
    );
}

#[test]
fn a_mirror_gets_a_copy_of_every_request_and_its_answer_is_nobodys() {
    let two = TWO.get(two);
    let before = two.shadow.requests();
    for _ in 0..10 {
        let answer = ask(&two, "/copied", &[]);
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello from old"), "{answer:?}");
    }
    eventually("ten copies have come", Duration::from_secs(5), || match two.shadow.requests() - before {
        10 => Ok(()),
        count => Err(format!("{count}")),
    });
    let sent = two.fleet.nodes[0].metric("marram_mirrored_requests_total", "result=\"sent\"").unwrap();
    assert!(sent >= 10.0, "{sent}");
}

#[test]
fn a_try_that_takes_too_long_is_made_once_more_elsewhere_and_the_request_succeeds() {
    let two = TWO.get(two);
    eventually("the route is in force", Duration::from_secs(5), || {
        let answer = get(two.fleet.nodes[0].proxy, "/", &[("host", "patient.mesh")])?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    for number in 0..20 {
        let watch = Stopwatch::start();
        let answer = get(two.fleet.nodes[0].proxy, "/", &[("host", "patient.mesh")]).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello from old"), "{number}: {answer:?}");
        assert!(watch.elapsed() < Duration::from_secs(3), "{number}: {:?}", watch.elapsed());
    }
    assert!(two.fleet.nodes[0].metric("marram_retries_total", "service=\"half\"").unwrap() >= 1.0);
}
