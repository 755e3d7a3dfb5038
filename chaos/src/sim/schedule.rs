//! One schedule: what a seed stands for. A list of steps, each with a roll of its own, so that any step can be left out
//! and the others still do what they did or nothing.

use super::chance::Chance;

/// What happens in one simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Where it came from.
    pub seed: u64,
    /// What takes part.
    pub shape: Shape,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// What takes part in a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Replicas, 2 to 6.
    pub nodes: usize,
    /// Documents of three sections, 1 to 4; one more for lives that exist twice.
    pub documents: usize,
    /// Bytes of ops in one sync message.
    pub chunk_bytes: usize,
    /// Bytes of ops in one conversation while faults go on.
    pub budget_bytes: usize,
    /// Peers that must claim a removal alike.
    pub claims_needed: usize,
    /// Times of 1,000 in which a message that could be pushed is lost.
    pub push_loss: usize,
    /// Times of 1,000 in which a message that was pushed comes again.
    pub push_repeat: usize,
}

/// One step: what, and the roll that settles who, where and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub act: Act,
    /// Seed of everything else about it.
    pub roll: u64,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// One client writes: puts, deletes, several documents, resolves, compare-and-set, rollbacks.
    Write,
    /// Several writes become durable together.
    Group,
    /// A client sends a write again that it has sent before, under the same idempotency key.
    Repeat,
    /// A document is read.
    Read,
    /// A pushed message arrives, is lost, or comes again.
    Push,
    /// A node pushes an old op again.
    Resend,
    /// A conversation begins.
    Talk,
    /// One message of a conversation moves.
    Deliver,
    /// A conversation goes on to its end, if nothing is in the way.
    Finish,
    /// A conversation is cut.
    Cut,
    /// The network falls into two parts.
    Split,
    /// One node is cut off.
    Isolate,
    /// The network is whole again.
    Join,
    /// A process dies and starts again on its disk, perhaps failing once while it starts.
    Restart,
    /// One of the next batches of a node fails, before or after it reached the disk.
    Fault,
    /// A node's disk is copied.
    Backup,
    /// A node's disk is lost.
    Wipe,
    /// A node starts from its copy.
    Restore,
    /// A node starts from a copy of another's disk, under its own key.
    Clone,
    /// A whole machine goes back to its copy: key, mark and all, so that the store cannot see it.
    Rewind,
    /// A node becomes a second copy of another one: key, mark and all.
    Twin,
    /// A copy of a node writes one op and is gone; the node may write another under the same dot.
    Fork,
    /// A node's clock jumps, up to a year either way.
    Clock,
    /// Time passes, milliseconds to days.
    Pass,
    /// A node collects tombstones: any age, or that of a real node.
    Collect,
}

impl Schedule {
    /// The schedule of a seed. Each draws its own rates, some of them zero.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0x6d61_7272_616d_0001);
        let nodes = 2 + chance.below(5);
        let budget = chance.pick(&[1_500, 6_000, 1 << 20]);
        let shape = Shape {
            nodes,
            documents: 1 + chance.below(4),
            chunk_bytes: chance.pick(&[1, 400, 1_500, 64 << 10]),
            budget_bytes: budget,
            claims_needed: if chance.one_in(3) { 2.min(nodes - 1) } else { 1 },
            push_loss: chance.pick(&[0, 100, 500, 1_000]),
            push_repeat: chance.pick(&[0, 100, 500]),
        };
        let rates = rates(&mut chance);
        let total = rates.iter().map(|(_, rate)| rate).sum();
        let count = 40 + chance.below(161);
        let steps = (0..count).map(|_| Step { act: draw(&rates, chance.below(total)), roll: chance.next() }).collect();
        Self { seed, shape, steps }
    }
}

fn rates(chance: &mut Chance) -> Vec<(Act, usize)> {
    let may_lose = chance.one_in(2);
    let may_double = may_lose && chance.one_in(2);
    let mut rates = Vec::new();
    for (act, base, class) in ACTS {
        let factor = match class {
            Class::Work => chance.pick(&[1, 2, 4]),
            Class::Fault => chance.pick(&[0, 1, 2, 6]),
            Class::Loss if may_lose => chance.pick(&[0, 1, 3]),
            Class::Double if may_double => chance.pick(&[0, 1, 3]),
            Class::Loss | Class::Double => 0,
        };
        rates.push((*act, base * factor));
    }
    rates
}

fn draw(rates: &[(Act, usize)], mut at: usize) -> Act {
    for (act, rate) in rates {
        if at < *rate {
            return *act;
        }
        at -= rate;
    }
    Act::Write
}

/// What an act does to a schedule's expectations.
#[derive(Debug, Clone, Copy)]
enum Class {
    /// It is the work.
    Work,
    /// It disturbs and loses nothing durable.
    Fault,
    /// It loses something durable.
    Loss,
    /// It makes a life exist twice, which nobody can repair in full: such a life writes to one document only.
    Double,
}

const ACTS: &[(Act, usize, Class)] = &[
    (Act::Write, 12, Class::Work),
    (Act::Group, 2, Class::Fault),
    (Act::Repeat, 2, Class::Fault),
    (Act::Read, 1, Class::Work),
    (Act::Push, 8, Class::Work),
    (Act::Resend, 2, Class::Fault),
    (Act::Talk, 3, Class::Work),
    (Act::Deliver, 10, Class::Work),
    (Act::Finish, 2, Class::Work),
    (Act::Cut, 1, Class::Fault),
    (Act::Split, 1, Class::Fault),
    (Act::Isolate, 1, Class::Fault),
    (Act::Join, 2, Class::Work),
    (Act::Restart, 1, Class::Fault),
    (Act::Fault, 1, Class::Fault),
    (Act::Backup, 2, Class::Loss),
    (Act::Wipe, 1, Class::Loss),
    (Act::Restore, 2, Class::Loss),
    (Act::Clone, 1, Class::Loss),
    (Act::Rewind, 1, Class::Double),
    (Act::Twin, 1, Class::Double),
    (Act::Fork, 1, Class::Double),
    (Act::Clock, 1, Class::Fault),
    (Act::Pass, 2, Class::Fault),
    (Act::Collect, 3, Class::Fault),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_keep_their_bounds_and_use_every_act() {
        let mut acts = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let schedule = Schedule::of(seed);
            assert!((2..=6).contains(&schedule.shape.nodes) && (1..=4).contains(&schedule.shape.documents));
            assert!((40..=200).contains(&schedule.steps.len()));
            assert_eq!(schedule, Schedule::of(seed));
            acts.extend(schedule.steps.iter().map(|step| step.act));
        }
        assert_eq!(acts.len(), ACTS.len());
    }
}
