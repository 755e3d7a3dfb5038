//! Kept connections to instances and, through peers, to theirs: one pool per data thread.
//!
//! An HTTP/1.1 connection serves one request at a time and waits here between two. An HTTP/2 connection stays here while
//! requests share it.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::header::{CONNECTION, HOST, HeaderValue, TE, UPGRADE};
use hyper::http::request::Parts;
use hyper::http::uri::Scheme;
use hyper::{Request, Response, StatusCode, Uri, Version};
use tokio::sync::watch;
use transport::{NodeId, Retirement};

use super::attempt::Outgoing;
use super::body::{Arriving, RequestBody};
use super::context::{OutcomeKind, ProxyContext};
use super::drive::Driven;
use super::exchange::{Broke, Connection, Exchange};
use super::http::origin_form;
use super::lanes::Share;
use super::links::Volume;
use super::tcp::Wire;
use super::two;
use super::wire::Trailing;
use crate::config::Protocol;

/// Silent connections kept per instance and data thread; one more is closed instead.
const IDLE_PER_KEY_MAX: usize = 256;
/// Silent connections kept per data thread; one more is closed instead.
const IDLE_MAX: usize = 512;
/// A silent connection is closed after this, between one and one and a half times of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(40);
/// Time between two looks for connections that were silent too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// A connection silent for longer is not trusted with a request that must not be sent twice: the instance may be
/// closing it this very moment.
const FRESH_ENOUGH: Duration = Duration::from_millis(500);

/// Which connections can stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PoolKey {
    /// A process on this machine.
    Local(SocketAddr),
    /// An instance behind a peer.
    Remote {
        /// The peer.
        node: NodeId,
        /// The service's name.
        service: Arc<str>,
        /// The instance.
        instance: Arc<str>,
        /// What its streams are expected to carry: which link they are on follows from it.
        volume: Volume,
        /// Which trailers pass, by what the instance speaks.
        trailing: Trailing,
    },
}

/// The HTTP that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

impl From<Protocol> for Http {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http | Protocol::Tcp | Protocol::Udp => Self::One,
            Protocol::Http2 => Self::Two,
        }
    }
}

/// Connections of one data thread.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Silent connections for one request at a time, the latest used last.
    idle: HashMap<PoolKey, Vec<Idle>>,
    count: usize,
    /// HTTP/2 connections to processes on this machine, used or not.
    shared: HashMap<SocketAddr, Vec<Shared>>,
    /// Such that somebody is making.
    opening: HashMap<SocketAddr, watch::Receiver<Opened>>,
}

/// What became of a connection: nothing yet, or there it is, or why not.
type Opened = Option<Result<(), String>>;

/// Who makes an HTTP/2 connection that many may be waiting for.
pub(super) enum Opening {
    /// The caller, who tells the others.
    Mine(watch::Sender<Opened>),
    /// Somebody else.
    Theirs(watch::Receiver<Opened>),
}

/// An HTTP/2 connection. It ends when it is no longer here and its last request is done.
struct Shared {
    connection: two::Connection,
    /// Requests under way.
    streams: Arc<AtomicUsize>,
    /// When the sweeper first found it unused.
    unused_since: Option<Duration>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("streams", &self.streams).finish_non_exhaustive()
    }
}

/// One request on a shared connection, until it is dropped.
struct Turn {
    streams: Arc<AtomicUsize>,
}

impl Turn {
    fn begin(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::AcqRel);
        Self { streams: Arc::clone(streams) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PoolKey {
    /// The peer a connection leads through.
    const fn through(&self) -> Option<NodeId> {
        match self {
            Self::Local(_) => None,
            Self::Remote { node, .. } => Some(*node),
        }
    }

    /// What its streams are expected to carry.
    pub(super) const fn volume(&self) -> Volume {
        match self {
            Self::Local(_) => Volume::Small,
            Self::Remote { volume, .. } => *volume,
        }
    }

    /// Which trailers pass.
    pub(super) const fn trailing(&self) -> Trailing {
        match self {
            Self::Local(_) => Trailing::Announced,
            Self::Remote { trailing, .. } => *trailing,
        }
    }

    /// The same with streams of this volume.
    pub(super) fn of_volume(&self, volume: Volume) -> Self {
        let mut other = self.clone();
        if let Self::Remote { volume: of, .. } = &mut other {
            *of = volume;
        }
        other
    }

    /// Whose fault it is that a connection broke.
    pub(super) const fn broken(&self) -> OutcomeKind {
        match self.volume() {
            // Where a peer is in between, it is that peer's; see `attempt::remote`.
            Volume::Small => OutcomeKind::Closed,
            Volume::Large => OutcomeKind::LinkFailed,
        }
    }

    /// The streams it is one of.
    fn lane(&self, context: &ProxyContext, core: usize) -> Option<Share> {
        match self {
            Self::Local(_) => None,
            Self::Remote { node, service, .. } => Some(context.lane(core, *node).share(service)),
        }
    }

    fn is_for(&self, node: NodeId, wanted: Option<&str>) -> bool {
        match self {
            Self::Local(_) => false,
            Self::Remote { node: through, service, .. } => {
                *through == node && wanted.is_none_or(|wanted| *wanted == **service)
            }
        }
    }
}

struct Idle {
    connection: Connection,
    since: Duration,
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idle").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Pool {
    /// A connection that was usable when last seen, silent for at most [`FRESH_ENOUGH`] if `fresh`.
    fn take(&mut self, key: &PoolKey, fresh: bool, now: Duration) -> Option<Connection> {
        let idle = self.idle.get_mut(key)?;
        loop {
            // An empty list stays until the sweeper comes: the connection is about to be back.
            let mut last = idle.pop()?;
            self.count -= 1;
            if !last.connection.is_usable() {
                continue;
            }
            if fresh && now.saturating_sub(last.since) > FRESH_ENOUGH {
                // All others are older still, but good for other requests.
                idle.push(last);
                self.count += 1;
                return None;
            }
            return Some(last.connection);
        }
    }

    fn put(&mut self, key: PoolKey, connection: Connection, now: Duration) {
        if self.count >= IDLE_MAX {
            return;
        }
        let idle = self.idle.entry(key).or_default();
        if idle.len() < IDLE_PER_KEY_MAX {
            idle.push(Idle { connection, since: now });
            self.count += 1;
        }
    }

    /// The HTTP/2 connection with the fewest requests, if these are fewer than `streams_max`.
    fn share(&mut self, address: SocketAddr, streams_max: usize) -> Option<&Shared> {
        let shared = self.shared.get_mut(&address)?;
        shared.retain_mut(|one| !one.connection.is_over());
        let least = shared.iter().min_by_key(|one| one.streams.load(Ordering::Acquire))?;
        (least.streams.load(Ordering::Acquire) < streams_max).then_some(least)
    }

    /// The right to make an HTTP/2 connection, or to wait for who has it: requests that come at once to a new instance
    /// would otherwise each connect, and overrun its queue.
    pub(super) fn opening(&mut self, address: SocketAddr) -> Opening {
        if let Some(theirs) = self.opening.get(&address)
            && theirs.has_changed().is_ok()
        {
            return Opening::Theirs(theirs.clone());
        }
        self.opening.retain(|_, theirs| theirs.has_changed().is_ok());
        let (mine, theirs) = watch::channel(None);
        self.opening.insert(address, theirs);
        Opening::Mine(mine)
    }

    /// Closes what has been silent too long.
    fn sweep(&mut self, now: Duration) {
        self.keep(|_, idle| now.saturating_sub(idle.since) < IDLE_TIMEOUT && idle.connection.is_usable());
        for shared in self.shared.values_mut() {
            shared.retain_mut(|one| {
                if one.streams.load(Ordering::Acquire) > 0 {
                    one.unused_since = None;
                }
                let is_wanted = one.streams.load(Ordering::Acquire) > 0
                    || now.saturating_sub(*one.unused_since.get_or_insert(now)) < IDLE_TIMEOUT;
                is_wanted && !one.connection.is_over()
            });
        }
        self.shared.retain(|_, shared| !shared.is_empty());
    }

    /// Closes the connection through `node` that has been silent longest, of `service` where one is named; its stream ends
    /// shortly after.
    pub(super) fn close_one(&mut self, node: NodeId, service: Option<&str>) {
        let oldest = self
            .idle
            .iter_mut()
            .filter(|(key, idle)| key.is_for(node, service) && !idle.is_empty())
            .min_by_key(|(_, idle)| idle.first().map(|one| one.since));
        if let Some((_, idle)) = oldest {
            idle.remove(0);
            self.count -= 1;
        }
    }

    /// Closes every connection through `node`.
    pub(super) fn forget_node(&mut self, node: NodeId) {
        self.keep(|key, _| key.through() != Some(node));
    }

    fn keep(&mut self, wanted: impl Fn(&PoolKey, &mut Idle) -> bool) {
        for (key, idle) in &mut self.idle {
            idle.retain_mut(|one| wanted(key, one));
        }
        self.idle.retain(|_, idle| !idle.is_empty());
        self.count = self.idle.values().map(Vec::len).sum();
    }

    /// How many connections are kept.
    pub(super) fn len(&self) -> usize {
        self.count + self.shared.values().map(Vec::len).sum::<usize>()
    }
}

/// A connection in use by one request. Dropping it closes the connection, or, where others share it, ends the request.
pub(super) struct Lease {
    context: Arc<ProxyContext>,
    core: usize,
    key: PoolKey,
    sender: Sender,
}

enum Sender {
    /// Until the request is on its way; then its answer's body has it.
    One(Option<Connection>),
    Two {
        connection: two::Connection,
        _turn: Turn,
    },
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Why a request got no response head on one connection.
#[derive(Debug)]
pub(super) enum NotSent {
    /// Not a byte of it left this node; here it is again.
    Unsent(Outgoing),
    /// The instance says that it did nothing with it.
    Refused { detail: String, copy: Option<Outgoing> },
    /// The connection ended, or what came was no answer; at least a part of the request left, or may have.
    Closed {
        detail: String,
        copy: Option<Outgoing>,
        /// It just ended, as a silent one does.
        is_clean: bool,
    },
    /// The client's body ended before its end.
    ClientBroke,
}

/// A response, and the request once more where its body is at hand.
pub(super) type Answered = (Response<Arriving>, Option<Outgoing>);

impl Lease {
    /// A kept connection, if there is one. With `fresh`, only one that was in use a moment ago.
    pub(super) fn reuse(context: &Arc<ProxyContext>, core: usize, key: &PoolKey, fresh: bool) -> Option<Self> {
        let connection = context.pool(core).take(key, fresh, context.clock.now())?;
        Some(Self { context: Arc::clone(context), core, key: key.clone(), sender: Sender::One(Some(connection)) })
    }

    /// A place on an HTTP/2 connection to a process on this machine that serves fewer than `streams_max` requests, if there is
    /// one.
    pub(super) fn share(
        context: &Arc<ProxyContext>,
        core: usize,
        address: SocketAddr,
        streams_max: usize,
    ) -> Option<Self> {
        let mut pool = context.pool(core);
        let shared = pool.share(address, streams_max)?;
        let sender = Sender::Two { connection: shared.connection.clone(), _turn: Turn::begin(&shared.streams) };
        drop(pool);
        Some(Self { context: Arc::clone(context), core, key: PoolKey::Local(address), sender })
    }

    /// Whose fault it is that the connection broke.
    pub(super) const fn broken(&self) -> OutcomeKind {
        self.key.broken()
    }

    /// A new HTTP/2 connection to the process at `address`.
    ///
    /// # Errors
    /// Those of the handshake, which sends nothing of the request.
    pub(super) async fn open_two(
        context: &Arc<ProxyContext>,
        core: usize,
        address: SocketAddr,
        io: impl Wire + 'static,
    ) -> Result<Self, h2::Error> {
        let head_bytes_max = u32::try_from(context.config.head_bytes_max.max(8 * 1024)).unwrap_or(u32::MAX);
        let connection = two::Connection::begin(io, head_bytes_max).await?;
        let streams = Arc::new(AtomicUsize::new(0));
        let turn = Turn::begin(&streams);
        let shared = Shared { connection: connection.clone(), streams, unused_since: None };
        context.pool(core).shared.entry(address).or_default().push(shared);
        begin_sweeping(context, core);
        let sender = Sender::Two { connection, _turn: turn };
        Ok(Self { context: Arc::clone(context), core, key: PoolKey::Local(address), sender })
    }

    /// A new connection for one request at a time, on `link` where it leads through a peer.
    pub(super) fn open_one(
        context: &Arc<ProxyContext>,
        core: usize,
        key: PoolKey,
        io: impl Wire + 'static,
        link: Option<Retirement>,
    ) -> Self {
        let connection = Connection::new(Box::new(io), context.config.head_bytes_max.max(8 * 1024));
        let connection = connection.on(link, key.trailing());
        Self { context: Arc::clone(context), core, key, sender: Sender::One(Some(connection)) }
    }

    /// Sends one request and waits for the response head.
    pub(super) async fn send(&mut self, outgoing: Outgoing) -> Result<Answered, NotSent> {
        match &mut self.sender {
            Sender::One(connection) => match connection.take() {
                Some(connection) => send_one(connection, outgoing).await,
                // A lease is for one request.
                None => Err(NotSent::Unsent(outgoing)),
            },
            // Boxed, so that requests over HTTP/1.1 need not be as large.
            Sender::Two { connection, .. } => Box::pin(send_two(connection, outgoing)).await,
        }
    }

    /// Keeps the connection for the next request; the response was read whole.
    pub(super) fn give_back(self, response: Arriving) {
        let exchange = match response {
            Arriving::Answer(exchange) => Some(exchange),
            Arriving::Driven(driven) => driven.into_exchange(),
            // A shared one stays where it is.
            Arriving::Received(_) | Arriving::Two(_) | Arriving::Nothing | Arriving::Request(..) => None,
        };
        if let Some(connection) = exchange.and_then(|exchange| exchange.into_connection()) {
            keep(&self.context, self.core, &self.key, connection);
        }
    }

    /// Keeps a connection that has not served yet; false when it was closed before.
    pub(super) fn give_back_ready(self) -> bool {
        let Sender::One(connection) = self.sender else { return true };
        let usable = connection.and_then(|mut one| one.is_usable().then_some(one));
        let is_usable = usable.is_some();
        if let Some(connection) = usable {
            keep(&self.context, self.core, &self.key, connection);
        }
        is_usable
    }
}

async fn send_one(connection: Connection, outgoing: Outgoing) -> Result<Answered, NotSent> {
    let Outgoing { request, is_repeatable } = outgoing;
    let (mut parts, body) = (*request).into_parts();
    speak_one(&mut parts);
    let whole = body.replay();
    let mut exchange = Exchange::begin(connection, &parts, body);
    let came = exchange.answer().await;
    let again = |body| Outgoing { request: Box::new(Request::from_parts(parts, body)), is_repeatable };
    match came {
        Ok(head) => {
            let goes_on = head.status != StatusCode::SWITCHING_PROTOCOLS && exchange.goes_on_by_itself();
            let answer = if goes_on { Arriving::Driven(Driven::begin(exchange)) } else { Arriving::Answer(exchange) };
            Ok((Response::from_parts(head, answer), whole.map(again)))
        }
        Err(Broke::Unsent) => match exchange.into_unsent().or(whole) {
            Some(body) => Err(NotSent::Unsent(again(body))),
            None => Err(NotSent::ClientBroke),
        },
        Err(Broke::Client) => Err(NotSent::ClientBroke),
        Err(Broke::Ended(detail)) => Err(NotSent::Closed { detail, copy: whole.map(again), is_clean: true }),
        Err(Broke::Wrong(detail)) => Err(NotSent::Closed { detail, copy: whole.map(again), is_clean: false }),
    }
}

async fn send_two(connection: &mut two::Connection, outgoing: Outgoing) -> Result<Answered, NotSent> {
    if connection.ready().await.is_err() {
        return Err(NotSent::Unsent(outgoing));
    }
    let (upload, copy) = (outgoing.upload(), outgoing.copy());
    let mut request = *outgoing.request;
    speak_two(&mut request);
    let error = match connection.ask(request).await {
        Ok((head, body)) => return Ok((Response::from_parts(head, Arriving::Received(body)), copy)),
        Err(error) => error,
    };
    // The stream ended because the body did, or it is a request that cannot be said over HTTP/2.
    if upload.is_some_and(|upload| upload.is_broken()) || two::is_ours(&error) {
        return Err(NotSent::ClientBroke);
    }
    if two::is_unprocessed(&error) {
        return Err(NotSent::Refused { detail: error.to_string(), copy });
    }
    Err(NotSent::Closed { detail: error.to_string(), copy, is_clean: two::is_clean_close(&error) })
}

fn keep(context: &Arc<ProxyContext>, core: usize, key: &PoolKey, connection: Connection) {
    if connection.is_left() {
        return connection.close();
    }
    context.pool(core).put(key.clone(), connection, context.clock.now());
    tell_waiting(context, core, key);
    begin_sweeping(context, core);
}

/// Wakes one request that waits for a stream to the peer a connection leads through.
fn tell_waiting(context: &ProxyContext, core: usize, key: &PoolKey) {
    if let Some(lane) = key.lane(context, core) {
        lane.kept();
    }
}

fn begin_sweeping(context: &Arc<ProxyContext>, core: usize) {
    if context.begin_sweeping(core) {
        tokio::spawn(sweep(Arc::downgrade(context), core));
    }
}

/// Gives a request the form of HTTP/1.1; one that was meant for HTTP/2 may come here at its second try.
fn speak_one(parts: &mut Parts) {
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, host);
        parts.uri = origin_form(&parts.uri);
    }
    if parts.headers.contains_key(TE) {
        parts.headers.entry(CONNECTION).or_insert(HeaderValue::from_static("te"));
    }
    parts.version = Version::HTTP_11;
}

/// Gives a request the form of HTTP/2: what is said of the connection is left out, the host is part of the target.
fn speak_two(request: &mut Request<RequestBody>) {
    for name in [CONNECTION, UPGRADE] {
        request.headers_mut().remove(name);
    }
    if request.uri().authority().is_none()
        && let Some(host) = request.headers_mut().remove(HOST)
        && let Some(path) = request.uri().path_and_query()
        && let Ok(uri) =
            Uri::builder().scheme(Scheme::HTTP).authority(host.as_bytes()).path_and_query(path.clone()).build()
    {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
}

/// The error with its causes in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Closes silent connections until none is left.
async fn sweep(context: Weak<ProxyContext>, core: usize) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(context) = context.upgrade() else { return };
        let left = {
            let mut pool = context.pool(core);
            pool.sweep(context.clock.now());
            pool.len()
        };
        if left == 0 {
            context.end_sweeping(core);
            return;
        }
    }
}
