//! A peer's proxy on behalf of its applications: streams to instances of this node.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response, StatusCode, Version};
use tokio::io::AsyncWriteExt as _;
use transport::PeerInfo;

use super::attempt::{self, Blame, Failure, connect};
use super::body::{Arriving, Late, ResponseBody, within};
use super::context::{OutcomeKind, ProxyContext};
use super::copy::copy_both;
use super::framing::PEER_FIELDS_MAX;
use super::gate::{Gate, GateLimits, lock};
use super::grpc;
use super::head::{ACCEPTED, Content, HOPS_MAX, ResetCode, ServiceHead};
use super::headers::{
    Fault, MARRAM_FAULT, MARRAM_FAULT_DETAIL, MARRAM_INFLIGHT, RequestNote, strip_hop_by_hop, strip_marram,
    strip_request, wanted_upgrade,
};
use super::http::{origin_form, outgoing};
use super::links::Duplex;
use super::record::{Direction, LocalInFlight, Record};
use super::serve::{End, serve};
use super::tcp::{Tunnel, TunnelSlot};
use super::udp;
use super::upstream::{Http, Lease, PoolKey};
use super::wire::Trailing;
use crate::config::Protocol;
use crate::snapshot::{LocalInstance, via_value};

/// Time for an instance to take a connection before the stream is accepted; the caller does not wait much longer.
const CONNECT_BEFORE_ACCEPT: Duration = Duration::from_millis(200);
/// Bytes of a fault's description.
const FAULT_DETAIL_MAX: usize = 200;
/// Bytes that the notes between proxies may add to a request head.
const NOTES_BYTES: usize = 4 * 1024;

impl ProxyContext {
    /// Serves a stream of kind `Service` that a peer opened. Called on the runtime of `core`; spawns what serves it.
    pub fn inbound_stream(self: &Arc<Self>, core: usize, from: Arc<PeerInfo>, head: Bytes, stream: impl Duplex) {
        let context = Arc::clone(self);
        tokio::spawn(async move {
            take(&context, core, &from, &head, stream).await;
        });
    }
}

async fn take<S: Duplex>(context: &Arc<ProxyContext>, core: usize, from: &Arc<PeerInfo>, head: &[u8], mut stream: S) {
    let (head, instance) = match admit(context, head) {
        Ok(Admitted::Instance(head, instance)) => (head, instance),
        Ok(Admitted::Probe) => {
            // An error means that the peer is gone, and then nobody asks any more.
            stream.write_all(&[ACCEPTED]).await.ok();
            stream.shutdown().await.ok();
            return;
        }
        Err(code) => return refuse(from, &mut stream, code),
    };
    match head.content {
        Content::Http => serve_http(context, core, from, &instance, Trailing::Announced, stream).await,
        Content::Http2 => serve_http(context, core, from, &instance, Trailing::All, stream).await,
        Content::Tcp => serve_tcp(context, core, from, &instance, stream).await,
        Content::Udp => Box::pin(udp::accept(context, core, from, &instance, stream)).await,
        Content::Probe => {}
    }
}

enum Admitted {
    Instance(ServiceHead, Arc<LocalInstance>),
    Probe,
}

fn admit(context: &ProxyContext, head: &[u8]) -> Result<Admitted, ResetCode> {
    let head = ServiceHead::decode(head).map_err(|error| {
        tracing::debug!(%error, "service head refused");
        ResetCode::BadHead
    })?;
    if head.content == Content::Probe {
        return Ok(Admitted::Probe);
    }
    if context.is_draining() {
        return Err(ResetCode::Draining);
    }
    if context.has_memory().is_err() {
        return Err(ResetCode::Overloaded);
    }
    if head.hops > HOPS_MAX {
        return Err(ResetCode::Loop);
    }
    let key = (head.service.clone(), head.instance.clone());
    let instance = instance_here(context, &key).ok_or(ResetCode::UnknownInstance)?;
    let is_raw = matches!(instance.protocol, Protocol::Tcp | Protocol::Udp);
    let is_mixed = (head.content == Content::Udp) != (instance.protocol == Protocol::Udp);
    if is_mixed || (matches!(head.content, Content::Http | Content::Http2) && is_raw) {
        return Err(ResetCode::UnknownInstance);
    }
    Ok(Admitted::Instance(head, instance))
}

/// The instance of this node by (service, instance), unless a `Residency` says that this region is none to answer in: a
/// sender that has not heard of it yet sends here all the same. To its node that is as if the instance were gone.
fn instance_here(context: &ProxyContext, key: &(String, String)) -> Option<Arc<LocalInstance>> {
    let snapshot = context.published.load();
    let instance = snapshot.local.get(key)?;
    if !snapshot.table.may_answer_in(&key.0, &snapshot.here.region) {
        metrics::counter!("marram_proxy_refused_total", "reason" => "stream_residency").increment(1);
        return None;
    }
    Some(Arc::clone(instance))
}

fn refuse(from: &PeerInfo, stream: &mut impl Duplex, code: ResetCode) {
    metrics::counter!("marram_proxy_refused_total", "reason" => reset_label(code)).increment(1);
    tracing::debug!(peer = from.name, code = reset_label(code), "inbound stream refused");
    stream.reset(code as u32);
}

const fn reset_label(code: ResetCode) -> &'static str {
    match code {
        ResetCode::BadHead => "stream_bad_head",
        ResetCode::UnknownInstance => "stream_unknown_instance",
        ResetCode::ConnectFailed => "stream_connect_failed",
        ResetCode::Draining => "stream_draining",
        ResetCode::Loop => "stream_loop",
        ResetCode::Overloaded => "stream_overloaded",
    }
}

async fn serve_tcp<S: Duplex>(
    context: &Arc<ProxyContext>,
    core: usize,
    from: &PeerInfo,
    instance: &Arc<LocalInstance>,
    mut stream: S,
) {
    let mut record = Record::new(context, core, Direction::Inbound, &hyper::Method::CONNECT, String::new(), "");
    record.service = Some(instance.service.as_str().into());
    record.via = via(context, from);
    let (local, _count) = LocalInFlight::begin(instance);
    record.at(None, Some(local));
    let Ok(mut socket) = connect(instance, CONNECT_BEFORE_ACCEPT).await else {
        return refuse(from, &mut stream, ResetCode::ConnectFailed);
    };
    if stream.write_all(&[ACCEPTED]).await.is_err() {
        return;
    }
    let copied = copy_both(&mut stream, &mut socket, Vec::new(), context.config.idle_timeout).await;
    record.tunnelled(copied.there, copied.back);
    if copied.end.is_err() {
        record.broken();
    }
}

/// Tells the peer whether the instance takes a connection; true where it does and the peer has been told.
async fn accepted<S: Duplex>(
    context: &Arc<ProxyContext>,
    core: usize,
    from: &PeerInfo,
    instance: &Arc<LocalInstance>,
    stream: &mut S,
) -> bool {
    // Boxed, as all that follows need not be as large.
    if !Box::pin(is_reachable(context, core, instance)).await {
        refuse(from, stream, ResetCode::ConnectFailed);
        return false;
    }
    stream.write_all(&[ACCEPTED]).await.is_ok()
}

async fn serve_http<S: Duplex>(
    context: &Arc<ProxyContext>,
    core: usize,
    from: &Arc<PeerInfo>,
    instance: &Arc<LocalInstance>,
    trailing: Trailing,
    mut stream: S,
) {
    if !accepted(context, core, from, instance, &mut stream).await {
        return;
    }
    let key = (instance.service.clone(), instance.instance.clone());
    let (service, via): (Arc<str>, _) = (key.0.as_str().into(), via(context, from));
    let slot = TunnelSlot::default();
    // The peer has timed what its client sends, and gives up what takes too long.
    let head_bytes_max = context.config.head_bytes_max.saturating_add(NOTES_BYTES);
    let limits = GateLimits {
        head_bytes_max,
        fields_max: PEER_FIELDS_MAX,
        head_timeout: None,
        idle_timeout: None,
        half_closes: false,
    };
    let unwanted = stream.unwanted();
    let gate = Arc::new(Mutex::new(Gate::new(Box::new(stream), limits).until(unwanted)));
    let served = serve(&gate, None, trailing, |mut request| {
        if trailing == Trailing::All {
            // What it is for the instance; a call of gRPC is told by it.
            *request.version_mut() = Version::HTTP_2;
        }
        let (context, via, slot) = (Arc::clone(context), via.clone(), slot.clone());
        let instance = instance_here(&context, &key);
        let service = Arc::clone(&service);
        Box::pin(async move { respond(&context, core, via, service, instance, request, &slot).await })
    });
    let end = served.await;
    let (mut stream, unread) = lock(&gate).take_parts();
    match end {
        End::Switched => {
            if let Some(tunnel) = slot.take() {
                Box::pin(tunnel.run(context, &mut stream, unread.to_vec())).await;
            }
        }
        // An error means that the peer is gone, and then nobody waits for the end.
        End::Done => stream.shutdown().await.unwrap_or_default(),
        End::Broken(error) => tracing::debug!(%error, peer = from.name, "inbound stream ended"),
        End::Refused(refusal) => {
            tracing::debug!(detail = refusal.detail(), peer = from.name, "a peer's request cannot be read");
        }
        End::Http2 => tracing::debug!(peer = from.name, "HTTP/2 on a stream for HTTP/1.1"),
    }
}

/// Whether the instance takes connections: one is at hand, or is now, for the stream's first request.
async fn is_reachable(context: &Arc<ProxyContext>, core: usize, instance: &LocalInstance) -> bool {
    let key = PoolKey::Local(instance.address);
    if Http::from(instance.protocol) == Http::Two {
        return attempt::shared(context, core, instance, CONNECT_BEFORE_ACCEPT).await.is_ok();
    }
    if let Some(lease) = Lease::reuse(context, core, &key, true) {
        return lease.give_back_ready();
    }
    let Ok(socket) = connect(instance, CONNECT_BEFORE_ACCEPT).await else {
        return false;
    };
    Lease::open_one(context, core, key, socket, None).give_back_ready()
}

async fn respond(
    context: &Arc<ProxyContext>,
    core: usize,
    via: Option<HeaderValue>,
    service: Arc<str>,
    instance: Option<Arc<LocalInstance>>,
    request: Request<Arriving>,
    slot: &TunnelSlot,
) -> Response<ResponseBody> {
    let (mut parts, body) = request.into_parts();
    let note = RequestNote::take(&mut parts.headers);
    let host = parts.headers.get(hyper::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut record = Record::new(context, core, Direction::Inbound, &parts.method, host.to_owned(), parts.uri.path());
    record.service = Some(service);
    record.via = via;
    let Some(instance) = instance else {
        return finish(context, fault(Fault::Unsent, "the instance is no longer registered"), 0, record);
    };
    let (local, in_flight) = LocalInFlight::begin(&instance);
    record.at(None, Some(local));
    if note.hops > HOPS_MAX {
        return finish(context, fault(Fault::Loop, "too many hops"), in_flight, record);
    }
    let upgrade = wanted_upgrade(parts.version, &parts.headers);
    strip_request(&mut parts.headers);
    parts.uri = origin_form(&parts.uri);
    let limit = note.deadline.unwrap_or(context.config.request_timeout);
    let deadline = if grpc::is_grpc(&parts) { grpc::timeout(&parts.headers) } else { None };
    let mut outgoing = match tokio::time::timeout(limit, outgoing(parts, body, upgrade)).await {
        Ok(Ok(outgoing)) => outgoing,
        Ok(Err(refusal)) => return finish(context, fault(Fault::Client, refusal.detail()), in_flight, record),
        Err(_elapsed) => return finish(context, fault(Fault::TimedOut, "the body came too late"), in_flight, record),
    };
    if let Some(deadline) = deadline {
        let spent = context.clock.now().saturating_sub(record.started());
        grpc::write_timeout(outgoing.request.headers_mut(), deadline.saturating_sub(spent));
    }
    let upload = outgoing.upload();
    let sending = pin!(attempt::local(context, core, &instance, outgoing));
    let response = match within(limit, context.config.idle_timeout, upload.as_ref(), sending).await {
        Ok(Ok(answer)) if answer.is_switched() => match answer.switch() {
            Ok((mut parts, instance)) => {
                parts.headers.insert(MARRAM_INFLIGHT, HeaderValue::from(in_flight));
                record.status = Some(parts.status);
                slot.put(Tunnel::new(instance, record));
                return Response::from_parts(parts, ResponseBody::full(Bytes::new()));
            }
            Err(detail) => fault(Fault::Closed, &detail),
        },
        Ok(Ok(answer)) => {
            let (mut parts, incoming) = answer.response.into_parts();
            strip_hop_by_hop(&mut parts.headers);
            strip_marram(&mut parts.headers);
            parts.version = Version::HTTP_11;
            Response::from_parts(parts, ResponseBody::instance(incoming, answer.lease))
        }
        Ok(Err(failure)) => fault(fault_of(&failure), &failure.detail),
        Err(Late::NoAnswer) => {
            let limit = humantime::format_duration(limit);
            fault(Fault::TimedOut, &format!("the instance gave no response head within {limit}"))
        }
        Err(Late::BodyNotTaken) => fault(Fault::TimedOut, &Failure::not_taken(context.config.idle_timeout).detail),
    };
    finish(context, response, in_flight, record)
}

const fn fault_of(failure: &Failure) -> Fault {
    match failure.blame {
        _ if failure.is_unsent => Fault::Unsent,
        Blame::Endpoint(
            OutcomeKind::ConnectFailed
            | OutcomeKind::Closed
            | OutcomeKind::PeerFailed
            | OutcomeKind::LinkFailed
            | OutcomeKind::TimedOut
            | OutcomeKind::Erring
            | OutcomeKind::SuccessRate
            | OutcomeKind::FailurePercentage
            | OutcomeKind::Latency,
        ) => Fault::Closed,
        Blame::Client => Fault::Client,
        Blame::Loop => Fault::Loop,
        Blame::Slow => Fault::TimedOut,
    }
}

/// An answer for the calling proxy only, which turns it into a failure of this endpoint.
fn fault(fault: Fault, detail: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(Bytes::new()));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response.headers_mut().insert(MARRAM_FAULT, HeaderValue::from_static(fault.as_str()));
    let printable: String =
        detail.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(FAULT_DETAIL_MAX).collect();
    if let Ok(detail) = HeaderValue::from_str(&printable) {
        response.headers_mut().insert(MARRAM_FAULT_DETAIL, detail);
    }
    response
}

fn finish(
    context: &ProxyContext,
    mut response: Response<ResponseBody>,
    in_flight: u32,
    mut record: Record,
) -> Response<ResponseBody> {
    let headers = response.headers_mut();
    headers.insert(MARRAM_INFLIGHT, HeaderValue::from(in_flight));
    if context.is_draining() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    record.status = Some(response.status());
    response.map(|body| body.recorded(record))
}

/// The way that requests of a peer took.
fn via(context: &ProxyContext, from: &PeerInfo) -> Option<HeaderValue> {
    via_value(&from.name, &context.published.load().here.name)
}
