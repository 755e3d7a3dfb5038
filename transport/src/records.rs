//! Values that only the node they speak of can make.
//!
//! Gossip passes values through the hands of every member, and any of them could rewrite another's. So what matters is
//! written as a [`SignedRecord`]: signed by the node, for one purpose (`context`, such as the key it stands under), in
//! one life (`generation`) and with a number that rises (`seq`). A relay can then only hold a record back or repeat an
//! old one, and [`SignedRecord::supersedes`] shows which of two is the later.

use data_encoding::BASE64URL_NOPAD;

use crate::id::NodeId;
use crate::trust::{Admitted, Identity, TrustError, TrustRoots, verify_chain, verify_signature};

/// A payload signed by the node it speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    /// Who signed, and of whom the payload speaks.
    pub node: NodeId,
    /// In which life of that node.
    pub generation: u64,
    /// Rises with every record of one context in one life.
    pub seq: u64,
    /// What is said; its form is the context's business.
    pub payload: Vec<u8>,
    /// Ed25519, over mesh, context, node, generation, seq and payload.
    pub signature: [u8; 64],
}

/// Why a record does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The text is longer than the reader allows; nothing was decoded.
    #[error("a record of {len} bytes where {max} are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The text is not a record of a version known here.
    #[error("not a signed record")]
    Malformed,
    /// It speaks of another node than the one it was found under.
    #[error("a record of {found} where one of {expected} belongs")]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Whose it should be.
        expected: NodeId,
    },
    /// The key given is not the key of the node.
    #[error("the key is not the key of {node}")]
    OtherKey {
        /// The node.
        node: NodeId,
    },
    /// The signature is not the node's, or not for this purpose.
    #[error("the signature of {node} does not hold")]
    BadSignature {
        /// Who is said to have signed.
        node: NodeId,
    },
    /// The certificates do not admit the node.
    #[error("{node} is not admitted: {reason}")]
    NotAdmitted {
        /// The node.
        node: NodeId,
        /// What is wrong with its certificates.
        reason: String,
    },
}

impl SignedRecord {
    /// Signs a payload with the node's own key. `context` says what for, such as `cell/m/id`; a record moved to
    /// another place does not verify there.
    pub fn sign(identity: &Identity, context: &str, generation: u64, seq: u64, payload: &[u8]) -> Self {
        let node = identity.node();
        let signature = identity.sign(context, &signed_bytes(node, generation, seq, payload));
        Self { node, generation, seq, payload: payload.to_vec(), signature }
    }

    /// The text form, for values that must be text: base64 (URL alphabet, no padding) of version 1, node, generation,
    /// seq, signature, payload.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(HEAD_LEN + self.payload.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(self.node.as_bytes());
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.signature);
        bytes.extend_from_slice(&self.payload);
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// Reads the text form, at most `text_bytes_max` long. Says nothing yet of who wrote it.
    ///
    /// # Errors
    /// [`RecordError::TooLong`] or [`RecordError::Malformed`].
    pub fn from_text(text: &str, text_bytes_max: usize) -> Result<Self, RecordError> {
        if text.len() > text_bytes_max {
            return Err(RecordError::TooLong { len: text.len(), max: text_bytes_max });
        }
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().ok_or(RecordError::Malformed)?;
        Self::read(&bytes).ok_or(RecordError::Malformed)
    }

    /// Whether `expected_node`, whose key this is, signed the record for this mesh and context.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn verify(
        &self,
        mesh: &str,
        context: &str,
        expected_node: NodeId,
        public_key: &[u8; 32],
    ) -> Result<(), RecordError> {
        let node = self.node;
        if node != expected_node {
            return Err(RecordError::OtherNode { found: node, expected: expected_node });
        }
        if NodeId::from_public_key(public_key) != node {
            return Err(RecordError::OtherKey { node });
        }
        let bytes = signed_bytes(node, self.generation, self.seq, &self.payload);
        let holds = verify_signature(mesh, public_key, context, &bytes, &self.signature);
        if holds { Ok(()) } else { Err(RecordError::BadSignature { node }) }
    }

    /// As [`SignedRecord::verify`], with the key taken from the node's certificates (`[node CA, admission CA]`, DER),
    /// which must lead to one of the roots now. Returns who was admitted.
    ///
    /// # Errors
    /// [`RecordError`] with the first thing that is wrong.
    pub fn verify_chained(
        &self,
        roots: &TrustRoots,
        chain: &[Vec<u8>],
        context: &str,
        expected_node: NodeId,
        now_unix: u64,
    ) -> Result<Admitted, RecordError> {
        let refused = |error: TrustError| RecordError::NotAdmitted { node: self.node, reason: error.to_string() };
        let admitted = verify_chain(roots, chain, now_unix).map_err(refused)?;
        self.verify(roots.mesh(), context, expected_node, &admitted.public_key)?;
        Ok(admitted)
    }

    /// Whether this record is later than another of the same node and context.
    pub fn supersedes(&self, other: &Self) -> bool {
        (self.generation, self.seq) > (other.generation, other.seq)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let ([version], rest) = bytes.split_first_chunk()?;
        let (node, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let (signature, payload) = rest.split_first_chunk()?;
        (*version == VERSION).then(|| Self {
            node: NodeId::from_bytes(*node),
            generation: u64::from_be_bytes(*generation),
            seq: u64::from_be_bytes(*seq),
            payload: payload.to_vec(),
            signature: *signature,
        })
    }
}

/// Certificates as text, for a value beside the records they vouch for: base64 (URL alphabet, no padding), joined by
/// dots, node CA first.
pub fn chain_to_text(chain: &[Vec<u8>]) -> String {
    let parts: Vec<String> = chain.iter().map(|certificate| BASE64URL_NOPAD.encode(certificate)).collect();
    parts.join(".")
}

/// Reads certificates from their text form, at most `text_bytes_max` long and at most four.
///
/// # Errors
/// [`RecordError::TooLong`] or [`RecordError::Malformed`].
pub fn chain_from_text(text: &str, text_bytes_max: usize) -> Result<Vec<Vec<u8>>, RecordError> {
    if text.len() > text_bytes_max {
        return Err(RecordError::TooLong { len: text.len(), max: text_bytes_max });
    }
    let parts: Vec<&str> = text.split('.').take(CHAIN_MAX + 1).collect();
    if parts.len() > CHAIN_MAX || parts.iter().any(|part| part.is_empty()) {
        return Err(RecordError::Malformed);
    }
    let decode = |part: &&str| BASE64URL_NOPAD.decode(part.as_bytes()).ok().ok_or(RecordError::Malformed);
    parts.iter().map(decode).collect()
}

/// What is signed, beside mesh and context: everything of fixed length first, so that no two records share bytes.
fn signed_bytes(node: NodeId, generation: u64, seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(node.as_bytes());
    bytes.extend_from_slice(&generation.to_be_bytes());
    bytes.extend_from_slice(&seq.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

const VERSION: u8 = 1;
/// Version, node, generation, seq, signature.
const HEAD_LEN: usize = 1 + 16 + 8 + 8 + 64;
/// Certificates in one chain.
const CHAIN_MAX: usize = 4;

#[cfg(test)]
mod tests;
