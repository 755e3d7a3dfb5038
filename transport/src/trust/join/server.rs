//! The door: open while a token lives, one visitor's question at a time per connection.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{StartHandshake, TlsAcceptor};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::limit::TryLimiter;
use super::wire::{Admission, Answer, JoinRefusal, Question, receive, send};
use super::{ALPN, EXPORTER_LABEL, PROOF_CONTEXT, proof_bytes};
use crate::clock::Clock;
use crate::id::NodeId;
use crate::tcp::JoinDoor;
use crate::trust::error::TrustError;
use crate::trust::identity::Identity;
use crate::trust::issue::{self, Life, NODE_LIFE_S};
use crate::trust::key::verify_signature;
use crate::trust::leaf::LeafSource;
use crate::trust::name::{Role, check_node_name};
use crate::trust::tls::{clock_time, provider, without_resumption};
use crate::trust::token::TokenBook;

/// Which node of the mesh has a name, as far as this node knows. Called on a blocking thread.
pub type NamesInUse = Arc<dyn Fn(&str) -> Option<NodeId> + Send + Sync>;
/// Some members with the addresses (host:port) of their links, best first, for newcomers to dial. Called on a blocking
/// thread; at most 32 are passed on.
pub type PeersKnown = Arc<dyn Fn() -> Vec<(NodeId, String)> + Send + Sync>;

/// How often the folder of tokens is looked at.
const POLL: Duration = Duration::from_millis(500);
/// Longest stay of a visitor, handshake included.
const VISIT_MAX: Duration = Duration::from_secs(10);
/// Most visitors at once; others wait in the kernel's queue.
const VISITORS_MAX: usize = 16;
/// How long visitors may finish when the node stops.
const DRAIN: Duration = Duration::from_secs(2);
/// How long the name of a newcomer is held for it until the mesh knows it.
const NAME_HELD: Duration = Duration::from_secs(600);
/// Most names held; beyond it newcomers wait.
const NAMES_HELD_MAX: usize = 2_000;

/// What the door needs to know besides the identity.
#[derive(Clone)]
pub struct JoinServerConfig {
    /// The node's folder; tokens lie in `DIR/tokens`.
    pub dir: PathBuf,
    /// Where to listen while a token lives: TCP on the number of the mesh port.
    pub listen: SocketAddr,
    /// Names that are taken.
    pub names: NamesInUse,
    /// Whom newcomers can dial.
    pub peers: PeersKnown,
}

impl fmt::Debug for JoinServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinServerConfig").field("dir", &self.dir).field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// What happened at the door so far. Counts only grow.
#[derive(Debug, Default)]
pub struct JoinCounters {
    admitted: AtomicU64,
    refused: [AtomicU64; JoinRefusal::ALL.len()],
    broken: AtomicU64,
}

impl JoinCounters {
    /// Newcomers let in.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Newcomers refused, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (JoinRefusal, u64)> {
        JoinRefusal::ALL.into_iter().zip(&self.refused).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// Visits that ended without a question: handshakes that failed, visitors that left or were too slow.
    pub fn broken(&self) -> u64 {
        self.broken.load(Ordering::Relaxed)
    }

    fn refuse(&self, refusal: JoinRefusal) {
        for (reason, count) in JoinRefusal::ALL.into_iter().zip(&self.refused) {
            if reason == refusal {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Lets newcomers in who bring a token made in this folder.
///
/// The door is open only while a token's life lasts, also one that is used up, so that its second bearer hears why. The
/// port behind it is that of the links, if they listen on TCP ([`JoinServer::behind`]), else one opened for the time.
/// A source with five wrong tries within a minute is dropped before it costs a handshake.
pub struct JoinServer {
    listen: SocketAddr,
    book: TokenBook,
    acceptor: TlsAcceptor,
    desk: Arc<Desk>,
    door: watch::Sender<Option<SocketAddr>>,
    /// Where newcomers are handed over by whoever listens on the port already.
    shared: Option<Arc<JoinDoor>>,
}

/// What every visit shares.
struct Desk {
    identity: Arc<Identity>,
    book: TokenBook,
    names: NamesInUse,
    peers: PeersKnown,
    clock: Arc<dyn Clock>,
    limiter: Mutex<TryLimiter>,
    held: Mutex<BTreeMap<String, (NodeId, Duration)>>,
    counters: Arc<JoinCounters>,
}

impl JoinServer {
    /// A door for this node; [`JoinServer::run`] tends it.
    ///
    /// # Errors
    /// [`TrustError::NotAdmitting`] on a node without the admission key; a folder of tokens that cannot be used.
    pub fn new(
        config: JoinServerConfig,
        identity: Arc<Identity>,
        leaf: Arc<LeafSource>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TrustError> {
        identity.admission()?;
        let root = identity.roots().certificates().next().map(|der| CertificateDer::from(der.to_vec()));
        let resolver = Arc::new(WithRoot { leaf, root });
        let mut tls = ServerConfig::builder_with_details(provider(), clock_time(&clock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TrustError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        without_resumption(&mut tls);
        tls.alpn_protocols = vec![ALPN.to_vec()];

        let book = TokenBook::open(&config.dir)?;
        let desk = Desk {
            identity,
            book: book.clone(),
            names: config.names,
            peers: config.peers,
            clock,
            limiter: Mutex::default(),
            held: Mutex::default(),
            counters: Arc::default(),
        };
        Ok(Self {
            listen: config.listen,
            book,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            desk: Arc::new(desk),
            door: watch::Sender::new(None),
            shared: None,
        })
    }

    /// Takes newcomers from the listener of the links instead of listening itself.
    #[must_use]
    pub fn behind(self, shared: Option<Arc<JoinDoor>>) -> Self {
        Self { shared, ..self }
    }

    /// What happened at the door; keep a handle before [`JoinServer::run`] takes the server.
    pub fn counters(&self) -> Arc<JoinCounters> {
        Arc::clone(&self.desk.counters)
    }

    /// Where the door is open right now; `None` while no token lives.
    pub fn door(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.door.subscribe()
    }

    /// Tends the door until `shutdown` completes, then gives visitors two seconds to finish.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listener: Option<TcpListener> = None;
        let mut trouble: Option<String> = None;
        let mut visits = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = poll.tick() => {
                    let tended = self.tend(&mut listener).await.map_err(|error| error.to_string());
                    // The same trouble twice a second is one line in the log.
                    if let Err(error) = &tended && trouble.as_ref() != Some(error) {
                        warn!(listen = %self.listen, %error, "newcomers cannot be let in");
                    }
                    trouble = tended.err();
                }
                Some((guest, source)) = next_visitor(listener.as_ref(), self.shared.as_deref()),
                    if visits.len() < VISITORS_MAX => {
                    let visit = visit(Arc::clone(&self.desk), self.acceptor.clone(), guest, source);
                    visits.spawn(visit);
                }
                Some(_) = visits.join_next(), if !visits.is_empty() => {}
            }
        }
        drop(listener);
        if let Some(shared) = &self.shared {
            shared.set_open(false);
        }
        self.door.send_replace(None);
        let _finished = timeout(DRAIN, async { while visits.join_next().await.is_some() {} }).await;
    }

    /// Opens or closes the door as tokens come and go.
    async fn tend(&self, listener: &mut Option<TcpListener>) -> Result<(), TrustError> {
        let (book, now_unix) = (self.book.clone(), self.desk.clock.unix().as_secs());
        let wanted = blocking(move || book.any_unexpired(now_unix)).await?;
        if let Some(shared) = &self.shared {
            self.tend_shared(shared, wanted);
            return Ok(());
        }
        match (wanted, listener.is_some()) {
            (true, false) => {
                let name = format!("tcp {}", self.listen);
                let opened = TcpListener::bind(self.listen).await.map_err(TrustError::io(&name))?;
                let address = opened.local_addr().map_err(TrustError::io(&name))?;
                info!(%address, "a token lives: newcomers are let in");
                self.door.send_replace(Some(address));
                *listener = Some(opened);
            }
            (false, true) => {
                info!("no token lives: the door for newcomers is closed");
                self.door.send_replace(None);
                *listener = None;
            }
            (true, true) | (false, false) => {}
        }
        Ok(())
    }
}

impl JoinServer {
    /// Has newcomers handed over while a token lives.
    fn tend_shared(&self, shared: &JoinDoor, wanted: bool) {
        match (wanted, shared.is_open()) {
            (true, false) => info!(address = %shared.addr(), "a token lives: newcomers are let in"),
            (false, true) => info!("no token lives: the door for newcomers is closed"),
            (true, true) | (false, false) => return,
        }
        shared.set_open(wanted);
        self.door.send_replace(wanted.then(|| shared.addr()));
    }
}

impl fmt::Debug for JoinServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinServer")
            .field("listen", &self.listen)
            .field("counters", &self.desk.counters)
            .finish_non_exhaustive()
    }
}

/// Somebody at the door.
enum Guest {
    /// Nothing was read of it.
    Silent(TcpStream),
    /// The first message of its handshake was read.
    Begun(Box<StartHandshake<TcpStream>>),
}

impl Guest {
    async fn shake_hands(self, acceptor: &TlsAcceptor) -> io::Result<TlsStream<TcpStream>> {
        match self {
            Self::Silent(stream) => acceptor.accept(stream).await,
            Self::Begun(begun) => begun.into_stream(Arc::clone(acceptor.config())).await,
        }
    }
}

/// Waits for a visitor; for ever while the door is closed.
async fn next_visitor(listener: Option<&TcpListener>, shared: Option<&JoinDoor>) -> Option<(Guest, IpAddr)> {
    if let Some(shared) = shared {
        let arrival = shared.next().await?;
        let stream = TcpStream::from_std(arrival.stream).ok()?;
        return Some((Guest::Begun(Box::new(StartHandshake::from_parts(arrival.accepted, stream))), arrival.source));
    }
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    match listener.accept().await {
        Ok((stream, from)) => Some((Guest::Silent(stream), from.ip())),
        Err(error) => {
            // Usually out of file descriptors; a pause lets others give some back.
            debug!(%error, "a newcomer's connection could not be accepted");
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// One visitor from handshake to answer. Whatever it does ends here.
async fn visit(desk: Arc<Desk>, acceptor: TlsAcceptor, guest: Guest, source: IpAddr) {
    if lock(&desk.limiter).is_blocked(source, desk.clock.now()) {
        desk.counters.refuse(JoinRefusal::TooManyTries);
        return;
    }
    match timeout(VISIT_MAX, converse(&desk, &acceptor, guest, source)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            desk.counters.broken.fetch_add(1, Ordering::Relaxed);
            debug!(%source, %error, "a newcomer's visit broke off");
        }
        Err(_elapsed) => {
            desk.counters.broken.fetch_add(1, Ordering::Relaxed);
            debug!(%source, "a newcomer took too long");
        }
    }
}

async fn converse(desk: &Arc<Desk>, acceptor: &TlsAcceptor, guest: Guest, source: IpAddr) -> io::Result<()> {
    let mut stream = guest.shake_hands(acceptor).await?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(ALPN) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "another application protocol"));
    }
    let mut exported = [0; 32];
    session.export_keying_material(&mut exported, EXPORTER_LABEL, None).map_err(io::Error::other)?;

    let bytes = receive(&mut stream).await?;
    let answer = match Question::decode(&bytes) {
        Some(question) => {
            let desk = Arc::clone(desk);
            blocking(move || desk.answer(&question, &exported)).await
        }
        None => Err(JoinRefusal::Malformed),
    };
    let answer = match answer {
        Ok(admission) => {
            desk.counters.admitted.fetch_add(1, Ordering::Relaxed);
            Answer::Admitted(admission)
        }
        Err(refusal) => Answer::Refused(desk.refuse(refusal, source)),
    };
    send(&mut stream, &answer.encode()).await?;
    stream.shutdown().await
}

impl Desk {
    /// Counts a refusal; the last wrong try a source has is answered with that.
    fn refuse(&self, refusal: JoinRefusal, source: IpAddr) -> JoinRefusal {
        self.counters.refuse(refusal);
        info!(%source, reason = refusal.reason(), "newcomer refused");
        let guess = matches!(
            refusal,
            JoinRefusal::UnknownToken | JoinRefusal::WrongSecret | JoinRefusal::Proof | JoinRefusal::Malformed
        );
        if guess && lock(&self.limiter).wrong(source, self.clock.now()) { JoinRefusal::TooManyTries } else { refusal }
    }

    /// Everything between question and answer, under the lock of the tokens: checks first, then one use is taken
    /// durably, then certificates are issued. Blocks on the disk.
    fn answer(&self, question: &Question, exported: &[u8; 32]) -> Result<Admission, JoinRefusal> {
        let lock = self.book.lock().map_err(unavailable)?;
        let record = self.book.find(question.id).map_err(unavailable)?.ok_or(JoinRefusal::UnknownToken)?;
        if !record.is_secret(question.id, &question.secret) {
            return Err(JoinRefusal::WrongSecret);
        }
        let now_unix = self.clock.unix().as_secs();
        if now_unix >= record.expires_unix {
            return Err(JoinRefusal::Expired);
        }
        if record.uses == 0 {
            return Err(JoinRefusal::Used);
        }
        check_node_name(&question.name).ok().ok_or(JoinRefusal::NameUnfit)?;
        let proof = proof_bytes(exported, question.id, &question.name);
        let mesh = self.identity.mesh();
        if !verify_signature(mesh, &question.public_key, PROOF_CONTEXT, &proof, &question.proof) {
            return Err(JoinRefusal::Proof);
        }
        let node = NodeId::from_public_key(&question.public_key);
        self.hold_name(&question.name, node)?;
        let issued = match self.book.take_use(&lock, question.id) {
            Ok(true) => self.admit(&question.name, record.role, &question.public_key, now_unix).map_err(unavailable),
            Ok(false) => Err(JoinRefusal::Used),
            Err(error) => Err(unavailable(error)),
        };
        if issued.is_err() {
            self.let_go_of_name(&question.name);
        } else {
            info!(%node, name = question.name, role = %record.role, "newcomer admitted");
        }
        issued
    }

    /// Refuses a name that another node has or was just given; else keeps it for this one.
    fn hold_name(&self, name: &str, node: NodeId) -> Result<(), JoinRefusal> {
        let own = (name == self.identity.name()).then(|| self.identity.node());
        let known = own.or_else(|| (self.names)(name));
        if known.is_some_and(|known| known != node) {
            return Err(JoinRefusal::NameTaken);
        }
        let now = self.clock.now();
        let mut held = lock(&self.held);
        held.retain(|_, (_, since)| now.saturating_sub(*since) < NAME_HELD);
        if held.get(name).is_some_and(|(holder, _)| *holder != node) {
            return Err(JoinRefusal::NameTaken);
        }
        if held.len() >= NAMES_HELD_MAX {
            return Err(JoinRefusal::Unavailable);
        }
        held.insert(name.to_owned(), (node, now));
        Ok(())
    }

    fn let_go_of_name(&self, name: &str) {
        lock(&self.held).remove(name);
    }

    fn admit(&self, name: &str, role: Role, key: &[u8; 32], now_unix: u64) -> Result<Admission, TrustError> {
        let signer = self.identity.admission()?;
        let life = Life::new(now_unix, NODE_LIFE_S, self.identity.admission_not_after_unix());
        let admission_key = (role == Role::Admit).then(|| Zeroizing::new(signer.key.pkcs8().to_vec()));
        Ok(Admission {
            node: issue::node(name, role, key, signer, life)?,
            admission: signer.certificate.to_vec(),
            admission_key,
            peers: (self.peers)(),
        })
    }
}

/// Shows the node's leaf with the root behind it, which the newcomer holds against its pin.
#[derive(Debug)]
struct WithRoot {
    leaf: Arc<LeafSource>,
    root: Option<CertificateDer<'static>>,
}

impl ResolvesServerCert for WithRoot {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.leaf.certified();
        let chain = current.cert.iter().chain(&self.root).cloned().collect();
        Some(Arc::new(CertifiedKey::new(chain, Arc::clone(&current.key))))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "stands where map_err gives an owned error")]
fn unavailable(error: TrustError) -> JoinRefusal {
    warn!(%error, "a newcomer could not be answered");
    JoinRefusal::Unavailable
}

/// Runs disk work off the async threads. A panic there is this task's panic.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is going down cancels blocking work; this task goes down with it.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}

/// The state behind these locks is whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
