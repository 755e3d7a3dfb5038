//! All links of a node: endpoints, one control link per peer, data links per core, and who is told of what.
//!
//! Each data thread has a server endpoint on the mesh port, shared with the others by `SO_REUSEPORT`, and a client
//! endpoint on a port of its own, made when the thread opens its first connection. Control links are opened from the
//! first thread. [`Links`] is a handle for any thread; what peers send is handed to [`Inbound`] on the data thread
//! that owns the connection.
//!
//! Between two nodes there is one control link. Both dial; when both arrive, the one opened by the lower [`NodeId`]
//! stays, and the other is served for a moment longer and then closed, so nothing under way is lost. Losing and
//! replacing a link is reported only when no other takes its place.

pub mod config;
pub mod counters;
pub mod stream;

mod beside;
mod congestion;
mod connection_id;
mod dialler;
mod large;
pub(crate) mod moves;
mod outbox;
pub(crate) mod path;
pub(crate) mod permit;
mod quic;
pub(crate) mod reach;
mod seeds;
pub(crate) mod serve;
mod socket;
mod steer;
mod table;
mod upkeep;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Endpoint, Runtime as _, TokioRuntime, VarInt};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::carrier::Carrier;
use crate::clock::Clock;
use crate::frame::{CloseCode, Hello, Purpose, StreamKind};
use crate::id::NodeId;
use crate::link::{LinkError, LinkStream, NodeLink as _, PeerInfo, QuicLink};
use crate::listener;
use crate::tcp::tls::TcpTls;
use crate::tcp::{JoinDoor, listen};
use crate::trust::{Identity, LeafSource, PeerVerifier};
pub use config::{LinksConfig, Transport};
use counters::{DatagramDrop, DialFailure, LinkCounters};
use outbox::Outbox;
use path::PathMemory;
use permit::Places;
use quic::QuicSettings;
use seeds::Seeds;
use steer::Crossing;
use stream::{OpenStreams, StreamCount};
use table::{LinkEvent, Placement, Table, purpose_name};

/// Time for the closing packets to leave when the links are shut down.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What the rest of the node does with what peers send. Calls come on the data thread that owns the connection, must
/// not block, and may call [`Links`].
pub trait Inbound: Send + Sync + 'static {
    /// A peer opened a stream of kind `Service` or `Sync`. Spawns on the current runtime what serves it.
    fn stream(&self, core: usize, from: Arc<PeerInfo>, kind: StreamKind, head: Bytes, stream: LinkStream);

    /// A peer sent a message of kind `Gossip` or `Push`, read whole. One that was under way when its connection was
    /// lost may come twice.
    fn message(&self, from: &Arc<PeerInfo>, kind: StreamKind, bytes: Bytes);

    /// A datagram came, over the control link or over a data link ([`Links::send_beside`]); its bytes tell which.
    fn datagram(&self, from: &Arc<PeerInfo>, bytes: Bytes);

    /// The first control link to this peer is there; `outbound` when this node opened it.
    fn link_up(&self, peer: &Arc<PeerInfo>, outbound: bool);

    /// The last control link to this peer is gone. Comes after its `link_up`, and before the next one.
    fn link_down(&self, peer: &Arc<PeerInfo>, reason: &str);
}

/// One connection as status pages show it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkStatus {
    /// The peer.
    pub node: NodeId,
    /// The name its operator gave it.
    pub name: String,
    /// Its address.
    pub remote: SocketAddr,
    /// The smoothed round trip.
    pub rtt: Duration,
    /// Share of packets lost lately, 0 to 1.
    pub loss: f64,
    /// The key exchange that protects it, such as `X25519MLKEM768`.
    pub key_exchange: &'static str,
    /// What carries it.
    pub carrier: Carrier,
    /// Whether this node opened it.
    pub outbound: bool,
    /// Whether it is a control link; else a data link.
    pub control: bool,
    /// Whether another link has taken over and this one is about to close.
    pub retired: bool,
    /// The data thread it lives on.
    pub core: usize,
    /// How long it has been up.
    pub age: Duration,
    /// Streams opened on it so far, by either side.
    pub streams_opened: u64,
    /// Streams open on it now.
    pub streams_open: usize,
    /// The peer's gossip cell, once it has said so.
    pub cell: Option<String>,
    /// How often the peer has been started, once it has said so.
    pub generation: Option<u64>,
}

/// All links of a node. A cheap handle; when the last clone is dropped, everything is closed at once. To end in
/// order, use [`Links::shutdown`].
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
    _close_on_drop: Arc<CloseOnDrop>,
}

/// What the tasks of the links share.
pub(crate) struct Inner {
    pub(crate) config: LinksConfig,
    pub(crate) me: NodeId,
    local_addr: SocketAddr,
    cores: Vec<Core>,
    pub(crate) quic: QuicSettings,
    pub(crate) tcp_tls: TcpTls,
    /// Where newcomers are handed on, when links listen on TCP.
    pub(crate) door: Option<Arc<JoinDoor>>,
    pub(crate) tcp_handshakes: Arc<Places>,
    pub(crate) tcp_sources: Arc<listen::Sources>,
    /// TCP connections whose last byte has not left.
    pub(crate) tcp_open: Arc<Places>,
    leaf: Arc<LeafSource>,
    pub(crate) verifier: Arc<PeerVerifier>,
    pub(crate) inbound: Arc<dyn Inbound>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<LinkCounters>,
    table: Mutex<Table>,
    seeds: Mutex<Seeds>,
    pub(crate) paths: Mutex<PathMemory>,
    pub(crate) handshakes: Arc<Places>,
    pub(crate) connections: Arc<Places>,
    open_streams: Arc<OpenStreams>,
    events: Mutex<VecDeque<LinkEvent>>,
    /// Held while events are handed over, so that they arrive one by one and in order.
    delivery: Mutex<()>,
    /// This node's own address has changed.
    moved: Notify,
    /// No new connections from here on.
    pub(crate) stopping: CancellationToken,
    /// Everything ends.
    closed: CancellationToken,
}

/// One data thread.
struct Core {
    handle: Handle,
    server: Mutex<Option<Endpoint>>,
    client: OnceLock<Endpoint>,
}

struct CloseOnDrop {
    inner: Arc<Inner>,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.inner.close_all();
    }
}

impl Links {
    /// Binds the mesh port once per runtime and starts to accept connections.
    ///
    /// # Errors
    /// [`LinkError::PortInUse`] names the port; [`LinkError::Bind`], [`LinkError::Identity`], [`LinkError::NoCores`].
    pub fn start(
        config: LinksConfig,
        identity: &Identity,
        leaf: Arc<LeafSource>,
        verifier: Arc<PeerVerifier>,
        runtimes: Vec<Handle>,
        inbound: Arc<dyn Inbound>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LinkError> {
        let quic = QuicSettings::new(&config, identity, &leaf, &verifier)?;
        let tcp_tls = TcpTls::new(identity, &leaf, &verifier)?;
        // All sockets are bound before the first is read: a connection that began on one would end on another.
        let (sockets, listener) = socket::bind_both(&config, runtimes.len())?;
        let bind_failed = |error| LinkError::Bind { addr: config.bind, source: Arc::new(error) };
        // Nobody is let in over QUIC who could not be answered over it.
        let quic_server = (config.transport != Transport::Tcp).then(|| quic.server_near());
        let mut local_addr = config.bind;
        let mut shared = Vec::with_capacity(runtimes.len());
        for (handle, socket) in runtimes.iter().zip(sockets) {
            local_addr = socket.local_addr().map_err(bind_failed)?;
            let _runtime = handle.enter();
            shared.push(TokioRuntime.wrap_udp_socket(socket).map_err(bind_failed)?);
        }
        let counters = Arc::default();
        let shared = Crossing::new(shared.len()).join(shared, |core| quic.connection_ids(core), &counters);
        let mut cores = Vec::with_capacity(runtimes.len());
        for (number, (handle, socket)) in runtimes.into_iter().zip(shared).enumerate() {
            let entered = handle.enter();
            let runtime = Arc::new(TokioRuntime);
            let server =
                Endpoint::new_with_abstract_socket(quic.endpoint(number), quic_server.clone(), socket, runtime)
                    .map_err(bind_failed)?;
            drop(entered);
            cores.push(Core { handle, server: Mutex::new(Some(server)), client: OnceLock::new() });
        }
        if cores.is_empty() {
            return Err(LinkError::NoCores);
        }
        let inner = Arc::new(Inner {
            me: identity.node(),
            local_addr,
            cores,
            quic,
            tcp_tls,
            door: listener.is_some().then(|| Arc::new(JoinDoor::new(local_addr))),
            tcp_handshakes: Places::new(listen::PENDING_MAX),
            tcp_sources: Arc::default(),
            tcp_open: Places::new(config.connections_max + listen::PENDING_MAX),
            leaf,
            verifier,
            inbound,
            clock,
            counters,
            table: Mutex::new(Table::new(identity.node())),
            seeds: Mutex::default(),
            paths: Mutex::new(PathMemory::new(config.far_rtt, config.far_loss)),
            handshakes: Places::new(config.handshakes_pending_max),
            connections: Places::new(config.connections_max),
            open_streams: Arc::default(),
            events: Mutex::default(),
            delivery: Mutex::default(),
            moved: Notify::new(),
            stopping: CancellationToken::new(),
            closed: CancellationToken::new(),
            config,
        });
        for (number, core) in inner.cores.iter().enumerate() {
            if let Some(server) = lock(&core.server).clone() {
                core.handle.spawn(listener::accept(Arc::clone(&inner), number, server));
            }
        }
        if let Some(listener) = listener {
            inner.spawn_first(listen::accept(Arc::clone(&inner), listener));
        }
        inner.spawn_first(upkeep::run(Arc::clone(&inner)));
        Ok(Self { _close_on_drop: Arc::new(CloseOnDrop { inner: Arc::clone(&inner) }), inner })
    }

    /// Where peers reach this node.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// The TCP side of the mesh port, for newcomers; `None` when links do not listen there and whoever admits newcomers
    /// may.
    pub fn join_door(&self) -> Option<Arc<JoinDoor>> {
        self.inner.door.clone()
    }

    /// Sets where a peer can be dialled; earlier addresses are replaced. With `keep`, a control link to it is held
    /// open and redialled for ever; without, one is dialled when something is to be sent.
    pub fn set_peer(&self, node: NodeId, addrs: Vec<SocketAddr>, keep: bool) {
        self.inner.set_peer(node, addrs, keep);
    }

    /// Forgets a peer: its addresses, what waits to be sent to it, and every link with it.
    pub fn forget_peer(&self, node: NodeId) {
        let links = {
            let mut table = lock(&self.inner.table);
            let Some(peer) = table.peer_mut(node) else { return };
            peer.addrs.clear();
            peer.keep = false;
            peer.outbox.forget();
            peer.wake.notify_one();
            let links = peer.live().to_vec();
            table.forget_if_unknown(node);
            links
        };
        for link in links {
            link.close(CloseCode::Forgotten, "forgotten");
        }
    }

    /// Dials an address of a peer whose id is not known, again and again until somebody of the mesh answers; who
    /// answers is kept like with [`Links::set_peer`]. At most 64 seeds are dialled at a time; more are passed over.
    pub fn dial_seed(&self, addr: SocketAddr) {
        self.inner.dial_seed(addr);
    }

    /// Sends a packet that may be lost over the control link.
    ///
    /// # Errors
    /// [`LinkError::NotConnected`] when there is none; one is dialled if an address is known.
    /// [`LinkError::DatagramTooLong`].
    pub fn send_datagram(&self, to: NodeId, bytes: Bytes) -> Result<(), LinkError> {
        let Some(link) = self.inner.control(to) else {
            self.inner.counters.datagrams_dropped.add(DatagramDrop::NotConnected);
            self.inner.start_dialling(to, false);
            return Err(LinkError::NotConnected { node: to });
        };
        link.datagram(bytes)
    }

    /// Longest datagram to this peer in bytes, while there is a control link.
    pub fn datagram_max(&self, to: NodeId) -> Option<usize> {
        self.inner.control(to)?.datagram_max()
    }

    /// Queues a message of kind `Gossip` or `Push`; it goes over the control link as soon as there is one. When the
    /// queue is full, its oldest message is dropped and counted.
    ///
    /// # Errors
    /// [`LinkError::MessageTooLong`]; [`LinkError::UnknownPeer`] when neither link nor address is known.
    pub fn send_message(&self, to: NodeId, kind: StreamKind, bytes: Bytes) -> Result<(), LinkError> {
        if !kind.is_message() {
            return Err(LinkError::WrongKind { kind });
        }
        if bytes.len() > self.inner.config.message_bytes_max {
            return Err(LinkError::MessageTooLong { len: bytes.len(), max: self.inner.config.message_bytes_max });
        }
        let is_connected = {
            let table = lock(&self.inner.table);
            let peer = table.peer(to).ok_or(LinkError::UnknownPeer { node: to })?;
            if peer.control().is_none() && peer.addrs_to_dial().is_empty() {
                return Err(LinkError::UnknownPeer { node: to });
            }
            peer.outbox.push(kind, bytes);
            peer.control().is_some()
        };
        if !is_connected {
            self.inner.start_dialling(to, false);
        }
        Ok(())
    }

    /// Opens a stream on the control link.
    ///
    /// # Errors
    /// [`LinkError::NotConnected`] when there is none; one is dialled if an address is known. What [`LinkError`] says
    /// of streams that cannot be opened.
    pub async fn open_control(&self, to: NodeId, kind: StreamKind, head: Bytes) -> Result<LinkStream, LinkError> {
        let Some(link) = self.inner.control(to) else {
            self.inner.start_dialling(to, false);
            return Err(LinkError::NotConnected { node: to });
        };
        link.open_stream(kind, &head).await
    }

    /// Opens a `Service` stream on this core's data link, which is dialled when there is none. Call it on the runtime
    /// of that core. A data link that turns out to have ended is replaced once.
    ///
    /// # Errors
    /// [`LinkError::Dial`] within the time to connect; [`LinkError::UnknownPeer`]; what [`LinkError`] says of streams
    /// that cannot be opened.
    pub async fn open_service(&self, core: usize, to: NodeId, head: Bytes) -> Result<LinkStream, LinkError> {
        let link = self.inner.data_link(core, to).await?;
        match link.open_stream(StreamKind::Service, &head).await {
            Err(_) if link.is_closed() => {
                self.inner.drop_data(&link);
                let link = self.inner.data_link(core, to).await?;
                link.open_stream(StreamKind::Service, &head).await
            }
            opened => opened,
        }
    }

    /// Packets received so far on a core's data link to a peer, for [`Links::doubt`].
    pub fn heard(&self, core: usize, to: NodeId) -> Option<u64> {
        Some(self.inner.table().peer(to)?.data(core)?.received())
    }

    /// When a peer was last heard on any QUIC link with it, to the pace at which links are looked at.
    pub fn heard_at(&self, from: NodeId) -> Option<Duration> {
        let table = self.inner.table();
        table.peer(from)?.live().iter().filter(|link| !link.is_closed()).filter_map(|link| link.heard_at()).max()
    }

    /// Somebody waited in vain for an answer over a core's data link to a peer. If nothing at all has come over it since
    /// `heard` was asked for, new streams go over another one.
    pub fn doubt(&self, core: usize, to: NodeId, heard: Option<u64>) {
        let link = self.inner.table().peer(to).and_then(|peer| peer.data(core).cloned());
        let Some((link, heard)) = link.zip(heard).filter(|(link, heard)| link.received() == *heard) else { return };
        if !link.doubt(heard) {
            self.inner.counters.links_silent.add();
        }
    }

    /// The link over which a peer's control side is reached now.
    pub fn control(&self, to: NodeId) -> Option<Arc<QuicLink>> {
        self.inner.control(to)
    }

    /// The smoothed round trip to a peer: of its control link, else of any.
    pub fn rtt(&self, to: NodeId) -> Option<Duration> {
        self.inner.any_link(to).map(|link| link.rtt())
    }

    /// Share of packets to a peer lost lately, 0 to 1: of its control link, else of any.
    pub fn loss(&self, to: NodeId) -> Option<f64> {
        self.inner.any_link(to).map(|link| link.loss())
    }

    /// Every connection there is, in no order.
    pub fn links(&self) -> Vec<LinkStatus> {
        let links = lock(&self.inner.table).links();
        let now = self.inner.clock.now();
        links.iter().map(|link| status(link, now)).collect()
    }

    /// Waits until packets of this node leave from another address than before. Only one caller is told.
    pub async fn moved(&self) {
        self.inner.moved.notified().await;
    }

    /// What the links have counted.
    pub fn counters(&self) -> &LinkCounters {
        &self.inner.counters
    }

    /// The same counters, to be kept by whoever exports them.
    pub fn counters_shared(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.inner.counters)
    }

    /// Closes every link with a peer. A kept peer is dialled again.
    pub fn close_peer(&self, node: NodeId, reason: &str) {
        let links = lock(&self.inner.table).peer(node).map(|peer| peer.live().to_vec()).unwrap_or_default();
        for link in links {
            link.close(CloseCode::Forgotten, reason);
        }
    }

    /// Ends all links in order: no new connections, then up to `drain` for open streams and queued messages, then
    /// every connection is closed and the port is free. The runtimes have to run on meanwhile.
    pub async fn shutdown(&self, drain: Duration) {
        let inner = &self.inner;
        inner.stopping.cancel();
        for core in &inner.cores {
            if let Some(server) = &*lock(&core.server) {
                server.set_server_config(None);
            }
        }
        let drained = async {
            inner.open_streams.drained().await;
            while inner.has_messages() {
                tokio::time::sleep(DRAIN_POLL).await;
            }
            // The last bytes of streams and messages that ended just before are given the time to arrive.
            let rtt = lock(&inner.table).links().iter().map(|link| link.rtt()).max().unwrap_or_default();
            tokio::time::sleep((rtt * LINGER_RTTS).max(DRAIN_POLL)).await;
        };
        if timeout(drain, drained).await.is_err() {
            tracing::debug!(drain_ms = drain.as_millis(), "streams or messages left over when the links were closed");
        }
        let endpoints = inner.close_all();
        let all_idle = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
            while inner.tcp_open.taken() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if timeout(CLOSE_TIMEOUT, all_idle).await.is_err() {
            tracing::debug!("closing packets may not have left in time");
        }
    }
}

/// How many more times `duplicate_drain` a superfluous link is served while streams are open on it.
const DRAINS_WITH_STREAMS: usize = 9;
/// Round trips that a drain goes on after the last stream has ended.
const LINGER_RTTS: u32 = 3;
/// How long a silent data link may come back after the peer has answered on another: longer than it takes QUIC to send
/// again after a pause of a second, which is when it is called silent.
const SILENT_GRACE: Duration = Duration::from_secs(1);
/// How often a drain looks whether all messages have left.
const DRAIN_POLL: Duration = Duration::from_millis(10);

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("node", &self.inner.me)
            .field("local_addr", &self.inner.local_addr)
            .field("connections", &self.inner.connections.taken())
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Runs a task on the first data thread.
    pub(crate) fn spawn_first<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        if let Some(core) = self.cores.first() {
            core.handle.spawn(task);
        }
    }

    /// Runs a task on any data thread; `None` when there is no such thread.
    pub(crate) fn spawn_on<F>(&self, core: usize, task: F) -> Option<tokio::task::JoinHandle<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        Some(self.cores.get(core)?.handle.spawn(task))
    }

    /// The endpoint from which a core opens connections; made at its first use. Call it on that core's runtime.
    pub(crate) fn client(&self, core: usize) -> Result<Endpoint, LinkError> {
        let failed = |error| LinkError::Socket { source: Arc::new(error) };
        let endpoint = &self.cores.get(core).ok_or(LinkError::NoSuchCore { core })?.client;
        if let Some(endpoint) = endpoint.get() {
            return Ok(endpoint.clone());
        }
        let socket = socket::bind_client(self.local_addr, self.config.socket_buffer).map_err(failed)?;
        let made = Endpoint::new(self.quic.endpoint(core), None, socket, Arc::new(TokioRuntime)).map_err(failed)?;
        Ok(endpoint.get_or_init(|| made).clone())
    }

    /// Has the connections that a core has opened go on from a new socket: each tells its peer where it is now.
    pub(crate) fn rebind(self: &Arc<Self>, core: usize) {
        let inner = Arc::clone(self);
        let task = async move {
            let Some(endpoint) = inner.cores.get(core).and_then(|core| core.client.get()) else { return };
            let rebound = socket::bind_client_anew(inner.local_addr, inner.config.socket_buffer)
                .and_then(|socket| endpoint.rebind(socket));
            match rebound {
                Ok(()) => inner.counters.rebinds.add(),
                Err(error) => tracing::warn!(%error, core, "no new socket for the connections of this node"),
            }
        };
        drop(self.spawn_on(core, task));
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(crate) fn hello(&self, purpose: Purpose) -> Hello {
        Hello { purpose, generation: self.config.generation, cell: self.config.cell.clone() }
    }

    pub(crate) fn own_not_after_unix(&self) -> u64 {
        self.leaf.not_after_unix()
    }

    pub(crate) fn stream_count(&self, is_large: bool) -> Arc<StreamCount> {
        StreamCount::new(is_large, Arc::clone(&self.open_streams))
    }

    fn new_outbox(&self) -> Arc<Outbox> {
        let counters = Arc::clone(&self.counters);
        Arc::new(Outbox::new(self.config.message_queue_max, self.config.message_queue_bytes_max, counters))
    }

    fn control(&self, to: NodeId) -> Option<Arc<QuicLink>> {
        self.table().peer(to)?.control().cloned()
    }

    fn any_link(&self, to: NodeId) -> Option<Arc<QuicLink>> {
        let table = self.table();
        let peer = table.peer(to)?;
        peer.control().or_else(|| peer.live().iter().find(|link| !link.is_closed())).cloned()
    }

    pub(crate) fn outbox(&self, to: NodeId) -> Option<Arc<Outbox>> {
        Some(Arc::clone(&self.table().peer(to)?.outbox))
    }

    fn has_messages(&self) -> bool {
        self.table().nodes().any(|(_, peer)| peer.control().is_some() && !peer.outbox.is_empty())
    }

    fn drop_data(&self, link: &Arc<QuicLink>) {
        if let Some(peer) = self.table().peer_mut(link.peer_shared().node) {
            peer.drop_data(link);
        }
    }

    fn set_peer(self: &Arc<Self>, node: NodeId, addrs: Vec<SocketAddr>, keep: bool) {
        if node == self.me {
            return;
        }
        {
            let mut table = self.table();
            let peer = table.peer_or_new(node, || self.new_outbox());
            if peer.addrs != addrs {
                peer.addrs = addrs;
                peer.failures = 0;
                peer.wake.notify_one();
            }
            peer.keep = keep;
            table.forget_if_unknown(node);
        }
        if keep {
            self.start_dialling(node, false);
        }
    }

    /// Starts the task that dials this peer, unless it runs, or is not needed, or nothing can be dialled.
    pub(crate) fn start_dialling(self: &Arc<Self>, node: NodeId, is_redial: bool) {
        if !self.stopping.is_cancelled() && self.table().start_dialling(node) {
            self.spawn_first(dialler::keep_connected(Arc::clone(self), node, is_redial));
        }
    }

    /// Dials a peer to which a link is wanted for good, unless there is one that serves.
    pub(crate) fn start_if_kept(self: &Arc<Self>, node: NodeId) {
        let is_kept = self.table().peer(node).is_some_and(|peer| peer.keep);
        if is_kept {
            self.start_dialling(node, true);
        }
    }

    pub(crate) const fn cores(&self) -> usize {
        self.cores.len()
    }

    pub(crate) fn tell_moved(&self) {
        self.moved.notify_one();
    }

    fn dial_seed(self: &Arc<Self>, addr: SocketAddr) {
        if self.stopping.is_cancelled() || !lock(&self.seeds).begin(addr) {
            return;
        }
        self.spawn_first(dialler::find_seed(Arc::clone(self), addr));
    }

    /// A seed has answered, or never will: its address may be dialled as a seed again.
    pub(crate) fn seed_done(&self, addr: SocketAddr) {
        lock(&self.seeds).done(addr);
    }

    /// Whether somebody new at this address is welcome.
    pub(crate) fn is_seed(&self, addr: SocketAddr) -> bool {
        lock(&self.seeds).contains(addr)
    }

    /// Takes a confirmed link into use. `false` when the links are closed already.
    pub(crate) fn place(self: &Arc<Self>, link: &Arc<QuicLink>) -> bool {
        let placement = {
            let mut table = self.table();
            if self.closed.is_cancelled() {
                return false;
            }
            let outbox = || self.new_outbox();
            let mut placement = match link.purpose() {
                Purpose::Control => table.place_control(link, outbox, &self.config, self.clock.now()),
                Purpose::Data => table.place_data(link, outbox),
            };
            // Counted before anybody can be told of it.
            for _ in &placement.stale {
                self.counters.superseded_closed.add();
            }
            if placement.is_carrier_change {
                self.counters.carrier_changes.add(link.carrier());
            }
            lock(&self.events).extend(placement.events.drain(..));
            placement
        };
        tracing::debug!(
            node = %link.peer_shared().node,
            purpose = purpose_name(link.purpose()),
            outbound = link.is_outbound(),
            core = link.core(),
            carrier = link.carrier().name(),
            "link up"
        );
        self.settle(placement);
        self.deliver();
        true
    }

    /// Closes what a new link made superfluous.
    fn settle(self: &Arc<Self>, placement: Placement) {
        for stale in placement.stale {
            stale.close(CloseCode::Superseded, "the peer has started again");
        }
        for silent in placement.silent {
            // The peer answers on a new connection: one that stays silent all the same has been lost, and what waits on it
            // is to know.
            let closed = self.closed.clone();
            self.spawn_first(async move {
                closed.run_until_cancelled(tokio::time::sleep(SILENT_GRACE)).await;
                if silent.is_silent() {
                    silent.close(CloseCode::Superseded, "the peer answers elsewhere");
                }
            });
        }
        let Some(spare) = placement.spare else { return };
        spare.retire();
        if spare.is_closed() {
            return;
        }
        self.counters.duplicates_closed.add();
        let drain = self.config.duplicate_drain;
        let closed = self.closed.clone();
        // The other end has taken the other link into use before this one is closed, and what either side sent on
        // this one in the meantime still arrives. Conversations under way get some more time.
        self.spawn_first(async move {
            let drained = async {
                tokio::time::sleep(drain).await;
                for _ in 0..DRAINS_WITH_STREAMS {
                    if spare.streams_open() == 0 {
                        return;
                    }
                    tokio::time::sleep(drain).await;
                }
            };
            closed.run_until_cancelled(drained).await;
            spare.close(CloseCode::Duplicate, "another link of this pair stays");
        });
    }

    /// A link has ended.
    pub(crate) fn remove(self: &Arc<Self>, link: &Arc<QuicLink>, reason: &str) {
        let lasted = self.clock.now().saturating_sub(link.facts().up_at) >= self.config.backoff_max;
        let removal = {
            let mut table = self.table();
            let mut removal = table.remove(link, reason, lasted);
            if link.facts().is_large && !lasted {
                table.put_large_off(link.peer_shared().node, self.clock.now());
            }
            lock(&self.events).extend(removal.event.take());
            removal
        };
        let node = link.peer_shared().node;
        tracing::debug!(%node, purpose = purpose_name(link.purpose()), reason, "link down");
        if removal.redial {
            self.start_dialling(node, true);
        }
        self.deliver();
    }

    /// Hands events over, one by one and in order, whatever threads they come from. Whoever holds the lock hands over
    /// what others add meanwhile.
    fn deliver(&self) {
        while !lock(&self.events).is_empty() {
            let _delivering = match self.delivery.try_lock() {
                Ok(delivering) => delivering,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            loop {
                let Some(event) = lock(&self.events).pop_front() else { break };
                match event {
                    LinkEvent::Up { peer, outbound } => self.inbound.link_up(&peer, outbound),
                    LinkEvent::Down { peer, reason } => self.inbound.link_down(&peer, &reason),
                }
            }
        }
    }

    /// Counts and describes a dial that failed.
    pub(crate) fn dial_failed(&self, cause: DialFailure, detail: Option<String>) -> LinkError {
        self.counters.dials_failed.add(cause);
        LinkError::Dial { cause, detail: detail.map(Arc::from) }
    }

    /// Closes every connection and gives the endpoints away, so that their sockets close when these are dropped.
    fn close_all(&self) -> Vec<Endpoint> {
        self.stopping.cancel();
        let links = {
            let table = self.table();
            self.closed.cancel();
            table.links()
        };
        for link in links {
            link.close(CloseCode::Shutdown, "the node stops");
        }
        let servers = self.cores.iter().filter_map(|core| lock(&core.server).take());
        let clients = self.cores.iter().filter_map(|core| core.client.get().cloned());
        let endpoints: Vec<_> = servers.chain(clients).collect();
        for endpoint in &endpoints {
            endpoint.close(VarInt::from_u32(CloseCode::Shutdown.code()), b"the node stops");
        }
        endpoints
    }

    pub(crate) const fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

fn status(link: &QuicLink, now: Duration) -> LinkStatus {
    let peer = link.peer_shared();
    LinkStatus {
        node: peer.node,
        name: peer.name.clone(),
        remote: link.remote(),
        rtt: link.rtt(),
        loss: link.loss(),
        key_exchange: link.key_exchange(),
        carrier: link.carrier(),
        outbound: link.is_outbound(),
        control: link.purpose() == Purpose::Control,
        retired: link.retired().is_cancelled(),
        core: link.core(),
        age: now.saturating_sub(link.facts().up_at),
        streams_opened: link.streams_opened(),
        streams_open: link.streams_open(),
        cell: link.hello().map(|hello| hello.cell.clone()),
        generation: link.hello().map(|hello| hello.generation),
    }
}

/// A lock whose data stays good when a holder panicked: every section under it leaves whole values.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
