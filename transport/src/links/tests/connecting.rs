//! Making links and using them.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::support::{Node, Seen, TestClock, block, echo, lasting_addr, let_pass, linked, member, quick, wait_for};
use crate::frame::StreamKind;
use crate::id::NodeId;
use crate::link::{LinkError, StreamReset};
use crate::links::LinksConfig;
use crate::links::congestion::DistanceController;
use crate::links::counters::{DatagramDrop, DialFailure, MessageDrop};

#[test]
fn two_links_connect_and_name_their_key_exchange() {
    let (a, b) = linked(0, 1);
    for (node, peer, outbound) in [(&a, &b, true), (&b, &a, false)] {
        let links = node.control_links();
        assert_eq!(links.len(), 1, "{links:?}");
        assert_eq!((links[0].node, links[0].key_exchange), (peer.id, "X25519MLKEM768"));
        assert_eq!((links[0].outbound, links[0].cell.as_deref()), (outbound, Some("test")));
        assert!(node.has_seen(&Seen::Up { node: peer.id, outbound }));
        assert!(node.links.rtt(peer.id).is_some_and(|rtt| rtt < Duration::from_millis(500)));
        assert!(node.links.loss(peer.id).is_some_and(|loss| (0.0..=1.0).contains(&loss)));
    }
}

#[test]
fn streams_datagrams_and_messages_arrive() {
    let (a, b) = linked(0, 1);
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
    assert_eq!((data[0].core, data[0].outbound, data[0].streams_opened), (1, true, 1));
    wait_for("the answer to the hello of the data link", || {
        a.links.links().iter().all(|link| link.generation == Some(1))
    });
}

#[test]
fn callers_mistakes_are_refused_before_anything_is_sent() {
    let (a, b) = linked(0, 1);
    let too_long = |len: usize| Bytes::from(vec![0; len]);
    assert!(matches!(
        a.links.send_message(b.id, StreamKind::Gossip, too_long(1024 * 1024 + 1)),
        Err(LinkError::MessageTooLong { max: 1_048_576, .. })
    ));
    assert!(matches!(
        a.links.send_message(b.id, StreamKind::Service, too_long(1)),
        Err(LinkError::WrongKind { kind: StreamKind::Service })
    ));
    assert!(matches!(a.links.send_datagram(b.id, too_long(60_000)), Err(LinkError::DatagramTooLong { .. })));
    block(async {
        let opened = a.links.open_control(b.id, StreamKind::Sync, too_long(16 * 1024 + 1)).await;
        assert!(matches!(opened, Err(LinkError::HeadTooLong { max: 16_384, .. })));
        let opened = a.links.open_control(b.id, StreamKind::Gossip, Bytes::new()).await;
        assert!(matches!(opened, Err(LinkError::WrongKind { .. })));
        let nobody = NodeId::from_bytes([9; 16]);
        let opened = a.links.open_service(0, nobody, Bytes::new()).await;
        assert!(matches!(opened, Err(LinkError::UnknownPeer { .. })));
        let opened = a.links.open_service(7, b.id, Bytes::new()).await;
        assert!(matches!(opened, Err(LinkError::NoSuchCore { core: 7 })));
    });
    assert!(a.is_linked(&b) && a.downs() == 0);
}

#[test]
fn the_code_of_a_reset_stream_can_be_read() {
    let (a, b) = linked(0, 1);
    block(async {
        let mut stream = a.links.open_service(0, b.id, Bytes::from_static(b"reset")).await.expect("a stream");
        stream.write_all(b"x").await.expect("sent");
        let error = stream.read_u8().await.expect_err("the peer breaks off");
        assert_eq!(StreamReset::of(&error), Some(StreamReset { code: 77 }));
    });
}

#[test]
fn a_peer_is_heard_for_as_long_as_it_answers() {
    let (a, b) = linked(0, 1);
    wait_for("it is heard", || a.links.heard_at(b.id).is_some());
    let first = a.links.heard_at(b.id);
    let asking = async {
        while a.links.heard_at(b.id) <= first {
            let stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
            assert_eq!(echo(stream, "x").await.expect("echoed"), "x");
        }
    };
    block(async { tokio::time::timeout(Duration::from_secs(10), asking).await }).expect("it is heard again");
    assert_eq!(a.links.heard_at(a.id), None, "there is no link");
}

#[test]
fn a_stream_that_is_dropped_half_way_is_not_taken_for_a_clean_end() {
    let (a, b) = linked(0, 1);
    block(async {
        let mut stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
        stream.write_all(b"half").await.expect("sent");
        let (mut recv, send) = stream.split();
        let mut half = [0; 4];
        recv.read_exact(&mut half).await.expect("echoed");
        drop(send);
        // The echo stops without finishing, so its own side is reset as well.
        let error = recv.read_u8().await.expect_err("no clean end");
        assert!(StreamReset::of(&error).is_some() || error.kind() == std::io::ErrorKind::UnexpectedEof, "{error:?}");
    });
}

#[test]
fn when_both_dial_at_once_one_control_link_remains_and_no_message_is_lost() {
    let config = LinksConfig { duplicate_drain: LinksConfig::default().duplicate_drain, ..quick() };
    let (a, b) = (Node::start(&member(0), config.clone()), Node::start(&member(1), config));
    a.knows(&b);
    b.knows(&a);
    let mut sent = Vec::new();
    for number in 0..60_u32 {
        let bytes = Bytes::from(number.to_be_bytes().to_vec());
        a.links.send_message(b.id, StreamKind::Gossip, bytes.clone()).expect("queued");
        b.links.send_message(a.id, StreamKind::Gossip, bytes.clone()).expect("queued");
        sent.push(bytes);
        if number % 10 == 0 {
            let_pass(Duration::from_millis(5));
        }
    }
    let has_all = |node: &Node| {
        let messages = node.messages();
        sent.iter().all(|bytes| messages.contains(bytes))
    };
    wait_for("every message arrives on both sides", || has_all(&a) && has_all(&b));
    wait_for("one link remains", || a.links.links().len() == 1 && b.links.links().len() == 1);
    // Whichever it is, both have the same one, nobody saw it go, and it stays.
    let_pass(Duration::from_millis(500));
    let (of_a, of_b) = (a.control_links(), b.control_links());
    assert_eq!((of_a.len(), of_b.len()), (1, 1));
    assert_ne!(of_a[0].outbound, of_b[0].outbound);
    assert_eq!((a.ups(), a.downs(), b.ups(), b.downs()), (1, 0, 1, 0), "{:?} {:?}", a.seen(), b.seen());
}

#[test]
fn the_connection_of_the_lower_id_stays_when_the_other_was_first() {
    let low = Node::start(&member(0), quick());
    let high = Node::start(&member(1), quick());
    high.knows(&low);
    wait_for("the higher id has linked", || low.is_linked(&high));
    // A seed is dialled without knowing who is there, and so although there is a link.
    low.links.dial_seed(high.addr());
    wait_for("the lower id's connection takes over", || {
        let (of_low, of_high) = (low.control_links(), high.control_links());
        of_low.len() == 1 && of_low[0].outbound && of_high.len() == 1 && !of_high[0].outbound
    });
    assert_eq!((low.ups(), low.downs(), high.ups(), high.downs()), (1, 0, 1, 0));
    assert_eq!(low.links.counters().duplicates_closed.count(), 1);
    // The other way round, the lower id's connection is there already and stays.
    high.links.dial_seed(low.addr());
    wait_for("the higher id has dialled again", || high.links.counters().duplicates_closed.count() >= 2);
    wait_for("one link remains", || high.links.links().len() == 1 && low.links.links().len() == 1);
    assert!(low.control_links()[0].outbound && !high.control_links()[0].outbound);
}

#[test]
fn a_seed_is_found_at_its_address_and_kept() {
    let (a, b) = (Node::start(&member(0), quick()), Node::start(&member(2), quick()));
    a.links.dial_seed(b.addr());
    wait_for("the seed has linked", || a.is_linked(&b) && b.is_linked(&a));
    a.links.close_peer(b.id, "to see it return");
    wait_for("the link returns", || a.downs() == 1 && a.ups() == 2 && a.is_linked(&b));
}

#[test]
fn a_new_node_at_the_address_of_a_seed_is_found() {
    let addr = lasting_addr();
    let (a, b) = (Node::start(&member(0), quick()), Node::start(&member(1), LinksConfig { bind: addr, ..quick() }));
    a.links.dial_seed(addr);
    wait_for("the seed has linked", || a.is_linked(&b));
    block(b.links.shutdown(Duration::ZERO));
    b.kill();
    let c = Node::start(&member(2), LinksConfig { bind: addr, ..quick() });
    wait_for("the new one has linked", || a.is_linked(&c));
}

/// Which congestion control a node's side of the control link to a peer has in use, and whether from the start.
fn congestion_control(node: &Node, peer: &Node) -> Option<&'static str> {
    let link = node.links.control(peer.id)?;
    let crate::carrier::Connection::Quic(quic) = link.connection() else { return None };
    let state = quic.congestion_state().into_any();
    let measures = state.downcast_ref::<DistanceController>();
    Some(match measures.map(DistanceController::uses_bbr) {
        Some(true) => "BBR, changed to",
        Some(false) => "CUBIC",
        None if state.is::<quinn::congestion::Bbr>() => "BBR",
        None => "another",
    })
}

#[test]
fn a_connection_changes_to_bbr_when_it_finds_the_peer_far_and_the_next_one_begins_with_it() {
    // Any path counts as far to one, and none to the other.
    let far = LinksConfig { far_rtt: Duration::ZERO, ..quick() };
    let near = LinksConfig { far_rtt: Duration::from_secs(60), far_loss: 1.0, ..quick() };
    let (a, b) = (Node::start(&member(0), far), Node::start(&member(1), near));
    a.knows(&b);
    wait_for("the link has changed to BBR", || congestion_control(&a, &b) == Some("BBR, changed to"));
    wait_for("the other end has measured", || b.links.rtt(a.id).is_some());
    assert_eq!(congestion_control(&b, &a), Some("CUBIC"), "each end decides for what it sends");
    let_pass(Duration::from_millis(200));
    a.links.close_peer(b.id, "to see the next one");
    wait_for("the next one begins with BBR", || congestion_control(&a, &b) == Some("BBR"));
}

#[test]
fn a_node_that_dials_itself_gives_up() {
    let a = Node::start(&member(0), quick());
    a.links.dial_seed(a.addr());
    wait_for("it notices", || a.links.counters().dials_failed.count(DialFailure::WrongPeer) == 1);
    let_pass(Duration::from_millis(300));
    assert_eq!(a.links.counters().dials_failed.total(), 1);
    assert_eq!((a.ups(), a.links.links().len()), (0, 0));
}

#[test]
fn one_of_several_addresses_is_enough() {
    let (a, b) = (Node::start(&member(0), quick()), Node::start(&member(1), quick()));
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let addrs = vec![silent.local_addr().expect("bound"), b.addr()];
    a.links.set_peer(b.id, addrs, true);
    wait_for("the second address", || a.is_linked(&b));
    assert_eq!(a.links.counters().dials_failed.total(), 0);
}

#[test]
fn a_peer_is_not_mistaken_for_another_at_its_address() {
    let (a, b, c) =
        (Node::start(&member(0), quick()), Node::start(&member(1), quick()), Node::start(&member(2), quick()));
    a.links.set_peer(b.id, vec![c.addr()], true);
    wait_for("it is noticed", || a.links.counters().dials_failed.count(DialFailure::WrongPeer) >= 1);
    assert!(!a.is_linked(&b) && !a.is_linked(&c));
    // The right address ends the pause between attempts.
    a.links.set_peer(b.id, vec![c.addr(), b.addr()], true);
    wait_for("the right one is found", || a.is_linked(&b));
}

/// An address at which nothing answers over UDP and nobody listens on the TCP port, for as long as both are held.
fn dead() -> (SocketAddr, (UdpSocket, TcpSocket)) {
    let hold = || {
        let udp = UdpSocket::bind("127.0.0.1:0").ok()?;
        let addr = udp.local_addr().ok()?;
        let tcp = TcpSocket::new_v4().ok()?;
        tcp.bind(addr).ok()?;
        Some((addr, (udp, tcp)))
    };
    (0..100).find_map(|_| hold()).expect("a port that is free for both")
}

#[test]
fn a_dead_peer_fails_fast_and_what_is_not_kept_is_dialled_when_needed() {
    let (a, b) = (Node::start(&member(0), quick()), Node::start(&member(1), quick()));
    let (silent, _held) = dead();
    a.links.set_peer(b.id, vec![silent], false);
    let begun = crate::clock::Clock::now(&*a.clock);
    let opened = block(a.links.open_service(0, b.id, Bytes::new()));
    let took = crate::clock::Clock::now(&*a.clock) - begun;
    // Nothing answers over UDP, and nobody listens on the TCP port.
    assert!(matches!(opened, Err(LinkError::Dial { cause: DialFailure::Refused, .. })), "{opened:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");

    a.links.set_peer(b.id, vec![b.addr()], false);
    let sent = a.links.send_datagram(b.id, Bytes::from_static(b"x"));
    assert!(matches!(sent, Err(LinkError::NotConnected { .. })));
    assert_eq!(a.links.counters().datagrams_dropped.count(DatagramDrop::NotConnected), 1);
    wait_for("the link is dialled", || a.is_linked(&b));
    a.links.close_peer(b.id, "to see that it is not redialled");
    wait_for("the link is gone", || a.downs() == 1);
    let_pass(Duration::from_millis(300));
    assert!(!a.is_linked(&b));
}

#[test]
fn a_queue_to_a_dead_peer_drops_its_oldest_and_delivers_the_rest() {
    let config = LinksConfig { message_queue_max: 4, ..quick() };
    let (a, b) = (Node::start(&member(0), config), Node::start(&member(1), quick()));
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    a.links.set_peer(b.id, vec![silent.local_addr().expect("bound")], true);
    for number in 0..6_u8 {
        a.links.send_message(b.id, StreamKind::Gossip, Bytes::from(vec![number])).expect("queued");
    }
    assert_eq!(a.links.counters().messages_dropped.count(MessageDrop::QueueFull), 2);
    a.knows(&b);
    wait_for("the newest arrive", || b.messages().len() == 4);
    let mut messages = b.messages();
    messages.sort();
    assert_eq!(messages, [[2], [3], [4], [5]].map(|bytes| Bytes::from(bytes.to_vec())));
}

#[test]
fn an_idle_data_link_is_closed_and_opened_again_when_needed() {
    let config = LinksConfig { data_idle: Duration::from_millis(200), ..quick() };
    let (a, b) = (Node::start(&member(0), config), Node::start(&member(1), quick()));
    a.knows(&b);
    wait_for("linked", || a.is_linked(&b));
    let has_data_link = || a.links.links().iter().any(|link| !link.control);
    block(async {
        let mut held = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
        tokio::time::sleep(Duration::from_millis(600)).await;
        held.write_all(b"still").await.expect("a link with a stream is not idle");
        assert_eq!(echo(held, " here").await.expect("an answer"), "still here");
    });
    wait_for("the link is closed", || !has_data_link());
    let stream = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "again")).expect("an answer"), "again");
    assert_eq!(a.downs(), 0, "data links are no news");
}

#[test]
fn callers_who_need_the_same_data_link_share_one_dial() {
    let (a, b) = linked(0, 1);
    let before = a.links.counters().handshakes_outbound.count();
    block(async {
        let open = || async {
            let stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
            echo(stream, "x").await.expect("an answer")
        };
        let answers = futures_util::future::join_all((0..20).map(|_| open())).await;
        assert_eq!(answers.len(), 20);
    });
    assert_eq!(a.links.counters().handshakes_outbound.count() - before, 1);
}

#[test]
fn a_port_in_use_is_named() {
    let a = Node::start(&member(0), quick());
    let config = LinksConfig { bind: a.addr(), ..quick() };
    let Err(error) = Node::try_start(&member(1), config, TestClock::new()) else {
        panic!("two nodes share a port");
    };
    assert!(matches!(error, LinkError::PortInUse { addr } if addr == a.addr()));
    let text = error.to_string();
    assert!(text.contains(&a.addr().port().to_string()) && text.contains("--mesh-port"), "{text}");
}

#[test]
fn a_shutdown_waits_for_streams_and_frees_the_port() {
    let (a, b) = linked(0, 1);
    let addr = b.addr();
    block(async {
        let mut stream = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
        stream.write_all(b"before").await.expect("sent");
        let mut before = [0; 6];
        stream.read_exact(&mut before).await.expect("echoed");
        let links = b.links.clone();
        let stopping = tokio::spawn(async move { links.shutdown(Duration::from_secs(20)).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(echo(stream, "during").await.expect("drained, not cut"), "during");
        stopping.await.expect("ended");
    });
    wait_for("the peer knows at once", || a.downs() == 1);
    let Some(Seen::Down { reason, .. }) = a.seen().into_iter().find(|seen| matches!(seen, Seen::Down { .. })) else {
        panic!("just seen");
    };
    assert!(reason.contains("the node stops"), "{reason}");
    assert!(b.links.links().is_empty());
    let opened = block(b.links.open_service(0, a.id, Bytes::new()));
    assert!(matches!(opened, Err(LinkError::ShuttingDown)), "{opened:?}");
    wait_for("the port is free", || UdpSocket::bind(addr).is_ok());
}
