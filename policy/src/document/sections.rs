//! A document as the sections the replicated store merges one by one, and back.
//!
//! A section is what makes sense only together: the whole `metadata` that people wrote (labels and description; scope
//! and name are the document's key), `targetRef`, and one section for each field of the spec, `spec.loadBalancer` or
//! `spec.rules`. Its bytes are canonical JSON, so that equal sections are equal bytes on every node.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    canonical, envelope,
    envelope::{Document, KNOWN_KINDS, Unknown},
    fields::shown,
    lines::SourceLines,
};
use crate::{
    problem::{Faults, Problem},
    validate::validate,
};

const METADATA: &str = "metadata";
const TARGET_REF: &str = "targetRef";
const SPEC: &str = "spec.";

/// A section whose bytes this version would not write: one it does not know, or with parts it cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    bytes: Vec<u8>,
    /// The section as this version writes what it read; `None` where it would not write the section at all.
    written: Option<Vec<u8>>,
}

impl Document {
    /// The sections of this document; `metadata` is always among them. Kind, scope and name are not: they are the key.
    ///
    /// What came from the store and was not changed since goes back byte by byte, whether or not this version knows what
    /// it means.
    #[must_use]
    pub fn to_sections(&self) -> BTreeMap<String, Vec<u8>> {
        let mut sections = self.written_sections();
        for (section, Stored { bytes, written }) in &self.stored {
            if sections.get(section) == written.as_ref() {
                sections.insert(section.clone(), bytes.clone());
            }
        }
        sections
    }

    fn written_sections(&self) -> BTreeMap<String, Vec<u8>> {
        let mut metadata: Map<_, _> = self.metadata.unknown.clone().into_iter().collect();
        if !self.metadata.labels.is_empty() {
            metadata.insert("labels".to_owned(), json!(self.metadata.labels));
        }
        if let Some(description) = &self.metadata.description {
            metadata.insert("description".to_owned(), json!(description));
        }
        if !self.metadata.locked.is_empty() {
            metadata.insert("locked".to_owned(), json!(self.metadata.locked));
        }
        if let Some(expires_at) = &self.metadata.expires_at {
            metadata.insert("expiresAt".to_owned(), json!(expires_at));
        }
        let mut sections = BTreeMap::from([(METADATA.to_owned(), canonical::to_bytes(&Value::Object(metadata)))]);
        if let Some(target) = &self.target_ref {
            let target = json!({ "kind": target.kind, "name": target.name });
            sections.insert(TARGET_REF.to_owned(), canonical::to_bytes(&target));
        }
        for (field, value) in self.spec.as_object().into_iter().flatten() {
            sections.insert(format!("{SPEC}{field}"), canonical::to_bytes(value));
        }
        sections
    }

    /// The document that `sections` under the key (`kind`, `scope`, `name`) make up, validated.
    ///
    /// # Errors
    /// Every fault at once: sections that cannot be read, and what [`validate`] says of the whole. Two concurrent
    /// writes that are each valid can merge into a document that is not.
    pub fn from_sections(
        kind: &str,
        scope: &str,
        name: &str,
        sections: &BTreeMap<String, impl AsRef<[u8]>>,
    ) -> Result<Self, Vec<Problem>> {
        let (document, _) = Self::read_sections(kind, scope, name, sections);
        validate(&document).map(|()| document)
    }

    /// As [`Document::from_sections`], but with what could be read of the document whatever is wrong with it, and
    /// without validating it: for showing a document that is not in force. The document remembers what could not be
    /// read: it does not validate, and [`Document::to_sections`] gives every byte back.
    ///
    /// Of a kind that this version does not know, fields of the envelope that it does not know are no fault.
    #[must_use]
    pub fn read_sections(
        kind: &str,
        scope: &str,
        name: &str,
        sections: &BTreeMap<String, impl AsRef<[u8]>>,
    ) -> (Self, Vec<Problem>) {
        let lines = SourceLines::default();
        let mut faults = Faults::new(&lines);
        let unknown = if KNOWN_KINDS.contains(&kind) { Unknown::Refused } else { Unknown::Kept };
        let mut whole = Map::new();
        let mut metadata = Map::new();
        let mut spec = Map::new();
        for (section, bytes) in sections {
            let Ok(value) = serde_json::from_slice::<Value>(bytes.as_ref()) else {
                faults.add(section, "the stored section is not JSON");
                continue;
            };
            match (section.as_str(), value) {
                (METADATA, value @ Value::Object(_)) => {
                    if let Value::Object(fields) = canonical::settled(value) {
                        metadata = fields;
                    }
                }
                (METADATA, _) => faults.add(METADATA, "the stored section is not an object"),
                (TARGET_REF, value) => {
                    whole.insert(TARGET_REF.to_owned(), value);
                }
                (section, value) => match section.strip_prefix(SPEC) {
                    Some(field) => {
                        spec.insert(field.to_owned(), canonical::settled(value));
                    }
                    None if unknown == Unknown::Kept => {}
                    None => {
                        faults.add(section, format_args!("`{}` is not a section this version knows", shown(section)));
                    }
                },
            }
        }
        // The key decides who the document is, whatever its metadata claims.
        metadata.insert("name".to_owned(), json!(name));
        metadata.insert("scope".to_owned(), json!(scope));
        whole.insert("apiVersion".to_owned(), json!(envelope::API_VERSION));
        whole.insert("kind".to_owned(), json!(kind));
        whole.insert(METADATA.to_owned(), Value::Object(metadata));
        whole.insert("spec".to_owned(), Value::Object(spec));
        let mut document = envelope::read(&Value::Object(whole), unknown, &mut faults);
        let written = document.written_sections();
        for (section, bytes) in sections {
            let (bytes, written) = (bytes.as_ref().to_vec(), written.get(section).cloned());
            if written.as_ref() != Some(&bytes) {
                document.stored.insert(section.clone(), Stored { bytes, written });
            }
        }
        document.unread = faults.into_problems();
        let problems = document.unread.clone();
        (document, problems)
    }
}

#[cfg(test)]
pub(crate) mod tests;
