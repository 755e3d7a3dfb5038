use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::fake::Running;
use crate::admin::WATCHERS_MAX;
use crate::api::WatchEvent;

const PATIENCE: Duration = Duration::from_secs(20);

struct Stream(BufReader<UnixStream>);

impl Stream {
    /// Opens the stream and reads past the head.
    async fn open(server: &Running) -> Self {
        Self::open_with(server, "/v1/watch", "").await
    }

    async fn open_with(server: &Running, path: &str, header: &str) -> Self {
        let mut stream = UnixStream::connect(&server.socket).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut opened = Self(BufReader::new(stream));
        let head = opened.until(str::is_empty).await;
        assert!(head.contains("200 OK") && head.contains("text/event-stream"), "{head}");
        opened
    }

    /// Lines up to the first that fits, with it.
    async fn until(&mut self, fits: impl Fn(&str) -> bool) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("an event in time").unwrap();
            assert_ne!(read, 0, "the stream ended after {all:?}");
            all.push_str(&line);
            if fits(line.trim_end()) {
                return all;
            }
        }
    }
}

fn node_event(node: &str) -> WatchEvent {
    WatchEvent::Node { node: node.to_owned(), state: "dead".to_owned(), reason: "no ack to 3 probes".to_owned() }
}

#[tokio::test]
async fn a_reader_gets_a_resync_first_and_then_what_happens() {
    let server = Running::start().await;
    let mut stream = Stream::open(&server).await;
    stream.until(|line| line == "event: resync").await;
    server.node.events.tell(node_event("b"));
    stream.until(|line| line == "event: node").await;
    let data = stream.until(|line| line.starts_with("data: ")).await;
    assert!(data.contains(r#""type":"node""#) && data.contains(r#""node":"b""#), "{data}");
}

#[tokio::test]
async fn a_reader_that_fell_behind_gets_a_resync() {
    let server = Running::start().await;
    let mut stream = Stream::open(&server).await;
    stream.until(|line| line == "event: resync").await;
    // The channel of the fake node holds four; the server cannot read in between on this one thread.
    for index in 0..10 {
        server.node.events.tell(node_event(&index.to_string()));
    }
    stream.until(|line| line == "event: resync").await;
    let data = stream.until(|line| line.starts_with("data: ")).await;
    assert!(data.contains(r#""missed":6"#), "{data}");
}

#[tokio::test]
async fn streams_end_when_the_node_stops() {
    let server = Running::start().await;
    let mut stream = Stream::open(&server).await;
    stream.until(|line| line == "event: resync").await;
    server.stop.cancel();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.0.read_to_end(&mut rest)).await.expect("an end in time").unwrap();
    timeout(PATIENCE, server.task).await.expect("a stop in time").unwrap();
}

#[tokio::test]
async fn one_reader_too_many_is_refused_until_another_leaves() {
    let server = Running::start().await;
    let mut streams = Vec::new();
    for _ in 0..WATCHERS_MAX {
        streams.push(Stream::open(&server).await);
    }
    server.socket("GET /v1/watch", &[], "").await.assert_refused(503, "unavailable");
    drop(streams);
    let again = async {
        loop {
            let mut stream = UnixStream::connect(&server.socket).await.unwrap();
            stream.write_all(b"GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            if line.contains("200") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("a free place in time");
}

#[tokio::test]
async fn a_reader_who_comes_back_goes_on_after_the_last_event_it_saw() {
    let server = Running::start().await;
    let mut stream = Stream::open(&server).await;
    let first = stream.until(|line| line.starts_with("id: ")).await;
    assert!(first.contains("id: 7.0"), "a resync can be resumed after, too: {first}");
    for name in ["b", "c", "d"] {
        server.node.events.tell(node_event(name));
    }
    drop(stream);
    for (path, header) in [("/v1/watch?since=7.1", ""), ("/v1/watch?since=7.0", "Last-Event-ID: 7.1\r\n")] {
        let mut again = Stream::open_with(&server, path, header).await;
        let missed = again.until(|line| line == "id: 7.3").await;
        assert!(missed.contains(r#""node":"c""#) && !missed.contains(r#""node":"b""#), "{missed}");
        assert!(!missed.contains("resync"), "{missed}");
    }
    for since in ["6.1", "7.9", "junk"] {
        let mut lost = Stream::open_with(&server, &format!("/v1/watch?since={since}"), "").await;
        lost.until(|line| line == "event: resync").await;
    }
}

#[tokio::test]
async fn a_reader_gets_only_the_kinds_it_asked_for() {
    let server = Running::start().await;
    let mut stream = Stream::open_with(&server, "/v1/watch?kinds=service,policy", "").await;
    stream.until(|line| line == "event: resync").await;
    server.node.events.tell(node_event("b"));
    server.node.events.tell(WatchEvent::Service { service: "hello".to_owned() });
    let all = stream.until(|line| line.starts_with("data: ") && line.contains("service")).await;
    assert!(!all.contains("event: node"), "{all}");
    server.socket("GET /v1/watch?kinds=weather", &[], "").await.assert_refused(400, "malformed");
}
