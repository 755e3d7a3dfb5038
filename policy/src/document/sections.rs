//! A document as the sections the replicated store merges one by one, and back.
//!
//! A section is what makes sense only together: the whole `metadata` that people wrote (labels and description; scope
//! and name are the document's key), `targetRef`, and one section for each field of the spec, `spec.loadBalancer` or
//! `spec.rules`. Its bytes are canonical JSON, so that equal sections are equal bytes on every node.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{canonical, envelope, envelope::Document, fields::shown, lines::SourceLines};
use crate::{
    problem::{Faults, Problem},
    validate::validate,
};

const METADATA: &str = "metadata";
const TARGET_REF: &str = "targetRef";
const SPEC: &str = "spec.";

impl Document {
    /// The sections of this document; `metadata` is always among them. Kind, scope and name are not: they are the key.
    #[must_use]
    pub fn to_sections(&self) -> BTreeMap<String, Vec<u8>> {
        let mut metadata = Map::new();
        if !self.metadata.labels.is_empty() {
            metadata.insert("labels".to_owned(), json!(self.metadata.labels));
        }
        if let Some(description) = &self.metadata.description {
            metadata.insert("description".to_owned(), json!(description));
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
        let (document, mut problems) = Self::read_sections(kind, scope, name, sections);
        problems.extend(validate(&document).err().unwrap_or_default());
        if problems.is_empty() { Ok(document) } else { Err(problems) }
    }

    /// As [`Document::from_sections`], but with what could be read of the document whatever is wrong with it, and
    /// without validating it: for showing a document that is not in force.
    #[must_use]
    pub fn read_sections(
        kind: &str,
        scope: &str,
        name: &str,
        sections: &BTreeMap<String, impl AsRef<[u8]>>,
    ) -> (Self, Vec<Problem>) {
        let lines = SourceLines::default();
        let mut faults = Faults::new(&lines);
        let mut whole = Map::new();
        let mut metadata = Map::new();
        let mut spec = Map::new();
        for (section, bytes) in sections {
            let Ok(value) = serde_json::from_slice::<Value>(bytes.as_ref()) else {
                faults.add(section, "the stored section is not JSON");
                continue;
            };
            match (section.as_str(), value) {
                (METADATA, Value::Object(fields)) => metadata = fields,
                (METADATA, _) => faults.add(METADATA, "the stored section is not an object"),
                (TARGET_REF, value) => {
                    whole.insert(TARGET_REF.to_owned(), value);
                }
                (section, value) => match section.strip_prefix(SPEC) {
                    Some(field) => {
                        spec.insert(field.to_owned(), canonical::settled(value));
                    }
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
        let document = envelope::read(&Value::Object(whole), &mut faults);
        (document, faults.into_problems())
    }
}

#[cfg(test)]
pub(crate) mod tests;
