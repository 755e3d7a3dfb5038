//! One request from an application to an instance: pick, send, and once more elsewhere where that is safe.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode, Version};
use policy::{Filters, Requirements};

use super::admit::Denied;
use super::attempt::{self, Answer, Blame, Failure, Outgoing};
use super::body::ResponseBody;
use super::context::{Outcome, OutcomeKind, ProxyContext};
use super::explain::decision;
use super::filters;
use super::grpc::{self, Ending};
use super::headers::{MARRAM_DECISION, MARRAM_VIA, RequestNote, strip_hop_by_hop, strip_marram, take_inflight};
use super::hedge::Try;
use super::record::{LocalInFlight, Record};
use super::refuse::{Reason, Refusal};
use super::retry::{Tries, too_slow};
use super::stopwatch::Wait;
use super::tcp::Wire;
use crate::config::Protocol;
use crate::outlier;
use crate::pick::Pick;
use crate::snapshot::{Endpoint, InFlight, Snapshot};

const NEEDS_HTTP2: &str = "an instance that speaks gRPC is registered with `protocol = \"http2\"`";

/// What an instance did with a request.
#[derive(Debug)]
pub(super) enum Reply {
    /// It answered; the body still streams.
    Answer(Response<ResponseBody>),
    /// It answered 101 and speaks another protocol on this connection.
    Switched(Response<ResponseBody>, Box<dyn Wire>),
}

/// A request with everything that is settled about it.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) context: &'a Arc<ProxyContext>,
    pub(super) core: usize,
    pub(super) snapshot: &'a Snapshot,
    pub(super) service: &'a str,
    /// What becomes of the request and its response on the way.
    pub(super) filters: Option<&'a Filters>,
    /// What the node of an instance must be.
    pub(super) requirements: Option<&'a Arc<Requirements>>,
    /// From the whole request to the response head.
    pub(super) timeout: Duration,
    /// The same for one try; a request that may be repeated goes to another instance after it.
    pub(super) try_timeout: Option<Duration>,
    /// Proxies crossed, this one included.
    pub(super) hops: u8,
    /// Whether the application asked for the decision.
    pub(super) explain: bool,
    /// Whether the client looks for `grpc-status`.
    pub(super) is_grpc: bool,
    /// How long the client of a gRPC request waits for all of it.
    pub(super) deadline: Option<Duration>,
    /// Whether the application leaves it to the proxy to send the request once more.
    pub(super) may_retry: bool,
}

/// An answer, and the counts of what it is in flight at.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) answer: Answer,
    mine: InFlight,
    local: Option<LocalInFlight>,
}

/// What came of a try: `None` where its time was over.
pub(super) type Came = Option<Result<Arrived, Failure>>;

impl Job<'_> {
    /// Sends the request and brings the response, which still streams.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub(super) async fn carry(&self, mut outgoing: Outgoing, record: &mut Record) -> Result<Reply, Refusal> {
        let mut tries = Tries::requiring(self.requirements).explained(self.explain);
        let mut via = None;
        // What the client is told when the request is not sent once more.
        let mut last: Option<Refusal> = None;
        loop {
            let (pick, mine) = self.choose(&mut tries).map_err(|refusal| refusal.via(via.clone()))?;
            if matches!(pick.endpoint.protocol, Protocol::Tcp | Protocol::Udp) {
                return Err(self.not_http());
            }
            if let Some(refusal) = last.take() {
                self.begin_retry(record).map_err(|denied| refusal.not_sent_again(denied).via(via))?;
            }
            let left = self.left(record);
            let one_try = self.try_timeout.filter(|limit| *limit < left);
            let spare = one_try.filter(|_| tries.may_go_on() && outgoing.is_repeatable).and_then(|_| outgoing.copy());
            let limit = one_try.unwrap_or(left);
            // An instance that had less time than it is meant to have is not to blame for being late.
            let is_fair =
                one_try.is_some() || tries.failed() == 0 && self.deadline.is_none() && record.injected.is_none();
            let (pick, came) = self.one_or_two(&mut tries, Try { pick, mine, outgoing, limit }, record).await;
            let endpoint = &pick.endpoint;
            via = endpoint.via(&self.snapshot.here.name);
            let failure = match came {
                Some(Ok(Arrived { answer, mine, local })) => {
                    record.at(Some(mine), local);
                    if answer.is_switched() {
                        return self.switched(endpoint, answer, via.clone()).map_err(|refusal| refusal.via(via));
                    }
                    let decided =
                        if self.explain { decision(self.snapshot, self.service, &pick, record.retries) } else { None };
                    return Ok(Reply::Answer(self.response(endpoint, answer, via, decided, record)));
                }
                Some(Err(failure)) if failure.blame != Blame::Slow => failure,
                slow => {
                    let told = slow.and_then(Result::err).map(|failure| failure.detail);
                    let refusal = self.timed_out(endpoint, one_try.unwrap_or(self.timeout), told.as_deref(), is_fair);
                    let Some(again) = spare.filter(|_| tries.may_go_on()) else { return Err(refusal.via(via)) };
                    tries.leave_out(endpoint, refusal.detail());
                    last = Some(refusal);
                    outgoing = again;
                    continue;
                }
            };
            let kind = match failure.blame {
                Blame::Endpoint(kind) => kind,
                Blame::Client => return Err(Refusal::new(Reason::BadRequest, failure.detail).via(via).closing()),
                Blame::Loop => return Err(self.loop_detected().via(via)),
                Blame::Slow => return Err(self.timed_out(endpoint, self.timeout, None, is_fair).via(via)),
            };
            let Failure { detail, again, is_unsent, .. } = failure;
            tries.fail(self.context, self.snapshot, endpoint, kind, detail);
            let refusal = tries.refusal(self.service, is_unsent);
            let Some(again) = again else {
                // What a server of HTTP/2 says to HTTP/1.1 is no answer at all.
                let is_misplaced = self.is_grpc && endpoint.protocol == Protocol::Http && kind == OutcomeKind::Closed;
                return Err(if is_misplaced { refusal.hint(NEEDS_HTTP2) } else { refusal }.via(via));
            };
            last = Some(refusal);
            outgoing = again;
        }
    }

    /// The endpoint for the next try, with the request counted there.
    ///
    /// # Errors
    /// The refusal that says why there is none.
    pub(super) fn choose(&self, tries: &mut Tries) -> Result<(Pick, InFlight), Refusal> {
        loop {
            let picked = tries.pick(self.context, self.core, self.snapshot, self.service);
            let pick =
                picked.map_err(|none| if tries.met_only_limits() { self.endpoints_full(&none) } else { none })?;
            let breaker = &self.snapshot.table.backend(self.service).limits.breaker;
            let limit = breaker.endpoint_limit(pick.endpoint.holds_connection());
            match pick.endpoint.stats.begin_within(limit.map_or(u32::MAX, |(limit, _)| limit)) {
                Some(mine) => return Ok((pick, mine)),
                None => self.met_endpoint_limit(tries, &pick.endpoint),
            }
        }
    }

    /// Takes a second try from the service's budget.
    fn begin_retry(&self, record: &mut Record) -> Result<(), Denied> {
        self.admission().second_try(record, self.may_retry)?;
        record.retries += 1;
        metrics::counter!("marram_retries_total", "service" => self.service.to_owned()).increment(1);
        Ok(())
    }

    /// Where the request is.
    pub(super) fn note_way(&self, pick: &Pick, record: &mut Record) {
        record.via = pick.endpoint.via(&self.snapshot.here.name);
        record.probability = Some(pick.probability);
    }

    /// One try at `endpoint`, where the request is counted as `mine`; it began at `started`.
    pub(super) async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        mine: InFlight,
        mut outgoing: Outgoing,
        left: Duration,
        started: Duration,
    ) -> Result<Arrived, Failure> {
        let is_compared = self.snapshot.table.backend(self.service).outlier.latency.is_some();
        let wait = Wait::begin(self.context, endpoint, &outgoing, is_compared);
        if let Some(left) = self.deadline_left(started) {
            grpc::write_timeout(outgoing.request.headers_mut(), left);
        }
        if let Some(instance) = &endpoint.local {
            let (local, _count) = LocalInFlight::begin(instance);
            let answer = attempt::local(self.context, self.core, instance, outgoing).await?;
            wait.answered(&answer);
            return Ok(Arrived { answer, mine, local: Some(local) });
        }
        let note = RequestNote { hops: self.hops, deadline: Some(left) };
        note.write(outgoing.request.headers_mut());
        let answer = attempt::remote(self.context, self.core, endpoint, self.hops, outgoing).await?;
        wait.answered(&answer);
        Ok(Arrived { answer, mine, local: None })
    }

    /// From here on the bytes are the application's and the instance's own: nothing is sent again.
    fn switched(&self, endpoint: &Endpoint, answer: Answer, via: Option<HeaderValue>) -> Result<Reply, Refusal> {
        let (mut parts, instance) = answer.switch().map_err(|detail| {
            let service = self.service;
            Refusal::new(
                Reason::InstanceFailed,
                format!("an instance of `{service}` switched protocols and left: {detail}"),
            )
        })?;
        endpoint.stats.succeeded();
        if let Some(via) = via {
            parts.headers.insert(MARRAM_VIA, via);
        }
        Ok(Reply::Switched(Response::from_parts(parts, ResponseBody::full(Bytes::new())), instance))
    }

    fn response(
        &self,
        endpoint: &Arc<Endpoint>,
        answer: Answer,
        via: Option<HeaderValue>,
        decided: Option<HeaderValue>,
        record: &Record,
    ) -> Response<ResponseBody> {
        let now = self.context.clock.now();
        endpoint.stats.succeeded();
        self.judge(endpoint, answer.response.status(), now);
        let (mut parts, incoming) = answer.response.into_parts();
        match &endpoint.local {
            Some(instance) => {
                endpoint.stats.report_inflight(instance.inflight.load(std::sync::atomic::Ordering::Relaxed), now);
            }
            None => {
                if let Some(told) = take_inflight(&mut parts.headers) {
                    endpoint.stats.report_inflight(told, now);
                }
            }
        }
        strip_hop_by_hop(&mut parts.headers);
        strip_marram(&mut parts.headers);
        if let Some(filters) = self.filters {
            filters::change(&mut parts.headers, &filters.response_headers);
        }
        if let Some(via) = via {
            parts.headers.insert(MARRAM_VIA, via);
        }
        if let Some(decided) = decided {
            parts.headers.insert(MARRAM_DECISION, decided);
        }
        // The version is that of each connection, not of the message (RFC 9110 section 2.5).
        parts.version = Version::HTTP_11;
        let mut body = ResponseBody::instance(incoming, answer.lease);
        if self.is_grpc {
            body = body.ending(Ending::within(self.deadline_left(record.started())));
        }
        Response::from_parts(parts, body)
    }

    /// What an answer says of its instance: one that answers with error after error is left out for a while.
    pub(super) fn judge(&self, endpoint: &Arc<Endpoint>, status: StatusCode, now: Duration) {
        // The other errors of a server are about the request: nobody here can do it.
        let is_error = status.is_server_error()
            && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED);
        if is_error {
            let seen = || format!("it answers with errors, {} last", status.as_u16());
            self.erred(endpoint, now, seen);
        } else {
            endpoint.stats.answered_well(now);
        }
    }

    /// One more error of `endpoint` in a row; too many leave it out.
    fn erred(&self, endpoint: &Arc<Endpoint>, now: Duration, seen: impl Fn() -> String) {
        let rule = &self.snapshot.table.backend(self.service).outlier;
        let others = || self.snapshot.services.get(self.service).map_or(&[][..], |view| &view.endpoints);
        let may_leave_out = || {
            let out = others().iter().filter(|other| other.stats.is_outlier(now)).count();
            outlier::may_leave_out(out, others().len(), rule)
        };
        if let Some(out_for) = endpoint.stats.answered_badly(now, rule, may_leave_out) {
            let limit = humantime::format_duration(out_for);
            self.context.tell(Outcome {
                endpoint: Arc::clone(endpoint),
                kind: OutcomeKind::Erring,
                detail: format!("{}; left out here for {limit}", seen()),
                in_a_row: 0,
                at: now,
            });
        }
    }

    /// Time left for the response head.
    pub(super) fn left(&self, record: &Record) -> Duration {
        self.timeout.saturating_sub(self.spent(record.started()))
    }

    fn deadline_left(&self, started: Duration) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_sub(self.spent(started)))
    }

    fn spent(&self, started: Duration) -> Duration {
        self.context.clock.now().saturating_sub(started)
    }

    /// The endpoint gave no answer within `limit`, or was too slow as `told`. That counts as an error of it where `is_fair`.
    fn timed_out(&self, endpoint: &Arc<Endpoint>, limit: Duration, told: Option<&str>, is_fair: bool) -> Refusal {
        let limit = humantime::format_duration(limit);
        let what = match told {
            None => format!("gave no response head within {limit}"),
            Some(told) => format!("was too slow: {told}"),
        };
        let detail = format!("`{}` {what}; asked was {} on {}", self.service, endpoint.instance, endpoint.node_name);
        too_slow(self.context, endpoint, &detail);
        if is_fair {
            self.erred(endpoint, self.context.clock.now(), || "it gives no answer in time, again and again".to_owned());
        }
        Refusal::new(Reason::Timeout, detail)
            .hint("the limit is the HTTPRoute's `timeouts`, else `proxy.request_timeout`; of a body that is not taken `proxy.idle_timeout`")
    }

    fn loop_detected(&self) -> Refusal {
        Refusal::new(Reason::LoopDetected, format!("the request for `{}` crossed too many proxies", self.service))
    }

    fn not_http(&self) -> Refusal {
        Refusal::new(Reason::NotHttp, format!("`{}` is registered with protocol `tcp`", self.service))
            .hint("use a [[listener]] for it, or CONNECT")
    }
}
