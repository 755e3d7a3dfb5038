//! What writes would do, and what is in force where: answered from the store, the catalog and the traffic of late.

use policy::{DocId, Document, Problem};
use serde_json::Value;

use crate::api::ApiError;
use crate::control::Control;
use crate::view::{
    DocumentDiff, EffectiveKindView, EffectiveView, FieldChangeView, FieldSourceView, ImpactView, OverriddenView,
    PlanView, TouchedView,
};

/// What writing `documents` would change in each of them.
///
/// # Errors
/// [`ApiError::Unavailable`] when the node is stopping.
pub async fn diff(control: &Control, documents: Vec<Document>) -> Result<Vec<DocumentDiff>, ApiError> {
    let mut diffs = Vec::with_capacity(documents.len());
    for document in documents {
        let before = match control.store.get(document.id(), None).await {
            Ok(view) => view.document,
            Err(ApiError::NotFound(_)) => Value::Null,
            Err(fault) => return Err(fault),
        };
        let after = settled(&document);
        let changes = changes(&before, &after);
        let change = match (before.is_null(), changes.is_empty()) {
            (true, _) => "created",
            (false, true) => "unchanged",
            (false, false) => "changed",
        };
        let DocId { scope, kind, name } = document.id();
        diffs.push(DocumentDiff { scope, kind, name, change: change.to_owned(), changes });
    }
    Ok(diffs)
}

/// What writing `documents` would do.
///
/// # Errors
/// [`ApiError::Invalid`] for fields that a wider document keeps to itself, and [`ApiError::Unavailable`].
pub async fn plan(control: &Control, documents: Vec<Document>) -> Result<PlanView, ApiError> {
    control.store.check(documents.clone()).await?;
    let before = control.store.documents().await?;
    let is_written = |known: &&Document| documents.iter().any(|document| document.id() == known.id());
    let after: Vec<Document> = before.iter().filter(|known| !is_written(known)).chain(&documents).cloned().collect();
    let (places, traffic) = {
        let snapshot = control.published.load();
        let state = control.state();
        (state.places(), state.traffic(&snapshot))
    };
    let impact = policy::impact(&before, &after, &places, &traffic, control.unix_ms());
    let notes = documents.iter().flat_map(|document| notes(document, documents.len())).collect();
    let touched = impact.services.into_iter().map(|touched| TouchedView {
        service: touched.service,
        nodes: touched.nodes,
        what: touched.what,
        traffic_share: touched.traffic_share,
    });
    let impact = ImpactView { services: touched.collect(), traffic_share_total: impact.traffic_share_total };
    let documents = diff(control, documents).await?;
    Ok(PlanView { valid: true, documents, notes, impact, would_conflict: Vec::new() })
}

/// What is in force for a service at a node, and which document each field comes from.
///
/// # Errors
/// [`ApiError::NotFound`] for a node that is not known, and [`ApiError::Unavailable`].
pub async fn effective(control: &Control, service: String, node: Option<String>) -> Result<EffectiveView, ApiError> {
    let place = {
        let state = control.state();
        let name = node.unwrap_or_else(|| state.here.name.clone());
        let known = || {
            let mut names: Vec<String> = state.catalog.nodes().map(|known| known.facts.name.clone()).collect();
            names.sort();
            names.join(", ")
        };
        state.place_of(&name).ok_or_else(|| {
            ApiError::NotFound(format!("no node `{}` is known here; known: {}", name.escape_debug(), known()))
        })?
    };
    let documents = control.store.documents().await?;
    let effective = policy::effective(&documents, &service, &place, control.unix_ms());
    let kinds = effective.kinds.into_iter().map(|kind| EffectiveKindView {
        kind: kind.kind,
        spec: kind.spec,
        fields: kind.fields.into_iter().map(source).collect(),
    });
    Ok(EffectiveView {
        service: effective.service,
        node: place.node_name,
        region: place.region,
        zone: place.zone,
        kinds: kinds.collect(),
    })
}

/// Field by field what differs between two versions of a document; `null` stands for none.
#[must_use]
pub fn changes(before: &Value, after: &Value) -> Vec<FieldChangeView> {
    let changes = policy::diff(before, after).into_iter();
    changes.map(|change| FieldChangeView { path: change.path, before: change.before, after: change.after }).collect()
}

/// The document as it would be read back: numbers in their one form.
fn settled(document: &Document) -> Value {
    let (kind, scope, name) = (&document.kind, &document.metadata.scope, &document.metadata.name);
    Document::read_sections(kind, scope, name, &document.to_sections()).0.to_json()
}

fn notes(document: &Document, of: usize) -> Vec<Problem> {
    let name = |problem: Problem| match of {
        1 => problem,
        _ => Problem { message: format!("{}: {}", document.id(), problem.message), ..problem },
    };
    policy::notes(document).into_iter().map(name).collect()
}

fn source(field: policy::FieldSource) -> FieldSourceView {
    let overridden = field.overridden.into_iter().map(|over| OverriddenView {
        document: over.document.to_string(),
        value: over.value,
        why: over.why,
    });
    FieldSourceView {
        path: field.path,
        value: field.value,
        document: field.document.to_string(),
        locked_by: field.locked_by.map(|id| id.to_string()),
        overridden: overridden.collect(),
    }
}
