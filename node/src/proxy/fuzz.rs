//! Differential fuzzing of our reading of requests: what is taken, every reader reads alike.
//!
//! Each case is a connection's bytes, made from a seed by `generate`. They are served as in production, whole and in
//! pieces; they go to hyper; through the pure reading of `framing`; and to `httparse`. All have to agree on each
//! request that passed: method, target, version, header fields, body, trailers. Then `readers` reads the same bytes as
//! sloppy servers and proxies are known to, each with a few tolerances of its own: it may refuse what we took, but it may
//! not see another end of a request.
//!
//! `cargo test -p node --lib fuzz` runs a fixed number of cases. A long run:
//! `MARRAM_FUZZ_FOR=10m MARRAM_FUZZ_SEED=7 cargo test -p node --lib fuzz -- --nocapture`.

mod answers;
mod generate;
mod readers;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use transport::Clock as _;

use self::generate::Chance;
use self::readers::Tolerances;
use super::body::ResponseBody;
use super::framing::{Chunks, FIELDS_MAX, Followed, Framing, check_head, head_end};
use super::gate::{Gate, GateLimits};
use super::serve::{End, serve};
use super::wire::Trailing;
use crate::clock::SystemClock;

/// So small that some cases reach it.
const HEAD_BYTES_MAX: usize = 1024;
/// Cases of a run without a time.
const CASES: u64 = 6_000;
/// Sets of tolerances tried on each case.
const READERS: usize = 12;

/// A request as the machine behind a reader understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    method: String,
    target: String,
    version: String,
    /// Sorted by name; values of one name in their order.
    fields: Fields,
    body: Vec<u8>,
    trailers: Fields,
    /// Whether the body came to its end.
    is_whole: bool,
}

/// What a connection's bytes came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    messages: Vec<Message>,
    /// Whether the bytes ended between two requests, with nothing refused.
    is_clean: bool,
}

#[test]
fn what_passes_the_gate_is_read_alike_by_every_reader() {
    let setting = |name: &str| std::env::var(name).ok();
    let seed = setting("MARRAM_FUZZ_SEED").map_or(1, |text| text.parse().unwrap());
    let limit = setting("MARRAM_FUZZ_FOR").map(|text| humantime::parse_duration(&text).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock = SystemClock::start();
    let (mut cases, mut taken, mut clean) = (0_u64, 0_u64, 0_u64);
    let goes_on = |cases: u64, spent: Duration| limit.map_or(cases < CASES, |limit| spent < limit);
    while goes_on(cases, clock.now()) {
        let mut chance = Chance::new(seed ^ (cases << 20));
        let bytes = generate::connection(&mut chance);
        match runtime.block_on(check(&bytes, chance.clone())) {
            Ok(reading) => {
                taken += reading.messages.iter().filter(|message| message.is_whole).count() as u64;
                clean += u64::from(reading.is_clean);
            }
            Err(difference) => {
                let small = shrink(bytes, |bytes| runtime.block_on(check(bytes, chance.clone())).is_err());
                let again = runtime.block_on(check(&small, chance)).unwrap_err();
                panic!("seed {seed}, case {cases}: {difference}\n{}\n{again}", small.escape_ascii());
            }
        }
        cases += 1;
    }
    eprintln!(
        "seed {seed}: {cases} cases in {:.1?}, {taken} requests taken, {clean} connections without a fault",
        clock.now()
    );
    assert!(taken > cases / 2 && clean > cases / 10 && clean < cases / 10 * 9, "the cases say little");
}

/// Leaves out what is not needed for a difference.
fn shrink(mut bytes: Vec<u8>, differs: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    for width in [64, 16, 4, 1] {
        let mut at = 0;
        while at < bytes.len() {
            let mut fewer = bytes.clone();
            fewer.drain(at..bytes.len().min(at + width));
            if differs(&fewer) {
                bytes = fewer;
            } else {
                at += width;
            }
        }
    }
    bytes
}

async fn check(bytes: &[u8], mut chance: Chance) -> Result<Reading, String> {
    let whole = through_gate(vec![Bytes::copy_from_slice(bytes)]).await;
    let cut = through_gate(pieces(bytes, &mut chance)).await;
    let is_alike = whole.messages.iter().zip(&cut.messages).all(|(one, other)| alike(one, other));
    if !is_alike || whole.is_clean != cut.is_clean || count_whole(&whole) != count_whole(&cut) {
        return Err(format!("cut in pieces it reads differently: {whole:#?}\n{cut:#?}"));
    }
    compare_with_hyper(&whole, &by_hyper(bytes).await)?;
    let spans = spans(bytes)?;
    compare_with_spans(&whole, &spans)?;
    for span in &spans {
        for _ in 0..READERS {
            let reader = Tolerances::some(&mut chance);
            let rest = bytes.get(span.start..).unwrap_or_default();
            let length = span.end - span.start;
            if let Some(other) = reader.length_of_request(rest).filter(|other| *other != length) {
                return Err(format!("{reader:?} sees {other} bytes in the request of {length} at {}", span.start));
            }
        }
    }
    Ok(whole)
}

fn count_whole(reading: &Reading) -> usize {
    reading.messages.iter().filter(|message| message.is_whole).count()
}

/// The same request, as far as both go.
fn alike(one: &Message, other: &Message) -> bool {
    if one.is_whole && other.is_whole {
        return one == other;
    }
    let head = |message: &Message| (message.method.clone(), message.target.clone(), message.fields.clone());
    let (shorter, longer) =
        if one.body.len() < other.body.len() { (&one.body, &other.body) } else { (&other.body, &one.body) };
    head(one) == head(other) && longer.starts_with(shorter)
}

/// What passes is the beginning of what hyper reads without us, and all of it where nothing is refused.
fn compare_with_hyper(ours: &Reading, hypers: &Reading) -> Result<(), String> {
    let differing = ours.messages.iter().enumerate().find(|(at, message)| {
        hypers.messages.get(*at).is_none_or(|other| !alike(message, other) || (message.is_whole && !other.is_whole))
    });
    if let Some((at, message)) = differing {
        return Err(format!("hyper reads request {at} as {:#?}, not as {message:#?}", hypers.messages.get(at)));
    }
    if ours.is_clean && hypers.messages.len() > ours.messages.len() {
        return Err(format!("hyper reads more without a word from us: {hypers:#?}"));
    }
    Ok(())
}

/// One request in a connection's bytes, by the pure reading.
#[derive(Debug)]
struct Span {
    start: usize,
    end: usize,
    method: String,
    fields: Fields,
    body: Vec<u8>,
    ends_connection: bool,
}

/// Reads as the gate does, and has every head and every chunk size confirmed by `httparse`.
fn spans(bytes: &[u8]) -> Result<Vec<Span>, String> {
    let mut spans = Vec::new();
    let mut start = 0;
    loop {
        let mut rest = bytes.get(start..).unwrap_or_default();
        while let Some(behind) = rest.strip_prefix(b"\r\n") {
            rest = behind;
            start += 2;
        }
        let Ok(Some(head_bytes)) = head_end(rest, &mut 0) else { return Ok(spans) };
        if head_bytes > HEAD_BYTES_MAX {
            return Ok(spans);
        }
        let (head, behind) = rest.split_at(head_bytes);
        let Ok(framing) = check_head(head) else { return Ok(spans) };
        let Some((method, fields)) = by_httparse(head)? else { return Ok(spans) };
        let (body, body_bytes) = match framing {
            Framing::None => (Vec::new(), 0),
            Framing::Length(length) => match usize::try_from(length).ok().and_then(|length| behind.get(..length)) {
                Some(body) => (body.to_vec(), body.len()),
                None => return Ok(spans),
            },
            Framing::Chunked => match Chunks::new(HEAD_BYTES_MAX).follow(behind) {
                Ok(Followed::EndsAfter(length)) => (unchunk(&behind[..length])?, length),
                Ok(Followed::All) | Err(_) => return Ok(spans),
            },
        };
        let end = start + head_bytes + body_bytes;
        let is_old = head.split(|byte| *byte == b'\r').next().is_some_and(|line| line.ends_with(b"HTTP/1.0"));
        let ends_connection = is_old || method == "CONNECT" || asks_to_close(&fields);
        spans.push(Span { start, end, method, fields, body, ends_connection });
        start = end;
    }
}

fn asks_to_close(fields: &[(String, Vec<u8>)]) -> bool {
    let has_close = |value: &[u8]| value.to_ascii_lowercase().windows(5).any(|window| window == b"close");
    fields.iter().any(|(name, value)| name == "connection" && has_close(value))
}

/// Sorted header fields with their values.
type Fields = Vec<(String, Vec<u8>)>;

/// Method and fields; `None` where `httparse` refuses the head, which ends the connection.
fn by_httparse(head: &[u8]) -> Result<Option<(String, Fields)>, String> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(_refused) => return Ok(None),
        other => return Err(format!("httparse says {other:?} of the head {}", head.escape_ascii())),
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let minor = request.version.unwrap_or(9);
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    if line != format!("{method} {target} HTTP/1.{minor}").as_bytes() {
        return Err(format!("httparse reads the request line {} as {method} {target} 1.{minor}", line.escape_ascii()));
    }
    let fields = request.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec()));
    Ok(Some((method.to_owned(), sorted(fields.collect()))))
}

/// The body in a chunked coding that ends where it ends.
fn unchunk(mut coded: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        // It counts the digits of a size, zeros that come first included.
        while coded.first() == Some(&b'0') && coded.get(1).is_some_and(u8::is_ascii_hexdigit) {
            coded = &coded[1..];
        }
        let (start, size) = match httparse::parse_chunk_size(coded) {
            Ok(httparse::Status::Complete((start, size))) => (start, usize::try_from(size).unwrap_or(usize::MAX)),
            other => return Err(format!("httparse says {other:?} of the chunk {}", coded.escape_ascii())),
        };
        let behind = coded.get(start..).unwrap_or_default();
        if size == 0 {
            let is_end = behind == b"\r\n" || behind.ends_with(b"\r\n\r\n");
            return is_end.then_some(body).ok_or_else(|| format!("{} is left", behind.escape_ascii()));
        }
        let (data, rest) = behind.split_at_checked(size).ok_or("httparse sees a longer chunk")?;
        body.extend_from_slice(data);
        coded = rest.strip_prefix(b"\r\n").ok_or("httparse sees a shorter chunk")?;
    }
}

fn compare_with_spans(ours: &Reading, spans: &[Span]) -> Result<(), String> {
    let whole: Vec<&Message> = ours.messages.iter().filter(|message| message.is_whole).collect();
    for (message, span) in whole.iter().zip(spans) {
        let fields = (&message.method, &message.fields, &message.body);
        if fields != (&span.method, &span.fields, &span.body) {
            return Err(format!("the pure reading has {span:#?}, not {message:#?}"));
        }
    }
    let may_end = spans.get(whole.len().wrapping_sub(1)).is_some_and(|last| last.ends_connection);
    // What hyper refuses although its form is right, such as a URI with a broken authority, ends a connection as well.
    if whole.len() > spans.len() || (whole.len() < spans.len() && ours.is_clean && !may_end) {
        return Err(format!("the pure reading has {} requests, the gate {}", spans.len(), whole.len()));
    }
    Ok(())
}

/// Cuts bytes into pieces as a network does.
fn pieces(bytes: &[u8], chance: &mut Chance) -> Vec<Bytes> {
    let most = [1, 3, 20, 200][chance.below(4)];
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(rest.len().min(1 + chance.below(most)));
        pieces.push(Bytes::copy_from_slice(piece));
        rest = behind;
    }
    pieces
}

async fn through_gate(pieces: Vec<Bytes>) -> Reading {
    let minute = Some(Duration::from_secs(60));
    let limits = GateLimits {
        fields_max: FIELDS_MAX,
        head_bytes_max: HEAD_BYTES_MAX,
        head_timeout: minute,
        idle_timeout: minute,
        half_closes: true,
    };
    let gate = Gate::shared(Box::new(Pieces::new(pieces)), limits);
    let messages = Arc::new(Mutex::new(Vec::new()));
    let served = serve(&gate, None, Trailing::Announced, |request| {
        let messages = Arc::clone(&messages);
        Box::pin(async move {
            let message = read(request).await;
            messages.lock().unwrap().push(message);
            let mut answer = Response::new(ResponseBody::full(Bytes::new()));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        })
    });
    let end = served.await;
    let messages = messages.lock().unwrap().clone();
    let is_clean = matches!(end, End::Done) && messages.iter().all(|message| message.is_whole);
    Reading { messages, is_clean }
}

/// Has hyper alone serve a connection to its end; returns its requests, and whether all went well.
async fn by_hyper(bytes: &[u8]) -> Reading {
    let mut machine = http1::Builder::new();
    machine.half_close(true).header_read_timeout(None);
    let io = Pieces::new(vec![Bytes::copy_from_slice(bytes)]);
    let messages = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let messages = Arc::clone(&messages);
        Box::pin(async move {
            let message = read(request).await;
            messages.lock().unwrap().push(message);
            let answer = Response::builder().status(StatusCode::NOT_FOUND).body(String::new());
            Ok::<_, Infallible>(answer.unwrap())
        })
    });
    let mut connection = machine.serve_connection(TokioIo::new(io), service);
    let served = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let messages = messages.lock().unwrap().clone();
    let is_clean = served.is_ok() && messages.iter().all(|message: &Message| message.is_whole);
    Reading { messages, is_clean }
}

async fn read(request: Request<impl Body<Data = Bytes> + Unpin>) -> Message {
    let (parts, mut incoming) = request.into_parts();
    let mut message = Message {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        version: format!("{:?}", parts.version),
        fields: listed(&parts.headers),
        body: Vec::new(),
        trailers: Vec::new(),
        is_whole: true,
    };
    while let Some(frame) = incoming.frame().await {
        match frame.map(|frame| frame.into_data().map_err(hyper::body::Frame::into_trailers)) {
            Ok(Ok(data)) => message.body.extend_from_slice(&data),
            Ok(Err(trailers)) => message.trailers = listed(&trailers.unwrap_or_default()),
            Err(_) => {
                message.is_whole = false;
                break;
            }
        }
    }
    message
}

fn listed(headers: &HeaderMap) -> Fields {
    sorted(headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect())
}

fn sorted(mut fields: Fields) -> Fields {
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

/// A connection on which these pieces arrive, and then its end; what is written is dropped.
#[derive(Debug)]
struct Pieces(VecDeque<Bytes>);

impl Pieces {
    fn new(pieces: Vec<Bytes>) -> Self {
        Self(pieces.into())
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(piece) = self.0.front_mut() {
            let count = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..count]);
            piece.advance(count);
            if piece.is_empty() {
                self.0.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
