//! Requests that are sent once more, and those that must not be.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::bench::{Bench, echo, instance, nobody, prefer, read_head};
use super::client::Client;
use super::streams::http2_instance;
use crate::config::Protocol;
use crate::proxy::OutcomeKind;

#[tokio::test]
async fn a_refused_connection_sends_any_request_elsewhere_and_ejects() {
    let mut bench = Bench::start().await;
    let bad = bench.add_local("hello", nobody(), Protocol::Http);
    let (address, _) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    prefer(&bad, &[&good]);
    let mut client = Client::connect(bench.address).await;
    let reply = client.ask("POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.text().contains("name: good\n") && reply.text().contains("body: 2\n"));
    let outcome = bench.outcomes.recv().await.unwrap();
    assert_eq!((outcome.kind, outcome.in_a_row), (OutcomeKind::ConnectFailed, 1));
    assert!(bad.stats.is_ejected(outcome.at));
    assert_eq!(bad.local.as_ref().unwrap().connect_failures.load(Ordering::Relaxed), 1);
    for _ in 0..20 {
        assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    }
    assert!(bench.outcomes.try_recv().is_err(), "an ejected endpoint was asked again");
}

/// An instance that reads the request and closes.
async fn closing() -> (std::net::SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    instance(|mut stream, _| async move {
        let _request = read_head(&mut stream).await;
    })
    .await
}

#[tokio::test]
async fn an_idempotent_request_survives_an_instance_that_dies_with_it() {
    let mut bench = Bench::start().await;
    let (address, asked) = closing().await;
    let bad = bench.add_local("hello", address, Protocol::Http);
    let (address, _) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    for method in ["GET", "PUT", "DELETE"] {
        prefer(&bad, &[&good]);
        bad.stats.readmit();
        let body = "Content-Length: 2\r\n\r\nok";
        let reply = Client::connect(bench.address)
            .await
            .ask(format!("{method} / HTTP/1.1\r\nHost: hello.mesh\r\n{body}"))
            .await;
        assert!(reply.status == 200 && reply.text().contains("body: 2\n"), "{method}: {reply:?}");
        assert_eq!(bench.outcomes.recv().await.unwrap().kind, OutcomeKind::Closed);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_eq!(bad.local.as_ref().unwrap().broken_connections.load(Ordering::Relaxed), 3, "its health is looked at");
}

#[tokio::test]
async fn a_request_that_may_not_arrive_twice_is_not_sent_again() {
    let mut bench = Bench::start().await;
    let (address, _) = closing().await;
    let bad = bench.add_local("hello", address, Protocol::Http);
    let (address, good_connections) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    prefer(&bad, &[&good]);
    let mut client = Client::connect(bench.address).await;
    let reply = client.ask("POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(reply.problem(502), "instance_failed");
    assert_eq!(reply.header("marram-via"), Some("n1->n1"));
    assert_eq!(good_connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_long_body_is_not_kept_for_a_second_try() {
    let mut bench = Bench::start().await;
    let (address, _) = closing().await;
    let bad = bench.add_local("hello", address, Protocol::Http);
    let (address, good_connections) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    prefer(&bad, &[&good]);
    let body = "x".repeat(70_000);
    let mut client = Client::connect(bench.address).await;
    let request = format!("PUT / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(client.ask(request).await.problem(502), "instance_failed");
    assert_eq!(good_connections.load(Ordering::SeqCst), 0);
    prefer(&bad, &[&good]);
    bad.stats.readmit();
}

#[tokio::test]
async fn two_failures_in_a_row_are_told_and_not_tried_further() {
    let mut bench = Bench::start().await;
    for _ in 0..2 {
        bench.add_local("hello", nobody(), Protocol::Http);
    }
    let (address, good_connections) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    good.stats.report_inflight(1_000_000_000, Duration::ZERO);
    let reply = Client::connect(bench.address).await.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(503), "no_healthy_instance");
    assert_eq!(reply.json()["candidates"].as_array().unwrap().len(), 2, "{reply:?}");
    assert_eq!(good_connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_kept_connection_that_the_instance_closed_is_no_failure() {
    let mut bench = Bench::start().await;
    // Each connection answers one request, says it will stay, takes the next request and closes on it.
    let (address, connections) = instance(|mut stream, _| async move {
        if read_head(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            let _next = read_head(&mut stream).await;
        }
    })
    .await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    for round in 1..=3 {
        assert_eq!(client.get("hello.mesh", "/").await.status, 200, "round {round}");
        assert_eq!(connections.load(Ordering::SeqCst), round);
    }
    assert_eq!(endpoint.stats.totals(), (3, 0));
    assert!(bench.outcomes.try_recv().is_err());
}

#[tokio::test]
async fn a_client_that_breaks_off_its_body_is_not_the_instances_fault() {
    for protocol in [Protocol::Http, Protocol::Http2] {
        let mut bench = Bench::start().await;
        let address = if protocol == Protocol::Http { echo("a").await.0 } else { http2_instance().await.0 };
        let endpoint = bench.add_local("hello", address, protocol);
        let mut client = Client::connect(bench.address).await;
        let broken =
            "POST /head HTTP/1.1\r\nHost: hello.mesh\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n";
        assert_eq!(client.ask(broken).await.problem(400), "bad_request", "{protocol:?}");
        assert!(client.is_closed().await);
        assert_eq!(endpoint.stats.totals().1, 0);
        assert!(!endpoint.stats.is_ejected(Duration::ZERO));
    }
}
