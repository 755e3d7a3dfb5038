//! Idempotency keys: a client that repeats a write gets the first outcome and no second op.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Batch, Storage},
    codec::{self, Kind},
    error::StoreError,
    id::Dot,
    replica::keep::{IDEMPOTENCY, unencodable, unreadable},
};

/// How long an outcome is remembered.
const KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// Outcomes remembered; the oldest gives way.
const OUTCOMES_MAX: usize = 1_024;

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Its op; `None` where nothing had to change.
    pub(crate) dot: Option<Dot>,
    /// Which write it was.
    pub(crate) digest: [u8; 16],
    at_ms: u64,
}

/// The outcomes of the last 24 hours by idempotency key, and those of the writes under way.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    by_key: BTreeMap<String, Outcome>,
    /// Not durable yet; see [`Outcomes::commit`] and [`Outcomes::discard`].
    staged: BTreeMap<String, Outcome>,
    /// Keys to remove from the disk with the next batch.
    stale: Vec<String>,
}

impl Outcomes {
    pub(crate) fn load(storage: &dyn Storage) -> Result<Self, StoreError> {
        let mut by_key = BTreeMap::new();
        for (key, bytes) in storage.scan(IDEMPOTENCY)? {
            let outcome = codec::decode_stored(Kind::Idempotency, &bytes)
                .map_err(|error| unreadable("idempotency outcome", &error))?;
            let text = key.get(IDEMPOTENCY.len()..).and_then(|text| std::str::from_utf8(text).ok());
            // Under no key it would answer for every write that has none.
            let text = text.filter(|text| !text.is_empty());
            let text = text.ok_or_else(|| StoreError::Damaged("idempotency key is not text".to_owned()))?;
            by_key.insert(text.to_owned(), outcome);
        }
        Ok(Self { by_key, ..Self::default() })
    }

    /// Forgets what is older than a day.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        let stale = &mut self.stale;
        self.by_key.retain(|key, outcome| {
            let is_fresh = now_ms.saturating_sub(outcome.at_ms) < KEPT_MS;
            if !is_fresh {
                stale.push(key.clone());
            }
            is_fresh
        });
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Outcome> {
        self.staged.get(key).or_else(|| self.by_key.get(key))
    }

    /// Takes note of an outcome that becomes durable with the batch under way.
    pub(crate) fn stage(&mut self, key: String, dot: Option<Dot>, digest: [u8; 16], now_ms: u64) {
        self.staged.insert(key, Outcome { dot, digest, at_ms: now_ms });
    }

    /// Adds to the batch what has to be stored and removed for the outcomes under way.
    pub(crate) fn store(&self, batch: &mut Batch) -> Result<(), StoreError> {
        if self.staged.is_empty() {
            return Ok(());
        }
        for key in self.stale.iter().chain(self.oldest()) {
            batch.delete(disk_key(key));
        }
        for (key, outcome) in &self.staged {
            let bytes = codec::encode_stored(Kind::Idempotency, outcome).map_err(|error| unencodable(&error))?;
            batch.put(disk_key(key), bytes);
        }
        Ok(())
    }

    /// Adds every outcome to the batch of a database that is written anew.
    pub(crate) fn store_all(&self, batch: &mut Batch) -> Result<(), StoreError> {
        for (key, outcome) in &self.by_key {
            let bytes = codec::encode_stored(Kind::Idempotency, outcome).map_err(|error| unencodable(&error))?;
            batch.put(disk_key(key), bytes);
        }
        Ok(())
    }

    /// The outcomes under way are durable.
    pub(crate) fn commit(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        self.stale.clear();
        for oldest in self.oldest().into_iter().cloned().collect::<Vec<_>>() {
            self.by_key.remove(&oldest);
        }
        self.by_key.append(&mut self.staged);
    }

    /// The outcomes under way came to nothing.
    pub(crate) fn discard(&mut self) {
        self.staged.clear();
    }

    /// Those that give way to the outcomes under way.
    fn oldest(&self) -> Vec<&String> {
        let excess = (self.by_key.len() + self.staged.len()).saturating_sub(OUTCOMES_MAX);
        if excess == 0 {
            return Vec::new();
        }
        let mut by_age: Vec<(&String, &Outcome)> = self.by_key.iter().collect();
        by_age.sort_by_key(|(_, outcome)| outcome.at_ms);
        by_age.into_iter().take(excess).map(|(key, _)| key).collect()
    }
}

fn disk_key(key: &str) -> Vec<u8> {
    [IDEMPOTENCY, key.as_bytes()].concat()
}
