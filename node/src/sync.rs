//! Sync conversations between two policy stores: when to hold one, and carrying its messages over a stream.
//!
//! A message on the stream is a length (u32, big endian) and the bytes. What the bytes mean is the store's business.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::debug;
use transport::{Clock, LinkRecv, LinkSend, LinkStream, Links, NodeId, StreamKind};

use crate::store::{StoreHandle, SyncStep};

/// Longest message of a conversation.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages waiting to be written; the store sends at most 4 MiB in one turn, in chunks of 64 KiB.
const OUTBOX: usize = 256;
/// A conversation without a message for this long is over.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Base pause between two rounds of anti-entropy; jittered by half.
const ROUND: Duration = Duration::from_millis(1500);
/// Peers visited in one round.
const PEERS_A_ROUND: usize = 3;
/// Peers whose root is equal are visited now and then all the same, in case gossip is wrong or stuck.
const EQUAL_ROUND: Duration = Duration::from_secs(30);
/// Two conversations with one peer are at least this far apart, unless its link just came up.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts and answers conversations.
#[derive(Debug)]
pub struct Syncer {
    store: StoreHandle,
    links: Links,
    clock: Arc<dyn Clock>,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    next_round: Duration,
    next_equal_round: Duration,
    busy: HashSet<NodeId>,
    ended: HashMap<NodeId, Duration>,
}

impl Syncer {
    /// No conversations yet.
    #[must_use]
    pub fn new(store: StoreHandle, links: Links, clock: Arc<dyn Clock>) -> Self {
        Self { store, links, clock, plan: Mutex::new(Plan::default()) }
    }

    /// Starts a conversation with `peer` unless one runs.
    pub fn start(self: &Arc<Self>, peer: NodeId) {
        if !self.plan().busy.insert(peer) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = this.initiate(peer).await;
            this.ended(peer, &outcome);
        });
    }

    /// Answers a conversation that `from` opened.
    pub fn accept(self: &Arc<Self>, from: NodeId, stream: LinkStream) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = this.converse(from, stream, false).await;
            this.count(from, &outcome);
        });
    }

    /// Anti-entropy: now and then conversations with random peers whose root differs, rarely with any.
    ///
    /// `peers` are the peers that are alive, each with whether its root equals ours.
    pub fn tick(self: &Arc<Self>, now: Duration, peers: &[(NodeId, bool)]) {
        let chosen: Vec<NodeId> = {
            let mut plan = self.plan();
            plan.ended.retain(|_, ended| now.saturating_sub(*ended) < EQUAL_ROUND);
            let different: Vec<NodeId> = peers.iter().filter(|(_, equal)| !equal).map(|(node, _)| *node).collect();
            let mut chance = rand::rng();
            if now >= plan.next_round && !different.is_empty() {
                plan.next_round = now + ROUND.mul_f64(chance.random_range(0.5..1.5));
                // Several, for right after a cut some of them are out of reach and not yet known to be.
                let rested = |peer: &NodeId| plan.is_rested(peer, now);
                different.sample(&mut chance, PEERS_A_ROUND).copied().filter(rested).collect()
            } else if now >= plan.next_equal_round {
                plan.next_equal_round = now + EQUAL_ROUND.mul_f64(chance.random_range(0.5..1.5));
                peers.choose(&mut chance).map(|(node, _)| *node).into_iter().collect()
            } else {
                Vec::new()
            }
        };
        for peer in chosen {
            self.start(peer);
        }
    }

    async fn initiate(&self, peer: NodeId) -> Result<(), String> {
        let stream =
            self.links.open_control(peer, StreamKind::Sync, Bytes::new()).await.map_err(|fault| fault.to_string())?;
        self.converse(peer, stream, true).await
    }

    async fn converse(&self, peer: NodeId, stream: LinkStream, initiate: bool) -> Result<(), String> {
        let (session, first) =
            self.store.sync_start(initiate, peer).await.ok_or_else(|| "too many conversations at once".to_owned())?;
        let outcome = self.exchange(session, first, stream).await;
        self.store.sync_end(session).await;
        outcome
    }

    /// Carries messages until the store says that the conversation is over. Writing has a task of its own: both sides
    /// may be sending at once, and neither may wait for the other to read.
    async fn exchange(&self, session: u64, first: Vec<Bytes>, stream: LinkStream) -> Result<(), String> {
        let (mut receiving, sending) = stream.split();
        let (outbox, inbox) = mpsc::channel(OUTBOX);
        let writer = tokio::spawn(write_all(sending, inbox));
        let outcome = self.converse_over(session, first, &mut receiving, &outbox).await;
        drop(outbox);
        let written = writer.await.unwrap_or_else(|_panicked| Err("the writer ended".to_owned()));
        outcome.and(written)
    }

    async fn converse_over(
        &self,
        session: u64,
        first: Vec<Bytes>,
        receiving: &mut LinkRecv,
        outbox: &mpsc::Sender<Bytes>,
    ) -> Result<(), String> {
        let mut step = SyncStep { send: first, done: false, fault: None };
        loop {
            for message in step.send.drain(..) {
                outbox.send(message).await.map_err(|_closed| "the peer does not read".to_owned())?;
            }
            if step.done {
                return step.fault.map_or(Ok(()), Err);
            }
            let Some(message) = read(receiving).await? else { return Err("the peer ended it early".to_owned()) };
            step = self.store.sync_message(session, message).await;
        }
    }

    fn ended(&self, peer: NodeId, outcome: &Result<(), String>) {
        self.count(peer, outcome);
        let now = self.clock.now();
        let mut plan = self.plan();
        plan.busy.remove(&peer);
        plan.ended.insert(peer, now);
    }

    fn count(&self, peer: NodeId, outcome: &Result<(), String>) {
        let result = if outcome.is_ok() { "ok" } else { "failed" };
        metrics::counter!("marram_sync_conversations_total", "result" => result).increment(1);
        if let Err(fault) = outcome {
            debug!(%peer, fault, "sync conversation ended early; the next one goes on where it stopped");
        }
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn is_rested(&self, peer: &NodeId, now: Duration) -> bool {
        self.ended.get(peer).is_none_or(|ended| now.saturating_sub(*ended) >= PAUSE)
    }
}

/// Writes messages until there are no more, then finishes the stream.
async fn write_all(mut sending: LinkSend, mut inbox: mpsc::Receiver<Bytes>) -> Result<(), String> {
    while let Some(message) = inbox.recv().await {
        let length = u32::try_from(message.len()).map_err(|_fault| "a message too long to send".to_owned())?;
        let sent = tokio::time::timeout(SILENCE_MAX, async {
            sending.write_all(&length.to_be_bytes()).await?;
            sending.write_all(&message).await
        });
        sent.await.map_err(|_elapsed| "the peer does not read".to_owned())?.map_err(|fault| fault.to_string())?;
    }
    sending.shutdown().await.map_err(|fault| fault.to_string())
}

/// The next message; `None` at a clean end.
async fn read(stream: &mut LinkRecv) -> Result<Option<Bytes>, String> {
    let received = tokio::time::timeout(SILENCE_MAX, async {
        let mut length = [0; 4];
        let mut filled = 0;
        while filled < length.len() {
            let Some(rest) = length.get_mut(filled..) else { break };
            match stream.read(rest).await? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MESSAGE_BYTES_MAX {
            return Err(std::io::Error::other("a message longer than any may be"));
        }
        // Memory grows with what has arrived, not with what was promised.
        let mut message = Vec::with_capacity(length.min(16 * 1024));
        (&mut *stream).take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut message).await?;
        if message.len() == length {
            Ok(Some(Bytes::from(message)))
        } else {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
    });
    received.await.map_err(|_elapsed| "the peer is silent".to_owned())?.map_err(|fault| fault.to_string())
}
