//! Conflicts: seen and settled.

use std::path::PathBuf;

use ::policy::{Limits, accept_documents};
use hyper::Method;
use serde_json::json;

use super::text::conflicts_text;
use super::write::Manner;
use super::{Address, read_all};
use crate::cli::target::{Output, Reach};
use crate::cli::{CliError, Exit, print, print_json};
use crate::view::ConflictView;

/// Shows concurrent edits: every side, what each changed, and which one is in force. Exits 3 when there are any.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy conflicts --dir a")]
pub(in crate::cli) struct Conflicts {
    #[command(flatten)]
    reach: Reach,
}

impl Conflicts {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let conflicts: Vec<ConflictView> = self.reach.client()?.get("/v1/conflicts")?;
        match self.reach.output {
            Output::Json => print_json(&conflicts)?,
            Output::Table | Output::Wide => print(&conflicts_text(&conflicts))?,
        }
        Ok(if conflicts.is_empty() { Exit::Ok } else { Exit::Degraded })
    }
}

/// Settles everything that is in conflict in one document, on every node.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  marram policy resolve global/HTTPRoute/shop --dir a --take aaaaaaaaaaaaaaaaaaaaaaaaaa:17\n  marram policy resolve global/HTTPRoute/shop --dir a -f merged.yaml"
)]
pub(in crate::cli) struct Resolve {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    /// The side to take, as `marram policy conflicts` lists it
    #[arg(long, value_name = "DOT", required_unless_present = "file", conflicts_with = "file")]
    take: Option<String>,
    /// File with the document as it is to be; `-` reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    manner: Manner,
}

impl Resolve {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let body = match (self.take, self.file) {
            (Some(take), _) => json!({ "take": take }),
            (None, file) => {
                let text = read_all(&file.into_iter().collect::<Vec<_>>())?;
                let documents = accept_documents(&text, &Limits::default()).map_err(CliError::Documents)?;
                let [document] = documents.as_slice() else {
                    let hint = "give the one document that is in conflict";
                    return Err(CliError::Usage { message: format!("{} documents", documents.len()), hint });
                };
                json!({ "document": document.to_json() })
            }
        };
        let call = self.manner.call(Method::POST, &format!("{}/resolve", self.document.path()));
        self.manner.send(call.body("application/json", body.to_string()))
    }
}
