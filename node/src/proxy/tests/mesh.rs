//! Two and three proxies: what crosses between them, and what happens when one is gone.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::bench::{Bench, Way, echo, instance, nobody, node, prefer, read_head, silent};
use super::client::Client;
use crate::config::{Protocol, ProxyConfig};
use crate::proxy::{OutcomeKind, ResetCode};
use crate::snapshot::Endpoint;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;

/// Node 1 knows the instance at `address` on node `number` and how to get there.
pub(super) async fn join(
    near: &mut Bench,
    number: u8,
    address: std::net::SocketAddr,
    protocol: Protocol,
) -> (Bench, Arc<Endpoint>) {
    let mut far = Bench::with(ProxyConfig::default(), number).await;
    far.add_local("hello", address, protocol);
    near.links.lead_to(number, &far);
    let endpoint = near.add_remote("hello", &address.port().to_string(), number, protocol);
    (far, endpoint)
}

#[tokio::test]
async fn a_request_crosses_two_proxies_and_streams_are_kept() {
    let mut near = Bench::start().await;
    let (address, connections) = echo("far").await;
    let (far, endpoint) = join(&mut near, 2, address, Protocol::Http).await;
    let mut client = Client::connect(near.address).await;
    for path in ["/1", "/2", "/3"] {
        let reply = client.ask(format!("PUT {path} HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 2\r\n\r\nok")).await;
        assert_eq!((reply.status, reply.header("marram-via")), (200, Some("n1->n2")), "{reply:?}");
        let text = reply.text().to_lowercase();
        assert!(text.contains("host: hello.mesh\r\n") && text.contains("body: 2\n"), "{text}");
        assert!(!text.contains("marram-"), "the mesh spoke to an application: {text}");
        assert!(!reply.head.contains("marram-inflight") && !reply.head.contains("marram-forged"), "{}", reply.head);
    }
    assert_eq!(near.links.opened.load(Ordering::SeqCst), 1, "streams are kept");
    assert_eq!(connections.load(Ordering::SeqCst), 1, "connections are kept");
    let told = endpoint.stats.reported(Duration::ZERO);
    assert_eq!((told.inflight, told.own), (1, 1), "the owner told its requests in flight: {told:?}");
    assert_eq!((near.context.in_flight(), far.context.in_flight()), (0, 0));
}

#[tokio::test]
async fn large_bodies_and_trailers_cross_two_proxies() {
    let mut near = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let length = super::bench::read_body(&mut stream, &head).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n{length:x}\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n",
                "y".repeat(length)
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let (_far, _) = join(&mut near, 2, address, Protocol::Http).await;
    let mut client = Client::connect(near.address).await;
    for _ in 0..2 {
        let body = "x".repeat(300_000);
        let reply = client
            .ask(format!(
                "POST / HTTP/1.1\r\nHost: hello.mesh\r\nTE: trailers\r\nConnection: te\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        assert_eq!((reply.body.len(), reply.trailers.as_str()), (300_000, "x-sum: 1\r\n"));
    }
}

#[tokio::test]
async fn trailers_and_the_wait_for_permission_cross_both_ways() {
    for is_far in [false, true] {
        let mut near = Bench::start().await;
        // Answers with what it got, trailers included, and a trailer of its own.
        let (address, _) = instance(|mut stream, _| async move {
            while let Some(head) = read_head(&mut stream).await {
                let mut body = String::new();
                while !body.ends_with("\r\n\r\n") {
                    assert_ne!(tokio::io::AsyncBufReadExt::read_line(&mut stream, &mut body).await.unwrap(), 0);
                }
                let text = format!("{head}{body}");
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-answer\r\n\r\n{:x}\r\n{text}\r\n0\r\n\
                     x-answer: 2\r\n\r\n",
                    text.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let _far = if is_far { Some(join(&mut near, 2, address, Protocol::Http).await) } else { None };
        if !is_far {
            near.add_local("hello", address, Protocol::Http);
        }
        let mut client = Client::connect(near.address).await;
        for _ in 0..2 {
            client
                .send(
                    "POST / HTTP/1.1\r\nHost: hello.mesh\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\
                     TE: trailers\r\nConnection: te\r\nExpect: 100-continue\r\n\r\n",
                )
                .await;
            assert_eq!(client.head().await.status, 100);
            let reply = client.ask("5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n").await;
            let text = reply.text().to_lowercase();
            assert!(text.contains("trailer: x-sum\r\n") && text.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{text}");
            assert!(!text.contains("expect:"), "{text}");
            assert_eq!(reply.trailers, "x-answer: 2\r\n");
        }
    }
}

#[tokio::test]
async fn a_request_that_may_go_once_only_takes_no_stream_that_was_silent_for_long() {
    let mut near = Bench::start().await;
    let (address, _) = echo("far").await;
    let (_far, _) = join(&mut near, 2, address, Protocol::Http).await;
    let mut client = Client::connect(near.address).await;
    for (method, silent, opened) in [("POST", 0, 1), ("POST", 0, 1), ("GET", 30, 1), ("POST", 30, 2)] {
        near.clock.skip(Duration::from_secs(silent));
        let request = format!("{method} / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(client.ask(request).await.status, 200);
        assert_eq!(near.links.opened.load(Ordering::SeqCst), opened, "{method} after {silent} s");
    }
}

#[tokio::test]
async fn a_tunnel_crosses_two_proxies() {
    let mut near = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut stream, &mut line).await.unwrap();
        stream.write_all(line.to_uppercase().as_bytes()).await.unwrap();
    })
    .await;
    let (_far, _) = join(&mut near, 2, address, Protocol::Tcp).await;
    let mut client = Client::connect(near.address).await;
    client.send("CONNECT hello.mesh:1 HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    client.send("over the mesh\n").await;
    assert_eq!(client.read_exact(14).await, b"OVER THE MESH\n");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn an_instance_gone_at_its_own_node_sends_any_request_elsewhere() {
    let mut near = Bench::start().await;
    let (_far, bad) = join(&mut near, 2, nobody(), Protocol::Http).await;
    let (address, _) = echo("good").await;
    let (_other, good) = join(&mut near, 3, address, Protocol::Http).await;
    prefer(&bad, &[&good]);
    let mut client = Client::connect(near.address).await;
    let reply = client.ask("POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!((reply.status, reply.header("marram-via")), (200, Some("n1->n3")), "{reply:?}");
    let outcome = near.outcomes.recv().await.unwrap();
    assert_eq!(outcome.kind, OutcomeKind::ConnectFailed);
    assert!(outcome.detail.contains("refused the connection of its own node"), "{}", outcome.detail);
}

#[tokio::test]
async fn an_instance_that_dies_behind_a_kept_stream_is_told_as_a_fault() {
    let mut near = Bench::start().await;
    // The first connection serves one request and the instance is gone.
    let (address, _) = instance(|mut stream, number| async move {
        if number == 0 && read_head(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let (_far, bad) = join(&mut near, 2, address, Protocol::Http).await;
    let mut client = Client::connect(near.address).await;
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    let (address, _) = echo("good").await;
    let (_other, good) = join(&mut near, 3, address, Protocol::Http).await;
    prefer(&bad, &[&good]);
    let reply = client.get("hello.mesh", "/").await;
    assert_eq!((reply.status, reply.header("marram-via")), (200, Some("n1->n3")), "{reply:?}");
    assert_eq!(near.outcomes.recv().await.unwrap().kind, OutcomeKind::Closed);
    assert_eq!(near.links.opened.load(Ordering::SeqCst), 2, "the stream to the node outlives its instance");
}

#[tokio::test]
async fn a_peer_that_does_not_accept_is_left_within_a_moment_with_all_its_endpoints() {
    let mut near = Bench::start().await;
    let bad = near.add_remote("hello", "1", 2, Protocol::Http);
    let neighbour = near.add_remote("hello", "2", 2, Protocol::Http);
    near.links.lead(2, Way::Silent);
    let (address, _) = echo("good").await;
    let (_other, good) = join(&mut near, 3, address, Protocol::Http).await;
    prefer(&bad, &[&good, &neighbour]);
    let reply = Client::connect(near.address)
        .await
        .ask("POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert_eq!((reply.status, reply.header("marram-via")), (200, Some("n1->n3")), "{reply:?}");
    let outcome = near.outcomes.recv().await.unwrap();
    assert_eq!(outcome.kind, OutcomeKind::PeerFailed);
    assert!(bad.stats.is_ejected(outcome.at) && neighbour.stats.is_ejected(outcome.at));
}

#[tokio::test]
async fn a_peer_that_drains_sends_new_streams_elsewhere() {
    let mut near = Bench::start().await;
    let bad = near.add_remote("hello", "1", 2, Protocol::Http);
    near.links.lead(2, Way::Reset(ResetCode::Draining as u32));
    let reply = Client::connect(near.address).await.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(503), "no_healthy_instance");
    assert_eq!(reply.json()["candidates"][0]["reason"], "its node is draining");
    assert_eq!(bad.stats.own_inflight(), 0);
}

#[tokio::test]
async fn a_draining_proxy_refuses_streams_and_answers_probes() {
    let mut near = Bench::start().await;
    let (address, _) = echo("far").await;
    let (far, _) = join(&mut near, 2, address, Protocol::Http).await;
    assert_eq!(far.context.drain(Duration::ZERO).await, 0);
    let reply = Client::connect(near.address).await.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(503), "no_healthy_instance");
    assert_eq!(reply.json()["candidates"][0]["reason"], "its node is draining");
}

#[tokio::test]
async fn a_request_that_waits_for_a_dead_peer_is_sent_elsewhere_at_once() {
    let mut near = Bench::start().await;
    let (address, asked) = silent().await;
    let (_far, bad) = join(&mut near, 2, address, Protocol::Http).await;
    let (address, _) = echo("good").await;
    let (_other, good) = join(&mut near, 3, address, Protocol::Http).await;
    prefer(&bad, &[&good]);
    let mut client = Client::connect(near.address).await;
    client.send("GET / HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    near.context.peer_dead(node(2));
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("marram-via")), (200, Some("n1->n3")), "{reply:?}");
}

#[tokio::test]
async fn a_peer_that_stops_answering_is_noticed_while_a_request_waits_for_it() {
    let mut near = Bench::start().await;
    let (address, asked) = silent().await;
    let (_far, bad) = join(&mut near, 2, address, Protocol::Http).await;
    let (address, _) = echo("good").await;
    let (_other, good) = join(&mut near, 3, address, Protocol::Http).await;
    prefer(&bad, &[&good]);
    let mut client = Client::connect(near.address).await;
    client.send("GET / HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // From here on the peer is as good as switched off: streams stay open, nothing is answered.
    near.links.lead(2, Way::Silent);
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("marram-via")), (200, Some("n1->n3")), "{reply:?}");
    assert_eq!(near.outcomes.recv().await.unwrap().kind, OutcomeKind::PeerFailed);
}

#[tokio::test]
async fn a_peer_that_answers_probes_is_waited_for() {
    let config = ProxyConfig { request_timeout: Duration::from_millis(1500), ..ProxyConfig::default() };
    let mut near = Bench::with(config, 1).await;
    let (address, _) = silent().await;
    let (_far, endpoint) = join(&mut near, 2, address, Protocol::Http).await;
    let reply = Client::connect(near.address).await.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(504), "timeout");
    assert_eq!(endpoint.stats.totals().1, 0);
    assert!(near.links.opened.load(Ordering::SeqCst) > 2, "it was asked whether it still answers");
}

#[tokio::test]
async fn junk_heads_are_reset_and_disturb_nothing() {
    use crate::proxy::{ServiceLinks as _, Volume};
    use tokio::io::AsyncReadExt as _;
    let far = Bench::with(ProxyConfig::default(), 2).await;
    let near = Bench::start().await;
    near.links.lead_to(2, &far);
    for head in [&b""[..], b"\x02", b"\x01\x00", &[0xFF; 4096]] {
        let mut stream =
            near.links.open_service(0, node(2), bytes::Bytes::copy_from_slice(head), Volume::Small).await.unwrap();
        let error = stream.read_u8().await.unwrap_err();
        let reset = transport::StreamReset::of(&error).unwrap();
        assert_eq!(ResetCode::from_wire(reset.code), Some(ResetCode::BadHead));
    }
}

#[tokio::test]
async fn notes_of_a_peer_of_another_version_do_not_reach_an_instance() {
    use super::super::attempt::stream_head;
    use crate::proxy::{Content, ServiceLinks as _, Volume};
    use tokio::io::AsyncReadExt as _;
    let mut near = Bench::start().await;
    let (address, _) = echo("far").await;
    let (_far, endpoint) = join(&mut near, 2, address, Protocol::Http).await;
    let head = stream_head(&near.context, &endpoint, Content::Http, 1).encode().unwrap();
    let mut stream = near.links.open_service(0, node(2), head, Volume::Small).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), super::super::head::ACCEPTED);
    let request = "GET / HTTP/1.1\r\nhost: hello.mesh\r\nmarram-hops: 1\r\nmarram-deadline-ms: 5000\r\n\
                   marram-source: spiffe://it/node/a\r\nmarram-new: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, seen) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && seen.to_lowercase().contains("host: hello.mesh"), "{answer}");
    assert!(!seen.to_lowercase().contains("marram-"), "{seen}");
}

#[tokio::test]
async fn more_requests_than_streams_wait_here_and_all_are_served() {
    let mut near = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let (_far, endpoint) = join(&mut near, 2, address, Protocol::Http).await;
    let proxy = near.address;
    let asked: Vec<_> = (0..300)
        .map(|number| {
            let method = if number % 2 == 0 { "GET" } else { "POST" };
            let request = format!("{method} / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 0\r\n\r\n");
            tokio::spawn(async move { Client::connect(proxy).await.ask(request).await.status })
        })
        .collect();
    for reply in asked {
        assert_eq!(reply.await.unwrap(), 200);
    }
    assert_eq!(endpoint.stats.totals(), (300, 0));
    assert!(near.links.opened.load(Ordering::SeqCst) < 300, "streams are kept while others wait for one");
}
