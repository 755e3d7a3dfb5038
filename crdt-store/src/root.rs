//! The visible root: one hash for everything that can be seen, kept up to date in 256 buckets.
//!
//! Replicas that have seen the same ops have the same root. Tombstones are not part of it, so collecting them at
//! different times does not make roots differ; neither are deletions beside an edit, which one replica may have
//! collected before the edit came and another not. The buckets are what replicas compare below a floor.

use std::collections::BTreeMap;

use crate::id::{DocKey, head, sha256};

/// How many buckets there are.
pub(crate) const BUCKETS: usize = 256;

/// Hashes of the visible documents, by the first byte of the hash of their key.
#[derive(Debug, Clone)]
pub(crate) struct RootTree {
    buckets: Vec<Bucket>,
}

#[derive(Debug, Clone, Default)]
struct Bucket {
    documents: BTreeMap<[u8; 16], [u8; 16]>,
    hash: [u8; 16],
}

impl Default for RootTree {
    fn default() -> Self {
        Self { buckets: vec![Bucket::default(); BUCKETS] }
    }
}

impl RootTree {
    /// Sets a document's hash; `None` where it is not visible.
    pub(crate) fn set(&mut self, key: &DocKey, hash: Option<[u8; 16]>) {
        let id = key_id(key);
        let Some(bucket) = self.buckets.get_mut(usize::from(id[0])) else { return };
        let before = match hash {
            Some(hash) => bucket.documents.insert(id, hash),
            None => bucket.documents.remove(&id),
        };
        if before == hash {
            return;
        }
        bucket.hash = if bucket.documents.is_empty() {
            [0; 16]
        } else {
            let mut bytes = Vec::with_capacity(bucket.documents.len() * 32);
            for (id, hash) in &bucket.documents {
                bytes.extend_from_slice(id);
                bytes.extend_from_slice(hash);
            }
            head(&sha256(&[b"marram-bucket", &bytes]))
        };
    }

    /// The hash of each bucket, zeros for one without documents.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = [u8; 16]> {
        self.buckets.iter().map(|bucket| bucket.hash)
    }

    /// The root over all buckets.
    pub(crate) fn root(&self) -> [u8; 16] {
        let mut bytes = Vec::with_capacity(BUCKETS * 16);
        for bucket in &self.buckets {
            bytes.extend_from_slice(&bucket.hash);
        }
        head(&sha256(&[b"marram-root", &bytes]))
    }
}

/// What a document's key is called where 16 bytes must do; the first byte is its bucket.
pub(crate) fn key_id(key: &DocKey) -> [u8; 16] {
    head(&sha256(&[
        b"marram-key",
        &length(&key.kind),
        key.kind.as_bytes(),
        &length(&key.scope),
        key.scope.as_bytes(),
        key.name.as_bytes(),
    ]))
}

fn length(text: &str) -> [u8; 8] {
    u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_depends_on_content_and_not_on_order() {
        let keys: Vec<DocKey> = (0..1_000).map(|n| DocKey::new("k", "global", format!("n{n}"))).collect();
        let mut there = RootTree::default();
        keys.iter().for_each(|key| there.set(key, Some([1; 16])));
        let mut back = RootTree::default();
        keys.iter().rev().for_each(|key| back.set(key, Some([2; 16])));
        assert_ne!(there.root(), back.root());
        keys.iter().for_each(|key| back.set(key, Some([1; 16])));
        assert_eq!(there.root(), back.root());
        keys.iter().for_each(|key| back.set(key, None));
        assert_eq!(back.root(), RootTree::default().root());
    }
}
