//! Keys that cost next to nothing: a signature is a keyed hash, right for one key and one text and no other.
//!
//! Anybody could forge one, and nobody in a simulation does; what is simulated is faults, not forgers.

use crdt_store::{Author, Authority, OriginRecord};

use super::chance::mix_bytes;

/// The keys of one simulated node.
#[derive(Debug)]
pub(super) struct SimAuthority {
    name: String,
    key: [u8; 32],
}

impl SimAuthority {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), key: key_of(name.as_bytes()) }
    }
}

impl Authority for SimAuthority {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        spread(mix_bytes(mix_bytes(0x5e_ed, &self.key), bytes))
    }

    fn public_key(&self) -> [u8; 32] {
        self.key
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        vec![self.name.as_bytes().to_vec()]
    }

    fn verify(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
        spread::<64>(mix_bytes(mix_bytes(0x5e_ed, public_key), bytes)) == *signature
    }

    fn admit(&self, record: &OriginRecord) -> Result<Author, String> {
        let [name] = record.chain.as_slice() else { return Err("chain has another length".to_owned()) };
        if key_of(name) != record.public_key {
            return Err("chain holds another key".to_owned());
        }
        let name = String::from_utf8_lossy(name).into_owned();
        Ok(Author { node: format!("node-{name}"), name, may_author: true })
    }
}

fn key_of(name: &[u8]) -> [u8; 32] {
    spread(mix_bytes(0x000b_adbe, name))
}

/// Stretches a hash; `N` is a multiple of 8.
pub(super) fn spread<const N: usize>(hash: u64) -> [u8; N] {
    let mut chance = super::chance::Chance::new(hash);
    let mut bytes = [0; N];
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&chance.next().to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_right_for_one_key_and_one_text() {
        let (a, b) = (SimAuthority::new("a"), SimAuthority::new("b"));
        let signature = a.sign(b"text");
        assert!(b.verify(&a.public_key(), b"text", &signature));
        assert!(!b.verify(&a.public_key(), b"texts", &signature));
        assert!(!b.verify(&b.public_key(), b"text", &signature));
        let mut other = signature;
        other[63] ^= 1;
        assert!(!b.verify(&a.public_key(), b"text", &other));
    }
}
