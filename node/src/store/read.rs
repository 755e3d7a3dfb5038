//! What people read of the replica: documents, earlier versions, numbers.

use std::collections::BTreeMap;

use crdt_store::{DocKey, DocumentView, Dot, OpKind, Revision};
use policy::Document;

use super::acks::lag;
use super::thread::{StoreThread, api_error};
use super::{StoreNumbers, unix_ms};
use crate::api::ApiError;
use crate::view::{PolicyView, RevisionView};

impl StoreThread {
    pub(super) fn list(&self) -> Vec<PolicyView> {
        self.replica.documents().map(|view| self.policy_view(&view)).collect()
    }

    /// One document as it is, or as one write left it.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], [`ApiError::Storage`].
    pub(super) fn get(&self, key: &DocKey, at: Option<Dot>) -> Result<PolicyView, ApiError> {
        let Some(dot) = at else {
            let view = self.replica.document(key).ok_or_else(|| no_document(key))?;
            return Ok(self.policy_view(&view));
        };
        let revision = self.revision(key, dot)?;
        let Some(sections) = &revision.body else {
            return Err(ApiError::NotFound(format!("{dot} deleted {key}")));
        };
        let document = whole(key, sections);
        Ok(PolicyView {
            scope: key.scope.clone(),
            kind: key.kind.clone(),
            name: key.name.clone(),
            etag: String::new(),
            dot: dot.to_string(),
            author: revision.author_name,
            written_ms: revision.hlc.millis,
            message: revision.message,
            conflicts: Vec::new(),
            deleted_concurrently: false,
            expired: document.metadata.is_expired(unix_ms(&*self.clock)),
            document: document.to_json(),
        })
    }

    /// What was written of a document, newest first.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] for a document that nobody here ever heard of, [`ApiError::Storage`].
    pub(super) fn history(&self, key: &DocKey) -> Result<Vec<RevisionView>, ApiError> {
        let revisions = self.replica.history(key).map_err(|fault| api_error(&fault))?;
        if revisions.is_empty() && self.replica.document(key).is_none() {
            return Err(no_document(key));
        }
        Ok(revisions.into_iter().map(|revision| revision_view(key, revision)).collect())
    }

    pub(super) fn numbers(&self) -> StoreNumbers {
        let ours = self.replica.context();
        let acks = self.acks.borrow();
        StoreNumbers {
            summary: self.replica.summary(),
            counters: self.replica.counters().clone(),
            floor_hash: self.replica.floor_hash(),
            lags: acks.iter().map(|(peer, ack)| (*peer, lag(ours, &ack.context))).collect::<BTreeMap<_, _>>(),
        }
    }

    fn policy_view(&self, view: &DocumentView) -> PolicyView {
        let document = whole(&view.key, &view.sections);
        PolicyView {
            scope: view.key.scope.clone(),
            kind: view.key.kind.clone(),
            name: view.key.name.clone(),
            etag: view.etag.to_string(),
            dot: view.dot.to_string(),
            author: view.author_name.clone(),
            written_ms: view.hlc.millis,
            message: view.message.clone(),
            conflicts: view.conflicts.iter().map(|conflict| conflict.section.clone()).collect(),
            deleted_concurrently: view.deleted_concurrently,
            expired: document.metadata.is_expired(unix_ms(&*self.clock)),
            document: document.to_json(),
        }
    }
}

/// The document that sections make up, as far as this version can read it.
pub(super) fn whole(key: &DocKey, sections: &BTreeMap<String, impl AsRef<[u8]>>) -> Document {
    Document::read_sections(&key.kind, &key.scope, &key.name, sections).0
}

pub(super) fn no_document(key: &DocKey) -> ApiError {
    ApiError::NotFound(format!("no document {key} on this node"))
}

fn revision_view(key: &DocKey, revision: Revision) -> RevisionView {
    let (op, rollback_to) = match revision.kind {
        OpKind::Put => ("put", None),
        OpKind::Patch => ("patch", None),
        OpKind::Delete => ("delete", None),
        OpKind::Rollback(to) => ("rollback", Some(to.to_string())),
        OpKind::Resolve => ("resolve", None),
    };
    RevisionView {
        dot: revision.dot.to_string(),
        op: op.to_owned(),
        rollback_to,
        written_ms: revision.hlc.millis,
        author: revision.author_name,
        message: revision.message,
        sections: revision.mask.into_iter().collect(),
        deleted: revision.body.is_none(),
        live: revision.is_live,
        document: revision.body.map(|sections| whole(key, &sections).to_json()).unwrap_or_default(),
    }
}
