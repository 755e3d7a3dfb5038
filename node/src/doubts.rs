//! Deaths that are not believed yet.
//!
//! At the healing of a partition, gossip of an old death arrives of a node that lives: those who tell it could not see
//! the node, and we could. Believing it closes the link, and requests fail until the node has objected. So a death of a
//! node that answered a probe of ours a moment ago is left aside; the node is told what is said of it and objects, or it
//! stays silent and is looked at again.

use std::collections::HashMap;
use std::time::Duration;

use transport::NodeId;
use transport::swim::Liveness;

/// A node that answered a probe of ours within this time is not given up because others call it dead. More of it costs
/// requests to a node that died right after an answer.
pub const HEARD_LATELY: Duration = Duration::from_secs(3);

/// When a node last showed that it lives: its last answer to a probe of ours or, where it has failed none since, the last that
/// came over a link with it. On the small side of a partition most probes go to those who are cut off, so that a neighbour is
/// asked every few seconds only, while its answers to requests come all the time.
#[must_use]
pub fn last_answer(last_ack: Option<Duration>, has_failed_here: bool, heard_at: Option<Duration>) -> Option<Duration> {
    if has_failed_here { last_ack } else { last_ack.max(heard_at) }
}

/// The deaths that are left aside, at most one of each node that the prober knows.
///
/// Hand in each verdict with [`Doubts::believes`] before it takes effect. At each tick, judge those of
/// [`Doubts::take_due`] anew by what the prober says of them now.
#[derive(Debug, Default)]
pub struct Doubts {
    /// When to look at each node again.
    look_again: HashMap<NodeId, Duration>,
}

impl Doubts {
    /// True where a verdict takes effect now; false for a death that is left aside for [`HEARD_LATELY`], and for the
    /// return from such a death: the node has objected, and was never gone here. `last_answer` is when the node last showed
    /// that it lives, see [`last_answer`]. Whatever was left aside of that node before is forgotten: the new verdict is all that the prober
    /// says of it.
    pub fn believes(&mut self, node: NodeId, liveness: Liveness, last_answer: Option<Duration>, now: Duration) -> bool {
        let was_left_aside = self.look_again.remove(&node).is_some();
        let was_heard_lately = last_answer.is_some_and(|at| now.saturating_sub(at) <= HEARD_LATELY);
        match liveness {
            Liveness::Dead if was_heard_lately => {
                self.look_again.insert(node, now.saturating_add(HEARD_LATELY));
                false
            }
            Liveness::Joining => !was_left_aside,
            Liveness::Dead | Liveness::Alive | Liveness::Suspect | Liveness::Left => true,
        }
    }

    /// Nodes to look at again, each named once: a node that has been silent since is not heard lately any more.
    pub fn take_due(&mut self, now: Duration) -> Vec<NodeId> {
        self.look_again.extract_if(|_, at| *at < now).map(|(node, _)| node).collect()
    }
}

#[cfg(test)]
mod tests;
