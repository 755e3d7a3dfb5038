//! Peers that no longer answer where they were, and this node's own address that changed.
//!
//! A connection this node opened survives a change of this node's address: its packets leave from the new one, and the
//! peer follows (RFC 9000, section 9). One that a peer opened does not: only whoever opened a connection may move.
//! What tells is silence, and what the system says of addresses; both are looked at with every tick.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Packets sent since the peer was last heard that make its silence one: the first, and what is sent when its
/// acknowledgement does not come (RFC 9002, section 6.2: up to two for each probe timeout).
const UNANSWERED_MIN: u64 = 3;
/// The least silence that counts.
const SILENCE_MIN: Duration = Duration::from_millis(500);
/// Round trips that a silence lasts at least, as three probe timeouts where the round trip varies little.
const SILENCE_RTTS: u32 = 5;

/// What one look at a connection finds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight {
    /// Where its peer is.
    pub(crate) remote: SocketAddr,
    /// UDP packets received on it so far.
    pub(crate) received: u64,
    /// UDP packets sent on it so far.
    pub(crate) sent: u64,
    pub(crate) rtt: Duration,
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Finding {
    /// The peer's packets come from another address than at the last look.
    pub(crate) has_moved: bool,
    /// Something has come since the last look.
    pub(crate) is_heard: bool,
    /// Nothing has come for a while although the peer had reason to answer.
    pub(crate) is_silent: bool,
}

impl Finding {
    /// Nothing to find, as of a connection that notices by itself when nothing comes back.
    pub(crate) const HEARD: Self = Self { has_moved: false, is_heard: true, is_silent: false };
}

/// What was seen of a connection so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    remote: Option<SocketAddr>,
    received: u64,
    /// Packets sent when the peer was last heard.
    sent_then: u64,
    /// The first look that found something unanswered.
    unanswered_since: Option<Duration>,
}

impl Watch {
    /// Takes in what is seen at `now`.
    pub(crate) fn look(&mut self, now: Duration, sight: &Sight) -> Finding {
        let has_moved = self.remote.replace(sight.remote).is_some_and(|before| before != sight.remote);
        if sight.received != self.received {
            self.received = sight.received;
            self.sent_then = sight.sent;
            self.unanswered_since = None;
            return Finding { has_moved, is_heard: true, is_silent: false };
        }
        let unanswered = sight.sent.saturating_sub(self.sent_then);
        if unanswered == 0 {
            return Finding { has_moved, ..Finding::default() };
        }
        let since = *self.unanswered_since.get_or_insert(now);
        let limit = SILENCE_MIN.max(sight.rtt.saturating_mul(SILENCE_RTTS));
        let is_silent = unanswered >= UNANSWERED_MIN && now.saturating_sub(since) >= limit;
        Finding { has_moved, is_heard: false, is_silent }
    }

    /// Somebody else has looked: what was received until then is no news at the next look.
    pub(crate) const fn note(&mut self, received: u64) {
        self.received = received;
    }
}

/// The addresses that packets of this node leave from, by where they go.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    known: HashMap<IpAddr, IpAddr>,
}

impl Sources {
    /// Takes in the source address that is used towards each of these peers now; `true` when one of them is another
    /// than before. Peers that are no longer among them are forgotten, and so is a source while there is no route.
    pub(crate) fn look(&mut self, now: &[(IpAddr, Option<IpAddr>)]) -> bool {
        let has_changed = now.iter().any(|(peer, source)| {
            let before = self.known.get(peer);
            source.is_some_and(|source| before.is_some_and(|before| *before != source))
        });
        self.known.retain(|peer, _| now.iter().any(|(present, _)| present == peer));
        self.known.extend(now.iter().filter_map(|(peer, source)| Some((*peer, (*source)?))));
        has_changed
    }
}

/// The address that the system would send from to `peer`; `None` without a route. Connecting a UDP socket sends nothing.
pub(crate) fn source_towards(peer: IpAddr) -> Option<IpAddr> {
    let any = match peer {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, DISCARD_PORT)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether this machine still has an address.
pub(crate) fn is_own(address: IpAddr) -> bool {
    !matches!(UdpSocket::bind((address, 0)), Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable)
}

/// Any port does, as nothing is sent.
const DISCARD_PORT: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn sight(received: u64, sent: u64) -> Sight {
        Sight { remote: SocketAddr::from(([10, 0, 0, 1], 7440)), received, sent, rtt: RTT }
    }

    #[test]
    fn silence_takes_three_packets_without_an_answer_and_half_a_second() {
        let mut watch = Watch::default();
        let mut is_silent = |at, received, sent| watch.look(ms(at), &sight(received, sent)).is_silent;
        assert!(!is_silent(0, 10, 10));
        assert!(!is_silent(500, 10, 10), "nothing was asked");
        assert!(!is_silent(60_000, 10, 12), "asked since the last look");
        assert!(!is_silent(60_400, 10, 13), "not for long enough");
        assert!(is_silent(60_500, 10, 13));
        assert!(!is_silent(61_000, 11, 15), "heard again");
        assert!(!is_silent(62_000, 11, 17));
        assert!(!is_silent(99_000, 11, 17), "two packets may have been acknowledgements, which nobody answers");
    }

    #[test]
    fn far_peers_may_be_silent_for_longer() {
        let mut watch = Watch::default();
        let far = |received, sent| Sight { rtt: ms(600), ..sight(received, sent) };
        let looks = [(0, 9), (500, 14), (1_500, 19), (3_000, 24), (3_500, 29)];
        let silent = looks.map(|(at, sent)| watch.look(ms(at), &far(9, sent)).is_silent);
        assert_eq!(silent, [false, false, false, false, true]);
    }

    #[test]
    fn what_somebody_else_has_noted_is_no_news() {
        let mut watch = Watch::default();
        watch.look(ms(0), &sight(10, 10));
        watch.note(12);
        assert!(!watch.look(ms(500), &sight(12, 20)).is_heard);
        assert!(watch.look(ms(1000), &sight(13, 20)).is_heard);
    }

    #[test]
    fn a_move_is_told_once() {
        let mut watch = Watch::default();
        let elsewhere = Sight { remote: SocketAddr::from(([10, 0, 0, 9], 7440)), ..sight(2, 2) };
        assert!(!watch.look(ms(0), &sight(1, 1)).has_moved);
        assert!(watch.look(ms(500), &elsewhere).has_moved);
        assert!(!watch.look(ms(1000), &elsewhere).has_moved);
    }

    #[test]
    fn another_source_towards_a_known_peer_is_a_move_and_a_new_peer_or_a_lost_route_is_none() {
        let [peer, other, one, two] = [1, 2, 3, 4].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut sources = Sources::default();
        assert!(!sources.look(&[(peer, Some(one))]));
        assert!(!sources.look(&[(peer, Some(one)), (other, Some(two))]));
        assert!(
            !sources.look(&[(peer, None), (other, Some(two))]),
            "the old address is gone, the new one not there yet"
        );
        assert!(sources.look(&[(peer, Some(two)), (other, Some(two))]));
        assert!(!sources.look(&[(peer, Some(two)), (other, Some(two))]));
    }

    #[test]
    fn the_system_knows_its_addresses() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(source_towards(loopback), Some(loopback));
        assert!(is_own(loopback));
        // RFC 5737: for documentation, so no machine has it.
        assert!(!is_own(IpAddr::from([192, 0, 2, 1])));
    }
}
