//! What peers have confirmed to have on disk.

use std::collections::BTreeMap;
use std::time::Duration;

use crdt_store::{Context, Dot};
use transport::NodeId;

/// The last word of each peer.
#[derive(Debug, Clone, Default)]
pub struct Acks {
    by_peer: BTreeMap<NodeId, Ack>,
}

/// The last word of one peer.
#[derive(Debug, Clone)]
pub struct Ack {
    /// All that it had on disk.
    pub context: Context,
    /// When it said so, monotonic.
    pub at: Duration,
}

impl Acks {
    /// Takes a peer's newest word; what it said before is forgotten, as its disk may have been lost since.
    pub(super) fn take(&mut self, peer: NodeId, ack: Ack) {
        self.by_peer.insert(peer, ack);
    }

    /// The last word of a peer.
    #[must_use]
    pub fn of(&self, peer: &NodeId) -> Option<&Ack> {
        self.by_peer.get(peer)
    }

    /// Every peer that said something, with its last word.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Ack)> {
        self.by_peer.iter()
    }

    /// Whether a peer has that op, or what superseded it, on disk.
    #[must_use]
    pub fn has(&self, peer: &NodeId, dot: Dot) -> bool {
        self.of(peer).is_some_and(|ack| ack.context.contains(dot))
    }
}

/// How many ops `ours` has seen that `theirs` has not, going by the highest of each origin: gaps do not count.
pub(super) fn lag(ours: &Context, theirs: &Context) -> u64 {
    let behind = ours.origins().map(|origin| ours.highest(origin).saturating_sub(theirs.highest(origin)));
    behind.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use crdt_store::Incarnation;

    use super::*;

    fn context(dots: &[(u8, u64)]) -> Context {
        let mut context = Context::new();
        for (origin, counter) in dots {
            for n in 1..=*counter {
                context.insert(Dot::new(Incarnation::from_bytes([*origin; 16]), n));
            }
        }
        context
    }

    #[test]
    fn the_lag_is_what_the_peer_has_not_seen() {
        for (ours, theirs, expected) in [
            (&[(1, 5), (2, 3)][..], &[(1, 5), (2, 3)][..], 0),
            (&[(1, 5), (2, 3)], &[(1, 2)], 6),
            (&[(1, 2)], &[(1, 5), (2, 3)], 0),
            (&[], &[], 0),
        ] {
            assert_eq!(lag(&context(ours), &context(theirs)), expected, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn the_newest_word_counts_also_when_it_says_less() {
        let (peer, dot) = (NodeId::from_bytes([1; 16]), Dot::new(Incarnation::from_bytes([1; 16]), 4));
        let mut acks = Acks::default();
        assert!(!acks.has(&peer, dot));
        acks.take(peer, Ack { context: context(&[(1, 5)]), at: Duration::ZERO });
        assert!(acks.has(&peer, dot));
        acks.take(peer, Ack { context: context(&[(1, 3)]), at: Duration::ZERO });
        assert!(!acks.has(&peer, dot), "a peer whose disk was put back has it no more");
    }
}
