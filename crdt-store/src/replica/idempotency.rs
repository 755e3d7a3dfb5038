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

/// The outcomes of the last 24 hours by idempotency key.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    by_key: BTreeMap<String, Outcome>,
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
            let text = text.ok_or_else(|| StoreError::Damaged("idempotency key is not text".to_owned()))?;
            by_key.insert(text.to_owned(), outcome);
        }
        Ok(Self { by_key, stale: Vec::new() })
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
        self.by_key.get(key)
    }

    /// Adds to the batch what has to be stored and removed for a new outcome; call [`Outcomes::remember`] once it is.
    pub(crate) fn store(
        &self,
        key: &str,
        dot: Option<Dot>,
        digest: [u8; 16],
        now_ms: u64,
        batch: &mut Batch,
    ) -> Result<Outcome, StoreError> {
        let outcome = Outcome { dot, digest, at_ms: now_ms };
        let bytes = codec::encode_stored(Kind::Idempotency, &outcome).map_err(|error| unencodable(&error))?;
        for stale in self.stale.iter().chain(self.oldest()) {
            batch.delete(disk_key(stale));
        }
        batch.put(disk_key(key), bytes);
        Ok(outcome)
    }

    pub(crate) fn remember(&mut self, key: String, outcome: Outcome) {
        self.stale.clear();
        if let Some(oldest) = self.oldest().cloned() {
            self.by_key.remove(&oldest);
        }
        self.by_key.insert(key, outcome);
    }

    fn oldest(&self) -> Option<&String> {
        let oldest = self.by_key.iter().min_by_key(|(_, outcome)| outcome.at_ms).map(|(key, _)| key);
        oldest.filter(|_| self.by_key.len() >= OUTCOMES_MAX)
    }
}

fn disk_key(key: &str) -> Vec<u8> {
    [IDEMPOTENCY, key.as_bytes()].concat()
}
