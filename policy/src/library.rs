//! Every document there is, read once and kept small, and compiled again whenever some of them change.

use std::collections::BTreeMap;

use crate::{
    compile::{Compiled, compile_readings},
    document::{DocId, Document},
    problem::Problem,
    reading::Reading,
    scope::Place,
};

/// What is filed of one document: the forms of it that count, and why it as a whole does not where it does not.
#[derive(Debug, Clone, Default)]
pub struct Filed {
    /// Usually one; several are concurrent edits that count each; none where no form of it is good.
    pub readings: Vec<Reading>,
    /// What is wrong with the document that its edits merged into; empty for one that is in order.
    pub faults: Vec<Problem>,
}

/// The documents of a mesh, by id.
///
/// Compiling what is filed is [`crate::compile`] of the documents that were filed, at a fraction of the cost: nothing is
/// read again, and what is kept of a document is what it says and not its text.
#[derive(Debug, Default)]
pub struct Library {
    filed: BTreeMap<DocId, Filed>,
}

impl Filed {
    /// Files the forms of one document that count, with what is wrong with it as a whole.
    #[must_use]
    pub fn new<'d>(forms: impl IntoIterator<Item = &'d Document>, faults: Vec<Problem>) -> Self {
        let mut readings: Vec<Reading> = forms.into_iter().map(Reading::new).collect();
        // The same order on every node, whatever order the edits came in.
        readings.sort_by(Reading::by_content);
        if let [one] = readings.as_mut_slice() {
            one.alone();
        }
        Self { readings, faults }
    }

    /// Whether there is nothing to file: the document does not exist.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.readings.is_empty() && self.faults.is_empty()
    }
}

impl Library {
    /// Replaces what is filed of `id`; an empty file takes the document out.
    pub fn file(&mut self, id: DocId, filed: Filed) {
        if filed.is_empty() {
            self.filed.remove(&id);
        } else {
            self.filed.insert(id, filed);
        }
    }

    /// Takes every document out.
    pub fn clear(&mut self) {
        self.filed.clear();
    }

    /// How many documents are filed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filed.len()
    }

    /// Whether none are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filed.is_empty()
    }

    /// Compiles what is filed, as [`crate::compile`] does with documents. Of a document that is faulty as a whole its own
    /// faults are told, not those of the forms that stand in for it.
    #[must_use]
    pub fn compile(&self, here: &Place, now_ms: u64) -> Compiled {
        let mut compiled = compile_readings(self.filed.values().flat_map(|filed| &filed.readings), here, now_ms);
        let faulty = |id: &DocId| self.filed.get(id).is_some_and(|filed| !filed.faults.is_empty());
        compiled.problems.retain(|(id, _)| !faulty(id));
        let whole = self.filed.iter().filter(|(_, filed)| !filed.faults.is_empty());
        compiled.problems.extend(whole.map(|(id, filed)| (id.clone(), filed.faults.clone())));
        compiled.problems.sort_by(|(left, _), (right, _)| left.cmp(right));
        compiled
    }
}

#[cfg(test)]
mod tests;
