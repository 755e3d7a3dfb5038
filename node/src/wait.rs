//! Waiting until other nodes have a write on disk.
//!
//! A peer counts when it said so at the end of a conversation. While somebody waits, conversations are begun with every
//! peer that has not said so yet. Not being heard of in time is no failure: the write stands and spreads.

use std::time::Duration;

use crdt_store::Dot;
use policy::DocId;
use transport::NodeId;
use transport::swim::Liveness;

use crate::api::{Wait, WaitFor};
use crate::control::Control;
use crate::view::{Applied, AppliedDocument, Replicated};

/// The first pause between two rounds of conversations.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A node other than this one.
#[derive(Debug)]
struct Peer {
    node: NodeId,
    name: String,
    is_reachable: bool,
}

/// Waits as long as `wait` says, and tells which nodes have the write.
pub async fn replicated(control: &Control, applied: &Applied, wait: Wait) -> Replicated {
    let dots = dots(control, applied).await;
    let wanted = wanted(wait.peers, peers(control).len());
    let reached = tokio::time::timeout(wait.timeout, until(control, &dots, wanted)).await;
    reached.unwrap_or_else(|_elapsed| Replicated { nodes: holders(control, &dots).0, wanted })
}

async fn until(control: &Control, dots: &[Dot], wanted: usize) -> Replicated {
    let mut acks = control.store.acks();
    let mut pause = PAUSE_FIRST;
    loop {
        acks.mark_unchanged();
        let (nodes, missing) = holders(control, dots);
        if nodes.len() >= wanted {
            return Replicated { nodes, wanted };
        }
        for peer in missing {
            control.syncer.start(peer);
        }
        // Whoever tells something may have told what is waited for; and who was in a conversation already is asked again.
        if let Ok(Err(_stopping)) = tokio::time::timeout(pause, acks.changed()).await {
            return std::future::pending().await;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Labels of the peers that have all of `dots`, and the reachable ones that have not.
fn holders(control: &Control, dots: &[Dot]) -> (Vec<String>, Vec<NodeId>) {
    let all = peers(control);
    let (have, missing): (Vec<Peer>, Vec<Peer>) = {
        let acks = control.store.acks();
        let acks = acks.borrow();
        all.into_iter().partition(|peer| dots.iter().all(|dot| acks.has(&peer.node, *dot)))
    };
    let mut names: Vec<String> = have.into_iter().map(|peer| peer.name).collect();
    names.sort();
    (names, missing.into_iter().filter(|peer| peer.is_reachable).map(|peer| peer.node).collect())
}

/// Every other node that has not left.
fn peers(control: &Control) -> Vec<Peer> {
    let state = control.state();
    let staying = state.catalog.nodes().filter(|n| n.node != state.here.node && n.liveness != Liveness::Left);
    let peer = |known: &crate::catalog::KnownNode| Peer {
        node: known.node,
        name: known.facts.name.clone(),
        is_reachable: matches!(known.liveness, Liveness::Alive | Liveness::Suspect),
    };
    staying.map(peer).collect()
}

/// The write itself; where nothing had to be written, those that left the documents as they are.
async fn dots(control: &Control, applied: &Applied) -> Vec<Dot> {
    if let Ok(dot) = applied.dot.parse() {
        return vec![dot];
    }
    let mut dots = Vec::new();
    for AppliedDocument { scope, kind, name, .. } in &applied.documents {
        let id = DocId { scope: scope.clone(), kind: kind.clone(), name: name.clone() };
        let view = control.store.get(id, None).await;
        dots.extend(view.ok().and_then(|view| view.dot.parse::<Dot>().ok()));
    }
    dots
}

/// How many of `peers` other nodes are to have it.
fn wanted(wait: WaitFor, peers: usize) -> usize {
    match wait {
        WaitFor::Nobody => 0,
        WaitFor::Peers(count) => count,
        // More than half of all, this node among them and among those that have it.
        WaitFor::Majority => peers.div_ceil(2),
        WaitFor::All => peers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_counts_this_node_among_all() {
        for (peers, expected) in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
            assert_eq!(wanted(WaitFor::Majority, peers), expected, "{peers} peers");
            assert!((expected + 1) * 2 > peers + 1, "more than half of {} nodes", peers + 1);
        }
        assert_eq!(wanted(WaitFor::All, 4), 4);
        assert_eq!(wanted(WaitFor::Peers(7), 4), 7);
        assert_eq!(wanted(WaitFor::Nobody, 4), 0);
    }
}
