//! After a recovery: policy is not written until peers had a chance to say what was lost.

use std::collections::HashSet;
use std::time::Duration;

use transport::NodeId;

/// Peers that have to be heard, where as many are known.
const PEERS: usize = 2;
/// A node that nobody answers must work all the same.
const AT_MOST: Duration = Duration::from_secs(60);
/// A node that knows nobody waits this long for somebody to turn up: its address book may be what was lost.
const ALONE: Duration = Duration::from_secs(5);

/// Whether a store that was recovered still waits for its peers. Writing before would supersede less than the writer
/// believes to see, and show as conflicts with what comes back.
#[derive(Debug)]
pub(super) struct Refill {
    since: Duration,
    heard: HashSet<NodeId>,
    is_over: bool,
}

impl Refill {
    /// Begins at `now`, monotonic; a store that was not recovered waits for nobody.
    pub(super) fn new(was_recovered: bool, now: Duration) -> Self {
        Self { since: now, heard: HashSet::new(), is_over: !was_recovered }
    }

    /// A conversation with a peer came to its end, with all that it had to say.
    pub(super) fn heard(&mut self, peer: NodeId) {
        if !self.is_over {
            self.heard.insert(peer);
        }
    }

    /// Why policy is not written now; `None` from the moment on where it may be. `known` peers could be heard.
    pub(super) fn refusal(&mut self, known: usize, now: Duration) -> Option<String> {
        let waited = now.saturating_sub(self.since);
        let due = if known == 0 { ALONE } else { AT_MOST };
        self.is_over |= waited >= due || (known > 0 && self.heard.len() >= known.min(PEERS));
        if self.is_over {
            return None;
        }
        let left = due.saturating_sub(waited).as_secs().saturating_add(1);
        Some(format!(
            "the store is being refilled after its database was damaged: {} of {} peers heard; \
             writes are taken again when they are, in {left} s at the latest",
            self.heard.len(),
            known.min(PEERS),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_store_that_was_not_recovered_waits_for_nobody() {
        assert_eq!(Refill::new(false, at(100)).refusal(5, at(100)), None);
    }

    #[test]
    fn writes_open_when_two_peers_were_heard_and_stay_open() {
        let mut refill = Refill::new(true, at(100));
        let refused = refill.refusal(5, at(101)).unwrap();
        assert!(refused.contains("being refilled") && refused.contains("0 of 2"), "{refused}");
        refill.heard(NodeId::from_bytes([1; 16]));
        refill.heard(NodeId::from_bytes([1; 16]));
        assert!(refill.refusal(5, at(102)).is_some(), "one peer twice is one peer");
        refill.heard(NodeId::from_bytes([2; 16]));
        assert_eq!(refill.refusal(5, at(102)), None);
        assert_eq!(refill.refusal(50, at(103)), None);
    }

    #[test]
    fn the_only_peer_is_enough() {
        let mut refill = Refill::new(true, at(0));
        refill.heard(NodeId::from_bytes([1; 16]));
        assert_eq!(refill.refusal(1, at(1)), None);
    }

    #[test]
    fn without_an_answer_writes_open_after_a_minute_and_alone_after_five_seconds() {
        let mut refill = Refill::new(true, at(100));
        assert!(refill.refusal(3, at(159)).is_some());
        assert_eq!(refill.refusal(3, at(160)), None);
        let mut alone = Refill::new(true, at(100));
        assert!(alone.refusal(0, at(104)).is_some());
        assert_eq!(alone.refusal(0, at(105)), None);
    }
}
