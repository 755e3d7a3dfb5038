//! Writes chitchat 0.11.2's bytes by hand: its digests and deltas cannot be made outside of it.

use crate::cell::guard::GOSSIP_PORT;
use crate::id::NodeId;

/// One line of a digest.
#[derive(Clone)]
pub(crate) struct Entry(Vec<u8>);

impl Entry {
    pub(crate) fn new(node: NodeId, generation: u64, max_version: u64) -> Self {
        let mut bytes = id(node, generation);
        for number in [1_u64, 0, max_version] {
            bytes.extend(number.to_le_bytes());
        }
        Self(bytes)
    }
}

/// Operations of a delta.
#[derive(Clone, Default)]
pub(crate) struct Delta(Vec<u8>);

impl Delta {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn node(mut self, node: NodeId, generation: u64) -> Self {
        self.0.push(0);
        self.0.extend(id(node, generation));
        self.0.extend([0; 16]);
        self
    }

    pub(crate) fn value(mut self, key: &str, value: &str, version: u64) -> Self {
        self.0.push(1);
        self.0.extend(text(key));
        self.0.extend(text(value));
        self.0.extend(version.to_le_bytes());
        self.0.push(0);
        self
    }

    pub(crate) fn max_version(mut self, version: u64) -> Self {
        self.0.push(2);
        self.0.extend(version.to_le_bytes());
        self
    }

    pub(crate) fn plain(&self) -> Vec<u8> {
        blocks(2, self.0.chunks(16_384).map(<[u8]>::to_vec))
    }

    pub(crate) fn zstd(&self) -> Vec<u8> {
        blocks(1, self.0.chunks(16_384).map(|block| zstd::bulk::compress(block, 0).unwrap()))
    }
}

/// A stream of `count` blocks that inflate to 65,535 bytes each.
pub(crate) fn bomb(count: usize) -> Vec<u8> {
    let block = zstd::bulk::compress(&[0; 65_535], 19).unwrap();
    blocks(1, std::iter::repeat_n(block, count))
}

pub(crate) fn syn(digest: &[Entry], cluster: &str) -> Vec<u8> {
    [head(0), self::digest(digest), text(cluster)].concat()
}

pub(crate) fn syn_ack(digest: &[Entry], delta: &[u8]) -> Vec<u8> {
    [head(1), self::digest(digest), delta.to_vec()].concat()
}

pub(crate) fn ack(delta: &[u8]) -> Vec<u8> {
    [head(2), delta.to_vec()].concat()
}

fn head(kind: u8) -> Vec<u8> {
    [&45_139_u16.to_le_bytes()[..], &[0, kind]].concat()
}

fn digest(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = u16::try_from(entries.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(entries.iter().flat_map(|entry| entry.0.clone()));
    bytes
}

fn blocks(kind: u8, blocks: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in blocks {
        bytes.push(kind);
        bytes.extend(u16::try_from(block.len()).unwrap().to_le_bytes());
        bytes.extend(block);
    }
    bytes.push(0);
    bytes
}

fn id(node: NodeId, generation: u64) -> Vec<u8> {
    let mut bytes = text(&node.short());
    bytes.extend(generation.to_le_bytes());
    bytes.push(6);
    bytes.extend(node.as_bytes());
    bytes.extend(GOSSIP_PORT.to_le_bytes());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
