//! What a store must hold: the writes in their order, and which of them were acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use crate::power_cut::line::{Change, Version};

type State = BTreeMap<String, Version>;

/// All writes since the store was last looked at, on top of what it held then.
///
/// One writer at a time, one write at a time: so only the last write of each writer can be without acknowledgement, and
/// each state that the store may be in is that after some of the writes, in their order.
#[derive(Debug, Default)]
pub struct Ledger {
    base: State,
    /// Acknowledged writes that were there when the store was last looked at.
    settled: u64,
    writes: Vec<Write>,
}

#[derive(Debug)]
struct Write {
    changes: Vec<(Change, Option<String>)>,
    is_acknowledged: bool,
}

/// What an opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was acknowledged.
    Whole {
        /// And so many writes that were not.
        kept_unacknowledged: u64,
    },
    /// An earlier state.
    Lost {
        /// How many acknowledged writes are missing.
        writes: u64,
    },
    /// A state that the store was never in.
    Unexplained {
        /// How many acknowledged writes there were since it was last looked at.
        writes: u64,
        /// The first document that differs from the state after all writes.
        key: String,
    },
}

impl Ledger {
    /// A write begins.
    pub fn begin(&mut self, changes: Vec<Change>) {
        let changes = changes.into_iter().map(|change| (change, None)).collect();
        self.writes.push(Write { changes, is_acknowledged: false });
    }

    /// The write that began last is acknowledged, with these versions.
    pub fn acknowledge(&mut self, etags: &[Option<String>]) {
        let Some(write) = self.writes.last_mut() else { return };
        write.is_acknowledged = true;
        for ((_, etag), told) in write.changes.iter_mut().zip(etags) {
            etag.clone_from(told);
        }
    }

    /// How many writes were acknowledged and are not known to be lost.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.settled + count(&self.writes)
    }

    /// Compares what was found with what must be there, and goes on from what was found.
    pub fn judge(&mut self, found: &State) -> Verdict {
        let mut state = std::mem::take(&mut self.base);
        let mut differing: BTreeSet<String> =
            state.keys().chain(found.keys()).filter(|key| differs(&state, found, key)).cloned().collect();
        // The latest state that is what was found: an earlier one may look the same.
        let mut found_after = differing.is_empty().then_some(0);
        for (number, write) in (1..).zip(&self.writes) {
            for (change, etag) in &write.changes {
                match &change.hash {
                    Some(hash) => state.insert(change.key.clone(), Version { hash: hash.clone(), etag: etag.clone() }),
                    None => state.remove(&change.key),
                };
                if differs(&state, found, &change.key) {
                    differing.insert(change.key.clone());
                } else {
                    differing.remove(&change.key);
                }
            }
            if differing.is_empty() {
                found_after = Some(number);
            }
        }
        let writes = std::mem::take(&mut self.writes);
        self.base.clone_from(found);
        let Some(found_after) = found_after else {
            return Verdict::Unexplained {
                writes: count(&writes),
                key: differing.into_iter().next().unwrap_or_default(),
            };
        };
        let (there, gone) = writes.split_at_checked(found_after).unwrap_or((&writes, &[]));
        self.settled += count(there);
        match count(gone) {
            0 => Verdict::Whole {
                kept_unacknowledged: there.iter().filter(|write| !write.is_acknowledged).count() as u64,
            },
            lost => Verdict::Lost { writes: lost },
        }
    }
}

fn count(writes: &[Write]) -> u64 {
    writes.iter().filter(|write| write.is_acknowledged).count() as u64
}

fn differs(state: &State, found: &State, key: &str) -> bool {
    match (state.get(key), found.get(key)) {
        (Some(expected), Some(found)) => !expected.matches(found),
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
    }
}

#[cfg(test)]
mod tests;
