//! Endpoints that are compared once in an interval, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::bench::{Bench, echo, instance, read_head};
use super::client::Client;
use crate::config::Protocol;
use crate::pick::{Asked, eligible};
use crate::proxy::OutcomeKind;

/// A policy for `hello` with this passive check and one draw by P.
fn policy(passive: &str) -> String {
    format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: hello }}\n\
         targetRef: {{ kind: Service, name: hello }}\n\
         spec: {{ loadBalancer: {{ draw: Single }}, healthCheck: {{ passive: {{ {passive} }} }} }}\n"
    )
}

/// An instance that answers after `wait`, with an error to every `nth` request; 0 for never.
async fn flawed(nth: usize, wait: Duration) -> SocketAddr {
    let asked = Arc::new(AtomicUsize::new(0));
    let (address, _) = instance(move |mut stream, _| {
        let asked = Arc::clone(&asked);
        async move {
            while read_head(&mut stream).await.is_some() {
                tokio::time::sleep(wait).await;
                let is_error = nth > 0 && asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(nth);
                let status = if is_error { "500 Oh" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    address
}

async fn statuses(client: &mut Client, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(client.get("hello.mesh", "/").await.status);
    }
    statuses
}

fn why_out(bench: &Bench) -> Vec<String> {
    let snapshot = bench.context.published.load();
    let view = &snapshot.services["hello"];
    let out = eligible(view, Asked::default(), bench.context.clock.now(), snapshot.table.backend("hello")).out;
    out.iter().map(|(endpoint, why)| why.sentence(view, endpoint)).collect()
}

#[tokio::test]
async fn one_of_five_that_fails_every_other_request_is_left_out_at_the_end_of_the_interval() {
    let mut bench = Bench::start().await;
    for _ in 0..4 {
        let (address, _) = echo("good").await;
        bench.add_local("hello", address, Protocol::Http);
    }
    let bad = bench.add_local("hello", flawed(2, Duration::ZERO).await, Protocol::Http);
    bench.apply(&policy("successRate: { requestVolume: 20 }"));
    let mut client = Client::connect(bench.address).await;
    let began = bench.context.clock.now();
    bench.context.turn_intervals(began);
    let failed = statuses(&mut client, 300).await.iter().filter(|status| **status != 200).count();
    assert!(failed > 10, "{failed}: the test asks it");
    bench.context.turn_intervals(began + Duration::from_secs(9));
    assert_eq!(why_out(&bench), [""; 0], "the interval is not over");

    bench.context.turn_intervals(began + Duration::from_secs(10));
    let outcome = bench.outcomes.try_recv().unwrap();
    assert_eq!((outcome.kind, outcome.in_a_row), (OutcomeKind::SuccessRate, 0));
    assert!(Arc::ptr_eq(&outcome.endpoint, &bad), "{outcome:?}");
    assert!(outcome.detail.ends_with("; left out here for 10s"), "{}", outcome.detail);
    assert!(bad.stats.is_outlier(bench.context.clock.now()));
    let told = why_out(&bench);
    assert!(told.len() == 1 && told[0].starts_with("ejected here: its success rate is "), "{told:?}");
    assert_eq!(statuses(&mut client, 50).await, [200; 50]);
    assert!(bench.outcomes.try_recv().is_err(), "nothing else was told");
}

#[tokio::test]
async fn a_slow_one_is_left_out_where_policy_says_so_and_only_there() {
    for (latency, expected) in [
        ("latency: { factor: 3, minimumDifference: 20ms, intervals: 1, requestVolume: 5 }", 1),
        ("latency: { factor: 0 }", 0),
    ] {
        let mut bench = Bench::start().await;
        for wait_ms in [0, 0, 150] {
            bench.add_local("hello", flawed(0, Duration::from_millis(wait_ms)).await, Protocol::Http);
        }
        bench.apply(&policy(latency));
        let mut client = Client::connect(bench.address).await;
        let began = bench.context.clock.now();
        bench.context.turn_intervals(began);
        assert_eq!(statuses(&mut client, 60).await, [200; 60]);
        bench.context.turn_intervals(began + Duration::from_secs(10));
        let told = why_out(&bench);
        assert_eq!(told.len(), expected, "{latency}: {told:?}");
        assert!(told.iter().all(|why| why.starts_with("ejected here: its answers take ")), "{told:?}");
        let kinds: Vec<OutcomeKind> = std::iter::from_fn(|| Some(bench.outcomes.try_recv().ok()?.kind)).collect();
        assert_eq!(kinds, vec![OutcomeKind::Latency; expected]);
    }
}
