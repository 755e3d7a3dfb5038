//! Flows that cross two nodes: those that peers have opened to instances here, and those of local clients to instances of
//! peers, found by the number that stands in each datagram.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use transport::{NodeId, PeerInfo};

use super::instance::{Ended, InstanceSocket};
use super::table::{LastUse, Table};
use super::wire::{Kind, decode, encode};
use super::{Closed, Counted, FarFlow, Lost, close_flow, drop_datagram, send_to_peer, taken};
use crate::proxy::context::ProxyContext;
use crate::proxy::head::{ACCEPTED, ResetCode};
use crate::proxy::links::Duplex;
use crate::snapshot::LocalInstance;

/// The flows of one node that cross a link.
#[derive(Debug)]
pub(in crate::proxy) struct Flows {
    /// Number of the next flow that a peer opens here.
    next: AtomicU64,
    accepted: Mutex<Table<u64, Accepted>>,
    /// By the instance's node and the number it gave. The listener that has the flow holds it.
    opened: Mutex<HashMap<(NodeId, u64), Weak<FarFlow>>>,
    pub(super) at_listeners: Counted,
    at_instances: Counted,
}

/// A flow that a peer has opened.
#[derive(Debug)]
struct Accepted {
    opener: NodeId,
    instance: InstanceSocket,
}

impl Flows {
    /// None yet; `seed` is where their numbers begin, so that those of a former life are not met again.
    pub(in crate::proxy) fn new(most: usize, seed: u64) -> Self {
        Self {
            next: AtomicU64::new(seed),
            accepted: Mutex::new(Table::new(most)),
            opened: Mutex::default(),
            at_listeners: Counted::new("listener"),
            at_instances: Counted::new("instance"),
        }
    }

    pub(super) fn opened(&self, node: NodeId, number: u64, flow: &Arc<FarFlow>) {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert((node, number), Arc::downgrade(flow));
    }

    pub(super) fn forget_opened(&self, node: NodeId, number: u64) {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).remove(&(node, number));
    }

    fn flow(&self, node: NodeId, number: u64) -> Option<Arc<FarFlow>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&(node, number))?.upgrade()
    }

    fn remove_accepted(&self, number: u64, reason: Closed) {
        let removed = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if removed.is_some() {
            self.at_instances.less();
            close_flow(reason);
        }
    }
}

/// A peer opens a flow: it is told that the instance is here, and the flow's number.
pub(in crate::proxy) async fn accept<S: Duplex>(
    context: &Arc<ProxyContext>,
    core: usize,
    from: &Arc<PeerInfo>,
    instance: &Arc<LocalInstance>,
    mut stream: S,
) {
    let number = context.flows.next.fetch_add(1, Ordering::Relaxed);
    let peer = from.node;
    let now = context.clock.now();
    let last = LastUse::new(now);
    let back = {
        let context = Arc::clone(context);
        move |payload: &[u8]| send_to_peer(&context, core, peer, encode(Kind::ToClient, number, payload))
    };
    let ended = {
        let context = Arc::clone(context);
        move |why| match why {
            Ended::Idle => context.flows.remove_accepted(number, Closed::Idle),
            Ended::Refused => {
                context.flows.remove_accepted(number, Closed::Refused);
                send_to_peer(&context, core, peer, encode(Kind::Refused, number, &[]));
            }
            Ended::Stopped => {}
        }
    };
    let Ok(socket) = InstanceSocket::open(context, instance, last.clone(), back, ended).await else {
        return stream.reset(ResetCode::ConnectFailed as u32);
    };
    let flow = Accepted { opener: peer, instance: socket };
    let evicted = context.flows.accepted.lock().unwrap_or_else(PoisonError::into_inner).insert(number, last, flow, now);
    context.flows.at_instances.more();
    if evicted.is_some() {
        context.flows.at_instances.less();
        close_flow(Closed::FlowsMax);
    }
    let mut answer = vec![ACCEPTED];
    answer.extend(number.to_be_bytes());
    // A peer that is gone leaves a flow that ends by being idle.
    if stream.write_all(&answer).await.is_ok() {
        stream.shutdown().await.ok();
    }
}

impl ProxyContext {
    /// Takes a datagram of a flow from a peer. Called on the data thread that owns the connection; waits for nothing.
    pub fn inbound_datagram(&self, from: NodeId, bytes: &Bytes) {
        let Some((kind, number, payload)) = decode(bytes) else { return drop_datagram(Lost::Malformed) };
        match kind {
            Kind::ToInstance => self.to_instance(from, number, payload),
            Kind::ToClient => match self.flows.flow(from, number) {
                Some(flow) => {
                    taken("peer");
                    flow.to_client(payload, self.clock.now());
                }
                None => drop_datagram(Lost::UnknownFlow),
            },
            Kind::Unknown | Kind::Refused => {
                if let Some(flow) = self.flows.flow(from, number) {
                    flow.gone(self, kind == Kind::Refused);
                }
            }
        }
    }

    fn to_instance(&self, from: NodeId, number: u64, payload: &[u8]) {
        let accepted = self.flows.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        // A number alone opens nothing: the flow is the opener's.
        if let Some(flow) = accepted.get(&number).filter(|flow| flow.opener == from) {
            taken("peer");
            flow.instance.send(payload, self.clock.now());
            return;
        }
        drop(accepted);
        drop_datagram(Lost::UnknownFlow);
        send_to_peer(self, 0, from, encode(Kind::Unknown, number, &[]));
    }
}
