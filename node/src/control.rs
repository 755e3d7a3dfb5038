//! The control loop: carries out what [`State`] decides.
//!
//! One task on the control thread. Events come in through one bounded channel; timers are the prober's and a tick of
//! 250 ms. Nothing here is on the path of a request: a stopped loop leaves the last snapshot in force.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use policy::DocId;
use rand::rngs::StdRng;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use transport::cell::{Cell, Change};
use transport::records::SignedRecord;
use transport::swim::{Liveness, PeerChange, SwimOutput};
use transport::trust::{Identity, verify_chain};
use transport::{Clock, Links, NodeId, PeerInfo, StreamKind};

use crate::api::WatchEvent;
use crate::catalog::{KnownNode, Refusal};
use crate::codec;
use crate::doubts::{self, Doubts};
use crate::event::Event;
use crate::gossip::{
    ASKS_KEY, Asks, FACTS_KEY, Facts, LOADS_KEY, Loads, OFFERS_KEY, Offers, RECORD_VERSION, SIGN_CONTEXT,
};
use crate::health::HealthChanged;
use crate::machine::{self, CpuMeter};
use crate::proxy::{Outcome, ProxyContext};
use crate::snapshot::{Published, Snapshot};
use crate::state::{Life, State};
use crate::store::{StoreChange, StoreEvent, StoreHandle, unix_ms};
use crate::sync::Syncer;
use crate::tally::Tally;
use crate::told::{Fresh, TOLD_TABLE, Told};
use crate::watch::WatchLog;

/// How often loads, shares and the like are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Applications are let in at the latest so long after the start.
const LET_IN_MAX: Duration = Duration::from_secs(2);
/// How often counters are carried over to the metrics.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
/// Own loads go out at most this often.
const LOADS_EVERY: Duration = Duration::from_secs(1);
/// Own loads go out at least this often, so that others see how old they are.
const LOADS_AT_LEAST: Duration = Duration::from_secs(5);
/// Peers that get a new op at once; they pass it on.
const PUSH_FANOUT: usize = 3;
/// Longest gossiped record as text, in bytes.
const RECORD_TEXT_MAX: usize = 96 * 1024;
/// Addresses of one node that are tried.
const ADDRESSES_MAX: usize = 4;

/// Everything the loop needs; all of it can be shared with a loop that starts anew after a panic.
#[derive(Debug, Clone)]
pub struct Control {
    /// What is known and decided.
    pub state: Arc<Mutex<State>>,
    /// This node's identity.
    pub identity: Arc<Identity>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Links to peers.
    pub links: Links,
    /// chitchat within the cell.
    pub cell: Cell,
    /// Way into chitchat for messages that arrived.
    pub gossip_in: mpsc::Sender<(NodeId, Bytes)>,
    /// Where snapshots are published.
    pub published: Arc<Published>,
    /// The data path.
    pub proxy: Arc<ProxyContext>,
    /// The policy store.
    pub store: StoreHandle,
    /// Sync conversations.
    pub syncer: Arc<Syncer>,
    /// Events for `GET /v1/watch`.
    pub watch: WatchLog,
    /// Counters of the links and of gossip, for the metrics.
    pub tally: Tally,
    /// Addresses on which this node itself listens for applications; an instance there would be a loop.
    pub own_listeners: Arc<[SocketAddr]>,
    /// Number of the newest record this node told of itself; rises over restarts of the loop.
    pub sequence: Arc<AtomicU64>,
    /// This life of the node, strictly rising over restarts.
    pub generation: u64,
    /// Keeps what outlives a restart: incarnation and addresses.
    pub keeper: Arc<crate::keeper::Keeper>,
    /// What other nodes told in an earlier life of this one.
    pub remembered: Arc<[Told]>,
    /// Cancelled once applications are let in.
    pub open: CancellationToken,
}

/// The channels the loop reads; they survive a restart of the loop.
#[derive(Debug)]
pub struct Inputs {
    /// From links and the admin API.
    pub events: mpsc::Receiver<Event>,
    /// From the store thread.
    pub store: mpsc::Receiver<StoreEvent>,
    /// From the health supervisors.
    pub health: mpsc::Receiver<HealthChanged>,
    /// From the data path: endpoints that failed.
    pub outcomes: mpsc::Receiver<Outcome>,
    /// From chitchat.
    pub changes: broadcast::Receiver<Change>,
}

/// What one run of the loop keeps for itself.
#[derive(Debug)]
struct Running {
    control: Control,
    chance: StdRng,
    cpu: CpuMeter,
    cores: f64,
    sequence: u64,
    dirty: bool,
    next_tick: Duration,
    next_export: Duration,
    loads: (Loads, Duration),
    offers: Option<Offers>,
    lookups: HashMap<NodeId, AbortHandle>,
    doubts: Doubts,
    told: Fresh,
    /// The services of which a share was exported last.
    shared: Vec<String>,
    /// Writers that wait for the next snapshot.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Control {
    /// Locks the state. Only the control thread does, and never across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wall clock in milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        unix_ms(&*self.clock)
    }

    /// Runs until the channels close.
    pub async fn run(self, inputs: Arc<tokio::sync::Mutex<Inputs>>) {
        let mut inputs = inputs.lock().await;
        let cores = self.state().facts.capabilities.cores;
        let mut running = Running {
            chance: rand::make_rng(),
            cpu: CpuMeter::default(),
            cores,
            sequence: 0,
            dirty: true,
            next_tick: Duration::ZERO,
            next_export: Duration::ZERO,
            loads: (Loads::default(), Duration::ZERO),
            offers: None,
            lookups: HashMap::new(),
            doubts: Doubts::default(),
            told: Fresh::default(),
            shared: Vec::new(),
            waiting: Vec::new(),
            control: self,
        };
        if running.control.state().life != Life::Starting {
            // The loop before may have fallen with a change in its hands.
            let store = running.control.store.clone();
            tokio::spawn(async move { store.reread().await });
        }
        running.tell_facts();
        running.remember();
        running.take_everything_gossiped();
        running.advance();
        running.ready();
        running.work(&mut inputs).await;
    }
}

impl Running {
    /// The first snapshot with this node's own instances is in force: take work.
    fn ready(&self) {
        let mut state = self.control.state();
        if state.life == Life::Starting {
            state.life = Life::Ready;
            info!(node = state.here.name, id = %state.here.node, mesh = state.here.mesh, "ready");
        }
    }

    async fn work(&mut self, inputs: &mut Inputs) {
        loop {
            let now = self.control.clock.now();
            let probe = self.control.state().swim.poll_timeout().unwrap_or(self.next_tick);
            let wait = probe.min(self.next_tick).saturating_sub(now);
            tokio::select! {
                event = inputs.events.recv() => match event {
                    Some(event) => self.handle(event).await,
                    None => return,
                },
                Some(event) = inputs.store.recv() => self.handle_store(event),
                Some(change) = inputs.health.recv() => self.handle_health(change),
                Some(outcome) = inputs.outcomes.recv() => note_failure(&outcome),
                change = inputs.changes.recv() => match change {
                    Ok(change) => self.handle_change(&change),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.take_everything_gossiped(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
            self.advance();
        }
    }

    /// Lets applications in once what they may ask for is in the snapshot that was just published: the own instances,
    /// checked, and the nodes known from before the restart, which were asked whether they are there. Connections wait
    /// in the queue of their socket until then, but never for long.
    fn let_in(&self, now: Duration) {
        if self.control.open.is_cancelled() {
            return;
        }
        let is_settled = {
            let state = self.control.state();
            let is_awaited = |node| state.catalog.node(node).is_some_and(|known| known.liveness == Liveness::Joining);
            state.offers().instances.iter().all(|offer| offer.down.is_none())
                && !self.control.remembered.iter().any(|told| is_awaited(told.node))
        };
        if is_settled || now >= LET_IN_MAX {
            debug!(after_ms = now.as_millis(), is_settled, "applications are let in");
            self.control.open.cancel();
        }
    }

    async fn handle(&mut self, event: Event) {
        let now = self.control.clock.now();
        match event {
            Event::Datagram { from, bytes } => {
                self.control.state().swim.handle_packet(now, from, &bytes, &mut self.chance);
            }
            Event::Gossip { from, bytes } => {
                if self.control.gossip_in.try_send((from, bytes)).is_err() {
                    metrics::counter!("marram_gossip_dropped_total", "reason" => "queue_full").increment(1);
                }
            }
            Event::Push { from, bytes } => self.control.store.push(from, bytes),
            Event::Sync { from, stream } => self.control.syncer.accept(from, stream),
            Event::LinkUp(peer) => self.link_up(&peer, now),
            Event::LinkDown { peer, reason } => {
                info!(peer = %peer.name, reason, "link down");
                self.control.state().link_rtt.remove(&peer.node);
                self.control.proxy.peer_dead(peer.node);
            }
            Event::PutInstance { config, answer } => {
                let result = self.control.state().local.put(config);
                self.tell_offers();
                answer.send(result.map_err(|fault| crate::api::ApiError::Limit(fault.to_string()))).ok();
            }
            Event::DeleteInstance { service, instance } => {
                self.control.state().local.remove(&service, &instance);
                self.tell_offers();
            }
            Event::Addresses(addresses) => self.move_to(addresses),
            Event::Drain => self.drain(now),
        }
    }

    fn link_up(&mut self, peer: &Arc<PeerInfo>, now: Duration) {
        info!(peer = %peer.name, remote = %peer.remote, "link up");
        self.control.state().swim.handle_peer(now, peer.node, PeerChange::Discovered);
        self.control.cell.nudge(peer.node);
        self.control.syncer.start(peer.node);
    }

    fn handle_store(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Changed(change) => self.take_change(*change),
            StoreEvent::Writable(writable) => self.control.state().read_only = writable.err(),
        }
    }

    fn take_change(&mut self, change: StoreChange) {
        let StoreChange { filed, is_whole, state, changed, conflicts, push, push_to_all, from, in_force } = change;
        self.waiting.extend(in_force);
        let root = crate::state::hex(&state.root);
        let expired = self.control.state().take_policy(filed, is_whole, state, self.control.unix_ms());
        self.dirty = true;
        // The root goes out with the next tick, not up to a second later.
        self.loads.1 = Duration::ZERO;
        if !push.is_empty() {
            self.push(&push, push_to_all, from);
        }
        self.tell_policy(root, changed, &expired);
        for (document, sections) in conflicts {
            match sections.as_slice() {
                [] => info!(document, "policy conflict settled"),
                some => {
                    warn!(document, sections = some.join(", "), "policy conflict: `marram policy conflicts` shows it");
                }
            }
            self.control.watch.tell(WatchEvent::Conflict { document, sections });
        }
    }

    /// Compiles policy anew once a document's time is over.
    fn expire(&mut self) {
        let now_ms = self.control.unix_ms();
        let (root, expired) = {
            let mut state = self.control.state();
            if state.next_expiry_ms.is_none_or(|at| at > now_ms) {
                return;
            }
            (crate::state::hex(&state.store.root), state.compile(now_ms))
        };
        self.dirty = true;
        self.tell_policy(root, Vec::new(), &expired);
    }

    /// Tells whoever watches which documents are others than before, or no longer in force.
    fn tell_policy(&self, root: String, changed: Vec<String>, expired: &[DocId]) {
        if !expired.is_empty() {
            info!(expired = expired.len(), "policy documents expired");
        }
        let mut documents = changed;
        let expired: Vec<String> = expired.iter().map(ToString::to_string).collect();
        documents.extend(expired.into_iter().filter(|id| !documents.contains(id)).collect::<Vec<_>>());
        if !documents.is_empty() {
            info!(root, changed = documents.len(), "policy changed");
            self.control.watch.tell(WatchEvent::Policy { root, documents });
        }
    }

    fn handle_health(&mut self, change: HealthChanged) {
        let detail = change.checks.iter().find(|check| !check.passing).map_or("", |check| check.detail.as_str());
        info!(service = change.service, instance = change.instance, healthy = change.healthy, detail, "instance");
        let service = change.service.clone();
        self.control.state().local.take_health(change);
        self.control.watch.tell(WatchEvent::Service { service });
        self.tell_offers();
    }

    /// Sends new ops to a few peers other than the one they came from, or to all of them.
    fn push(&mut self, bytes: &Bytes, to_all: bool, from: Option<NodeId>) {
        use rand::seq::IndexedRandom as _;
        let peers: Vec<NodeId> = {
            let state = self.control.state();
            let alive = state.swim.members().filter(|m| matches!(m.liveness, Liveness::Alive | Liveness::Suspect));
            alive.map(|member| member.node).filter(|node| Some(*node) != from).collect()
        };
        let count = if to_all { peers.len() } else { PUSH_FANOUT };
        for peer in peers.sample(&mut self.chance, count) {
            if let Err(fault) = self.control.links.send_message(*peer, StreamKind::Push, bytes.clone()) {
                debug!(peer = %peer, %fault, "push not sent; the next sync carries it");
            }
        }
    }

    /// Timers and everything that follows from what just happened.
    fn advance(&mut self) {
        let now = self.control.clock.now();
        self.control.state().swim.handle_timeout(now, &mut self.chance);
        self.carry_out_swim(now);
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now);
        }
        if self.dirty {
            self.dirty = false;
            let next = self.control.state().snapshot(now);
            self.control.published.publish(next);
            self.let_in(now);
            for writer in self.waiting.drain(..) {
                // A writer that went away meanwhile does not mind.
                writer.send(()).ok();
            }
        }
    }

    fn carry_out_swim(&mut self, now: Duration) {
        loop {
            let Some(output) = self.control.state().swim.poll_output() else { return };
            match output {
                SwimOutput::Send { to, bytes } => {
                    // A lost packet and a missing link look the same to the prober, as they should.
                    self.control.links.send_datagram(to, bytes).ok();
                }
                SwimOutput::Verdict { node, liveness, incarnation, reason } => {
                    self.verdict(node, liveness, incarnation, &reason.to_string(), now);
                }
                SwimOutput::Rtt { node, rtt, coord, .. } => {
                    let mut state = self.control.state();
                    if let Some(coord) = coord {
                        state.vivaldi.observe(node, rtt, &coord, &mut self.chance).ok();
                    }
                }
                SwimOutput::Incarnation(incarnation) => self.control.keeper.incarnation(incarnation),
            }
        }
    }

    fn verdict(&mut self, node: NodeId, liveness: Liveness, incarnation: u32, reason: &str, now: Duration) {
        let (last_ack, has_failed_here) = {
            let state = self.control.state();
            let member = state.swim.member(&node);
            (member.and_then(|member| member.last_ack), member.is_some_and(|member| member.own_failure().is_some()))
        };
        let heard_at = self.control.links.heard_at(node);
        let last_answer = doubts::last_answer(last_ack, has_failed_here, heard_at);
        self.take_verdict(node, liveness, (incarnation, reason), last_answer, now);
    }

    fn take_verdict(
        &mut self,
        node: NodeId,
        liveness: Liveness,
        (incarnation, reason): (u32, &str),
        last_answer: Option<Duration>,
        now: Duration,
    ) {
        if !self.doubts.believes(node, liveness, last_answer, now) {
            debug!(member = %node, reason, "a death that is not believed yet");
            return;
        }
        let name = {
            let mut state = self.control.state();
            if !state.catalog.take_verdict(node, liveness, incarnation, reason, now) {
                return;
            }
            state.catalog.node(node).map_or_else(|| node.to_string(), |known| known.facts.name.clone())
        };
        self.dirty = true;
        let state = liveness.to_string();
        match liveness {
            Liveness::Dead | Liveness::Suspect => warn!(member = name, state, reason, "membership"),
            Liveness::Joining | Liveness::Alive | Liveness::Left => info!(member = name, state, reason, "membership"),
        }
        metrics::counter!("marram_membership_verdicts_total", "state" => state.clone()).increment(1);
        self.control.watch.tell(WatchEvent::Node { node: name, state, reason: reason.to_owned() });
        match liveness {
            Liveness::Dead => {
                self.control.proxy.peer_dead(node);
                // QUIC would keep the silent connection for its idle timeout and nobody would dial meanwhile.
                self.control.links.close_peer(node, "found dead");
            }
            Liveness::Alive => self.control.syncer.start(node),
            // Who says goodbye still answers what it has; new requests go elsewhere, and its links tell when it is gone.
            Liveness::Left => self.forget_told(node),
            Liveness::Joining | Liveness::Suspect => {}
        }
    }

    fn tick(&mut self, now: Duration) {
        for node in self.doubts.take_due(now) {
            self.take_earlier_verdict(node, now);
        }
        let cpu = self.cpu.measure(now, self.cores);
        let snapshot = self.control.published.load();
        let trips: HashMap<NodeId, Duration> = self
            .control
            .links
            .links()
            .into_iter()
            .filter(|link| link.control)
            .map(|link| (link.node, link.rtt))
            .collect();
        let (loads, asks) = {
            let mut state = self.control.state();
            state.cpu = cpu;
            state.link_rtt = trips;
            state.mark_shares(&snapshot, now);
            let loads = state.loads(&snapshot, machine::resident_bytes(), now);
            let inflight: u32 = loads.inflight.iter().map(|(_, _, count)| *count).fold(0, u32::saturating_add);
            let coord = state.vivaldi.coord();
            state.swim.set_local(u16::try_from(inflight).unwrap_or(u16::MAX), coord);
            (loads, state.demand(&snapshot, now))
        };
        self.control.proxy.turn_intervals(now);
        // Distances move a little all the time: requests see them at the pace of the tick.
        self.dirty = true;
        self.tell_loads(loads, now);
        if let Some(asks) = asks {
            self.tell(ASKS_KEY, &asks);
        }
        let roots = self.roots();
        self.control.store.set_alive_peers(roots.len());
        self.control.store.know_peers(roots.len());
        self.control.syncer.tick(now, &roots);
        self.expire();
        self.control.keeper.tick(now);
        for (key, value) in self.told.take_due(now) {
            self.control.store.keep_record(TOLD_TABLE, key, value);
        }
        if now >= self.next_export {
            self.next_export = now + EXPORT_EVERY;
            self.forget_the_gone();
            self.export_shares(&snapshot);
            let swim = *self.control.state().swim.counters();
            self.control.tally.export(&swim);
        }
    }

    /// What this node may begin of the rates that all nodes share, for the metrics.
    fn export_shares(&mut self, snapshot: &Snapshot) {
        let shared = snapshot.services.iter().filter_map(|(service, view)| Some((service, view.fleet_share?)));
        let shared: HashMap<String, f64> = shared.map(|(service, share)| (service.clone(), share.per_second)).collect();
        let set = |service: &String, per_second: f64| {
            metrics::gauge!("marram_rate_limit_share", "service" => service.clone()).set(per_second);
        };
        shared.iter().for_each(|(service, per_second)| set(service, *per_second));
        self.shared.iter().filter(|service| !shared.contains_key(*service)).for_each(|service| set(service, 0.0));
        self.shared = shared.into_keys().collect();
    }

    /// Alive peers and the policy root each told last.
    fn roots(&self) -> Vec<(NodeId, bool)> {
        let state = self.control.state();
        let alive = state.catalog.nodes().filter(|n| n.node != state.here.node && n.liveness == Liveness::Alive);
        alive.map(|known| (known.node, known.loads.policy_root == state.store.root)).collect()
    }

    fn tell_loads(&mut self, loads: Loads, now: Duration) {
        let age = now.saturating_sub(self.loads.1);
        let news = loads.inflight != self.loads.0.inflight
            || loads.clients != self.loads.0.clients
            || loads.policy_root != self.loads.0.policy_root;
        if self.loads.1 != Duration::ZERO && (age < LOADS_EVERY || (!news && age < LOADS_AT_LEAST)) {
            return;
        }
        self.tell(LOADS_KEY, &loads);
        let me = self.control.identity.node();
        let stamp = (self.control.generation, self.sequence);
        self.control.state().catalog.take_loads(me, stamp, loads.clone(), now).ok();
        self.loads = (loads, now);
    }

    fn tell_offers(&mut self) {
        self.dirty = true;
        let offers = self.control.state().offers();
        if self.offers.as_ref() == Some(&offers) {
            return;
        }
        if !self.tell(OFFERS_KEY, &offers) {
            // What is down must be known even where the reasons and labels do not fit.
            self.tell(OFFERS_KEY, &brief(&offers));
        }
        let stamp = (self.control.generation, self.sequence);
        let me = self.control.identity.node();
        // A draining node still serves its own applications until it stops.
        let own = Offers { draining: false, ..offers.clone() };
        self.control.state().catalog.take_offers(me, stamp, own).ok();
        self.offers = Some(offers);
    }

    fn tell_facts(&mut self) {
        let facts = self.control.state().facts.clone();
        self.tell(FACTS_KEY, &facts);
        self.tell_offers();
    }

    /// Signs `value` and hands it to gossip.
    fn tell<T: serde::Serialize>(&mut self, key: &'static str, value: &T) -> bool {
        self.sequence = self.control.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let payload = match codec::encode(RECORD_VERSION, value) {
            Ok(payload) => payload,
            Err(fault) => {
                warn!(key, %fault, "own record not gossiped");
                return false;
            }
        };
        let context = format!("{SIGN_CONTEXT}/{key}");
        let record =
            SignedRecord::sign(&self.control.identity, &context, self.control.generation, self.sequence, &payload);
        let told = transport::cell::Key::new(key).is_ok_and(|key| self.control.cell.put(key, &record.to_text()));
        if !told {
            warn!(key, "own record not gossiped: it is longer than gossip carries");
        }
        told
    }

    /// Takes what was kept over the restart; gossip of this life is newer or the same.
    fn remember(&mut self) {
        let unix = self.control.clock.unix().as_secs();
        for told in Arc::clone(&self.control.remembered).iter() {
            if self.take_record(told.node, &told.key, &told.text).is_ok() {
                let age_s = unix.saturating_sub(told.heard_unix);
                self.control.state().catalog.remember(told.node, age_s);
            }
        }
        // All of it stands on the disk.
        self.told = Fresh::default();
    }

    /// A node has left or is gone: what it told is not kept.
    fn forget_told(&mut self, node: NodeId) {
        let store = self.control.store.clone();
        let keys = self.told.forget(node);
        tokio::spawn(async move {
            for key in keys {
                // Left over, it only costs its place until it is forgotten again.
                store.delete_record(TOLD_TABLE, key).await.ok();
            }
        });
    }

    /// Reads the whole gossip state again: after a start, and when changes were missed.
    fn take_everything_gossiped(&mut self) {
        for (node, generation, entries) in self.control.cell.snapshot() {
            let mut entries = entries;
            // Facts first: they prove the key that the other records are checked with.
            entries.sort_by_key(|(key, _)| key != FACTS_KEY);
            for (key, value) in entries {
                self.handle_change(&Change { node, generation, key, value: Some(value.into()) });
            }
        }
    }

    fn handle_change(&mut self, change: &Change) {
        let Some(text) = &change.value else { return };
        if change.node == self.control.identity.node() {
            return;
        }
        match self.take_record(change.node, &change.key, text) {
            Ok(()) => {
                // Loads are counters that requests read in place; the tick picks up the rest of them, and demands.
                self.dirty |= change.key != LOADS_KEY && change.key != ASKS_KEY;
                if change.key == FACTS_KEY {
                    self.take_waiting(change.node);
                }
            }
            Err("old" | "no_facts") => {}
            Err(reason) => {
                metrics::counter!("marram_gossip_refused_total", "reason" => reason).increment(1);
                warn!(member = %change.node, key = change.key, reason, "gossiped record refused");
            }
        }
    }

    /// Records that arrived before their node's facts.
    fn take_waiting(&mut self, node: NodeId) {
        let waiting = self.control.cell.snapshot().into_iter().filter(|(known, _, _)| *known == node);
        for (_, _, entries) in waiting {
            for (key, value) in entries.into_iter().filter(|(key, _)| key != FACTS_KEY) {
                self.take_record(node, &key, &value).ok();
            }
        }
    }

    /// Verifies a gossiped record and hands it to the catalog; a refusal is a word for the counter.
    fn take_record(&mut self, node: NodeId, key: &str, text: &str) -> Result<(), &'static str> {
        let record = SignedRecord::from_text(text, RECORD_TEXT_MAX).map_err(|_fault| "malformed")?;
        let now = self.control.clock.now();
        let stamp = (record.generation, record.seq);
        let mesh = self.control.identity.mesh();
        let context = format!("{SIGN_CONTEXT}/{key}");
        if key == FACTS_KEY {
            let facts: Facts = codec::decode(RECORD_VERSION, &record.payload).map_err(|_fault| "malformed")?;
            let unix = self.control.clock.unix().as_secs();
            let admitted =
                verify_chain(self.control.identity.roots(), &facts.chain, unix).map_err(|_fault| "not_admitted")?;
            record.verify(mesh, &context, node, &admitted.public_key).map_err(|_fault| "forged")?;
            if admitted.node != node || admitted.name != facts.name {
                return Err("forged");
            }
            let (name, addresses) = (facts.name.clone(), facts.addresses.clone());
            let taken =
                self.control.state().catalog.take_facts(node, (admitted.role, admitted.public_key), stamp, facts, now);
            taken.map_err(refusal_word)?;
            self.told.note(node, key, text, self.control.clock.unix());
            self.take_earlier_verdict(node, now);
            self.meet(node, &name, &addresses, now);
            return Ok(());
        }
        let public_key = self.control.state().catalog.node(node).map(|known| known.public_key).ok_or("no_facts")?;
        record.verify(mesh, &context, node, &public_key).map_err(|_fault| "forged")?;
        match key {
            OFFERS_KEY => {
                let offers: Offers = codec::decode(RECORD_VERSION, &record.payload).map_err(|_fault| "malformed")?;
                let taken = self.control.state().catalog.take_offers(node, stamp, offers);
                taken.map_err(refusal_word)?;
                self.told.note(node, key, text, self.control.clock.unix());
                Ok(())
            }
            LOADS_KEY => {
                let loads: Loads = codec::decode(RECORD_VERSION, &record.payload).map_err(|_fault| "malformed")?;
                let taken = self.control.state().catalog.take_loads(node, stamp, loads, now);
                taken.map_err(refusal_word)
            }
            ASKS_KEY => {
                let asks: Asks = codec::decode(RECORD_VERSION, &record.payload).map_err(|_fault| "malformed")?;
                let taken = self.control.state().catalog.take_asks(node, stamp, asks);
                taken.map_err(refusal_word)
            }
            // Written by a later version: kept by gossip, not used here.
            _ => Ok(()),
        }
    }

    /// What the prober found out about a node before its facts were known, or before it was believed.
    fn take_earlier_verdict(&mut self, node: NodeId, now: Duration) {
        let known = {
            let state = self.control.state();
            state.swim.member(&node).map(|m| (m.liveness, m.incarnation, m.reason.to_string(), m.last_ack))
        };
        if let Some((liveness, incarnation, reason, last_ack)) = known {
            // It had its time to object: what else comes over its links is no answer.
            self.take_verdict(node, liveness, (incarnation, &reason), last_ack, now);
        }
    }

    /// A node told where it is: keep a link to it and watch it.
    fn meet(&mut self, node: NodeId, name: &str, addresses: &[String], now: Duration) {
        let name = name.to_owned();
        self.control.state().swim.handle_peer(now, node, PeerChange::Discovered);
        let (links, keeper, unix) =
            (self.control.links.clone(), Arc::clone(&self.control.keeper), self.control.clock.unix());
        let addresses: Vec<String> = addresses.iter().take(ADDRESSES_MAX).cloned().collect();
        let lookup = tokio::spawn(async move {
            let Some(resolved) = resolve_at_last(&addresses).await else { return };
            if let Some(address) = resolved.first() {
                keeper.met(node, &name, *address, unix);
            }
            links.set_peer(node, resolved, true);
        });
        // A newer word about where a node is ends the look-up of the older one.
        if let Some(earlier) = self.lookups.insert(node, lookup.abort_handle()) {
            earlier.abort();
        }
    }

    /// Lets go of nodes that the prober has dropped: who left ten minutes ago, who has been dead for a day.
    fn forget_the_gone(&mut self) {
        let gone: Vec<NodeId> = {
            let state = self.control.state();
            let is_over = |n: &&KnownNode| matches!(n.liveness, Liveness::Left | Liveness::Dead);
            let dropped = state.catalog.nodes().filter(is_over).filter(|n| state.swim.member(&n.node).is_none());
            dropped.map(|known| known.node).collect()
        };
        for node in gone {
            self.control.state().catalog.forget(node);
            self.control.links.forget_peer(node);
            self.control.keeper.forget(node);
            self.forget_told(node);
            self.lookups.remove(&node);
            self.dirty = true;
        }
    }

    /// This node has another address than it told: tell the new one.
    fn move_to(&mut self, addresses: Vec<String>) {
        let now = self.control.clock.now();
        {
            let mut state = self.control.state();
            if addresses.is_empty() || state.facts.addresses == addresses {
                return;
            }
            info!(?addresses, "this node is reached elsewhere now");
            state.facts.addresses = addresses;
        }
        self.tell_facts();
        let (me, stamp) = (self.control.identity.node(), (self.control.generation, self.sequence));
        let mut state = self.control.state();
        let (facts, role) = (state.facts.clone(), self.control.identity.role());
        state.catalog.take_facts(me, (role, self.control.identity.public_key()), stamp, facts, now).ok();
    }

    fn drain(&mut self, now: Duration) {
        info!("draining: no new work, requests in flight may finish");
        {
            let mut state = self.control.state();
            state.life = Life::Draining;
            state.swim.leave(now);
        }
        self.tell_offers();
    }
}

/// An endpoint failed on the data path, which has ejected it already: say so in the log.
fn note_failure(outcome: &Outcome) {
    let Outcome { endpoint, kind, detail, in_a_row, .. } = outcome;
    warn!(
        service = &*endpoint.service,
        instance = &*endpoint.instance,
        node = endpoint.node_name,
        kind = kind.as_str(),
        detail,
        in_a_row,
        "endpoint failed"
    );
}

fn refusal_word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Old => "old",
        Refusal::NoFacts => "no_facts",
        Refusal::Full => "catalog_full",
        Refusal::NameTaken => "name_taken",
    }
}

/// The same offers without what takes room: labels, and the reasons for being down.
fn brief(offers: &Offers) -> Offers {
    let mut brief = offers.clone();
    for offer in &mut brief.instances {
        offer.labels.clear();
        offer.down = offer.down.take().map(|_reason| "down".to_owned());
    }
    brief
}

/// Looks addresses up until one resolves, at first every second, later every minute; `None` for no addresses.
async fn resolve_at_last(addresses: &[String]) -> Option<Vec<SocketAddr>> {
    if addresses.is_empty() {
        return None;
    }
    let mut pause = Duration::from_secs(1);
    loop {
        let found = resolve(addresses).await;
        if !found.is_empty() {
            return Some(found);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

/// Looks `HOST:PORT`s up; what does not resolve is left out.
pub async fn resolve(addresses: &[String]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for address in addresses {
        match tokio::net::lookup_host(address).await {
            Ok(resolved) => found.extend(resolved),
            Err(fault) => debug!(address, %fault, "address does not resolve"),
        }
    }
    found.dedup();
    found
}
