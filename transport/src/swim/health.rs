//! How far the node trusts itself (Lifeguard, section 4.A).

use std::time::Duration;

/// A score from 0, healthy, upwards. Whoever misses answers that many others would have given is probably slow or deaf
/// itself, so its own clock of accusations runs slower by `1 + score`.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalHealth {
    score: u32,
    max: u32,
}

impl LocalHealth {
    pub(super) const fn new(max: u32) -> Self {
        Self { score: 0, max }
    }

    pub(super) const fn score(&self) -> u32 {
        self.score
    }

    pub(super) fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    pub(super) fn worsen(&mut self, by: u32) {
        self.score = self.score.saturating_add(by).min(self.max);
    }

    pub(super) fn stretch(&self, duration: Duration) -> Duration {
        duration * (1 + self.score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stays_within_its_bounds_and_stretches() {
        let mut health = LocalHealth::new(7);
        health.improve();
        assert_eq!(health.score(), 0);
        health.worsen(3);
        assert_eq!(health.stretch(Duration::from_secs(1)), Duration::from_secs(4));
        health.worsen(30);
        assert_eq!(health.score(), 7);
    }
}
