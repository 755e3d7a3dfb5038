//! The data path over real sockets: applications, proxies and instances on loopback.

mod bench;
mod client;
mod latency;
mod mesh;
mod refusals;
mod requests;
mod retries;
mod tunnels;
mod upgrades;
