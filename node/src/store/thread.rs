//! The thread that owns the replica: one command at a time, persist, then answer, then tell.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use crdt_store::{
    DocKey, DocumentView, Edit, Replica, StoreError, SyncConfig, SyncError, SyncSession, WriteMeta, Written,
};
use policy::{DocId, Document};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, warn};
use transport::{Clock, NodeId};

use super::{Command, StoreChange, StoreEvent, StoreState, Stored, SyncStep, unix_ms};
use crate::api::{ApiError, Condition};
use crate::view::{Applied, AppliedDocument, ConflictSide, ConflictView, PolicyView};

/// Sync conversations at once; one more is refused and tried again later.
const SESSIONS_MAX: usize = 32;

/// The replica and the conversations about it.
pub(super) struct StoreThread {
    replica: Replica,
    clock: Arc<dyn Clock>,
    events: mpsc::Sender<StoreEvent>,
    sessions: HashMap<u64, (NodeId, SyncSession)>,
    next_session: u64,
    is_writable: bool,
}

impl StoreThread {
    pub(super) fn new(replica: Replica, clock: Arc<dyn Clock>, events: mpsc::Sender<StoreEvent>) -> Self {
        Self { replica, clock, events, sessions: HashMap::new(), next_session: 0, is_writable: true }
    }

    /// Serves commands until the last sender is gone or the store is closed.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        while let Some(command) = inbox.blocking_recv() {
            if let Command::Close { answer } = command {
                self.close();
                answer.send(()).ok();
                return;
            }
            let handled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.handle(command)));
            if handled.is_err() {
                // What is durable is sound; what is in memory may not be. Routing goes on with what it has.
                metrics::counter!("marram_task_restarts_total", "task" => "store").increment(1);
                error!("the policy store panicked; restart the agent, what was acknowledged is on disk");
                self.tell(StoreEvent::Writable(Err("the policy store panicked; restart the agent".to_owned())));
                return;
            }
        }
        self.close();
    }

    fn close(self) {
        if let Err(fault) = self.replica.close() {
            warn!(%fault, "policy store not closed cleanly; what was acknowledged is durable all the same");
        }
    }

    // An answer that nobody waits for any more is not an error anywhere below.
    fn handle(&mut self, command: Command) {
        match command {
            Command::Apply { documents, condition, answer } => {
                let done = self.apply(&documents, &condition);
                self.finish(done, answer);
            }
            Command::Delete { key, condition, answer } => {
                let done = self.delete(key, &condition);
                self.finish(done, answer);
            }
            Command::List { answer } => {
                answer.send(Ok(self.replica.documents().map(|view| policy_view(&view)).collect())).ok();
            }
            Command::Get { key, answer } => {
                let found = self.replica.document(&key).map(|view| policy_view(&view));
                answer.send(found.ok_or_else(|| ApiError::NotFound(format!("no document {key} on this node")))).ok();
            }
            Command::Conflicts { answer } => {
                answer.send(Ok(self.replica.documents().flat_map(|view| conflict_views(&view)).collect())).ok();
            }
            Command::Push { from, bytes } => self.merge_push(from, &bytes),
            Command::SyncStart { initiate, peer, answer } => {
                answer.send(self.sync_start(initiate, peer)).ok();
            }
            Command::SyncMessage { session, bytes, answer } => {
                answer.send(self.sync_message(session, &bytes)).ok();
            }
            Command::SyncEnd { session } => {
                self.sessions.remove(&session);
            }
            Command::PutRecord { table, key, value, answer } => {
                let done = self.replica.records().put_record(table, &key, &value);
                self.record_done(done, answer);
            }
            Command::DeleteRecord { table, key, answer } => {
                let done = self.replica.records().delete(table, &key);
                self.record_done(done, Some(answer));
            }
            Command::Close { answer } => {
                answer.send(()).ok();
            }
        }
    }

    /// Writes all documents or none.
    fn apply(&mut self, documents: &[Document], condition: &Condition) -> Result<(Applied, StoreChange), ApiError> {
        let mut edits = Vec::with_capacity(documents.len());
        let mut changes = BTreeMap::new();
        for document in documents {
            let key =
                DocKey::new(document.kind.clone(), document.metadata.scope.clone(), document.metadata.name.clone());
            let body = document.to_sections();
            let before = self.replica.document(&key);
            changes.insert(key.clone(), change_word(before.as_ref(), &body));
            // Writing a document again settles what was in conflict, also where its text stays the same.
            let mask = before.map(|view| view.conflicts.into_iter().map(|conflict| conflict.section).collect());
            edits.push(conditional(Edit { mask, ..Edit::put(key, body) }, condition)?);
        }
        self.write(edits, &changes)
    }

    fn delete(&mut self, key: DocKey, condition: &Condition) -> Result<(Applied, StoreChange), ApiError> {
        let changes = BTreeMap::from([(key.clone(), "deleted")]);
        let edit = conditional(Edit::delete(key), condition)?;
        self.write(vec![edit], &changes)
    }

    fn write(
        &mut self,
        edits: Vec<Edit>,
        changes: &BTreeMap<DocKey, &'static str>,
    ) -> Result<(Applied, StoreChange), ApiError> {
        let now_ms = unix_ms(&*self.clock);
        let written = self.replica.write(edits, WriteMeta::default(), now_ms);
        // A write that changed nothing did not touch the disk and proves nothing about it.
        if !matches!(&written, Ok(written) if written.dot.is_none()) {
            self.note_writable(&written);
        }
        let written = written.map_err(|fault| api_error(&fault))?;
        let changed = if written.dot.is_some() { changes.keys().cloned().collect() } else { Vec::new() };
        let change = self.change(&changed, written.push.clone(), None);
        Ok((applied(&written, changes, &change.state), change))
    }

    fn finish(
        &mut self,
        done: Result<(Applied, StoreChange), ApiError>,
        answer: oneshot::Sender<Result<Stored, ApiError>>,
    ) {
        match done {
            Ok((applied, change)) if change.changed.is_empty() => {
                answer.send(Ok(Stored { applied, in_force: None })).ok();
            }
            Ok((applied, mut change)) => {
                let (in_force, news) = oneshot::channel();
                change.in_force = Some(in_force);
                answer.send(Ok(Stored { applied, in_force: Some(news) })).ok();
                self.tell(StoreEvent::Changed(Box::new(change)));
            }
            Err(fault) => {
                answer.send(Err(fault)).ok();
            }
        }
    }

    fn merge_push(&mut self, from: NodeId, bytes: &[u8]) {
        let now_ms = unix_ms(&*self.clock);
        let merged = self.replica.merge_push(bytes, now_ms);
        if !matches!(&merged, Ok(merged) if merged.new_ops.is_empty()) {
            self.note_writable(&merged);
        }
        match merged {
            Ok(merged) => {
                for (_, refusal) in &merged.refused {
                    metrics::counter!("marram_policy_ops_refused_total", "reason" => refusal.label()).increment(1);
                    warn!(%from, %refusal, "op from a peer refused");
                }
                let push = self.replica.encode_push(&merged.new_ops);
                self.tell_change(&merged.new, push, from);
            }
            Err(fault) => {
                metrics::counter!("marram_policy_ops_refused_total", "reason" => "push").increment(1);
                warn!(%from, %fault, "pushed ops not merged; the next sync brings them");
            }
        }
    }

    fn sync_start(&mut self, initiate: bool, peer: NodeId) -> Option<(u64, Vec<Bytes>)> {
        if self.sessions.len() >= SESSIONS_MAX {
            return None;
        }
        let config = SyncConfig::default();
        let mut session = if initiate { SyncSession::initiate(config) } else { SyncSession::accept(config) };
        let first = pending(&mut session, &mut self.replica);
        self.next_session += 1;
        self.sessions.insert(self.next_session, (peer, session));
        Some((self.next_session, first))
    }

    fn sync_message(&mut self, number: u64, bytes: &[u8]) -> SyncStep {
        let Some((peer, mut session)) = self.sessions.remove(&number) else {
            return SyncStep { send: Vec::new(), done: true, fault: Some("the conversation is over".to_owned()) };
        };
        let now_ms = unix_ms(&*self.clock);
        let handled = session.handle_message(&mut self.replica, bytes, now_ms);
        let fault = match handled {
            Ok(progress) => {
                let push = self.replica.encode_push(&progress.new_ops);
                self.tell_change(&progress.changed, push, peer);
                None
            }
            Err(fault) => {
                metrics::counter!("marram_sync_failures_total", "reason" => fault.label()).increment(1);
                if let SyncError::Store(cause) = fault {
                    let text = with_sources(&cause);
                    self.note_writable::<()>(&Err(cause));
                    Some(text)
                } else {
                    Some(fault.to_string())
                }
            }
        };
        let send = pending(&mut session, &mut self.replica);
        let done = fault.is_some() || session.is_done();
        if !done {
            self.sessions.insert(number, (peer, session));
        }
        SyncStep { send, done, fault }
    }

    fn record_done(&mut self, done: Result<(), StoreError>, answer: Option<oneshot::Sender<Result<(), ApiError>>>) {
        self.note_writable(&done);
        match (done, answer) {
            (done, Some(answer)) => {
                answer.send(done.map_err(|fault| api_error(&fault))).ok();
            }
            (Err(fault), None) => debug!(%fault, "record not kept"),
            (Ok(()), None) => {}
        }
    }

    fn tell_change(&mut self, changed: &[DocKey], push: Bytes, from: NodeId) {
        if changed.is_empty() && push.is_empty() {
            return;
        }
        let change = self.change(changed, push, Some(from));
        self.tell(StoreEvent::Changed(Box::new(change)));
    }

    /// The whole replica after a change, as the control loop needs it.
    pub(super) fn change(&mut self, changed: &[DocKey], push: Bytes, from: Option<NodeId>) -> StoreChange {
        let mut change = StoreChange { push, from, ..StoreChange::default() };
        change.changed = changed.iter().map(ToString::to_string).collect();
        change.state.root = self.replica.root();
        for view in self.replica.documents() {
            change.state.documents += 1;
            change.state.conflicts += usize::from(!view.conflicts.is_empty() || view.deleted_concurrently);
            let DocKey { kind, scope, name } = &view.key;
            match Document::from_sections(kind, scope, name, &view.sections) {
                Ok(document) => change.documents.push(document),
                Err(problems) => {
                    // Two good edits can merge into a bad whole: the newest whole edit stands in for it.
                    change.documents.extend(Document::from_sections(kind, scope, name, &view.newest));
                    let id = DocId { scope: scope.clone(), kind: kind.clone(), name: name.clone() };
                    change.broken.push((id, problems));
                }
            }
        }
        change
    }

    /// Tells when the disk begins to refuse writes and when it takes them again.
    fn note_writable<T>(&mut self, outcome: &Result<T, StoreError>) {
        let refusal = match outcome {
            Err(fault @ (StoreError::Full | StoreError::Storage(_) | StoreError::ReadOnly)) => {
                Some(with_sources(fault))
            }
            Ok(_) => None,
            // The caller's fault says nothing about the disk.
            Err(_) => return,
        };
        if refusal.is_none() == self.is_writable {
            return;
        }
        self.is_writable = refusal.is_none();
        self.tell(StoreEvent::Writable(refusal.map_or(Ok(()), Err)));
    }

    fn tell(&self, event: StoreEvent) {
        // The control loop reads until the node stops.
        self.events.blocking_send(event).ok();
    }
}

fn pending(session: &mut SyncSession, replica: &mut Replica) -> Vec<Bytes> {
    std::iter::from_fn(|| session.poll_send(replica)).collect()
}

fn conditional(mut edit: Edit, condition: &Condition) -> Result<Edit, ApiError> {
    match condition {
        Condition::Any => {}
        Condition::Absent => edit.create_only = true,
        Condition::Match(etag) => match etag.parse() {
            Ok(parsed) => edit.context = Some(parsed),
            // A tag that no document can have is as stale as one that is out of date.
            Err(_) => return Err(ApiError::Stale { current: "another version".to_owned() }),
        },
    }
    Ok(edit)
}

fn change_word(before: Option<&DocumentView>, body: &BTreeMap<String, Vec<u8>>) -> &'static str {
    let Some(before) = before else { return "created" };
    let same = before.sections.len() == body.len()
        && before.sections.iter().zip(body).all(|((a, x), (b, y))| a == b && x.as_ref() == y.as_slice());
    if same && before.conflicts.is_empty() { "unchanged" } else { "changed" }
}

fn applied(written: &Written, changes: &BTreeMap<DocKey, &'static str>, state: &StoreState) -> Applied {
    let etag = |key: &DocKey| written.etags.get(key).copied().flatten().map(|etag| etag.to_string());
    let documents = changes.iter().map(|(key, change)| AppliedDocument {
        scope: key.scope.clone(),
        kind: key.kind.clone(),
        name: key.name.clone(),
        change: (*change).to_owned(),
        etag: etag(key).unwrap_or_default(),
    });
    Applied {
        dot: written.dot.map(|dot| dot.to_string()).unwrap_or_default(),
        root: crate::state::hex(&state.root),
        documents: documents.collect(),
    }
}

fn policy_view(view: &DocumentView) -> PolicyView {
    let DocKey { kind, scope, name } = &view.key;
    let (document, _) = Document::read_sections(kind, scope, name, &view.sections);
    PolicyView {
        scope: scope.clone(),
        kind: kind.clone(),
        name: name.clone(),
        etag: view.etag.to_string(),
        author: view.author_name.clone(),
        written_ms: view.hlc.millis,
        conflicts: view.conflicts.iter().map(|conflict| conflict.section.clone()).collect(),
        deleted_concurrently: view.deleted_concurrently,
        document: document.to_json(),
    }
}

fn conflict_views(view: &DocumentView) -> Vec<ConflictView> {
    let conflicts = view.conflicts.iter().map(|conflict| ConflictView {
        scope: view.key.scope.clone(),
        kind: view.key.kind.clone(),
        name: view.key.name.clone(),
        section: conflict.section.clone(),
        sides: (conflict.siblings.iter().enumerate())
            .map(|(place, side)| ConflictSide {
                dot: side.dot.to_string(),
                author: side.author_name.clone(),
                written_ms: side.hlc.millis,
                in_force: place == 0,
                value: side.body.as_ref().and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default(),
            })
            .collect(),
    });
    conflicts.collect()
}

fn api_error(fault: &StoreError) -> ApiError {
    match fault {
        StoreError::Stale { current, .. } => ApiError::Stale {
            current: current.map_or_else(|| "nothing, it does not exist".to_owned(), |tag| tag.to_string()),
        },
        StoreError::NotFound { key } => ApiError::NotFound(format!("no document {key} on this node")),
        StoreError::NotAuthor | StoreError::NotAdmitted { .. } => ApiError::Denied(fault.to_string()),
        StoreError::Full | StoreError::Storage(_) | StoreError::ReadOnly => ApiError::Storage(with_sources(fault)),
        StoreError::TooLarge { .. }
        | StoreError::Invalid { .. }
        | StoreError::TooManySiblings { .. }
        | StoreError::IdempotencyReuse => ApiError::Limit(fault.to_string()),
        _ => ApiError::Unavailable(with_sources(fault)),
    }
}

/// The error and its causes in one line.
fn with_sources(fault: &StoreError) -> String {
    let mut text = fault.to_string();
    let mut source = std::error::Error::source(fault);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
