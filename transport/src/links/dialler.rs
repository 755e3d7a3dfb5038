//! Opening connections: to a peer at any of its addresses, to a seed, and again after one was lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, FutureExt as _, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use quinn::{ConnectionError, Endpoint};
use tokio::time::{sleep, timeout};

use super::connection_id::first_id;
use super::counters::DialFailure;
use super::permit::Permit;
use super::reach::Approach;
use super::serve::{self, Opened};
use super::table::{DataSlot, DialStep, Peer, backoff};
use super::{Inner, lock};
use crate::carrier::{Carrier, Connection};
use crate::frame::{CloseCode, Purpose};
use crate::id::NodeId;
use crate::link::{LinkError, NodeLink as _, PeerInfo, QuicLink};
use crate::tcp;
use crate::trust::server_name;

/// How often a dial that nobody has answered looks whether the peer is known elsewhere by now.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Times the round trip that a hello may take longer than a handshake; it waits for the peer's other work.
const HELLO_PATIENCE: u32 = 2;

/// What a connection is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Control,
    Data,
    /// Data of streams that carry much.
    Large,
}

impl Wanted {
    const fn purpose(self) -> Purpose {
        match self {
            Self::Control => Purpose::Control,
            Self::Data | Self::Large => Purpose::Data,
        }
    }
}

impl Inner {
    /// This core's data link to a peer. Callers that come while it is being dialled wait for the same attempt.
    pub(crate) async fn data_link(self: &Arc<Self>, core: usize, to: NodeId) -> Result<Arc<QuicLink>, LinkError> {
        let dial = {
            let mut table = self.table();
            if self.closed().is_cancelled() {
                return Err(LinkError::ShuttingDown);
            }
            let peer = table.peer_mut(to).ok_or(LinkError::UnknownPeer { node: to })?;
            match peer.data.get(&core) {
                Some(DataSlot::Live(link)) if link.is_usable() => return Ok(Arc::clone(link)),
                Some(DataSlot::Dialling(dial)) => dial.clone(),
                // While the node drains, links that are there may be used, but none are made.
                Some(DataSlot::Live(_)) | None if self.stopping.is_cancelled() => return Err(LinkError::ShuttingDown),
                Some(DataSlot::Live(_)) | None => {
                    let addrs = peer.addrs_to_dial();
                    if addrs.is_empty() {
                        return Err(LinkError::UnknownPeer { node: to });
                    }
                    let approach = peer.approach(&self.config, Purpose::Data);
                    // The task takes the table's lock only when it is done, so after the slot below is filled.
                    let task = self
                        .spawn_on(core, dial_data(Arc::clone(self), core, to, addrs, approach))
                        .ok_or(LinkError::NoSuchCore { core })?;
                    let dial = async move { task.await.unwrap_or(Err(LinkError::ShuttingDown)) }.boxed().shared();
                    peer.data.insert(core, DataSlot::Dialling(dial.clone()));
                    dial
                }
            }
        };
        dial.await
    }
}

async fn dial_data(
    inner: Arc<Inner>,
    core: usize,
    to: NodeId,
    addrs: Vec<SocketAddr>,
    approach: Approach,
) -> Result<Arc<QuicLink>, LinkError> {
    let vacate = Vacate { inner: Arc::clone(&inner), core, to };
    let opened = open(&inner, core, addrs, Some(to), Wanted::Data, approach).await;
    drop(vacate);
    opened
}

/// Empties the slot of a dial that has ended without a link, even by a panic or a stopped runtime.
struct Vacate {
    inner: Arc<Inner>,
    core: usize,
    to: NodeId,
}

impl Drop for Vacate {
    fn drop(&mut self) {
        let mut table = self.inner.table();
        if let Some(peer) = table.peer_mut(self.to)
            && matches!(peer.data.get(&self.core), Some(DataSlot::Dialling(_)))
        {
            peer.data.remove(&self.core);
            table.forget_if_unknown(self.to);
        }
    }
}

/// Dials a peer until there is a control link, or nobody wants one any more.
pub(crate) async fn keep_connected(inner: Arc<Inner>, node: NodeId, is_redial: bool) {
    let stopping = inner.stopping.clone();
    stopping.run_until_cancelled(keep_dialling(&inner, node, is_redial)).await;
}

async fn keep_dialling(inner: &Arc<Inner>, node: NodeId, is_redial: bool) {
    let mut attempts = 0;
    if is_redial {
        // Everybody lost the same peer at the same moment; they do not all come back in the same millisecond.
        sleep(inner.config.backoff_min.mul_f64(0.25 * rand::random::<f64>())).await;
    }
    loop {
        let step = inner.table().dial_step(node, attempts, &inner.config);
        let DialStep::Dial { addrs, failures, wake, approach } = step else { return };
        let pause = backoff(failures, inner.config.backoff_min, inner.config.backoff_max, rand::random());
        if !pause.is_zero() && timeout(pause, wake.notified()).await.is_ok() {
            // Addresses have changed: look again before dialling.
            continue;
        }
        if attempts > 0 || is_redial {
            inner.counters.redials.add();
        }
        attempts += 1;
        if let Err(error) = open(inner, 0, addrs.clone(), Some(node), Wanted::Control, approach).await {
            tracing::debug!(%node, %error, "dial failed");
            if let Some(peer) = inner.table().peer_mut(node) {
                peer.failures = peer.failures.saturating_add(1);
            }
            // Somebody else may live at the address of a seed by now.
            let is_wrong_peer = matches!(error, LinkError::Dial { cause: DialFailure::WrongPeer, .. });
            for addr in addrs.into_iter().filter(|addr| is_wrong_peer && inner.is_seed(*addr)) {
                inner.dial_seed(addr);
            }
        }
    }
}

/// Dials an address until somebody of the mesh answers there, and keeps who it is.
pub(crate) async fn find_seed(inner: Arc<Inner>, addr: SocketAddr) {
    let stopping = inner.stopping.clone();
    stopping.run_until_cancelled(find(&inner, addr)).await;
    inner.seed_done(addr);
}

async fn find(inner: &Arc<Inner>, addr: SocketAddr) {
    let mut failures = 0;
    loop {
        sleep(backoff(failures, inner.config.backoff_min, inner.config.backoff_max, rand::random())).await;
        let approach = Approach::to_stranger(&inner.config);
        match open(inner, 0, vec![addr], None, Wanted::Control, approach).await {
            Ok(link) => {
                let node = link.peer_shared().node;
                tracing::debug!(%addr, %node, "seed answered");
                let known = inner.table().peer(node).map(|peer| peer.addrs.clone()).unwrap_or_default();
                let addrs = if known.contains(&addr) { known } else { [vec![addr], known].concat() };
                inner.set_peer(node, addrs, true);
                return;
            }
            Err(LinkError::Dial { cause: DialFailure::WrongPeer, .. }) => {
                tracing::debug!(%addr, "the seed is this node itself");
                return;
            }
            Err(error) => {
                tracing::debug!(%addr, %error, "seed not reached");
                failures += 1;
                inner.counters.redials.add();
            }
        }
    }
}

/// Tries QUIC again with a peer that is reached over TCP; a link that comes up takes over.
pub(crate) async fn retry_quic(inner: Arc<Inner>, node: NodeId, addrs: Vec<SocketAddr>) {
    let stopping = inner.stopping.clone();
    let trying = open(&inner, 0, addrs, Some(node), Wanted::Control, Approach::QUIC);
    match stopping.run_until_cancelled(trying).await {
        Some(Ok(_)) => tracing::info!(%node, "udp gets through again: link moved to quic"),
        Some(Err(error)) => tracing::debug!(%node, %error, "udp still does not get through"),
        None => {}
    }
}

/// Opens a connection to whichever address answers first, says hello, and takes the link into use. Runs on the core's
/// own runtime.
pub(crate) async fn open(
    inner: &Arc<Inner>,
    core: usize,
    addrs: Vec<SocketAddr>,
    expected: Option<NodeId>,
    wanted: Wanted,
    approach: Approach,
) -> Result<Arc<QuicLink>, LinkError> {
    let Some(permit) = inner.connections.take() else {
        return Err(inner.dial_failed(DialFailure::TooManyConnections, None));
    };
    let endpoint = match approach.quic {
        Some(_) => {
            Some(inner.client(core).map_err(|error| inner.dial_failed(DialFailure::Socket, Some(error.to_string())))?)
        }
        None => None,
    };
    let dial = Dial { inner, core, endpoint, expected, wanted, approach };
    let opened = async {
        let (connection, peer) = dial.first_to_answer(addrs).await?;
        dial.confirm(connection, peer, core, permit).await
    };
    opened.await.map_err(|(cause, detail)| inner.dial_failed(cause, detail))
}

type Failed = (DialFailure, Option<String>);

struct Dial<'a> {
    inner: &'a Arc<Inner>,
    core: usize,
    /// For QUIC, where that is tried.
    endpoint: Option<Endpoint>,
    expected: Option<NodeId>,
    wanted: Wanted,
    approach: Approach,
}

impl Dial<'_> {
    /// Tries the addresses one after the other without waiting for the earlier ones to fail.
    async fn first_to_answer(&self, addrs: Vec<SocketAddr>) -> Result<(Connection, PeerInfo), Failed> {
        let stagger = self.inner.config.connect_stagger;
        let mut tried = addrs.clone();
        let mut attempts: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
        for (position, addr) in (0_u32..).zip(addrs) {
            attempts.push(async move { self.answer_at(addr, stagger.saturating_mul(position)).await }.boxed());
        }
        let mut failed = (DialFailure::NoAddress, None);
        loop {
            let attempt = match timeout(LOOK_AGAIN, attempts.next()).await {
                Ok(Some(attempt)) => attempt,
                Ok(None) => break,
                Err(_elapsed) => {
                    // A peer that has moved may be known elsewhere by now.
                    for addr in self.new_addrs(&tried) {
                        tried.push(addr);
                        attempts.push(async move { self.answer_at(addr, Duration::ZERO).await }.boxed());
                    }
                    continue;
                }
            };
            match attempt {
                Ok(answered) => return Ok(answered),
                // What a peer said is worth more to a reader than that others were silent.
                Err(failure) if failed.0 == DialFailure::NoAddress || failure.0 != DialFailure::TimedOut => {
                    failed = failure;
                }
                Err(_) => {}
            }
        }
        Err(failed)
    }

    /// Addresses of the peer that are not among these.
    fn new_addrs(&self, tried: &[SocketAddr]) -> Vec<SocketAddr> {
        let Some(expected) = self.expected else { return Vec::new() };
        let known = self.inner.table().peer(expected).map(Peer::addrs_to_dial).unwrap_or_default();
        known.into_iter().filter(|addr| !tried.contains(addr)).collect()
    }

    /// Tries one address over the carriers of the approach; the first that is up wins. TCP is for where QUIC gets no
    /// answer: whatever was answered counts for both.
    async fn answer_at(&self, addr: SocketAddr, turn: Duration) -> Result<(Connection, PeerInfo), Failed> {
        let (quic_delay, tcp_delay) = match self.approach {
            Approach { quic: Some(quic), tcp: Some(tcp) } => (quic, tcp),
            Approach { quic: Some(quic), tcp: None } => {
                return self.handshake(Carrier::Quic, addr, turn + quic).await;
            }
            Approach { quic: None, tcp: Some(tcp) } => return self.handshake(Carrier::Tcp, addr, turn + tcp).await,
            Approach { quic: None, tcp: None } => return Err((DialFailure::NoAddress, None)),
        };
        let quic = self.handshake(Carrier::Quic, addr, turn + quic_delay).boxed();
        let tcp = self.handshake(Carrier::Tcp, addr, turn + tcp_delay).boxed();
        let is_silence = |failed: &Failed| matches!(failed.0, DialFailure::TimedOut | DialFailure::Socket);
        match select(quic, tcp).await {
            Either::Left((Err(failed), tcp)) if is_silence(&failed) => tcp.await,
            Either::Left((told, _)) => told,
            Either::Right((Ok(answered), _)) => Ok(answered),
            Either::Right((Err(failed), quic)) => match quic.await {
                Err(silence) if is_silence(&silence) => Err(failed),
                told => told,
            },
        }
    }

    async fn handshake(
        &self,
        carrier: Carrier,
        addr: SocketAddr,
        delay: Duration,
    ) -> Result<(Connection, PeerInfo), Failed> {
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let connection = match carrier {
            Carrier::Quic => self.connect_quic(addr).await?,
            Carrier::Tcp => {
                let connecting = tcp::dial::connect(self.inner, addr, self.wanted.purpose());
                let Ok(connected) = timeout(self.inner.config.connect_timeout, connecting).await else {
                    return Err((DialFailure::TimedOut, None));
                };
                Connection::Tcp(connected?)
            }
        };
        let peer = match serve::identify(self.inner, &connection) {
            Ok(peer) => peer,
            Err(error) => {
                close(&connection, CloseCode::BadIdentity);
                return Err((DialFailure::Certificate, Some(error.to_string())));
            }
        };
        if peer.node == self.inner.me || self.expected.is_some_and(|expected| expected != peer.node) {
            close(&connection, CloseCode::WrongPeer);
            return Err((DialFailure::WrongPeer, Some(format!("{} answered", peer.node))));
        }
        Ok((connection, peer))
    }

    async fn connect_quic(&self, addr: SocketAddr) -> Result<Connection, Failed> {
        let Some(endpoint) = &self.endpoint else { return Err((DialFailure::Socket, None)) };
        let is_far = lock(&self.inner.paths).is_far(addr);
        let mut config = self.inner.quic.client(self.wanted.purpose(), is_far);
        let core = self.core;
        config.initial_dst_cid_provider(Arc::new(move || first_id(core)));
        // The name is that of anybody: who answered is checked below, where it can be told from other faults.
        let connecting = endpoint
            .connect_with(config, addr, &server_name(None))
            .map_err(|error| (DialFailure::Socket, Some(error.to_string())))?;
        let Ok(connected) = timeout(self.inner.config.connect_timeout, connecting).await else {
            return Err((DialFailure::TimedOut, None));
        };
        let connection = connected.map_err(|error| (failure(&error), Some(error.to_string())))?;
        Ok(Connection::Quic(connection))
    }

    /// Says hello and waits for the answer where it matters, then takes the link into use.
    async fn confirm(
        &self,
        connection: Connection,
        peer: PeerInfo,
        core: usize,
        permit: Permit,
    ) -> Result<Arc<QuicLink>, Failed> {
        let (inner, purpose) = (self.inner, self.wanted.purpose());
        let said = async {
            let first = connection.open_uni().await?;
            serve::say_hello(first, &inner.hello(purpose)).await
        };
        let Ok(said) = timeout(inner.config.connect_timeout, said).await else {
            close(&connection, CloseCode::TooSlow);
            return Err((DialFailure::TimedOut, None));
        };
        said.map_err(|error| (hello_failure(&connection), Some(error.to_string())))?;
        let hello = match purpose {
            // The peer answers once it has taken the link into use: only then may it replace another.
            Purpose::Control => {
                let patience = inner.config.connect_timeout.saturating_mul(HELLO_PATIENCE);
                let Ok(heard) = timeout(patience, serve::hear_hello(inner, &connection)).await else {
                    close(&connection, CloseCode::TooSlow);
                    return Err((DialFailure::NoHello, None));
                };
                Some(heard.map_err(|error| (hello_failure(&connection), Some(error.to_string())))?)
            }
            // A stream may follow at once; a peer that refuses the link breaks it off.
            Purpose::Data => None,
        };
        let opened = Opened::ByThisNode { core, is_large: self.wanted == Wanted::Large };
        let link = serve::link(inner, connection, peer, purpose, opened, permit);
        if let Some(hello) = hello {
            link.heard(hello);
        }
        inner.counters.handshakes_outbound.add();
        if !inner.place(&link) {
            link.close(CloseCode::Shutdown, "the node stops");
            return Err((DialFailure::Refused, None));
        }
        tokio::spawn(serve::run(Arc::clone(inner), Arc::clone(&link)));
        Ok(link)
    }
}

/// A certificate that the peer refuses shows only now: its verdict comes after our side of the handshake is over.
fn hello_failure(connection: &Connection) -> DialFailure {
    connection.close_reason().map_or(DialFailure::NoHello, |error| failure(&error))
}

fn close(connection: &Connection, code: CloseCode) {
    connection.close(code.code(), b"");
}

/// What kind of failure a handshake error is.
fn failure(error: &ConnectionError) -> DialFailure {
    match error {
        ConnectionError::TimedOut => DialFailure::TimedOut,
        ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => {
            DialFailure::Refused
        }
        ConnectionError::TransportError(error) if serve::is_certificate_alert(error.code) => DialFailure::Certificate,
        ConnectionError::TransportError(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => DialFailure::Handshake,
    }
}
