//! Group commit: writes that wait together share one batch on the disk, and one recompilation.

use std::collections::{BTreeMap, BTreeSet};

use crdt_store::{DocKey, Dot, WriteRequest, Written};
use tokio::sync::oneshot;

use super::prepare::Prepared;
use super::thread::StoreThread;
use super::{Ask, StoreEvent, StoreState, Stored, doc_key, unix_ms};
use crate::api::{WaitFor, Write};
use crate::view::{Applied, AppliedDocument};

/// Writes in one batch; what waits beyond that goes into the next one.
pub(super) const GROUP_MAX: usize = 128;

impl StoreThread {
    /// Carries writes out in the order given. Those of one batch are about different documents, so that each is made
    /// from what the one before it left.
    pub(super) fn write_all(&mut self, asks: Vec<Ask>) {
        self.mend();
        let mut group = Vec::new();
        let mut named = BTreeSet::new();
        for ask in asks {
            let keys = keys(&ask.write);
            if !named.is_disjoint(&keys) {
                self.write_group(std::mem::take(&mut group));
                named.clear();
            }
            named.extend(keys);
            group.push(ask);
        }
        self.write_group(group);
    }

    // An answer that nobody waits for any more is not an error anywhere below.
    fn write_group(&mut self, asks: Vec<Ask>) {
        let now_ms = unix_ms(&*self.clock);
        let mut requests = Vec::with_capacity(asks.len());
        let mut asked = Vec::with_capacity(asks.len());
        for ask in asks {
            match self.replays.find(&ask, now_ms) {
                Ok(None) => {}
                Ok(Some(applied)) => {
                    ask.answer.send(Ok(Stored { applied, in_force: None })).ok();
                    continue;
                }
                Err(fault) => {
                    ask.answer.send(Err(fault)).ok();
                    continue;
                }
            }
            match self.refilled().and_then(|()| self.prepare(&ask)) {
                Ok(Prepared { edits, meta, changes }) => {
                    requests.push(WriteRequest { edits, meta });
                    asked.push((ask, changes));
                }
                Err(fault) => {
                    ask.answer.send(Err(fault)).ok();
                }
            }
        }
        if requests.is_empty() {
            return;
        }
        let outcomes = self.replica.write_group(requests, now_ms);
        let mut stored = Vec::with_capacity(asked.len());
        for ((ask, changes), outcome) in asked.into_iter().zip(outcomes) {
            // A write that changed nothing did not touch the disk and proves nothing about it.
            if !matches!(&outcome, Ok(written) if written.dot.is_none()) {
                self.note_writable(&outcome);
            }
            match outcome {
                Ok(written) => stored.push((ask, changes, written)),
                Err(fault) => {
                    ask.answer.send(Err(super::thread::api_error(&fault))).ok();
                }
            }
        }
        self.tell_written(stored, now_ms);
    }

    /// Answers writes that are durable, and tells the control loop about all of them at once.
    fn tell_written(&mut self, stored: Vec<(Ask, Changes, Written)>, now_ms: u64) {
        let is_new = |written: &Written| written.dot.is_some() && !written.is_replay;
        let new: Vec<&(Ask, Changes, Written)> = stored.iter().filter(|(_, _, written)| is_new(written)).collect();
        let dots: Vec<Dot> = new.iter().filter_map(|(_, _, written)| written.dot).collect();
        let changed: Vec<DocKey> = new.iter().flat_map(|(_, changes, _)| changes.keys().cloned()).collect();
        let push_to_all = new.iter().any(|(ask, _, _)| ask.options.wait.peers != WaitFor::Nobody);
        let push = self.replica.encode_push(&dots);
        let mut change = self.change(&changed, push, None);
        change.push_to_all = push_to_all;
        for (ask, changes, written) in stored {
            let applied = applied(&written, &changes, &change.state);
            self.replays.remember(&ask, &applied, now_ms);
            let in_force = is_new(&written).then(|| {
                let (in_force, news) = oneshot::channel();
                change.in_force.push(in_force);
                news
            });
            ask.answer.send(Ok(Stored { applied, in_force })).ok();
        }
        if !dots.is_empty() {
            self.tell(StoreEvent::Changed(Box::new(change)));
        }
    }
}

/// What becomes of each document of a write.
pub(super) type Changes = BTreeMap<DocKey, &'static str>;

fn keys(write: &Write) -> BTreeSet<DocKey> {
    match write {
        Write::Apply(documents) => documents.iter().map(|document| doc_key(&document.id())).collect(),
        Write::Delete(id) | Write::Patch { id, .. } | Write::Rollback { id, .. } | Write::Resolve { id, .. } => {
            BTreeSet::from([doc_key(id)])
        }
    }
}

fn applied(written: &Written, changes: &Changes, state: &StoreState) -> Applied {
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
        replayed: written.is_replay,
        replicated_to: None,
    }
}
