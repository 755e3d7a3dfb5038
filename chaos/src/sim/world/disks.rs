//! What happens to machines: processes die and start again, disks fail, are lost, put back and copied.

use std::sync::Arc;

use crdt_store::{Authority, Edit, Fault, Incarnation, OpKind, WriteMeta};

use super::{Body, Reach, World};
use crate::sim::{
    bits::Bits,
    chance::Chance,
    disk::SimDisk,
    model::{Broken, Rule, SECTIONS},
};

/// A copy of a whole machine.
pub(super) struct Snapshot {
    disk: SimDisk,
    key_name: String,
    authority: Arc<dyn Authority>,
    life: Incarnation,
}

/// Which life a node must have after a start.
#[derive(Debug, Clone, Copy)]
enum Expected {
    /// That one.
    Life(Incarnation),
    /// That one, or the one after it where the batch that nobody heard of was the change of lives.
    Unheard(Incarnation),
    /// One that nobody has heard of.
    New,
}

impl World {
    /// A process dies between two steps and starts again; now and then it fails once while it starts.
    pub(super) fn restart(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        self.trace.tell(|| format!("{} restarts", self.nodes[at].letter));
        self.tally.restarts += 1;
        if chance.one_in(4) {
            let fault = chance.pick(&[None, Some(Fault::CrashBefore), Some(Fault::CrashAfter), Some(Fault::Io)]);
            let disk = &self.nodes[at].disk;
            disk.forget_plans();
            fault.map_or_else(|| disk.plan_mark_cut(), |fault| disk.plan(fault));
            self.trace.tell(|| format!("    and fails while it starts: {fault:?}"));
        }
        self.reboot(at, false, chance)
    }

    /// Starts a node again on the disk it has; `has_unheard` where the disk may hold a batch that memory does not.
    pub(super) fn reboot(&mut self, at: usize, has_unheard: bool, chance: &mut Chance) -> Result<(), Broken> {
        let look = self.look(at);
        let life = self.replica(at).incarnation();
        let expected = if has_unheard { Expected::Unheard(life) } else { Expected::Life(life) };
        self.boot(at, expected, chance)?;
        if !has_unheard && self.look(at) != look {
            return Err(Broken::new(
                Rule::Durability,
                format!("{} came back with another state than it had", self.letter(at)),
            ));
        }
        Ok(())
    }

    fn boot(&mut self, at: usize, expected: Expected, chance: &mut Chance) -> Result<(), Broken> {
        self.touched.insert(at);
        let now = self.now(at);
        let mut is_unsure = self.nodes[at].is_mark_missing;
        loop {
            let (disk, authority) = (self.nodes[at].disk.share(), Arc::clone(&self.nodes[at].authority));
            let replica = self.open(&disk, &authority, now)?;
            let struck = disk.take_struck();
            let is_dead = disk.is_dead();
            is_unsure |= struck.is_some();
            let node = &mut self.nodes[at];
            node.is_mark_missing = struck.is_some();
            node.replica = replica;
            disk.forget_plans();
            if !is_dead {
                break;
            }
        }
        let node = &mut self.nodes[at];
        let life = node.replica.incarnation();
        let minted = node.replica.counters().incarnations;
        (node.life, node.incarnations, node.claims) = (life, minted, 0);
        let is_known = self.model.knows_life(&life);
        self.name_life(at);
        self.trace.tell(|| format!("    {} is up as {}", self.nodes[at].letter, self.model.life_label(&life)));
        let is_wanted = match expected {
            Expected::Life(wanted) if !is_unsure => life == wanted && minted == 0,
            Expected::Unheard(wanted) if !is_unsure && !self.doubled.contains(&wanted) => life == wanted && minted == 0,
            Expected::Unheard(wanted) if self.doubled.contains(&wanted) => minted <= u64::from(life != wanted),
            Expected::Life(wanted) | Expected::Unheard(wanted) => minted == u64::from(life != wanted),
            Expected::New => !is_known && minted == 1,
        };
        // Whoever keeps a life on purpose is to be caught by what comes of it.
        if !is_wanted && self.mutation.is_none() {
            let name = self.model.life_label(&life);
            return Err(Broken::new(
                Rule::Counters,
                format!("{} came up as {name}, {minted} new; due: {expected:?}", self.letter(at)),
            ));
        }
        self.talks_after_boot(at, chance);
        Ok(())
    }

    pub(super) fn plan_fault(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let fault = chance.pick(&[Fault::Full, Fault::Io, Fault::CrashBefore, Fault::CrashAfter]);
        for _ in 0..chance.below(3) {
            self.nodes[at].disk.plan(Fault::None);
        }
        self.nodes[at].disk.plan(fault);
        self.trace.tell(|| format!("{}'s disk will fail: {fault:?}", self.nodes[at].letter));
        Ok(())
    }

    pub(super) fn back_up(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        self.trace.tell(|| format!("{} is copied", self.nodes[at].letter));
        self.nodes[at].backup = Some(self.snapshot(at));
        Ok(())
    }

    fn snapshot(&self, at: usize) -> Snapshot {
        let node = &self.nodes[at];
        Snapshot {
            disk: node.disk.copy_whole(),
            key_name: node.key_name.clone(),
            authority: Arc::clone(&node.authority),
            life: node.replica.incarnation(),
        }
    }

    pub(super) fn wipe(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        self.trace.tell(|| format!("{}'s disk is lost", self.nodes[at].letter));
        self.replace_disk(at, SimDisk::default(), Expected::New, chance)
    }

    pub(super) fn restore(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let Some(backup) = &self.nodes[at].backup else { return Ok(()) };
        let disk = backup.disk.copy();
        self.trace.tell(|| format!("{} is put back from its copy", self.nodes[at].letter));
        self.replace_disk(at, disk, Expected::New, chance)
    }

    pub(super) fn clone_disk(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let (from, to) = (self.pick(chance), self.pick(chance));
        if from == to {
            return Ok(());
        }
        // With the mark, another key must be enough to see that the life is not ours; it is known once it has written.
        let snapshot = self.snapshot(from);
        let is_own_key = snapshot.key_name == self.nodes[to].key_name;
        let has_written = self.replica(from).context().highest(&snapshot.life) > 0;
        let disk = if is_own_key || !has_written { snapshot.disk.copy() } else { snapshot.disk };
        self.trace.tell(|| format!("{} starts on a copy of {}'s disk", self.nodes[to].letter, self.nodes[from].letter));
        self.replace_disk(to, disk, Expected::New, chance)
    }

    pub(super) fn rewind(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let Some(backup) = &self.nodes[at].backup else { return Ok(()) };
        let snapshot = Snapshot {
            disk: backup.disk.copy_whole(),
            key_name: backup.key_name.clone(),
            authority: Arc::clone(&backup.authority),
            life: backup.life,
        };
        self.trace.tell(|| format!("{} goes back to its copy, mark and all", self.nodes[at].letter));
        self.become_twin(at, snapshot, chance)
    }

    pub(super) fn twin(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let (from, to) = (self.pick(chance), self.pick(chance));
        if from == to {
            return Ok(());
        }
        let snapshot = self.snapshot(from);
        self.trace.tell(|| format!("{} becomes a second {}", self.nodes[to].letter, self.nodes[from].letter));
        self.become_twin(to, snapshot, chance)
    }

    fn become_twin(&mut self, at: usize, snapshot: Snapshot, chance: &mut Chance) -> Result<(), Broken> {
        self.doubled.insert(snapshot.life);
        let node = &mut self.nodes[at];
        node.key_name = snapshot.key_name;
        node.authority = snapshot.authority;
        // Its life does not tell it from what it was, so a message from before would not be told either.
        self.talks.retain(|talk| !talk.is_of(at));
        self.replace_disk(at, snapshot.disk, Expected::Life(snapshot.life), chance)
    }

    /// A copy of a node writes one op and is gone. The node may write another under the same dot.
    pub(super) fn fork(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let now = self.now(at);
        let life = self.replica(at).incarnation();
        self.doubled.insert(life);
        if self.reach(at) != Reach::Shared || self.model.is_full() {
            return Ok(());
        }
        let disk = self.nodes[at].disk.copy_whole();
        let authority = Arc::clone(&self.nodes[at].authority);
        let mut copy = self.open(&disk, &authority, now)?;
        if copy.incarnation() != life {
            return Ok(());
        }
        self.values += 1;
        let section = chance.pick(&SECTIONS);
        let body: Body = [(section.to_owned(), format!("f{}", self.values).into_bytes())].into();
        let key = self.model.shared_key().clone();
        let edit = if chance.one_in(4) { Edit::delete(key) } else { Edit::put(key, body) };
        let meta = WriteMeta { op_kind: OpKind::Put, ..WriteMeta::default() };
        let seen = self.model.seen(copy.context());
        let Ok(written) = copy.write(vec![edit], meta, now) else { return Ok(()) };
        let Some(signed) = written.dot.and_then(|dot| copy.signed_op(dot)) else { return Ok(()) };
        let op = signed
            .read(&Self::store_id())
            .map_err(|fault| Broken::new(Rule::Answers, format!("an op does not read: {fault}")))?;
        self.model.record(&op, signed.hash(), seen);
        self.mark_lost();
        self.trace
            .tell(|| format!("a copy of {} writes {} and is gone", self.nodes[at].letter, self.model.label(op.dot)));
        for _ in 0..3 {
            self.send(chance, at, (op.dot, signed.hash()), &written.push);
        }
        Ok(())
    }

    fn replace_disk(
        &mut self,
        at: usize,
        disk: SimDisk,
        expected: Expected,
        chance: &mut Chance,
    ) -> Result<(), Broken> {
        self.tally.disks_lost += 1;
        let node = &mut self.nodes[at];
        node.disk = disk;
        node.generation += 1;
        node.acked = Bits::default();
        node.is_mark_missing = false;
        self.boot(at, expected, chance)?;
        self.mark_lost();
        Ok(())
    }

    /// Ops that nobody has seen any more may be gone for good.
    fn mark_lost(&mut self) {
        let none = Bits::default();
        let kept = self.nodes.iter().fold(none, |all, node| all.or(&self.model.seen(node.replica.context())));
        for (at, op) in self.model.ops.iter_mut().enumerate() {
            op.may_be_lost |= !kept.contains(at);
        }
    }
}
