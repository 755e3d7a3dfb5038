//! What happens on this node, for `GET /v1/watch`: told live, and remembered for readers who come back.
//!
//! Each event has an id, `LIFE.NUMBER`: the life of the node and a count from 1. A reader that names the last id it has
//! seen goes on after it, as long as this life of the node still remembers it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::api::WatchEvent;

/// Events remembered.
const EVENTS_MAX: usize = 1_024;
/// Bytes of text in the events remembered; the oldest give way.
const BYTES_MAX: usize = 256 * 1024;
/// Events that a slow reader may be behind.
const LAG_MAX: usize = 256;

/// One event with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// `LIFE.NUMBER`.
    pub id: String,
    /// What happened.
    pub event: WatchEvent,
}

/// What a reader gets.
#[derive(Debug)]
pub struct Watch {
    /// What happened since the event it named; `None` when that is not known any more, or none was named: then it has to
    /// read everything anew.
    pub missed: Option<Vec<Arc<Told>>>,
    /// Id of the newest event there is, to resume after.
    pub newest: String,
    /// What happens from now on.
    pub live: broadcast::Receiver<Arc<Told>>,
}

/// Tells events and remembers the last ones. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WatchLog {
    log: Arc<Mutex<Log>>,
    live: broadcast::Sender<Arc<Told>>,
}

#[derive(Debug)]
struct Log {
    life: u64,
    /// Number of the newest event.
    number: u64,
    bytes: usize,
    events: VecDeque<Arc<Told>>,
}

impl WatchLog {
    /// Nothing has happened yet in this `life` of the node.
    #[must_use]
    pub fn new(life: u64) -> Self {
        Self::with_lag(life, LAG_MAX)
    }

    /// Like [`WatchLog::new`], with readers that may be `lag` events behind.
    #[must_use]
    pub fn with_lag(life: u64, lag: usize) -> Self {
        let log = Log { life, number: 0, bytes: 0, events: VecDeque::new() };
        Self { log: Arc::new(Mutex::new(log)), live: broadcast::channel(lag).0 }
    }

    /// Tells an event to everybody who watches.
    pub fn tell(&self, event: WatchEvent) {
        let mut log = self.log();
        log.number += 1;
        let told = Arc::new(Told { id: log.id(log.number), event });
        log.bytes += weight(&told.event);
        log.events.push_back(Arc::clone(&told));
        while log.events.len() > EVENTS_MAX || (log.bytes > BYTES_MAX && log.events.len() > 1) {
            let Some(oldest) = log.events.pop_front() else { break };
            log.bytes -= weight(&oldest.event);
        }
        // Told under the lock, so that a reader who comes now gets each event once. Nobody watching is fine.
        self.live.send(told).ok();
    }

    /// Everything after the event `since`, and what happens from now on.
    #[must_use]
    pub fn watch(&self, since: Option<&str>) -> Watch {
        let log = self.log();
        Watch { missed: since.and_then(|id| log.after(id)), newest: log.id(log.number), live: self.live.subscribe() }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn id(&self, number: u64) -> String {
        format!("{}.{number}", self.life)
    }

    /// The events after that id; `None` where it is of another life, was never told, or is forgotten.
    fn after(&self, id: &str) -> Option<Vec<Arc<Told>>> {
        let (life, number) = id.split_once('.')?;
        let number: u64 = number.parse().ok()?;
        let forgotten = self.number - u64::try_from(self.events.len()).unwrap_or(u64::MAX);
        if life.parse() != Ok(self.life) || number > self.number || number < forgotten {
            return None;
        }
        let seen = usize::try_from(number - forgotten).ok()?;
        Some(self.events.iter().skip(seen).cloned().collect())
    }
}

fn weight(event: &WatchEvent) -> usize {
    match event {
        WatchEvent::Policy { root, documents } => root.len() + documents.iter().map(String::len).sum::<usize>(),
        WatchEvent::Conflict { document, sections } => document.len() + sections.iter().map(String::len).sum::<usize>(),
        WatchEvent::Node { node, state, reason } => node.len() + state.len() + reason.len(),
        WatchEvent::Service { service } => service.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> WatchEvent {
        WatchEvent::Service { service: name.to_owned() }
    }

    fn names(missed: Option<Vec<Arc<Told>>>) -> Option<Vec<String>> {
        let name = |told: &Arc<Told>| match &told.event {
            WatchEvent::Service { service } => service.clone(),
            other => panic!("{other:?}"),
        };
        missed.map(|events| events.iter().map(name).collect())
    }

    #[test]
    fn a_reader_who_comes_back_gets_exactly_what_it_missed() {
        let log = WatchLog::new(7);
        for name in ["a", "b", "c"] {
            log.tell(service(name));
        }
        for (since, expected) in
            [("7.0", Some(vec!["a", "b", "c"])), ("7.2", Some(vec!["c"])), ("7.3", Some(vec![])), ("7.4", None)]
        {
            let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect());
            assert_eq!(names(log.watch(Some(since)).missed), expected, "{since}");
        }
        assert_eq!(log.watch(None).newest, "7.3");
    }

    #[test]
    fn ids_of_another_life_and_junk_ask_for_everything_anew() {
        let log = WatchLog::new(7);
        log.tell(service("a"));
        for since in ["6.1", "8.1", "", "7", "7.", "7.x", ".1", "7.-1", "7.18446744073709551616"] {
            assert_eq!(names(log.watch(Some(since)).missed), None, "{since}");
        }
        assert_eq!(names(log.watch(None).missed), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_in_bytes() {
        let log = WatchLog::new(1);
        for n in 0..EVENTS_MAX + 10 {
            log.tell(service(&n.to_string()));
        }
        assert_eq!(names(log.watch(Some("1.9")).missed), None, "forgotten");
        assert_eq!(names(log.watch(Some("1.10")).missed).map(|all| all.len()), Some(EVENTS_MAX));
        for _ in 0..10 {
            log.tell(service(&"x".repeat(BYTES_MAX / 4)));
        }
        let newest = EVENTS_MAX as u64 + 20;
        assert_eq!(names(log.watch(Some(&format!("1.{}", newest - 4))).missed).map(|all| all.len()), Some(4));
        assert_eq!(names(log.watch(Some(&format!("1.{}", newest - 5))).missed), None, "too long to keep");
    }
}
