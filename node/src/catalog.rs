//! Every node this one knows and what each offers: gossip records come in, [`ServiceView`]s come out. Pure.
//!
//! A record counts only when its signature proves that the node it speaks of wrote it, and when it is newer than the
//! one in place (generation first, then sequence). Liveness comes from the prober, never from gossip.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use policy::Capacity;
use policy::explain::{CapacitySource, DistanceSource};
use transport::NodeId;
use transport::swim::Liveness;
use transport::trust::Role;

use crate::config::Protocol;
use crate::gossip::{ASKS_MAX, Asks, Facts, Loads, OFFERS_MAX, Offer, Offers, per_second};
use crate::limits::ServiceStats;
use crate::snapshot::{Endpoint, EndpointStats, ExcludedEndpoint, LocalInstance, Missing, ServiceView};

/// Most nodes the catalog holds; facts of one more are refused and counted.
pub const NODES_MAX: usize = 10_000;
/// Records this old and unrefreshed are shown with their age but still used: a good answer is never replaced by none.
const LOADS_STALE: Duration = Duration::from_secs(30);
/// Radius of the earth in kilometres, for the great circle.
const EARTH_KM: f64 = 6371.0;
/// Light in fibre runs about 200 km per millisecond; there and back halves that.
const KM_PER_MS_ROUND_TRIP: f64 = 100.0;
/// Distance assumed when nothing is known about a node, in milliseconds.
pub const DEFAULT_DISTANCE_MS: f64 = 25.0;

/// Everything known of one node.
#[derive(Debug, Clone)]
pub struct KnownNode {
    /// Its id.
    pub node: NodeId,
    /// Its role, from its admission.
    pub role: Role,
    /// Key that signs its records.
    pub public_key: [u8; 32],
    /// Who it is.
    pub facts: Arc<Facts>,
    /// What it offers.
    pub offers: Offers,
    /// How busy it was when it last told.
    pub loads: Loads,
    /// What is asked of it for services whose rate all nodes share, by its last word.
    pub asks: Asks,
    /// When loads were last heard, monotonic.
    pub loads_at: Option<Duration>,
    /// The prober's verdict.
    pub liveness: Liveness,
    /// The prober's reason.
    pub reason: String,
    /// When the verdict was given, monotonic.
    pub since: Duration,
    /// SWIM incarnation.
    pub incarnation: u32,
    /// Where all that is known was kept over a restart: seconds from when it was heard to that restart.
    pub remembered_s: Option<u64>,
    /// Newest (generation, sequence) of each record.
    stamps: Stamps,
}

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not newer than what is known. Normal: gossip repeats itself.
    Old,
    /// The node's facts are not known yet.
    NoFacts,
    /// The catalog is full.
    Full,
    /// Another node already has this name; the older admission keeps it.
    NameTaken,
}

/// Which record of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordKind {
    Facts,
    Offers,
    Loads,
    Asks,
}

/// Newest (generation, sequence) of each record of a node.
#[derive(Debug, Clone, Copy, Default)]
struct Stamps {
    facts: (u64, u64),
    offers: (u64, u64),
    loads: (u64, u64),
    asks: (u64, u64),
}

/// How far a node is and how that is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Round trip in milliseconds.
    pub ms: f64,
    /// How it is known.
    pub source: DistanceSource,
}

/// The catalog.
#[derive(Debug)]
pub struct Catalog {
    me: NodeId,
    nodes: BTreeMap<NodeId, KnownNode>,
    stats: HashMap<(String, String, NodeId), Arc<EndpointStats>>,
    service_stats: HashMap<String, Arc<ServiceStats>>,
}

impl Catalog {
    /// A catalog that knows nobody.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self { me, nodes: BTreeMap::new(), stats: HashMap::new(), service_stats: HashMap::new() }
    }

    /// Takes a node's facts, already verified against its admission.
    ///
    /// # Errors
    /// [`Refusal::Old`] and [`Refusal::Full`].
    pub fn take_facts(
        &mut self,
        node: NodeId,
        (role, public_key): (Role, [u8; 32]),
        stamp: (u64, u64),
        facts: Facts,
        now: Duration,
    ) -> Result<(), Refusal> {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.advance(RecordKind::Facts, stamp)?;
            if known.stamps.asks.0 < stamp.0 {
                // What was asked of an earlier life of the node is not asked of this one.
                known.asks = Asks::default();
            }
            known.facts = Arc::new(facts);
            known.role = role;
            return Ok(());
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Refusal::Full);
        }
        let known = KnownNode {
            node,
            role,
            public_key,
            facts: Arc::new(facts),
            offers: Offers::default(),
            loads: Loads::default(),
            asks: Asks::default(),
            loads_at: None,
            liveness: if node == self.me { Liveness::Alive } else { Liveness::Joining },
            reason: if node == self.me {
                "this node".to_owned()
            } else {
                "known by gossip, never answered a probe".to_owned()
            },
            since: now,
            incarnation: 0,
            remembered_s: None,
            stamps: Stamps { facts: stamp, ..Stamps::default() },
        };
        self.nodes.insert(node, known);
        Ok(())
    }

    /// Takes what a node offers.
    ///
    /// # Errors
    /// [`Refusal::Old`] and [`Refusal::NoFacts`].
    pub fn take_offers(&mut self, node: NodeId, stamp: (u64, u64), mut offers: Offers) -> Result<(), Refusal> {
        let known = self.nodes.get_mut(&node).ok_or(Refusal::NoFacts)?;
        known.advance(RecordKind::Offers, stamp)?;
        offers.instances.truncate(OFFERS_MAX);
        known.offers = offers;
        known.remembered_s = None;
        Ok(())
    }

    /// What is known of a node was kept over a restart, and was this old by then.
    pub fn remember(&mut self, node: NodeId, age_s: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.remembered_s = Some(age_s);
        }
    }

    /// Takes how busy a node is and hands the figures to its endpoints.
    ///
    /// # Errors
    /// [`Refusal::Old`] and [`Refusal::NoFacts`].
    pub fn take_loads(&mut self, node: NodeId, stamp: (u64, u64), loads: Loads, now: Duration) -> Result<(), Refusal> {
        let known = self.nodes.get_mut(&node).ok_or(Refusal::NoFacts)?;
        known.advance(RecordKind::Loads, stamp)?;
        for (service, instance, inflight) in loads.inflight.iter().take(OFFERS_MAX) {
            if let Some(stats) = self.stats.get(&(service.clone(), instance.clone(), node)) {
                stats.report_inflight(*inflight, now);
            }
        }
        known.loads = loads;
        known.loads_at = Some(now);
        Ok(())
    }

    /// Takes what is asked of a node for services whose rate all nodes share.
    ///
    /// # Errors
    /// [`Refusal::Old`], also for the word of an earlier life of the node, and [`Refusal::NoFacts`].
    pub fn take_asks(&mut self, node: NodeId, stamp: (u64, u64), mut asks: Asks) -> Result<(), Refusal> {
        let known = self.nodes.get_mut(&node).ok_or(Refusal::NoFacts)?;
        if stamp.0 < known.stamps.facts.0 {
            return Err(Refusal::Old);
        }
        known.advance(RecordKind::Asks, stamp)?;
        asks.services.truncate(ASKS_MAX);
        // One that is named again and again is asked of one node.
        asks.services.sort_unstable();
        asks.services.dedup_by(|next, first| next.0 == first.0);
        known.asks = asks;
        Ok(())
    }

    /// What each node that shares rates is asked for, as far as it told, per second by service.
    #[must_use]
    pub fn asks(&self) -> HashMap<&str, Vec<f64>> {
        let mut by_service: HashMap<&str, Vec<f64>> = HashMap::new();
        for (service, asked) in self.sharers().flat_map(|known| &known.asks.services) {
            by_service.entry(service).or_default().push(per_second(*asked));
        }
        by_service
    }

    /// The other nodes that share rates with this one: all that are not known to be dead or to have left. Of two sides that
    /// do not reach each other each shares among its own.
    pub fn sharers(&self) -> impl Iterator<Item = &KnownNode> {
        let is_there =
            |known: &&KnownNode| known.node != self.me && !matches!(known.liveness, Liveness::Dead | Liveness::Left);
        self.nodes.values().filter(is_there)
    }

    /// Takes the prober's verdict; true when it changed anything.
    pub fn take_verdict(
        &mut self,
        node: NodeId,
        liveness: Liveness,
        incarnation: u32,
        reason: &str,
        now: Duration,
    ) -> bool {
        let Some(known) = self.nodes.get_mut(&node) else { return false };
        let changed = known.liveness != liveness;
        if changed {
            known.since = now;
            if liveness == Liveness::Alive {
                for ((_, _, owner), stats) in &self.stats {
                    if *owner == node {
                        stats.readmit();
                    }
                }
            }
        }
        known.liveness = liveness;
        known.incarnation = incarnation;
        reason.clone_into(&mut known.reason);
        changed
    }

    /// Forgets a node for good, with the counters of its endpoints.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.stats.retain(|(_, _, owner), _| *owner != node);
    }

    /// One node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&KnownNode> {
        self.nodes.get(&node)
    }

    /// Every node, this one included, in the order of ids.
    pub fn nodes(&self) -> impl Iterator<Item = &KnownNode> {
        self.nodes.values()
    }

    /// The node that carries this label, if any.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&KnownNode> {
        self.nodes.values().find(|known| known.facts.name == name)
    }

    /// The counters of one endpoint, made when first asked for.
    pub fn stats(&mut self, service: &str, instance: &str, node: NodeId) -> Arc<EndpointStats> {
        let key = (service.to_owned(), instance.to_owned(), node);
        Arc::clone(self.stats.entry(key).or_default())
    }

    /// Builds what requests read: every service with its endpoints and those that are out.
    ///
    /// `local` are the live objects of this node's own instances; `distance` answers for every node.
    pub fn services(
        &mut self,
        local: &HashMap<(String, String), Arc<LocalInstance>>,
        distance: impl Fn(&KnownNode) -> Distance,
        now: Duration,
    ) -> BTreeMap<String, Arc<ServiceView>> {
        let mut building: BTreeMap<String, (Vec<Arc<Endpoint>>, Vec<ExcludedEndpoint>)> = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        let nodes: Vec<&KnownNode> = self.nodes.values().collect();
        for known in &nodes {
            for offer in &known.offers.instances {
                let (endpoints, excluded) = building.entry(offer.service.clone()).or_default();
                let key = (offer.service.clone(), offer.instance.clone(), known.node);
                wanted.insert(key.clone());
                let protocol = offer.protocol.known();
                let usable = known.usable(offer, now).and_then(|()| {
                    let capacity = Capacity::new(offer.capacity);
                    let capacity = capacity.map_err(|fault| format!("its node tells nonsense: {fault}"))?;
                    let unknown = || "it speaks a protocol that this version does not know".to_owned();
                    Ok((protocol.ok_or_else(unknown)?, capacity))
                });
                let (protocol, capacity) = match usable {
                    Ok(usable) => usable,
                    Err(reason) => {
                        if let Some(stats) = self.stats.get(&key) {
                            stats.mark_absent();
                        }
                        excluded.push(known.excluded(offer, reason));
                        continue;
                    }
                };
                let stats = Arc::clone(self.stats.entry(key).or_default());
                stats.mark_present(now);
                let mine = (known.node == self.me)
                    .then(|| local.get(&(offer.service.clone(), offer.instance.clone())).cloned())
                    .flatten();
                endpoints.push(Arc::new(endpoint(known, offer, (protocol, capacity), distance(known), mine, stats)));
            }
        }
        let clients = clients_of(&nodes, self.me, now);
        self.stats.retain(|key, stats| wanted.contains(key) || Arc::strong_count(stats) > 1);
        self.service_stats.retain(|name, stats| building.contains_key(name) || Arc::strong_count(stats) > 1);
        building
            .into_iter()
            .map(|(name, (endpoints, excluded))| {
                let active_clients = clients.get(&name).copied().unwrap_or(1.0);
                let stats = Arc::clone(self.service_stats.entry(name.clone()).or_default());
                let view = ServiceView {
                    name: name.clone(),
                    endpoints,
                    excluded,
                    active_clients,
                    stats,
                    fleet_share: None,
                    placed: None,
                };
                (name, Arc::new(view))
            })
            .collect()
    }
}

impl KnownNode {
    fn advance(&mut self, kind: RecordKind, stamp: (u64, u64)) -> Result<(), Refusal> {
        let last = match kind {
            RecordKind::Facts => &mut self.stamps.facts,
            RecordKind::Offers => &mut self.stamps.offers,
            RecordKind::Loads => &mut self.stamps.loads,
            RecordKind::Asks => &mut self.stamps.asks,
        };
        if stamp <= *last {
            return Err(Refusal::Old);
        }
        *last = stamp;
        Ok(())
    }

    fn unanswered(&self) -> String {
        match self.remembered_s {
            None => "its node has not answered a probe yet".to_owned(),
            Some(age_s) => format!(
                "its node has not answered a probe since this one started; what it offers was told {age_s} s before that"
            ),
        }
    }

    fn excluded(&self, offer: &Offer, reason: String) -> ExcludedEndpoint {
        let missing = match self.liveness {
            Liveness::Alive | Liveness::Suspect | Liveness::Dead => Missing::Yes,
            Liveness::Joining | Liveness::Left => Missing::No,
        };
        let (instance, node) = (offer.instance.clone(), self.facts.name.clone());
        ExcludedEndpoint {
            instance,
            node,
            reason,
            facts: Arc::clone(&self.facts),
            protocol: offer.protocol.known(),
            missing,
        }
    }

    /// Whether an instance of this node may be drawn, else why not.
    fn usable(&self, offer: &Offer, now: Duration) -> Result<(), String> {
        match self.liveness {
            Liveness::Alive | Liveness::Suspect => {}
            Liveness::Joining => return Err(self.unanswered()),
            Liveness::Left => return Err("its node left the mesh".to_owned()),
            Liveness::Dead => {
                let age = now.saturating_sub(self.since).as_secs();
                return Err(format!("its node is dead since {age} s: {}", self.reason));
            }
        }
        if self.offers.draining {
            return Err("its node is draining".to_owned());
        }
        match &offer.down {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }
}

fn endpoint(
    known: &KnownNode,
    offer: &Offer,
    (protocol, capacity): (Protocol, Capacity),
    distance: Distance,
    local: Option<Arc<LocalInstance>>,
    stats: Arc<EndpointStats>,
) -> Endpoint {
    Endpoint {
        service: offer.service.as_str().into(),
        instance: offer.instance.as_str().into(),
        node: known.node,
        node_name: known.facts.name.clone(),
        zone: known.facts.zone.clone(),
        facts: Arc::clone(&known.facts),
        locality: 0,
        protocol,
        capacity,
        capacity_source: if offer.declared { CapacitySource::Declared } else { CapacitySource::Cores },
        distance_ms: distance.ms,
        distance_source: distance.source,
        local,
        suspect: known.liveness == Liveness::Suspect,
        stats,
        via: OnceLock::new(),
    }
}

/// How many nodes send requests to each service, by what they told lately; this node always counts.
fn clients_of(nodes: &[&KnownNode], me: NodeId, now: Duration) -> HashMap<String, f64> {
    let mut clients: HashMap<String, f64> = HashMap::new();
    let fresh = nodes.iter().filter(|known| {
        known.node != me
            && known.liveness == Liveness::Alive
            && known.loads_at.is_some_and(|at| now.saturating_sub(at) < LOADS_STALE)
    });
    for service in fresh.flat_map(|known| &known.loads.clients) {
        *clients.entry(service.clone()).or_insert(1.0) += 1.0;
    }
    clients
}

/// Round trip over the great circle between two points, in milliseconds (haversine; 200 km per ms one way).
#[must_use]
pub fn great_circle_ms(from: crate::config::Location, to: crate::config::Location) -> f64 {
    let (lat1, lat2) = (from.lat.to_radians(), to.lat.to_radians());
    let (dlat, dlon) = (lat2 - lat1, (to.lon - from.lon).to_radians());
    let a = (dlat / 2.0).sin().powi(2) + lat1.cos() * lat2.cos() * (dlon / 2.0).sin().powi(2);
    2.0 * EARTH_KM * a.sqrt().clamp(0.0, 1.0).asin() / KM_PER_MS_ROUND_TRIP
}

#[cfg(test)]
mod tests;
