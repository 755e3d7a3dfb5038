//! The first node of a mesh: root, admission and node certificates from nothing.

use std::fmt;
use std::path::Path;

use super::error::TrustError;
use super::files;
use super::identity::{self, Identity, Parts};
use super::issue::{self, ADMISSION_LIFE_S, Life, NODE_LIFE_S, ROOT_LIFE_S, Signer};
use super::key::SecretKey;
use super::name::{Role, check_mesh_name, check_node_name};
use super::roots::spki_hash;
use super::seal;
use crate::id::{BASE32, NodeId};

/// What `init` made. `Debug` hides the recovery code.
#[derive(Clone, PartialEq, Eq)]
pub struct InitOutcome {
    /// The id of the first node.
    pub node: NodeId,
    /// Opens the sealed root key. To be shown once and kept by a person; `None` when a passphrase was given.
    pub recovery_code: Option<String>,
    /// SHA-256 of the root key's SPKI in base32: what tokens pin.
    pub root_fingerprint: String,
}

impl fmt::Debug for InitOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitOutcome")
            .field("node", &self.node)
            .field("root_fingerprint", &self.root_fingerprint)
            .finish_non_exhaustive()
    }
}

/// Makes a mesh with this folder as its first node, role `admit`.
///
/// Writes `DIR/identity` and `DIR/root.key.sealed`; the plain root key never touches the disk. Takes some tenths of a
/// second, because of the key derivation that guards the root.
///
/// # Errors
/// Unfit names, a folder that already holds an identity or a sealed root or is open to others, a passphrase that is too
/// short, disk faults. A half-made identity is never left: running it again starts over.
pub fn init_mesh(
    dir: &Path,
    mesh: &str,
    name: &str,
    root_passphrase: Option<&str>,
    now_unix: u64,
) -> Result<InitOutcome, TrustError> {
    check_mesh_name(mesh).map_err(|fault| TrustError::MeshName { name: mesh.to_owned(), fault })?;
    check_node_name(name).map_err(|fault| TrustError::NodeName { name: name.to_owned(), fault })?;
    seal::check_no_root(dir)?;
    identity::prepare(dir)?;

    let root_key = SecretKey::generate()?;
    let root = issue::root(mesh, &root_key, Life::new(now_unix, ROOT_LIFE_S, u64::MAX))?;
    let root_signer = Signer { certificate: &root, key: &root_key };
    let admission_key = SecretKey::generate()?;
    let life = Life::new(now_unix, ADMISSION_LIFE_S, u64::MAX);
    let admission = issue::admission(mesh, admission_key.public(), root_signer, life)?;
    let admission_signer = Signer { certificate: &admission, key: &admission_key };
    let node_key = SecretKey::generate()?;
    let life = Life::new(now_unix, NODE_LIFE_S, life.not_after_unix);
    let node = issue::node(name, Role::Admit, node_key.public(), admission_signer, life)?;

    let sealed = seal::seal_root(dir, &root_key, root_passphrase);
    let recovery_code = sealed.inspect_err(|_| identity::abandon(dir))?;
    let parts = Parts {
        mesh,
        root: &root,
        admission: &admission,
        admission_key: Some(&admission_key),
        node: &node,
        node_key: &node_key,
    };
    identity::store(dir, &parts)?;
    seal::publish_root(dir)?;
    Ok(InitOutcome {
        node: NodeId::from_public_key(node_key.public()),
        recovery_code,
        root_fingerprint: BASE32.encode(&spki_hash(root_key.public())),
    })
}

/// Gives the admission certificate another year and this node's own another 90 days, with the root opened for it.
///
/// Keys and names stay, so every certificate issued so far stays good; other members receive the new admission
/// certificate when they join again. Returns when the node's chain now ends, in seconds since 1970.
///
/// # Errors
/// As [`seal::open_root`] and [`Identity::load`]; [`TrustError::NotAdmitting`] on a node without the admission key.
pub fn renew_admission(dir: &Path, root_secret: &str, now_unix: u64) -> Result<u64, TrustError> {
    let identity = Identity::load(dir)?;
    let old = identity.admission()?;
    let root_key = seal::open_root(dir, root_secret)?.key;
    let root = identity.roots().roots().iter().find(|root| root.public_key == *root_key.public());
    let root = root.ok_or(TrustError::RootStaysSealed)?;

    let signer = Signer { certificate: root.der(), key: &root_key };
    let life = Life::new(now_unix, ADMISSION_LIFE_S, root.not_after_unix);
    let admission = issue::admission(identity.mesh(), old.key.public(), signer, life)?;
    let signer = Signer { certificate: &admission, key: old.key };
    let life = Life::new(now_unix, NODE_LIFE_S, life.not_after_unix);
    let node = issue::node(identity.name(), identity.role(), identity.key().public(), signer, life)?;
    files::check_dir(dir)?;
    identity::replace_certificates(dir, &admission, &node)?;
    Ok(life.not_after_unix)
}
