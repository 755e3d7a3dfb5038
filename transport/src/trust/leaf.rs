//! The certificate this node shows in handshakes, and its renewal while connections go on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use super::certificate::Certificate;
use super::error::TrustError;
use super::identity::Identity;
use super::issue::{self, Life, Signer};
use super::key::SecretKey;
use super::name::check_node_name;
use super::subject::Subject;
use crate::clock::Clock;
use crate::id::NodeId;

/// How long leaves live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafLife {
    /// From issue to end. Shorter limits what a stolen leaf is good for and costs more renewals; 24 h by default.
    pub ttl: Duration,
    /// How long before its issue a leaf begins to hold, for peers whose clocks are behind; 1 h by default.
    pub backdate: Duration,
}

impl Default for LeafLife {
    fn default() -> Self {
        Self { ttl: Duration::from_hours(24), backdate: Duration::from_hours(1) }
    }
}

/// The current leaf of this node. TLS configurations hold it for ever and always show the newest one.
///
/// Renewal needs nobody else: the node signs its own leaves, each with a fresh key that never touches the disk.
pub struct LeafSource {
    current: ArcSwap<Leaf>,
    life: LeafLife,
    node: NodeId,
    mesh: String,
    subject: Subject,
    issuer: ArcSwap<Issuer>,
    key: Arc<SecretKey>,
}

/// The node's own certificates, from which leaves hang.
#[derive(Clone)]
struct Issuer {
    chain: Vec<Vec<u8>>,
    not_after_unix: u64,
}

impl Issuer {
    fn of(identity: &Identity) -> Self {
        Self { chain: identity.chain().to_vec(), not_after_unix: identity.not_after_unix() }
    }
}

struct Leaf {
    certified: Arc<CertifiedKey>,
    issued_unix: u64,
    renew_at_unix: u64,
    not_after_unix: u64,
}

impl LeafSource {
    /// Issues the first leaf in the name of the node.
    ///
    /// # Errors
    /// [`TrustError::NodeExpired`] when the node's own certificate has ended; faults of the TLS library.
    pub fn new(identity: &Identity, life: LeafLife, now_unix: u64) -> Result<Arc<Self>, TrustError> {
        Self::issue_first(identity, Subject::Node(identity.node()), life, now_unix)
    }

    /// Issues the first leaf in the name of a service of this node, `spiffe://MESH/ns/NAMESPACE/svc/NAME`. Links
    /// between nodes refuse such leaves; they are for workloads.
    ///
    /// # Errors
    /// As [`LeafSource::new`], and [`TrustError::ServiceName`].
    pub fn for_service(
        identity: &Identity,
        namespace: &str,
        name: &str,
        life: LeafLife,
        now_unix: u64,
    ) -> Result<Arc<Self>, TrustError> {
        for part in [namespace, name] {
            check_node_name(part).map_err(|fault| TrustError::ServiceName { name: part.to_owned(), fault })?;
        }
        let subject = Subject::Service { namespace: namespace.to_owned(), name: name.to_owned() };
        Self::issue_first(identity, subject, life, now_unix)
    }

    fn issue_first(
        identity: &Identity,
        subject: Subject,
        life: LeafLife,
        now_unix: u64,
    ) -> Result<Arc<Self>, TrustError> {
        let issuer = Issuer::of(identity);
        let template =
            Template { mesh: identity.mesh(), subject: &subject, issuer: &issuer, key: identity.key(), life };
        let first = template.issue(now_unix)?;
        Ok(Arc::new(Self {
            current: ArcSwap::from_pointee(first),
            life,
            node: identity.node(),
            mesh: identity.mesh().to_owned(),
            issuer: ArcSwap::from_pointee(issuer),
            key: Arc::clone(identity.key()),
            subject,
        }))
    }

    /// Issues a new leaf and shows it in every handshake from now on. Connections that are open stay open.
    ///
    /// # Errors
    /// As [`LeafSource::new`]; the present leaf stays.
    pub fn renew(&self, now_unix: u64) -> Result<(), TrustError> {
        self.renew_from(&self.issuer.load(), now_unix)
    }

    /// Goes over to node certificates that were renewed on disk, and renews the leaf with them.
    ///
    /// # Errors
    /// [`TrustError::ForeignLeaf`] for the identity of another node; as [`LeafSource::new`]. The present leaf stays.
    pub fn adopt(&self, identity: &Identity, now_unix: u64) -> Result<(), TrustError> {
        if identity.node() != self.node {
            return Err(TrustError::ForeignLeaf);
        }
        let issuer = Issuer::of(identity);
        self.renew_from(&issuer, now_unix)?;
        self.issuer.store(Arc::new(issuer));
        Ok(())
    }

    fn renew_from(&self, issuer: &Issuer, now_unix: u64) -> Result<(), TrustError> {
        let (mesh, subject) = (&self.mesh, &self.subject);
        let template = Template { mesh, subject, issuer, key: &self.key, life: self.life };
        self.current.store(Arc::new(template.issue(now_unix)?));
        Ok(())
    }

    /// When to renew, in seconds since 1970: at half the leaf's life, spread by a tenth of that life to either side so
    /// that a fleet started together does not renew together. The draw is a hash of the leaf's key.
    pub fn renew_at_unix(&self) -> u64 {
        self.current.load().renew_at_unix
    }

    /// When the present leaf ends, in seconds since 1970.
    pub fn not_after_unix(&self) -> u64 {
        self.current.load().not_after_unix
    }

    /// Whether it is time to renew: half its life is over, or the clock went back to before its issue.
    pub fn is_due(&self, now_unix: u64) -> bool {
        let current = self.current.load();
        now_unix >= current.renew_at_unix || now_unix < current.issued_unix
    }

    /// Renews whenever it is due, until dropped. A failure is logged and tried again after 30 s (or a quarter of the
    /// life of a leaf, when that is shorter); the present leaf stays.
    pub async fn keep_renewed(self: Arc<Self>, clock: Arc<dyn Clock>) {
        let nap_max = (self.life.ttl / 4).clamp(Duration::from_millis(100), Duration::from_secs(30));
        loop {
            let now = clock.unix();
            if self.is_due(now.as_secs()) {
                match self.renew(now.as_secs()) {
                    Ok(()) => info!(not_after_unix = self.not_after_unix(), "leaf renewed"),
                    Err(error) => warn!(%error, not_after_unix = self.not_after_unix(), "leaf not renewed"),
                }
            }
            // Short naps instead of one long one, as the wall clock may jump.
            let left = Duration::from_secs(self.renew_at_unix()).saturating_sub(now);
            let nap = if left.is_zero() { nap_max } else { left.min(nap_max) };
            tokio::time::sleep(nap.max(Duration::from_millis(20))).await;
        }
    }

    /// The node that signs these leaves.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The leaf with its key and chain, as TLS shows it now.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.load().certified)
    }
}

impl fmt::Debug for LeafSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafSource")
            .field("node", &self.node)
            .field("subject", &self.subject)
            .field("not_after_unix", &self.not_after_unix())
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for LeafSource {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for LeafSource {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        schemes.contains(&SignatureScheme::ED25519).then(|| self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

struct Template<'a> {
    mesh: &'a str,
    subject: &'a Subject,
    issuer: &'a Issuer,
    key: &'a SecretKey,
    life: LeafLife,
}

impl Template<'_> {
    fn issue(&self, now_unix: u64) -> Result<Leaf, TrustError> {
        let expired = TrustError::NodeExpired { not_after_unix: self.issuer.not_after_unix };
        let Some(node) = self.issuer.chain.first() else {
            return Err(expired);
        };
        if now_unix >= self.issuer.not_after_unix {
            return Err(expired);
        }
        // Certificates count whole seconds; a life under one would be none.
        let ttl_s = self.life.ttl.as_secs().max(1);
        let life = Life {
            not_before_unix: now_unix.saturating_sub(self.life.backdate.as_secs()),
            not_after_unix: now_unix.saturating_add(ttl_s).min(self.issuer.not_after_unix),
        };
        let leaf_key = SecretKey::generate()?;
        let signer = Signer { certificate: node, key: self.key };
        let der = issue::leaf(self.mesh, self.subject, &leaf_key, signer, life)?;
        debug_assert!(
            Certificate::parse(&der).is_ok_and(|leaf| leaf.check_leaf().is_ok()),
            "own leaves have one shape"
        );

        let private = PrivatePkcs8KeyDer::from(leaf_key.pkcs8());
        let signing = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&private).map_err(TrustError::Tls)?;
        let shown = std::iter::once(der).chain(self.issuer.chain.iter().cloned()).map(CertificateDer::from).collect();
        Ok(Leaf {
            certified: Arc::new(CertifiedKey::new(shown, signing)),
            issued_unix: now_unix,
            renew_at_unix: renew_at(now_unix, life.not_after_unix, leaf_key.public()),
            not_after_unix: life.not_after_unix,
        })
    }
}

/// Between 40 and 60 % of the time from issue to end, drawn from the bytes given.
fn renew_at(issued_unix: u64, not_after_unix: u64, draw: &[u8; 32]) -> u64 {
    let hash = NodeId::from_public_key(draw);
    let [low, high, ..] = *hash.as_bytes();
    let draw = u64::from(u16::from_le_bytes([low, high]));
    let whole = u64::from(u16::MAX);
    let span = not_after_unix.saturating_sub(issued_unix);
    issued_unix.saturating_add(span.saturating_mul(2 * whole + draw) / (5 * whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_at_half_life_give_or_take_a_tenth() {
        let day = 86_400;
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let at = renew_at(1_000, 1_000 + day, &[seed; 32]);
            assert!((1_000 + day * 4 / 10..=1_000 + day * 6 / 10).contains(&at), "{at}");
            seen.insert(at);
        }
        assert!(seen.len() > 150, "the jitter spreads: {} of 200 differ", seen.len());
    }
}
