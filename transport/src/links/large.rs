//! Links beside the data links, for streams that carry much to a peer that is near: TLS over TCP.
//!
//! The kernel cuts a large write of TCP into packets, acknowledges and reassembles them; over QUIC every packet is made and
//! read by this process. On a short way without much loss, what QUIC has ahead of TCP is worth less than that. Until such
//! a link is up, and where it cannot be, streams take the data link.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::config::Transport;
use super::dialler::{self, Wanted};
use super::reach::Approach;
use super::table::Peer;
use super::{Inner, Links};
use crate::carrier::Carrier;
use crate::frame::{CloseCode, StreamKind};
use crate::id::NodeId;
use crate::link::{LinkError, LinkStream, NodeLink as _, QuicLink, Retirement};

/// A peer whose TCP port did not answer, or whose link ended early, is not tried again before this.
const RETRY: Duration = Duration::from_secs(60);

/// The links of one peer for large streams, by core.
#[derive(Debug, Default)]
pub(crate) struct LargeLinks {
    slots: HashMap<usize, Slot>,
    retry_at: Option<Duration>,
}

#[derive(Debug)]
enum Slot {
    Live(Arc<QuicLink>),
    Dialling,
}

impl LargeLinks {
    /// The link of a core that may be used.
    pub(crate) fn usable(&self, core: usize) -> Option<&Arc<QuicLink>> {
        match self.slots.get(&core)? {
            Slot::Live(link) => Some(link).filter(|link| link.is_usable()),
            Slot::Dialling => None,
        }
    }

    /// Takes in a link that is up.
    pub(crate) fn place(&mut self, link: &Arc<QuicLink>) {
        self.slots.insert(link.core(), Slot::Live(Arc::clone(link)));
    }

    /// Takes a link out, if it is in here.
    pub(crate) fn remove(&mut self, link: &Arc<QuicLink>) {
        self.slots.retain(|_, slot| !matches!(slot, Slot::Live(live) if Arc::ptr_eq(live, link)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a core's link may be dialled now.
    fn may_dial(&self, core: usize, now: Duration) -> bool {
        let is_dialling = matches!(self.slots.get(&core), Some(Slot::Dialling));
        !is_dialling && self.retry_at.is_none_or(|at| now >= at)
    }

    fn begin_dialling(&mut self, core: usize) {
        self.slots.insert(core, Slot::Dialling);
    }

    /// A dial has ended; `place` came before if it led to a link.
    fn end_dialling(&mut self, core: usize, now: Duration) {
        if matches!(self.slots.get(&core), Some(Slot::Dialling)) {
            self.slots.remove(&core);
            self.put_off(now);
        }
    }

    pub(crate) fn put_off(&mut self, now: Duration) {
        self.retry_at = Some(now + RETRY);
    }
}

impl Links {
    /// Opens a `Service` stream that is expected to carry much: over TCP where the peer is near and TCP gets through, else
    /// as [`Links::open_service`] does.
    ///
    /// # Errors
    /// Those of [`Links::open_service`].
    pub async fn open_large(&self, core: usize, to: NodeId, head: Bytes) -> Result<LinkStream, LinkError> {
        if let Some(link) = self.inner.large_link(core, to) {
            if let Ok(opened) = link.open_stream(StreamKind::Service, &head).await {
                return Ok(opened);
            }
            if link.is_closed() {
                self.inner.drop_data(&link);
            } else {
                self.doubt_large(core, to);
            }
        }
        self.open_service(core, to, head).await
    }

    /// Whether [`Links::open_large`] would take a link for large streams now. If that is worth it and there is none yet, it is
    /// dialled.
    pub fn takes_large(&self, core: usize, to: NodeId) -> bool {
        self.inner.large_link(core, to).is_some()
    }

    /// The link that streams opened by [`Links::open_large`] may be under way on: the one that new ones take, else the last
    /// that was left and still has some.
    pub fn large_link(&self, core: usize, to: NodeId) -> Option<Retirement> {
        self.inner.waited_on(core, to).map(|link| link.retirement().clone())
    }

    /// Opens a `Service` stream on `link`, a link for large streams, to see whether the peer answers there.
    ///
    /// # Errors
    /// [`LinkError::NotConnected`] where there is no such link; what [`LinkError`] says of streams that cannot be opened.
    pub async fn open_beside_large(&self, to: NodeId, link: &Retirement, head: Bytes) -> Result<LinkStream, LinkError> {
        let link = self.inner.large_of(to, link).ok_or(LinkError::NotConnected { node: to })?;
        link.open_stream(StreamKind::Service, &head).await
    }

    /// Nothing comes back on `link`, a link for large streams: it is closed, which ends the streams on it now
    /// instead of when nothing has come for long enough, and none is dialled for a while. Whether it was still there.
    pub fn give_up_large(&self, to: NodeId, link: &Retirement) -> bool {
        let Some(link) = self.inner.large_of(to, link) else { return false };
        self.inner.leave_large(&link);
        link.close(CloseCode::Silent, "no answer over tcp, and streams wait for one");
        true
    }

    /// Somebody waited in vain for an answer to a stream opened by [`Links::open_large`]: where there is a link for large
    /// streams of this core, new ones do not take it, and none is dialled for a while. Whether there was one.
    pub fn doubt_large(&self, core: usize, to: NodeId) -> bool {
        let link = self.inner.table().peer(to).and_then(|peer| peer.large.usable(core).cloned());
        let Some(link) = link else { return false };
        self.inner.leave_large(&link);
        true
    }
}

impl Inner {
    /// This core's link for large streams to a peer. Where there is none and one is worth it, it is dialled.
    fn large_link(self: &Arc<Self>, core: usize, to: NodeId) -> Option<Arc<QuicLink>> {
        let mut table = self.table();
        let peer = table.peer_mut(to)?;
        if let Some(link) = peer.large.usable(core) {
            return Some(Arc::clone(link));
        }
        let may_dial = !self.stopping.is_cancelled() && peer.large.may_dial(core, self.clock.now());
        if may_dial && self.is_near(peer, self.config.near_loss) {
            // The task takes the table's lock only when it is done, so after the slot is filled.
            self.spawn_on(core, dial(Arc::clone(self), core, to, peer.addrs_to_dial()))?;
            peer.large.begin_dialling(core);
        }
        None
    }

    /// The link on which streams of a core that carry much wait for their answers.
    fn waited_on(&self, core: usize, to: NodeId) -> Option<Arc<QuicLink>> {
        let table = self.table();
        let peer = table.peer(to)?;
        let is_of_core = |link: &&Arc<QuicLink>| link.facts().is_large && link.core() == core && !link.is_closed();
        let left = || peer.live().iter().rev().filter(is_of_core).find(|link| link.streams_open() > 0);
        peer.large.usable(core).or_else(left).cloned()
    }

    /// The link for large streams to a peer that is meant.
    fn large_of(&self, to: NodeId, meant: &Retirement) -> Option<Arc<QuicLink>> {
        let table = self.table();
        let is_meant = |link: &&Arc<QuicLink>| link.facts().is_large && link.retirement().is_of_same_link(meant);
        table.peer(to)?.live().iter().filter(|link| !link.is_closed()).find(is_meant).cloned()
    }

    /// A link for large streams takes no new ones, and none is dialled for a while. Nobody sees the one without the other.
    fn leave_large(&self, link: &Arc<QuicLink>) {
        let mut table = self.table();
        link.retire();
        if let Some(peer) = table.peer_mut(link.peer_shared().node) {
            peer.large.remove(link);
            peer.large.put_off(self.clock.now());
        }
    }

    /// Whether a peer is so near that large streams to it are better off over TCP. What a data link that works to the limit
    /// loses says more of the load of the two nodes than of the way, so for loss the control link is asked.
    fn is_near(&self, peer: &Peer, loss_max: f64) -> bool {
        // Where the control link is on TCP, so are data links.
        let control = peer.control().filter(|control| control.carrier() == Carrier::Quic);
        self.config.transport == Transport::Auto
            && control.is_some_and(|control| control.loss() <= loss_max)
            && peer.live().iter().any(|link| link.carrier() == Carrier::Quic && link.path_rtt() <= self.config.near_rtt)
    }

    /// A link for large streams to a peer that is no longer near takes no new ones, and none is dialled for a while. It takes
    /// twice the loss to get there, so that one bad moment more or less does not matter.
    pub(crate) fn leave_if_far(&self, link: &Arc<QuicLink>) {
        let is_far = |peer: &Peer| peer.control().is_some() && !self.is_near(peer, self.config.near_loss * 2.0);
        let is_far = self.table().peer(link.peer_shared().node).is_some_and(is_far);
        if is_far {
            self.leave_large(link);
        }
    }
}

async fn dial(inner: Arc<Inner>, core: usize, to: NodeId, addrs: Vec<SocketAddr>) {
    let ending = EndDialling { inner: Arc::clone(&inner), core, to };
    if let Err(error) = dialler::open(&inner, core, addrs, Some(to), Wanted::Large, Approach::TCP).await {
        tracing::debug!(node = %to, %error, "no link over tcp for large streams");
    }
    drop(ending);
}

/// Empties the slot of a dial that has ended without a link, even by a panic.
struct EndDialling {
    inner: Arc<Inner>,
    core: usize,
    to: NodeId,
}

impl Drop for EndDialling {
    fn drop(&mut self) {
        let now = self.inner.clock.now();
        let mut table = self.inner.table();
        if let Some(peer) = table.peer_mut(self.to) {
            peer.large.end_dialling(self.core, now);
            table.forget_if_unknown(self.to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_dials_at_a_time_and_none_for_a_while_after_a_failure() {
        let (mut links, now) = (LargeLinks::default(), Duration::from_secs(5));
        assert!(links.may_dial(0, now));
        links.begin_dialling(0);
        assert!(!links.may_dial(0, now) && links.may_dial(1, now), "each core has its own");
        links.end_dialling(0, now);
        assert!(!links.may_dial(0, now + RETRY - Duration::from_millis(1)) && !links.may_dial(1, now));
        assert!(links.may_dial(0, now + RETRY));
        links.end_dialling(0, now + RETRY);
        assert!(links.may_dial(0, now + RETRY), "there was no dial to fail");
    }
}
