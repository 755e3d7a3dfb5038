//! Connections that peers open: how many handshakes at a time, who may come in, and what is said to the others.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{ConnectionError, Endpoint, Incoming};
use tokio::time::timeout;

use crate::carrier::{Carrier, Connection, SendStream};
use crate::frame::{CloseCode, Hello, Purpose};
use crate::link::{NodeLink as _, PeerInfo};
use crate::links::counters::HandshakeRefusal;
use crate::links::permit::Permit;
use crate::links::serve::{self, NoHello, Opened};
use crate::links::{Inner, lock};

/// Accepts connections on one core until its endpoint is closed.
pub(crate) async fn accept(inner: Arc<Inner>, core: usize, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        if let Some(admission) = admit(&inner, incoming) {
            tokio::spawn(welcome(Arc::clone(&inner), core, admission));
        }
    }
}

/// A connection attempt for which there is room.
struct Admission {
    incoming: Incoming,
    handshake: Permit,
    connection: Permit,
}

/// Decides on a connection attempt by what there is room for; nothing has been computed for it so far.
fn admit(inner: &Inner, incoming: Incoming) -> Option<Admission> {
    let refused = &inner.counters.handshakes_refused;
    if inner.stopping.is_cancelled() {
        refused.add(HandshakeRefusal::Stopping);
        incoming.refuse();
        return None;
    }
    if inner.handshakes.taken() >= inner.config.retry_above && !incoming.remote_address_validated() {
        inner.counters.retries_sent.add();
        // Fails only for an attempt that has been through it, and that was asked above.
        incoming.retry().ok();
        return None;
    }
    let Some(handshake) = inner.handshakes.take() else {
        refused.add(HandshakeRefusal::TooManyPending);
        incoming.ignore();
        return None;
    };
    let Some(connection) = inner.connections.take() else {
        refused.add(HandshakeRefusal::TooManyConnections);
        incoming.refuse();
        return None;
    };
    Some(Admission { incoming, handshake, connection })
}

/// Takes a peer through handshake and hello, and serves its connection to the end.
async fn welcome(inner: Arc<Inner>, core: usize, admission: Admission) {
    let Admission { incoming, handshake, connection: permit } = admission;
    let greeted = greet(&inner, incoming).await;
    drop(handshake);
    take_in(inner, core, greeted, permit).await;
}

/// Takes a peer that has said hello into use, and serves its connection to the end.
pub(crate) async fn take_in(
    inner: Arc<Inner>,
    core: usize,
    greeted: Result<Greeted, Option<HandshakeRefusal>>,
    permit: Permit,
) {
    let Greeted { connection, peer, hello, answer } = match greeted {
        Ok(greeted) => greeted,
        Err(Some(refusal)) => {
            inner.counters.handshakes_refused.add(refusal);
            return;
        }
        // Counted among the frames.
        Err(None) => return,
    };
    if has_too_many(&inner, &peer, connection.carrier()) {
        inner.counters.handshakes_refused.add(HandshakeRefusal::TooManyOfPeer);
        close(&connection, CloseCode::TooManyConnections);
        return;
    }
    let purpose = hello.purpose;
    if purpose == Purpose::Data {
        connection.set_max_concurrent_bi_streams(inner.config.streams_start.min(inner.config.streams_max));
    }
    let link = serve::link(&inner, connection, peer, purpose, Opened::ByPeer { core }, permit);
    link.heard(hello);
    inner.counters.handshakes_inbound.add();
    if !inner.place(&link) {
        link.close(CloseCode::Shutdown, "the node stops");
        return;
    }
    // The peer reads the answer only now that the link is in use.
    let said = inner.hello(purpose);
    tokio::spawn(async move { serve::say_hello(answer, &said).await.ok() });
    serve::run(inner, link).await;
}

/// A peer that said hello and waits for the answer.
pub(crate) struct Greeted {
    connection: Connection,
    peer: PeerInfo,
    hello: Hello,
    /// The first stream of our direction, for the answer.
    answer: SendStream,
}

/// Handshake, certificates, hello. `Err(None)` when the refusal has been counted.
async fn greet(inner: &Inner, incoming: Incoming) -> Result<Greeted, Option<HandshakeRefusal>> {
    let is_far = lock(&inner.paths).is_far(incoming.remote_address());
    let remote = incoming.remote_address();
    let connecting = incoming.accept_with(inner.quic.server(is_far)).map_err(|error| Some(refusal(&error)))?;
    let Ok(connected) = timeout(inner.config.handshake_timeout, connecting).await else {
        return Err(Some(HandshakeRefusal::TimedOut));
    };
    let connection = connected.map_err(|error| {
        tracing::debug!(%remote, %error, "handshake refused");
        Some(refusal(&error))
    })?;
    hear(inner, Connection::Quic(connection), remote).await
}

/// Certificates and hello of a connection whose handshake is over. `Err(None)` when the refusal has been counted.
pub(crate) async fn hear(
    inner: &Inner,
    connection: Connection,
    remote: SocketAddr,
) -> Result<Greeted, Option<HandshakeRefusal>> {
    let peer = match serve::identify(inner, &connection) {
        Ok(peer) if peer.node != inner.me => peer,
        Ok(_) => {
            close(&connection, CloseCode::WrongPeer);
            return Err(Some(HandshakeRefusal::PeerClosed));
        }
        Err(error) => {
            tracing::debug!(%remote, %error, "certificates refused");
            close(&connection, CloseCode::BadIdentity);
            return Err(Some(HandshakeRefusal::Certificate));
        }
    };
    let heard = async {
        let hello = serve::hear_hello(inner, &connection).await?;
        // Opened before the link is in use, so that no message can be first.
        Ok((hello, connection.open_uni().await.map_err(NoHello::Ended)?))
    };
    let Ok(heard) = timeout(inner.config.head_timeout, heard).await else {
        close(&connection, CloseCode::TooSlow);
        return Err(Some(HandshakeRefusal::TimedOut));
    };
    match heard {
        Ok((hello, answer)) => Ok(Greeted { connection, peer, hello, answer }),
        Err(NoHello::Refused(_)) => Err(None),
        Err(NoHello::Ended(error)) => Err(Some(refusal(&error))),
    }
}

/// Over each carrier as many are allowed: links for large streams are no reason to refuse a data link, nor the other way round.
fn has_too_many(inner: &Inner, peer: &PeerInfo, carrier: Carrier) -> bool {
    let table = inner.table();
    table.peer(peer.node).is_some_and(|known| known.inbound_count(carrier) >= inner.config.connections_per_peer_max)
}

fn close(connection: &Connection, code: CloseCode) {
    connection.close(code.code(), b"");
}

/// What kind of refusal a failed handshake is.
fn refusal(error: &ConnectionError) -> HandshakeRefusal {
    match error {
        ConnectionError::TimedOut => HandshakeRefusal::TimedOut,
        ConnectionError::TransportError(error) if serve::is_certificate_alert(error.code) => {
            HandshakeRefusal::Certificate
        }
        ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed => HandshakeRefusal::PeerClosed,
        ConnectionError::TransportError(_) | ConnectionError::VersionMismatch | ConnectionError::CidsExhausted => {
            HandshakeRefusal::Protocol
        }
    }
}
