//! Locks: fields that a wider document keeps narrower ones from setting.
//!
//! A lock is a path below the spec and covers everything under it. On a `BackendTrafficPolicy` it holds field by field;
//! on an `HTTPRoute`, whose fields are lists, `hostnames` keeps the hosts and `rules` the requests that its rules match.
//! On kinds that compose to the strictest a lock has no effect: they need none.

use serde_json::Value;

use crate::{
    document::{
        DocId, Document, SourceLines,
        fields::{item, shown},
        route_match::RouteMatch,
    },
    host::HostPattern,
    overlay::{leaves, slot},
    problem::{Faults, Problem, nearest_name},
    reading::{Reading, Route},
    scope::Scope,
};

/// What `document` sets although one of `others`, each wider than it, locks it: a problem for each such field. What is
/// set there is ignored, so a local write is to be refused; where it came by merge it is to be told.
///
/// `others` are the documents in force. That a region or a zone is wider than a node is only known where the node is:
/// for a document of the scope `node:N` only global locks count here, and [`crate::Compiled::locked_out`] on that node
/// lists the rest.
#[must_use]
pub fn locked_conflicts(document: &Document, others: &[Document]) -> Vec<Problem> {
    let Ok(scope) = document.metadata.scope.parse::<Scope>() else { return Vec::new() };
    let mut wider: Vec<(u8, DocId, &Document)> = Vec::new();
    for other in others {
        let Ok(other_scope) = other.metadata.scope.parse::<Scope>() else { continue };
        if other_scope.contains(&scope) && other_scope.breadth() > scope.breadth() {
            wider.push((other_scope.breadth(), other.id(), other));
        }
    }
    wider.sort_by(|(left_breadth, left, _), (right_breadth, right, _)| {
        (right_breadth, left).cmp(&(left_breadth, right))
    });
    let narrow = Reading::with_spec(document);
    let narrow = Subject { lines: Some(&document.lines), ..Subject::new(&narrow) };
    let mut problems = Vec::new();
    for (_, _, other) in wider {
        let wide = Reading::with_spec(other);
        narrow.conflicts(&Subject::new(&wide), &mut problems);
    }
    problems
}

/// A document that may lock or be locked out.
#[derive(Debug)]
pub(crate) struct Subject<'d> {
    reading: &'d Reading,
    /// Where its fields stand, where it comes as text.
    lines: Option<&'d SourceLines>,
}

impl<'d> Subject<'d> {
    pub(crate) const fn new(reading: &'d Reading) -> Self {
        Self { reading, lines: None }
    }

    /// Adds to `problems` what this one sets although `wide` locks it, each field once.
    pub(crate) fn conflicts(&self, wide: &Self, problems: &mut Vec<Problem>) {
        let (narrow, locker) = (self.reading, wide.reading);
        if narrow.id.kind != locker.id.kind || locker.locked.is_empty() {
            return;
        }
        let fields = match narrow.id.kind.as_str() {
            "BackendTrafficPolicy" if narrow.target == locker.target => {
                let paths = leaves(&narrow.spec).into_iter().map(|(path, _)| path);
                paths.filter(|path| locks(locker, path)).map(|path| format!("spec.{path}")).collect()
            }
            "HTTPRoute" => match (narrow.route(), locker.route()) {
                (Some(inner), Some(outer)) => route_conflicts(inner, outer, locker),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        let nowhere = SourceLines::default();
        let mut faults = Faults::new(self.lines.unwrap_or(&nowhere));
        for field in fields {
            if !problems.iter().any(|known| known.field == field) {
                let id = &locker.id;
                faults.hint(&field, format_args!("is locked by {id}"), format!("leave it out, or change it in {id}"));
            }
        }
        problems.extend(faults.into_problems());
    }
}

/// What of the route `inner` the route `outer`, which `locker` says, keeps for itself.
fn route_conflicts(inner: &Route, outer: &Route, locker: &Reading) -> Vec<String> {
    let is_kept = |host: &HostPattern| outer.hostnames.iter().any(|kept| kept.covers(host));
    let mut fields = Vec::new();
    if locks(locker, "hostnames") {
        let hosts = inner.hostnames.iter().enumerate().filter(|(_, host)| is_kept(host));
        fields.extend(hosts.map(|(index, _)| item("spec.hostnames", index)));
    } else if locks(locker, "rules") && inner.hostnames.iter().any(is_kept) {
        let kept = |one: &RouteMatch| outer.rules.iter().flat_map(|(all, _)| all).any(|kept| kept.covers(one));
        for (index, (all, _)) in inner.rules.iter().enumerate() {
            let path = format!("{}.matches", item("spec.rules", index));
            let matches = all.iter().enumerate().filter(|(_, one)| kept(one));
            fields.extend(matches.map(|(number, _)| item(&path, number)));
        }
    }
    fields
}

/// Whether a document locks the field at `path`.
pub(crate) fn locks(reading: &Reading, path: &str) -> bool {
    if reading.locked.is_empty() {
        return false;
    }
    let path = slot(path);
    reading.locked.iter().any(|lock| {
        let rest = path.strip_prefix(slot(lock));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// What is wrong with a lock on `path` in a document that says `spec`, with the way out.
pub(crate) fn fault(spec: &Value, path: &str) -> Option<(String, Option<String>)> {
    if let Some(below) = path.strip_prefix("spec.") {
        return Some(("does not lie below the spec".to_owned(), Some(format!("write `{}`", shown(below)))));
    }
    let mut value = spec;
    let mut walked = "spec".to_owned();
    for name in path.split('.') {
        let Value::Object(fields) = value else {
            let whole = walked.strip_prefix("spec.").unwrap_or(&walked);
            return Some((
                format!("goes on where `{walked}` has no fields"),
                Some(format!("lock `{whole}` as a whole")),
            ));
        };
        let Some(next) = fields.get(name) else {
            let known: Vec<&str> = fields.keys().map(String::as_str).collect();
            let hint = match (nearest_name(name, &known), name.contains('[')) {
                (_, true) => "lists are locked as a whole: leave out what is in brackets".to_owned(),
                (Some(near), false) => format!("did you mean `{near}`?"),
                (None, false) => "a document locks what it sets itself".to_owned(),
            };
            return Some((format!("names no field that stands in `{}`", shown(&walked)), Some(hint)));
        };
        walked = format!("{walked}.{}", shown(name));
        value = next;
    }
    None
}

#[cfg(test)]
mod tests;
