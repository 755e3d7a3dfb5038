//! Why a certificate was turned away, as a closed set that is counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// The fault of a certificate chain. Causes lie with whoever showed it; nothing changed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer showed no certificate at all.
    #[error("no certificate was shown")]
    NoCertificate,
    /// Not exactly a leaf, its node certificate and the admission certificate, or one of them is too large.
    #[error("the chain is not leaf, node certificate, admission certificate")]
    ChainShape,
    /// Bytes that are no certificate, or one with parts that this mesh does not use.
    #[error("a certificate of the chain is malformed")]
    Malformed,
    /// No signature leads to a root of this mesh: a stranger, a forger or a node of another mesh.
    #[error("the chain does not lead to a root of this mesh")]
    Untrusted,
    /// A certificate of the chain has ended. A member renews or joins again; a wrong clock on either side does the same.
    #[error("a certificate of the chain has expired (or a clock is wrong)")]
    Expired,
    /// A certificate of the chain begins in the future, which hints at a wrong clock on one of the two sides.
    #[error("a certificate of the chain is not valid yet (or a clock is wrong)")]
    NotYetValid,
    /// An issuing certificate was shown as a leaf.
    #[error("an issuing certificate stands where a leaf belongs")]
    NotALeaf,
    /// A certificate signed another one without the right to issue at that place of the chain.
    #[error("a certificate of the chain was signed by one that may not issue it")]
    NotAnIssuer,
    /// Key usage or extended key usage is not the one for this place of the chain.
    #[error("a certificate of the chain is made for another usage")]
    Usage,
    /// A name in the chain is missing, doubled or not of this mesh; leaves carry exactly one SPIFFE URI.
    #[error("a certificate of the chain does not carry exactly the one name it has to")]
    Name,
    /// A node signed a leaf in the name of another node.
    #[error("the leaf names a node other than the one that issued it")]
    Impersonation,
    /// A valid member, but not the one that was dialled.
    #[error("the peer is a member, but not the one that was dialled")]
    WrongPeer,
    /// The peer could not sign the handshake with the key of its leaf, or tried an algorithm other than Ed25519.
    #[error("the peer did not prove that it holds the key of its leaf")]
    Signature,
    /// The peer tried a TLS version before 1.3.
    #[error("the peer does not speak TLS 1.3")]
    ProtocolVersion,
}

impl Refusal {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 14] = [
        Self::NoCertificate,
        Self::ChainShape,
        Self::Malformed,
        Self::Untrusted,
        Self::Expired,
        Self::NotYetValid,
        Self::NotALeaf,
        Self::NotAnIssuer,
        Self::Usage,
        Self::Name,
        Self::Impersonation,
        Self::WrongPeer,
        Self::Signature,
        Self::ProtocolVersion,
    ];

    /// The word for metrics and logs.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::ChainShape => "chain_shape",
            Self::Malformed => "malformed",
            Self::Untrusted => "untrusted",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NotALeaf => "not_a_leaf",
            Self::NotAnIssuer => "not_an_issuer",
            Self::Usage => "usage",
            Self::Name => "name",
            Self::Impersonation => "impersonation",
            Self::WrongPeer => "wrong_peer",
            Self::Signature => "signature",
            Self::ProtocolVersion => "protocol_version",
        }
    }
}

/// Handshakes refused so far, by reason. Counts only grow; reading never blocks.
#[derive(Debug, Default)]
pub struct TrustCounters {
    refused: [AtomicU64; Refusal::ALL.len()],
}

impl TrustCounters {
    /// Counts one refusal. Whoever drives handshakes reports here what the verifier cannot see, such as a peer that
    /// shows no certificate.
    pub fn refuse(&self, refusal: Refusal) {
        for (reason, count) in Refusal::ALL.iter().zip(&self.refused) {
            if *reason == refusal {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How often handshakes were refused for this reason.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.snapshot().find(|(reason, _)| *reason == refusal).map_or(0, |(_, count)| count)
    }

    /// All reasons with their counts, in the order of [`Refusal::ALL`].
    pub fn snapshot(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.iter().zip(&self.refused).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
    }
}
