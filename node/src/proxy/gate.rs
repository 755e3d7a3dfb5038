//! A connection on which requests arrive: one whole, checked head at a time, the body behind it, and answers back.
//!
//! A head is collected before anything is done with it, so it is known when it began (408), how long it is (431), whether
//! it is HTTP/1.1 at all (505) and whether all readers agree where it ends (400). The body is followed to its end, so that
//! the next head is checked as well, however the client cuts its packets. `serve` is the loop around it.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use hyper::body::Frame;
use hyper::http::request;
use tokio::io::AsyncWrite as _;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use super::body::BodyError;
use super::framing::{Chunks, Framing, Taken, head_end, http2, read_request};
use super::refuse::{Reason, Refusal};
use super::tcp::Wire;

/// Bytes asked for with one read while a head is collected.
const READ_BYTES: usize = 2048;
/// Bytes asked for with one read of a body at first; where they all come, twice as many are asked for next.
const BODY_READ_BYTES: usize = 8 * 1024;
/// The most of that.
const BODY_READ_BYTES_MAX: usize = 64 * 1024;
/// Bytes that are read ahead while a request is answered.
const AHEAD_BYTES_MAX: usize = 16 * 1024;
/// So much waits to be written at most before it is written.
const UNWRITTEN_BYTES_MAX: usize = 16 * 1024;
/// How every HTTP/2 connection begins.
const HTTP2_BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Tells a client that waits for it to send the body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a client may take its time with.
#[derive(Debug, Clone, Copy)]
pub(super) struct GateLimits {
    /// Bytes of a request head.
    pub(super) head_bytes_max: usize,
    /// Fields of a request head.
    pub(super) fields_max: usize,
    /// From the first byte of a head to its last; `None` is as long as it takes.
    pub(super) head_timeout: Option<Duration>,
    /// Between requests, between two pieces of a body, and for the client to take a piece of a response.
    pub(super) idle_timeout: Option<Duration>,
    /// Whether who has ended its side still waits for its answer, as clients of TCP may.
    pub(super) half_closes: bool,
}

/// A connection on which whole, checked requests arrive.
#[derive(Debug)]
pub(super) struct Gate {
    io: Box<dyn Wire>,
    /// Read from the client, not used.
    unread: BytesMut,
    /// To be written to the client.
    unwritten: BytesMut,
    /// The same, behind that; large pieces are not copied.
    piece: Bytes,
    state: State,
    limits: GateLimits,
    timer: Timer,
    write_timer: Timer,
    /// The client waits to be told before it sends the body.
    awaits_continue: bool,
    /// The request whose body is read; who has another number reads no more.
    request: u64,
    /// An answer is being written: whoever reads the body may not write into it.
    is_answering: bool,
    /// Who waits for more of the body.
    reader: Option<Waker>,
    /// The client has ended its side.
    is_ended: bool,
    read_bytes: usize,
    /// Ends when nobody wants what is answered.
    unwanted: Unwanted,
}

/// What ends when a peer wants no more; it is asked only where reading could not tell.
struct Unwanted {
    told: Option<BoxFuture<'static, ()>>,
}

impl fmt::Debug for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwanted").finish_non_exhaustive()
    }
}

impl Unwanted {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(told) = &mut self.told else { return Poll::Pending };
        ready!(told.as_mut().poll(cx));
        self.told = None;
        Poll::Ready(())
    }
}

#[derive(Debug)]
enum State {
    /// Collecting a head; so many of its bytes were looked at.
    Head(usize),
    /// Inside a body with so many bytes left.
    Length(u64),
    /// Inside a chunked body.
    Chunked(Box<Chunks>),
    /// After a refusal or a fault: nothing is read any more.
    Over,
}

/// What comes next on a connection.
#[derive(Debug)]
pub(super) enum Next {
    /// A request, and what follows its head.
    Request(Box<request::Parts>, Framing),
    /// The end of the connection, or of the time for a request to come.
    End,
    /// Something that is refused; the client is to be told.
    Refused(Refusal),
    /// The connection is one of HTTP/2 from its first byte on.
    Http2,
}

/// A gate that a body reads from while its answer is written.
pub(super) type SharedGate = Arc<Mutex<Gate>>;

/// The gate itself; no panic leaves one half changed.
pub(super) fn lock(gate: &Mutex<Gate>) -> MutexGuard<'_, Gate> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the gate waits for; a change of it starts the clock again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    FirstByte,
    NextRequest,
    RestOfHead,
    Body,
    Write,
}

/// One timer, started when a wait begins and stopped by progress.
///
/// It is set anew only where it would ring too late; one that rings too early is set to what is left. So a busy
/// connection sets it once in a while, and not twice for each request.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    wait: Option<(Wait, Instant)>,
}

impl Timer {
    /// Ready once `wait` has lasted for `limit`.
    fn poll(&mut self, cx: &mut Context<'_>, wait: Wait, limit: Option<Duration>) -> Poll<()> {
        let Some(limit) = limit else { return Poll::Pending };
        let until = match self.wait {
            Some((known, until)) if known == wait => until,
            _ => sleep(limit).deadline(),
        };
        self.wait = Some((wait, until));
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }

    /// There was progress: the next wait starts from zero.
    const fn stop(&mut self) {
        self.wait = None;
    }
}

impl Gate {
    pub(super) fn new(io: Box<dyn Wire>, limits: GateLimits) -> Self {
        Self {
            io,
            unread: BytesMut::new(),
            unwritten: BytesMut::new(),
            piece: Bytes::new(),
            state: State::Head(0),
            limits,
            timer: Timer::default(),
            write_timer: Timer::default(),
            awaits_continue: false,
            request: 0,
            is_answering: false,
            reader: None,
            is_ended: false,
            read_bytes: BODY_READ_BYTES,
            unwanted: Unwanted { told: None },
        }
    }

    /// The same on a stream to a peer, which takes no more once this ends.
    pub(super) fn until(self, unwanted: BoxFuture<'static, ()>) -> Self {
        Self { unwanted: Unwanted { told: Some(unwanted) }, ..self }
    }

    /// The same, for the connection's loop and the body of a request to share.
    pub(super) fn shared(io: Box<dyn Wire>, limits: GateLimits) -> SharedGate {
        Arc::new(Mutex::new(Self::new(io, limits)))
    }

    /// The bare connection and what the client sent ahead; nothing more comes through here.
    pub(super) fn take_parts(&mut self) -> (Box<dyn Wire>, BytesMut) {
        self.state = State::Over;
        (std::mem::replace(&mut self.io, Box::new(tokio::io::empty())), std::mem::take(&mut self.unread))
    }

    /// Waits for the next request.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let State::Head(mut scanned) = self.state else { return Poll::Ready(Next::End) };
        loop {
            // RFC 9112 section 2.2: empty lines before a request line are ignored, also one that arrived in two pieces.
            while scanned <= 1 && self.unread.starts_with(b"\r\n") {
                self.unread.advance(2);
                scanned = 0;
            }
            if self.unread.starts_with(HTTP2_BEGINNING) {
                // In the middle of a connection it cannot begin.
                return Poll::Ready(if self.had_request() { self.refused(http2()) } else { Next::Http2 });
            }
            let found = head_end(&self.unread, &mut scanned);
            self.state = State::Head(scanned);
            let end = match found {
                Ok(end) => end,
                Err(refusal) => return Poll::Ready(self.refused(refusal)),
            };
            if end.unwrap_or(self.unread.len()) > self.limits.head_bytes_max {
                let limit = self.limits.head_bytes_max;
                return Poll::Ready(self.refused(Refusal::new(
                    Reason::HeadTooLarge,
                    format!("the request head is longer than {limit} bytes (`proxy.head_bytes_max`)"),
                )));
            }
            if let Some(end) = end {
                self.timer.stop();
                let head = self.unread.split_to(end).freeze();
                return Poll::Ready(match read_request(&head, self.limits.fields_max) {
                    Ok((parts, framing)) => self.request(parts, framing),
                    Err(refusal) => self.refused(refusal),
                });
            }
            self.unread.reserve(READ_BYTES);
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.unread) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                // An end inside a head is the client's loss; there is nobody to tell.
                Poll::Ready(_) => return Poll::Ready(Next::End),
                Poll::Pending => return self.poll_head_timer(cx),
            }
        }
    }

    fn request(&mut self, parts: request::Parts, framing: Framing) -> Next {
        self.request += 1;
        self.is_answering = false;
        self.state = match framing {
            Framing::None => State::Head(0),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Box::new(Chunks::new(self.limits.head_bytes_max))),
        };
        self.read_bytes = BODY_READ_BYTES;
        self.awaits_continue = framing != Framing::None
            && parts.version == hyper::Version::HTTP_11
            && parts.headers.contains_key(hyper::header::EXPECT);
        Next::Request(Box::new(parts), framing)
    }

    fn refused(&mut self, refusal: Refusal) -> Next {
        self.state = State::Over;
        Next::Refused(refusal)
    }

    fn poll_head_timer(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if self.unread.is_empty() {
            // Nothing is kept for a client that is silent.
            self.unread = BytesMut::new();
        }
        let (wait, limit) = match (self.unread.is_empty(), self.had_request()) {
            (false, _) => (Wait::RestOfHead, self.limits.head_timeout),
            (true, true) => (Wait::NextRequest, self.limits.idle_timeout),
            (true, false) => (Wait::FirstByte, self.limits.head_timeout),
        };
        ready!(self.timer.poll(cx, wait, limit));
        Poll::Ready(match wait {
            Wait::RestOfHead => self.refused(Refusal::new(
                Reason::HeadTimeout,
                format!(
                    "the request head was not complete after {} (`proxy.head_timeout`)",
                    humantime::format_duration(limit.unwrap_or_default())
                ),
            )),
            Wait::FirstByte | Wait::NextRequest | Wait::Body | Wait::Write => Next::End,
        })
    }

    const fn had_request(&self) -> bool {
        self.request > 0
    }

    /// The number of the request whose body is read.
    pub(super) const fn request_number(&self) -> u64 {
        self.request
    }

    /// An answer is written from here on.
    pub(super) const fn begin_answer(&mut self) {
        self.is_answering = true;
    }

    /// The request is answered: whoever still reads its body, in another task, reads no more.
    pub(super) fn end_request(&mut self) {
        self.request += 1;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Whether the body of the request was read to its end.
    pub(super) const fn is_between_requests(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Ready when whoever asked is gone, so that nobody waits for the answer. What is sent ahead is kept.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Inside a body its reader notices, unless nobody reads: an instance may take no more of it, and a peer be gone.
        if !self.is_between_requests() {
            return self.unwanted.poll(cx);
        }
        while !self.is_ended && self.unread.len() < AHEAD_BYTES_MAX {
            self.unread.reserve(READ_BYTES);
            match ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.unread)) {
                Ok(0) if self.limits.half_closes => self.is_ended = true,
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Whether the client still waits to be told to send the body.
    pub(super) const fn awaits_continue(&self) -> bool {
        self.awaits_continue
    }

    /// How much of the body is left, where that is known.
    pub(super) const fn left(&self, request: u64) -> Option<u64> {
        match self.state {
            _ if request != self.request => None,
            State::Length(left) => Some(left),
            State::Head(_) => Some(0),
            State::Chunked(_) | State::Over => None,
        }
    }

    /// Waits for the next piece of the request's body; `None` at its end.
    ///
    /// # Errors
    /// The client broke off, was silent for too long or broke the chunked coding.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        request: u64,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if request != self.request {
            return Poll::Ready(Some(Err("the request was answered before its body ended".into())));
        }
        loop {
            match &mut self.state {
                State::Head(_) => return Poll::Ready(None),
                State::Over => return Poll::Ready(Some(Err("the connection is broken".into()))),
                State::Length(left) => {
                    if !self.unread.is_empty() {
                        let here = usize::try_from(*left).map_or(self.unread.len(), |left| left.min(self.unread.len()));
                        let rest = *left - here as u64;
                        self.state = if rest == 0 { State::Head(0) } else { State::Length(rest) };
                        return Poll::Ready(Some(Ok(Frame::data(self.unread.split_to(here).freeze()))));
                    }
                }
                State::Chunked(chunks) => match chunks.take(&mut self.unread) {
                    Ok(Taken::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(Taken::Nothing) => {}
                    Ok(Taken::End(trailers)) => {
                        self.state = State::Head(0);
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    }
                    Err(refusal) => {
                        self.state = State::Over;
                        return Poll::Ready(Some(Err(refusal.detail().to_owned().into())));
                    }
                },
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.state = State::Over;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Pending => {
                    self.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads more of a body.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_answering {
            if std::mem::take(&mut self.awaits_continue) {
                self.unwritten.extend_from_slice(CONTINUE);
            }
            // Pending or not: reading goes on, and so does writing when there is room.
            if let Poll::Ready(written) = self.poll_write(cx) {
                written?;
            }
        }
        let read_bytes = self.read_bytes;
        self.unread.reserve(read_bytes);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.unread) {
            Poll::Ready(Ok(0)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client ended it in the middle")))
            }
            Poll::Ready(Ok(count)) => {
                self.timer.stop();
                if count >= read_bytes {
                    self.read_bytes = read_bytes.saturating_mul(2).min(BODY_READ_BYTES_MAX);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(self.timer.poll(cx, Wait::Body, self.limits.idle_timeout));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// What is to be written next; to be filled and then written with [`Self::poll_write`].
    pub(super) const fn unwritten(&mut self) -> &mut BytesMut {
        &mut self.unwritten
    }

    /// Puts a piece behind what is unwritten, without copying it. It has to be written before anything else is put there.
    pub(super) fn put_piece(&mut self, piece: Bytes) {
        self.piece = piece;
    }

    /// Whether more should be written before more is put to it.
    pub(super) fn is_full(&self) -> bool {
        !self.piece.is_empty() || self.unwritten.len() > UNWRITTEN_BYTES_MAX
    }

    /// Writes what is to be written, as far as the client takes it.
    ///
    /// # Errors
    /// Those of the connection; `TimedOut` where the client has taken nothing for too long.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() || !self.piece.is_empty() {
            let io = Pin::new(&mut self.io);
            let written = if self.piece.is_empty() {
                io.poll_write(cx, &self.unwritten)
            } else if self.unwritten.is_empty() {
                io.poll_write(cx, &self.piece)
            } else {
                io.poll_write_vectored(cx, &[io::IoSlice::new(&self.unwritten), io::IoSlice::new(&self.piece)])
            };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.write_timer.stop();
                    let first = count.min(self.unwritten.len());
                    self.unwritten.advance(first);
                    self.piece.advance(count - first);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(self.write_timer.poll(cx, Wait::Write, self.limits.idle_timeout));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sees to it that what was written does not wait in a buffer.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unwritten.is_empty() {
            // Nothing is kept for a connection that may be silent for long.
            self.unwritten = BytesMut::new();
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}
