//! What policy says before a request is sent, and before it is sent again: the limits of its service, and the faults that
//! are made on purpose.
//!
//! What is refused here was never sent, so it says nothing of any instance.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};
use policy::{BackendPolicy, FaultAbort, RateLimit, ServiceLimits};
use tokio::time::{sleep, timeout};

use super::attempt::Outgoing;
use super::context::ProxyContext;
use super::forward::{Job, Reply};
use super::headers::{MARRAM_INJECTED, MARRAM_LIMIT};
use super::record::Record;
use super::refuse::{Reason, Refusal};
use super::retry::Tries;
use crate::limits::{Count, FleetShare, Full};
use crate::snapshot::{Endpoint, ServiceView, Snapshot};

/// How long a gRPC client is to wait before it asks again (gRFC A6).
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// Of the connections of applications, one service may hold this part unless policy says otherwise.
const PART_OF_CONNECTIONS: usize = 4;

/// Why a request that failed is not sent once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// The application said so.
    Off,
    /// The service's retry budget is used up.
    Budget,
    /// So many second tries are under way.
    Parallel(u32),
}

impl Denied {
    /// The word used as label.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Budget => "budget",
            Self::Parallel(_) => "parallel",
        }
    }
}

impl Refusal {
    /// The same, with the time after which there is room again.
    fn ask_again(self, wait: Duration, is_grpc: bool) -> Self {
        if is_grpc {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
            return self.header(GRPC_PUSHBACK, HeaderValue::from(wait_ms));
        }
        // Whole seconds are all that the header can say (RFC 9110 section 10.2.3).
        let wait_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.header(RETRY_AFTER, HeaderValue::from(wait_s)).hint(format!("ask again in {wait_s} s"))
    }

    /// The same, with the reason why the request was not sent once more.
    pub(super) fn not_sent_again(self, denied: Denied) -> Self {
        match denied {
            Denied::Off => self.hint("not sent elsewhere, as the request says `marram-retry: off`"),
            Denied::Budget => {
                self.hint("not sent elsewhere: the service's retry budget (`retryConstraint`) is used up")
            }
            Denied::Parallel(limit) => self.hint(format!(
                "not sent elsewhere: {limit} second tries are under way, and `{}` is {limit}",
                Count::Retries.field()
            )),
        }
    }
}

/// The limits of one service, and what of them is used.
pub(super) struct Admission<'a> {
    context: &'a ProxyContext,
    service: &'a str,
    backend: &'a BackendPolicy,
    /// `None` where nobody offers the service; then there is nothing to count.
    view: Option<&'a ServiceView>,
}

impl<'a> Admission<'a> {
    pub(super) fn of(context: &'a ProxyContext, snapshot: &'a Snapshot, service: &'a str) -> Self {
        let view = snapshot.services.get(service).map(|view| &**view);
        Self { context, service, backend: snapshot.table.backend(service), view }
    }

    const fn limits(&self) -> &'a ServiceLimits {
        &self.backend.limits
    }

    /// One more request begins; `left` is the time it has.
    async fn request(&self, record: &mut Record, is_grpc: bool, left: Duration) -> Result<(), Refusal> {
        let Some(view) = self.view else { return Ok(()) };
        let now = self.context.clock.now();
        if let Some(rate) = &self.limits().rate {
            view.stats.pass(rate, now).map_err(|wait| self.too_often(rate).ask_again(wait, is_grpc))?;
        }
        // What this node's own limit refuses would not have begun in any case: it asks for no share.
        if let Some(limit) = &self.limits().fleet_rate {
            let share = view.fleet_share.unwrap_or_else(|| FleetShare::alone(limit));
            view.stats
                .pass_fleet(&share, now)
                .map_err(|wait| self.too_often_in_all(limit, &share).ask_again(wait, is_grpc))?;
        }
        let limit = self.limit(Count::Requests);
        record.hold(view.stats.take(Count::Requests, limit).ok_or_else(|| self.too_much(Count::Requests, limit))?);
        if view.endpoints.iter().any(|endpoint| endpoint.holds_connection()) {
            self.wait_for_connection(view, record, left).await?;
        }
        view.stats.begun(&self.limits().retries, now);
        Ok(())
    }

    async fn wait_for_connection(
        &self,
        view: &ServiceView,
        record: &mut Record,
        left: Duration,
    ) -> Result<(), Refusal> {
        let limit = self.limit(Count::Connections);
        if let Some(taken) = view.stats.take(Count::Connections, limit) {
            record.hold(taken);
            return Ok(());
        }
        let pending = self.limit(Count::Pending);
        match timeout(left, view.stats.connection(limit, pending)).await {
            Ok(Ok(taken)) => {
                record.hold(taken);
                Ok(())
            }
            Ok(Err(Full)) => Err(self.too_much(Count::Pending, pending)),
            Err(_elapsed) => Err(self.too_much(Count::Connections, limit)),
        }
    }

    /// One more tunnel begins. It takes a connection or is refused: nobody knows how long the others last.
    pub(super) fn tunnel(&self, record: &mut Record) -> Result<(), Refusal> {
        let Some(view) = self.view else { return Ok(()) };
        let limit = self.limit(Count::Connections);
        let taken = view.stats.take(Count::Connections, limit);
        record.hold(taken.ok_or_else(|| self.too_much(Count::Connections, limit))?);
        view.stats.begun(&self.limits().retries, self.context.clock.now());
        Ok(())
    }

    /// Takes a second try, beside the first or after it, from what the service has.
    pub(super) fn second_try(&self, record: &mut Record, may_retry: bool) -> Result<(), Denied> {
        let Some(view) = self.view else { return Ok(()) };
        let denied = match may_retry {
            false => Denied::Off,
            true => {
                let limit = self.limit(Count::Retries);
                match view.stats.take(Count::Retries, limit) {
                    None => Denied::Parallel(limit),
                    Some(taken) if view.stats.may_retry(&self.limits().retries, self.context.clock.now()) => {
                        record.hold(taken);
                        return Ok(());
                    }
                    Some(_) => Denied::Budget,
                }
            }
        };
        let labels = [("service", self.service.to_owned()), ("reason", denied.as_str().to_owned())];
        metrics::counter!("marram_retries_denied_total", &labels).increment(1);
        record.not_retried = Some(denied.as_str());
        Err(denied)
    }

    /// What policy says, else a part of the connections that applications may have: a service whose requests all hang must
    /// leave the others room to be asked.
    fn limit(&self, count: Count) -> u32 {
        self.told(count).unwrap_or_else(|| {
            let part = self.context.config.connections_max / PART_OF_CONNECTIONS;
            u32::try_from(part.max(1)).unwrap_or(u32::MAX)
        })
    }

    const fn told(&self, count: Count) -> Option<u32> {
        let breaker = &self.limits().breaker;
        match count {
            Count::Requests => breaker.max_parallel_requests,
            Count::Connections => breaker.max_connections,
            Count::Pending => breaker.max_pending_requests,
            Count::Retries => breaker.max_parallel_retries,
        }
    }

    fn too_much(&self, count: Count, limit: u32) -> Refusal {
        let source = match self.told(count) {
            Some(_) => format!("set by {}", self.backend.source),
            None => "the default, a quarter of `proxy.connections_max`".to_owned(),
        };
        let (service, field) = (self.service, count.field());
        let detail = match count {
            Count::Requests => format!("{limit} requests for `{service}` are under way from this node"),
            Count::Connections => format!("{limit} connections to `{service}` are in use on this node"),
            Count::Pending => format!("{limit} requests for `{service}` wait for a connection on this node"),
            Count::Retries => format!("{limit} second tries for `{service}` are under way from this node"),
        };
        self.refusal(Reason::Overloaded, field, format!("{detail}; `{field}` is {limit}, {source}"))
            .hint("ask again later, or raise the limit in a BackendTrafficPolicy for the service")
    }

    fn too_often(&self, rate: &RateLimit) -> Refusal {
        let field = "rateLimit.local";
        let per = humantime::format_duration(rate.interval);
        let detail = format!(
            "`{}` takes {} requests in {per} from this node, {} at once; `{field}` is set by {}",
            self.service, rate.requests, rate.burst, self.backend.source
        );
        self.refusal(Reason::RateLimited, field, detail)
    }

    fn too_often_in_all(&self, limit: &RateLimit, share: &FleetShare) -> Refusal {
        let field = "rateLimit.global";
        let per = humantime::format_duration(limit.interval);
        let detail = format!(
            "`{}` takes {} requests in {per} from all nodes together, of which {:.3} in 1s are this node's now, as one of {}; \
             `{field}` is set by {}",
            self.service, limit.requests, share.per_second, share.nodes, self.backend.source
        );
        self.refusal(Reason::RateLimited, field, detail)
    }

    /// Every instance has what it may have.
    fn endpoints_full(&self, none: &Refusal) -> Refusal {
        let limits =
            self.view.map_or(&[][..], |view| &view.endpoints).iter().filter_map(|endpoint| self.full(endpoint));
        let (limit, field) = limits.min().unwrap_or((0, "circuitBreaker.perEndpoint"));
        let detail = format!("{}: `{field}` is {limit}, set by {}", none.detail(), self.backend.source);
        let hint = format!("`marram route explain {}` shows every instance and its state", self.service);
        self.refusal(Reason::Overloaded, field, detail).hint(hint)
    }

    fn full(&self, endpoint: &Endpoint) -> Option<(u32, &'static str)> {
        self.limits().breaker.endpoint_limit(endpoint.holds_connection())
    }

    fn refusal(&self, reason: Reason, field: &'static str, detail: String) -> Refusal {
        self.count_limit(field);
        Refusal::new(reason, detail).header(MARRAM_LIMIT, HeaderValue::from_static(field))
    }

    fn count_limit(&self, field: &'static str) {
        let labels = [("service", self.service.to_owned()), ("limit", field.to_owned())];
        metrics::counter!("marram_limits_reached_total", &labels).increment(1);
    }
}

impl Job<'_> {
    /// Sends the request as far as policy lets it, and brings the response, which still streams.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub(super) async fn run(&self, outgoing: Outgoing, record: &mut Record) -> Result<Reply, Refusal> {
        self.admission().request(record, self.is_grpc, self.left(record)).await?;
        if !self.inject(record).await? {
            return self.carry(outgoing, record).await;
        }
        let delayed = (MARRAM_INJECTED, HeaderValue::from_static(DELAY));
        match self.carry(outgoing, record).await {
            Ok(Reply::Answer(mut response)) => {
                response.headers_mut().insert(delayed.0, delayed.1);
                Ok(Reply::Answer(response))
            }
            Ok(switched @ Reply::Switched(..)) => Ok(switched),
            Err(refusal) => Err(refusal.header(delayed.0, delayed.1)),
        }
    }

    pub(super) fn admission(&self) -> Admission<'_> {
        Admission::of(self.context, self.snapshot, self.service)
    }

    /// Does to the request what policy wants done to it; true where it was delayed.
    async fn inject(&self, record: &mut Record) -> Result<bool, Refusal> {
        let faults = &self.snapshot.table.backend(self.service).limits.faults;
        let mut is_delayed = false;
        if let Some(delay) = faults.delay.filter(|delay| self.context.chance(self.core) < delay.share) {
            self.injected(DELAY, record);
            is_delayed = true;
            let left = self.left(record);
            sleep(delay.fixed.min(left)).await;
            if delay.fixed >= left {
                let detail =
                    format!("`faultInjection.delay` held the request for `{}` for all of its time", self.service);
                let delayed = HeaderValue::from_static(DELAY);
                return Err(Refusal::new(Reason::Timeout, detail).header(MARRAM_INJECTED, delayed));
            }
        }
        let concerns = |abort: &FaultAbort| abort.http_status.is_some() || self.is_grpc;
        let abort = faults.abort.filter(concerns).filter(|abort| self.context.chance(self.core) < abort.share);
        let Some(abort) = abort else { return Ok(is_delayed) };
        self.injected(ABORT, record);
        let status = abort.http_status.and_then(|status| StatusCode::from_u16(status).ok());
        let grpc_status = abort.grpc_status.or_else(|| status.map(grpc_status_of));
        let source = &self.snapshot.table.backend(self.service).source;
        let detail = format!("`faultInjection.abort` of {source} answers requests for `{}`", self.service);
        Err(Refusal::new(Reason::FaultInjected, detail)
            .answering(status, grpc_status)
            .header(MARRAM_INJECTED, HeaderValue::from_static(ABORT)))
    }

    fn injected(&self, fault: &'static str, record: &mut Record) {
        let labels = [("service", self.service.to_owned()), ("fault", fault.to_owned())];
        metrics::counter!("marram_faults_injected_total", &labels).increment(1);
        record.injected = Some(fault);
    }

    /// The endpoint has what it may have: it is out for this request.
    pub(super) fn met_endpoint_limit(&self, tries: &mut Tries, endpoint: &std::sync::Arc<Endpoint>) {
        if let Some((_, field)) = self.admission().full(endpoint) {
            self.admission().count_limit(field);
        }
        tries.full(endpoint);
    }

    /// The refusal where every endpoint has what it may have.
    pub(super) fn endpoints_full(&self, none: &Refusal) -> Refusal {
        self.admission().endpoints_full(none)
    }
}

/// What an HTTP status means to a client of gRPC ("HTTP to gRPC Status Code Mapping").
fn grpc_status_of(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

const DELAY: &str = "delay";
const ABORT: &str = "abort";
