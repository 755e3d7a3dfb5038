//! A mesh in a few calls, and handshakes in memory.

mod chains;
mod folders;
mod handshakes;
mod renewal;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use tempfile::TempDir;

use super::identity::{self, Identity, Parts};
use super::issue::{self, ADMISSION_LIFE_S, Life, NODE_LIFE_S, ROOT_LIFE_S, Signer};
use super::key::SecretKey;
use super::leaf::{LeafLife, LeafSource};
use super::name::Role;
use super::subject::Subject;
use super::tls::{client_config, server_config, server_name};
use super::verifier::PeerVerifier;
use crate::clock::Clock;
use crate::id::NodeId;

/// The moment at which tests begin.
pub(crate) const NOW: u64 = 1_800_000_000;

/// A clock that tests set.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(NOW * 1_000)))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        self.unix() - Duration::from_secs(NOW)
    }

    fn unix(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A mesh with all its keys at hand, made without the slow sealing of the root.
pub(crate) struct Mesh {
    pub(crate) name: &'static str,
    pub(crate) root_key: SecretKey,
    pub(crate) root: Vec<u8>,
    pub(crate) admission_key: SecretKey,
    pub(crate) admission: Vec<u8>,
}

impl Mesh {
    pub(crate) fn new(name: &'static str) -> Self {
        let root_key = SecretKey::generate().unwrap();
        let root = issue::root(name, &root_key, Life::new(NOW, ROOT_LIFE_S, u64::MAX)).unwrap();
        let admission_key = SecretKey::generate().unwrap();
        let signer = Signer { certificate: &root, key: &root_key };
        let life = Life::new(NOW, ADMISSION_LIFE_S, u64::MAX);
        let admission = issue::admission(name, admission_key.public(), signer, life).unwrap();
        Self { name, root_key, root, admission_key, admission }
    }

    pub(crate) fn root_signer(&self) -> Signer<'_> {
        Signer { certificate: &self.root, key: &self.root_key }
    }

    pub(crate) fn admission_signer(&self) -> Signer<'_> {
        Signer { certificate: &self.admission, key: &self.admission_key }
    }

    /// Makes the folder of a member.
    pub(crate) fn member_in(&self, dir: &Path, name: &str, role: Role) -> Identity {
        let key = SecretKey::generate().unwrap();
        let life = Life::new(NOW, NODE_LIFE_S, u64::MAX);
        let node = issue::node(name, role, key.public(), self.admission_signer(), life).unwrap();
        let parts = Parts {
            mesh: self.name,
            root: &self.root,
            admission: &self.admission,
            admission_key: (role == Role::Admit).then_some(&self.admission_key),
            node: &node,
            node_key: &key,
        };
        identity::store(dir, &parts).unwrap();
        Identity::load(dir).unwrap()
    }

    pub(crate) fn member(&self, name: &str, clock: &Arc<TestClock>) -> Member {
        let dir = tempfile::tempdir().unwrap();
        let identity = self.member_in(dir.path(), name, Role::Member);
        let leaf = LeafSource::new(&identity, LeafLife::default(), clock.unix().as_secs()).unwrap();
        let clock: Arc<dyn Clock> = Arc::<TestClock>::clone(clock);
        let verifier = PeerVerifier::new(identity.roots(), clock);
        Member { _dir: dir, identity, leaf, verifier }
    }
}

/// A node with everything it needs to speak TLS.
pub(crate) struct Member {
    _dir: TempDir,
    pub(crate) identity: Identity,
    pub(crate) leaf: Arc<LeafSource>,
    pub(crate) verifier: Arc<PeerVerifier>,
}

impl Member {
    pub(crate) fn server(&self) -> ServerConfig {
        server_config(&self.identity, Arc::clone(&self.leaf), Arc::clone(&self.verifier)).unwrap()
    }

    pub(crate) fn client(&self) -> ClientConfig {
        client_config(&self.identity, Arc::clone(&self.leaf), Arc::clone(&self.verifier)).unwrap()
    }

    pub(crate) fn signer(&self) -> Signer<'_> {
        Signer { certificate: &self.identity.chain()[0], key: self.identity.key() }
    }

    /// A chain that begins with what was forged and goes on as it should.
    pub(crate) fn chain_with(&self, leaf: Vec<u8>) -> Vec<Vec<u8>> {
        std::iter::once(leaf).chain(self.identity.chain().iter().cloned()).collect()
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject::Node(self.identity.node())
    }
}

pub(crate) fn leaf_life() -> Life {
    Life { not_before_unix: NOW - 3_600, not_after_unix: NOW + 86_400 }
}

/// A chain and its key as TLS wants them.
pub(crate) fn certified(chain: &[Vec<u8>], key: &SecretKey) -> Arc<CertifiedKey> {
    let private = PrivatePkcs8KeyDer::from(key.pkcs8());
    let signing = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&private).unwrap();
    Arc::new(CertifiedKey::new(ders(chain), signing))
}

pub(crate) fn ders(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    chain.iter().cloned().map(CertificateDer::from).collect()
}

/// What both sides think after a handshake.
pub(crate) struct Outcome {
    pub(crate) client: Result<ClientConnection, rustls::Error>,
    pub(crate) server: Result<ServerConnection, rustls::Error>,
}

/// Runs a handshake to its end in memory.
pub(crate) fn handshake(client: ClientConfig, server: ServerConfig, expected: Option<NodeId>) -> Outcome {
    let name = ServerName::try_from(server_name(expected)).unwrap();
    let mut client = Ok(ClientConnection::new(Arc::new(client), name).unwrap());
    let mut server = Ok(ServerConnection::new(Arc::new(server)).unwrap());
    for _ in 0..8 {
        let mut sent = Vec::new();
        if let Ok(open) = &mut client {
            while open.wants_write() {
                open.write_tls(&mut sent).unwrap();
            }
        }
        server = server.and_then(|mut open: ServerConnection| {
            let mut rest = sent.as_slice();
            while !rest.is_empty() {
                open.read_tls(&mut rest).unwrap();
                open.process_new_packets()?;
            }
            Ok(open)
        });
        let mut sent = Vec::new();
        if let Ok(open) = &mut server {
            while open.wants_write() {
                open.write_tls(&mut sent).unwrap();
            }
        }
        client = client.and_then(|mut open: ClientConnection| {
            let mut rest = sent.as_slice();
            while !rest.is_empty() {
                open.read_tls(&mut rest).unwrap();
                open.process_new_packets()?;
            }
            Ok(open)
        });
    }
    // A side that still waits has accepted nobody.
    let unfinished = Err(rustls::Error::HandshakeNotComplete);
    Outcome {
        client: client
            .and_then(|open| if open.is_handshaking() { unfinished.clone().map(|()| open) } else { Ok(open) }),
        server: server.and_then(|open| if open.is_handshaking() { unfinished.map(|()| open) } else { Ok(open) }),
    }
}
