//! Who reaches whom, and what is pushed from one to another: delayed, lost, repeated, out of order.

use bytes::Bytes;
use crdt_store::{Dot, SignedOp};

use super::World;
use crate::sim::{
    chance::Chance,
    model::{Broken, Rule},
};

/// A pushed message on its way.
pub(super) struct Pushed {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The op it carries, and its hash.
    pub(super) op: (Dot, [u8; 32]),
    pub(super) bytes: Bytes,
}

impl World {
    pub(super) fn reaches(&self, a: usize, b: usize) -> bool {
        self.sides.as_ref().is_none_or(|sides| sides[a] == sides[b])
    }

    pub(super) fn split(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let sides: Vec<bool> = self.nodes.iter().map(|_| chance.one_in(2)).collect();
        self.trace.tell(|| format!("the network splits: {sides:?}"));
        self.sides = Some(sides);
        Ok(())
    }

    pub(super) fn isolate(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        self.trace.tell(|| format!("{} is cut off", self.nodes[at].letter));
        self.sides = Some((0..self.nodes.len()).map(|other| other == at).collect());
        Ok(())
    }

    pub(super) fn join(&mut self) -> Result<(), Broken> {
        self.trace.tell(|| "the network is whole".to_owned());
        self.sides = None;
        Ok(())
    }

    /// Sends an op to some other nodes, outside of any conversation.
    pub(super) fn send(&mut self, chance: &mut Chance, from: usize, op: (Dot, [u8; 32]), bytes: &Bytes) {
        for _ in 0..chance.below(3) {
            let to = self.pick(chance);
            if to != from && chance.below(1_000) >= self.shape.push_loss {
                self.pushes.push(Pushed { from, to, op, bytes: bytes.clone() });
            }
        }
    }

    pub(super) fn push(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        if self.pushes.is_empty() {
            return Ok(());
        }
        let which = chance.below(self.pushes.len());
        let is_last = chance.below(1_000) >= self.shape.push_repeat;
        let Pushed { from, to, op, ref bytes } = self.pushes[which];
        let bytes = bytes.clone();
        if is_last {
            self.pushes.swap_remove(which);
        }
        if !self.reaches(from, to) {
            self.trace.tell(|| format!("{} pushes {} in vain", self.nodes[from].letter, self.model.label(op.0)));
            return Ok(());
        }
        self.take_push(to, op, &bytes)
    }

    pub(super) fn take_push(&mut self, to: usize, (dot, hash): (Dot, [u8; 32]), bytes: &Bytes) -> Result<(), Broken> {
        let now = self.now(to);
        let held = self.replica(to).signed_op(dot).map(SignedOp::hash);
        let before = self.replica(to).counters().equivocations;
        self.touched.insert(to);
        let merged = match self.nodes[to].replica.merge_push(bytes, now) {
            Ok(merged) => merged,
            Err(error) => {
                self.take_fault(to, &error)?;
                return Ok(());
            }
        };
        self.tally.pushes += 1;
        self.trace.tell(|| {
            let what = if merged.new_ops.is_empty() { "which it has or does not need" } else { "which is new" };
            format!("{} is pushed {}, {what}", self.nodes[to].letter, self.model.label(dot))
        });
        if let Some((_, refusal)) = merged.refused.first() {
            return Err(Broken::new(
                Rule::Agreement,
                format!("{} refused an honest op {}: {refusal}", self.letter(to), self.model.label(dot)),
            ));
        }
        let second = held.filter(|held| *held != hash);
        let counted = self.replica(to).counters().equivocations - before;
        if counted != u64::from(second.is_some()) {
            return Err(Broken::new(
                Rule::Counters,
                format!("{} counted {counted} equivocations of {dot:?}", self.letter(to)),
            ));
        }
        if let Some(held) = second {
            self.tally.equivocations += 1;
            let kept = self.replica(to).signed_op(dot).map(SignedOp::hash);
            if kept.is_some_and(|kept| kept != held.min(hash)) {
                return Err(Broken::new(
                    Rule::Agreement,
                    format!("{} holds the higher of two ops under {dot:?}", self.letter(to)),
                ));
            }
        }
        Ok(())
    }

    /// Old ops are pushed again, long after everybody has moved on.
    pub(super) fn resend(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let from = self.pick(chance);
        if self.model.ops.is_empty() {
            return Ok(());
        }
        let dot = self.model.ops[chance.below(self.model.ops.len())].dot;
        let Some(hash) = self.replica(from).signed_op(dot).map(SignedOp::hash) else { return Ok(()) };
        let bytes = self.replica(from).encode_push(&[dot]);
        self.trace.tell(|| format!("{} pushes {} again", self.nodes[from].letter, self.model.label(dot)));
        self.send(chance, from, (dot, hash), &bytes);
        Ok(())
    }
}
