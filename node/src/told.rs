//! What other nodes told of themselves, kept over a restart of this one: who they are and what they offer.
//!
//! On disk stands each record as its node signed it. Read back, it is verified as if it had just come by gossip, and its
//! node has to answer a probe before it gets a request; but services are known, with the age of what is known, also while
//! nobody can be reached.

use std::collections::BTreeMap;
use std::time::Duration;

use transport::NodeId;

use crate::gossip::{FACTS_KEY, OFFERS_KEY};

/// Table of these records in the store.
pub const TOLD_TABLE: &str = "told";
/// Time between two writings; what changes more often is written as it is then.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// Records of one writing; further ones wait for the next.
const WRITE_MAX: usize = 64;

/// Records that are newer than those on disk.
#[derive(Debug, Default)]
pub struct Fresh {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    next_write: Duration,
}

/// One record as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Who told it.
    pub node: NodeId,
    /// The key it has in gossip.
    pub key: String,
    /// The signed record.
    pub text: String,
    /// When it was heard, seconds since 1970.
    pub heard_unix: u64,
}

impl Fresh {
    /// A node told something new.
    pub fn note(&mut self, node: NodeId, key: &str, text: &str, unix: Duration) {
        self.records.insert(disk_key(node, key), [&unix.as_secs().to_be_bytes(), text.as_bytes()].concat());
    }

    /// A node has left or is gone for good: the keys to remove from the disk.
    pub fn forget(&mut self, node: NodeId) -> [Vec<u8>; 2] {
        let keys = [FACTS_KEY, OFFERS_KEY].map(|key| disk_key(node, key));
        for key in &keys {
            self.records.remove(key);
        }
        keys
    }

    /// The records to write now; none while the last writing is too near.
    pub fn take_due(&mut self, now: Duration) -> Vec<(Vec<u8>, Vec<u8>)> {
        if self.records.is_empty() || now < self.next_write {
            return Vec::new();
        }
        self.next_write = now + WRITE_EVERY;
        std::iter::from_fn(|| self.records.pop_first()).take(WRITE_MAX).collect()
    }
}

/// Reads the table; who a node is comes before what it offers. What does not read is left out.
#[must_use]
pub fn read(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<Told> {
    let mut told: Vec<Told> = records.iter().filter_map(|(key, value)| read_one(key, value)).collect();
    told.sort_by_key(|told| told.key != FACTS_KEY);
    told
}

fn read_one(key: &[u8], value: &[u8]) -> Option<Told> {
    let (node, key) = key.split_first_chunk()?;
    let (heard, text) = value.split_first_chunk()?;
    Some(Told {
        node: NodeId::from_bytes(*node),
        key: String::from_utf8(key.to_vec()).ok()?,
        text: String::from_utf8(text.to_vec()).ok()?,
        heard_unix: u64::from_be_bytes(*heard),
    })
}

fn disk_key(node: NodeId, key: &str) -> Vec<u8> {
    [node.as_bytes().as_slice(), key.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    const UNIX: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn what_was_told_reads_back_facts_first_and_the_newest_only() {
        let mut fresh = Fresh::default();
        fresh.note(node(1), OFFERS_KEY, "old", UNIX);
        fresh.note(node(1), OFFERS_KEY, "offers", UNIX);
        fresh.note(node(2), FACTS_KEY, "facts", UNIX);
        let mut records = fresh.take_due(Duration::ZERO);
        records.push((vec![1, 2, 3], b"rubbish".to_vec()));
        let told: Vec<_> = read(&records).into_iter().map(|told| (told.node, told.key, told.text)).collect();
        let expected = [(node(2), FACTS_KEY, "facts"), (node(1), OFFERS_KEY, "offers")];
        assert_eq!(told, expected.map(|(node, key, text)| (node, key.to_owned(), text.to_owned())));
        assert!(read(&records).iter().all(|told| told.heard_unix == UNIX.as_secs()));
    }

    #[test]
    fn writings_are_paced_and_bounded_and_what_is_forgotten_is_not_written() {
        let mut fresh = Fresh::default();
        for byte in 0..100 {
            fresh.note(node(byte), FACTS_KEY, "facts", UNIX);
        }
        let keys = fresh.forget(node(99));
        assert_eq!(fresh.take_due(Duration::ZERO).len(), WRITE_MAX);
        assert!(fresh.take_due(WRITE_EVERY / 2).is_empty());
        let rest = fresh.take_due(WRITE_EVERY);
        assert_eq!(rest.len(), 99 - WRITE_MAX);
        assert!(rest.iter().all(|(key, _)| !keys.contains(key)));
    }
}
