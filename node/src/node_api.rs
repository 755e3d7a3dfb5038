//! What the admin API asks of a running node, answered from the state, the links and the store.

use std::sync::Arc;

use crdt_store::Dot;
use policy::explain::Explanation;
use policy::{DocId, Document};
use tokio::sync::{mpsc, oneshot};
use transport::trust::LeafSource;

use crate::agent::INSTANCES_TABLE;
use crate::api::{ApiError, ApiFuture, NodeApi, WaitFor, Write, WriteOptions};
use crate::config::ServiceConfig;
use crate::control::Control;
use crate::event::Event;
use crate::machine;
use crate::state::Life;
use crate::view::{
    Applied, ConflictView, DocumentDiff, EffectiveView, LinkView, NodeView, PlanView, PolicyView, ProblemView,
    Registration, RevisionView, ServiceSummary, Status, SyncStatus,
};
use crate::watch::Watch;
use crate::{plan, wait};

/// A running node, as the admin API sees it.
#[derive(Debug)]
pub struct AgentApi {
    control: Control,
    events: mpsc::Sender<Event>,
    leaf: Arc<LeafSource>,
}

impl AgentApi {
    /// The door to the node that `control` runs.
    #[must_use]
    pub fn new(control: Control, events: mpsc::Sender<Event>, leaf: Arc<LeafSource>) -> Self {
        Self { control, events, leaf }
    }

    fn links(&self) -> Vec<LinkView> {
        let links = self.control.links.links().into_iter();
        links
            .map(|link| LinkView {
                node: link.name,
                remote: link.remote.to_string(),
                rtt_ms: link.rtt.as_secs_f64() * 1e3,
                loss: link.loss,
                key_exchange: link.key_exchange.to_string(),
                transport: link.carrier.name().to_owned(),
                outbound: link.outbound,
                purpose: if link.control { "control" } else { "data" }.to_owned(),
            })
            .collect()
    }

    async fn put(&self, service: String, id: String, registration: Registration) -> Result<(), ApiError> {
        let problems = crate::config::check_registration(&service, &id, &registration);
        if !problems.is_empty() {
            return Err(ApiError::Invalid { problems });
        }
        let config = ServiceConfig {
            name: service,
            id: Some(id),
            address: registration.address.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
            port: registration.port,
            protocol: registration.protocol,
            capacity: registration.capacity,
            labels: registration.labels,
            checks: registration.checks,
        };
        if self.control.own_listeners.contains(&config.socket_addr()) {
            let message =
                format!("{} is a listener of this node: requests would go round in a loop", config.socket_addr());
            let hint = Some("give the port of the application itself".to_owned());
            return Err(ApiError::Invalid { problems: vec![policy::Problem::new("port", message, hint)] });
        }
        let value = serde_json::to_vec(&config).map_err(|fault| ApiError::Limit(fault.to_string()))?;
        let key = instance_key(&config.name, &config.instance_id());
        self.control.store.put_record(INSTANCES_TABLE, key.clone(), value).await?;
        let (answer, answered) = oneshot::channel();
        self.tell(Event::PutInstance { config, answer }).await?;
        let outcome = answered.await.map_err(|_closed| stopping())?;
        if outcome.is_err() {
            self.control.store.delete_record(INSTANCES_TABLE, key).await?;
        }
        outcome
    }

    async fn delete(&self, service: String, instance: String) -> Result<(), ApiError> {
        if self.control.state().local.config(&service, &instance).is_none() {
            return Err(unknown_instance(&service, &instance));
        }
        self.control.store.delete_record(INSTANCES_TABLE, instance_key(&service, &instance)).await?;
        self.tell(Event::DeleteInstance { service, instance }).await
    }

    async fn tell(&self, event: Event) -> Result<(), ApiError> {
        self.events.send(event).await.map_err(|_closed| stopping())
    }
}

impl NodeApi for AgentApi {
    fn status(&self) -> Status {
        let (links, now) = (self.links(), self.control.clock.now());
        let node_not_after = self.control.identity.not_after_unix();
        self.control.state().status(links, self.leaf.not_after_unix(), node_not_after, now)
    }

    fn nodes(&self) -> Vec<NodeView> {
        self.control.state().nodes(machine::resident_bytes(), self.control.clock.now())
    }

    fn services(&self) -> Vec<ServiceSummary> {
        self.control.state().services(&self.control.published.load())
    }

    fn explain(&self, service: &str) -> Option<Explanation> {
        let snapshot = self.control.published.load();
        self.control.state().explain(&snapshot, service, self.control.clock.now())
    }

    fn in_flight(&self) -> usize {
        self.control.proxy.in_flight()
    }

    fn problems(&self) -> Vec<ProblemView> {
        self.control.state().problems()
    }

    fn is_ready(&self) -> Result<(), String> {
        match self.control.state().life {
            Life::Ready => Ok(()),
            Life::Starting => Err("the node is starting".to_owned()),
            Life::Draining => Err("the node is draining".to_owned()),
        }
    }

    fn watch(&self, since: Option<&str>) -> Watch {
        self.control.watch.watch(since)
    }

    fn put_instance(&self, service: String, id: String, registration: Registration) -> ApiFuture<'_, ()> {
        Box::pin(self.put(service, id, registration))
    }

    fn delete_instance(&self, service: String, id: String) -> ApiFuture<'_, ()> {
        Box::pin(self.delete(service, id))
    }

    fn heartbeat(&self, service: String, id: String) -> ApiFuture<'_, ()> {
        let fed = self.control.state().local.heartbeat(&service, &id);
        Box::pin(async move { if fed { Ok(()) } else { Err(unknown_instance(&service, &id)) } })
    }

    fn policies(&self) -> ApiFuture<'_, Vec<PolicyView>> {
        Box::pin(self.control.store.list())
    }

    fn policy(&self, id: DocId, at: Option<Dot>) -> ApiFuture<'_, PolicyView> {
        Box::pin(self.control.store.get(id, at))
    }

    fn history(&self, id: DocId) -> ApiFuture<'_, Vec<RevisionView>> {
        Box::pin(self.control.store.history(id))
    }

    fn write(&self, write: Write, options: WriteOptions) -> ApiFuture<'_, Applied> {
        Box::pin(async move {
            let wait = options.wait;
            let mut applied = self.control.store.write(write, options).await?;
            if wait.peers != WaitFor::Nobody {
                applied.replicated_to = Some(wait::replicated(&self.control, &applied, wait).await);
            }
            Ok(applied)
        })
    }

    fn diff(&self, documents: Vec<Document>) -> ApiFuture<'_, Vec<DocumentDiff>> {
        Box::pin(plan::diff(&self.control, documents))
    }

    fn plan(&self, documents: Vec<Document>) -> ApiFuture<'_, PlanView> {
        Box::pin(plan::plan(&self.control, documents))
    }

    fn conflicts(&self) -> ApiFuture<'_, Vec<ConflictView>> {
        Box::pin(self.control.store.conflicts())
    }

    fn effective(&self, service: String, node: Option<String>) -> ApiFuture<'_, EffectiveView> {
        Box::pin(plan::effective(&self.control, service, node))
    }

    fn sync_status(&self) -> ApiFuture<'_, SyncStatus> {
        Box::pin(async move {
            let numbers = self.control.store.numbers().await?;
            Ok(self.control.state().sync_status(numbers, &self.control.store.acks().borrow(), self.control.clock.now()))
        })
    }
}

fn instance_key(service: &str, instance: &str) -> Vec<u8> {
    format!("{service}/{instance}").into_bytes()
}

fn unknown_instance(service: &str, instance: &str) -> ApiError {
    ApiError::NotFound(format!(
        "this node owns no instance {instance} of {service}; only its owner can change an instance"
    ))
}

fn stopping() -> ApiError {
    ApiError::Unavailable("the node is stopping".to_owned())
}
