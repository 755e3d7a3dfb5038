//! Who the peers are and how bytes reach them: identity, links, membership.
//!
//! It moves frames between nodes that have proven who they are, and keeps a view of which of them are alive and how far
//! away. It never sees a policy or a request, reads no clock ([`Clock`] is given to it) and opens no database.
//!
//! Start at [`trust`] for how a folder becomes a member of a mesh and how members recognise each other, at [`Links`] for
//! connections, at [`swim`] for who is alive, and at [`cell`] for what members tell each other about themselves.

pub mod addressbook;
pub mod carrier;
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
pub mod tcp;
pub mod trust;
pub mod vivaldi;

pub use carrier::Carrier;
pub use clock::Clock;
pub use id::{NodeId, NotANodeId};
pub use link::{
    CloseCode, LinkError, LinkRecv, LinkSend, LinkStream, NodeLink, PeerInfo, QuicLink, Retirement, StreamKind,
    StreamReset,
};
pub use links::{Inbound, LinkStatus, Links, LinksConfig, Transport};
