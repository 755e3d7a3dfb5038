//! From what somebody asks for to edits of the replica: nothing is written here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use crdt_store::{DocKey, DocumentView, Dot, Edit, OpKind, Sections, WriteMeta};
use policy::{Document, Limits, Problem, accept_documents};
use serde_json::Value;

use super::group::Changes;
use super::read::whole;
use super::thread::{StoreThread, api_error};
use super::{Ask, doc_key, unix_ms};
use crate::api::{ApiError, Condition, Settle, Write};

/// A write as the replica takes it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) edits: Vec<Edit>,
    pub(super) meta: WriteMeta,
    pub(super) changes: Changes,
}

/// What is to become of documents, and what it is called.
struct Plan {
    kind: OpKind,
    /// Whole documents; `None` deletes.
    bodies: Vec<(DocKey, Option<Body>)>,
}

/// A whole document, section by section.
type Body = BTreeMap<String, Vec<u8>>;

impl StoreThread {
    /// What the replica is to do for a write.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], [`ApiError::NotFound`], [`ApiError::NoConflict`], [`ApiError::Stale`],
    /// [`ApiError::Storage`].
    pub(super) fn prepare(&self, ask: &Ask) -> Result<Prepared, ApiError> {
        let plan = match &ask.write {
            Write::Apply(documents) => self.put(OpKind::Put, documents)?,
            Write::Delete(id) => Plan { kind: OpKind::Delete, bodies: vec![(doc_key(id), None)] },
            Write::Patch { id, patch } => self.patch(&doc_key(id), patch)?,
            Write::Rollback { id, to } => self.rollback(doc_key(id), *to)?,
            Write::Resolve { id, settle } => self.resolve(doc_key(id), settle)?,
        };
        let mut edits = Vec::with_capacity(plan.bodies.len());
        let mut changes = BTreeMap::new();
        for (key, body) in plan.bodies {
            let before = self.replica.document(&key);
            changes.insert(key.clone(), change_word(before.as_ref(), body.as_ref()));
            let edit = match body {
                Some(body) => {
                    // Writing a document again settles what was in conflict, also where its text stays the same.
                    let mask = before.map(|view| view.conflicts.into_iter().map(|conflict| conflict.section).collect());
                    Edit { mask, ..Edit::put(key, body) }
                }
                None => Edit::delete(key),
            };
            edits.push(conditional(edit, &ask.options.condition)?);
        }
        let meta = WriteMeta {
            op_kind: plan.kind,
            message: ask.options.reason.clone(),
            idempotency_key: ask.options.idempotency_key.clone(),
            ..WriteMeta::default()
        };
        Ok(Prepared { edits, meta, changes })
    }

    /// Whether these documents go together with what is stored.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with every field that a wider document keeps for itself.
    pub(super) fn check_locks(&self, documents: &[Document]) -> Result<(), ApiError> {
        let mut problems = Vec::new();
        for (index, document) in documents.iter().enumerate() {
            let others = self.others(document, documents);
            let place = |problem: Problem| match documents.len() {
                1 => problem,
                _ => Problem { field: format!("documents[{index}].{}", problem.field), ..problem },
            };
            problems.extend(policy::locked_conflicts(document, &others).into_iter().map(place));
        }
        if problems.is_empty() { Ok(()) } else { Err(ApiError::Invalid { problems }) }
    }

    /// The other documents of the same kind that keep a field to themselves, as they will be once `together` is written.
    fn others(&self, document: &Document, together: &[Document]) -> Vec<Document> {
        let written: BTreeSet<DocKey> = together.iter().map(|other| doc_key(&other.id())).collect();
        let is_other = |key: &&DocKey| key.kind == document.kind && !written.contains(key);
        let stored = self.lockers.iter().filter(is_other).filter_map(|key| self.replica.document(key));
        let stored = stored.map(|view| whole(&view.key, &view.sections));
        let beside = together.iter().filter(|other| other.id() != document.id()).cloned();
        let now_ms = unix_ms(&*self.clock);
        stored.chain(beside).filter(|other| !other.metadata.is_expired(now_ms)).collect()
    }

    fn put(&self, kind: OpKind, documents: &[Document]) -> Result<Plan, ApiError> {
        self.check_locks(documents)?;
        let bodies = documents.iter().map(|document| (doc_key(&document.id()), Some(document.to_sections())));
        Ok(Plan { kind, bodies: bodies.collect() })
    }

    fn patch(&self, key: &DocKey, patch: &Value) -> Result<Plan, ApiError> {
        let current = self.document_at(key)?;
        let before = whole(key, &current.sections);
        let patched = policy::merge_patch(&before.to_json(), patch);
        let documents = accept_documents(&patched.to_string(), &Limits::default())
            .map_err(|problems| ApiError::Invalid { problems })?;
        let [document] = documents.as_slice() else {
            return Err(invalid("document", "the patch leaves no document", "delete it with DELETE"));
        };
        if document.id() != before.id() {
            let message = format!("the patch makes {} of it", document.id());
            return Err(invalid("metadata", &message, "scope, kind and name of a document stay; write a new one"));
        }
        self.put(OpKind::Patch, &documents)
    }

    fn rollback(&self, key: DocKey, to: Dot) -> Result<Plan, ApiError> {
        let revision = self.revision(&key, to)?;
        let body = revision.body.map(|sections| owned(&sections));
        if let Some(body) = &body {
            self.check_body(&key, body)?;
        }
        Ok(Plan { kind: OpKind::Rollback(to), bodies: vec![(key, body)] })
    }

    fn resolve(&self, key: DocKey, settle: &Settle) -> Result<Plan, ApiError> {
        let current = self.document_at(&key)?;
        if current.conflicts.is_empty() && !current.deleted_concurrently {
            return Err(ApiError::NoConflict(format!("{key} is in no conflict; write it with PUT or PATCH")));
        }
        match settle {
            Settle::With(document) => self.put(OpKind::Resolve, std::slice::from_ref(document)),
            Settle::Take(dot) => {
                let body = self.side(&current, *dot)?;
                if let Some(body) = &body {
                    self.check_body(&key, body)?;
                }
                Ok(Plan { kind: OpKind::Resolve, bodies: vec![(key, body)] })
            }
        }
    }

    /// The document as one side of its conflicts has it; `None` where that side deleted it. Sections that are not in
    /// conflict stay as they are.
    fn side(&self, current: &DocumentView, dot: Dot) -> Result<Option<Body>, ApiError> {
        let mut siblings = current.conflicts.iter().flat_map(|conflict| &conflict.siblings);
        let has_edited = siblings.any(|side| side.dot == dot);
        let is_beside = current.deleted_concurrently && current.live.contains(&dot);
        if !has_edited && !is_beside {
            let sides: BTreeSet<String> = (current.conflicts.iter())
                .flat_map(|conflict| conflict.siblings.iter().map(|side| side.dot.to_string()))
                .chain(current.live.iter().filter(|_| current.deleted_concurrently).map(ToString::to_string))
                .collect();
            let sides: Vec<String> = sides.into_iter().collect();
            return Err(ApiError::NotFound(format!("{dot} is no side of this conflict; sides: {}", sides.join(", "))));
        }
        if !has_edited && self.is_grave(&current.key, dot) {
            return Ok(None);
        }
        Ok(Some(owned(&with_side(current, dot))))
    }

    fn document_at(&self, key: &DocKey) -> Result<DocumentView, ApiError> {
        self.replica.document(key).ok_or_else(|| super::read::no_document(key))
    }

    /// One revision of a document that is still remembered.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], [`ApiError::Storage`].
    pub(super) fn revision(&self, key: &DocKey, dot: Dot) -> Result<crdt_store::Revision, ApiError> {
        let found = self.replica.revision(key, dot).map_err(|fault| api_error(&fault))?;
        found.ok_or_else(|| {
            ApiError::NotFound(format!(
                "this node remembers no write {dot} of {key}; `marram policy history {key}` lists those it does"
            ))
        })
    }

    fn check_body(&self, key: &DocKey, body: &Body) -> Result<(), ApiError> {
        let document = Document::from_sections(&key.kind, &key.scope, &key.name, body)
            .map_err(|problems| ApiError::Invalid { problems })?;
        self.check_locks(std::slice::from_ref(&document))
    }
}

/// The sections in force, with those that `dot` wrote in a conflict as it wrote them.
pub(super) fn with_side(view: &DocumentView, dot: Dot) -> Sections {
    let mut sections = view.sections.clone();
    for conflict in &view.conflicts {
        let Some(side) = conflict.siblings.iter().find(|side| side.dot == dot) else { continue };
        match &side.body {
            Some(body) => sections.insert(conflict.section.clone(), body.clone()),
            None => sections.remove(&conflict.section),
        };
    }
    sections
}

fn owned(sections: &Sections) -> Body {
    sections.iter().map(|(name, bytes)| (name.clone(), bytes.to_vec())).collect()
}

pub(super) fn mentions_locks(metadata: &Bytes) -> bool {
    const FIELD: &[u8] = b"\"locked\"";
    metadata.windows(FIELD.len()).any(|window| window == FIELD)
}

fn invalid(field: &str, message: &str, hint: &str) -> ApiError {
    ApiError::Invalid { problems: vec![Problem::new(field, message, Some(hint.to_owned()))] }
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

fn change_word(before: Option<&DocumentView>, body: Option<&Body>) -> &'static str {
    let Some(body) = body else { return "deleted" };
    let Some(before) = before else { return "created" };
    let same = before.sections.len() == body.len()
        && before.sections.iter().zip(body).all(|((a, x), (b, y))| a == b && x.as_ref() == y.as_slice());
    let settled = before.conflicts.is_empty() && !before.deleted_concurrently;
    if same && settled { "unchanged" } else { "changed" }
}
