//! Everything a node needs to prove who it is, read from its folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::certificate::Certificate;
use super::chain::{Admitted, verify_issuers};
use super::error::{FileFault, TrustError};
use super::files::{self, Audience, PEM_CERTIFICATE, PEM_KEY};
use super::issue::Signer;
use super::key::SecretKey;
use super::name::Role;
use super::roots::TrustRoots;
use crate::id::NodeId;

/// The identity of this node: its certificates, its key and, with the role `admit`, the admission key.
pub struct Identity {
    admitted: Admitted,
    roots: TrustRoots,
    chain: Vec<Vec<u8>>,
    key: Arc<SecretKey>,
    admission_key: Option<Arc<SecretKey>>,
    admission_not_after_unix: u64,
    reset_key: [u8; 64],
    token_key: [u8; 64],
}

impl Identity {
    /// Reads `DIR/identity`. Whether certificates have expired is not judged here: an expired node still has to start
    /// to say so.
    ///
    /// # Errors
    /// Missing or damaged files, files that do not belong together, keys or folders that others could read.
    pub fn load(dir: &Path) -> Result<Self, TrustError> {
        let folder = folder(dir);
        if !folder.exists() {
            return Err(TrustError::NoIdentity(dir.to_owned()));
        }
        files::check_dir(dir)?;
        files::check_dir(&folder)?;

        let mesh_path = folder.join(MESH_FILE);
        let mesh = files::read_text(&mesh_path, Audience::Anybody)?;
        let root_path = folder.join(ROOT_FILE);
        let roots = TrustRoots::new(mesh.trim(), &read_certificates(&root_path)?)
            .map_err(|refusal| TrustError::file(&root_path, FileFault::Chain(refusal)))?;
        let node_path = folder.join(NODE_FILE);
        let chain = vec![read_certificate(&node_path)?, read_certificate(&folder.join(ADMISSION_FILE))?];
        let key = read_key(&folder.join(NODE_KEY_FILE))?;
        let admission_key_path = folder.join(ADMISSION_KEY_FILE);
        let admission_key = if admission_key_path.exists() { Some(read_key(&admission_key_path)?) } else { None };
        Self::assemble(&folder, roots, chain, key, admission_key)
    }

    /// Puts the parts together and proves that they fit.
    fn assemble(
        folder: &Path,
        roots: TrustRoots,
        chain: Vec<Vec<u8>>,
        key: SecretKey,
        admission_key: Option<SecretKey>,
    ) -> Result<Self, TrustError> {
        let node_path = folder.join(NODE_FILE);
        let misfit = |refusal| TrustError::file(&node_path, FileFault::Chain(refusal));
        let [node, admission] = chain.as_slice() else {
            return Err(misfit(super::refusal::Refusal::ChainShape));
        };
        let admitted = verify_issuers(&roots, node, admission, None).map_err(misfit)?;
        if admitted.public_key != *key.public() {
            return Err(TrustError::file(folder.join(NODE_KEY_FILE), FileFault::OtherKey));
        }
        let admission = Certificate::parse(admission).map_err(misfit)?;
        if admission_key.as_ref().is_some_and(|key| *key.public() != admission.public_key) {
            return Err(TrustError::file(folder.join(ADMISSION_KEY_FILE), FileFault::OtherKey));
        }
        let admission_not_after_unix = admission.not_after_unix;
        Ok(Self {
            admission_not_after_unix,
            reset_key: key.derive("quic stateless reset")?,
            token_key: key.derive("quic address token")?,
            admitted,
            roots,
            chain,
            key: Arc::new(key),
            admission_key: admission_key.map(Arc::new),
        })
    }

    /// The id of this node.
    pub const fn node(&self) -> NodeId {
        self.admitted.node
    }

    /// The mesh it belongs to.
    pub fn mesh(&self) -> &str {
        self.roots.mesh()
    }

    /// The name its operator gave it.
    pub fn name(&self) -> &str {
        &self.admitted.name
    }

    /// What it may do.
    pub const fn role(&self) -> Role {
        self.admitted.role
    }

    /// The Ed25519 key of its node certificate.
    pub const fn public_key(&self) -> [u8; 32] {
        self.admitted.public_key
    }

    /// When the first certificate of its chain ends, in seconds since 1970; after that nobody accepts its leaves.
    pub const fn not_after_unix(&self) -> u64 {
        self.admitted.not_after_unix
    }

    /// Whether it holds the admission key and can let newcomers in.
    pub const fn can_admit(&self) -> bool {
        self.admission_key.is_some()
    }

    /// Signs bytes for one purpose in this mesh; others check with [`super::verify_signature`]. The context is a word
    /// that names the kind of record and never holds `\0`.
    pub fn sign(&self, context: &str, bytes: &[u8]) -> [u8; 64] {
        self.key.sign(self.mesh(), context, bytes)
    }

    /// `[node CA, admission CA]` in DER; the root is excluded, as whoever checks knows it.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The roots of its mesh.
    pub const fn roots(&self) -> &TrustRoots {
        &self.roots
    }

    /// The key for QUIC stateless resets: survives a restart, so the restarted node can end its peers' dead connections.
    pub const fn reset_key(&self) -> [u8; 64] {
        self.reset_key
    }

    /// The key for QUIC address tokens, shared by all endpoints of this node.
    pub const fn token_key(&self) -> [u8; 64] {
        self.token_key
    }

    pub(crate) const fn key(&self) -> &Arc<SecretKey> {
        &self.key
    }

    /// When the admission certificate ends: nothing it issues outlives it.
    pub(crate) const fn admission_not_after_unix(&self) -> u64 {
        self.admission_not_after_unix
    }

    /// The admission certificate with its key.
    pub(crate) fn admission(&self) -> Result<Signer<'_>, TrustError> {
        match (self.chain.get(1), &self.admission_key) {
            (Some(certificate), Some(key)) => Ok(Signer { certificate, key }),
            _ => Err(TrustError::NotAdmitting),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("admitted", &self.admitted)
            .field("roots", &self.roots)
            .field("can_admit", &self.can_admit())
            .finish_non_exhaustive()
    }
}

/// The parts of a new identity, before they are a folder.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) mesh: &'a str,
    pub(crate) root: &'a [u8],
    pub(crate) admission: &'a [u8],
    pub(crate) admission_key: Option<&'a SecretKey>,
    pub(crate) node: &'a [u8],
    pub(crate) node_key: &'a SecretKey,
}

/// Refuses a folder that already holds an identity and makes it ready for one.
pub(crate) fn prepare(dir: &Path) -> Result<(), TrustError> {
    files::prepare_dir(dir)?;
    if folder(dir).exists() {
        return Err(TrustError::IdentityExists(dir.to_owned()));
    }
    // Proves before anything irreversible happens elsewhere that the folder can be written to.
    let staged = staged_folder(dir);
    if staged.exists() {
        std::fs::remove_dir_all(&staged).map_err(TrustError::io(&staged))?;
    }
    files::prepare_dir(&staged)
}

/// Writes the identity: all of it or nothing, as the folder gets its name last.
pub(crate) fn store(dir: &Path, parts: &Parts<'_>) -> Result<(), TrustError> {
    prepare(dir)?;
    let staged = staged_folder(dir);
    let certificate = |name: &str, der: &[u8]| {
        files::write(&staged.join(name), files::pem(PEM_CERTIFICATE, der).as_bytes(), Audience::Anybody)
    };
    let key = |name: &str, key: &SecretKey| {
        files::write(&staged.join(name), files::pem(PEM_KEY, key.pkcs8()).as_bytes(), Audience::Owner)
    };
    certificate(ROOT_FILE, parts.root)?;
    certificate(ADMISSION_FILE, parts.admission)?;
    certificate(NODE_FILE, parts.node)?;
    key(NODE_KEY_FILE, parts.node_key)?;
    if let Some(admission_key) = parts.admission_key {
        key(ADMISSION_KEY_FILE, admission_key)?;
    }
    files::write(&staged.join(MESH_FILE), format!("{}\n", parts.mesh).as_bytes(), Audience::Anybody)?;
    let target = folder(dir);
    std::fs::rename(&staged, &target).map_err(TrustError::io(&target))?;
    files::sync_dir(dir)
}

/// Replaces the two renewable certificates of a stored identity. Both old and new ones are signed for the same keys, so
/// a power cut between the two leaves a chain that still holds.
pub(crate) fn replace_certificates(dir: &Path, admission: &[u8], node: &[u8]) -> Result<(), TrustError> {
    for (name, der) in [(ADMISSION_FILE, admission), (NODE_FILE, node)] {
        let text = files::pem(PEM_CERTIFICATE, der);
        files::write(&folder(dir).join(name), text.as_bytes(), Audience::Anybody)?;
    }
    Ok(())
}

/// Adds or replaces the admission key of a stored identity.
pub(crate) fn store_admission_key(dir: &Path, key: &SecretKey) -> Result<(), TrustError> {
    let text = files::pem(PEM_KEY, key.pkcs8());
    files::write(&folder(dir).join(ADMISSION_KEY_FILE), text.as_bytes(), Audience::Owner)
}

/// Whether the folder holds an identity.
pub(crate) fn exists(dir: &Path) -> bool {
    folder(dir).exists()
}

/// Takes back what [`prepare`] made, when nothing came of it.
pub(crate) fn abandon(dir: &Path) {
    // Only an empty folder goes; a failure leaves an empty folder that the next attempt uses.
    let _ignored = std::fs::remove_dir(staged_folder(dir));
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("identity")
}

fn staged_folder(dir: &Path) -> PathBuf {
    dir.join("identity.new")
}

fn read_certificates(path: &Path) -> Result<Vec<Vec<u8>>, TrustError> {
    let not_pem = || TrustError::file(path, FileFault::NotPem);
    let text = files::read(path, Audience::Anybody)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    Ok(found.ok().ok_or_else(not_pem)?.into_iter().map(|der| der.to_vec()).collect())
}

fn read_certificate(path: &Path) -> Result<Vec<u8>, TrustError> {
    let mut found = read_certificates(path)?;
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(TrustError::file(path, FileFault::NotPem)),
    }
}

fn read_key(path: &Path) -> Result<SecretKey, TrustError> {
    let text = files::read(path, Audience::Owner)?;
    let der =
        PrivatePkcs8KeyDer::from_pem_slice(&text).ok().ok_or_else(|| TrustError::file(path, FileFault::NotPem))?;
    SecretKey::from_pkcs8(der.secret_pkcs8_der()).ok_or_else(|| TrustError::file(path, FileFault::NotAKey))
}

const MESH_FILE: &str = "mesh";
const ROOT_FILE: &str = "root.pem";
const ADMISSION_FILE: &str = "admission.pem";
const ADMISSION_KEY_FILE: &str = "admission.key";
const NODE_FILE: &str = "node.pem";
const NODE_KEY_FILE: &str = "node.key";
