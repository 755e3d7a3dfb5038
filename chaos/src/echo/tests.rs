use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{EchoConfig, EchoServer, asked_delay, serve};

async fn server(tcp: bool) -> EchoServer {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    serve(EchoConfig { bind: any, name: "n1".to_owned(), tcp: tcp.then_some(any), delay: Duration::ZERO })
        .await
        .expect("a free port")
}

/// Sends `request` on a new connection and gives everything that comes back.
async fn exchange(server: &EchoServer, request: &str) -> String {
    let mut stream = TcpStream::connect(server.http()).await.expect("connect");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

#[tokio::test]
async fn the_greeting_names_the_instance_and_the_path() {
    let server = server(false).await;
    let answer = exchange(&server, "GET /a/b?c=d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("x-answered-by: n1\r\n"), "{answer}");
    assert!(answer.ends_with("hello from n1 (/a/b)\n"), "{answer}");
}

#[tokio::test]
async fn a_posted_body_comes_back() {
    let server = server(false).await;
    let request = "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nping";
    let answer = exchange(&server, request).await;
    assert!(answer.ends_with("\r\n\r\nping"), "{answer}");
}

#[tokio::test]
async fn a_body_past_the_limit_is_refused() {
    let server = server(false).await;
    let body = "x".repeat(super::BODY_MAX + 1);
    let request =
        format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let answer = exchange(&server, &request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn health_is_answered() {
    let server = server(false).await;
    let answer = exchange(&server, "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
}

#[tokio::test]
async fn tcp_bytes_come_back() {
    let server = server(true).await;
    let mut stream = TcpStream::connect(server.tcp().expect("asked for")).await.expect("connect");
    stream.write_all(b"twelve bytes").await.expect("write");
    let mut back = [0; 12];
    stream.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"twelve bytes");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = server(false).await;
    let config = EchoConfig { bind: first.http(), name: "n2".to_owned(), tcp: None, delay: Duration::ZERO };
    let error = serve(config).await.expect_err("the port is taken").to_string();
    assert!(error.contains(&first.http().to_string()), "{error}");
}

#[test]
fn an_asked_delay_is_read_and_bounded() {
    let check = |query: Option<&str>, millis: u64| {
        assert_eq!(asked_delay(query), Duration::from_millis(millis), "for {query:?}");
    };
    check(None, 0);
    check(Some("ms=250"), 250);
    check(Some("a=1&ms=30"), 30);
    check(Some("ms=soon"), 0);
    check(Some("ms=18446744073709551615"), 60_000);
}
