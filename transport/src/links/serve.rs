//! A connection in use: who is there, what the peer sends, and what waits to be sent to it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use quinn::{ConnectionError, ReadExactError, TransportErrorCode, WriteError};
use tokio::time::timeout;

use super::Inner;
use super::outbox::Message;
use super::permit::Permit;
use crate::carrier::{Connection, RecvStream, SendStream};
use crate::frame::{CloseCode, FrameRefusal, Hello, PREFIX_LEN, Purpose, StreamKind, decode_prefix, encode_beginning};
use crate::link::{LinkError, LinkFacts, LinkStream, NodeLink as _, PeerInfo, QuicLink};

/// Whether an error code of a handshake is TLS's verdict on a certificate: its alerts begin at 0x100 (RFC 9001,
/// section 4.8), and of those 42 to 46, 48 and 116 speak of one (RFC 8446, section 6).
pub(crate) fn is_certificate_alert(code: TransportErrorCode) -> bool {
    let code = u64::from(code);
    matches!(code.checked_sub(0x100), Some(42..=46 | 48 | 116))
}

/// The same of a handshake over TCP, by either side's verdict.
pub(crate) fn is_certificate_fault(error: &io::Error) -> bool {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => true,
        Some(rustls::Error::AlertReceived(alert)) => is_certificate_alert(TransportErrorCode::crypto(u8::from(*alert))),
        Some(_) | None => false,
    }
}

/// Who opened a connection, and on which data thread of this node it lives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Opened {
    /// `is_large`: for streams that carry much.
    ByThisNode {
        core: usize,
        is_large: bool,
    },
    ByPeer {
        core: usize,
    },
}

/// Who is at the other end, by the certificates of the handshake.
///
/// # Errors
/// [`LinkError::Identity`] when they do not name a node of this mesh, or are not valid now.
pub(crate) fn identify(inner: &Inner, connection: &Connection) -> Result<PeerInfo, LinkError> {
    let identity = inner
        .verifier
        .peer(&connection.certificates())
        .map_err(|error| LinkError::Identity { source: Arc::new(error) })?;
    let remote = connection.remote_address();
    Ok(PeerInfo {
        node: identity.node,
        name: identity.name,
        role: identity.role,
        public_key: identity.public_key,
        chain: identity.chain,
        not_after_unix: identity.not_after_unix,
        remote: SocketAddr::new(remote.ip().to_canonical(), remote.port()),
    })
}

/// A link from a connection whose peer is known.
pub(crate) fn link(
    inner: &Inner,
    connection: Connection,
    peer: PeerInfo,
    purpose: Purpose,
    opened: Opened,
    permit: Permit,
) -> Arc<QuicLink> {
    let (outbound, core, is_large) = match opened {
        Opened::ByThisNode { core, is_large } => (true, core, is_large),
        Opened::ByPeer { core } => (false, core, false),
    };
    let expires_at_unix = peer.not_after_unix.min(inner.own_not_after_unix());
    let now_unix = inner.clock.unix().as_secs();
    let facts = LinkFacts {
        purpose,
        outbound,
        core,
        is_large,
        key_exchange: connection.key_exchange(),
        up_at: inner.clock.now(),
        redial_at_unix: redial_at(now_unix, expires_at_unix, rand::random_range(0..=100)),
        expires_at_unix,
        open_timeout: inner.config.open_timeout,
        head_bytes_max: inner.config.head_bytes_max,
    };
    QuicLink::new(connection, peer, facts, inner.stream_count(is_large), Arc::clone(&inner.counters), permit)
}

/// After 80 to 90 % of the time that is left, so that a fleet does not redial in step; `permille` is 0 to 100. Both
/// sides have renewed their leaves by then: they do so at half life.
fn redial_at(now_unix: u64, expires_at_unix: u64, permille: u64) -> u64 {
    let left = expires_at_unix.saturating_sub(now_unix);
    now_unix.saturating_add(left.saturating_mul(800 + permille) / 1000)
}

/// Says hello on the first stream of this direction, which is opened before anything else may open one.
pub(crate) async fn say_hello(mut stream: SendStream, hello: &Hello) -> Result<(), WriteError> {
    stream.write_chunk(hello.encode()).await?;
    stream.finish();
    Ok(())
}

/// Why there is no hello.
#[derive(Debug, Clone)]
pub(crate) enum NoHello {
    /// What came instead was refused; the connection is closed and the refusal counted.
    Refused(FrameRefusal),
    /// The connection ended.
    Ended(ConnectionError),
}

impl fmt::Display for NoHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Ended(error) => error.fmt(f),
        }
    }
}

/// Reads the first stream of the peer. Streams are accepted in the order in which they were opened, so nothing that
/// the peer sent after its hello is looked at before it.
pub(crate) async fn hear_hello(inner: &Inner, connection: &Connection) -> Result<Hello, NoHello> {
    let mut stream = connection.accept_uni().await.map_err(NoHello::Ended)?;
    let heard = async {
        let (kind, head) = read_beginning(&mut stream, inner.config.head_bytes_max).await?;
        if kind != StreamKind::Hello {
            return Err(Broken::Refused(FrameRefusal::MisplacedKind));
        }
        let hello = Hello::decode(&head).map_err(Broken::Refused)?;
        read_message(&mut stream, 0, FrameRefusal::BadHello).await?;
        Ok(hello)
    };
    let heard = timeout(inner.config.head_timeout, heard).await;
    match heard.unwrap_or(Err(Broken::Refused(FrameRefusal::TooSlow))) {
        Ok(hello) => Ok(hello),
        Err(Broken::Refused(refusal)) => {
            refuse(inner, connection, refusal);
            Err(NoHello::Refused(refusal))
        }
        Err(Broken::Off) => {
            // A hello that is broken off is as good as none.
            connection.close(CloseCode::BadHello.code(), b"");
            Err(NoHello::Ended(connection.close_reason().unwrap_or(ConnectionError::LocallyClosed)))
        }
    }
}

/// Serves a link until its connection has ended.
pub(crate) async fn run(inner: Arc<Inner>, link: Arc<QuicLink>) {
    let served = Served { inner, link };
    let (inner, link) = (&served.inner, &served.link);
    let receiving = async {
        tokio::select! {
            () = accept_streams(inner, link) => {}
            () = accept_messages(inner, link) => {}
            () = receive_datagrams(inner, link) => {}
        }
    };
    match link.purpose() {
        Purpose::Control => {
            tokio::join!(receiving, send_messages(inner, link));
        }
        Purpose::Data => receiving.await,
    }
}

/// Takes the link out of the table when it is served no longer, even if that is by a panic or a stopped runtime.
struct Served {
    inner: Arc<Inner>,
    link: Arc<QuicLink>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let reason = match self.link.connection().close_reason() {
            Some(ConnectionError::Reset) => {
                self.inner.counters.stateless_resets.add();
                "the node has started again".to_owned()
            }
            Some(reason) => reason.to_string(),
            None => {
                self.link.close(CloseCode::Shutdown, "no longer served");
                "no longer served".to_owned()
            }
        };
        self.inner.remove(&self.link, &reason);
    }
}

async fn accept_streams(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    while let Ok((send, recv)) = link.connection().accept_bi().await {
        tokio::spawn(take_stream(Arc::clone(inner), Arc::clone(link), send, recv));
    }
}

async fn take_stream(inner: Arc<Inner>, link: Arc<QuicLink>, send: SendStream, mut recv: RecvStream) {
    let beginning = timeout(inner.config.head_timeout, read_beginning(&mut recv, inner.config.head_bytes_max)).await;
    match beginning.unwrap_or(Err(Broken::Refused(FrameRefusal::TooSlow))) {
        Ok((kind, head)) if kind.is_conversation() => {
            let stream = LinkStream::new(send, recv, link.streams());
            if link.purpose() == Purpose::Data
                && let Some(streams) = link.streams().grown(&inner.config)
            {
                link.connection().set_max_concurrent_bi_streams(streams);
            }
            inner.inbound.stream(link.core(), Arc::clone(link.peer_shared()), kind, head, stream);
        }
        Ok(_) => refuse(&inner, link.connection(), FrameRefusal::MisplacedKind),
        Err(Broken::Refused(refusal)) => refuse(&inner, link.connection(), refusal),
        // The opener changed its mind.
        Err(Broken::Off) => {}
    }
}

async fn accept_messages(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    while let Ok(recv) = link.connection().accept_uni().await {
        tokio::spawn(take_message(Arc::clone(inner), Arc::clone(link), recv));
    }
}

async fn take_message(inner: Arc<Inner>, link: Arc<QuicLink>, mut recv: RecvStream) {
    let config = &inner.config;
    let beginning = timeout(config.head_timeout, read_beginning(&mut recv, config.head_bytes_max)).await;
    let taken = match beginning.unwrap_or(Err(Broken::Refused(FrameRefusal::TooSlow))) {
        Ok((kind, _)) if kind.is_message() => {
            let whole = read_message(&mut recv, config.message_bytes_max, FrameRefusal::MessageTooLong);
            let whole = timeout(config.message_timeout, whole).await;
            whole.unwrap_or(Err(Broken::Refused(FrameRefusal::TooSlow))).map(|bytes| {
                inner.inbound.message(link.peer_shared(), kind, bytes);
            })
        }
        // The answer to the hello of a data link, which nobody waited for.
        Ok((StreamKind::Hello, head)) if link.is_outbound() && link.hello().is_none() => {
            Hello::decode(&head).map(|hello| link.heard(hello)).map_err(Broken::Refused)
        }
        Ok(_) => Err(Broken::Refused(FrameRefusal::MisplacedKind)),
        Err(broken) => Err(broken),
    };
    if let Err(Broken::Refused(refusal)) = taken {
        refuse(&inner, link.connection(), refusal);
    }
}

async fn receive_datagrams(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    while let Ok(bytes) = link.connection().read_datagram().await {
        link.count_datagram();
        inner.inbound.datagram(link.peer_shared(), bytes);
    }
}

/// Sends what waits for this peer, several messages at a time, until the link is retired or ends. What did not get
/// through goes back, for the next link.
async fn send_messages(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    let Some(outbox) = inner.outbox(link.peer_shared().node) else { return };
    let at_a_time = usize::try_from(inner.config.messages_open_max).unwrap_or(1);
    let mut under_way = FuturesUnordered::new();
    let ended = link.connection().closed();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            biased;
            () = link.retired().cancelled() => break,
            _ = &mut ended => break,
            Some(outcome) = under_way.next(), if !under_way.is_empty() => {
                if let Err(message) = outcome {
                    outbox.put_back(message);
                }
            }
            message = outbox.next(), if under_way.len() < at_a_time => under_way.push(send_message(link, message)),
        }
    }
    while let Some(outcome) = under_way.next().await {
        if let Err(message) = outcome {
            outbox.put_back(message);
        }
    }
}

/// Sends one message and waits until the peer has all of it. Gives it back when the connection ends before that.
async fn send_message(link: &QuicLink, message: Message) -> Result<(), Message> {
    let sent = async {
        let mut stream = link.connection().open_uni().await.ok()?;
        let beginning = encode_beginning(message.kind, &[]);
        let mut chunks = [beginning, message.bytes.clone()];
        match stream.write_all_chunks(&mut chunks).await {
            Ok(()) => {}
            // The peer does not want it; sending it again would not change that.
            Err(WriteError::Stopped(_)) => return Some(()),
            Err(WriteError::ConnectionLost(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected) => return None,
        }
        stream.finish();
        stream.stopped().await.ok().map(drop)
    };
    match sent.await {
        Some(()) => Ok(()),
        None => Err(message),
    }
}

/// Why a stream was not read to where it should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// The peer's fault.
    Refused(FrameRefusal),
    /// The stream was reset or its connection ended.
    Off,
}

async fn read_beginning(stream: &mut RecvStream, head_bytes_max: usize) -> Result<(StreamKind, Bytes), Broken> {
    let broken = |error| match error {
        ReadExactError::FinishedEarly(_) => Broken::Refused(FrameRefusal::Truncated),
        ReadExactError::ReadError(_) => Broken::Off,
    };
    let mut prefix = [0; PREFIX_LEN];
    stream.read_exact(&mut prefix).await.map_err(broken)?;
    let (kind, length) = decode_prefix(prefix, head_bytes_max).map_err(Broken::Refused)?;
    let mut head = vec![0; length];
    stream.read_exact(&mut head).await.map_err(broken)?;
    Ok((kind, head.into()))
}

/// Reads what is left of a stream; `too_long` is the refusal for more than `bytes_max`.
async fn read_message(stream: &mut RecvStream, bytes_max: usize, too_long: FrameRefusal) -> Result<Bytes, Broken> {
    match stream.read_to_end(bytes_max).await {
        Ok(bytes) => Ok(bytes.into()),
        Err(quinn::ReadToEndError::TooLong) => Err(Broken::Refused(too_long)),
        Err(quinn::ReadToEndError::Read(_)) => Err(Broken::Off),
    }
}

/// Counts what a peer did wrong and closes the connection it did it on.
fn refuse(inner: &Inner, connection: &Connection, refusal: FrameRefusal) {
    inner.counters.frames_refused.add(refusal);
    tracing::debug!(remote = %connection.remote_address(), reason = refusal.name(), "connection closed");
    connection.close(refusal.close_code().code(), refusal.name().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_redial_comes_after_most_of_the_life_and_before_its_end() {
        let day = 86_400;
        assert_eq!(redial_at(1000, 1000 + day, 0), 1000 + day * 8 / 10);
        assert_eq!(redial_at(1000, 1000 + day, 100), 1000 + day * 9 / 10);
        assert_eq!(redial_at(1000, 900, 50), 1000, "already over: at once");
    }
}
