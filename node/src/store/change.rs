//! What the control loop is told after a change: what is to be filed of each document that changed, and the state in short.

use std::collections::BTreeSet;

use bytes::Bytes;
use crdt_store::{DocKey, DocumentView, Dot};
use policy::{DocId, Document, Filed, Problem, STRICTEST_KINDS};
use transport::NodeId;

use super::prepare::{mentions_locks, with_side};
use super::read::whole;
use super::thread::StoreThread;
use super::{StoreChange, StoreEvent, StoreState};

impl StoreThread {
    /// Tells a change that came from a peer; nothing where there is nothing to tell.
    pub(super) fn tell_change(&mut self, changed: &[DocKey], push: Bytes, from: NodeId) {
        if changed.is_empty() && push.is_empty() {
            return;
        }
        let change = self.change(changed, push, Some(from));
        self.tell(StoreEvent::Changed(Box::new(change)));
    }

    /// What became of the documents `changed`, as the control loop needs it.
    pub(super) fn change(&mut self, changed: &[DocKey], push: Bytes, from: Option<NodeId>) -> StoreChange {
        let mut change = StoreChange { push, from, ..StoreChange::default() };
        for key in changed {
            let view = self.replica.document(key);
            let conflict = view.as_ref().map(sections_in_conflict).unwrap_or_default();
            if self.note_conflict(key, &conflict) {
                change.conflicts.push((key.to_string(), conflict));
            }
            self.note_locks(key, view.as_ref());
            change.changed.push(key.to_string());
            change.filed.push((doc_id(key), view.map(|view| filed(&view)).unwrap_or_default()));
        }
        change.state = self.state();
        change
    }

    /// Every document there is, for a control loop that begins.
    pub(super) fn whole_change(&mut self) -> StoreChange {
        let mut change = StoreChange { is_whole: true, ..StoreChange::default() };
        self.in_conflict.clear();
        self.lockers.clear();
        let mut noted = Vec::new();
        for view in self.replica.documents() {
            let conflict = sections_in_conflict(&view);
            let locks = locks(&view);
            if locks || !conflict.is_empty() {
                noted.push((view.key.clone(), conflict, locks));
            }
            change.filed.push((doc_id(&view.key), filed(&view)));
        }
        for (key, conflict, locks) in noted {
            self.note_conflict(&key, &conflict);
            if locks {
                self.lockers.insert(key);
            }
        }
        change.state = self.state();
        change
    }

    /// The documents that compilation starts from: of each the form in force, or every side of a conflict.
    pub(super) fn compiled_documents(&self) -> Vec<Document> {
        self.replica.documents().flat_map(|view| forms(&view).0).collect()
    }

    fn state(&self) -> StoreState {
        StoreState {
            root: self.replica.root(),
            held: self.replica.held_documents(),
            conflicts: self.in_conflict.len(),
            equivocators: self.equivocators.iter().cloned().collect(),
        }
    }

    /// Remembers the sections of a document that are in conflict; true when they are others than when last told.
    fn note_conflict(&mut self, key: &DocKey, now: &[String]) -> bool {
        let before = self.in_conflict.get(key).map_or(&[][..], Vec::as_slice);
        if now == before {
            return false;
        }
        if now.is_empty() {
            self.in_conflict.remove(key);
        } else {
            self.in_conflict.insert(key.clone(), now.to_vec());
        }
        true
    }

    fn note_locks(&mut self, key: &DocKey, view: Option<&DocumentView>) {
        if view.is_some_and(locks) {
            self.lockers.insert(key.clone());
        } else {
            self.lockers.remove(key);
        }
    }
}

fn doc_id(key: &DocKey) -> DocId {
    DocId { scope: key.scope.clone(), kind: key.kind.clone(), name: key.name.clone() }
}

fn filed(view: &DocumentView) -> Filed {
    let (forms, faults) = forms(view);
    Filed::new(&forms, faults)
}

/// The forms of a document that count, and what is wrong with the whole where its edits do not go together.
///
/// Of kinds that compose to the strictest each concurrent edit counts, also one that does not validate.
fn forms(view: &DocumentView) -> (Vec<Document>, Vec<Problem>) {
    let DocKey { kind, scope, name } = &view.key;
    let is_strictest = STRICTEST_KINDS.contains(&kind.as_str());
    let mut forms = Vec::new();
    let mut faults = Vec::new();
    match Document::from_sections(kind, scope, name, &view.sections) {
        Ok(document) => forms.push(document),
        Err(problems) => {
            if is_strictest {
                // A newest edit might permit what the others refuse; what does not validate permits nothing.
                forms.push(whole(&view.key, &view.sections));
            } else {
                // Two good edits can merge into a bad whole: the newest whole edit stands in for it.
                forms.extend(Document::from_sections(kind, scope, name, &view.newest));
            }
            faults = problems;
        }
    }
    if is_strictest {
        forms.extend(siblings(view));
    }
    (forms, faults)
}

/// The sides of a conflict about what is permitted: all of them count until somebody settles it, whatever is wrong with
/// them, so that a conflict never permits more than one of its sides does. Of other kinds only the winner counts.
fn siblings(view: &DocumentView) -> Vec<Document> {
    let dots: BTreeSet<Dot> =
        view.conflicts.iter().flat_map(|conflict| conflict.siblings.iter().map(|side| side.dot)).collect();
    let each = dots.into_iter().map(|dot| with_side(view, dot)).filter(|sections| *sections != view.sections);
    each.map(|sections| whole(&view.key, &sections)).collect()
}

/// Whether a document may keep fields to itself.
fn locks(view: &DocumentView) -> bool {
    view.sections.get("metadata").is_some_and(mentions_locks)
}

/// The sections of a document that a person should look at; an empty name where it was deleted meanwhile.
pub(super) fn sections_in_conflict(view: &DocumentView) -> Vec<String> {
    let sections = view.conflicts.iter().map(|conflict| conflict.section.clone());
    view.deleted_concurrently.then(String::new).into_iter().chain(sections).collect()
}
