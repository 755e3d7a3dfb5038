//! A look at the registers themselves, for whoever checks that they hold what they should.

use std::collections::BTreeSet;

use crate::{
    id::{DocKey, Dot},
    replica::Replica,
};

impl Replica {
    /// The ops that nothing has superseded in one section of a document, tombstones included; an empty name asks for
    /// the sections that no edit has named. None where nothing is known of the document.
    #[must_use]
    pub fn live_in(&self, key: &DocKey, section: &str) -> BTreeSet<Dot> {
        self.store.registers(key).live_in(section)
    }
}
