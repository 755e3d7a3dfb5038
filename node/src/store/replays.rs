//! Requests that come twice: the answer of the first is given again.
//!
//! The replica remembers by what was written, over restarts. This remembers by what was asked for, which is more for
//! requests whose result depends on what is stored: a patch, a settled conflict. It lasts as long as the process; after
//! a restart such a request, told again, is refused and never carried out twice.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::Ask;
use crate::api::{ApiError, Settle, Write};
use crate::view::Applied;

/// How long an answer is remembered.
const KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// Answers remembered; the oldest gives way.
const ANSWERS_MAX: usize = 1_024;

/// Answers by idempotency key.
#[derive(Debug, Default)]
pub(super) struct Replays {
    by_key: BTreeMap<String, Replay>,
    order: VecDeque<String>,
}

#[derive(Debug)]
struct Replay {
    request: u64,
    at_ms: u64,
    applied: Applied,
}

impl Replays {
    /// What was answered when the same was asked under the same key.
    ///
    /// # Errors
    /// [`ApiError::IdempotencyReuse`] where something else was asked under it.
    pub(super) fn find(&mut self, ask: &Ask, now_ms: u64) -> Result<Option<Applied>, ApiError> {
        while let Some(oldest) = self.order.front() {
            let is_over = self.by_key.get(oldest).is_none_or(|known| now_ms.saturating_sub(known.at_ms) >= KEPT_MS);
            if !is_over && self.order.len() <= ANSWERS_MAX {
                break;
            }
            self.by_key.remove(oldest);
            self.order.pop_front();
        }
        match self.by_key.get(&ask.options.idempotency_key) {
            None => Ok(None),
            Some(known) if known.request == request(ask) => {
                Ok(Some(Applied { replayed: true, ..known.applied.clone() }))
            }
            Some(_) => Err(ApiError::IdempotencyReuse),
        }
    }

    /// Remembers what came of a request.
    pub(super) fn remember(&mut self, ask: &Ask, applied: &Applied, now_ms: u64) {
        let key = &ask.options.idempotency_key;
        if key.is_empty() {
            return;
        }
        let replay = Replay { request: request(ask), at_ms: now_ms, applied: applied.clone() };
        if self.by_key.insert(key.clone(), replay).is_none() {
            self.order.push_back(key.clone());
        }
    }
}

/// Tells one request from another. Whom it waits for is no part of what is asked.
fn request(ask: &Ask) -> u64 {
    let mut hasher = DefaultHasher::new();
    match &ask.write {
        Write::Apply(documents) => {
            documents.iter().for_each(|document| document.to_json().to_string().hash(&mut hasher));
        }
        Write::Delete(id) => ("delete", id).hash(&mut hasher),
        Write::Patch { id, patch } => ("patch", id, patch.to_string()).hash(&mut hasher),
        Write::Rollback { id, to } => ("rollback", id, to).hash(&mut hasher),
        Write::Resolve { id, settle: Settle::Take(dot) } => ("take", id, dot).hash(&mut hasher),
        Write::Resolve { id, settle: Settle::With(document) } => {
            ("with", id, document.to_json().to_string()).hash(&mut hasher);
        }
    }
    (&ask.options.reason, format!("{:?}", ask.options.condition)).hash(&mut hasher);
    hasher.finish()
}
