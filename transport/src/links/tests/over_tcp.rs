//! Links over TCP: they do what links over QUIC do, take their place where UDP is blocked, and give it back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::relay::Relay;
use super::support::{
    Node, Seen, TestClock, block, echo, lasting_addr, linked_with, member, quick, stranger, wait_for,
};
use crate::carrier::Carrier;
use crate::clock::Clock as _;
use crate::frame::{CloseCode, StreamKind};
use crate::link::StreamReset;
use crate::links::counters::{DialFailure, HandshakeRefusal};
use crate::links::stream::StreamStopped;
use crate::links::{LinksConfig, Transport};
use crate::tcp::TcpFault;
use crate::tcp::frame::{Header, Kind};
use crate::trust::{Identity, LeafLife, LeafSource, PeerVerifier, client_config};

fn tcp() -> LinksConfig {
    LinksConfig { transport: Transport::Tcp, ..quick() }
}

/// The carriers of the control links that are in use.
fn carriers(node: &Node) -> Vec<Carrier> {
    node.control_links().iter().filter(|link| !link.retired).map(|link| link.carrier).collect()
}

#[expect(clippy::disallowed_methods, reason = "tests over real sockets run in real time")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn links_over_tcp_carry_streams_datagrams_and_messages_with_the_same_identities() {
    let (a, b) = linked_with(0, 1, &tcp());
    for (node, peer, outbound) in [(&a, &b, true), (&b, &a, false)] {
        let links = node.control_links();
        assert_eq!(links.len(), 1, "{links:?}");
        assert_eq!((links[0].node, links[0].key_exchange, links[0].carrier), (peer.id, "X25519MLKEM768", Carrier::Tcp));
        assert_eq!((links[0].outbound, links[0].cell.as_deref()), (outbound, Some("test")));
        assert!(node.has_seen(&Seen::Up { node: peer.id, outbound }));
        wait_for("a measured round trip", || {
            // 100 ms is what is assumed of a link before it is measured.
            let is_measured = |rtt| rtt != Duration::from_millis(100) && rtt < Duration::from_millis(500);
            node.links.rtt(peer.id).is_some_and(is_measured)
        });
        assert!(node.links.loss(peer.id).is_some_and(|loss| loss < f64::EPSILON), "unknown is none");
    }
    let head = Bytes::from_static(b"head");
    block(async {
        let stream = a.links.open_control(b.id, StreamKind::Sync, head.clone()).await.expect("a stream");
        assert_eq!(echo(stream, "over control").await.expect("an answer"), "over control");
        let stream = a.links.open_service(1, b.id, head.clone()).await.expect("a stream");
        assert_eq!(echo(stream, "over data").await.expect("an answer"), "over data");
    });
    let bytes = Bytes::from_static(b"probe");
    b.links.send_datagram(a.id, bytes.clone()).expect("sent");
    wait_for("the datagram", || a.has_seen(&Seen::Datagram { node: b.id, bytes: bytes.clone() }));
    let long = Bytes::from(vec![7; 1024 * 1024]);
    a.links.send_message(b.id, StreamKind::Push, long.clone()).expect("queued");
    let expected = Seen::Message { node: a.id, kind: StreamKind::Push, bytes: long };
    wait_for("the message", || b.has_seen(&expected));
    let data: Vec<_> = a.links.links().into_iter().filter(|link| !link.control).collect();
    assert_eq!(data.len(), 1);
    assert_eq!((data[0].core, data[0].carrier, data[0].streams_opened), (1, Carrier::Tcp, 1));
    wait_for("the answer to the hello of the data link", || {
        a.links.links().iter().all(|link| link.generation == Some(1))
    });
}

#[test]
fn codes_and_half_closed_streams_pass_over_tcp() {
    let (a, b) = linked_with(0, 1, &tcp());
    block(async {
        let mut stream = a.links.open_service(0, b.id, Bytes::from_static(b"reset")).await.expect("a stream");
        stream.write_u8(1).await.expect("sent");
        let error = stream.read_u8().await.expect_err("broken off");
        assert_eq!(StreamReset::of(&error), Some(StreamReset { code: 77 }));

        // The other side echoes, so what it may not send any more ends its reading too.
        let stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
        let (mut recv, mut send) = stream.split();
        send.write_all(b"a").await.expect("sent");
        assert_eq!(recv.read_u8().await.expect("echoed"), b'a');
        recv.stop(5);
        let stopped = loop {
            if let Err(error) = send.write_all(&[0; 1024]).await {
                break error;
            }
        };
        assert!(StreamStopped::of(&stopped).is_some(), "{stopped}");

        let stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
        let (mut recv, mut send) = stream.split();
        send.write_all(b"half").await.expect("sent");
        send.shutdown().await.expect("finished");
        let mut answer = Vec::new();
        recv.read_to_end(&mut answer).await.expect("the other direction goes on");
        assert_eq!(answer, b"half");
    });
    assert_eq!(a.downs() + b.downs(), 0);
}

#[test]
fn a_sender_learns_that_its_peer_wants_no_more_while_it_writes_nothing() {
    for config in [tcp(), quick()] {
        let (a, b) = linked_with(0, 1, &config);
        block(async {
            let stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
            let mut unwanted = stream.unwanted();
            let (mut recv, mut send) = stream.split();
            send.write_all(b"a").await.expect("sent");
            assert_eq!(recv.read_u8().await.expect("echoed"), b'a');
            let waited = tokio::time::timeout(Duration::from_millis(100), &mut unwanted).await;
            assert!(waited.is_err(), "the peer reads");
            // The other side cannot echo this, and then reads no more.
            recv.stop(5);
            send.write_all(b"b").await.expect("sent");
            unwanted.await;
        });
    }
}

#[test]
fn a_reader_that_stalls_costs_live_streams_over_tcp_nothing() {
    let (a, b) = linked_with(0, 1, &tcp());
    block(async {
        // Echoed and never read, until nothing more is taken.
        let mut stalled = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
        let chunk = vec![1; 64 * 1024];
        let mut taken = 0;
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(2), stalled.write(&chunk)).await {
            taken += written.expect("sent");
        }
        // More than one window: what was echoed, and what the other side has not read since.
        assert!(taken > 600 * 1024, "{taken}");
        for round in 0..200 {
            let stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
            let text = format!("round {round} {}", "x".repeat(10_000));
            let answered = tokio::time::timeout(Duration::from_secs(2), echo(stream, &text)).await;
            assert_eq!(answered.expect("in time").expect("an answer"), text);
        }
        assert_eq!(a.links.links().iter().filter(|link| !link.control).count(), 1, "all on one connection");
    });
}

#[test]
fn a_peer_that_does_not_answer_over_udp_is_reached_over_tcp() {
    let b = Node::start(&member(1), tcp());
    let patience = Duration::from_secs(3);
    let a = Node::start(&member(0), LinksConfig { connect_timeout: patience, tcp_head_start: patience, ..quick() });
    let began = now();
    a.knows(&b);
    wait_for("a link", || a.is_linked(&b) && b.is_linked(&a));
    let took = began.elapsed();
    assert_eq!((carriers(&a), carriers(&b)), (vec![Carrier::Tcp], vec![Carrier::Tcp]));
    assert!(took >= Duration::from_millis(2900), "quic had its time: {took:?}");
    let began = now();
    let stream = block(a.links.open_service(1, b.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "x")).expect("an answer"), "x");
    assert!(began.elapsed() < Duration::from_millis(2900), "a request does not wait for what is known to be blocked");
}

#[test]
fn links_move_to_tcp_when_udp_is_blocked_and_back_when_it_is_not() {
    let config = LinksConfig { udp_retry_min: Duration::from_secs(1), ..quick() };
    let (a, b) = (Node::start(&member(0), config.clone()), Node::start(&member(1), config));
    let relay = Relay::start(b.addr());
    a.links.set_peer(b.id, vec![relay.addr], true);
    wait_for("a link", || a.is_linked(&b) && b.is_linked(&a));
    assert_eq!((carriers(&a), carriers(&b)), (vec![Carrier::Quic], vec![Carrier::Quic]));
    // A new link is believed in for a while, because an attempt over TCP may have been under way beside it.
    let old = || a.control_links().iter().any(|link| link.age > crate::links::reach::FRESH);
    wait_for("the link is not new any more", old);

    relay.block_udp(true);
    let began = now();
    // Something has to be sent for silence to mean anything; in a node, that are probes.
    wait_for("the link moves to tcp", || {
        a.links.send_datagram(b.id, Bytes::from_static(b"probe")).ok();
        carriers(&a) == [Carrier::Tcp] && carriers(&b) == [Carrier::Tcp]
    });
    let took = began.elapsed();
    println!("moved to tcp {} ms after udp was blocked", took.as_millis());
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(a.links.counters().carrier_changes.count(Carrier::Tcp), 1);
    let stream = block(a.links.open_service(1, b.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "over tcp")).expect("an answer"), "over tcp");

    relay.block_udp(false);
    let began = now();
    wait_for("the link moves back to quic", || carriers(&a) == [Carrier::Quic] && carriers(&b) == [Carrier::Quic]);
    println!("moved to quic {} ms after udp was let through", began.elapsed().as_millis());
    let stream = block(a.links.open_service(1, b.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "over quic")).expect("an answer"), "over quic");
    let data = a.links.links().into_iter().filter(|link| !link.control && !link.retired);
    assert_eq!(data.map(|link| link.carrier).collect::<Vec<_>>(), [Carrier::Quic]);
    assert_eq!((a.downs(), b.downs()), (0, 0), "a link that another one takes over from is not reported as lost");
}

#[test]
fn a_node_without_tcp_does_not_listen_there_and_one_without_udp_refuses_quic() {
    let quic = LinksConfig { transport: Transport::Quic, bind: lasting_addr(), ..quick() };
    let a = Node::start(&member(0), quic);
    assert!(StdStream::connect(a.addr()).is_err() && a.links.join_door().is_none());
    let b = Node::start(&member(1), tcp());
    a.knows(&b);
    wait_for("a failed dial", || a.links.counters().dials_failed.total() > 0);
    assert!(!a.is_linked(&b));
}

/// TLS to the TCP port of a node under an application protocol; what the handshake came to.
fn shake_hands(config: rustls::ClientConfig, to: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    block(async {
        let stream = TcpStream::connect(to).await?;
        let name = ServerName::try_from("anybody.invalid").expect("a name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        // In TLS 1.3 the other side's verdict comes after our side of the handshake.
        stream.read_u8().await.map(|_| stream)
    })
}

fn client(identity: &Identity, alpn: &[u8]) -> rustls::ClientConfig {
    let clock = TestClock::new();
    let leaf = LeafSource::new(identity, LeafLife::default(), clock.unix().as_secs()).expect("a leaf");
    let mut config = client_config(identity, leaf, PeerVerifier::new(identity.roots(), clock)).expect("tls");
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// The same without a certificate of one's own.
fn without_certificate(alpn: &[u8]) -> rustls::ClientConfig {
    let identity = member(2);
    let verifier = PeerVerifier::new(identity.roots(), TestClock::new());
    let mut config = rustls::ClientConfig::builder_with_provider(crate::trust::provider_for_tests())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("tls 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

#[test]
fn strangers_at_the_tcp_port_are_refused_in_the_handshake_and_counted() {
    let b = Node::start(&member(1), quick());
    let refused = |reason| b.links.counters().handshakes_refused.count(reason);
    let ours = crate::tcp::tls::ALPN;
    for (config, reason) in [
        (client(&member(0), b"marram/1"), HandshakeRefusal::Protocol),
        // Nobody admits newcomers at the moment.
        (without_certificate(crate::trust::JOIN_ALPN), HandshakeRefusal::Protocol),
        (without_certificate(ours), HandshakeRefusal::Certificate),
    ] {
        let before = refused(reason);
        assert!(shake_hands(config, b.addr()).is_err());
        wait_for("the refusal is counted", || refused(reason) == before + 1);
    }
    // A node of another mesh is refused by both sides, whoever looks first.
    let other = Node::start(&stranger(), tcp());
    other.links.set_peer(b.id, vec![b.addr()], true);
    wait_for("the stranger is told", || other.links.counters().dials_failed.count(DialFailure::Certificate) > 0);
    // What is not even TLS.
    let before = b.links.counters().handshakes_refused.total();
    let mut garbage = StdStream::connect(b.addr()).expect("connected");
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    garbage.read_to_end(&mut Vec::new()).ok();
    wait_for("garbage is counted", || b.links.counters().handshakes_refused.total() > before);
    assert!(b.links.links().is_empty());
    assert!(!b.seen().iter().any(|seen| matches!(seen, Seen::Up { .. })));
}

#[test]
fn a_member_that_breaks_the_rules_of_frames_is_closed_with_the_reason_and_disturbs_no_other() {
    let (a, b) = linked_with(0, 1, &tcp());
    let many_opens = |count: u64| {
        let mut bytes = Vec::new();
        for n in 0..count {
            Header { kind: Kind::Open, id: n * 4, value: 0 }.put(&mut bytes);
        }
        bytes
    };
    let mut oversized = Vec::new();
    Header { kind: Kind::Data, id: 0, value: u32::MAX }.put(&mut oversized);
    for (bytes, fault) in [
        (b"no frames at all".to_vec(), TcpFault::UnknownKind),
        (oversized, TcpFault::BadLength),
        (many_opens(5000), TcpFault::TooManyStreams),
    ] {
        let before = b.links.counters().tcp_faults.count(fault);
        let told = block(async {
            let stream = TcpStream::connect(b.addr()).await.expect("connected");
            let name = ServerName::try_from("anybody.invalid").expect("a name");
            let connector = TlsConnector::from(Arc::new(client(&member(2), crate::tcp::tls::ALPN)));
            let mut stream = connector.connect(name, stream).await.expect("a member");
            // The other side may close while the long one is still being written.
            stream.write_all(&bytes).await.ok();
            stream.flush().await.ok();
            let mut told = Vec::new();
            stream.read_to_end(&mut told).await.ok();
            told
        });
        let mut close = Vec::new();
        let length = u32::try_from(fault.name().len()).expect("short");
        Header { kind: Kind::Close, id: u64::from(CloseCode::BadFrame.code()), value: length }.put(&mut close);
        close.extend_from_slice(fault.name().as_bytes());
        assert!(told.ends_with(&close), "{fault}: {told:?}");
        assert_eq!(b.links.counters().tcp_faults.count(fault), before + 1, "{fault}");
    }
    let stream = block(a.links.open_service(0, b.id, Bytes::new())).expect("the other link works");
    assert_eq!(block(echo(stream, "undisturbed")).expect("an answer"), "undisturbed");
    assert_eq!(a.downs() + b.downs(), 0);
}
