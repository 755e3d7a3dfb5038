//! The QUIC settings of a node: keys shared by all cores, congestion control near and far, windows, limits.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use quinn_proto::{NoneTokenLog, NoneTokenStore, ValidationTokenConfig};

use super::config::LinksConfig;
use super::congestion::{ByDistance, far_config};
use super::connection_id::CoreConnectionIds;
use crate::frame::Purpose;
use crate::link::LinkError;
use crate::trust::{Identity, LeafSource, PeerVerifier, client_config, server_config};

/// Assumed before a round trip was measured. A lost first packet is sent again after three times this, well before
/// the time to connect is over; quinn's 333 ms would leave no second chance.
const RTT_ASSUMED: Duration = Duration::from_millis(100);
/// At most one stateless reset in this time for each socket: enough for every peer of a restarted node to hear of it
/// within a second, too few to be of use to somebody who wants to have them sent to others.
const RESET_INTERVAL: Duration = Duration::from_millis(5);
/// Bytes kept of one connection attempt, and of all together, before it is looked at.
const INCOMING_BYTES: u64 = 64 * 1024;
const INCOMING_BYTES_TOTAL: u64 = 8 * 1024 * 1024;

/// A setting for near peers and one for far ones.
#[derive(Debug, Clone)]
struct NearFar<T> {
    near: T,
    far: T,
}

impl<T> NearFar<T> {
    const fn pick(&self, is_far: bool) -> &T {
        if is_far { &self.far } else { &self.near }
    }
}

/// Everything endpoints and connections are made with.
#[derive(Debug)]
pub(crate) struct QuicSettings {
    reset_key: [u8; 64],
    generation: u64,
    server: NearFar<Arc<ServerConfig>>,
    control: NearFar<ClientConfig>,
    data: NearFar<ClientConfig>,
}

impl QuicSettings {
    pub(crate) fn new(
        config: &LinksConfig,
        identity: &Identity,
        leaf: &Arc<LeafSource>,
        verifier: &Arc<PeerVerifier>,
    ) -> Result<Self, LinkError> {
        let identity_failed = |error| LinkError::Identity { source: Arc::new(error) };
        let tls_failed = |error| LinkError::Tls { source: Arc::new(error) };
        let server_tls = server_config(identity, Arc::clone(leaf), Arc::clone(verifier)).map_err(identity_failed)?;
        let server_tls = Arc::new(QuicServerConfig::try_from(server_tls).map_err(tls_failed)?);
        let client_tls = client_config(identity, Arc::clone(leaf), Arc::clone(verifier)).map_err(identity_failed)?;
        let client_tls = Arc::new(QuicClientConfig::try_from(client_tls).map_err(tls_failed)?);

        let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&identity.token_key());
        let token_key: Arc<dyn quinn::crypto::HandshakeTokenKey> = Arc::new(token_key);
        let server = |is_far: bool| -> Result<Arc<ServerConfig>, LinkError> {
            let mut server = ServerConfig::new(Arc::<QuicServerConfig>::clone(&server_tls), Arc::clone(&token_key));
            // Addresses are validated by Retry packets while there is a rush; remembering tokens would cost memory.
            let mut tokens = ValidationTokenConfig::default();
            tokens.sent(0).log(Arc::new(NoneTokenLog));
            server
                .validation_token_config(tokens)
                .max_incoming(config.handshakes_pending_max)
                .incoming_buffer_size(INCOMING_BYTES)
                .incoming_buffer_size_total(INCOMING_BYTES_TOTAL)
                .transport_config(Arc::new(transport(config, Side::Accepting, is_far)?));
            Ok(Arc::new(server))
        };
        let client = |purpose: Purpose, is_far: bool| -> Result<ClientConfig, LinkError> {
            let mut client = ClientConfig::new(Arc::<QuicClientConfig>::clone(&client_tls));
            client.token_store(Arc::new(NoneTokenStore)).transport_config(Arc::new(transport(
                config,
                Side::Dialling(purpose),
                is_far,
            )?));
            Ok(client)
        };
        Ok(Self {
            reset_key: identity.reset_key(),
            generation: config.generation,
            server: NearFar { near: server(false)?, far: server(true)? },
            control: NearFar { near: client(Purpose::Control, false)?, far: client(Purpose::Control, true)? },
            data: NearFar { near: client(Purpose::Data, false)?, far: client(Purpose::Data, true)? },
        })
    }

    /// How the endpoints of one core name their connections and end those of an earlier life.
    pub(crate) fn endpoint(&self, core: usize) -> EndpointConfig {
        let mut endpoint = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset_key)));
        let ids = self.connection_ids(core);
        endpoint.cid_generator(move || Box::new(ids)).min_reset_interval(RESET_INTERVAL);
        endpoint
    }

    pub(crate) fn connection_ids(&self, core: usize) -> CoreConnectionIds {
        let [mask, ..] = self.reset_key;
        CoreConnectionIds::new(core, self.generation, mask)
    }

    /// What a server endpoint starts with.
    pub(crate) fn server_near(&self) -> ServerConfig {
        (*self.server.near).clone()
    }

    pub(crate) fn server(&self, is_far: bool) -> Arc<ServerConfig> {
        Arc::clone(self.server.pick(is_far))
    }

    pub(crate) fn client(&self, purpose: Purpose, is_far: bool) -> ClientConfig {
        match purpose {
            Purpose::Control => self.control.pick(is_far).clone(),
            Purpose::Data => self.data.pick(is_far).clone(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Accepting,
    Dialling(Purpose),
}

fn transport(config: &LinksConfig, side: Side, is_far: bool) -> Result<TransportConfig, LinkError> {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(config.idle_timeout).ok().ok_or(LinkError::IdleTimeout)?;
    // The opener alone keeps a connection alive: one packet in each direction is enough for both to know.
    let (streams, messages, keep_alive) = match side {
        // More streams are allowed when the hello has said that this is a data link.
        Side::Accepting => (config.control_streams_max, config.messages_open_max, None),
        Side::Dialling(Purpose::Control) => {
            (config.control_streams_max, config.messages_open_max, Some(config.keep_alive))
        }
        // Only the opener of a data link opens streams on it; the one message is the answering hello.
        Side::Dialling(Purpose::Data) => (0, 1, Some(config.keep_alive)),
    };
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(messages.max(1)))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(keep_alive)
        .stream_receive_window(VarInt::from_u32(config.stream_window))
        .receive_window(VarInt::from_u32(config.connection_window))
        .send_window(config.send_window)
        .datagram_receive_buffer_size(Some(config.datagram_buffer))
        .datagram_send_buffer_size(config.datagram_buffer)
        .initial_rtt(RTT_ASSUMED)
        .initial_mtu(1200);
    if is_far {
        transport.congestion_controller_factory(Arc::new(far_config()));
    } else {
        transport.congestion_controller_factory(Arc::new(ByDistance { far_rtt: config.far_rtt }));
    }
    Ok(transport)
}
