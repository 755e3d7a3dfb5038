//! Who may sign ops, answered from the node's identity and the mesh's roots.

use std::sync::Arc;

use crdt_store::{Author, Authority, OriginRecord};
use transport::trust::{Identity, Role, verify_chain_undated, verify_signature};

/// Context of the signatures on ops and origins.
const SIGN_CONTEXT: &str = "policy/1";

/// The store's view of the node's keys and of everybody else's.
#[derive(Debug)]
pub(super) struct NodeAuthority {
    identity: Arc<Identity>,
}

impl NodeAuthority {
    pub(super) fn new(identity: Arc<Identity>) -> Self {
        Self { identity }
    }
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
        verify_signature(self.identity.mesh(), public_key, SIGN_CONTEXT, bytes, signature)
    }

    fn admit(&self, record: &OriginRecord) -> Result<Author, String> {
        let admitted = verify_chain_undated(self.identity.roots(), &record.chain).map_err(|fault| fault.to_string())?;
        if admitted.public_key != record.public_key {
            return Err("its chain vouches for another key".to_owned());
        }
        let may_author = match admitted.role {
            Role::Admit | Role::Member => true,
            Role::Gateway => false,
        };
        Ok(Author { node: admitted.node.to_string(), name: admitted.name, may_author })
    }
}
