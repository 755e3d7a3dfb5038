//! What has to be looked at now and then on every link: loss, data links without a stream, certificates about to end,
//! peers that moved or fell silent. And whether this node itself has moved.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::config::Transport;
use super::dialler;
use super::moves::{self, Sources};
use super::path::Path;
use super::table::SETTLED;
use super::{Inner, lock};
use crate::carrier::Carrier;
use crate::frame::{CloseCode, Purpose};
use crate::id::NodeId;
use crate::link::{NodeLink as _, QuicLink};

/// Looks over all links again and again until they are closed.
pub(crate) async fn run(inner: Arc<Inner>) {
    let closed = inner.closed().clone();
    let looking = async {
        let mut tick = interval(inner.config.tick.max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut own = OwnAddress::default();
        loop {
            tick.tick().await;
            let links = inner.table().links();
            for link in &links {
                look_at(&inner, link);
            }
            own.look(&inner, &links);
            if inner.config.transport == Transport::Auto {
                judge_udp(&inner);
            }
        }
    };
    closed.run_until_cancelled(looking).await;
}

fn look_at(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    let (rtt, loss) = link.sample_path(inner.clock.now());
    // TCP does not tell what it has lost: where QUIC works, that is asked.
    if link.carrier() == Carrier::Quic || link.purpose() == Purpose::Control {
        lock(&inner.paths).remember(link.remote(), Path { rtt, loss });
    }
    look_for_silence(inner, link);

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

/// A peer that moved is counted. Over a link on which nothing comes back nothing new is sent; another is dialled, and
/// whichever is heard first serves.
fn look_for_silence(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    let now = inner.clock.now();
    let found = link.look(now);
    if found.has_moved {
        inner.counters.migrations.add();
        tracing::info!(node = %link.peer_shared().node, remote = %link.remote(), "a peer goes on from another address");
    }
    // A young control link may be one of two dialled at once, and which of them stays is for both ends to say alike.
    let is_young = link.purpose() == Purpose::Control && now.saturating_sub(link.facts().up_at) < SETTLED;
    // What others found stands until something comes.
    let is_silent = found.is_silent || (link.is_silent() && !found.is_heard);
    set_silent(inner, link, is_silent && !is_young);
}

fn set_silent(inner: &Arc<Inner>, link: &Arc<QuicLink>, is_silent: bool) {
    if link.set_silent(is_silent) || !is_silent {
        return;
    }
    inner.counters.links_silent.add();
    tracing::debug!(node = %link.peer_shared().node, remote = %link.remote(), "nothing comes back over a link");
    if link.purpose() == Purpose::Control {
        inner.start_if_kept(link.peer_shared().node);
    }
}

/// The peer will not be heard again on a link that it opened to an address which is no longer this node's.
fn give_up(inner: &Arc<Inner>, link: &Arc<QuicLink>) {
    link.retire();
    if link.purpose() == Purpose::Control {
        inner.start_if_kept(link.peer_shared().node);
    }
}

/// Whether this node has moved: what was seen of its own addresses.
#[derive(Debug, Default)]
struct OwnAddress {
    sources: Sources,
    /// When a core's connections were last moved because nobody answered them.
    rebound_at: HashMap<usize, Duration>,
}

impl OwnAddress {
    /// Where the address towards a peer has changed, what this node opened goes on from there at once, and what others
    /// opened to an address that is gone is dialled from here.
    fn look(&mut self, inner: &Arc<Inner>, links: &[Arc<QuicLink>]) {
        let peers: BTreeSet<IpAddr> = links.iter().map(|link| link.remote().ip()).collect();
        let peers: Vec<_> = peers.into_iter().map(|peer| (peer, moves::source_towards(peer))).collect();
        let has_moved = self.sources.look(&peers);
        let now = inner.clock.now();
        for core in silent_cores(links).into_iter().filter_map(|(core, is_silent)| is_silent.then_some(core)) {
            let last = self.rebound_at.get(&core);
            if !has_moved && last.is_none_or(|last| now.saturating_sub(*last) >= REBIND_EVERY) {
                self.rebound_at.insert(core, now);
                inner.rebind(core);
            }
        }
        if has_moved {
            go_on_elsewhere(inner, links);
        }
    }
}

/// This node's address has changed.
pub(crate) fn go_on_elsewhere(inner: &Arc<Inner>, links: &[Arc<QuicLink>]) {
    tracing::info!("this node's address has changed");
    for core in 0..inner.cores() {
        inner.rebind(core);
    }
    inner.tell_moved();
    for link in links.iter().filter(|link| link.facts().is_large) {
        // TCP does not move: what is under way on it ends now instead of when nothing has come for long enough.
        link.retire();
        link.close(CloseCode::Superseded, "this node's address has changed");
    }
    for link in links.iter().filter(|link| !link.is_outbound() && !link.is_closed()) {
        if link.connection().local_ip().is_some_and(|own| !moves::is_own(own.to_canonical())) {
            give_up(inner, link);
        }
    }
}

/// Cores that have opened connections, and whether nothing comes back on any of them.
fn silent_cores(links: &[Arc<QuicLink>]) -> BTreeMap<usize, bool> {
    let mut cores = BTreeMap::new();
    for link in links.iter().filter(|link| link.is_outbound() && !link.is_closed()) {
        let is_silent = cores.entry(link.core()).or_insert(true);
        *is_silent &= link.is_silent();
    }
    cores
}

/// Where nobody answers, a new socket is tried at most this often.
const REBIND_EVERY: Duration = Duration::from_secs(5);

/// What the QUIC links of each peer say of UDP, and what follows: TCP is dialled beside a silent one, QUIC is tried
/// again beside TCP, and what is left of QUIC beside TCP ends when it is silent.
fn judge_udp(inner: &Arc<Inner>) {
    let (now, config) = (inner.clock.now(), &inner.config);
    let mut doubted: Vec<NodeId> = Vec::new();
    let mut retried = Vec::new();
    let mut dead = Vec::new();
    for (node, peer) in inner.table().nodes_mut() {
        let is_quic = |link: &&Arc<QuicLink>| link.carrier() == Carrier::Quic && !link.is_closed();
        let is_silent = |link: &&Arc<QuicLink>| link.is_unanswered(now, config.udp_silence);
        let any_silent = peer.live().iter().filter(is_quic).any(|link| is_silent(&link));
        let any_heard = peer.live().iter().filter(is_quic).any(|link| link.is_heard(now, config.udp_silence));
        let is_on_tcp = peer.control().is_some_and(|control| control.carrier() == Carrier::Tcp);
        if is_on_tcp {
            dead.extend(peer.live().iter().filter(is_quic).filter(is_silent).cloned());
        }
        if peer.reach.handle_silence(any_silent && !any_heard) && peer.reach.is_suspected() {
            doubted.push(node);
        }
        if is_on_tcp && peer.reach.take_retry(config, now, rand::random()) {
            retried.push((node, peer.addrs_to_dial()));
        }
    }
    for node in doubted {
        tracing::debug!(%node, "no answer over udp: tcp is dialled as well");
        inner.start_dialling(node, false);
    }
    for (node, addrs) in retried {
        if !addrs.is_empty() && !inner.stopping.is_cancelled() {
            inner.spawn_first(dialler::retry_quic(Arc::clone(inner), node, addrs));
        }
    }
    for link in dead {
        link.close(CloseCode::Silent, "no answer over udp, and tcp works");
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
    if facts.is_large && !link.retired().is_cancelled() {
        inner.leave_if_far(link);
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
