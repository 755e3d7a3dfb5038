//! The roots a node trusts, and the mesh they stand for.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, TrustAnchor};

use super::certificate::Certificate;
use super::issue::{ROOT_PATH_LEN, root_name};
use super::name::check_mesh_name;
use super::refusal::Refusal;
use crate::id::BASE32;

/// Most roots trusted at once: the present one, and the next one while it is being rotated in.
const ROOTS_MAX: usize = 2;

/// The root certificates of one mesh. Cheap to clone.
#[derive(Clone)]
pub struct TrustRoots {
    mesh: Arc<str>,
    roots: Arc<[Root]>,
}

/// One root, checked when it was loaded.
pub(crate) struct Root {
    der: Vec<u8>,
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) subject: Vec<u8>,
    pub(crate) public_key: [u8; 32],
    pub(crate) not_before_unix: u64,
    pub(crate) not_after_unix: u64,
}

impl TrustRoots {
    /// Trusts these root certificates (DER, one or two), which have to be self-signed and named `MESH root`.
    ///
    /// # Errors
    /// What is wrong with the first bad one; whether a root has expired is judged when it is used.
    pub fn new(mesh: &str, roots: &[Vec<u8>]) -> Result<Self, Refusal> {
        check_mesh_name(mesh).ok().ok_or(Refusal::Name)?;
        if roots.is_empty() || roots.len() > ROOTS_MAX {
            return Err(Refusal::ChainShape);
        }
        let roots: Vec<Root> = roots.iter().map(|der| Root::read(mesh, der)).collect::<Result<_, _>>()?;
        Ok(Self { mesh: mesh.into(), roots: roots.into() })
    }

    /// The name of the mesh, which is its SPIFFE trust domain.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// The root certificates in DER.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().map(|root| root.der.as_slice())
    }

    /// The fingerprint of the first root, as in tokens: SHA-256 of its public key's SPKI in base32, 52 characters.
    pub fn fingerprint(&self) -> String {
        self.roots.first().map(Root::fingerprint).unwrap_or_default()
    }

    pub(crate) fn roots(&self) -> &[Root] {
        &self.roots
    }
}

impl fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprints: Vec<String> = self.roots.iter().map(Root::fingerprint).collect();
        f.debug_struct("TrustRoots").field("mesh", &self.mesh).field("roots", &fingerprints).finish()
    }
}

impl Root {
    fn read(mesh: &str, der: &[u8]) -> Result<Self, Refusal> {
        let certificate = Certificate::parse(der)?;
        certificate.check_signature(certificate.subject(), &certificate.public_key)?;
        certificate.check_issuer(ROOT_PATH_LEN.into())?;
        if certificate.common_name()? != root_name(mesh) {
            return Err(Refusal::Name);
        }
        let owned = CertificateDer::from(der);
        let Ok(anchor) = webpki::anchor_from_trusted_cert(&owned) else {
            return Err(Refusal::Malformed);
        };
        Ok(Self {
            anchor: anchor.to_owned(),
            subject: certificate.subject().to_vec(),
            public_key: certificate.public_key,
            not_before_unix: certificate.not_before_unix,
            not_after_unix: certificate.not_after_unix,
            der: der.to_vec(),
        })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    fn fingerprint(&self) -> String {
        BASE32.encode(&spki_hash(&self.public_key))
    }
}

/// SHA-256 over the DER of an Ed25519 key's `SubjectPublicKeyInfo` (RFC 8410: a fixed header, then the 32 bytes).
pub(crate) fn spki_hash(public_key: &[u8; 32]) -> [u8; 32] {
    const HEADER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&HEADER);
    context.update(public_key);
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    hash
}
