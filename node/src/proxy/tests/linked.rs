//! Two proxies over real links: a data link over QUIC and, for what is large, one over TCP that can be cut.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use transport::trust::{
    Identity, JoinServer, JoinServerConfig, LeafLife, LeafSource, PeerVerifier, Role, create_token, init_mesh, join,
};
use transport::{Carrier, Clock, Inbound, LinkStream, Links, LinksConfig, NodeId, PeerInfo, StreamKind};

use super::bench::{Bench, PATIENCE, until};
use super::client::Client;
use super::volumes::hanging;
use crate::clock::SystemClock;
use crate::config::{Protocol, ProxyConfig};
use crate::proxy::{ProxyContext, ServiceLinks, Volume};
use crate::snapshot::Endpoint;

/// Hands streams of peers to the proxy.
#[derive(Default)]
struct Inbox {
    proxy: OnceLock<Arc<ProxyContext>>,
}

impl Inbound for Inbox {
    fn stream(&self, core: usize, from: Arc<PeerInfo>, _kind: StreamKind, head: Bytes, stream: LinkStream) {
        if let Some(proxy) = self.proxy.get() {
            proxy.inbound_stream(core, from, head, stream);
        }
    }

    fn message(&self, _from: &Arc<PeerInfo>, _kind: StreamKind, _bytes: Bytes) {}

    fn datagram(&self, _from: &Arc<PeerInfo>, _bytes: Bytes) {}

    fn link_up(&self, _peer: &Arc<PeerInfo>, _outbound: bool) {}

    fn link_down(&self, _peer: &Arc<PeerInfo>, _reason: &str) {}
}

/// A node: its proxy and the links under it.
struct Node {
    bench: Bench,
    links: Links,
    id: NodeId,
}

async fn start(identity: &Identity, number: u8) -> Node {
    let clock = Arc::new(SystemClock::start());
    let leaf = LeafSource::new(identity, LeafLife::default(), clock.unix().as_secs()).unwrap();
    let verifier = PeerVerifier::new(identity.roots(), clock.clone());
    let config = LinksConfig {
        bind: "127.0.0.1:0".parse().unwrap(),
        tick: Duration::from_millis(50),
        // Silence alone ends no link here, and every peer is near.
        idle_timeout: PATIENCE * 3,
        near_rtt: PATIENCE,
        near_loss: 1.0,
        ..LinksConfig::default()
    };
    let inbox = Arc::new(Inbox::default());
    let inbound = Arc::clone(&inbox) as Arc<dyn Inbound>;
    let links = Links::start(config, identity, leaf, verifier, vec![Handle::current()], inbound, clock).unwrap();
    let ways: Arc<dyn ServiceLinks> = Arc::new(links.clone());
    let bench = Bench::over(ways, ProxyConfig::default(), identity.node(), number).await;
    inbox.proxy.set(Arc::clone(&bench.context)).ok();
    Node { bench, links, id: identity.node() }
}

/// Two members of one mesh.
async fn identities() -> [Identity; 2] {
    let (clock, dirs) = (SystemClock::start(), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
    let [founder, newcomer] = dirs.each_ref().map(|dir| dir.path().join("node"));
    let now_unix = clock.unix().as_secs();
    init_mesh(&founder, "test", "n1", None, now_unix).unwrap();
    let first = Identity::load(&founder).unwrap();
    let leaf = LeafSource::new(&first, LeafLife::default(), now_unix).unwrap();
    let config = JoinServerConfig {
        dir: founder.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
        names: Arc::new(|_| None),
        peers: Arc::new(Vec::new),
    };
    let server =
        JoinServer::new(config, Arc::new(Identity::load(&founder).unwrap()), leaf, Arc::new(clock.clone())).unwrap();
    let mut door = server.door();
    let serving = tokio::spawn(server.run(std::future::pending()));
    let token = |seed: String| create_token(&founder, PATIENCE, 1, Role::Member, &[seed], now_unix).unwrap();
    // The door opens when the first token lives.
    drop(token("127.0.0.1:1".to_owned()));
    let seed = door.wait_for(Option::is_some).await.unwrap().unwrap().to_string();
    join(&token(seed), &newcomer, "n2", &clock).await.unwrap();
    serving.abort();
    [first, Identity::load(&newcomer).unwrap()]
}

/// A way to a node whose TCP can be cut, as a firewall would: connections stay, and nothing passes.
struct Relay {
    addr: SocketAddr,
    is_cut: watch::Sender<bool>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let relay = Self { addr: tcp.local_addr().unwrap(), is_cut: watch::Sender::new(false) };
        tokio::spawn(pass_udp(udp, to));
        tokio::spawn(pass_tcp(tcp, to, relay.is_cut.subscribe()));
        relay
    }
}

/// One socket of the near node is behind all of its links.
async fn pass_udp(front: UdpSocket, to: SocketAddr) -> io::Result<()> {
    let back = UdpSocket::bind("127.0.0.1:0").await?;
    back.connect(to).await?;
    let (mut there, mut here, mut near) = (vec![0; 65_536], vec![0; 65_536], None);
    loop {
        tokio::select! {
            came = front.recv_from(&mut there) => {
                let (len, from) = came?;
                near = Some(from);
                back.send(&there[..len]).await.ok();
            }
            came = back.recv(&mut here) => {
                if let (Ok(len), Some(near)) = (came, near) {
                    front.send_to(&here[..len], near).await.ok();
                }
            }
        }
    }
}

async fn pass_tcp(listener: TcpListener, to: SocketAddr, is_cut: watch::Receiver<bool>) {
    while let Ok((front, _)) = listener.accept().await {
        let is_cut = is_cut.clone();
        tokio::spawn(async move {
            let back = TcpStream::connect(to).await?;
            let ((front_in, front_out), (back_in, back_out)) = (front.into_split(), back.into_split());
            tokio::try_join!(pass(front_in, back_out, is_cut.clone()), pass(back_in, front_out, is_cut))
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut is_cut: watch::Receiver<bool>) -> io::Result<()> {
    let mut piece = vec![0; 65_536];
    loop {
        let len = from.read(&mut piece).await?;
        is_cut.wait_for(|is_cut| !is_cut).await.ok();
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..len]).await?;
    }
}

/// A node, the one with the instance, that instance as the first sees it, and the way between the two. The instance has
/// answered at length, and there is a link for that.
async fn near_and_far(address: SocketAddr) -> (Node, Node, Arc<Endpoint>, Relay) {
    let [one, two] = identities().await;
    let (mut near, mut far) = (start(&one, 1).await, start(&two, 2).await);
    let relay = Relay::start(far.links.local_addr()).await;
    near.links.set_peer(far.id, vec![relay.addr], true);
    far.bench.add_local("hello", address, Protocol::Http);
    let endpoint = near.bench.add_at("hello", &address.port().to_string(), (far.id, "n2"), Protocol::Http);
    until("a link", || near.links.control(far.id).is_some()).await;
    let mut client = Client::connect(near.bench.address).await;
    let asking = async {
        while over_tcp(&near) == 0 {
            assert_eq!(client.get("hello.mesh", "/").await.status, 200);
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("a link over TCP");
    (near, far, endpoint, relay)
}

/// Streams so far over TCP.
fn over_tcp(node: &Node) -> u64 {
    let links = node.links.links();
    links.iter().filter(|link| link.carrier == Carrier::Tcp).map(|link| link.streams_opened).sum()
}

#[tokio::test]
async fn a_large_request_that_waits_over_tcp_that_is_cut_is_sent_over_quic_long_before_silence_ends_the_link() {
    let (address, hung) = hanging(&Arc::default()).await;
    let (mut near, _far, endpoint, relay) = near_and_far(address).await;
    let mut client = Client::connect(near.bench.address).await;
    client.send("GET /hang HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    until("it is under way", || hung.load(Ordering::SeqCst) == 1).await;
    relay.is_cut.send_replace(true);
    let reply = tokio::time::timeout(Duration::from_secs(8), client.reply()).await.expect("it is noticed");
    assert_eq!((reply.status, hung.load(Ordering::SeqCst)), (200, 2));
    assert_eq!((endpoint.stats.totals().1, near.bench.outcomes.try_recv().is_err()), (0, true), "nobody is out for it");
    until("the link is gone", || over_tcp(&near) == 0).await;
}

#[tokio::test]
async fn a_large_request_whose_stream_is_not_accepted_over_tcp_goes_over_quic_at_once_and_nobody_is_out_for_it() {
    let (address, _) = hanging(&Arc::default()).await;
    let (mut near, far, endpoint, relay) = near_and_far(address).await;
    let silent = near.links.counters().links_silent.count();
    relay.is_cut.send_replace(true);
    // Kept streams would be taken for it.
    near.bench.context.pool(0).forget_node(far.id);
    let mut client = Client::connect(near.bench.address).await;
    let reply = tokio::time::timeout(Duration::from_secs(8), client.get("hello.mesh", "/")).await.expect("an answer");
    assert_eq!(reply.status, 200);
    assert!(!near.links.takes_large(0, far.id), "it was left");
    assert_eq!((endpoint.stats.totals().1, near.bench.outcomes.try_recv().is_err()), (0, true));
    assert_eq!(near.links.counters().links_silent.count(), silent, "nor is the data link doubted");
}

#[tokio::test]
async fn a_doubt_about_a_large_stream_stays_with_its_link_and_one_about_a_small_stream_with_the_data_link() {
    let (address, _) = hanging(&Arc::default()).await;
    let (near, far, ..) = near_and_far(address).await;
    let links: &dyn ServiceLinks = &near.links;
    let silent = || near.links.counters().links_silent.count();
    let before = silent();
    // Nothing can come between the two: links and test have one thread.
    links.doubt(0, far.id, links.heard(0, far.id), Volume::Large);
    assert_eq!((silent(), links.takes_large(0, far.id)), (before, false));
    links.doubt(0, far.id, links.heard(0, far.id), Volume::Large);
    assert_eq!(silent(), before, "though there is no other link for it any more");
    links.doubt(0, far.id, links.heard(0, far.id), Volume::Small);
    assert_eq!(silent(), before + 1);
}

#[tokio::test]
async fn a_stream_is_not_kept_on_a_link_that_was_left_under_its_request() {
    let go_on = Arc::new(Notify::new());
    let (address, _) = hanging(&go_on).await;
    let (near, far, ..) = near_and_far(address).await;
    let mut client = Client::connect(near.bench.address).await;
    client.send("GET /wait HTTP/1.1\r\nHost: hello.mesh\r\n\r\n").await;
    until("it is under way", || far.bench.context.in_flight() == 1).await;
    near.bench.context.pool(0).forget_node(far.id);
    assert!(near.links.doubt_large(0, far.id));
    go_on.notify_one();
    assert_eq!(client.reply().await.status, 200, "it ends where it is");
    assert_eq!(near.bench.context.pool(0).len(), 0);
    until("the link is gone, as nothing is on it", || over_tcp(&near) == 0).await;
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
}
