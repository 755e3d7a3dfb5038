//! What holds for one service at one place, field by field, with the document each comes from and what it overrides.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    compile::backend_layers,
    document::{DocId, Document, fields::item},
    in_force::{Layer, Sorted, Standing},
    overlay::{merged, overlay},
    reading::{Reading, Says},
    routes::{self, Contest},
    scope::Place,
    strictest,
};

/// Everything that policy says of one service at one place. What no document sets is not listed: it is at its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effective {
    /// The service asked about.
    pub service: String,
    /// Where.
    pub place: Place,
    /// The kinds that say something, always in the same order.
    pub kinds: Vec<EffectiveKind>,
}

/// What the documents of one kind come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EffectiveKind {
    /// The kind.
    pub kind: String,
    /// What holds. For `BackendTrafficPolicy`, `PeerAuthentication` and `Residency` in the form of a document's spec.
    /// For `HTTPRoute` `routes`, one for each host and path that leads to the service. For `AuthorizationPolicy` the
    /// rules that `deny`, the rules that `allow` by scope (each scope must allow), and the documents that could not be
    /// read and so keep the service `closed`.
    pub spec: Value,
    /// Where each part of it comes from, in order of the paths.
    pub fields: Vec<FieldSource>,
}

/// One field with its origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldSource {
    /// Path in [`EffectiveKind::spec`], as `spec.loadBalancer.algorithm`.
    pub path: String,
    /// The value in force; `null` where a locked subtree leaves the field at its default.
    pub value: Value,
    /// The document it comes from.
    pub document: DocId,
    /// The document that locks it.
    pub locked_by: Option<DocId>,
    /// What other documents say and why it does not count.
    pub overridden: Vec<Overridden>,
}

/// A value that does not count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overridden {
    /// The document that says it.
    pub document: DocId,
    /// What it says.
    pub value: Value,
    /// Why it does not count, for people: `narrower scope wins`, `locked by global/…`.
    pub why: String,
}

/// What `documents` say of `service` at `here` and `now_ms`, milliseconds since 1970. The order of `documents` does not
/// matter; several of one id are concurrent edits of it.
#[must_use]
pub fn effective(documents: &[Document], service: &str, here: &Place, now_ms: u64) -> Effective {
    let readings: Vec<Reading> = documents.iter().map(Reading::with_spec).collect();
    let sorted = Sorted::new(&readings, now_ms);
    let applying = sorted.at(here);
    let covering: Vec<Layer<'_>> = sorted.all_at(here).filter(|layer| layer.standing != Standing::Expired).collect();
    let of = |kind: &str| -> Vec<Layer<'_>> {
        covering.iter().copied().filter(|layer| layer.reading.id.kind == kind && is_about(layer, service)).collect()
    };
    let kinds = [
        http_routes(&applying, service),
        backend_traffic(&applying, service),
        authorization(&of("AuthorizationPolicy")),
        peer_authentication(&of("PeerAuthentication")),
        residency(&of("Residency")),
    ];
    let kinds = kinds.into_iter().flatten().filter(|kind| !kind.fields.is_empty()).collect();
    Effective { service: service.to_owned(), place: here.clone(), kinds }
}

fn is_about(layer: &Layer<'_>, service: &str) -> bool {
    layer.reading.target.as_ref().is_some_and(|target| match target.kind.as_str() {
        "Service" => target.name == service,
        "Mesh" => layer.reading.id.kind == "PeerAuthentication",
        _ => false,
    })
}

fn backend_traffic(applying: &[Layer<'_>], service: &str) -> Option<EffectiveKind> {
    let layers = backend_layers(applying, service);
    let fields = overlay(&layers);
    let spec = merged(&fields);
    let mut sources: Vec<FieldSource> = Vec::new();
    for field in &fields {
        let overridden = field.overridden.iter().map(|(reading, value, why)| Overridden {
            document: reading.id.clone(),
            value: (*value).clone(),
            why: why.to_string(),
        });
        sources.push(FieldSource {
            path: format!("spec.{}", field.path),
            value: field.value.cloned().unwrap_or_default(),
            document: field.reading.id.clone(),
            locked_by: field.locked_by.map(|reading| reading.id.clone()),
            overridden: overridden.collect(),
        });
    }
    Some(EffectiveKind { kind: "BackendTrafficPolicy".to_owned(), spec, fields: sources })
}

fn http_routes(applying: &[Layer<'_>], service: &str) -> Option<EffectiveKind> {
    let entries = routes::entries(applying);
    let mut values = Vec::new();
    let mut fields = Vec::new();
    for Contest { winner, locked_by, overridden } in routes::contests(&entries) {
        if winner.rule.share_of(service) <= 0.0 {
            continue;
        }
        let value = route_value(winner);
        fields.push(FieldSource {
            path: item("spec.routes", values.len()),
            value: value.clone(),
            document: winner.layer.reading.id.clone(),
            locked_by: locked_by.map(|reading| reading.id.clone()),
            overridden: (overridden.iter())
                .map(|(entry, why)| Overridden {
                    document: entry.layer.reading.id.clone(),
                    value: route_value(entry),
                    why: why.to_string(),
                })
                .collect(),
        });
        values.push(value);
    }
    Some(EffectiveKind { kind: "HTTPRoute".to_owned(), spec: json!({ "routes": values }), fields })
}

/// A host and the requests of one match, with what its document says of them.
fn route_value(entry: &routes::Entry<'_>) -> Value {
    let mut value = Map::new();
    value.insert("host".to_owned(), json!(entry.host.to_string()));
    value.extend(entry.matched.to_json());
    let rule = entry.layer.reading.spec.get("rules").and_then(|rules| rules.get(entry.index));
    for (name, part) in rule.and_then(Value::as_object).into_iter().flatten() {
        if name != "matches" {
            value.insert(name.clone(), part.clone());
        }
    }
    Value::Object(value)
}

fn authorization(layers: &[Layer<'_>]) -> Option<EffectiveKind> {
    let mut spec = Map::new();
    let mut fields = Vec::new();
    for layer in layers {
        let id = layer.reading.id.clone();
        if layer.standing == Standing::Faulty {
            add(&mut spec, "closed", None, json!(id.to_string()), &id, &mut fields);
            continue;
        }
        let Says::Authorization { denies, .. } = &layer.reading.says else { continue };
        let rules = layer.reading.spec.get("rules").and_then(Value::as_array).into_iter().flatten();
        let mut rules = rules.cloned().peekable();
        match denies {
            true => {
                rules.for_each(|rule| add(&mut spec, "deny", None, rule, &id, &mut fields));
            }
            false if rules.peek().is_none() => {
                let path = format!("spec.allow[\"{}\"]", id.scope);
                let allow = spec.entry("allow").or_insert_with(|| json!({}));
                if let Some(scopes) = allow.as_object_mut() {
                    scopes.entry(id.scope.clone()).or_insert_with(|| json!([]));
                }
                fields.push(FieldSource { path, value: json!([]), document: id, locked_by: None, overridden: vec![] });
            }
            false => {
                rules.for_each(|rule| add(&mut spec, "allow", Some(&id.scope), rule, &id, &mut fields));
            }
        }
    }
    Some(EffectiveKind { kind: "AuthorizationPolicy".to_owned(), spec: Value::Object(spec), fields })
}

/// Appends `value` to the list `name` of `spec`, or to the list of `scope` in the object `name`.
fn add(
    spec: &mut Map<String, Value>,
    name: &str,
    scope: Option<&str>,
    value: Value,
    document: &DocId,
    fields: &mut Vec<FieldSource>,
) {
    let (list, path) = match scope {
        None => (spec.entry(name).or_insert_with(|| json!([])), format!("spec.{name}")),
        Some(scope) => {
            let scopes = spec.entry(name).or_insert_with(|| json!({}));
            let Some(scopes) = scopes.as_object_mut() else { return };
            (scopes.entry(scope).or_insert_with(|| json!([])), format!("spec.{name}[\"{scope}\"]"))
        }
    };
    let Some(list) = list.as_array_mut() else { return };
    let path = item(&path, list.len());
    list.push(value.clone());
    fields.push(FieldSource { path, value, document: document.clone(), locked_by: None, overridden: Vec::new() });
}

fn peer_authentication(layers: &[Layer<'_>]) -> Option<EffectiveKind> {
    let modes: Vec<_> = layers.iter().filter_map(|layer| Some((layer, strictest::mode(layer)?))).collect();
    let strictest = modes.iter().map(|(_, mode)| *mode).max()?;
    let (chosen, _) = modes.iter().find(|(_, mode)| *mode == strictest)?;
    let others = modes.iter().filter(|(layer, _)| !layer.is(chosen));
    let field = FieldSource {
        path: "spec.mtls.mode".to_owned(),
        value: json!(strictest),
        document: chosen.reading.id.clone(),
        locked_by: None,
        overridden: (others.filter(|(_, mode)| *mode < strictest))
            .map(|(layer, mode)| Overridden {
                document: layer.reading.id.clone(),
                value: json!(mode),
                why: "the strictest mode wins".to_owned(),
            })
            .collect(),
    };
    let spec = json!({ "mtls": { "mode": strictest } });
    Some(EffectiveKind { kind: "PeerAuthentication".to_owned(), spec, fields: vec![field] })
}

fn residency(layers: &[Layer<'_>]) -> Option<EffectiveKind> {
    let allowed: Vec<_> = layers.iter().filter_map(|layer| Some((layer, strictest::regions(layer)?))).collect();
    let mut common = allowed.first()?.1.clone();
    for (_, regions) in &allowed {
        common.retain(|region| regions.contains(region));
    }
    // The first that says just this, or, where only several together do, the narrowest.
    let (chosen, _) = allowed.iter().find(|(_, regions)| *regions == common).or_else(|| allowed.first())?;
    let others = allowed.iter().filter(|(layer, regions)| !layer.is(chosen) && *regions != common);
    let field = FieldSource {
        path: "spec.allowRegions".to_owned(),
        value: json!(common),
        document: chosen.reading.id.clone(),
        locked_by: None,
        overridden: others
            .map(|(layer, regions)| Overridden {
                document: layer.reading.id.clone(),
                value: json!(regions),
                why: "only regions that every document allows remain".to_owned(),
            })
            .collect(),
    };
    let spec = json!({ "allowRegions": common });
    Some(EffectiveKind { kind: "Residency".to_owned(), spec, fields: vec![field] })
}

#[cfg(test)]
mod tests;
