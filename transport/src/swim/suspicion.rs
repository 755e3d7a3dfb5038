//! How long a suspect has to object (Lifeguard, section 4.B).

use std::time::Duration;

use crate::id::NodeId;

/// One accusation under way. It ends by a newer incarnation of the suspect, or at [`Suspicion::deadline`].
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    started: Duration,
    min: Duration,
    max: Duration,
    /// Accusers beyond the first that are wanted; further ones change nothing.
    wanted: usize,
    accusers: Vec<NodeId>,
    /// Whether the suspect was asked directly before the verdict.
    was_asked: bool,
    /// Time in which this node itself was not running does not count against the suspect.
    forgiven: Duration,
}

impl Suspicion {
    pub(super) fn new(started: Duration, by: NodeId, wanted: usize, min: Duration, max: Duration) -> Self {
        Self { started, min, max, wanted, accusers: vec![by], was_asked: false, forgiven: Duration::ZERO }
    }

    /// Adds an accuser; false when it is known already or no more are wanted.
    pub(super) fn confirm(&mut self, by: NodeId) -> bool {
        if self.accusers.len() > self.wanted || self.accusers.contains(&by) {
            return false;
        }
        self.accusers.push(by);
        true
    }

    pub(super) fn forgive(&mut self, pause: Duration) {
        self.forgiven += pause;
    }

    pub(super) fn started(&self) -> Duration {
        self.started
    }

    pub(super) fn accusers(&self) -> &[NodeId] {
        &self.accusers
    }

    /// One of the accusers, another one with every `turn`.
    pub(super) fn accuser(&self, turn: u32) -> Option<NodeId> {
        self.accusers.iter().cycle().nth(turn as usize % self.accusers.len().max(1)).copied()
    }

    pub(super) fn deadline(&self) -> Duration {
        self.started + self.patience() + self.forgiven
    }

    /// What comes next: the question `notice` before the verdict, or the verdict.
    pub(super) fn due(&self, notice: Duration) -> Duration {
        if self.was_asked { self.deadline() } else { self.deadline().saturating_sub(notice) }
    }

    /// Whether the suspect is to be asked now; true once.
    pub(super) fn ask(&mut self, now: Duration, notice: Duration) -> bool {
        let is_due = !self.was_asked && self.due(notice) <= now;
        self.was_asked |= is_due;
        is_due
    }

    /// `max - ln(n + 1) / ln(k + 1) * (max - min)` with n confirmations of k wanted.
    #[expect(clippy::cast_precision_loss, reason = "a handful of accusers")]
    fn patience(&self) -> Duration {
        if self.wanted == 0 {
            return self.min;
        }
        let confirmations = self.accusers.len().saturating_sub(1);
        let share = ((confirmations + 1) as f64).ln() / ((self.wanted + 1) as f64).ln();
        self.max.saturating_sub(self.max.saturating_sub(self.min).mul_f64(share.min(1.0))).max(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    fn suspicion(wanted: usize) -> Suspicion {
        Suspicion::new(Duration::from_secs(100), node(1), wanted, Duration::from_secs(4), Duration::from_secs(24))
    }

    #[test]
    fn accusers_that_agree_shorten_the_wait() {
        let mut suspicion = suspicion(2);
        assert_eq!(suspicion.deadline(), Duration::from_secs(124));
        assert!(suspicion.confirm(node(2)));
        let one = suspicion.deadline().as_secs_f64();
        // 24 - ln 2 / ln 3 * 20
        assert!((one - 111.38).abs() < 0.01, "{one}");
        assert!(suspicion.confirm(node(3)));
        assert_eq!(suspicion.deadline(), Duration::from_secs(104));
    }

    #[test]
    fn one_accuser_counts_once_and_no_more_than_wanted_count() {
        let mut suspicion = suspicion(2);
        assert!(!suspicion.confirm(node(1)));
        assert!(suspicion.confirm(node(2)));
        assert!(suspicion.confirm(node(3)));
        assert!(!suspicion.confirm(node(4)));
    }

    #[test]
    fn the_suspect_is_asked_once_before_the_verdict() {
        let (mut suspicion, notice) = (suspicion(0), Duration::from_secs(1));
        assert_eq!(suspicion.due(notice), Duration::from_secs(103));
        assert!(!suspicion.ask(Duration::from_secs(102), notice));
        assert!(suspicion.ask(Duration::from_secs(103), notice));
        assert!(!suspicion.ask(Duration::from_secs(103), notice));
        assert_eq!(suspicion.due(notice), Duration::from_secs(104));
    }

    #[test]
    fn where_nobody_can_confirm_the_wait_is_the_minimum() {
        let mut suspicion = suspicion(0);
        assert_eq!(suspicion.deadline(), Duration::from_secs(104));
        assert!(!suspicion.confirm(node(2)));
        suspicion.forgive(Duration::from_secs(7));
        assert_eq!(suspicion.deadline(), Duration::from_secs(111));
    }
}
