//! Tools that put a Marram cluster under load and break it on purpose.
//!
//! - [`echo`]: the demo service, HTTP/1.1 and TCP, that says who answered.
//! - [`load`]: an open-loop load generator without retries that tells, second by second, what failed and when.
//! - [`load_sim`]: clients, servers and queues in virtual time, for the ways to choose a server.
//! - [`admin`]: the few questions the scenarios ask a node through its admin socket.
//! - [`entrypoint`]: the first process of the demo container: init or join on first start, then the agent.
//! - [`docker`] and [`firewall`]: the compose project under test and the rules that cut its network in two.
//! - [`sim`]: replicas of the policy store in one thread, under every fault that can be drawn from a seed.
//! - [`lossfs`]: a file system that forgets what was not synced when its power is cut.
//! - [`power_cut`]: a store is written while its power is cut, again and again.
//! - [`fleet_proof`]: real agents on loopback, killed and damaged on purpose; no acknowledged write may be missing.
//! - [`wan`]: two network namespaces with a slow, lossy line between them.
//! - [`scenario`]: what is done to the cluster and what must hold.
//!
//! The crate is not a part of a running mesh: nothing else links it except tests and measurements.

pub mod admin;
pub mod chance;
pub mod clock;
pub mod docker;
pub mod echo;
pub mod entrypoint;
pub mod firewall;
pub mod fleet_proof;
pub mod load;
pub mod load_sim;
pub mod lossfs;
pub mod power_cut;
pub mod report;
pub mod scenario;
pub mod sim;
pub mod wan;
