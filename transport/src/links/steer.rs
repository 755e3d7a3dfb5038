//! Packets of a connection whose peer has moved, brought to the core that has the connection.
//!
//! The kernel spreads packets over the sockets of the mesh port by the addresses they travel between. When the address
//! of a peer changes, its packets may come out of the socket of another core than before, where nobody knows their
//! connection. The id they are sent to names the core (see `connection_id`), so each socket looks at what it
//! receives and hands what is not its own to the socket it belongs to, over a bounded queue. When the queue is full the
//! packet is dropped and counted, and QUIC sends what was in it again.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

use super::connection_id::CoreConnectionIds;
use super::counters::LinkCounters;
use super::lock;

/// Packets that wait for one core; at 1.5 KB each they hold no more than 400 KB.
const STRAYS_MAX: usize = 256;

/// A packet that came out of another core's socket.
struct Stray {
    bytes: Vec<u8>,
    meta: RecvMeta,
}

/// Where the sockets of all cores hand over what is another's.
pub(crate) struct Crossing {
    to: Arc<[mpsc::Sender<Stray>]>,
    from: Vec<mpsc::Receiver<Stray>>,
}

impl Crossing {
    /// A crossing of `cores` cores.
    pub(crate) fn new(cores: usize) -> Self {
        let (to, from) = (0..cores).map(|_| mpsc::channel(STRAYS_MAX)).unzip::<_, _, Vec<_>, _>();
        Self { to: to.into(), from }
    }

    /// The sockets as endpoints are to have them, in the order of the cores; `ids` are those of each core.
    pub(crate) fn join(
        self,
        sockets: Vec<Arc<dyn AsyncUdpSocket>>,
        ids: impl Fn(usize) -> CoreConnectionIds,
        counters: &Arc<LinkCounters>,
    ) -> Vec<Arc<dyn AsyncUdpSocket>> {
        let joined = sockets.into_iter().zip(self.from).enumerate().map(|(core, (inner, strays))| {
            let (to, counters) = (Arc::clone(&self.to), Arc::clone(counters));
            Arc::new(SteeredSocket { inner, ids: ids(core), to, strays: Mutex::new(strays), counters })
                as Arc<dyn AsyncUdpSocket>
        });
        joined.collect()
    }
}

/// The socket of one core, which keeps to the connections of this core.
struct SteeredSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    ids: CoreConnectionIds,
    to: Arc<[mpsc::Sender<Stray>]>,
    /// What other cores received for this one. Only the endpoint of this core takes from it.
    strays: Mutex<mpsc::Receiver<Stray>>,
    counters: Arc<LinkCounters>,
}

impl fmt::Debug for SteeredSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SteeredSocket").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl SteeredSocket {
    /// Fills at most half of the buffers with what other cores received, so that neither source starves the other.
    fn deliver(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let room = bufs.len().div_ceil(2);
        let mut strays = lock(&self.strays);
        let mut delivered = 0;
        for (buf, meta) in bufs.iter_mut().zip(metas).take(room) {
            let Poll::Ready(Some(stray)) = strays.poll_recv(cx) else { break };
            let Some(space) = buf.get_mut(..stray.bytes.len()) else { break };
            space.copy_from_slice(&stray.bytes);
            *meta = stray.meta;
            delivered += 1;
        }
        delivered
    }

    /// Takes out of one buffer what is for other cores. With GRO it holds several packets, of which all but the last
    /// are `stride` long; what is left closes up and keeps that shape.
    fn pass_on(&self, buf: &mut [u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        let Some(filled) = buf.get_mut(..meta.len) else { return };
        if !filled.chunks(stride).any(|packet| self.ids.other_core(packet).is_some()) {
            return;
        }
        let mut kept = 0;
        for begin in (0..filled.len()).step_by(stride) {
            let end = filled.len().min(begin + stride);
            let packet = filled.get(begin..end).unwrap_or_default();
            match self.ids.other_core(packet) {
                Some(core) => self.hand_over(core, packet, meta),
                None => {
                    filled.copy_within(begin..end, kept);
                    kept += end - begin;
                }
            }
        }
        meta.len = kept;
    }

    fn hand_over(&self, core: usize, packet: &[u8], meta: &RecvMeta) {
        let stray =
            Stray { bytes: packet.to_vec(), meta: RecvMeta { len: packet.len(), stride: packet.len(), ..*meta } };
        match self.to.get(core).map(|to| to.try_send(stray)) {
            Some(Ok(())) => self.counters.packets_steered.add(),
            Some(Err(_full_or_gone)) => self.counters.packets_steered_dropped.add(),
            // Nobody gave this id away.
            None => {}
        }
    }
}

impl AsyncUdpSocket for SteeredSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let delivered = self.deliver(cx, bufs, metas);
        let (Some(bufs), Some(metas)) = (bufs.get_mut(delivered..), metas.get_mut(delivered..)) else {
            return Poll::Ready(Ok(delivered));
        };
        match self.inner.poll_recv(cx, bufs, metas) {
            Poll::Ready(Ok(received)) => {
                for (buf, meta) in bufs.iter_mut().zip(metas).take(received) {
                    self.pass_on(buf, meta);
                }
                Poll::Ready(Ok(delivered + received))
            }
            // An error of the socket comes again with the next call.
            Poll::Ready(Err(_)) | Poll::Pending if delivered > 0 => Poll::Ready(Ok(delivered)),
            other => other,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests;
