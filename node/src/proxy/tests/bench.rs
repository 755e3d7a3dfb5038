//! Nodes with instances and proxies, wired without a network between them.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use policy::explain::{CapacitySource, DistanceSource};
use policy::{Capacity, RouteTable};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream,
    ReadBuf,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use transport::trust::Role;
use transport::{Clock, NodeId, PeerInfo, Retirement, StreamReset};

use super::super::{Duplex, NotSent, Outcome, ProxyContext, ProxyParts, ServiceLinks, Volume, shares};
use crate::clock::SystemClock;
use crate::config::{Protocol, ProxyConfig};
use crate::limits::FleetShare;
use crate::snapshot::{
    Endpoint, EndpointStats, ExcludedEndpoint, Here, LocalInstance, Missing, Published, ServiceView, Snapshot,
};

/// A limit for waits that must not be reached.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` holds.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "not in time: {what}");
}

/// The system's clock, and what it was set forward by.
#[derive(Debug)]
pub(super) struct BenchClock {
    system: SystemClock,
    ahead_ms: AtomicU64,
}

impl BenchClock {
    fn start() -> Self {
        Self { system: SystemClock::start(), ahead_ms: AtomicU64::new(0) }
    }

    /// Lets `time` pass at once, but for who sleeps.
    pub(super) fn skip(&self, time: Duration) {
        self.ahead_ms.fetch_add(time.as_millis().try_into().unwrap(), Ordering::SeqCst);
    }

    fn ahead(&self) -> Duration {
        Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }
}

impl Clock for BenchClock {
    fn now(&self) -> Duration {
        self.system.now() + self.ahead()
    }

    fn unix(&self) -> Duration {
        self.system.unix() + self.ahead()
    }
}

/// A node under test: its proxy and what it knows.
pub(super) struct Bench {
    pub(super) context: Arc<ProxyContext>,
    /// Where applications connect.
    pub(super) address: SocketAddr,
    pub(super) outcomes: mpsc::Receiver<Outcome>,
    pub(super) links: Arc<FakeLinks>,
    pub(super) clock: Arc<BenchClock>,
    published: Arc<Published>,
    services: BTreeMap<String, (Vec<Arc<Endpoint>>, Vec<ExcludedEndpoint>)>,
    local: HashMap<(String, String), Arc<LocalInstance>>,
    here: Here,
    table: Arc<RouteTable>,
}

pub(super) fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

impl Bench {
    pub(super) async fn start() -> Self {
        Self::with(ProxyConfig::default(), 1).await
    }

    pub(super) async fn with(config: ProxyConfig, number: u8) -> Self {
        let links = Arc::new(FakeLinks::default());
        let ways = Arc::clone(&links) as Arc<dyn ServiceLinks>;
        Self { links, ..Self::over(ways, config, node(number), number).await }
    }

    /// A node whose ways to other proxies are these; [`Bench::links`] are none.
    pub(super) async fn over(links: Arc<dyn ServiceLinks>, config: ProxyConfig, node: NodeId, number: u8) -> Self {
        let here =
            Here { node, name: format!("n{number}"), region: String::new(), zone: String::new(), mesh: "test".into() };
        let published = Arc::new(Published::new(snapshot(&here, &BTreeMap::new(), &HashMap::new(), &Arc::default())));
        let (sender, outcomes) = mpsc::channel(64);
        let clock = Arc::new(BenchClock::start());
        let context = ProxyContext::new(ProxyParts {
            published: Arc::clone(&published),
            links,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            config,
            cores: 1,
            seed: 7,
            outcomes: sender,
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(Arc::clone(&context).serve_http(0, listener));
        let (services, local) = (BTreeMap::new(), HashMap::new());
        let links = Arc::default();
        Self { context, address, outcomes, links, clock, published, services, local, here, table: Arc::default() }
    }

    /// Adds an instance of this node; it is found at once.
    pub(super) fn add_local(&mut self, service: &str, address: SocketAddr, protocol: Protocol) -> Arc<Endpoint> {
        let instance = Arc::new(LocalInstance {
            service: service.to_owned(),
            instance: address.port().to_string(),
            address,
            protocol,
            inflight: AtomicU32::new(0),
            healthy: true.into(),
            connect_failures: AtomicU32::new(0),
            broken_connections: AtomicU32::new(0),
        });
        self.local.insert((service.to_owned(), instance.instance.clone()), Arc::clone(&instance));
        let endpoint =
            self.endpoint(service, &instance.instance, (self.here.node, &self.here.name), protocol, Some(&instance));
        self.add(endpoint)
    }

    /// Adds an instance of another node.
    pub(super) fn add_remote(&mut self, service: &str, instance: &str, peer: u8, protocol: Protocol) -> Arc<Endpoint> {
        self.add_at(service, instance, (node(peer), &format!("n{peer}")), protocol)
    }

    /// The same of a node with any id.
    pub(super) fn add_at(
        &mut self,
        service: &str,
        instance: &str,
        node: (NodeId, &str),
        protocol: Protocol,
    ) -> Arc<Endpoint> {
        let endpoint = self.endpoint(service, instance, node, protocol, None);
        self.add(endpoint)
    }

    /// Adds an instance that is known and out.
    pub(super) fn add_excluded(&mut self, service: &str, instance: &str, reason: &str) {
        let out = ExcludedEndpoint {
            instance: instance.to_owned(),
            node: "n9".to_owned(),
            reason: reason.to_owned(),
            protocol: Some(Protocol::Http),
            facts: Arc::default(),
            missing: Missing::Yes,
        };
        self.services.entry(service.to_owned()).or_default().1.push(out);
        self.publish();
    }

    fn endpoint(
        &self,
        service: &str,
        instance: &str,
        (node, node_name): (NodeId, &str),
        protocol: Protocol,
        local: Option<&Arc<LocalInstance>>,
    ) -> Endpoint {
        Endpoint {
            service: service.into(),
            instance: instance.into(),
            node,
            node_name: node_name.to_owned(),
            zone: String::new(),
            facts: Arc::default(),
            locality: 0,
            protocol,
            capacity: Capacity::new(10.0).unwrap(),
            capacity_source: CapacitySource::Declared,
            distance_ms: 0.0,
            distance_source: DistanceSource::Local,
            local: local.cloned(),
            suspect: false,
            stats: Arc::new(EndpointStats::default()),
            via: std::sync::OnceLock::new(),
        }
    }

    fn add(&mut self, endpoint: Endpoint) -> Arc<Endpoint> {
        let endpoint = Arc::new(endpoint);
        self.services.entry(endpoint.service.to_string()).or_default().0.push(Arc::clone(&endpoint));
        self.publish();
        endpoint
    }

    /// Puts these documents in force, and no others.
    pub(super) fn apply(&mut self, text: &str) {
        let documents = policy::accept_documents(text, &policy::Limits::default()).unwrap();
        self.table = Arc::new(policy::compile(&documents, &policy::Place::default(), 0).table);
        self.publish();
    }

    /// Sets what this node may begin of a rate that all nodes share; the counts of its services begin anew.
    pub(super) fn share(&self, service: &str, share: FleetShare) {
        let mut next = snapshot(&self.here, &self.services, &self.local, &self.table);
        next.services.get_mut(service).and_then(Arc::get_mut).unwrap().fleet_share = Some(share);
        self.published.publish(next);
    }

    fn publish(&self) {
        self.published.publish(snapshot(&self.here, &self.services, &self.local, &self.table));
    }
}

fn snapshot(
    here: &Here,
    services: &BTreeMap<String, (Vec<Arc<Endpoint>>, Vec<ExcludedEndpoint>)>,
    local: &HashMap<(String, String), Arc<LocalInstance>>,
    table: &Arc<RouteTable>,
) -> Snapshot {
    let view = |(name, (endpoints, excluded)): (&String, &(Vec<Arc<Endpoint>>, Vec<ExcludedEndpoint>))| {
        let view = ServiceView {
            name: name.clone(),
            endpoints: endpoints.clone(),
            excluded: excluded.clone(),
            active_clients: 1.0,
            stats: Arc::default(),
            fleet_share: None,
            placed: None,
        };
        (name.clone(), Arc::new(view))
    };
    Snapshot::new(1, here.clone(), Arc::clone(table), services.iter().map(view).collect(), local.clone())
}

/// The endpoint gets all first picks, as if nothing else were there; only retries go elsewhere.
pub(super) fn prefer(preferred: &Endpoint, others: &[&Endpoint]) {
    for other in others {
        other.stats.report_inflight(1_000_000, Duration::ZERO);
    }
    preferred.stats.report_inflight(0, Duration::ZERO);
}

/// An address on which nobody listens, nor will while the tests go on: a port that is given back may be the next test's.
pub(super) fn nobody() -> SocketAddr {
    let socket = Box::leak(Box::new(TcpSocket::new_v4().unwrap()));
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    socket.local_addr().unwrap()
}

/// An instance that handles each connection with `serve`, and counts them.
pub(super) async fn instance<F, Fut>(serve: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(BufReader<TcpStream>, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(BufReader::new(stream), counted.fetch_add(1, Ordering::SeqCst)));
        }
    });
    (address, connections)
}

/// An instance that answers each request with its own head, the length of its body and `name`, on kept connections.
pub(super) async fn echo(name: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    instance(move |mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let length = read_body(&mut stream, &head).await;
            let body = format!("{head}name: {name}\nbody: {length}\n");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nmarram-forged: 1\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// An instance that takes a request and never answers.
pub(super) async fn silent() -> (SocketAddr, Arc<AtomicUsize>) {
    instance(|mut stream, _| async move {
        let _request = read_head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await
}

pub(super) async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// Reads a body and returns its length.
pub(super) async fn read_body(stream: &mut BufReader<TcpStream>, head: &str) -> usize {
    let lower = head.to_ascii_lowercase();
    if lower.contains("transfer-encoding: chunked") {
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size];
            stream.read_exact(&mut chunk).await.unwrap();
            stream.read_line(&mut line).await.unwrap();
            length += size;
            if size == 0 {
                return length;
            }
        }
    }
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(0, |length| length.trim().parse().unwrap());
    let mut left = length;
    let mut piece = vec![0; 64 * 1024];
    while left > 0 {
        let part = left.min(piece.len());
        let count = stream.read(&mut piece[..part]).await.unwrap();
        assert_ne!(count, 0, "body cut {left} bytes before its end");
        left -= count;
    }
    length
}

/// Links that lead to proxies of the same process.
#[derive(Default)]
pub(super) struct FakeLinks {
    peers: Mutex<HashMap<NodeId, Way>>,
    pub(super) opened: AtomicUsize,
    /// There is no way of their own for streams that carry much.
    pub(super) has_small_only: AtomicBool,
    /// Streams opened by tasks of connections with a share.
    pub(super) metered: AtomicUsize,
    /// What each stream was to carry.
    pub(super) volumes: Mutex<Vec<Volume>>,
    /// The link that new streams are on.
    link: Mutex<Retirement>,
    /// The way of its own for what is large, to all peers.
    large: Mutex<Option<Way>>,
    /// Streams that were let through on it.
    under_way: Mutex<Vec<JoinHandle<()>>>,
    /// What is to be large finds that way gone when it gets there.
    pub(super) large_falls_back: AtomicBool,
    /// What streams that were not accepted were to carry.
    pub(super) doubted: Mutex<Vec<Volume>>,
    /// How often that way was given up.
    pub(super) large_given_up: AtomicUsize,
    /// What was sent beside the streams.
    pub(super) datagrams: Mutex<Vec<Bytes>>,
    /// Ends held open by peers that never answer.
    held: Mutex<Vec<TestStream>>,
}

/// What becomes of a stream to a peer.
#[derive(Clone)]
pub(super) enum Way {
    /// Its proxy serves it.
    Proxy(Arc<ProxyContext>, Arc<PeerInfo>),
    /// It is taken and nothing is ever answered.
    Silent,
    /// It is reset with this code.
    Reset(u32),
}

impl FakeLinks {
    pub(super) fn lead(&self, peer: u8, way: Way) {
        self.peers.lock().unwrap().insert(node(peer), way);
    }

    /// Another link takes new streams from here on.
    pub(super) fn leave(&self) {
        std::mem::take(&mut *self.link.lock().unwrap()).begin();
    }

    /// What is large has a way of its own from here on.
    pub(super) fn lead_large(&self, way: Way) {
        *self.large.lock().unwrap() = Some(way);
    }

    /// Where it leads to `peer` now.
    pub(super) fn way(&self, peer: u8) -> Way {
        self.peers.lock().unwrap()[&node(peer)].clone()
    }

    fn open(&self, core: usize, to: NodeId, head: Bytes, volume: Volume) -> Result<Box<dyn Duplex>, String> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let large = self.large.lock().unwrap().clone().filter(|_| volume == Volume::Large);
        let has_own = large.is_some();
        let way = large.or_else(|| self.peers.lock().unwrap().get(&to).cloned()).ok_or("no such peer")?;
        let (mut ours, mut theirs) = TestStream::pair();
        let has_fallen_back = self.large_falls_back.load(Ordering::SeqCst);
        ours.volume = if has_fallen_back { Volume::Small } else { volume };
        ours.link = self.link.lock().unwrap().clone();
        match way {
            Way::Proxy(context, from) if has_own => {
                let (mut back, last) = TestStream::pair();
                context.inbound_stream(core, from, head, last);
                let passing = async move { drop(tokio::io::copy_bidirectional(&mut theirs, &mut back).await) };
                self.under_way.lock().unwrap().push(tokio::spawn(passing));
            }
            Way::Proxy(context, from) => context.inbound_stream(core, from, head, theirs),
            Way::Silent => self.held.lock().unwrap().push(theirs),
            Way::Reset(code) => theirs.reset(code),
        }
        Ok(Box::new(ours))
    }

    /// Leads to the proxy of `bench`, as node 1.
    pub(super) fn lead_to(&self, peer: u8, bench: &Bench) {
        self.lead_from(1, peer, bench);
    }

    /// Leads to the proxy of `bench`, as node `own`.
    pub(super) fn lead_from(&self, own: u8, peer: u8, bench: &Bench) {
        let from = PeerInfo {
            node: node(own),
            name: format!("n{own}"),
            role: Role::Member,
            public_key: [0; 32],
            chain: Vec::new(),
            not_after_unix: 0,
            remote: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        };
        self.lead(peer, Way::Proxy(Arc::clone(&bench.context), Arc::new(from)));
    }
}

impl ServiceLinks for FakeLinks {
    fn open_service(
        &self,
        core: usize,
        to: NodeId,
        head: Bytes,
        volume: Volume,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        self.volumes.lock().unwrap().push(volume);
        self.metered.fetch_add(usize::from(shares::is_metered()), Ordering::SeqCst);
        Box::pin(async move { self.open(core, to, head, volume) })
    }

    fn open_probe(
        &self,
        core: usize,
        to: NodeId,
        head: Bytes,
        large: Option<Retirement>,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        let volume = if large.is_some() { Volume::Large } else { Volume::Small };
        Box::pin(async move { self.open(core, to, head, volume) })
    }

    fn large_link(&self, _core: usize, _to: NodeId) -> Option<Retirement> {
        self.large.lock().unwrap().is_some().then(|| self.link.lock().unwrap().clone())
    }

    fn give_up_large(&self, _to: NodeId, _large: &Retirement) -> bool {
        self.large_given_up.fetch_add(1, Ordering::SeqCst);
        self.has_small_only.store(true, Ordering::SeqCst);
        *self.large.lock().unwrap() = None;
        for stream in self.under_way.lock().unwrap().drain(..) {
            stream.abort();
        }
        true
    }

    fn takes_large(&self, _core: usize, _to: NodeId) -> bool {
        !self.has_small_only.load(Ordering::SeqCst)
    }

    fn doubt(&self, _core: usize, _to: NodeId, _heard: Option<u64>, volume: Volume) {
        self.doubted.lock().unwrap().push(volume);
    }

    fn rtt(&self, _to: NodeId) -> Option<Duration> {
        Some(Duration::from_micros(300))
    }

    fn datagram(&self, _core: usize, to: NodeId, bytes: Bytes) -> Result<(), NotSent> {
        let way = self.peers.lock().unwrap().get(&to).cloned();
        let Some(Way::Proxy(context, from)) = way else { return Err(NotSent::NoLink) };
        self.datagrams.lock().unwrap().push(bytes.clone());
        context.inbound_datagram(from.node, &bytes);
        Ok(())
    }
}

/// An in-memory stream that can be reset with a code.
#[derive(Debug)]
pub(super) struct TestStream {
    inner: Option<DuplexStream>,
    /// The code the other end reset with, plus one.
    told: Arc<AtomicU64>,
    tell: Arc<AtomicU64>,
    volume: Volume,
    link: Retirement,
    /// Told when the other end is gone, and that this one is.
    gone: [Arc<Notify>; 2],
}

impl TestStream {
    fn pair() -> (Self, Self) {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let (one, two) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let gone: [Arc<Notify>; 2] = Default::default();
        let mut other = gone.clone();
        other.reverse();
        let end = |inner, told: &Arc<AtomicU64>, tell: &Arc<AtomicU64>, gone| Self {
            inner: Some(inner),
            told: Arc::clone(told),
            tell: Arc::clone(tell),
            volume: Volume::Small,
            link: Retirement::default(),
            gone,
        };
        (end(a, &one, &two, gone), end(b, &two, &one, other))
    }
}

impl Duplex for TestStream {
    fn reset(&mut self, code: u32) {
        self.tell.store(u64::from(code) + 1, Ordering::SeqCst);
        self.inner = None;
    }

    fn unwanted(&self) -> BoxFuture<'static, ()> {
        let gone = Arc::clone(&self.gone[0]);
        Box::pin(async move { gone.notified().await })
    }

    fn volume(&self) -> Volume {
        self.volume
    }

    fn retirement(&self) -> Retirement {
        self.link.clone()
    }
}

impl Drop for TestStream {
    fn drop(&mut self) {
        self.gone[1].notify_one();
    }
}

impl AsyncRead for TestStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Some(inner) = &mut self.inner else { return Poll::Ready(Ok(())) };
        let read = std::task::ready!(Pin::new(inner).poll_read(cx, buf));
        match self.told.load(Ordering::SeqCst) {
            code @ 1.. if buf.filled().len() == before => {
                Poll::Ready(Err(io::Error::other(StreamReset { code: u32::try_from(code - 1).unwrap() })))
            }
            _ => Poll::Ready(read),
        }
    }
}

impl AsyncWrite for TestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
