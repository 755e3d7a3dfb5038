//! The settings of the links, with their defaults and what each costs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::frame::{HEAD_BYTES_MAX, MESSAGE_BYTES_MAX};

/// What carries the links this node opens and accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// QUIC where it works, TCP where UDP does not get through.
    #[default]
    Auto,
    /// QUIC alone; nothing listens on the TCP side of the mesh port but for joining.
    Quic,
    /// TCP alone; QUIC connections are refused.
    Tcp,
}

/// Limits and times of all links of a node. The default is a working node on a local network.
#[derive(Debug, Clone)]
pub struct LinksConfig {
    /// Where peers reach this node, UDP and TCP. Port 0 takes a free one. Default `0.0.0.0:7440`.
    pub bind: SocketAddr,
    /// What carries links. Default `Auto`.
    pub transport: Transport,
    /// The gossip cell this node belongs to, at most 128 bytes; said in every hello. Default empty.
    pub cell: String,
    /// How often this node has been started. A peer that reads a higher one than before ends all older connections
    /// of this node at once, so it must grow with every start. Default 1.
    pub generation: u64,

    /// Handshakes that may be pending on all cores together; more are ignored without an answer. Default 1,000.
    pub handshakes_pending_max: usize,
    /// Above so many pending handshakes a newcomer has to prove its address first (Retry). Default 100.
    pub retry_above: usize,
    /// Time for a handshake that somebody else began. Default 5 s.
    pub handshake_timeout: Duration,
    /// Connections of the node, in both directions and for both purposes; more are refused. Default 1,024.
    pub connections_max: usize,
    /// Connections one peer may have to this node over QUIC, and as many over TCP; more are closed with `TooManyConnections`.
    /// A peer has one for control and one for each of its cores, and as many over TCP for large streams; where one of those
    /// is refused, its large streams take the data link. Default 64.
    pub connections_per_peer_max: usize,

    /// Streams a peer may have open on one data link at first: what is allowed costs memory before it is used. When three
    /// quarters are, twice as many are allowed. Default 256.
    pub streams_start: u32,
    /// Streams a peer may have open on one data link in the end; it waits for a free one. Default 4,096.
    pub streams_max: u32,
    /// Streams a peer may have open on the control link. Default 64.
    pub control_streams_max: u32,
    /// Messages a peer may have under way on one link; times the longest message this bounds memory. Default 8.
    pub messages_open_max: u32,
    /// Longest head of a stream that is accepted or sent. Default 16 KiB.
    pub head_bytes_max: usize,
    /// Longest message that is accepted or sent. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Time for a head to arrive after its stream was opened. Default 5 s.
    pub head_timeout: Duration,
    /// Time for a whole message to arrive. Default 30 s.
    pub message_timeout: Duration,

    /// A connection without a packet for so long is dead. Default 10 s.
    pub idle_timeout: Duration,
    /// The opener of a connection sends a packet at least this often; at most a third of `idle_timeout`. Default 3 s.
    pub keep_alive: Duration,
    /// A data link without a stream for so long is closed. Default 60 s.
    pub data_idle: Duration,

    /// Time for a handshake that this node began, for each address. Default 1 s.
    pub connect_timeout: Duration,
    /// Further addresses of a peer are tried after so long without an answer of the earlier ones. Default 200 ms.
    pub connect_stagger: Duration,
    /// How long QUIC is given to answer before TCP is dialled as well, unless UDP to the peer is known to be blocked.
    /// Default 1 s, the time to connect.
    pub tcp_head_start: Duration,
    /// A QUIC link whose packets get no answer for so long is doubted, and the peer is dialled over TCP. Default 2 s.
    pub udp_silence: Duration,
    /// When a peer is reached over TCP, QUIC is tried again after so long; each time it doubles. Default 10 s.
    pub udp_retry_min: Duration,
    /// Longest pause between two such tries. Default 60 s.
    pub udp_retry_max: Duration,
    /// Time to open a stream and write its head; at the peer's stream limit this passes in vain. Default 1 s.
    pub open_timeout: Duration,
    /// Pause before the second attempt to reach a peer; it doubles from there, and half of it is random. Default 200 ms.
    pub backoff_min: Duration,
    /// Longest pause between two attempts to reach a peer. Default 2 s.
    pub backoff_max: Duration,
    /// How long the connection that loses against another one of the same pair is still served. Default 1 s.
    pub duplicate_drain: Duration,

    /// Messages waiting for one peer; the oldest makes room. Default 64.
    pub message_queue_max: usize,
    /// Bytes of messages waiting for one peer; the oldest make room. Default 4 MiB.
    pub message_queue_bytes_max: usize,

    /// Unread bytes a peer may send on one stream. Default 512 KiB.
    pub stream_window: u32,
    /// Unread bytes a peer may send on one connection; well above `stream_window`, so that one slow reader does not
    /// stop the others. Default 4 MiB.
    pub connection_window: u32,
    /// Unacknowledged bytes kept for one connection; a slow peer costs no more memory than this. Default 4 MiB.
    pub send_window: u64,
    /// Datagrams waiting to be sent or read, in bytes, for one connection; the oldest make room. Default 128 KiB.
    pub datagram_buffer: usize,
    /// Kernel buffers asked for each UDP socket; the kernel may grant less. Default 2 MiB.
    pub socket_buffer: usize,

    /// A peer is far above this round trip: a connection that finds it so uses BBR instead of CUBIC from then on. Default 5 ms.
    pub far_rtt: Duration,
    /// A peer is lossy above this share of lost packets, and its next connection is treated like one to a far one. Default 0.001.
    pub far_loss: f64,
    /// A peer within this round trip is near, and streams that carry much go to it over TCP. Default 1 ms.
    pub near_rtt: Duration,
    /// Unless it loses a greater share of packets than this; two busy machines lose some without a bad line. Default 0.05.
    pub near_loss: f64,
    /// How often links are looked over: loss, idle data links, certificates about to expire. Default 500 ms.
    pub tick: Duration,
}

impl Default for LinksConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7440)),
            transport: Transport::Auto,
            cell: String::new(),
            generation: 1,
            handshakes_pending_max: 1000,
            retry_above: 100,
            handshake_timeout: Duration::from_secs(5),
            connections_max: 1024,
            connections_per_peer_max: 64,
            streams_start: 256,
            streams_max: 4096,
            control_streams_max: 64,
            messages_open_max: 8,
            head_bytes_max: HEAD_BYTES_MAX,
            message_bytes_max: MESSAGE_BYTES_MAX,
            head_timeout: Duration::from_secs(5),
            message_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(3),
            data_idle: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            connect_stagger: Duration::from_millis(200),
            tcp_head_start: Duration::from_secs(1),
            udp_silence: Duration::from_secs(2),
            udp_retry_min: Duration::from_secs(10),
            udp_retry_max: Duration::from_secs(60),
            open_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(2),
            duplicate_drain: Duration::from_secs(1),
            message_queue_max: 64,
            message_queue_bytes_max: 4 * 1024 * 1024,
            stream_window: 512 * 1024,
            connection_window: 4 * 1024 * 1024,
            send_window: 4 * 1024 * 1024,
            datagram_buffer: 128 * 1024,
            socket_buffer: 2 * 1024 * 1024,
            far_rtt: Duration::from_millis(5),
            far_loss: 0.001,
            near_rtt: Duration::from_millis(1),
            near_loss: 0.05,
            tick: Duration::from_millis(500),
        }
    }
}
