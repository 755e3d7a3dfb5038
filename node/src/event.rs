//! Everything that can happen to the control loop, listed in one place.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use transport::{LinkStream, NodeId, PeerInfo};

use crate::api::ApiError;
use crate::config::ServiceConfig;

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// A membership packet.
    Datagram {
        /// Who sent it, proven by its certificate.
        from: NodeId,
        /// The packet.
        bytes: Bytes,
    },
    /// A gossip message for chitchat.
    Gossip {
        /// Who sent it.
        from: NodeId,
        /// The message.
        bytes: Bytes,
    },
    /// New policy ops from a peer.
    Push {
        /// Who sent them.
        from: NodeId,
        /// The ops.
        bytes: Bytes,
    },
    /// A peer opened a sync conversation.
    Sync {
        /// Who.
        from: NodeId,
        /// The conversation.
        stream: LinkStream,
    },
    /// A control link came up.
    LinkUp(Arc<PeerInfo>),
    /// A control link ended.
    LinkDown {
        /// To whom.
        peer: Arc<PeerInfo>,
        /// Why.
        reason: String,
    },
    /// Somebody registers an instance of this node; durable already.
    PutInstance {
        /// The instance.
        config: ServiceConfig,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), ApiError>>,
    },
    /// Somebody removes an instance of this node; durable already.
    DeleteInstance {
        /// The service's name.
        service: String,
        /// Instance id.
        instance: String,
    },
    /// Where this node is reached, looked up anew.
    Addresses(Vec<String>),
    /// SIGTERM or SIGINT: take no new work and say goodbye.
    Drain,
}
