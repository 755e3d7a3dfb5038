//! The same for answers: what an exchange takes, hyper's client reads alike.
//!
//! Each case is an answer's bytes, and the end of the connection behind them. Ours reads them whole and in pieces. Where it
//! takes the answer to its end, hyper has to have the same status, fields, body and trailers, and the same end.

use std::task::Waker;

use hyper::client::conn::http1;
use hyper::{Method, Response};

use super::super::body::{Arriving, RequestBody};
use super::super::exchange::{Connection, Exchange};
use super::*;

#[tokio::test]
async fn an_answer_that_is_taken_is_read_alike_by_hyper() {
    let setting = |name: &str| std::env::var(name).ok();
    let seed = setting("MARRAM_FUZZ_SEED").map_or(1, |text| text.parse().unwrap());
    let limit = setting("MARRAM_FUZZ_FOR").map(|text| humantime::parse_duration(&text).unwrap());
    let clock = SystemClock::start();
    let (mut cases, mut taken) = (0_u64, 0_u64);
    let goes_on = |cases: u64, spent: Duration| limit.map_or(cases < CASES, |limit| spent < limit);
    while goes_on(cases, clock.now()) {
        let mut chance = Chance::new(!seed ^ (cases << 20));
        let bytes = generate::answer(&mut chance);
        let method = if chance.below(8) == 0 { Method::HEAD } else { Method::GET };
        let whole = by_us(&method, vec![Bytes::copy_from_slice(&bytes)]).await;
        let cut = by_us(&method, pieces(&bytes, &mut chance)).await;
        let shown = bytes.escape_ascii();
        assert_eq!(whole, cut, "seed {seed}, case {cases}: cut in pieces it reads differently: {method} {shown}");
        if let Some(ours) = whole {
            taken += 1;
            let hypers = by_hypers_client(&method, &bytes).await;
            assert_eq!(Some(ours), hypers, "seed {seed}, case {cases}: hyper reads it differently: {method} {shown}");
        }
        cases += 1;
    }
    eprintln!("seed {seed}: {cases} answers in {:.1?}, {taken} taken", clock.now());
    assert!(taken > cases / 5 && taken < cases / 10 * 9, "{taken} of {cases} were taken: the cases say little");
}

/// The answer, where it is taken to its end.
async fn by_us(method: &Method, pieces: Vec<Bytes>) -> Option<Message> {
    let (parts, ()) = Request::builder().method(method).uri("/").body(()).unwrap().into_parts();
    let connection = Connection::new(Box::new(Replying::new(pieces)), HEAD_BYTES_MAX);
    let mut exchange = Exchange::begin(connection, &parts, RequestBody::Whole(Bytes::new()));
    let head = exchange.answer().await.ok()?;
    // Without being asked to switch, the attempt refuses it.
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    read_answer(Response::from_parts(head, Arriving::Answer(exchange))).await
}

async fn by_hypers_client(method: &Method, bytes: &[u8]) -> Option<Message> {
    let io = TokioIo::new(Replying::new(vec![Bytes::copy_from_slice(bytes)]));
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = Request::builder().method(method).uri("/").body(String::new()).unwrap();
    let response = sender.send_request(request).await.ok()?;
    read_answer(response).await
}

async fn read_answer(response: Response<impl Body<Data = Bytes> + Unpin>) -> Option<Message> {
    let (parts, body) = response.into_parts();
    let mut request = Request::new(body);
    *request.headers_mut() = parts.headers;
    let message = read(request).await;
    // Both are told as messages; what a request would have in its first line is empty here.
    message.is_whole.then(|| Message { target: parts.status.to_string(), ..message })
}

/// A connection on which these pieces arrive once something was written, and then its end.
#[derive(Debug)]
struct Replying {
    pieces: Pieces,
    was_asked: bool,
    waiting: Option<Waker>,
}

impl Replying {
    fn new(pieces: Vec<Bytes>) -> Self {
        Self { pieces: Pieces::new(pieces), was_asked: false, waiting: None }
    }
}

impl AsyncRead for Replying {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.was_asked {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.pieces).poll_read(cx, buf)
    }
}

impl AsyncWrite for Replying {
    fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.was_asked = true;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
