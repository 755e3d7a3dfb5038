//! HTTP/2 in clear: what a side that serves it allows, and the connection of an application that begins with it.
//!
//! An application says by its first bytes that it speaks HTTP/2 (RFC 9113 section 3.3); `gate` sees them. Every stream is
//! a request of its own, routed by `:authority` as others are by `Host`, and goes the same way (`http`, `forward`).
//! Bodies pass piece by piece: a stream's window is only opened again by what the other side has taken.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::{Arriving, ResponseBody};
use super::context::ProxyContext;
use super::http::{ResponseFuture, respond};
use super::refuse::{Reason, Refusal};
use super::shares::{self, Spawner};
use super::tcp::{TunnelSlot, Wire};
use super::turns::Turns;

/// Requests at once on one connection; a client waits for one of them to end, or opens another connection.
pub(super) const STREAMS_MAX: u32 = 128;
/// Streams that were reset before they were looked at; one more and the connection is closed (CVE-2023-44487).
const RESETS_PENDING_MAX: usize = 20;
/// Streams reset here for what their sender did wrong; one more and the connection is closed (CVE-2025-8671).
pub(super) const RESETS_OWN_MAX: usize = 128;
/// Bytes of one frame that are taken.
pub(super) const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Bytes of one stream that wait to be written.
pub(super) const SEND_BYTES_MAX: usize = 64 * 1024;
/// Header fields of one request, as over HTTP/1.1.
const FIELDS_MAX: usize = 100;
/// Time for the other side to answer a ping before its connection is taken for dead.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the last frames of a connection that nobody uses.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bytes of one stream that may be under way before the receiver has taken any of them; on one machine a round trip takes no
/// time.
pub(super) const STREAM_WINDOW: u32 = 64 * 1024;
/// The same of all streams of a connection: so many that streams which nobody reads cannot stop the others.
pub(super) const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX;

/// What answers the requests of a connection.
type Serve = Box<dyn Fn(Request<Incoming>) -> ResponseFuture + Send + Sync>;

/// The requests of one connection: begun so far, and under way.
#[derive(Debug, Default)]
pub(super) struct Usage {
    begun: AtomicU64,
    open: AtomicUsize,
}

/// One request under way, until it is dropped.
#[derive(Debug)]
pub(super) struct InUse {
    usage: Arc<Usage>,
}

impl Usage {
    pub(super) fn begin(self: &Arc<Self>) -> InUse {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.open.fetch_add(1, Ordering::AcqRel);
        InUse { usage: Arc::clone(self) }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.usage.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves the connection of an application, of which `ahead` was read before.
pub(super) async fn connection(context: &Arc<ProxyContext>, core: usize, stream: Box<dyn Wire>, ahead: BytesMut) {
    let usage = Arc::new(Usage::default());
    let serve: Serve = {
        let (context, usage) = (Arc::clone(context), Arc::clone(&usage));
        Box::new(move |request| {
            let (context, in_use) = (Arc::clone(&context), usage.begin());
            Box::pin(async move { Ok(answer(&context, core, request, in_use).await) })
        })
    };
    let io = Turns::new(stream, ahead).timed(&context.clock);
    let share = context.share(core);
    let served = serve_connection(context, io, serve, &usage, Spawner::of(&share));
    share.meter(served).await;
}

/// Serves one connection until it is unused for `proxy.idle_timeout`, or to its last request when the proxy drains.
async fn serve_connection(context: &Arc<ProxyContext>, io: Turns, serve: Serve, usage: &Usage, spawner: Spawner) {
    let config = &context.config;
    let head_bytes_max = u32::try_from(config.head_bytes_max).unwrap_or(u32::MAX);
    let served = http2::Builder::new(spawner)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(RESETS_OWN_MAX)
        .max_header_list_size(head_bytes_max)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(config.idle_timeout)
        .keep_alive_timeout(PING_TIMEOUT)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(io), service_fn(serve));
    let mut served = pin!(served);
    let (mut is_draining, mut seen) = (false, 0);
    loop {
        let limit = if seen == 0 { config.head_timeout } else { config.idle_timeout };
        tokio::select! {
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "http/2 connection ended");
                }
                return;
            }
            () = context.until_draining(), if !is_draining => {
                is_draining = true;
                served.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(limit) => {
                let begun = usage.begun.load(Ordering::Acquire);
                if begun == seen && usage.open.load(Ordering::Acquire) == 0 {
                    break;
                }
                seen = begun;
            }
        }
    }
    served.as_mut().graceful_shutdown();
    // Past its time the connection is closed whether the other side has said goodbye or not.
    tokio::time::timeout(LAST_WORDS, served).await.map_or(Ok(()), |ended| ended).ok();
}

async fn answer(
    context: &Arc<ProxyContext>,
    core: usize,
    mut request: Request<Incoming>,
    in_use: InUse,
) -> Response<ResponseBody> {
    let opening = (request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
    let slot = TunnelSlot::default();
    let mut response = respond(context, core, request.map(Arriving::Two), &slot).await;
    // What speaks of the connection is said by frames here.
    response.headers_mut().remove(CONNECTION);
    if let (Some(opening), Some(tunnel)) = (opening, slot.take()) {
        let context = Arc::clone(context);
        shares::spawn(async move {
            // An error means that the client left; the tunnel ends with it.
            if let Ok(stream) = opening.await {
                let mut stream: Box<dyn Wire> = Box::new(TokioIo::new(stream));
                tunnel.run(&context, &mut stream, Vec::new()).await;
            }
            drop(in_use);
        });
        return response;
    }
    response.map(|body| body.held(in_use))
}

/// Gives a request the form that one over HTTP/1.1 has: the host in `Host`, one `Cookie`.
///
/// # Errors
/// The refusal of a request that HTTP/1.1 could not say.
pub(super) fn arrived(parts: &mut Parts) -> Result<(), Refusal> {
    if parts.headers.len() > FIELDS_MAX {
        let told = format!("the request has more than {FIELDS_MAX} header fields");
        return Err(Refusal::new(Reason::HeadTooLarge, told));
    }
    // A look at every field is cheaper than as many questions to the map.
    let (mut hosts, mut lengths, mut cookies, mut expects) = (0, 0, 0, false);
    for (name, _) in &parts.headers {
        match *name {
            HOST => hosts += 1,
            CONTENT_LENGTH => lengths += 1,
            COOKIE => cookies += 1,
            EXPECT => expects = true,
            // The types of hyper let this one pass that is no token; they have refused all others.
            _ if name.as_str().contains('"') => {
                return Err(Refusal::new(Reason::BadRequest, "a header name is not a token"));
            }
            _ => {}
        }
    }
    for (name, count) in [(HOST, hosts), (CONTENT_LENGTH, lengths)] {
        if count > 1 {
            return Err(Refusal::new(Reason::BadRequest, format!("`{name}` is given more than once")));
        }
    }
    // A target that HTTP/1.1 would refuse (`framing`); hyper has cut it at its `#` before.
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let is_fitting = parts.method == Method::CONNECT
        || target.starts_with('/')
        || (parts.method == Method::OPTIONS && target == "*");
    if !is_fitting || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::new(Reason::BadRequest, "`:path` is not a path of percent-encoded ASCII"));
    }
    if expects {
        // Nothing here can say 100, and a client may wait for it; after this answer it asks again without.
        return Err(Refusal::new(
            Reason::UnknownExpectation,
            "over HTTP/2 no expectation is met, `100-continue` included",
        ));
    }
    // Where there is a `host` as well, both have to name the same one: `http` compares them.
    if hosts == 0
        && let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, host);
    }
    if cookies > 1 {
        super::headers::join_cookies(&mut parts.headers);
    }
    Ok(())
}
