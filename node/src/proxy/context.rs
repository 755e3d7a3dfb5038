//! What every request of this node's proxy shares.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use transport::{Clock, NodeId, Retirement};

use super::lanes::{Lane, Lanes};
use super::links::{ServiceLinks, Volume};
use super::meters::Meters;
use super::refuse::{Reason, Refusal};
use super::shares::{Rounds, Share};
use super::udp::Flows;
use super::upstream::Pool;
use crate::config::ProxyConfig;
use crate::outlier::{self, Ejection, Finding};
use crate::snapshot::{Endpoint, Published};

/// What [`ProxyContext::new`] is made of.
pub struct ProxyParts {
    /// Where the newest snapshot is found.
    pub published: Arc<Published>,
    /// The way to other proxies.
    pub links: Arc<dyn ServiceLinks>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Limits and timeouts.
    pub config: ProxyConfig,
    /// Data threads; `core` arguments are below it.
    pub cores: usize,
    /// Where the draws start from.
    pub seed: u64,
    /// Failures of endpoints, for the control thread. When it is full, outcomes are dropped and counted.
    pub outcomes: mpsc::Sender<Outcome>,
}

/// An endpoint failed a request of this node.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// How.
    pub kind: OutcomeKind,
    /// What was seen, as a sentence.
    pub detail: String,
    /// Failures of it in a row, this one included; 0 where it does not count as one.
    pub in_a_row: u32,
    /// When, monotonic.
    pub at: Duration,
}

/// How an endpoint failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    /// The instance took no connection.
    ConnectFailed,
    /// The instance closed the connection before it answered.
    Closed,
    /// Its node could not be reached, did not accept in time or broke off. All its endpoints are out for a while.
    PeerFailed,
    /// A way to its node that was only for what is large ended or was silent. Nobody is out for it: there are other ways.
    LinkFailed,
    /// No response head in time. The endpoint stays in: slow is not dead.
    TimedOut,
    /// Errors in a row for answers; out for a while.
    Erring,
    /// A success rate below that of its peers; out for a while.
    SuccessRate,
    /// Too many failures, and more than its peers have; out for a while.
    FailurePercentage,
    /// Slower than its peers over several intervals; out for a while.
    Latency,
}

impl OutcomeKind {
    /// What it says that a stream between two proxies broke.
    pub(super) const fn of_broken(volume: Volume) -> Self {
        match volume {
            Volume::Small => Self::PeerFailed,
            Volume::Large => Self::LinkFailed,
        }
    }

    /// The word used as label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailed => "connect_failed",
            Self::Closed => "closed",
            Self::PeerFailed => "peer_failed",
            Self::LinkFailed => "link_failed",
            Self::TimedOut => "timed_out",
            Self::Erring => "erring",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::Latency => "latency",
        }
    }
}

/// The proxy of one node, shared by its data threads.
pub struct ProxyContext {
    pub(super) published: Arc<Published>,
    pub(super) links: Arc<dyn ServiceLinks>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: ProxyConfig,
    pub(super) connections: Arc<Semaphore>,
    /// The SPIFFE ID of this node.
    pub(super) source: String,
    outcomes: mpsc::Sender<Outcome>,
    cores: Vec<CoreState>,
    peers: Mutex<HashMap<NodeId, CancellationToken>>,
    in_flight: AtomicUsize,
    pub(super) flows: Arc<Flows>,
    /// Copies of requests on their way, see `filters`.
    pub(super) mirrors: Arc<AtomicUsize>,
    draining: CancellationToken,
    is_short_of_memory: AtomicBool,
    idle: Notify,
}

/// What belongs to one data thread. Other threads touch it only when a peer is given up.
struct CoreState {
    pool: Mutex<Pool>,
    chance: AtomicU64,
    sweeping: AtomicBool,
    probes: Mutex<HashMap<ProbeKey, Probes>>,
    lanes: Lanes,
    rounds: Arc<Rounds>,
    meters: Mutex<Meters>,
}

/// What is probed: a peer, over the way of such streams.
type ProbeKey = (NodeId, Volume);

/// Probes of one peer from one data thread, over one way.
#[derive(Debug, Default)]
struct Probes {
    is_under_way: bool,
    failed_in_a_row: u32,
    /// The link that these failures are of, where the way is one link.
    link: Option<Retirement>,
}

impl fmt::Debug for ProxyContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyContext")
            .field("cores", &self.cores.len())
            .field("in_flight", &self.in_flight())
            .field("is_draining", &self.is_draining())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ProxyParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyParts").field("config", &self.config).field("cores", &self.cores).finish_non_exhaustive()
    }
}

impl ProxyContext {
    /// A proxy that has not begun to serve.
    #[must_use]
    pub fn new(parts: ProxyParts) -> Arc<Self> {
        let cores = (0..parts.cores.max(1))
            .map(|core| CoreState {
                pool: Mutex::default(),
                chance: AtomicU64::new(mix(parts.seed ^ mix(core as u64 + 1))),
                sweeping: AtomicBool::new(false),
                probes: Mutex::default(),
                lanes: Lanes::default(),
                rounds: Arc::default(),
                meters: Mutex::default(),
            })
            .collect();
        let source = {
            let snapshot = parts.published.load();
            format!("spiffe://{}/node/{}", snapshot.here.mesh, snapshot.here.node)
        };
        Arc::new(Self {
            source,
            published: parts.published,
            links: parts.links,
            clock: parts.clock,
            flows: Arc::new(Flows::new(parts.config.udp_flows_max, mix(parts.seed))),
            connections: Arc::new(Semaphore::new(parts.config.connections_max.min(Semaphore::MAX_PERMITS))),
            config: parts.config,
            outcomes: parts.outcomes,
            cores,
            peers: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            mirrors: Arc::default(),
            draining: CancellationToken::new(),
            is_short_of_memory: AtomicBool::new(false),
            idle: Notify::new(),
        })
    }

    /// Says whether new work is refused for want of memory; returns what it was before.
    pub fn set_short_of_memory(&self, is_short: bool) -> bool {
        self.is_short_of_memory.swap(is_short, Ordering::Relaxed)
    }

    /// Whether there is memory for a new request.
    ///
    /// # Errors
    /// The refusal for a client of this node.
    pub(super) fn has_memory(&self) -> Result<(), Refusal> {
        if !self.is_short_of_memory.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Refusal::new(Reason::ShortOfMemory, "the memory of this node is nearly used up by requests in flight")
            .hint("ask again in a moment; `proxy.memory_max` in node.toml, or the limit of the cgroup, says how much there is"))
    }

    /// Requests and tunnels in flight, those of peers to instances of this node included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether [`ProxyContext::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Stops accepting connections and streams, and waits at most `limit` for what is in flight; returns what is left.
    ///
    /// Kept-alive connections are answered with `connection: close` from now on. Those that are silent stay open until
    /// the process ends, as closing them could cut a request that is on its way.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.cancel();
        let quiet = async {
            loop {
                let notified = self.idle.notified();
                if self.in_flight() == 0 {
                    return;
                }
                notified.await;
            }
        };
        // Past the limit the caller goes on with what is left; the number says it all.
        tokio::time::timeout(limit, quiet).await.ok();
        self.in_flight()
    }

    /// The peer is given up: everything that waits for it fails at once and is sent elsewhere where that is safe.
    ///
    /// To be called on a `Dead` verdict and when the last control link was lost. A later request may dial it again.
    pub fn peer_dead(&self, node: NodeId) {
        if let Some(token) = lock(&self.peers).remove(&node) {
            token.cancel();
        }
        for core in &self.cores {
            lock(&core.pool).forget_node(node);
            lock(&core.probes).retain(|(of, _), _| *of != node);
        }
    }

    /// Ends when [`ProxyContext::drain`] was called.
    pub(super) async fn until_draining(&self) {
        self.draining.cancelled().await;
    }

    /// The way of large streams of this core to a peer is given up: what waits there fails at once, and the peer stays.
    /// Whether it was still there.
    pub(super) fn large_dead(&self, core: usize, node: NodeId, link: &Retirement) -> bool {
        lock(&self.core(core).probes).remove(&(node, Volume::Large));
        self.links.give_up_large(node, link)
    }

    /// Cancelled when the peer is given up.
    pub(super) fn peer_token(&self, node: NodeId) -> CancellationToken {
        lock(&self.peers).entry(node).or_default().clone()
    }

    /// A number uniform in `[0, 1)`: `SplitMix64` (Steele, Lea, Flood 2014), one stream per core.
    pub(super) fn chance(&self, core: usize) -> f64 {
        const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
        const STEPS: f64 = 9_007_199_254_740_992.0;
        let step = self.core(core).chance.fetch_add(GOLDEN_GAMMA, Ordering::Relaxed).wrapping_add(GOLDEN_GAMMA);
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let numerator = (mix(step) >> 11) as f64;
        numerator / STEPS
    }

    /// The connections kept by this core. Never held across an await.
    pub(super) fn pool(&self, core: usize) -> MutexGuard<'_, Pool> {
        lock(&self.core(core).pool)
    }

    /// The series of this core's requests. Never held across an await.
    pub(super) fn meters(&self, core: usize) -> MutexGuard<'_, Meters> {
        lock(&self.core(core).meters)
    }

    /// The streams of this core to a peer.
    pub(super) fn lane(&self, core: usize, node: NodeId) -> Arc<Lane> {
        self.core(core).lanes.lane(node)
    }

    /// What a new connection of this core has of its thread.
    pub(super) fn share(&self, core: usize) -> Arc<Share> {
        Share::new(&self.core(core).rounds, &self.clock)
    }

    /// True for the one caller that is to sweep this core's pool.
    pub(super) fn begin_sweeping(&self, core: usize) -> bool {
        !self.core(core).sweeping.swap(true, Ordering::AcqRel)
    }

    /// The sweeper of this core has ended.
    pub(super) fn end_sweeping(&self, core: usize) {
        self.core(core).sweeping.store(false, Ordering::Release);
    }

    /// The right to probe a peer from this core, over the way of such streams, unless a probe is under way.
    pub(super) fn probe_turn(&self, core: usize, node: NodeId, large: Option<&Retirement>) -> Option<ProbeTurn<'_>> {
        let volume = if large.is_some() { Volume::Large } else { Volume::Small };
        let (probes, key) = (&self.core(core).probes, (node, volume));
        let mut all = lock(probes);
        let one = all.entry(key).or_default();
        if one.is_under_way {
            return None;
        }
        if large.is_some_and(|link| one.link.as_ref().is_none_or(|other| !other.is_of_same_link(link))) {
            // What another link failed says nothing of this one.
            (one.failed_in_a_row, one.link) = (0, large.cloned());
        }
        one.is_under_way = true;
        Some(ProbeTurn { probes, key })
    }

    /// Tells the control thread, which may be late: a full queue drops and counts.
    pub(super) fn tell(&self, outcome: Outcome) {
        match outcome.kind {
            OutcomeKind::TimedOut => metrics::counter!("marram_request_timeouts_total").increment(1),
            OutcomeKind::LinkFailed => {}
            OutcomeKind::ConnectFailed
            | OutcomeKind::Closed
            | OutcomeKind::PeerFailed
            | OutcomeKind::Erring
            | OutcomeKind::SuccessRate
            | OutcomeKind::FailurePercentage
            | OutcomeKind::Latency => {
                metrics::counter!("marram_ejections_total", "reason" => outcome.kind.as_str()).increment(1);
            }
        }
        if self.outcomes.try_send(outcome).is_err() {
            metrics::counter!("marram_outcomes_dropped_total").increment(1);
        }
    }

    /// Compares the endpoints of each service whose interval is over at `now`, and tells who is left out for it. The control
    /// thread calls this again and again.
    pub fn turn_intervals(&self, now: Duration) {
        for Ejection { endpoint, finding, out_for } in outlier::turn(&self.published.load(), now) {
            let kind = match finding {
                Finding::SuccessRate { .. } => OutcomeKind::SuccessRate,
                Finding::FailurePercentage { .. } => OutcomeKind::FailurePercentage,
                Finding::Latency { .. } => OutcomeKind::Latency,
            };
            let detail = format!("{finding}; left out here for {}", humantime::format_duration(out_for));
            self.tell(Outcome { endpoint, kind, detail, in_a_row: 0, at: now });
        }
    }

    /// Counts one request or tunnel in flight.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        Busy { context: Arc::clone(self) }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is at least one core and the index is taken modulo their number"
    )]
    fn core(&self, core: usize) -> &CoreState {
        &self.cores[core % self.cores.len()]
    }
}

/// The right to probe one peer. Dropping it before its end, as the request no longer waits, changes no count.
pub(super) struct ProbeTurn<'a> {
    probes: &'a Mutex<HashMap<ProbeKey, Probes>>,
    key: ProbeKey,
}

impl ProbeTurn<'_> {
    /// The probe has ended; returns how many failed in a row.
    pub(super) fn finish(self, answered: bool) -> u32 {
        let mut all = lock(self.probes);
        if answered {
            all.remove(&self.key);
            return 0;
        }
        all.get_mut(&self.key).map_or(0, |one| {
            one.failed_in_a_row += 1;
            one.failed_in_a_row
        })
    }
}

impl Drop for ProbeTurn<'_> {
    fn drop(&mut self) {
        if let Some(one) = lock(self.probes).get_mut(&self.key) {
            one.is_under_way = false;
        }
    }
}

/// One request or tunnel in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy {
    context: Arc<ProxyContext>,
}

impl Busy {
    pub(super) const fn context(&self) -> &Arc<ProxyContext> {
        &self.context
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let left = self.context.in_flight.fetch_sub(1, Ordering::AcqRel).saturating_sub(1);
        if left == 0 {
            self.context.idle.notify_waiters();
        }
    }
}

/// The lock of data that no panic leaves half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output function of `SplitMix64`.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
