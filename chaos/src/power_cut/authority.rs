//! The keys of a writer: real signatures, nobody to admit but itself.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use crdt_store::{Author, Authority, OriginRecord};

/// A node that trusts whoever holds its own key.
#[derive(Debug)]
pub struct LoneNode(Ed25519KeyPair);

impl LoneNode {
    /// Always the same node.
    ///
    /// # Errors
    /// When the crypto library refuses the key.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Ed25519KeyPair::from_seed_unchecked(&[7; 32])?))
    }
}

impl Authority for LoneNode {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        // Zeros are no signature: an impossible length would fail every check.
        self.0.sign(bytes).as_ref().try_into().unwrap_or([0; 64])
    }

    fn public_key(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().unwrap_or([0; 32])
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        // About as many bytes as two certificates.
        vec![vec![1; 500], vec![2; 500]]
    }

    fn verify(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, public_key).verify(bytes, signature).is_ok()
    }

    fn admit(&self, record: &OriginRecord) -> Result<Author, String> {
        if record.public_key != self.public_key() {
            return Err("another node's key".to_owned());
        }
        Ok(Author { node: "lone".to_owned(), name: "lone".to_owned(), may_author: true })
    }
}
