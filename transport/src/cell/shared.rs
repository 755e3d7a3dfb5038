//! What the handle, the task and the socket of a cell share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, broadcast};

use super::guard::Refused;
use super::key::Key;
use super::view::{Change, View};

pub(super) struct Shared {
    /// This node's own values: the truth from which every run of chitchat starts.
    own: Mutex<BTreeMap<Key, String>>,
    /// Own values changed and are to be handed to chitchat.
    pub(super) own_changed: Notify,
    view: Mutex<View>,
    pub(super) changes: broadcast::Sender<Change>,
    pub(super) counters: Counters,
    pub(super) rival: Rival,
    pub(super) health: Health,
    /// The present run's state, so that tests can break it.
    #[cfg(test)]
    pub(super) chitchat: Mutex<Option<std::sync::Arc<tokio::sync::Mutex<chitchat::Chitchat>>>>,
}

impl Shared {
    pub(super) fn new(generation: u64) -> Self {
        let (changes, _) = broadcast::channel(CHANGES_MAX);
        let health = Health::default();
        health.generation.store(generation, Ordering::Relaxed);
        Self {
            own: Mutex::default(),
            own_changed: Notify::new(),
            view: Mutex::default(),
            changes,
            counters: Counters::default(),
            rival: Rival::default(),
            health,
            #[cfg(test)]
            chitchat: Mutex::default(),
        }
    }

    pub(super) fn own(&self) -> MutexGuard<'_, BTreeMap<Key, String>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signs that peers hold news about this node that it did not write: a second process with its identity, or a forgery.
#[derive(Default)]
pub(super) struct Rival {
    sightings: AtomicU32,
    generation: AtomicU64,
}

impl Rival {
    /// Notes the life under which such news was seen.
    pub(super) fn see(&self, generation: Option<u64>) {
        let Some(generation) = generation else { return };
        self.generation.fetch_max(generation, Ordering::Relaxed);
        self.sightings.fetch_add(1, Ordering::Relaxed);
    }

    /// The life to outdo, once it was seen often enough to be in the peers' states and not just in one packet.
    pub(super) fn to_outdo(&self) -> Option<u64> {
        let is_settled = self.sightings.load(Ordering::Relaxed) >= RIVAL_SIGHTINGS;
        is_settled.then(|| self.generation.load(Ordering::Relaxed))
    }

    pub(super) fn clear(&self) {
        self.sightings.store(0, Ordering::Relaxed);
    }
}

/// Gauges, written by the task.
#[derive(Default)]
pub(super) struct Health {
    pub(super) generation: AtomicU64,
    pub(super) digest_bytes: AtomicUsize,
    pub(super) members: AtomicUsize,
    pub(super) loop_alive: AtomicBool,
    pub(super) restarts: AtomicU64,
}

#[derive(Default)]
pub(super) struct Counters {
    refused: [AtomicU64; Refused::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
    outbound_dropped: AtomicU64,
    puts_refused: AtomicU64,
}

impl Counters {
    pub(super) fn refused(&self, reason: Refused) {
        let slots = Refused::ALL.iter().zip(&self.refused);
        for (_, slot) in slots.filter(|(slot_reason, _)| **slot_reason == reason) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn outbound_dropped(&self) {
        self.outbound_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn put_refused(&self) {
        self.puts_refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> CellCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CellCounters {
            refused: Refused::ALL.iter().zip(&self.refused).map(|(reason, count)| (*reason, read(count))).collect(),
            received: read(&self.received),
            sent: read(&self.sent),
            outbound_dropped: read(&self.outbound_dropped),
            puts_refused: read(&self.puts_refused),
        }
    }
}

/// What a cell did since its start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CellCounters {
    /// Messages refused by the guard, every reason with its count.
    pub refused: Vec<(Refused, u64)>,
    /// Messages that reached chitchat.
    pub received: u64,
    /// Messages handed to the links.
    pub sent: u64,
    /// Messages dropped because the queue to the links was full.
    pub outbound_dropped: u64,
    /// Own values refused because they were too long or too many.
    pub puts_refused: u64,
}

impl CellCounters {
    /// Messages refused for one reason.
    pub fn refused_for(&self, reason: Refused) -> u64 {
        self.refused.iter().filter(|(of, _)| *of == reason).map(|(_, count)| count).sum()
    }
}

/// Changes a subscriber may fall behind before it has to start over from a snapshot.
const CHANGES_MAX: usize = 4096;
/// Sightings of a rival before this node takes a new life.
const RIVAL_SIGHTINGS: u32 = 3;
