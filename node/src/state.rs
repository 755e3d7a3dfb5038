//! What the control loop knows and decides: membership, catalog, own instances, policy in force. No I/O.
//!
//! The loop in [`crate::control`] feeds it and carries out what it says; the admin API reads views of it. It sits
//! behind one mutex that is never held across an await and never taken on a data thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use policy::explain::{DistanceSource, Excluded, ExplainedFleetRate, Explanation, Subject, explain_parts};
use policy::{BackendPolicy, DocId, Filed, Library, Place, Problem, RouteTable, ServiceTraffic, floor_share};
use transport::NodeId;
use transport::cell::CellConfig;
use transport::rtt::RttFilter;
use transport::swim::{Liveness, Swim};
use transport::trust::Role;
use transport::vivaldi::Vivaldi;

use crate::catalog::{Catalog, DEFAULT_DISTANCE_MS, Distance, KnownNode, great_circle_ms};
use crate::demand::{Demands, Seen};
use crate::gossip::{Asks, Facts, Loads, Offers};
use crate::local::LocalInstances;
use crate::pick::{self, Asked, Eligible};
use crate::shares::{EndpointKey, Shares};
use crate::snapshot::{Endpoint, Here, ServiceView, Snapshot};
use crate::spread;
use crate::store::{Acks, StoreNumbers, StoreState};
use crate::view::{
    InstanceView, LinkView, MemberCounts, NodeView, PeerSyncView, PolicyStatus, ProblemView, ServiceSummary, Status,
    SyncCounters, SyncStatus,
};

/// A service counts as used by this node for so long after its last request.
const CLIENT_FOR: Duration = Duration::from_secs(10);

/// The whole state.
#[derive(Debug)]
pub struct State {
    /// Who this node is.
    pub here: Here,
    /// Its own facts, as gossiped.
    pub facts: Facts,
    /// Every node and what it offers.
    pub catalog: Catalog,
    /// This node's instances.
    pub local: LocalInstances,
    /// Membership.
    pub swim: Swim,
    /// Network coordinates.
    pub vivaldi: Vivaldi,
    /// Shares really got.
    pub shares: Shares,
    /// What is asked of this node for services whose rate all nodes share.
    pub demands: Demands,
    /// The policy store in short.
    pub store: StoreState,
    /// Every document, read.
    pub library: Library,
    /// Why the store refuses writes, when it does.
    pub read_only: Option<String>,
    /// What had to be done to open the store, when it was damaged; until the next start.
    pub recovered: Option<String>,
    /// Documents that do not validate, with what is done meanwhile.
    pub broken: Vec<(DocId, Vec<Problem>)>,
    /// Documents whose time is over; they are stored and not in force.
    pub expired: Vec<DocId>,
    /// Documents that say something which a wider one keeps to itself.
    pub locked_out: Vec<(DocId, Vec<Problem>)>,
    /// When the next document's time is over, in Unix milliseconds.
    pub next_expiry_ms: Option<u64>,
    /// The compiled policy in force.
    pub table: Arc<RouteTable>,
    /// Processor share in use, 0..=1.
    pub cpu: f64,
    /// `starting`, `ready` or `draining`.
    pub life: Life,
    /// Round trips of live links, for nodes the prober has too few samples of.
    pub link_rtt: HashMap<NodeId, Duration>,
    /// When the process started, monotonic.
    pub started: Duration,
    /// Version of the newest snapshot.
    version: u64,
    /// Picks of each service when last looked at, and when they last rose.
    used: HashMap<String, (u64, Duration)>,
}

/// Life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Not listening yet.
    Starting,
    /// Takes work.
    Ready,
    /// Finishes what it has.
    Draining,
}

impl Life {
    fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl State {
    /// The state of a node that knows only itself.
    #[must_use]
    pub fn new(
        here: Here,
        role: Role,
        public_key: [u8; 32],
        facts: Facts,
        local: LocalInstances,
        swim: Swim,
        now: Duration,
    ) -> Self {
        let mut catalog = Catalog::new(here.node);
        let own = catalog.take_facts(here.node, (role, public_key), (0, 1), facts.clone(), now);
        debug_assert_eq!(own, Ok(()), "an empty catalog takes its own node");
        Self {
            here,
            facts,
            catalog,
            local,
            swim,
            vivaldi: Vivaldi::new(None),
            shares: Shares::default(),
            demands: Demands::new(CellConfig::LAN_INTERVAL),
            store: StoreState::default(),
            library: Library::default(),
            read_only: None,
            recovered: None,
            broken: Vec::new(),
            expired: Vec::new(),
            locked_out: Vec::new(),
            next_expiry_ms: None,
            table: Arc::new(RouteTable::default()),
            cpu: 0.0,
            life: Life::Starting,
            link_rtt: HashMap::new(),
            started: now,
            version: 0,
            used: HashMap::new(),
        }
    }

    /// Files what changed of the documents, all of them with `is_whole`, and compiles as [`State::compile`] does.
    /// Returns the documents whose time is over since the last time.
    pub fn take_policy(
        &mut self,
        filed: Vec<(DocId, Filed)>,
        is_whole: bool,
        store: StoreState,
        now_ms: u64,
    ) -> Vec<DocId> {
        self.store = store;
        if is_whole {
            self.library.clear();
        } else if filed.is_empty() {
            return Vec::new();
        }
        for (id, filed) in filed {
            self.library.file(id, filed);
        }
        self.compile(now_ms)
    }

    /// Compiles the documents in force at `now_ms` (Unix milliseconds) and keeps for `/v1/problems` what is not. Returns
    /// the documents whose time is over since the last time.
    pub fn compile(&mut self, now_ms: u64) -> Vec<DocId> {
        let compiled = self.library.compile(&place(&self.here), now_ms);
        self.table = Arc::new(compiled.table);
        self.broken = compiled.problems;
        self.locked_out = compiled.locked_out;
        self.next_expiry_ms = compiled.next_expiry_ms;
        let before = std::mem::replace(&mut self.expired, compiled.expired);
        self.expired.iter().filter(|id| !before.contains(id)).cloned().collect()
    }

    /// Where a node is, by its label; `None` for one that is not known here.
    #[must_use]
    pub fn place_of(&self, name: &str) -> Option<Place> {
        let known = self.catalog.by_name(name)?;
        Some(Place {
            node_name: known.facts.name.clone(),
            region: known.facts.region.clone(),
            zone: known.facts.zone.clone(),
        })
    }

    /// Every node that has not left, with where it is.
    #[must_use]
    pub fn places(&self) -> Vec<(String, Place)> {
        let staying = self.catalog.nodes().filter(|known| known.liveness != Liveness::Left);
        staying.filter_map(|known| Some((known.facts.name.clone(), self.place_of(&known.facts.name)?))).collect()
    }

    /// How this node's requests of the last minute spread over services; empty when there were none.
    #[must_use]
    pub fn traffic(&self, snapshot: &Snapshot) -> Vec<ServiceTraffic> {
        let endpoints =
            || snapshot.services.iter().flat_map(|(name, view)| view.endpoints.iter().map(move |e| (name, e)));
        let picks: Vec<(EndpointKey, u64)> =
            endpoints().map(|(_, endpoint)| (share_key(endpoint), endpoint.stats.picks().0)).collect();
        let mut by_service: BTreeMap<&String, f64> = BTreeMap::new();
        for ((service, _), share) in endpoints().zip(self.shares.observed(&picks)) {
            *by_service.entry(service).or_default() += share;
        }
        let told = by_service.into_iter().map(|(service, share)| ServiceTraffic {
            service: service.to_string(),
            node: self.here.name.clone(),
            share,
        });
        told.filter(|traffic| traffic.share > 0.0).collect()
    }

    /// What this node tells others it offers.
    #[must_use]
    pub fn offers(&self) -> Offers {
        self.local.offers(self.life == Life::Draining)
    }

    /// Builds the next snapshot for requests.
    pub fn snapshot(&mut self, now: Duration) -> Snapshot {
        self.version += 1;
        let local = self.local.live();
        let distances: HashMap<NodeId, Distance> =
            self.catalog.nodes().map(|known| (known.node, self.distance(known))).collect();
        let unknown = Distance { ms: DEFAULT_DISTANCE_MS, source: DistanceSource::Unknown };
        let mut services =
            self.catalog.services(&local, |known| distances.get(&known.node).copied().unwrap_or(unknown), now);
        self.share_rates(&mut services);
        Snapshot::new(self.version, self.here.clone(), Arc::clone(&self.table), services, local)
    }

    /// Works out what this node may begin of the rates that all nodes share.
    fn share_rates(&mut self, services: &mut BTreeMap<String, Arc<ServiceView>>) {
        if self.table.fleet_rates().next().is_none() {
            return;
        }
        let (others, mut asked) = (self.catalog.sharers().count(), self.catalog.asks());
        for (service, limit) in self.table.fleet_rates() {
            // They were just made, so nobody else has them.
            if let Some(view) = services.get_mut(service).and_then(Arc::get_mut) {
                let asked = asked.remove(service).unwrap_or_default();
                let silent = others.saturating_sub(asked.len());
                view.fleet_share = Some(self.demands.share(service, limit, &asked, silent));
            }
        }
    }

    /// Sees how many requests asked to begin for services whose rate all nodes share, and returns what others should know
    /// of it.
    pub fn demand(&mut self, snapshot: &Snapshot, now: Duration) -> Option<Asks> {
        let nodes = self.catalog.sharers().count() + 1;
        let seen = snapshot.table.fleet_rates().filter_map(|(service, limit)| {
            let asked = snapshot.services.get(service)?.stats.asked();
            Some(Seen { service, asked, limit, floor: floor_share(limit.per_second(), nodes) })
        });
        self.demands.observe(now, seen);
        self.demands.tell(now)
    }

    /// How far `known` is: the smaller of the probes' filtered round trip and the link's, else coordinates, else the great
    /// circle, else unknown.
    #[must_use]
    pub fn distance(&self, known: &KnownNode) -> Distance {
        if known.node == self.here.node {
            return Distance { ms: 0.0, source: DistanceSource::Local };
        }
        let member = self.swim.member(&known.node);
        // The prober's figure contains the waits of two control threads, the link's those of two data threads: on a busy
        // machine the smaller one is nearer to the way between them.
        let probed = member.and_then(|m| m.round_trips.rtt());
        let direct = probed.into_iter().chain(self.link_rtt.get(&known.node).copied()).min();
        if let Some(rtt) = direct {
            return Distance { ms: rtt.as_secs_f64() * 1e3, source: DistanceSource::Rtt };
        }
        if let Some(coord) = member.and_then(|m| m.coord.as_ref()) {
            let ms = self.vivaldi.distance(coord).as_secs_f64() * 1e3;
            return Distance { ms, source: DistanceSource::Vivaldi };
        }
        if let (Some(from), Some(to)) = (self.facts.location, known.facts.location) {
            return Distance { ms: great_circle_ms(from, to), source: DistanceSource::GreatCircle };
        }
        Distance { ms: DEFAULT_DISTANCE_MS, source: DistanceSource::Unknown }
    }

    /// How busy this node is now, for gossip. `snapshot` tells which services it sent requests to lately.
    pub fn loads(&mut self, snapshot: &Snapshot, agent_memory_bytes: u64, now: Duration) -> Loads {
        for (name, view) in &snapshot.services {
            let picks = view.endpoints.iter().map(|e| e.stats.picks().0).sum();
            let used = self.used.entry(name.clone()).or_insert((0, Duration::ZERO));
            if picks != used.0 {
                *used = (picks, now);
            }
        }
        self.used.retain(|name, _| snapshot.services.contains_key(name));
        let recent = |(picks, at): &(u64, Duration)| *picks > 0 && now.saturating_sub(*at) < CLIENT_FOR;
        Loads {
            inflight: self.local.inflight(),
            clients: self.used.iter().filter(|(_, used)| recent(used)).map(|(name, _)| name.clone()).collect(),
            cpu: self.cpu,
            agent_memory_bytes,
            policy_root: self.store.root,
        }
    }

    /// Sets a mark for the shares of the last minute when one is due.
    pub fn mark_shares(&mut self, snapshot: &Snapshot, now: Duration) {
        self.shares.mark(now, || {
            let endpoints = snapshot.services.values().flat_map(|view| &view.endpoints);
            endpoints.map(|endpoint| (share_key(endpoint), endpoint.stats.picks().0)).collect()
        });
    }

    /// `GET /v1/explain/{service}`.
    #[must_use]
    pub fn explain(&self, snapshot: &Snapshot, service: &str, now: Duration) -> Option<Explanation> {
        let view = snapshot.services.get(service)?;
        let backend = snapshot.table.backend(service);
        let Eligible { candidates, out, spread, is_panic } = pick::eligible(view, Asked::default(), now, backend);
        let subjects = candidates.iter().map(|endpoint| subject(view, endpoint, backend, is_panic, now)).collect();
        let mut excluded: Vec<Excluded> = view
            .excluded
            .iter()
            .map(|e| Excluded { instance: e.instance.clone(), node: e.node.clone(), reason: e.reason.clone() })
            .collect();
        excluded.extend(out.into_iter().map(|(endpoint, reason)| Excluded {
            instance: endpoint.instance.to_string(),
            node: endpoint.node_name.clone(),
            reason: reason.sentence(view, &endpoint),
        }));
        let localities = spread::explained(view, spread.as_ref());
        let mut explanation = explain_parts(service, backend, &self.here.name, subjects, localities, excluded);
        explanation.panic = is_panic;
        explanation.requirements = spread::requirements(view, &snapshot.table);
        explanation.fleet_rate =
            backend.limits.fleet_rate.zip(view.fleet_share).map(|(limit, share)| ExplainedFleetRate {
                limit_per_s: limit.per_second(),
                share_per_s: share.per_second,
                demand_per_s: share.demand,
                nodes: share.nodes,
                asking: share.asking,
            });
        let picks: Vec<(EndpointKey, u64)> =
            candidates.iter().map(|endpoint| (share_key(endpoint), endpoint.stats.picks().0)).collect();
        let shares = self.shares.observed(&picks);
        let any = shares.iter().any(|share| *share > 0.0);
        for (candidate, share) in explanation.candidates.iter_mut().zip(shares) {
            candidate.observed_share = any.then_some(share);
        }
        Some(explanation)
    }

    /// `GET /v1/status`, all but what the links and certificates say.
    #[must_use]
    pub fn status(&self, links: Vec<LinkView>, leaf_not_after: u64, node_not_after: u64, now: Duration) -> Status {
        let mut members = MemberCounts::default();
        for known in self.catalog.nodes() {
            let count = match known.liveness {
                Liveness::Alive => &mut members.alive,
                Liveness::Suspect => &mut members.suspect,
                Liveness::Dead => &mut members.dead,
                Liveness::Joining => &mut members.joining,
                Liveness::Left => &mut members.left,
            };
            *count += 1;
        }
        Status {
            mesh: self.here.mesh.clone(),
            node: self.here.name.clone(),
            node_id: self.here.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.life.word().to_owned(),
            uptime_s: now.saturating_sub(self.started).as_secs(),
            members,
            policy: PolicyStatus {
                root: hex(&self.store.root),
                documents: self.library.len(),
                conflicts: self.store.conflicts,
                tombstones: self.store.held.saturating_sub(self.library.len()),
                writable: self.read_only.is_none(),
            },
            links,
            leaf_not_after,
            node_not_after,
        }
    }

    /// `GET /v1/sync/status`, from the store's numbers and what peers have confirmed.
    #[must_use]
    pub fn sync_status(&self, numbers: StoreNumbers, acks: &Acks, now: Duration) -> SyncStatus {
        let StoreNumbers { summary, counters, floor_hash, lags } = numbers;
        let staying = |known: &&KnownNode| known.node != self.here.node && known.liveness != Liveness::Left;
        let peers = self.catalog.nodes().filter(staying).map(|known| PeerSyncView {
            node: known.facts.name.clone(),
            state: known.liveness.to_string(),
            root_equal: known.loads.policy_root == summary.root,
            last_sync_s: acks.of(&known.node).map(|ack| now.saturating_sub(ack.at).as_secs_f64()),
            lag: lags.get(&known.node).copied(),
        });
        SyncStatus {
            root: hex(&summary.root),
            context_hash: hex(&summary.context_hash),
            floor_hash: hex(&floor_hash),
            incarnation: summary.incarnation.to_string(),
            counter: summary.counter,
            documents: summary.documents,
            tombstones: summary.tombstones,
            conflicts: summary.conflicts,
            live_bytes: summary.live_bytes,
            origins: summary.origins,
            gaps: summary.gaps,
            counters: SyncCounters {
                written: counters.written,
                merged: counters.merged,
                duplicates: counters.duplicates,
                refused: counters.refused.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
                equivocations: counters.equivocations,
                claims_pending: counters.claims_pending,
                claims_applied: counters.claims_applied,
                clock_suspects: counters.clock_suspects,
                incarnations: counters.incarnations,
            },
            peers: peers.collect(),
        }
    }

    /// `GET /v1/nodes`.
    #[must_use]
    pub fn nodes(&self, agent_memory_bytes: u64, now: Duration) -> Vec<NodeView> {
        self.catalog.nodes().map(|known| self.node_view(known, agent_memory_bytes, now)).collect()
    }

    fn node_view(&self, known: &KnownNode, agent_memory_bytes: u64, now: Duration) -> NodeView {
        let me = known.node == self.here.node;
        let distance = self.distance(known);
        let member = self.swim.member(&known.node);
        let trips = member.filter(|m| m.round_trips.rtt().is_some()).map(|m| &m.round_trips);
        let own_inflight = || self.local.inflight();
        let inflight = if me { own_inflight() } else { known.loads.inflight.clone() };
        let mut services: Vec<String> = if me { self.offers() } else { known.offers.clone() }
            .instances
            .into_iter()
            .map(|offer| offer.service)
            .collect();
        services.sort();
        services.dedup();
        let root = if me { self.store.root } else { known.loads.policy_root };
        NodeView {
            name: known.facts.name.clone(),
            id: known.node.to_string(),
            state: known.liveness.to_string(),
            reason: known.reason.clone(),
            since_s: now.saturating_sub(known.since).as_secs_f64(),
            this_node: me,
            incarnation: if me { self.swim.incarnation() } else { member.map_or(known.incarnation, |m| m.incarnation) },
            region: known.facts.region.clone(),
            zone: known.facts.zone.clone(),
            address: known.facts.addresses.first().cloned().unwrap_or_default(),
            location: known.facts.location,
            role: known.role.to_string(),
            distance_ms: (distance.source != DistanceSource::Unknown).then_some(distance.ms),
            distance_source: source_word(distance.source).to_owned(),
            jitter_ms: trips.map(|t| t.jitter().as_secs_f64() * 1e3),
            loss: trips.map(RttFilter::loss),
            inflight: inflight.iter().map(|(_, _, count)| *count).fold(0, u32::saturating_add),
            cpu: if me { self.cpu } else { known.loads.cpu },
            agent_memory_bytes: if me { agent_memory_bytes } else { known.loads.agent_memory_bytes },
            capabilities: known.facts.capabilities.clone(),
            version: known.facts.version.clone(),
            policy_root: hex(&root).chars().take(8).collect(),
            services,
            age_s: if me { Some(0.0) } else { known.loads_at.map(|at| now.saturating_sub(at).as_secs_f64()) },
        }
    }

    /// `GET /v1/services`.
    #[must_use]
    pub fn services(&self, snapshot: &Snapshot) -> Vec<ServiceSummary> {
        let mut all: BTreeMap<String, Vec<InstanceView>> = BTreeMap::new();
        for known in self.catalog.nodes() {
            let me = known.node == self.here.node;
            for offer in &known.offers.instances {
                let detail = me.then(|| self.local.detail(&offer.service, &offer.instance)).flatten();
                let (address, checks) = detail.unwrap_or_default();
                let told = known.loads.inflight.iter().find(|(s, i, _)| *s == offer.service && *i == offer.instance);
                let live = snapshot.local.get(&(offer.service.clone(), offer.instance.clone())).filter(|_| me);
                let inflight = live
                    .map(|local| local.inflight.load(Ordering::Relaxed))
                    .or_else(|| told.map(|(_, _, count)| *count))
                    .unwrap_or(0);
                all.entry(offer.service.clone()).or_default().push(InstanceView {
                    id: offer.instance.clone(),
                    node: known.facts.name.clone(),
                    state: state_word(snapshot.services.get(&offer.service), &offer.instance, &known.facts.name),
                    address,
                    protocol: offer.protocol.known(),
                    capacity: offer.capacity,
                    capacity_source: if offer.declared { "declared" } else { "cores" }.to_owned(),
                    inflight,
                    checks,
                    labels: offer.labels.clone(),
                });
            }
        }
        all.into_iter().map(|(name, instances)| ServiceSummary { name, instances }).collect()
    }

    /// `GET /v1/problems`.
    #[must_use]
    pub fn problems(&self) -> Vec<ProblemView> {
        let documents = self.broken.iter().map(|(id, problems)| ProblemView {
            about: format!("{}/{}/{}", id.scope, id.kind, id.name),
            code: "policy_invalid".to_owned(),
            detail: "the merged document does not validate; what it asks for is not in force".to_owned(),
            problems: problems.clone(),
        });
        let disk = self.read_only.iter().map(|reason| ProblemView {
            about: "store".to_owned(),
            code: "storage_full".to_owned(),
            detail: format!("policy writes are refused, routing goes on: {reason}"),
            problems: Vec::new(),
        });
        let expired = self.expired.iter().map(|id| ProblemView {
            about: id.to_string(),
            code: "policy_expired".to_owned(),
            detail: "its metadata.expiresAt has passed: it is stored and not in force; write it anew or delete it"
                .to_owned(),
            problems: Vec::new(),
        });
        let locked = self.locked_out.iter().map(|(id, problems)| ProblemView {
            about: id.to_string(),
            code: "policy_locked".to_owned(),
            detail: "it sets fields that a wider document has locked; these have no effect".to_owned(),
            problems: problems.clone(),
        });
        let forked = self.store.equivocators.iter().map(|node| ProblemView {
            about: format!("node {node}"),
            code: "equivocation".to_owned(),
            detail: format!(
                "{node} signed two histories under one stamp; the same one of the two is in force everywhere. Its folder \
                 or its key was copied: stop the copy, and let the node join anew under another name"
            ),
            problems: Vec::new(),
        });
        let recovered = self.recovered.iter().map(|told| ProblemView {
            about: "store".to_owned(),
            code: "store_recovered".to_owned(),
            detail: format!("{told}, then restart the agent to end this notice"),
            problems: Vec::new(),
        });
        documents.chain(disk).chain(recovered).chain(expired).chain(locked).chain(forked).collect()
    }
}

fn place(here: &Here) -> Place {
    Place { node_name: here.name.clone(), region: here.region.clone(), zone: here.zone.clone() }
}

fn share_key(endpoint: &Endpoint) -> EndpointKey {
    (endpoint.service.to_string(), endpoint.instance.to_string(), endpoint.node_name.clone())
}

fn subject(view: &ServiceView, endpoint: &Endpoint, backend: &BackendPolicy, is_panic: bool, now: Duration) -> Subject {
    let (picks, expected_picks) = endpoint.stats.picks();
    let state = if endpoint.stats.is_ejected(now) && is_panic {
        "ejected, but too many are: panic"
    } else if endpoint.stats.is_ejected(now) {
        "ejected, but nobody else is left"
    } else if endpoint.suspect {
        "suspect: capacity counts a quarter"
    } else {
        "ok"
    };
    Subject {
        instance: endpoint.instance.to_string(),
        node: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        capacity: pick::capacity(endpoint, backend, now),
        capacity_source: endpoint.capacity_source,
        inflight: pick::inflight(view, endpoint, now),
        distance_ms: endpoint.distance_ms,
        distance_source: endpoint.distance_source,
        latency_ms: endpoint.stats.latency_ms(now),
        picks,
        expected_picks,
        state: state.to_owned(),
        slow_start: pick::slow_start(endpoint, backend, now),
    }
}

fn state_word(view: Option<&Arc<ServiceView>>, instance: &str, node: &str) -> String {
    let reason = view.and_then(|view| view.excluded.iter().find(|e| e.instance == instance && e.node == node));
    reason.map_or_else(|| "up".to_owned(), |excluded| excluded.reason.clone())
}

/// The word of the admin API for a distance's source.
#[must_use]
pub fn source_word(source: DistanceSource) -> &'static str {
    match source {
        DistanceSource::Local => "local",
        DistanceSource::Rtt => "rtt",
        DistanceSource::Vivaldi => "vivaldi",
        DistanceSource::GreatCircle => "great-circle",
        _ => "unknown",
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
