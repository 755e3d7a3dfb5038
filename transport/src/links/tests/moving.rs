//! Addresses that change under a connection, and peers that fall silent.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::{block, linked_with, patient, wait_for};

/// Often enough that by the pair of addresses alone another core's socket would surely be picked now and then.
const MOVES: usize = 24;

#[test]
fn a_stream_goes_on_while_its_openers_address_changes_again_and_again() {
    let (a, b) = linked_with(0, 1, &patient());
    let mut stream = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
    for number in 0..MOVES {
        a.links.inner.rebind(0);
        wait_for("the new socket is in use", || a.links.counters().rebinds.count() > number as u64);
        // Longer than one packet, so that there are batches.
        let said = vec![u8::try_from(number).expect("small"); 40_000];
        let heard = block(async {
            let mut heard = vec![0; said.len()];
            let (mut recv, mut send) = tokio::io::split(&mut stream);
            let (sent, read) = tokio::join!(send.write_all(&said), recv.read_exact(&mut heard));
            sent.and(read.map(drop)).map(|()| heard)
        });
        assert!(heard.expect("echoed") == said, "change {number}");
    }
    let counters = b.links.counters();
    // The kernel brings packets to their core; where it cannot, the sockets hand them over (see the tests of `steer`).
    assert_eq!(counters.packets_steered_dropped.count(), 0);
    wait_for("the peer has counted the moves", || counters.migrations.count() > 0);
    assert_eq!((a.downs(), b.downs()), (0, 0));
    let now: Vec<_> = b.links.links().into_iter().filter(|link| !link.outbound).map(|link| link.remote).collect();
    assert!(now.windows(2).all(|pair| pair[0] == pair[1]), "all of them are where the opener is now: {now:?}");
}

#[test]
fn a_data_link_whose_peer_is_silent_gets_no_new_stream() {
    let (a, b) = linked_with(0, 1, &patient());
    let mut stream = block(a.links.open_service(1, b.id, Bytes::new())).expect("a stream");
    b.kill();
    block(stream.write_all(b"x")).expect("there is room in the window");
    wait_for("it counts as silent", || a.links.counters().links_silent.count() == 1);
    // Nobody answers this core's socket: it tries another one.
    wait_for("another socket", || a.links.counters().rebinds.count() >= 1);
    let failed = a.links.counters().dials_failed.total();
    let again = block(a.links.open_service(1, b_id(&a), Bytes::new()));
    assert!(again.is_err(), "{again:?}");
    assert!(a.links.counters().dials_failed.total() > failed, "it dials instead of using what is silent");
    drop(stream);
}

fn b_id(a: &super::support::Node) -> crate::id::NodeId {
    a.links.links().first().expect("the links are not given up yet").node
}

#[test]
fn a_link_that_answers_is_not_taken_for_silent() {
    // Where the machine itself stood still for nearly the limit, the link did not answer, and nothing is shown.
    let is_shown = (0..3).any(|_| {
        let (found, longest) = silences_of_a_live_link();
        let stood_still = longest > Duration::from_millis(400);
        assert!(found == (0, 0) || stood_still, "{found:?}, longest {longest:?}");
        !stood_still
    });
    assert!(is_shown, "the machine stood still again and again");
}

/// Links taken for silent and sockets bound anew while a link answers for two seconds, and the longest time it did not.
fn silences_of_a_live_link() -> ((u64, u64), Duration) {
    let (a, b) = linked_with(0, 1, &patient());
    let mut stream = block(a.links.open_service(0, b.id, Bytes::new())).expect("a stream");
    let now = || crate::clock::Clock::now(&*a.clock);
    let until = now() + Duration::from_secs(2);
    let (mut last, mut longest) = (now(), Duration::ZERO);
    while last < until {
        block(async {
            stream.write_all(b"ping").await.expect("sent");
            stream.read_exact(&mut [0; 4]).await.expect("echoed");
        });
        let at = now();
        longest = longest.max(at - last);
        last = at;
    }
    let counters = a.links.counters();
    ((counters.links_silent.count(), counters.rebinds.count()), longest)
}
