//! Nodes for tests: identities of one mesh, a clock that can jump, and an inbound side that writes down what it sees.

use std::future::Future;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::frame::StreamKind;
use crate::id::NodeId;
use crate::link::{LinkStream, PeerInfo};
use crate::links::{Inbound, LinkStatus, Links, LinksConfig, lock};
use crate::trust::{
    Identity, JoinServer, JoinServerConfig, LeafLife, LeafSource, PeerVerifier, Role, client_config, create_token,
    init_mesh, join,
};

/// Longest wait for anything that should happen soon.
const SOON: Duration = Duration::from_secs(10);

/// The runtime on which tests wait; nodes have runtimes of their own.
static DRIVER: LazyLock<Runtime> = LazyLock::new(|| runtime(2));

/// Runs a future to its end.
pub(super) fn block<F: Future>(future: F) -> F::Output {
    DRIVER.block_on(async { timeout(Duration::from_secs(60), future).await.expect("the test hangs") })
}

/// Waits until something is the case.
pub(super) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let waited = block(async {
        let waiting = async {
            while !is_so() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, waiting).await
    });
    assert!(waited.is_ok(), "not within {SOON:?}: {what}");
}

/// A short time passes, for asserting that something does not happen.
pub(super) fn let_pass(time: Duration) {
    block(async { sleep(time).await });
}

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime")
}

/// Real time plus what a test adds to the wall clock.
#[derive(Debug)]
pub(super) struct TestClock {
    start: Instant,
    added_secs: AtomicU64,
}

impl TestClock {
    #[expect(clippy::disallowed_methods, reason = "tests over real sockets run in real time")]
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), added_secs: AtomicU64::new(0) })
    }

    pub(super) fn add(&self, time: Duration) {
        self.added_secs.fetch_add(time.as_secs(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "tests over real sockets run in real time")]
    fn unix(&self) -> Duration {
        let added = Duration::from_secs(self.added_secs.load(Ordering::SeqCst));
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + added
    }
}

/// Members of one mesh, sorted by id: the first has the lowest.
pub(super) struct Mesh {
    pub(super) identities: Vec<Arc<Identity>>,
    _dirs: Vec<TempDir>,
}

static MESH: LazyLock<Mesh> = LazyLock::new(|| on_own_thread(|| Mesh::make("links", 3)));
static OTHER_MESH: LazyLock<Mesh> = LazyLock::new(|| on_own_thread(|| Mesh::make("links", 1)));

/// A member of the mesh that all tests share.
pub(super) fn member(number: usize) -> Arc<Identity> {
    Arc::clone(&MESH.identities[number])
}

/// A member of a mesh of the same name with another root.
pub(super) fn stranger() -> Arc<Identity> {
    Arc::clone(&OTHER_MESH.identities[0])
}

fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(work).join().expect("minting identities works")
}

impl Mesh {
    fn make(mesh: &str, count: usize) -> Self {
        let clock = TestClock::new();
        let now_unix = clock.unix().as_secs();
        let dirs: Vec<_> = (0..count).map(|_| TempDir::new().expect("a folder")).collect();
        let nodes: Vec<_> = dirs.iter().map(|dir| dir.path().join("node")).collect();
        init_mesh(&nodes[0], mesh, "node-0", Some("correct horse battery staple"), now_unix).expect("a mesh");
        let first = Arc::new(Identity::load(&nodes[0]).expect("the first member"));
        let driver = runtime(1);
        driver.block_on(async {
            let leaf = LeafSource::new(&first, LeafLife::default(), now_unix).expect("a leaf");
            let config = JoinServerConfig {
                dir: nodes[0].clone(),
                listen: "127.0.0.1:0".parse().expect("an address"),
                names: Arc::new(|_| None),
                peers: Arc::new(Vec::new),
            };
            let server = JoinServer::new(config, Arc::clone(&first), leaf, clock.clone()).expect("a door");
            let mut door = server.door();
            let (close, closed) = tokio::sync::oneshot::channel::<()>();
            let serving = tokio::spawn(server.run(async { closed.await.unwrap_or(()) }));
            for (number, dir) in nodes.iter().enumerate().skip(1) {
                // The door opens when the first token lives, so the first token is made to learn its address.
                if door.borrow().is_none() {
                    let seeds = ["127.0.0.1:1".to_owned()];
                    let ttl = Duration::from_secs(600);
                    create_token(&nodes[0], ttl, 1, Role::Member, &seeds, now_unix).expect("a token");
                    door.wait_for(Option::is_some).await.expect("the door opens");
                }
                let seeds = [door.borrow().expect("the door is open").to_string()];
                let ttl = Duration::from_secs(600);
                let token = create_token(&nodes[0], ttl, 1, Role::Member, &seeds, now_unix).expect("a token");
                join(&token, dir, &format!("node-{number}"), &*clock).await.expect("joined");
            }
            close.send(()).ok();
            serving.await.expect("the door closes");
        });
        let mut identities: Vec<_> =
            nodes.iter().map(|dir| Arc::new(Identity::load(dir).expect("an identity"))).collect();
        identities.sort_by_key(|identity| identity.node());
        Self { identities, _dirs: dirs }
    }
}

/// What a node was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Up { node: NodeId, outbound: bool },
    Down { node: NodeId, reason: String },
    Stream { node: NodeId, kind: StreamKind, head: Bytes, core: usize },
    Message { node: NodeId, kind: StreamKind, bytes: Bytes },
    Datagram { node: NodeId, bytes: Bytes },
}

/// Writes down what it is told, and answers streams by their head: `reset` breaks off with code 77, anything else is
/// echoed.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    seen: Mutex<Vec<Seen>>,
}

impl Recorder {
    fn add(&self, seen: Seen) {
        lock(&self.seen).push(seen);
    }
}

impl Inbound for Recorder {
    fn stream(&self, core: usize, from: Arc<PeerInfo>, kind: StreamKind, head: Bytes, mut stream: LinkStream) {
        self.add(Seen::Stream { node: from.node, kind, head: head.clone(), core });
        tokio::spawn(async move {
            if head == "reset" {
                stream.read_u8().await.ok();
                stream.reset(77);
                return;
            }
            let (mut recv, mut send) = stream.split();
            tokio::io::copy(&mut recv, &mut send).await.ok();
            send.shutdown().await.ok();
        });
    }

    fn message(&self, from: &Arc<PeerInfo>, kind: StreamKind, bytes: Bytes) {
        self.add(Seen::Message { node: from.node, kind, bytes });
    }

    fn datagram(&self, from: &Arc<PeerInfo>, bytes: Bytes) {
        self.add(Seen::Datagram { node: from.node, bytes });
    }

    fn link_up(&self, peer: &Arc<PeerInfo>, outbound: bool) {
        self.add(Seen::Up { node: peer.node, outbound });
    }

    fn link_down(&self, peer: &Arc<PeerInfo>, reason: &str) {
        self.add(Seen::Down { node: peer.node, reason: reason.to_owned() });
    }
}

/// One node: its links, what it was told, and the threads it runs on.
pub(super) struct Node {
    pub(super) links: Links,
    pub(super) id: NodeId,
    pub(super) recorder: Arc<Recorder>,
    pub(super) clock: Arc<TestClock>,
    pub(super) leaf: Arc<LeafSource>,
    pub(super) verifier: Arc<PeerVerifier>,
    runtimes: Vec<Runtime>,
}

/// Settings that make tests quick: loopback, any port.
pub(super) fn quick() -> LinksConfig {
    LinksConfig {
        bind: "127.0.0.1:0".parse().expect("an address"),
        cell: "test".into(),
        duplicate_drain: Duration::from_millis(100),
        tick: Duration::from_millis(50),
        ..LinksConfig::default()
    }
}

/// First port of [`lasting_addr`]: below the system's range for outgoing connections and for port 0, from 32768.
const LASTING_FIRST: u16 = 24_000;
/// How many there are.
const LASTING_COUNT: u16 = 8_000;

/// A loopback address for a node that is to come back to it: meanwhile nobody else is given its port.
pub(super) fn lasting_addr() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(LASTING_COUNT)).expect("below the count");
    let port = |step: u16| LASTING_FIRST + (start + step) % LASTING_COUNT;
    let free = (0..LASTING_COUNT)
        .map(|_| SocketAddr::from(([127, 0, 0, 1], port(NEXT.fetch_add(1, Ordering::Relaxed) % LASTING_COUNT))))
        .find(|addr| TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok());
    free.expect("a port is free for both TCP and UDP")
}

/// Silence alone ends no link while a test waits, so what ends one must have been something else.
pub(super) fn patient() -> LinksConfig {
    LinksConfig { idle_timeout: SOON * 6, ..quick() }
}

impl Node {
    pub(super) fn start(identity: &Identity, config: LinksConfig) -> Self {
        Self::start_at(identity, config, TestClock::new())
    }

    pub(super) fn start_at(identity: &Identity, config: LinksConfig, clock: Arc<TestClock>) -> Self {
        Self::try_start(identity, config, clock).expect("links start")
    }

    pub(super) fn try_start(
        identity: &Identity,
        config: LinksConfig,
        clock: Arc<TestClock>,
    ) -> Result<Self, crate::link::LinkError> {
        let leaf = LeafSource::new(identity, LeafLife::default(), clock.unix().as_secs()).expect("a leaf");
        let verifier = PeerVerifier::new(identity.roots(), clock.clone());
        let recorder = Arc::new(Recorder::default());
        let runtimes = vec![runtime(1), runtime(1)];
        let handles = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
        let links = Links::start(
            config,
            identity,
            Arc::clone(&leaf),
            Arc::clone(&verifier),
            handles,
            Arc::clone(&recorder) as Arc<dyn Inbound>,
            clock.clone(),
        )?;
        Ok(Self { links, id: identity.node(), recorder, clock, leaf, verifier, runtimes })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.links.local_addr()
    }

    pub(super) fn knows(&self, other: &Self) {
        self.links.set_peer(other.id, vec![other.addr()], true);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        lock(&self.recorder.seen).clone()
    }

    pub(super) fn has_seen(&self, what: &Seen) -> bool {
        self.seen().contains(what)
    }

    pub(super) fn ups(&self) -> usize {
        self.seen().iter().filter(|seen| matches!(seen, Seen::Up { .. })).count()
    }

    pub(super) fn downs(&self) -> usize {
        self.seen().iter().filter(|seen| matches!(seen, Seen::Down { .. })).count()
    }

    pub(super) fn messages(&self) -> Vec<Bytes> {
        let bytes = |seen| match seen {
            Seen::Message { bytes, .. } => Some(bytes),
            _ => None,
        };
        self.seen().into_iter().filter_map(bytes).collect()
    }

    /// The control links that are in use.
    pub(super) fn control_links(&self) -> Vec<LinkStatus> {
        self.links.links().into_iter().filter(|link| link.control).collect()
    }

    pub(super) fn is_linked(&self, other: &Self) -> bool {
        self.links.control(other.id).is_some()
    }

    /// Ends without a word to anybody, as if killed.
    pub(super) fn kill(self) {
        for runtime in self.runtimes {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        drop(self.links);
    }
}

/// Two nodes with a control link, opened by the first; the second may come back to its address.
pub(super) fn linked(first: usize, second: usize) -> (Node, Node) {
    linked_with(first, second, &quick())
}

/// The same with other settings.
pub(super) fn linked_with(first: usize, second: usize, config: &LinksConfig) -> (Node, Node) {
    let a = Node::start(&member(first), config.clone());
    let b = Node::start(&member(second), LinksConfig { bind: lasting_addr(), ..config.clone() });
    a.knows(&b);
    wait_for("both have been told of a control link", || a.ups() == 1 && b.ups() == 1);
    (a, b)
}

/// A connection with a good identity and nothing said on it, to say anything.
pub(super) fn bare_connection(identity: &Identity, to: SocketAddr) -> Bare {
    let clock = TestClock::new();
    let leaf = LeafSource::new(identity, LeafLife::default(), clock.unix().as_secs()).expect("a leaf");
    // Its own verifier trusts anybody of its own mesh, so only the other side can refuse.
    let verifier = PeerVerifier::new(identity.roots(), clock);
    let tls = client_config(identity, leaf, verifier).expect("tls");
    bare(tls, to)
}

fn bare(tls: rustls::ClientConfig, to: SocketAddr) -> Bare {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("quic");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    block(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("an endpoint");
        let connecting = endpoint.connect_with(config, to, "anybody.invalid").expect("dialled");
        Bare { connection: connecting.await, _endpoint: endpoint }
    })
}

/// A connection that follows no rules.
pub(super) struct Bare {
    pub(super) connection: Result<quinn::Connection, quinn::ConnectionError>,
    _endpoint: quinn::Endpoint,
}

impl Bare {
    pub(super) fn up(&self) -> &quinn::Connection {
        self.connection.as_ref().expect("the handshake succeeds")
    }

    /// Sends a whole unidirectional stream.
    pub(super) fn say(&self, bytes: &[u8]) {
        block(async {
            let mut stream = self.up().open_uni().await.expect("a stream");
            stream.write_all(bytes).await.expect("sent");
            stream.finish().expect("finished");
        });
    }

    /// The application code the other side closed with.
    pub(super) fn closed_with(&self) -> Option<u64> {
        match block(self.up().closed()) {
            quinn::ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
            _ => None,
        }
    }
}

/// Sends `text` on the stream and reads what comes back.
pub(super) async fn echo(mut stream: LinkStream, text: &str) -> std::io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A connection with this identity that does not look at who answers.
pub(super) fn trusting_connection(identity: &Identity, to: SocketAddr) -> Bare {
    let clock = TestClock::new();
    let leaf = LeafSource::new(identity, LeafLife::default(), clock.unix().as_secs()).expect("a leaf");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("tls 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_cert_resolver(leaf);
    tls.alpn_protocols = vec![crate::trust::ALPN.to_vec()];
    bare(tls, to)
}

#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}
