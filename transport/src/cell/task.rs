//! The task that keeps gossip going.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, FailureDetectorConfig, NodeState, spawn_chitchat};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::guard::StateId;
use super::socket::{LinkTransport, Wire, address, chitchat_id, node};
use super::view::State;
use super::{CellConfig, KnownPeers};
use crate::clock::Clock;
use crate::id::NodeId;

pub(super) struct Task {
    config: CellConfig,
    wire: Wire,
    known_peers: KnownPeers,
    clock: Arc<dyn Clock>,
    nudged: mpsc::Receiver<NodeId>,
    stop: CancellationToken,
    /// Where the turn of known peers stands.
    turn: usize,
}

/// Why a run of chitchat ended.
enum End {
    /// The last handle was dropped.
    Stopped,
    /// Its task returned or panicked.
    Died,
    /// Peers hold news of this node that it did not write.
    Outdone,
}

/// One run of chitchat.
struct Run {
    handle: ChitchatHandle,
    generation: u64,
    /// Something was set somewhere.
    changed: Arc<Notify>,
    /// Until then missing states are taken for not yet heard again.
    caught_up_at: Duration,
}

impl Task {
    pub(super) fn new(
        config: CellConfig,
        wire: Wire,
        known_peers: KnownPeers,
        clock: Arc<dyn Clock>,
        nudged: mpsc::Receiver<NodeId>,
        stop: CancellationToken,
    ) -> Self {
        Self { config, wire, known_peers, clock, nudged, stop, turn: 0 }
    }

    pub(super) async fn run(mut self) {
        let mut generation = self.config.generation;
        let mut backoff = BACKOFF_MIN;
        let mut is_first = true;
        loop {
            let started = self.clock.now();
            let end = match self.begin(generation, is_first).await {
                Ok(run) => self.attend(run).await,
                Err(error) => {
                    tracing::warn!(%error, "gossip did not start");
                    End::Died
                }
            };
            let health = &self.wire.shared.health;
            health.loop_alive.store(false, Ordering::Relaxed);
            match end {
                End::Stopped => return,
                End::Died => tracing::warn!(generation, "gossip loop ended, starting it again"),
                End::Outdone => tracing::warn!(generation, "peers hold forged news of this node, taking a new life"),
            }
            if self.clock.now().saturating_sub(started) > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            health.restarts.fetch_add(1, Ordering::Relaxed);
            let rival = self.wire.shared.rival.to_outdo().unwrap_or(0);
            generation = generation.max(rival).saturating_add(1);
            self.wire.shared.rival.clear();
            is_first = false;
            tokio::select! {
                () = sleep(backoff) => {}
                () = self.stop.cancelled() => return,
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn begin(&self, generation: u64, is_first: bool) -> anyhow::Result<Run> {
        let cell = Arc::new(OnceLock::new());
        let transport = LinkTransport {
            wire: self.wire.clone(),
            cluster_id: self.config.full_name(),
            generation,
            chitchat: cell.clone(),
        };
        let own = self.wire.shared.own().iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
        let handle = spawn_chitchat(self.chitchat_config(generation), own, &transport).await?;
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        let listener = handle.with_chitchat(|chitchat| {
            let wake = wake.clone();
            chitchat.subscribe_event("", move |_| wake.notify_one())
        });
        listener.await.forever();
        // Only one run ever fills this cell.
        if cell.set(handle.chitchat()).is_err() {
            tracing::debug!("gossip state was set twice");
        }
        #[cfg(test)]
        self.wire.shared.chitchat.lock().unwrap().replace(handle.chitchat());
        let health = &self.wire.shared.health;
        health.generation.store(generation, Ordering::Relaxed);
        health.loop_alive.store(true, Ordering::Relaxed);
        let catch_up = if is_first { Duration::ZERO } else { (self.config.interval * 10).max(CATCH_UP_MIN) };
        Ok(Run { handle, generation, changed, caught_up_at: self.clock.now() + catch_up })
    }

    fn chitchat_config(&self, generation: u64) -> ChitchatConfig {
        let me = StateId { node: self.config.me, generation };
        ChitchatConfig {
            chitchat_id: chitchat_id(me),
            cluster_id: self.config.full_name(),
            gossip_interval: self.config.interval,
            listen_addr: address(self.config.me),
            // Known peers take the place of seeds: they change while chitchat runs, seeds could not.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: 8.0,
                sampling_window_size: 64,
                max_interval: self.config.interval * 10,
                initial_interval: self.config.interval,
                dead_node_grace_period: self.config.dead_grace,
            },
            marked_for_deletion_grace_period: self.config.removal_grace,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    async fn attend(&mut self, run: Run) -> End {
        let mut tick = ticker(self.config.interval);
        let mut eager = ticker(self.config.interval / 5);
        let mut died = std::pin::pin!(run.handle.termination_watcher());
        let shared = self.wire.shared.clone();
        let mut has_news = true;
        let mut ticks = 0_u32;
        loop {
            tokio::select! {
                _ = &mut died => return End::Died,
                () = self.stop.cancelled() => {
                    if run.handle.initiate_shutdown().is_err() {
                        tracing::debug!("gossip loop had ended before its stop");
                    }
                    return End::Stopped;
                }
                () = shared.own_changed.notified() => {
                    self.hand_over(&run).await;
                    has_news = true;
                }
                () = run.changed.notified() => self.compare(&run).await,
                Some(node) = self.nudged.recv() => gossip(&run, node),
                _ = eager.tick() => {
                    // Own news does not wait for the next interval, but goes out at most five times within one.
                    if std::mem::take(&mut has_news) {
                        self.gossip_with_known(&run, &BTreeSet::new(), EAGER_PEERS);
                    }
                }
                _ = tick.tick() => {
                    if shared.rival.to_outdo().is_some() {
                        run.handle.abort();
                        return End::Outdone;
                    }
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(RIVAL_WINDOW) {
                        shared.rival.clear();
                    }
                    let live = self.compare_and_list(&run).await;
                    self.gossip_with_known(&run, &live, ABSENT_PEERS);
                }
            }
        }
    }

    /// Makes chitchat's idea of this node's values equal to the truth.
    async fn hand_over(&self, run: &Run) {
        let own = self.wire.shared.own().clone();
        let write = run.handle.with_chitchat(|chitchat| {
            let state = chitchat.self_node_state();
            let gone: Vec<String> = state
                .key_values()
                .map(|(key, _)| key.to_owned())
                .filter(|key| !own.keys().any(|name| name.as_str() == key))
                .collect();
            for key in gone {
                state.delete(&key);
            }
            for (key, value) in &own {
                state.set(key, value);
            }
        });
        write.await;
        self.compare(run).await;
    }

    /// Finds what changed and tells it.
    async fn compare(&self, run: &Run) {
        let catching_up = self.clock.now() < run.caught_up_at;
        let chitchat = run.handle.chitchat();
        let chitchat = chitchat.lock().await;
        let states = states(&chitchat, self.config.me, run.generation);
        let changes = self.wire.shared.view().update(states, catching_up);
        drop(chitchat);
        for change in changes {
            // Nobody listening is no fault.
            drop(self.wire.shared.changes.send(change));
        }
    }

    async fn compare_and_list(&self, run: &Run) -> BTreeSet<NodeId> {
        self.compare(run).await;
        let chitchat = run.handle.chitchat();
        let chitchat = chitchat.lock().await;
        let ids = chitchat.node_states().keys();
        let digest: usize = ids.map(|id| id.node_id.len() + DIGEST_ENTRY).sum();
        let members: BTreeSet<_> = chitchat.node_states().keys().map(|id| id.gossip_advertise_addr).collect();
        let health = &self.wire.shared.health;
        health.digest_bytes.store(digest + 2, Ordering::Relaxed);
        health.members.store(members.len(), Ordering::Relaxed);
        chitchat.live_nodes().filter_map(|id| node(id.gossip_advertise_addr)).collect()
    }

    /// Gossips with up to `count` known peers that are not among `but`, taking turns.
    fn gossip_with_known(&mut self, run: &Run, but: &BTreeSet<NodeId>, count: usize) {
        let mut known = (self.known_peers)();
        known.retain(|peer| *peer != self.config.me && !but.contains(peer));
        known.sort_unstable();
        known.dedup();
        if known.is_empty() {
            return;
        }
        for _ in 0..count.min(known.len()) {
            self.turn = self.turn.wrapping_add(1);
            if let Some(peer) = known.get(self.turn % known.len()) {
                gossip(run, *peer);
            }
        }
    }
}

fn gossip(run: &Run, peer: NodeId) {
    if run.handle.gossip(address(peer)).is_err() {
        tracing::trace!(%peer, "gossip loop has ended");
    }
}

/// All states but other lives of this node itself.
fn states(chitchat: &Chitchat, me: NodeId, generation: u64) -> impl Iterator<Item = State<'_>> {
    let all: BTreeMap<StateId, &NodeState> = chitchat
        .node_states()
        .iter()
        .filter_map(|(id, state)| {
            let node = node(id.gossip_advertise_addr)?;
            Some((StateId { node, generation: id.generation_id }, state))
        })
        .filter(|(id, _)| id.node != me || id.generation == generation)
        .collect();
    all.into_iter().map(|(id, state)| State {
        node: id.node,
        generation: id.generation,
        versions: (state.last_gc_version(), state.max_version()),
        values: Box::new(state.key_values()),
    })
}

fn ticker(period: Duration) -> Interval {
    let mut ticker = interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Least time after a restart in which missing states are not taken for removed.
const CATCH_UP_MIN: Duration = Duration::from_secs(30);
/// Intervals after which single sightings of forged news are forgotten; those that peers hold are seen again at once.
const RIVAL_WINDOW: u32 = 60;
/// Known peers that hear own news ahead of the interval.
const EAGER_PEERS: usize = 3;
/// Known peers not heard of in gossip that are greeted in one interval.
const ABSENT_PEERS: usize = 5;
/// Bytes of one digest entry but for its name: lengths, generation, IPv6 address with port, three counters.
const DIGEST_ENTRY: usize = 2 + 8 + 19 + 24;
