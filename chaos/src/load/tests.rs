use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use super::{LoadConfig, Tally, run};
use crate::echo::{EchoConfig, EchoServer, serve};

async fn server(delay: Duration) -> EchoServer {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    serve(EchoConfig { bind: any, name: "n1".to_owned(), tcp: None, delay }).await.expect("a free port")
}

fn config(address: SocketAddr, rate: f64, millis: u64) -> LoadConfig {
    let mut config = LoadConfig::new(format!("http://{address}/").parse().expect("a url"));
    config.rate = rate;
    config.duration = Some(Duration::from_millis(millis));
    config
}

/// An address on which nobody listens, for as long as the socket is held: a port that is given back may be another's.
fn nobody() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
    (socket.local_addr().expect("bound"), socket)
}

#[tokio::test]
async fn every_due_request_is_counted_once() {
    let server = server(Duration::ZERO).await;
    let mut seconds = Vec::new();
    let whole = run(config(server.http(), 200.0, 1500), pending(), |second| seconds.push(second.clone()))
        .await
        .expect("a valid configuration");
    assert_eq!((whole.ok, whole.failed), (300, 0), "{whole:?}");
    assert_eq!(whole.answered_by.get("n1"), Some(&300));
    assert_eq!(whole.outcomes.get("200"), Some(&300));
    assert_eq!(seconds.iter().map(|second| second.ok).sum::<u64>(), 300, "the seconds add up to the whole");
    assert!(whole.p50_ms > 0.0 && whole.p99_ms >= whole.p50_ms && whole.max_ms >= whole.p99_ms, "{whole:?}");
}

#[tokio::test]
async fn a_refused_connection_is_a_failure_with_time_and_cause() {
    let (closed, _held) = nobody();
    let whole = run(config(closed, 100.0, 100), pending(), |_| {}).await.expect("a valid configuration");
    assert_eq!((whole.ok, whole.failed), (0, 10), "{whole:?}");
    assert_eq!(whole.outcomes.get("connect"), Some(&10));
    let failure = whole.failures.first().expect("kept");
    assert!(failure.at_ms >= whole.from_ms && failure.at_ms <= whole.until_ms, "{failure:?}");
    assert!(failure.detail.contains("refused"), "{failure:?}");
}

#[tokio::test]
async fn an_error_status_is_a_failure_and_keeps_the_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        // One connection only: a second one would wait for ever and the test with it.
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut buffer = [0; 1024];
        while matches!(stream.read(&mut buffer).await, Ok(1..)) {
            stream.write_all(b"HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\nnone").await.expect("write");
        }
    });
    let mut config = config(address, 50.0, 100);
    config.connections = 1;
    let whole = run(config, pending(), |_| {}).await.expect("a valid configuration");
    serving.await.expect("served");
    assert_eq!((whole.ok, whole.failed), (0, 5), "{whole:?}");
    assert_eq!(whole.outcomes.get("503"), Some(&5));
    assert_eq!(whole.failures.first().expect("kept").detail, "none");
}

#[tokio::test]
async fn a_stall_shows_in_what_waited_and_a_full_queue_in_unsent() {
    let server = server(Duration::from_millis(200)).await;
    let mut config = config(server.http(), 100.0, 500);
    config.connections = 1;
    config.waiting_max = 2;
    let whole = run(config, pending(), |_| {}).await.expect("a valid configuration");
    assert_eq!(whole.ok + whole.failed, 50, "{whole:?}");
    assert!(whole.outcomes.get("unsent").is_some_and(|&unsent| unsent >= 40), "{whole:?}");
    assert!(whole.max_ms >= 380.0, "a request that waited for another's 200 ms counts both: {whole:?}");
}

#[tokio::test]
async fn a_silent_server_is_a_timeout() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let mut config = config(listener.local_addr().expect("bound"), 100.0, 30);
    config.timeout = Duration::from_millis(100);
    let whole = run(config, pending(), |_| {}).await.expect("a valid configuration");
    assert_eq!(whole.outcomes.get("timeout"), Some(&3), "{whole:?}");
}

#[tokio::test]
async fn stopping_ends_an_endless_run() {
    let server = server(Duration::ZERO).await;
    let mut config = config(server.http(), 100.0, 0);
    config.duration = None;
    let whole = run(config, tokio::time::sleep(Duration::from_secs(1)), |_| {}).await.expect("valid");
    assert!(whole.ok >= 1, "{whole:?}");
}

#[tokio::test]
async fn waiting_for_readiness_tells_what_it_saw_last() {
    let (closed, _held) = nobody();
    let mut config = config(closed, 1.0, 0);
    config.ready_wait = Duration::from_secs(1);
    let error = run(config, pending(), |_| {}).await.expect_err("nobody answers").to_string();
    assert!(error.contains("connect"), "{error}");
}

#[tokio::test]
async fn a_senseless_configuration_is_refused_with_its_value() {
    let check = async |change: fn(&mut LoadConfig), expected: &str| {
        let mut config = config(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), 1.0, 0);
        change(&mut config);
        let error = run(config, pending(), |_| {}).await.expect_err("refused").to_string();
        assert!(error.contains(expected), "{error} should contain {expected}");
    };
    check(|config| config.rate = 0.0, "rate 0 ").await;
    check(|config| config.rate = f64::NAN, "rate NaN ").await;
    check(|config| config.connections = 0, "0 connections").await;
    check(|config| config.url = "https://a/".parse().expect("a url"), "only http://").await;
}

#[test]
fn a_tally_reads_back_from_its_line() {
    let mut tally = Tally { ok: 3, failed: 1, ..Tally::default() };
    tally.answered_by.insert("n1".to_owned(), 3);
    let line = tally.json().expect("json");
    assert!(!line.contains('\n'), "{line}");
    assert_eq!(serde_json::from_str::<Tally>(&line).expect("json"), tally);
    assert!(tally.line().contains("n1 3"), "{}", tally.line());
}
