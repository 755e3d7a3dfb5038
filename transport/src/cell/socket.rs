//! chitchat's transport over links: bytes in, bytes out, the guard between.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{Chitchat, ChitchatMessage, Deserializable, NodeState, Serializable};
use tokio::sync::{Mutex, mpsc};

use super::guard::{GOSSIP_PORT, Held, Refused, StateId, VersionView, inspect};
use super::shared::Shared;
use crate::id::NodeId;

/// The address that chitchat knows a node by.
pub(super) fn address(node: NodeId) -> SocketAddr {
    SocketAddr::from((node.to_ipv6(), GOSSIP_PORT))
}

/// The node behind such an address.
pub(super) fn node(address: SocketAddr) -> Option<NodeId> {
    match address.ip() {
        IpAddr::V6(ip) => Some(NodeId::from_ipv6(ip)),
        IpAddr::V4(_) => None,
    }
}

/// What outlives one run of chitchat: the ends of the queues.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) me: NodeId,
    pub(super) outbound: mpsc::Sender<(NodeId, Bytes)>,
    pub(super) inbound: Arc<Mutex<mpsc::Receiver<(NodeId, Bytes)>>>,
    pub(super) shared: Arc<Shared>,
}

/// One run's transport.
pub(super) struct LinkTransport {
    pub(super) wire: Wire,
    pub(super) cluster_id: String,
    pub(super) generation: u64,
    /// Set once chitchat exists; before that nothing is held.
    pub(super) chitchat: Arc<OnceLock<Arc<Mutex<Chitchat>>>>,
}

struct LinkSocket {
    wire: Wire,
    cluster_id: String,
    generation: u64,
    chitchat: Arc<OnceLock<Arc<Mutex<Chitchat>>>>,
    /// A message taken from the queue and not yet judged: `recv` may be dropped at any wait and called again.
    waiting: Option<(NodeId, Bytes)>,
}

#[async_trait]
impl Transport for LinkTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(LinkSocket {
            wire: self.wire.clone(),
            cluster_id: self.cluster_id.clone(),
            generation: self.generation,
            chitchat: self.chitchat.clone(),
            waiting: None,
        }))
    }
}

#[async_trait]
impl Socket for LinkSocket {
    /// Never waits and never fails: an error or a pause here would hold up the whole gossip loop. A full queue drops
    /// the message; gossip repeats itself.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let Some(to) = node(to) else { return Ok(()) };
        let counters = &self.wire.shared.counters;
        match self.wire.outbound.try_send((to, Bytes::from(message.serialize_to_vec()))) {
            Ok(()) => counters.sent(),
            Err(_) => counters.outbound_dropped(),
        }
        Ok(())
    }

    /// Never fails: an error ends the gossip loop for good. When the links are gone it waits for ever.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            if self.waiting.is_none() {
                self.waiting = self.wire.inbound.lock().await.recv().await;
            }
            let Some((from, bytes)) = self.waiting.clone() else { return std::future::pending().await };
            let verdict = self.judge(from, &bytes).await;
            self.waiting = None;
            if let Some(message) = self.accept(from, verdict, &bytes) {
                return Ok((address(from), message));
            }
        }
    }
}

impl LinkSocket {
    async fn judge(&self, from: NodeId, bytes: &[u8]) -> Result<Option<u64>, Refused> {
        let chitchat = match self.chitchat.get() {
            Some(chitchat) => Some(chitchat.lock().await),
            None => None,
        };
        let view =
            StatesView { cluster_id: &self.cluster_id, generation: self.generation, chitchat: chitchat.as_deref() };
        inspect(from, self.wire.me, bytes, &view)
    }

    fn accept(&self, from: NodeId, verdict: Result<Option<u64>, Refused>, bytes: &[u8]) -> Option<ChitchatMessage> {
        let shared = &self.wire.shared;
        match verdict {
            Ok(my_life) => shared.rival.see(my_life.filter(|life| *life > self.generation)),
            Err(reason) => {
                shared.rival.see((reason == Refused::AboutMe).then_some(self.generation));
                shared.counters.refused(reason);
                tracing::debug!(%from, %reason, "gossip message refused");
                return None;
            }
        }
        let message = ChitchatMessage::deserialize(&mut &*bytes).ok();
        match &message {
            Some(_) => shared.counters.received(),
            None => shared.counters.refused(Refused::Malformed),
        }
        message
    }
}

/// What chitchat holds, for the guard.
struct StatesView<'a> {
    cluster_id: &'a str,
    generation: u64,
    chitchat: Option<&'a Chitchat>,
}

impl VersionView for StatesView<'_> {
    fn cluster_id(&self) -> &str {
        self.cluster_id
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn own_version(&self) -> u64 {
        let own = self.chitchat.and_then(|chitchat| chitchat.node_state(chitchat.self_chitchat_id()));
        own.map_or(0, NodeState::max_version)
    }

    fn states(&self) -> usize {
        self.chitchat.map_or(0, |chitchat| chitchat.node_states().len())
    }

    fn is_member(&self, wanted: NodeId) -> bool {
        let ids = self.chitchat.into_iter().flat_map(|chitchat| chitchat.node_states().keys());
        ids.into_iter().any(|id| node(id.gossip_advertise_addr) == Some(wanted))
    }

    fn holds(&self, state: StateId) -> bool {
        self.chitchat.is_some_and(|chitchat| chitchat.node_state(&chitchat_id(state)).is_some())
    }

    fn held(&self, state: StateId) -> Held {
        self.chitchat.and_then(|chitchat| chitchat.node_state(&chitchat_id(state))).map(held).unwrap_or_default()
    }
}

/// The name that chitchat knows one life of a node by.
pub(super) fn chitchat_id(state: StateId) -> chitchat::ChitchatId {
    chitchat::ChitchatId::new(state.node.short(), state.generation, address(state.node))
}

fn held(state: &NodeState) -> Held {
    state.key_values_including_deleted().fold(Held::default(), |held, (key, value)| Held {
        keys: held.keys + 1,
        bytes: held.bytes + key.len() + value.value.len(),
    })
}
