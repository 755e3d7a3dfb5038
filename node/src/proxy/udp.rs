//! Datagrams: a flow for each client of a listener, pinned to the instance it was drawn for until that is out.
//!
//! Between nodes a flow is opened by a stream, which is answered by the flow's number and then closed; its datagrams go
//! beside, as QUIC datagrams over the data links. They are encrypted like all else, not sent again, and may change their
//! order: what a network does to datagrams, no more. What this node drops itself is counted with its reason.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use transport::NodeId;

use super::attempt::{open_stream, stream_head};
use super::context::{Outcome, OutcomeKind, ProxyContext};
use super::head::Content;
use super::links::{NotSent, Volume};
use super::refuse::Refusal;
use super::retry::Tries;
use super::tcp::place;
use crate::snapshot::{Endpoint, InFlight, Snapshot};

mod instance;
mod peer;
mod table;
mod wire;

use instance::{DATAGRAM_BYTES_MAX, Ended, InstanceSocket};
pub(super) use peer::{Flows, accept};
use table::{LastUse, Table};
pub(crate) use wire::is_of_flow;
use wire::{Kind, encode};

/// Datagrams of a client that wait while its flow is being opened; one more is dropped.
const WAITING_MAX: usize = 16;
/// Flows of one listener that are being opened at once; the first datagram of one more is dropped.
const OPENING_MAX: usize = 128;
/// How often a listener looks for flows that are idle.
const SWEEP: Duration = Duration::from_secs(1);
/// Pause after the system had no memory to give.
const PAUSE: Duration = Duration::from_millis(10);

/// Why a datagram was dropped here.
#[derive(Debug, Clone, Copy)]
enum Lost {
    /// Longer than fits a packet to the peer.
    TooLarge,
    /// There is no link to the peer at the moment.
    NoLink,
    /// Its flow was being opened and enough were waiting, or enough flows were.
    Opening,
    /// No instance could be reached.
    Unreachable,
    /// The node drains and opens no new flows.
    Draining,
    /// Of a flow that is not known here.
    UnknownFlow,
    /// Nobody listens at the instance's port.
    InstanceRefused,
    /// The socket did not take it.
    NotSent,
    /// None of ours.
    Malformed,
}

impl Lost {
    const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NoLink => "no_link",
            Self::Opening => "opening",
            Self::Unreachable => "unreachable",
            Self::Draining => "draining",
            Self::UnknownFlow => "unknown_flow",
            Self::InstanceRefused => "instance_refused",
            Self::NotSent => "not_sent",
            Self::Malformed => "malformed",
        }
    }
}

/// Why a flow ended.
#[derive(Debug, Clone, Copy)]
enum Closed {
    Idle,
    FlowsMax,
    Refused,
    /// Its instance is out, or its node.
    Out,
    Unreachable,
}

impl Closed {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::FlowsMax => "flows_max",
            Self::Refused => "refused",
            Self::Out => "instance_out",
            Self::Unreachable => "unreachable",
        }
    }
}

fn drop_datagram(reason: Lost) {
    metrics::counter!("marram_udp_dropped_total", "reason" => reason.as_str()).increment(1);
}

fn close_flow(reason: Closed) {
    metrics::counter!("marram_udp_flows_closed_total", "reason" => reason.as_str()).increment(1);
}

fn taken(from: &'static str) {
    metrics::counter!("marram_udp_datagrams_total", "from" => from).increment(1);
}

fn send_to_peer(context: &ProxyContext, core: usize, to: NodeId, bytes: Bytes) {
    match context.links.datagram(core, to, bytes) {
        Ok(()) => {}
        Err(NotSent::TooLong) => drop_datagram(Lost::TooLarge),
        Err(NotSent::NoLink) => drop_datagram(Lost::NoLink),
    }
}

/// How many flows there are on one side.
#[derive(Debug)]
struct Counted {
    side: &'static str,
    count: AtomicUsize,
}

impl Counted {
    const fn new(side: &'static str) -> Self {
        Self { side, count: AtomicUsize::new(0) }
    }

    fn more(&self) {
        self.show(self.count.fetch_add(1, Ordering::Relaxed) + 1);
    }

    fn less(&self) {
        self.show(self.count.fetch_sub(1, Ordering::Relaxed).saturating_sub(1));
    }

    fn show(&self, count: usize) {
        #[expect(clippy::cast_precision_loss, reason = "bounded by the flows of one machine")]
        metrics::gauge!("marram_udp_flows", "side" => self.side).set(count as f64);
    }
}

/// A client's flow to an instance of a peer.
#[derive(Debug)]
struct FarFlow {
    endpoint: Arc<Endpoint>,
    number: u64,
    listener: Arc<UdpSocket>,
    client: SocketAddr,
    last: LastUse,
    is_gone: AtomicBool,
    peer: CancellationToken,
    flows: Arc<Flows>,
}

impl Drop for FarFlow {
    fn drop(&mut self) {
        self.flows.forget_opened(self.endpoint.node, self.number);
    }
}

impl FarFlow {
    fn to_client(&self, payload: &[u8], now: Duration) {
        self.last.touch(now);
        send_to_client(&self.listener, self.client, payload);
    }

    /// The peer has no such flow any more; the client's next datagram opens another, elsewhere where the instance is to
    /// blame.
    fn gone(&self, context: &ProxyContext, is_refused: bool) {
        let was_gone = self.is_gone.swap(true, Ordering::Relaxed);
        if is_refused && !was_gone {
            blame(context, &self.endpoint);
        }
    }
}

fn send_to_client(listener: &UdpSocket, client: SocketAddr, payload: &[u8]) {
    if listener.try_send_to(payload, client).is_err() {
        drop_datagram(Lost::NotSent);
    }
}

/// The instance takes no datagrams: it is out here for a while.
fn blame(context: &ProxyContext, endpoint: &Arc<Endpoint>) {
    let at = context.clock.now();
    let in_a_row = endpoint.stats.failed(at.saturating_add(context.config.eject_time));
    let detail = "nobody listens at its port for datagrams".to_owned();
    context.tell(Outcome { endpoint: Arc::clone(endpoint), kind: OutcomeKind::ConnectFailed, detail, in_a_row, at });
}

/// The way of an open flow.
#[derive(Debug)]
enum Way {
    Near { instance: InstanceSocket, is_gone: Arc<AtomicBool> },
    Far(Arc<FarFlow>),
}

/// An open flow.
#[derive(Debug)]
struct Open {
    endpoint: Arc<Endpoint>,
    way: Way,
    /// The snapshot in which the endpoint was last seen.
    seen_in: u64,
    _in_flight: InFlight,
}

impl Open {
    /// Whether the instance is out: it refused, its node was given up, or nobody offers it any more.
    fn is_out(&mut self, snapshot: &Snapshot) -> bool {
        let is_gone = match &self.way {
            Way::Near { is_gone, .. } => is_gone.load(Ordering::Relaxed),
            Way::Far(flow) => flow.is_gone.load(Ordering::Relaxed) || flow.peer.is_cancelled(),
        };
        if is_gone {
            return true;
        }
        if self.seen_in != snapshot.version {
            let view = snapshot.services.get(&*self.endpoint.service);
            let mut others = view.into_iter().flat_map(|view| &view.endpoints);
            if !others.any(|other| Arc::ptr_eq(&other.stats, &self.endpoint.stats)) {
                return true;
            }
            self.seen_in = snapshot.version;
        }
        false
    }
}

/// One client of a listener.
#[derive(Debug)]
enum Flow {
    /// Datagrams that came in the meantime.
    Opening(VecDeque<Vec<u8>>),
    Open(Box<Open>),
}

impl ProxyContext {
    /// Serves the datagrams of one listener. To be spawned on the runtime of `core`; ends with the process.
    pub async fn serve_udp(self: Arc<Self>, core: usize, socket: UdpSocket, service: String) {
        let (opened, mut inbox) = mpsc::channel(OPENING_MAX);
        let mut listener = Listener {
            flows: Table::new(self.config.udp_flows_max),
            socket: Arc::new(socket),
            context: self,
            core,
            service,
            opening: Arc::new(Semaphore::new(OPENING_MAX)),
            opened,
        };
        let mut sweep = tokio::time::interval(SWEEP);
        let mut payload = vec![0; DATAGRAM_BYTES_MAX];
        let socket = Arc::clone(&listener.socket);
        loop {
            tokio::select! {
                received = socket.recv_from(&mut payload) => match received {
                    Ok((length, client)) => listener.take(client, payload.get(..length).unwrap_or_default()),
                    Err(fault) => {
                        tracing::debug!(%fault, service = listener.service, "no datagram received");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some((client, outcome)) = inbox.recv() => listener.opened(client, outcome),
                _ = sweep.tick() => listener.sweep(),
            }
        }
    }
}

type Opened = (SocketAddr, Result<Box<Open>, Refusal>);

struct Listener {
    context: Arc<ProxyContext>,
    core: usize,
    socket: Arc<UdpSocket>,
    service: String,
    flows: Table<SocketAddr, Flow>,
    /// A place for each flow that is being opened.
    opening: Arc<Semaphore>,
    opened: mpsc::Sender<Opened>,
}

impl Listener {
    /// One datagram of a client.
    fn take(&mut self, client: SocketAddr, payload: &[u8]) {
        taken("client");
        let now = self.context.clock.now();
        match self.flows.get_mut(&client) {
            Some(Flow::Opening(waiting)) if waiting.len() < WAITING_MAX => return waiting.push_back(payload.to_vec()),
            Some(Flow::Opening(_)) => return drop_datagram(Lost::Opening),
            Some(Flow::Open(flow)) => {
                if !flow.is_out(&self.context.published.load()) {
                    return send(&self.context, self.core, flow, payload, now);
                }
                self.close(&client, Closed::Out);
            }
            None => {}
        }
        if self.context.is_draining() {
            return drop_datagram(Lost::Draining);
        }
        self.open(client, payload, now);
    }

    fn open(&mut self, client: SocketAddr, payload: &[u8], now: Duration) {
        let Ok(place) = Arc::clone(&self.opening).try_acquire_owned() else { return drop_datagram(Lost::Opening) };
        let last = LastUse::new(now);
        let waiting = Flow::Opening(VecDeque::from([payload.to_vec()]));
        if let Some(evicted) = self.flows.insert(client, last.clone(), waiting, now) {
            drop(evicted);
            self.ended(Closed::FlowsMax);
        }
        self.context.flows.at_listeners.more();
        let (context, core, service) = (Arc::clone(&self.context), self.core, self.service.clone());
        let (socket, opened) = (Arc::clone(&self.socket), self.opened.clone());
        tokio::spawn(async move {
            let outcome = open(&context, core, &service, (&socket, client), &last).await;
            // Nobody is left to tell when the listener has ended.
            opened.send((client, outcome)).await.ok();
            drop(place);
        });
    }

    /// The flow of a client is open, or will not be.
    fn opened(&mut self, client: SocketAddr, outcome: Result<Box<Open>, Refusal>) {
        // Meanwhile it made room for another, or was idle for too long.
        let Some(Flow::Opening(waiting)) = self.flows.get_mut(&client) else { return };
        let waiting = std::mem::take(waiting);
        match outcome {
            Ok(open) => {
                let now = self.context.clock.now();
                for payload in &waiting {
                    send(&self.context, self.core, &open, payload, now);
                }
                if let Some(flow) = self.flows.get_mut(&client) {
                    *flow = Flow::Open(open);
                }
            }
            Err(refusal) => {
                refusal.count();
                tracing::info!(
                    service = self.service,
                    code = refusal.reason().code(),
                    detail = refusal.detail(),
                    lost = waiting.len(),
                    "datagrams have nowhere to go"
                );
                waiting.iter().for_each(|_| drop_datagram(Lost::Unreachable));
                self.close(&client, Closed::Unreachable);
            }
        }
    }

    fn sweep(&mut self) {
        let timeout = self.context.config.udp_flow_timeout;
        for _flow in self.flows.expire(self.context.clock.now(), timeout) {
            self.ended(Closed::Idle);
        }
    }

    fn close(&mut self, client: &SocketAddr, reason: Closed) {
        if self.flows.remove(client).is_some() {
            self.ended(reason);
        }
    }

    fn ended(&self, reason: Closed) {
        self.context.flows.at_listeners.less();
        close_flow(reason);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // After a panic the next run begins without flows.
        for _flow in self.flows.expire(Duration::MAX, Duration::ZERO) {
            self.ended(Closed::Out);
        }
    }
}

fn send(context: &ProxyContext, core: usize, open: &Open, payload: &[u8], now: Duration) {
    match &open.way {
        Way::Near { instance, .. } => instance.send(payload, now),
        Way::Far(flow) => {
            flow.last.touch(now);
            send_to_peer(context, core, flow.endpoint.node, encode(Kind::ToInstance, flow.number, payload));
        }
    }
}

/// Draws an instance and opens a flow to it; where that fails, to another one.
async fn open(
    context: &Arc<ProxyContext>,
    core: usize,
    service: &str,
    client: (&Arc<UdpSocket>, SocketAddr),
    last: &LastUse,
) -> Result<Box<Open>, Refusal> {
    let snapshot = context.published.load();
    let mut tries = Tries::for_datagrams();
    loop {
        let pick = tries.pick(context, core, &snapshot, service)?;
        let in_flight = pick.endpoint.stats.begin();
        match reach(context, core, &pick.endpoint, client, last).await {
            Ok(way) => {
                pick.endpoint.stats.succeeded();
                let open = Open { endpoint: pick.endpoint, way, seen_in: snapshot.version, _in_flight: in_flight };
                return Ok(Box::new(open));
            }
            Err((kind, detail)) => tries.fail(context, &snapshot, &pick.endpoint, kind, detail),
        }
    }
}

async fn reach(
    context: &Arc<ProxyContext>,
    core: usize,
    endpoint: &Arc<Endpoint>,
    (listener, client): (&Arc<UdpSocket>, SocketAddr),
    last: &LastUse,
) -> Result<Way, (OutcomeKind, String)> {
    let Some(instance) = &endpoint.local else {
        return reach_far(context, core, endpoint, (listener, client), last).await;
    };
    let is_gone = Arc::new(AtomicBool::new(false));
    let back = {
        let listener = Arc::clone(listener);
        move |payload: &[u8]| send_to_client(&listener, client, payload)
    };
    let ended = {
        let (context, endpoint, is_gone) = (Arc::clone(context), Arc::clone(endpoint), Arc::clone(&is_gone));
        move |why| {
            is_gone.store(true, Ordering::Relaxed);
            if why == Ended::Refused {
                blame(&context, &endpoint);
            }
        }
    };
    let opened = InstanceSocket::open(context, instance, last.clone(), back, ended).await;
    let instance = opened.map_err(|fault| (OutcomeKind::ConnectFailed, format!("no socket for it: {fault}")))?;
    Ok(Way::Near { instance, is_gone })
}

async fn reach_far(
    context: &Arc<ProxyContext>,
    core: usize,
    endpoint: &Arc<Endpoint>,
    (listener, client): (&Arc<UdpSocket>, SocketAddr),
    last: &LastUse,
) -> Result<Way, (OutcomeKind, String)> {
    let head = stream_head(context, endpoint, Content::Udp, 1);
    let limit = context.config.connect_timeout;
    let place = place(context, core, endpoint).await?;
    let broken = |detail: String| (OutcomeKind::PeerFailed, detail);
    let mut stream = open_stream(context, core, endpoint.node, &head, Volume::Small, place).await?;
    let number = match tokio::time::timeout(limit, stream.read_u64()).await {
        Ok(Ok(number)) => number,
        Ok(Err(fault)) => return Err(broken(format!("its node opened no flow: {fault}"))),
        Err(_elapsed) => return Err(broken("its node opened no flow in time".to_owned())),
    };
    let flow = Arc::new(FarFlow {
        endpoint: Arc::clone(endpoint),
        number,
        listener: Arc::clone(listener),
        client,
        last: last.clone(),
        is_gone: AtomicBool::new(false),
        peer: context.peer_token(endpoint.node),
        flows: Arc::clone(&context.flows),
    });
    context.flows.opened(endpoint.node, number, &flow);
    Ok(Way::Far(flow))
}
