//! A document read once for compilation: what it says, in the form in which it is put together with others.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use crate::{
    authorization::NamedRule,
    document::{
        DocId, Document, PeerMode, STRICTEST_KINDS, TargetRef,
        authorization::{self, Action},
        http_route, peer_authentication, residency,
        route_match::RouteMatch,
    },
    host::HostPattern,
    problem::{Problem, valid},
    routes,
    scope::Scope,
    table::Rule,
    validate::validate,
};

/// A document as compilation needs it: validated, its spec read, and without its text where that is not needed any more.
#[derive(Debug, Clone)]
pub struct Reading {
    pub(crate) id: DocId,
    /// `None` for a scope that this version cannot read; then the document is for nowhere.
    pub(crate) scope: Option<Scope>,
    pub(crate) expires_at_ms: Option<u64>,
    /// Why it does not validate.
    pub(crate) problems: Option<Vec<Problem>>,
    pub(crate) locked: Vec<String>,
    pub(crate) target: Option<TargetRef>,
    pub(crate) says: Says,
    /// As it was written; only of kinds that are laid over each other field by field, and where it was asked for.
    pub(crate) spec: Value,
    /// The document as bytes, where it orders concurrent edits.
    content: Vec<u8>,
}

/// What the spec of a document says, of what kind it is.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// `HTTPRoute`.
    Route(Route),
    /// `AuthorizationPolicy`; without a valid action it counts as one that denies.
    Authorization { denies: bool, rules: Vec<NamedRule> },
    /// `PeerAuthentication`.
    PeerMode(Option<PeerMode>),
    /// `Residency`.
    Regions(BTreeSet<String>),
    /// Kinds that are laid over each other, and those that this version does not know.
    Fields,
}

/// The hosts of a route, and its rules, each with the requests it is for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Route {
    pub(crate) hostnames: Vec<HostPattern>,
    pub(crate) rules: Vec<(Vec<RouteMatch>, Arc<Rule>)>,
}

impl Reading {
    /// Reads `document`, whether or not it validates, and lets go of what compilation does not need.
    #[must_use]
    pub fn new(document: &Document) -> Self {
        let mut reading = Self::with_spec(document);
        if document.kind != OVERLAID {
            reading.spec = Value::Null;
        }
        reading
    }

    /// Reads `document` and keeps its spec.
    pub(crate) fn with_spec(document: &Document) -> Self {
        let is_strictest = STRICTEST_KINDS.contains(&document.kind.as_str());
        Self {
            id: document.id(),
            scope: document.metadata.scope.parse().ok(),
            expires_at_ms: document.metadata.expires_at_ms(),
            problems: validate(document).err(),
            locked: document.metadata.locked.clone(),
            target: document.target_ref.clone(),
            says: Says::read(document),
            spec: document.spec.clone(),
            content: if is_strictest { content(document) } else { Vec::new() },
        }
    }

    /// Which document this is.
    #[must_use]
    pub const fn id(&self) -> &DocId {
        &self.id
    }

    /// Whether its time is over at `now_ms`, milliseconds since 1970.
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }

    /// Orders concurrent edits of one document alike on every node: by what they say.
    pub(crate) fn by_content(&self, other: &Self) -> std::cmp::Ordering {
        self.content.cmp(&other.content)
    }

    /// Lets go of what orders concurrent edits: there is only one.
    pub(crate) fn alone(&mut self) {
        self.content = Vec::new();
    }

    pub(crate) const fn route(&self) -> Option<&Route> {
        match &self.says {
            Says::Route(route) => Some(route),
            Says::Authorization { .. } | Says::PeerMode(_) | Says::Regions(_) | Says::Fields => None,
        }
    }
}

impl Says {
    fn read(document: &Document) -> Self {
        let spec = &document.spec;
        match document.kind.as_str() {
            "HTTPRoute" => {
                let read = valid(|faults| http_route::read(spec, faults));
                let id = document.id();
                let rules = read.rules.into_iter().enumerate();
                let rules = rules.map(|(index, rule)| {
                    let compiled = Arc::new(routes::rule(&id, index, &rule));
                    (rule.matches, compiled)
                });
                Self::Route(Route { hostnames: read.hostnames, rules: rules.collect() })
            }
            "AuthorizationPolicy" => {
                let read = valid(|faults| authorization::read(spec, faults));
                let rules = read.rules.into_iter().enumerate();
                let rules = rules.map(|(index, rule)| NamedRule::new(document, index, rule)).collect();
                Self::Authorization { denies: read.action != Some(Action::Allow), rules }
            }
            "PeerAuthentication" => Self::PeerMode(valid(|faults| peer_authentication::read(spec, faults))),
            "Residency" => Self::Regions(valid(|faults| residency::read(spec, faults))),
            _ => Self::Fields,
        }
    }
}

/// The sections of a document one after the other, each with its length, so that equal bytes are equal documents.
fn content(document: &Document) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, section) in document.to_sections() {
        for part in [name.as_bytes(), &section] {
            bytes.extend_from_slice(&part.len().to_be_bytes());
            bytes.extend_from_slice(part);
        }
    }
    bytes
}

/// The one kind whose documents are laid over each other field by field.
const OVERLAID: &str = "BackendTrafficPolicy";
