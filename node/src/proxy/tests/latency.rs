//! What requests teach of how long an endpoint takes.

use std::time::Duration;

use super::bench::{Bench, PATIENCE, echo, instance, read_head, silent};
use super::client::Client;
use crate::config::{Protocol, ProxyConfig};
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn an_answer_tells_the_latency_of_its_endpoint_and_a_stream_of_the_client_does_not() {
    let mut bench = Bench::start().await;
    let (address, _) = echo("a").await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    let latency = || endpoint.stats.latency_ms(bench.context.clock.now());
    let mut client = Client::connect(bench.address).await;
    let streams = "POST / HTTP/1.1\r\nHost: hello.mesh\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    assert_eq!(client.ask(streams).await.status, 200);
    assert_eq!(latency(), None, "that takes as long as the client sends");
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    assert!(latency().is_some_and(|ms| ms > 0.0 && ms < PATIENCE.as_secs_f64() * 1e3), "{:?}", latency());
}

#[tokio::test]
async fn an_error_however_fast_makes_an_endpoint_look_slow() {
    let mut bench = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    let before = bench.context.clock.now();
    assert_eq!(client.get("hello.mesh", "/").await.status, 503);
    let latency = endpoint.stats.latency_ms(before);
    assert!(latency.is_some_and(|ms| ms >= 249.0), "{latency:?}");
}

#[tokio::test]
async fn a_time_out_tells_that_an_answer_takes_at_least_so_long() {
    let config = ProxyConfig { request_timeout: Duration::from_millis(300), ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, _) = silent().await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    let before = bench.context.clock.now();
    assert_eq!(client.get("hello.mesh", "/").await.status, 504);
    let latency = endpoint.stats.latency_ms(before);
    assert!(latency.is_some_and(|ms| ms >= 299.0), "{latency:?}");
}
