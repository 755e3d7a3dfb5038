//! Verbs that look at policy and change nothing.

use std::path::PathBuf;

use ::policy::{Limits, accept_documents};
use hyper::Method;

use super::text::{diffs_text, effective_text, history_text, moment, policies_text, sync_text};
use super::{Address, read_all};
use crate::cli::client::{Call, segment};
use crate::cli::table::{coloured, width};
use crate::cli::target::{Output, Reach};
use crate::cli::{CliError, Exit, print, print_json};
use crate::view::{DocumentDiff, EffectiveView, PolicyView, RevisionView, SyncStatus};

/// Lists documents.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy list --dir a --kind HTTPRoute")]
pub(in crate::cli) struct List {
    /// Only this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only this scope
    #[arg(long)]
    scope: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

impl List {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let filters = [("kind", &self.kind), ("scope", &self.scope)];
        let asked: Vec<String> = filters
            .iter()
            .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", segment(value))))
            .collect();
        let query = if asked.is_empty() { String::new() } else { format!("?{}", asked.join("&")) };
        let policies: Vec<PolicyView> = self.reach.client()?.get(&format!("/v1/policies{query}"))?;
        match self.reach.output {
            Output::Json => print_json(&policies)?,
            Output::Table => print(&coloured(policies_text(&policies, Some(width()))))?,
            Output::Wide => print(&coloured(policies_text(&policies, None)))?,
        }
        Ok(Exit::Ok)
    }
}

/// Prints one document as YAML; its ETag goes to stderr.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  marram policy get global/BackendTrafficPolicy/hello --dir a\n  marram policy get global/HTTPRoute/shop --dir a --at aaaaaaaaaaaaaaaaaaaaaaaaaa:17"
)]
pub(in crate::cli) struct Get {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    /// As this write left it
    #[arg(long, value_name = "DOT")]
    at: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

impl Get {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let query = self.at.map(|at| format!("?at={}", segment(&at))).unwrap_or_default();
        let policy: PolicyView = self.reach.client()?.get(&format!("{}{query}", self.document.path()))?;
        match self.reach.output {
            Output::Json => print_json(&policy)?,
            Output::Table | Output::Wide => {
                let yaml = serde_saphyr::to_string(&policy.document).unwrap_or_else(|_| policy.document.to_string());
                print(&format!("{}\n", yaml.trim_end()))?;
                let version = if policy.etag.is_empty() { &policy.dot } else { &policy.etag };
                eprintln!("etag {version}  written by {} at {}", policy.author, moment(policy.written_ms));
            }
        }
        Ok(Exit::Ok)
    }
}

/// Shows field by field what applying files would change.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy diff --dir a -f split.yaml")]
pub(in crate::cli) struct Diff {
    /// File with one or several documents, YAML or JSON; `-` reads stdin
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    reach: Reach,
}

impl Diff {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let text = read_all(&self.files)?;
        accept_documents(&text, &Limits::default()).map_err(CliError::Documents)?;
        let call = Call::new(Method::POST, "/v1/diff").body("application/yaml", text);
        let diffs: Vec<DocumentDiff> = self.reach.client()?.send(call)?;
        match self.reach.output {
            Output::Json => print_json(&diffs)?,
            Output::Table | Output::Wide => print(&diffs_text(&diffs))?,
        }
        Ok(Exit::Ok)
    }
}

/// Shows what is in force for a service: every field, the document it comes from, what is overridden or locked.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy effective hello --dir a --node b")]
pub(in crate::cli) struct Effective {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// At this node; else at the one that is asked
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

impl Effective {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let query = self.node.map(|node| format!("?node={}", segment(&node))).unwrap_or_default();
        let path = format!("/v1/effective/{}{query}", segment(&self.service));
        let effective: EffectiveView = self.reach.client()?.get(&path)?;
        match self.reach.output {
            Output::Json => print_json(&effective)?,
            Output::Table => print(&effective_text(&effective, Some(width())))?,
            Output::Wide => print(&effective_text(&effective, None))?,
        }
        Ok(Exit::Ok)
    }
}

/// Lists what was written of one document, newest first: the last 30 days or 20 writes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy history global/HTTPRoute/shop --dir a")]
pub(in crate::cli) struct History {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    #[command(flatten)]
    reach: Reach,
}

impl History {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let revisions: Vec<RevisionView> = self.reach.client()?.get(&format!("{}/history", self.document.path()))?;
        match self.reach.output {
            Output::Json => print_json(&revisions)?,
            Output::Table => print(&coloured(history_text(&revisions, Some(width()))))?,
            Output::Wide => print(&coloured(history_text(&revisions, None)))?,
        }
        Ok(Exit::Ok)
    }
}

/// Shows how far this node and its peers have seen the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy sync --dir a")]
pub(in crate::cli) struct Sync {
    #[command(flatten)]
    reach: Reach,
}

impl Sync {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let status: SyncStatus = self.reach.client()?.get("/v1/sync/status")?;
        match self.reach.output {
            Output::Json => print_json(&status)?,
            Output::Table => print(&coloured(sync_text(&status, Some(width()))))?,
            Output::Wide => print(&coloured(sync_text(&status, None)))?,
        }
        Ok(Exit::Ok)
    }
}
