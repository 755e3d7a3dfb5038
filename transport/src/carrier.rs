//! A connection and its streams, whichever of the two ways carries them: QUIC, or TLS over TCP.
//!
//! The names and errors are quinn's. What is left to say of TCP beside it stands in [`crate::tcp`].

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use quinn::crypto::rustls::HandshakeData;
use quinn::{
    ConnectionError, ReadError, ReadExactError, ReadToEndError, SendDatagramError, StoppedError, VarInt, WriteError,
};
use rustls::pki_types::CertificateDer;
use tokio::io::ReadBuf;

use crate::tcp::connection as tcp;
use crate::tcp::frame::DATAGRAM_BYTES_MAX;
use crate::trust::key_exchange_name;

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// QUIC over UDP.
    Quic,
    /// TLS 1.3 over TCP.
    Tcp,
}

impl Carrier {
    /// The name on status pages and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// What the packets of a connection tell of its path so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PathSample {
    pub(crate) rtt: Duration,
    pub(crate) packets_sent: u64,
    pub(crate) packets_lost: u64,
    /// UDP datagrams in both directions; TCP notices a silent peer by itself.
    pub(crate) udp: Option<(u64, u64)>,
}

/// A connection to a peer.
#[derive(Debug, Clone)]
pub(crate) enum Connection {
    Quic(quinn::Connection),
    Tcp(tcp::Connection),
}

impl Connection {
    pub(crate) const fn carrier(&self) -> Carrier {
        match self {
            Self::Quic(_) => Carrier::Quic,
            Self::Tcp(_) => Carrier::Tcp,
        }
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(quic) => quic.remote_address(),
            Self::Tcp(tcp) => tcp.remote_address(),
        }
    }

    /// The address of this node that its packets come to; not known of TCP, which notices by itself that it is gone.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Quic(quic) => quic.local_ip(),
            Self::Tcp(_) => None,
        }
    }

    /// The certificates the peer showed, its leaf first.
    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        match self {
            Self::Quic(quic) => {
                let shown = quic.peer_identity().and_then(|shown| shown.downcast().ok());
                shown.map(|shown| *shown).unwrap_or_default()
            }
            Self::Tcp(tcp) => tcp.certificates().to_vec(),
        }
    }

    /// The key exchange that protects it.
    pub(crate) fn key_exchange(&self) -> &'static str {
        match self {
            Self::Quic(quic) => {
                let handshake = quic.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
                handshake.map_or("unknown", |handshake| key_exchange_name(handshake.negotiated_key_exchange_group))
            }
            Self::Tcp(tcp) => tcp.key_exchange(),
        }
    }

    pub(crate) async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        match self {
            Self::Quic(quic) => both(quic.open_bi().await, SendStream::Quic, RecvStream::Quic),
            Self::Tcp(tcp) => both(tcp.open_bi().await, SendStream::Tcp, RecvStream::Tcp),
        }
    }

    pub(crate) async fn open_uni(&self) -> Result<SendStream, ConnectionError> {
        match self {
            Self::Quic(quic) => quic.open_uni().await.map(SendStream::Quic),
            Self::Tcp(tcp) => tcp.open_uni().await.map(SendStream::Tcp),
        }
    }

    pub(crate) async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        match self {
            Self::Quic(quic) => both(quic.accept_bi().await, SendStream::Quic, RecvStream::Quic),
            Self::Tcp(tcp) => both(tcp.accept_bi().await, SendStream::Tcp, RecvStream::Tcp),
        }
    }

    pub(crate) async fn accept_uni(&self) -> Result<RecvStream, ConnectionError> {
        match self {
            Self::Quic(quic) => quic.accept_uni().await.map(RecvStream::Quic),
            Self::Tcp(tcp) => tcp.accept_uni().await.map(RecvStream::Tcp),
        }
    }

    pub(crate) fn send_datagram(&self, bytes: Bytes) -> Result<(), SendDatagramError> {
        match self {
            Self::Quic(quic) => quic.send_datagram(bytes),
            Self::Tcp(tcp) => tcp.send_datagram(bytes),
        }
    }

    pub(crate) async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        match self {
            Self::Quic(quic) => quic.read_datagram().await,
            Self::Tcp(tcp) => tcp.read_datagram().await,
        }
    }

    pub(crate) fn datagram_send_buffer_space(&self) -> usize {
        match self {
            Self::Quic(quic) => quic.datagram_send_buffer_space(),
            Self::Tcp(tcp) => tcp.datagram_send_buffer_space(),
        }
    }

    pub(crate) fn max_datagram_size(&self) -> Option<usize> {
        match self {
            Self::Quic(quic) => quic.max_datagram_size(),
            Self::Tcp(_) => Some(DATAGRAM_BYTES_MAX),
        }
    }

    pub(crate) fn rtt(&self) -> Duration {
        match self {
            Self::Quic(quic) => quic.rtt(),
            Self::Tcp(tcp) => tcp.rtt(),
        }
    }

    pub(crate) fn path(&self) -> PathSample {
        match self {
            Self::Quic(quic) => {
                let stats = quic.stats();
                PathSample {
                    rtt: stats.path.min_rtt.min(stats.path.rtt),
                    packets_sent: stats.path.sent_packets,
                    packets_lost: stats.path.lost_packets,
                    udp: Some((stats.udp_tx.datagrams, stats.udp_rx.datagrams)),
                }
            }
            // What TCP has lost and sent again, it does not tell.
            Self::Tcp(tcp) => PathSample { rtt: tcp.rtt(), packets_sent: 0, packets_lost: 0, udp: None },
        }
    }

    /// Lets the peer have up to so many streams open that go both ways.
    pub(crate) fn set_max_concurrent_bi_streams(&self, count: u32) {
        match self {
            Self::Quic(quic) => quic.set_max_concurrent_bi_streams(VarInt::from_u32(count)),
            Self::Tcp(tcp) => tcp.raise_bi_streams(count),
        }
    }

    pub(crate) fn close(&self, code: u32, reason: &[u8]) {
        match self {
            Self::Quic(quic) => quic.close(VarInt::from_u32(code), reason),
            Self::Tcp(tcp) => tcp.close(code, reason),
        }
    }

    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        match self {
            Self::Quic(quic) => quic.close_reason(),
            Self::Tcp(tcp) => tcp.close_reason(),
        }
    }

    pub(crate) async fn closed(&self) -> ConnectionError {
        match self {
            Self::Quic(quic) => quic.closed().await,
            Self::Tcp(tcp) => tcp.closed().await,
        }
    }
}

fn both<S, R>(
    opened: Result<(S, R), ConnectionError>,
    send: impl FnOnce(S) -> SendStream,
    recv: impl FnOnce(R) -> RecvStream,
) -> Result<(SendStream, RecvStream), ConnectionError> {
    opened.map(|(sending, receiving)| (send(sending), recv(receiving)))
}

/// The sending side of a stream. Dropped before it was reset, it is finished.
pub(crate) enum SendStream {
    Quic(quinn::SendStream),
    Tcp(tcp::SendStream),
}

impl SendStream {
    /// Its number, for logs.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Quic(quic) => quic.id().to_string(),
            Self::Tcp(tcp) => format!("{:?}", tcp.id()),
        }
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, WriteError>> {
        match self {
            Self::Quic(quic) => quinn::SendStream::poll_write(Pin::new(quic), cx, bytes),
            Self::Tcp(tcp) => tcp.poll_write(cx, bytes),
        }
    }

    pub(crate) async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        match self {
            Self::Quic(quic) => quic.write_chunk(bytes).await,
            Self::Tcp(tcp) => tcp.write_chunk(bytes).await,
        }
    }

    pub(crate) async fn write_all_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        match self {
            Self::Quic(quic) => quic.write_all_chunks(chunks).await,
            Self::Tcp(tcp) => {
                for chunk in chunks {
                    tcp.write_chunk(std::mem::take(chunk)).await?;
                }
                Ok(())
            }
        }
    }

    /// No more will be written. Repeated calls, and one after a reset, change nothing.
    pub(crate) fn finish(&mut self) {
        match self {
            // Fails only when the stream has ended already.
            Self::Quic(quic) => {
                quic.finish().ok();
            }
            Self::Tcp(tcp) => tcp.finish(),
        }
    }

    pub(crate) fn reset(&mut self, code: u32) {
        match self {
            // Fails only when the stream has ended already, and then there is nothing left to reset.
            Self::Quic(quic) => {
                quic.reset(VarInt::from_u32(code)).ok();
            }
            Self::Tcp(tcp) => tcp.reset(code),
        }
    }

    /// Returns when the peer has everything (`None`), or wants no more.
    pub(crate) fn stopped(&self) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + Send + 'static {
        match self {
            Self::Quic(quic) => quic.stopped().left_future(),
            Self::Tcp(tcp) => tcp.stopped().right_future(),
        }
    }
}

impl SendStream {
    /// Returns when the peer wants no more or is gone, for a stream that is not finished; to be awaited by the task that writes.
    pub(crate) fn unwanted(&self) -> BoxFuture<'static, ()> {
        match self {
            Self::Quic(quic) => quic.stopped().map(drop).boxed(),
            Self::Tcp(tcp) => tcp.unwanted().boxed(),
        }
    }
}

/// The receiving side of a stream. Dropped before its end was read, the peer is stopped.
pub(crate) enum RecvStream {
    Quic(quinn::RecvStream),
    Tcp(tcp::RecvStream),
}

impl RecvStream {
    /// Its number, for logs.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Quic(quic) => quic.id().to_string(),
            Self::Tcp(tcp) => format!("{:?}", tcp.id()),
        }
    }

    pub(crate) fn poll_read_buf(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<(), ReadError>> {
        match self {
            Self::Quic(quic) => quic.poll_read_buf(cx, buf),
            Self::Tcp(tcp) => {
                if buf.remaining() > 0
                    && let Some(bytes) = ready!(tcp.poll_read(cx, buf.remaining()))?
                {
                    buf.put_slice(&bytes);
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    pub(crate) async fn read_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, ReadError> {
        match self {
            Self::Quic(quic) => Ok(quic.read_chunk(bytes_max, true).await?.map(|chunk| chunk.bytes)),
            Self::Tcp(tcp) => tcp.read_chunk(bytes_max).await,
        }
    }

    pub(crate) async fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), ReadExactError> {
        let tcp = match self {
            Self::Quic(quic) => return quic.read_exact(buf).await,
            Self::Tcp(tcp) => tcp,
        };
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..)
            && !rest.is_empty()
        {
            let chunk = tcp.read_chunk(rest.len()).await.map_err(ReadExactError::ReadError)?;
            let Some(chunk) = chunk else { return Err(ReadExactError::FinishedEarly(filled)) };
            for (to, from) in rest.iter_mut().zip(&chunk) {
                *to = *from;
            }
            filled += chunk.len();
        }
        Ok(())
    }

    /// Everything up to the end, at most `bytes_max`.
    pub(crate) async fn read_to_end(&mut self, bytes_max: usize) -> Result<Vec<u8>, ReadToEndError> {
        let tcp = match self {
            Self::Quic(quic) => return quic.read_to_end(bytes_max).await,
            Self::Tcp(tcp) => tcp,
        };
        let mut whole = Vec::new();
        while let Some(chunk) = tcp.read_chunk(usize::MAX).await.map_err(ReadToEndError::Read)? {
            if whole.len() + chunk.len() > bytes_max {
                return Err(ReadToEndError::TooLong);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }

    pub(crate) fn stop(&mut self, code: u32) {
        match self {
            // Fails only when the stream has ended already, and then there is nothing left to stop.
            Self::Quic(quic) => {
                quic.stop(VarInt::from_u32(code)).ok();
            }
            Self::Tcp(tcp) => tcp.stop(code),
        }
    }
}
