//! Bodies of requests that are long under way: beside an answer that came early, and where nobody takes them.

use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, copy, sink, split};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::bench::{Bench, PATIENCE, instance, read_head};
use super::streams::{Streams, piece, whole};
use crate::config::{Protocol, ProxyConfig};

const LONG: usize = 4 << 20;
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// Two nodes, the service at one of them.
struct Two {
    near: Bench,
    _far: Bench,
}

/// A node that has the instance at `address`, itself or behind a peer.
async fn serving(address: std::net::SocketAddr, is_far: bool, config: &ProxyConfig) -> Two {
    let mut near = Bench::with(config.clone(), 1).await;
    let mut far = Bench::with(config.clone(), 2).await;
    far.add_local("hello", address, Protocol::Http);
    if is_far {
        near.links.lead_to(2, &far);
        near.add_remote("hello", &address.port().to_string(), 2, Protocol::Http);
    } else {
        near.add_local("hello", address, Protocol::Http);
    }
    Two { near, _far: far }
}

/// Reads a chunked body, or what there is of it, and tells how many bytes came and whether its last chunk did.
async fn take_chunked(mut from: impl AsyncRead + Unpin) -> (usize, bool) {
    let mut last = Vec::new();
    let mut count = 0;
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else { return (count, false) };
        count += read;
        last.extend_from_slice(&bytes[..read]);
        last.drain(..last.len().saturating_sub(LAST_CHUNK.len()));
        if last == LAST_CHUNK {
            return (count, true);
        }
    }
}

#[tokio::test]
async fn a_client_of_http2_that_reads_nothing_before_it_has_sent_all_gets_an_early_long_answer() {
    // Also one that its node has read whole while its last pieces wait.
    for (is_far, length) in [(false, LONG), (true, LONG), (false, 150_000)] {
        let (all, mut took) = mpsc::channel(1);
        let (address, _) = instance(move |mut stream, _| {
            let all = all.clone();
            async move {
                let _head = read_head(&mut stream).await;
                let (reading, mut writing) = split(stream);
                let answering = async {
                    writing
                        .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes())
                        .await?;
                    writing.write_all(&vec![b'y'; length]).await
                };
                let taking = async { all.send(take_chunked(reading).await).await.unwrap() };
                let (answered, ()) = tokio::join!(answering, taking);
                answered.unwrap();
            }
        })
        .await;
        let two = serving(address, is_far, &ProxyConfig::default()).await;
        let mut client = Streams::connect(two.near.address).await;
        let (response, mut stream) = client.begin(Request::post("http://hello.mesh/").body(()).unwrap()).await;
        stream.send_data(Bytes::from_static(b"begun"), false).unwrap();
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        stream.send_data(Bytes::from(vec![b'x'; LONG]), true).unwrap();
        let (count, is_whole) = timeout(PATIENCE, took.recv())
            .await
            .unwrap_or_else(|_| panic!("the body is taken: {is_far} {length}"))
            .unwrap();
        assert!(is_whole && count > LONG, "{count} bytes; {is_far} {length}");
        let answer = timeout(PATIENCE, whole(response)).await.unwrap().unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, length));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_beside_an_early_answer_is_not_taken_for_whole() {
    let ways = [false, true]
        .into_iter()
        .flat_map(|is_far| [h2::Reason::CANCEL, h2::Reason::NO_ERROR].map(|reason| (is_far, reason)));
    for (is_far, reason) in ways {
        let (all, mut took) = mpsc::channel(1);
        let (address, _) = instance(move |mut stream, _| {
            let all = all.clone();
            async move {
                let _head = read_head(&mut stream).await;
                let early = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n";
                stream.write_all(early).await.unwrap();
                all.send(take_chunked(stream).await).await.unwrap();
            }
        })
        .await;
        let two = serving(address, is_far, &ProxyConfig::default()).await;
        let mut client = Streams::connect(two.near.address).await;
        let (response, mut stream) = client.begin(Request::post("http://hello.mesh/").body(()).unwrap()).await;
        stream.send_data(Bytes::from_static(b"begun"), false).unwrap();
        let mut response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(piece(response.body_mut()).await.unwrap().as_deref(), Some(&b"early"[..]));
        stream.send_data(Bytes::from_static(b" and then"), false).unwrap();
        stream.send_reset(reason);
        let (_, is_whole) = timeout(PATIENCE, took.recv()).await.expect("the instance hears of it").unwrap();
        assert!(!is_whole, "{reason}");
    }
}

#[tokio::test]
async fn an_instance_that_takes_nothing_of_a_long_body_is_given_up_after_the_idle_time() {
    // A client that is not let run for so long by a busy machine would be given up instead.
    let idle = Duration::from_millis(700);
    let config = ProxyConfig { idle_timeout: idle, ..ProxyConfig::default() };
    for is_far in [false, true] {
        let (address, _) = instance(|mut stream, _| async move {
            let _head = read_head(&mut stream).await;
            std::future::pending::<()>().await;
        })
        .await;
        let two = serving(address, is_far, &config).await;
        let long = vec![b'x'; 64 << 20];

        let mut client = Streams::connect(two.near.address).await;
        let (response, mut stream) = client.begin(Request::post("http://hello.mesh/").body(()).unwrap()).await;
        stream.send_data(Bytes::from(long.clone()), true).unwrap();
        let answer = timeout(PATIENCE, response).await.expect("it is given up").unwrap();
        let answer = whole(answer).await.unwrap();
        assert!(answer.status == 504 && answer.body.contains("took nothing of the request's body"), "{answer:?}");

        let stream = tokio::net::TcpStream::connect(two.near.address).await.unwrap();
        let (reading, mut writing) = stream.into_split();
        let sending = tokio::spawn(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: hello.mesh\r\nContent-Length: {}\r\n\r\n", long.len());
            // It is closed in the middle of the body.
            writing.write_all(head.as_bytes()).await.unwrap();
            writing.write_all(&long).await.ok();
        });
        let mut reading = tokio::io::BufReader::new(reading);
        let mut line = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut reading, &mut line);
        timeout(PATIENCE, read).await.expect("it is given up").unwrap();
        assert!(line.starts_with("HTTP/1.1 504 "), "{line}");
        copy(&mut reading, &mut sink()).await.ok();
        timeout(PATIENCE, sending).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_instance_that_stops_taking_small_pieces_is_given_up_too() {
    let config = ProxyConfig { idle_timeout: Duration::from_millis(700), ..ProxyConfig::default() };
    for is_far in [false, true] {
        let (address, _) = instance(|mut stream, _| async move {
            let _head = read_head(&mut stream).await;
            std::future::pending::<()>().await;
        })
        .await;
        let two = serving(address, is_far, &config).await;
        let stream = tokio::net::TcpStream::connect(two.near.address).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        writing.write_all(b"POST / HTTP/1.1\r\nHost: hello.mesh\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let sending = tokio::spawn(async move {
            let piece = [b"400\r\n", &[b'x'; 1024][..], b"\r\n"].concat();
            // Until it is closed; the proxy has often sent all that has come before more of it comes.
            while writing.write_all(&piece).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        let mut status = [0; 12];
        timeout(PATIENCE, reading.read_exact(&mut status)).await.expect("it is given up").unwrap();
        assert_eq!(&status, b"HTTP/1.1 504");
        drop(reading);
        timeout(PATIENCE, sending).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_client_of_http2_that_sends_nothing_for_a_while_is_waited_for_where_the_instance_has_taken_what_came() {
    let idle = Duration::from_millis(400);
    let config = ProxyConfig { idle_timeout: idle, ..ProxyConfig::default() };
    for is_far in [false, true] {
        let (all, mut took) = mpsc::channel(1);
        let (address, _) = instance(move |mut stream, _| {
            let all = all.clone();
            async move {
                let _head = read_head(&mut stream).await;
                all.send(take_chunked(&mut stream).await.1).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        })
        .await;
        let two = serving(address, is_far, &config).await;
        let mut client = Streams::connect(two.near.address).await;
        let (response, mut stream) = client.begin(Request::post("http://hello.mesh/").body(()).unwrap()).await;
        stream.send_data(Bytes::from_static(b"begun"), false).unwrap();
        tokio::time::sleep(idle * 3).await;
        stream.send_data(Bytes::from_static(b" and ended"), true).unwrap();
        assert_eq!(timeout(PATIENCE, took.recv()).await.unwrap(), Some(true));
        assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
    }
}
