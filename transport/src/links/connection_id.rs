//! Connection ids that say which core a packet belongs to.

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::Rng as _;

/// Bytes of a connection id.
const LEN: usize = 8;

/// Makes connection ids of 8 bytes: the core's number, a tag of this life of the node, six random bytes.
///
/// The core's number lets packets be steered to the core that knows their connection. The tag tells connections of
/// this life from those of an earlier one: all cores and all lives share one stateless reset key, and a core must not
/// answer for a connection that another core may well have, because the answer would reveal the token with which
/// anybody could end that connection (RFC 9000, section 21.11). So ids of another core of this life are passed over,
/// and all others that nobody knows are answered with a reset, which ends what a peer still holds of an earlier life.
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
}
