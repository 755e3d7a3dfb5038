//! The faults stop: everybody talks to everybody until nothing changes, and then all must be as the oracle says.

use super::World;
use crate::sim::{
    bits::Bits,
    chance::Chance,
    model::{Broken, Rule},
};

/// Rounds of all pairs after which replicas that can agree must have agreed.
const ROUNDS_MAX: usize = 8;

impl World {
    /// The phase of liveness.
    pub(super) fn settle(&mut self) -> Result<(), Broken> {
        self.trace.tell(|| "the faults stop".to_owned());
        self.sides = None;
        self.talks.clear();
        for node in &self.nodes {
            node.disk.forget_plans();
        }
        let mut chance = Chance::new(self.seed ^ 0x4ea1);
        if chance.one_in(2) {
            self.arrive_late()?;
        }
        if chance.one_in(2) {
            for at in 0..self.nodes.len() {
                self.reboot(at, false, &mut chance)?;
            }
            self.talks.clear();
            self.check_touched()?;
        }
        // Where two peers must say the same, one who alone has collected convinces nobody; that is safe, and an operator
        // who takes one word for it ends it.
        if self.shape.claims_needed > 1 {
            for _ in 0..2 {
                self.round(self.shape.claims_needed)?;
            }
        }
        self.agree()?;
        self.check_end()?;
        self.collect_all()?;
        self.agree()?;
        self.check_end()
    }

    /// Everything that was pushed and is still on its way arrives after all.
    fn arrive_late(&mut self) -> Result<(), Broken> {
        for pushed in std::mem::take(&mut self.pushes) {
            self.take_push(pushed.to, pushed.op, &pushed.bytes)?;
            self.check_touched()?;
        }
        Ok(())
    }

    fn round(&mut self, claims_needed: usize) -> Result<(), Broken> {
        for to in 1..self.nodes.len() {
            for from in 0..to {
                self.sync([from, to], claims_needed)?;
            }
        }
        Ok(())
    }

    fn agree(&mut self) -> Result<(), Broken> {
        for _ in 0..ROUNDS_MAX {
            self.round(1)?;
            // Floors may differ: whoever has seen a tombstone itself needs no floor to know that it was there.
            let agreed = |at: usize| (self.look(at).context_hash, self.look(at).root);
            if (1..self.nodes.len()).all(|at| agreed(at) == agreed(0)) {
                return Ok(());
            }
        }
        let look = |at: usize| format!("{} {}", self.letter(at), self.look(at));
        let looks: Vec<String> = (0..self.nodes.len()).map(look).collect();
        let what = format!("no agreement after {ROUNDS_MAX} rounds of all pairs: {}", looks.join(", "));
        Err(Broken::new(Rule::Agreement, what))
    }

    /// Every tombstone of a document that is wholly deleted can go now, and nothing visible changes.
    fn collect_all(&mut self) -> Result<(), Broken> {
        for at in 0..self.nodes.len() {
            let before = self.look(at);
            self.collect_at(at, 0)?;
            self.check_touched()?;
            let after = self.look(at);
            if (after.root, after.context_hash) != (before.root, before.context_hash) {
                return Err(Broken::new(Rule::Garbage, format!("collecting changed what {} shows", self.letter(at))));
            }
            let summary = self.replica(at).summary();
            // What superseded an op that is lost for good waits for it.
            let is_whole = !self.model.ops.iter().any(|op| op.may_be_lost) && self.doubled.is_empty();
            if is_whole && summary.gaps == 0 && summary.tombstones > 0 {
                let left = summary.tombstones;
                return Err(Broken::new(
                    Rule::Garbage,
                    format!("{left} tombstones of {} cannot be collected", self.letter(at)),
                ));
            }
        }
        Ok(())
    }

    fn check_end(&mut self) -> Result<(), Broken> {
        for at in 0..self.nodes.len() {
            self.check_node(at)?;
            self.check_views(at)?;
            self.check_same_views(0, at)?;
            self.check_bytes(at)?;
        }
        let seen = self.model.seen(self.replica(0).context());
        self.check_nothing_missing(&seen)?;
        self.model.superseded_unseen().map_or(Ok(()), |what| Err(Broken::new(Rule::Observed, what)))
    }

    /// Every op that became durable is known to all in the end, unless every disk that had it was lost.
    fn check_nothing_missing(&self, seen: &Bits) -> Result<(), Broken> {
        for (number, op) in self.model.ops.iter().enumerate() {
            if !seen.contains(number) && !op.may_be_lost {
                return Err(Broken::new(
                    Rule::Loss,
                    format!("{} was durable and nobody knows it", self.model.label(op.dot)),
                ));
            }
        }
        Ok(())
    }

    /// Live ops are the bytes that their authors signed.
    fn check_bytes(&self, at: usize) -> Result<(), Broken> {
        for op in self.model.ops.iter().filter(|op| !self.model.is_shared(op)) {
            let held = self.replica(at).signed_op(op.dot);
            if held.is_some_and(|held| held.hash() != op.hash) {
                let dot = self.model.label(op.dot);
                return Err(Broken::new(
                    Rule::Agreement,
                    format!("{} holds other bytes for {dot} than were signed", self.letter(at)),
                ));
            }
        }
        Ok(())
    }
}
