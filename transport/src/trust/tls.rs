//! TLS for links between nodes: version 1.3 only, both sides show certificates, nothing is resumed.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, NamedGroup, ServerConfig};

use super::error::TrustError;
use super::identity::Identity;
use super::leaf::LeafSource;
use super::verifier::PeerVerifier;
use crate::clock::Clock;
use crate::id::NodeId;

/// The application protocol of links between nodes.
pub const ALPN: &[u8] = b"marram/1";

/// The last label of names given to TLS; `.invalid` never resolves (RFC 2606).
const NAME_SUFFIX: &str = ".node.invalid";

/// TLS for whoever accepts links.
///
/// # Errors
/// [`TrustError::ForeignLeaf`] when the leaf is of another node; [`TrustError::Tls`].
pub fn server_config(
    identity: &Identity,
    leaf: Arc<LeafSource>,
    verifier: Arc<PeerVerifier>,
) -> Result<ServerConfig, TrustError> {
    check_leaf(identity, &leaf)?;
    let time = clock_time(verifier.clock());
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(leaf);
    without_resumption(&mut config);
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// TLS for whoever dials. Give [`server_name`] of the node expected to have the handshake fail at any other.
///
/// # Errors
/// [`TrustError::ForeignLeaf`] when the leaf is of another node; [`TrustError::Tls`].
pub fn client_config(
    identity: &Identity,
    leaf: Arc<LeafSource>,
    verifier: Arc<PeerVerifier>,
) -> Result<ClientConfig, TrustError> {
    check_leaf(identity, &leaf)?;
    let time = clock_time(verifier.clock());
    let mut config = ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(leaf);
    config.resumption = Resumption::disabled();
    // The name would travel in clear and say who talks to whom.
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The name to give to TLS when dialling: of the node expected, or of anybody (a seed known by address only).
pub fn server_name(expected: Option<NodeId>) -> String {
    expected.map_or_else(|| format!("seed{NAME_SUFFIX}"), |node| format!("{node}{NAME_SUFFIX}"))
}

/// The node that a name made by [`server_name`] stands for.
pub(crate) fn expected_node(name: &ServerName<'_>) -> Option<NodeId> {
    let ServerName::DnsName(name) = name else {
        return None;
    };
    name.as_ref().strip_suffix(NAME_SUFFIX)?.parse().ok()
}

/// The usual name of a key exchange, for status pages.
pub fn key_exchange_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        _ => "other",
    }
}

/// aws-lc-rs with the suites of TLS 1.3; the post-quantum exchange comes first and its classical half stays for peers
/// without it.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

/// Every connection proves itself anew: a resumed one would skip the certificates, and with them their expiry.
pub(crate) fn without_resumption(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}

/// The time of a [`Clock`] for the TLS library.
pub(crate) fn clock_time(clock: &Arc<dyn Clock>) -> Arc<dyn TimeProvider> {
    Arc::new(ClockTime(Arc::clone(clock)))
}

fn check_leaf(identity: &Identity, leaf: &LeafSource) -> Result<(), TrustError> {
    if leaf.node() == identity.node() { Ok(()) } else { Err(TrustError::ForeignLeaf) }
}

struct ClockTime(Arc<dyn Clock>);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.unix()))
    }
}
