//! What the filters of a rule do to a request, to its response, and beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HOST, HeaderName, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response, StatusCode, Uri};
use policy::{Filters, HeaderChanges, Mirror, Redirect, Rewrite};

use super::attempt::Outgoing;
use super::body::ResponseBody;
use super::context::ProxyContext;
use super::forward::{Job, Reply};
use super::record::{Direction, Record};
use super::refuse::{Reason, Refusal};
use super::shares;

/// Copies on their way at once per process; one more is dropped, counted.
const MIRRORS_MAX: usize = 64;

/// The answer that sends whoever asked for `parts` elsewhere; the rule matched `prefix` bytes of the path.
pub(super) fn redirection(redirect: &Redirect, parts: &Parts, prefix: usize) -> Response<ResponseBody> {
    let asked = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let named = || parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let authority = asked.unwrap_or_else(named);
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut response = Response::new(ResponseBody::full(Bytes::new()));
    *response.status_mut() = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
    // What a document may say fits a header; what was asked for came in one.
    if let Ok(location) = HeaderValue::from_str(&redirect.location(&authority, target, prefix)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// Another host and path for the instance.
///
/// # Errors
/// When the path that comes of it is none, as one that has become too long.
pub(super) fn rewrite(rewrite: &Rewrite, parts: &mut Parts, prefix: usize) -> Result<(), Refusal> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let target = rewrite.target(target, prefix);
    parts.uri = Uri::try_from(&target)
        .map_err(|error| Refusal::new(Reason::BadRequest, format!("the rewritten path is not one: {error}")))?;
    if let Some(host) = &rewrite.hostname
        && let Ok(host) = HeaderValue::from_str(host)
    {
        parts.headers.insert(HOST, host);
    }
    Ok(())
}

/// Removes, sets and adds headers; what is no header's name or value was refused when the document was written.
pub(super) fn change(headers: &mut HeaderMap, changes: &HeaderChanges) {
    for name in &changes.remove {
        headers.remove(name);
    }
    for (name, value) in parsed(&changes.set) {
        headers.insert(name, value);
    }
    for (name, value) in parsed(&changes.add) {
        headers.append(name, value);
    }
}

fn parsed(pairs: &[(String, String)]) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    pairs.iter().filter_map(|(name, value)| {
        Some((HeaderName::try_from(name.as_str()).ok()?, HeaderValue::from_str(value).ok()?))
    })
}

/// Sends copies of a request to the services that mirror it, and waits for none of them.
pub(super) fn mirror(job: &Job<'_>, filters: &Filters, outgoing: &Outgoing) {
    let context = job.context;
    for Mirror { service, share } in &filters.mirrors {
        if context.chance(job.core) >= *share {
            continue;
        }
        let sent = outgoing.copy().and_then(|copy| Some((copy, Ticket::take(&context.mirrors)?)));
        let result = if sent.is_some() { "sent" } else { "dropped" };
        let labels = [("service", service.clone()), ("result", result.to_owned())];
        metrics::counter!("marram_mirrored_requests_total", &labels).increment(1);
        if let Some((copy, ticket)) = sent {
            let settled = Settled { core: job.core, timeout: job.timeout, hops: job.hops };
            shares::spawn(send(Arc::clone(context), settled, service.clone(), copy, ticket));
        }
    }
}

/// What a copy shares with its original.
#[derive(Debug, Clone, Copy)]
struct Settled {
    core: usize,
    timeout: Duration,
    hops: u8,
}

async fn send(context: Arc<ProxyContext>, settled: Settled, service: String, mut outgoing: Outgoing, _ticket: Ticket) {
    // A copy is not worth a second try.
    outgoing.is_repeatable = false;
    let request = &outgoing.request;
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let mut record =
        Record::new(&context, settled.core, Direction::Outbound, request.method(), host, request.uri().path());
    let snapshot = context.published.load();
    if snapshot.services.contains_key(&service) {
        record.service = Some(service.as_str().into());
    }
    let Settled { core, timeout, hops } = settled;
    let job = Job {
        context: &context,
        core,
        snapshot: &snapshot,
        service: &service,
        filters: None,
        requirements: None,
        timeout,
        try_timeout: None,
        hops,
        explain: false,
        is_grpc: false,
        deadline: None,
        may_retry: true,
    };
    record.status = Some(match Box::pin(job.run(outgoing, &mut record)).await {
        Ok(Reply::Answer(response) | Reply::Switched(response, _)) => response.status(),
        Err(refusal) => refusal.status(),
    });
}

/// One of the copies that may be on their way.
#[derive(Debug)]
struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let ticket = Self(Arc::clone(count));
        (before < MIRRORS_MAX).then_some(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn parts(uri: &str, host: &str) -> Parts {
        Request::builder().uri(uri).header(HOST, host).body(()).unwrap().into_parts().0
    }

    #[test]
    fn headers_are_removed_then_set_then_added() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let changes = HeaderChanges {
            remove: vec!["b".to_owned()],
            set: vec![pair("a", "5"), pair("d", "6")],
            add: vec![pair("c", "7"), pair("b", "8")],
        };
        change(&mut headers, &changes);
        let mut told: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        told.sort();
        assert_eq!(told, ["a=5", "b=8", "c=4", "c=7", "d=6"]);
    }

    #[test]
    fn a_redirection_names_what_was_asked_for_however_it_was_named() {
        let redirect = Redirect { scheme: None, hostname: None, port: Some(8080), path: None, status: 307 };
        for parts in [parts("/a?b=c", "shop.mesh:7081"), parts("http://shop.mesh:7081/a?b=c", "other")] {
            let response = redirection(&redirect, &parts, 0);
            assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(response.headers()[LOCATION], "http://shop.mesh:8080/a?b=c");
        }
    }

    #[test]
    fn no_more_than_a_bounded_number_of_copies_is_on_its_way() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut taken: Vec<Ticket> = std::iter::from_fn(|| Ticket::take(&count)).take(MIRRORS_MAX + 1).collect();
        assert_eq!(taken.len(), MIRRORS_MAX);
        taken.pop();
        assert!(Ticket::take(&count).is_some(), "one that has come to its end makes room");
    }
}
