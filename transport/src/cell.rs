//! What the nodes of one cell tell each other: small named values, each set by the node it speaks of.
//!
//! Underneath runs chitchat (Scuttlebutt reconciliation: van Renesse, Dumitriu, Gough, Thomas, LADIS 2008) over the
//! links of the mesh. This module is the only place that names it. Its own idea of who is alive only decides when a
//! member's values are forgotten; liveness is the prober's business.
//!
//! Every message passes [`guard()`] first. The guard keeps messages from stopping the gossip task; it cannot tell whether
//! a member speaks truly of another, so values are signed by the node they speak of ([`crate::records`]) and checked by
//! whoever reads them. A member of the cell can still hold back values, or hide those of another behind an invented
//! later life; a node that sees news of itself it did not write takes a new life and outdoes them.

mod guard;
mod key;
mod shared;
mod socket;
mod task;
mod view;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, broadcast, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::guard::{Held, Refused, StateId, VersionView, guard};
pub use self::key::{Key, NotAKey};
pub use self::shared::CellCounters;
use self::shared::Shared;
use self::socket::Wire;
use self::task::Task;
pub use self::view::{Change, Snapshot};
use crate::clock::Clock;
use crate::id::NodeId;

/// Which cell, who this node is in it, and how often it gossips.
#[derive(Debug, Clone)]
pub struct CellConfig {
    /// This node.
    pub me: NodeId,
    /// Which life of it; must be higher than in any earlier one, or peers' old values win over new ones.
    pub generation: u64,
    /// Name of the mesh.
    pub mesh: String,
    /// Name of the cell within it. At most about 100 nodes belong in one; 150 are the limit.
    pub zone_cell: String,
    /// Gossip goes to three members once in this time. Longer costs less and spreads later.
    pub interval: Duration,
    /// How long a silent member's values are kept.
    pub dead_grace: Duration,
    /// How long removals are remembered.
    pub removal_grace: Duration,
}

impl CellConfig {
    /// The interval of [`Self::lan`].
    pub const LAN_INTERVAL: Duration = Duration::from_secs(1);
    /// The interval of [`Self::metered`].
    pub const METERED_INTERVAL: Duration = Duration::from_secs(10);

    /// Gossip once a second: a value reaches 100 nodes in about 1.5 s, at about 36 KB/s a node.
    pub fn lan(me: NodeId, generation: u64, mesh: impl Into<String>, zone_cell: impl Into<String>) -> Self {
        Self {
            me,
            generation,
            mesh: mesh.into(),
            zone_cell: zone_cell.into(),
            interval: Self::LAN_INTERVAL,
            dead_grace: Duration::from_secs(300),
            removal_grace: Duration::from_secs(900),
        }
    }

    /// Gossip once in ten seconds, for links paid by volume.
    pub fn metered(me: NodeId, generation: u64, mesh: impl Into<String>, zone_cell: impl Into<String>) -> Self {
        Self { interval: Self::METERED_INTERVAL, ..Self::lan(me, generation, mesh, zone_cell) }
    }

    /// The full name of the cell, `<mesh>/<cell>`: chitchat's cluster id.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.mesh, self.zone_cell)
    }
}

/// How gossip is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CellHealth {
    /// Size of the digest in every message, bytes. Past 32 KiB a cell should be split.
    pub digest_bytes: usize,
    /// Nodes whose values are held, this one included.
    pub members: usize,
    /// Whether the gossip loop runs.
    pub loop_alive: bool,
    /// How often it had to be restarted.
    pub restarts: u64,
    /// The present life of this node; it rises with restarts of the loop, so keep the highest.
    pub generation: u64,
}

/// The nodes whose links are up, asked for on every tick: gossip needs a first address to start from, and this is how
/// a healed partition finds together again.
pub type KnownPeers = Arc<dyn Fn() -> Vec<NodeId> + Send + Sync>;

/// A handle to the cell; clones share it. Gossip stops when the last one is dropped.
#[derive(Clone)]
pub struct Cell {
    shared: Arc<Shared>,
    nudges: mpsc::Sender<NodeId>,
    stop: Arc<DropGuard>,
}

impl Cell {
    /// Starts gossiping on the current tokio runtime. Messages to peers go to `outbound`, never waiting: where it is
    /// full they are dropped and counted. `inbound` brings messages with the sender its link has proven. The gossip
    /// task is watched: when it ends it starts again with a higher generation, after 1 s and up to 60 s.
    pub fn start(
        config: CellConfig,
        outbound: mpsc::Sender<(NodeId, Bytes)>,
        inbound: mpsc::Receiver<(NodeId, Bytes)>,
        known_peers: KnownPeers,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let shared = Arc::new(Shared::new(config.generation));
        let (nudges, nudged) = mpsc::channel(NUDGES_MAX);
        let stop = CancellationToken::new();
        let inbound = Arc::new(Mutex::new(inbound));
        let wire = Wire { me: config.me, outbound, inbound, shared: shared.clone() };
        tokio::spawn(Task::new(config, wire, known_peers, clock, nudged, stop.clone()).run());
        Self { shared, nudges, stop: Arc::new(stop.drop_guard()) }
    }

    /// Sets one of this node's values. Returns false, and counts it, when the value is over 16 KiB or all own values
    /// together would be over 48 KiB or 512 keys.
    pub fn put(&self, key: Key, value: &str) -> bool {
        let mut own = self.shared.own();
        let others = own.iter().filter(|(name, _)| **name != key);
        let (keys, bytes) = others.fold((1, key.as_str().len() + value.len()), |(keys, bytes), (name, value)| {
            (keys + 1, bytes + name.as_str().len() + value.len())
        });
        if value.len() > guard::VALUE_MAX || keys > OWN_KEYS_MAX || bytes > OWN_BYTES_MAX {
            drop(own);
            self.shared.counters.put_refused();
            return false;
        }
        if own.get(&key).is_none_or(|held| held != value) {
            own.insert(key, value.to_owned());
            self.shared.own_changed.notify_one();
        }
        true
    }

    /// Removes one of this node's values; nothing happens when there is none.
    pub fn remove(&self, key: &Key) {
        if self.shared.own().remove(key).is_some() {
            self.shared.own_changed.notify_one();
        }
    }

    /// Changes from now on, this node's own included. A receiver that falls 4,096 changes behind gets `Lagged` and
    /// must start over from [`Cell::snapshot`].
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// Gossips with one node now, as when its link has just come up. Dropped when 256 wait already.
    pub fn nudge(&self, node: NodeId) {
        if self.nudges.try_send(node).is_err() {
            tracing::trace!(%node, "nudge dropped");
        }
    }

    /// How gossip is doing.
    pub fn health(&self) -> CellHealth {
        let health = &self.shared.health;
        CellHealth {
            digest_bytes: health.digest_bytes.load(Ordering::Relaxed),
            members: health.members.load(Ordering::Relaxed),
            loop_alive: health.loop_alive.load(Ordering::Relaxed),
            restarts: health.restarts.load(Ordering::Relaxed),
            generation: health.generation.load(Ordering::Relaxed),
        }
    }

    /// All values held: node, its newest life, keys and values in order; this node's own included. After a restart of
    /// the gossip loop the last known values stay until they are heard again.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.view().snapshot()
    }

    /// What was sent, received and refused so far.
    pub fn counters(&self) -> CellCounters {
        self.shared.counters.read()
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handles = Arc::strong_count(&self.stop);
        f.debug_struct("Cell").field("health", &self.health()).field("handles", &handles).finish_non_exhaustive()
    }
}

/// Nudges waiting to be carried out.
const NUDGES_MAX: usize = 256;
/// Own values.
const OWN_KEYS_MAX: usize = 512;
const OWN_BYTES_MAX: usize = 48 * 1024;

#[cfg(test)]
mod tests;
