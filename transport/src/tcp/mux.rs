//! Many streams on one connection, as a state machine: bytes and calls in, bytes and events out.
//!
//! Calls of the application ([`Mux::open`], [`Mux::write`], [`Mux::read`], ...) and of the connection
//! ([`Mux::handle_bytes`], [`Mux::handle_timeout`]) come in any order. After each of them [`Mux::poll_event`] is
//! emptied, [`Mux::poll_transmit`] gives what is to be sent, and [`Mux::poll_timeout`] says when to come back.
//!
//! Credit is what keeps memory bounded and one slow reader from stopping the others: a peer sends at most
//! [`STREAM_CREDIT`] bytes on a new stream and [`CONNECTION_CREDIT`] on the connection, and more only as it is allowed
//! more. A write takes its credit at once, so whatever is buffered can be sent, and no stream waits behind one that
//! cannot move. Streams with something to send take turns, a frame each.

mod stream;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::frame::{DATA_BYTES_MAX, DATAGRAM_BYTES_MAX, FrameReader, Header, Item, Kind, REASON_BYTES_MAX, TcpFault};
use crate::frame::CloseCode;
use stream::{RecvSide, SendSide, Stream};

/// Bytes that may be sent on a new stream before its receiver has said anything.
pub(crate) const STREAM_CREDIT: u32 = 64 * 1024;
/// Bytes that may be sent on a new connection before the other side has said anything.
pub(crate) const CONNECTION_CREDIT: u32 = 256 * 1024;
/// Streams that may be opened, both ways and one way, before the other side has said anything.
pub(crate) const BI_STREAMS: u32 = 16;
pub(crate) const UNI_STREAMS: u32 = 2;
/// Bytes of one stream that wait to be sent; a write beyond them waits.
const STREAM_BUFFER_MAX: usize = 128 * 1024;
/// Streams of a connection that this side opened and that have not ended, whatever the peer allows.
const OWN_STREAMS_MAX: usize = 8192;
/// Credit that makes no sense any more.
const CREDIT_MAX: u64 = 1 << 48;
/// Bytes given out by one call of [`Mux::poll_transmit`], about.
const TRANSMIT_BYTES: usize = 64 * 1024;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It opened the connection.
    Opener,
    /// It accepted the connection.
    Acceptor,
}

/// Whether streams go both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dir {
    Bi,
    Uni,
}

/// One value for each direction of streams.
#[derive(Debug)]
struct PerDir<T> {
    bi: T,
    uni: T,
}

impl<T> PerDir<T> {
    const fn of(&self, dir: Dir) -> &T {
        match dir {
            Dir::Bi => &self.bi,
            Dir::Uni => &self.uni,
        }
    }

    const fn of_mut(&mut self, dir: Dir) -> &mut T {
        match dir {
            Dir::Bi => &mut self.bi,
            Dir::Uni => &mut self.uni,
        }
    }
}

/// The number of a stream, as in QUIC: the lowest bit says who opened it (0: the opener of the connection), the next
/// one whether it goes one way, the rest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StreamId(u64);

impl StreamId {
    const fn new(by: Side, dir: Dir, index: u64) -> Self {
        let by = match by {
            Side::Opener => 0,
            Side::Acceptor => 1,
        };
        let dir = match dir {
            Dir::Bi => 0,
            Dir::Uni => 2,
        };
        Self((index << 2) | dir | by)
    }

    const fn opened_by(self) -> Side {
        if self.0 & 1 == 0 { Side::Opener } else { Side::Acceptor }
    }

    const fn dir(self) -> Dir {
        if self.0 & 2 == 0 { Dir::Bi } else { Dir::Uni }
    }

    const fn index(self) -> u64 {
        self.0 >> 2
    }
}

/// What a connection may take up, and its times.
#[derive(Debug, Clone)]
pub(crate) struct MuxLimits {
    /// Streams the peer may have open, both ways. 0: it may open none at all.
    pub(crate) bi_streams: u32,
    /// Streams the peer may have open, one way.
    pub(crate) uni_streams: u32,
    /// Unread bytes of one stream, and of the connection.
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    /// Bytes waiting to be sent, of all streams.
    pub(crate) send_window: usize,
    /// Bytes of datagrams waiting to be sent or read.
    pub(crate) datagram_buffer: usize,
    /// Without a byte from the peer for so long, the connection is dead.
    pub(crate) idle_timeout: Duration,
    /// How often the peer is asked for a sign of life.
    pub(crate) keep_alive: Duration,
    /// The round trip assumed until one was measured.
    pub(crate) rtt: Duration,
}

/// What has changed for somebody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A stream has something to read, or its end.
    Readable(StreamId),
    /// A stream takes bytes again, or never will.
    Writable(StreamId),
    /// What was sent on some stream has arrived, or never will.
    Settled,
    /// The peer opened a stream.
    Accepted(Dir),
    /// Streams may be opened again.
    MayOpen,
    /// A datagram can be read.
    Datagram,
    /// The connection has ended.
    Ended,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// This side closed it.
    Local,
    /// The peer closed it.
    Closed { code: u32, reason: Bytes },
    /// Nothing was heard of the peer.
    TimedOut,
    /// TCP or TLS failed; a TLS alert where the peer sent one.
    Lost { alert: Option<u8>, reason: String },
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(Bytes),
    End,
    Reset(u32),
    /// Nothing yet; an event follows.
    Blocked,
    /// The stream was stopped by this side, or is unknown.
    Closed,
    /// The connection has ended.
    ConnectionEnded,
}

/// What became of a write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// So many bytes were taken.
    Taken(usize),
    /// None for now; an event follows.
    Blocked,
    /// The peer wants no more.
    Stopped(u32),
    /// This side has finished or reset the stream.
    Closed,
    /// The connection has ended.
    ConnectionEnded,
}

/// Whether the peer has all of what was sent on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Pending,
    Done,
    Stopped(u32),
    ConnectionEnded,
}

/// A frame whose payload is arriving.
#[derive(Debug)]
enum Incoming {
    Data(StreamId),
    Datagram(Vec<u8>),
    Close { code: u32, reason: Vec<u8> },
}

/// Streams, credits and datagrams of one connection. See the module for the order of calls.
#[derive(Debug)]
pub(crate) struct Mux {
    side: Side,
    limits: MuxLimits,
    reader: FrameReader,
    incoming: Option<Incoming>,
    streams: HashMap<StreamId, Stream>,
    /// Streams with a frame to send, in turn; each is in here once at most.
    turns: VecDeque<StreamId>,
    /// Streams whose writer waits for credit of the connection or for room in its buffer.
    waiting: Vec<StreamId>,
    own: PerDir<OwnStreams>,
    peers: PerDir<PeerStreams>,
    own_open: usize,
    /// Bytes that may still be written, by what the peer allows.
    send_credit: u64,
    /// Bytes written and not given out yet.
    buffered: usize,
    /// Bytes the peer may still send, and bytes it is to be allowed in addition.
    recv_credit: u64,
    recv_due: u32,
    datagrams_out: Packets,
    datagrams_in: Packets,
    ping: Ping,
    pong_due: Option<u32>,
    heard_at: Duration,
    close_due: Option<(u32, Bytes)>,
    end: Option<End>,
    fault: Option<TcpFault>,
    events: VecDeque<Event>,
}

/// Streams this side opens.
#[derive(Debug)]
struct OwnStreams {
    opened: u64,
    may_open: u64,
}

/// Streams the peer opens.
#[derive(Debug, Default)]
struct PeerStreams {
    opened: u64,
    may_open: u64,
    due: u32,
    limit: u32,
    unaccepted: VecDeque<StreamId>,
}

/// Datagrams in a queue with a limit; the oldest makes room.
#[derive(Debug, Default)]
struct Packets {
    queue: VecDeque<Bytes>,
    bytes: usize,
}

impl Packets {
    /// How many made room.
    fn push(&mut self, packet: Bytes, bytes_max: usize) -> u64 {
        let mut dropped = 0;
        // An empty packet takes room as well.
        self.bytes += packet.len() + PACKET_OVERHEAD;
        self.queue.push_back(packet);
        while self.bytes > bytes_max && self.queue.len() > 1 {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    fn pop(&mut self) -> Option<Bytes> {
        let packet = self.queue.pop_front()?;
        self.bytes -= packet.len() + PACKET_OVERHEAD;
        Some(packet)
    }
}

/// What a packet in a queue takes up besides its bytes.
const PACKET_OVERHEAD: usize = 32;

/// Signs of life asked for, and the round trips they took.
#[derive(Debug)]
struct Ping {
    token: u32,
    /// When the one under way was asked for.
    asked_at: Option<Duration>,
    next_at: Duration,
    is_due: bool,
    rtt: Option<Duration>,
    assumed: Duration,
}

impl Ping {
    /// Takes a sample as TCP does (RFC 6298, section 2): an eighth of the new one.
    fn sample(&mut self, rtt: Duration) {
        self.rtt = Some(self.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
    }
}

impl Mux {
    pub(crate) fn new(side: Side, limits: MuxLimits, now: Duration) -> Self {
        let peers = |limit: u32, initial: u32| PeerStreams {
            may_open: u64::from(if limit == 0 { 0 } else { initial }),
            due: limit.saturating_sub(initial),
            limit,
            ..PeerStreams::default()
        };
        let own = |initial: u32| OwnStreams { opened: 0, may_open: u64::from(initial) };
        Self {
            side,
            reader: FrameReader::default(),
            incoming: None,
            streams: HashMap::new(),
            turns: VecDeque::new(),
            waiting: Vec::new(),
            own: PerDir { bi: own(BI_STREAMS), uni: own(UNI_STREAMS) },
            peers: PerDir { bi: peers(limits.bi_streams, BI_STREAMS), uni: peers(limits.uni_streams, UNI_STREAMS) },
            own_open: 0,
            send_credit: u64::from(CONNECTION_CREDIT),
            buffered: 0,
            recv_credit: u64::from(CONNECTION_CREDIT),
            recv_due: limits.connection_window.saturating_sub(CONNECTION_CREDIT),
            datagrams_out: Packets::default(),
            datagrams_in: Packets::default(),
            ping: Ping { token: 0, asked_at: None, next_at: now, is_due: false, rtt: None, assumed: limits.rtt },
            pong_due: None,
            heard_at: now,
            close_due: None,
            end: None,
            fault: None,
            events: VecDeque::new(),
            limits,
        }
    }

    // What the application asks for.

    /// Opens a stream; `None` when the peer allows no more for now, and an event follows.
    pub(crate) fn open(&mut self, dir: Dir) -> Option<StreamId> {
        let own = self.own.of_mut(dir);
        if self.end.is_some() || own.opened >= own.may_open || self.own_open >= OWN_STREAMS_MAX {
            return None;
        }
        let id = StreamId::new(self.side, dir, own.opened);
        own.opened += 1;
        self.own_open += 1;
        let recv = (dir == Dir::Bi).then(|| RecvSide::new(self.limits.stream_window));
        self.streams.insert(id, Stream::opened(SendSide::new(), recv));
        self.take_turn(id);
        Some(id)
    }

    /// The next stream the peer opened.
    pub(crate) fn accept(&mut self, dir: Dir) -> Option<StreamId> {
        self.peers.of_mut(dir).unaccepted.pop_front()
    }

    /// Takes as much of `bytes` as may be sent.
    pub(crate) fn write(&mut self, id: StreamId, bytes: &mut Bytes) -> Write {
        let connection_room = self.limits.send_window.saturating_sub(self.buffered).min(clamp(self.send_credit));
        let send = match self.sending(id) {
            Ok(send) => send,
            Err(refused) => return refused,
        };
        if bytes.is_empty() {
            return Write::Taken(0);
        }
        let stream_room = STREAM_BUFFER_MAX.saturating_sub(send.buffered).min(clamp(send.credit));
        let taken = bytes.len().min(stream_room).min(connection_room);
        if taken == 0 {
            send.is_awaited = true;
            if stream_room > 0 && !std::mem::replace(&mut send.is_waiting, true) {
                self.waiting.push(id);
            }
            return Write::Blocked;
        }
        send.push(bytes.split_to(taken));
        self.buffered += taken;
        self.send_credit -= taken as u64;
        self.take_turn(id);
        Write::Taken(taken)
    }

    /// How many bytes [`Mux::write`] would take now, to spare a copy of the others.
    pub(crate) fn room(&mut self, id: StreamId) -> Result<usize, Write> {
        let connection_room = self.limits.send_window.saturating_sub(self.buffered).min(clamp(self.send_credit));
        let send = self.sending(id)?;
        Ok(STREAM_BUFFER_MAX.saturating_sub(send.buffered).min(clamp(send.credit)).min(connection_room))
    }

    /// The sending side of a stream that may be written to.
    fn sending(&mut self, id: StreamId) -> Result<&mut SendSide, Write> {
        if self.end.is_some() {
            return Err(Write::ConnectionEnded);
        }
        let send = self.streams.get_mut(&id).and_then(|stream| stream.send.as_mut()).ok_or(Write::Closed)?;
        if let Some(code) = send.stopped {
            return Err(Write::Stopped(code));
        }
        if send.is_open() { Ok(send) } else { Err(Write::Closed) }
    }

    /// No more will be written; the peer reads an end after what was. Repeated calls change nothing.
    pub(crate) fn finish(&mut self, id: StreamId) {
        if let Some(send) = self.streams.get_mut(&id).and_then(|stream| stream.send.as_mut())
            && send.finish()
        {
            self.take_turn(id);
        }
    }

    /// Breaks off sending; what is buffered is dropped.
    pub(crate) fn reset(&mut self, id: StreamId, code: u32) {
        let Some(send) = self.streams.get_mut(&id).and_then(|stream| stream.send.as_mut()) else { return };
        if let Some(unsent) = send.reset(code) {
            self.give_back(unsent);
            self.take_turn(id);
        }
    }

    /// Breaks off receiving; what was not read is dropped.
    pub(crate) fn stop(&mut self, id: StreamId, code: u32) {
        let Some(recv) = self.streams.get_mut(&id).and_then(|stream| stream.recv.as_mut()) else { return };
        let unread = recv.stop(code);
        self.consume_connection(unread);
        self.take_turn(id);
    }

    /// Takes at most `bytes_max` of what has arrived.
    pub(crate) fn read(&mut self, id: StreamId, bytes_max: usize) -> Read {
        let is_ended = self.end.is_some();
        let Some(recv) = self.streams.get_mut(&id).and_then(|stream| stream.recv.as_mut()) else {
            return if is_ended { Read::ConnectionEnded } else { Read::Closed };
        };
        let read = recv.read(bytes_max);
        match read {
            Read::Bytes(bytes) => {
                let (count, is_due) = (bytes.len(), recv.is_credit_due());
                self.consume_connection(count);
                if is_due {
                    self.take_turn(id);
                }
                Read::Bytes(bytes)
            }
            // What arrived before the connection ended can still be read.
            Read::Blocked if is_ended => Read::ConnectionEnded,
            other => other,
        }
    }

    /// The application has let go of the sending side; if it was not finished, it is now.
    pub(crate) fn release_send(&mut self, id: StreamId) {
        self.finish(id);
        if let Some(send) = self.streams.get_mut(&id).and_then(|stream| stream.send.as_mut()) {
            send.is_released = true;
            send.is_awaited = false;
        }
        self.sweep(id);
    }

    /// The application has let go of the receiving side; if its end was not reached, the peer is stopped.
    pub(crate) fn release_recv(&mut self, id: StreamId) {
        self.stop(id, 0);
        if let Some(recv) = self.streams.get_mut(&id).and_then(|stream| stream.recv.as_mut()) {
            recv.is_released = true;
        }
        self.sweep(id);
    }

    /// Whether the peer has all that was sent on a stream.
    pub(crate) fn delivery(&self, id: StreamId) -> Delivery {
        match self.streams.get(&id).and_then(|stream| stream.send.as_ref()) {
            Some(send) if send.is_acked() => Delivery::Done,
            Some(SendSide { stopped: Some(code), .. }) => Delivery::Stopped(*code),
            Some(_) if self.end.is_some() => Delivery::ConnectionEnded,
            Some(send) if send.is_over() => Delivery::Done,
            Some(_) => Delivery::Pending,
            None => Delivery::Done,
        }
    }

    /// Queues a datagram; how many older ones made room for it.
    pub(crate) fn send_datagram(&mut self, bytes: Bytes) -> u64 {
        self.datagrams_out.push(bytes, self.limits.datagram_buffer)
    }

    /// The oldest datagram that has arrived.
    pub(crate) fn read_datagram(&mut self) -> Option<Bytes> {
        self.datagrams_in.pop()
    }

    /// Lets the peer have more streams open that go both ways.
    pub(crate) fn raise_bi_streams(&mut self, limit: u32) {
        let bi = &mut self.peers.bi;
        bi.due = bi.due.saturating_add(limit.saturating_sub(bi.limit));
        bi.limit = bi.limit.max(limit);
    }

    /// Closes the connection; the peer is told why.
    pub(crate) fn close(&mut self, code: u32, reason: &[u8]) {
        if self.end.is_none() {
            let reason = reason.get(..reason.len().min(REASON_BYTES_MAX)).unwrap_or_default();
            self.close_due = Some((code, Bytes::copy_from_slice(reason)));
            self.end_with(End::Local);
        }
    }

    /// How the connection ended.
    pub(crate) const fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The smoothed round trip.
    pub(crate) fn rtt(&self) -> Duration {
        self.ping.rtt.unwrap_or(self.ping.assumed)
    }

    /// Bytes of unsent datagrams that fit before the oldest has to make room.
    pub(crate) fn datagram_room(&self) -> usize {
        self.limits.datagram_buffer.saturating_sub(self.datagrams_out.bytes + PACKET_OVERHEAD)
    }

    /// What the peer did wrong, once.
    pub(crate) fn take_fault(&mut self) -> Option<TcpFault> {
        self.fault.take()
    }

    // What the connection brings.

    /// Takes what has arrived, in whatever pieces. What makes no sense ends the connection.
    pub(crate) fn handle_bytes(&mut self, mut bytes: &[u8], now: Duration) {
        self.heard_at = now;
        while self.end.is_none() {
            let taken = self.reader.next(&mut bytes).and_then(|item| match item {
                Some(Item::Header(header)) => self.handle_header(header, now).map(|()| true),
                Some(Item::Payload { bytes, is_last }) => {
                    self.handle_payload(bytes, is_last);
                    Ok(true)
                }
                None => Ok(false),
            });
            match taken {
                Ok(true) => {}
                Ok(false) => return,
                Err(fault) => {
                    self.fault = Some(fault);
                    self.close(CloseCode::BadFrame.code(), fault.name().as_bytes());
                }
            }
        }
    }

    /// TCP or TLS has failed, or the peer is gone.
    pub(crate) fn handle_lost(&mut self, alert: Option<u8>, reason: String) {
        self.close_due = None;
        self.end_with(End::Lost { alert, reason });
    }

    /// Looks what time has brought. Early and repeated calls change nothing.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        if self.end.is_some() {
            return;
        }
        if now.saturating_sub(self.heard_at) >= self.limits.idle_timeout {
            self.end_with(End::TimedOut);
            return;
        }
        if now >= self.ping.next_at {
            self.ping.next_at = now + self.limits.keep_alive;
            // One at a time: when it is not answered, the connection is about to time out.
            self.ping.is_due |= self.ping.asked_at.is_none();
        }
    }

    /// When [`Mux::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let dead_at = self.heard_at + self.limits.idle_timeout;
        self.end.is_none().then(|| dead_at.min(self.ping.next_at))
    }

    /// What has changed for somebody who waits.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Mux::poll_transmit`] would give anything.
    pub(crate) fn wants_transmit(&self) -> bool {
        if self.end.is_some() {
            return self.close_due.is_some();
        }
        !self.turns.is_empty()
            || self.pong_due.is_some()
            || self.ping.is_due
            || !self.datagrams_out.queue.is_empty()
            || self.is_connection_credit_due()
            || self.peers.bi.due > 0
            || self.peers.uni.due > 0
    }

    /// Appends what is to be sent, about as much as a kernel likes at a time.
    pub(crate) fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Duration) {
        if let Some((code, reason)) = self.close_due.take() {
            put_payload(out, Kind::Close, u64::from(code), &reason);
            return;
        }
        if self.end.is_some() {
            return;
        }
        self.transmit_credits(out, now);
        while out.len() < TRANSMIT_BYTES
            && let Some(packet) = self.datagrams_out.pop()
        {
            put_payload(out, Kind::Datagram, 0, &packet);
        }
        while out.len() < TRANSMIT_BYTES
            && let Some(id) = self.turns.pop_front()
        {
            self.transmit_stream(id, out);
        }
    }

    /// What speaks of the connection as a whole; small, and ahead of everything else.
    fn transmit_credits(&mut self, out: &mut Vec<u8>, now: Duration) {
        if let Some(token) = self.pong_due.take() {
            put(out, Kind::Pong, 0, token);
        }
        if std::mem::take(&mut self.ping.is_due) {
            self.ping.token = self.ping.token.wrapping_add(1);
            self.ping.asked_at = Some(now);
            put(out, Kind::Ping, 0, self.ping.token);
        }
        if self.is_connection_credit_due() {
            let due = std::mem::take(&mut self.recv_due);
            self.recv_credit += u64::from(due);
            put(out, Kind::ConnectionCredit, 0, due);
        }
        for (number, dir) in [(0, Dir::Bi), (1, Dir::Uni)] {
            let peers = self.peers.of_mut(dir);
            if peers.due > 0 {
                let due = std::mem::take(&mut peers.due);
                peers.may_open += u64::from(due);
                put(out, Kind::StreamCredit, number, due);
            }
        }
    }

    /// One turn of one stream.
    fn transmit_stream(&mut self, id: StreamId, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.has_turn = false;
        if std::mem::take(&mut stream.is_open_due) {
            put(out, Kind::Open, id.0, 0);
        }
        if let Some(recv) = stream.recv.as_mut() {
            recv.transmit(id.0, out);
        }
        if let Some(send) = stream.send.as_mut() {
            let given = send.transmit(id.0, out);
            self.buffered -= given;
            if given > 0 && send.is_awaited && send.buffered <= STREAM_BUFFER_MAX / 2 {
                send.is_awaited = false;
                self.events.push_back(Event::Writable(id));
            }
            if send.has_more() {
                self.take_turn(id);
            }
            if self.buffered <= self.limits.send_window / 2 {
                self.wake_waiting();
            }
        }
        self.sweep(id);
    }

    fn handle_header(&mut self, header: Header, now: Duration) -> Result<(), TcpFault> {
        let Header { kind, id, value } = header;
        let stream = StreamId(id);
        match kind {
            Kind::Open => self.handle_open(stream),
            Kind::Data => self.handle_data(stream, value),
            Kind::Fin => self.handle_end(stream, None),
            Kind::Reset => self.handle_end(stream, Some(value)),
            Kind::Stop => self.handle_stop(stream, value),
            Kind::Credit => self.handle_credit(stream, value),
            Kind::Ack => self.handle_ack(stream),
            Kind::ConnectionCredit => {
                self.send_credit = add_credit(self.send_credit, value)?;
                self.wake_waiting();
                Ok(())
            }
            Kind::StreamCredit => {
                let dir = if id == 0 { Dir::Bi } else { Dir::Uni };
                let own = self.own.of_mut(dir);
                own.may_open = add_credit(own.may_open, value)?;
                self.events.push_back(Event::MayOpen);
                Ok(())
            }
            Kind::Datagram => {
                self.incoming = Some(Incoming::Datagram(Vec::new()));
                Ok(())
            }
            Kind::Ping => {
                self.pong_due = Some(value);
                Ok(())
            }
            Kind::Pong => {
                if value == self.ping.token
                    && let Some(asked_at) = self.ping.asked_at.take()
                {
                    self.ping.sample(now.saturating_sub(asked_at));
                }
                Ok(())
            }
            Kind::Close => {
                let code = u32::try_from(id).unwrap_or(u32::MAX);
                self.incoming = Some(Incoming::Close { code, reason: Vec::new() });
                Ok(())
            }
        }
    }

    fn handle_payload(&mut self, bytes: &[u8], is_last: bool) {
        match &mut self.incoming {
            Some(Incoming::Data(id)) => {
                let id = *id;
                let recv = self.streams.get_mut(&id).and_then(|stream| stream.recv.as_mut());
                if recv.is_some_and(|recv| recv.push(bytes)) {
                    self.events.push_back(Event::Readable(id));
                } else {
                    // Nobody will read it.
                    self.consume_connection(bytes.len());
                }
            }
            Some(Incoming::Datagram(packet)) => packet.extend_from_slice(bytes),
            Some(Incoming::Close { reason, .. }) => reason.extend_from_slice(bytes),
            None => {}
        }
        if !is_last {
            return;
        }
        match self.incoming.take() {
            Some(Incoming::Datagram(packet)) => {
                self.datagrams_in.push(packet.into(), self.limits.datagram_buffer);
                self.events.push_back(Event::Datagram);
            }
            Some(Incoming::Close { code, reason }) => self.end_with(End::Closed { code, reason: reason.into() }),
            Some(Incoming::Data(_)) | None => {}
        }
    }

    fn handle_open(&mut self, id: StreamId) -> Result<(), TcpFault> {
        let dir = id.dir();
        let peers = self.peers.of_mut(dir);
        if id.opened_by() == self.side || id.index() != peers.opened {
            return Err(TcpFault::UnknownStream);
        }
        if peers.opened >= peers.may_open {
            return Err(TcpFault::TooManyStreams);
        }
        peers.opened += 1;
        peers.unaccepted.push_back(id);
        let send = (dir == Dir::Bi).then(SendSide::new);
        self.streams.insert(id, Stream::accepted(send, RecvSide::new(self.limits.stream_window)));
        self.take_turn(id);
        self.events.push_back(Event::Accepted(dir));
        Ok(())
    }

    fn handle_data(&mut self, id: StreamId, length: u32) -> Result<(), TcpFault> {
        self.recv_credit = self.recv_credit.checked_sub(u64::from(length)).ok_or(TcpFault::OverCredit)?;
        self.receiving(id)?.expect_bytes(length)?;
        self.incoming = Some(Incoming::Data(id));
        Ok(())
    }

    /// A stream was finished (`None`) or broken off.
    fn handle_end(&mut self, id: StreamId, code: Option<u32>) -> Result<(), TcpFault> {
        // Its sender need not know that the end it sent before has arrived and the stream is over.
        if code.is_some() && !self.streams.contains_key(&id) && self.was_opened(id) {
            return Ok(());
        }
        let unread = self.receiving(id)?.end(code)?;
        self.consume_connection(unread);
        self.take_turn(id);
        self.events.push_back(Event::Readable(id));
        self.sweep(id);
        Ok(())
    }

    fn handle_stop(&mut self, id: StreamId, code: u32) -> Result<(), TcpFault> {
        let Some(send) = self.sending_to(id)? else { return Ok(()) };
        if let Some(unsent) = send.handle_stop(code) {
            self.give_back(unsent);
            self.take_turn(id);
        }
        self.events.extend([Event::Writable(id), Event::Settled]);
        Ok(())
    }

    fn handle_credit(&mut self, id: StreamId, credit: u32) -> Result<(), TcpFault> {
        let Some(send) = self.sending_to(id)? else { return Ok(()) };
        send.credit = add_credit(send.credit, credit)?;
        if std::mem::take(&mut send.is_awaited) {
            self.events.push_back(Event::Writable(id));
        }
        Ok(())
    }

    fn handle_ack(&mut self, id: StreamId) -> Result<(), TcpFault> {
        let Some(send) = self.sending_to(id)? else { return Ok(()) };
        if !send.handle_ack() {
            return Err(TcpFault::UnknownStream);
        }
        self.events.push_back(Event::Settled);
        self.sweep(id);
        Ok(())
    }

    /// The receiving side that a peer's bytes are for. It knows which of its streams it has ended.
    fn receiving(&mut self, id: StreamId) -> Result<&mut RecvSide, TcpFault> {
        let was_opened = self.was_opened(id);
        match self.streams.get_mut(&id) {
            Some(stream) => stream.recv.as_mut().ok_or(TcpFault::UnknownStream),
            None if was_opened => Err(TcpFault::AfterEnd),
            None => Err(TcpFault::UnknownStream),
        }
    }

    /// The sending side that a peer's answer is for; `None` when the stream ended while the answer was under way.
    fn sending_to(&mut self, id: StreamId) -> Result<Option<&mut SendSide>, TcpFault> {
        let was_opened = self.was_opened(id);
        match self.streams.get_mut(&id) {
            Some(stream) => stream.send.as_mut().map(Some).ok_or(TcpFault::UnknownStream),
            None if was_opened => Ok(None),
            None => Err(TcpFault::UnknownStream),
        }
    }

    fn was_opened(&self, id: StreamId) -> bool {
        let opened =
            if id.opened_by() == self.side { self.own.of(id.dir()).opened } else { self.peers.of(id.dir()).opened };
        id.index() < opened
    }

    fn take_turn(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.has_turn, true)
        {
            self.turns.push_back(id);
        }
    }

    /// Written and then dropped: neither sent nor counted against what the peer allows.
    fn give_back(&mut self, unsent: usize) {
        self.buffered -= unsent;
        self.send_credit += unsent as u64;
        self.wake_waiting();
    }

    /// Bytes that take up none of the connection's window any more.
    fn consume_connection(&mut self, count: usize) {
        self.recv_due = self.recv_due.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn is_connection_credit_due(&self) -> bool {
        self.recv_due > 0 && u64::from(self.recv_due) >= self.recv_credit
    }

    fn wake_waiting(&mut self) {
        for id in std::mem::take(&mut self.waiting) {
            let Some(send) = self.streams.get_mut(&id).and_then(|stream| stream.send.as_mut()) else { continue };
            send.is_waiting = false;
            if std::mem::take(&mut send.is_awaited) {
                self.events.push_back(Event::Writable(id));
            }
        }
    }

    /// Forgets a stream that is over on both sides and that nobody holds any more.
    fn sweep(&mut self, id: StreamId) {
        if !self.streams.get(&id).is_some_and(Stream::is_over) {
            return;
        }
        self.streams.remove(&id);
        if id.opened_by() == self.side {
            self.own_open -= 1;
            if self.own_open + 1 == OWN_STREAMS_MAX {
                self.events.push_back(Event::MayOpen);
            }
        } else {
            let peers = self.peers.of_mut(id.dir());
            peers.due = peers.due.saturating_add(1);
        }
    }

    fn end_with(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            self.events.push_back(Event::Ended);
        }
    }
}

fn put(out: &mut Vec<u8>, kind: Kind, id: u64, value: u32) {
    Header { kind, id, value }.put(out);
}

/// A frame with a payload, whose length its maker has checked.
fn put_payload(out: &mut Vec<u8>, kind: Kind, id: u64, payload: &[u8]) {
    debug_assert!(payload.len() <= DATA_BYTES_MAX.max(DATAGRAM_BYTES_MAX), "checked where it came in");
    put(out, kind, id, u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(payload);
}

fn add_credit(credit: u64, more: u32) -> Result<u64, TcpFault> {
    let sum = credit + u64::from(more);
    if sum > CREDIT_MAX { Err(TcpFault::BadCredit) } else { Ok(sum) }
}

fn clamp(credit: u64) -> usize {
    usize::try_from(credit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
