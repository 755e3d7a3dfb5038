//! Newcomers at a real door on loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::client::{RootPin, tls};
use super::wire::{Answer, Question, receive, send};
use super::*;
use crate::clock::Clock;
use crate::id::NodeId;
use crate::trust::error::TrustError;
use crate::trust::identity::Identity;
use crate::trust::key::SecretKey;
use crate::trust::leaf::{LeafLife, LeafSource};
use crate::trust::name::Role;
use crate::trust::refusal::Refusal;
use crate::trust::roots::spki_hash;
use crate::trust::tests::{Mesh, NOW, TestClock, certified};
use crate::trust::tls::{provider, server_name};
use crate::trust::token::{Token, create_token};

const HOUR: Duration = Duration::from_secs(3_600);

/// The first node with its door, tended until the end of the test.
struct Door {
    dir: TempDir,
    identity: Arc<Identity>,
    clock: Arc<TestClock>,
    counters: Arc<JoinCounters>,
    open: watch::Receiver<Option<SocketAddr>>,
    names: Arc<Mutex<BTreeMap<String, NodeId>>>,
    stop: Option<oneshot::Sender<()>>,
    tending: Option<JoinHandle<()>>,
}

impl Door {
    fn new(mesh: &Mesh, role: Role) -> Self {
        let clock = TestClock::new();
        let dir = tempfile::tempdir().unwrap();
        let identity = Arc::new(mesh.member_in(dir.path(), "first", role));
        let leaf = LeafSource::new(&identity, LeafLife::default(), NOW).unwrap();
        let names: Arc<Mutex<BTreeMap<String, NodeId>>> = Arc::default();
        let known = Arc::clone(&names);
        let node = identity.node();
        let config = JoinServerConfig {
            dir: dir.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            names: Arc::new(move |name| known.lock().unwrap().get(name).copied()),
            peers: Arc::new(move || vec![(node, "10.0.0.1:7440".to_owned())]),
        };
        let server = JoinServer::new(config, Arc::clone(&identity), leaf, Arc::clone(&clock) as _).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (counters, open) = (server.counters(), server.door());
        let shutdown = async move {
            let _ended = stopped.await;
        };
        let tending = Some(tokio::spawn(server.run(shutdown)));
        Self { dir, identity, clock, counters, open, names, stop: Some(stop), tending }
    }

    fn admitting(mesh: &Mesh) -> Self {
        Self::new(mesh, Role::Admit)
    }

    /// A token made in this folder; its text is given the door's address once that is open.
    async fn token(&mut self, ttl: Duration, uses: u32, role: Role) -> String {
        let made = self.token_for("127.0.0.1:1", ttl, uses, role);
        let address = *self.open.wait_for(Option::is_some).await.unwrap();
        made.replace("127.0.0.1:1", &address.unwrap().to_string())
    }

    fn token_for(&self, seed: &str, ttl: Duration, uses: u32, role: Role) -> String {
        let now = self.clock.unix().as_secs();
        create_token(self.dir.path(), ttl, uses, role, &[seed.to_owned()], now).unwrap()
    }

    async fn join(&self, token: &str, name: &str) -> Result<(TempDir, Joined), JoinError> {
        let dir = tempfile::tempdir().unwrap();
        let joined = join(token, dir.path(), name, self.clock.as_ref()).await?;
        Ok((dir, joined))
    }

    fn refused(&self) -> Vec<(JoinRefusal, u64)> {
        self.counters.refused().filter(|(_, count)| *count > 0).collect()
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        self.tending.take().unwrap().await.unwrap();
    }
}

/// The same token with other letters in one of its parts (1 root, 2 id, 3 secret).
fn altered(token: &str, part: usize) -> String {
    let (keys, seeds) = token.split_once('@').unwrap();
    let mut parts: Vec<String> = keys.split('.').map(str::to_owned).collect();
    let last = parts[part].remove(0);
    parts[part].insert(0, if last == 'b' { 'c' } else { 'b' });
    format!("{}@{seeds}", parts.join("."))
}

fn refusal(result: Result<(TempDir, Joined), JoinError>) -> JoinRefusal {
    match result {
        Err(JoinError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[tokio::test]
async fn a_newcomer_with_a_token_becomes_a_member_once() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let token = door.token(HOUR, 1, Role::Member).await;
    let (dir, joined) = door.join(&token, "second").await.unwrap();
    assert_eq!((joined.mesh.as_str(), joined.role), ("garden", Role::Member));
    assert_eq!(joined.peers, [(door.identity.node(), "10.0.0.1:7440".to_owned())]);
    assert_eq!(joined.seeds, token.parse::<Token>().unwrap().seeds());

    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.node(), joined.node);
    assert_eq!((identity.name(), identity.role(), identity.can_admit()), ("second", Role::Member, false));
    let admitted = crate::trust::verify_chain(door.identity.roots(), identity.chain(), NOW).unwrap();
    assert_eq!(admitted.node, joined.node);

    assert_eq!(refusal(door.join(&token, "third").await), JoinRefusal::Used);
    assert_eq!(door.counters.admitted(), 1);
    assert_eq!(door.refused(), [(JoinRefusal::Used, 1)]);
    door.stop().await;
}

#[tokio::test]
async fn the_door_is_open_only_while_a_token_lives() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    assert_eq!(*door.open.borrow(), None);
    let token = door.token(Duration::from_secs(100), 1, Role::Member).await;
    let address = door.open.borrow().unwrap();
    assert!(TcpStream::connect(address).await.is_ok());
    door.clock.advance(Duration::from_secs(100));
    door.open.wait_for(Option::is_none).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());

    // Nobody answers, and the token itself says why.
    door.clock.advance(Duration::from_secs(5));
    let error = door.join(&token, "second").await.unwrap_err();
    assert!(matches!(error, JoinError::Expired { ago_s: 5, .. }), "{error}");
}

#[tokio::test]
async fn an_expired_token_is_refused_with_that_reason() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let short = door.token(Duration::from_secs(10), 1, Role::Member).await;
    let _keeps_the_door_open = door.token(HOUR, 1, Role::Member).await;
    door.clock.advance(Duration::from_secs(10));
    assert_eq!(refusal(door.join(&short, "second").await), JoinRefusal::Expired);
    assert_eq!(door.refused(), [(JoinRefusal::Expired, 1)]);
}

#[tokio::test]
async fn wrong_and_unknown_tokens_are_told_apart_and_leave_no_trace() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let token = door.token(HOUR, 1, Role::Member).await;
    let dir = tempfile::tempdir().unwrap();
    let attempt = async |token: String| join(&token, dir.path(), "second", door.clock.as_ref()).await;

    let wrong_secret = attempt(altered(&token, 3)).await;
    assert!(matches!(wrong_secret, Err(JoinError::Refused(JoinRefusal::WrongSecret))), "{wrong_secret:?}");
    let unknown = attempt(altered(&token, 2)).await;
    assert!(matches!(unknown, Err(JoinError::Refused(JoinRefusal::UnknownToken))), "{unknown:?}");
    let other_root = attempt(altered(&token, 1)).await;
    assert!(matches!(other_root, Err(JoinError::OtherRoot { .. })), "{other_root:?}");
    let malformed = attempt("marram1.nonsense".to_owned()).await;
    assert!(matches!(malformed, Err(JoinError::Token(_))), "{malformed:?}");
    assert!(is_empty(dir.path()), "a failed attempt leaves the folder as it was");
    assert!(attempt(token).await.is_ok());
}

#[tokio::test]
async fn five_wrong_tries_shut_the_door_to_their_source_for_a_minute() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let token = door.token(HOUR, 1, Role::Member).await;
    let wrong = altered(&token, 3);
    for _ in 0..4 {
        assert_eq!(refusal(door.join(&wrong, "second").await), JoinRefusal::WrongSecret);
    }
    assert_eq!(refusal(door.join(&wrong, "second").await), JoinRefusal::TooManyTries);
    // From now on even the right secret is not looked at.
    let shut = door.join(&token, "second").await;
    assert!(matches!(shut, Err(JoinError::Unreachable { .. })), "{shut:?}");
    assert_eq!(door.refused(), [(JoinRefusal::WrongSecret, 5), (JoinRefusal::TooManyTries, 1)]);
    door.clock.advance(Duration::from_secs(60));
    assert!(door.join(&token, "second").await.is_ok());
}

#[tokio::test]
async fn a_name_that_another_node_has_is_refused_and_costs_no_use() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    door.names.lock().unwrap().insert("edge".to_owned(), NodeId::from_bytes([9; 16]));
    let token = door.token(HOUR, 2, Role::Member).await;
    assert_eq!(refusal(door.join(&token, "edge").await), JoinRefusal::NameTaken);
    assert_eq!(refusal(door.join(&token, "first").await), JoinRefusal::NameTaken, "the door's own name");
    door.join(&token, "second").await.unwrap();
    // The mesh may not have heard of it yet, but the door remembers whom it gave the name.
    assert_eq!(refusal(door.join(&token, "second").await), JoinRefusal::NameTaken);
    door.join(&token, "third").await.unwrap();
    assert_eq!(refusal(door.join(&token, "fourth").await), JoinRefusal::Used);
    assert_eq!(door.refused(), [(JoinRefusal::Used, 1), (JoinRefusal::NameTaken, 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_newcomers_at_once_get_exactly_as_many_places_as_the_token_has() {
    let mesh = Mesh::new("garden");
    for uses in [1, 3] {
        let mut door = Door::admitting(&mesh);
        let token = door.token(HOUR, uses, Role::Member).await;
        let mut attempts = tokio::task::JoinSet::new();
        for n in 0..8 {
            let (token, clock) = (token.clone(), Arc::clone(&door.clock));
            attempts.spawn(async move {
                let dir = tempfile::tempdir().unwrap();
                join(&token, dir.path(), &format!("node-{n}"), clock.as_ref()).await
            });
        }
        let results = attempts.join_all().await;
        let admitted = results.iter().filter(|result| result.is_ok()).count();
        let used = results.iter().filter(|r| matches!(r, Err(JoinError::Refused(JoinRefusal::Used)))).count();
        assert_eq!(
            (admitted, used),
            (usize::try_from(uses).unwrap(), 8 - usize::try_from(uses).unwrap()),
            "{results:?}"
        );
        assert_eq!(door.counters.admitted(), u64::from(uses));
    }
}

#[tokio::test]
async fn the_role_of_the_token_decides_who_receives_the_admission_key() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    for role in [Role::Admit, Role::Member, Role::Gateway] {
        let token = door.token(HOUR, 1, role).await;
        let (dir, joined) = door.join(&token, role.as_str()).await.unwrap();
        assert_eq!(joined.role, role);
        assert_eq!(Identity::load(dir.path()).unwrap().can_admit(), role == Role::Admit);
        let next = create_token(dir.path(), HOUR, 1, Role::Member, &["h:1".to_owned()], NOW);
        match role {
            Role::Admit => assert!(next.is_ok(), "{next:?}"),
            Role::Member | Role::Gateway => assert!(matches!(next, Err(TrustError::NotAdmitting)), "{next:?}"),
        }
    }
}

#[tokio::test]
async fn joining_again_renews_the_same_member_and_nobody_else() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let token = door.token(HOUR * 24 * 30, 3, Role::Member).await;
    let (dir, joined) = door.join(&token, "second").await.unwrap();
    door.names.lock().unwrap().insert("second".to_owned(), joined.node);
    let first_end = Identity::load(dir.path()).unwrap().not_after_unix();
    door.clock.advance(HOUR);

    let again = join(&token, dir.path(), "second", door.clock.as_ref()).await.unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!((again.node, identity.node()), (joined.node, joined.node));
    assert_eq!(identity.not_after_unix(), first_end + 3_600);

    let renamed = join(&token, dir.path(), "other", door.clock.as_ref()).await;
    assert!(matches!(renamed, Err(JoinError::OtherIdentity { .. })), "{renamed:?}");
    let elsewhere = Door::admitting(&Mesh::new("orchard")).token(HOUR, 1, Role::Member).await;
    let moved = join(&elsewhere, dir.path(), "second", door.clock.as_ref()).await;
    assert!(matches!(moved, Err(JoinError::OtherIdentity { .. })), "{moved:?}");
    assert_eq!(Identity::load(dir.path()).unwrap().node(), joined.node);
}

#[tokio::test]
async fn a_node_without_the_admission_key_opens_no_door() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(Mesh::new("garden").member_in(dir.path(), "second", Role::Member));
    let leaf = LeafSource::new(&identity, LeafLife::default(), NOW).unwrap();
    let config = JoinServerConfig {
        dir: dir.path().to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        names: Arc::new(|_| None),
        peers: Arc::new(Vec::new),
    };
    let refused = JoinServer::new(config, identity, leaf, TestClock::new());
    assert!(matches!(refused, Err(TrustError::NotAdmitting)));
}

/// Speaks TLS 1.3 with whatever chain it is given and counts what it is told.
async fn impostor(shown: Arc<CertifiedKey>) -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);
    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shows(shown)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    let one_visit = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                counter.fetch_add(read, Ordering::SeqCst);
            }
        }
    });
    (address, told, one_visit)
}

/// The chain a door of this mesh shows, with a leaf key the impostor holds.
fn door_chain(mesh: &Mesh, dir: &Path, role: Role) -> (Vec<Vec<u8>>, SecretKey) {
    let identity = mesh.member_in(dir, "first", role);
    let key = SecretKey::generate().unwrap();
    let signer = crate::trust::issue::Signer { certificate: &identity.chain()[0], key: identity.key() };
    let life = crate::trust::tests::leaf_life();
    let subject = crate::trust::Subject::Node(identity.node());
    let leaf = crate::trust::issue::leaf(mesh.name, &subject, &key, signer, life).unwrap();
    let mut chain = vec![leaf];
    chain.extend(identity.chain().iter().cloned());
    chain.push(mesh.root.clone());
    (chain, key)
}

#[tokio::test]
async fn the_secret_is_never_told_to_another_root() {
    let (mesh, other) = (Mesh::new("garden"), Mesh::new("garden"));
    let door = Door::admitting(&mesh);
    let dir = tempfile::tempdir().unwrap();
    let (chain, key) = door_chain(&other, dir.path(), Role::Admit);
    let (address, told, visit) = impostor(certified(&chain, &key)).await;
    let token = door.token_for(&address.to_string(), HOUR, 1, Role::Member);
    let error = door.join(&token, "second").await.unwrap_err();
    visit.await.unwrap();
    assert!(matches!(&error, JoinError::OtherRoot { .. }), "{error}");
    assert!(error.to_string().contains(&door.identity.roots().fingerprint()), "{error}");
    assert_eq!(told.load(Ordering::SeqCst), 0, "not one byte was told");
}

#[tokio::test]
async fn the_secret_is_never_told_to_who_shows_the_right_root_but_does_not_belong_to_it() {
    let (mesh, other) = (Mesh::new("garden"), Mesh::new("garden"));
    let door = Door::admitting(&mesh);
    let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let (mut right_root, right_root_key) = door_chain(&other, dirs[0].path(), Role::Admit);
    *right_root.last_mut().unwrap() = mesh.root.clone();
    let (member, member_key) = door_chain(&mesh, dirs[1].path(), Role::Member);
    let (short, short_key) = door_chain(&mesh, dirs[2].path(), Role::Admit);
    let cases = [
        ("a stranger's chain behind the right root", right_root, right_root_key, Refusal::Untrusted),
        ("a member that may not admit", member, member_key, Refusal::Usage),
        ("a chain without its root", short[..3].to_vec(), short_key, Refusal::ChainShape),
    ];
    for (what, chain, key, expected) in cases {
        let (address, told, visit) = impostor(certified(&chain, &key)).await;
        let token = door.token_for(&address.to_string(), HOUR, 1, Role::Member);
        let error = door.join(&token, "second").await.unwrap_err();
        visit.await.unwrap();
        assert!(matches!(&error, JoinError::Seed { refusal, .. } if *refusal == expected), "{what}: {error}");
        assert_eq!(told.load(Ordering::SeqCst), 0, "{what}");
    }
    // The right chain without the key of its leaf: the handshake itself fails.
    let dir = tempfile::tempdir().unwrap();
    let (chain, _) = door_chain(&mesh, dir.path(), Role::Admit);
    let (address, told, visit) = impostor(certified(&chain, &SecretKey::generate().unwrap())).await;
    let token = door.token_for(&address.to_string(), HOUR, 1, Role::Member);
    let error = door.join(&token, "second").await.unwrap_err();
    visit.await.unwrap();
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");
    assert_eq!(told.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let token = door.token(HOUR, 1, Role::Member).await;
    let two = token.replace('@', "@127.0.0.1:1,");
    assert!(door.join(&two, "second").await.is_ok());
}

/// A visitor that speaks TLS with the door but says what it likes.
async fn rude_visitor(door: &Door, token: &Token) -> (TlsStream<TcpStream>, [u8; 32]) {
    let address = door.open.borrow().unwrap();
    let root = &door.identity.roots().roots()[0];
    assert_eq!(spki_hash(&root.public_key), token.root);
    let pin = Arc::new(RootPin { pin: token.root, unix: door.clock.unix(), judged: Mutex::default() });
    let connector = TlsConnector::from(Arc::new(tls(&pin).unwrap()));
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect(ServerName::try_from(server_name(None)).unwrap(), stream).await.unwrap();
    let mut exported = [0; 32];
    stream.get_ref().1.export_keying_material(&mut exported, EXPORTER_LABEL, None).unwrap();
    (stream, exported)
}

#[tokio::test]
async fn a_proof_of_another_session_token_or_name_admits_nobody() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let text = door.token(HOUR, 1, Role::Member).await;
    let token: Token = text.parse().unwrap();
    let key = SecretKey::generate().unwrap();
    let (_other_stream, other_session) = rude_visitor(&door, &token).await;
    for wrong in ["session", "name", "key"] {
        let (mut stream, exported) = rude_visitor(&door, &token).await;
        let session = if wrong == "session" { other_session } else { exported };
        let name = if wrong == "name" { "third" } else { "second" };
        let proof = key.sign("garden", PROOF_CONTEXT, &proof_bytes(&session, token.id, name));
        let public_key = if wrong == "key" { *SecretKey::generate().unwrap().public() } else { *key.public() };
        let name = "second".to_owned();
        let question = Question { id: token.id, secret: token.secret.clone(), public_key, proof, name };
        send(&mut stream, &question.encode()).await.unwrap();
        let answer = Answer::decode(&receive(&mut stream).await.unwrap()).unwrap();
        assert!(answer == Answer::Refused(JoinRefusal::Proof), "{wrong}");
    }
    assert!(door.join(&text, "second").await.is_ok(), "no use was taken");
}

#[tokio::test]
async fn junk_and_giants_end_the_visit_and_nothing_else() {
    let mesh = Mesh::new("garden");
    let mut door = Door::admitting(&mesh);
    let text = door.token(HOUR, 1, Role::Member).await;
    let token: Token = text.parse().unwrap();

    let (mut junk, _) = rude_visitor(&door, &token).await;
    send(&mut junk, b"\x07junk").await.unwrap();
    let answer = Answer::decode(&receive(&mut junk).await.unwrap()).unwrap();
    assert!(answer == Answer::Refused(JoinRefusal::Malformed));

    let (mut giant, _) = rude_visitor(&door, &token).await;
    giant.write_all(&5_000_u32.to_be_bytes()).await.unwrap();
    giant.flush().await.unwrap();
    assert!(receive(&mut giant).await.is_err(), "no answer");

    let address = door.open.borrow().unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _reset = plain.read_to_end(&mut said).await;
    assert!(said.len() < 16, "at most an alert");

    // Somebody who says nothing does not keep others waiting.
    let _silent = TcpStream::connect(address).await.unwrap();
    assert!(door.join(&text, "second").await.is_ok());
    assert_eq!(door.counters.broken(), 2);
}

#[tokio::test]
async fn a_port_in_use_is_survived_until_it_is_free() {
    let mesh = Mesh::new("garden");
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let identity = Arc::new(mesh.member_in(dir.path(), "first", Role::Admit));
    let leaf = LeafSource::new(&identity, LeafLife::default(), NOW).unwrap();
    let config =
        JoinServerConfig { dir: dir.path().to_owned(), listen, names: Arc::new(|_| None), peers: Arc::new(Vec::new) };
    let clock = TestClock::new();
    let server = JoinServer::new(config, identity, leaf, Arc::clone(&clock) as _).unwrap();
    let mut open = server.door();
    let tending = tokio::spawn(server.run(std::future::pending()));
    let token = create_token(dir.path(), HOUR, 1, Role::Member, &[listen.to_string()], NOW).unwrap();
    drop(taken);
    open.wait_for(Option::is_some).await.unwrap();
    let newcomer = tempfile::tempdir().unwrap();
    join(&token, newcomer.path(), "second", clock.as_ref()).await.unwrap();
    tending.abort();
}
