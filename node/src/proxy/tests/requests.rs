//! Requests that are served, by an instance of the same node.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::bench::{Bench, echo, instance, read_body, read_head};
use super::client::Client;
use crate::config::{Protocol, ProxyConfig};

async fn hello() -> (Bench, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let mut bench = Bench::start().await;
    let (address, connections) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    (bench, connections)
}

#[tokio::test]
async fn requests_on_one_connection_use_one_connection_to_the_instance() {
    let (bench, connections) = hello().await;
    let mut client = Client::connect(bench.address).await;
    for path in ["/", "/one?x=1", "/two"] {
        let reply = client.get("hello.mesh", path).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("marram-via"), Some("n1->n1"));
        assert!(reply.text().starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{}", reply.text());
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    assert_eq!(bench.context.in_flight(), 0);
}

#[tokio::test]
async fn every_spelling_of_the_host_reaches_the_service() {
    let (bench, _) = hello().await;
    let mut client = Client::connect(bench.address).await;
    for host in ["hello.mesh", "HELLO.Mesh", "hello.mesh:7080", "hello.mesh.", "hello.mesh.localhost:7080"] {
        let reply = client.get(host, "/").await;
        assert_eq!(reply.status, 200, "{host}");
        assert!(reply.text().to_lowercase().contains(&format!("host: {}\r\n", host.to_lowercase())), "{host}");
    }
}

#[tokio::test]
async fn an_absolute_target_is_taken_with_the_same_host_beside_it_only() {
    let (bench, _) = hello().await;
    let mut client = Client::connect(bench.address).await;
    for host in ["hello.mesh:80", "Hello.mesh", "hello.mesh."] {
        let reply = client.ask(format!("GET http://hello.mesh:80/p?q HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let text = reply.text();
        assert!(text.starts_with("GET /p?q HTTP/1.1\r\n") && text.contains("host: hello.mesh:80\r\n"), "{text}");
    }
    let reply = client.ask("GET http://hello.mesh/ HTTP/1.1\r\nHost: other.mesh\r\n\r\n").await;
    assert_eq!(reply.problem(400), "bad_request");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn headers_of_one_connection_and_of_the_mesh_do_not_cross() {
    let (bench, _) = hello().await;
    let mut client = Client::connect(bench.address).await;
    let reply = client
        .ask(
            "GET / HTTP/1.1\r\nHost: hello.mesh\r\nConnection: keep-alive, x-secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
             Proxy-Connection: x\r\nProxy-Authorization: x\r\nTE: gzip\r\nmarram-hops: 3\r\nMarram-Source: me\r\n\
             X-Stays: yes\r\n\r\n",
        )
        .await;
    let text = reply.text().to_lowercase();
    for gone in ["x-secret", "keep-alive", "proxy-", "\nte:", "marram-", "connection:"] {
        assert!(!text.contains(gone), "{gone} crossed: {text}");
    }
    assert!(text.contains("x-stays: yes\r\n") && text.contains("via: 1.1 hello.mesh\r\n"), "{text}");
    assert_eq!(reply.header("marram-forged"), None, "an instance spoke for the mesh");
}

#[tokio::test]
async fn the_decision_is_explained_when_asked_for() {
    let (mut bench, _) = hello().await;
    bench.add_remote("hello", "far", 9, Protocol::Http).stats.report_inflight(1_000_000, Duration::ZERO);
    let mut client = Client::connect(bench.address).await;
    let reply = client.ask("GET / HTTP/1.1\r\nHost: hello.mesh\r\nmarram-explain: 1\r\n\r\n").await;
    let decision: serde_json::Value = serde_json::from_str(reply.header("marram-decision").unwrap()).unwrap();
    assert_eq!(decision["service"], "hello");
    let candidates = decision["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 2);
    assert_eq!((&candidates[0]["chosen"], &candidates[0]["C"]), (&true.into(), &10.0.into()));
    assert!(candidates[0]["P"].as_f64().unwrap() > 0.9, "{decision}");
    assert_eq!(client.get("hello.mesh", "/").await.header("marram-decision"), None);
}

#[tokio::test]
async fn bodies_cross_with_a_length_and_in_chunks() {
    let (bench, _) = hello().await;
    let mut client = Client::connect(bench.address).await;
    let reply = client.ask("POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(reply.text().contains("content-length: 5\r\n") && reply.text().contains("body: 5\n"), "{}", reply.text());
    let reply = client
        .ask("POST / HTTP/1.1\r\nHost: hello.mesh\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n")
        .await;
    assert!(reply.text().contains("transfer-encoding: chunked\r\n") && reply.text().contains("body: 6\n"));
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (bench, _) = hello().await;
    let mut client = Client::connect(bench.address).await;
    client
        .send(
            "\r\nGET /1 HTTP/1.1\r\nHost: hello.mesh\r\n\r\nPOST /2 HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 2\r\n\r\n\
             okPOST /3 HTTP/1.1\r\nHost: hello.mesh\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /4 HTTP/1.1\r\n\
             Host: hello.mesh\r\n\r\n",
        )
        .await;
    for number in 1..=4 {
        let text = client.reply().await.text();
        assert!(text.split(' ').nth(1) == Some(&format!("/{number}")), "{number}: {text}");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_permission_gets_it() {
    let (bench, _) = hello().await;
    let mut client = Client::connect(bench.address).await;
    client.send("PUT / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.status, 100);
    let reply = client.ask("ok").await;
    assert!(reply.text().contains("body: 2\n") && !reply.text().contains("expect"), "{}", reply.text());
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let mut bench = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await.unwrap();
        }
    })
    .await;
    bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
        let reply = client.head().await;
        assert_eq!((reply.status, reply.header("content-length")), (200, Some("1234")));
    }
}

#[tokio::test]
async fn chunked_answers_and_their_trailers_cross() {
    let mut bench = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                          5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    let reply = client.ask("GET / HTTP/1.1\r\nHost: hello.mesh\r\nTE: trailers\r\nConnection: te\r\n\r\n").await;
    assert_eq!(reply.text(), "hello");
    assert_eq!(reply.trailers.to_lowercase(), "x-sum: 42\r\n");
}

#[tokio::test]
async fn a_large_body_streams_while_the_client_still_sends_it() {
    const BYTES: usize = 64 * 1024 * 1024;
    let mut bench = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap();
        // Answers before it reads: the head of the answer arrives only if nobody waits for the whole body.
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let length = read_body(&mut stream, &head).await;
        let text = length.to_string();
        stream.write_all(format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len()).as_bytes()).await.unwrap();
    })
    .await;
    bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: {BYTES}\r\n\r\n")).await;
    client.send(vec![b'x'; 1024]).await;
    assert_eq!(client.head().await.status, 200);
    let piece = vec![b'x'; 1024 * 1024];
    let mut left = BYTES - 1024;
    while left > 0 {
        let part = left.min(piece.len());
        client.send(&piece[..part]).await;
        left -= part;
    }
    let told = client.read_exact(format!("8\r\n{BYTES}\r\n0\r\n\r\n").len()).await;
    assert_eq!(String::from_utf8(told).unwrap(), format!("8\r\n{BYTES}\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_stops_sending_still_gets_its_answer() {
    let (bench, _) = hello().await;
    let mut client = Client::connect(bench.address).await;
    client.send("GET / HTTP/1.0\r\nHost: hello.mesh\r\n\r\n").await;
    client.half_close().await;
    assert_eq!(client.reply().await.status, 200);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn requests_in_flight_finish_while_the_proxy_drains() {
    let mut bench = Bench::start().await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let (address, _) = instance(move |mut stream, _| {
        let mut wait = wait.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                wait.wait_for(|go| *go).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    client.send("GET / HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    while endpoint.stats.own_inflight() == 0 {
        tokio::task::yield_now().await;
    }
    let context = std::sync::Arc::clone(&bench.context);
    let drained = tokio::spawn(async move { context.drain(super::bench::PATIENCE).await });
    while !bench.context.is_draining() {
        tokio::task::yield_now().await;
    }
    go.send(true).unwrap();
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert!(client.is_closed().await);
    assert_eq!(drained.await.unwrap(), 0);
}

#[tokio::test]
async fn a_cut_answer_is_not_taken_for_a_whole_one() {
    let mut bench = Bench::start().await;
    let (address, _) = instance(|mut stream, _| async move {
        let _request = read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
    })
    .await;
    bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    client.send("GET / HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    let rest = String::from_utf8(client.rest().await).unwrap();
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn the_time_for_an_answer_counts_from_the_end_of_the_body() {
    let config = ProxyConfig { request_timeout: Duration::from_secs(1), ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, _) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    client.send("POST / HTTP/1.1\r\nHost: hello.mesh\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..4 {
        client.send("1\r\nx\r\n").await;
        let early = tokio::time::timeout(Duration::from_millis(300), client.head()).await;
        assert!(early.is_err(), "answered in the middle of the body: {early:?}");
    }
    let reply = client.ask("0\r\n\r\n").await;
    assert!(reply.status == 200 && reply.text().contains("body: 4\n"), "{reply:?}");
}
