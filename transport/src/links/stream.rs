//! One stream of bytes to a peer, both ways, with codes for breaking off.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quinn::{ReadError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::config::LinksConfig;
use crate::carrier::{RecvStream, SendStream};

/// Code with which the sending side of a stream is reset when it is dropped before it was finished.
pub const STREAM_DROPPED: u32 = 0;

/// The peer broke off what it was sending. Found inside the [`io::Error`] of a read, see [`StreamReset::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stream reset by peer with code {code}")]
pub struct StreamReset {
    /// What the peer passed to [`LinkStream::reset`].
    pub code: u32,
}

impl StreamReset {
    /// The reset inside an error of a read, if that is what ended it.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// The peer does not want to read further. Found inside the [`io::Error`] of a write, see [`StreamStopped::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stream stopped by peer with code {code}")]
pub struct StreamStopped {
    /// What the peer passed to [`LinkStream::stop`].
    pub code: u32,
}

impl StreamStopped {
    /// The stop inside an error of a write, if that is what ended it.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// Whether a link has been left: what is new goes over another one, so a stream that was kept for later use is of none.
#[derive(Debug, Clone, Default)]
pub struct Retirement {
    has_begun: Arc<AtomicBool>,
}

impl Retirement {
    /// The link is left, for good.
    pub fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Whether both are those of one link.
    #[must_use]
    pub fn is_of_same_link(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.has_begun, &other.has_begun)
    }
}

/// A stream of bytes in both directions. Many share one connection and do not block each other.
///
/// `poll_shutdown` finishes the sending side. Dropping a side that was not finished resets it with [`STREAM_DROPPED`],
/// so that a task that dies half way is not taken for a clean end; dropping the receiving side stops the peer.
#[derive(Debug)]
pub struct LinkStream {
    recv: LinkRecv,
    send: LinkSend,
}

impl LinkStream {
    pub(crate) fn new(send: SendStream, recv: RecvStream, streams: &Arc<StreamCount>) -> Self {
        let guard = Arc::new(OpenStream::new(streams));
        Self {
            recv: LinkRecv { stream: recv, _open: Arc::clone(&guard) },
            send: LinkSend { stream: send, is_ended: false, open: guard },
        }
    }

    /// The two sides, for two tasks.
    pub fn split(self) -> (LinkRecv, LinkSend) {
        (self.recv, self.send)
    }

    /// Breaks off sending: what is buffered is dropped and the peer's read fails with [`StreamReset`].
    pub fn reset(&mut self, code: u32) {
        self.send.reset(code);
    }

    /// Breaks off receiving: the peer's write fails with [`StreamStopped`].
    pub fn stop(&mut self, code: u32) {
        self.recv.stop(code);
    }

    /// Returns when the peer wants no more of what is sent or is gone, also while nothing is written and nothing read. For a
    /// stream that is not finished; to be awaited by the task that writes.
    pub fn unwanted(&self) -> BoxFuture<'static, ()> {
        self.send.stream.unwanted()
    }

    /// Whether it is on a link of this node for streams that carry much.
    pub fn is_on_large(&self) -> bool {
        self.send.open.streams.is_large
    }

    /// Whether its link has been left, now or later.
    pub fn retirement(&self) -> &Retirement {
        self.send.open.streams.retirement()
    }

    /// The receiving side.
    pub fn recv(&mut self) -> &mut LinkRecv {
        &mut self.recv
    }

    /// The sending side.
    pub fn send(&mut self) -> &mut LinkSend {
        &mut self.send
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

/// The receiving side of a [`LinkStream`].
pub struct LinkRecv {
    stream: RecvStream,
    _open: Arc<OpenStream>,
}

impl LinkRecv {
    /// Breaks off receiving: the peer's write fails with [`StreamStopped`]. Further reads fail.
    pub fn stop(&mut self, code: u32) {
        self.stream.stop(code);
    }

    /// The next bytes without copying them, at most `bytes_max`; `None` after the peer finished.
    ///
    /// # Errors
    /// [`StreamReset`] inside when the peer broke off, `NotConnected` when the connection ended.
    pub async fn read_chunk(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>> {
        self.stream.read_chunk(bytes_max).await.map_err(read_error)
    }
}

impl AsyncRead for LinkRecv {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ready!(self.stream.poll_read_buf(cx, buf)).map_err(read_error))
    }
}

impl fmt::Debug for LinkRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinkRecv").field(&self.stream.label()).finish()
    }
}

/// The sending side of a [`LinkStream`].
pub struct LinkSend {
    stream: SendStream,
    is_ended: bool,
    open: Arc<OpenStream>,
}

impl LinkSend {
    /// Breaks off sending: what is buffered is dropped and the peer's read fails with [`StreamReset`].
    pub fn reset(&mut self, code: u32) {
        self.is_ended = true;
        self.stream.reset(code);
    }

    /// Sends `bytes` without copying them.
    ///
    /// # Errors
    /// [`StreamStopped`] inside when the peer does not want more, `NotConnected` when the connection ended.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> io::Result<()> {
        self.stream.write_chunk(bytes).await.map_err(write_error)
    }
}

impl AsyncWrite for LinkSend {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(ready!(self.stream.poll_write(cx, buf)).map_err(write_error))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_ended = true;
        // Finishing twice, or after a reset, changes nothing and is not the caller's fault.
        self.stream.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for LinkSend {
    fn drop(&mut self) {
        if !self.is_ended {
            self.reset(STREAM_DROPPED);
            return;
        }
        // While the links are drained, a finished stream counts as open until the peer has all of it.
        if self.open.streams.all.is_draining.load(Ordering::SeqCst)
            && let Ok(runtime) = Handle::try_current()
        {
            let (delivered, open) = (self.stream.stopped(), Arc::clone(&self.open));
            runtime.spawn(async move {
                delivered.await.ok();
                drop(open);
            });
        }
    }
}

impl fmt::Debug for LinkSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinkSend").field(&self.stream.label()).finish()
    }
}

/// Streams of one link, and of all links of the node together.
#[derive(Debug)]
pub(crate) struct StreamCount {
    open: AtomicUsize,
    total: AtomicU64,
    /// How often the peer was allowed twice as many.
    doublings: AtomicU32,
    /// Whether the link has been left.
    retirement: Retirement,
    /// The link is one of this node's for streams that carry much.
    is_large: bool,
    all: Arc<OpenStreams>,
}

impl StreamCount {
    pub(crate) fn new(is_large: bool, all: Arc<OpenStreams>) -> Arc<Self> {
        let (open, total, doublings) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU32::new(0));
        Arc::new(Self { open, total, doublings, retirement: Retirement::default(), is_large, all })
    }

    pub(crate) const fn retirement(&self) -> &Retirement {
        &self.retirement
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many streams the peer may have open from now on, where those that are open ask for more.
    ///
    /// The one caller that gets an answer is to tell the peer.
    pub(crate) fn grown(&self, config: &LinksConfig) -> Option<u32> {
        let doublings = self.doublings.load(Ordering::Relaxed);
        let allowed = config.streams_start.saturating_mul(2_u32.saturating_pow(doublings));
        let is_needed = allowed < config.streams_max && self.open() >= usize::try_from(allowed / 4 * 3).ok()?;
        let is_mine = is_needed
            && self.doublings.compare_exchange(doublings, doublings + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        is_mine.then(|| allowed.saturating_mul(2).min(config.streams_max))
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// Open streams of all links; a drain waits for none.
#[derive(Debug, Default)]
pub(crate) struct OpenStreams {
    count: AtomicUsize,
    is_draining: AtomicBool,
    none_left: Notify,
}

impl OpenStreams {
    /// Returns when no stream is open and what was sent on those that end from now on has arrived.
    pub(crate) async fn drained(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
        loop {
            let none_left = self.none_left.notified();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            none_left.await;
        }
    }
}

/// Counts a stream as open for as long as either side of it lives.
#[derive(Debug)]
struct OpenStream {
    streams: Arc<StreamCount>,
}

impl OpenStream {
    fn new(streams: &Arc<StreamCount>) -> Self {
        streams.open.fetch_add(1, Ordering::Relaxed);
        streams.total.fetch_add(1, Ordering::Relaxed);
        streams.all.count.fetch_add(1, Ordering::SeqCst);
        Self { streams: Arc::clone(streams) }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
        if self.streams.all.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.streams.all.none_left.notify_waiters();
        }
    }
}

fn read_error(error: ReadError) -> io::Error {
    match error {
        ReadError::Reset(code) => io::Error::new(io::ErrorKind::ConnectionReset, StreamReset { code: narrow(code) }),
        ReadError::ConnectionLost(_)
        | ReadError::ClosedStream
        | ReadError::IllegalOrderedRead
        | ReadError::ZeroRttRejected => error.into(),
    }
}

fn write_error(error: WriteError) -> io::Error {
    match error {
        WriteError::Stopped(code) => io::Error::new(io::ErrorKind::BrokenPipe, StreamStopped { code: narrow(code) }),
        WriteError::ConnectionLost(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => error.into(),
    }
}

/// Codes of ours are 32 bits wide; a peer that sends more gets the highest.
fn narrow(code: VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}
