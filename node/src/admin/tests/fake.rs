//! A node of fixed answers, and a client that sees every byte of an answer's head.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crdt_store::Dot;
use policy::explain::{
    CapacitySource, DistanceSource, Excluded, ExplainedFleetRate, ExplainedLocality, ExplainedRequirements,
    Explanation, Subject, explain_parts,
};
use policy::{BackendPolicy, Capacity, DocId, Document};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{AdminServer, TOKEN_FILE_NAME};
use crate::api::{ApiError, ApiFuture, Condition, NodeApi, Settle, WaitFor, Write, WriteOptions};
use crate::telemetry::MetricsHandle;
use crate::view::{
    Applied, AppliedDocument, ConflictView, DocumentDiff, EffectiveView, ImpactView, MemberCounts, NodeView, PlanView,
    PolicyStatus, PolicyView, ProblemView, Registration, Replicated, RevisionView, ServiceSummary, Status, SyncStatus,
};
use crate::watch::{Watch, WatchLog};

/// Answers like a node; a few names make it fail on purpose.
pub(super) struct FakeNode {
    pub(super) events: WatchLog,
    pub(super) not_ready: Mutex<Option<String>>,
    pub(super) calls: Mutex<Vec<String>>,
}

impl FakeNode {
    fn called(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

/// The ETag of the one document there is.
pub(super) const ETAG: &str = "0011223344556677";

pub(super) fn explanation() -> Explanation {
    let subject = Subject {
        instance: "8081".to_owned(),
        node: "a".to_owned(),
        zone: "z".to_owned(),
        capacity: Capacity::new(100.0).unwrap(),
        capacity_source: CapacitySource::Declared,
        inflight: 30.0,
        distance_ms: 0.2,
        distance_source: DistanceSource::Local,
        latency_ms: Some(4.5),
        picks: 63,
        expected_picks: 62.5,
        state: "ok".to_owned(),
        slow_start: Some(0.5),
    };
    let out = Excluded { instance: "8082".to_owned(), node: "b".to_owned(), reason: "owner is dead".to_owned() };
    let locality = ExplainedLocality {
        name: "eu/z".to_owned(),
        percent: Some(100),
        sound: 1.0,
        known: 2.0,
        share: 1.0,
        candidates: 1,
    };
    let required = ExplainedRequirements {
        route: "global/HTTPRoute/hello#0".to_owned(),
        requires: vec!["gpu >= 1".to_owned()],
        passes_through: false,
        skipped: Vec::new(),
    };
    let policy = BackendPolicy::default();
    let explained = explain_parts("hello", &policy, "a", vec![subject], vec![locality], vec![out]);
    let fleet_rate =
        ExplainedFleetRate { limit_per_s: 200.0, share_per_s: 95.0, demand_per_s: 120.5, nodes: 3, asking: 2 };
    Explanation { panic: true, requirements: vec![required], fleet_rate: Some(fleet_rate), ..explained }
}

pub(super) fn status() -> Status {
    Status {
        mesh: "shop".to_owned(),
        node: "a".to_owned(),
        node_id: "id".to_owned(),
        version: "0.1.0".to_owned(),
        state: "ready".to_owned(),
        uptime_s: 5,
        members: MemberCounts { alive: 1, ..MemberCounts::default() },
        policy: PolicyStatus { root: "00".to_owned(), documents: 1, conflicts: 0, tombstones: 0, writable: true },
        links: Vec::new(),
        leaf_not_after: 1_800_000_000,
        node_not_after: 1_900_000_000,
    }
}

fn applied(document: &Document, change: &str) -> Applied {
    let document = AppliedDocument {
        scope: document.metadata.scope.clone(),
        kind: document.kind.clone(),
        name: document.metadata.name.clone(),
        change: change.to_owned(),
        etag: "new".to_owned(),
    };
    Applied { dot: "x:1".to_owned(), root: "11".to_owned(), documents: vec![document], ..Applied::default() }
}

impl NodeApi for FakeNode {
    fn status(&self) -> Status {
        status()
    }

    fn nodes(&self) -> Vec<NodeView> {
        Vec::new()
    }

    fn services(&self) -> Vec<ServiceSummary> {
        vec![ServiceSummary { name: "hello".to_owned(), instances: Vec::new() }]
    }

    fn explain(&self, service: &str) -> Option<Explanation> {
        assert_ne!(service, "panic", "on purpose");
        (service == "hello").then(explanation)
    }

    fn in_flight(&self) -> usize {
        3
    }

    fn problems(&self) -> Vec<ProblemView> {
        Vec::new()
    }

    fn is_ready(&self) -> Result<(), String> {
        self.not_ready.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn watch(&self, since: Option<&str>) -> Watch {
        self.events.watch(since)
    }

    fn put_instance(&self, service: String, id: String, registration: Registration) -> ApiFuture<'_, ()> {
        self.called(format!("put {service}/{id} port {}", registration.port));
        Box::pin(async { Ok(()) })
    }

    fn delete_instance(&self, service: String, id: String) -> ApiFuture<'_, ()> {
        self.called(format!("delete {service}/{id}"));
        Box::pin(async move { Err(ApiError::NotFound(format!("no instance `{id}` of `{service}` here"))) })
    }

    fn heartbeat(&self, service: String, id: String) -> ApiFuture<'_, ()> {
        self.called(format!("heartbeat {service}/{id}"));
        Box::pin(async { Ok(()) })
    }

    fn policies(&self) -> ApiFuture<'_, Vec<PolicyView>> {
        let id = DocId { scope: "global".to_owned(), kind: "HTTPRoute".to_owned(), name: "shop".to_owned() };
        Box::pin(async move { Ok(vec![self.policy(id, None).await?]) })
    }

    fn policy(&self, id: DocId, at: Option<Dot>) -> ApiFuture<'_, PolicyView> {
        Box::pin(async move {
            if id.name != "shop" {
                return Err(ApiError::NotFound(format!("no document {id}")));
            }
            let DocId { scope, kind, name } = id;
            Ok(PolicyView {
                document: Document::new(kind.clone(), scope.clone(), name.clone()).to_json(),
                scope,
                kind,
                name,
                etag: if at.is_some() { String::new() } else { ETAG.to_owned() },
                dot: at.map_or_else(|| "x:1".to_owned(), |dot| dot.to_string()),
                author: "a".to_owned(),
                written_ms: 0,
                message: String::new(),
                conflicts: Vec::new(),
                deleted_concurrently: false,
                expired: false,
            })
        })
    }

    fn history(&self, id: DocId) -> ApiFuture<'_, Vec<RevisionView>> {
        Box::pin(async move {
            if id.name == "shop" { Ok(Vec::new()) } else { Err(ApiError::NotFound(format!("no document {id}"))) }
        })
    }

    fn write(&self, write: Write, options: WriteOptions) -> ApiFuture<'_, Applied> {
        let WriteOptions { condition, idempotency_key, reason, wait } = options;
        let told = match &write {
            Write::Apply(documents) => format!("apply {}", documents.len()),
            Write::Delete(id) => format!("delete {}", id.name),
            Write::Patch { id, patch } => format!("patch {} {patch}", id.name),
            Write::Rollback { id, to } => format!("rollback {} to {}", id.name, to.counter),
            Write::Resolve { id, settle: Settle::Take(dot) } => format!("resolve {} take {}", id.name, dot.counter),
            Write::Resolve { id, settle: Settle::With(_) } => format!("resolve {} with", id.name),
        };
        self.called(format!("{told} {condition:?}"));
        for word in [idempotency_key, reason].into_iter().filter(|word| !word.is_empty()) {
            self.called(word);
        }
        Box::pin(async move {
            let (document, change) = match write {
                Write::Apply(documents) => (documents.into_iter().next().unwrap(), "created"),
                Write::Resolve { id, .. } if id.name == "calm" => {
                    return Err(ApiError::NoConflict("calm is in no conflict".to_owned()));
                }
                Write::Delete(id) => (Document::new(id.kind, id.scope, id.name), "deleted"),
                Write::Patch { id, .. } | Write::Rollback { id, .. } | Write::Resolve { id, .. } => {
                    (Document::new(id.kind, id.scope, id.name), "changed")
                }
            };
            let mut done = match (document.metadata.name.as_str(), condition) {
                ("full", _) => return Err(ApiError::Storage("the disk is full; nothing was stored".to_owned())),
                ("relay", _) => return Err(ApiError::Denied("this node only relays policy".to_owned())),
                ("again", _) => return Err(ApiError::IdempotencyReuse),
                ("shop", Condition::Absent) => return Err(ApiError::Stale { current: ETAG.to_owned() }),
                (_, Condition::Match(etag)) if etag != ETAG => {
                    return Err(ApiError::Stale { current: ETAG.to_owned() });
                }
                ("shop", _) if change == "created" => applied(&document, "changed"),
                _ => applied(&document, change),
            };
            // One other node exists, and it has everything.
            done.replicated_to = match wait.peers {
                WaitFor::Nobody => None,
                WaitFor::Peers(wanted) => Some(Replicated { nodes: vec!["b".to_owned()], wanted }),
                WaitFor::Majority | WaitFor::All => Some(Replicated { nodes: vec!["b".to_owned()], wanted: 1 }),
            };
            Ok(done)
        })
    }

    fn diff(&self, documents: Vec<Document>) -> ApiFuture<'_, Vec<DocumentDiff>> {
        let DocId { scope, kind, name } = documents.first().unwrap().id();
        let diff = DocumentDiff { scope, kind, name, change: "unchanged".to_owned(), changes: Vec::new() };
        Box::pin(async move { Ok(vec![diff]) })
    }

    fn plan(&self, documents: Vec<Document>) -> ApiFuture<'_, PlanView> {
        Box::pin(async move {
            let documents = self.diff(documents).await?;
            let impact = ImpactView::default();
            Ok(PlanView { valid: true, documents, notes: Vec::new(), impact, would_conflict: Vec::new() })
        })
    }

    fn conflicts(&self) -> ApiFuture<'_, Vec<ConflictView>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn effective(&self, service: String, node: Option<String>) -> ApiFuture<'_, EffectiveView> {
        Box::pin(async move {
            match node.unwrap_or_else(|| "a".to_owned()) {
                node if node == "a" => {
                    Ok(EffectiveView { service, node, region: String::new(), zone: String::new(), kinds: Vec::new() })
                }
                node => Err(ApiError::NotFound(format!("no node `{node}` is known here; known: a"))),
            }
        })
    }

    fn sync_status(&self) -> ApiFuture<'_, SyncStatus> {
        Box::pin(async { Ok(SyncStatus::default()) })
    }
}

/// A running server over a fake node.
pub(super) struct Running {
    pub(super) node: Arc<FakeNode>,
    pub(super) tcp: SocketAddr,
    pub(super) socket: PathBuf,
    pub(super) token: String,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
    _dir: TempDir,
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A refusal of this status and code, in the one shape all refusals have.
    pub(super) fn assert_refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert_eq!(body["type"], format!("urn:marram:problem:{code}"), "{body}");
        assert!(body["title"].is_string() && body["detail"].is_string() && body["problems"].is_array(), "{body}");
        body
    }
}

impl Running {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = WatchLog::with_lag(7, 4);
        let node = Arc::new(FakeNode { events, not_ready: Mutex::new(None), calls: Mutex::new(Vec::new()) });
        let api: Arc<dyn NodeApi> = Arc::clone(&node) as Arc<dyn NodeApi>;
        let bind = "127.0.0.1:0".parse().unwrap();
        let server = AdminServer::bind(dir.path(), bind, api, MetricsHandle::detached()).await.unwrap();
        let (tcp, socket) = (server.tcp_addr(), server.socket_path().to_owned());
        let token = std::fs::read_to_string(dir.path().join(TOKEN_FILE_NAME)).unwrap().trim().to_owned();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move { server.run(stopped).await });
        Self { node, tcp, socket, token, stop, task, _dir: dir }
    }

    /// Over TCP, with whatever head is given after the request line.
    pub(super) async fn tcp(&self, line: &str, head: &[&str], body: &str) -> Answer {
        let stream = TcpStream::connect(self.tcp).await.unwrap();
        exchange(stream, line, head, body).await
    }

    /// Over TCP with Host and token.
    pub(super) async fn authorised(&self, line: &str, head: &[&str], body: &str) -> Answer {
        let token = format!("Authorization: Bearer {}", self.token);
        let mut all = vec!["Host: localhost", token.as_str()];
        all.extend_from_slice(head);
        self.tcp(line, &all, body).await
    }

    /// Over the socket.
    pub(super) async fn socket(&self, line: &str, head: &[&str], body: &str) -> Answer {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let mut all = vec!["Host: localhost"];
        all.extend_from_slice(head);
        exchange(stream, line, &all, body).await
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.node.calls.lock().unwrap().clone()
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str, head: &[&str], body: &str) -> Answer {
    let mut request = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
    for field in head {
        request.push_str(&format!("{field}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    request.push_str(body);
    // A server that refuses early may close before it has read all.
    let _refused_early = stream.write_all(request.as_bytes()).await.is_err();
    let mut bytes = Vec::new();
    let _reset = stream.read_to_end(&mut bytes).await.is_err();
    parse(&String::from_utf8(bytes).unwrap())
}

fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Answer { status, headers, body: body.to_owned() }
}
