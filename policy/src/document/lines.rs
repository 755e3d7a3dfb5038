//! Where in its source each field of a document stood, so that a fault can name the line.

use std::collections::BTreeMap;

/// Lines of the fields of one document, by path. Empty for a document that was not read from text, or whose text is one
/// line.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceLines(BTreeMap<String, u32>);

impl SourceLines {
    /// The line, counted from 1, of the field at `path` or else of the nearest field around it.
    pub(crate) fn line(&self, path: &str) -> Option<u32> {
        if self.0.is_empty() {
            return None;
        }
        let mut path = path;
        loop {
            if let Some(line) = self.0.get(path) {
                return Some(*line);
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = path.get(..end)?,
                None => return self.0.get("").copied(),
            }
        }
    }

    /// Notes the line of a field; paths too long to be of use are left out, so that deep trees stay cheap.
    pub(crate) fn note(&mut self, path: &str, line: u32) {
        if line > 0 && path.len() <= PATH_BYTES_MAX {
            self.0.insert(path.to_owned(), line);
        }
    }
}

/// Longest path whose line is kept, in bytes.
const PATH_BYTES_MAX: usize = 256;
