//! The thread that owns the replica: one command at a time, persist, then answer, then tell.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crdt_store::{DocKey, Replica, StoreError, SyncSession};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};
use transport::{Clock, NodeId};

use super::acks::Acks;
use super::care::Care;
use super::group::GROUP_MAX;
use super::refill::Refill;
use super::replays::Replays;
use super::{Ask, Command, StoreEvent, unix_ms};
use crate::api::ApiError;

/// Steps of one collection; what is left waits for the next one.
const COLLECT_STEPS_MAX: usize = 8;

/// The replica and the conversations about it.
pub(super) struct StoreThread {
    pub(super) replica: Replica,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) events: mpsc::Sender<StoreEvent>,
    pub(super) sessions: HashMap<u64, (NodeId, SyncSession)>,
    pub(super) next_session: u64,
    pub(super) is_writable: bool,
    pub(super) acks: watch::Sender<Acks>,
    pub(super) alive_peers: Arc<AtomicUsize>,
    pub(super) replays: Replays,
    /// Documents in conflict as last told, with their sections.
    pub(super) in_conflict: BTreeMap<DocKey, Vec<String>>,
    /// Documents that may keep fields to themselves.
    pub(super) lockers: BTreeSet<DocKey>,
    /// Labels of nodes that signed two ops under one stamp.
    pub(super) equivocators: BTreeSet<String>,
    care: Care,
    pub(super) refill: Refill,
    /// Peers that are known.
    peers: Arc<AtomicUsize>,
}

/// How the thread is tied to the rest of the node.
#[derive(Debug)]
pub(super) struct Wiring {
    /// Where changes are told.
    pub(super) events: mpsc::Sender<StoreEvent>,
    /// Where it is told what peers have on their disks.
    pub(super) acks: watch::Sender<Acks>,
    /// Peers alive now.
    pub(super) alive_peers: Arc<AtomicUsize>,
    /// Peers ever known.
    pub(super) peers: Arc<AtomicUsize>,
}

impl StoreThread {
    pub(super) fn new(replica: Replica, clock: Arc<dyn Clock>, wiring: Wiring, care: Care, refill: Refill) -> Self {
        let Wiring { events, acks, alive_peers, peers } = wiring;
        Self {
            in_conflict: BTreeMap::new(),
            lockers: BTreeSet::new(),
            replica,
            clock,
            events,
            sessions: HashMap::new(),
            next_session: 0,
            is_writable: true,
            acks,
            alive_peers,
            replays: Replays::default(),
            equivocators: BTreeSet::new(),
            care,
            refill,
            peers,
        }
    }

    /// Serves commands until the last sender is gone or the store is closed.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        // What was taken from the queue while looking for further writes.
        let mut next = VecDeque::new();
        while let Some(command) = next.pop_front().or_else(|| inbox.blocking_recv()) {
            if let Command::Close { answer } = command {
                self.close();
                answer.send(()).ok();
                return;
            }
            let handled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match command {
                Command::Write(first) => self.write_all(writes(*first, &mut inbox, &mut next)),
                other => self.handle(other),
            }));
            self.care.snapshot_early(&mut self.replica, self.clock.now());
            if handled.is_err() {
                // What is durable is sound; what is in memory may not be. Routing goes on with what it has.
                metrics::counter!("marram_task_restarts_total", "task" => "store").increment(1);
                error!("the policy store panicked; restart the agent, what was acknowledged is on disk");
                self.tell(StoreEvent::Writable(Err("the policy store panicked; restart the agent".to_owned())));
                return;
            }
        }
        self.close();
    }

    fn close(mut self) {
        self.care.end(&mut self.replica);
        if let Err(fault) = self.replica.close() {
            warn!(%fault, "policy store not closed cleanly; what was acknowledged is durable all the same");
        }
    }

    // An answer that nobody waits for any more is not an error anywhere below.
    fn handle(&mut self, command: Command) {
        self.mend();
        match command {
            Command::Write(ask) => self.write_all(vec![*ask]),
            Command::List { answer } => {
                answer.send(Ok(self.list())).ok();
            }
            Command::Get { key, at, answer } => {
                answer.send(self.get(&key, at)).ok();
            }
            Command::History { key, answer } => {
                answer.send(self.history(&key)).ok();
            }
            Command::Conflicts { answer } => {
                answer.send(Ok(self.conflicts())).ok();
            }
            Command::Documents { answer } => {
                answer.send(Ok(self.compiled_documents())).ok();
            }
            Command::Check { documents, answer } => {
                answer.send(self.check_locks(&documents)).ok();
            }
            Command::Numbers { answer } => {
                answer.send(Ok(self.numbers())).ok();
            }
            Command::Context { answer } => {
                answer.send(Ok(self.replica.context().clone())).ok();
            }
            Command::Reread => {
                let change = self.whole_change();
                self.tell(StoreEvent::Changed(Box::new(change)));
            }
            Command::Collect { age } => self.collect(age),
            Command::Push { from, bytes } => self.merge_push(from, &bytes),
            Command::SyncStart { initiate, peer, answer } => {
                answer.send(self.sync_start(initiate, peer)).ok();
            }
            Command::SyncMessage { session, bytes, answer } => {
                answer.send(self.sync_message(session, &bytes)).ok();
            }
            Command::SyncEnd { session } => {
                self.sessions.remove(&session);
            }
            Command::PutRecord { table, key, value, answer } => {
                let done = self.replica.records().put_record(table, &key, &value);
                self.record_done(done, answer);
            }
            Command::DeleteRecord { table, key, answer } => {
                let done = self.replica.records().delete(table, &key);
                self.record_done(done, Some(answer));
            }
            Command::Snapshot => self.care.snapshot(&mut self.replica),
            Command::Close { answer } => {
                answer.send(()).ok();
            }
        }
    }

    /// Writes the database anew where it takes no writes and an attempt is due.
    pub(super) fn mend(&mut self) {
        if let Some(mended) = self.care.mend(&mut self.replica, self.clock.now()) {
            let result = if mended.is_ok() { "ok" } else { "failed" };
            metrics::counter!("marram_store_rebuilds_total", "result" => result).increment(1);
            self.note_writable(&mended);
        }
    }

    /// A store that was recovered takes no policy until its peers were heard.
    pub(super) fn refilled(&mut self) -> Result<(), ApiError> {
        let known = self.peers.load(Ordering::Relaxed);
        self.refill.refusal(known, self.clock.now()).map_or(Ok(()), |reason| Err(ApiError::Unavailable(reason)))
    }

    /// Lets go of old tombstones; a large heap of them in several steps, each a batch of its own.
    fn collect(&mut self, age: Duration) {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        for _ in 0..COLLECT_STEPS_MAX {
            let collected = self.replica.collect(unix_ms(&*self.clock), age_ms);
            let collected = match collected {
                Ok(collected) => collected,
                Err(fault) => {
                    warn!(fault = with_sources(&fault), "old deletions stay until the disk takes writes");
                    self.note_writable::<()>(&Err(fault));
                    return;
                }
            };
            if collected.tombstones > 0 {
                let count = u64::try_from(collected.tombstones).unwrap_or(u64::MAX);
                metrics::counter!("marram_store_collected_total").increment(count);
                info!(tombstones = collected.tombstones, "old deletions let go of");
            }
            if !collected.has_more {
                break;
            }
        }
        let change = self.change(&[], Bytes::new(), None);
        self.tell(StoreEvent::Changed(Box::new(change)));
    }

    fn record_done(&mut self, done: Result<(), StoreError>, answer: Option<oneshot::Sender<Result<(), ApiError>>>) {
        self.note_writable(&done);
        match (done, answer) {
            (done, Some(answer)) => {
                answer.send(done.map_err(|fault| api_error(&fault))).ok();
            }
            (Err(fault), None) => debug!(%fault, "record not kept"),
            (Ok(()), None) => {}
        }
    }

    /// Tells when the disk begins to refuse writes and when it takes them again.
    pub(super) fn note_writable<T>(&mut self, outcome: &Result<T, StoreError>) {
        let refusal = match outcome {
            Err(fault @ (StoreError::Full | StoreError::Storage(_) | StoreError::ReadOnly)) => {
                Some(with_sources(fault))
            }
            Ok(_) => None,
            // The caller's fault says nothing about the disk.
            Err(_) => return,
        };
        if refusal.is_none() == self.is_writable {
            return;
        }
        self.is_writable = refusal.is_none();
        self.tell(StoreEvent::Writable(refusal.map_or(Ok(()), Err)));
    }

    pub(super) fn tell(&self, event: StoreEvent) {
        // The control loop reads until the node stops.
        self.events.blocking_send(event).ok();
    }
}

/// The writes that wait behind the first one without anything in between, in their order; what comes after them is put
/// into `next`.
fn writes(first: Ask, inbox: &mut mpsc::Receiver<Command>, next: &mut VecDeque<Command>) -> Vec<Ask> {
    let mut asks = vec![first];
    while asks.len() < GROUP_MAX {
        match next.pop_front().or_else(|| inbox.try_recv().ok()) {
            Some(Command::Write(ask)) => asks.push(*ask),
            Some(other) => {
                next.push_front(other);
                break;
            }
            None => break,
        }
    }
    asks
}

pub(super) fn api_error(fault: &StoreError) -> ApiError {
    match fault {
        StoreError::Stale { current, .. } => ApiError::Stale {
            current: current.map_or_else(|| "nothing, it does not exist".to_owned(), |tag| tag.to_string()),
        },
        StoreError::NotFound { key } => ApiError::NotFound(format!("no document {key} on this node")),
        StoreError::NotAuthor | StoreError::NotAdmitted { .. } => ApiError::Denied(fault.to_string()),
        StoreError::Full | StoreError::Storage(_) | StoreError::ReadOnly => ApiError::Storage(with_sources(fault)),
        StoreError::TooLarge { .. } | StoreError::Invalid { .. } | StoreError::TooManySiblings { .. } => {
            ApiError::Limit(fault.to_string())
        }
        StoreError::IdempotencyReuse => ApiError::IdempotencyReuse,
        _ => ApiError::Unavailable(with_sources(fault)),
    }
}

/// The error and its causes in one line.
pub(super) fn with_sources(fault: &StoreError) -> String {
    let mut text = fault.to_string();
    let mut source = std::error::Error::source(fault);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
