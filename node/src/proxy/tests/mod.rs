//! The data path over real sockets: applications, proxies and instances on loopback.

mod bench;
mod client;
mod datagrams;
mod grpc;
mod http2;
mod latency;
mod limits;
mod linked;
mod mesh;
mod outliers;
mod refusals;
mod requests;
mod retries;
mod streams;
mod tunnels;
mod upgrades;
mod uploads;
mod volumes;
