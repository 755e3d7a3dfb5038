//! A loopback address of its own for each service, so that a connection tells by its destination what it is for.
//!
//! Addresses come from 127.128.0.0/10: the first try is a hash of the name, the same on every node, and a taken one
//! leads to the next. An address is never given to another name while the process lives, for clients remember it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

/// The first address, 127.128.0.0; bits below the mask are the service's.
const NETWORK: u32 = 0x7f80_0000;
/// Length of the network's prefix.
pub const PREFIX: u8 = 10;
const HOST_MASK: u32 = u32::MAX >> PREFIX;
/// Names that get an address; one more gets none.
pub const NAMES_MAX: usize = 65_536;

/// Who has which address.
#[derive(Debug, Default)]
pub struct VirtualAddresses {
    given: Mutex<Given>,
}

#[derive(Debug, Default)]
struct Given {
    by_name: HashMap<String, Ipv4Addr>,
    by_address: HashMap<Ipv4Addr, String>,
}

impl VirtualAddresses {
    /// The address of a service, given at the first call; `None` when there are too many names.
    #[must_use]
    pub fn of(&self, service: &str) -> Option<Ipv4Addr> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).of(service)
    }

    /// The service that has this address.
    #[must_use]
    pub fn service_at(&self, address: Ipv4Addr) -> Option<String> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).by_address.get(&address).cloned()
    }
}

impl Given {
    fn of(&mut self, service: &str) -> Option<Ipv4Addr> {
        if let Some(address) = self.by_name.get(service) {
            return Some(*address);
        }
        if self.by_name.len() >= NAMES_MAX {
            return None;
        }
        // There are 64 times as many addresses as names, so a free one is near.
        let address = (0..HOST_MASK).map(|step| address(hash(service).wrapping_add(step))).find(|address| {
            let is_edge = [0, HOST_MASK].contains(&(u32::from(*address) & HOST_MASK));
            !is_edge && !self.by_address.contains_key(address)
        })?;
        self.by_name.insert(service.to_owned(), address);
        self.by_address.insert(address, service.to_owned());
        Some(address)
    }
}

/// Whether an address is of the kind that services get.
#[must_use]
pub fn is_virtual(address: Ipv4Addr) -> bool {
    u32::from(address) & !HOST_MASK == NETWORK
}

fn address(bits: u32) -> Ipv4Addr {
    Ipv4Addr::from(NETWORK | (bits & HOST_MASK))
}

/// FNV-1a of 32 bits (Fowler, Noll, Vo; draft-eastlake-fnv), its upper bits folded onto the lower ones that are used.
fn hash(name: &str) -> u32 {
    let whole = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    whole ^ (whole >> (32 - PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_keeps_an_address_of_its_own_and_leads_back() {
        let addresses = VirtualAddresses::default();
        let names: Vec<String> = (0..20_000).map(|n| format!("service-{n}")).collect();
        let given: Vec<Ipv4Addr> = names.iter().map(|name| addresses.of(name).unwrap()).collect();
        for (name, address) in names.iter().zip(&given) {
            assert!(is_virtual(*address), "{address}");
            assert_eq!(addresses.of(name), Some(*address));
            assert_eq!(addresses.service_at(*address).as_deref(), Some(name.as_str()));
        }
        assert_eq!(addresses.service_at(Ipv4Addr::LOCALHOST), None);
        assert!(!is_virtual(Ipv4Addr::new(127, 192, 0, 1)) && !is_virtual(Ipv4Addr::new(127, 127, 255, 255)));
    }

    #[test]
    fn the_first_choice_is_the_same_on_every_node() {
        // Part of what clients may remember across a restart.
        assert_eq!(VirtualAddresses::default().of("hello"), VirtualAddresses::default().of("hello"));
        assert_eq!(
            VirtualAddresses::default().of("hello"),
            Some(Ipv4Addr::from(NETWORK | (hash("hello") & HOST_MASK)))
        );
    }

    #[test]
    fn one_name_too_many_gets_none_and_the_others_keep_theirs() {
        let addresses = VirtualAddresses::default();
        for n in 0..NAMES_MAX {
            assert!(addresses.of(&n.to_string()).is_some());
        }
        assert_eq!(addresses.of("late"), None);
        assert!(addresses.of("0").is_some());
    }
}
