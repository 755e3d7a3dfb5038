//! Who may speak: the port through which the node signs, verifies and admits.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    codec::{blob, bounded, signature},
    id::{Incarnation, StoreId},
};

/// Certificates in one chain at most.
const CHAIN_MAX: usize = 8;
/// Bytes of one chain at most.
pub(crate) const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// The node's keys and its judgement of others, kept out of this crate.
///
/// `verify` and `admit` must depend on nothing but their arguments and the mesh's roots, in particular not on the
/// time: a replica that accepts what another refuses never agrees with it again. A chain that was valid once keeps
/// vouching for the ops of its node; withdrawing trust is a matter of documents, not of dates.
pub trait Authority: Send + Sync {
    /// Signs bytes with the node's key. The bytes begin with a tag of their own, see [`OriginRecord::signed_bytes`].
    fn sign(&self, bytes: &[u8]) -> [u8; 64];
    /// The node's public key.
    fn public_key(&self) -> [u8; 32];
    /// The certificates that vouch for it, DER, the node's own first, the root left out.
    fn chain(&self) -> Vec<Vec<u8>>;
    /// True where `signature` over `bytes` is by `public_key`.
    fn verify(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool;
    /// Who stands behind a record: its chain must lead to the mesh's root and its first certificate must hold
    /// `record.public_key`. The record's own signature is checked by the store.
    ///
    /// # Errors
    /// Why the chain proves nothing, as a sentence for the log.
    fn admit(&self, record: &OriginRecord) -> Result<Author, String>;
}

/// Who wrote: the node behind a store's life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Author {
    /// The node's id in its text form.
    pub node: String,
    /// The label that its operator gave it.
    pub name: String,
    /// True where its role lets it author policy; ops of others are refused everywhere, so all replicas agree.
    pub may_author: bool,
}

/// Ties a store's life to the node key that signs its ops; travels with the ops.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginRecord {
    /// The store's life.
    pub incarnation: Incarnation,
    /// The node key, Ed25519.
    pub public_key: [u8; 32],
    /// Certificates that vouch for the key, DER.
    #[serde(deserialize_with = "chain")]
    pub chain: Vec<Vec<u8>>,
    /// By the node key, over [`OriginRecord::signed_bytes`].
    #[serde(with = "signature")]
    pub signature: [u8; 64],
}

impl OriginRecord {
    /// What the signature covers.
    #[must_use]
    pub fn signed_bytes(store: &StoreId, incarnation: &Incarnation, public_key: &[u8; 32]) -> Vec<u8> {
        let mut bytes = b"marram-origin\x01".to_vec();
        for part in [store.mesh.as_bytes(), store.store.as_bytes(), incarnation.as_bytes(), public_key] {
            bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// A record for one's own new life.
    pub(crate) fn issue(store: &StoreId, incarnation: Incarnation, authority: &dyn Authority) -> Self {
        let public_key = authority.public_key();
        let signature = authority.sign(&Self::signed_bytes(store, &incarnation, &public_key));
        Self { incarnation, public_key, chain: authority.chain(), signature }
    }

    /// The author behind the record, after signature and chain were found right.
    pub(crate) fn admit(&self, store: &StoreId, authority: &dyn Authority) -> Result<Author, String> {
        if self.chain.len() > CHAIN_MAX || self.chain.iter().map(Vec::len).sum::<usize>() > CHAIN_BYTES_MAX {
            return Err("certificate chain is too long".to_owned());
        }
        let bytes = Self::signed_bytes(store, &self.incarnation, &self.public_key);
        if !authority.verify(&self.public_key, &bytes, &self.signature) {
            return Err("signature of the origin record is wrong".to_owned());
        }
        authority.admit(self)
    }
}

impl std::fmt::Debug for OriginRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OriginRecord").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

fn chain<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
    #[derive(Deserialize)]
    struct Certificate(#[serde(deserialize_with = "blob::deserialize")] Bytes);

    let certificates = bounded::<_, Certificate, CHAIN_MAX>(deserializer)?;
    Ok(certificates.into_iter().map(|certificate| certificate.0.into()).collect())
}
