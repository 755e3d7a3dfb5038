//! Many documents written a few dozen at a time, one author after the other, with every version in the ledger.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::Value;

use super::desk::{Desk, Reply, document, path, written};
use super::ledger::{Ledger, Outcome, Write, WriteId};

/// Documents in one request.
const TOGETHER: usize = 64;

/// The newest write of each document that one side of a mesh knows.
pub(super) type Known = BTreeMap<String, WriteId>;

/// Documents and what was ever written into them.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) ledger: Ledger,
    text_bytes: usize,
}

impl Library {
    /// Nothing yet; texts will be `text_bytes` long.
    pub(super) fn new(text_bytes: usize) -> Self {
        Self { ledger: Ledger::default(), text_bytes }
    }

    /// Writes each document anew at a node where everything in `known` is visible and nothing else.
    pub(super) fn write(
        &mut self,
        desk: &Desk,
        known: &mut Known,
        names: &[String],
        random: &mut StdRng,
    ) -> Result<()> {
        for names in names.chunks(TOGETHER) {
            let texts: Vec<String> = names.iter().map(|_| self.text(random)).collect();
            let write = |(name, text): (&String, &String)| {
                Write::new(name, desk.node, Some(text.clone()), known.get(name).copied().into_iter().collect())
            };
            let ids = self.ledger.begin(names.iter().zip(&texts).map(write).collect());
            let parts = names.iter().zip(&texts).zip(&ids);
            let documents: Vec<Value> = parts.map(|((name, text), id)| document(name, *id, text)).collect();
            let answer = accepted(desk.apply(&documents)).with_context(|| format!("apply at {}", desk.name))?;
            for (name, id) in names.iter().zip(ids) {
                self.settle(id, name, &answer);
                known.insert(name.clone(), id);
            }
        }
        Ok(())
    }

    /// Deletes documents at a node where everything in `known` is visible and nothing else.
    pub(super) fn delete(&mut self, desk: &Desk, known: &mut Known, names: &[String]) -> Result<()> {
        for name in names {
            let seen = known.remove(name).into_iter().collect();
            let ids = self.ledger.begin(vec![Write::new(name, desk.node, None, seen)]);
            let reply = desk.write("DELETE", &path(name), "", None);
            let answer = accepted(reply).with_context(|| format!("delete {name} at {}", desk.name))?;
            for id in ids {
                self.settle(id, name, &answer);
            }
        }
        Ok(())
    }

    fn settle(&mut self, id: WriteId, name: &str, answer: &Value) {
        let (dot, etag) = written(answer, name);
        self.ledger.settle(id, Outcome::Acknowledged { dot, etag }, 0.0);
        let seen = self.ledger.writes().get(id).map(|write| write.seen.clone()).unwrap_or_default();
        self.ledger.superseded(id, seen);
    }

    fn text(&self, random: &mut StdRng) -> String {
        (0..self.text_bytes).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
    }
}

fn accepted(reply: Reply) -> Result<Value> {
    match reply {
        Reply::Answer(answer) if answer.status == 200 => Ok(serde_json::from_str(&answer.body)?),
        other => bail!("{other:?}"),
    }
}
