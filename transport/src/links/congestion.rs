//! Congestion control of a connection by the distance that it measures itself: CUBIC near, BBR far.
//!
//! [`PathMemory`](super::path::PathMemory) can tell at the start what an earlier connection has found, and knows of loss.
//! The first connections to a peer have nobody to tell them, and data links live for hours.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Bytes that may be on their way over a far path at first.
const WINDOW_FAR: u64 = 32 * 1200;

/// Begins each path of a connection as a near one.
#[derive(Debug)]
pub(crate) struct ByDistance {
    pub(crate) far_rtt: Duration,
}

impl ControllerFactory for ByDistance {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let distance = Distance { far_rtt: self.far_rtt, shortest: None };
        Box::new(DistanceController { distance, mtu: current_mtu, used: controller(false, now, current_mtu) })
    }
}

/// BBR with a first window that a slow line takes in a moment: 32 packets, where quinn's 200 would queue for two seconds at
/// 1 Mbit/s. It doubles with each round trip.
pub(crate) fn far_config() -> BbrConfig {
    let mut config = BbrConfig::default();
    config.initial_window(WINDOW_FAR);
    config
}

fn controller(is_far: bool, now: Instant, mtu: u16) -> Box<dyn Controller> {
    if is_far { Arc::new(far_config()).build(now, mtu) } else { Arc::new(CubicConfig::default()).build(now, mtu) }
}

/// What a path has shown of its length so far.
#[derive(Debug, Clone, Copy)]
struct Distance {
    far_rtt: Duration,
    shortest: Option<Duration>,
}

impl Distance {
    /// A packet was acknowledged this long after it had been sent: no path is longer than that, and one whose peer
    /// was slow to acknowledge looks longer than it is until a quicker answer comes.
    fn observe(&mut self, took: Duration) {
        self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
    }

    fn is_far(&self) -> bool {
        self.shortest.is_some_and(|shortest| shortest > self.far_rtt)
    }
}

/// Hands everything to the controller that suits the distance, and starts the other one afresh when that changes.
pub(crate) struct DistanceController {
    distance: Distance,
    mtu: u16,
    used: Box<dyn Controller>,
}

impl DistanceController {
    /// A packet was acknowledged this long after it had been sent.
    fn observe(&mut self, now: Instant, took: Duration) {
        let was_far = self.distance.is_far();
        self.distance.observe(took);
        if self.distance.is_far() != was_far {
            self.used = controller(!was_far, now, self.mtu);
        }
    }

    /// Whether BBR is in use.
    #[cfg(test)]
    pub(crate) fn uses_bbr(&self) -> bool {
        self.used.clone_box().into_any().is::<quinn::congestion::Bbr>()
    }
}

impl fmt::Debug for DistanceController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DistanceController").field("distance", &self.distance).finish_non_exhaustive()
    }
}

impl Controller for DistanceController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.used.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.observe(now, now.saturating_duration_since(sent));
        self.used.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.used.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.used.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.used.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.used.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.used.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { distance: self.distance, mtu: self.mtu, used: self.used.clone_box() })
    }

    fn initial_window(&self) -> u64 {
        self.used.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "quinn wants the time of a real clock; none passes here")]
    fn the_quickest_answer_decides_which_controller_is_in_use() {
        let now = Instant::now();
        let distance = Distance { far_rtt: Duration::from_millis(5), shortest: None };
        let mut controlled = DistanceController { distance, mtu: 1200, used: controller(false, now, 1200) };
        assert!(!controlled.uses_bbr(), "nothing is known yet");
        controlled.on_mtu_update(1400);
        for (took_ms, uses_bbr) in [(41, true), (60, true), (5, false), (41, false)] {
            controlled.observe(now, Duration::from_millis(took_ms));
            assert_eq!(controlled.uses_bbr(), uses_bbr, "after an answer in {took_ms} ms");
            assert_eq!(controlled.window(), controller(uses_bbr, now, 1400).window(), "it starts afresh");
        }
    }
}
