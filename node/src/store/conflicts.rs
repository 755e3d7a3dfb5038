//! Conflicts as a person settles them: every side, what they have in common, and what each changed.

use std::collections::BTreeSet;

use crdt_store::{Conflict, DocKey, DocumentView, Dot};
use serde_json::{Map, Value};

use super::read::whole;
use super::thread::StoreThread;
use crate::view::{ConflictSide, ConflictView, SideChangeView};

impl StoreThread {
    /// Every conflict, document by document; of one that was deleted meanwhile this comes first.
    pub(super) fn conflicts(&self) -> Vec<ConflictView> {
        let mut all = Vec::new();
        for view in self.replica.documents() {
            if view.deleted_concurrently {
                all.push(self.deleted_meanwhile(&view));
            }
            all.extend(view.conflicts.iter().map(|conflict| self.section_in_conflict(&view.key, conflict)));
        }
        all
    }

    /// Whether that op deleted the document; false also where it is not known any more.
    pub(super) fn is_grave(&self, key: &DocKey, dot: Dot) -> bool {
        self.replica.revision(key, dot).ok().flatten().is_some_and(|revision| revision.body.is_none())
    }

    fn section_in_conflict(&self, key: &DocKey, conflict: &Conflict) -> ConflictView {
        let section = conflict.section.as_str();
        let dots: Vec<Dot> = conflict.siblings.iter().map(|side| side.dot).collect();
        let parsed = |body: Option<&bytes::Bytes>| body.and_then(|body| serde_json::from_slice(body).ok());
        let ancestor = self.replica.common_ancestor(key, &dots).ok().flatten();
        let base: Option<Value> = parsed(ancestor.as_ref().and_then(|revision| revision.body.as_ref()?.get(section)));
        let sides: Vec<ConflictSide> = (conflict.siblings.iter().enumerate())
            .map(|(place, side)| ConflictSide {
                dot: side.dot.to_string(),
                author: side.author_name.clone(),
                written_ms: side.hlc.millis,
                message: side.message.clone(),
                in_force: place == 0,
                deleted: false,
                value: parsed(side.body.as_ref()).unwrap_or_default(),
            })
            .collect();
        let placed: Vec<Value> = sides.iter().map(|side| placed(section, &side.value)).collect();
        let base_placed = base.as_ref().map(|base| self::placed(section, base));
        let changes = policy::three_way(base_placed.as_ref(), &placed.iter().collect::<Vec<_>>());
        ConflictView {
            scope: key.scope.clone(),
            kind: key.kind.clone(),
            name: key.name.clone(),
            section: section.to_owned(),
            sides,
            base: base.unwrap_or_default(),
            changes: changes.into_iter().map(side_change).collect(),
        }
    }

    /// A document that one side deleted while another edited it.
    fn deleted_meanwhile(&self, view: &DocumentView) -> ConflictView {
        let key = &view.key;
        let mut sides: Vec<ConflictSide> = view.live.iter().map(|dot| self.whole_side(view, *dot)).collect();
        // The edit is in force, so edits come first; the newest of them leads.
        sides.sort_by_key(|side| (side.deleted, std::cmp::Reverse(side.written_ms), side.dot.clone()));
        let newest = view.dot.to_string();
        for side in &mut sides {
            side.in_force = side.dot == newest;
        }
        sides.sort_by_key(|side| !side.in_force);
        let ancestor = self.replica.common_ancestor(key, &view.live).ok().flatten();
        let base = ancestor.and_then(|revision| revision.body).map(|sections| whole(key, &sections).to_json());
        let values: Vec<&Value> = sides.iter().filter(|side| !side.deleted).map(|side| &side.value).collect();
        let edits = values.len();
        let changes = policy::three_way(base.as_ref(), &values);
        let graves = sides.len() - edits;
        let changes = changes.into_iter().map(side_change).map(|mut change| {
            // One place per side: a side that deleted the document says nothing of any field.
            change.sides.extend(std::iter::repeat_n(None, graves));
            change
        });
        let changes = changes.collect();
        ConflictView {
            scope: key.scope.clone(),
            kind: key.kind.clone(),
            name: key.name.clone(),
            section: String::new(),
            base: base.unwrap_or_default(),
            changes,
            sides,
        }
    }

    fn whole_side(&self, view: &DocumentView, dot: Dot) -> ConflictSide {
        let revision = self.replica.revision(&view.key, dot).ok().flatten();
        let author = self.replica.author(&dot.origin).map(|author| author.name.clone()).unwrap_or_default();
        // Without its revision only what the document itself says of it is known.
        let edits: BTreeSet<Dot> = (view.conflicts.iter())
            .flat_map(|conflict| conflict.siblings.iter().map(|side| side.dot))
            .chain([view.dot])
            .collect();
        let deleted = revision.as_ref().map_or(!edits.contains(&dot), |revision| revision.body.is_none());
        let sections = revision.as_ref().and_then(|revision| revision.body.as_ref()).unwrap_or(&view.sections);
        ConflictSide {
            dot: dot.to_string(),
            author,
            written_ms: revision.as_ref().map_or(0, |revision| revision.hlc.millis),
            message: revision.as_ref().map(|revision| revision.message.clone()).unwrap_or_default(),
            in_force: false,
            deleted,
            value: if deleted { Value::Null } else { whole(&view.key, sections).to_json() },
        }
    }
}

/// The section's content where it stands in a document, so that paths read as they do everywhere else.
fn placed(section: &str, value: &Value) -> Value {
    if value.is_null() {
        return Value::Object(Map::new());
    }
    match section.split_once('.') {
        Some((outer, inner)) => {
            let inner = Map::from_iter([(inner.to_owned(), value.clone())]);
            Value::Object(Map::from_iter([(outer.to_owned(), Value::Object(inner))]))
        }
        None => Value::Object(Map::from_iter([(section.to_owned(), value.clone())])),
    }
}

fn side_change(change: policy::SideChange) -> SideChangeView {
    let policy::SideChange { path, base, sides, agrees } = change;
    SideChangeView { path, base, sides, agrees }
}
