//! Requests of one connection in turn: read by the gate, answered by a function, the answers written as they come.
//!
//! A request over HTTP/1.1 happens in the connection's own task: its body is read by whoever sends it on, from the same gate
//! that the answer is written to, so both directions move whenever either can. Where it goes on over HTTP/2, its body is read in
//! another task; that may write nothing, and reads nothing once the request was answered.

use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame};
use hyper::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderValue, TE, TRANSFER_ENCODING};
use hyper::{Method, Request, Response, StatusCode, Version};
use transport::Clock;

use super::body::{Arriving, ResponseBody};
use super::framing::Framing;
use super::gate::{Gate, Next, SharedGate, lock};
use super::headers::{MARRAM_LENGTH, has_token, restore_length};
use super::refuse::Refusal;
use super::turns::after_others;
use super::wire::{Coding, TURN_BYTES, Trailers, Trailing, WrongLength, put_fields};

/// Bytes of a body that nobody wanted which are read to keep the connection.
pub(super) const REST_BYTES_MAX: usize = 256 * 1024;
/// Time for them.
const REST_TIME: Duration = Duration::from_secs(1);

/// How the requests of a connection came to their end.
#[derive(Debug)]
pub(super) enum End {
    /// There are no more.
    Done,
    /// The connection broke, or an answer broke off.
    Broken(io::Error),
    /// The client is to be told why.
    Refused(Refusal),
    /// The connection is one of HTTP/2.
    Http2,
    /// The last answer switched to another protocol.
    Switched,
}

/// Serves the requests of a connection one after the other. With a clock, answers without a date get one.
pub(super) async fn serve<R, A>(gate: &SharedGate, clock: Option<&dyn Clock>, trailing: Trailing, mut respond: R) -> End
where
    R: FnMut(Request<Arriving>) -> A,
    A: Future<Output = Response<ResponseBody>> + Unpin,
{
    loop {
        let (parts, framing) = match poll_fn(|cx| lock(gate).poll_next(cx)).await {
            Next::Request(mut parts, framing) => {
                if trailing == Trailing::All && framing == Framing::Chunked {
                    restore_length(&mut parts.headers);
                }
                (*parts, framing)
            }
            Next::End => return End::Done,
            Next::Refused(refusal) => return End::Refused(refusal),
            Next::Http2 => return End::Http2,
        };
        let asked = Asked::of(&parts.method, parts.version, &parts.headers, trailing);
        let body = match framing {
            Framing::None => Arriving::Nothing,
            Framing::Length(_) | Framing::Chunked => Arriving::Request(Arc::clone(gate), lock(gate).request_number()),
        };
        let mut responding = respond(Request::from_parts(parts, body));
        let responded = poll_fn(|cx| match Pin::new(&mut responding).poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => lock(gate).poll_gone(cx).map(|()| None),
        });
        let Some(response) = responded.await else { return End::Broken(io::ErrorKind::ConnectionAborted.into()) };
        drop(responding);
        let is_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || asked.method == Method::CONNECT && response.status().is_success();
        let mut answering = {
            let mut gate = lock(gate);
            gate.begin_answer();
            Answering::begin(gate.unwritten(), &asked, response, clock)
        };
        if let Err(error) = poll_fn(|cx| answering.poll(cx, gate)).await {
            return End::Broken(error);
        }
        let is_kept = answering.is_kept;
        // The record of the request ends here, not with the next one.
        drop(answering);
        lock(gate).end_request();
        if is_switched {
            return End::Switched;
        }
        if !is_kept || !read_rest(gate).await {
            return End::Done;
        }
    }
}

/// Reads what is left of a request's body that nobody wanted; whether the connection is good for another request.
async fn read_rest(gate: &SharedGate) -> bool {
    if lock(gate).is_between_requests() {
        return true;
    }
    // Who waits to be told to go on was told the opposite.
    if lock(gate).awaits_continue() {
        return false;
    }
    let reading = async {
        let mut body = Arriving::Request(Arc::clone(gate), lock(gate).request_number());
        let mut left = REST_BYTES_MAX;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let count = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(count) else { return false };
            left = rest;
        }
        true
    };
    tokio::time::timeout(REST_TIME, reading).await.unwrap_or(false)
}

/// What of a request decides the form of its answer.
struct Asked {
    method: Method,
    is_http_11: bool,
    /// Which trailers whoever asked takes; `None` where it takes none.
    trailing: Option<Trailing>,
    /// Whether the client lets the connection stay.
    keeps: bool,
}

impl Asked {
    fn of(method: &Method, version: Version, headers: &HeaderMap, trailing: Trailing) -> Self {
        let is_http_11 = version == Version::HTTP_11;
        // RFC 9112 section 9.3: `close` counts whatever else is said.
        let keeps =
            (is_http_11 || has_token(headers, &CONNECTION, "keep-alive")) && !has_token(headers, &CONNECTION, "close");
        let takes_trailers = trailing == Trailing::All || has_token(headers, &TE, "trailers");
        Self { method: method.clone(), is_http_11, trailing: takes_trailers.then_some(trailing), keeps }
    }
}

/// An answer on its way out.
struct Answering {
    body: ResponseBody,
    coding: Coding,
    trailers: Trailers,
    is_body_left: bool,
    is_kept: bool,
}

impl Answering {
    fn begin(out: &mut BytesMut, asked: &Asked, response: Response<ResponseBody>, clock: Option<&dyn Clock>) -> Self {
        let (mut parts, body) = response.into_parts();
        let status = parts.status;
        let headers = &mut parts.headers;
        headers.remove(TRANSFER_ENCODING);
        let is_tunnel = asked.method == Method::CONNECT && status.is_success();
        let has_none = status.is_informational() || status == StatusCode::NO_CONTENT || is_tunnel;
        let coding = if has_none {
            headers.remove(CONTENT_LENGTH);
            Coding::Nothing
        } else if asked.method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
            if let (Some(length), false) = (body.size_hint().exact(), headers.contains_key(CONTENT_LENGTH))
                && length > 0
            {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            Coding::Nothing
        } else if let Some(length) = body.size_hint().exact() {
            headers.remove(CONTENT_LENGTH);
            if asked.trailing == Some(Trailing::All) && body.may_have_trailers() {
                headers.insert(MARRAM_LENGTH, HeaderValue::from(length));
                Coding::Chunked
            } else {
                Coding::Length(length)
            }
        } else {
            headers.remove(CONTENT_LENGTH);
            if asked.is_http_11 { Coding::Chunked } else { Coding::UntilClose }
        };
        let is_switched = is_tunnel || status == StatusCode::SWITCHING_PROTOCOLS;
        let is_kept =
            is_switched || asked.keeps && coding != Coding::UntilClose && !has_token(headers, &CONNECTION, "close");
        if !is_kept {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        } else if !asked.is_http_11 && !is_switched {
            headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        }
        out.reserve(512);
        out.put_slice(if asked.is_http_11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        out.put_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.put_slice(b"\r\n");
        put_fields(out, headers);
        match coding {
            Coding::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
            // Written and not put among the others, where it would be a value with memory of its own.
            Coding::Length(length) => put_length(out, length),
            Coding::Nothing | Coding::UntilClose => {}
        }
        if let Some(clock) = clock.filter(|_| !headers.contains_key(DATE) && !status.is_informational()) {
            put_date(out, clock.unix());
        }
        out.put_slice(b"\r\n");
        let trailers = match asked.trailing {
            Some(Trailing::Announced) if coding == Coding::Chunked => Trailers::Announced(parts.headers),
            Some(Trailing::All) => Trailers::All,
            Some(Trailing::Announced) | None => Trailers::Unwanted,
        };
        Self { body, coding, trailers, is_body_left: coding != Coding::Nothing, is_kept }
    }

    /// Writes what there is, until all is written.
    fn poll(&mut self, cx: &mut Context<'_>, gate: &SharedGate) -> Poll<io::Result<()>> {
        let mut in_turn = 0;
        while self.is_body_left {
            if in_turn > TURN_BYTES {
                after_others(cx);
                return Poll::Pending;
            }
            let is_stopped = {
                let mut gate = lock(gate);
                gate.is_full() && gate.poll_write(cx)?.is_pending()
            };
            if is_stopped {
                // What the client does not take must not keep it from sending.
                self.body.poll_upload(cx).map_err(io::Error::other)?;
                return Poll::Pending;
            }
            // Polled without the gate, from which it may have to read.
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame.transpose(),
                Poll::Pending => {
                    let mut gate = lock(gate);
                    if gate.poll_write(cx)?.is_ready() {
                        ready!(gate.poll_flush(cx))?;
                    }
                    // An answer may be silent for long, as a stream of events is.
                    return gate.poll_gone(cx).map(|()| Err(io::ErrorKind::ConnectionAborted.into()));
                }
            };
            let mut gate = lock(gate);
            match frame {
                Ok(frame) => {
                    in_turn += frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
                    self.put(&mut gate, frame).map_err(io::Error::other)?;
                }
                Err(error) => {
                    // What there is goes out; that it is not all shows by the end of the connection.
                    return match gate.poll_write(cx)? {
                        Poll::Ready(()) | Poll::Pending => Poll::Ready(Err(io::Error::other(error))),
                    };
                }
            }
        }
        let mut gate = lock(gate);
        ready!(gate.poll_write(cx))?;
        gate.poll_flush(cx)
    }

    fn put(&mut self, gate: &mut Gate, frame: Option<Frame<Bytes>>) -> Result<(), WrongLength> {
        let trailers = match frame.map(Frame::into_data) {
            Some(Ok(data)) => {
                let piece = self.coding.put(gate.unwritten(), data)?;
                gate.put_piece(piece);
                return Ok(());
            }
            Some(Err(frame)) => frame.into_trailers().unwrap_or_default(),
            None => HeaderMap::new(),
        };
        self.is_body_left = false;
        self.coding.end(gate.unwritten(), &self.trailers, &trailers)
    }
}

/// The field that says how long a body is.
fn put_length(out: &mut BytesMut, length: u64) {
    // Fails only where there is no memory.
    let _written = write!(out, "content-length: {length}\r\n");
}

/// The time in the form of RFC 9110 section 5.6.7.
fn put_date(out: &mut BytesMut, unix: Duration) {
    let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + unix);
    out.put_slice(b"date: ");
    out.put_slice(date.as_bytes());
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::super::framing::FIELDS_MAX;
    use super::super::gate::GateLimits;
    use super::*;

    /// Serves `sent` with a function that looks at the body or not; returns all that was answered and how it ended.
    async fn answers(sent: &str, reads_body: bool, answer: impl Fn(usize) -> ResponseBody) -> (String, End) {
        let (mut client, server) = duplex(64 * 1024);
        let count = AtomicUsize::new(0);
        let limits = GateLimits {
            fields_max: FIELDS_MAX,
            head_bytes_max: 1024,
            head_timeout: None,
            idle_timeout: None,
            half_closes: true,
        };
        let gate = Gate::shared(Box::new(server), limits);
        let (count, answer) = (&count, &answer);
        let served = async {
            let end = serve(&gate, None, Trailing::Announced, |request: Request<Arriving>| {
                Box::pin(async move {
                    if reads_body {
                        request.into_body().collect().await.unwrap();
                    }
                    Response::new(answer(count.fetch_add(1, Ordering::Relaxed)))
                })
            });
            let end = end.await;
            drop(lock(&gate).take_parts());
            end
        };
        let asking = async {
            client.write_all(sent.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut all = String::new();
            client.read_to_string(&mut all).await.unwrap();
            all
        };
        let (end, all) = tokio::join!(served, asking);
        (all, end)
    }

    fn own(text: &'static str) -> ResponseBody {
        ResponseBody::full(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn the_connection_stays_as_the_client_wants_it() {
        let get = |version: &str, connection: &str| format!("GET / {version}\r\nhost: a\r\n{connection}\r\n");
        for (version, connection, is_kept, told) in [
            ("HTTP/1.1", "", true, ""),
            ("HTTP/1.1", "connection: x, Close\r\n", false, "connection: close\r\n"),
            ("HTTP/1.0", "", false, "connection: close\r\n"),
            ("HTTP/1.0", "connection: keep-alive\r\n", true, "connection: keep-alive\r\n"),
            ("HTTP/1.0", "connection: keep-alive\r\nconnection: close\r\n", false, "connection: close\r\n"),
        ] {
            let one = format!("{version} 200 OK\r\ncontent-length: 2\r\n{told}\r\nhi");
            let (all, _) = answers(&get(version, connection).repeat(2), true, |_| own("hi")).await;
            // The order of fields says nothing.
            let other = format!("{version} 200 OK\r\n{told}content-length: 2\r\n\r\nhi");
            let times = if is_kept { 2 } else { 1 };
            assert!(all == one.repeat(times) || all == other.repeat(times), "{version} {connection}: {all}");
        }
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_is_passed_over_or_ends_the_connection() {
        let post = |length: usize| format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
        let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let sent = format!("{}{}{get}", post(5000), "x".repeat(5000));
        let (all, end) = answers(&sent, false, |_| own("")).await;
        assert_eq!((all.matches("200 OK").count(), matches!(end, End::Done)), (2, true), "{all}");
        let sent = format!("{}{}{get}", post(REST_BYTES_MAX + 1), "x".repeat(REST_BYTES_MAX + 1));
        let (client, server) = duplex(1024 * 1024);
        let count = count_answers(client, server, &sent).await;
        assert_eq!(count, 1, "too much of it");
        let waiting = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n";
        let (all, _) = answers(&format!("{waiting}{get}"), false, |_| own("")).await;
        assert_eq!((all.matches("200 OK").count(), all.matches("100 Continue").count()), (1, 0), "{all}");
    }

    async fn count_answers(mut client: DuplexStream, server: DuplexStream, sent: &str) -> usize {
        let limits = GateLimits {
            fields_max: FIELDS_MAX,
            head_bytes_max: 1024,
            head_timeout: None,
            idle_timeout: None,
            half_closes: true,
        };
        let gate = Gate::shared(Box::new(server), limits);
        client.write_all(sent.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let end = serve(&gate, None, Trailing::Announced, |_| Box::pin(async { Response::new(own("")) })).await;
        assert!(matches!(end, End::Done), "{end:?}");
        drop(lock(&gate).take_parts());
        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        all.matches("200 OK").count()
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_a_first_request_is_not_that_between_two() {
        let (mut client, server) = duplex(1024);
        let (first, between) = (Duration::from_secs(1), Duration::from_secs(60));
        let limits = GateLimits {
            fields_max: FIELDS_MAX,
            head_bytes_max: 1024,
            head_timeout: Some(first),
            idle_timeout: Some(between),
            half_closes: true,
        };
        let gate = Gate::shared(Box::new(server), limits);
        let served = serve(&gate, None, Trailing::Announced, |_| Box::pin(async { Response::new(own("")) }));
        let asking = async {
            let mut last = [0; 256];
            for _ in 0..2 {
                // Longer than the first request may take, and then within the time between two.
                tokio::time::sleep(first / 2).await;
                client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                let count = client.read(&mut last).await.unwrap();
                assert!(last[..count].starts_with(b"HTTP/1.1 200"));
                tokio::time::sleep(between / 2).await;
            }
            let early = tokio::time::timeout(between / 2 - first, client.read(&mut last)).await;
            assert!(early.is_err(), "the time between two, and not less");
            tokio::time::timeout(2 * first, client.read(&mut last)).await.expect("and not more").unwrap()
        };
        let serving = async {
            let end = served.await;
            drop(lock(&gate).take_parts());
            end
        };
        let (end, count) = tokio::join!(serving, asking);
        assert!(matches!(end, End::Done) && count == 0, "{end:?}");
    }

    #[tokio::test]
    async fn nobody_works_for_a_peer_that_is_gone_but_for_a_client_that_only_ended_its_side() {
        for half_closes in [false, true] {
            let (mut client, server) = duplex(1024);
            let limits = GateLimits {
                fields_max: FIELDS_MAX,
                head_bytes_max: 1024,
                head_timeout: None,
                idle_timeout: None,
                half_closes,
            };
            let gate = Gate::shared(Box::new(server), limits);
            let (answer, told) = tokio::sync::oneshot::channel::<()>();
            let mut told = Some(told);
            let served = serve(&gate, None, Trailing::Announced, |_| {
                let told = told.take().unwrap();
                Box::pin(async {
                    told.await.unwrap();
                    Response::new(own("hi"))
                })
            });
            let leaving = async {
                client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                client.shutdown().await.unwrap();
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                let is_awaited = !answer.is_closed();
                answer.send(()).ok();
                is_awaited
            };
            let (end, is_awaited) = tokio::join!(served, leaving);
            assert_eq!(is_awaited, half_closes);
            assert_eq!(matches!(end, End::Done), half_closes, "{end:?}");
        }
    }

    #[tokio::test]
    async fn whoever_reads_the_body_of_an_answered_request_gets_nothing_of_the_next() {
        let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
        let (mut client, server) = duplex(1024);
        let limits = GateLimits {
            fields_max: FIELDS_MAX,
            head_bytes_max: 1024,
            head_timeout: None,
            idle_timeout: None,
            half_closes: true,
        };
        let gate = Gate::shared(Box::new(server), limits);
        client.write_all(post.repeat(2).as_bytes()).await.unwrap();
        let next = async || match poll_fn(|cx| lock(&gate).poll_next(cx)).await {
            Next::Request(..) => Arriving::Request(Arc::clone(&gate), lock(&gate).request_number()),
            other => panic!("{other:?}"),
        };
        let mut old = next().await;
        lock(&gate).end_request();
        assert!(read_rest(&gate).await);
        let mut new = next().await;
        assert!(old.frame().await.unwrap().is_err() && !old.is_end_stream());
        assert_eq!(new.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert!(new.is_end_stream());
    }

    #[tokio::test]
    async fn long_and_short_pieces_keep_their_order() {
        let (near, far) = duplex(700);
        let limits = GateLimits {
            fields_max: FIELDS_MAX,
            head_bytes_max: 1024,
            head_timeout: None,
            idle_timeout: None,
            half_closes: true,
        };
        let (mut client, server) = duplex(1500);
        let gate = Gate::shared(Box::new(server), limits);
        let bodies: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let expected = bodies.clone();
        let length = bodies.len();
        let mut instance = far;
        let feeding = async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            instance.write_all(head.as_bytes()).await.unwrap();
            let mut rest = &bodies[..];
            for size in [1, 9000, 17, 20_000, 3, 8192, 8193].into_iter().cycle() {
                let (piece, behind) = rest.split_at(size.min(rest.len()));
                instance.write_all(piece).await.unwrap();
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            instance
        };
        let mut connection = Some(super::super::exchange::Connection::new(Box::new(near), 1024));
        let served = serve(&gate, None, Trailing::Announced, |request: Request<Arriving>| {
            let connection = connection.take().unwrap();
            Box::pin(async move {
                let (parts, _) = request.into_parts();
                let body = super::super::body::RequestBody::Whole(Bytes::new());
                let mut exchange = super::super::exchange::Exchange::begin(connection, &parts, body);
                let head = exchange.answer().await.unwrap();
                Response::from_parts(head, ResponseBody::arriving(Arriving::Answer(exchange)))
            })
        });
        let asking = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        };
        let serving = async {
            let end = served.await;
            drop(lock(&gate).take_parts());
            end
        };
        let (end, all, _instance) = tokio::join!(serving, asking, feeding);
        assert!(matches!(end, End::Done), "{end:?}");
        let start = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(all[start..] == expected[..], "{} of {} bytes", all.len() - start, expected.len());
    }
}
