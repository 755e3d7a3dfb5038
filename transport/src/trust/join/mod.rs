//! Letting a newcomer in: one question and one answer over TLS 1.3.
//!
//! ```text
//! newcomer                                        node of role admit
//!    | -- TLS 1.3 over TCP, ALPN marram-join/1 -------> |   shows [leaf, node CA, admission CA, root]
//!    | the root's key hashes to the token's pin, or the newcomer leaves: nothing was said yet
//!    | -- token id, secret, name, key, proof ---------> |   proof: the key signs the TLS session's exporter
//!    | <-- certificates, [admission key], peers ------- |   or the reason why not
//! ```
//!
//! The exporter (RFC 8446, section 7.5) ties the proof of possession to this very session, so nobody in between can
//! reuse it. A bare key with that signature takes the place of a PKCS#10 request: it proves more, and no ASN.1 of
//! somebody unknown is parsed.

mod client;
mod limit;
mod server;
mod wire;

pub use client::{AnswerFault, JoinError, Joined, join};
pub use server::{JoinCounters, JoinServer, JoinServerConfig, NamesInUse, PeersKnown};
pub use wire::JoinRefusal;

/// The application protocol of joining.
pub(crate) const ALPN: &[u8] = b"marram-join/1";
/// The label under which both sides export a value of the session.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-marram-join";
/// The context of the newcomer's signature.
const PROOF_CONTEXT: &str = "join";

/// What the newcomer's key signs: the session, the token and the name.
fn proof_bytes(exported: &[u8; 32], id: super::token::TokenId, name: &str) -> Vec<u8> {
    [exported.as_slice(), &id.0, name.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
