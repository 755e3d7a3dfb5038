//! The Marram node: sockets, disk, clock, proxy, admin API, command line and their wiring.
//!
//! The crate is a library with one binary, `marram`. Decisions live in `policy`, `transport` and `crdt-store`; this
//! crate carries them out. Start at [`snapshot`] to see what a request reads, at [`api`] for what the admin API asks.

pub mod admin;
pub mod agent;
pub mod api;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod config;
pub mod control;
pub mod demand;
pub mod demo;
pub mod dns;
pub mod doubts;
pub mod event;
#[cfg(feature = "jemalloc")]
pub mod give_back;
pub mod gossip;
pub mod hand_over;
pub mod health;
pub mod keeper;
pub mod limits;
pub mod local;
pub mod machine;
pub mod node_api;
pub mod outlier;
pub mod passed;
pub mod pick;
pub mod plan;
pub mod pressure;
pub mod proxy;
pub mod shares;
pub mod snapshot;
pub mod spread;
pub mod state;
pub mod store;
pub mod supervise;
pub mod sync;
pub mod tally;
pub mod telemetry;
pub mod told;
pub mod transparent;
pub mod view;
pub mod wait;
pub mod watch;
