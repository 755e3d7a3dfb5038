//! The HTTP proxy towards applications: ways to ask, and what it refuses.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use tests::{Answer, App, Fleet, Node, Request, Shared, eventually, free_port, get, raw, send};

static TWO: Shared<Two> = Shared::new();

/// `hello` and `quiet` run on the first node; of `broken` nothing listens.
struct Two {
    fleet: Fleet,
    _app: App,
    quiet: App,
}

fn two() -> Two {
    let (app, quiet) = (App::start("a"), App::start("quiet"));
    let nobody = free_port();
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
            Node::serve(config, "quiet", quiet.address(), None);
            Node::serve(config, "broken", nobody, None);
        }
    });
    fleet.wait_service("quiet", 1);
    Two { fleet, _app: app, quiet }
}

fn assert_refused(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let body = answer.json();
    assert_eq!((body["code"].as_str(), body["status"].as_u64()), (Some(code), Some(status.into())), "{body:#}");
    body
}

#[test]
fn an_unknown_service_is_answered_with_what_is_known() {
    let two = TWO.get(two);
    for node in &two.fleet.nodes {
        let body = assert_refused(&node.get("helo", "/").unwrap(), 503, "unknown_service");
        let known: Vec<&str> = body["known_services"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(known, ["broken", "hello", "quiet"], "{body:#}");
        assert_eq!(body["problems"][0]["hint"], "did you mean `hello`?", "{body:#}");
        assert!(body["detail"].as_str().unwrap().contains("`helo`"), "{body:#}");
    }
}

#[test]
fn no_healthy_instance_is_answered_with_each_candidate_and_its_reason() {
    let two = TWO.get(two);
    for node in &two.fleet.nodes {
        // The first answers tell of the failed connect, later ones of the instance being out; both name it.
        for _ in 0..5 {
            let body = assert_refused(&node.get("broken", "/").unwrap(), 503, "no_healthy_instance");
            let [candidate] = body["candidates"].as_array().unwrap().as_slice() else { panic!("{body:#}") };
            assert!(candidate["instance"].as_str().unwrap().ends_with("@n0"), "{body:#}");
            assert!(candidate["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{body:#}");
        }
        eventually("the reason is what was seen", Duration::from_secs(5), || {
            let body = node.get("broken", "/")?.json();
            let reason = body["candidates"][0]["reason"].as_str().unwrap_or_default().to_owned();
            if reason.contains("onnect") { Ok(()) } else { Err(reason) }
        });
    }
    let said = two.fleet.nodes[1].run(&["route", "explain", "broken"]);
    assert!(said.out.contains("@n0"), "{said:?}");
}

#[test]
fn a_host_outside_the_mesh_is_not_proxied() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[1];
    for host in ["example.org", "hello.mesh.example.org", "127.0.0.1", "mesh"] {
        let answer = get(node.proxy, "/", &[("host", host)]).unwrap();
        assert!((400..500).contains(&answer.status), "{host}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{host}: {answer:?}");
    }
    assert_refused(&get(node.proxy, "/", &[("host", "example.org")]).unwrap(), 421, "not_of_the_mesh");
}

#[test]
fn a_service_is_reached_by_host_by_absolute_form_and_by_connect() {
    let two = TWO.get(two);
    for node in &two.fleet.nodes {
        for host in ["hello.mesh", "HELLO.mesh", "hello.mesh:7080", "hello.mesh.localhost", "hello.mesh.localhost:7080"]
        {
            let answer = get(node.proxy, "/", &[("host", host)]).unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "hello from a"), "{host}");
        }
        let absolute = b"GET http://hello.mesh/head?q=1 HTTP/1.1\r\nhost: hello.mesh\r\nconnection: close\r\n\r\n";
        let answer = raw(node.proxy, absolute).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

        let mut tunnel = TcpStream::connect(node.proxy).unwrap();
        tunnel.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tunnel.write_all(b"CONNECT hello.mesh:80 HTTP/1.1\r\nhost: hello.mesh:80\r\n\r\n").unwrap();
        let mut opened = Vec::new();
        let mut byte = [0];
        while !opened.ends_with(b"\r\n\r\n") {
            tunnel.read_exact(&mut byte).unwrap();
            opened.push(byte[0]);
        }
        assert!(opened.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&opened));
        tunnel.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        tunnel.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
}

#[test]
fn http2_in_the_middle_of_a_connection_is_refused_with_a_clear_word() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[1];
    let request = b"GET / HTTP/1.1\r\nhost: hello.mesh\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let answer = raw(node.proxy, request).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 505 "), "{answer}");
    assert!(answer.contains("http2_not_supported") && answer.contains("application/problem+json"), "{answer}");
    assert!(node.metric("marram_proxy_refused_total", "http2_not_supported").unwrap() >= 1.0);
}

#[test]
fn requests_whose_end_two_readers_could_see_differently_are_refused() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[1];
    for head in [
        "POST / HTTP/1.1\r\nhost: quiet.mesh\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: quiet.mesh\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: quiet.mesh\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: quiet.mesh\r\nhost: other.mesh\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : quiet.mesh\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: quiet.mesh\r\nx: a\r\n b: c\r\n\r\n",
    ] {
        let answer = raw(node.proxy, head.as_bytes()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
        assert!(answer.contains("bad_request"), "{head:?}: {answer}");
    }
    assert_eq!(two.quiet.requests(), 0, "none of it reached the application");
    let long = format!("GET / HTTP/1.1\r\nhost: quiet.mesh\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let answer = raw(node.proxy, long.as_bytes()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 ") && answer.contains("head_too_large"), "{answer}");
}

#[test]
fn an_application_cannot_speak_as_the_mesh_and_does_not_hear_it() {
    let two = TWO.get(two);
    for node in &two.fleet.nodes {
        let forged = [
            ("host", "hello.mesh"),
            ("marram-hops", "200"),
            ("marram-source", "spiffe://it/node/root"),
            ("marram-deadline-ms", "1"),
            ("x-own", "kept"),
        ];
        let answer = get(node.proxy, "/head", &forged).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let heard = answer.body.to_ascii_lowercase();
        assert!(heard.contains("x-own: kept") && heard.contains("via: 1.1 hello.mesh"), "{heard}");
        assert!(!heard.contains("marram-"), "{heard}");
        assert_eq!(answer.header("marram-inflight"), None, "what proxies tell each other stays between them");
    }
}

#[test]
fn a_body_of_a_megabyte_arrives_whole() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[1];
    let body = "0123456789abcdef".repeat(64 * 1024);
    let headers = [("host", "hello.mesh")];
    let answer =
        send(node.proxy, &Request { method: "POST", path: "/", headers: &headers, body: Some(&body) }).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}
