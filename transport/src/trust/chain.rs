//! From a node's own issuing certificate up to a root.

use serde::{Deserialize, Serialize};

use super::certificate::Certificate;
use super::error::TrustError;
use super::issue::{ADMISSION_PATH_LEN, NODE_PATH_LEN, admission_name};
use super::name::{Role, check_node_name};
use super::refusal::Refusal;
use super::roots::TrustRoots;
use crate::id::NodeId;

/// What an admitted node's certificates say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Its id, the hash of `public_key`.
    pub node: NodeId,
    /// The name its operator gave it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Its Ed25519 key: signs its leaves and its records.
    pub public_key: [u8; 32],
    /// When the first certificate of its chain ends, in seconds since 1970.
    pub not_after_unix: u64,
}

/// Checks `[node CA, admission CA]` (DER) against the roots at a time in seconds since 1970.
///
/// For records that travel without a TLS connection of their author: gossip values and signed operations. Costs two
/// Ed25519 verifications; callers keep the result by chain.
///
/// # Errors
/// [`TrustError::Refused`] with the reason.
pub fn verify_chain(roots: &TrustRoots, chain: &[Vec<u8>], now_unix: u64) -> Result<Admitted, TrustError> {
    let [node, admission] = chain else {
        return Err(Refusal::ChainShape.into());
    };
    Ok(verify_issuers(roots, node, admission, Some(now_unix))?)
}

/// The same without judging expiry, so that the answer never changes: for what a node signed once and others keep.
///
/// A record that one replica accepts today and another refuses after the certificate has ended would keep the two
/// apart for ever; whoever withdraws trust has to say so in a record of its own.
///
/// # Errors
/// [`TrustError::Refused`] with the reason.
pub fn verify_chain_undated(roots: &TrustRoots, chain: &[Vec<u8>]) -> Result<Admitted, TrustError> {
    let [node, admission] = chain else {
        return Err(Refusal::ChainShape.into());
    };
    Ok(verify_issuers(roots, node, admission, None)?)
}

/// The same with the two certificates apart; without a time, expiry is not judged.
pub(crate) fn verify_issuers(
    roots: &TrustRoots,
    node: &[u8],
    admission: &[u8],
    now_unix: Option<u64>,
) -> Result<Admitted, Refusal> {
    let admission = Certificate::parse(admission)?;
    let node = Certificate::parse(node)?;
    let by_root = |root: &&super::roots::Root| admission.check_signature(&root.subject, &root.public_key).is_ok();
    let root = roots.roots().iter().find(by_root).ok_or(Refusal::Untrusted)?;
    node.check_signature(admission.subject(), &admission.public_key)?;

    if let Some(now) = now_unix {
        admission.check_time(now)?;
        node.check_time(now)?;
        if now < root.not_before_unix {
            return Err(Refusal::NotYetValid);
        }
        if now > root.not_after_unix {
            return Err(Refusal::Expired);
        }
    }

    admission.check_issuer(ADMISSION_PATH_LEN.into())?;
    node.check_issuer(NODE_PATH_LEN.into())?;
    if admission.common_name()? != admission_name(roots.mesh()) {
        return Err(Refusal::Name);
    }
    let id = NodeId::from_public_key(&node.public_key);
    let name = node.organization()?;
    if node.common_name()? != id.to_string() || check_node_name(name).is_err() {
        return Err(Refusal::Name);
    }
    Ok(Admitted {
        node: id,
        name: name.to_owned(),
        role: node.organizational_unit()?.parse().ok().ok_or(Refusal::Name)?,
        public_key: node.public_key,
        not_after_unix: node.not_after_unix.min(admission.not_after_unix).min(root.not_after_unix),
    })
}
