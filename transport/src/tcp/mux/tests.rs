//! Two machines that talk to each other, in whatever pieces and order, without a socket.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::tcp::frame::HEADER_LEN;

const NOW: Duration = Duration::from_secs(100);

fn limits() -> MuxLimits {
    MuxLimits {
        bi_streams: 64,
        uni_streams: 8,
        stream_window: 512 * 1024,
        connection_window: 4 * 1024 * 1024,
        send_window: 4 * 1024 * 1024,
        datagram_buffer: 1024,
        idle_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_secs(3),
        rtt: Duration::from_millis(100),
    }
}

/// Both ends of a connection.
struct Pair {
    opener: Mux,
    acceptor: Mux,
    now: Duration,
}

impl Pair {
    fn new() -> Self {
        Self::with(limits(), limits())
    }

    fn with(opener: MuxLimits, acceptor: MuxLimits) -> Self {
        Self {
            opener: Mux::new(Side::Opener, opener, NOW),
            acceptor: Mux::new(Side::Acceptor, acceptor, NOW),
            now: NOW,
        }
    }

    /// Moves bytes until nobody has any; how many they were.
    fn settle(&mut self) -> usize {
        let mut moved = 0;
        loop {
            let round = carry(&mut self.opener, &mut self.acceptor, self.now, usize::MAX)
                + carry(&mut self.acceptor, &mut self.opener, self.now, usize::MAX);
            if round == 0 {
                return moved;
            }
            moved += round;
        }
    }
}

/// What one side has to send, given to the other in pieces; how many bytes.
fn carry(from: &mut Mux, to: &mut Mux, now: Duration, piece: usize) -> usize {
    let mut out = Vec::new();
    from.poll_transmit(&mut out, now);
    for piece in out.chunks(piece.max(1)) {
        to.handle_bytes(piece, now);
    }
    out.len()
}

fn write(mux: &mut Mux, id: StreamId, bytes: &[u8]) -> Write {
    mux.write(id, &mut Bytes::copy_from_slice(bytes))
}

/// Everything there is to read now, and how the stream stands after it.
fn drain(mux: &mut Mux, id: StreamId) -> (Vec<u8>, Read) {
    let mut whole = Vec::new();
    loop {
        match mux.read(id, usize::MAX) {
            Read::Bytes(bytes) => whole.extend_from_slice(&bytes),
            other => return (whole, other),
        }
    }
}

fn frame(kind: Kind, id: u64, value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, id, value);
    bytes
}

fn data(id: u64, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_payload(&mut frame, Kind::Data, id, bytes);
    frame
}

#[test]
fn a_stream_carries_bytes_both_ways_and_each_side_ends_on_its_own() {
    let mut pair = Pair::new();
    let id = pair.opener.open(Dir::Bi).unwrap();
    assert_eq!(write(&mut pair.opener, id, b"question"), Write::Taken(8));
    pair.opener.finish(id);
    pair.settle();
    assert_eq!(pair.acceptor.accept(Dir::Bi), Some(id));
    assert_eq!(drain(&mut pair.acceptor, id), (b"question".to_vec(), Read::End));
    assert_eq!(pair.opener.delivery(id), Delivery::Done, "the end was confirmed");
    assert_eq!(write(&mut pair.acceptor, id, b"answer"), Write::Taken(6));
    pair.settle();
    assert_eq!(drain(&mut pair.opener, id), (b"answer".to_vec(), Read::Blocked));
    pair.acceptor.finish(id);
    pair.settle();
    assert_eq!(drain(&mut pair.opener, id).1, Read::End);
    for mux in [&mut pair.opener, &mut pair.acceptor] {
        mux.release_send(id);
        mux.release_recv(id);
        assert!(mux.streams.is_empty(), "a stream that is over is forgotten");
    }
}

#[test]
fn codes_of_reset_and_stop_arrive_and_what_was_buffered_does_not() {
    let mut pair = Pair::new();
    let id = pair.opener.open(Dir::Bi).unwrap();
    write(&mut pair.opener, id, b"unread");
    pair.settle();
    pair.acceptor.accept(Dir::Bi).unwrap();
    let credit = pair.opener.send_credit;
    write(&mut pair.opener, id, b"never sent");
    pair.opener.reset(id, 77);
    assert_eq!(pair.opener.send_credit, credit, "what was not sent costs no credit");
    pair.settle();
    assert_eq!(drain(&mut pair.acceptor, id), (Vec::new(), Read::Reset(77)));
    assert_eq!(pair.acceptor.recv_credit + u64::from(pair.acceptor.recv_due), u64::from(limits().connection_window));

    pair.opener.stop(id, 5);
    pair.settle();
    assert_eq!(write(&mut pair.acceptor, id, b"more"), Write::Stopped(5));
    assert_eq!(pair.acceptor.delivery(id), Delivery::Stopped(5));
    assert!(pair.opener.end().is_none() && pair.acceptor.end().is_none());
}

#[test]
fn endings_that_cross_on_the_way_are_no_fault() {
    type Act = fn(&mut Mux, StreamId);
    let cases: [(Act, Act); 4] = [
        (Mux::finish, |mux, id| mux.stop(id, 1)),
        (|mux, id| mux.reset(id, 2), |mux, id| mux.stop(id, 1)),
        (|mux, id| mux.release_send(id), |mux, id| mux.release_recv(id)),
        (
            |mux, id| {
                mux.finish(id);
                mux.release_recv(id);
            },
            |mux, id| mux.release_send(id),
        ),
    ];
    for (by_opener, by_acceptor) in cases {
        let mut pair = Pair::new();
        let id = pair.opener.open(Dir::Bi).unwrap();
        write(&mut pair.opener, id, b"x");
        pair.settle();
        pair.acceptor.accept(Dir::Bi).unwrap();
        by_opener(&mut pair.opener, id);
        by_acceptor(&mut pair.acceptor, id);
        pair.settle();
        for mux in [&mut pair.opener, &mut pair.acceptor] {
            mux.reset(id, 9);
            mux.release_send(id);
            mux.release_recv(id);
        }
        pair.settle();
        assert_eq!((pair.opener.end(), pair.acceptor.end()), (None, None));
        assert!(pair.opener.streams.is_empty() && pair.acceptor.streams.is_empty());
    }
}

#[test]
fn a_reader_that_stalls_holds_its_window_and_stops_nobody_else() {
    let mut pair = Pair::new();
    let (stalled, live) = (pair.opener.open(Dir::Bi).unwrap(), pair.opener.open(Dir::Bi).unwrap());
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    loop {
        match write(&mut pair.opener, stalled, &chunk) {
            Write::Taken(count) => sent += count,
            Write::Blocked if pair.settle() == 0 => break,
            Write::Blocked => {}
            other => panic!("{other:?}"),
        }
        pair.settle();
    }
    assert_eq!(sent, 512 * 1024, "the window of one stream");
    let mut through = 0;
    for _ in 0..200 {
        let Write::Taken(count) = write(&mut pair.opener, live, &chunk) else { panic!("the live stream waits") };
        pair.settle();
        let (bytes, _) = drain(&mut pair.acceptor, live);
        through += bytes.len();
        assert_eq!(bytes.len(), count);
        pair.settle();
    }
    assert!(through > 4 * 1024 * 1024, "more than the connection's window: {through}");
    // Once the other one is read, it goes on as well.
    assert_eq!(drain(&mut pair.acceptor, stalled).0.len(), sent);
    pair.settle();
    assert!(matches!(write(&mut pair.opener, stalled, &chunk), Write::Taken(_)));
}

#[test]
fn streams_take_turns() {
    let mut pair = Pair::new();
    let ids: Vec<_> = (0..3).map(|_| pair.opener.open(Dir::Bi).unwrap()).collect();
    for id in &ids {
        write(&mut pair.opener, *id, &vec![1; 60 * 1024]);
    }
    let mut out = Vec::new();
    pair.opener.poll_transmit(&mut out, NOW);
    let (mut reader, mut rest, mut order) = (FrameReader::default(), out.as_slice(), Vec::new());
    while let Some(item) = reader.next(&mut rest).unwrap() {
        if let Item::Header(Header { kind: Kind::Data, id, .. }) = item {
            order.push(StreamId(id));
        }
    }
    assert_eq!(order.get(..3), Some(ids.as_slice()), "one frame of each before the second of any");
}

#[test]
fn more_streams_than_allowed_wait_and_a_place_comes_back_with_each_end() {
    let mut pair = Pair::with(limits(), MuxLimits { bi_streams: 17, ..limits() });
    let ids: Vec<_> = std::iter::from_fn(|| pair.opener.open(Dir::Bi)).collect();
    assert_eq!(ids.len(), 16, "before anything was heard");
    pair.settle();
    assert!(pair.opener.open(Dir::Bi).is_some() && pair.opener.open(Dir::Bi).is_none());
    pair.settle();
    let first = pair.acceptor.accept(Dir::Bi).unwrap();
    for mux in [&mut pair.opener, &mut pair.acceptor] {
        mux.release_send(first);
        mux.release_recv(first);
    }
    pair.settle();
    assert!(pair.opener.open(Dir::Bi).is_some() && pair.opener.open(Dir::Bi).is_none());
    pair.acceptor.raise_bi_streams(100);
    pair.settle();
    assert_eq!(std::iter::from_fn(|| pair.opener.open(Dir::Bi)).count(), 83);
}

#[test]
fn datagrams_pass_bytes_that_wait_and_the_oldest_make_room() {
    let mut pair = Pair::new();
    let id = pair.opener.open(Dir::Bi).unwrap();
    write(&mut pair.opener, id, &vec![1; 64 * 1024]);
    let dropped: u64 = (0..10_u8).map(|n| pair.opener.send_datagram(Bytes::from(vec![n; 200]))).sum();
    assert_eq!(dropped, 6, "1,024 bytes hold four with what they cost");
    let mut out = Vec::new();
    pair.opener.poll_transmit(&mut out, NOW);
    let datagram = out.windows(HEADER_LEN).position(|at| at == frame(Kind::Datagram, 0, 200)).unwrap();
    let bytes = out.windows(HEADER_LEN).position(|at| at[0] == Kind::Data as u8).unwrap();
    assert!(datagram < bytes);
    pair.acceptor.handle_bytes(&out, NOW);
    let arrived: Vec<_> = std::iter::from_fn(|| pair.acceptor.read_datagram()).map(|packet| packet[0]).collect();
    assert_eq!(arrived, [6, 7, 8, 9]);
}

#[test]
fn round_trips_are_measured_and_silence_ends_the_connection() {
    let mut pair = Pair::new();
    assert_eq!(pair.opener.rtt(), Duration::from_millis(100), "assumed");
    pair.opener.handle_timeout(NOW);
    let mut out = Vec::new();
    pair.opener.poll_transmit(&mut out, NOW);
    pair.acceptor.handle_bytes(&out, NOW);
    pair.now = NOW + Duration::from_millis(30);
    pair.settle();
    assert_eq!(pair.opener.rtt(), Duration::from_millis(30));
    assert_eq!(pair.opener.poll_timeout(), Some(NOW + Duration::from_secs(3)));
    pair.opener.handle_timeout(NOW + Duration::from_secs(10));
    assert_eq!(pair.opener.end(), None, "heard 30 ms after the start");
    pair.opener.handle_timeout(NOW + Duration::from_millis(10_030));
    assert_eq!(pair.opener.end(), Some(&End::TimedOut));
    assert_eq!((pair.opener.poll_timeout(), pair.opener.wants_transmit()), (None, false));
}

#[test]
fn a_close_is_the_last_thing_said_and_what_arrived_before_can_be_read() {
    let mut pair = Pair::new();
    let id = pair.opener.open(Dir::Bi).unwrap();
    write(&mut pair.opener, id, b"last words");
    pair.settle();
    pair.opener.close(3, b"expired");
    pair.settle();
    let reason = Bytes::from_static(b"expired");
    assert_eq!(pair.acceptor.end(), Some(&End::Closed { code: 3, reason }));
    assert_eq!(drain(&mut pair.acceptor, id), (b"last words".to_vec(), Read::ConnectionEnded));
    assert_eq!(write(&mut pair.opener, id, b"x"), Write::ConnectionEnded);
    assert_eq!(pair.opener.open(Dir::Bi), None);
    assert_eq!(pair.settle(), 0);
}

#[test]
fn what_breaks_the_rules_closes_the_connection_with_its_name() {
    let open = frame(Kind::Open, 0, 0);
    for (sent, expected) in [
        (frame(Kind::Open, 4, 0), TcpFault::UnknownStream),
        (frame(Kind::Open, 1, 0), TcpFault::UnknownStream),
        ([open.clone(), open.clone()].concat(), TcpFault::UnknownStream),
        (frame(Kind::Fin, 0, 0), TcpFault::UnknownStream),
        (data(0, b"x"), TcpFault::UnknownStream),
        (frame(Kind::Credit, 8, 1), TcpFault::UnknownStream),
        ([open.clone(), frame(Kind::Ack, 0, 0)].concat(), TcpFault::UnknownStream),
        ((0..17).flat_map(|n| frame(Kind::Open, n * 4, 0)).collect(), TcpFault::TooManyStreams),
        ((0..3).flat_map(|n| frame(Kind::Open, n * 4 + 2, 0)).collect(), TcpFault::TooManyStreams),
        ([open.clone(), data(0, &[1; 16_000]).repeat(5)].concat(), TcpFault::OverCredit),
        ([open.clone(), frame(Kind::Fin, 0, 0), data(0, b"x")].concat(), TcpFault::AfterEnd),
        ([open.clone(), frame(Kind::Fin, 0, 0), frame(Kind::Fin, 0, 0)].concat(), TcpFault::AfterEnd),
        (frame(Kind::ConnectionCredit, 0, u32::MAX).repeat(70_000), TcpFault::BadCredit),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), TcpFault::UnknownKind),
    ] {
        let mut mux = Mux::new(Side::Acceptor, limits(), NOW);
        mux.handle_bytes(&sent, NOW);
        assert_eq!((mux.take_fault(), mux.end()), (Some(expected), Some(&End::Local)), "{expected}");
        let mut out = Vec::new();
        mux.poll_transmit(&mut out, NOW);
        assert_eq!(
            out[..HEADER_LEN - 4],
            frame(Kind::Close, u64::from(CloseCode::BadFrame.code()), 0)[..HEADER_LEN - 4]
        );
        assert!(out.ends_with(expected.name().as_bytes()));
    }
}

#[test]
fn bytes_over_the_connections_credit_are_refused_even_when_each_stream_has_some() {
    let mut sent = Vec::new();
    for n in 0..5 {
        sent.extend(frame(Kind::Open, n * 4, 0));
        for _ in 0..4 {
            sent.extend(data(n * 4, &[1; 16_000]));
        }
    }
    let mut mux = Mux::new(Side::Acceptor, limits(), NOW);
    mux.handle_bytes(&sent, NOW);
    assert_eq!(mux.take_fault(), Some(TcpFault::OverCredit));
}

#[test]
fn a_flood_of_questions_is_answered_once() {
    let mut mux = Mux::new(Side::Acceptor, limits(), NOW);
    let mut out = Vec::new();
    mux.poll_transmit(&mut out, NOW);
    for token in 0..100_000 {
        mux.handle_bytes(&frame(Kind::Ping, 0, token), NOW);
    }
    out.clear();
    mux.poll_transmit(&mut out, NOW);
    assert_eq!(out, frame(Kind::Pong, 0, 99_999));
}

/// One thing that happens in a random conversation.
#[derive(Debug, Clone)]
enum Step {
    Open { by_opener: bool, uni: bool },
    Write { by_opener: bool, stream: usize, len: usize },
    Read { by_opener: bool, stream: usize, len: usize },
    Finish { by_opener: bool, stream: usize },
    Reset { by_opener: bool, stream: usize },
    Stop { by_opener: bool, stream: usize },
    Carry { from_opener: bool, piece: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let stream = 0_usize..12;
    prop_oneof![
        2 => (any::<bool>(), any::<bool>()).prop_map(|(by_opener, uni)| Step::Open { by_opener, uni }),
        6 => (any::<bool>(), stream.clone(), 1_usize..90_000)
            .prop_map(|(by_opener, stream, len)| Step::Write { by_opener, stream, len }),
        6 => (any::<bool>(), stream.clone(), 1_usize..200_000)
            .prop_map(|(by_opener, stream, len)| Step::Read { by_opener, stream, len }),
        1 => (any::<bool>(), stream.clone()).prop_map(|(by_opener, stream)| Step::Finish { by_opener, stream }),
        1 => (any::<bool>(), stream.clone()).prop_map(|(by_opener, stream)| Step::Reset { by_opener, stream }),
        1 => (any::<bool>(), stream).prop_map(|(by_opener, stream)| Step::Stop { by_opener, stream }),
        8 => (any::<bool>(), 1_usize..40_000).prop_map(|(from_opener, piece)| Step::Carry { from_opener, piece }),
    ]
}

/// The n-th byte that one side sends on one stream.
fn byte_at(id: StreamId, by_opener: bool, n: usize) -> u8 {
    u8::try_from((n.wrapping_mul(31) + usize::try_from(id.0).unwrap() * 7 + usize::from(by_opener)) % 251).unwrap()
}

/// What one side knows of what it sent and read.
#[derive(Default)]
struct Told {
    sent: HashMap<StreamId, usize>,
    read: HashMap<StreamId, usize>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever two correct ends do, in whatever order and pieces their bytes arrive: neither finds fault with the
    /// other, every byte read is the one written there, nothing is buffered beyond the windows, and when everything
    /// is let go of, nothing is left and all credit is back.
    #[test]
    fn two_ends_never_find_fault_with_each_other(steps in proptest::collection::vec(step(), 1..200)) {
        let mut pair = Pair::new();
        let mut ids: Vec<StreamId> = Vec::new();
        let mut told = [Told::default(), Told::default()];
        for step in steps {
            match step {
                Step::Open { by_opener, uni } => {
                    let mux = if by_opener { &mut pair.opener } else { &mut pair.acceptor };
                    ids.extend(mux.open(if uni { Dir::Uni } else { Dir::Bi }));
                }
                Step::Write { by_opener, stream, len } => {
                    let Some(&id) = ids.get(stream) else { continue };
                    let mux = if by_opener { &mut pair.opener } else { &mut pair.acceptor };
                    let sent = told[usize::from(by_opener)].sent.entry(id).or_default();
                    let bytes: Vec<u8> = (*sent..*sent + len).map(|n| byte_at(id, by_opener, n)).collect();
                    if let Write::Taken(count) = write(mux, id, &bytes) {
                        *sent += count;
                    }
                }
                Step::Read { by_opener, stream, len } => {
                    let Some(&id) = ids.get(stream) else { continue };
                    let mux = if by_opener { &mut pair.opener } else { &mut pair.acceptor };
                    if let Read::Bytes(bytes) = mux.read(id, len) {
                        let read = told[usize::from(by_opener)].read.entry(id).or_default();
                        for byte in bytes {
                            prop_assert_eq!(byte, byte_at(id, !by_opener, *read));
                            *read += 1;
                        }
                    }
                }
                Step::Finish { by_opener, stream } => {
                    let Some(&id) = ids.get(stream) else { continue };
                    let mux = if by_opener { &mut pair.opener } else { &mut pair.acceptor };
                    mux.finish(id);
                }
                Step::Reset { by_opener, stream } => {
                    let Some(&id) = ids.get(stream) else { continue };
                    let mux = if by_opener { &mut pair.opener } else { &mut pair.acceptor };
                    mux.reset(id, 4);
                }
                Step::Stop { by_opener, stream } => {
                    let Some(&id) = ids.get(stream) else { continue };
                    let mux = if by_opener { &mut pair.opener } else { &mut pair.acceptor };
                    mux.stop(id, 5);
                }
                Step::Carry { from_opener, piece } => {
                    let Pair { opener, acceptor, now } = &mut pair;
                    let (from, to) = if from_opener { (opener, acceptor) } else { (acceptor, opener) };
                    carry(from, to, *now, piece);
                }
            }
            for mux in [&pair.opener, &pair.acceptor] {
                prop_assert_eq!((&mux.fault, &mux.end), (&None, &None));
                prop_assert!(mux.buffered <= limits().send_window);
            }
        }
        for mux in [&mut pair.opener, &mut pair.acceptor] {
            for id in &ids {
                mux.release_send(*id);
                mux.release_recv(*id);
            }
        }
        pair.settle();
        // Streams that arrived only now are let go of as well.
        for mux in [&mut pair.opener, &mut pair.acceptor] {
            for id in &ids {
                mux.release_send(*id);
                mux.release_recv(*id);
            }
        }
        pair.settle();
        for (mux, other) in [(&pair.opener, &pair.acceptor), (&pair.acceptor, &pair.opener)] {
            prop_assert_eq!((&mux.fault, &mux.end, mux.streams.len(), mux.buffered), (&None, &None, 0, 0));
            prop_assert_eq!(mux.send_credit, other.recv_credit);
            prop_assert_eq!(other.recv_credit + u64::from(other.recv_due), u64::from(limits().connection_window));
        }
    }

    /// Whatever a hostile peer sends, nothing panics, and what it makes this side keep stays within the limits.
    #[test]
    fn frames_of_a_hostile_peer_are_bounded(frames in proptest::collection::vec((1_u8..14, 0_u64..80, any::<u32>()), 0..400)) {
        let mut mux = Mux::new(Side::Acceptor, limits(), NOW);
        for (kind, id, value) in frames {
            let value = if [2, 10, 13].contains(&kind) { value % 300 } else { value };
            let mut bytes = (u64::from(kind) << 56 | id).to_be_bytes().to_vec();
            bytes.extend(value.to_be_bytes());
            if [2, 10, 13].contains(&kind) {
                bytes.extend(vec![0; usize::try_from(value).unwrap()]);
            }
            mux.handle_bytes(&bytes, NOW);
            prop_assert!(mux.streams.len() <= 18);
            prop_assert!(mux.datagrams_in.bytes <= 2048);
        }
    }
}
