//! Verbs that write policy.

use std::path::PathBuf;
use std::time::Duration;

use ::policy::{Document, Limits, accept_documents};
use hyper::Method;

use super::text::{applied_text, plan_text};
use super::{Address, read_all};
use crate::cli::client::Call;
use crate::cli::target::{Output, Reach};
use crate::cli::{CliError, Exit, print, print_json};
use crate::view::{Applied, PlanView, Replicated};

/// Options of every verb that writes.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Manner {
    /// Why, for the history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Only if the document still has this ETag
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    /// The same key and the same write within 24 hours are one write
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until so many other nodes have it on disk; exits 3 when they have not in time
    #[arg(long, value_name = "N|majority|all", value_parser = parse_wait)]
    wait: Option<String>,
    /// The longest wait, at most 25s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    pub(super) reach: Reach,
}

impl Manner {
    /// The call of a write to `path`.
    pub(super) fn call(&self, method: Method, path: &str) -> Call {
        let query = match &self.wait {
            Some(wait) => format!("?wait={wait}&timeout={}ms", self.timeout.as_millis()),
            None => String::new(),
        };
        Call::new(method, format!("{path}{query}"))
            .if_match(self.if_match.as_deref())
            .header("marram-reason", self.message.as_deref())
            .header("idempotency-key", self.idempotency_key.as_deref())
    }

    /// Sends a write, prints what came of it, and says whether all that was waited for have it.
    pub(super) fn send(&self, call: Call) -> Result<Exit, CliError> {
        let applied: Applied = self.reach.client()?.send(call)?;
        match self.reach.output {
            Output::Json => print_json(&applied)?,
            Output::Table | Output::Wide => print(&applied_text(&applied))?,
        }
        let reached = applied.replicated_to.as_ref().is_none_or(Replicated::is_reached);
        Ok(if reached { Exit::Ok } else { Exit::Degraded })
    }
}

fn parse_wait(text: &str) -> Result<String, String> {
    match text {
        "majority" | "all" => Ok(text.to_owned()),
        _ if text.parse::<usize>().is_ok() => Ok(text.to_owned()),
        _ => Err("give a number of other nodes, `majority` or `all`".to_owned()),
    }
}

/// Writes documents, all or none; on disk when it returns.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  marram policy apply --dir a -f split.yaml\n  marram policy apply --dir a -f - < split.yaml\n  marram policy apply --dir a -f split.yaml --dry-run\n  marram policy apply --dir a -f split.yaml --wait majority --timeout 10s"
)]
pub(in crate::cli) struct Apply {
    /// File with one or several documents, YAML or JSON; `-` reads stdin
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only if the one document does not exist
    #[arg(long, conflicts_with = "if_match")]
    create_only: bool,
    /// Check everything and tell what it would do; store nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    manner: Manner,
}

impl Apply {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let text = read_all(&self.files)?;
        let documents = accept_documents(&text, &Limits::default()).map_err(CliError::Documents)?;
        if self.dry_run {
            return self.plan(text);
        }
        self.manner.send(self.call(&documents, text)?)
    }

    fn plan(&self, text: String) -> Result<Exit, CliError> {
        let call = Call::new(Method::POST, "/v1/apply?dryRun=all").body("application/yaml", text);
        let plan: PlanView = self.manner.reach.client()?.send(call)?;
        match self.manner.reach.output {
            Output::Json => print_json(&plan)?,
            Output::Table | Output::Wide => print(&plan_text(&plan))?,
        }
        Ok(Exit::Ok)
    }

    /// A condition is about one document, so it is asked at that document's own path.
    fn call(&self, documents: &[Document], text: String) -> Result<Call, CliError> {
        if self.manner.if_match.is_none() && !self.create_only {
            return Ok(self.manner.call(Method::POST, "/v1/apply").body("application/yaml", text));
        }
        let [document] = documents else {
            let hint = "apply it alone, or leave the condition out";
            return Err(CliError::Usage {
                message: format!("{} documents under one condition", documents.len()),
                hint,
            });
        };
        let address = Address {
            scope: document.metadata.scope.clone(),
            kind: document.kind.clone(),
            name: document.metadata.name.clone(),
        };
        let call = self.manner.call(Method::PUT, &address.path()).body("application/yaml", text);
        Ok(call.create_only(self.create_only))
    }
}

/// Changes fields of one document that exists: a merge patch by RFC 7396, in which `null` removes a field.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  marram policy patch global/BackendTrafficPolicy/hello --dir a -p '{\"spec\":{\"loadBalancer\":{\"lambda\":0.1}}}'\n  marram policy patch global/BackendTrafficPolicy/hello --dir a -f patch.json"
)]
pub(in crate::cli) struct Patch {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    /// The patch, as JSON
    #[arg(short, long, value_name = "JSON", required_unless_present = "file", conflicts_with = "file")]
    patch: Option<String>,
    /// File with the patch, JSON or YAML; `-` reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    manner: Manner,
}

impl Patch {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let text = match (self.patch, self.file) {
            (Some(patch), _) => patch,
            (None, file) => read_all(&file.into_iter().collect::<Vec<_>>())?,
        };
        let patch: serde_json::Value = serde_saphyr::from_str(&text).map_err(|fault| CliError::Usage {
            message: format!("the patch does not read: {fault}"),
            hint: "a patch is JSON, for instance {\"spec\":{\"loadBalancer\":{\"lambda\":0.1}}}",
        })?;
        let call = self.manner.call(Method::PATCH, &self.document.path());
        self.manner.send(call.body("application/merge-patch+json", patch.to_string()))
    }
}

/// Deletes one document.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy delete global/BackendTrafficPolicy/hello --dir a")]
pub(in crate::cli) struct Delete {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    #[command(flatten)]
    manner: Manner,
}

impl Delete {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        self.manner.send(self.manner.call(Method::DELETE, &self.document.path()))
    }
}

/// Restores what an earlier write left, as a new write; brings back what was deleted, too.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  marram policy rollback global/HTTPRoute/shop --dir a --to aaaaaaaaaaaaaaaaaaaaaaaaaa:17 -m mistake"
)]
pub(in crate::cli) struct Rollback {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    /// The earlier write, as `marram policy history` lists it
    #[arg(long, value_name = "DOT")]
    to: String,
    #[command(flatten)]
    manner: Manner,
}

impl Rollback {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let call = self.manner.call(Method::POST, &format!("{}/rollback", self.document.path()));
        self.manner.send(call.body("application/json", serde_json::json!({ "to": self.to }).to_string()))
    }
}
