//! The second way to carry a link: TLS 1.3 over TCP, for networks that let no UDP through.
//!
//! Same certificates, same verifier, same hello, same streams as over QUIC. What QUIC does between packets, `mux`
//! does between frames: many streams on one connection with a credit of bytes each, codes for breaking off, datagrams,
//! round trips. What it cannot do is lose one stream's packet without holding up the others: below is one TCP
//! connection. So QUIC is what is used wherever it works, see `links/reach.rs`.
//!
//! `frame` is the layout of bytes, `mux` the state machine without I/O, `connection` its edge, `listen` and `dial` how
//! connections come about.

pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod door;
pub(crate) mod frame;
pub(crate) mod listen;
pub(crate) mod mux;
pub(crate) mod tls;

pub use door::JoinDoor;
pub use frame::TcpFault;
