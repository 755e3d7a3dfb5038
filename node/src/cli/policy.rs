//! `policy`: documents written, listed, read, deleted, and looked at where two sides wrote at once.

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;

use ::policy::{Document, Limits, accept_documents};
use hyper::Method;

use super::client::{Call, segment};
use super::table::{Align, Sheet, coloured, width};
use super::target::{Output, Reach};
use super::{CliError, Exit, print, print_json};
use crate::view::{Applied, ConflictView, PolicyView};

/// Policy documents.
#[derive(Debug, clap::Subcommand)]
pub(super) enum PolicyVerb {
    Apply(Apply),
    List(List),
    Get(Get),
    Delete(Delete),
    Conflicts(Conflicts),
}

impl PolicyVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::Apply(verb) => verb.run(),
            Self::List(verb) => verb.run(),
            Self::Get(verb) => verb.run(),
            Self::Delete(verb) => verb.run(),
            Self::Conflicts(verb) => verb.run(),
        }
    }
}

/// Writes documents, all or none; on disk when it returns.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  marram policy apply --dir a -f split.yaml\n  marram policy apply --dir a -f - < split.yaml"
)]
pub(super) struct Apply {
    /// File with one or several documents, YAML or JSON; `-` reads stdin
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only if the one document still has this ETag
    #[arg(long, value_name = "ETAG", conflicts_with = "create_only")]
    if_match: Option<String>,
    /// Only if the one document does not exist
    #[arg(long)]
    create_only: bool,
    #[command(flatten)]
    reach: Reach,
}

impl Apply {
    fn run(self) -> Result<Exit, CliError> {
        let text = read_all(&self.files)?;
        let documents = accept_documents(&text, &Limits::default()).map_err(CliError::Documents)?;
        let applied: Applied = self.reach.client()?.send(self.call(&documents, text)?)?;
        print_applied(&applied, self.reach.output)
    }

    /// A condition is about one document, so it is asked at that document's own path.
    fn call(&self, documents: &[Document], text: String) -> Result<Call, CliError> {
        if self.if_match.is_none() && !self.create_only {
            return Ok(Call::new(Method::POST, "/v1/apply").body("application/yaml", text));
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
        let call = Call::new(Method::PUT, address.path()).body("application/yaml", text);
        Ok(call.if_match(self.if_match.as_deref()).create_only(self.create_only))
    }
}

/// Lists documents.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy list --dir a --kind HTTPRoute")]
pub(super) struct List {
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
    fn run(self) -> Result<Exit, CliError> {
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
#[command(after_help = "Example:\n  marram policy get global/BackendTrafficPolicy/hello --dir a")]
pub(super) struct Get {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    #[command(flatten)]
    reach: Reach,
}

impl Get {
    fn run(self) -> Result<Exit, CliError> {
        let policy: PolicyView = self.reach.client()?.get(&self.document.path())?;
        match self.reach.output {
            Output::Json => print_json(&policy)?,
            Output::Table | Output::Wide => {
                let yaml = serde_saphyr::to_string(&policy.document).unwrap_or_else(|_| policy.document.to_string());
                print(&format!("{}\n", yaml.trim_end()))?;
                eprintln!("etag {}  written by {} at {}", policy.etag, policy.author, moment(policy.written_ms));
            }
        }
        Ok(Exit::Ok)
    }
}

/// Deletes one document.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy delete global/BackendTrafficPolicy/hello --dir a")]
pub(super) struct Delete {
    /// SCOPE/KIND/NAME
    #[arg(value_parser = Address::parse)]
    document: Address,
    /// Only if it still has this ETag
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

impl Delete {
    fn run(self) -> Result<Exit, CliError> {
        let call = Call::new(Method::DELETE, self.document.path()).if_match(self.if_match.as_deref());
        let applied: Applied = self.reach.client()?.send(call)?;
        print_applied(&applied, self.reach.output)
    }
}

/// Shows concurrent edits of one section: every side, and which one is in force. Exits 3 when there are any.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram policy conflicts --dir a")]
pub(super) struct Conflicts {
    #[command(flatten)]
    reach: Reach,
}

impl Conflicts {
    fn run(self) -> Result<Exit, CliError> {
        let conflicts: Vec<ConflictView> = self.reach.client()?.get("/v1/conflicts")?;
        match self.reach.output {
            Output::Json => print_json(&conflicts)?,
            Output::Table | Output::Wide => print(&conflicts_text(&conflicts))?,
        }
        Ok(if conflicts.is_empty() { Exit::Ok } else { Exit::Degraded })
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

fn print_applied(applied: &Applied, output: Output) -> Result<Exit, CliError> {
    match output {
        Output::Json => print_json(applied)?,
        Output::Table | Output::Wide => print(&applied_text(applied))?,
    }
    Ok(Exit::Ok)
}

pub(super) fn applied_text(applied: &Applied) -> String {
    let mut text = String::new();
    for document in &applied.documents {
        let etag = if document.etag.is_empty() { String::new() } else { format!("  etag {}", document.etag) };
        text.push_str(&format!("{} {}/{}/{}{etag}\n", document.change, document.scope, document.kind, document.name));
    }
    text.push_str(&format!("stored as {}, policy root {}\n", applied.dot, applied.root));
    text
}

pub(super) fn policies_text(policies: &[PolicyView], width: Option<u16>) -> String {
    if policies.is_empty() {
        return "no documents; defaults are in force\n".to_owned();
    }
    let columns = [
        ("SCOPE", Align::Left),
        ("KIND", Align::Left),
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("WRITTEN BY", Align::Left),
        ("AT", Align::Left),
        // Long and rarely read: `policy get` shows it too.
        ("ETAG", Align::Left),
    ];
    let shown = if width.is_some() { columns.len() - 1 } else { columns.len() };
    let mut sheet = Sheet::new(columns.get(..shown).unwrap_or(&columns), width);
    for policy in policies {
        let state = match (policy.conflicts.is_empty(), policy.deleted_concurrently) {
            (true, false) => "ok".to_owned(),
            (true, true) => "deleted elsewhere meanwhile".to_owned(),
            (false, _) => format!("conflict in {}", policy.conflicts.join(", ")),
        };
        sheet.row(&[
            policy.scope.as_str(),
            &policy.kind,
            &policy.name,
            &state,
            &policy.author,
            &moment(policy.written_ms),
            &policy.etag,
        ]);
    }
    sheet.render()
}

pub(super) fn conflicts_text(conflicts: &[ConflictView]) -> String {
    if conflicts.is_empty() {
        return "no conflicts\n".to_owned();
    }
    let mut text = String::new();
    for conflict in conflicts {
        text.push_str(&format!(
            "{}/{}/{}  section {}\n",
            conflict.scope, conflict.kind, conflict.name, conflict.section
        ));
        for side in &conflict.sides {
            let mark = if side.in_force { "in force" } else { "        " };
            let at = moment(side.written_ms);
            text.push_str(&format!("  {mark}  {}  {at}  ({})\n            {}\n", side.author, side.dot, side.value));
        }
    }
    text.push_str("to settle one, write the document again as you want it: `marram policy apply`\n");
    text
}

fn moment(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| unix_ms.to_string(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}
