//! The policy store on its own thread: the disk may take its time, nothing else waits for it.
//!
//! Commands go in through a bounded queue and each carries the place for its answer. Whatever changed the replica is
//! told to the control loop as a [`StoreEvent`], in the order in which it became durable.

mod authority;
mod thread;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crdt_store::{DocKey, Replica, SledStorage, StoreError};
use policy::{DocId, Document, Problem};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;
use transport::trust::Identity;
use transport::{Clock, NodeId};

use crate::api::{ApiError, Condition};
use crate::view::{Applied, ConflictView, PolicyView};

/// Commands waiting for the store thread; one more from the admin API waits, one more from peers is dropped.
const QUEUE: usize = 256;
/// How long a durable write waits to be in force on its own node before it is answered all the same.
const IN_FORCE_WAIT: Duration = Duration::from_secs(1);
/// Folder of the database within the node's folder.
const FOLDER: &str = "store";

/// What the control loop hears of the store.
#[derive(Debug)]
pub enum StoreEvent {
    /// The replica changed; durable already.
    Changed(Box<StoreChange>),
    /// The disk refuses writes, with the reason, or takes them again.
    Writable(Result<(), String>),
}

/// The replica after a change.
#[derive(Debug, Default)]
pub struct StoreChange {
    /// Documents in force now, for compilation.
    pub documents: Vec<Document>,
    /// Documents that merged into something that does not validate, with its faults; of each the newest whole edit is
    /// among `documents` when that one is good.
    pub broken: Vec<(DocId, Vec<Problem>)>,
    /// The whole state in short.
    pub state: StoreState,
    /// `scope/kind/name` of what changed.
    pub changed: Vec<String>,
    /// The new ops for peers; empty for none.
    pub push: Bytes,
    /// The peer that sent them, which needs no copy.
    pub from: Option<NodeId>,
    /// Who waits until the change is in force on this node.
    pub in_force: Option<oneshot::Sender<()>>,
}

/// A write that is durable, and the news of its being in force here.
#[derive(Debug)]
struct Stored {
    applied: Applied,
    in_force: Option<oneshot::Receiver<()>>,
}

/// The replica in short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Hash over everything visible.
    pub root: [u8; 16],
    /// Live documents.
    pub documents: usize,
    /// Documents with conflicts.
    pub conflicts: usize,
}

/// The way to the store thread.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    commands: mpsc::Sender<Command>,
}

/// Where an answer goes.
type Answer<T> = oneshot::Sender<Result<T, ApiError>>;

#[derive(Debug)]
enum Command {
    Apply { documents: Vec<Document>, condition: Condition, answer: Answer<Stored> },
    Delete { key: DocKey, condition: Condition, answer: Answer<Stored> },
    List { answer: Answer<Vec<PolicyView>> },
    Get { key: DocKey, answer: Answer<PolicyView> },
    Conflicts { answer: Answer<Vec<ConflictView>> },
    Push { from: NodeId, bytes: Bytes },
    SyncStart { initiate: bool, peer: NodeId, answer: oneshot::Sender<Option<(u64, Vec<Bytes>)>> },
    SyncMessage { session: u64, bytes: Bytes, answer: oneshot::Sender<SyncStep> },
    SyncEnd { session: u64 },
    PutRecord { table: &'static str, key: Vec<u8>, value: Vec<u8>, answer: Option<Answer<()>> },
    DeleteRecord { table: &'static str, key: Vec<u8>, answer: Answer<()> },
    Close { answer: oneshot::Sender<()> },
}

/// What a sync conversation does next.
#[derive(Debug, Default)]
pub struct SyncStep {
    /// Messages to send now, in order.
    pub send: Vec<Bytes>,
    /// The conversation is over, well or not.
    pub done: bool,
    /// Why it broke off, when it did.
    pub fault: Option<String>,
}

/// A table of the node's own records in the store: keys and values.
pub type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What the store held when it was opened.
#[derive(Debug)]
pub struct Opened {
    /// The way to the thread.
    pub store: StoreHandle,
    /// The state at the start.
    pub first: StoreChange,
    /// Records of each table asked for.
    pub records: BTreeMap<&'static str, Records>,
}

impl Stored {
    /// What was applied, once it is in force here; a control loop that is held up does not hold up a durable write.
    async fn in_force(self) -> Applied {
        if let Some(news) = self.in_force {
            tokio::time::timeout(IN_FORCE_WAIT, news).await.ok();
        }
        self.applied
    }
}

impl StoreHandle {
    /// Opens the store in `dir` and starts its thread. Every later change goes to `events`.
    ///
    /// # Errors
    /// When the disk or what is on it refuses.
    pub fn open(
        dir: &Path,
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        tables: &[&'static str],
        events: mpsc::Sender<StoreEvent>,
    ) -> Result<Opened, StoreError> {
        let storage = SledStorage::open(&dir.join(FOLDER))?;
        let mesh = identity.mesh().to_owned();
        let now_ms = unix_ms(&*clock);
        let authority = Arc::new(authority::NodeAuthority::new(identity));
        let mut replica = Replica::open(Box::new(storage), authority, &mesh, rand::random(), now_ms)?;
        let records = tables
            .iter()
            .map(|table| {
                let kept = replica.records();
                let rows = kept.scan(table).map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
                (*table, rows)
            })
            .collect();
        let (commands, inbox) = mpsc::channel(QUEUE);
        let mut thread = thread::StoreThread::new(replica, clock, events);
        let first = thread.change(&[], Bytes::new(), None);
        let spawned = std::thread::Builder::new().name("store".to_owned()).spawn(move || thread.run(inbox));
        if let Err(source) = spawned {
            return Err(StoreError::Storage(crdt_store::StorageError::Io { doing: "starting its thread", source }));
        }
        Ok(Opened { store: Self { commands }, first, records })
    }

    /// Writes documents as one change; durable when it returns, and in force on this node unless its control loop is
    /// held up for more than a second.
    ///
    /// # Errors
    /// Every [`ApiError`]; then nothing was written.
    pub async fn apply(&self, documents: Vec<Document>, condition: Condition) -> Result<Applied, ApiError> {
        let stored = self.ask(|answer| Command::Apply { documents, condition, answer }).await?;
        Ok(stored.in_force().await)
    }

    /// Deletes a document; durable when it returns.
    ///
    /// # Errors
    /// Every [`ApiError`]; then nothing was written.
    pub async fn delete(
        &self,
        scope: String,
        kind: String,
        name: String,
        condition: Condition,
    ) -> Result<Applied, ApiError> {
        let key = DocKey::new(kind, scope, name);
        let stored = self.ask(|answer| Command::Delete { key, condition, answer }).await?;
        Ok(stored.in_force().await)
    }

    /// Every live document.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when the node is stopping.
    pub async fn list(&self) -> Result<Vec<PolicyView>, ApiError> {
        self.ask(|answer| Command::List { answer }).await
    }

    /// One live document.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], and [`ApiError::Unavailable`] when the node is stopping.
    pub async fn get(&self, scope: String, kind: String, name: String) -> Result<PolicyView, ApiError> {
        self.ask(|answer| Command::Get { key: DocKey::new(kind, scope, name), answer }).await
    }

    /// Every conflict.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when the node is stopping.
    pub async fn conflicts(&self) -> Result<Vec<ConflictView>, ApiError> {
        self.ask(|answer| Command::Conflicts { answer }).await
    }

    /// Writes one of the node's own records; durable when it returns.
    ///
    /// # Errors
    /// [`ApiError::Storage`], [`ApiError::Limit`].
    pub async fn put_record(&self, table: &'static str, key: Vec<u8>, value: Vec<u8>) -> Result<(), ApiError> {
        self.ask(|answer| Command::PutRecord { table, key, value, answer: Some(answer) }).await
    }

    /// Removes one of the node's own records; durable when it returns.
    ///
    /// # Errors
    /// [`ApiError::Storage`].
    pub async fn delete_record(&self, table: &'static str, key: Vec<u8>) -> Result<(), ApiError> {
        self.ask(|answer| Command::DeleteRecord { table, key, answer }).await
    }

    /// Writes a record that may be lost: dropped when the store is busy, a failure is only logged.
    pub fn keep_record(&self, table: &'static str, key: Vec<u8>, value: Vec<u8>) {
        self.tell(Command::PutRecord { table, key, value, answer: None });
    }

    /// Hands over ops that a peer pushed; dropped and counted when the store is busy, the next sync brings them.
    pub fn push(&self, from: NodeId, bytes: Bytes) {
        self.tell(Command::Push { from, bytes });
    }

    /// Begins a sync conversation: its number and the first messages. `None` when too many run or the node stops.
    pub async fn sync_start(&self, initiate: bool, peer: NodeId) -> Option<(u64, Vec<Bytes>)> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::SyncStart { initiate, peer, answer }).await.ok()?;
        answered.await.ok().flatten()
    }

    /// Hands a message to a conversation.
    pub async fn sync_message(&self, session: u64, bytes: Bytes) -> SyncStep {
        let (answer, answered) = oneshot::channel();
        let over = || SyncStep { send: Vec::new(), done: true, fault: Some("the node is stopping".to_owned()) };
        if self.commands.send(Command::SyncMessage { session, bytes, answer }).await.is_err() {
            return over();
        }
        answered.await.unwrap_or_else(|_closed| over())
    }

    /// Ends a conversation, however it went.
    pub async fn sync_end(&self, session: u64) {
        self.commands.send(Command::SyncEnd { session }).await.ok();
    }

    /// Closes the database; everything acknowledged was durable before.
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Close { answer }).await.is_ok() {
            answered.await.ok();
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, ApiError> {
        let stopping = || ApiError::Unavailable("the policy store is closed, the node is stopping".to_owned());
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_closed| stopping())?;
        answered.await.map_err(|_closed| stopping())?
    }

    fn tell(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            metrics::counter!("marram_store_commands_dropped_total").increment(1);
            warn!("the policy store is busy; a message from a peer was dropped, the next sync brings it");
        }
    }
}

fn unix_ms(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.unix().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
