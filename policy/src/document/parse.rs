//! Text to documents.

use std::collections::BTreeSet;

use super::{
    envelope::{self, Document, Unknown},
    tree::{self, Read},
};
use crate::{
    problem::{Faults, Problem, WHOLE},
    validate::validate,
};

/// How much one text may hold. What is over a limit is refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of text.
    pub text_bytes: usize,
    /// Documents in it; one change of the replicated store holds no more than 64.
    pub documents: usize,
    /// Objects and lists within each other.
    pub depth: usize,
    /// Values in it, keys counted as well.
    pub nodes: usize,
    /// YAML anchors, aliases and merge keys, of each so many. What they unfold to is bounded as well.
    pub aliases: usize,
}

impl Default for Limits {
    /// 1 MiB, 64 documents, depth 32, 50,000 values, 32 aliases.
    fn default() -> Self {
        // Reading YAML takes about 30 KiB of stack a level where nothing is optimised: 64 levels overflow a thread's 2 MiB.
        Self { text_bytes: 1 << 20, documents: 64, depth: 32, nodes: 50_000, aliases: 32 }
    }
}

/// Deepest document that is valid wherever it came from, in objects and lists within each other, itself counted; what
/// one text may hold is less.
pub(crate) const DEPTH_MAX: usize = 64;

/// Reads the documents in `text`: YAML (several documents, or a list of them) or JSON (one after the other, or a
/// list). A byte order mark and CRLF line ends are fine, empty documents are left out.
///
/// What comes back has the shape of an envelope, and no two documents share an id; whether what they say makes sense is
/// for [`validate`] ([`accept_documents`] does both).
///
/// # Errors
/// Every fault of every document at once, those of [`validate`] included. Text that is neither YAML nor JSON, or over
/// `limits`, is one fault with its line.
pub fn parse_documents(text: &str, limits: &Limits) -> Result<Vec<Document>, Vec<Problem>> {
    let parsed = parse(text, limits)?;
    if parsed.iter().all(|(_, problems)| problems.is_empty()) {
        return Ok(parsed.into_iter().map(|(document, _)| document).collect());
    }
    Err(all_faults(parsed))
}

/// Reads and validates the documents in `text`: what [`parse_documents`] and [`validate`] do, with the faults of all
/// documents in one answer. This is what an admin write goes through.
///
/// # Errors
/// Every fault of every document; a text without any document is a fault too.
pub fn accept_documents(text: &str, limits: &Limits) -> Result<Vec<Document>, Vec<Problem>> {
    let parsed = parse(text, limits)?;
    if parsed.is_empty() {
        let hint = "a document has apiVersion, kind, metadata and spec".to_owned();
        return Err(vec![Problem::new(WHOLE, "the text holds no document", Some(hint))]);
    }
    if parsed.iter().all(|(document, problems)| problems.is_empty() && validate(document).is_ok()) {
        return Ok(parsed.into_iter().map(|(document, _)| document).collect());
    }
    Err(all_faults(parsed))
}

/// Each document as far as it could be read, with the faults of its envelope.
fn parse(text: &str, limits: &Limits) -> Result<Vec<(Document, Vec<Problem>)>, Vec<Problem>> {
    let reads = tree::read(text, limits).map_err(|problem| vec![problem])?;
    let mut ids = BTreeSet::new();
    let mut parsed = Vec::with_capacity(reads.len());
    for Read { value, lines } in reads.into_iter().filter(|read| !read.value.is_null()) {
        let mut faults = Faults::new(&lines);
        let mut document = envelope::read(&value, Unknown::Refused, &mut faults);
        let id = document.id();
        if faults.is_empty() && !ids.insert(id.clone()) {
            faults.hint("metadata.name", format_args!("{id} stands in this text twice"), "keep one of them");
        }
        let problems = faults.into_problems();
        document.lines = lines;
        parsed.push((document, problems));
    }
    Ok(parsed)
}

fn all_faults(parsed: Vec<(Document, Vec<Problem>)>) -> Vec<Problem> {
    let several = parsed.len() > 1;
    let mut all = Vec::new();
    for (index, (document, mut problems)) in parsed.into_iter().enumerate() {
        for problem in validate(&document).err().unwrap_or_default() {
            if !is_told(&problem, &problems) {
                problems.push(problem);
            }
        }
        let prefix = format!("documents[{index}]");
        all.extend(problems.into_iter().map(|problem| if several { problem.under(&prefix) } else { problem }));
    }
    all
}

/// Whether one of `known` is of the field of `problem` or of a field around it: what could not be read has been told of,
/// and what validation says of it or of what should be in it only follows from that.
pub(crate) fn is_told(problem: &Problem, known: &[Problem]) -> bool {
    known.iter().any(|known| {
        let rest = problem.field.strip_prefix(known.field.as_str());
        known.field == WHOLE || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

#[cfg(test)]
mod tests;
