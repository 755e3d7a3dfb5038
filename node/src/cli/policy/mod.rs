//! `policy`: documents written, looked at, undone, and settled where two sides wrote at once.

mod look;
mod settle;
pub(super) mod text;
mod write;

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;

use super::client::segment;
use super::{CliError, Exit};

/// Policy documents.
#[derive(Debug, clap::Subcommand)]
pub(super) enum PolicyVerb {
    Apply(write::Apply),
    Patch(write::Patch),
    Delete(write::Delete),
    List(look::List),
    Get(look::Get),
    Diff(look::Diff),
    Effective(look::Effective),
    History(look::History),
    Rollback(write::Rollback),
    Conflicts(settle::Conflicts),
    Resolve(settle::Resolve),
    Sync(look::Sync),
}

impl PolicyVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::Apply(verb) => verb.run(),
            Self::Patch(verb) => verb.run(),
            Self::Delete(verb) => verb.run(),
            Self::List(verb) => verb.run(),
            Self::Get(verb) => verb.run(),
            Self::Diff(verb) => verb.run(),
            Self::Effective(verb) => verb.run(),
            Self::History(verb) => verb.run(),
            Self::Rollback(verb) => verb.run(),
            Self::Conflicts(verb) => verb.run(),
            Self::Resolve(verb) => verb.run(),
            Self::Sync(verb) => verb.run(),
        }
    }
}

/// Where a document stands, written `SCOPE/KIND/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    scope: String,
    kind: String,
    name: String,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [scope, kind, name] if ![scope, kind, name].iter().any(|part| part.is_empty()) => {
                Ok(Self { scope: (*scope).to_owned(), kind: (*kind).to_owned(), name: (*name).to_owned() })
            }
            _ => Err("write SCOPE/KIND/NAME, for instance global/HTTPRoute/shop".to_owned()),
        }
    }

    pub(super) fn path(&self) -> String {
        format!("/v1/policies/{}/{}/{}", segment(&self.scope), segment(&self.kind), segment(&self.name))
    }
}

/// Several files are one text: documents of all are applied together.
fn read_all(files: &[PathBuf]) -> Result<String, CliError> {
    let mut texts = Vec::with_capacity(files.len());
    for path in files {
        let failed = |source| CliError::File { path: path.clone(), source };
        if path.as_os_str() == "-" {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map_err(failed)?;
            texts.push(text);
        } else {
            texts.push(fs::read_to_string(path).map_err(failed)?);
        }
    }
    Ok(texts.join("\n---\n"))
}
