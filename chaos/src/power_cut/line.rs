//! What a writer tells about itself, one line of JSON each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The store is open, and this is all that is in it.
    Opened {
        /// How long it took.
        millis: f64,
        /// What was wrong with the database, where it had to be recovered.
        recovered: Option<String>,
        /// Documents and records by their names.
        documents: BTreeMap<String, Version>,
    },
    /// A write begins.
    Trying {
        /// What is to become of each document.
        changes: Vec<Change>,
    },
    /// The write that began last is acknowledged.
    Done {
        /// Its dot; empty for a record of the node, which has none.
        dot: String,
        /// The new version of each document, in the order of the changes; `None` where there is none any more.
        etags: Vec<Option<String>>,
    },
    /// The store did not open because it is damaged.
    Damaged {
        /// What the store says.
        reason: String,
    },
    /// The store did not open, or a write was refused.
    Failed {
        /// What was being done.
        doing: String,
        /// What the store says.
        reason: String,
    },
}

/// One document's part in a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which document.
    pub key: String,
    /// Hash of the new content; `None` deletes.
    pub hash: Option<String>,
}

/// A document as it was found or must be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Hash of its content.
    pub hash: String,
    /// Its version; `None` where nobody was told.
    pub etag: Option<String>,
}

impl Version {
    /// True for the same content, and the same version where both are known.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let is_same_version = match (&self.etag, &other.etag) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (None, _) | (_, None) => true,
        };
        self.hash == other.hash && is_same_version
    }
}
