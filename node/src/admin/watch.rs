//! `GET /v1/watch`: what changes, as server-sent events.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt as _, stream};
use metrics::gauge;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

#[cfg(test)]
use super::problem::ProblemBody;
use super::problem::{Code, Refusal};
use super::{Admin, WATCHERS_MAX};
use crate::api::{NodeApi, WatchEvent};
use crate::watch::Told;

/// A comment line this often tells proxies and readers that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The header in which a reader that comes back names the last event it has seen.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The names of events.
const KINDS: [&str; 4] = ["policy", "conflict", "node", "service"];

/// What to watch.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub(super) struct Watching {
    /// Id of the last event seen; the header `Last-Event-ID` counts more.
    since: Option<String>,
    /// Only these events, joined by commas: `policy`, `conflict`, `node`, `service`. A `resync` always comes.
    kinds: Option<String>,
}

/// Events as they happen: `policy`, `conflict`, `node`, `service`, each with an id. A reader that names the last id it has
/// seen gets what it missed; where that is not known any more, and for a new reader, the first event is `resync`: read
/// everything anew.
#[cfg_attr(test, utoipa::path(get, path = "/v1/watch", tag = "node",
    params(Watching, ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event seen")),
    responses(
        (status = 200, description = "Server-sent events until the reader leaves or the node stops", body = String, content_type = "text/event-stream"),
        (status = 400, description = "`malformed`: unknown kind or parameter", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: too many readers", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn watch(
    State(admin): State<Admin>,
    Query(asked): Query<Watching>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let kinds = kinds(asked.kinds.as_deref())?;
    let permit = admin.watchers.try_acquire_owned().map_err(|_none| {
        Refusal::new(Code::Unavailable, format!("{WATCHERS_MAX} readers watch already; one must leave first"))
    })?;
    let counted = Counted::new(permit);
    let named = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok()).map(str::trim);
    let watch = admin.api.watch(named.filter(|id| !id.is_empty()).or(asked.since.as_deref()));
    let api = Arc::clone(&admin.api);
    let is_wanted = move |told: &Told| kinds.contains(name(&told.event));
    let first: Vec<Event> = match watch.missed {
        Some(missed) => missed.iter().filter(|told| is_wanted(told)).map(|told| event(told)).collect(),
        None => vec![resync(&*api, 0).id(watch.newest)],
    };
    let live = BroadcastStream::new(watch.live).filter_map(move |told| {
        let _alive_as_long_as_the_stream = &counted;
        std::future::ready(match told {
            Ok(told) => is_wanted(&told).then(|| event(&told)),
            Err(BroadcastStreamRecvError::Lagged(missed)) => Some(resync(&*api, missed)),
        })
    });
    let all = stream::iter(first).chain(live).map(Ok).take_until(admin.stop.cancelled_owned());
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn kinds(asked: Option<&str>) -> Result<BTreeSet<&'static str>, Refusal> {
    let Some(asked) = asked else { return Ok(KINDS.into_iter().collect()) };
    let known = |word: &str| KINDS.into_iter().find(|kind| *kind == word);
    let each = asked.split(',').map(|word| {
        known(word.trim()).ok_or_else(|| {
            let detail = format!("kinds: `{}` is none of {}", word.escape_debug(), KINDS.join(", "));
            Refusal::new(Code::Malformed, detail)
        })
    });
    each.collect()
}

const fn name(event: &WatchEvent) -> &'static str {
    match event {
        WatchEvent::Policy { .. } => "policy",
        WatchEvent::Conflict { .. } => "conflict",
        WatchEvent::Node { .. } => "node",
        WatchEvent::Service { .. } => "service",
    }
}

fn event(told: &Told) -> Event {
    let named = || Event::default().event(name(&told.event)).id(&told.id);
    // Texts always serialise; without data a reader still learns what kind of thing changed.
    named().json_data(&told.event).unwrap_or_else(|_error| named())
}

fn resync(api: &dyn NodeApi, missed: u64) -> Event {
    let root = api.status().policy.root;
    Event::default().event("resync").data(json!({ "missed": missed, "root": root }).to_string())
}

/// One open stream, counted.
struct Counted {
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        gauge!("marram_admin_watchers").increment(1.0);
        Self { _permit: permit }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        gauge!("marram_admin_watchers").decrement(1.0);
    }
}
