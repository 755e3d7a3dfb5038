//! Opening a TCP connection to a peer, up to the end of the TLS handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, TlsStream};

use super::connection::{Connection, Facts, Setup};
use super::mux::{MuxLimits, Side};
use super::tls::ALPN;
use crate::frame::Purpose;
use crate::links::Inner;
use crate::links::config::LinksConfig;
use crate::links::counters::DialFailure;
use crate::links::serve::is_certificate_fault;
use crate::trust::{key_exchange_name, server_name};

/// The round trip assumed where none was measured.
pub(super) const RTT_ASSUMED: Duration = Duration::from_millis(100);
/// Bytes the kernel holds that it has not sent: what is behind them can still be overtaken by a probe.
const NOTSENT_BYTES: u32 = 128 * 1024;

/// Connects and proves both sides to each other. Runs on the runtime of the core that owns the connection.
pub(crate) async fn connect(
    inner: &Inner,
    addr: SocketAddr,
    purpose: Purpose,
) -> Result<Connection, (DialFailure, Option<String>)> {
    let Some(open) = inner.tcp_open.take() else { return Err((DialFailure::TooManyConnections, None)) };
    let began = inner.clock.now();
    let stream = reach(inner.local_addr(), addr).await.map_err(|error| failure(&error))?;
    let rtt = inner.clock.now().saturating_sub(began);
    let name =
        ServerName::try_from(server_name(None)).map_err(|error| (DialFailure::Socket, Some(error.to_string())))?;
    let connector = TlsConnector::from(Arc::clone(&inner.tcp_tls.client));
    let stream = connector.connect(name, stream).await.map_err(|error| failure(&error))?;
    let stream = TlsStream::Client(stream);
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err((DialFailure::Handshake, Some("another application protocol".to_owned())));
    }
    let limits = limits(&inner.config, Some(purpose), rtt);
    let setup = Setup {
        side: Side::Opener,
        limits,
        facts: facts(&stream, addr),
        clock: Arc::clone(&inner.clock),
        counters: Arc::clone(&inner.counters),
        open,
    };
    Ok(Connection::start(stream, setup))
}

async fn reach(local: SocketAddr, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Peers see the address this node was told to use, as over QUIC.
    if local.is_ipv4() == addr.is_ipv4() && !local.ip().is_unspecified() {
        socket.bind(SocketAddr::new(local.ip(), 0))?;
    }
    let stream = socket.connect(addr).await?;
    prepare(&stream);
    Ok(stream)
}

/// Small frames leave at once, and large ones wait where they can be overtaken.
pub(super) fn prepare(stream: &TcpStream) {
    // Without these a link is slower, not broken.
    stream.set_nodelay(true).ok();
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(NOTSENT_BYTES).ok();
}

/// What the handshake has shown.
pub(super) fn facts(stream: &TlsStream<TcpStream>, remote: SocketAddr) -> Facts {
    let session = stream.get_ref().1;
    Facts {
        remote,
        certificates: session.peer_certificates().unwrap_or_default().to_vec(),
        key_exchange: session
            .negotiated_key_exchange_group()
            .map_or("unknown", |group| key_exchange_name(group.name())),
    }
}

/// What the other side may do: as over QUIC, where [`crate::links::quic`] has the reasons. `purpose`: of a connection
/// this side opens.
pub(super) fn limits(config: &LinksConfig, purpose: Option<Purpose>, rtt: Duration) -> MuxLimits {
    let (bi_streams, uni_streams) = match purpose {
        Some(Purpose::Data) => (0, 1),
        Some(Purpose::Control) | None => (config.control_streams_max, config.messages_open_max.max(1)),
    };
    MuxLimits {
        bi_streams,
        uni_streams,
        stream_window: config.stream_window,
        connection_window: config.connection_window,
        send_window: usize::try_from(config.send_window).unwrap_or(usize::MAX),
        datagram_buffer: config.datagram_buffer,
        idle_timeout: config.idle_timeout,
        keep_alive: config.keep_alive,
        rtt,
    }
}

fn failure(error: &io::Error) -> (DialFailure, Option<String>) {
    let cause = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
            DialFailure::Refused
        }
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            DialFailure::TimedOut
        }
        io::ErrorKind::AddrNotAvailable => DialFailure::Socket,
        _ if is_certificate_fault(error) => DialFailure::Certificate,
        _ => DialFailure::Handshake,
    };
    (cause, Some(error.to_string()))
}
