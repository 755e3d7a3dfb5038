//! Before a node goes, another one has what it has: a write that was acknowledged here and pushed a moment ago may still
//! be on its way, and this disk may be the next thing to break.
//!
//! A clean stop waits for one peer to confirm, at the end of a conversation, all that this node holds. It waits only
//! while there is a link to anybody, and never for long: a stop that hangs is killed, which helps nobody.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::IndexedRandom as _;
use tracing::{debug, warn};
use transport::{Links, NodeId};

use crate::store::StoreHandle;
use crate::sync::Syncer;

/// Peers that are talked to in one round.
const PEERS_A_ROUND: usize = 3;
/// The first pause between two rounds.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Waits until one peer has on its disk what is on this one as it is now; when none has `within` that time, the log says so.
pub async fn hand_over(store: &StoreHandle, links: &Links, syncer: &Arc<Syncer>, within: Duration) {
    match tokio::time::timeout(within, until_held(store, links, syncer)).await {
        Ok(Some(peer)) => debug!(%peer, "another node has all policy that is here"),
        Ok(None) => debug!("no other node in reach that policy could be handed to"),
        Err(_elapsed) => warn!(
            waited_s = within.as_secs(),
            "no other node has confirmed the newest policy of this one; it is on this disk and spreads after the next start"
        ),
    }
}

/// The peer that has everything; `None` where there is nobody to ask.
async fn until_held(store: &StoreHandle, links: &Links, syncer: &Arc<Syncer>) -> Option<NodeId> {
    let held = store.context().await.ok()?;
    let mut acks = store.acks();
    let mut pause = PAUSE_FIRST;
    loop {
        let linked: Vec<NodeId> = links.links().into_iter().filter(|link| link.control).map(|link| link.node).collect();
        let holder = acks.borrow_and_update().iter().find(|(_, ack)| ack.context.covers(&held)).map(|(peer, _)| *peer);
        if holder.is_some() || linked.is_empty() {
            return holder;
        }
        for peer in linked.sample(&mut rand::rng(), PEERS_A_ROUND) {
            syncer.start(*peer);
        }
        // Whoever is in a conversation already is asked again after the pause.
        if let Ok(Err(_closed)) = tokio::time::timeout(pause, acks.changed()).await {
            return None;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
