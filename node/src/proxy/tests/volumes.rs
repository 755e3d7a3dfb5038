//! Which streams are opened as those that carry much.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use transport::Retirement;

use super::bench::{Bench, PATIENCE, Way, echo, instance, node, read_head, until};
use super::client::Client;
use super::mesh::join;
use super::streams::{Streams, http2_instance, whole};
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
async fn a_kept_stream_is_used_until_its_link_is_left_and_closed_behind_the_request_that_is_on_it() {
    let go_on = Arc::new(Notify::new());
    let answering = Arc::clone(&go_on);
    let (address, _) = instance(move |mut stream, _| {
        let go_on = Arc::clone(&answering);
        async move {
            while let Some(head) = read_head(&mut stream).await {
                if head.starts_with("GET /wait") {
                    go_on.notified().await;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let (near, far, _) = facing(address, Protocol::Http).await;
    let opened = || near.links.volumes.lock().unwrap().len();
    let mut client = Client::connect(near.address).await;
    for _ in 0..2 {
        assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    }
    assert_eq!(opened(), 1, "kept");
    near.links.leave();
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    assert_eq!(opened(), 2, "a silent one on a link that was left is not taken");
    client.send("GET /wait HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    until("it is under way", || far.context.in_flight() == 1).await;
    near.links.leave();
    go_on.notify_one();
    assert_eq!(client.reply().await.status, 200, "what is under way ends where it is");
    assert_eq!(near.context.pool(0).len(), 0, "it is not kept");
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    assert_eq!(opened(), 3);
}

#[tokio::test]
async fn a_call_on_a_link_that_was_left_goes_to_its_end_and_others_take_another() {
    let (address, _seen) = http2_instance().await;
    let (near, _far, _) = facing(address, Protocol::Http2).await;
    let opened = || near.links.volumes.lock().unwrap().len();
    let client = Streams::connect(near.address).await;
    for _ in 0..2 {
        assert_eq!(client.get("hello.mesh", "/head").await.unwrap().status, 200);
    }
    assert_eq!(opened(), 1, "kept");
    near.links.leave();
    let post = Request::post("http://hello.mesh/echo").body(()).unwrap();
    let (response, mut body) = Streams::of(&client).begin(post).await;
    let response = response.await.unwrap();
    assert_eq!(opened(), 2, "a silent one on a link that was left is not taken");
    near.links.leave();
    assert_eq!(client.get("hello.mesh", "/head").await.unwrap().status, 200);
    assert_eq!((opened(), near.context.pool(0).len()), (3, 1));
    body.send_data("to its end".into(), true).unwrap();
    assert_eq!(whole(response).await.unwrap().body, "to its end");
}

#[tokio::test]
async fn a_stream_for_much_that_found_no_way_of_its_own_is_kept_among_the_others() {
    let (near, _far, _) = facing(sized().await, Protocol::Http).await;
    let opened = || near.links.volumes.lock().unwrap().clone();
    let (mut client, mut other) = (Client::connect(near.address).await, Client::connect(near.address).await);
    ask(&mut client, 1_000_000).await;
    near.context.pool(0).forget_node(node(2));
    near.links.large_falls_back.store(true, Ordering::SeqCst);
    ask(&mut client, 1_000_000).await;
    near.links.large_falls_back.store(false, Ordering::SeqCst);
    ask(&mut client, 1_000_000).await;
    assert_eq!(opened(), [Volume::Small, Volume::Large, Volume::Large]);
    near.links.has_small_only.store(true, Ordering::SeqCst);
    ask(&mut other, 1_000_000).await;
    assert_eq!(opened().len(), 3, "it serves what has no other way");
}

/// Answers `/hang` from the second time on, which it counts, `/wait` when told to, and all else at once, at length.
pub(super) async fn hanging(go_on: &Arc<Notify>) -> (SocketAddr, Arc<AtomicUsize>) {
    let (go_on, hung) = (Arc::clone(go_on), Arc::new(AtomicUsize::new(0)));
    let asked = Arc::clone(&hung);
    let (address, _) = instance(move |mut stream, _| {
        let (go_on, asked) = (Arc::clone(&go_on), Arc::clone(&asked));
        async move {
            while let Some(head) = read_head(&mut stream).await {
                if head.starts_with("GET /hang") && asked.fetch_add(1, Ordering::SeqCst) == 0 {
                    std::future::pending::<()>().await;
                }
                if head.starts_with("GET /wait") {
                    go_on.notified().await;
                }
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n{}", "y".repeat(400_000));
                stream.write_all(answer.as_bytes()).await.ok();
            }
        }
    })
    .await;
    (address, hung)
}

#[tokio::test]
async fn a_way_of_its_own_that_stops_answering_is_given_up_while_a_large_request_waits_and_the_peer_is_not() {
    let go_on = Arc::new(Notify::new());
    let (address, hung) = hanging(&go_on).await;
    let (mut near, far, endpoint) = facing(address, Protocol::Http).await;
    let mut small = Client::connect(near.address).await;
    small.send("GET /wait HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    until("it is under way", || far.context.in_flight() == 1).await;
    let mut large = Client::connect(near.address).await;
    large.get("hello.mesh", "/").await;
    assert_eq!(Volume::of(&endpoint.stats), Volume::Large);
    near.links.lead_large(near.links.way(2));
    large.send("GET /hang HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    until("it is under way", || hung.load(Ordering::SeqCst) == 1).await;
    assert_eq!(near.links.volumes.lock().unwrap().last(), Some(&Volume::Large));
    // From here on nothing passes there.
    near.links.lead_large(Way::Silent);
    let reply = tokio::time::timeout(PATIENCE, large.reply()).await.expect("it does not wait for ever");
    assert_eq!((reply.status, hung.load(Ordering::SeqCst)), (200, 2), "sent once more, over the way of the others");
    assert_eq!(near.links.large_given_up.load(Ordering::SeqCst), 1);
    assert!(near.links.doubted.lock().unwrap().is_empty(), "one probe in vain is no reason to leave it");
    go_on.notify_one();
    assert_eq!(small.reply().await.status, 200, "what waits elsewhere goes on");
    assert_eq!(
        (endpoint.stats.totals().1, near.outcomes.try_recv().is_err()),
        (0, true),
        "the endpoint is not to blame"
    );
}

#[tokio::test]
async fn probes_that_one_link_failed_say_nothing_of_the_next() {
    let bench = Bench::start().await;
    let (first, second) = (Retirement::default(), Retirement::default());
    let fails = |link: Option<&Retirement>| bench.context.probe_turn(0, node(2), link).unwrap().finish(false);
    assert_eq!((fails(Some(&first)), fails(None), fails(Some(&first))), (1, 1, 2));
    assert_eq!((fails(Some(&second)), fails(Some(&second)), fails(None)), (1, 2, 2));
}

#[tokio::test]
async fn a_request_whose_way_for_much_is_dead_goes_to_another_node_and_not_to_the_same_over_the_data_link() {
    let (mut near, _dead, bad) = facing(sized().await, Protocol::Http).await;
    ask(&mut Client::connect(near.address).await, 1_000_000).await;
    assert_eq!(Volume::of(&bad.stats), Volume::Large);
    let (_far, good) = join(&mut near, 3, sized().await, Protocol::Http).await;
    near.links.lead(2, Way::Silent);
    near.links.lead_large(Way::Silent);
    near.context.pool(0).forget_node(node(2));
    for _ in 0..3 {
        bad.stats.readmit();
        good.stats.report_inflight(u32::MAX, near.context.clock.now());
        bad.stats.report_inflight(0, near.context.clock.now());
        ask(&mut Client::connect(near.address).await, 1000).await;
    }
    assert_eq!((bad.stats.totals().1, good.stats.totals().0), (0, 3), "and that node is not to blame");
}

#[tokio::test]
async fn mirrored_requests_say_nothing_of_how_long_answers_are() {
    let (address, _) = hanging(&Arc::default()).await;
    let (mut near, _far, endpoint) = facing(address, Protocol::Http).await;
    near.add_local("front", echo("front").await.0, Protocol::Http);
    near.apply(
        "apiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: { name: front }\n\
         spec: { hostnames: [front.mesh], rules: [{ backendRefs: [{ name: front }], filters: \
         [{ type: RequestMirror, requestMirror: { backendRef: { name: hello } } }] }] }\n",
    );
    let mut client = Client::connect(near.address).await;
    client.get("hello.mesh", "/").await;
    let (mean, asked) = (endpoint.stats.bytes_mean(), endpoint.stats.totals().0);
    assert!(mean > 0);
    for number in 1..=10 {
        assert_eq!(client.get("front.mesh", "/").await.status, 200);
        until("the copy has ended", || endpoint.stats.totals().0 == asked + number && near.context.in_flight() == 0)
            .await;
    }
    assert_eq!(endpoint.stats.bytes_mean(), mean);
}
