//! HTTP/2 in clear from an application.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::http2::STREAMS_MAX;
use super::super::upstream::Lease;
use super::bench::{Bench, PATIENCE, echo, instance, node, read_head};
use super::client::Client;
use super::streams::{Streams, http2_instance, whole};
use crate::config::{Protocol, ProxyConfig};

#[tokio::test]
async fn every_stream_is_routed_by_its_own_authority() {
    let mut bench = Bench::start().await;
    for name in ["one", "two"] {
        bench.add_local(name, echo(name).await.0, Protocol::Http);
    }
    let client = Arc::new(Streams::connect(bench.address).await);
    let asked: Vec<_> = (0..40)
        .map(|number| {
            let (client, name) = (Arc::clone(&client), if number % 2 == 0 { "one" } else { "two" });
            tokio::spawn(async move { (name, client.get(&format!("{name}.mesh:80"), "/p?q").await.unwrap()) })
        })
        .collect();
    for asked in asked {
        let (name, answer) = asked.await.unwrap();
        assert_eq!((answer.status, answer.header("marram-via")), (200, Some("n1->n1")), "{answer:?}");
        assert!(answer.body.contains(&format!("name: {name}\n")), "{answer:?}");
        assert!(answer.body.starts_with("GET /p?q HTTP/1.1\r\n"), "{answer:?}");
        assert!(answer.body.contains(&format!("host: {name}.mesh:80\r\n")), "{answer:?}");
    }
    assert_eq!(bench.context.in_flight(), 0);
}

#[tokio::test]
async fn a_request_over_http2_reaches_an_instance_of_http1_as_its_own_kind() {
    let mut bench = Bench::start().await;
    bench.add_local("hello", echo("a").await.0, Protocol::Http);
    let client = Streams::connect(bench.address).await;
    let request = Request::post("http://hello.mesh/")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("marram-hops", "3")
        .header("proxy-authorization", "secret")
        .header("x-stays", "yes")
        .body(())
        .unwrap();
    let answer = client.ask(request, "hello").await.unwrap();
    let text = answer.body.to_lowercase();
    for wanted in ["cookie: a=1; b=2\r\n", "te: trailers\r\n", "x-stays: yes\r\n", "via: 2 hello.mesh\r\n", "body: 5\n"]
    {
        assert!(text.contains(wanted), "{wanted:?} is missing: {text}");
    }
    assert!(!text.contains("marram-") && !text.contains("secret"), "{text}");
    assert_eq!((answer.header("marram-forged"), answer.header("connection")), (None, None));
}

#[tokio::test]
async fn refusals_are_told_as_over_http1() {
    let mut bench = Bench::start().await;
    // The instance of the service is the proxy itself.
    bench.add_local("loop", bench.address, Protocol::Http2);
    let client = Streams::connect(bench.address).await;
    for (authority, status, code) in [
        ("nothing.mesh", 503, "unknown_service"),
        ("example.com", 421, "not_of_the_mesh"),
        ("loop.mesh", 508, "loop_detected"),
    ] {
        let answer = client.get(authority, "/").await.unwrap();
        assert_eq!((answer.status, answer.header("content-type")), (status, Some("application/problem+json")));
        assert!(answer.body.contains(&format!("\"code\":\"{code}\"")), "{answer:?}");
    }
    let mut many = Request::get("http://hello.mesh/");
    for number in 0..101 {
        many = many.header(format!("x-{number}"), "1");
    }
    let answer = client.ask(many.body(()).unwrap(), "").await.unwrap();
    assert_eq!(answer.status, 431, "{answer:?}");
    let large = Request::get("http://hello.mesh/").header("x", "y".repeat(17 * 1024)).body(()).unwrap();
    assert_eq!(client.ask(large, "").await.unwrap().status, 431);
    let waiting = Request::post("http://hello.mesh/").header("expect", "100-continue").body(()).unwrap();
    assert_eq!(client.ask(waiting, "").await.unwrap().status, 417);
    let two = Request::get("/").header("host", "a.mesh").header("host", "b.mesh").version(hyper::Version::HTTP_11);
    assert!(client.ask(two.body(()).unwrap(), "").await.map_or(true, |answer| answer.status == 400));
}

#[tokio::test]
async fn http2_cannot_begin_in_the_middle_of_a_connection() {
    let mut bench = Bench::start().await;
    bench.add_local("hello", echo("a").await.0, Protocol::Http);
    let mut client = Client::connect(bench.address).await;
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    assert_eq!(client.ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.problem(505), "http2_not_supported");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_beginning_that_arrives_in_pieces_is_understood() {
    let mut bench = Bench::start().await;
    bench.add_local("hello", echo("a").await.0, Protocol::Http);
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    assert_eq!(read_frame(&mut stream).await.unwrap().kind, SETTINGS);
}

#[tokio::test]
async fn connect_makes_a_tunnel_of_a_stream() {
    let short = Duration::from_millis(300);
    let config = ProxyConfig { head_timeout: short, idle_timeout: short, ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, _) = instance(|mut stream, _| async move {
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            stream.write_all(&piece[..count].to_ascii_uppercase()).await.unwrap();
        }
    })
    .await;
    bench.add_local("db", address, Protocol::Tcp);
    let mut client = Streams::connect(bench.address).await;
    let (response, mut stream) = client.begin(Request::connect("db.mesh:5432").body(()).unwrap()).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    for _ in 0..48 {
        // Longer together than a connection without a request may stay.
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.send_data("over a stream ".into(), false).unwrap();
    }
    stream.send_data("".into(), true).unwrap();
    assert_eq!(whole(response).await.unwrap().body, "OVER A STREAM ".repeat(48));
    assert_eq!(bench.context.drain(PATIENCE).await, 0);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_not_buffered_and_stops_no_other() {
    for is_far in [false, true] {
        let mut near = Bench::start().await;
        let mut far = Bench::with(ProxyConfig::default(), 2).await;
        let (address, seen) = http2_instance().await;
        far.add_local("flood", address, Protocol::Http2);
        if is_far {
            near.links.lead_to(2, &far);
            near.add_remote("flood", &address.port().to_string(), 2, Protocol::Http2);
        } else {
            near.add_local("flood", address, Protocol::Http2);
        }
        let mut client = Streams::connect(near.address).await;
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let (response, _stream) = client.begin(Request::get("http://flood.mesh/flood").body(()).unwrap()).await;
            stalled.push(response.await.unwrap());
        }
        let answer = tokio::time::timeout(PATIENCE, client.get("flood.mesh", "/head")).await.unwrap().unwrap();
        assert_eq!(answer.status, 200);
        let mut before = usize::MAX;
        while before != seen.flooded.load(Ordering::SeqCst) {
            before = seen.flooded.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The windows of each hop, the pieces that are being handed on, and nothing else.
        let limit = if is_far { 640 } else { 384 };
        assert!(
            before / stalled.len() <= limit * 1024,
            "{} KiB of each stream were taken",
            before / stalled.len() / 1024
        );
    }
}

#[tokio::test]
async fn a_proxy_that_drains_says_goodbye_and_finishes_what_is_under_way() {
    let mut bench = Bench::start().await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let (address, asked) = instance(move |mut stream, _| {
        let mut wait = wait.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                wait.wait_for(|go| *go).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    bench.add_local("hello", address, Protocol::Http);
    let client = Arc::new(Streams::connect(bench.address).await);
    let asking = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.get("hello.mesh", "/").await }
    });
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let context = Arc::clone(&bench.context);
    let drained = tokio::spawn(async move { context.drain(PATIENCE).await });
    let refused = async {
        while client.get("hello.mesh", "/late").await.is_ok_and(|late| late.status == 200) {
            tokio::task::yield_now().await;
        }
    };
    go.send(true).unwrap();
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    let answer = asking.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    assert_eq!(drained.await.unwrap(), 0);
    Arc::into_inner(client).unwrap().closed().await.unwrap();
}

#[tokio::test]
async fn an_unused_connection_is_closed_and_one_with_a_request_is_not() {
    let config = ProxyConfig {
        head_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(300),
        ..ProxyConfig::default()
    };
    let mut bench = Bench::with(config, 1).await;
    let (address, _) = http2_instance().await;
    bench.add_local("hello", address, Protocol::Http2);
    Streams::connect(bench.address).await.closed().await.unwrap();
    let mut client = Streams::connect(bench.address).await;
    let (response, mut stream) = client.begin(Request::post("http://hello.mesh/echo").body(()).unwrap()).await;
    let response = response.await.unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    stream.send_data("late".into(), true).unwrap();
    assert_eq!(whole(response).await.unwrap().body, "late");
    client.closed().await.unwrap();
}

const DATA_END: u8 = 1;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// `GET http://hello.mesh/`, three fields from the static table and one literal.
const GET: &[u8] = b"\x82\x86\x84\x41\x0ahello.mesh";

struct RawFrame {
    kind: u8,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn read_frame(stream: &mut TcpStream) -> Option<RawFrame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(RawFrame { kind: head[3], payload })
}

async fn begin(bench: &Bench) -> TcpStream {
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// The code that the proxy closes the connection with.
async fn goodbye(stream: &mut TcpStream) -> Option<u32> {
    while let Some(frame) = tokio::time::timeout(PATIENCE, read_frame(stream)).await.unwrap() {
        if frame.kind == GOAWAY {
            return Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
        }
    }
    None
}

#[tokio::test]
async fn the_limits_are_told_to_the_client() {
    let bench = Bench::start().await;
    let mut stream = begin(&bench).await;
    let settings = read_frame(&mut stream).await.unwrap();
    assert_eq!(settings.kind, SETTINGS);
    let told: Vec<(u16, u32)> = settings
        .payload
        .chunks(6)
        .map(|one| (u16::from_be_bytes([one[0], one[1]]), u32::from_be_bytes([one[2], one[3], one[4], one[5]])))
        .collect();
    assert!(told.contains(&(3, STREAMS_MAX)) && told.contains(&(6, 16 * 1024)), "{told:?}");
}

#[tokio::test]
async fn floods_of_frames_end_their_connection_only() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let mut bench = Bench::start().await;
    let (address, _) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    let resets: Vec<u8> = (0..500_u32)
        .flat_map(|number| {
            let id = number * 2 + 1;
            [frame(HEADERS, END_HEADERS | DATA_END, id, GET), frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
        })
        .collect();
    let mut continued = frame(HEADERS, DATA_END, 1, GET);
    for _ in 0..2000 {
        continued.extend(frame(CONTINUATION, 0, 1, b"\x00\x01x\x01y"));
    }
    // Windows that are opened too far: each one is an error of its stream.
    let overflows: Vec<u8> = (0..2000_u32)
        .flat_map(|number| {
            let id = number * 2 + 1;
            [frame(HEADERS, END_HEADERS, id, GET), frame(WINDOW_UPDATE, 0, id, &0x7FFF_FFFF_u32.to_be_bytes())].concat()
        })
        .collect();
    for (name, flood) in [("resets", resets), ("continuations", continued), ("own resets", overflows)] {
        let mut stream = begin(&bench).await;
        // The proxy may close before it has read all of it.
        stream.write_all(&flood).await.ok();
        let code = goodbye(&mut stream).await;
        assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{name}: {code:?}");
        assert_eq!(Streams::connect(bench.address).await.get("hello.mesh", "/").await.unwrap().status, 200, "{name}");
    }
}

#[tokio::test]
async fn who_does_not_read_answers_to_settings_is_not_read_either() {
    const LIMIT: usize = 64 << 20;
    let mut bench = Bench::start().await;
    bench.add_local("hello", echo("a").await.0, Protocol::Http);
    let mut stream = begin(&bench).await;
    let flood = frame(SETTINGS, 0, 0, &[]).repeat(10_000);
    let mut written = 0;
    while written < LIMIT
        && let Ok(Ok(count)) = tokio::time::timeout(Duration::from_secs(1), stream.write(&flood[written % 9..])).await
    {
        written += count;
    }
    assert!(written < LIMIT, "all of {written} bytes were read");
    assert_eq!(Streams::connect(bench.address).await.get("hello.mesh", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn an_instance_of_http2_serves_clients_of_http1() {
    for is_far in [false, true] {
        let mut near = Bench::start().await;
        let mut far = Bench::with(ProxyConfig::default(), 2).await;
        let (address, seen) = http2_instance().await;
        far.add_local("hello", address, Protocol::Http2);
        if is_far {
            near.links.lead_to(2, &far);
            near.add_remote("hello", &address.port().to_string(), 2, Protocol::Http2);
        } else {
            near.add_local("hello", address, Protocol::Http2);
        }
        let mut client = Client::connect(near.address).await;
        for _ in 0..3 {
            let head = "POST /head HTTP/1.1\r\nHost: hello.mesh:80\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\
                        TE: trailers\r\nConnection: te\r\nX-Stays: yes\r\n\r\n";
            let reply = client.ask(format!("{head}5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n")).await;
            let text = reply.text();
            assert!(text.starts_with("POST http://hello.mesh:80/head\n"), "{text}");
            for wanted in ["te: trailers\n", "x-stays: yes\n", "trailer x-sum: 42\n", "body: 5\n"] {
                assert!(text.contains(wanted), "{wanted:?} is missing: {text}");
            }
            assert!(!text.contains("marram-") && !text.contains("connection") && !text.contains("\nhost"), "{text}");
            assert_eq!(reply.header("marram-forged"), None);
        }
        assert_eq!(seen.connections.load(Ordering::SeqCst), 1, "connections are kept");
    }
}

#[tokio::test]
async fn a_connection_that_the_instance_closed_is_no_failure() {
    let mut bench = Bench::start().await;
    // Each connection serves one request and is closed: every second time with a goodbye, else without a word.
    let (address, connections) = instance(|stream, number| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        respond.send_response(hyper::Response::new(()), true).unwrap();
        if number % 2 == 0 {
            connection.graceful_shutdown();
        }
        // The answer has to be written before the connection goes.
        tokio::time::timeout(Duration::from_millis(20), connection.accept()).await.ok();
    })
    .await;
    let endpoint = bench.add_local("hello", address, Protocol::Http2);
    let client = Streams::connect(bench.address).await;
    for round in 1..=6 {
        let request = Request::post("http://hello.mesh/").body(()).unwrap();
        assert_eq!(client.ask(request, "hello").await.unwrap().status, 200, "round {round}");
        let gone = async {
            while Lease::share(&bench.context, 0, address, usize::MAX).is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("what has closed or said goodbye is not kept");
        assert_eq!(connections.load(Ordering::SeqCst), round);
    }
    assert_eq!(endpoint.stats.totals(), (6, 0));
}

#[tokio::test]
async fn a_refused_stream_is_sent_elsewhere_whatever_its_method() {
    let mut bench = Bench::start().await;
    let (address, seen) = http2_instance().await;
    let bad = bench.add_local("hello", address, Protocol::Http2);
    let (address, _) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    super::bench::prefer(&bad, &[&good]);
    let client = Streams::connect(bench.address).await;
    let request = Request::post("http://hello.mesh/refuse").header("content-length", "5").body(()).unwrap();
    let answer = client.ask(request, "hello").await.unwrap();
    assert!(answer.status == 200 && answer.body.contains("name: good\nbody: 5\n"), "{answer:?}");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_large_body_passes_both_ways() {
    let mut bench = Bench::start().await;
    let (address, _) = http2_instance().await;
    bench.add_local("hello", address, Protocol::Http2);
    let mut client = Streams::connect(bench.address).await;
    let (response, mut stream) = client.begin(Request::post("http://hello.mesh/echo").body(()).unwrap()).await;
    let sent = "0123456789abcdef".repeat(256 * 1024);
    let bytes = Bytes::from(sent.clone());
    let sending = tokio::spawn(async move { stream.send_data(bytes, true) });
    let answer = whole(response.await.unwrap()).await.unwrap();
    sending.await.unwrap().unwrap();
    assert!(answer.body == sent, "{} bytes of {}", answer.body.len(), sent.len());
}

#[tokio::test]
async fn requests_of_an_http2_connection_are_of_its_share_and_those_of_others_of_none() {
    let mut near = Bench::start().await;
    let (_far, _) = super::mesh::join(&mut near, 2, echo("far").await.0, Protocol::Http).await;
    let opened = || (near.links.opened.load(Ordering::SeqCst), near.links.metered.load(Ordering::SeqCst));
    assert_eq!(Client::connect(near.address).await.get("hello.mesh", "/").await.status, 200);
    assert_eq!(opened(), (1, 0));
    near.context.pool(0).forget_node(node(2));
    assert_eq!(Streams::connect(near.address).await.get("hello.mesh", "/").await.unwrap().status, 200);
    assert_eq!(opened(), (2, 1));
}
