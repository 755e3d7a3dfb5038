//! One connection to one peer.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use quinn::SendDatagramError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::carrier::{Carrier, Connection};
pub use crate::frame::{CloseCode, FrameRefusal, StreamKind};
use crate::frame::{Hello, Purpose, encode_beginning};
use crate::id::NodeId;
use crate::links::counters::{DatagramDrop, DialFailure, LinkCounters};
use crate::links::lock;
use crate::links::moves::{Finding, Sight, Watch};
use crate::links::path::LossMeter;
use crate::links::reach::{FRESH, SilenceWatch};
use crate::links::stream::StreamCount;
pub use crate::links::stream::{
    LinkRecv, LinkSend, LinkStream, Retirement, STREAM_DROPPED, StreamReset, StreamStopped,
};
use crate::trust::Role;

/// What the rest of the mesh needs of a connection to a peer, whatever carries it.
pub trait NodeLink: Send + Sync + fmt::Debug {
    /// Who is at the other end, proven by its certificates.
    fn peer(&self) -> &PeerInfo;

    /// Opens a stream of this kind; `head` is the first thing the peer reads of it.
    fn open(&self, kind: StreamKind, head: Bytes) -> BoxFuture<'_, Result<LinkStream, LinkError>>;

    /// Sends a packet that may be lost; the oldest unsent ones make room for it.
    ///
    /// # Errors
    /// [`LinkError::DatagramTooLong`], [`LinkError::Closed`].
    fn datagram(&self, bytes: Bytes) -> Result<(), LinkError>;

    /// Longest datagram in bytes; grows when the path turns out to carry longer packets. `None`: the peer takes none.
    fn datagram_max(&self) -> Option<usize>;

    /// The smoothed round trip.
    fn rtt(&self) -> Duration;

    /// Share of packets lost lately, 0 to 1.
    fn loss(&self) -> f64;

    /// The key exchange that protects the connection, such as `X25519MLKEM768`.
    fn key_exchange(&self) -> &'static str;

    /// Closes at once; streams on it break off on both sides.
    fn close(&self, code: CloseCode, reason: &str);

    /// Whether the connection has ended, for whatever reason.
    fn is_closed(&self) -> bool;
}

/// Who is at the other end of a link, as its certificates prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its id.
    pub node: NodeId,
    /// The name its operator gave it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The key it signs records with.
    pub public_key: [u8; 32],
    /// `[node CA, admission CA]` in DER, for passing on what it signs.
    pub chain: Vec<Vec<u8>>,
    /// When the first of its certificates ends, in seconds since 1970.
    pub not_after_unix: u64,
    /// The address it is reached at; of a connection it opened, not the one it listens on.
    pub remote: SocketAddr,
}

/// Why a link could not be made or used. Nothing was sent unless the variant says so.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Another process has the mesh port. Stop it or choose another port.
    #[error("mesh port {} (udp, {addr}) is in use by another process; choose another with --mesh-port", addr.port())]
    PortInUse {
        /// What was to be bound.
        addr: SocketAddr,
    },
    /// The system refused the sockets of the mesh port.
    #[error("cannot bind mesh port {} (udp, {addr})", addr.port())]
    Bind {
        /// What was to be bound.
        addr: SocketAddr,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A socket for connections this node opens could not be made; a later attempt may succeed.
    #[error("cannot make a udp socket")]
    Socket {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// No runtime was given to run on.
    #[error("no data thread to run links on")]
    NoCores,
    /// There is no such data thread.
    #[error("there is no core {core}")]
    NoSuchCore {
        /// What was asked for.
        core: usize,
    },
    /// The identity cannot be used for TLS.
    #[error("identity does not serve for tls")]
    Identity {
        /// What is wrong with it.
        source: Arc<crate::trust::TrustError>,
    },
    /// The TLS settings do not serve for QUIC.
    #[error("tls settings do not serve for quic")]
    Tls {
        /// What QUIC misses.
        source: Arc<quinn::crypto::rustls::NoInitialCipherSuite>,
    },
    /// A time limit of the settings is too long for QUIC.
    #[error("idle timeout is out of range")]
    IdleTimeout,
    /// Nothing is known of this node: no address and no link.
    #[error("node {node} is not known")]
    UnknownPeer {
        /// Who was asked for.
        node: NodeId,
    },
    /// There is no control link to this node at the moment; one is being dialled when an address is known.
    #[error("no link to {node}")]
    NotConnected {
        /// Who was asked for.
        node: NodeId,
    },
    /// A connection could not be opened.
    #[error("cannot connect: {cause}")]
    Dial {
        /// Why, as it is counted.
        cause: DialFailure,
        /// What the handshake said, when it said something.
        detail: Option<Arc<str>>,
    },
    /// The head is longer than peers accept. A mistake of the caller.
    #[error("head of {len} bytes is longer than {max}")]
    HeadTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The message is longer than peers accept. A mistake of the caller.
    #[error("message of {len} bytes is longer than {max}")]
    MessageTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// This kind of stream cannot be opened in this way. A mistake of the caller.
    #[error("{kind:?} streams cannot be opened like this")]
    WrongKind {
        /// What was asked for.
        kind: StreamKind,
    },
    /// The datagram does not fit into a packet to this peer; send it as a message.
    #[error("datagram of {len} bytes is longer than {max}")]
    DatagramTooLong {
        /// Its length in bytes.
        len: usize,
        /// What fits at the moment, in bytes.
        max: usize,
    },
    /// The peer lets no further stream be open at the moment, or does not take what is sent.
    #[error("no stream to {node} could be opened in time")]
    OpenTimedOut {
        /// Whose link it is.
        node: NodeId,
    },
    /// The connection has ended.
    #[error("link to {node} has ended: {cause}")]
    Closed {
        /// Whose link it was.
        node: NodeId,
        /// How it ended.
        cause: quinn::ConnectionError,
    },
    /// The links are being shut down.
    #[error("links are shutting down")]
    ShuttingDown,
}

/// A connection to a peer. Its driver runs on the data thread `core`; the handle may be used from any thread.
pub struct QuicLink {
    connection: Connection,
    peer: Arc<PeerInfo>,
    facts: LinkFacts,
    /// What the peer said of itself; of a data link this node opened, known only when its answer has come.
    hello: OnceLock<Hello>,
    streams: Arc<StreamCount>,
    loss: Mutex<LossMeter>,
    silence: Mutex<SilenceWatch>,
    /// Sent and received so far.
    datagrams: AtomicU64,
    idle: Mutex<IdleWatch>,
    watch: Mutex<Watch>,
    /// Nothing comes from the peer although it had reason to answer, or the address it knows is no longer this node's.
    silent: AtomicBool,
    retired: CancellationToken,
    counters: Arc<LinkCounters>,
    _permit: crate::links::permit::Permit,
}

/// What is known of a link from its beginning.
#[derive(Debug, Clone)]
pub(crate) struct LinkFacts {
    pub(crate) purpose: Purpose,
    pub(crate) outbound: bool,
    pub(crate) core: usize,
    /// This node opened it for streams that carry much.
    pub(crate) is_large: bool,
    pub(crate) key_exchange: &'static str,
    /// When it was confirmed, on the monotonic clock.
    pub(crate) up_at: Duration,
    /// When whoever opened it should open another.
    pub(crate) redial_at_unix: u64,
    /// When a certificate of either side ends.
    pub(crate) expires_at_unix: u64,
    pub(crate) open_timeout: Duration,
    pub(crate) head_bytes_max: usize,
}

/// Since when a link has had no stream.
#[derive(Debug, Default)]
struct IdleWatch {
    streams_seen: u64,
    idle_since: Option<Duration>,
}

impl QuicLink {
    pub(crate) fn new(
        connection: Connection,
        peer: PeerInfo,
        facts: LinkFacts,
        streams: Arc<StreamCount>,
        counters: Arc<LinkCounters>,
        permit: crate::links::permit::Permit,
    ) -> Arc<Self> {
        Arc::new(Self {
            connection,
            peer: Arc::new(peer),
            facts,
            hello: OnceLock::new(),
            streams,
            loss: Mutex::default(),
            silence: Mutex::default(),
            datagrams: AtomicU64::new(0),
            idle: Mutex::default(),
            watch: Mutex::default(),
            silent: AtomicBool::new(false),
            retired: CancellationToken::new(),
            counters,
            _permit: permit,
        })
    }

    /// Who is at the other end, to be kept.
    pub const fn peer_shared(&self) -> &Arc<PeerInfo> {
        &self.peer
    }

    /// What carries it.
    pub const fn carrier(&self) -> Carrier {
        self.connection.carrier()
    }

    /// What the link is for.
    pub const fn purpose(&self) -> Purpose {
        self.facts.purpose
    }

    /// Whether this node opened it.
    pub const fn is_outbound(&self) -> bool {
        self.facts.outbound
    }

    /// The data thread it lives on.
    pub const fn core(&self) -> usize {
        self.facts.core
    }

    /// What the peer said of itself.
    pub fn hello(&self) -> Option<&Hello> {
        self.hello.get()
    }

    /// Streams opened on it so far, by either side.
    pub fn streams_opened(&self) -> u64 {
        self.streams.total()
    }

    /// Streams open on it now.
    pub fn streams_open(&self) -> usize {
        self.streams.open()
    }

    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) const fn facts(&self) -> &LinkFacts {
        &self.facts
    }

    pub(crate) const fn streams(&self) -> &Arc<StreamCount> {
        &self.streams
    }

    /// Keeps what the peer said; a second hello changes nothing.
    pub(crate) fn heard(&self, hello: Hello) {
        self.hello.get_or_init(|| hello);
    }

    /// Another link has taken over: nothing new is sent on this one.
    pub(crate) fn retire(&self) {
        self.streams.retirement().begin();
        self.retired.cancel();
    }

    /// What its streams tell of that; it also names this link among others.
    pub(crate) fn retirement(&self) -> &Retirement {
        self.streams.retirement()
    }

    pub(crate) const fn retired(&self) -> &CancellationToken {
        &self.retired
    }

    /// Whether new streams may be opened on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.is_cancelled() && !self.is_closed() && !self.is_silent()
    }

    /// A datagram goes out or has come in.
    pub(crate) fn count_datagram(&self) {
        self.datagrams.fetch_add(1, Ordering::Relaxed);
    }

    /// Says whether the link counts as silent; returns whether it did.
    pub(crate) fn set_silent(&self, is_silent: bool) -> bool {
        self.silent.swap(is_silent, Ordering::Relaxed)
    }

    /// Nothing was received since `heard`: it counts as silent until something is. Returns whether it did before.
    pub(crate) fn doubt(&self, heard: u64) -> bool {
        lock(&self.watch).note(heard);
        self.set_silent(true)
    }

    /// UDP packets received on it so far; 0 for one that TCP carries.
    pub(crate) fn received(&self) -> u64 {
        self.connection.path().udp.map_or(0, |(_, received)| received)
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Where the peer is now; [`PeerInfo::remote`] is where it was at the beginning.
    pub(crate) fn remote(&self) -> SocketAddr {
        let remote = self.connection.remote_address();
        SocketAddr::new(remote.ip().to_canonical(), remote.port())
    }

    /// Looks whether the peer has moved or fallen silent. To be asked regularly.
    pub(crate) fn look(&self, now: Duration) -> Finding {
        let Some((sent, received)) = self.connection.path().udp else { return Finding::HEARD };
        lock(&self.watch).look(now, &Sight { remote: self.remote(), received, sent, rtt: self.connection.rtt() })
    }

    /// Takes the packet counts into the measured loss, and into what is known of the peer's silence.
    pub(crate) fn sample_path(&self, now: Duration) -> (Duration, f64) {
        let path = self.connection.path();
        if let Some((sent, heard)) = path.udp {
            lock(&self.silence).observe(now, sent, heard);
        }
        let mut loss = lock(&self.loss);
        loss.observe(path.packets_sent, path.packets_lost);
        (path.rtt, loss.share())
    }

    /// Smallest round trip so far.
    pub(crate) fn path_rtt(&self) -> Duration {
        self.connection.path().rtt
    }

    /// Whether packets of this QUIC link have had no answer for so long.
    pub(crate) fn is_unanswered(&self, now: Duration, limit: Duration) -> bool {
        lock(&self.silence).is_silent(now, limit)
    }

    /// Whether the peer was heard on this QUIC link within this time.
    pub(crate) fn is_heard(&self, now: Duration, limit: Duration) -> bool {
        lock(&self.silence).is_heard(now, limit)
    }

    /// When the peer was last heard on this QUIC link, as far as anybody looked.
    pub(crate) fn heard_at(&self) -> Option<Duration> {
        lock(&self.silence).heard_at()
    }

    /// Whether it has not been up for long.
    pub(crate) fn is_fresh(&self, now: Duration) -> bool {
        now.saturating_sub(self.facts.up_at) < FRESH
    }

    /// How long the link has been without a stream or datagram. To be asked regularly, as streams between two calls count too.
    pub(crate) fn idle_for(&self, now: Duration) -> Duration {
        let mut idle = lock(&self.idle);
        // Datagrams that belong to what a stream has opened are use as well.
        let total = self.streams.total() + self.datagrams.load(Ordering::Relaxed);
        if self.streams.open() > 0 || idle.streams_seen != total {
            idle.streams_seen = total;
            idle.idle_since = None;
        }
        now.saturating_sub(*idle.idle_since.get_or_insert(now))
    }

    pub(crate) async fn open_stream(&self, kind: StreamKind, head: &Bytes) -> Result<LinkStream, LinkError> {
        if !kind.is_conversation() {
            return Err(LinkError::WrongKind { kind });
        }
        if head.len() > self.facts.head_bytes_max {
            return Err(LinkError::HeadTooLong { len: head.len(), max: self.facts.head_bytes_max });
        }
        let opening = async {
            let (mut send, recv) = self.connection.open_bi().await.map_err(|error| self.ended(error))?;
            let beginning = encode_beginning(kind, head);
            if send.write_chunk(beginning).await.is_err() {
                // The peer cannot have stopped a stream it has not read of, so it is the connection that ended.
                return Err(self.ended(quinn::ConnectionError::LocallyClosed));
            }
            Ok(LinkStream::new(send, recv, &self.streams))
        };
        let Ok(opened) = timeout(self.facts.open_timeout, opening).await else {
            return Err(LinkError::OpenTimedOut { node: self.peer.node });
        };
        opened
    }

    pub(crate) fn ended(&self, otherwise: quinn::ConnectionError) -> LinkError {
        LinkError::Closed { node: self.peer.node, cause: self.connection.close_reason().unwrap_or(otherwise) }
    }
}

impl NodeLink for QuicLink {
    fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    fn open(&self, kind: StreamKind, head: Bytes) -> BoxFuture<'_, Result<LinkStream, LinkError>> {
        async move { self.open_stream(kind, &head).await }.boxed()
    }

    fn datagram(&self, bytes: Bytes) -> Result<(), LinkError> {
        let len = bytes.len();
        self.count_datagram();
        if self.connection.datagram_send_buffer_space() < len {
            self.counters.datagrams_dropped.add(DatagramDrop::BufferFull);
        }
        match self.connection.send_datagram(bytes) {
            Ok(()) => Ok(()),
            Err(SendDatagramError::ConnectionLost(cause)) => Err(self.ended(cause)),
            Err(SendDatagramError::TooLarge | SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => {
                self.counters.datagrams_dropped.add(DatagramDrop::TooLong);
                Err(LinkError::DatagramTooLong { len, max: self.datagram_max().unwrap_or(0) })
            }
        }
    }

    fn datagram_max(&self) -> Option<usize> {
        self.connection.max_datagram_size()
    }

    fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    fn loss(&self) -> f64 {
        lock(&self.loss).share()
    }

    fn key_exchange(&self) -> &'static str {
        self.facts.key_exchange
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.retire();
        self.connection.close(code.code(), reason.as_bytes());
    }

    fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }
}

impl fmt::Debug for QuicLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicLink")
            .field("node", &self.peer.node)
            .field("remote", &self.peer.remote)
            .field("purpose", &self.facts.purpose)
            .field("outbound", &self.facts.outbound)
            .field("core", &self.facts.core)
            .finish_non_exhaustive()
    }
}
