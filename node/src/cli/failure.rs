//! How a verb fails: what is said, and the exit code that scripts read.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use ::policy::Problem;
use crdt_store::{BundleError, StorageError, StoreError};
use transport::trust::{JoinError, TrustError};

use crate::admin::{ProblemBody, TokenError};
use crate::config::ConfigError;
use crate::telemetry::LogError;
use crate::view::FieldChangeView;

/// Fields shown of a document that is not as expected.
const CHANGES_SHOWN: usize = 8;

/// Exit codes; their meaning stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed for a reason of its own.
    Failed = 1,
    /// Called wrongly.
    Usage = 2,
    /// Answered, but not all is well.
    Degraded = 3,
    /// The document changed meanwhile.
    Stale = 4,
    /// No answer.
    Unreachable = 5,
    /// Not allowed.
    Denied = 6,
    /// What was given has faults.
    Invalid = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The call makes no sense; nothing was done.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// The way out.
        hint: &'static str,
    },
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The options would make a configuration with faults; nothing was written.
    #[error("{}", first_of(.0))]
    Options(Vec<Problem>),
    /// The documents have faults; nothing was sent.
    #[error("{}", first_of(.0))]
    Documents(Vec<Problem>),
    /// No node answers there.
    #[error("{target}: {reason}")]
    Unreachable {
        /// Whom we asked.
        target: String,
        /// What happened.
        reason: String,
    },
    /// The node refused.
    #[error("{} ({})", .0.detail, .0.code)]
    Refused(Box<ProblemBody>),
    /// The node answered something that this version does not read.
    #[error("{target}: unexpected answer: {reason}")]
    Unexpected {
        /// Whom we asked.
        target: String,
        /// What does not fit.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder holds a node already; nothing was changed.
    #[error("{} holds a node already", .0.display())]
    Occupied(PathBuf),
    /// The admin token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Logging did not start.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Identity or admission failed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The mesh did not let this node in; nothing but an empty folder is left.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The store on disk does not open, or does not take what it was given.
    #[error("{}: {}", path.display(), chain(source.as_ref()))]
    Store {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        source: Box<StoreError>,
    },
    /// The file is no bundle that this node can use; or could not be written.
    #[error("{}: {}", path.display(), chain(source.as_ref()))]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<BundleError>,
    },
    /// The agent or the demo failed.
    #[error("{0:#}")]
    Agent(anyhow::Error),
    /// The result could not be printed.
    #[error("output: {0}")]
    Output(io::Error),
    /// The system gave no runtime.
    #[error("runtime: {0}")]
    Runtime(io::Error),
}

impl CliError {
    /// The exit code of this failure.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::Config(ConfigError::Invalid { .. }) | Self::Options(_) | Self::Documents(_) => Exit::Invalid,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Refused(problem) => exit_of_status(problem.status),
            Self::Join(error) => exit_of_join(error),
            Self::Bundle { source, .. } => exit_of_bundle(source),
            Self::Config(ConfigError::Read { .. })
            | Self::Unexpected { .. }
            | Self::File { .. }
            | Self::Occupied(_)
            | Self::Token(_)
            | Self::Log(_)
            | Self::Trust(_)
            | Self::Store { .. }
            | Self::Agent(_)
            | Self::Output(_)
            | Self::Runtime(_) => Exit::Failed,
        }
    }

    /// What stands on stderr: `error: …` lines, each with its `  hint: …`.
    #[must_use]
    pub fn report(&self) -> String {
        let problems = match self {
            Self::Options(problems) | Self::Documents(problems) => problems.as_slice(),
            Self::Refused(body) => body.problems.as_slice(),
            _ => &[],
        };
        let mut lines: Vec<String> = problems.iter().map(told).collect();
        if lines.is_empty() {
            lines.push(format!("error: {self}"));
        }
        if let Self::Refused(body) = self {
            lines.extend(body.changes.iter().take(CHANGES_SHOWN).map(differs));
        }
        if let Some(hint) = self.hint() {
            lines.push(format!("  hint: {hint}"));
        }
        lines.join("\n")
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Usage { hint, .. } => hint,
            Self::Unreachable { .. } => {
                "is the agent running? `marram agent --dir DIR`; readers take --admin URL or --dir DIR"
            }
            Self::Store { source, .. } => match **source {
                StoreError::Damaged(_) | StoreError::Storage(StorageError::Damaged { .. }) => {
                    "`marram store verify --dir DIR` lists what is wrong; the agent refills the store when it starts"
                }
                _ => return None,
            },
            Self::Bundle { source, .. } => match **source {
                BundleError::Damaged { .. } => {
                    "write it again where it came from: `marram store export --dir DIR FILE`"
                }
                BundleError::OtherStore { .. } => "import it at a node of that mesh",
                _ => return None,
            },
            Self::Occupied(_) => "run it with `marram agent --dir DIR`, or choose another --dir",
            Self::Refused(body) => match body.code.as_str() {
                "token_required" | "token_wrong" => {
                    "name the node's folder with --dir, or put the token into MARRAM_TOKEN"
                }
                "stale_context" => return Some(stale_hint(body)),
                _ => return None,
            },
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        // Some errors repeat their cause in their own words.
        if !text.ends_with(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = source.source();
    }
    text
}

fn stale_hint(body: &ProblemBody) -> String {
    match &body.current {
        Some(current) if !current.etag.is_empty() => {
            format!(
                "it is at etag {} now; look with `marram policy get`, then write again with --if-match",
                current.etag
            )
        }
        _ => "look with `marram policy get`, then write again".to_owned(),
    }
}

/// One field in which the document differs from what was to be written.
fn differs(change: &FieldChangeView) -> String {
    let shown = |value: &Option<serde_json::Value>| value.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    format!("  {} is {} there, {} here", change.path, shown(&change.before), shown(&change.after))
}

fn told(problem: &Problem) -> String {
    let place = if problem.field.is_empty() { String::new() } else { format!("field `{}`: ", problem.field) };
    let hint = problem.hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    format!("error: {place}{}{hint}", problem.message)
}

fn first_of(problems: &[Problem]) -> String {
    problems.first().map_or_else(|| "no fault is named".to_owned(), |problem| problem.message.clone())
}

const fn exit_of_status(status: u16) -> Exit {
    match status {
        412 => Exit::Stale,
        401 | 403 | 421 => Exit::Denied,
        400 | 413 | 415 | 422 => Exit::Invalid,
        503 => Exit::Degraded,
        _ => Exit::Failed,
    }
}

/// A file that cannot be used is something else than a disk that fails.
const fn exit_of_bundle(error: &BundleError) -> Exit {
    match error {
        BundleError::Damaged { .. } | BundleError::Newer { .. } | BundleError::OtherStore { .. } => Exit::Invalid,
        _ => Exit::Failed,
    }
}

/// A mesh that says no is something else than one that says nothing.
const fn exit_of_join(error: &JoinError) -> Exit {
    match error {
        JoinError::Unreachable { .. } => Exit::Unreachable,
        JoinError::Token(_)
        | JoinError::OtherRoot { .. }
        | JoinError::Seed { .. }
        | JoinError::Refused(_)
        | JoinError::Expired { .. } => Exit::Denied,
        _ => Exit::Failed,
    }
}
