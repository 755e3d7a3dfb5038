//! The TCP side of the mesh port: who may come in, and where a connection goes.
//!
//! One listener on the first data thread hands connections to all of them in turn. What a stranger gets is a TLS
//! handshake in which it has to show a certificate of the mesh. Only one that asks to join, while a token lives, is
//! handed on without ([`super::door`]); it is told apart by the application protocol in its first message.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use super::connection::{Connection, Setup};
use super::dial::{RTT_ASSUMED, facts, limits, prepare};
use super::door::Arrival;
use super::mux::Side;
use super::tls::ALPN;
use crate::carrier;
use crate::links::counters::HandshakeRefusal;
use crate::links::permit::Permit;
use crate::links::serve::is_certificate_fault;
use crate::links::{Inner, lock};
use crate::listener::{Greeted, hear, take_in};
use crate::trust::JOIN_ALPN;

/// Handshakes that may be pending, of everybody and of one address. They are few and short in a healthy mesh, and
/// strangers cannot keep peers on QUIC out by filling them.
pub(crate) const PENDING_MAX: usize = 256;
const PENDING_OF_SOURCE_MAX: usize = 32;

/// Pending handshakes by address.
#[derive(Debug, Default)]
pub(crate) struct Sources(Mutex<HashMap<IpAddr, usize>>);

/// One pending handshake of an address.
struct OfSource {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    fn take(self: &Arc<Self>, source: IpAddr) -> Option<OfSource> {
        let mut pending = lock(&self.0);
        let count = pending.entry(source).or_default();
        if *count >= PENDING_OF_SOURCE_MAX {
            return None;
        }
        *count += 1;
        Some(OfSource { sources: Arc::clone(self), source })
    }
}

impl Drop for OfSource {
    fn drop(&mut self) {
        let mut pending = lock(&self.sources.0);
        if let Some(count) = pending.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.source);
            }
        }
    }
}

/// The listener on the mesh port's number.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts connections until the links stop.
pub(crate) async fn accept(inner: Arc<Inner>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "no links over tcp");
            return;
        }
    };
    let stopping = inner.stopping.clone();
    let accepting = async {
        for core in (0..inner.cores()).cycle() {
            match listener.accept().await {
                Ok((stream, from)) => admit(&inner, core, stream, from),
                Err(error) => {
                    // Usually out of file descriptors; a pause lets others give some back.
                    tracing::debug!(%error, "a tcp connection could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    stopping.run_until_cancelled(accepting).await;
}

/// Room for one more.
struct Admission {
    handshake: Permit,
    of_source: OfSource,
    connection: Permit,
    open: Permit,
}

/// Decides on a connection by what there is room for, and hands it to its data thread.
fn admit(inner: &Arc<Inner>, core: usize, stream: TcpStream, from: SocketAddr) {
    let refused = |reason| inner.counters.handshakes_refused.add(reason);
    let remote = SocketAddr::new(from.ip().to_canonical(), from.port());
    let (Some(handshake), Some(of_source)) = (inner.tcp_handshakes.take(), inner.tcp_sources.take(remote.ip())) else {
        refused(HandshakeRefusal::TooManyPending);
        return;
    };
    let (Some(connection), Some(open)) = (inner.connections.take(), inner.tcp_open.take()) else {
        refused(HandshakeRefusal::TooManyConnections);
        return;
    };
    prepare(&stream);
    // The thread that serves it is the one that is told of its packets.
    let Ok(stream) = stream.into_std() else { return };
    let admission = Admission { handshake, of_source, connection, open };
    inner.spawn_on(core, welcome(Arc::clone(inner), core, stream, remote, admission));
}

async fn welcome(inner: Arc<Inner>, core: usize, stream: std::net::TcpStream, remote: SocketAddr, room: Admission) {
    let Admission { handshake, of_source, connection, open } = room;
    let shaken = match timeout(inner.config.handshake_timeout, shake_hands(&inner, stream, remote)).await {
        Ok(Ok(Some(stream))) => Ok(stream),
        // Somebody who wants to join.
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "handshake refused");
            Err(refusal(&error))
        }
        Err(_elapsed) => Err(HandshakeRefusal::TimedOut),
    };
    let greeted = match shaken {
        Ok(stream) => greet(&inner, stream, remote, open).await,
        Err(refusal) => Err(Some(refusal)),
    };
    drop((handshake, of_source));
    take_in(inner, core, greeted, connection).await;
}

/// The TLS handshake; `None` when a newcomer was handed on.
async fn shake_hands(
    inner: &Inner,
    stream: std::net::TcpStream,
    remote: SocketAddr,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let stream = TcpStream::from_std(stream)?;
    let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let wants_to_join = begun.client_hello().alpn().is_some_and(|mut offered| offered.any(|name| name == JOIN_ALPN));
    if wants_to_join && let Some(door) = inner.door.as_ref().filter(|door| door.is_open()) {
        let arrival = Arrival { accepted: begun.accepted, stream: begun.io.into_std()?, source: remote.ip() };
        if !door.announce(arrival) {
            inner.counters.handshakes_refused.add(HandshakeRefusal::TooManyPending);
        }
        return Ok(None);
    }
    // Whoever offers another protocol is refused here, and whoever offers none below.
    let stream = begun.into_stream(Arc::clone(&inner.tcp_tls.server)).await?;
    let stream = TlsStream::Server(stream);
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "another application protocol"));
    }
    Ok(Some(stream))
}

async fn greet(
    inner: &Inner,
    stream: TlsStream<TcpStream>,
    remote: SocketAddr,
    open: Permit,
) -> Result<Greeted, Option<HandshakeRefusal>> {
    let setup = Setup {
        side: Side::Acceptor,
        limits: limits(&inner.config, None, RTT_ASSUMED),
        facts: facts(&stream, remote),
        clock: Arc::clone(&inner.clock),
        counters: Arc::clone(&inner.counters),
        open,
    };
    hear(inner, carrier::Connection::Tcp(Connection::start(stream, setup)), remote).await
}

/// What kind of refusal a failed handshake is.
fn refusal(error: &io::Error) -> HandshakeRefusal {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => HandshakeRefusal::PeerClosed,
        _ if is_certificate_fault(error) => HandshakeRefusal::Certificate,
        _ => HandshakeRefusal::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_a_share_of_the_pending_handshakes_and_is_forgotten_when_they_end() {
        let sources = Arc::new(Sources::default());
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let taken: Vec<_> = (0..PENDING_OF_SOURCE_MAX).map(|_| sources.take(one).expect("room")).collect();
        assert!(sources.take(one).is_none());
        assert!(sources.take(two).is_some());
        drop(taken);
        assert!(sources.take(one).is_some());
        assert!(lock(&sources.0).is_empty());
    }
}
