//! What is wrong with a `node.toml`, told so that a person can mend it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use policy::Problem;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read. Nothing was changed; correct the path or its permissions.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is read and refused, with every fault found in one pass.
    #[error("{}", Listed { file, faults })]
    Invalid {
        /// The file's name as given.
        file: String,
        /// At least one.
        faults: Vec<Fault>,
    },
}

/// One fault of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1; `None` when the fault is about something that does not stand in the file.
    pub line: Option<usize>,
    /// Field, fault and way out. The field is empty when the text is no TOML at all.
    pub problem: Problem,
}

impl ConfigError {
    /// The faults, or none when the file could not be read.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Read { .. } => &[],
            Self::Invalid { faults, .. } => faults,
        }
    }
}

/// Writes every fault on a line of its own, each followed by its hint.
struct Listed<'a> {
    file: &'a str,
    faults: &'a [Fault],
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\nerror: ")?;
            }
            write!(f, "{}: ", self.file)?;
            if let Some(line) = fault.line {
                write!(f, "line {line}: ")?;
            }
            if !fault.problem.field.is_empty() {
                write!(f, "field `{}`: ", fault.problem.field)?;
            }
            f.write_str(&fault.problem.message)?;
            if let Some(hint) = &fault.problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}
