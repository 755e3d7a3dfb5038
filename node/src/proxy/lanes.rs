//! How many streams this node keeps open to each peer: fewer than the peer takes, so that waiting happens here.
//!
//! Without a count of our own, the stream after the last would hang in the transport and look like a dead peer. No service
//! takes all of a lane: one whose requests hang must leave some for the others behind the same peer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use transport::NodeId;

/// Streams to one peer from one data thread. A link takes 4,096 when they are needed; the rest is for probes.
pub(super) const STREAMS_MAX: usize = 3840;

/// Streams to one peer from one data thread for one service. What is left is for the others.
pub(super) const SERVICE_STREAMS_MAX: usize = 2880;

/// The lanes of one data thread, one per peer.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Mutex<HashMap<NodeId, Arc<Lane>>>,
}

/// The streams to one peer.
#[derive(Debug, Default)]
pub(super) struct Lane {
    used: AtomicUsize,
    freed: Notify,
    services: Mutex<HashMap<String, Arc<Part>>>,
}

/// What one service has of a lane.
#[derive(Debug)]
struct Part {
    service: String,
    used: AtomicUsize,
    freed: Notify,
}

/// The streams to one peer for one service.
#[derive(Debug, Clone)]
pub(super) struct Share {
    lane: Arc<Lane>,
    part: Arc<Part>,
}

/// The right to have one stream open, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    share: Share,
}

impl Lanes {
    /// The lane to a peer.
    pub(super) fn lane(&self, node: NodeId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry(node).or_default())
    }
}

impl Lane {
    /// The part of `service`.
    pub(super) fn share(self: &Arc<Self>, service: &str) -> Share {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let part = match services.get(service) {
            Some(part) => Arc::clone(part),
            None => {
                let part = Part { service: service.to_owned(), used: AtomicUsize::new(0), freed: Notify::new() };
                Arc::clone(services.entry(service.to_owned()).or_insert(Arc::new(part)))
            }
        };
        Share { lane: Arc::clone(self), part }
    }
}

impl Share {
    /// A place, if there is one.
    pub(super) fn try_place(&self) -> Option<Place> {
        if !more(&self.part.used, SERVICE_STREAMS_MAX) {
            return None;
        }
        if !more(&self.lane.used, STREAMS_MAX) {
            self.part.used.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place { share: self.clone() })
    }

    /// A place; where there is none, a kept stream gives way to the one that is needed now: `close` is to close one, of
    /// the service it is told where that service has all that it may have.
    pub(super) fn place_of(&self, close: impl FnOnce(Option<&str>)) -> Option<Place> {
        self.try_place().or_else(|| {
            close(self.is_full().then_some(self.part.service.as_str()));
            self.try_place()
        })
    }

    /// How many streams the service has.
    fn used(&self) -> usize {
        self.part.used.load(Ordering::Acquire)
    }

    /// Whether the service has all that it may have, so that no other service's stream would make room.
    pub(super) fn is_full(&self) -> bool {
        self.used() >= SERVICE_STREAMS_MAX
    }

    /// Ends when it is worth to look again: a place was freed, or a kept stream is free for the next request.
    pub(super) async fn changed(&self) {
        if !self.is_full() {
            self.lane.freed.notified().await;
            if !self.is_full() {
                return;
            }
            // Its turn is of no use to it any more, but may be to another service.
            self.lane.freed.notify_one();
        }
        self.part.freed.notified().await;
    }

    /// A kept stream is free for the next request.
    pub(super) fn kept(&self) {
        self.part.freed.notify_one();
        self.lane.freed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.share.part.used.fetch_sub(1, Ordering::AcqRel);
        self.share.lane.used.fetch_sub(1, Ordering::AcqRel);
        self.share.kept();
    }
}

/// Counts one more, unless there are `most`.
fn more(used: &AtomicUsize, most: usize) -> bool {
    let more = |used: usize| (used < most).then_some(used + 1);
    used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(share: &Share) -> tokio::task::JoinHandle<Place> {
        let share = share.clone();
        tokio::spawn(async move {
            loop {
                if let Some(place) = share.try_place() {
                    return place;
                }
                share.changed().await;
            }
        })
    }

    #[tokio::test]
    async fn who_waits_for_a_place_gets_the_next_that_is_freed() {
        let lane = Lanes::default().lane(NodeId::from_bytes([1; 16]));
        let (slow, other, third) = (lane.share("slow"), lane.share("other"), lane.share("third"));
        let mut places: Vec<Place> = std::iter::from_fn(|| slow.try_place()).collect();
        assert_eq!(places.len(), SERVICE_STREAMS_MAX, "no service takes all");
        let mut others: Vec<Place> = std::iter::from_fn(|| other.try_place()).collect();
        assert_eq!(others.len(), STREAMS_MAX - SERVICE_STREAMS_MAX);
        let (slow_waits, third_waits) = (wait(&slow), wait(&third));
        tokio::task::yield_now().await;
        assert!(!slow_waits.is_finished() && !third_waits.is_finished());
        others.pop();
        let _third = third_waits.await.unwrap();
        assert!(!slow_waits.is_finished(), "the place of another service is none for one that has all it may have");
        places.pop();
        let _slow = slow_waits.await.unwrap();
        assert!(slow.try_place().is_none() && other.try_place().is_none());
    }
}
