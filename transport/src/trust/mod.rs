//! Who belongs to the mesh, and how a node proves it is one of them.
//!
//! Nobody has to be online for two members to trust each other:
//!
//! ```text
//! root (sealed, taken away) → admission CA (nodes of role admit) → node CA (each node, for itself only) → leaf (a day)
//! ```
//!
//! A TLS peer shows `[leaf, node CA, admission CA]`; the root is known beforehand. [`PeerVerifier`] adds to the usual
//! chain checks the rule that makes "each node is its own issuer" safe: a leaf named `spiffe://MESH/node/ID` must be
//! issued by the node CA whose key hashes to that very ID. Start at [`init_mesh`], [`create_token`] and [`join`] for
//! how a folder comes to hold an identity, and at [`Identity`] for using one.

mod certificate;
mod chain;
mod error;
mod files;
mod identity;
mod init;
mod issue;
mod join;
mod key;
mod leaf;
mod name;
mod refusal;
mod roots;
mod seal;
mod subject;
mod tls;
mod token;
mod verifier;

pub use chain::{Admitted, verify_chain, verify_chain_undated};
pub use error::{FileFault, TrustError};
pub use identity::Identity;
pub use init::{InitOutcome, init_mesh, renew_admission};
pub(crate) use join::ALPN as JOIN_ALPN;
pub use join::{
    AnswerFault, JoinCounters, JoinError, JoinRefusal, JoinServer, JoinServerConfig, Joined, NamesInUse, PeersKnown,
    join,
};
pub use key::verify_signature;
pub use leaf::{LeafLife, LeafSource};
pub use name::{NameFault, Role, UnknownRole, check_mesh_name, check_node_name};
pub use refusal::{Refusal, TrustCounters};
pub use roots::TrustRoots;
pub use seal::{RootKey, open_root};
pub use subject::Subject;
#[cfg(test)]
pub(crate) use tls::provider as provider_for_tests;
pub use tls::{ALPN, client_config, key_exchange_name, server_config, server_name};
pub use token::{Token, TokenFault, create_token};
pub use verifier::{PeerIdentity, PeerVerifier};

#[cfg(test)]
mod tests;
