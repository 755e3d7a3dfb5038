//! The envelope: who a document is, where it applies, what it is about.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    fields::{Fields, text},
    lines::SourceLines,
};
use crate::problem::Faults;

/// The one version of documents this crate reads.
pub const API_VERSION: &str = "marram.dev/v1";

/// The kinds this version enforces. Documents of other kinds are valid as far as their envelope is, carried and stored,
/// and have no effect here.
pub const ENFORCED_KINDS: [&str; 2] = ["BackendTrafficPolicy", "HTTPRoute"];

/// A policy document. Built by parsing text, from the sections of the store, or by [`Document::new`]; only
/// [`crate::validate`] says whether it is a good one.
///
/// Two documents are equal when what they say is; where they were read from does not count.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// `marram.dev/v1`.
    pub api_version: String,
    /// What the document is, as `HTTPRoute`.
    pub kind: String,
    /// Its name, scope and what people note about it.
    pub metadata: Metadata,
    /// What it applies to, for kinds that are about one thing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// What it says: an object whose fields depend on the kind.
    pub spec: Value,
    #[serde(skip)]
    pub(crate) lines: SourceLines,
}

/// The part of the envelope that identifies and describes a document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Metadata {
    /// DNS labels joined by dots, at most 253 bytes; unique within its kind and scope.
    pub name: String,
    /// Where it applies, in the text form of [`crate::Scope`]; `global` where the author left it out.
    pub scope: String,
    /// Words to find it by. Up to 64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// A sentence for people, at most 1 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What a document is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetRef {
    /// What kind of thing, as `Service`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Document {
    /// A document with an empty spec.
    #[must_use]
    pub fn new(kind: impl Into<String>, scope: impl Into<String>, name: impl Into<String>) -> Self {
        let metadata = Metadata { name: name.into(), scope: scope.into(), ..Metadata::default() };
        Self {
            api_version: API_VERSION.to_owned(),
            kind: kind.into(),
            metadata,
            target_ref: None,
            spec: Value::Object(Map::new()),
            lines: SourceLines::default(),
        }
    }

    /// What tells this document from every other.
    #[must_use]
    pub fn id(&self) -> DocId {
        DocId { scope: self.metadata.scope.clone(), kind: self.kind.clone(), name: self.metadata.name.clone() }
    }

    /// The document as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        // Texts, maps with text keys and JSON values: nothing in a document can fail to become JSON.
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    /// The document as YAML that [`crate::parse_documents`] reads back to an equal document.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        // JSON is YAML too, so it stands in should the writer refuse.
        serde_saphyr::to_string(self).unwrap_or_else(|_| self.to_json().to_string())
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        let Self { api_version, kind, metadata, target_ref, spec, lines: _ } = self;
        *api_version == other.api_version
            && *kind == other.kind
            && *metadata == other.metadata
            && *target_ref == other.target_ref
            && *spec == other.spec
    }
}

/// What tells one document from every other. Ordered and shown as `scope/kind/name`, which is also its path in the
/// admin API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DocId {
    /// The scope, as written.
    pub scope: String,
    /// The kind.
    pub kind: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for DocId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.scope, self.kind, self.name)
    }
}

/// Reads an envelope as far as it can be read: unknown fields, missing ones and ones of another type are faults, what
/// the fields say is not looked at.
pub(super) fn read(value: &Value, faults: &mut Faults<'_>) -> Document {
    let mut document = Document::new("", "global", "");
    let Some(fields) = Fields::open(value, "", &["apiVersion", "kind", "metadata", "targetRef", "spec"], faults) else {
        return document;
    };
    fields.require("apiVersion", "write `apiVersion: marram.dev/v1`", faults);
    document.api_version = owned(fields.text("apiVersion", faults));
    fields.require("kind", "write what the document is, as `kind: HTTPRoute`", faults);
    document.kind = owned(fields.text("kind", faults));
    if let Some(value) = fields.require("metadata", "write `metadata: { name: NAME, scope: global }`", faults) {
        metadata(value, &fields.at("metadata"), &mut document.metadata, faults);
    }
    if let Some(value) = fields.get("targetRef") {
        document.target_ref = target_ref(value, &fields.at("targetRef"), faults);
    }
    match fields.get("spec") {
        Some(spec) if Fields::open_any(spec, &fields.at("spec"), faults).is_some() => document.spec = spec.clone(),
        Some(_) => {}
        None => faults.hint("spec", "is missing", "write what the document says; `spec: {}` where it says nothing"),
    }
    document
}

fn metadata(value: &Value, path: &str, metadata: &mut Metadata, faults: &mut Faults<'_>) {
    let Some(fields) = Fields::open(value, path, &["name", "scope", "labels", "description"], faults) else { return };
    fields.require("name", "give the document a name, unique within its kind and scope", faults);
    metadata.name = owned(fields.text("name", faults));
    if fields.get("scope").is_some() {
        metadata.scope = owned(fields.text("scope", faults));
    }
    metadata.description = fields.text("description", faults).map(str::to_owned);
    let labels = fields.get("labels").and_then(|value| Fields::open_any(value, &fields.at("labels"), faults));
    let Some(labels) = labels else { return };
    for (key, value) in labels.iter() {
        if let Some(value) = text(value, &labels.at(key), faults) {
            metadata.labels.insert(key.clone(), value.to_owned());
        }
    }
}

fn target_ref(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<TargetRef> {
    let fields = Fields::open(value, path, &["kind", "name"], faults)?;
    fields.require("kind", "write `kind: Service`", faults);
    fields.require("name", "name what the document is about", faults);
    Some(TargetRef { kind: owned(fields.text("kind", faults)), name: owned(fields.text("name", faults)) })
}

fn owned(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}
