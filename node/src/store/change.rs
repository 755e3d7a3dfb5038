//! What the control loop is told after a change: the documents to compile, and what differs from before.

use std::collections::BTreeSet;

use bytes::Bytes;
use crdt_store::{DocKey, DocumentView, Dot};
use policy::{DocId, Document, STRICTEST_KINDS};
use transport::NodeId;

use super::prepare::with_side;
use super::read::whole;
use super::thread::StoreThread;
use super::{StoreChange, StoreEvent};

impl StoreThread {
    /// Tells a change that came from a peer; nothing where there is nothing to tell.
    pub(super) fn tell_change(&mut self, changed: &[DocKey], push: Bytes, from: NodeId) {
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
            change.state.conflicts += usize::from(!sections_in_conflict(&view).is_empty());
            let DocKey { kind, scope, name } = &view.key;
            let is_strictest = STRICTEST_KINDS.contains(&kind.as_str());
            match Document::from_sections(kind, scope, name, &view.sections) {
                Ok(document) => change.documents.push(document),
                Err(problems) => {
                    if is_strictest {
                        // A newest edit might permit what the others refuse; what does not validate permits nothing.
                        change.documents.push(whole(&view.key, &view.sections));
                    } else {
                        // Two good edits can merge into a bad whole: the newest whole edit stands in for it.
                        change.documents.extend(Document::from_sections(kind, scope, name, &view.newest));
                    }
                    let id = DocId { scope: scope.clone(), kind: kind.clone(), name: name.clone() };
                    change.broken.push((id, problems));
                }
            }
            if is_strictest {
                change.documents.extend(siblings(&view));
            }
        }
        change.state.tombstones = self.replica.held_documents().saturating_sub(change.state.documents);
        change.state.equivocators = self.equivocators.iter().cloned().collect();
        change.conflicts = self.new_conflicts(changed);
        change
    }

    /// Of the documents that changed those whose conflicts are others than when they were last told.
    fn new_conflicts(&mut self, changed: &[DocKey]) -> Vec<(String, Vec<String>)> {
        let mut news = Vec::new();
        for key in changed {
            let now = self.replica.document(key).map(|view| sections_in_conflict(&view)).unwrap_or_default();
            let before = self.in_conflict.get(key).cloned().unwrap_or_default();
            if now == before {
                continue;
            }
            if now.is_empty() {
                self.in_conflict.remove(key);
            } else {
                self.in_conflict.insert(key.clone(), now.clone());
            }
            news.push((key.to_string(), now));
        }
        news
    }
}

/// The sides of a conflict about what is permitted: all of them count until somebody settles it, whatever is wrong with
/// them, so that a conflict never permits more than one of its sides does. Of other kinds only the winner counts.
fn siblings(view: &DocumentView) -> Vec<Document> {
    let dots: BTreeSet<Dot> =
        view.conflicts.iter().flat_map(|conflict| conflict.siblings.iter().map(|side| side.dot)).collect();
    let each = dots.into_iter().map(|dot| with_side(view, dot)).filter(|sections| *sections != view.sections);
    each.map(|sections| whole(&view.key, &sections)).collect()
}

/// The sections of a document that a person should look at; an empty name where it was deleted meanwhile.
pub(super) fn sections_in_conflict(view: &DocumentView) -> Vec<String> {
    let sections = view.conflicts.iter().map(|conflict| conflict.section.clone());
    view.deleted_concurrently.then(String::new).into_iter().chain(sections).collect()
}
