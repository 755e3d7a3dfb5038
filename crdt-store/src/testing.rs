//! What the tests share: keys that cost nothing, a seeded source of chance, a way to let two replicas talk.

use std::{collections::BTreeMap, sync::Arc};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::{
    Author, Authority, DocKey, Edit, MemoryStorage, OriginRecord, Replica, SignedOp, StoreError, SyncConfig, SyncError,
    SyncSession, WriteMeta, Written, backend::Disk, backend::Storage, id::sha256,
};

pub(crate) const MESH: &str = "test-mesh";
/// A wall clock for tests: 2026-11-22.
pub(crate) const NOW: u64 = 1_795_305_600_000;

/// An authority whose signatures are hashes: fast, the same each time, and wrong for other bytes or keys.
#[derive(Debug)]
pub(crate) struct HashAuthority {
    pub(crate) name: String,
    pub(crate) may_author: bool,
}

impl HashAuthority {
    pub(crate) fn member(name: &str) -> Arc<dyn Authority> {
        Arc::new(Self { name: name.to_owned(), may_author: true })
    }

    pub(crate) fn gateway(name: &str) -> Arc<dyn Authority> {
        Arc::new(Self { name: name.to_owned(), may_author: false })
    }
}

fn mac(public_key: &[u8; 32], bytes: &[u8]) -> [u8; 64] {
    let half = sha256(&[b"test-signature", public_key, bytes]);
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&half);
    signature[32..].copy_from_slice(&half);
    signature
}

impl Authority for HashAuthority {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        mac(&self.public_key(), bytes)
    }

    fn public_key(&self) -> [u8; 32] {
        sha256(&[b"test-key", self.name.as_bytes()])
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        let role = if self.may_author { "member" } else { "gateway" };
        vec![role.as_bytes().to_vec(), self.name.as_bytes().to_vec()]
    }

    fn verify(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
        mac(public_key, bytes) == *signature
    }

    fn admit(&self, record: &OriginRecord) -> Result<Author, String> {
        let [role, name] = record.chain.as_slice() else { return Err("chain has another length".to_owned()) };
        if sha256(&[b"test-key", name]) != record.public_key {
            return Err("chain holds another key".to_owned());
        }
        let name = String::from_utf8_lossy(name).into_owned();
        Ok(Author { node: format!("node-{name}"), name, may_author: role == b"member" })
    }
}

/// An authority with a real Ed25519 key, for golden bytes.
pub(crate) struct Ed25519Authority(Ed25519KeyPair);

impl Ed25519Authority {
    pub(crate) fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes are a seed"))
    }
}

impl Authority for Ed25519Authority {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }

    fn public_key(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("Ed25519 keys have 32 bytes")
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        vec![b"node certificate".to_vec(), b"admission certificate".to_vec()]
    }

    fn verify(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, public_key).verify(bytes, signature).is_ok()
    }

    fn admit(&self, _: &OriginRecord) -> Result<Author, String> {
        Ok(Author { node: "node".to_owned(), name: "name".to_owned(), may_author: true })
    }
}

/// A small generator (splitmix64): the same seed, the same run.
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).expect("fits")).expect("fits")
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// A replica on a new disk in memory; different names draw different lives.
pub(crate) fn replica(name: &str) -> Replica {
    replica_on(name, Box::new(MemoryStorage::new()), 0)
}

pub(crate) fn replica_on(name: &str, storage: Box<dyn Storage>, boot: u64) -> Replica {
    try_replica_on(name, storage, boot).expect("an intact database opens")
}

pub(crate) fn try_replica_on(name: &str, storage: Box<dyn Storage>, boot: u64) -> Result<Replica, StoreError> {
    let mut random = [0; 16];
    random.copy_from_slice(&sha256(&[name.as_bytes(), &boot.to_be_bytes()])[..16]);
    Replica::open(storage, HashAuthority::member(name), MESH, random, NOW)
}

pub(crate) fn on(disk: &Disk) -> Box<dyn Storage> {
    Box::new(MemoryStorage::on(disk))
}

pub(crate) fn key(name: &str) -> DocKey {
    DocKey::new("HTTPRoute", "global", name)
}

/// Sections from pairs of name and content.
pub(crate) fn body(sections: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    sections.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
}

pub(crate) fn put(replica: &mut Replica, name: &str, sections: &[(&str, &str)]) -> Written {
    replica.write(vec![Edit::put(key(name), body(sections))], WriteMeta::default(), NOW).expect("a plain write works")
}

pub(crate) fn delete(replica: &mut Replica, name: &str) -> Written {
    replica.write(vec![Edit::delete(key(name))], WriteMeta::default(), NOW).expect("a plain delete works")
}

/// The effective content as text; `None` where the document does not exist.
pub(crate) fn text(replica: &Replica, name: &str) -> Option<BTreeMap<String, String>> {
    let view = replica.document(&key(name))?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    Some(view.sections.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

/// All live ops with their origins' records, as a peer would send them.
pub(crate) fn ops_of(replica: &Replica) -> Vec<(Option<OriginRecord>, SignedOp)> {
    replica
        .live_dots()
        .into_iter()
        .map(|(_, dot)| {
            let signed = replica.signed_op(dot).expect("live ops are held").clone();
            (replica.origin_record(&dot.origin).cloned(), signed)
        })
        .collect()
}

/// A whole conversation without faults.
pub(crate) fn sync(a: &mut Replica, b: &mut Replica) -> Result<(SyncSession, SyncSession), SyncError> {
    sync_with(a, b, SyncConfig::default())
}

pub(crate) fn sync_with(
    a: &mut Replica,
    b: &mut Replica,
    config: SyncConfig,
) -> Result<(SyncSession, SyncSession), SyncError> {
    let mut from = SyncSession::initiate(config, *b.incarnation().as_bytes());
    let mut to = SyncSession::accept(config, *a.incarnation().as_bytes());
    while !(from.is_done() && to.is_done()) {
        let mut is_idle = true;
        while let Some(message) = from.poll_send(a) {
            to.handle_message(b, &message, NOW)?;
            is_idle = false;
        }
        while let Some(message) = to.poll_send(b) {
            from.handle_message(a, &message, NOW)?;
            is_idle = false;
        }
        assert!(!is_idle, "the conversation stands still: {from:?} {to:?}");
    }
    Ok((from, to))
}

/// Bytes kept in `testdata`, which must be what today's program makes. With `MARRAM_WRITE_GOLDEN` set, a file that is
/// missing is written; one that is there never is, for it is what released versions read and wrote.
pub(crate) fn golden(name: &str, made_today: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    if !path.exists() && std::env::var_os("MARRAM_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, made_today).expect("testdata is writable");
    }
    let kept = std::fs::read(&path).expect("the file is in the repository");
    assert!(kept == made_today, "{name}: what is made today differs from what was kept; it needs a new version");
    kept
}
