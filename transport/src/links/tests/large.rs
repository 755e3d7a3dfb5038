//! Streams that carry much: over TCP to a peer that is near, over QUIC otherwise and whenever TCP does not serve.

use std::time::Duration;

use bytes::Bytes;

use super::support::{Node, block, echo, let_pass, linked_with, member, quick, wait_for};
use crate::carrier::Carrier;
use crate::links::{LinksConfig, Transport};

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
