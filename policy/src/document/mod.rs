//! Policy documents: the envelope every kind shares, and the specs of the kinds this version reads.

pub(crate) mod authorization;
pub(crate) mod backend_traffic;
pub(crate) mod canonical;
mod envelope;
pub(crate) mod fields;
pub(crate) mod health_check;
pub(crate) mod http_route;
pub(crate) mod limits;
mod lines;
pub(crate) mod locality;
mod parse;
pub(crate) mod peer_authentication;
pub(crate) mod requirements;
pub(crate) mod residency;
pub(crate) mod route_filter;
pub(crate) mod route_match;
mod sections;
mod time;
mod tree;

pub use envelope::{API_VERSION, DocId, Document, KNOWN_KINDS, Metadata, STRICTEST_KINDS, TargetRef};
pub(crate) use lines::SourceLines;
pub(crate) use parse::{DEPTH_MAX, is_told};
pub use parse::{Limits, accept_documents, parse_documents};
pub use peer_authentication::PeerMode;
#[cfg(test)]
pub(crate) use sections::tests::any_json;
