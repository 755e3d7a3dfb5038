//! What the proxy answers itself: problem JSON (RFC 9457) with a stable code and a way out.

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::body::ResponseBody;
use super::headers::MARRAM_VIA;

/// Service names listed in one answer.
const KNOWN_MAX: usize = 20;
/// Candidates named in one line.
const CANDIDATES_IN_LINE_MAX: usize = 3;
/// Candidates listed in one answer.
const CANDIDATES_MAX: usize = 50;

/// Why the proxy answers itself; each has one status and one stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The request breaks HTTP.
    BadRequest,
    /// The client did not finish its request head in time.
    HeadTimeout,
    /// The request head is too long.
    HeadTooLarge,
    /// An expectation other than 100-continue.
    UnknownExpectation,
    /// The host is not a name of the mesh.
    NotOfTheMesh,
    /// Routes name the host, and none matches the path.
    NoRoute,
    /// HTTP/2 in the middle of a connection, or a later version.
    Http2NotSupported,
    /// A plain HTTP request for a service that speaks raw TCP.
    NotHttp,
    /// Nobody offers the service.
    UnknownService,
    /// Everybody who offers the service is out.
    NoHealthyInstance,
    /// Somebody could answer, but in no region that a `Residency` allows.
    Residency,
    /// Nobody is what the route requires.
    Unfit,
    /// The node has too much to do for what is so unimportant.
    Shed,
    /// The instance failed and the request could not be sent to another one.
    InstanceFailed,
    /// No response head in time.
    Timeout,
    /// The request came back too often.
    LoopDetected,
    /// The node's memory is nearly used up.
    ShortOfMemory,
    /// A policy's limit on what is under way at once.
    Overloaded,
    /// A policy's limit on what may begin in a time.
    RateLimited,
    /// A policy says that the request is to fail.
    FaultInjected,
}

impl Reason {
    /// The HTTP status.
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownExpectation => StatusCode::EXPECTATION_FAILED,
            Self::NotOfTheMesh => StatusCode::MISDIRECTED_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Http2NotSupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::NotHttp | Self::InstanceFailed => StatusCode::BAD_GATEWAY,
            Self::UnknownService
            | Self::NoHealthyInstance
            | Self::Residency
            | Self::Unfit
            | Self::Shed
            | Self::ShortOfMemory
            | Self::Overloaded
            | Self::FaultInjected => StatusCode::SERVICE_UNAVAILABLE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
        }
    }

    /// The stable code, also the label of `marram_proxy_refused_total`.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::HeadTimeout => "head_timeout",
            Self::HeadTooLarge => "head_too_large",
            Self::UnknownExpectation => "unknown_expectation",
            Self::NotOfTheMesh => "not_of_the_mesh",
            Self::NoRoute => "no_route",
            Self::Http2NotSupported => "http2_not_supported",
            Self::NotHttp => "not_http",
            Self::UnknownService => "unknown_service",
            Self::NoHealthyInstance => "no_healthy_instance",
            Self::Residency => "residency",
            Self::Unfit => "requirements_unmet",
            Self::Shed => "shed",
            Self::InstanceFailed => "instance_failed",
            Self::Timeout => "timeout",
            Self::LoopDetected => "loop_detected",
            Self::ShortOfMemory => "short_of_memory",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::FaultInjected => "fault_injected",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "the request is not valid HTTP",
            Self::HeadTimeout => "the request head did not arrive in time",
            Self::HeadTooLarge => "the request head is too large",
            Self::UnknownExpectation => "the expectation is not known",
            Self::NotOfTheMesh => "the host is not a name of the mesh",
            Self::NoRoute => "no route matches the request",
            Self::Http2NotSupported => "the HTTP version is not supported here",
            Self::NotHttp => "the service does not speak HTTP",
            Self::UnknownService => "no node offers this service",
            Self::NoHealthyInstance => "no instance of the service can take the request",
            Self::Shed => "the node has too much to do",
            Self::Residency => "the request may not leave its regions",
            Self::Unfit => "no instance is what the route requires",
            Self::InstanceFailed => "the instance failed while it had the request",
            Self::Timeout => "no answer in time",
            Self::LoopDetected => "the request goes in circles",
            Self::ShortOfMemory => "this node has no memory for another request",
            Self::Overloaded => "too much is under way to the service",
            Self::RateLimited => "too many requests for the service",
            Self::FaultInjected => "the request fails on purpose",
        }
    }
}

/// An answer of the proxy itself.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    // Boxed, as every step of a request may return one and hardly any does.
    told: Box<Told>,
}

#[derive(Debug, Clone)]
struct Told {
    reason: Reason,
    detail: String,
    hint: Option<String>,
    known: Vec<String>,
    known_more: usize,
    candidates: Vec<RefusedCandidate>,
    via: Option<HeaderValue>,
    closes: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// In place of the reason's.
    status: Option<StatusCode>,
    grpc_status: Option<u16>,
}

/// One instance that could not take the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct RefusedCandidate {
    instance: String,
    reason: String,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    problems: Vec<Fault<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known_services: Option<&'a [String]>,
    #[serde(skip_serializing_if = "is_zero")]
    known_services_more: usize,
    #[serde(skip_serializing_if = "<[RefusedCandidate]>::is_empty")]
    candidates: &'a [RefusedCandidate],
}

#[derive(Serialize)]
struct Fault<'a> {
    field: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Refusal {
    /// A refusal that says in `detail` what happened.
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let told = Told {
            reason,
            detail: detail.into(),
            hint: None,
            known: Vec::new(),
            known_more: 0,
            candidates: Vec::new(),
            via: None,
            closes: false,
            headers: Vec::new(),
            status: None,
            grpc_status: None,
        };
        Self { told: Box::new(told) }
    }

    /// Nobody offers `service`; says who is known and which name is nearest.
    pub(crate) fn unknown_service<'a>(service: &str, known: impl Iterator<Item = &'a String>) -> Self {
        let all: Vec<&String> = known.collect();
        let nearest = all
            .iter()
            .map(|name| (strsim::damerau_levenshtein(service, name), *name))
            .filter(|(distance, name)| *distance <= name.len().max(service.len()).div_ceil(3))
            .min_by_key(|(distance, _)| *distance);
        let mut refusal = Self::new(Reason::UnknownService, format!("no node offers a service named `{service}`"));
        refusal.told.hint = Some(match nearest {
            Some((_, name)) => format!("did you mean `{name}`?"),
            None if all.is_empty() => {
                "no service is known yet; register one with PUT /v1/services/{name}/instances/{id} or [[service]]"
                    .into()
            }
            None => "`marram services` lists what is offered".into(),
        });
        refusal.told.known_more = all.len().saturating_sub(KNOWN_MAX);
        refusal.told.known = all.into_iter().take(KNOWN_MAX).cloned().collect();
        refusal
    }

    /// Adds the way out.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.told.hint = Some(hint.into());
        self
    }

    /// Adds who could not take the request, and why.
    pub(crate) fn candidates(mut self, candidates: impl IntoIterator<Item = (String, String)>) -> Self {
        self.told.candidates = candidates
            .into_iter()
            .take(CANDIDATES_MAX)
            .map(|(instance, reason)| RefusedCandidate { instance, reason })
            .collect();
        self
    }

    /// Adds a header to the answer.
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.told.headers.push((name, value));
        self
    }

    /// Answers with these in place of the reason's own, where they are given.
    pub(crate) fn answering(mut self, status: Option<StatusCode>, grpc_status: Option<u16>) -> Self {
        (self.told.status, self.told.grpc_status) = (status, grpc_status);
        self
    }

    /// Adds the way the request took.
    pub(crate) fn via(mut self, via: Option<HeaderValue>) -> Self {
        self.told.via = via;
        self
    }

    /// Closes the connection after the answer.
    pub(crate) fn closing(mut self) -> Self {
        self.told.closes = true;
        self
    }

    /// Why.
    pub(crate) fn reason(&self) -> Reason {
        self.told.reason
    }

    /// The HTTP status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        self.told.status.unwrap_or_else(|| self.told.reason.status())
    }

    /// The status for a client of gRPC, where it is another than that of the reason.
    pub(crate) fn grpc_status(&self) -> Option<u16> {
        self.told.grpc_status
    }

    /// What happened.
    pub(crate) fn detail(&self) -> &str {
        &self.told.detail
    }

    /// What happened, who failed and the way out, as one line.
    pub(crate) fn line(&self) -> String {
        let mut line = self.told.detail.clone();
        for RefusedCandidate { instance, reason } in self.told.candidates.iter().take(CANDIDATES_IN_LINE_MAX) {
            line.push_str(&format!("; {instance}: {reason}"));
        }
        if let Some(hint) = &self.told.hint {
            line.push_str("; ");
            line.push_str(hint);
        }
        line
    }

    /// Counts the refusal; what makes an answer of it does so by itself.
    pub(crate) fn count(&self) {
        metrics::counter!("marram_proxy_refused_total", "reason" => self.told.reason.code()).increment(1);
    }

    /// The answer.
    pub(crate) fn response(&self) -> Response<ResponseBody> {
        let mut response = self.response_without_body().map(|_empty| ResponseBody::full(self.body()));
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }

    /// What every form of the answer has in common.
    pub(crate) fn response_without_body(&self) -> Response<ResponseBody> {
        self.count();
        let mut response = Response::new(ResponseBody::full(Bytes::new()));
        let headers = response.headers_mut();
        if let Some(via) = &self.told.via {
            headers.insert(MARRAM_VIA, via.clone());
        }
        for (name, value) in &self.told.headers {
            headers.insert(name.clone(), value.clone());
        }
        if self.told.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The answer as bytes for a connection that no HTTP machine drives (any more); it closes the connection.
    pub(crate) fn raw_response(&self) -> Vec<u8> {
        self.count();
        let status = self.status();
        let body = self.body();
        let mut out = format!(
            "HTTP/1.1 {} {}\r\n{CONTENT_TYPE}: application/problem+json\r\n{CONTENT_LENGTH}: {}\r\n{CONNECTION}: close\r\n\r\n",
            status.as_str(),
            status.canonical_reason().unwrap_or_default(),
            body.len(),
        )
        .into_bytes();
        out.extend_from_slice(&body);
        out
    }

    fn body(&self) -> Bytes {
        let problem = Problem {
            r#type: format!("urn:marram:problem:{}", self.told.reason.code()),
            title: self.told.reason.title(),
            status: self.status().as_u16(),
            code: self.told.reason.code(),
            detail: &self.told.detail,
            problems: self
                .told
                .hint
                .iter()
                .map(|hint| Fault { field: "request", message: &self.told.detail, hint: Some(hint) })
                .collect(),
            known_services: (self.told.reason == Reason::UnknownService).then_some(&self.told.known),
            known_services_more: self.told.known_more,
            candidates: &self.told.candidates,
        };
        let mut bytes = serde_json::to_vec(&problem).unwrap_or_default();
        bytes.push(b'\n');
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(refusal: &Refusal) -> serde_json::Value {
        serde_json::from_slice(&refusal.body()).unwrap()
    }

    #[test]
    fn an_unknown_service_is_answered_with_what_is_known_and_the_nearest_name() {
        let known = ["hello".to_owned(), "payments".to_owned()];
        let body = json(&Refusal::unknown_service("helo", known.iter()));
        assert_eq!(body["code"], "unknown_service");
        assert_eq!(body["status"], 503);
        assert_eq!(body["known_services"], serde_json::json!(["hello", "payments"]));
        assert_eq!(body["problems"][0]["hint"], "did you mean `hello`?");
    }

    #[test]
    fn the_list_of_known_services_is_bounded() {
        let known: Vec<String> = (0..100).map(|i| format!("service-{i}")).collect();
        let body = json(&Refusal::unknown_service("zzzzzzzzzzzzzzzzzz", known.iter()));
        assert_eq!(body["known_services"].as_array().unwrap().len(), KNOWN_MAX);
        assert_eq!(body["known_services_more"], 80);
    }

    #[test]
    fn candidates_are_listed_with_their_reasons() {
        let refusal = Refusal::new(Reason::NoHealthyInstance, "none of 1 instances can take the request")
            .candidates([("8080@a".to_owned(), "check http failed".to_owned())]);
        let body = json(&refusal);
        assert_eq!(body["candidates"], serde_json::json!([{"instance": "8080@a", "reason": "check http failed"}]));
    }
}
