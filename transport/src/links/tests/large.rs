//! Streams that carry much: over TCP to a peer that is near, over QUIC otherwise and whenever TCP does not serve.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::relay::Relay;
use super::support::{Node, block, echo, let_pass, linked_with, member, patient, quick, wait_for};
use crate::carrier::Carrier;
use crate::frame::CloseCode;
use crate::link::{NodeLink as _, QuicLink};
use crate::links::counters::HandshakeRefusal;
use crate::links::upkeep::go_on_elsewhere;
use crate::links::{LinksConfig, SILENT_GRACE, Transport};

/// Every peer of a loaded test machine is near.
fn near() -> LinksConfig {
    LinksConfig { near_rtt: Duration::from_secs(10), near_loss: 1.0, ..quick() }
}

fn echo_large(from: &Node, to: &Node) {
    let stream = block(from.links.open_large(0, to.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "much")).expect("an answer"), "much");
}

/// Streams so far on data links over TCP.
fn over_tcp(node: &Node) -> u64 {
    let links = node.links.links();
    links.iter().filter(|link| !link.control && link.carrier == Carrier::Tcp).map(|link| link.streams_opened).sum()
}

/// Opens large streams until something is the case.
fn echo_until(from: &Node, to: &Node, what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1000 {
        echo_large(from, to);
        if is_so() {
            return;
        }
        let_pass(Duration::from_millis(10));
    }
    panic!("not after 1000 streams: {what}");
}

fn wait_until_over_tcp(from: &Node, to: &Node) {
    let before = over_tcp(from);
    echo_until(from, to, "one over tcp", || over_tcp(from) > before);
}

#[test]
fn large_streams_to_a_near_peer_go_over_tcp_and_the_others_over_quic() {
    let (a, b) = linked_with(0, 1, &near());
    wait_until_over_tcp(&a, &b);
    let before = over_tcp(&a);
    let stream = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "little")).expect("an answer"), "little");
    assert_eq!(over_tcp(&a), before);
    echo_large(&a, &b);
    assert_eq!(over_tcp(&a), before + 1);
    let control = a.control_links();
    assert!(control.iter().all(|link| link.carrier == Carrier::Quic), "{control:?}");
    assert_eq!(a.links.counters().dials_failed.total(), 0);
}

#[test]
fn a_link_for_large_streams_that_was_doubted_is_not_used_again_for_a_while() {
    let (a, b) = linked_with(0, 1, &near());
    wait_until_over_tcp(&a, &b);
    assert!(a.links.doubt_large(0, b.id));
    assert!(!a.links.doubt_large(0, b.id), "there is none any more");
    wait_for("the link is closed, as nothing is on it", || over_tcp(&a) == 0);
    for _ in 0..20 {
        echo_large(&a, &b);
    }
    assert_eq!(over_tcp(&a), 0);
}

#[test]
fn large_streams_to_a_peer_that_is_not_near_go_over_quic() {
    let (a, b) = linked_with(0, 1, &LinksConfig { near_rtt: Duration::ZERO, ..near() });
    // Longer than until links are looked at.
    let_pass(quick().tick * 4);
    for _ in 0..20 {
        echo_large(&a, &b);
    }
    assert_eq!(a.links.links().iter().filter(|link| link.carrier == Carrier::Tcp).count(), 0);
}

#[test]
fn large_streams_to_a_peer_whose_tcp_port_is_closed_go_over_quic_and_it_is_tried_once() {
    let b = Node::start(&member(1), LinksConfig { transport: Transport::Quic, ..near() });
    let a = Node::start(&member(0), near());
    a.knows(&b);
    wait_for("a link", || a.is_linked(&b) && b.is_linked(&a));
    echo_until(&a, &b, "a try of tcp", || a.links.counters().dials_failed.total() == 1);
    for _ in 0..20 {
        echo_large(&a, &b);
    }
    assert_eq!((over_tcp(&a), a.links.counters().dials_failed.total()), (0, 1));
}

#[test]
fn a_node_that_is_told_to_use_quic_alone_does_so_for_large_streams_as_well() {
    let (a, b) = linked_with(0, 1, &LinksConfig { transport: Transport::Quic, ..near() });
    let_pass(quick().tick * 4);
    for _ in 0..20 {
        echo_large(&a, &b);
    }
    assert_eq!((over_tcp(&a), a.links.counters().dials_failed.total()), (0, 0));
}

#[test]
fn a_link_for_large_streams_ends_with_the_life_of_its_peer_and_the_next_life_gets_another() {
    let (a, b) = linked_with(0, 1, &near());
    wait_until_over_tcp(&a, &b);
    let (addr, first) = (b.addr(), over_tcp(&a));
    assert!(first > 0);
    b.kill();
    let config = LinksConfig { bind: addr, generation: 2, ..near() };
    let b = Node::start(&member(1), config);
    wait_for("a link with the next life", || {
        a.control_links().iter().any(|link| link.generation == Some(2) && !link.retired)
    });
    wait_for("the links of the first life are gone", || a.links.links().iter().all(|link| link.generation != Some(1)));
    echo_large(&a, &b);
}

/// The link for large streams of the first core.
fn large_link(node: &Node) -> Arc<QuicLink> {
    let links = node.links.inner.table().links();
    links.into_iter().find(|link| link.facts().is_large && link.core() == 0).expect("a link for large streams")
}

fn has_none_over_tcp(node: &Node) -> bool {
    node.links.links().iter().all(|link| link.carrier == Carrier::Quic)
}

#[test]
fn streams_on_a_link_that_is_given_up_end_at_once_and_those_on_the_data_link_go_on() {
    let b = Node::start(&member(1), near());
    let relay = Relay::start(b.addr());
    // Silence alone ends no link here.
    let a = Node::start(&member(0), LinksConfig { idle_timeout: patient().idle_timeout, ..near() });
    a.links.set_peer(b.id, vec![relay.addr], true);
    wait_for("a link", || a.is_linked(&b) && b.is_linked(&a));
    wait_until_over_tcp(&a, &b);
    block(async {
        let mut large = a.links.open_large(0, b.id, Bytes::new()).await.expect("a stream");
        let mut small = a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream");
        for stream in [&mut large, &mut small] {
            stream.write_all(b"1").await.expect("sent");
            assert_eq!(stream.read_u8().await.expect("echoed"), b'1');
        }
        relay.block_tcp(true);
        assert!(a.links.doubt_large(0, b.id) && large.retirement().has_begun() && !small.retirement().has_begun());
        let link = a.links.large_link(0, b.id).expect("a stream waits on the one that was left");
        let mut probe = a.links.open_beside_large(b.id, &link, Bytes::new()).await.expect("a stream");
        probe.write_all(b"2").await.expect("there is room in the window");
        assert!(timeout(Duration::from_millis(300), probe.read_u8()).await.is_err(), "it goes where the others wait");
        assert!(!a.links.give_up_large(b.id, small.retirement()), "that is the data link");
        assert!(a.links.give_up_large(b.id, &link));
        let ended = timeout(Duration::from_secs(2), large.read_u8()).await;
        assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
        small.write_all(b"3").await.expect("sent");
        assert_eq!(small.read_u8().await.expect("echoed"), b'3');
        assert!(a.links.large_link(0, b.id).is_none() && !a.links.give_up_large(b.id, &link), "there is none any more");
    });
}

#[test]
fn streams_learn_that_their_link_was_left_and_so_that_they_are_not_to_be_kept() {
    let (a, b) = linked_with(0, 1, &near());
    wait_until_over_tcp(&a, &b);
    let large = block(a.links.open_large(0, b.id, Bytes::new())).expect("a stream");
    assert!(!large.retirement().has_begun());
    assert!(a.links.doubt_large(0, b.id));
    assert!(large.retirement().has_begun());
    let again = block(a.links.open_large(0, b.id, Bytes::new())).expect("a stream");
    assert!(!again.retirement().has_begun());
    // A data link that is silent is replaced; should it be heard again, nothing new is to be sent on it all the same.
    let small = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
    let former = a.links.inner.table().peer(b.id).and_then(|peer| peer.data(0).cloned()).expect("a data link");
    for _ in 0..1000 {
        former.set_silent(true);
        let opened = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
        if small.retirement().has_begun() {
            assert!(!opened.retirement().has_begun());
            return;
        }
    }
    panic!("the former data link was not left");
}

#[test]
fn a_link_for_large_streams_that_did_not_last_is_not_dialled_again_for_a_while() {
    for lasts in [false, true] {
        let config = if lasts { LinksConfig { backoff_max: Duration::ZERO, ..near() } } else { near() };
        let (a, b) = linked_with(0, 1, &config);
        wait_until_over_tcp(&a, &b);
        large_link(&a).close(CloseCode::Idle, "ended early");
        wait_for("it is gone", || has_none_over_tcp(&a));
        if lasts {
            wait_until_over_tcp(&a, &b);
            continue;
        }
        for _ in 0..50 {
            assert!(!a.links.takes_large(0, b.id) && has_none_over_tcp(&a));
            let_pass(Duration::from_millis(10));
        }
    }
}

#[test]
fn links_for_large_streams_end_at_once_when_the_address_of_their_node_changes() {
    let (a, b) = linked_with(0, 1, &near());
    wait_until_over_tcp(&a, &b);
    let mut large = block(a.links.open_large(0, b.id, Bytes::new())).expect("a stream");
    let mut small = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
    let links = a.links.inner.table().links();
    go_on_elsewhere(&a.links.inner, &links);
    let ended = block(async { timeout(Duration::from_secs(2), large.read_u8()).await });
    assert!(matches!(ended, Ok(Err(_))), "{ended:?}");
    block(small.write_all(b"1")).expect("sent");
    assert_eq!(block(small.read_u8()).expect("quic goes on from the new address"), b'1');
}

#[test]
fn a_link_for_large_streams_says_nothing_of_a_data_link_that_is_silent() {
    // Nobody looks whether the data link is heard again.
    let (a, b) = linked_with(0, 1, &LinksConfig { tick: Duration::from_secs(3600), ..near() });
    let stream = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
    let data = a.links.inner.table().peer(b.id).and_then(|peer| peer.data(0).cloned()).expect("a data link");
    data.set_silent(true);
    wait_for("a link for large streams", || a.links.takes_large(0, b.id));
    let_pass(SILENT_GRACE + Duration::from_millis(500));
    assert!(!data.is_closed() && !stream.retirement().has_begun());
}

#[test]
fn links_for_large_streams_take_no_place_of_another_link_of_their_peer() {
    let b = Node::start(&member(1), LinksConfig { connections_per_peer_max: 3, ..near() });
    let a = Node::start(&member(0), near());
    a.knows(&b);
    wait_for("a link", || a.is_linked(&b) && b.is_linked(&a));
    for core in [0, 1] {
        wait_for("a link for large streams", || a.links.takes_large(core, b.id));
    }
    for core in [0, 1] {
        let stream = block(a.links.open_service(core, b.id, Bytes::new())).expect("a data link");
        assert_eq!(block(echo(stream, "little")).expect("an answer"), "little");
    }
    wait_for("all of them at the peer", || b.links.links().len() == 5);
    assert_eq!(b.links.counters().handshakes_refused.count(HandshakeRefusal::TooManyOfPeer), 0);
}
