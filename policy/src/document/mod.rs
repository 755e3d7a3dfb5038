//! Policy documents: the envelope every kind shares, and the specs of the kinds this version enforces.

pub(crate) mod backend_traffic;
mod canonical;
mod envelope;
pub(crate) mod fields;
pub(crate) mod http_route;
mod lines;
mod parse;
mod sections;
mod tree;

pub use envelope::{API_VERSION, DocId, Document, ENFORCED_KINDS, Metadata, TargetRef};
pub(crate) use lines::SourceLines;
pub use parse::{Limits, accept_documents, parse_documents};
