//! TLS of links over TCP: that of QUIC links under another application protocol.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

use crate::link::LinkError;
use crate::trust::{Identity, LeafSource, PeerVerifier, client_config, server_config};

/// The application protocol: the frames of [`super::frame`], version 1.
pub(crate) const ALPN: &[u8] = b"marram-tcp/1";

/// Settings of both sides.
#[derive(Debug)]
pub(crate) struct TcpTls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl TcpTls {
    pub(crate) fn new(
        identity: &Identity,
        leaf: &Arc<LeafSource>,
        verifier: &Arc<PeerVerifier>,
    ) -> Result<Self, LinkError> {
        let failed = |error| LinkError::Identity { source: Arc::new(error) };
        let mut server = server_config(identity, Arc::clone(leaf), Arc::clone(verifier)).map_err(failed)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        let mut client = client_config(identity, Arc::clone(leaf), Arc::clone(verifier)).map_err(failed)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}
