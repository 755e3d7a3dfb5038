//! Links between several nodes in one process, over real sockets and with real identities.

mod connecting;
mod large;
mod moving;
mod over_tcp;
mod refusing;
mod relay;
mod returning;
mod support;
