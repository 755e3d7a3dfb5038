//! `GET /v1/watch`: what changes, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt as _, stream};
use metrics::gauge;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use super::problem::{Code, ProblemBody, Refusal};
use super::{Admin, WATCHERS_MAX};
use crate::api::WatchEvent;

/// A comment line this often tells proxies and readers that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events as they happen: `policy`, `node`, `service`. The first one, and one after events were missed, is `resync`: read
/// everything anew.
#[utoipa::path(get, path = "/v1/watch", tag = "node", responses(
    (status = 200, description = "Server-sent events until the reader leaves or the node stops", body = String, content_type = "text/event-stream"),
    (status = 503, description = "`unavailable`: too many readers", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(super) async fn watch(
    State(admin): State<Admin>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let permit = admin.watchers.try_acquire_owned().map_err(|_none| {
        Refusal::new(Code::Unavailable, format!("{WATCHERS_MAX} readers watch already; one must leave first"))
    })?;
    let watching = Watching::new(permit);
    let events = BroadcastStream::new(admin.api.events()).map(move |event| {
        let _alive_as_long_as_the_stream = &watching;
        Ok(match event {
            Ok(event) => told(&event),
            Err(BroadcastStreamRecvError::Lagged(missed)) => resync(missed),
        })
    });
    let first = stream::once(std::future::ready(Ok(resync(0))));
    let all = first.chain(events).take_until(admin.stop.cancelled_owned());
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn told(event: &WatchEvent) -> Event {
    let name = match event {
        WatchEvent::Policy { .. } => "policy",
        WatchEvent::Node { .. } => "node",
        WatchEvent::Service { .. } => "service",
    };
    // Texts always serialise; without data a reader still learns what kind of thing changed.
    Event::default().event(name).json_data(event).unwrap_or_else(|_error| Event::default().event(name))
}

fn resync(missed: u64) -> Event {
    Event::default().event("resync").data(json!({ "missed": missed }).to_string())
}

/// One open stream, counted.
struct Watching {
    _permit: OwnedSemaphorePermit,
}

impl Watching {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        gauge!("marram_admin_watchers").increment(1.0);
        Self { _permit: permit }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        gauge!("marram_admin_watchers").decrement(1.0);
    }
}
