//! The instances this node owns: from `node.toml` and from `PUT`, each with its live object and its health supervisor.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use transport::Clock;

use crate::config::ServiceConfig;
use crate::gossip::{OFFERS_MAX, Offer, Offers};
use crate::health::{self, HealthChanged, Heartbeat};
use crate::snapshot::LocalInstance;
use crate::view::CheckView;

/// Concurrent requests assumed per core when nobody declared a capacity.
const REQUESTS_PER_CORE: f64 = 64.0;

/// The instances of this node by (service, instance).
#[derive(Debug)]
pub struct LocalInstances {
    owned: BTreeMap<(String, String), Owned>,
    cores: f64,
    clock: Arc<dyn Clock>,
    changes: mpsc::Sender<HealthChanged>,
}

#[derive(Debug)]
struct Owned {
    config: ServiceConfig,
    live: Arc<LocalInstance>,
    heartbeat: Arc<Heartbeat>,
    checks: Vec<CheckView>,
    supervisor: JoinHandle<()>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

/// Why an instance was not taken: the node already owns [`OFFERS_MAX`] of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node already owns {OFFERS_MAX} instances, the most that others look at; remove one first")]
pub struct TooManyInstances;

impl LocalInstances {
    /// No instances yet; verdicts of later ones go to `changes`.
    #[must_use]
    pub fn new(cores: f64, clock: Arc<dyn Clock>, changes: mpsc::Sender<HealthChanged>) -> Self {
        Self { owned: BTreeMap::new(), cores, clock, changes }
    }

    /// Adds an instance or replaces the one of the same service and id; its checks start at once.
    ///
    /// # Errors
    /// [`TooManyInstances`]; nothing changed.
    pub fn put(&mut self, config: ServiceConfig) -> Result<(), TooManyInstances> {
        let key = (config.name.clone(), config.instance_id());
        if self.owned.get(&key).is_some_and(|owned| owned.config == config) {
            return Ok(());
        }
        if self.owned.len() >= OFFERS_MAX && !self.owned.contains_key(&key) {
            return Err(TooManyInstances);
        }
        let live = Arc::new(LocalInstance {
            service: key.0.clone(),
            instance: key.1.clone(),
            address: config.socket_addr(),
            protocol: config.protocol,
            inflight: AtomicU32::new(0),
            // Without checks an instance is up until a connect fails; with checks it is down until they pass.
            healthy: AtomicBool::new(config.checks.is_empty()),
            connect_failures: AtomicU32::new(0),
            broken_connections: AtomicU32::new(0),
        });
        let heartbeat = Arc::new(Heartbeat::default());
        let supervisor = {
            let (live, checks) = (Arc::clone(&live), config.checks.clone());
            let (heartbeat, clock, changes) = (Arc::clone(&heartbeat), Arc::clone(&self.clock), self.changes.clone());
            crate::supervise::supervised("health", move || {
                let (live, checks, heartbeat) = (Arc::clone(&live), checks.clone(), Arc::clone(&heartbeat));
                health::supervise(live, checks, heartbeat, Arc::clone(&clock), changes.clone())
            })
        };
        self.owned.insert(key, Owned { config, live, heartbeat, checks: Vec::new(), supervisor });
        Ok(())
    }

    /// Removes an instance; false when there was none.
    pub fn remove(&mut self, service: &str, instance: &str) -> bool {
        self.owned.remove(&(service.to_owned(), instance.to_owned())).is_some()
    }

    /// The configuration of one instance.
    #[must_use]
    pub fn config(&self, service: &str, instance: &str) -> Option<&ServiceConfig> {
        self.owned.get(&(service.to_owned(), instance.to_owned())).map(|owned| &owned.config)
    }

    /// Feeds the ttl check of an instance; false when there is no such instance.
    #[must_use]
    pub fn heartbeat(&self, service: &str, instance: &str) -> bool {
        let Some(owned) = self.owned.get(&(service.to_owned(), instance.to_owned())) else { return false };
        owned.heartbeat.beat(self.clock.now());
        true
    }

    /// Takes the supervisor's news; false when the instance is gone meanwhile.
    pub fn take_health(&mut self, change: HealthChanged) -> bool {
        let Some(owned) = self.owned.get_mut(&(change.service, change.instance)) else { return false };
        owned.checks = change.checks;
        true
    }

    /// What the node tells others it offers.
    #[must_use]
    pub fn offers(&self, draining: bool) -> Offers {
        let instances = self.owned.values().map(|owned| self.offer(owned)).collect();
        Offers { instances, draining }
    }

    /// The live objects, for the snapshot.
    #[must_use]
    pub fn live(&self) -> HashMap<(String, String), Arc<LocalInstance>> {
        self.owned.iter().map(|(key, owned)| (key.clone(), Arc::clone(&owned.live))).collect()
    }

    /// Requests in flight to each instance at this moment.
    #[must_use]
    pub fn inflight(&self) -> Vec<(String, String, u32)> {
        let live = self.owned.values().map(|owned| &owned.live);
        live.map(|l| (l.service.clone(), l.instance.clone(), l.inflight.load(Ordering::Relaxed))).collect()
    }

    /// The newest verdict of each check and the address of an instance.
    #[must_use]
    pub fn detail(&self, service: &str, instance: &str) -> Option<(String, Vec<CheckView>)> {
        let owned = self.owned.get(&(service.to_owned(), instance.to_owned()))?;
        Some((owned.live.address.to_string(), owned.checks.clone()))
    }

    fn offer(&self, owned: &Owned) -> Offer {
        let healthy = owned.live.healthy.load(Ordering::Relaxed);
        let failing = owned.checks.iter().find(|check| !check.passing);
        let down = (!healthy).then(|| {
            failing.map_or_else(
                || "its checks have not passed yet".to_owned(),
                |check| format!("its {} check fails: {}", check.kind, check.detail),
            )
        });
        let instances = u32::try_from(self.owned.len()).map_or(1.0, f64::from);
        Offer {
            service: owned.live.service.clone(),
            instance: owned.live.instance.clone(),
            protocol: owned.config.protocol.into(),
            capacity: owned.config.capacity.unwrap_or(REQUESTS_PER_CORE * self.cores / instances),
            declared: owned.config.capacity.is_some(),
            down,
            labels: owned.config.labels.clone(),
        }
    }
}
