//! The data path: from an application's connection to an instance, on this machine or behind a peer's proxy.
//!
//! Everything here runs on the data threads, each a current-thread runtime, and reads one [`Snapshot`] per request.
//! [`ProxyContext::serve_http`] and [`ProxyContext::serve_tcp`] take connections of applications, [`ProxyContext::serve_udp`] their datagrams,
//! [`ProxyContext::inbound_stream`] what peers send. Connections are pooled per data thread. A request passes:
//!
//! `accept` (a permit) → `serve` (one request after the other; `gate`: one whole, strictly read head, `framing`), or
//! `http2` where the connection begins so (one share of the thread for each, `shares`; turns, `turns`) →
//! `http` (which service, which headers cross; `filters`, `grpc`) → `admit` (limits and faults of policy) → `forward`
//! (pick, send, once more elsewhere; `retry`, `hedge`) → `attempt` (a kept or new connection; `upstream`) →
//! `exchange` (one request out, its strictly read answer in; `drive` where it goes on by itself) or, to an instance of HTTP/2
//! here, `two` → `body` (streams, never collected) → `record` (the access line). A peer's side is `inbound`; raw bytes take `tcp`
//! and `copy`.
//!
//! # Which requests are sent twice
//! At most once more, at another endpoint, and only when nothing of the request was sent, or its method is idempotent
//! (GET, HEAD, OPTIONS, TRACE, PUT, DELETE) and its body is at hand: empty, or announced by `Content-Length` with at
//! most 64 KiB. Such small bodies are read before the request is sent; all others stream and are never kept. Each second
//! try takes from the service's retry budget.
//!
//! [`Snapshot`]: crate::snapshot::Snapshot

mod accept;
mod admit;
mod attempt;
mod body;
mod context;
mod copy;
mod drive;
mod exchange;
mod explain;
mod filters;
mod forward;
mod framing;
mod gate;
mod grpc;
mod head;
mod headers;
mod hedge;
mod http;
mod http2;
mod inbound;
mod lanes;
mod links;
mod meters;
mod probe;
mod record;
mod refuse;
mod retry;
mod serve;
mod shares;
mod stopwatch;
mod tcp;
mod transparent;
mod turns;
mod two;
mod udp;
mod upstream;
mod wire;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use context::{Outcome, OutcomeKind, ProxyContext, ProxyParts};
pub use head::{Content, HEAD_VERSION, HOPS_MAX, HeadError, ResetCode, ServiceHead};
pub use links::{Duplex, NotSent, ServiceLinks, Volume};
pub(crate) use udp::is_of_flow;
