//! What is remembered of the way to an address, so that the next connection starts with the right congestion control.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Addresses remembered; the one that was first seen longest ago makes room.
const ADDRESSES_MAX: usize = 1024;

/// How an address was last reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Path {
    /// Smallest round trip of the connection.
    pub(crate) rtt: Duration,
    /// Share of packets lost, 0 to 1.
    pub(crate) loss: f64,
}

/// The last known path to each address, bounded.
#[derive(Debug)]
pub(crate) struct PathMemory {
    far_rtt: Duration,
    far_loss: f64,
    paths: HashMap<IpAddr, Path>,
    order: VecDeque<IpAddr>,
}

impl PathMemory {
    pub(crate) fn new(far_rtt: Duration, far_loss: f64) -> Self {
        Self { far_rtt, far_loss, paths: HashMap::new(), order: VecDeque::new() }
    }

    pub(crate) fn remember(&mut self, remote: SocketAddr, path: Path) {
        let ip = remote.ip().to_canonical();
        if self.paths.insert(ip, path).is_none() {
            self.order.push_back(ip);
            if self.order.len() > ADDRESSES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.paths.remove(&oldest);
            }
        }
    }

    /// Whether the next connection to or from here should use BBR: CUBIC collapses on loss over distance.
    pub(crate) fn is_far(&self, remote: SocketAddr) -> bool {
        self.paths
            .get(&remote.ip().to_canonical())
            .is_some_and(|path| path.rtt > self.far_rtt || path.loss > self.far_loss)
    }
}

/// Share of packets lost lately, from counters that only grow.
#[derive(Debug, Default)]
pub(crate) struct LossMeter {
    sent: u64,
    lost: u64,
    share: Option<f64>,
}

/// Packets between two samples: fewer would make one lost packet look like a lossy path.
const SAMPLE_PACKETS: u64 = 64;
/// Weight of a new sample against what was known.
const SAMPLE_WEIGHT: f64 = 0.25;

impl LossMeter {
    /// Takes the totals of a connection. Early calls change nothing.
    pub(crate) fn observe(&mut self, sent: u64, lost: u64) {
        let (new_sent, new_lost) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        if new_sent < SAMPLE_PACKETS {
            return;
        }
        (self.sent, self.lost) = (sent, lost);
        let narrow = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let sample = (narrow(new_lost) / narrow(new_sent)).min(1.0);
        self.share = Some(self.share.map_or(sample, |share| share + SAMPLE_WEIGHT * (sample - share)));
    }

    /// The share, 0 to 1; 0 until enough packets were sent to tell.
    pub(crate) fn share(&self) -> f64 {
        self.share.unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> SocketAddr {
        SocketAddr::from((number.to_be_bytes(), 7440))
    }

    #[test]
    fn far_means_a_long_way_or_a_lossy_one() {
        let mut memory = PathMemory::new(Duration::from_millis(5), 0.001);
        for (number, rtt_ms, loss, expected) in [(1, 1, 0.0, false), (2, 6, 0.0, true), (3, 1, 0.01, true)] {
            memory.remember(address(number), Path { rtt: Duration::from_millis(rtt_ms), loss });
            assert_eq!(memory.is_far(address(number)), expected, "{rtt_ms} ms, loss {loss}");
        }
        assert!(!memory.is_far(address(9)), "an unknown address is near");
    }

    #[test]
    fn the_memory_of_paths_is_bounded() {
        let mut memory = PathMemory::new(Duration::from_millis(5), 0.001);
        for number in 0..3000 {
            memory.remember(address(number), Path { rtt: Duration::from_secs(1), loss: 0.0 });
        }
        assert_eq!((memory.paths.len(), memory.order.len()), (ADDRESSES_MAX, ADDRESSES_MAX));
        assert!(memory.is_far(address(2999)) && !memory.is_far(address(0)));
    }

    #[test]
    fn loss_is_measured_in_samples_of_enough_packets() {
        let mut meter = LossMeter::default();
        meter.observe(10, 5);
        assert!(meter.share() < f64::EPSILON, "ten packets say nothing");
        meter.observe(100, 10);
        assert!((meter.share() - 0.1).abs() < 1e-9, "{}", meter.share());
        meter.observe(200, 10);
        assert!((meter.share() - 0.075).abs() < 1e-9, "{}", meter.share());
    }
}
