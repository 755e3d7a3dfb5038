//! A node's admin API as the proofs use it: one blocking request at a time, and what each answer proves.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use ::tests::{Answer, Node, Request, send_within};
use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::ledger::{Shown, View, WriteId};

/// Kind of the proofs' documents: no node enforces it, so nothing but the store is at work.
pub(super) const KIND: &str = "Ledger";
/// The section that holds number and text of a write: what is written together conflicts as a whole.
const SECTION: &str = "spec.entry";
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The way to one node's admin API.
#[derive(Debug, Clone)]
pub(super) struct Desk {
    /// The node's number.
    pub(super) node: usize,
    /// Its name.
    pub(super) name: String,
    admin: SocketAddr,
    bearer: String,
}

/// On which condition a write is to be taken.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition<'a> {
    /// The document still has this ETag.
    Is(&'a str),
    /// The document does not exist.
    Absent,
}

/// What came of a request.
#[derive(Debug)]
pub(super) enum Reply {
    /// An answer, of whatever status.
    Answer(Answer),
    /// Nobody listens: nothing was sent.
    NotSent,
    /// The connection broke: the process is gone, and what it did before is open.
    Broken,
    /// No answer in time: whatever was asked may still happen.
    Late,
}

/// A document as a node shows it.
#[derive(Debug, Clone)]
pub(super) struct Read {
    /// Every side.
    pub(super) sides: BTreeSet<Shown>,
    /// Its ETag.
    pub(super) etag: String,
}

impl Desk {
    /// The way to `node`, which has the number `number`.
    pub(super) fn of(number: usize, node: &Node) -> Result<Self> {
        let path = node.dir.join("admin.token");
        let token = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let bearer = format!("Bearer {}", token.trim());
        Ok(Self { node: number, name: node.name.clone(), admin: node.admin, bearer })
    }

    /// Writes one document.
    pub(super) fn put(&self, name: &str, id: WriteId, text: &str, condition: Condition<'_>) -> Reply {
        self.write("PUT", &path(name), &document(name, id, text).to_string(), Some(condition))
    }

    /// Deletes one document.
    pub(super) fn delete(&self, name: &str, condition: Condition<'_>) -> Reply {
        self.write("DELETE", &path(name), "", Some(condition))
    }

    /// Writes several documents as one change.
    pub(super) fn apply(&self, documents: &[Value]) -> Reply {
        let texts: Vec<String> = documents.iter().map(Value::to_string).collect();
        self.write("POST", "/v1/apply", &texts.join("\n---\n"), None)
    }

    /// Any other write.
    pub(super) fn write(&self, method: &str, path: &str, body: &str, condition: Option<Condition<'_>>) -> Reply {
        // Several JSON documents are YAML.
        let kind = if body.contains("\n---\n") { "application/yaml" } else { "application/json" };
        let tag;
        let mut headers = vec![("authorization", self.bearer.as_str()), ("content-type", kind)];
        match condition {
            Some(Condition::Is(etag)) => {
                tag = format!("\"{etag}\"");
                headers.push(("if-match", &tag));
            }
            Some(Condition::Absent) => headers.push(("if-none-match", "*")),
            None => {}
        }
        match send_within(self.admin, &Request { method, path, headers: &headers, body: Some(body) }, PATIENCE) {
            Ok(answer) => Reply::Answer(answer),
            Err(reason) if reason.contains("refused") => Reply::NotSent,
            Err(reason) if reason.contains("timeout") => Reply::Late,
            Err(_) => Reply::Broken,
        }
    }

    /// The body of `GET path` when the answer is 200.
    pub(super) fn ask(&self, path: &str) -> Result<Value, String> {
        let answer = self.get(path)?;
        if answer.status != 200 {
            return Err(format!("{}: {path}: {}: {}", self.name, answer.status, answer.body));
        }
        serde_json::from_str(&answer.body).map_err(|fault| format!("{}: {path}: {fault}", self.name))
    }

    /// One document with all its sides; `None` when there is none. Sides and ETag belong together only where a write
    /// under that ETag is taken afterwards.
    pub(super) fn read(&self, name: &str) -> Result<Option<Read>, String> {
        let answer = self.get(&path(name))?;
        match answer.status {
            200 => {}
            404 => return Ok(None),
            status => return Err(format!("{}: {name}: {status}: {}", self.name, answer.body)),
        }
        let policy: Value = serde_json::from_str(&answer.body).map_err(|fault| fault.to_string())?;
        let mut sides = BTreeSet::from([shown(at(&policy, "/document/spec/entry"))]);
        if at(&policy, "/conflicts").as_array().is_some_and(|sections| !sections.is_empty()) {
            let conflicts = self.ask("/v1/conflicts")?;
            sides.extend(sides_of(&conflicts).filter(|(of, _)| of == name).map(|(_, side)| side));
        }
        let etag = text(&policy, "/etag");
        Ok(Some(Read { sides, etag }))
    }

    /// Everything that the node shows of the proof's documents.
    pub(super) fn view(&self) -> Result<View, String> {
        let mut view = View::new();
        let policies = self.ask(&format!("/v1/policies?kind={KIND}"))?;
        for policy in policies.as_array().into_iter().flatten() {
            let name = text(policy, "/name");
            view.entry(name).or_default().insert(shown(at(policy, "/document/spec/entry")));
        }
        for (name, side) in sides_of(&self.ask("/v1/conflicts")?) {
            view.entry(name).or_default().insert(side);
        }
        Ok(view)
    }

    /// Hash over everything visible.
    pub(super) fn root(&self) -> Option<String> {
        self.ask("/v1/status").ok()?.pointer("/policy/root")?.as_str().map(str::to_owned)
    }

    /// Whether the node takes work.
    pub(super) fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| answer.status == 200)
    }

    /// A whole number of `/metrics` without labels; 0 when it is not there.
    pub(super) fn metric(&self, name: &str) -> usize {
        let Ok(answer) = self.get("/metrics") else { return 0 };
        let lines = answer.body.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        lines.filter_map(|value| value.trim().parse::<usize>().ok()).sum()
    }

    fn get(&self, path: &str) -> Result<Answer, String> {
        send_within(self.admin, &Request { path, ..Request::default() }, PATIENCE)
    }
}

/// Whether all answer with one root.
pub(super) fn roots_equal(desks: &[Desk]) -> bool {
    let mut roots = desks.iter().map(Desk::root);
    let Some(Some(first)) = roots.next() else { return false };
    roots.all(|root| root.as_ref() == Some(&first))
}

/// A document that carries a write's number and text.
pub(super) fn document(name: &str, id: WriteId, text: &str) -> Value {
    json!({
        "apiVersion": "marram.dev/v1",
        "kind": KIND,
        "metadata": { "name": name, "scope": "global" },
        "spec": { "entry": { "write": id, "text": text } },
    })
}

/// Where a document stands in the API.
pub(super) fn path(name: &str) -> String {
    format!("/v1/policies/global/{KIND}/{name}")
}

/// What `pointer` points to; null where there is nothing.
pub(super) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// The text that `pointer` points to; empty where there is none.
pub(super) fn text(value: &Value, pointer: &str) -> String {
    at(value, pointer).as_str().unwrap_or_default().to_owned()
}

/// Dot of a write as its answer tells it, and the ETag that it gave to document `name`.
pub(super) fn written(answer: &Value, name: &str) -> (String, String) {
    let documents = at(answer, "/documents").as_array().into_iter().flatten();
    let etag = documents.filter(|one| at(one, "/name") == name).map(|one| text(one, "/etag")).next();
    (text(answer, "/dot"), etag.unwrap_or_default())
}

/// Names and sides of all conflicts among the proof's documents.
fn sides_of(conflicts: &Value) -> impl Iterator<Item = (String, Shown)> {
    let ours = |conflict: &&Value| at(conflict, "/kind") == KIND && at(conflict, "/section") == SECTION;
    conflicts.as_array().into_iter().flatten().filter(ours).flat_map(|conflict| {
        let name = text(conflict, "/name");
        let sides = at(conflict, "/sides").as_array().into_iter().flatten();
        // A side without a value removed the section; the deletion stands in the ledger.
        let values = sides.map(|side| at(side, "/value")).filter(|value| !value.is_null());
        values.map(move |value| (name.clone(), shown(value)))
    })
}

/// What a section says; one that no proof wrote gets a number that no write has.
fn shown(entry: &Value) -> Shown {
    let id = at(entry, "/write").as_u64().and_then(|id| WriteId::try_from(id).ok());
    match (id, at(entry, "/text").as_str()) {
        (Some(id), Some(text)) => Shown { id, text: text.to_owned() },
        _ => Shown { id: WriteId::MAX, text: entry.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_of_a_conflict_is_read_and_other_kinds_are_not() {
        let conflict = |kind: &str, section: &str| {
            let side = |id: u64| json!({ "dot": "a:1", "value": { "write": id, "text": format!("t{id}") } });
            let sides = [side(1), side(2), json!({ "dot": "a:2", "value": null })];
            json!({ "kind": kind, "name": "n", "section": section, "sides": sides })
        };
        let all = json!([conflict(KIND, SECTION), conflict("Other", SECTION), conflict(KIND, "metadata")]);
        let side = |id: WriteId| ("n".to_owned(), Shown { id, text: format!("t{id}") });
        assert_eq!(sides_of(&all).collect::<Vec<_>>(), [side(1), side(2)]);
    }

    #[test]
    fn a_section_that_no_proof_wrote_is_no_write_of_any_ledger() {
        assert_eq!(shown(&json!({ "write": 3, "text": "x" })), Shown { id: 3, text: "x".to_owned() });
        for entry in [json!(null), json!({ "write": 3 }), json!({ "write": -1, "text": "x" })] {
            assert_eq!(shown(&entry).id, WriteId::MAX, "{entry}");
        }
    }
}
