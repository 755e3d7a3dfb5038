//! Whether whoever is at the other end of a handshake belongs to the mesh, and who it is.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::certificate::{CERTIFICATE_LEN_MAX, Certificate};
use super::chain::verify_issuers;
use super::error::TrustError;
use super::name::Role;
use super::refusal::{Refusal, TrustCounters};
use super::roots::TrustRoots;
use super::subject::Subject;
use super::tls::expected_node;
use crate::clock::Clock;
use crate::id::NodeId;

/// Who a verified chain belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its id.
    pub node: NodeId,
    /// The name its operator gave it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When the first certificate of the chain ends, the leaf included, in seconds since 1970.
    pub not_after_unix: u64,
    /// `[node CA, admission CA]` in DER, for passing on what it signs.
    pub chain: Vec<Vec<u8>>,
    /// The key it signs records with.
    pub public_key: [u8; 32],
}

/// Judges the certificates of peers, on both sides of a handshake.
///
/// The chain has to be exactly `[leaf, node CA, admission CA]` and lead to a root; webpki checks signatures, times, and
/// path lengths, then each certificate has to have the one shape this mesh issues, and the leaf's SPIFFE name has to be
/// that of the node that signed it. Revocation lists are not used: leaves live for a day.
pub struct PeerVerifier {
    roots: TrustRoots,
    anchors: Vec<TrustAnchor<'static>>,
    clock: Arc<dyn Clock>,
    counters: Arc<TrustCounters>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// A verifier for one mesh. Expiry is judged by `clock`, never by the system's.
    pub fn new(roots: &TrustRoots, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            roots: roots.clone(),
            anchors: roots.roots().iter().map(|root| root.anchor.clone()).collect(),
            clock,
            counters: Arc::new(TrustCounters::default()),
            algorithms: rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms,
        })
    }

    /// The node behind a chain that a handshake showed, leaf first. Does not count refusals; handshakes do.
    ///
    /// # Errors
    /// [`TrustError::Refused`] with the reason.
    pub fn peer(&self, certificates: &[CertificateDer<'_>]) -> Result<PeerIdentity, TrustError> {
        Ok(self.node(certificates, KeyUsage::client_auth())?)
    }

    /// Who a leaf speaks for, nodes and services alike, and the node that vouches for it.
    ///
    /// # Errors
    /// [`TrustError::Refused`] with the reason.
    pub fn subject(&self, certificates: &[CertificateDer<'_>]) -> Result<(Subject, PeerIdentity), TrustError> {
        Ok(self.verify(certificates, KeyUsage::client_auth())?)
    }

    /// Handshakes refused so far, by reason.
    pub const fn counters(&self) -> &Arc<TrustCounters> {
        &self.counters
    }

    pub(crate) const fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    fn node(&self, certificates: &[CertificateDer<'_>], usage: KeyUsage) -> Result<PeerIdentity, Refusal> {
        match self.verify(certificates, usage)? {
            (Subject::Node(_), peer) => Ok(peer),
            (Subject::Service { .. }, _) => Err(Refusal::Name),
        }
    }

    fn verify(&self, certificates: &[CertificateDer<'_>], usage: KeyUsage) -> Result<(Subject, PeerIdentity), Refusal> {
        let [leaf, node, admission] = certificates else {
            return Err(if certificates.is_empty() { Refusal::NoCertificate } else { Refusal::ChainShape });
        };
        if certificates.iter().any(|certificate| certificate.len() > CERTIFICATE_LEN_MAX) {
            return Err(Refusal::ChainShape);
        }
        let now = self.clock.unix().as_secs();
        self.verify_path(leaf, &[node, admission], usage, now)?;
        let admitted = verify_issuers(&self.roots, node, admission, Some(now))?;
        let leaf = Certificate::parse(leaf)?;
        let subject = Subject::parse(self.roots.mesh(), leaf.check_leaf()?).ok_or(Refusal::Name)?;
        if let Subject::Node(named) = subject
            && named != admitted.node
        {
            return Err(Refusal::Impersonation);
        }
        let peer = PeerIdentity {
            node: admitted.node,
            name: admitted.name,
            role: admitted.role,
            not_after_unix: admitted.not_after_unix.min(leaf.not_after_unix),
            chain: vec![node.to_vec(), admission.to_vec()],
            public_key: admitted.public_key,
        };
        Ok((subject, peer))
    }

    /// The general rules of X.509, on untrusted bytes, by the library made for them.
    fn verify_path(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[&CertificateDer<'_>; 2],
        usage: KeyUsage,
        now_unix: u64,
    ) -> Result<(), Refusal> {
        let intermediates = issuers.map(|der| CertificateDer::from(der.as_ref()));
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| refusal_of(&error))?;
        // The path has to use what was shown, in that order: a certificate that is not part of it is not vouched for.
        let uses_all = |path: &VerifiedPath<'_>| {
            let mut used = path.intermediate_certificates().map(webpki::Cert::der);
            let mut shown = issuers.iter();
            let same = used.by_ref().zip(shown.by_ref()).all(|(used, shown)| used.as_ref() == shown.as_ref());
            if same && used.next().is_none() && shown.next().is_none() {
                Ok(())
            } else {
                Err(webpki::Error::UnknownIssuer)
            }
        };
        leaf.verify_for_usage(
            &[webpki::aws_lc_rs::ED25519],
            &self.anchors,
            &intermediates,
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_unix)),
            usage,
            None,
            Some(&uses_all),
        )
        .map_err(|error| refusal_of(&error))?;
        Ok(())
    }

    /// Verifies for a handshake: counted, logged, and in the error type of TLS.
    fn handshake(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        usage: KeyUsage,
    ) -> Result<PeerIdentity, rustls::Error> {
        let shown: Vec<_> =
            std::iter::once(leaf).chain(issuers).map(|der| CertificateDer::from(der.as_ref())).collect();
        self.node(&shown, usage).map_err(|refusal| self.refuse(refusal))
    }

    fn refuse(&self, refusal: Refusal) -> rustls::Error {
        self.counters.refuse(refusal);
        tracing::debug!(reason = refusal.reason(), "handshake refused");
        let cause = match refusal {
            Refusal::Expired => CertificateError::Expired,
            Refusal::NotYetValid => CertificateError::NotValidYet,
            Refusal::Untrusted => CertificateError::UnknownIssuer,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        rustls::Error::InvalidCertificate(cause)
    }

    fn check_handshake_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(self.refuse(Refusal::Signature));
        }
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
            .ok()
            .ok_or_else(|| self.refuse(Refusal::Signature))
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("roots", &self.roots)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let peer = self.handshake(end_entity, intermediates, KeyUsage::server_auth())?;
        if expected_node(server_name).is_some_and(|expected| expected != peer.node) {
            return Err(self.refuse(Refusal::WrongPeer));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(self.refuse(Refusal::ProtocolVersion))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_handshake_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.handshake(end_entity, intermediates, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(self.refuse(Refusal::ProtocolVersion))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_handshake_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What webpki found, in the words of this mesh.
fn refusal_of(error: &webpki::Error) -> Refusal {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => Refusal::Expired,
        E::CertNotValidYet { .. } => Refusal::NotYetValid,
        E::CaUsedAsEndEntity => Refusal::NotALeaf,
        E::EndEntityUsedAsCa | E::PathLenConstraintViolated => Refusal::NotAnIssuer,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Refusal::Usage,
        E::UnknownIssuer
        | E::InvalidSignatureForPublicKey
        | E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::MaximumPathDepthExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumSignatureChecksExceeded => Refusal::Untrusted,
        _ => Refusal::Malformed,
    }
}
