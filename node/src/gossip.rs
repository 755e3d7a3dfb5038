//! What a node says about itself by gossip: three records, each signed by the node it speaks of.
//!
//! | key | record | changes |
//! |---|---|---|
//! | `m` | [`Facts`]: names, place, addresses, machine, admission chain | rarely |
//! | `s` | [`Offers`]: its instances and their health | with registrations and checks |
//! | `l` | [`Loads`]: requests in flight, processor, policy root | every second or two |

use serde::{Deserialize, Serialize};

use crate::config::{Location, Protocol};
use crate::view::Capabilities;

/// Key of [`Facts`].
pub const FACTS_KEY: &str = "m";
/// Key of [`Offers`].
pub const OFFERS_KEY: &str = "s";
/// Key of [`Loads`].
pub const LOADS_KEY: &str = "l";
/// Version byte of all three records.
pub const RECORD_VERSION: u8 = 1;
/// Context of their signatures.
pub const SIGN_CONTEXT: &str = "gossip/1";

/// Who a node is and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    pub protocol: Protocol,
    /// Concurrent requests it serves well.
    pub capacity: f64,
    /// True when the operator gave the capacity, false when it follows from the cores.
    pub declared: bool,
    /// Why it must not be drawn; `None` when every check passes.
    pub down: Option<String>,
    /// Free labels.
    pub labels: std::collections::BTreeMap<String, String>,
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
