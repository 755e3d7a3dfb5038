//! The admin API: who may talk to it, how it refuses, and what machines read from it.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::Value;
use tests::{Answer, App, Fleet, Node, Request, Shared, eventually, get, raw, send};

static ONE: Shared<One> = Shared::new();

/// One node with a service.
struct One {
    fleet: Fleet,
    _app: App,
}

impl One {
    fn node(&self) -> &Node {
        &self.fleet.nodes[0]
    }
}

fn one() -> One {
    let app = App::start("a");
    let fleet = Fleet::start(1, &|_, config| Node::serve(config, "hello", app.address(), None));
    fleet.wait_service("hello", 1);
    One { fleet, _app: app }
}

const DOCUMENT: &str = "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: { name: admin }\n\
                        targetRef: { kind: Service, name: hello }\nspec: { loadBalancer: { lambda: 0.1 } }\n";

/// Checks the shape that every refusal has, and its code.
fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let body = answer.json();
    assert_eq!(body["code"], code, "{body:#}");
    assert_eq!(body["status"], status, "{body:#}");
    assert_eq!(body["type"], format!("urn:marram:problem:{code}"), "{body:#}");
    assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()), "{body:#}");
    assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body:#}");
    assert!(body["problems"].is_array(), "{body:#}");
}

#[test]
fn writes_over_tcp_need_the_token_of_the_folder() {
    let one = ONE.get(one);
    let node = one.node();
    let document = DOCUMENT.replace("name: admin", "name: unsigned");
    let put = |headers: &[(&str, &str)]| {
        send(node.admin, &Request { method: "POST", path: "/v1/apply", headers, body: Some(&document) }).unwrap()
    };
    let nothing = put(&[]);
    assert_problem(&nothing, 401, "token_required");
    assert!(nothing.header("www-authenticate").is_some_and(|told| told.starts_with("Bearer")), "{nothing:?}");
    assert!(nothing.json()["detail"].as_str().unwrap().contains("admin.token"), "it says where the token is");
    assert_problem(&put(&[("authorization", "Basic YTpi")]), 401, "token_required");
    assert_problem(
        &put(&[("authorization", "Bearer AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")]),
        401,
        "token_wrong",
    );
    for (method, path) in [
        ("DELETE", "/v1/policies/global/BackendTrafficPolicy/x"),
        ("PUT", "/v1/services/x/instances/y"),
        ("DELETE", "/v1/services/x/instances/y"),
        ("PUT", "/v1/services/x/instances/y/heartbeat"),
    ] {
        let answer = send(node.admin, &Request { method, path, headers: &[], body: Some("{}") }).unwrap();
        assert_problem(&answer, 401, "token_required");
    }
    let stored = get(node.admin, "/v1/policies/global/BackendTrafficPolicy/unsigned", &[]).unwrap();
    assert_eq!(stored.status, 404, "nothing was stored");
    assert!(node.metric("marram_admin_refused_total", "reason=\"token\"").unwrap() >= 7.0);
    assert_eq!(node.write("POST", "/v1/apply", &document).status, 200, "with the token it is taken");
}

#[test]
fn the_host_header_must_name_this_machine() {
    let one = ONE.get(one);
    let node = one.node();
    for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1"] {
        let answer = get(node.admin, "/v1/status", &[("host", host)]).unwrap();
        assert_problem(&answer, 421, "host_refused");
    }
    for host in ["localhost", "127.0.0.1", "LOCALHOST:1", "n0.localhost"] {
        assert_eq!(get(node.admin, "/v1/status", &[("host", host)]).unwrap().status, 200, "{host}");
    }
    let none = raw(node.admin, b"GET /v1/status HTTP/1.0\r\n\r\n").unwrap();
    assert!(none.contains(" 421 "), "{none}");
    let two =
        raw(node.admin, b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(!two.unwrap().contains(" 200 "), "two Host headers are none");
}

#[test]
fn every_refusal_is_problem_json_with_a_stable_code() {
    let one = ONE.get(one);
    let node = one.node();
    assert_problem(&get(node.admin, "/v1/nothing", &[]).unwrap(), 404, "not_found");
    assert_problem(&get(node.admin, "/v1/explain/helo", &[]).unwrap(), 404, "not_found");
    assert_problem(&get(node.admin, "/v1/services/nobody", &[]).unwrap(), 404, "not_found");
    assert_problem(&get(node.admin, "/v1/policies/global/HTTPRoute/nothing", &[]).unwrap(), 404, "not_found");
    assert_problem(&get(node.admin, "/v1/policies?colour=red", &[]).unwrap(), 400, "malformed");
    assert_problem(&node.write("POST", "/v1/status", "{}"), 405, "method_not_allowed");
    assert_problem(&node.write("DELETE", "/v1/services/hello/instances/nothing", ""), 404, "not_found");
    assert_problem(&node.write("PUT", "/v1/services/hello/instances/x", "{"), 400, "malformed");
    let long = format!("{DOCUMENT}# {}", "x".repeat(300 * 1024));
    assert_problem(&node.write("POST", "/v1/apply", &long), 413, "body_too_large");
    let other_type = node.write_with("POST", "/v1/apply", DOCUMENT, &[]);
    assert_eq!(other_type.status, 200, "{other_type:?}");
    let token = fs::read_to_string(node.dir.join("admin.token")).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    let headers = [("authorization", bearer.as_str()), ("content-type", "text/html")];
    let html = send(node.admin, &Request { method: "POST", path: "/v1/apply", headers: &headers, body: Some("<p>") });
    assert_problem(&html.unwrap(), 415, "unsupported_media_type");

    let faulty = r#"{ "port": 0, "capacity": -1, "checks": [{ "type": "ttl", "ttl": "1ms" }] }"#;
    let registration = node.write("PUT", "/v1/services/Not_A_Label/instances/x", faulty);
    assert_problem(&registration, 422, "registration_invalid");
    let body = registration.json();
    let fields: Vec<&str> = body["problems"].as_array().unwrap().iter().filter_map(|p| p["field"].as_str()).collect();
    assert_eq!(fields, ["name", "port", "capacity", "checks[0].ttl"], "{body:#}");
    let unknown = node.write("PUT", "/v1/services/hello/instances/x", r#"{ "port": 1, "capcity": 3 }"#);
    assert_problem(&unknown, 422, "registration_invalid");
    assert!(unknown.body.contains("capcity"), "{unknown:?}");
}

#[test]
fn the_description_names_every_endpoint_that_scripts_rely_on() {
    let one = ONE.get(one);
    let description = one.node().ask("/openapi.json").unwrap();
    assert!(description["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{description:#}");
    for (path, methods) in [
        ("/v1/status", &["get"][..]),
        ("/v1/nodes", &["get"]),
        ("/v1/services", &["get"]),
        ("/v1/services/{name}", &["get"]),
        ("/v1/services/{name}/instances/{id}", &["put", "delete"]),
        ("/v1/services/{name}/instances/{id}/heartbeat", &["put"]),
        ("/v1/explain/{service}", &["get"]),
        ("/v1/policies", &["get"]),
        ("/v1/policies/{scope}/{kind}/{name}", &["get", "put", "delete"]),
        ("/v1/apply", &["post"]),
        ("/v1/conflicts", &["get"]),
        ("/v1/problems", &["get"]),
        ("/v1/watch", &["get"]),
        ("/metrics", &["get"]),
        ("/healthz", &["get"]),
        ("/readyz", &["get"]),
        ("/openapi.json", &["get"]),
    ] {
        for method in methods {
            assert!(description["paths"][path][method].is_object(), "{method} {path}");
        }
    }
}

#[test]
fn metrics_are_text_that_prometheus_reads() {
    let one = ONE.get(one);
    let node = one.node();
    assert_eq!(node.get("hello", "/").unwrap().status, 200);
    node.get("nobody", "/").unwrap();
    let answer = get(node.admin, "/metrics", &[]).unwrap();
    assert!(
        answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")),
        "{answer:?}"
    );
    let (mut types, mut seen) = (HashSet::new(), HashSet::new());
    for line in answer.body.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned()), "told twice: {line}");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        assert!(name.starts_with("marram_"), "{line}");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(types.contains(name) || types.contains(family), "no TYPE before {line}");
        assert!(seen.insert(series.to_owned()), "twice: {line}");
    }
    for name in [
        "marram_build_info",
        "marram_members",
        "marram_links",
        "marram_policy_documents",
        "marram_process_resident_memory_bytes",
        "marram_certificate_not_after_timestamp_seconds",
        "marram_proxy_refused_total",
        "marram_admin_requests_total",
    ] {
        assert!(types.contains(name), "{name} is missing");
    }
    assert!(node.metric("marram_proxy_refused_total", "unknown_service").unwrap() >= 1.0);
}

#[test]
fn probes_say_that_the_node_lives_and_takes_work() {
    let one = ONE.get(one);
    for (path, said) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = get(one.node().admin, path, &[]).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, said), "{path}");
    }
    assert_eq!(one.node().ask("/v1/problems").unwrap(), Value::Array(Vec::new()));
}

#[test]
fn the_folder_and_its_secrets_are_for_their_owner_alone() {
    let one = ONE.get(one);
    let dir = &one.node().dir;
    for (path, mode) in [
        ("", 0o700),
        ("admin.token", 0o600),
        ("admin.sock", 0o600),
        ("identity/node.key", 0o600),
        ("identity/admission.key", 0o600),
    ] {
        let found = fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path}: {found:o}");
    }
}

#[test]
fn a_watcher_hears_of_a_policy_write() {
    // A node of its own: the event and the root are those of this write, and nobody else writes.
    let fleet = Fleet::start(1, &|_, _| {});
    let node = &fleet.nodes[0];
    let mut stream = TcpStream::connect(node.admin).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /v1/watch HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut wait_for = |word: &str| loop {
        let line =
            lines.next().expect("the stream goes on").unwrap_or_else(|fault| panic!("waiting for {word}: {fault}"));
        if line.contains(word) {
            return line;
        }
    };
    assert!(wait_for("HTTP/1.1").contains("200"));
    wait_for("event: resync");
    let document = DOCUMENT.replace("name: admin", "name: watched");
    assert_eq!(node.write("POST", "/v1/apply", &document).status, 200);
    wait_for("event: policy");
    let data = wait_for("data:");
    let event: Value = serde_json::from_str(data.trim_start_matches("data:")).unwrap();
    assert!(event["documents"].to_string().contains("BackendTrafficPolicy/watched"), "{event:#}");
    // The event tells the root after the write.
    eventually("the root is the one told", Duration::from_secs(1), || {
        let root = node.root()?;
        if event["root"].as_str() == Some(root.as_str()) { Ok(()) } else { Err(root) }
    });
}
