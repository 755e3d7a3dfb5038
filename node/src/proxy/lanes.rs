//! How many streams this node keeps open to each peer: fewer than the peer takes, so that waiting happens here.
//!
//! Without a count of our own, the stream after the last would hang in the transport and look like a dead peer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use transport::NodeId;

/// Streams to one peer from one data thread. A link takes 256; the rest is for probes.
pub(super) const STREAMS_MAX: usize = 240;

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
}

/// The right to have one stream open, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    lane: Arc<Lane>,
}

impl Lanes {
    /// The lane to a peer.
    pub(super) fn lane(&self, node: NodeId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry(node).or_default())
    }
}

impl Lane {
    /// A place, if there is one.
    pub(super) fn try_place(self: &Arc<Self>) -> Option<Place> {
        let more = |used: usize| (used < STREAMS_MAX).then_some(used + 1);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place { lane: Arc::clone(self) })
    }

    /// Ends when it is worth to look again: a place was freed, or a kept stream is free for the next request.
    pub(super) async fn changed(&self) {
        self.freed.notified().await;
    }

    /// A kept stream is free for the next request.
    pub(super) fn kept(&self) {
        self.freed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lane.used.fetch_sub(1, Ordering::AcqRel);
        self.lane.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_place_gets_the_next_that_is_freed() {
        let lane = Lanes::default().lane(NodeId::from_bytes([1; 16]));
        let mut places: Vec<Place> = std::iter::from_fn(|| lane.try_place()).collect();
        assert_eq!(places.len(), STREAMS_MAX);
        let waiting = {
            let lane = Arc::clone(&lane);
            tokio::spawn(async move {
                loop {
                    if let Some(place) = lane.try_place() {
                        return place;
                    }
                    lane.changed().await;
                }
            })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        places.pop();
        let _place = waiting.await.unwrap();
        assert!(lane.try_place().is_none());
    }
}
