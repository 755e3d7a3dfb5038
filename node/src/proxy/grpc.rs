//! gRPC as far as a proxy has to know it: its deadline, and how its clients hear of failures.
//!
//! A gRPC client looks at `grpc-status` in the trailers, not at the HTTP status. What the proxy says itself is therefore
//! an answer of trailers only, with HTTP status 200 (gRPC over HTTP/2, "Responses").

use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, Version};
use tokio::time::Sleep;

use super::body::ResponseBody;
use super::refuse::{Reason, Refusal};

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Digits of a timeout.
const TIMEOUT_DIGITS_MAX: usize = 8;
/// Characters of a message; what is cut off stands in the log.
const MESSAGE_CHARS_MAX: usize = 512;

/// The codes of gRPC that the proxy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Code {
    DeadlineExceeded = 4,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

impl Code {
    /// What a refusal means to a client that decides by the code whether to ask again.
    const fn of(reason: Reason) -> Self {
        match reason {
            Reason::BadRequest | Reason::UnknownExpectation | Reason::LoopDetected => Self::Internal,
            Reason::HeadTooLarge | Reason::RateLimited | Reason::Shed => Self::ResourceExhausted,
            Reason::NotOfTheMesh | Reason::NoRoute | Reason::NotHttp | Reason::Http2NotSupported => Self::Unimplemented,
            Reason::UnknownService
            | Reason::NoHealthyInstance
            | Reason::Residency
            | Reason::Unfit
            | Reason::InstanceFailed
            | Reason::ShortOfMemory
            | Reason::Overloaded
            | Reason::FaultInjected => Self::Unavailable,
            Reason::HeadTimeout | Reason::Timeout => Self::DeadlineExceeded,
        }
    }

    const fn value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::DeadlineExceeded => "4",
            Self::ResourceExhausted => "8",
            Self::Unimplemented => "12",
            Self::Internal => "13",
            Self::Unavailable => "14",
        })
    }
}

/// Whether a request is gRPC. Over HTTP/1.1 it is not: there the client does not hear of trailers.
pub(super) fn is_grpc(parts: &Parts) -> bool {
    if parts.version != Version::HTTP_2 {
        return false;
    }
    let Some(kind) = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How long the client of a gRPC request waits for all of it. What cannot be read is left to the instance.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Writes what is left of the client's time, in the finest unit that holds it, rounded down.
pub(super) fn write_timeout(headers: &mut HeaderMap, left: Duration) {
    let fits = |count: u128| count < 10_u128.pow(8);
    let text = if fits(left.as_micros()) {
        format!("{}u", left.as_micros())
    } else if fits(left.as_millis()) {
        format!("{}m", left.as_millis())
    } else if fits(left.as_secs().into()) {
        format!("{}S", left.as_secs())
    } else {
        format!("{}H", left.as_secs() / 3600)
    };
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// The refusal as a gRPC client hears it.
pub(super) fn response(refusal: &Refusal) -> Response<ResponseBody> {
    let mut response = refusal.response_without_body();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    write_status(headers, Code::of(refusal.reason()), &refusal.line());
    if let Some(status) = refusal.grpc_status() {
        headers.insert(GRPC_STATUS, HeaderValue::from(status));
    }
    response
}

fn write_status(headers: &mut HeaderMap, code: Code, message: &str) {
    headers.insert(GRPC_STATUS, code.value());
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// Printable ASCII stays, everything else and `%` itself becomes `%XX`.
fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for c in message.chars().take(MESSAGE_CHARS_MAX) {
        if (' '..='~').contains(&c) && c != '%' {
            out.push(c);
            continue;
        }
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            // Writing to a text cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
    out
}

/// How a gRPC answer ends when its instance does not end it.
#[derive(Debug)]
pub(super) struct Ending {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Ending {
    /// An answer whose client waits for `left` more, or for ever.
    pub(super) fn within(left: Option<Duration>) -> Self {
        Self { sleep: left.map(|left| Box::pin(tokio::time::sleep(left))) }
    }

    /// Ready with the trailers to end with when the client's time is over.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<HeaderMap> {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx).map(|()| {
                trailers(Code::DeadlineExceeded, "the request's `grpc-timeout` was over before the answer was whole")
            }),
            None => Poll::Pending,
        }
    }

    /// The trailers to end with when the instance broke off.
    pub(super) fn broken(error: &dyn std::error::Error) -> HeaderMap {
        trailers(Code::Unavailable, &format!("the instance broke off in the middle of its answer: {error}"))
    }
}

fn trailers(code: Code, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    write_status(&mut trailers, code, message);
    trailers
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn parts(version: Version, kind: &'static str) -> Parts {
        Request::builder().version(version).header(CONTENT_TYPE, kind).body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_grpc_over_http2_is_taken_for_grpc() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&parts(Version::HTTP_2, kind)), expected, "{kind}");
            assert!(!is_grpc(&parts(Version::HTTP_11, kind)), "{kind}");
        }
    }

    #[test]
    fn timeouts_are_read_and_written_in_every_unit() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(text));
            timeout(&headers)
        };
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("10S", Some(Duration::from_secs(10))),
            ("1500m", Some(Duration::from_millis(1500))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789u", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
            ("1 S", None),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
        for (left, expected) in [
            (Duration::from_nanos(1_999), "1u"),
            (Duration::from_micros(99_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
        ] {
            let mut headers = HeaderMap::new();
            write_timeout(&mut headers, left);
            assert_eq!(headers[GRPC_TIMEOUT], expected, "{left:?}");
        }
    }

    #[test]
    fn messages_are_percent_encoded_and_bounded() {
        assert_eq!(percent_encoded("`a` is 100 % gone\n\u{fc}"), "`a` is 100 %25 gone%0A%C3%BC");
        assert_eq!(percent_encoded(&"x".repeat(9999)).len(), MESSAGE_CHARS_MAX);
    }
}
