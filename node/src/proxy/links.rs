//! How the proxy reaches a peer's proxy: a small view of the links, so that a test can put two proxies face to face.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use transport::{LinkError, LinkStream, Links, NodeId, Retirement};

use super::context::OutcomeKind;
use super::lanes::Place;
use crate::snapshot::EndpointStats;

/// Bytes both ways between two proxies, with a code for breaking off.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug + 'static {
    /// Breaks off both ways; the peer's next read fails with [`transport::StreamReset`] of this code.
    fn reset(&mut self, code: u32);

    /// Whether it has a way of its own for what is large.
    fn volume(&self) -> Volume;

    /// Ends when the peer wants no more of what is sent, or is gone. To be awaited by the task that writes.
    fn unwanted(&self) -> BoxFuture<'static, ()>;

    /// Whether the link it is on has been left, now or later: then it serves what is on it and nothing after that.
    fn retirement(&self) -> Retirement;
}

impl Duplex for LinkStream {
    fn reset(&mut self, code: u32) {
        Self::reset(self, code);
        self.stop(code);
    }

    fn volume(&self) -> Volume {
        if self.is_on_large() { Volume::Large } else { Volume::Small }
    }

    fn unwanted(&self) -> BoxFuture<'static, ()> {
        Self::unwanted(self)
    }

    fn retirement(&self) -> Retirement {
        Self::retirement(self).clone()
    }
}

/// From so many bytes on a body, or what a connection carries, is large: over QUIC it costs a half more than over TCP.
const LARGE_BYTES: u64 = 32 * 1024;

/// What a stream is expected to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Volume {
    /// A little, or nobody knows.
    Small,
    /// So much that a way is worth it which is cheaper for each byte.
    Large,
}

impl Volume {
    /// What the last streams to an endpoint carried, the next one will.
    pub(super) fn of(stats: &EndpointStats) -> Self {
        Self::of_bytes(stats.bytes_mean())
    }

    /// The same for a request with a body of at least so many bytes.
    pub(super) fn of_request(stats: &EndpointStats, body_bytes: u64) -> Self {
        Self::of_bytes(stats.bytes_mean().max(body_bytes))
    }

    const fn of_bytes(bytes: u64) -> Self {
        if bytes >= LARGE_BYTES { Self::Large } else { Self::Small }
    }
}

/// What the proxy asks of the links.
pub trait ServiceLinks: Send + Sync + 'static {
    /// Opens a stream to the proxy of `to` on a data link of this core; called on that core's runtime.
    fn open_service(
        &self,
        core: usize,
        to: NodeId,
        head: Bytes,
        volume: Volume,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>>;

    /// Whether a stream to `to` that carries much would have a way of its own.
    fn takes_large(&self, core: usize, to: NodeId) -> bool;

    /// The way of their own that streams to `to` which carry much may be under way on, be it one that takes no new ones.
    fn large_link(&self, core: usize, to: NodeId) -> Option<Retirement>;

    /// Opens a stream on a way of its own, or else on a data link, to see whether the proxy of `to` answers there.
    fn open_probe(
        &self,
        core: usize,
        to: NodeId,
        head: Bytes,
        large: Option<Retirement>,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>>;

    /// Nothing comes back on a way of its own: what is on it ends at once. Whether it was still there.
    fn give_up_large(&self, to: NodeId, large: &Retirement) -> bool;

    /// The smoothed round trip to `to`, where it is known.
    fn rtt(&self, to: NodeId) -> Option<Duration>;

    /// Packets received so far on the data link of this core to `to`.
    fn heard(&self, _core: usize, _to: NodeId) -> Option<u64> {
        None
    }

    /// A stream was opened in vain: the next one takes another link. Of a data link that holds if nothing has been received
    /// since `heard`; `volume` is that of the stream, as it came out.
    fn doubt(&self, _core: usize, _to: NodeId, _heard: Option<u64>, _volume: Volume) {}

    /// Sends a packet that may be lost to the proxy of `to`, beside the streams between the two.
    ///
    /// # Errors
    /// [`NotSent`] where it cannot even be tried.
    fn datagram(&self, core: usize, to: NodeId, bytes: Bytes) -> Result<(), NotSent>;
}

/// Why a packet was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// Longer than fits.
    TooLong,
    /// There is no data link, and none is dialled for a packet.
    NoLink,
}

impl ServiceLinks for Links {
    fn open_service(
        &self,
        core: usize,
        to: NodeId,
        head: Bytes,
        volume: Volume,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            let opened = match volume {
                Volume::Small => Self::open_service(self, core, to, head).await,
                Volume::Large => self.open_large(core, to, head).await,
            };
            let stream = opened.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }

    fn takes_large(&self, core: usize, to: NodeId) -> bool {
        Self::takes_large(self, core, to)
    }

    fn large_link(&self, core: usize, to: NodeId) -> Option<Retirement> {
        Self::large_link(self, core, to)
    }

    fn open_probe(
        &self,
        core: usize,
        to: NodeId,
        head: Bytes,
        large: Option<Retirement>,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move {
            let opened = match large {
                None => Self::open_service(self, core, to, head).await,
                Some(link) => self.open_beside_large(to, &link, head).await,
            };
            let stream = opened.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }

    fn give_up_large(&self, to: NodeId, large: &Retirement) -> bool {
        Self::give_up_large(self, to, large)
    }

    fn rtt(&self, to: NodeId) -> Option<Duration> {
        Self::rtt(self, to)
    }

    fn heard(&self, core: usize, to: NodeId) -> Option<u64> {
        Self::heard(self, core, to)
    }

    fn doubt(&self, core: usize, to: NodeId, heard: Option<u64>, volume: Volume) {
        match volume {
            Volume::Small => Self::doubt(self, core, to, heard),
            // What TCP does not carry says nothing of the data link.
            Volume::Large => {
                self.doubt_large(core, to);
            }
        }
    }

    fn datagram(&self, core: usize, to: NodeId, bytes: Bytes) -> Result<(), NotSent> {
        match self.send_beside(core, to, bytes) {
            Ok(()) => Ok(()),
            Err(LinkError::DatagramTooLong { .. }) => Err(NotSent::TooLong),
            Err(_no_link) => Err(NotSent::NoLink),
        }
    }
}

/// A stream to a peer that ends the moment the peer is given up, wherever somebody waits for its bytes.
pub(super) struct PeerStream {
    inner: Box<dyn Duplex>,
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
    is_given_up: bool,
    _place: Option<Place>,
}

impl PeerStream {
    pub(super) fn new(inner: Box<dyn Duplex>, peer: CancellationToken, place: Option<Place>) -> Self {
        Self { inner, given_up: Box::pin(peer.cancelled_owned()), is_given_up: false, _place: place }
    }

    /// Whether the link it is on has been left, now or later.
    pub(super) fn retirement(&self) -> Retirement {
        self.inner.retirement()
    }

    /// Whether it has a way of its own for what is large.
    pub(super) fn volume(&self) -> Volume {
        self.inner.volume()
    }

    /// What its end says: where it was on a way of its own and the peer was not given up, nothing of the peer.
    pub(super) fn end_kind(&self) -> OutcomeKind {
        if self.is_given_up { OutcomeKind::PeerFailed } else { OutcomeKind::of_broken(self.volume()) }
    }
}

impl fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerStream").field(&self.inner).finish()
    }
}

fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the peer was given up")
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_given_up {
            return Poll::Ready(Err(given_up()));
        }
        let read = Pin::new(&mut *self.inner).poll_read(cx, buf);
        if read.is_pending() && self.given_up.as_mut().poll(cx).is_ready() {
            self.is_given_up = true;
            return Poll::Ready(Err(given_up()));
        }
        read
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_given_up {
            return Poll::Ready(Err(given_up()));
        }
        Pin::new(&mut *self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(cx)
    }
}
