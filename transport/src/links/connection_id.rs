//! Connection ids that say which core a packet belongs to.

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::Rng as _;

/// Bytes of the longest connection id there may be (RFC 9000, section 17.2).
const MAX_CID_SIZE: usize = 20;
/// Bytes of a connection id.
const LEN: usize = 8;
/// The first bit of a packet with a long header (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;

/// Makes connection ids of 8 bytes: the core's number, a tag of this life of the node, six random bytes.
///
/// The core's number lets packets be steered to the core that knows their connection. The tag tells connections of
/// this life from those of an earlier one: all cores and all lives share one stateless reset key, and a core must not
/// answer for a connection that another core may well have, because the answer would reveal the token with which
/// anybody could end that connection (RFC 9000, section 21.11). So ids of another core of this life are brought to it
/// (see `steer`) or passed over, and all others that nobody knows are answered with a reset, which ends what a peer
/// still holds of an earlier life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CoreConnectionIds {
    core: u8,
    life: u8,
}

impl CoreConnectionIds {
    /// Ids for one core. Consecutive generations get different tags; `mask`, a secret byte, hides the generation.
    pub(crate) fn new(core: usize, generation: u64, mask: u8) -> Self {
        let [.., low] = generation.to_be_bytes();
        Self { core: u8::try_from(core).unwrap_or(u8::MAX), life: low ^ mask }
    }

    /// The other core of this life that a packet is for; `None` where it is for this one, or for nobody known.
    pub(crate) fn other_core(&self, packet: &[u8]) -> Option<usize> {
        match destination(packet)? {
            [core, life, ..] if *life == self.life && *core != self.core => Some(usize::from(*core)),
            _ => None,
        }
    }
}

/// The connection id a packet is sent to, if it is as long as ours. A short header has no length, for who gave the id
/// away knows it (RFC 9000, section 17.3); in a long one it follows the version (RFC 8999, section 5.1).
fn destination(packet: &[u8]) -> Option<&[u8; LEN]> {
    match packet {
        [first, rest @ ..] if first & LONG_HEADER == 0 => rest.first_chunk(),
        [_, _, _, _, _, length, rest @ ..] if usize::from(*length) == LEN => rest.first_chunk(),
        _ => None,
    }
}

/// The id that the first packets of a connection from `core` are sent to. Its first byte asks the peer for the core of the
/// same number (see `socket`); the rest is random.
pub(crate) fn first_id(core: usize) -> ConnectionId {
    let mut id = [0; MAX_CID_SIZE];
    rand::rng().fill_bytes(&mut id);
    let [first, ..] = &mut id;
    *first = u8::try_from(core).unwrap_or(u8::MAX);
    ConnectionId::new(&id)
}

impl ConnectionIdGenerator for CoreConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; LEN];
        rand::rng().fill_bytes(&mut id);
        let [core, life, ..] = &mut id;
        *core = self.core;
        *life = self.life;
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match **id {
            [core, life, ..] if life == self.life && core != self.core => Err(InvalidCid),
            _ => Ok(()),
        }
    }

    fn cid_len(&self) -> usize {
        LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_begin_with_the_core_and_differ() {
        let mut ids = CoreConnectionIds::new(3, 1, 0);
        let (one, two) = (ids.generate_cid(), ids.generate_cid());
        assert_eq!((one[0], two[0]), (3, 3));
        assert_eq!((one.len(), ids.cid_len()), (8, 8));
        assert_ne!(one, two);
    }

    #[test]
    fn only_ids_of_other_cores_of_this_life_are_passed_over() {
        let mut mine = CoreConnectionIds::new(0, 7, 0xa5);
        let mut neighbour = CoreConnectionIds::new(1, 7, 0xa5);
        let mut former_neighbour = CoreConnectionIds::new(1, 6, 0xa5);
        let mut former_self = CoreConnectionIds::new(0, 6, 0xa5);
        let own = mine.generate_cid();
        assert!(mine.validate(&own).is_ok());
        assert!(mine.validate(&neighbour.generate_cid()).is_err());
        assert!(mine.validate(&former_neighbour.generate_cid()).is_ok());
        assert!(mine.validate(&former_self.generate_cid()).is_ok());
    }

    /// A packet with a short header, and one with a long header, to this id.
    fn packets(id: &ConnectionId) -> [Vec<u8>; 2] {
        let long = [&[0xe0, 0, 0, 0, 1, 8], &**id, &[8, 1, 2, 3]].concat();
        [[&[0x41], &**id, &[9; 30]].concat(), long]
    }

    #[test]
    fn a_packet_for_another_core_of_this_life_is_told_by_either_header() {
        let mine = CoreConnectionIds::new(0, 7, 0xa5);
        let to = |mut ids: CoreConnectionIds| packets(&ids.generate_cid()).map(|packet| mine.other_core(&packet));
        assert_eq!(to(CoreConnectionIds::new(3, 7, 0xa5)), [Some(3), Some(3)]);
        assert_eq!(to(mine), [None, None]);
        assert_eq!(to(CoreConnectionIds::new(3, 6, 0xa5)), [None, None], "of an earlier life");
    }

    #[test]
    fn first_packets_and_cut_ones_are_for_whoever_gets_them() {
        let mine = CoreConnectionIds::new(0, 7, 0xa5);
        let id = CoreConnectionIds::new(1, 7, 0xa5).generate_cid();
        // Until a server has named an id, its client makes one up, which is longer.
        let first = [&[0xc0, 0, 0, 0, 1, 20], &*id, &[0; 60]].concat();
        assert_eq!(mine.other_core(&first), None);
        for packet in packets(&id) {
            let end = packet.windows(8).position(|window| window == &*id).expect("the id is in it") + 8;
            for length in 0..end {
                assert_eq!(mine.other_core(&packet[..length]), None, "{length}");
            }
            assert_eq!(mine.other_core(&packet[..end]), Some(1));
        }
    }
}
