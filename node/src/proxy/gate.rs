//! The client's connection as the HTTP machine sees it: one whole, checked request head at a time.
//!
//! The gate collects a head before it hands a byte of it on, so it knows when a head began (408), how long it is
//! (431), whether it is HTTP/1.1 at all (505) and whether all readers agree where it ends (400). It then follows the
//! body to its end, so that the next head is checked as well, however the client cuts its packets. What it refuses
//! it keeps for the owner of the connection, who answers after the machine has let go.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use super::framing::{Chunks, Followed, Framing, check_head, head_end, http2};
use super::refuse::{Reason, Refusal};

/// Bytes asked for with one read while a head is collected.
const READ_BYTES: usize = 2048;
/// An empty buffer larger than this is given back while the client is silent.
const KEEP_BYTES: usize = 4096;
/// How every HTTP/2 connection begins.
const HTTP2_BEGINNING: &[u8] = b"PRI * HTTP/2.0\r\n";

/// What a client may take its time with.
#[derive(Debug, Clone, Copy)]
pub(super) struct GateLimits {
    /// Bytes of a request head.
    pub(super) head_bytes_max: usize,
    /// From the first byte of a head to its last.
    pub(super) head_timeout: Duration,
    /// Between requests, between two pieces of a body, and for the client to take a piece of a response.
    pub(super) idle_timeout: Duration,
}

/// A client's connection that only lets whole, checked request heads through.
#[derive(Debug)]
pub(super) struct Gate<S = TcpStream> {
    io: S,
    /// Read from the client, not handed on.
    unread: BytesMut,
    state: State,
    limits: GateLimits,
    timer: Timer,
    write_timer: Timer,
    refusal: Option<Refusal>,
    had_request: bool,
    is_http2: bool,
    is_write_blocked: bool,
}

#[derive(Debug)]
enum State {
    /// Collecting a head; so many of its bytes were looked at.
    Head(usize),
    /// Handing on so many bytes of a checked head.
    HandOn(usize, Framing),
    /// Inside a body with so many bytes left.
    Length(u64),
    /// Inside a chunked body.
    Chunked(Box<Chunks>),
    /// After a refusal: nothing is read any more.
    Over,
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
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    wait: Option<Wait>,
}

impl Timer {
    /// Ready once `wait` has lasted for `limit`.
    fn poll(&mut self, cx: &mut Context<'_>, wait: Wait, limit: Duration) -> Poll<()> {
        if self.wait != Some(wait) {
            let sleep = tokio::time::sleep(limit);
            match &mut self.sleep {
                Some(pinned) => pinned.set(sleep),
                None => self.sleep = Some(Box::pin(sleep)),
            }
            self.wait = Some(wait);
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// There was progress: the next wait starts from zero.
    const fn stop(&mut self) {
        self.wait = None;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gate<S> {
    pub(super) fn new(io: S, limits: GateLimits) -> Self {
        Self {
            io,
            unread: BytesMut::new(),
            state: State::Head(0),
            limits,
            timer: Timer::default(),
            write_timer: Timer::default(),
            refusal: None,
            had_request: false,
            is_http2: false,
            is_write_blocked: false,
        }
    }

    /// The refusal that ended the connection, unless the client has not even taken the previous response.
    pub(super) fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take().filter(|_| !self.is_write_blocked)
    }

    /// Whether the client began with HTTP/2: then the connection ends for the HTTP/1.1 machine only.
    pub(super) const fn is_http2(&self) -> bool {
        self.is_http2
    }

    /// The bare connection and what the client sent ahead.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.io, self.unread)
    }

    fn refuse(&mut self, refusal: Refusal) -> Poll<io::Result<()>> {
        self.refusal = Some(refusal);
        self.state = State::Over;
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }

    /// Collects a head; ready with `true` when a checked one is there, with `false` at the end of the connection.
    fn poll_head(&mut self, cx: &mut Context<'_>, mut scanned: usize) -> Poll<Result<bool, Refusal>> {
        loop {
            // RFC 9112 section 2.2: empty lines before a request line are ignored, also one that arrived in two pieces.
            while scanned <= 1 && self.unread.starts_with(b"\r\n") {
                self.unread.advance(2);
                scanned = 0;
            }
            if self.unread.starts_with(HTTP2_BEGINNING) {
                // In the middle of a connection it cannot begin.
                self.is_http2 = !self.had_request;
                return Poll::Ready(Err(http2()));
            }
            let found = head_end(&self.unread, &mut scanned);
            self.state = State::Head(scanned);
            let end = match found {
                Ok(end) => end,
                Err(refusal) => return Poll::Ready(Err(refusal)),
            };
            if end.unwrap_or(self.unread.len()) > self.limits.head_bytes_max {
                let limit = self.limits.head_bytes_max;
                return Poll::Ready(Err(Refusal::new(
                    Reason::HeadTooLarge,
                    format!("the request head is longer than {limit} bytes (`proxy.head_bytes_max`)"),
                )));
            }
            if let Some(end) = end {
                let framing = check_head(self.unread.get(..end).unwrap_or_default());
                return Poll::Ready(framing.map(|framing| {
                    self.state = State::HandOn(end, framing);
                    self.had_request = true;
                    self.timer.stop();
                    true
                }));
            }
            self.unread.reserve(READ_BYTES);
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.unread) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                // An end inside a head is the client's loss; there is nobody to tell.
                Poll::Ready(_) => return Poll::Ready(Ok(false)),
                Poll::Pending => return self.poll_head_timer(cx),
            }
        }
    }

    fn poll_head_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Refusal>> {
        if self.unread.is_empty() && self.unread.capacity() > KEEP_BYTES {
            self.unread = BytesMut::new();
        }
        let (wait, limit) = match (self.unread.is_empty(), self.had_request) {
            (false, _) => (Wait::RestOfHead, self.limits.head_timeout),
            (true, true) => (Wait::NextRequest, self.limits.idle_timeout),
            (true, false) => (Wait::FirstByte, self.limits.head_timeout),
        };
        ready!(self.timer.poll(cx, wait, limit));
        Poll::Ready(match wait {
            Wait::RestOfHead => Err(Refusal::new(
                Reason::HeadTimeout,
                format!(
                    "the request head was not complete after {} (`proxy.head_timeout`)",
                    humantime::format_duration(limit)
                ),
            )),
            Wait::FirstByte | Wait::NextRequest | Wait::Body | Wait::Write => Ok(false),
        })
    }

    /// Hands on at most `count` bytes that were read already; returns how many.
    fn hand_on(&mut self, count: usize, buf: &mut ReadBuf<'_>) -> usize {
        let count = count.min(buf.remaining()).min(self.unread.len());
        buf.put_slice(self.unread.get(..count).unwrap_or_default());
        self.unread.advance(count);
        count
    }

    /// Makes sure that a part of the body is in `unread`; ready with `false` at the end of the connection.
    fn poll_fill(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<bool>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Ok(true));
        }
        self.unread.reserve(want);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.unread) {
            Poll::Ready(read) => {
                self.timer.stop();
                Poll::Ready(read.map(|count| count > 0))
            }
            Poll::Pending => {
                ready!(self.timer.poll(cx, Wait::Body, self.limits.idle_timeout));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    fn poll_length(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, left: u64) -> Poll<io::Result<()>> {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.remaining());
        if !ready!(self.poll_fill(cx, want))? {
            return Poll::Ready(Ok(()));
        }
        let left = left - self.hand_on(want, buf) as u64;
        self.state = if left == 0 { State::Head(0) } else { State::Length(left) };
        Poll::Ready(Ok(()))
    }

    fn poll_chunked(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let want = buf.remaining();
        if !ready!(self.poll_fill(cx, want))? {
            return Poll::Ready(Ok(()));
        }
        let State::Chunked(chunks) = &mut self.state else {
            return Poll::Ready(Ok(()));
        };
        let piece = self.unread.get(..want.min(self.unread.len())).unwrap_or_default();
        let count = match chunks.follow(piece) {
            Ok(Followed::All) => piece.len(),
            Ok(Followed::EndsAfter(count)) => {
                self.state = State::Head(0);
                count
            }
            // The machine is inside this request and answers itself; see `Sent::ClientBroke`.
            Err(_refusal) => {
                self.state = State::Over;
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        };
        self.hand_on(count, buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gate<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let State::Head(scanned) = this.state {
            match ready!(this.poll_head(cx, scanned)) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(Ok(())),
                Err(refusal) => return this.refuse(refusal),
            }
        }
        match this.state {
            State::HandOn(left, framing) => {
                let left = left - this.hand_on(left, buf);
                this.state = match (left, framing) {
                    (1.., framing) => State::HandOn(left, framing),
                    (0, Framing::None) => State::Head(0),
                    (0, Framing::Length(length)) => State::Length(length),
                    (0, Framing::Chunked) => State::Chunked(Box::new(Chunks::new(this.limits.head_bytes_max))),
                };
                Poll::Ready(Ok(()))
            }
            State::Length(left) => this.poll_length(cx, buf, left),
            State::Chunked(_) => this.poll_chunked(cx, buf),
            State::Head(_) | State::Over => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gate<S> {
    fn after_write(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.is_write_blocked = written.is_pending();
        if written.is_ready() {
            self.write_timer.stop();
            return written;
        }
        ready!(self.write_timer.poll(cx, Wait::Write, self.limits.idle_timeout));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.after_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.after_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
