//! What the links count: handshakes, refusals and what was dropped, each by a reason from a closed set.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::carrier::Carrier;
use crate::frame::FrameRefusal;
use crate::tcp::TcpFault;

/// A closed set of reasons, each with a name fit for a metric label.
pub trait Reason: Copy + PartialEq + 'static {
    /// Every reason, in the order in which they are listed.
    const REASONS: &'static [Self];

    /// The name used as a metric label.
    fn label(self) -> &'static str;
}

/// One counter for each reason of a closed set. Counts only grow.
pub struct ByReason<R: Reason> {
    counts: Box<[(R, AtomicU64)]>,
}

impl<R: Reason> ByReason<R> {
    pub(crate) fn add(&self, reason: R) {
        if let Some((_, count)) = self.counts.iter().find(|(known, _)| *known == reason) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often this reason was counted.
    pub fn count(&self, reason: R) -> u64 {
        self.counts.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| count.load(Ordering::Relaxed))
    }

    /// Every reason's label with its count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter().map(|(reason, count)| (reason.label(), count.load(Ordering::Relaxed)))
    }

    /// The sum over all reasons.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }
}

impl<R: Reason> Default for ByReason<R> {
    fn default() -> Self {
        Self { counts: R::REASONS.iter().map(|reason| (*reason, AtomicU64::new(0))).collect() }
    }
}

impl<R: Reason> fmt::Debug for ByReason<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything the links of one node count.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// Connections that peers opened and that got as far as their hello.
    pub handshakes_inbound: Count,
    /// Connections that this node opened and that were confirmed.
    pub handshakes_outbound: Count,
    /// Connections that others tried to open, refused.
    pub handshakes_refused: ByReason<HandshakeRefusal>,
    /// Connection attempts answered with a Retry packet because many handshakes were pending.
    pub retries_sent: Count,
    /// Beginnings of streams and messages refused; each closed its connection.
    pub frames_refused: ByReason<FrameRefusal>,
    /// What peers sent over TCP that are no frames, or break their rules; each closed its connection.
    pub tcp_faults: ByReason<TcpFault>,
    /// Control links that took over from one of the other carrier, by what carries them.
    pub carrier_changes: ByReason<Carrier>,
    /// Connections this node tried to open, failed.
    pub dials_failed: ByReason<DialFailure>,
    /// Attempts to open a connection again after one was lost or refused.
    pub redials: Count,
    /// Datagrams that were not sent.
    pub datagrams_dropped: ByReason<DatagramDrop>,
    /// Messages that were accepted for sending and then given up.
    pub messages_dropped: ByReason<MessageDrop>,
    /// Connections closed because both sides had dialled, or because a newer one of the same opener took over.
    pub duplicates_closed: Count,
    /// Connections closed because the peer has started again.
    pub superseded_closed: Count,
    /// Connections closed because a certificate had expired.
    pub expired_closed: Count,
    /// Connections that a restarted peer ended by a stateless reset.
    pub stateless_resets: Count,
    /// Connections whose peer went on from another address.
    pub migrations: Count,
    /// Packets that came out of another core's socket than that of their connection and were brought there.
    pub packets_steered: Count,
    /// The same, dropped because too many waited for that core already.
    pub packets_steered_dropped: Count,
    /// Times a core's connections were moved to a new socket, because this node's address changed or nobody answered.
    pub rebinds: Count,
    /// Connections found silent: new work goes over another one until they are heard again.
    pub links_silent: Count,
}

/// Why a connection that somebody tried to open was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HandshakeRefusal {
    /// No certificate, or one that does not lead to a node of this mesh.
    Certificate,
    /// Another protocol: no common cipher, version or application protocol, or not QUIC as we know it.
    Protocol,
    /// The handshake was not finished in time.
    TimedOut,
    /// The other side gave up.
    PeerClosed,
    /// The node has as many connections as it may have.
    TooManyConnections,
    /// More handshakes were pending than may be.
    TooManyPending,
    /// The peer has as many connections to this node as one peer may have.
    TooManyOfPeer,
    /// The node stops.
    Stopping,
}

impl Reason for HandshakeRefusal {
    const REASONS: &'static [Self] = &[
        Self::Certificate,
        Self::Protocol,
        Self::TimedOut,
        Self::PeerClosed,
        Self::TooManyConnections,
        Self::TooManyPending,
        Self::TooManyOfPeer,
        Self::Stopping,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Protocol => "protocol",
            Self::TimedOut => "timed_out",
            Self::PeerClosed => "peer_closed",
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyPending => "too_many_pending",
            Self::TooManyOfPeer => "too_many_of_peer",
            Self::Stopping => "stopping",
        }
    }
}

impl Reason for FrameRefusal {
    const REASONS: &'static [Self] = &Self::ALL;

    fn label(self) -> &'static str {
        self.name()
    }
}

impl Reason for TcpFault {
    const REASONS: &'static [Self] = &Self::ALL;

    fn label(self) -> &'static str {
        self.name()
    }
}

impl Reason for Carrier {
    const REASONS: &'static [Self] = &[Self::Quic, Self::Tcp];

    fn label(self) -> &'static str {
        self.name()
    }
}

/// Why a connection could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum DialFailure {
    /// Nobody answered in time.
    #[error("no answer in time")]
    TimedOut,
    /// The peer closed or refused the connection.
    #[error("the peer refused")]
    Refused,
    /// The peer's certificate does not lead to a node of this mesh.
    #[error("the peer's certificate was refused")]
    Certificate,
    /// The handshake failed for another reason.
    #[error("the handshake failed")]
    Handshake,
    /// Another node answered than the one dialled, or this node itself.
    #[error("another node answered")]
    WrongPeer,
    /// The peer did not confirm the connection with a hello.
    #[error("no hello in answer")]
    NoHello,
    /// The socket could not be made, or the address cannot be reached from it.
    #[error("the address cannot be dialled from this socket")]
    Socket,
    /// No address of the peer is known.
    #[error("no address is known")]
    NoAddress,
    /// The node has as many connections as it may have.
    #[error("too many connections")]
    TooManyConnections,
}

impl Reason for DialFailure {
    const REASONS: &'static [Self] = &[
        Self::TimedOut,
        Self::Refused,
        Self::Certificate,
        Self::Handshake,
        Self::WrongPeer,
        Self::NoHello,
        Self::Socket,
        Self::NoAddress,
        Self::TooManyConnections,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Certificate => "certificate",
            Self::Handshake => "handshake",
            Self::WrongPeer => "wrong_peer",
            Self::NoHello => "no_hello",
            Self::Socket => "socket",
            Self::NoAddress => "no_address",
            Self::TooManyConnections => "too_many_connections",
        }
    }
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DatagramDrop {
    /// No control link to the peer.
    NotConnected,
    /// Longer than a packet to this peer may be.
    TooLong,
    /// The send buffer was full and the oldest datagrams made room.
    BufferFull,
}

impl Reason for DatagramDrop {
    const REASONS: &'static [Self] = &[Self::NotConnected, Self::TooLong, Self::BufferFull];

    fn label(self) -> &'static str {
        match self {
            Self::NotConnected => "not_connected",
            Self::TooLong => "too_long",
            Self::BufferFull => "buffer_full",
        }
    }
}

/// Why a queued message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MessageDrop {
    /// The queue to this peer was full and this was the oldest.
    QueueFull,
    /// It was sent several times and every connection was lost under it.
    GivenUp,
    /// The peer was forgotten.
    Forgotten,
}

impl Reason for MessageDrop {
    const REASONS: &'static [Self] = &[Self::QueueFull, Self::GivenUp, Self::Forgotten];

    fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::GivenUp => "given_up",
            Self::Forgotten => "forgotten",
        }
    }
}
