//! Balancers of one client outside of the mesh, as other proxies have them: what they know is this client's own requests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use policy::{PeakEwma, Weighed, draw, draw_excluding};

/// What an instance whose latency is not known is taken to need.
const FIRST_GUESS_MS: f64 = 30.0;

/// What one client knows of the instances.
#[derive(Debug)]
pub(super) struct Balancer {
    seen: Vec<Arc<Seen>>,
    by_slots: Vec<Weighed>,
    alike: Vec<Weighed>,
}

#[derive(Debug)]
struct Seen {
    slots: f64,
    own: AtomicU32,
    latency: Mutex<PeakEwma>,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Asking(Arc<Seen>);

impl Balancer {
    pub(super) fn new(slots: &[u16]) -> Self {
        let share = |of: f64| Weighed { weight: of, probability: of };
        let all: f64 = slots.iter().map(|slots| f64::from(*slots)).sum();
        let seen = |slots: &u16| Seen { slots: f64::from(*slots), own: AtomicU32::new(0), latency: Mutex::default() };
        Self {
            seen: slots.iter().map(|slots| Arc::new(seen(slots))).collect(),
            by_slots: slots.iter().map(|slots| share(f64::from(*slots) / all)).collect(),
            alike: slots.iter().map(|_| share(1.0)).collect(),
        }
    }

    /// By chance, each as likely as it has slots.
    pub(super) fn by_capacity(&self, chances: [f64; 2]) -> Option<usize> {
        draw(&self.by_slots, chances[0])
    }

    /// The better of two by own requests for each slot.
    pub(super) fn least_request(&self, chances: [f64; 2]) -> Option<usize> {
        self.better(&self.by_slots, chances, |seen| seen.with_one_more() / seen.slots)
    }

    /// The better of two by peak EWMA times own requests.
    pub(super) fn peak_ewma(&self, chances: [f64; 2], now: Duration) -> Option<usize> {
        self.better(&self.alike, chances, |seen| {
            let latency = *seen.latency.lock().unwrap_or_else(PoisonError::into_inner);
            latency.latency_ms(now).unwrap_or(FIRST_GUESS_MS) * seen.with_one_more()
        })
    }

    fn better(&self, weighed: &[Weighed], chances: [f64; 2], cost: impl Fn(&Seen) -> f64) -> Option<usize> {
        let first = draw(weighed, chances[0])?;
        let second = draw_excluding(weighed, &[first], chances[1])?;
        let (one, other) = (self.seen.get(first)?, self.seen.get(second)?);
        Some(if cost(other) < cost(one) { second } else { first })
    }

    /// A request goes to the instance at this place.
    pub(super) fn asks(&self, at: usize) -> Option<Asking> {
        let seen = self.seen.get(at)?;
        seen.own.fetch_add(1, Ordering::Relaxed);
        Some(Asking(Arc::clone(seen)))
    }
}

impl Seen {
    fn with_one_more(&self) -> f64 {
        f64::from(self.own.load(Ordering::Relaxed) + 1)
    }
}

impl Asking {
    /// It was answered.
    pub(super) fn answered(self, latency: Duration, now: Duration) {
        let mut known = self.0.latency.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.answered(latency, now);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.own.fetch_sub(1, Ordering::Relaxed);
    }
}
