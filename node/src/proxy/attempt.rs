//! One try at one endpoint: a pooled or new connection, the request, the response head.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::Body as _;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, UPGRADE};
use hyper::http::response::Parts;
use hyper::{Request, Response, StatusCode};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use transport::{NodeId, Retirement, StreamReset};

use super::body::{Arriving, RequestBody, Upload};
use super::context::{OutcomeKind, ProxyContext};
use super::head::{ACCEPTED, Content, ResetCode, ServiceHead};
use super::headers::{Fault, MARRAM_FAULT_DETAIL, strip_hop_by_hop, strip_marram, write_upgrade};
use super::lanes::Place;
use super::links::{Duplex, PeerStream, Volume};
use super::probe::watch;
use super::tcp::Wire;
use super::turns::Turns;
use super::upstream::{Http, Lease, NotSent, Opening, PoolKey, describe};
use super::wire::Trailing;
use crate::snapshot::{Endpoint, LocalInstance};

/// The least time a peer gets for its accepted byte; far peers get four round trips.
const ACCEPT_MIN: Duration = Duration::from_millis(250);
/// The same for a probe while requests wait: giving up a peer that was only busy would cut what is under way.
const PROBE_MIN: Duration = Duration::from_millis(500);

/// Requests at once on one HTTP/2 connection to a process on this machine; one more opens another connection.
const STREAMS_NEAR_MAX: usize = 100;

/// What an endpoint answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Arriving>,
    pub(super) lease: Lease,
    /// From the request's beginning to the response head: without the way to a connection.
    pub(super) took: Duration,
    /// The request once more, should the answer turn out to be none.
    again: Option<Outgoing>,
}

/// Why an endpoint did not answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) blame: Blame,
    pub(super) detail: String,
    /// The request, where it is safe to send it elsewhere: nothing of it arrived, or it may arrive twice.
    pub(super) again: Option<Outgoing>,
    /// Nothing of the request reached the instance.
    pub(super) is_unsent: bool,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The endpoint's, or that of its whole node.
    Endpoint(OutcomeKind),
    /// The client's: its body broke off.
    Client,
    /// Nobody's: it went in circles.
    Loop,
    /// The instance was too slow, as its own node saw it.
    Slow,
}

impl Answer {
    /// Whether the instance speaks another protocol from here on.
    pub(super) fn is_switched(&self) -> bool {
        self.response.status() == StatusCode::SWITCHING_PROTOCOLS
    }

    /// The head of a 101 and the bare connection behind it, which no other request will use.
    ///
    /// # Errors
    /// The connection ended right behind the head.
    pub(super) fn switch(self) -> Result<(Parts, Box<dyn Wire>), String> {
        let (mut parts, body) = self.response.into_parts();
        let (io, ahead) = body.into_wire().ok_or("only HTTP/1.1 can switch")?;
        let protocols = parts.headers.get(UPGRADE).cloned();
        strip_hop_by_hop(&mut parts.headers);
        strip_marram(&mut parts.headers);
        parts.headers.remove(CONTENT_LENGTH);
        write_upgrade(&mut parts.headers, protocols.unwrap_or_else(|| HeaderValue::from_static("")));
        Ok((parts, if ahead.is_empty() { io } else { Box::new(Turns::new(io, ahead)) }))
    }
}

impl Failure {
    /// The endpoint failed before anything was sent to it.
    fn before(kind: OutcomeKind, detail: impl Into<String>, outgoing: Outgoing) -> Self {
        Self { blame: Blame::Endpoint(kind), detail: detail.into(), again: Some(outgoing), is_unsent: true }
    }

    /// The endpoint took nothing of the request's body for so long.
    pub(super) fn not_taken(idle: Duration) -> Self {
        let detail = format!("it took nothing of the request's body for {}", humantime::format_duration(idle));
        Self { blame: Blame::Slow, detail, again: None, is_unsent: false }
    }

    /// The client did not send what it announced.
    pub(super) fn of_client(detail: impl Into<String>) -> Self {
        Self { blame: Blame::Client, detail: detail.into(), again: None, is_unsent: false }
    }

    /// The endpoint failed when a part of the request may have arrived; `copy` is that request again.
    fn after(kind: OutcomeKind, detail: impl Into<String>, copy: Option<Outgoing>) -> Self {
        let again = copy.filter(|outgoing| outgoing.is_repeatable);
        Self { blame: Blame::Endpoint(kind), detail: detail.into(), again, is_unsent: false }
    }
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Boxed, for it is handed from one to the next.
    pub(super) request: Box<Request<RequestBody>>,
    /// May be sent again although a part of it may have arrived.
    pub(super) is_repeatable: bool,
}

impl Outgoing {
    /// The end of the body, where the body streams.
    pub(super) fn upload(&self) -> Option<Upload> {
        match self.request.body() {
            RequestBody::Whole(_) => None,
            RequestBody::Stream(.., upload) => Some(upload.clone()),
        }
    }

    /// The same request again, where its body is at hand.
    pub(super) fn copy(&self) -> Option<Self> {
        let mut copy = Box::new(Request::new(self.request.body().replay()?));
        self.request.method().clone_into(copy.method_mut());
        self.request.uri().clone_into(copy.uri_mut());
        self.request.headers().clone_into(copy.headers_mut());
        Some(Self { request: copy, is_repeatable: self.is_repeatable })
    }
}

/// Sends a request to a process on this machine.
pub(super) async fn local(
    context: &Arc<ProxyContext>,
    core: usize,
    instance: &LocalInstance,
    mut outgoing: Outgoing,
) -> Result<Answer, Failure> {
    strip_marram(outgoing.request.headers_mut());
    let (key, http) = (PoolKey::Local(instance.address), Http::from(instance.protocol));
    let kept = |outgoing: &Outgoing| match http {
        Http::One => Lease::reuse(context, core, &key, !outgoing.is_repeatable),
        Http::Two => Lease::share(context, core, instance.address, STREAMS_NEAR_MAX),
    };
    let answered = match send_kept(context, kept, outgoing).await {
        Kept::Done(result) => *result,
        // Boxed, as most requests find a kept connection and need not be as large.
        Kept::None(outgoing) => Box::pin(send_near(context, core, http, instance, outgoing)).await,
    };
    if let Err(Failure { blame: Blame::Endpoint(OutcomeKind::Closed), .. }) = answered {
        instance.broken_connections.fetch_add(1, Ordering::Relaxed);
    }
    answered
}

/// Sends a request to a process on this machine over a new connection.
async fn send_near(
    context: &Arc<ProxyContext>,
    core: usize,
    http: Http,
    instance: &LocalInstance,
    outgoing: Outgoing,
) -> Result<Answer, Failure> {
    if http == Http::Two {
        return match shared(context, core, instance, context.config.connect_timeout).await {
            Ok(lease) => send_over(context, lease, outgoing).await,
            Err((kind, detail)) => Err(Failure::before(kind, detail, outgoing)),
        };
    }
    let stream = match connect(instance, context.config.connect_timeout).await {
        Ok(stream) => stream,
        Err(detail) => return Err(Failure::before(OutcomeKind::ConnectFailed, detail, outgoing)),
    };
    let lease = Lease::open_one(context, core, PoolKey::Local(instance.address), stream, None);
    send_over(context, lease, outgoing).await
}

/// A place on an HTTP/2 connection to a process on this machine; a new one is made where all are full.
pub(super) async fn shared(
    context: &Arc<ProxyContext>,
    core: usize,
    instance: &LocalInstance,
    limit: Duration,
) -> Result<Lease, (OutcomeKind, String)> {
    let address = instance.address;
    let failed = |detail: &String| (OutcomeKind::ConnectFailed, detail.clone());
    loop {
        if let Some(lease) = Lease::share(context, core, address, STREAMS_NEAR_MAX) {
            return Ok(lease);
        }
        let opening = context.pool(core).opening(address);
        let tell = match opening {
            Opening::Mine(tell) => tell,
            Opening::Theirs(mut told) => match told.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(detail))) => return Err(failed(detail)),
                // There it is, or who made it was called off.
                Ok(Some(Ok(())) | None) | Err(_) => continue,
            },
        };
        let opened = match connect(instance, limit).await {
            Ok(stream) => {
                let lease = Lease::open_two(context, core, address, stream).await;
                lease.map_err(|error| describe(&error))
            }
            Err(detail) => Err(detail),
        };
        tell.send_replace(Some(opened.as_ref().map(|_lease| ()).map_err(Clone::clone)));
        return opened.map_err(|detail| failed(&detail));
    }
}

/// Connects to a process on this machine and keeps count of refusals for its health checks.
pub(super) async fn connect(instance: &LocalInstance, limit: Duration) -> Result<TcpStream, String> {
    let address: SocketAddr = instance.address;
    let failed = match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            instance.connect_failures.store(0, Ordering::Relaxed);
            // Without it small answers wait for acknowledgements; a socket that refuses the option still works.
            stream.set_nodelay(true).ok();
            return Ok(stream);
        }
        Ok(Err(error)) => format!("connect to {address}: {error}"),
        Err(_elapsed) => format!("connect to {address}: no answer in {}", humantime::format_duration(limit)),
    };
    instance.connect_failures.fetch_add(1, Ordering::Relaxed);
    Err(failed)
}

/// Sends a request to an instance behind a peer.
pub(super) async fn remote(
    context: &Arc<ProxyContext>,
    core: usize,
    endpoint: &Endpoint,
    hops: u8,
    outgoing: Outgoing,
) -> Result<Answer, Failure> {
    let (node, body_bytes) = (endpoint.node, outgoing.request.body().size_hint().lower());
    let volume = match Volume::of_request(&endpoint.stats, body_bytes) {
        // Without a way of its own it shares the streams of the others: one kept for it would stay where it is.
        Volume::Large if !context.links.takes_large(core, node) => Volume::Small,
        volume => volume,
    };
    let (service, instance) = (Arc::clone(&endpoint.service), Arc::clone(&endpoint.instance));
    let key = PoolKey::Remote { node, service, instance, volume, trailing: endpoint.protocol.into() };
    let peer = (volume == Volume::Large).then(|| context.peer_token(node));
    let mut sending = pin!(async {
        match send_kept(context, |outgoing| kept_far(context, core, &key, outgoing), outgoing).await {
            Kept::Done(result) => *result,
            // Boxed, as most requests find a kept connection and need not be as large.
            Kept::None(outgoing) => Box::pin(send_far(context, core, &key, endpoint, hops, outgoing)).await,
        }
    });
    let sent = tokio::select! {
        biased;
        sent = &mut sending => sent,
        never = watch(context, core, node, volume) => match never {},
    };
    let answer = sent.map_err(|mut failure| {
        // Whatever breaks between two proxies is not the instance's fault: that its node would have told.
        let is_given_up = || peer.as_ref().is_some_and(CancellationToken::is_cancelled);
        match failure.blame {
            Blame::Endpoint(OutcomeKind::Closed) => failure.blame = Blame::Endpoint(OutcomeKind::PeerFailed),
            Blame::Endpoint(OutcomeKind::LinkFailed) if is_given_up() => {
                failure.blame = Blame::Endpoint(OutcomeKind::PeerFailed);
            }
            Blame::Endpoint(_) | Blame::Client | Blame::Loop | Blame::Slow => {}
        }
        failure
    })?;
    match Fault::of(answer.response.headers()) {
        None => Ok(answer),
        Some(fault) => Err(told(fault, answer)),
    }
}

/// Sends a request to an instance behind a peer over a new connection, or the first that is kept until there is a place.
async fn send_far(
    context: &Arc<ProxyContext>,
    core: usize,
    key: &PoolKey,
    endpoint: &Endpoint,
    hops: u8,
    mut outgoing: Outgoing,
) -> Result<Answer, Failure> {
    let lane = context.lane(core, endpoint.node).share(&endpoint.service);
    let place = loop {
        let place = lane.place_of(|service| context.pool(core).close_one(endpoint.node, service));
        if let Some(place) = place {
            break place;
        }
        lane.changed().await;
        outgoing = match send_kept(context, |outgoing| kept_far(context, core, key, outgoing), outgoing).await {
            Kept::Done(result) => return *result,
            Kept::None(outgoing) => outgoing,
        };
    };
    let head = stream_head(context, endpoint, endpoint.protocol.into(), hops);
    match open_stream(context, core, endpoint.node, &head, key.volume(), place).await {
        Err((kind, detail)) => Err(Failure::before(kind, detail, outgoing)),
        Ok(stream) => {
            // As it came out: one on the data link is not kept for what is large.
            let (key, link) = (key.of_volume(stream.volume()), stream.retirement());
            send_over(context, Lease::open_one(context, core, key, stream, Some(link)), outgoing).await
        }
    }
}

/// A kept stream to a peer. One for an instance of HTTP/2 is good however long it was silent, as a connection of HTTP/2 is:
/// of the calls that go there few may be sent twice, and each new stream costs a round trip.
fn kept_far(context: &Arc<ProxyContext>, core: usize, key: &PoolKey, outgoing: &Outgoing) -> Option<Lease> {
    Lease::reuse(context, core, key, !outgoing.is_repeatable && key.trailing() == Trailing::Announced)
}

/// Turns a fault that the peer tells of its instance into a failure.
fn told(fault: Fault, answer: Answer) -> Failure {
    let detail = fault_detail(answer.response.headers(), fault);
    if answer.response.body().is_end_stream() {
        answer.lease.give_back(answer.response.into_body());
    }
    let (blame, is_unsent) = match fault {
        Fault::Unsent => (Blame::Endpoint(OutcomeKind::ConnectFailed), true),
        Fault::Closed => (Blame::Endpoint(OutcomeKind::Closed), false),
        Fault::TimedOut => (Blame::Slow, false),
        Fault::Loop => (Blame::Loop, false),
        Fault::Client => (Blame::Client, false),
    };
    let again = answer.again.filter(|outgoing| is_unsent || outgoing.is_repeatable);
    Failure { blame, detail, again, is_unsent }
}

fn fault_detail(headers: &HeaderMap, fault: Fault) -> String {
    let told = headers.get(MARRAM_FAULT_DETAIL).and_then(|detail| detail.to_str().ok());
    told.map_or_else(|| format!("its node reports: {}", fault.as_str()), |told| format!("its node reports: {told}"))
}

/// Opens a stream to an instance behind a peer and waits until the peer accepts it.
pub(super) async fn open_stream(
    context: &Arc<ProxyContext>,
    core: usize,
    node: NodeId,
    head: &ServiceHead,
    volume: Volume,
    place: Place,
) -> Result<PeerStream, (OutcomeKind, String)> {
    let opening = |bytes| context.links.open_service(core, node, bytes, volume);
    open_within(context, core, node, head, opening, ACCEPT_MIN, Some(place)).await
}

/// The same for a stream that only asks whether the peer answers, on a way of its own or a data link, with more patience.
pub(super) async fn open_probe(
    context: &Arc<ProxyContext>,
    core: usize,
    node: NodeId,
    head: &ServiceHead,
    large: Option<Retirement>,
) -> Result<PeerStream, (OutcomeKind, String)> {
    let opening = |bytes| context.links.open_probe(core, node, bytes, large);
    open_within(context, core, node, head, opening, PROBE_MIN, None).await
}

async fn open_within<'a>(
    context: &'a Arc<ProxyContext>,
    core: usize,
    node: NodeId,
    head: &ServiceHead,
    open: impl FnOnce(Bytes) -> BoxFuture<'a, Result<Box<dyn Duplex>, String>>,
    accept_min: Duration,
    place: Option<Place>,
) -> Result<PeerStream, (OutcomeKind, String)> {
    let peer_failed = |detail: String| (OutcomeKind::PeerFailed, detail);
    let bytes: Bytes = head.encode().map_err(|error| (OutcomeKind::ConnectFailed, error.to_string()))?;
    let token = context.peer_token(node);
    let is_probe = place.is_none();
    let opening = timeout(context.config.connect_timeout, open(bytes));
    let opened = tokio::select! {
        opened = opening => opened,
        () = token.cancelled() => return Err(peer_failed("its node was given up".to_owned())),
    };
    let stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(peer_failed(format!("no link to its node: {error}"))),
        Err(_elapsed) => {
            let limit = humantime::format_duration(context.config.connect_timeout);
            return Err(peer_failed(format!("no link to its node within {limit}")));
        }
    };
    let mut stream = PeerStream::new(stream, token, place);
    let round_trips = context.links.rtt(node).map_or(Duration::ZERO, |rtt| rtt.saturating_mul(4));
    let limit = accept_min.max(round_trips);
    let heard = context.links.heard(core, node);
    let mut answer = [0];
    match timeout(limit, stream.read_exact(&mut answer)).await {
        Ok(Ok(_)) if answer == [ACCEPTED] => Ok(stream),
        Ok(Ok(_)) => Err(peer_failed("its node answered out of turn".to_owned())),
        Ok(Err(error)) => Err(reset_meaning(&error, stream.end_kind())),
        Err(_elapsed) => {
            // Nobody counts what is heard over a way for what is large: several probes in a row are to fail there.
            if !(is_probe && stream.volume() == Volume::Large) {
                context.links.doubt(core, node, heard, stream.volume());
            }
            let limit = humantime::format_duration(limit);
            Err((stream.end_kind(), format!("its node did not accept within {limit}")))
        }
    }
}

/// What the peer says by breaking off, or that is `end` where it says nothing.
fn reset_meaning(error: &std::io::Error, end: OutcomeKind) -> (OutcomeKind, String) {
    match StreamReset::of(error).and_then(|reset| ResetCode::from_wire(reset.code)) {
        Some(code @ (ResetCode::UnknownInstance | ResetCode::ConnectFailed)) => {
            (OutcomeKind::ConnectFailed, code.sentence().to_owned())
        }
        Some(code) => (OutcomeKind::PeerFailed, code.sentence().to_owned()),
        None => (end, format!("its node broke off: {error}")),
    }
}

/// The head of a stream for requests to `endpoint`.
pub(super) fn stream_head(context: &ProxyContext, endpoint: &Endpoint, content: Content, hops: u8) -> ServiceHead {
    ServiceHead {
        service: endpoint.service.to_string(),
        instance: endpoint.instance.to_string(),
        content,
        source: context.source.clone(),
        hops,
        deadline_ms: 0,
        trace: [0; 16],
    }
}

enum Kept {
    /// A kept connection was good, for better or worse.
    Done(Box<Result<Answer, Failure>>),
    /// No kept connection was good; the request may go over a new one.
    None(Outgoing),
}

/// Tries kept connections. One that the other side closed before it answered a byte is no failure: the request goes
/// over the next or a new one, as long as nothing of it was sent or it may arrive twice.
async fn send_kept(context: &ProxyContext, kept: impl Fn(&Outgoing) -> Option<Lease>, mut outgoing: Outgoing) -> Kept {
    loop {
        let Some(lease) = kept(&outgoing) else { return Kept::None(outgoing) };
        let kind = lease.broken();
        let failure = match send(context, lease, outgoing).await {
            Ok(answer) => return Kept::Done(Box::new(Ok(answer))),
            Err(NotSent::Unsent(again)) => {
                outgoing = again;
                continue;
            }
            Err(NotSent::Closed { copy: Some(copy), is_clean: true, .. }) if copy.is_repeatable => {
                return Kept::None(copy);
            }
            Err(NotSent::Refused { copy: Some(copy), .. }) => return Kept::None(copy),
            Err(NotSent::Refused { detail, copy } | NotSent::Closed { detail, copy, .. }) => {
                Failure::after(kind, detail, copy)
            }
            Err(NotSent::ClientBroke) => client_broke(),
        };
        return Kept::Done(Box::new(Err(failure)));
    }
}

async fn send_over(context: &ProxyContext, lease: Lease, outgoing: Outgoing) -> Result<Answer, Failure> {
    let kind = lease.broken();
    send(context, lease, outgoing).await.map_err(|failed| match failed {
        NotSent::Unsent(again) => Failure::before(kind, "it closed the connection at once", again),
        NotSent::Refused { detail, copy: Some(again) } => Failure::before(kind, detail, again),
        NotSent::Refused { detail, copy: None } => Failure::after(kind, detail, None),
        NotSent::Closed { detail, copy, .. } => Failure::after(kind, detail, copy),
        NotSent::ClientBroke => client_broke(),
    })
}

async fn send(context: &ProxyContext, mut lease: Lease, outgoing: Outgoing) -> Result<Answer, NotSent> {
    let began = context.clock.now();
    let may_switch = outgoing.request.headers().contains_key(UPGRADE);
    let (response, again) = lease.send(outgoing).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !may_switch {
        let detail = "it switched protocols without being asked".to_owned();
        return Err(NotSent::Closed { detail, copy: again, is_clean: false });
    }
    Ok(Answer { response, lease, took: context.clock.now().saturating_sub(began), again })
}

fn client_broke() -> Failure {
    Failure::of_client("the request body broke off or is malformed")
}
