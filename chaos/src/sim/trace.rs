//! What happened: a hash of every step, and on demand one line for each.

use super::chance::{mix, mix_bytes};

/// The record of one run.
#[derive(Debug, Default)]
pub(super) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(super) const fn new(is_told: bool) -> Self {
        Self { hash: 0, lines: if is_told { Some(Vec::new()) } else { None } }
    }

    /// Adds a line; the words are only looked for where somebody reads them.
    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    pub(super) const fn note(&mut self, value: u64) {
        self.hash = mix(self.hash, value);
    }

    pub(super) fn note_bytes(&mut self, bytes: &[u8]) {
        self.hash = mix_bytes(self.hash, bytes);
    }

    pub(super) fn end(self) -> (u64, Vec<String>) {
        (self.hash, self.lines.unwrap_or_default())
    }
}
