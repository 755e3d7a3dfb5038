//! gRPC: streams both ways, trailers, deadlines, and what its clients are told of failures.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::http::request;
use hyper::{HeaderMap, Request};

use super::bench::{Bench, PATIENCE, echo, nobody, node, prefer, until};
use super::client::Client;
use super::streams::{Seen, Streams, Whole, http2_instance, piece, whole};
use crate::config::{Protocol, ProxyConfig};
use crate::snapshot::Endpoint;

/// Node 1 with `hello` behind an HTTP/2 instance, on itself or on a second node.
async fn near(is_far: bool) -> (Bench, Bench, Arc<Seen>, Arc<Endpoint>) {
    let mut near = Bench::start().await;
    let mut far = Bench::with(ProxyConfig::default(), 2).await;
    let (address, seen) = http2_instance().await;
    let endpoint = if is_far {
        far.add_local("hello", address, Protocol::Http2);
        near.links.lead_to(2, &far);
        near.add_remote("hello", &address.port().to_string(), 2, Protocol::Http2)
    } else {
        near.add_local("hello", address, Protocol::Http2)
    };
    (near, far, seen, endpoint)
}

fn call(path: &str) -> request::Builder {
    Request::post(format!("http://hello.mesh{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
}

/// The answer is trailers only, as a client of gRPC wants to hear of failures.
fn assert_failed(answer: &Whole, status: &str) {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc")), "{answer:?}");
    assert_eq!(answer.header("grpc-status"), Some(status), "{answer:?}");
    assert!(
        answer.header("grpc-message").is_some() && answer.body.is_empty() && answer.trailers.is_empty(),
        "{answer:?}"
    );
}

#[tokio::test]
async fn messages_cross_both_ways_at_once_and_the_status_at_the_end() {
    for is_far in [false, true] {
        let (near, far, _, endpoint) = near(is_far).await;
        let mut client = Streams::connect(near.address).await;
        let (response, mut stream) = client.begin(call("/echo").body(()).unwrap()).await;
        let mut response = response.await.unwrap();
        assert_eq!(response.headers()["marram-via"], if is_far { "n1->n2" } else { "n1->n1" });
        assert!(
            !response.headers().contains_key("marram-forged") && !response.headers().contains_key("marram-inflight")
        );
        for number in 0..100 {
            let message = format!("message {number}");
            stream.send_data(message.clone().into(), false).unwrap();
            let got = piece(response.body_mut()).await.unwrap().unwrap();
            assert_eq!(got, message, "it came back before the next was sent");
        }
        assert_eq!((near.context.in_flight(), far.context.in_flight()), (1, usize::from(is_far)));
        stream.send_data("".into(), true).unwrap();
        let rest = whole(response).await.unwrap();
        assert_eq!((rest.body.as_str(), rest.trailer("grpc-status")), ("", Some("0")), "{rest:?}");
        assert_eq!((near.context.drain(PATIENCE).await, far.context.drain(PATIENCE).await), (0, 0));
        assert_eq!((endpoint.stats.totals(), endpoint.stats.own_inflight()), ((1, 0), 0));
    }
}

#[tokio::test]
async fn a_call_arrives_as_it_was_sent_with_what_is_left_of_its_time() {
    for is_far in [false, true] {
        let (near, _far, _, _) = near(is_far).await;
        let client = Streams::connect(near.address).await;
        let request = call("/head").header("grpc-timeout", "10S").header("marram-source", "me").body(()).unwrap();
        let answer = client.ask(request, "hello").await.unwrap();
        assert_eq!((answer.status, answer.trailer("grpc-status")), (200, Some("0")), "{answer:?}");
        assert!(answer.body.starts_with("POST http://hello.mesh/head\n"), "{answer:?}");
        for wanted in ["te: trailers\n", "content-type: application/grpc+proto\n", "via: 2 hello.mesh\n", "body: 5\n"] {
            assert!(answer.body.contains(wanted), "{wanted:?} is missing: {answer:?}");
        }
        assert!(!answer.body.contains("marram-"), "{answer:?}");
        let left = answer.body.lines().find_map(|line| line.strip_prefix("grpc-timeout: ")).unwrap();
        let left: u64 = left.strip_suffix('u').unwrap().parse().unwrap();
        assert!((5_000_000..10_000_000).contains(&left), "{left} us of 10 s");
    }
}

#[tokio::test]
async fn trailers_that_nobody_announced_cross_both_ways_to_whom_they_are_meant_for() {
    for is_far in [false, true] {
        let (near, _far, _, _) = near(is_far).await;
        let mut client = Streams::connect(near.address).await;
        let (response, mut stream) = client.begin(call("/head").body(()).unwrap()).await;
        stream.send_data("hello".into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "42".parse().unwrap());
        trailers.insert("marram-source", "me".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
        let answer = whole(response.await.unwrap()).await.unwrap();
        assert!(answer.body.contains("trailer x-sum: 42\n") && !answer.body.contains("marram-"), "{answer:?}");
        assert_eq!(answer.trailer("grpc-status"), Some("0"), "{answer:?}");
        // One of HTTP/1.1 gets no trailer that it was not told of.
        let mut client = Client::connect(near.address).await;
        let get = "GET /head HTTP/1.1\r\nHost: hello.mesh\r\nTE: trailers\r\nConnection: te\r\n\r\n";
        let reply = client.ask(get).await;
        assert_eq!((reply.status, reply.trailers.as_str()), (200, ""));
    }
}

#[tokio::test]
async fn a_message_that_says_how_long_it_is_keeps_that_and_its_trailers() {
    for is_far in [false, true] {
        let (near, _far, _, _) = near(is_far).await;
        let mut streams = Streams::connect(near.address).await;
        let answer = streams.ask(call("/sized").body(()).unwrap(), "").await.unwrap();
        assert_eq!((answer.header("content-length"), answer.body.as_str()), (Some("4"), "four"), "{answer:?}");
        assert_eq!(answer.trailer("grpc-status"), Some("0"), "{answer:?}");
        let mut client = Client::connect(near.address).await;
        let reply = client.get("hello.mesh", "/sized").await;
        assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("4"), "four"));
        // One that is read before it is sent, and one that is not.
        for length in [5, 100_000] {
            let request = call("/head").header("content-length", length).body(()).unwrap();
            let (response, mut stream) = streams.begin(request).await;
            stream.send_data(vec![b'x'; length].into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "42".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
            let answer = whole(response.await.unwrap()).await.unwrap();
            for wanted in [format!("content-length: {length}\n"), format!("trailer x-sum: 42\nbody: {length}\n")] {
                assert!(answer.body.contains(&wanted), "{wanted:?} is missing: {answer:?}");
            }
            assert!(!answer.body.contains("marram-"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_call_takes_a_kept_stream_however_long_it_was_silent() {
    let (near, _far, _, _) = near(true).await;
    let client = Streams::connect(near.address).await;
    for _ in 0..3 {
        let answer = client.ask(call("/head").body(()).unwrap(), "hello").await.unwrap();
        assert_eq!(answer.trailer("grpc-status"), Some("0"), "{answer:?}");
        near.clock.skip(Duration::from_secs(30));
    }
    assert_eq!(near.links.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_call_that_was_answered_while_it_went_on_leaves_its_stream_for_the_next() {
    let (near, _far, _, _) = near(true).await;
    let mut client = Streams::connect(near.address).await;
    for round in 0..3 {
        let (response, mut stream) = client.begin(call("/echo").body(()).unwrap()).await;
        let mut response = response.await.unwrap();
        stream.send_data("hello".into(), false).unwrap();
        assert_eq!(piece(response.body_mut()).await.unwrap().unwrap(), "hello");
        stream.send_data("".into(), true).unwrap();
        assert_eq!(whole(response).await.unwrap().trailer("grpc-status"), Some("0"));
        until("the stream is kept", || near.context.pool(0).len() == 1).await;
        assert_eq!(near.links.opened.load(Ordering::SeqCst), 1, "round {round}");
    }
}

#[tokio::test]
async fn a_call_ends_with_its_time_before_an_answer_and_in_the_middle_of_one() {
    for is_far in [false, true] {
        let (near, _far, seen, _) = near(is_far).await;
        let client = Streams::connect(near.address).await;
        let hanging = call("/hang").header("grpc-timeout", "1S").body(()).unwrap();
        assert_failed(&client.ask(hanging, "hello").await.unwrap(), "4");
        let dripping = call("/drip").header("grpc-timeout", "1S").body(()).unwrap();
        let answer = client.ask(dripping, "hello").await.unwrap();
        assert_eq!((answer.body.as_str(), answer.trailer("grpc-status")), ("drip", Some("4")), "{answer:?}");
        while seen.resets.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        // A call that never stops sending is bounded too.
        let mut client = client;
        let (response, _stream) = client.begin(call("/hang").header("grpc-timeout", "200m").body(()).unwrap()).await;
        let answer = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
        until("the instance hears of it", || seen.resets.load(Ordering::SeqCst) == 3).await;
    }
}

#[tokio::test]
async fn failures_of_the_proxy_are_told_as_trailers_only() {
    let mut bench = Bench::start().await;
    bench.add_local("hello", nobody(), Protocol::Http2);
    bench.add_local("old", echo("a").await.0, Protocol::Http);
    let client = Streams::connect(bench.address).await;
    let ask = async |authority: &str, status: &str| {
        let request = Request::post(format!("http://{authority}/x")).header("content-type", "application/grpc");
        assert_failed(&client.ask(request.body(()).unwrap(), "hello").await.unwrap(), status);
    };
    ask("hello.mesh", "14").await;
    ask("nothing.mesh", "14").await;
    ask("example.com", "12").await;
    // The same to a client that speaks no gRPC.
    assert_eq!(client.get("nothing.mesh", "/").await.unwrap().status, 503);
}

#[tokio::test]
async fn an_instance_that_breaks_off_is_told_as_unavailable() {
    for is_far in [false, true] {
        let (near, _far, _, _) = near(is_far).await;
        let client = Streams::connect(near.address).await;
        for path in ["/break", "/break/cancel", "/break/silent"] {
            let answer = client.ask(call(path).body(()).unwrap(), "hello").await.unwrap();
            assert_eq!((answer.status, answer.trailer("grpc-status")), (200, Some("14")), "{path}: {answer:?}");
            // Whoever speaks no gRPC sees a cut answer, and not a whole one.
            let cut = client.get("hello.mesh", path).await;
            assert!(cut.is_err(), "{path}: {cut:?}");
        }
    }
}

#[tokio::test]
async fn a_call_that_the_client_takes_back_ends_at_the_instance_and_is_nobodys_fault() {
    for is_far in [false, true] {
        let (mut near, far, seen, endpoint) = near(is_far).await;
        let mut client = Streams::connect(near.address).await;
        for path in ["/hang", "/drip", "/echo"] {
            let (response, mut stream) = client.begin(call(path).body(()).unwrap()).await;
            if path == "/hang" {
                while near.context.in_flight() == 0 {
                    tokio::task::yield_now().await;
                }
            } else {
                response.await.unwrap();
            }
            stream.send_reset(h2::Reason::CANCEL);
            let gone = async {
                while (near.context.in_flight(), far.context.in_flight()) != (0, 0) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("{path} goes on"));
        }
        assert_eq!(seen.connections.load(Ordering::SeqCst), 1, "the connection outlives its streams");
        assert_eq!(endpoint.stats.totals().1, 0);
        assert!(near.outcomes.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_call_that_is_taken_back_ends_though_its_instance_reads_no_more_of_it() {
    for is_far in [false, true] {
        let (near, far, seen, _) = near(is_far).await;
        let mut client = Streams::connect(near.address).await;
        let (response, mut stream) = client.begin(call("/drip").body(()).unwrap()).await;
        response.await.unwrap();
        // More than its window takes, so that some of it waits at every node.
        stream.send_data(vec![b'x'; 200_000].into(), false).unwrap();
        until("all that can be is taken", || stream.capacity() == 0).await;
        stream.send_reset(h2::Reason::CANCEL);
        until("it is over at both nodes", || (near.context.in_flight(), far.context.in_flight()) == (0, 0)).await;
        until("the instance hears of it", || seen.resets.load(Ordering::SeqCst) == 1).await;
    }
}

#[tokio::test]
async fn as_many_fields_as_a_client_may_send_cross_two_nodes() {
    let (mut near, _far, _, _) = near(true).await;
    let client = Streams::connect(near.address).await;
    // With `content-type`, `te` and the host that the first node adds.
    for (more, status) in [(98, 200), (99, 431)] {
        let mut request = call("/head");
        for number in 0..more {
            request = request.header(format!("x-{number}"), "1");
        }
        let answer = client.ask(request.body(()).unwrap(), "hello").await.unwrap();
        let told = answer.trailer("grpc-status").or(answer.header("grpc-status"));
        assert_eq!(told == Some("0"), status == 200, "{more}: {answer:?}");
    }
    assert!(near.outcomes.try_recv().is_err(), "nobody is left out for it");
}

#[tokio::test]
async fn calls_through_a_peer_that_is_given_up_end_at_once() {
    let (near, _far, seen, _) = near(true).await;
    let mut client = Streams::connect(near.address).await;
    let (open, _sending) = client.begin(call("/drip").body(()).unwrap()).await;
    let open = open.await.unwrap();
    let (hanging, _sending) = client.begin(call("/hang").body(()).unwrap()).await;
    // One of which the peer has nothing yet would be sent once more.
    while seen.requests.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    near.context.peer_dead(node(2));
    let ended = tokio::time::timeout(PATIENCE, whole(open)).await.unwrap().unwrap();
    assert_eq!((ended.body.as_str(), ended.trailer("grpc-status")), ("drip", Some("14")), "{ended:?}");
    let ended = tokio::time::timeout(PATIENCE, hanging).await.unwrap().unwrap();
    assert_eq!(ended.headers()["grpc-status"], "14", "{ended:?}");
}

#[tokio::test]
async fn a_small_call_that_its_instance_refuses_goes_elsewhere_and_is_measured() {
    let mut bench = Bench::start().await;
    let (address, seen) = http2_instance().await;
    let bad = bench.add_local("hello", address, Protocol::Http2);
    let (address, _) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    prefer(&bad, &[&good]);
    let client = Streams::connect(bench.address).await;
    // No content-length: that all of the body is there is seen only by looking.
    let answer = client.ask(call("/refuse").body(()).unwrap(), "hello").await.unwrap();
    assert!(answer.body.contains("name: good\nbody: 5\n"), "{answer:?}");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1);
    assert!(good.stats.latency_ms(Duration::ZERO).is_some(), "what it took is learned");
}

#[tokio::test]
async fn many_calls_at_once_share_few_connections_to_the_instance_and_have_streams_of_their_own_to_a_peer() {
    for is_far in [false, true] {
        let (near, _far, seen, endpoint) = near(is_far).await;
        let mut calls = Vec::new();
        let all = Arc::new(tokio::sync::Barrier::new(400));
        for _ in 0..4 {
            let client = Arc::new(Streams::connect(near.address).await);
            for _ in 0..100 {
                let (client, all) = (Arc::clone(&client), Arc::clone(&all));
                calls.push(tokio::spawn(async move {
                    let mut client = Streams::of(&client);
                    let (response, mut stream) = client.begin(call("/echo").body(()).unwrap()).await;
                    let response = response.await.unwrap();
                    assert!(!response.headers().contains_key("grpc-status"), "{response:?}");
                    // All are open at once before the first one ends.
                    all.wait().await;
                    stream.send_data("hello".into(), true).unwrap();
                    let answer = whole(response).await.unwrap();
                    assert_eq!((answer.body.as_str(), answer.trailer("grpc-status")), ("hello", Some("0")));
                }));
            }
        }
        for call in calls {
            tokio::time::timeout(PATIENCE, call).await.unwrap().unwrap();
        }
        assert_eq!(endpoint.stats.totals(), (400, 0));
        let connections = seen.connections.load(Ordering::SeqCst);
        assert!(connections <= 8, "{connections} connections to the instance");
        if is_far {
            let opened = near.links.opened.load(Ordering::SeqCst);
            assert_eq!(opened, 400, "streams to the peer");
        }
    }
}
