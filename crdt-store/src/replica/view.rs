//! A document as a reader gets it: the effective content and everything a person needs to settle a conflict.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    document::Part,
    hlc::Hlc,
    id::{DocKey, Dot, ETag},
    op::{self, OpKind, Sections},
    store::Store,
};

/// A document and its state of agreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentView {
    /// Which document.
    pub key: DocKey,
    /// The content in force: of each section the winner, chosen alike on every replica that has seen the same ops.
    /// Sections merge one by one, so the whole may be invalid although each edit was valid: then use `newest`.
    pub sections: Sections,
    /// The full document of the newest live edit; valid by itself. The last good form where `sections` is not valid.
    pub newest: Sections,
    /// The version.
    pub etag: ETag,
    /// The ops that make up the version: every edit and deletion that nothing has superseded where it is seen.
    pub live: Vec<Dot>,
    /// Sections that were edited concurrently and differ.
    pub conflicts: Vec<Conflict>,
    /// Someone deleted the document without having seen an edit that lives on. The edit stays until a person decides.
    pub deleted_concurrently: bool,
    /// The newest live edit.
    pub dot: Dot,
    /// When it was written.
    pub hlc: Hlc,
    /// Id of the node that wrote it.
    pub author: String,
    /// That node's label.
    pub author_name: String,
    /// Why, in the author's words.
    pub message: String,
    /// That edit's stamp was more than a minute ahead of the clock here when it came.
    pub clock_suspect: bool,
}

/// One section with concurrent edits that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Which section.
    pub section: String,
    /// The edits, the winner first.
    pub siblings: Vec<Sibling>,
}

/// One of several concurrent edits of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// Its op.
    pub dot: Dot,
    /// When it was written.
    pub hlc: Hlc,
    /// Id of the node that wrote it.
    pub author: String,
    /// That node's label.
    pub author_name: String,
    /// What its author meant to do.
    pub kind: OpKind,
    /// Why, in the author's words.
    pub message: String,
    /// The section's content; `None` where the edit removed the section.
    pub body: Option<Bytes>,
}

/// A document as it stands; `None` where it does not exist.
pub(crate) fn view(store: &Store, key: &DocKey) -> Option<DocumentView> {
    let reading = store.read(key)?;
    let newest = &reading.newest;
    let (author, author_name) = author(store, newest.dot);
    let held = store.held(newest.dot);
    Some(DocumentView {
        key: key.clone(),
        sections: owned(reading.sections.iter().map(|(name, value)| (&**name, value))),
        newest: owned(newest.body.iter().flatten().map(|(name, value)| (*name, value))),
        etag: reading.etag(),
        live: reading.dots().into_iter().collect(),
        conflicts: reading.conflicts.iter().map(|(section, parts)| conflict(store, section, parts)).collect(),
        deleted_concurrently: reading.is_deleted_concurrently,
        dot: newest.dot,
        hlc: newest.hlc,
        author,
        author_name,
        message: held.map(|held| op::intent(&held.signed.bytes).1.to_owned()).unwrap_or_default(),
        clock_suspect: held.is_some_and(|held| held.is_clock_suspect),
    })
}

fn owned<'a>(sections: impl Iterator<Item = (&'a str, &'a Bytes)>) -> Sections {
    sections.map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

fn conflict(store: &Store, section: &str, parts: &[Arc<Part<'_>>]) -> Conflict {
    let mut parts: Vec<&Arc<Part<'_>>> = parts.iter().collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.rank()));
    let siblings = parts.iter().map(|part| {
        let (author, author_name) = author(store, part.dot);
        let held = store.held(part.dot);
        let (kind, message) = held.map(|held| op::intent(&held.signed.bytes)).unwrap_or_default();
        Sibling {
            dot: part.dot,
            hlc: part.hlc,
            author,
            author_name,
            kind,
            message: message.to_owned(),
            body: part.section(section).cloned(),
        }
    });
    Conflict { section: section.to_owned(), siblings: siblings.collect() }
}

fn author(store: &Store, dot: Dot) -> (String, String) {
    let author = store.origin(&dot.origin).map(|origin| &origin.author);
    author.map(|author| (author.node.clone(), author.name.clone())).unwrap_or_default()
}
