//! The small file beside the database that outlives an opening which did not.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::backend::folder;

/// What is written down before the database is touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marker {
    /// Attempts to open it that nobody has seen the end of.
    pub(super) attempts: u32,
    /// A recovery that has begun.
    pub(super) recovering: Option<Recovering>,
}

/// Which database is being replaced, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recovering {
    /// Its name, beside the folder.
    pub(super) set_aside: String,
    pub(super) reason: String,
}

impl Marker {
    /// The marker of a folder; none counts as no attempt, one that does not read as one attempt.
    pub(super) fn read(folder: &Path) -> Self {
        match fs::read_to_string(path(folder)) {
            Ok(text) => Self::parse(&text).unwrap_or(Self { attempts: 1, recovering: None }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(_) => Self { attempts: 1, recovering: None },
        }
    }

    /// Makes the marker durable; one that says nothing is removed. A disk that takes no writes must not keep a node
    /// from starting, so that is only logged.
    pub(super) fn write(&self, folder: &Path) {
        if *self == Self::default() {
            return Self::remove(folder);
        }
        let mut text = format!("{}\n", self.attempts);
        if let Some(Recovering { set_aside, reason }) = &self.recovering {
            text.push_str(&format!("{set_aside}\n{}\n", reason.replace('\n', " ")));
        }
        if let Err(error) = folder::replace(&path(folder), text.as_bytes()) {
            tracing::warn!(%error, "cannot mark that the database is being opened");
        }
    }

    /// The opening has come to its end.
    pub(super) fn remove(folder: &Path) {
        let removed = match fs::remove_file(path(folder)) {
            Ok(()) => folder::sync(folder::parent(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot take the mark of an opening away; after three starts the store is refilled");
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let attempts = lines.next()?.parse().ok()?;
        let recovering = match lines.next() {
            // A name and nothing else: what stands here is joined to the folder's path.
            Some(name) if !name.is_empty() && !name.contains('/') && name != ".." => {
                Some(Recovering { set_aside: name.to_owned(), reason: lines.next().unwrap_or_default().to_owned() })
            }
            Some(_) | None => None,
        };
        Some(Self { attempts, recovering })
    }
}

fn path(folder: &Path) -> PathBuf {
    folder::beside(folder, "opening")
}
