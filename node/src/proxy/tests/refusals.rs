//! Requests that are refused, each with its code.

use std::time::Duration;

use super::bench::{Bench, echo, nobody, silent};
use super::client::Client;
use crate::config::{Protocol, ProxyConfig};

/// Sends `request` on a connection of its own; returns code and hint.
async fn refused(bench: &Bench, request: &str, status: u16) -> (String, String) {
    let mut client = Client::connect(bench.address).await;
    let reply = client.ask(request).await;
    let hint = reply.json()["problems"][0]["hint"].as_str().unwrap_or_default().to_owned();
    (reply.problem(status), hint)
}

#[tokio::test]
async fn bad_requests_are_answered_400_and_the_connection_is_closed() {
    let bench = Bench::start().await;
    for request in [
        "POST / HTTP/1.1\r\nHost: a.mesh\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.mesh\r\nHost: a.mesh\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a.mesh\n\n",
        "GET / HTTP/1.1\r\nHost : a.mesh\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let mut client = Client::connect(bench.address).await;
        let reply = client.ask(request).await;
        assert_eq!(reply.problem(400), "bad_request", "{request:?}");
        assert_eq!(reply.header("connection"), Some("close"), "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
    for request in [
        "GET / HTTP/1.1\r\nHost: us er@a.mesh\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.mesh:http\r\n\r\n",
        "GET http://u@a.mesh/ HTTP/1.1\r\nHost: a.mesh\r\n\r\n",
        "GET https://a.mesh/ HTTP/1.1\r\nHost: a.mesh\r\n\r\n",
    ] {
        let mut client = Client::connect(bench.address).await;
        assert_eq!(client.ask(request).await.problem(400), "bad_request", "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
    }
}

#[tokio::test]
async fn a_bad_request_behind_a_good_one_does_not_spoil_its_answer() {
    let mut bench = Bench::start().await;
    let (address, _) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: hello.mesh\r\n\r\nPOST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 1\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
        )
        .await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(client.reply().await.problem(400), "bad_request");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn other_versions_and_unknown_expectations_are_refused_with_a_way_out() {
    let bench = Bench::start().await;
    let (code, hint) = refused(&bench, "GET / HTTP/2.0\r\nHost: a.mesh\r\n\r\n", 505).await;
    assert!(code == "http2_not_supported" && hint.contains("HTTP/1.1"), "{code}: {hint}");
    let expect = "PUT / HTTP/1.1\r\nHost: a.mesh\r\nExpect: miracles\r\n\r\n";
    assert_eq!(refused(&bench, expect, 417).await.0, "unknown_expectation");
}

#[tokio::test]
async fn a_host_outside_the_mesh_is_told_how_to_name_a_service() {
    let bench = Bench::start().await;
    for request in [
        "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
        "GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    ] {
        let (code, hint) = refused(&bench, request, 421).await;
        assert!(code == "not_of_the_mesh" && hint.contains("SERVICE.mesh"), "{request:?}: {code}: {hint}");
    }
}

#[tokio::test]
async fn an_unknown_service_is_answered_with_those_that_are_known() {
    let mut bench = Bench::start().await;
    bench.add_local("hello", nobody(), Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    let reply = client.get("helo.mesh", "/").await;
    assert_eq!(reply.problem(503), "unknown_service");
    assert_eq!(reply.json()["known_services"], serde_json::json!(["hello"]));
    assert_eq!(reply.json()["problems"][0]["hint"], "did you mean `hello`?");
    assert_eq!(client.get("hello.mesh", "/").await.status, 503, "the connection stays usable");
}

#[tokio::test]
async fn without_a_healthy_instance_each_one_is_listed_with_its_reason() {
    let mut bench = Bench::start().await;
    bench.add_excluded("hello", "8080", "check http /health answered 500");
    let address = nobody();
    bench.add_local("hello", address, Protocol::Http);
    let reply = Client::connect(bench.address).await.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(503), "no_healthy_instance");
    assert_eq!(reply.header("marram-via"), Some("n1->n1"));
    let candidates = reply.json()["candidates"].as_array().unwrap().clone();
    assert_eq!(candidates[0]["instance"], "8080@n9");
    assert_eq!(candidates[0]["reason"], "check http /health answered 500");
    assert_eq!(candidates[1]["instance"], format!("{}@n1", address.port()));
    assert!(candidates[1]["reason"].as_str().unwrap().contains("refused"), "{candidates:?}");
}

#[tokio::test]
async fn a_service_that_speaks_tcp_is_not_asked_for_http() {
    let mut bench = Bench::start().await;
    bench.add_local("db", nobody(), Protocol::Tcp);
    let reply = Client::connect(bench.address).await.get("db.mesh", "/").await;
    assert_eq!(reply.problem(502), "not_http");
}

#[tokio::test]
async fn an_instance_that_does_not_answer_in_time_is_answered_504() {
    let config = ProxyConfig { request_timeout: Duration::from_millis(200), ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, _) = silent().await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    let reply = client.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(504), "timeout");
    assert!(!endpoint.stats.is_ejected(Duration::ZERO), "slow is not dead");
    assert_eq!(endpoint.stats.own_inflight(), 0);
    let late = "PUT / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 9\r\n\r\npart";
    assert_eq!(client.ask(late).await.problem(504), "timeout");
}

#[tokio::test]
async fn a_request_that_comes_back_again_and_again_is_stopped() {
    let mut bench = Bench::start().await;
    // The instance of the service is the proxy itself.
    bench.add_local("hello", bench.address, Protocol::Http);
    let reply = Client::connect(bench.address).await.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(508), "loop_detected");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_431() {
    let bench = Bench::start().await;
    for size in [17 * 1024, 1024 * 1024] {
        let request = format!("GET / HTTP/1.1\r\nHost: a.mesh\r\nX: {}\r\n\r\n", "x".repeat(size));
        let mut client = Client::connect(bench.address).await;
        assert_eq!(client.ask(request).await.problem(431), "head_too_large");
    }
    let fits = format!("GET / HTTP/1.1\r\nHost: a.mesh\r\nX: {}\r\n\r\n", "x".repeat(16 * 1024 - 60));
    assert_eq!(refused(&bench, &fits, 503).await.0, "unknown_service");
}

#[tokio::test]
async fn a_slow_head_is_answered_408_and_a_silent_client_is_closed() {
    let config = ProxyConfig {
        head_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(200),
        ..ProxyConfig::default()
    };
    let bench = Bench::with(config, 1).await;
    assert_eq!(refused(&bench, "GET / HTTP/1.1\r\nHost: a.m", 408).await.0, "head_timeout");
    assert!(Client::connect(bench.address).await.is_closed().await, "never said a word");
    let mut client = Client::connect(bench.address).await;
    assert_eq!(client.get("a.mesh", "/").await.problem(503), "unknown_service");
    assert!(client.is_closed().await, "said no more");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let config = ProxyConfig { connections_max: 1, ..ProxyConfig::default() };
    let bench = Bench::with(config, 1).await;
    let mut first = Client::connect(bench.address).await;
    assert_eq!(first.get("a.mesh", "/").await.status, 503);
    let mut second = Client::connect(bench.address).await;
    second.send("GET / HTTP/1.1\r\nHost: a.mesh\r\n\r\n").await;
    let waiting = tokio::time::timeout(Duration::from_millis(100), second.head()).await;
    assert!(waiting.is_err(), "served beyond the limit");
    drop(first);
    assert_eq!(second.reply().await.status, 503);
}
