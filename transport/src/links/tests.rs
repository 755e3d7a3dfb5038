//! Links between several nodes in one process, over real sockets and with real identities.

mod connecting;
mod moving;
mod refusing;
mod returning;
mod support;
