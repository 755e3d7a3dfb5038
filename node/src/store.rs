//! The policy store on its own thread: the disk may take its time, nothing else waits for it.
//!
//! Commands go in through a bounded queue and each carries the place for its answer. Whatever changed the replica is
//! told to the control loop as a [`StoreEvent`], in the order in which it became durable.

mod acks;
mod authority;
mod care;
mod change;
mod conflicts;
mod group;
mod prepare;
mod read;
mod refill;
mod replays;
mod talk;
mod thread;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crdt_store::{
    Authority, Context, Counters, DocKey, Dot, Recovered, StoreError, Summary, open_or_recover, snapshot_path,
};
use policy::{DocId, Document, Filed};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, warn};
use transport::trust::Identity;
use transport::{Clock, NodeId};

pub use acks::{Ack, Acks};

use crate::api::{ApiError, Write, WriteOptions};
use crate::view::{Applied, ConflictView, PolicyView, RevisionView};

/// Commands waiting for the store thread; one more from the admin API waits, one more from peers is dropped.
const QUEUE: usize = 256;
/// How long a durable write waits to be in force on its own node before it is answered all the same.
#[cfg(not(test))]
const IN_FORCE_WAIT: Duration = Duration::from_secs(1);
/// In most tests nobody puts a write into force.
#[cfg(test)]
const IN_FORCE_WAIT: Duration = Duration::from_millis(50);
/// The snapshot is written at most this often, and only after a change.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);
/// The first one comes sooner: reading the database took memory that it gives back with it.
const SNAPSHOT_FIRST: Duration = Duration::from_secs(5);
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
    /// What is to be filed of each document that changed; of one that is gone nothing.
    pub filed: Vec<(DocId, Filed)>,
    /// These are all the documents there are; what else is filed is gone.
    pub is_whole: bool,
    /// The whole state in short.
    pub state: StoreState,
    /// `scope/kind/name` of what changed.
    pub changed: Vec<String>,
    /// Documents whose conflicts are others than before, each with the sections in conflict now; none when settled.
    pub conflicts: Vec<(String, Vec<String>)>,
    /// The new ops for peers; empty for none.
    pub push: Bytes,
    /// Somebody waits for peers: every one of them gets the new ops at once.
    pub push_to_all: bool,
    /// The peer that sent them, which needs no copy.
    pub from: Option<NodeId>,
    /// Who waits until the change is in force on this node.
    pub in_force: Vec<oneshot::Sender<()>>,
}

/// A write that is durable, and the news of its being in force here.
#[derive(Debug)]
struct Stored {
    applied: Applied,
    in_force: Option<oneshot::Receiver<()>>,
}

/// A write that somebody asked for.
#[derive(Debug)]
struct Ask {
    write: Write,
    options: WriteOptions,
    answer: Answer<Stored>,
}

/// The replica in numbers, for `GET /v1/sync/status`.
#[derive(Debug)]
pub struct StoreNumbers {
    /// What it holds.
    pub summary: Summary,
    /// What it has counted since it was opened.
    pub counters: Counters,
    /// Hash over what collected tombstones stand for.
    pub floor_hash: [u8; 8],
    /// Per peer: ops we have that it had not when it last confirmed.
    pub lags: BTreeMap<NodeId, u64>,
}

/// The replica in short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Hash over everything visible.
    pub root: [u8; 16],
    /// Documents that are held, those that were deleted and are not let go of yet included.
    pub held: usize,
    /// Documents with conflicts.
    pub conflicts: usize,
    /// Nodes that signed two ops under one stamp since the process started.
    pub equivocators: Vec<String>,
}

/// The way to the store thread.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    commands: mpsc::Sender<Command>,
    acks: watch::Receiver<Acks>,
    alive_peers: Arc<AtomicUsize>,
    peers: Arc<AtomicUsize>,
}

/// Where an answer goes.
type Answer<T> = oneshot::Sender<Result<T, ApiError>>;

#[derive(Debug)]
enum Command {
    Write(Box<Ask>),
    List { answer: Answer<Vec<PolicyView>> },
    Get { key: DocKey, at: Option<Dot>, answer: Answer<PolicyView> },
    History { key: DocKey, answer: Answer<Vec<RevisionView>> },
    Conflicts { answer: Answer<Vec<ConflictView>> },
    Documents { answer: Answer<Vec<Document>> },
    Check { documents: Vec<Document>, answer: Answer<()> },
    Numbers { answer: Answer<StoreNumbers> },
    Context { answer: Answer<Context> },
    Reread,
    Collect { age: Duration },
    Push { from: NodeId, bytes: Bytes },
    SyncStart { initiate: bool, peer: NodeId, answer: oneshot::Sender<Option<(u64, Vec<Bytes>)>> },
    SyncMessage { session: u64, bytes: Bytes, answer: oneshot::Sender<SyncStep> },
    SyncEnd { session: u64 },
    PutRecord { table: &'static str, key: Vec<u8>, value: Vec<u8>, answer: Option<Answer<()>> },
    DeleteRecord { table: &'static str, key: Vec<u8>, answer: Answer<()> },
    Snapshot,
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
    /// What had to be done for it; `None` where all was well.
    pub recovered: Option<Recovered>,
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
    /// Opens the store in `dir` and starts its thread, from within a runtime. Every later change goes to `events`. A
    /// damaged database is set aside and refilled, see [`open_or_recover`].
    ///
    /// # Errors
    /// When the disk refuses, or what is on it is another mesh's or of a newer version.
    pub fn open(
        dir: &Path,
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        tables: &[&'static str],
        events: mpsc::Sender<StoreEvent>,
    ) -> Result<Opened, StoreError> {
        let folder = folder(dir);
        let mesh = identity.mesh().to_owned();
        let opened = open_or_recover(&folder, authority(identity), &mesh, rand::random(), unix_ms(&*clock))?;
        let (mut replica, recovered) = (opened.replica, opened.recovered);
        let mut care = care::Care::new(snapshot_path(&folder));
        if let Some(recovered) = &recovered {
            metrics::counter!("marram_store_recoveries_total").increment(1);
            error!("{}", told(recovered));
            // What came back must not be lost to the next fault.
            care.snapshot(&mut replica);
        }
        let records = tables
            .iter()
            .map(|table| {
                let kept = replica.records();
                let rows = kept.scan(table).map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
                (*table, rows)
            })
            .collect();
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (acks_told, acks) = watch::channel(Acks::default());
        let (alive_peers, peers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let refill = refill::Refill::new(recovered.is_some(), clock.now());
        let wiring = thread::Wiring {
            events,
            acks: acks_told,
            alive_peers: Arc::clone(&alive_peers),
            peers: Arc::clone(&peers),
        };
        let mut thread = thread::StoreThread::new(replica, clock, wiring, care, refill);
        let first = thread.whole_change();
        let spawned = std::thread::Builder::new().name("store".to_owned()).spawn(move || thread.run(inbox));
        if let Err(source) = spawned {
            return Err(StoreError::Storage(crdt_store::StorageError::Io { doing: "starting its thread", source }));
        }
        tokio::spawn(ask_for_snapshots(commands.downgrade()));
        Ok(Opened { store: Self { commands, acks, alive_peers, peers }, first, records, recovered })
    }

    /// So many peers are known and could be heard; the number only grows.
    pub fn know_peers(&self, count: usize) {
        self.peers.fetch_max(count, Ordering::Relaxed);
    }

    /// Carries out a write; durable when it returns, and in force on this node unless its control loop is held up for
    /// more than a second. Writes that wait together share one batch on the disk.
    ///
    /// # Errors
    /// Every [`ApiError`]; then nothing was written.
    pub async fn write(&self, write: Write, options: WriteOptions) -> Result<Applied, ApiError> {
        let stored = self.ask(|answer| Command::Write(Box::new(Ask { write, options, answer }))).await?;
        Ok(stored.in_force().await)
    }

    /// Every live document.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when the node is stopping.
    pub async fn list(&self) -> Result<Vec<PolicyView>, ApiError> {
        self.ask(|answer| Command::List { answer }).await
    }

    /// One document as it is, or as the write `at` left it.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], and [`ApiError::Unavailable`] when the node is stopping.
    pub async fn get(&self, id: DocId, at: Option<Dot>) -> Result<PolicyView, ApiError> {
        self.ask(|answer| Command::Get { key: doc_key(&id), at, answer }).await
    }

    /// What was written of one document, newest first, as far back as it is remembered.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], [`ApiError::Storage`], and [`ApiError::Unavailable`] when the node is stopping.
    pub async fn history(&self, id: DocId) -> Result<Vec<RevisionView>, ApiError> {
        self.ask(|answer| Command::History { key: doc_key(&id), answer }).await
    }

    /// The documents that compilation starts from, every side of a conflict among them where that matters.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when the node is stopping.
    pub async fn documents(&self) -> Result<Vec<Document>, ApiError> {
        self.ask(|answer| Command::Documents { answer }).await
    }

    /// Whether these documents could be written together as far as others are concerned: what would be said of them in
    /// a write, with nothing written.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], and [`ApiError::Unavailable`] when the node is stopping.
    pub async fn check(&self, documents: Vec<Document>) -> Result<(), ApiError> {
        self.ask(|answer| Command::Check { documents, answer }).await
    }

    /// The replica in numbers.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when the node is stopping.
    pub async fn numbers(&self) -> Result<StoreNumbers, ApiError> {
        self.ask(|answer| Command::Numbers { answer }).await
    }

    /// All that is on disk here.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] when the node is stopping.
    pub async fn context(&self) -> Result<Context, ApiError> {
        self.ask(|answer| Command::Context { answer }).await
    }

    /// What peers have confirmed to have on disk, and the news of it.
    #[must_use]
    pub fn acks(&self) -> watch::Receiver<Acks> {
        self.acks.clone()
    }

    /// Says how many peers are alive: removals that carry no signature need the word of two of them where there are two.
    pub fn set_alive_peers(&self, count: usize) {
        self.alive_peers.store(count, Ordering::Relaxed);
    }

    /// Has every document told to the control loop again, as to one that begins.
    pub async fn reread(&self) {
        // A store that is gone has nothing to tell.
        self.commands.send(Command::Reread).await.ok();
    }

    /// Lets go of tombstones older than `age`; left for the next time when the store is busy.
    pub fn collect(&self, age: Duration) {
        self.tell(Command::Collect { age });
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

/// The store's name of a document.
fn doc_key(id: &DocId) -> DocKey {
    DocKey::new(id.kind.clone(), id.scope.clone(), id.name.clone())
}

/// The folder of the database within a node's folder.
#[must_use]
pub fn folder(dir: &Path) -> PathBuf {
    dir.join(FOLDER)
}

/// A node's keys and judgement, as the store needs them.
#[must_use]
pub fn authority(identity: Arc<Identity>) -> Arc<dyn Authority> {
    Arc::new(authority::NodeAuthority::new(identity))
}

/// A recovery in one sentence, for the log and for `GET /v1/problems`.
#[must_use]
pub fn told(recovered: &Recovered) -> String {
    let Recovered { set_aside, reason, documents, .. } = recovered;
    let aside = set_aside.as_ref().and_then(|path| path.file_name());
    let what = match aside {
        Some(name) => format!("the policy store was damaged ({reason}) and is set aside as {}", name.display()),
        None => format!("the policy store had lost writes: {reason}"),
    };
    format!("{what}; {documents} documents came back from this disk, peers bring the rest; check the disk")
}

/// Has a snapshot written every minute, as long as there is a store.
async fn ask_for_snapshots(commands: mpsc::WeakSender<Command>) {
    let mut pause = SNAPSHOT_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        pause = SNAPSHOT_EVERY;
        let Some(commands) = commands.upgrade() else { return };
        if commands.send(Command::Snapshot).await.is_err() {
            return;
        }
    }
}

/// The wall clock, in milliseconds since 1970.
pub(crate) fn unix_ms(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.unix().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
