//! Clients that write, and what they may expect of the answer.

use std::sync::Arc;

use bytes::Bytes;
use crdt_store::{Authority, Dot, Fault, OpKind, SignedOp, StoreError, WriteRequest, Written};

use super::{Body, World, request::Due};
use crate::sim::{
    authority::SimAuthority,
    bits::Bits,
    chance::Chance,
    disk::SimDisk,
    model::{Broken, REGISTERS, Rule},
};

/// What stood in a document before a write.
struct Before {
    /// Ops whose author had seen what this node has not: a write may leave them beside it.
    incomplete: Bits,
}

impl World {
    pub(super) fn write(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let Some((request, due)) = self.request(at, chance, true) else { return Ok(()) };
        self.perform(at, &[(request, due)], chance)
    }

    pub(super) fn write_group(&mut self, chance: &mut Chance) -> Result<(), Broken> {
        let at = self.pick(chance);
        let requests: Vec<_> = (0..2 + chance.below(4)).filter_map(|_| self.request(at, chance, false)).collect();
        if requests.is_empty() {
            return Ok(());
        }
        self.perform(at, &requests, chance)
    }

    /// Writes, all in one batch, and checks every answer.
    pub(super) fn perform(
        &mut self,
        at: usize,
        asked: &[(WriteRequest, Due)],
        chance: &mut Chance,
    ) -> Result<(), Broken> {
        if self.model.ops.len() + asked.len() > crate::sim::bits::OPS_MAX {
            return Ok(());
        }
        let now = self.now(at);
        self.touched.insert(at);
        let life = self.replica(at).incarnation();
        let first = self.replica(at).context().highest(&life) + 1;
        let seen = self.model.seen(self.replica(at).context());
        let before: Vec<Before> = (0..self.model.keys.len()).map(|document| self.before(at, &seen, document)).collect();
        let requests: Vec<WriteRequest> = asked.iter().map(|(request, _)| request.clone()).collect();
        let results = match <[WriteRequest; 1]>::try_from(requests) {
            Ok([request]) => vec![self.nodes[at].replica.write(request.edits, request.meta, now)],
            Err(requests) => self.nodes[at].replica.write_group(requests, now),
        };
        if results.len() != asked.len() {
            return Err(Broken::new(
                Rule::Answers,
                format!("{} gave {} answers to {} writes", self.letter(at), results.len(), asked.len()),
            ));
        }
        let is_alone = asked.len() == 1;
        let mut next = first;
        let mut seen = seen;
        let mut failure = None;
        for ((request, due), result) in asked.iter().zip(results) {
            match result {
                Ok(written) => {
                    self.check_due(at, *due, Some(&written), None)?;
                    if !written.is_replay {
                        let dot = Dot::new(life, next);
                        self.check_written(at, &written, dot)?;
                        if written.dot.is_some() {
                            next += 1;
                            let hash = self.record(at, dot, &mut seen, Some(&written.push))?;
                            if hash.is_none() && is_alone {
                                return Err(Broken::new(
                                    Rule::Durability,
                                    format!("{} does not hold what it wrote", self.letter(at)),
                                ));
                            }
                            self.send(chance, at, (dot, hash.unwrap_or_default()), &written.push);
                        }
                        self.remember(at, request, written.dot, now);
                    }
                    if is_alone && !written.is_replay {
                        self.check_own_write(at, request, &written, &before)?;
                    }
                }
                Err(error @ (StoreError::Full | StoreError::Storage(_) | StoreError::ReadOnly)) => {
                    failure = Some(error);
                }
                Err(error) => self.check_due(at, *due, None, Some(&error))?,
            }
        }
        let Some(error) = failure else { return Ok(()) };
        if next != first {
            return Err(Broken::new(
                Rule::Durability,
                format!("{} acknowledged a part of a batch that failed", self.letter(at)),
            ));
        }
        self.take_failure(at, &error, (life, first), asked, seen)
    }

    /// After the disk refused: nothing of it is there, or after a crash behind the disk, all of it.
    fn take_failure(
        &mut self,
        at: usize,
        error: &StoreError,
        (life, first): (crdt_store::Incarnation, u64),
        asked: &[(WriteRequest, Due)],
        mut seen: Bits,
    ) -> Result<(), Broken> {
        let now = self.now(at);
        let fault = self.take_fault(at, error)?;
        let is_there = self.replica(at).context().contains(Dot::new(life, first));
        if fault != Fault::CrashAfter {
            if is_there {
                return Err(Broken::new(
                    Rule::Durability,
                    format!("{} has a write that failed with {fault:?}", self.letter(at)),
                ));
            }
            return Ok(());
        }
        if !is_there {
            // A write that changes nothing leaves its outcome, and no op; without a key it does not go to the disk.
            if asked.iter().all(|(request, _)| request.meta.idempotency_key.is_empty()) {
                let what = format!("{} lost a write that had reached its disk", self.letter(at));
                return Err(Broken::new(Rule::Durability, what));
            }
            if let [(request, _)] = asked {
                self.remember(at, request, None, now);
            }
            return Ok(());
        }
        let last = self.replica(at).context().highest(&life);
        for counter in first..=last {
            self.record(at, Dot::new(life, counter), &mut seen, None)?;
        }
        if let [(request, _)] = asked {
            self.remember(at, request, Some(Dot::new(life, first)), now);
        }
        Ok(())
    }

    fn check_due(
        &self,
        at: usize,
        due: Due,
        written: Option<&Written>,
        error: Option<&StoreError>,
    ) -> Result<(), Broken> {
        // An op of somebody else may name ops of this life that its twin has written; then this one cannot write over it.
        let is_twin = self.doubled.contains(&self.replica(at).incarnation());
        let is_right = match (due, written, error) {
            (_, None, Some(StoreError::Invalid { what: "past" })) => is_twin,
            (Due::Anything, Some(written), _) => !written.is_replay,
            (Due::PerhapsReplay, Some(_), _) => true,
            (Due::Anything | Due::PerhapsReplay, None, Some(error)) => {
                matches!(error, StoreError::NotFound { .. } | StoreError::TooManySiblings { .. })
            }
            (Due::Replay(dot), Some(written), _) => written.is_replay && written.dot == dot,
            (Due::KeyInUse, None, Some(error)) => matches!(error, StoreError::IdempotencyReuse),
            // A write of several documents may fail for another one first.
            (Due::Stale, None, Some(error)) => matches!(error, StoreError::Stale { .. } | StoreError::NotFound { .. }),
            (Due::Replay(_) | Due::KeyInUse | Due::Stale, _, _) | (Due::Anything | Due::PerhapsReplay, None, None) => {
                false
            }
        };
        if is_right {
            return Ok(());
        }
        let answer = written.map_or_else(|| format!("{error:?}"), |written| format!("{:?}", written.dot));
        Err(Broken::new(Rule::Answers, format!("{} answered a write with {answer}; due was {due:?}", self.letter(at))))
    }

    /// The op of a new write has the next dot, which nobody has had.
    fn check_written(&mut self, at: usize, written: &Written, due: Dot) -> Result<(), Broken> {
        let Some(dot) = written.dot else { return Ok(()) };
        if dot != due {
            return Err(Broken::new(Rule::Dots, format!("{} wrote {dot:?} where {due:?} was next", self.letter(at))));
        }
        if self.model.number(dot).is_some() && !self.doubled.contains(&dot.origin) {
            let dot = self.model.label(dot);
            return Err(Broken::new(Rule::Dots, format!("{} wrote a second op under {dot}", self.letter(at))));
        }
        Ok(())
    }

    /// Takes down an op that is durable at a node, and gives its hash. In a group, one that a later one has superseded is
    /// not held; it is read from its push, where the client was answered. `push` is none where it was not.
    fn record(
        &mut self,
        at: usize,
        dot: Dot,
        seen: &mut Bits,
        push: Option<&Bytes>,
    ) -> Result<Option<[u8; 32]>, Broken> {
        let held = self.replica(at).signed_op(dot).cloned();
        let signed = match (held, push) {
            (Some(held), _) => held,
            (None, Some(push)) if !push.is_empty() => self.unpack(dot, push)?,
            (None, _) => return Ok(None),
        };
        let is_acknowledged = push.is_some();
        let op = signed
            .read(&Self::store_id())
            .map_err(|fault| Broken::new(Rule::Answers, format!("an op does not read: {fault}")))?;
        let hash = signed.hash();
        self.model.record(&op, hash, *seen);
        let Some(number) = self.model.number(dot) else { return Ok(None) };
        seen.insert(number);
        if is_acknowledged {
            self.tally.writes += 1;
            self.nodes[at].acked.insert(number);
        }
        self.trace.tell(|| {
            let part = |change: &crdt_store::Change| {
                let mask: Vec<&str> = change.mask.iter().map(String::as_str).collect();
                let what = if change.body.is_none() { "deleted".to_owned() } else { mask.join(",") };
                let past = change.past.dots.iter().map(|(origin, counter)| Dot::new(*origin, *counter));
                format!("{} {what} over {}", change.key.name, self.model.labels(past))
            };
            let parts: Vec<String> = op.changes.iter().map(part).collect();
            let heard = if is_acknowledged { "" } else { ", unheard" };
            format!("{} writes {}{heard}: {}", self.nodes[at].letter, self.model.label(dot), parts.join("; "))
        });
        Ok(Some(hash))
    }

    /// Reads an op out of a push, as a peer would.
    fn unpack(&mut self, dot: Dot, push: &Bytes) -> Result<SignedOp, Broken> {
        let authority: Arc<dyn Authority> = Arc::new(SimAuthority::new("reader"));
        let mut reader = self.open(&SimDisk::default(), &authority, self.now_ms)?;
        let merged = reader.merge_push(push, self.now_ms);
        let signed = reader.signed_op(dot).cloned();
        signed.ok_or_else(|| Broken::new(Rule::Answers, format!("a push does not bring {dot:?}: {merged:?}")))
    }

    fn before(&self, at: usize, seen: &Bits, document: usize) -> Before {
        let mut incomplete = Bits::default();
        let context = self.replica(at).context();
        for register in 0..REGISTERS.len() {
            for number in self.model.live(seen, document, register).iter() {
                let part = self.model.part(number, document);
                if part.is_some_and(|part| part.beside.iter().any(|dot| !context.contains(*dot))) {
                    incomplete.insert(number);
                }
            }
        }
        Before { incomplete }
    }

    /// Read your writes: what was asked is what is read, unless something stands there that this node cannot claim to
    /// have seen in full; and that stays beside it, visibly.
    fn check_own_write(
        &self,
        at: usize,
        request: &WriteRequest,
        written: &Written,
        before: &[Before],
    ) -> Result<(), Broken> {
        let is_resolving = request.meta.op_kind == OpKind::Resolve;
        for edit in &request.edits {
            let Some(document) = self.model.exact().find(|document| self.model.keys[*document] == edit.key) else {
                continue;
            };
            let view = self.replica(at).document(&edit.key);
            if written.etags.get(&edit.key).copied().flatten() != view.as_ref().map(|view| view.etag) {
                return Err(Broken::new(
                    Rule::Answers,
                    format!("{} answered with another version than it has", self.letter(at)),
                ));
            }
            let incomplete = before[document].incomplete;
            if is_resolving || incomplete.is_empty() {
                let read = view.as_ref().map(|view| {
                    view.sections.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect::<Body>()
                });
                if read != edit.body {
                    let (read, asked) = (text(read.as_ref()), text(edit.body.as_ref()));
                    let what = format!("{} reads {read} after {asked} was written", edit.key);
                    return Err(Broken::new(Rule::Answers, format!("{}: {what}", self.letter(at))));
                }
            }
            let settled = |view: &crdt_store::DocumentView| view.conflicts.is_empty() && !view.deleted_concurrently;
            if is_resolving && !view.as_ref().is_none_or(settled) {
                return Err(Broken::new(
                    Rule::Answers,
                    format!("{} settled {} and it is not settled", self.letter(at), edit.key),
                ));
            }
            let Some(number) = written.dot.and_then(|dot| self.model.number(dot)) else { continue };
            let Some(part) = self.model.part(number, document) else { continue };
            for (register, name) in REGISTERS.iter().enumerate().filter(|(register, _)| part.speaks[*register]) {
                let live = self.replica(at).live_in(&edit.key, name);
                let is_left = |dot: &Dot| {
                    let is_incomplete = self.model.number(*dot).is_some_and(|number| incomplete.contains(number));
                    Some(*dot) == written.dot || (is_incomplete && !is_resolving)
                };
                if !written.dot.is_some_and(|dot| live.contains(&dot)) || !live.iter().all(is_left) {
                    let live = self.model.labels(live);
                    let place = format!("`{}` of {}", REGISTERS[register], edit.key);
                    return Err(Broken::new(
                        Rule::Answers,
                        format!("{place}: {live} is live after it was written over"),
                    ));
                }
            }
        }
        Ok(())
    }
}

fn text(body: Option<&Body>) -> String {
    let Some(body) = body else { return "nothing".to_owned() };
    let part = |(name, value): (&String, &Vec<u8>)| format!("{name}={}", String::from_utf8_lossy(value).trim());
    body.iter().map(part).collect::<Vec<_>>().join(" ")
}
