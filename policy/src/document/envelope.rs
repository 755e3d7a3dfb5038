//! The envelope: who a document is, where it applies, what it is about.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    fields::{Fields, item, text},
    lines::SourceLines,
    sections::Stored,
    time::unix_ms_of,
};
use crate::problem::{Faults, Problem};

/// The one version of documents this crate reads.
pub const API_VERSION: &str = "marram.dev/v1";

/// The kinds this version reads. Documents of other kinds are valid as far as their envelope is, carried and stored,
/// and have no effect here.
pub const KNOWN_KINDS: [&str; 5] =
    ["BackendTrafficPolicy", "HTTPRoute", "AuthorizationPolicy", "PeerAuthentication", "Residency"];

/// The kinds among [`KNOWN_KINDS`] that say what is permitted. Their documents compose to the strictest over every scope
/// that covers a place, concurrent edits of one document included: nothing that is added ever permits more.
pub const STRICTEST_KINDS: [&str; 3] = ["AuthorizationPolicy", "PeerAuthentication", "Residency"];

/// A policy document. Built by parsing text, from the sections of the store, or by [`Document::new`]; only
/// [`crate::validate`] says whether it is a good one.
///
/// Two documents are equal when what they say is, also what this version cannot read; the text they were read from does
/// not count.
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
    /// Sections as the store held them, where writing what was read would not give the same bytes.
    #[serde(skip)]
    pub(super) stored: BTreeMap<String, Stored>,
    /// What of its sections could not be read.
    #[serde(skip)]
    pub(crate) unread: Vec<Problem>,
}

/// The part of the envelope that identifies and describes a document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
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
    /// Fields of the spec that documents of narrower scopes do not override, each as a path below the spec
    /// (`loadBalancer.algorithm`) and with everything below it. Up to 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locked: Vec<String>,
    /// From when on the document is no longer in force, as the author wrote it: RFC 3339, `2026-12-01T18:00:00Z`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Fields that a newer version wrote; kept so that they travel on. Text with such fields is refused.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

impl Metadata {
    /// [`Metadata::expires_at`] in milliseconds since 1970; `None` where there is none or it is not a time.
    #[must_use]
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at.as_deref().and_then(unix_ms_of)
    }

    /// Whether the document is no longer in force at `now_ms`, milliseconds since 1970.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms().is_some_and(|at| at <= now_ms)
    }
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
            stored: BTreeMap::new(),
            unread: Vec::new(),
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
        let Self { api_version, kind, metadata, target_ref, spec, lines: _, stored, unread: _ } = self;
        *api_version == other.api_version
            && *kind == other.kind
            && *metadata == other.metadata
            && *target_ref == other.target_ref
            && *spec == other.spec
            && *stored == other.stored
    }
}

/// What tells one document from every other. Ordered and shown as `scope/kind/name`, which is also its path in the
/// admin API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// How a document that has fields this version does not know is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// As a fault: its author can mend a slip.
    Refused,
    /// As something a newer version knows about.
    Kept,
}

/// Reads an envelope as far as it can be read: unknown fields, missing ones and ones of another type are faults, what
/// the fields say is not looked at.
pub(super) fn read(value: &Value, unknown: Unknown, faults: &mut Faults<'_>) -> Document {
    let mut document = Document::new("", "global", "");
    let Some(fields) = Fields::open(value, "", &["apiVersion", "kind", "metadata", "targetRef", "spec"], faults) else {
        return document;
    };
    fields.require("apiVersion", "write `apiVersion: marram.dev/v1`", faults);
    document.api_version = owned(fields.text("apiVersion", faults));
    fields.require("kind", "write what the document is, as `kind: HTTPRoute`", faults);
    document.kind = owned(fields.text("kind", faults));
    if let Some(value) = fields.require("metadata", "write `metadata: { name: NAME, scope: global }`", faults) {
        metadata(value, &fields.at("metadata"), unknown, &mut document.metadata, faults);
    }
    if let Some(value) = fields.get("targetRef") {
        document.target_ref = target_ref(value, &fields.at("targetRef"), unknown, faults);
    }
    match fields.get("spec") {
        Some(spec) if Fields::open_any(spec, &fields.at("spec"), faults).is_some() => document.spec = spec.clone(),
        Some(_) => {}
        None => faults.hint("spec", "is missing", "write what the document says; `spec: {}` where it says nothing"),
    }
    document
}

fn metadata(value: &Value, path: &str, unknown: Unknown, metadata: &mut Metadata, faults: &mut Faults<'_>) {
    let Some(fields) = open(value, path, &METADATA, unknown, faults) else { return };
    fields.require("name", "give the document a name, unique within its kind and scope", faults);
    metadata.name = owned(fields.text("name", faults));
    if fields.get("scope").is_some() {
        metadata.scope = owned(fields.text("scope", faults));
    }
    metadata.description = fields.text("description", faults).map(str::to_owned);
    metadata.expires_at = fields.text("expiresAt", faults).map(str::to_owned);
    let locked = fields.list("locked", LOCKED_MOST, faults).unwrap_or_default().iter().enumerate();
    let locked = locked.filter_map(|(index, value)| text(value, &item(&fields.at("locked"), index), faults));
    metadata.locked = locked.map(str::to_owned).collect();
    let known = |key: &str| METADATA.contains(&key);
    let others = fields.iter().filter(|(key, _)| !known(key));
    metadata.unknown = others.map(|(key, value)| (key.clone(), value.clone())).collect();
    let labels = fields.get("labels").and_then(|value| Fields::open_any(value, &fields.at("labels"), faults));
    let Some(labels) = labels else { return };
    for (key, value) in labels.iter() {
        if let Some(value) = text(value, &labels.at(key), faults) {
            metadata.labels.insert(key.clone(), value.to_owned());
        }
    }
}

fn target_ref(value: &Value, path: &str, unknown: Unknown, faults: &mut Faults<'_>) -> Option<TargetRef> {
    let fields = open(value, path, &["kind", "name"], unknown, faults)?;
    fields.require("kind", "write `kind: Service`", faults);
    fields.require("name", "name what the document is about", faults);
    Some(TargetRef { kind: owned(fields.text("kind", faults)), name: owned(fields.text("name", faults)) })
}

fn open<'v>(
    value: &'v Value,
    path: &str,
    known: &[&str],
    unknown: Unknown,
    faults: &mut Faults<'_>,
) -> Option<Fields<'v>> {
    match unknown {
        Unknown::Refused => Fields::open(value, path, known, faults),
        Unknown::Kept => Fields::open_any(value, path, faults),
    }
}

fn owned(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

const METADATA: [&str; 6] = ["name", "scope", "labels", "description", "locked", "expiresAt"];
const LOCKED_MOST: usize = 64;
