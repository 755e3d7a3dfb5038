//! One application's connection and its requests: which service each one means, and which headers cross.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body as _;
use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use policy::{Filters, Headers, Priority, RequestHead, Requirements, RouteDecision};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::attempt::Outgoing;
use super::body::{Arriving, BodyError, RequestBody, ResponseBody, Upload};
use super::context::ProxyContext;
use super::filters;
use super::forward::{Job, Reply};
use super::framing::FIELDS_MAX;
use super::gate::{Gate, GateLimits, lock};
use super::grpc;
use super::head::HOPS_MAX;
use super::headers::{
    Wishes, add_via, strip_marram, strip_proxy_only, strip_request, times_via, wanted_upgrade, write_upgrade,
};
use super::http2;
use super::record::{Direction, Record};
use super::refuse::{Reason, Refusal};
use super::retry::Tries;
use super::serve::{End, serve};
use super::tcp::{Tunnel, TunnelSlot, Wire};
use super::wire::Trailing;
use crate::snapshot::Snapshot;

/// Longest request body that is read before it is sent, so that it can be sent again.
pub(super) const REPLAY_BYTES_MAX: usize = 64 * 1024;
/// Time for a client to take the last bytes of an answer after which the connection is closed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes still read from a client that is told to go; closing with unread bytes would destroy the answer on its way.
const LAST_BYTES_MAX: usize = 256 * 1024;

/// Serves one connection to its end.
pub(super) async fn connection(context: &Arc<ProxyContext>, core: usize, stream: TcpStream) {
    let config = &context.config;
    let limits = GateLimits {
        fields_max: FIELDS_MAX,
        head_bytes_max: config.head_bytes_max,
        head_timeout: Some(config.head_timeout),
        idle_timeout: Some(config.idle_timeout),
        half_closes: true,
    };
    let gate = Gate::shared(Box::new(stream), limits);
    let slot = TunnelSlot::default();
    // What comes once or late is boxed, so that a connection without a request is small.
    let served = serve(&gate, Some(&*context.clock), Trailing::Announced, |request| {
        let (context, slot) = (Arc::clone(context), slot.clone());
        Box::pin(async move { respond(&context, core, request, &slot).await })
    });
    let end = served.await;
    let (mut stream, unread) = lock(&gate).take_parts();
    let refusal = match end {
        End::Http2 => return Box::pin(http2::connection(context, core, stream, unread)).await,
        End::Switched => {
            if let Some(tunnel) = slot.take() {
                Box::pin(tunnel.run(context, &mut stream, unread.to_vec())).await;
            }
            return;
        }
        End::Broken(error) => {
            tracing::debug!(%error, "client connection ended");
            return;
        }
        End::Refused(refusal) => Some(refusal),
        End::Done => None,
    };
    // Past its time the connection is closed whether the client took the answer or not.
    tokio::time::timeout(LAST_WORDS, Box::pin(close(stream, refusal))).await.ok();
}

/// The answer to one request, of whatever service a connection is served by.
pub(super) type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>> + Send>>;

/// Says why, if there is something to say, and lets the client read it before the connection is gone.
async fn close(mut stream: Box<dyn Wire>, refusal: Option<Refusal>) {
    if let Some(refusal) = refusal
        && stream.write_all(&refusal.raw_response()).await.is_err()
    {
        return;
    }
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut piece = [0; 2048];
    let mut left = LAST_BYTES_MAX;
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
}

pub(super) async fn respond(
    context: &Arc<ProxyContext>,
    core: usize,
    request: Request<Arriving>,
    slot: &TunnelSlot,
) -> Response<ResponseBody> {
    let (mut parts, body) = request.into_parts();
    let arrived = if parts.version == Version::HTTP_2 { http2::arrived(&mut parts) } else { Ok(()) };
    let is_grpc = grpc::is_grpc(&parts);
    let host = arrived.and_then(|()| context.has_memory()).and_then(|()| host_of(&parts));
    let shown = host.as_deref().unwrap_or_default().to_owned();
    let mut record = Record::new(context, core, Direction::Outbound, &parts.method, shown, parts.uri.path());
    let answered = match host {
        Ok(host) if parts.method == Method::CONNECT => {
            return match connect(context, core, &parts, &host, record).await {
                Ok(tunnel) => {
                    slot.put(tunnel);
                    Response::new(ResponseBody::full(Bytes::new()))
                }
                Err((refusal, record)) => finish(context, refusal.response(), record, refusal.status()),
            };
        }
        Ok(host) => proxy(context, core, parts, body, &host, &mut record).await,
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(Reply::Answer(response)) => {
            let status = response.status();
            finish(context, response, record, status)
        }
        Ok(Reply::Switched(response, instance)) => {
            record.status = Some(response.status());
            slot.put(Tunnel::new(instance, record));
            response
        }
        // The record has the HTTP status that says it best; a gRPC client is told by other means.
        Err(refusal) if is_grpc => finish(context, grpc::response(&refusal), record, refusal.status()),
        Err(refusal) => finish(context, refusal.response(), record, refusal.status()),
    }
}

fn finish(
    context: &ProxyContext,
    mut response: Response<ResponseBody>,
    mut record: Record,
    status: StatusCode,
) -> Response<ResponseBody> {
    if context.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    record.status = Some(status);
    response.map(|body| body.recorded(record))
}

async fn proxy(
    context: &Arc<ProxyContext>,
    core: usize,
    mut parts: Parts,
    body: Arriving,
    host: &str,
    record: &mut Record,
) -> Result<Reply, Refusal> {
    check_request(&parts)?;
    let snapshot = context.published.load();
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let routed = match route(context, core, &snapshot, host, target, &parts)? {
        Way::To(routed) => routed,
        Way::Elsewhere(filters, prefix) => {
            let redirected = filters.redirect.as_ref().map(|redirect| filters::redirection(redirect, &parts, prefix));
            let mut response = redirected.unwrap_or_else(|| Response::new(ResponseBody::full(Bytes::new())));
            filters::change(response.headers_mut(), &filters.response_headers);
            return Ok(Reply::Answer(response));
        }
    };
    if snapshot.services.contains_key(&*routed.service) {
        record.service = Some(Arc::clone(&routed.service));
    }
    let wishes = Wishes::read(&parts.headers);
    shed(context, &routed, wishes.priority)?;
    let crossed = times_via(&parts.headers, &routed.service);
    if crossed >= usize::from(HOPS_MAX) {
        return Err(Refusal::new(
            Reason::LoopDetected,
            format!("the request for `{}` came back to a proxy {crossed} times", routed.service),
        )
        .hint("an instance of the service sends its requests to the service itself; see their `Via` headers"));
    }
    let Wishes { explain, may_retry, priority: _ } = wishes;
    let upgrade = wanted_upgrade(parts.version, &parts.headers);
    settle_headers(&mut parts, host, &routed.service);
    parts.uri = origin_form(&parts.uri);
    if let Some(filters) = &routed.filters {
        filters::change(&mut parts.headers, &filters.request_headers);
        if let Some(rewrite) = &filters.rewrite {
            filters::rewrite(rewrite, &mut parts, routed.prefix)?;
        }
    }
    let is_grpc = grpc::is_grpc(&parts);
    let deadline = if is_grpc { grpc::timeout(&parts.headers) } else { None };
    // A client that says how long it waits needs no default.
    let timeout = match (routed.timeout, deadline) {
        (Some(timeout), deadline) => timeout.min(deadline.unwrap_or(timeout)),
        (None, deadline) => deadline.unwrap_or(context.config.request_timeout),
    };
    let job = Job {
        context,
        core,
        snapshot: &snapshot,
        service: &routed.service,
        filters: routed.filters.as_deref(),
        requirements: routed.requirements.as_ref(),
        timeout,
        try_timeout: routed.try_timeout,
        hops: u8::try_from(crossed).unwrap_or(HOPS_MAX).saturating_add(1),
        explain,
        is_grpc,
        deadline,
        may_retry,
    };
    let answered = Box::pin(send(&job, parts, body, upgrade, record));
    let Some(deadline) = deadline else { return answered.await };
    // The body's time counts too: from outside it is all the same.
    tokio::time::timeout(deadline, answered).await.unwrap_or_else(|_elapsed| {
        let limit = humantime::format_duration(deadline);
        Err(Refusal::new(Reason::Timeout, format!("`{}` gave no answer within the request's {limit}", routed.service)))
    })
}

async fn send(
    job: &Job<'_>,
    parts: Parts,
    body: Arriving,
    upgrade: Option<HeaderValue>,
    record: &mut Record,
) -> Result<Reply, Refusal> {
    let outgoing = tokio::time::timeout(job.timeout, outgoing(parts, body, upgrade)).await.map_err(|_elapsed| {
        Refusal::new(Reason::Timeout, "the request body did not arrive within the request's time").closing()
    })??;
    if let Some(filters) = job.filters {
        filters::mirror(job, filters, &outgoing);
    }
    job.run(outgoing, record).await
}

/// What this proxy does not do, said before anything else happens.
fn check_request(parts: &Parts) -> Result<(), Refusal> {
    let expectation = parts.headers.get(EXPECT);
    if expectation.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(
            Refusal::new(Reason::UnknownExpectation, "the only expectation met here is `100-continue`").closing()
        );
    }
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
        return Err(Refusal::new(Reason::BadRequest, "only `http` URIs are forwarded")
            .hint("use CONNECT for TLS to an instance")
            .closing());
    }
    Ok(())
}

/// The host a request names, in lower case, without port and final dot.
///
/// An absolute URI and the target of CONNECT name it too. A client has to say the same in `Host` (RFC 9112 section 3.2);
/// where it does not, two readers of the request could send it to two services, so nobody gets it.
fn host_of(parts: &Parts) -> Result<String, Refusal> {
    let refuse = |what: &str| Refusal::new(Reason::BadRequest, what).closing();
    let header = match parts.headers.get(HOST) {
        Some(host) => Some(
            Authority::try_from(host.as_bytes())
                .ok()
                .and_then(|authority| host_name(&authority))
                .ok_or_else(|| refuse("`host` is not HOST or HOST:PORT"))?,
        ),
        None => None,
    };
    let target = match parts.uri.authority() {
        Some(authority) => {
            Some(host_name(authority).ok_or_else(|| refuse("the request target does not name HOST or HOST:PORT"))?)
        }
        None if parts.method == Method::CONNECT => return Err(refuse("the target of CONNECT is not HOST:PORT")),
        None => None,
    };
    match (target, header) {
        (Some(target), Some(header)) if target != header => {
            Err(refuse("the request target and `host` name different hosts"))
        }
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(not_of_the_mesh("the request names no host".to_owned())),
    }
}

/// The name alone, unless there is more than a name and the number of a port.
fn host_name(authority: &Authority) -> Option<String> {
    let host = authority.host();
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok();
    let port = authority.as_str().strip_prefix(host)?;
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return None;
    }
    Some(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase())
}

/// Where a request goes.
enum Way {
    /// To a service.
    To(Routed),
    /// Back, with the address of another place; so many bytes of the path were matched as a prefix.
    Elsewhere(Arc<Filters>, usize),
}

/// The service that a request goes to, and what its rule says of the way.
struct Routed {
    service: Arc<str>,
    timeout: Option<Duration>,
    try_timeout: Option<Duration>,
    filters: Option<Arc<Filters>>,
    requirements: Option<Arc<Requirements>>,
    priority: Option<Priority>,
    /// Bytes of the path that the rule matched as a prefix.
    prefix: usize,
}

/// The headers of a request, for rules to look at.
struct Named<'h>(&'h HeaderMap);

impl Headers for Named<'_> {
    fn any(&self, name: &str, test: &dyn Fn(&str) -> bool) -> bool {
        self.0.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(test)
    }
}

fn route(
    context: &ProxyContext,
    core: usize,
    snapshot: &Snapshot,
    host: &str,
    target: &str,
    parts: &Parts,
) -> Result<Way, Refusal> {
    let (method, headers) = (parts.method.as_str(), Named(&parts.headers));
    let head = RequestHead { host, path: target, method, headers: &headers };
    match snapshot.table.route(&head, context.chance(core)) {
        RouteDecision::Service {
            service,
            timeout,
            try_timeout,
            filters,
            prefix,
            requirements,
            priority,
            route_name: _,
        } => Ok(Way::To(Routed { service, timeout, try_timeout, filters, requirements, priority, prefix })),
        RouteDecision::Redirect { filters, prefix, route_name: _ } => Ok(Way::Elsewhere(filters, prefix)),
        RouteDecision::NoRoute if is_of_the_mesh(snapshot, host) => {
            let path = target.split('?').next().unwrap_or_default();
            Err(Refusal::new(Reason::NoRoute, format!("no rule of the routes for `{host}` matches {method} `{path}`"))
                .hint("`marram policy list` shows the HTTPRoutes"))
        }
        RouteDecision::NoRoute => Err(not_of_the_mesh(format!("`{host}` is not a name of this mesh"))),
    }
}

/// Refuses what is least important while the node has too much to do. What the rule says of a request counts, else what
/// the application says.
fn shed(context: &ProxyContext, routed: &Routed, wanted: Option<Priority>) -> Result<(), Refusal> {
    let priority = routed.priority.or(wanted).unwrap_or_default();
    let (in_flight, most) = (context.in_flight(), context.config.connections_max);
    if priority.is_taken(in_flight, most) {
        return Ok(());
    }
    metrics::counter!("marram_requests_shed_total", "priority" => priority.as_str()).increment(1);
    let detail =
        format!("{in_flight} requests are in flight here, too many for one of priority `{}`", priority.as_str());
    Err(Refusal::new(Reason::Shed, detail).hint("ask again later; `proxy.connections_max` is the measure"))
}

/// Whether a host that leads nowhere is one that a route is for, so that only the path is wrong.
fn is_of_the_mesh(snapshot: &Snapshot, host: &str) -> bool {
    snapshot.table.hosts().any(|pattern| match pattern.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix),
        None => pattern == host,
    })
}

fn not_of_the_mesh(detail: String) -> Refusal {
    Refusal::new(Reason::NotOfTheMesh, detail).hint(
        "name a service with `Host: SERVICE.mesh` or `Host: SERVICE.mesh.localhost`, or a host that an HTTPRoute names",
    )
}

/// The headers as the instance gets them: `Host` is what the application asked for.
fn settle_headers(parts: &mut Parts, host: &str, service: &str) {
    if let Some(authority) = parts.uri.authority()
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, value);
    } else if !parts.headers.contains_key(HOST)
        && let Ok(value) = HeaderValue::from_str(host)
    {
        parts.headers.insert(HOST, value);
    }
    strip_marram(&mut parts.headers);
    strip_request(&mut parts.headers);
    strip_proxy_only(&mut parts.headers);
    add_via(&mut parts.headers, parts.version, service);
}

/// Path and query alone, as an instance wants it.
pub(super) fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(path)
}

/// The request with a body that is at hand where it is small; with such a body it may ask for an `upgrade`.
///
/// One whose body streams may not: it would have to end before the first byte of the other protocol.
///
/// # Errors
/// When the client does not send the body it announced.
pub(super) async fn outgoing(
    mut parts: Parts,
    body: Arriving,
    upgrade: Option<HeaderValue>,
) -> Result<Outgoing, Refusal> {
    parts.extensions.clear();
    let is_http2 = parts.version == Version::HTTP_2;
    parts.version = Version::HTTP_11;
    let length = content_length(&parts.headers);
    let broke_off =
        |error: BodyError| Refusal::new(Reason::BadRequest, format!("the request body broke off: {error}")).closing();
    let body = if body.is_end_stream() {
        RequestBody::Whole(Bytes::new())
    } else if let Some(length) = length.filter(|length| *length <= REPLAY_BYTES_MAX) {
        RequestBody::read_whole(body, length).await.map_err(broke_off)?
    } else if is_http2 && length.is_none() {
        RequestBody::read_arrived(body, REPLAY_BYTES_MAX).await.map_err(broke_off)?
    } else {
        RequestBody::Stream(VecDeque::new(), body, Upload::begin())
    };
    let is_whole = matches!(body, RequestBody::Whole(_));
    if let Some(protocols) = upgrade.filter(|_| is_whole) {
        write_upgrade(&mut parts.headers, protocols);
    }
    let is_repeatable = is_idempotent(&parts.method) && is_whole;
    Ok(Outgoing { request: Box::new(Request::from_parts(parts, body)), is_repeatable })
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

async fn connect(
    context: &Arc<ProxyContext>,
    core: usize,
    parts: &Parts,
    host: &str,
    mut record: Record,
) -> Result<Tunnel, (Refusal, Record)> {
    let snapshot = context.published.load();
    let routed = match route(context, core, &snapshot, host, "/", parts) {
        Ok(Way::To(routed)) => routed,
        Ok(Way::Elsewhere(..)) => {
            let detail = format!("the route for `{host}` redirects, and a tunnel cannot be");
            return Err((Refusal::new(Reason::NoRoute, detail), record));
        }
        Err(refusal) => return Err((refusal, record)),
    };
    if let Err(refusal) = shed(context, &routed, Wishes::read(&parts.headers).priority) {
        return Err((refusal, record));
    }
    let tries = Tries::requiring(routed.requirements.as_ref());
    match Tunnel::open(context, core, &snapshot, &routed.service, tries, &mut record).await {
        Ok(instance) => {
            record.status = Some(StatusCode::OK);
            Ok(Tunnel::new(instance, record))
        }
        Err(refusal) => Err((refusal, record)),
    }
}
