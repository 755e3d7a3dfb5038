//! One fault of a document, told so that its author can mend it: where, what, and the way out.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::document::SourceLines;

/// A fault in a document: the path of the field, what is wrong with it, and where possible what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Path of the field, as in `spec.rules[0].backendRefs[1].weight`. With several documents in one text it begins
    /// with the document, `documents[1].spec`; where the text itself cannot be read it is `document`.
    pub field: String,
    /// What is wrong; where the source is known it begins with its line.
    pub message: String,
    /// What to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A fault at `field`; both texts in lower case and without a full stop.
    #[must_use]
    pub fn new(field: impl Into<String>, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { field: field.into(), message: message.into(), hint }
    }

    /// The same fault, its field under `prefix`.
    pub(crate) fn under(mut self, prefix: &str) -> Self {
        self.field = if self.field == WHOLE { prefix.to_owned() } else { format!("{prefix}.{}", self.field) };
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "field `{}`: {}", self.field, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Faults listed of one document; a last one says that there are more.
const FAULTS_MAX: usize = 256;

/// The field of a fault that concerns the document as a whole.
pub(crate) const WHOLE: &str = "document";

/// The faults found so far, each with the line of its field where the source is known.
#[derive(Debug)]
pub(crate) struct Faults<'a> {
    lines: &'a SourceLines,
    found: Vec<Problem>,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(lines: &'a SourceLines) -> Self {
        Self { lines, found: Vec::new() }
    }

    /// Adds a fault without a hint.
    pub(crate) fn add(&mut self, field: &str, message: impl fmt::Display) {
        self.push(field, message, None);
    }

    /// Adds a fault with a hint.
    pub(crate) fn hint(&mut self, field: &str, message: impl fmt::Display, hint: impl Into<String>) {
        self.push(field, message, Some(hint.into()));
    }

    /// Adds a fault whose hint may be missing.
    pub(crate) fn push(&mut self, field: &str, message: impl fmt::Display, hint: Option<String>) {
        if self.found.len() == FAULTS_MAX {
            self.found.push(Problem::new(WHOLE, "has more faults than are listed here", None));
        }
        if self.found.len() > FAULTS_MAX {
            return;
        }
        let message = match self.lines.line(field) {
            Some(line) => format!("line {line}: {message}"),
            None => message.to_string(),
        };
        self.found.push(Problem::new(field, message, hint));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.found
    }
}

/// What `read` makes of a spec that has been validated, so that there are no faults to look at.
pub(crate) fn valid<T>(read: impl FnOnce(&mut Faults<'_>) -> T) -> T {
    read(&mut Faults::new(&SourceLines::default()))
}

/// The name of `known` that `written` probably meant: the same but for case, hyphens and underscores, or else one
/// within a third of its length in typing errors (optimal string alignment distance).
#[must_use]
pub fn nearest_name<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = fold(written);
    let distance = |name: &&'a str| (strsim::osa_distance(&folded, &fold(name)), *name);
    let (distance, name) = known.iter().map(distance).min_by_key(|(distance, _)| *distance)?;
    let allowed = (folded.chars().count().max(name.len()) / 3).max(1);
    (distance <= allowed).then_some(name)
}

/// Lower case without separators, cut where no known name can be near any more.
fn fold(name: &str) -> String {
    name.chars().filter(|letter| !matches!(letter, '-' | '_' | ' ')).take(64).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::{Problem, nearest_name};

    #[test]
    fn the_nearest_name_forgives_case_separators_and_a_few_letters() {
        let known = ["halfDistance", "lambda", "epsilon", "subset", "draw"];
        for (written, expected) in [
            ("half_distance", Some("halfDistance")),
            ("HALFDISTANCE", Some("halfDistance")),
            ("haflDistance", Some("halfDistance")),
            ("halfDist", Some("halfDistance")),
            ("lamda", Some("lambda")),
            ("epsillon", Some("epsilon")),
            ("timeout", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest_name(written, &known), expected, "{written}");
        }
        assert_eq!(nearest_name("anything", &[]), None);
        assert_eq!(nearest_name(&"l".repeat(1 << 16), &known), None);
    }

    #[test]
    fn a_problem_reads_as_place_fault_and_way_out() {
        let problem = Problem::new("spec.rules", "is missing", Some("add one".into()));
        assert_eq!(problem.to_string(), "field `spec.rules`: is missing\n  hint: add one");
        let bare = Problem::new("spec", "is missing", None);
        assert_eq!(serde_json::to_string(&bare).unwrap(), r#"{"field":"spec","message":"is missing"}"#);
    }
}
