//! What is passed on about members, and how often.

use std::collections::BTreeMap;

use super::message::Update;
use crate::id::NodeId;

/// News waiting to ride on packets. One entry a member: newer news replaces older, so the queue is as bounded as the
/// member list.
#[derive(Debug, Default)]
pub(super) struct Updates {
    waiting: BTreeMap<NodeId, Waiting>,
    /// Grows with every entry, so that of two sent equally often the newer goes first.
    order: u64,
}

#[derive(Debug)]
struct Waiting {
    update: Update,
    sent: u32,
    order: u64,
}

impl Updates {
    pub(super) fn push(&mut self, update: Update) {
        self.order += 1;
        self.waiting.insert(update.node, Waiting { update, sent: 0, order: self.order });
    }

    pub(super) fn forget(&mut self, node: &NodeId) {
        self.waiting.remove(node);
    }

    /// Up to `room` updates but those that the receiver itself just told, least often sent first. Each is given out
    /// `limit` times in all.
    pub(super) fn take(&mut self, room: usize, limit: u32, told: &[Update]) -> Vec<Update> {
        let mut chosen: Vec<(u32, u64, NodeId)> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| !told.contains(&waiting.update))
            .map(|(node, waiting)| (waiting.sent, u64::MAX - waiting.order, *node))
            .collect();
        chosen.sort_unstable();
        chosen.truncate(room);
        let taken = chosen.iter().filter_map(|(_, _, node)| self.give_out(node)).collect();
        self.waiting.retain(|_, waiting| waiting.sent < limit);
        taken
    }

    fn give_out(&mut self, node: &NodeId) -> Option<Update> {
        let waiting = self.waiting.get_mut(node)?;
        waiting.sent += 1;
        Some(waiting.update)
    }
}

/// How often one update is passed on by each member: `factor * log10(members + 1)`, rounded up, at least once.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
#[expect(clippy::cast_precision_loss, reason = "members are counted in hundreds")]
pub(super) fn transmissions(factor: u32, members: usize) -> u32 {
    ((f64::from(factor) * (members as f64 + 1.0).log10()).ceil() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::member::Liveness;
    use super::*;

    fn update(number: u8, incarnation: u32) -> Update {
        let node = NodeId::from_bytes([number; 16]);
        Update { liveness: Liveness::Alive, node, incarnation, by: node }
    }

    #[test]
    fn the_least_often_sent_goes_first_and_each_has_its_limit() {
        let mut updates = Updates::default();
        updates.push(update(1, 0));
        updates.push(update(2, 0));
        assert_eq!(updates.take(1, 2, &[]), vec![update(2, 0)]);
        assert_eq!(updates.take(1, 2, &[]), vec![update(1, 0)]);
        assert_eq!(updates.take(9, 2, &[]), vec![update(2, 0), update(1, 0)]);
        assert_eq!(updates.take(9, 2, &[]), vec![]);
    }

    #[test]
    fn nobody_is_told_what_it_just_told() {
        let mut updates = Updates::default();
        updates.push(update(1, 0));
        updates.push(update(2, 0));
        assert_eq!(updates.take(9, 1, &[update(2, 0)]), vec![update(1, 0)]);
        assert_eq!(updates.take(9, 1, &[update(2, 1)]), vec![update(2, 0)]);
    }

    #[test]
    fn newer_news_of_a_member_replaces_older() {
        let mut updates = Updates::default();
        updates.push(update(1, 0));
        updates.push(update(1, 1));
        assert_eq!(updates.take(9, 9, &[]), vec![update(1, 1)]);
        updates.forget(&update(1, 1).node);
        assert_eq!(updates.take(9, 9, &[]), vec![]);
    }

    #[test]
    fn transmissions_grow_with_the_logarithm() {
        assert_eq!([1, 3, 50, 100].map(|members| transmissions(4, members)), [2, 3, 7, 9]);
        assert_eq!(transmissions(4, 0), 1);
    }
}
