//! What a node says about itself by gossip: four records, each signed by the node it speaks of.
//!
//! | key | record | changes |
//! |---|---|---|
//! | `m` | [`Facts`]: names, place, addresses, machine, admission chain | rarely |
//! | `s` | [`Offers`]: its instances and their health | with registrations and checks |
//! | `l` | [`Loads`]: requests in flight, processor, policy root | every second or two |
//! | `d` | [`Asks`]: demand for services whose rate all nodes share | when it has changed by a fifth or so |

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{Location, Protocol};
use crate::view::Capabilities;

/// Key of [`Facts`].
pub const FACTS_KEY: &str = "m";
/// Key of [`Offers`].
pub const OFFERS_KEY: &str = "s";
/// Key of [`Loads`].
pub const LOADS_KEY: &str = "l";
/// Key of [`Asks`]. Versions before it pass it on and do not look at it.
pub const ASKS_KEY: &str = "d";
/// Version byte of all records.
pub const RECORD_VERSION: u8 = 1;
/// Context of their signatures.
pub const SIGN_CONTEXT: &str = "gossip/1";

/// Who a node is and where.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The operator's label.
    pub name: String,
    /// Large place.
    pub region: String,
    /// Small place.
    pub zone: String,
    /// `HOST:PORT` to reach it, best first; at most 4 are used.
    pub addresses: Vec<String>,
    /// Position, when configured.
    pub location: Option<Location>,
    /// What the machine is.
    pub capabilities: Capabilities,
    /// Version of its binary.
    pub version: String,
    /// Node CA and admission CA, DER: proves the key that signs these records.
    pub chain: Vec<Vec<u8>>,
}

/// What a node offers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Offers {
    /// Its instances, up or not; at most [`OFFERS_MAX`] are used.
    pub instances: Vec<Offer>,
    /// The node stops: take no new work there.
    pub draining: bool,
}

/// Most instances of one node that others look at.
pub const OFFERS_MAX: usize = 512;

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The service's name.
    pub service: String,
    /// Id within the owning node.
    pub instance: String,
    /// What it speaks.
    pub protocol: Spoken,
    /// Concurrent requests it serves well.
    pub capacity: f64,
    /// True when the operator gave the capacity, false when it follows from the cores.
    pub declared: bool,
    /// Why it must not be drawn; `None` when every check passes.
    pub down: Option<String>,
    /// Free labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// What an instance speaks, as a record says it: by its place in the list, so that a protocol of a later version costs
/// this one instance and not the whole record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// One of ours.
    Known(Protocol),
    /// The place of one that this version does not know.
    Unknown(u32),
}

impl Spoken {
    /// The protocol, where this version knows it.
    #[must_use]
    pub const fn known(self) -> Option<Protocol> {
        match self {
            Self::Known(protocol) => Some(protocol),
            Self::Unknown(_) => None,
        }
    }
}

impl From<Protocol> for Spoken {
    fn from(protocol: Protocol) -> Self {
        Self::Known(protocol)
    }
}

impl Serialize for Spoken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(protocol) => serializer.serialize_u32(*protocol as u32),
            Self::Unknown(place) => serializer.serialize_u32(*place),
        }
    }
}

impl<'de> Deserialize<'de> for Spoken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let place = u32::deserialize(deserializer)?;
        Ok(Protocol::from_place(place).map_or(Self::Unknown(place), Self::Known))
    }
}

/// How busy a node is at this moment; never smoothed, because a smoothed load sends everybody to the same place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Loads {
    /// Requests in flight to each of its instances: (service, instance, requests).
    pub inflight: Vec<(String, String, u32)>,
    /// Services it has sent requests to lately.
    pub clients: Vec<String>,
    /// Share of its cores in use, 0..=1.
    pub cpu: f64,
    /// Resident memory of its agent in bytes.
    pub agent_memory_bytes: u64,
    /// Its policy root; equal roots mean equal policy.
    pub policy_root: [u8; 16],
}

/// How much is asked of a node for the services whose rate all nodes share; what is not listed is next to nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asks {
    /// Each service with millionths of a request per second; at most [`ASKS_MAX`] are used.
    pub services: Vec<(String, u64)>,
}

/// Most services of one node whose demand others look at; so many of the longest names fit what gossip carries.
pub const ASKS_MAX: usize = 128;

/// Requests per second, of what a record says in millionths.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "an average is not known to the billionth part")]
pub fn per_second(millionths: u64) -> f64 {
    millionths as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    #[test]
    fn a_protocol_of_a_later_version_costs_its_instance_and_not_the_record() {
        let offer = |protocol| Offer {
            service: "s".to_owned(),
            instance: "1".to_owned(),
            protocol,
            capacity: 1.0,
            declared: true,
            down: None,
            labels: std::collections::BTreeMap::new(),
        };
        let instances = vec![offer(Spoken::Known(Protocol::Tcp)), offer(Spoken::Unknown(77))];
        let offers = Offers { instances, draining: false };
        let bytes = encode(RECORD_VERSION, &offers).unwrap();
        assert_eq!(decode::<Offers>(RECORD_VERSION, &bytes), Ok(offers));
    }

    #[test]
    fn demands_round_trip_and_as_many_as_may_fit_what_gossip_carries() {
        let few = Asks { services: vec![("a".to_owned(), 1_500_000)] };
        let bytes = encode(RECORD_VERSION, &few).unwrap();
        assert_eq!(bytes, [1, 1, 1, b'a', 252, 0x60, 0xe3, 0x16, 0], "what this version says, later ones read");
        assert_eq!(decode::<Asks>(RECORD_VERSION, &bytes), Ok(few));
        let many = Asks { services: vec![("s".repeat(63), u64::MAX); ASKS_MAX] };
        // A record is text of four letters for three bytes, with a signature and some words besides.
        assert!(encode(RECORD_VERSION, &many).unwrap().len() * 4 / 3 + 1024 < 16 * 1024);
    }

    #[test]
    fn a_protocol_has_the_same_bytes_as_in_records_of_earlier_versions() {
        for protocol in [Protocol::Http, Protocol::Tcp, Protocol::Http2, Protocol::Udp] {
            assert_eq!(encode(1, &Spoken::Known(protocol)), encode(1, &protocol));
        }
    }
}
