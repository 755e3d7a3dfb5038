//! What peers and strangers do wrong: the connection is closed, counted, and nobody else notices.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::support::{
    Node, bare_connection, block, echo, let_pass, linked, member, quick, stranger, trusting_connection, wait_for,
};
use crate::frame::{CloseCode, FrameRefusal, Hello, Purpose};
use crate::links::LinksConfig;
use crate::links::counters::{DialFailure, HandshakeRefusal};

fn hello(purpose: Purpose) -> Bytes {
    Hello { purpose, generation: 1, cell: "test".into() }.encode()
}

fn beginning(version: u8, kind: u8, claimed: u32, head: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(version);
    bytes.put_u8(kind);
    bytes.put_u32(claimed);
    bytes.put_slice(head);
    bytes.freeze()
}

#[test]
fn bad_frames_close_their_connection_are_counted_and_disturb_no_other() {
    let (a, b) = linked(0, 1);
    let oversized = u32::try_from(16 * 1024 + 1).expect("fits");
    let long = Bytes::from(vec![0; 1024 * 1024 + 7]);
    let cases = [
        (beginning(9, 3, 0, b""), FrameRefusal::UnknownVersion),
        (beginning(1, 99, 0, b""), FrameRefusal::UnknownKind),
        (beginning(1, 1, 0, b""), FrameRefusal::MisplacedKind),
        (beginning(1, 0, 0, b""), FrameRefusal::MisplacedKind),
        (beginning(1, 3, oversized, b""), FrameRefusal::HeadTooLong),
        (beginning(1, 3, 10, b"short"), FrameRefusal::Truncated),
        (Bytes::from_static(b"\x01"), FrameRefusal::Truncated),
        ([beginning(1, 3, 0, b""), long].concat().into(), FrameRefusal::MessageTooLong),
    ];
    for (bytes, refusal) in cases {
        let before = b.links.counters().frames_refused.count(refusal);
        let bare = bare_connection(&member(2), b.addr());
        bare.say(&hello(Purpose::Control));
        block(bare.up().accept_uni()).expect("the hello is answered");
        block(async {
            let mut stream = bare.up().open_uni().await.expect("a stream");
            // The other side may close while the long one is still being written.
            stream.write_all(&bytes).await.ok();
            stream.finish().ok();
        });
        assert_eq!(bare.closed_with(), Some(u64::from(refusal.close_code().code())), "{refusal}");
        assert_eq!(b.links.counters().frames_refused.count(refusal), before + 1, "{refusal}");
    }
    let stream = block(a.links.open_service(0, b.id, Bytes::new())).expect("the other link works");
    assert_eq!(block(echo(stream, "undisturbed")).expect("an answer"), "undisturbed");
    assert_eq!(a.downs(), 0);
    assert!(a.is_linked(&b) && b.is_linked(&a));
}

#[test]
fn a_message_on_a_bidirectional_stream_closes_the_connection() {
    let b = Node::start(&member(1), quick());
    let bare = bare_connection(&member(2), b.addr());
    bare.say(&hello(Purpose::Data));
    block(async {
        let (mut send, _recv) = bare.up().open_bi().await.expect("a stream");
        send.write_all(&beginning(1, 3, 0, b"")).await.expect("sent");
        bare.up().closed().await;
    });
    assert_eq!(bare.closed_with(), Some(u64::from(CloseCode::MisplacedKind.code())));
    assert_eq!(b.links.counters().frames_refused.count(FrameRefusal::MisplacedKind), 1);
}

#[test]
fn a_first_stream_that_is_no_hello_closes_the_connection() {
    let b = Node::start(&member(1), quick());
    let mut trailing = hello(Purpose::Control).to_vec();
    trailing.push(0);
    for (bytes, refusal) in [
        (beginning(1, 3, 0, b"gossip first"), FrameRefusal::MisplacedKind),
        (beginning(1, 0, 3, b"\x07\x00\x00"), FrameRefusal::BadHello),
        (Bytes::from(trailing), FrameRefusal::BadHello),
        (beginning(2, 0, 0, b""), FrameRefusal::UnknownVersion),
    ] {
        let before = b.links.counters().frames_refused.count(refusal);
        let bare = bare_connection(&member(2), b.addr());
        bare.say(&bytes);
        assert_eq!(bare.closed_with(), Some(u64::from(refusal.close_code().code())), "{refusal}");
        assert_eq!(b.links.counters().frames_refused.count(refusal), before + 1, "{refusal}");
    }
    assert_eq!((b.ups(), b.links.links().len()), (0, 0));
}

#[test]
fn a_head_or_hello_that_does_not_come_closes_the_connection() {
    let config = LinksConfig { head_timeout: Duration::from_millis(200), ..quick() };
    let b = Node::start(&member(1), config);
    let bare = bare_connection(&member(2), b.addr());
    assert_eq!(bare.closed_with(), Some(u64::from(CloseCode::TooSlow.code())));
    assert_eq!(b.links.counters().handshakes_refused.count(HandshakeRefusal::TimedOut), 1);

    let bare = bare_connection(&member(2), b.addr());
    bare.say(&hello(Purpose::Control));
    block(async {
        let mut slow = bare.up().open_uni().await.expect("a stream");
        slow.write_all(&beginning(1, 3, 10, b"only")).await.expect("sent");
        bare.up().closed().await;
    });
    assert_eq!(bare.closed_with(), Some(u64::from(CloseCode::TooSlow.code())));
    assert_eq!(b.links.counters().frames_refused.count(FrameRefusal::TooSlow), 1);
    wait_for("nothing is left of it", || b.links.links().is_empty());
}

#[test]
fn a_stream_that_its_opener_breaks_off_is_no_offence() {
    let b = Node::start(&member(1), quick());
    let bare = bare_connection(&member(2), b.addr());
    bare.say(&hello(Purpose::Data));
    block(async {
        let (mut send, _recv) = bare.up().open_bi().await.expect("a stream");
        send.write_all(&[1, 1]).await.expect("sent");
        send.reset(quinn::VarInt::from_u32(5)).expect("open");
    });
    let_pass(Duration::from_millis(200));
    assert!(bare.up().close_reason().is_none());
    assert_eq!(b.links.counters().frames_refused.total(), 0);
}

#[test]
fn a_stranger_is_refused_on_both_sides_and_counted() {
    let b = Node::start(&member(1), quick());
    let outsider = Node::start(&stranger(), quick());
    // The stranger's own check fails first when it dials.
    outsider.links.dial_seed(b.addr());
    wait_for("the member is refused by the stranger", || {
        outsider.links.counters().dials_failed.count(DialFailure::Certificate) >= 1
    });
    // A member that dials the stranger refuses it.
    b.links.dial_seed(outsider.addr());
    wait_for("the stranger is refused when dialled", || {
        b.links.counters().dials_failed.count(DialFailure::Certificate) >= 1
    });
    let refused: u64 = b.verifier.counters().snapshot().map(|(_, count)| count).sum();
    assert!(refused >= 1, "the verifier counts why");
    assert_eq!((b.ups(), b.links.links().len()), (0, 0));
}

#[test]
fn a_stranger_who_trusts_anybody_is_refused_by_its_certificate() {
    let (a, b) = linked(0, 1);
    let bare = trusting_connection(&stranger(), b.addr());
    if let Ok(connection) = &bare.connection {
        // The client's side of a TLS 1.3 handshake ends before its certificate is judged.
        block(connection.closed());
    }
    wait_for("the refusal is counted", || {
        b.links.counters().handshakes_refused.count(HandshakeRefusal::Certificate) == 1
    });
    let refused: u64 = b.verifier.counters().snapshot().map(|(_, count)| count).sum();
    assert_eq!(refused, 1);
    assert!(a.is_linked(&b) && a.downs() == 0);
}

#[test]
fn more_connections_than_there_may_be_are_refused_and_the_others_stay() {
    let config = LinksConfig { connections_max: 2, ..quick() };
    let b = Node::start(&member(1), config);
    let bares: Vec<_> = (0..2).map(|_| bare_connection(&member(2), b.addr())).collect();
    for bare in &bares {
        bare.say(&hello(Purpose::Data));
    }
    wait_for("both are in use", || b.links.links().len() == 2);
    let third = bare_connection(&member(0), b.addr());
    assert!(matches!(third.connection, Err(quinn::ConnectionError::ConnectionClosed(_))), "refused at once");
    assert_eq!(b.links.counters().handshakes_refused.count(HandshakeRefusal::TooManyConnections), 1);
    assert!(bares.iter().all(|bare| bare.up().close_reason().is_none()));
    bares[0].up().close(quinn::VarInt::from_u32(0), b"");
    wait_for("its place is free", || b.links.links().len() == 1);
    bare_connection(&member(0), b.addr()).up();
}

#[test]
fn one_peer_cannot_take_all_connections() {
    let config = LinksConfig { connections_per_peer_max: 1, ..quick() };
    let b = Node::start(&member(1), config);
    let first = bare_connection(&member(2), b.addr());
    first.say(&hello(Purpose::Data));
    wait_for("the first is in use", || b.links.links().len() == 1);
    let second = bare_connection(&member(2), b.addr());
    second.say(&hello(Purpose::Data));
    assert_eq!(second.closed_with(), Some(u64::from(CloseCode::TooManyConnections.code())));
    assert_eq!(b.links.counters().handshakes_refused.count(HandshakeRefusal::TooManyOfPeer), 1);
    let other = bare_connection(&member(0), b.addr());
    other.say(&hello(Purpose::Data));
    wait_for("another peer has its place", || b.links.links().len() == 2);
}

#[test]
fn in_a_rush_newcomers_prove_their_address_first() {
    let config = LinksConfig { retry_above: 0, ..quick() };
    let b = Node::start(&member(1), config);
    let a = Node::start(&member(0), quick());
    a.knows(&b);
    wait_for("linked all the same", || a.is_linked(&b));
    assert!(b.links.counters().retries_sent.count() >= 1);
}

#[test]
fn handshakes_beyond_the_limit_are_ignored() {
    let config = LinksConfig { handshakes_pending_max: 1, retry_above: 10, ..quick() };
    let b = Node::start(&member(1), config);
    // It says no hello, so its handshake stays pending.
    let pending = bare_connection(&member(2), b.addr());
    let a = Node::start(&member(0), quick());
    a.knows(&b);
    wait_for("it is counted", || b.links.counters().handshakes_refused.count(HandshakeRefusal::TooManyPending) >= 1);
    assert!(!a.is_linked(&b));
    pending.up().close(quinn::VarInt::from_u32(0), b"");
    wait_for("then there is room", || a.is_linked(&b));
}

#[test]
fn a_peer_that_uses_its_streams_is_allowed_more_up_to_the_limit() {
    // A connection begins with those of a control link, and what was allowed stays so.
    let config = LinksConfig { streams_start: 80, streams_max: 200, ..quick() };
    let b = Node::start(&member(1), config);
    let a = Node::start(&member(0), LinksConfig { open_timeout: Duration::from_secs(2), ..quick() });
    a.knows(&b);
    wait_for("linked", || a.is_linked(&b));
    block(async {
        let mut held = Vec::new();
        for count in 0..200 {
            let stream = a.links.open_service(0, b.id, Bytes::new()).await;
            held.push(stream.unwrap_or_else(|error| panic!("stream {count}: {error}")));
        }
        let refused = a.links.open_service(0, b.id, Bytes::new()).await;
        assert!(matches!(refused, Err(crate::link::LinkError::OpenTimedOut { .. })), "{refused:?}");
    });
}

#[test]
fn a_peer_that_opens_too_many_streams_has_to_wait() {
    let config = LinksConfig { streams_max: 80, ..quick() };
    let b = Node::start(&member(1), config);
    let a = Node::start(&member(0), LinksConfig { open_timeout: Duration::from_secs(2), ..quick() });
    a.knows(&b);
    wait_for("linked", || a.is_linked(&b));
    block(async {
        let mut held = Vec::new();
        for _ in 0..80 {
            held.push(a.links.open_service(0, b.id, Bytes::new()).await.expect("a stream"));
        }
        let refused = a.links.open_service(0, b.id, Bytes::new()).await;
        assert!(matches!(refused, Err(crate::link::LinkError::OpenTimedOut { .. })), "{refused:?}");
        // Room is told of in batches, not for every stream that ends.
        for ended in held.drain(..40) {
            assert_eq!(echo(ended, "done").await.expect("an answer"), "done");
        }
        let reopened = a.links.open_service(0, b.id, Bytes::new()).await;
        assert!(reopened.is_ok(), "{reopened:?}");
    });
}
