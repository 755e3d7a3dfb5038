//! `Upgrade`: a request after which the connection speaks another protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::bench::{Bench, PATIENCE, echo, instance, node, prefer, read_body, read_head};
use super::client::Client;
use crate::config::{Protocol, ProxyConfig};
use crate::snapshot::Endpoint;

const ASK: &str = "GET /chat?room=1 HTTP/1.1\r\nHost: hello.mesh\r\nConnection: keep-alive, Upgrade\r\n\
                   Upgrade: shout/1\r\nX-Key: 7\r\n\r\n";

/// An instance that switches to sending back in capitals, and says goodbye when the client has ended its side.
async fn shouting() -> (SocketAddr, Arc<AtomicUsize>) {
    instance(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap().to_lowercase();
        let _body = read_body(&mut stream, &head).await;
        for wanted in ["upgrade: shout/1\r\n", "connection: upgrade\r\n", "x-key: 7\r\n", "via: 1.1 hello.mesh\r\n"] {
            assert!(head.contains(wanted), "{wanted} is missing: {head}");
        }
        assert!(!head.contains("marram-"), "{head}");
        // The first bytes of the other protocol come with the head.
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout/1\r\nX-Answer: 7\r\n\
                      marram-forged: 1\r\n\r\nWELCOME ";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            stream.write_all(&piece[..count].to_ascii_uppercase()).await.unwrap();
        }
        stream.write_all(b" GOODBYE").await.unwrap();
    })
    .await
}

/// Node 1 with `hello` at `address`, on itself or on a second node.
async fn near(address: SocketAddr, is_far: bool, config: ProxyConfig) -> (Bench, Bench, Arc<Endpoint>) {
    let mut near = Bench::with(config.clone(), 1).await;
    let mut far = Bench::with(config, 2).await;
    let endpoint = if is_far {
        far.add_local("hello", address, Protocol::Http);
        near.links.lead_to(2, &far);
        near.add_remote("hello", &address.port().to_string(), 2, Protocol::Http)
    } else {
        near.add_local("hello", address, Protocol::Http)
    };
    (near, far, endpoint)
}

#[tokio::test]
async fn a_switched_connection_carries_bytes_both_ways_and_half_closes() {
    for is_far in [false, true] {
        let (address, connections) = shouting().await;
        let (near, far, endpoint) = near(address, is_far, ProxyConfig::default()).await;
        for round in 1..=2 {
            let mut client = Client::connect(near.address).await;
            client.send(ASK).await;
            let head = client.head().await;
            assert_eq!((head.status, head.header("upgrade")), (101, Some("shout/1")), "{head:?}");
            assert_eq!((head.header("connection"), head.header("x-answer")), (Some("upgrade"), Some("7")), "{head:?}");
            assert_eq!(head.header("marram-via"), Some(if is_far { "n1->n2" } else { "n1->n1" }));
            for absent in ["content-length", "transfer-encoding", "marram-forged", "marram-inflight"] {
                assert_eq!(head.header(absent), None, "{head:?}");
            }
            assert_eq!(client.read_exact(8).await, b"WELCOME ");
            // What looks like a request is none any more.
            client.send("get / http/1.1\n\n").await;
            assert_eq!(client.read_exact(16).await, b"GET / HTTP/1.1\n\n");
            assert_eq!((near.context.in_flight(), far.context.in_flight()), (1, usize::from(is_far)));
            client.half_close().await;
            assert_eq!(client.rest().await, b" GOODBYE");
            assert_eq!(connections.load(Ordering::SeqCst), round, "a switched connection is used once");
        }
        assert_eq!((near.context.drain(PATIENCE).await, far.context.drain(PATIENCE).await), (0, 0));
        assert_eq!((endpoint.stats.totals(), endpoint.stats.own_inflight()), ((2, 0), 0));
    }
}

#[tokio::test]
async fn bytes_sent_ahead_of_the_answer_reach_the_instance() {
    for is_far in [false, true] {
        let (address, _) = shouting().await;
        let (near, _far, _) = near(address, is_far, ProxyConfig::default()).await;
        let mut client = Client::connect(near.address).await;
        client.send(format!("{ASK}early")).await;
        assert_eq!(client.head().await.status, 101);
        assert_eq!(client.read_exact(13).await, b"WELCOME EARLY");
    }
}

#[tokio::test]
async fn a_request_with_a_short_body_may_switch() {
    let (address, _) = shouting().await;
    let (near, _far, _) = near(address, true, ProxyConfig::default()).await;
    let mut client = Client::connect(near.address).await;
    let ask = ASK.replacen("GET", "POST", 1).replace("X-Key", "Content-Length: 4\r\nX-Key");
    client.send(format!("{ask}bodyearly")).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.read_exact(13).await, b"WELCOME EARLY");
}

#[tokio::test]
async fn an_instance_that_does_not_switch_gives_an_ordinary_answer() {
    for is_far in [false, true] {
        let (address, connections) = echo("a").await;
        let (near, _far, _) = near(address, is_far, ProxyConfig::default()).await;
        let mut client = Client::connect(near.address).await;
        for _ in 0..2 {
            let reply = client.ask(ASK).await;
            assert!(reply.status == 200 && reply.text().contains("upgrade: shout/1\r\n"), "{reply:?}");
            assert_eq!(reply.header("upgrade"), None);
        }
        assert_eq!(client.get("hello.mesh", "/").await.status, 200);
        assert_eq!(connections.load(Ordering::SeqCst), 1, "connections are kept");
    }
}

#[tokio::test]
async fn a_switch_to_http2_is_not_passed_on() {
    let (address, _) = echo("a").await;
    let (near, _far, _) = near(address, false, ProxyConfig::default()).await;
    let ask = "GET / HTTP/1.1\r\nHost: hello.mesh\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
               HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    let reply = Client::connect(near.address).await.ask(ask).await;
    let text = reply.text().to_lowercase();
    assert!(reply.status == 200 && !text.contains("upgrade") && !text.contains("http2-settings"), "{text}");
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_no_answer() {
    let (address, _) = instance(|mut stream, _| async move {
        let _head = read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let (near, _far, _) = near(address, true, ProxyConfig::default()).await;
    let ask = "POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(Client::connect(near.address).await.ask(ask).await.problem(502), "instance_failed");
}

#[tokio::test]
async fn a_wish_to_switch_goes_elsewhere_before_the_switch_and_never_after_it() {
    let mut near = Bench::start().await;
    // The first connection is closed with the request, later ones right after the switch.
    let (address, asked) = instance(|mut stream, number| async move {
        let _head = read_head(&mut stream).await;
        if number > 0 {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: shout/1\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let bad = near.add_local("hello", address, Protocol::Http);
    let (address, good_connections) = shouting().await;
    let good = near.add_local("hello", address, Protocol::Http);
    prefer(&bad, &[&good]);
    let mut client = Client::connect(near.address).await;
    client.send(ASK).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.read_exact(8).await, b"WELCOME ");
    bad.stats.readmit();
    prefer(&bad, &[&good]);
    let mut client = Client::connect(near.address).await;
    client.send(ASK).await;
    assert_eq!(client.head().await.status, 101);
    assert!(client.is_closed().await);
    assert_eq!((asked.load(Ordering::SeqCst), good_connections.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn a_silent_switched_connection_is_closed_after_its_idle_time() {
    let config = ProxyConfig { idle_timeout: Duration::from_millis(200), ..ProxyConfig::default() };
    for is_far in [false, true] {
        let (address, _) = shouting().await;
        let (near, _far, _) = near(address, is_far, config.clone()).await;
        let mut client = Client::connect(near.address).await;
        client.send(ASK).await;
        assert_eq!(client.head().await.status, 101);
        let rest = tokio::time::timeout(PATIENCE, client.rest()).await.unwrap();
        assert_eq!(rest, b"WELCOME ");
        assert_eq!(near.context.drain(PATIENCE).await, 0);
    }
}

#[tokio::test]
async fn a_switched_connection_ends_with_the_peer_it_leads_through() {
    let (address, _) = shouting().await;
    let (near, _far, _) = near(address, true, ProxyConfig::default()).await;
    let mut client = Client::connect(near.address).await;
    client.send(ASK).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.read_exact(8).await, b"WELCOME ");
    near.context.peer_dead(node(2));
    assert!(client.is_closed().await);
}
