//! Who the peers are and how bytes reach them: identity, links, membership.

pub mod addressbook;
pub mod cell;
pub mod clock;
pub mod frame;
pub mod id;
pub mod link;
pub mod links;
mod listener;
pub mod records;
pub mod rtt;
pub mod swim;
pub mod trust;
pub mod vivaldi;

pub use clock::Clock;
pub use id::{NodeId, NotANodeId};
pub use link::{
    CloseCode, LinkError, LinkRecv, LinkSend, LinkStream, NodeLink, PeerInfo, QuicLink, StreamKind, StreamReset,
};
pub use links::{Inbound, LinkStatus, Links, LinksConfig};
