//! Restarts, lost peers, and certificates that end.

use std::time::Duration;

use bytes::Bytes;

use super::support::{Node, TestClock, block, echo, let_pass, linked, linked_with, member, patient, quick, wait_for};
use crate::clock::Clock as _;
use crate::links::LinksConfig;

#[test]
fn a_restarted_peer_ends_stale_connections_by_a_stateless_reset_and_is_linked_again() {
    let (a, b) = linked_with(0, 1, &patient());
    let stream = block(a.links.open_service(1, b.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "before")).expect("an answer"), "before");
    let addr = b.addr();
    b.kill();
    let b = Node::start(&member(1), LinksConfig { bind: addr, generation: 2, ..patient() });
    // A probe, as membership sends it, is answered by the reset.
    wait_for("the stale control link ends", || {
        a.links.send_datagram(b.id, Bytes::from_static(b"probe")).ok();
        a.downs() == 1
    });
    wait_for("linked again", || a.is_linked(&b) && b.is_linked(&a));
    assert!(a.links.counters().stateless_resets.count() >= 1);
    // The data link of the former life is replaced when it is needed.
    let stream = block(a.links.open_service(1, b.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "after")).expect("an answer"), "after");
    wait_for("it was told of both", || (a.downs(), a.ups()) == (1, 2));
}

#[test]
fn a_peer_that_dials_again_in_a_new_life_ends_the_links_of_the_old_one() {
    // The peer had opened the connection, so no packet of ours reaches anybody who could answer with a reset.
    let (b, a) = linked_with(1, 0, &patient());
    let stream = block(b.links.open_service(0, a.id, Bytes::new())).expect("a stream");
    assert_eq!(block(echo(stream, "before")).expect("an answer"), "before");
    assert_eq!(a.links.links().len(), 2);
    b.kill();
    let b = Node::start(&member(1), LinksConfig { generation: 2, ..patient() });
    b.knows(&a);
    wait_for("only links of the new life are left", || {
        let links = a.links.links();
        links.len() == 1 && links[0].generation == Some(2)
    });
    wait_for("it was told of both", || (a.downs(), a.ups()) == (1, 2));
    assert_eq!(a.links.counters().superseded_closed.count(), 2);
}

#[test]
fn a_peer_that_is_gone_is_dialled_with_growing_pauses_until_it_returns() {
    let (a, b) = linked(0, 1);
    let addr = b.addr();
    block(b.links.shutdown(Duration::ZERO));
    b.kill();
    wait_for("the loss is noticed", || a.downs() == 1);
    wait_for("it is dialled again and again", || a.links.counters().redials.count() >= 2);
    let b = Node::start(&member(1), LinksConfig { bind: addr, generation: 2, ..quick() });
    wait_for("linked again", || a.is_linked(&b));
}

#[test]
fn a_forgotten_peer_is_not_dialled_again() {
    let (a, b) = linked(0, 1);
    a.links.forget_peer(b.id);
    wait_for("both know", || a.downs() == 1 && b.downs() == 1);
    let_pass(Duration::from_millis(300));
    assert!(!a.is_linked(&b) && a.links.links().is_empty());
    assert!(a.links.send_message(b.id, crate::frame::StreamKind::Gossip, Bytes::new()).is_err());
}

#[test]
fn a_leaf_near_its_end_leads_to_a_new_link_without_a_gap() {
    let clock = TestClock::new();
    let a = Node::start_at(&member(0), quick(), clock.clone());
    let b = Node::start_at(&member(1), quick(), clock.clone());
    a.knows(&b);
    wait_for("linked", || a.is_linked(&b) && b.is_linked(&a));
    let first_up = a.links.control(b.id).expect("a link").facts().up_at;
    // 22 of 24 hours pass, during which both have renewed their leaves: before them, or a look at the links in between
    // would lead to one with a leaf that was not.
    let pause = Duration::from_secs(22 * 3600);
    for node in [&a, &b] {
        node.leaf.renew((clock.unix() + pause).as_secs()).expect("renewed");
    }
    clock.add(pause);
    wait_for("a new link took over", || {
        let links = a.control_links();
        links.len() == 1 && a.links.control(b.id).is_some_and(|link| link.facts().up_at > first_up)
    });
    wait_for("on both sides", || b.control_links().len() == 1);
    assert_eq!((a.ups(), a.downs(), b.ups(), b.downs()), (1, 0, 1, 0));
    // The end of the first leaf passes unnoticed.
    clock.add(Duration::from_secs(3 * 3600));
    let_pass(Duration::from_millis(200));
    assert!(a.is_linked(&b) && b.is_linked(&a));
    assert_eq!((a.downs(), b.downs(), a.links.counters().expired_closed.count()), (0, 0, 0));
}

#[test]
fn a_link_whose_certificates_have_ended_is_closed() {
    let clock = TestClock::new();
    let a = Node::start_at(&member(0), quick(), clock.clone());
    let b = Node::start_at(&member(1), quick(), clock.clone());
    a.knows(&b);
    wait_for("linked", || a.is_linked(&b) && b.is_linked(&a));
    // Nobody renews, so nothing can be dialled either.
    clock.add(Duration::from_secs(25 * 3600));
    wait_for("both close", || a.downs() == 1 && b.downs() == 1);
    let expired = a.links.counters().expired_closed.count() + b.links.counters().expired_closed.count();
    assert!(expired >= 1);
    // A renewed leaf on both sides brings it back.
    for node in [&a, &b] {
        node.leaf.renew(clock.unix().as_secs()).expect("renewed");
    }
    wait_for("linked again", || a.is_linked(&b) && b.is_linked(&a));
}
