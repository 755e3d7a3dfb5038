//! Membership: who of the nodes we know answers, who is suspected, who is dead, and since when.
//!
//! SWIM (Das, Gupta, Motivala, DSN 2002) with Lifeguard (Dadgar, Phillips, Currey, arXiv 1707.00788) and memberlist's
//! rule that a death carries an incarnation and loses to a newer one. [`Swim`] is a pure machine: packets, time and
//! chance come in, packets and verdicts come out. Nothing here opens a socket or reads a clock.
//!
//! - [`Swim`] the machine, [`SwimConfig`] its figures, [`SwimOutput`] what it asks for.
//! - [`Member`] one node as seen from here, [`Liveness`] what is believed of it and [`VerdictReason`] why.
//! - `message` the bytes of a packet, `updates` what is passed on and how often, `suspicion` how long a suspect has to
//!   object, `health` how far the node trusts itself.

mod config;
mod health;
mod member;
mod message;
mod prober;
mod receive;
mod suspicion;
mod updates;
mod verdict;

pub use config::{CellId, SwimConfig};
pub use member::{Liveness, Member, ProbeFailure, VerdictReason};
pub use prober::{PeerChange, Swim, SwimCounters, SwimOutput};

#[cfg(test)]
mod tests;
