//! Which streams are opened as those that carry much.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::bench::{Bench, echo, instance, read_head};
use super::client::Client;
use super::mesh::join;
use super::streams::http2_instance;
use crate::config::Protocol;
use crate::proxy::{Volume, tcp};
use crate::snapshot::Endpoint;

/// A proxy, the one it knows that has the instance at `address`, and that instance as the first sees it.
async fn facing(address: SocketAddr, protocol: Protocol) -> (Bench, Bench, Arc<Endpoint>) {
    let mut near = Bench::start().await;
    let (far, endpoint) = join(&mut near, 2, address, protocol).await;
    (near, far, endpoint)
}

/// Answers with as many bytes as the path says.
async fn sized() -> SocketAddr {
    let (address, _) = instance(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let size: usize = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n{}", "y".repeat(size));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    address
}

async fn ask(client: &mut Client, size: usize) {
    let reply = client.ask(format!("GET /{size} HTTP/1.1\r\nHost: hello.mesh\r\n\r\n")).await;
    assert_eq!((reply.status, reply.body.len()), (200, size));
}

#[tokio::test]
async fn an_instance_with_long_answers_is_asked_over_streams_for_much_until_they_are_short_again() {
    let (near, _far, endpoint) = facing(sized().await, Protocol::Http).await;
    let volumes = || near.links.volumes.lock().unwrap().clone();
    let mut client = Client::connect(near.address).await;
    ask(&mut client, 1000).await;
    ask(&mut client, 1_000_000).await;
    assert_eq!(volumes(), [Volume::Small], "nothing was known of it");
    ask(&mut client, 1_000_000).await;
    ask(&mut client, 1_000_000).await;
    assert_eq!(volumes(), [Volume::Small, Volume::Large], "kept like the others");
    for _ in 0..40 {
        ask(&mut client, 10).await;
    }
    assert_eq!(Volume::of(&endpoint.stats), Volume::Small, "{}", endpoint.stats.bytes_mean());
    assert_eq!(volumes(), [Volume::Small, Volume::Large], "the first stream was still there");
}

#[tokio::test]
async fn long_answers_share_the_kept_streams_until_there_is_a_way_of_their_own() {
    let (near, _far, _) = facing(sized().await, Protocol::Http).await;
    near.links.has_small_only.store(true, Ordering::SeqCst);
    let mut client = Client::connect(near.address).await;
    for _ in 0..5 {
        ask(&mut client, 1_000_000).await;
    }
    assert_eq!(*near.links.volumes.lock().unwrap(), [Volume::Small]);
    near.links.has_small_only.store(false, Ordering::SeqCst);
    ask(&mut client, 1_000_000).await;
    assert_eq!(*near.links.volumes.lock().unwrap(), [Volume::Small, Volume::Large]);
}

#[tokio::test]
async fn a_long_upload_goes_over_a_stream_for_much() {
    let (address, _) = echo("far").await;
    let (near, _far, _) = facing(address, Protocol::Http).await;
    let mut client = Client::connect(near.address).await;
    for (size, expected) in [(10, Volume::Small), (100_000, Volume::Large)] {
        let body = "x".repeat(size);
        let reply =
            client.ask(format!("PUT / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: {size}\r\n\r\n{body}")).await;
        assert_eq!(reply.status, 200);
        assert_eq!(near.links.volumes.lock().unwrap().last(), Some(&expected), "{size} bytes");
    }
}

#[tokio::test]
async fn a_tcp_connection_follows_what_those_before_it_carried() {
    let (address, _) = instance(|mut stream, number| async move {
        let size = if number == 0 { 1_000_000 } else { 10 };
        stream.write_all(&vec![b'z'; size]).await.unwrap();
    })
    .await;
    let (near, _far, _) = facing(address, Protocol::Tcp).await;
    for (size, expected) in [(1_000_000, Volume::Small), (10, Volume::Large)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let context = Arc::clone(&near.context);
        let serving = tokio::spawn(async move { tcp::connection(&context, 0, accepted, "hello").await });
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), size);
        drop(client);
        serving.await.unwrap();
        assert_eq!(near.links.volumes.lock().unwrap().last(), Some(&expected), "{size} bytes");
    }
}

#[tokio::test]
async fn a_long_upload_over_http2_shares_a_stream_for_little_where_the_service_has_as_many_as_it_may() {
    let (address, _seen) = http2_instance().await;
    let (near, _far, endpoint) = facing(address, Protocol::Http2).await;
    let mut client = Client::connect(near.address).await;
    let mut put = async |size: usize| {
        let head = format!("POST /head HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: {size}\r\n\r\n");
        assert_eq!(client.ask(head + &"x".repeat(size)).await.status, 200);
    };
    put(10).await;
    let lane = near.context.lane(0, endpoint.node).share("hello");
    let _others: Vec<_> = (0..200).map(|_| lane.try_place().unwrap()).collect();
    put(100_000).await;
    assert_eq!(*near.links.volumes.lock().unwrap(), [Volume::Small]);
}
