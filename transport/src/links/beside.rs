//! Datagrams that belong to what a stream has opened: they go over data links, so that they neither wait behind the
//! probes of the control link nor push them out of its buffer.

use std::sync::Arc;

use bytes::Bytes;

use super::counters::DatagramDrop;
use super::table::DataSlot;
use super::{Inner, Links};
use crate::frame::Purpose;
use crate::id::NodeId;
use crate::link::{LinkError, NodeLink as _, QuicLink};

impl Links {
    /// Sends a packet that may be lost over this core's data link to the peer, else over any data link with it. None is
    /// dialled: whoever sends has opened a stream before. The peer gets it by [`super::Inbound::datagram`].
    ///
    /// # Errors
    /// [`LinkError::NotConnected`], [`LinkError::DatagramTooLong`], [`LinkError::Closed`].
    pub fn send_beside(&self, core: usize, to: NodeId, bytes: Bytes) -> Result<(), LinkError> {
        let Some(link) = self.inner.usable_data_link(core, to) else {
            self.inner.counters.datagrams_dropped.add(DatagramDrop::NotConnected);
            return Err(LinkError::NotConnected { node: to });
        };
        link.datagram(bytes)
    }
}

impl Inner {
    fn usable_data_link(&self, core: usize, to: NodeId) -> Option<Arc<QuicLink>> {
        let table = self.table();
        let peer = table.peer(to)?;
        if let Some(DataSlot::Live(link)) = peer.data.get(&core)
            && link.is_usable()
        {
            return Some(Arc::clone(link));
        }
        let is_data = |link: &&Arc<QuicLink>| link.purpose() == Purpose::Data && link.is_usable();
        peer.live().iter().find(is_data).cloned()
    }
}
