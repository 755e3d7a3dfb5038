//! What a request reads: one immutable snapshot, swapped whole, and the live counters its endpoints point at.
//!
//! The control thread builds a [`Snapshot`] whenever policy, membership or a service changed and publishes it
//! through [`Published`]. A request loads it once and never waits for anything else. Counters that move with every
//! request (in flight, ejection, picks) are atomics in [`EndpointStats`] and outlive the snapshot that names them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::header::HeaderValue;
use policy::explain::{CapacitySource, DistanceSource};
use policy::{Capacity, Outlier, PeakEwma, Report, RouteTable};
use transport::NodeId;

use crate::config::Protocol;
use crate::gossip::Facts;
use crate::limits::{FleetShare, ServiceStats, take_within};
use crate::outlier::{Finding, Seen, Streak, Verdict, Window};
use crate::spread::{Placed, settle};

/// Where readers find the newest snapshot.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Snapshot>,
}

impl Published {
    /// Publishes `first` as the snapshot in force.
    #[must_use]
    pub fn new(first: Snapshot) -> Self {
        Self { current: ArcSwap::from_pointee(first) }
    }

    /// The snapshot in force; a request calls this once.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot for every later reader.
    pub fn publish(&self, next: Snapshot) {
        self.current.store(Arc::new(next));
    }
}

/// Everything a routing decision needs, as this node knew it at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Rises by one with every publication of this process.
    pub version: u64,
    /// Who this node is.
    pub here: Here,
    /// The compiled policy.
    pub table: Arc<RouteTable>,
    /// Every service anybody is known to offer, by name.
    pub services: BTreeMap<String, Arc<ServiceView>>,
    /// Instances this node owns, by (service, instance).
    pub local: HashMap<(String, String), Arc<LocalInstance>>,
}

impl Snapshot {
    /// Of `services` as they are known, what `table` lets requests see.
    #[must_use]
    pub fn new(
        version: u64,
        here: Here,
        table: Arc<RouteTable>,
        mut services: BTreeMap<String, Arc<ServiceView>>,
        local: HashMap<(String, String), Arc<LocalInstance>>,
    ) -> Self {
        settle(&mut services, &table, &here);
        Self { version, here, table, services, local }
    }
}

/// This node's own names and place.
#[derive(Debug, Clone)]
pub struct Here {
    /// Proven by the certificate.
    pub node: NodeId,
    /// The operator's label.
    pub name: String,
    /// Large place, empty when not configured.
    pub region: String,
    /// Small place, empty when not configured.
    pub zone: String,
    /// The mesh's name (SPIFFE trust domain).
    pub mesh: String,
}

/// One service as this node sees it.
#[derive(Debug, Clone)]
pub struct ServiceView {
    /// The name requests ask for.
    pub name: String,
    /// Endpoints that may be drawn, before the local ejection check.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Endpoints that are known but out, each with the reason.
    pub excluded: Vec<ExcludedEndpoint>,
    /// How many nodes send requests to this service, this one included; at least 1.
    pub active_clients: f64,
    /// What this node has under way to it, the same object in every snapshot that names the service.
    pub stats: Arc<ServiceStats>,
    /// What this node may begin of a rate that all nodes share; `None` where there is none, or nothing is known yet.
    pub fleet_share: Option<FleetShare>,
    /// The localities that policy tells apart; the endpoints stand in their order.
    pub placed: Option<Placed>,
}

/// An instance that is known but cannot be drawn.
#[derive(Debug, Clone)]
pub struct ExcludedEndpoint {
    /// Instance id, unique within the owning node and service.
    pub instance: String,
    /// The owning node's label.
    pub node: String,
    /// Why, as a sentence a person can act on.
    pub reason: String,
    /// What it speaks; `None` for what this version does not know.
    pub protocol: Option<Protocol>,
    /// What its node is.
    pub facts: Arc<Facts>,
    /// Whether it should be there.
    pub missing: Missing,
}

/// Whether an instance that is out leaves a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is down, drains, or its node is dead: its locality has less than it should.
    Yes,
    /// It has left, was never there, or has no business there.
    No,
    /// It is well, but a `Residency` forbids it to answer.
    Forbidden,
}

/// The way of a request, `from->to`, as a header's value; `None` where a name is none.
pub(crate) fn via_value(from: &str, to: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("{from}->{to}")).ok()
}

/// One place that answers for a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The service's name.
    pub service: Arc<str>,
    /// Instance id, unique within the owning node and service.
    pub instance: Arc<str>,
    /// The owning node.
    pub node: NodeId,
    /// The owning node's label.
    pub node_name: String,
    /// The owning node's zone.
    pub zone: String,
    /// What the owning node is.
    pub facts: Arc<Facts>,
    /// The number of its locality among those of [`ServiceView::placed`]; 0 where there are none.
    pub locality: usize,
    /// What it speaks.
    pub protocol: Protocol,
    /// Concurrent requests it can serve well.
    pub capacity: Capacity,
    /// Where the capacity comes from.
    pub capacity_source: CapacitySource,
    /// Network distance from here, round trip in milliseconds.
    pub distance_ms: f64,
    /// Where the distance comes from.
    pub distance_source: DistanceSource,
    /// The address to connect to when the instance is on this node.
    pub local: Option<Arc<LocalInstance>>,
    /// True while the owner is suspected: its weight counts a quarter.
    pub suspect: bool,
    /// Live counters, the same object in every snapshot that names this endpoint.
    pub stats: Arc<EndpointStats>,
    /// See [`Endpoint::via`].
    pub via: OnceLock<Option<HeaderValue>>,
}

impl Endpoint {
    /// The way of a request from the node `here`, made once.
    #[must_use]
    pub fn via(&self, here: &str) -> Option<HeaderValue> {
        self.via.get_or_init(|| via_value(here, &self.node_name)).clone()
    }

    /// Whether a request holds a connection of its own, as over HTTP/1.1.
    #[inline]
    #[must_use]
    pub fn holds_connection(&self) -> bool {
        self.protocol != Protocol::Http2
    }

    /// The same as one that cannot be drawn.
    #[must_use]
    pub fn excluded(&self, reason: String, missing: Missing) -> ExcludedEndpoint {
        ExcludedEndpoint {
            instance: self.instance.to_string(),
            node: self.node_name.clone(),
            reason,
            protocol: Some(self.protocol),
            facts: Arc::clone(&self.facts),
            missing,
        }
    }
}

/// An instance this node owns.
#[derive(Debug)]
pub struct LocalInstance {
    /// The service's name.
    pub service: String,
    /// Instance id.
    pub instance: String,
    /// Where the process listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// Requests in flight through this node to it, from all peers and from here.
    pub inflight: AtomicU32,
    /// The verdict of its checks.
    pub healthy: AtomicBool,
    /// Connects that the process refused since the last success; the health supervisor looks at it.
    pub connect_failures: AtomicU32,
    /// Connections that ended before the answer to a request; the health supervisor looks at it.
    pub broken_connections: AtomicU32,
}

/// Live counters of one endpoint as seen from this node.
#[derive(Debug, Default)]
pub struct EndpointStats {
    own_inflight: AtomicU32,
    gossiped_inflight: AtomicU32,
    own_at_gossip: AtomicU32,
    gossiped_at_us: AtomicU64,
    /// A [`PeakEwma`] in its bits.
    latency: AtomicU64,
    ejected_until_ms: AtomicU64,
    /// Whether that is for what it answered.
    is_outlier: AtomicBool,
    /// A [`Streak`] in its bits.
    streak: AtomicU64,
    /// What is compared with its peers'.
    window: Window,
    /// Since when it is there and healthy; 0 while it is not.
    present_since_ms: AtomicU64,
    failures_in_a_row: AtomicU32,
    successes: AtomicU64,
    failures: AtomicU64,
    picks: AtomicU64,
    expected_picks_micro: AtomicU64,
    /// Moving mean of the bytes of a request's answer, or of a connection's busier direction.
    bytes_mean: AtomicU64,
}

/// A new figure counts an eighth in the mean of bytes.
const BYTES_MEAN_SHARE: u64 = 8;
/// More counts as this, so that the mean forgets the longest within 28 short ones.
const BYTES_MEAN_MAX: u64 = 1024 * 1024;

impl EndpointStats {
    /// What a request or connection carries, on the average of the last few.
    #[must_use]
    pub fn bytes_mean(&self) -> u64 {
        self.bytes_mean.load(Ordering::Relaxed)
    }

    /// Takes in what one carried. Two threads at once may lose a figure, which the next ones make up for.
    fn carried(&self, bytes: u64) {
        let (mean, bytes) = (self.bytes_mean(), bytes.min(BYTES_MEAN_MAX));
        self.bytes_mean.store(mean - mean / BYTES_MEAN_SHARE + bytes / BYTES_MEAN_SHARE, Ordering::Relaxed);
    }

    /// Requests of this node now in flight to the endpoint.
    #[inline]
    #[must_use]
    pub fn own_inflight(&self) -> u32 {
        self.own_inflight.load(Ordering::Relaxed)
    }

    /// Takes a newer figure of the endpoint's requests in flight, as its owner told it at `now` (gossip, ack or answer).
    pub fn report_inflight(&self, inflight: u32, now: Duration) {
        self.gossiped_inflight.store(inflight, Ordering::Relaxed);
        self.own_at_gossip.store(self.own_inflight(), Ordering::Relaxed);
        self.gossiped_at_us.store(whole_us(now), Ordering::Relaxed);
    }

    /// The owner's last figure, this node's own share at that moment, and how long ago that was. Another thread may be
    /// writing a newer one: then the parts are of two reports, which a moment later are of one again.
    #[inline]
    #[must_use]
    pub fn reported(&self, now: Duration) -> Report {
        Report {
            inflight: self.gossiped_inflight.load(Ordering::Relaxed),
            own: self.own_at_gossip.load(Ordering::Relaxed),
            age_us: whole_us(now).saturating_sub(self.gossiped_at_us.load(Ordering::Relaxed)),
        }
    }

    /// How long an answer takes as seen from here, in milliseconds, at `now`; `None` where none has come yet.
    #[inline]
    #[must_use]
    pub fn latency_ms(&self, now: Duration) -> Option<f64> {
        PeakEwma::from_bits(self.latency.load(Ordering::Relaxed)).latency_ms(now)
    }

    /// Takes in what a request saw. Threads that do so at once do it one after the other, without waiting.
    pub fn learn_latency(&self, learn: impl Fn(PeakEwma) -> PeakEwma) {
        self.latency.update(Ordering::Relaxed, Ordering::Relaxed, |bits| learn(PeakEwma::from_bits(bits)).to_bits());
    }

    /// Counts one request in flight until the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.own_inflight.fetch_add(1, Ordering::Relaxed);
        InFlight { stats: Arc::clone(self) }
    }

    /// Counts one request in flight until the guard is dropped; `None` where there are `limit` already.
    #[must_use]
    pub fn begin_within(self: &Arc<Self>, limit: u32) -> Option<InFlight> {
        take_within(&self.own_inflight, limit).then(|| InFlight { stats: Arc::clone(self) })
    }

    /// Whether the endpoint came back from being an outlier and has not answered well since. While it owes this node an
    /// answer, the other requests are better off elsewhere: they would all learn the same.
    #[inline]
    #[must_use]
    pub fn is_on_probation(&self) -> bool {
        let streak = self.streak.load(Ordering::Relaxed);
        streak != 0 && Streak::from_bits(streak).was_left_out() && self.own_inflight() > 0
    }

    /// Records that a decision gave this endpoint the probability `p` of being chosen, and whether it was.
    pub fn record_decision(&self, p: f64, drawn: bool) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "p is within 0..=1, so the product is within 0..=1e6"
        )]
        let micro = (p.clamp(0.0, 1.0) * 1e6).round() as u64;
        self.expected_picks_micro.fetch_add(micro, Ordering::Relaxed);
        if drawn {
            self.picks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Times chosen, and the sum of the probabilities it had of that at each decision.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count for people; exact up to 2^52 micro-picks")]
    pub fn picks(&self) -> (u64, f64) {
        (self.picks.load(Ordering::Relaxed), self.expected_picks_micro.load(Ordering::Relaxed) as f64 / 1e6)
    }

    /// The request was answered: failures in a row start again at zero.
    pub fn succeeded(&self) {
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.successes.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer at `now` was no error, as far as it says of its instance: what was said of errors is forgotten, unless
    /// the endpoint is left out, so that the answer is to what was sent before.
    pub fn answered_well(&self, now: Duration) {
        self.window.good();
        // Nearly always there is nothing to forget, and a read is shared by all threads.
        if self.streak.load(Ordering::Relaxed) != 0 && !self.is_outlier(now) {
            self.streak.store(0, Ordering::Relaxed);
        }
    }

    /// The answer was an error of the instance at `now`. When it is one too many and `may_leave_out` says so, the endpoint
    /// is not drawn for the time that is returned.
    pub fn answered_badly(&self, now: Duration, rule: &Outlier, may_leave_out: impl Fn() -> bool) -> Option<Duration> {
        // What was sent before it was left out says nothing new.
        if self.is_outlier(now) {
            return None;
        }
        self.window.bad();
        let next = |bits| Streak::from_bits(bits).erred(now, rule).0.to_bits();
        let before = self.streak.update(Ordering::Relaxed, Ordering::Relaxed, next);
        let out_for = Streak::from_bits(before).erred(now, rule).1.filter(|_| may_leave_out())?;
        self.window.found_streak();
        self.leave_out_until(now.saturating_add(out_for));
        Some(out_for)
    }

    /// A good answer took so long, for the comparison with the endpoint's peers.
    pub fn answered_within(&self, took: Duration) {
        self.window.timed(took);
    }

    /// What was counted in the interval that ends now; the next one begins at zero. For the control thread.
    pub fn take_window(&self, distance_ms: f64) -> Seen {
        self.window.take(distance_ms)
    }

    /// Keeps what came of comparing it in that interval.
    pub fn note_interval(&self, verdict: &Verdict) {
        self.window.note(verdict);
    }

    /// The endpoint is not drawn for the time that is returned, from `now` on: it is too different from its peers.
    pub fn leave_out(&self, finding: Finding, rule: &Outlier, now: Duration) -> Duration {
        let times = self.window.relapses();
        let next = |bits| Streak::from_bits(bits).left_out(times, rule).0.to_bits();
        let before = self.streak.update(Ordering::Relaxed, Ordering::Relaxed, next);
        let (_, out_for) = Streak::from_bits(before).left_out(times, rule);
        self.window.found(finding);
        self.leave_out_until(now.saturating_add(out_for));
        out_for
    }

    /// What comparison with its peers the endpoint was left out for last; `None` where it was errors in a row.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        self.window.finding()
    }

    fn leave_out_until(&self, until: Duration) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.is_outlier.store(true, Ordering::Relaxed);
        self.ejected_until_ms.store(whole_ms(until), Ordering::Relaxed);
    }

    /// Whether the endpoint is out at `now` for what it answered.
    #[must_use]
    pub fn is_outlier(&self, now: Duration) -> bool {
        self.is_outlier.load(Ordering::Relaxed) && self.is_ejected(now)
    }

    /// The endpoint failed as such (no connection, no answer): it is not drawn until `until`, and comes back as one whose
    /// latency is not known. So a quick failure cannot attract, and what happened before cannot keep away what has recovered:
    /// it is asked one request at a time until it answers.
    ///
    /// Returns how many failures in a row that makes.
    pub fn failed(&self, until: Duration) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.latency.store(PeakEwma::default().to_bits(), Ordering::Relaxed);
        self.is_outlier.store(false, Ordering::Relaxed);
        self.ejected_until_ms.store(whole_ms(until), Ordering::Relaxed);
        self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Ends an ejection at once, for instance because the owner was heard again. How long answers took before does not
    /// count any more.
    pub fn readmit(&self) {
        self.latency.store(PeakEwma::default().to_bits(), Ordering::Relaxed);
        self.ejected_until_ms.store(0, Ordering::Relaxed);
        self.streak.store(0, Ordering::Relaxed);
        self.window.forget();
        self.failures_in_a_row.store(0, Ordering::Relaxed);
    }

    /// Whether the endpoint is out at `now` (monotonic since the start of the process).
    #[inline]
    #[must_use]
    pub fn is_ejected(&self, now: Duration) -> bool {
        self.ejected_until_ms.load(Ordering::Relaxed) > whole_ms(now)
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row.load(Ordering::Relaxed)
    }

    /// The endpoint is there and healthy by its owner's word, at `now` at the latest.
    pub fn mark_present(&self, now: Duration) {
        if self.present_since_ms.load(Ordering::Relaxed) == 0 {
            self.present_since_ms.store(whole_ms(now).max(1), Ordering::Relaxed);
        }
    }

    /// It is not there, or not healthy.
    pub fn mark_absent(&self) {
        self.present_since_ms.store(0, Ordering::Relaxed);
    }

    /// How long it has been there without a break; `None` while it is not.
    #[must_use]
    pub fn age(&self, now: Duration) -> Option<Duration> {
        let since = self.present_since_ms.load(Ordering::Relaxed);
        (since > 0).then(|| now.saturating_sub(Duration::from_millis(since)))
    }

    /// Answered and failed requests since the start.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.successes.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }
}

/// Without the 128 bits of [`Duration::as_millis`]: this is asked for every candidate of every decision.
#[inline]
fn whole_ms(at: Duration) -> u64 {
    at.as_secs().saturating_mul(1000).saturating_add(u64::from(at.subsec_millis()))
}

/// As [`whole_ms`]: where answers take less than a millisecond, it matters how much less old a report is.
#[inline]
fn whole_us(at: Duration) -> u64 {
    at.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(at.subsec_micros()))
}

/// One request in flight; dropping it takes the request off the count.
#[derive(Debug)]
pub struct InFlight {
    stats: Arc<EndpointStats>,
}

impl InFlight {
    /// It carried so many bytes.
    pub fn carried(&self, bytes: u64) {
        self.stats.carried(bytes);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.stats.own_inflight.fetch_sub(1, Ordering::Relaxed);
    }
}
