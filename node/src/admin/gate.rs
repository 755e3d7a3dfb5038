//! What every request passes before a handler sees it, and what every answer passes on its way out.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use metrics::counter;

use super::problem::{Code, MEDIA_TYPE, Refusal};
use super::{Admin, AdminToken, Listener};

/// Time for a handler; storage that answers later than this is not well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The outermost layer: Host, token, panics, time, and one shape for every refusal.
pub(super) async fn guard(
    State(admin): State<Admin>,
    Extension(listener): Extension<Listener>,
    request: Request,
    next: Next,
) -> Response {
    let response = match admit(&admin.token, listener, &request) {
        Ok(()) => answer(request, next).await,
        Err((reason, refusal)) => {
            counter!("marram_admin_refused_total", "reason" => reason).increment(1);
            refusal.into_response()
        }
    };
    let response = in_one_shape(response);
    let listener = match listener {
        Listener::Tcp => "tcp",
        Listener::Socket => "socket",
    };
    let class = class(response.status());
    counter!("marram_admin_requests_total", "listener" => listener, "class" => class).increment(1);
    response
}

pub(super) async fn no_such_path(uri: Uri) -> Refusal {
    Refusal::new(Code::NotFound, format!("no endpoint `{}`; /openapi.json lists them", uri.path()))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(Code::MethodNotAllowed, format!("`{}` does not take {method}", uri.path()))
}

async fn answer(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(ANSWER_TIMEOUT, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => {
            counter!("marram_admin_panics_total").increment(1);
            tracing::error!(%method, path, "a handler of the admin API panicked");
            Refusal::new(Code::Internal, "the handler failed; the agent's log has the place").into_response()
        }
        Err(_elapsed) => {
            tracing::warn!(%method, path, "no answer within {ANSWER_TIMEOUT:?}");
            let detail = "no answer within 30 s; a write may still take effect: read before trying again";
            Refusal::new(Code::Unavailable, detail).into_response()
        }
    }
}

/// Requests over the socket are let in: its file permissions have decided.
fn admit(token: &AdminToken, listener: Listener, request: &Request) -> Result<(), (&'static str, Refusal)> {
    if listener == Listener::Socket {
        return Ok(());
    }
    admit_host(request.headers(), request.uri()).map_err(|refusal| ("host", refusal))?;
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    admit_write(token, request.headers()).map_err(|refusal| ("token", refusal))
}

fn admit_host(headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next());
    let named = uri.authority().is_none_or(|authority| is_loopback(authority.as_str()));
    if host.is_some_and(is_loopback) && another.is_none() && named {
        return Ok(());
    }
    let detail = "the Host header must be localhost or a loopback address; use http://127.0.0.1:PORT or the socket";
    Err(Refusal::new(Code::HostRefused, detail))
}

fn admit_write(token: &AdminToken, headers: &HeaderMap) -> Result<(), Refusal> {
    let hint = "send `Authorization: Bearer $(cat DIR/admin.token)`, or use DIR/admin.sock, which needs none";
    let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let Some((scheme, shown)) = shown.and_then(|value| value.split_at_checked("Bearer ".len())) else {
        return Err(Refusal::new(Code::TokenRequired, hint));
    };
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(Refusal::new(Code::TokenRequired, hint));
    }
    if token.is(shown.trim_ascii()) { Ok(()) } else { Err(Refusal::new(Code::TokenWrong, hint)) }
}

/// `localhost`, a name below it, or a loopback address; with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if port.is_empty() || port.starts_with(':') => address,
        Some(_) => return false,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Refusals that the framework words itself (a path that is no UTF-8, a query that does not parse) become problem JSON.
fn in_one_shape(response: Response) -> Response {
    let status = response.status();
    let is_refusal = status.is_client_error() || status.is_server_error();
    let shaped = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == MEDIA_TYPE);
    if !is_refusal || shaped {
        return response;
    }
    let code = if status.is_client_error() { Code::Malformed } else { Code::Internal };
    Refusal::new(code, "the request's path or query does not parse").into_response()
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        2 => "2xx",
        4 => "4xx",
        5 => "5xx",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in [
            "localhost",
            "localhost:7070",
            "LOCALHOST",
            "localhost.",
            "gw.localhost:1",
            "127.0.0.1",
            "127.0.0.11:7070",
            "[::1]",
            "[::1]:7070",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "notlocalhost",
            "10.0.0.5:7070",
            "0.0.0.0",
            "[::]",
            "[::1]evil",
            "127.0.0.1.example.org",
            "[fe80::1]:7070",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
