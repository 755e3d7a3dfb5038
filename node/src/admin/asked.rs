//! What the headers and the query of a write ask for: under which condition, why, once, and how long to wait.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use policy::DocId;
use serde::Deserialize;

use super::Admin;
use super::problem::{Code, Refusal};
use crate::api::{Condition, Wait, WaitFor, WriteOptions};

/// The header that makes a repeated request one write.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The header that says why.
const REASON: HeaderName = HeaderName::from_static("marram-reason");
const IDEMPOTENCY_BYTES_MAX: usize = 128;
const REASON_BYTES_MAX: usize = 256;
/// Waited for other nodes unless the request says how long.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The longest wait: an answer is due within 30 s.
const TIMEOUT_MAX: Duration = Duration::from_secs(25);

/// Whom a write waits for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub(super) struct Waiting {
    /// Other nodes that are to have it on disk before it is answered: a number, `majority` or `all`; default 0.
    pub(super) wait: Option<String>,
    /// The longest wait, at most 25s; default `5s`. Then the answer is 202 with the nodes that have it.
    pub(super) timeout: Option<String>,
}

/// How a write of one document, or of several (`at` is `None`), is to be done.
pub(super) async fn options(
    admin: &Admin,
    headers: &HeaderMap,
    waiting: &Waiting,
    at: Option<&DocId>,
) -> Result<WriteOptions, Refusal> {
    Ok(WriteOptions {
        condition: condition(admin, headers, at).await?,
        idempotency_key: text(headers, &IDEMPOTENCY_KEY, IDEMPOTENCY_BYTES_MAX)?,
        reason: text(headers, &REASON, REASON_BYTES_MAX)?,
        wait: wait(waiting)?,
    })
}

fn text(headers: &HeaderMap, name: &HeaderName, bytes_max: usize) -> Result<String, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(String::new()) };
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|error| Refusal::new(Code::Malformed, format!("{name} is no UTF-8: {error}")))?;
    let text = text.trim();
    if text.len() > bytes_max || text.chars().any(char::is_control) {
        let detail = format!("{name} holds at most {bytes_max} bytes and no control characters, not {}", text.len());
        return Err(Refusal::new(Code::Malformed, detail));
    }
    Ok(text.to_owned())
}

fn wait(waiting: &Waiting) -> Result<Wait, Refusal> {
    let peers = match waiting.wait.as_deref() {
        None => WaitFor::Nobody,
        Some("majority") => WaitFor::Majority,
        Some("all") => WaitFor::All,
        Some(text) => match text.parse() {
            Ok(0) => WaitFor::Nobody,
            Ok(count) => WaitFor::Peers(count),
            Err(_) => {
                let detail = format!("wait=`{}` is none of a number, `majority`, `all`", text.escape_debug());
                return Err(Refusal::new(Code::Malformed, detail));
            }
        },
    };
    let timeout = match waiting.timeout.as_deref() {
        None => TIMEOUT_DEFAULT,
        Some(text) => match humantime::parse_duration(text) {
            Ok(timeout) if timeout <= TIMEOUT_MAX => timeout,
            _ => {
                let detail = format!("timeout=`{}` is no duration of at most 25s, as in `5s`", text.escape_debug());
                return Err(Refusal::new(Code::Malformed, detail));
            }
        },
    };
    Ok(Wait { peers, timeout })
}

/// The condition that the headers state.
async fn condition(admin: &Admin, headers: &HeaderMap, at: Option<&DocId>) -> Result<Condition, Refusal> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default().trim());
    let (matches, none_match) = (text(header::IF_MATCH), text(header::IF_NONE_MATCH));
    let Some(at) = at else {
        return match (matches, none_match) {
            (None, None) => Ok(Condition::Any),
            _ => Err(Refusal::new(Code::Malformed, "a condition is about one document; apply it alone")),
        };
    };
    match (matches, none_match) {
        (None, None) => Ok(Condition::Any),
        (None, Some("*")) => Ok(Condition::Absent),
        (Some("*"), None) => {
            // "The document exists": said with the ETag it has now, so that a race cannot slip between.
            let missing =
                |_error| Refusal::new(Code::StaleContext, "If-Match: * asks for a document that does not exist");
            Ok(Condition::Match(admin.api.policy(at.clone(), None).await.map_err(missing)?.etag))
        }
        (Some(etag), None) => match etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')) {
            Some(etag) if !etag.is_empty() && !etag.contains('"') => Ok(Condition::Match(etag.to_owned())),
            _ => Err(Refusal::new(Code::Malformed, "If-Match takes one ETag in quotes, as answered, or *")),
        },
        (None, Some(_)) => Err(Refusal::new(Code::Malformed, "If-None-Match takes only * here")),
        (Some(_), Some(_)) => Err(Refusal::new(Code::Malformed, "If-Match and If-None-Match exclude each other")),
    }
}
