//! A node's half of the store: its identity, made as `marram init` makes it, and what it signs and admits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crdt_store::{
    Author, Authority, Limits, MemoryStorage, OriginRecord, Replica, SledStorage, Storage, StoreId, SyncConfig,
};
use transport::trust::{Identity, Role, init_mesh, verify_chain_undated, verify_signature};

const MESH: &str = "bench";
/// A wall clock in seconds: 2026-11-22.
const NOW_UNIX: u64 = 1_795_305_600;
/// The same in milliseconds.
pub(super) const NOW_MS: u64 = NOW_UNIX * 1_000;
/// What the agent gives as context of the signatures on ops and origins.
const SIGN_CONTEXT: &str = "policy/1";

/// Opens stores under one identity.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) identity_folder: PathBuf,
    identity: Arc<Identity>,
    limits: Limits,
    /// Openings so far: each gets random bytes of its own.
    openings: AtomicU8,
}

impl Node {
    /// A node of a new mesh, with room for so many documents.
    pub(super) fn new(identity_folder: &Path, documents: usize) -> anyhow::Result<Self> {
        init_mesh(identity_folder, MESH, "bench", Some("a passphrase of a benchmark"), NOW_UNIX)?;
        Self::load(identity_folder, documents)
    }

    /// The same node in another process.
    pub(super) fn load(identity_folder: &Path, documents: usize) -> anyhow::Result<Self> {
        let identity = Arc::new(Identity::load(identity_folder)?);
        let limits = Limits { documents: documents * 2, live_bytes: documents * 2_048, ..Limits::default() };
        Ok(Self { identity_folder: identity_folder.to_owned(), identity, limits, openings: AtomicU8::new(0) })
    }

    /// The store on disk in a folder.
    pub(super) fn open(&self, folder: &Path) -> anyhow::Result<Replica> {
        self.open_on(Box::new(SledStorage::open(folder)?), true)
    }

    /// A store in memory; one that does not verify signatures takes all as good.
    pub(super) fn open_in_memory(&self, is_verifying: bool) -> anyhow::Result<Replica> {
        self.open_on(Box::new(MemoryStorage::new()), is_verifying)
    }

    fn open_on(&self, storage: Box<dyn Storage>, is_verifying: bool) -> anyhow::Result<Replica> {
        let authority = Arc::new(NodeAuthority { identity: Arc::clone(&self.identity), is_verifying });
        let random = [self.openings.fetch_add(1, Ordering::Relaxed).wrapping_add(1); 16];
        Ok(Replica::open_with(storage, authority, StoreId::global(MESH), self.limits, random, NOW_MS)?)
    }
}

/// Sizes of a conversation as the agent has them.
pub(super) fn sync_config() -> SyncConfig {
    SyncConfig::default()
}

/// The agent's own answers, as in its `store::authority`.
#[derive(Debug)]
struct NodeAuthority {
    identity: Arc<Identity>,
    is_verifying: bool,
}

impl Authority for NodeAuthority {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.identity.sign(SIGN_CONTEXT, bytes)
    }

    fn public_key(&self) -> [u8; 32] {
        self.identity.public_key()
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        self.identity.chain().to_vec()
    }

    fn verify(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
        !self.is_verifying || verify_signature(self.identity.mesh(), public_key, SIGN_CONTEXT, bytes, signature)
    }

    fn admit(&self, record: &OriginRecord) -> Result<Author, String> {
        let admitted = verify_chain_undated(self.identity.roots(), &record.chain).map_err(|fault| fault.to_string())?;
        if admitted.public_key != record.public_key {
            return Err("its chain vouches for another key".to_owned());
        }
        let may_author = admitted.role != Role::Gateway;
        Ok(Author { node: admitted.node.to_string(), name: admitted.name, may_author })
    }
}
