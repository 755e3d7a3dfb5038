//! Talking with peers: ops that they push, and conversations.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use crdt_store::{Dot, Replica, SyncConfig, SyncError, SyncSession};
use tracing::{error, warn};
use transport::NodeId;

use super::acks::Ack;
use super::thread::{StoreThread, with_sources};
use super::{SyncStep, unix_ms};

/// Sync conversations at once; one more is refused and tried again later.
const SESSIONS_MAX: usize = 32;
/// Peers whose word is needed for a removal that carries no signature, where there are as many.
const CLAIMS_NEEDED: usize = 2;

impl StoreThread {
    pub(super) fn merge_push(&mut self, from: NodeId, bytes: &[u8]) {
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
                self.note_equivocations(&merged.equivocations);
                let push = self.replica.encode_push(&merged.new_ops);
                self.tell_change(&merged.new, push, from);
            }
            Err(fault) => {
                metrics::counter!("marram_policy_ops_refused_total", "reason" => "push").increment(1);
                warn!(%from, %fault, "pushed ops not merged; the next sync brings them");
            }
        }
    }

    pub(super) fn sync_start(&mut self, initiate: bool, peer: NodeId) -> Option<(u64, Vec<Bytes>)> {
        if self.sessions.len() >= SESSIONS_MAX {
            return None;
        }
        let claims_needed = self.alive_peers.load(Ordering::Relaxed).clamp(1, CLAIMS_NEEDED);
        let config = SyncConfig { claims_needed, ..SyncConfig::default() };
        let id = *peer.as_bytes();
        let mut session = if initiate { SyncSession::initiate(config, id) } else { SyncSession::accept(config, id) };
        let first = pending(&mut session, &mut self.replica);
        self.next_session += 1;
        self.sessions.insert(self.next_session, (peer, session));
        Some((self.next_session, first))
    }

    pub(super) fn sync_message(&mut self, number: u64, bytes: &[u8]) -> SyncStep {
        let Some((peer, mut session)) = self.sessions.remove(&number) else {
            return SyncStep { send: Vec::new(), done: true, fault: Some("the conversation is over".to_owned()) };
        };
        let now_ms = unix_ms(&*self.clock);
        let handled = session.handle_message(&mut self.replica, bytes, now_ms);
        let fault = match handled {
            Ok(progress) => {
                self.note_ack(peer, &session);
                self.note_equivocations(&progress.equivocations);
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
        if done && fault.is_none() {
            self.refill.heard(peer);
        }
        if !done {
            self.sessions.insert(number, (peer, session));
        }
        SyncStep { send, done, fault }
    }

    /// Remembers what a peer confirmed to have on disk, and wakes those who wait for it.
    fn note_ack(&self, peer: NodeId, session: &SyncSession) {
        let Some(context) = &session.outcome().peer_context else { return };
        let ack = Ack { context: context.clone(), at: self.clock.now() };
        self.acks.send_modify(|acks| acks.take(peer, ack));
    }

    /// Remembers whose word cannot be trusted, for `/v1/problems`.
    fn note_equivocations(&mut self, dots: &[Dot]) {
        for dot in dots {
            let author = self.replica.author(&dot.origin).map_or_else(|| dot.origin.to_string(), |a| a.name.clone());
            if self.equivocators.insert(author.clone()) {
                error!(node = author, %dot, "a node signed two histories; its disk or its key was copied");
            }
        }
    }
}

fn pending(session: &mut SyncSession, replica: &mut Replica) -> Vec<Bytes> {
    std::iter::from_fn(|| session.poll_send(replica)).collect()
}
