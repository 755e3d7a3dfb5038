//! Conversations, message by message, with anything in between.

use std::collections::VecDeque;

use bytes::Bytes;
use crdt_store::{Incarnation, SyncConfig, SyncError, SyncSession};

use super::World;
use crate::sim::{
    chance::Chance,
    model::{Broken, Rule},
};

/// A conversation and the messages on their way each way; side 0 began it.
pub(super) struct Talk {
    nodes: [usize; 2],
    sessions: [SyncSession; 2],
    lives: [Incarnation; 2],
    generations: [u32; 2],
    ways: [VecDeque<Bytes>; 2],
    /// Everything that each side has said.
    said: [Vec<Bytes>; 2],
    /// A side that started again hears everything from the start, and is heard no more: a network that repeats what was
    /// meant for an earlier life.
    deaf_to: Option<usize>,
    number: u64,
}

impl Talk {
    pub(super) fn is_of(&self, at: usize) -> bool {
        self.nodes.contains(&at)
    }
}

/// Messages after which a conversation is taken to go round in circles.
const MESSAGES_MAX: usize = 5_000;

impl World {
    pub(super) fn start_talk(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let nodes = [self.pick(chance), self.pick(chance)];
        if nodes[0] == nodes[1] || !self.reaches(nodes[0], nodes[1]) || self.talks.len() >= 8 {
            return Ok(());
        }
        let config = SyncConfig {
            chunk_bytes: self.shape.chunk_bytes,
            budget_bytes: self.shape.budget_bytes,
            claims_needed: self.shape.claims_needed,
        };
        let talk = self.talk(nodes, config);
        let [from, to] = nodes.map(|at| self.letter(at));
        self.trace.tell(|| format!("{from} calls {to}: talk {}", talk.number));
        self.talks.push(talk);
        Ok(())
    }

    fn talk(&mut self, nodes: [usize; 2], config: SyncConfig) -> Talk {
        self.tally.talks += 1;
        Talk {
            nodes,
            sessions: [SyncSession::initiate(config, id(nodes[1])), SyncSession::accept(config, id(nodes[0]))],
            lives: nodes.map(|at| self.replica(at).incarnation()),
            generations: nodes.map(|at| self.nodes[at].generation),
            ways: Default::default(),
            said: Default::default(),
            deaf_to: None,
            number: self.tally.talks,
        }
    }

    /// Moves one message of one conversation.
    pub(super) fn deliver(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        if self.talks.is_empty() {
            return Ok(());
        }
        let which = chance.below(self.talks.len());
        let side = chance.below(2);
        self.move_message(which, side).map(drop)
    }

    /// Lets a conversation go on to its end, or to where the network is cut.
    pub(super) fn finish_talk(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        if self.talks.is_empty() {
            return Ok(());
        }
        let which = chance.below(self.talks.len());
        self.run_talk(which)
    }

    pub(super) fn run_talk(&mut self, which: usize) -> Result<(), Broken> {
        let number = self.talks[which].number;
        for _ in 0..MESSAGES_MAX {
            let mut has_moved = false;
            for side in [0, 1] {
                has_moved |= self.move_message(which, side)?;
                if self.talks.get(which).is_none_or(|talk| talk.number != number) {
                    return Ok(());
                }
            }
            if !has_moved {
                self.talks.swap_remove(which);
                return Ok(());
            }
        }
        Err(Broken::new(Rule::Agreement, format!("talk {number} does not end")))
    }

    pub(super) fn cut_talk(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        if self.talks.is_empty() {
            return Ok(());
        }
        let which = chance.below(self.talks.len());
        let talk = self.talks.swap_remove(which);
        self.trace.tell(|| format!("talk {} is cut", talk.number));
        Ok(())
    }

    /// A side speaks if it has something to say, and the oldest message on its way arrives. False where nothing moved.
    /// A conversation that is over is removed.
    fn move_message(&mut self, which: usize, side: usize) -> Result<bool, Broken> {
        let talk = &mut self.talks[which];
        let [from, to] = [talk.nodes[side], talk.nodes[1 - side]];
        let mut has_moved = false;
        if let Some(message) = talk.sessions[side].poll_send(&self.nodes[from].replica) {
            has_moved = true;
            if talk.deaf_to != Some(side) {
                talk.said[side].push(message.clone());
                talk.ways[side].push_back(message);
            }
        }
        if !self.reaches(from, to) {
            let talk = self.talks.swap_remove(which);
            self.trace.tell(|| format!("talk {} breaks with the network", talk.number));
            return Ok(true);
        }
        let now = self.now(to);
        let talk = &mut self.talks[which];
        if let Some(message) = talk.ways[side].pop_front() {
            has_moved = true;
            self.tally.messages += 1;
            self.touched.insert(to);
            let handled = talk.sessions[1 - side].handle_message(&mut self.nodes[to].replica, &message, now);
            let number = talk.number;
            match handled {
                Ok(progress) => self.trace.tell(|| {
                    let said = said(message.get(1).copied());
                    let new = self.model.labels(progress.new_ops);
                    let (from, to, bytes) = (self.nodes[from].letter, self.nodes[to].letter, message.len());
                    format!("talk {number}: {from} to {to}: {said} of {bytes} bytes, new: {new}")
                }),
                Err(error) => return self.end_talk(which, to, &error).map(|()| true),
            }
            self.check_touched()?;
        }
        if self.talks[which].sessions.iter().all(SyncSession::is_done) {
            self.hear_end(which)?;
        }
        Ok(has_moved)
    }

    /// Judges an error in a conversation, and ends it.
    fn end_talk(&mut self, which: usize, at: usize, error: &SyncError) -> Result<(), Broken> {
        let talk = self.talks.swap_remove(which);
        self.trace.tell(|| format!("talk {} ends: {error}", talk.number));
        let is_stale = talk.deaf_to.is_some()
            || talk.nodes.iter().zip(talk.lives).any(|(at, life)| self.replica(*at).incarnation() != life);
        match error {
            SyncError::Store(error) => self.take_fault(at, error).map(drop),
            SyncError::OtherIncarnation | SyncError::OutOfTurn | SyncError::Malformed(_) if is_stale => Ok(()),
            other => {
                Err(Broken::new(Rule::Agreement, format!("honest peers fell out in talk {}: {other:?}", talk.number)))
            }
        }
    }

    /// Both sides are done: what they were told of each other must be true.
    fn hear_end(&mut self, which: usize) -> Result<(), Broken> {
        let talk = self.talks.swap_remove(which);
        self.tally.talks_ended += 1;
        self.trace.tell(|| format!("talk {} is done", talk.number));
        for side in [0, 1] {
            let peer = talk.nodes[1 - side];
            let is_same_disk = self.nodes[peer].generation == talk.generations[1 - side];
            let told = talk.sessions[side].outcome().peer_context.as_ref().filter(|_| is_same_disk);
            if told.is_some_and(|told| !self.replica(peer).context().covers(told)) {
                return Err(Broken::new(
                    Rule::Durability,
                    format!("{} confirmed what it does not have", self.letter(peer)),
                ));
            }
        }
        Ok(())
    }

    /// A process that starts again has no conversations; but the network may repeat what was said in the old ones.
    pub(super) fn talks_after_boot(&mut self, at: usize, chance: &mut Chance) {
        let mut talks = std::mem::take(&mut self.talks);
        talks.retain_mut(|talk| {
            let Some(side) = talk.nodes.iter().position(|node| *node == at) else { return true };
            if talk.deaf_to.is_some() || talk.said[1 - side].is_empty() || chance.one_in(2) {
                return false;
            }
            let config = SyncConfig {
                chunk_bytes: self.shape.chunk_bytes,
                budget_bytes: self.shape.budget_bytes,
                claims_needed: self.shape.claims_needed,
            };
            let peer = id(talk.nodes[1 - side]);
            talk.sessions[side] =
                if side == 0 { SyncSession::initiate(config, peer) } else { SyncSession::accept(config, peer) };
            talk.ways[side].clear();
            talk.ways[1 - side] = talk.said[1 - side].iter().cloned().collect();
            talk.deaf_to = Some(side);
            self.trace.tell(|| format!("    talk {} is repeated to it", talk.number));
            true
        });
        self.talks = talks;
    }

    /// A whole conversation without faults.
    pub(super) fn sync(&mut self, nodes: [usize; 2], claims_needed: usize) -> Result<(), Broken> {
        let talk = self.talk(nodes, SyncConfig { claims_needed, ..SyncConfig::default() });
        let [from, to] = nodes.map(|at| self.letter(at));
        self.trace.tell(|| format!("{from} syncs with {to}: talk {}", talk.number));
        self.talks.push(talk);
        self.run_talk(self.talks.len() - 1)
    }
}

/// The id by which peers know a node; it stays when its disk does not.
fn id(at: usize) -> [u8; 16] {
    [u8::try_from(at + 1).expect("there are few nodes"); 16]
}

/// What a message is, by the second byte of its frame.
fn said(kind: Option<u8>) -> String {
    let names = ["hello", "ops", "end", "receipt", "push", "digest", "lists", "claims", "end below"];
    let name = kind.and_then(|kind| names.get(usize::from(kind).checked_sub(1)?).copied());
    name.map_or_else(|| format!("{kind:?}"), str::to_owned)
}
