//! `config`: node.toml checked before it counts, and printed with every default filled in.

use std::path::PathBuf;

use super::{CliError, Exit, print};
use crate::config::{Config, FILE_NAME};

/// The file node.toml.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ConfigVerb {
    Check(Check),
    Print(Print),
}

impl ConfigVerb {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::Check(verb) => verb.run(),
            Self::Print(verb) => verb.run(),
        }
    }
}

/// Which file.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The file
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The node's folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Source {
    fn path(&self) -> PathBuf {
        match (&self.file, &self.dir) {
            (Some(file), _) => file.clone(),
            (None, Some(dir)) => dir.join(FILE_NAME),
            (None, None) => PathBuf::from(FILE_NAME),
        }
    }
}

/// Lists everything that is wrong with a file; exits 7 when anything is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  marram config check --dir a\n  marram config check node.toml")]
pub(super) struct Check {
    #[command(flatten)]
    source: Source,
}

impl Check {
    fn run(self) -> Result<Exit, CliError> {
        let path = self.source.path();
        Config::load(&path)?;
        print(&format!("{}: ok\n", path.display()))?;
        Ok(Exit::Ok)
    }
}

/// Prints the settings in force: the file with every default filled in.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram config print --dir a")]
pub(super) struct Print {
    #[command(flatten)]
    source: Source,
}

impl Print {
    fn run(self) -> Result<Exit, CliError> {
        print(&Config::load(&self.source.path())?.to_toml())?;
        Ok(Exit::Ok)
    }
}
