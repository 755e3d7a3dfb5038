//! Whether a document makes sense, with every fault at once.

use serde_json::Value;

use crate::{
    document::{
        API_VERSION, DEPTH_MAX, Document, KNOWN_KINDS, Metadata, STRICTEST_KINDS, TargetRef, authorization,
        backend_traffic, fields, fields::shown, http_route, is_told, limits, peer_authentication, residency,
    },
    lock,
    name::{bend, is_label, is_name},
    problem::{Faults, Problem, nearest_name},
    scope::{Scope, ScopeError},
};

/// Checks a document: its envelope, and for the kinds this version knows its spec. Documents of other kinds pass as far
/// as their envelope is in order, so that newer nodes' documents travel through older ones.
///
/// # Errors
/// Every fault at once: what of its stored sections could not be read, then the rest in the order of the document.
pub fn validate(document: &Document) -> Result<(), Vec<Problem>> {
    let mut faults = Faults::new(&document.lines);
    envelope(document, &mut faults);
    match document.kind.as_str() {
        "BackendTrafficPolicy" => {
            target(document, &["Service"], &mut faults);
            backend_traffic::read(&document.spec, &mut faults);
            limits::all_nodes(&document.spec, &document.metadata.scope, &mut faults);
        }
        "AuthorizationPolicy" => {
            target(document, &["Service"], &mut faults);
            authorization::read(&document.spec, &mut faults);
        }
        "PeerAuthentication" => {
            target(document, &["Service", "Mesh"], &mut faults);
            peer_authentication::read(&document.spec, &mut faults);
        }
        "Residency" => {
            target(document, &["Service"], &mut faults);
            residency::read(&document.spec, &mut faults);
        }
        "HTTPRoute" => {
            if document.target_ref.is_some() {
                let hint = "leave it out: `hostnames` and `backendRefs` say what a route is about";
                faults.hint("targetRef", "an HTTPRoute has none", hint);
            }
            http_route::read(&document.spec, &mut faults);
        }
        _ => any_spec(document, &mut faults),
    }
    size(document, &mut faults);
    let mut problems = document.unread.clone();
    problems.extend(faults.into_problems().into_iter().filter(|problem| !is_told(problem, &document.unread)));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// What the author of a valid document should know although nothing is wrong with it: that this version does not
/// enforce its kind, which kind may have been meant, and that a lock on it has no effect.
#[must_use]
pub fn notes(document: &Document) -> Vec<Problem> {
    let kind = document.kind.as_str();
    if STRICTEST_KINDS.contains(&kind) {
        let mut notes = Vec::new();
        if kind != "Residency" {
            let message = format!("`{kind}` is checked and composed, but not yet enforced on requests by this version");
            notes.push(Problem::new("kind", message, None));
        }
        if !document.metadata.locked.is_empty() {
            let message = "has no effect: a narrower document of this kind can only permit less, never more";
            notes.push(Problem::new("metadata.locked", message, Some("leave it out".to_owned())));
        }
        return notes;
    }
    if KNOWN_KINDS.contains(&kind) {
        return Vec::new();
    }
    let hint = match nearest_name(kind, &KNOWN_KINDS) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("this version knows {}", KNOWN_KINDS.join(", ")),
    };
    let message = format!("`{}` is stored and passed on, but not enforced by this version", shown(kind));
    vec![Problem::new("kind", message, Some(hint))]
}

fn envelope(document: &Document, faults: &mut Faults<'_>) {
    if document.api_version != API_VERSION {
        let message = format_args!("`{}` is not a version this node reads", shown(&document.api_version));
        faults.hint("apiVersion", message, format!("write `apiVersion: {API_VERSION}`"));
    }
    kind(&document.kind, faults);
    let metadata = &document.metadata;
    if !is_name(&metadata.name) {
        let hint = bend(&metadata.name, true).map(|name| format!("write `{name}`"));
        let hint = hint.or_else(|| Some("up to 253 of a-z, 0-9 and -, in labels joined by dots".to_owned()));
        faults.push("metadata.name", format_args!("`{}` is not made of DNS labels", shown(&metadata.name)), hint);
    }
    scope(&metadata.scope, faults);
    if let Some(description) = &metadata.description
        && description.len() > DESCRIPTION_BYTES_MAX
    {
        let message = format_args!("has {} bytes, more than {DESCRIPTION_BYTES_MAX}", description.len());
        faults.add("metadata.description", message);
    }
    if metadata.labels.len() > LABELS_MAX {
        faults.add("metadata.labels", format_args!("has {} labels, more than {LABELS_MAX}", metadata.labels.len()));
    }
    for (key, value) in &metadata.labels {
        let path = fields::join("metadata.labels", key);
        if !is_label_text(key) || key.is_empty() {
            faults.hint(&path, "is not a label's name", LABEL_HINT);
        }
        if !is_label_text(value) {
            faults.hint(&path, format_args!("`{}` is not a label's value", shown(value)), LABEL_HINT);
        }
    }
    locked(metadata, &document.spec, faults);
    if let Some(expires_at) = &metadata.expires_at
        && metadata.expires_at_ms().is_none()
    {
        let message = format_args!("`{}` is not a point in time after 1970 with its offset", shown(expires_at));
        faults.hint("metadata.expiresAt", message, "write it as `2026-12-01T18:00:00Z`");
    }
}

/// A lock names what the document itself settles: one on anything else is a slip.
fn locked(metadata: &Metadata, spec: &Value, faults: &mut Faults<'_>) {
    for (index, path) in metadata.locked.iter().enumerate() {
        let field = fields::item("metadata.locked", index);
        if metadata.locked.iter().take(index).any(|earlier| earlier == path) {
            faults.hint(&field, format_args!("`{}` stands here twice", shown(path)), "keep one of them");
        } else if let Some((fault, hint)) = lock::fault(spec, path) {
            faults.push(&field, format_args!("`{}` {fault}", shown(path)), hint);
        }
    }
}

fn kind(kind: &str, faults: &mut Faults<'_>) {
    let letters = kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if kind.len() > KIND_BYTES_MAX || !letters || !kind.starts_with(|first: char| first.is_ascii_uppercase()) {
        let hint = match nearest_name(kind, &KNOWN_KINDS) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "a kind is up to 63 letters and digits and begins with a capital".to_owned(),
        };
        faults.hint("kind", format_args!("`{}` is not a kind", shown(kind)), hint);
        return;
    }
    // No later kind will differ from one of ours in case alone, so this is a slip that must not pass as unknown.
    if let Some(name) = KNOWN_KINDS.iter().find(|name| **name != kind && name.eq_ignore_ascii_case(kind)) {
        faults.hint("kind", format_args!("`{kind}` is not a kind"), format!("did you mean `{name}`?"));
    }
}

fn scope(scope: &str, faults: &mut Faults<'_>) {
    let Err(error) = scope.parse::<Scope>() else { return };
    let (word, rest) = scope.split_once(':').unwrap_or((scope, ""));
    let hint = match error {
        ScopeError::Zone => format!("write `zone:REGION.{}`", shown(rest)),
        ScopeError::Label => "names in a scope are DNS labels: a-z, 0-9 and -".to_owned(),
        ScopeError::Form => match nearest_name(word, &["global", "region", "zone", "node"]) {
            Some("global") => "did you mean `global`?".to_owned(),
            Some("zone") => "did you mean `zone:REGION.ZONE`?".to_owned(),
            Some(name) => format!("did you mean `{name}:NAME`?"),
            None => "write `global`, `region:REGION`, `zone:REGION.ZONE` or `node:NODE`".to_owned(),
        },
    };
    faults.hint("metadata.scope", format_args!("`{}` {error}", shown(scope)), hint);
}

/// `kinds` are what documents of this kind can be about, the usual one first.
fn target(document: &Document, kinds: &[&str], faults: &mut Faults<'_>) {
    let hint = "write `targetRef: { kind: Service, name: SERVICE }`";
    let Some(TargetRef { kind, name }) = &document.target_ref else {
        faults.hint("targetRef", "is missing", hint);
        return;
    };
    if !kinds.contains(&kind.as_str()) {
        let hint = match nearest_name(kind, kinds) {
            Some(near) => format!("did you mean `{near}`?"),
            None => hint.to_owned(),
        };
        faults.hint("targetRef.kind", format_args!("`{}` is not what this kind is about", shown(kind)), hint);
    }
    if !is_label(name) {
        let hint = bend(name, false).map(|name| format!("write `{name}`"));
        faults.push("targetRef.name", format_args!("`{}` is not a DNS label", shown(name)), hint);
    }
}

fn any_spec(document: &Document, faults: &mut Faults<'_>) {
    let Some(spec) = fields::Fields::open_any(&document.spec, "spec", faults) else { return };
    for (key, _) in spec.iter() {
        if key.is_empty() || key.len() > SPEC_FIELD_BYTES_MAX || key.chars().any(char::is_control) {
            faults.add(&spec.at(key), "is not a name for a field: 1 to 128 bytes without control characters");
        }
    }
}

/// The replicated store's limits, told here where the author still reads.
fn size(document: &Document, faults: &mut Faults<'_>) {
    if depth(&document.spec) >= DEPTH_MAX {
        let message = format_args!("the document is more than {DEPTH_MAX} objects and lists deep");
        faults.hint("spec", message, "say it with fewer levels");
    }
    let sections = document.to_sections();
    if sections.len() > SECTIONS_MAX {
        faults.add("spec", format_args!("the document has {} sections, more than {SECTIONS_MAX}", sections.len()));
    }
    let bytes: usize = sections.iter().map(|(section, bytes)| section.len() + bytes.len()).sum();
    if bytes > BODY_BYTES_MAX {
        let message = format_args!("the document has {bytes} bytes, more than {BODY_BYTES_MAX}");
        faults.hint("spec", message, "split it into several documents");
    }
}

/// Objects and lists within each other; none for a single value.
fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(map) => map.values().map(depth).max(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
    };
    inner.unwrap_or(0) + 1
}

/// Letters, digits and `-_./` in between: what Kubernetes takes as well.
fn is_label_text(text: &str) -> bool {
    let edge = |letter: char| letter.is_ascii_alphanumeric();
    let inner = |letter: char| edge(letter) || matches!(letter, '-' | '_' | '.' | '/');
    text.len() <= LABEL_BYTES_MAX
        && text.chars().all(inner)
        && (text.is_empty() || (text.starts_with(edge) && text.ends_with(edge)))
}

const LABEL_HINT: &str = "up to 63 letters and digits, with - _ . / in between";
const LABEL_BYTES_MAX: usize = 63;
const LABELS_MAX: usize = 64;
const DESCRIPTION_BYTES_MAX: usize = 1024;
const KIND_BYTES_MAX: usize = 63;
const SPEC_FIELD_BYTES_MAX: usize = 128;
const SECTIONS_MAX: usize = 32;
const BODY_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests;
