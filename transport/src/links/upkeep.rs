//! What has to be looked at now and then on every link: loss, data links without a stream, certificates about to end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::path::Path;
use super::{Inner, lock};
use crate::frame::{CloseCode, Purpose};
use crate::link::{NodeLink as _, QuicLink};

/// Looks over all links again and again until they are closed.
pub(crate) async fn run(inner: Arc<Inner>) {
    let closed = inner.closed().clone();
    let looking = async {
        let mut tick = interval(inner.config.tick.max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let links = inner.table().links();
            for link in &links {
                look_at(&inner, link);
            }
        }
    };
    closed.run_until_cancelled(looking).await;
}

fn look_at(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    let (rtt, loss) = link.sample_loss();
    lock(&inner.paths).remember(link.peer_shared().remote, Path { rtt, loss });

    let facts = link.facts();
    let now_unix = inner.clock.unix().as_secs();
    if now_unix >= facts.expires_at_unix {
        inner.counters.expired_closed.add();
        link.close(CloseCode::Expired, "a certificate has expired");
        return;
    }
    match facts.purpose {
        Purpose::Control if facts.outbound && now_unix >= facts.redial_at_unix => renew(inner, link),
        Purpose::Control => {}
        Purpose::Data => look_at_data(inner, link, now_unix),
    }
}

/// Has a control link replaced; it serves until the new one has taken over.
fn renew(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    let node = link.peer_shared().node;
    {
        let mut table = inner.table();
        let Some(peer) = table.peer_mut(node) else { return };
        // Links opened by the peer, or replaced already, are not for this node to renew.
        if !peer.control().is_some_and(|control| Arc::ptr_eq(control, link)) {
            return;
        }
        peer.is_renewal_due = true;
    }
    inner.start_dialling(node, false);
}

/// A data link about to expire takes no new streams, so that the next one finds another; one without streams is closed.
fn look_at_data(inner: &Arc<Inner>, link: &Arc<QuicLink>, now_unix: u64) {
    let facts = link.facts();
    let idle_for = link.idle_for(inner.clock.now());
    if !facts.outbound {
        return;
    }
    if now_unix >= facts.redial_at_unix {
        link.retire();
        inner.drop_data(link);
    }
    let is_retired = link.retired().is_cancelled();
    if idle_for >= inner.config.data_idle || (is_retired && link.streams_open() == 0) {
        link.retire();
        inner.drop_data(link);
        link.close(CloseCode::Idle, "no stream for a while");
    }
}
