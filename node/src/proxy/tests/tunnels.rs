//! Raw bytes: CONNECT and listeners.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::bench::{Bench, PATIENCE, instance, nobody, prefer};
use super::client::Client;
use crate::config::Protocol;

/// An instance that sends back what it gets, in capitals, until the client stops.
async fn shouting() -> std::net::SocketAddr {
    instance(|mut stream, _| async move {
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            stream.write_all(&piece[..count].to_ascii_uppercase()).await.unwrap();
        }
    })
    .await
    .0
}

#[tokio::test]
async fn connect_makes_a_tunnel_to_a_tcp_service() {
    let mut bench = Bench::start().await;
    bench.add_local("db", shouting().await, Protocol::Tcp);
    let mut client = Client::connect(bench.address).await;
    // The first bytes for the instance come with the request.
    client.send("CONNECT db.mesh:5432 HTTP/1.1\r\nHost: db.mesh:5432\r\n\r\nGET nothing\n\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.read_exact(13).await, b"GET NOTHING\n\n");
    assert_eq!(bench.context.in_flight(), 1);
    client.send("more").await;
    client.half_close().await;
    assert_eq!(client.read_exact(4).await, b"MORE");
    assert!(client.is_closed().await);
    assert_eq!(bench.context.drain(PATIENCE).await, 0);
}

#[tokio::test]
async fn a_refused_connect_leaves_the_connection_usable() {
    let mut bench = Bench::start().await;
    bench.add_local("db", nobody(), Protocol::Tcp);
    let mut client = Client::connect(bench.address).await;
    let connect = |service: &str| format!("CONNECT {service}.mesh:1 HTTP/1.1\r\nHost: {service}.mesh:1\r\n\r\n");
    assert_eq!(client.ask(connect("nothing")).await.problem(503), "unknown_service");
    assert_eq!(client.ask(connect("db")).await.problem(503), "no_healthy_instance");
}

#[tokio::test]
async fn a_listener_passes_bytes_and_tries_another_instance_when_one_refuses() {
    let mut bench = Bench::start().await;
    let bad = bench.add_local("db", nobody(), Protocol::Tcp);
    let good = bench.add_local("db", shouting().await, Protocol::Tcp);
    prefer(&bad, &[&good]);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Arc::clone(&bench.context).serve_tcp(0, listener, "db".to_owned()));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "HELLO");
    assert_eq!((bad.stats.totals(), good.stats.totals()), ((0, 1), (1, 0)));
}

#[tokio::test]
async fn a_listener_whose_service_is_unknown_closes() {
    let bench = Bench::start().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Arc::clone(&bench.context).serve_tcp(0, listener, "db".to_owned()));
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"");
}
