//! Refusals of the admin API: RFC 9457 problem JSON with a stable code and every fault's field.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use policy::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::ApiError;
use crate::view::FieldChangeView;

/// The media type of every refusal.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ProblemBody {
    /// `urn:marram:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of fault in a few words; the same for every problem of this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable code; scripts may rely on it.
    pub code: String,
    /// This fault as a sentence.
    pub detail: String,
    /// Faults field by field; empty where the fault is not about a body.
    #[cfg_attr(test, schema(value_type = Vec<super::described::FieldFault>))]
    pub problems: Vec<Problem>,
    /// For `stale_context`: the document as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Version>,
    /// For `stale_context`: what the request relied on and asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yours: Option<Version>,
    /// For `stale_context`: field by field what differs, from the document as it is now to what the request asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChangeView>,
}

/// A document at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Version {
    /// Its ETag; empty when it does not exist or none was given.
    pub etag: String,
    /// The document; `null` when it does not exist or the request carried none.
    #[cfg_attr(test, schema(value_type = Object))]
    pub document: Value,
}

/// Every code the admin API answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The body is no JSON or YAML, or a parameter does not parse.
    Malformed,
    /// A write over TCP without the token.
    TokenRequired,
    /// A write over TCP with another token.
    TokenWrong,
    /// This node may not author policy.
    Denied,
    /// Nothing of that name.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The request did not arrive in time.
    RequestTimeout,
    /// A limit of the store.
    Limit,
    /// There is nothing to settle.
    NoConflict,
    /// The idempotency key was used for another write.
    IdempotencyReuse,
    /// The document changed since the ETag was read.
    StaleContext,
    /// The body is over the limit.
    BodyTooLarge,
    /// The body's type is not one that is read here.
    UnsupportedMediaType,
    /// The Host header does not name this machine.
    HostRefused,
    /// The registration of an instance has faults.
    RegistrationInvalid,
    /// The documents have faults.
    PolicyInvalid,
    /// A fault of ours.
    Internal,
    /// Not ready, or a part of the node does not answer.
    Unavailable,
    /// The disk refuses; not stored.
    StorageFull,
}

impl Code {
    /// Every code, for the documentation's test.
    pub const ALL: [Self; 19] = [
        Self::Malformed,
        Self::TokenRequired,
        Self::TokenWrong,
        Self::Denied,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Limit,
        Self::NoConflict,
        Self::IdempotencyReuse,
        Self::StaleContext,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::HostRefused,
        Self::RegistrationInvalid,
        Self::PolicyInvalid,
        Self::Internal,
        Self::Unavailable,
        Self::StorageFull,
    ];

    /// The code as it stands in the body.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.parts().0
    }

    /// The HTTP status it comes with.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        self.parts().1
    }

    const fn title(self) -> &'static str {
        self.parts().2
    }

    const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::Malformed => ("malformed", StatusCode::BAD_REQUEST, "the request does not parse"),
            Self::TokenRequired => ("token_required", StatusCode::UNAUTHORIZED, "writes over TCP need the admin token"),
            Self::TokenWrong => ("token_wrong", StatusCode::UNAUTHORIZED, "the admin token is another one"),
            Self::Denied => ("denied", StatusCode::FORBIDDEN, "this node may not do that"),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND, "nothing of that name"),
            Self::MethodNotAllowed => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "no such method here"),
            Self::RequestTimeout => {
                ("request_timeout", StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")
            }
            Self::Limit => ("limit", StatusCode::CONFLICT, "a limit is reached"),
            Self::NoConflict => ("no_conflict", StatusCode::CONFLICT, "there is nothing to settle"),
            Self::IdempotencyReuse => {
                ("idempotency_reuse", StatusCode::CONFLICT, "the idempotency key was used for another write")
            }
            Self::StaleContext => ("stale_context", StatusCode::PRECONDITION_FAILED, "the document changed meanwhile"),
            Self::BodyTooLarge => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body's type is not read here")
            }
            Self::HostRefused => {
                ("host_refused", StatusCode::MISDIRECTED_REQUEST, "the Host header is not this machine")
            }
            Self::RegistrationInvalid => {
                ("registration_invalid", StatusCode::UNPROCESSABLE_ENTITY, "the registration has faults")
            }
            Self::PolicyInvalid => ("policy_invalid", StatusCode::UNPROCESSABLE_ENTITY, "the documents have faults"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "a fault of this node"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "not available now"),
            Self::StorageFull => ("storage_full", StatusCode::INSUFFICIENT_STORAGE, "the disk refuses the write"),
        }
    }
}

/// A refusal on its way out.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) code: Code,
    detail: String,
    problems: Vec<Problem>,
    versions: Option<Box<(Version, Version)>>,
}

impl Refusal {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), problems: Vec::new(), versions: None }
    }

    pub(super) fn with_problems(mut self, problems: Vec<Problem>) -> Self {
        self.problems = problems;
        self
    }

    pub(super) fn with_versions(mut self, current: Version, yours: Version) -> Self {
        self.versions = Some(Box::new((current, yours)));
        self
    }

    /// One fault of one field.
    pub(super) fn field(code: Code, field: &str, message: impl Into<String>, hint: Option<&str>) -> Self {
        let problem = Problem { field: field.to_owned(), message: message.into(), hint: hint.map(str::to_owned) };
        Self::faults(code, vec![problem])
    }

    /// Several faults of a body.
    pub(super) fn faults(code: Code, problems: Vec<Problem>) -> Self {
        let detail = match problems.as_slice() {
            [only] => format!("{}: {}", only.field, only.message),
            many => format!("{} faults; nothing was stored", many.len()),
        };
        Self::new(code, detail).with_problems(problems)
    }

    fn body(self) -> ProblemBody {
        let (current, yours): (Option<Version>, Option<Version>) = self.versions.map(|both| *both).unzip();
        let changes = match (&current, &yours) {
            (Some(current), Some(yours)) if !yours.document.is_null() => {
                crate::plan::changes(&current.document, &yours.document)
            }
            _ => Vec::new(),
        };
        ProblemBody {
            kind: format!("urn:marram:problem:{}", self.code.as_str()),
            title: self.code.title().to_owned(),
            status: self.code.status().as_u16(),
            code: self.code.as_str().to_owned(),
            detail: self.detail,
            problems: self.problems,
            current,
            yours,
            changes,
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let detail = error.to_string();
        match error {
            ApiError::Invalid { problems } => Self::faults(Code::PolicyInvalid, problems),
            ApiError::NotFound(_) => Self::new(Code::NotFound, detail),
            ApiError::Stale { current } => {
                let current = Version { etag: current, document: Value::Null };
                let yours = Version { etag: String::new(), document: Value::Null };
                Self::new(Code::StaleContext, detail).with_versions(current, yours)
            }
            ApiError::NoConflict(_) => Self::new(Code::NoConflict, detail),
            ApiError::IdempotencyReuse => Self::new(Code::IdempotencyReuse, detail),
            ApiError::Denied(_) => Self::new(Code::Denied, detail),
            ApiError::Limit(_) => Self::new(Code::Limit, detail),
            ApiError::Storage(_) => Self::new(Code::StorageFull, detail),
            ApiError::Unavailable(_) => Self::new(Code::Unavailable, detail),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.code;
        // Texts, numbers and JSON values with text keys always serialise.
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = (code.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if code.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"marram\""));
        }
        response
    }
}
