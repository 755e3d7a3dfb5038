//! Threads that write policy at every node at once and enter each write into the ledger.
//!
//! Each writer asks one node and has documents of its own, which nobody else touches; a few documents are shared by all.
//! Every write is conditional on the ETag that its author read, so the ledger knows what it superseded.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::tests::{Answer, pause};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::desk::{Condition, Desk, Reply, document, written};
use super::ledger::{Fault, Ledger, Outcome, Shown, Write, WriteId};
use crate::clock;

/// Writers at each node.
const PER_NODE: usize = 2;
/// Documents that one writer keeps alive, more or less: they bound what each node holds.
const LIVE: usize = 30;
/// Documents that all writers write.
const SHARED: usize = 4;
/// Longest silence between two writes of one writer.
const PACE_MAX_MS: u64 = 400;
/// Silence before a node that does not listen is asked again.
const AWAY: Duration = Duration::from_millis(50);

/// Writers at work.
#[derive(Debug)]
pub(super) struct Writers {
    desk: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    since: Instant,
    is_paused: AtomicBool,
    is_stopped: AtomicBool,
    /// Writers in the middle of a write.
    busy: AtomicUsize,
    /// Nodes whose writers leave no silence between writes.
    rushed: Vec<AtomicBool>,
    /// Requests whose answer did not come in time.
    late: AtomicUsize,
    /// Requests that found nobody listening.
    not_sent: AtomicUsize,
}

impl Writers {
    /// Starts two writers at each node.
    pub(super) fn start(desks: &[Desk], seed: u64) -> Self {
        let shared = Arc::new(Shared {
            ledger: Mutex::default(),
            since: clock::now(),
            is_paused: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            rushed: desks.iter().map(|_| AtomicBool::new(false)).collect(),
            late: AtomicUsize::new(0),
            not_sent: AtomicUsize::new(0),
        });
        let mut threads = Vec::new();
        for (number, desk) in (0..PER_NODE).flat_map(|_| desks).enumerate() {
            let random = StdRng::seed_from_u64(seed.wrapping_mul(1009).wrapping_add(number as u64));
            let mut writer = Writer {
                name: format!("w{number}"),
                desk: desk.clone(),
                shared: Arc::clone(&shared),
                random,
                own: Vec::new(),
                made: 0,
            };
            threads.push(std::thread::spawn(move || writer.run()));
        }
        Self { desk: shared, threads }
    }

    /// The ledger, held as long as the result lives.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.desk.ledger()
    }

    /// Lets writes under way end and begins no more until [`Writers::resume`].
    pub(super) fn pause(&self) {
        self.desk.is_paused.store(true, Ordering::SeqCst);
        while self.desk.busy.load(Ordering::SeqCst) > 0 {
            pause(Duration::from_millis(2));
        }
    }

    /// Goes on.
    pub(super) fn resume(&self) {
        self.desk.is_paused.store(false, Ordering::SeqCst);
    }

    /// Lets the writers of a node write without any silence, or as usual.
    pub(super) fn rush(&self, node: usize, is_rushed: bool) {
        if let Some(rushed) = self.desk.rushed.get(node) {
            rushed.store(is_rushed, Ordering::Relaxed);
        }
    }

    /// Requests without an answer in time, and those that found nobody listening.
    pub(super) fn unanswered(&self) -> (usize, usize) {
        (self.desk.late.load(Ordering::Relaxed), self.desk.not_sent.load(Ordering::Relaxed))
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.desk.is_stopped.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // A panic there has been printed already.
            thread.join().ok();
        }
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, id: WriteId, outcome: Outcome) {
        self.ledger().settle(id, outcome, self.since.elapsed().as_secs_f64());
    }
}

/// One author.
#[derive(Debug)]
struct Writer {
    name: String,
    desk: Desk,
    shared: Arc<Shared>,
    random: StdRng,
    own: Vec<Own>,
    made: usize,
}

/// A document that only one writer writes.
#[derive(Debug, Clone)]
struct Own {
    name: String,
    /// The write it shows for certain, with its ETag; `None` while not even its creation is certain.
    last: Option<(WriteId, String)>,
    /// Writes since, which may have taken effect or not.
    doubts: Vec<WriteId>,
    /// Writes that came before `last` and whose effect was never seen.
    below: Vec<WriteId>,
}

/// What is known of a write after its answer.
#[derive(Debug)]
enum Known {
    /// Durable, with its ETag.
    Durable(String),
    /// It never takes effect.
    Void,
    /// The condition did not hold, with what the node said.
    Stale(String),
    /// Its process died: it took effect before that or never.
    Open,
    /// It may take effect at any later time.
    Adrift,
}

impl Writer {
    fn run(&mut self) {
        while !self.shared.is_stopped.load(Ordering::SeqCst) {
            self.shared.busy.fetch_add(1, Ordering::SeqCst);
            // Looked at only now, so that whoever paused and saw nobody busy has nobody begin after it.
            let is_away = !self.shared.is_paused.load(Ordering::SeqCst) && self.write_something();
            self.shared.busy.fetch_sub(1, Ordering::SeqCst);
            let is_paused = self.shared.is_paused.load(Ordering::SeqCst);
            let is_rushed = self.shared.rushed.get(self.desk.node).is_some_and(|rushed| rushed.load(Ordering::Relaxed));
            if is_away || is_paused {
                pause(AWAY);
            } else if !is_rushed {
                pause(Duration::from_millis(self.random.random_range(0..PACE_MAX_MS)));
            }
        }
    }

    /// One write; true when the node does not listen.
    fn write_something(&mut self) -> bool {
        let roll = self.random.random_range(0..100);
        let (create, rewrite) = if self.own.len() < LIVE { (50, 85) } else { (15, 65) };
        if roll < 12 {
            return self.write_shared();
        }
        let roll = self.random.random_range(0..100);
        if self.own.is_empty() || roll < create {
            return if self.random.random_bool(0.15) { self.create_several() } else { self.create() };
        }
        let place = self.random.random_range(0..self.own.len());
        let own = self.own.swap_remove(place);
        let (kept, is_away) = self.rewrite(own, roll < rewrite);
        self.own.extend(kept);
        is_away
    }

    fn create(&mut self) -> bool {
        let name = self.new_name();
        let text = self.new_text();
        let id = self.begin(&name, Some(text.clone()), Vec::new());
        let reply = self.desk.put(&name, id, &text, Condition::Absent);
        let is_away = matches!(reply, Reply::NotSent);
        match self.learn(id, &name, reply) {
            Known::Durable(etag) => {
                let last = Some((id, etag));
                self.own.push(Own { name, last, doubts: Vec::new(), below: Vec::new() });
            }
            Known::Open => self.own.push(Own { name, last: None, doubts: vec![id], below: Vec::new() }),
            Known::Stale(said) => self.fault(Fault::Forgotten(id, format!("a new name is taken: {said}"))),
            Known::Void | Known::Adrift => {}
        }
        is_away
    }

    fn create_several(&mut self) -> bool {
        let made: Vec<(String, String)> = (0..3).map(|_| (self.new_name(), self.new_text())).collect();
        let write = |(name, text): &(String, String)| Write::new(name, self.desk.node, Some(text.clone()), Vec::new());
        let ids = self.shared.ledger().begin(made.iter().map(write).collect());
        let documents: Vec<Value> = made.iter().zip(&ids).map(|((name, text), id)| document(name, *id, text)).collect();
        let reply = self.desk.apply(&documents);
        let is_away = matches!(reply, Reply::NotSent);
        let again = |reply: &Reply| match reply {
            Reply::Answer(answer) => Reply::Answer(answer.clone()),
            Reply::NotSent => Reply::NotSent,
            Reply::Broken => Reply::Broken,
            Reply::Late => Reply::Late,
        };
        for ((name, _), id) in made.into_iter().zip(ids) {
            let known = self.learn(id, &name, again(&reply));
            let (last, doubts) = match known {
                Known::Durable(etag) => (Some((id, etag)), Vec::new()),
                Known::Open => (None, vec![id]),
                Known::Void | Known::Stale(_) | Known::Adrift => continue,
            };
            self.own.push(Own { name, last, doubts, below: Vec::new() });
        }
        is_away
    }

    /// Writes or deletes a document of its own; gives it back when it lives on, and whether the node does not listen.
    fn rewrite(&mut self, own: Own, is_put: bool) -> (Option<Own>, bool) {
        let own = match self.certain(own) {
            Ok(Some(own)) => own,
            Ok(None) => return (None, false),
            Err(own) => return (Some(own), true),
        };
        let Some((last, etag)) = own.last.clone() else { return (None, false) };
        let text = is_put.then(|| self.new_text());
        let seen: Vec<WriteId> = own.below.iter().copied().chain([last]).collect();
        let id = self.begin(&own.name, text.clone(), seen.clone());
        let reply = match &text {
            Some(text) => self.desk.put(&own.name, id, text, Condition::Is(&etag)),
            None => self.desk.delete(&own.name, Condition::Is(&etag)),
        };
        let is_away = matches!(reply, Reply::NotSent);
        let kept = match self.learn(id, &own.name, reply) {
            Known::Durable(etag) => {
                self.shared.ledger().superseded(id, seen);
                is_put.then(|| Own { last: Some((id, etag)), below: Vec::new(), ..own })
            }
            Known::Void => Some(own),
            Known::Open => Some(Own { doubts: vec![id], ..own }),
            Known::Stale(said) => {
                self.fault(Fault::Forgotten(last, said));
                None
            }
            Known::Adrift => None,
        };
        (kept, is_away)
    }

    /// Asks which of the writes in doubt took effect. `Ok(None)` when the document is gone for good, the document as it
    /// was when the node does not answer.
    fn certain(&self, own: Own) -> Result<Option<Own>, Own> {
        if own.doubts.is_empty() {
            return Ok(Some(own));
        }
        let Ok(read) = self.desk.read(&own.name) else { return Err(own) };
        let last = own.last.as_ref().map(|(id, _)| *id);
        let candidates: Vec<WriteId> = last.into_iter().chain(own.doubts.iter().copied()).collect();
        let Some(read) = read else {
            let may_be_gone = last.is_none() || own.doubts.iter().any(|id| self.is_deletion(*id));
            if !may_be_gone {
                self.fault(Fault::Forgotten(last.unwrap_or_default(), "404".to_owned()));
            }
            return Ok(None);
        };
        let sides: Vec<&Shown> = read.sides.iter().collect();
        match sides.as_slice() {
            [side] if candidates.contains(&side.id) => {
                let others = candidates.iter().copied().filter(|id| *id != side.id);
                let below = own.below.iter().copied().chain(others).collect();
                Ok(Some(Own { last: Some((side.id, read.etag)), doubts: Vec::new(), below, ..own }))
            }
            _ => {
                self.fault(Fault::Forgotten(last.unwrap_or_default(), format!("it shows {:?}", read.sides)));
                Ok(None)
            }
        }
    }

    /// Reads a document that all writers write, and writes it on the condition that it has not changed since.
    fn write_shared(&mut self) -> bool {
        let name = format!("shared-{}", self.random.random_range(0..SHARED));
        let Ok(read) = self.desk.read(&name) else { return true };
        let sides = read.as_ref().map(|read| read.sides.clone()).unwrap_or_default();
        let seen: Vec<WriteId> = sides.iter().map(|side| side.id).collect();
        let text = (read.is_none() || self.random.random_bool(0.75)).then(|| self.new_text());
        let id = self.begin(&name, text.clone(), seen.clone());
        let condition = read.as_ref().map_or(Condition::Absent, |read| Condition::Is(&read.etag));
        let reply = match &text {
            Some(text) => self.desk.put(&name, id, text, condition),
            None => self.desk.delete(&name, condition),
        };
        let is_away = matches!(reply, Reply::NotSent);
        if let Known::Durable(etag) = self.learn(id, &name, reply) {
            self.note_superseded(&name, id, text.is_some().then_some(etag.as_str()), seen);
        }
        is_away
    }

    /// A write does not supersede an edit beside which something is still missing at its node, and shows as a conflict
    /// with it. So it counts as having superseded what it saw only when nothing shows beside it right afterwards.
    fn note_superseded(&self, name: &str, id: WriteId, etag: Option<&str>, seen: Vec<WriteId>) {
        let is_alone = match (self.desk.read(name), etag) {
            (Ok(Some(read)), Some(etag)) => read.etag == etag && read.sides.len() == 1,
            (Ok(None), None) => true,
            _ => false,
        };
        if is_alone {
            self.shared.ledger().superseded(id, seen);
        }
    }

    fn begin(&self, name: &str, text: Option<String>, seen: Vec<WriteId>) -> WriteId {
        let ids = self.shared.ledger().begin(vec![Write::new(name, self.desk.node, text, seen)]);
        ids.into_iter().next().unwrap_or(WriteId::MAX)
    }

    /// Enters what an answer says of the write.
    fn learn(&self, id: WriteId, name: &str, reply: Reply) -> Known {
        let (outcome, known) = match reply {
            Reply::Answer(answer) => read_answer(&answer, name),
            Reply::NotSent => {
                self.shared.not_sent.fetch_add(1, Ordering::Relaxed);
                (Outcome::Refused, Known::Void)
            }
            Reply::Broken => (Outcome::InDoubt, Known::Open),
            Reply::Late => {
                self.shared.late.fetch_add(1, Ordering::Relaxed);
                (Outcome::InDoubt, Known::Adrift)
            }
        };
        self.shared.settle(id, outcome);
        known
    }

    fn is_deletion(&self, id: WriteId) -> bool {
        self.shared.ledger().writes().get(id).is_some_and(|write| write.text.is_none())
    }

    fn fault(&self, fault: Fault) {
        println!("{}: {fault}", self.desk.name);
        self.shared.ledger().fault(fault);
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        format!("{}-{}", self.name, self.made)
    }

    fn new_text(&mut self) -> String {
        let length = self.random.random_range(20..400);
        (0..length).map(|_| char::from(self.random.random_range(b'a'..=b'z'))).collect()
    }
}

/// What an answer proves about the write of document `name`.
fn read_answer(answer: &Answer, name: &str) -> (Outcome, Known) {
    match answer.status {
        200 | 201 => {
            let (dot, etag) = written(&serde_json::from_str(&answer.body).unwrap_or_default(), name);
            (Outcome::Acknowledged { dot, etag: etag.clone() }, Known::Durable(etag))
        }
        404 | 412 => (Outcome::Refused, Known::Stale(format!("{}: {}", answer.status, answer.body))),
        status if status < 500 || status == 507 => (Outcome::Refused, Known::Void),
        _ => (Outcome::InDoubt, Known::Adrift),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, headers: Vec::new(), body: body.to_owned() }
    }

    #[test]
    fn only_an_answer_that_says_so_makes_a_write_certain() {
        let good = r#"{"dot":"a:1","documents":[{"name":"x","etag":"e1"},{"name":"y","etag":"e2"}]}"#;
        let (outcome, known) = read_answer(&answer(200, good), "y");
        assert_eq!(outcome, Outcome::Acknowledged { dot: "a:1".to_owned(), etag: "e2".to_owned() });
        assert!(matches!(known, Known::Durable(etag) if etag == "e2"));
        for (status, outcome) in [
            (409, Outcome::Refused),
            (412, Outcome::Refused),
            (507, Outcome::Refused),
            (500, Outcome::InDoubt),
            (503, Outcome::InDoubt),
        ] {
            assert_eq!(read_answer(&answer(status, "{}"), "x").0, outcome, "{status}");
        }
    }
}
