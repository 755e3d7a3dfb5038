//! Addresses dialled without knowing who is there.

use std::collections::HashMap;
use std::net::SocketAddr;

/// Addresses remembered. When all are being dialled, a further one is passed over; else one that has answered makes
/// room.
const SEEDS_MAX: usize = 64;

/// The seeds of a node, bounded. One that has answered is remembered, because another node may live there one day.
#[derive(Debug, Default)]
pub(crate) struct Seeds {
    is_dialling: HashMap<SocketAddr, bool>,
}

impl Seeds {
    /// Whether a dial to this address should begin; if so, it counts as begun.
    pub(crate) fn begin(&mut self, addr: SocketAddr) -> bool {
        if self.is_dialling.get(&addr).copied().unwrap_or(false) {
            return false;
        }
        if self.is_dialling.len() >= SEEDS_MAX && !self.is_dialling.contains_key(&addr) {
            let Some(answered) = self.is_dialling.iter().find(|(_, is_dialling)| !**is_dialling) else {
                return false;
            };
            let answered = *answered.0;
            self.is_dialling.remove(&answered);
        }
        self.is_dialling.insert(addr, true);
        true
    }

    /// The dial to this address has ended; it may begin again.
    pub(crate) fn done(&mut self, addr: SocketAddr) {
        self.is_dialling.insert(addr, false);
    }

    /// Whether whoever answers at this address is welcome.
    pub(crate) fn contains(&self, addr: SocketAddr) -> bool {
        self.is_dialling.contains_key(&addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_bounded_and_one_that_has_answered_makes_room() {
        let mut seeds = Seeds::default();
        let addr = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        for port in 1..=64 {
            assert!(seeds.begin(addr(port)));
            assert!(!seeds.begin(addr(port)), "one dial at a time");
        }
        assert!(!seeds.begin(addr(65)));
        seeds.done(addr(7));
        assert!(seeds.contains(addr(7)) && seeds.begin(addr(65)));
        assert!(!seeds.contains(addr(7)));
    }
}
