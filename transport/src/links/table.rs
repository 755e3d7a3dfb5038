//! Who the peers are, which links lead to them, and which of two control links stays.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Notify;

use super::config::LinksConfig;
use super::large::LargeLinks;
use super::outbox::Outbox;
use super::reach::{Approach, Reach};
use crate::carrier::Carrier;
use crate::frame::Purpose;
use crate::id::NodeId;
use crate::link::{LinkError, PeerInfo, QuicLink};

/// A dial that several callers wait for.
pub(crate) type SharedDial = Shared<BoxFuture<'static, Result<Arc<QuicLink>, LinkError>>>;

/// All peers of this node. Every method is short and runs under one lock; nothing here touches the network.
#[derive(Debug)]
pub(crate) struct Table {
    me: NodeId,
    peers: HashMap<NodeId, Peer>,
}

/// From this age on a link is not one of two that were dialled at the same time: longer than any dial takes.
pub(crate) const SETTLED: Duration = Duration::from_secs(10);

/// What is known of one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) addrs: Vec<SocketAddr>,
    /// Whether a control link is wanted for good.
    pub(crate) keep: bool,
    /// The link over which this node reaches the peer's control side.
    control: Option<Arc<QuicLink>>,
    /// Every connection with the peer, for both purposes, those about to be closed included.
    live: Vec<Arc<QuicLink>>,
    /// Data links of this node by core.
    pub(crate) data: HashMap<usize, DataSlot>,
    /// Those beside them, for streams that carry much.
    pub(crate) large: LargeLinks,
    pub(crate) outbox: Arc<Outbox>,
    /// Whether a task is on its way to a control link.
    pub(crate) is_dialling: bool,
    /// Whether the control link is to be replaced before a certificate ends.
    pub(crate) is_renewal_due: bool,
    /// Attempts in a row that led to no lasting link.
    pub(crate) failures: u32,
    /// Whether UDP gets through to it.
    pub(crate) reach: Reach,
    /// Ends a pause between two attempts.
    pub(crate) wake: Arc<Notify>,
}

/// The data link of one core, or the way to it.
#[derive(Debug)]
pub(crate) enum DataSlot {
    Live(Arc<QuicLink>),
    Dialling(SharedDial),
}

/// Something to tell the rest of the node, in the order in which it happened.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    Up { peer: Arc<PeerInfo>, outbound: bool },
    Down { peer: Arc<PeerInfo>, reason: String },
}

/// What becomes of links when a new one is confirmed.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// The link that is no longer needed: the former control link, or the new one.
    pub(crate) spare: Option<Arc<QuicLink>>,
    /// Links of an earlier life of the peer.
    pub(crate) stale: Vec<Arc<QuicLink>>,
    /// Data links of the same core on which nothing comes back.
    pub(crate) silent: Vec<Arc<QuicLink>>,
    pub(crate) events: Vec<LinkEvent>,
    /// The new link took over from one of the other carrier.
    pub(crate) is_carrier_change: bool,
}

/// What follows from the end of a link.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    pub(crate) event: Option<LinkEvent>,
    /// A control link to this peer is wanted and there is none.
    pub(crate) redial: bool,
}

/// What the task that keeps a peer connected does next.
#[derive(Debug)]
pub(crate) enum DialStep {
    Dial { addrs: Vec<SocketAddr>, failures: u32, wake: Arc<Notify>, approach: Approach },
    Done,
}

/// Who opened a link and in which life of the peer.
#[derive(Debug, Clone, Copy)]
struct Claim {
    outbound: bool,
    generation: u64,
    /// When it was confirmed.
    up_at: Duration,
}

impl Claim {
    fn of(link: &QuicLink) -> Self {
        let generation = link.hello().map_or(0, |hello| hello.generation);
        Self { outbound: link.is_outbound(), generation, up_at: link.facts().up_at }
    }
}

/// Whether a new control link takes over from the present one, when the two have different carriers. Whoever opened one
/// over TCP did so because UDP did not work for it, so QUIC gives way, unless it came up while TCP was being dialled.
fn takes_over_across(new: Carrier, present_is_fresh: bool) -> bool {
    match new {
        Carrier::Quic => true,
        Carrier::Tcp => !present_is_fresh,
    }
}

/// Whether a new control link takes over from the present one of the same carrier. Both ends come to the same answer.
fn takes_over(me: NodeId, peer: NodeId, new: Claim, present: Claim) -> bool {
    if new.generation > present.generation {
        return true;
    }
    if new.outbound == present.outbound {
        // Whoever opened both did so because the first is lost to it, or about to expire.
        return true;
    }
    if new.up_at.saturating_sub(present.up_at) >= SETTLED {
        // Nobody dials beside a link that serves: to whoever opened the new one the present one is lost.
        return true;
    }
    // Both have dialled: the one opened by the lower id stays.
    new.outbound == (me < peer)
}

impl Table {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, peers: HashMap::new() }
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<&Peer> {
        self.peers.get(&node)
    }

    pub(crate) fn peer_mut(&mut self, node: NodeId) -> Option<&mut Peer> {
        self.peers.get_mut(&node)
    }

    pub(crate) fn peer_or_new(&mut self, node: NodeId, outbox: impl FnOnce() -> Arc<Outbox>) -> &mut Peer {
        self.peers.entry(node).or_insert_with(|| Peer::new(outbox()))
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        self.peers.iter().map(|(node, peer)| (*node, peer))
    }

    pub(crate) fn nodes_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut Peer)> {
        self.peers.iter_mut().map(|(node, peer)| (*node, peer))
    }

    /// Takes a confirmed control link in.
    pub(crate) fn place_control(
        &mut self,
        link: &Arc<QuicLink>,
        outbox: impl FnOnce() -> Arc<Outbox>,
        config: &LinksConfig,
        now: Duration,
    ) -> Placement {
        let me = self.me;
        let node = link.peer_shared().node;
        let peer = self.peer_or_new(node, outbox);
        let mut placement = Placement::default();
        let claim = Claim::of(link);
        placement.stale = peer.evict_older_than(claim.generation);
        if let Some(former) =
            peer.control.take_if(|present| placement.stale.iter().any(|gone| Arc::ptr_eq(gone, present)))
        {
            let peer = Arc::clone(former.peer_shared());
            placement.events.push(LinkEvent::Down { peer, reason: "the node has started again".into() });
        }
        peer.live.push(Arc::clone(link));
        match peer.control.as_ref() {
            None => {
                let event = LinkEvent::Up { peer: Arc::clone(link.peer_shared()), outbound: link.is_outbound() };
                placement.events.push(event);
                peer.control = Some(Arc::clone(link));
            }
            // A link that has ended already, of which the end has not been dealt with yet, is replaced like a live one.
            Some(present) if !present.is_usable() || is_better(me, link, present, config, now) => {
                placement.is_carrier_change = present.carrier() != link.carrier();
                placement.spare = peer.control.replace(Arc::clone(link));
            }
            Some(_) => placement.spare = Some(Arc::clone(link)),
        }
        if peer.control.as_ref().is_some_and(|control| Arc::ptr_eq(control, link)) {
            peer.is_renewal_due = false;
            peer.reach.handle_link(link.carrier(), config, now, rand::random());
            peer.leave_data_of_others(link.carrier());
        }
        placement
    }

    /// Takes a data link in; one that this node opened becomes that of its core.
    pub(crate) fn place_data(&mut self, link: &Arc<QuicLink>, outbox: impl FnOnce() -> Arc<Outbox>) -> Placement {
        let peer = self.peer_or_new(link.peer_shared().node, outbox);
        let stale = peer.evict_older_than(Claim::of(link).generation);
        let mut silent = Vec::new();
        if link.is_outbound() {
            if link.facts().is_large {
                // It is over TCP, which says nothing of UDP.
                peer.large.place(link);
            } else {
                let beside = peer.live.iter().filter(|other| other.purpose() == Purpose::Data && other.is_outbound());
                for replaced in beside.filter(|other| other.core() == link.core() && !other.facts().is_large) {
                    replaced.retire();
                    silent.extend(replaced.is_silent().then(|| Arc::clone(replaced)));
                }
                peer.data.insert(link.core(), DataSlot::Live(Arc::clone(link)));
            }
        }
        peer.live.push(Arc::clone(link));
        Placement { stale, silent, ..Placement::default() }
    }

    /// Takes out what has ended.
    pub(crate) fn remove(&mut self, link: &Arc<QuicLink>, reason: &str, lasted: bool) -> Removal {
        let node = link.peer_shared().node;
        let Some(peer) = self.peers.get_mut(&node) else { return Removal::default() };
        peer.live.retain(|live| !Arc::ptr_eq(live, link));
        peer.drop_data(link);
        let mut removal = Removal::default();
        if peer.control.take_if(|control| Arc::ptr_eq(control, link)).is_some() {
            removal.event = Some(LinkEvent::Down { peer: Arc::clone(link.peer_shared()), reason: reason.to_owned() });
            peer.failures = if lasted { 0 } else { peer.failures.saturating_add(1) };
            removal.redial = peer.keep;
        }
        if peer.is_unknown() {
            self.peers.remove(&node);
        }
        removal
    }

    /// A link for large streams did not last: there is none for a while.
    pub(crate) fn put_large_off(&mut self, node: NodeId, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.large.put_off(now);
        }
    }

    /// Drops the peer's entry when nothing is known of it any more.
    pub(crate) fn forget_if_unknown(&mut self, node: NodeId) {
        if self.peers.get(&node).is_some_and(Peer::is_unknown) {
            self.peers.remove(&node);
        }
    }

    /// Whether a dial task for this peer should be started; if so, it counts as started.
    pub(crate) fn start_dialling(&mut self, node: NodeId) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let is_wanted = peer.wants_control();
        if peer.is_dialling || !is_wanted || peer.addrs_to_dial().is_empty() {
            return false;
        }
        peer.is_dialling = true;
        true
    }

    /// The next step of the task that keeps a peer connected; `Done` ends the task. `attempts` were made by this task.
    pub(crate) fn dial_step(&mut self, node: NodeId, attempts: u32, config: &LinksConfig) -> DialStep {
        let Some(peer) = self.peers.get_mut(&node) else { return DialStep::Done };
        let is_wanted = peer.wants_control();
        let addrs = peer.addrs_to_dial();
        // Without `keep`, one attempt is made each time somebody asks for the link.
        if !is_wanted || addrs.is_empty() || (!peer.keep && attempts > 0) {
            peer.is_dialling = false;
            self.forget_if_unknown(node);
            return DialStep::Done;
        }
        let approach = peer.approach(config, Purpose::Control);
        DialStep::Dial { addrs, failures: peer.failures, wake: Arc::clone(&peer.wake), approach }
    }

    /// Every link there is.
    pub(crate) fn links(&self) -> Vec<Arc<QuicLink>> {
        self.peers.values().flat_map(|peer| peer.live.iter().cloned()).collect()
    }
}

impl Peer {
    fn new(outbox: Arc<Outbox>) -> Self {
        Self {
            addrs: Vec::new(),
            keep: false,
            control: None,
            live: Vec::new(),
            data: HashMap::new(),
            large: LargeLinks::default(),
            outbox,
            is_dialling: false,
            is_renewal_due: false,
            failures: 0,
            reach: Reach::default(),
            wake: Arc::new(Notify::new()),
        }
    }

    /// The control link, unless it has ended.
    pub(crate) fn control(&self) -> Option<&Arc<QuicLink>> {
        self.control.as_ref().filter(|link| link.is_usable())
    }

    pub(crate) fn live(&self) -> &[Arc<QuicLink>] {
        &self.live
    }

    /// Whether a control link is to be opened: there is none, or it is to be replaced, or doubted.
    fn wants_control(&self) -> bool {
        self.control().is_none() || self.is_renewal_due || self.reach.is_suspected()
    }

    /// How to dial it now.
    pub(crate) fn approach(&self, config: &LinksConfig, purpose: Purpose) -> Approach {
        self.reach.approach(config, purpose, self.control().is_some())
    }

    /// New streams find a data link of this carrier; those under way on others end where they are.
    fn leave_data_of_others(&mut self, carrier: Carrier) {
        self.data.retain(|_, slot| match slot {
            DataSlot::Live(link) if link.carrier() != carrier => {
                link.retire();
                false
            }
            DataSlot::Live(_) | DataSlot::Dialling(_) => true,
        });
    }

    /// Connections the peer has to this node over one carrier.
    pub(crate) fn inbound_count(&self, carrier: Carrier) -> usize {
        self.live.iter().filter(|link| !link.is_outbound() && link.carrier() == carrier).count()
    }

    /// Where to dial: the address of a live link that this node opened first, then what was set, then the same ports where
    /// the peer's own connections come from, should it have moved.
    pub(crate) fn addrs_to_dial(&self) -> Vec<SocketAddr> {
        let usable = || self.live.iter().rev().filter(|link| link.is_usable());
        let proven = usable().find(|link| link.is_outbound()).map(|link| link.peer_shared().remote);
        let seen = usable().find(|link| !link.is_outbound()).map(|link| link.remote().ip());
        let elsewhere = seen.and_then(|ip| Some(SocketAddr::new(ip, self.addrs.first()?.port())));
        let mut addrs = Vec::with_capacity(self.addrs.len() + 2);
        for addr in proven.into_iter().chain(self.addrs.iter().copied()).chain(elsewhere) {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs
    }

    /// The data link of a core, whether it may be used or not.
    pub(crate) fn data(&self, core: usize) -> Option<&Arc<QuicLink>> {
        match self.data.get(&core)? {
            DataSlot::Live(link) => Some(link),
            DataSlot::Dialling(_) => None,
        }
    }

    /// Takes a data link out of its core's slot, if it is in there.
    pub(crate) fn drop_data(&mut self, link: &Arc<QuicLink>) {
        self.data.retain(|_, slot| !matches!(slot, DataSlot::Live(live) if Arc::ptr_eq(live, link)));
        self.large.remove(link);
    }

    fn has_no_data(&self) -> bool {
        self.data.is_empty() && self.large.is_empty()
    }

    fn is_unknown(&self) -> bool {
        !self.keep && self.addrs.is_empty() && self.live.is_empty() && self.has_no_data() && !self.is_dialling
    }

    /// Takes out the links of earlier lives of the peer. A data link whose peer has not answered yet may be of any
    /// life and stays; one of an earlier life is ended by the peer's stateless reset.
    fn evict_older_than(&mut self, generation: u64) -> Vec<Arc<QuicLink>> {
        let is_older = |link: &Arc<QuicLink>| link.hello().is_some_and(|hello| hello.generation < generation);
        let (stale, live) = self.live.drain(..).partition(is_older);
        self.live = live;
        for link in &stale {
            self.drop_data(link);
        }
        stale
    }
}

/// Whether a new control link is to take the place of the present one.
fn is_better(me: NodeId, new: &QuicLink, present: &QuicLink, config: &LinksConfig, now: Duration) -> bool {
    let (claim, present_claim) = (Claim::of(new), Claim::of(present));
    if new.carrier() != present.carrier() && claim.generation == present_claim.generation {
        let is_fresh = present.is_fresh(now) && !present.is_unanswered(now, config.udp_silence);
        return takes_over_across(new.carrier(), is_fresh);
    }
    takes_over(me, new.peer_shared().node, claim, present_claim)
}

/// The pause before an attempt: none before the first, then doubling from `min` to `max`, half of it by `chance` in
/// `0..1`, so that a fleet that lost a node does not come back to it in step.
pub(crate) fn backoff(failures: u32, min: Duration, max: Duration, chance: f64) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let whole = min.saturating_mul(2_u32.saturating_pow(doublings)).min(max);
    whole.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

/// The purpose of a link in words.
pub(crate) const fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Control => "control",
        Purpose::Data => "data",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    #[test]
    fn both_ends_keep_the_same_connection() {
        let (low, high) = (node(1), node(2));
        let at = |outbound, generation| Claim { outbound, generation, up_at: SETTLED };
        // The connection opened by the lower id, then the other one, as each end sees them.
        for (new_of_low, new_of_high) in [(true, false), (false, true)] {
            let low_says = takes_over(low, high, at(new_of_low, 1), at(!new_of_low, 1));
            let high_says = takes_over(high, low, at(new_of_high, 1), at(!new_of_high, 1));
            assert_eq!(low_says, high_says);
            assert_eq!(low_says, new_of_low, "the connection opened by the lower id stays");
        }
    }

    #[test]
    fn a_newer_connection_of_the_same_opener_and_a_newer_life_take_over() {
        let claim = |outbound, generation| Claim { outbound, generation, up_at: SETTLED };
        for outbound in [true, false] {
            assert!(takes_over(node(1), node(2), claim(outbound, 1), claim(outbound, 1)));
            assert!(takes_over(node(1), node(2), claim(outbound, 2), claim(!outbound, 1)));
        }
    }

    #[test]
    fn a_link_beside_one_that_served_for_long_takes_over_whoever_opened_it() {
        let claim = |outbound, up_at| Claim { outbound, generation: 1, up_at };
        let late = SETTLED * 3;
        for new_of_low in [true, false] {
            let low_says = takes_over(node(1), node(2), claim(new_of_low, late), claim(!new_of_low, SETTLED));
            let high_says = takes_over(node(2), node(1), claim(!new_of_low, late), claim(new_of_low, SETTLED));
            assert!(low_says && high_says);
        }
        assert!(!takes_over(node(1), node(2), claim(false, SETTLED), claim(true, Duration::from_millis(1))));
    }

    #[test]
    fn quic_takes_over_from_tcp_and_tcp_from_quic_that_is_not_just_up() {
        for (new, present_is_fresh, expected) in [
            (Carrier::Quic, false, true),
            (Carrier::Quic, true, true),
            (Carrier::Tcp, false, true),
            (Carrier::Tcp, true, false),
        ] {
            assert_eq!(takes_over_across(new, present_is_fresh), expected, "{new:?}, fresh {present_is_fresh}");
        }
    }

    #[test]
    fn pauses_double_from_nothing_to_the_longest_and_half_is_chance() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(2));
        let at = |failures, chance| backoff(failures, min, max, chance).as_millis();
        let longest: Vec<_> = (0..7).map(|failures| at(failures, 1.0)).collect();
        assert_eq!(longest, [0, 200, 400, 800, 1600, 2000, 2000]);
        let shortest: Vec<_> = (0..7).map(|failures| at(failures, 0.0)).collect();
        assert_eq!(shortest, [0, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(at(u32::MAX, 1.0), 2000);
    }
}
