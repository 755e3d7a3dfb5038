//! The newcomer's side: check the root, then say the secret, then become a member.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::wire::{Admission, Answer, JoinRefusal, Question, receive, send};
use super::{ALPN, EXPORTER_LABEL, PROOF_CONTEXT, proof_bytes};
use crate::clock::Clock;
use crate::id::{BASE32, NodeId};
use crate::trust::certificate::Certificate;
use crate::trust::chain::verify_chain;
use crate::trust::error::TrustError;
use crate::trust::identity::{self, Identity, Parts};
use crate::trust::issue::root_name;
use crate::trust::key::SecretKey;
use crate::trust::name::{Role, check_node_name};
use crate::trust::refusal::Refusal;
use crate::trust::roots::{TrustRoots, spki_hash};
use crate::trust::tls::{provider, server_name};
use crate::trust::token::{Token, TokenFault};
use crate::trust::verifier::PeerVerifier;

/// How often a shut door is tried before the newcomer gives up, and the pause between: 3 s together.
const DOOR_TRIES: u32 = 20;
const DOOR_PAUSE: Duration = Duration::from_millis(150);
/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for handshake and answer.
const TALK_MAX: Duration = Duration::from_secs(10);

/// What joining made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The mesh.
    pub mesh: String,
    /// The id of this node.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
    /// The addresses in the token (host:port).
    pub seeds: Vec<String>,
    /// Members the seed knows, with the addresses of their links (host:port).
    pub peers: Vec<(NodeId, String)>,
}

/// Why joining failed. Unless the variant says otherwise the token is still good.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The text is no token; nothing was sent.
    #[error("{0}")]
    Token(#[from] TokenFault),
    /// Somebody of another mesh (or an impostor) answers at the token's address. The secret was not sent.
    #[error(
        "{seed} belongs to another mesh: its root is {found}, the token is for {expected}; the secret was not sent"
    )]
    OtherRoot {
        /// The address asked.
        seed: String,
        /// The root the token pins.
        expected: String,
        /// The root that was shown.
        found: String,
    },
    /// The right root, but the node there does not prove to be one that admits. The secret was not sent.
    #[error("{seed} does not prove that it may admit newcomers: {refusal}; the secret was not sent")]
    Seed {
        /// The address asked.
        seed: String,
        /// What is wrong with its certificates; a wrong clock here shows as expired or not valid yet.
        refusal: Refusal,
    },
    /// The node refused, and says why.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// No address of the token answered, and by this machine's clock the token is over.
    #[error(
        "nobody answers at {seeds}, and the token expired {ago_s} s ago; make a new one with `marram token create`"
    )]
    Expired {
        /// The addresses tried.
        seeds: String,
        /// Seconds since the end of its life.
        ago_s: u64,
    },
    /// No address of the token answered. Is the agent running there, and is TCP open to it? Its door opens only while a
    /// token lives, and stays shut to a source with too many wrong tries.
    #[error("nobody lets newcomers in at {seed}: {source}")]
    Unreachable {
        /// The last address tried.
        seed: String,
        /// What the connection failed with.
        source: io::Error,
    },
    /// The answer makes no sense; versions may differ. The token may be used.
    #[error("{seed} gave an answer that does not fit: {fault}")]
    Answer {
        /// The address asked.
        seed: String,
        /// What is wrong with it.
        fault: AnswerFault,
    },
    /// The folder holds an identity of another mesh or under another name; it is never overwritten.
    #[error("the folder already belongs to node `{name}` of mesh `{mesh}`; choose another folder")]
    OtherIdentity {
        /// The mesh of the identity there.
        mesh: String,
        /// The name of the identity there.
        name: String,
    },
    /// This machine's files or keys. When they fail after the answer came, the token is used.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// What is wrong with a node's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerFault {
    /// Not in a form this version knows.
    #[error("it is not in a form this version knows")]
    Form,
    /// The certificates do not hold.
    #[error("{0}")]
    Chain(Refusal),
    /// The certificates are for another key or name, or the admission key is not that of its certificate.
    #[error("its certificates are for somebody else")]
    Other,
}

/// Redeems a token and makes `DIR` the folder of a member named `name`.
///
/// Each address of the token is tried in order. The root's fingerprint is checked inside the TLS handshake, before
/// anything is said; the node's key is made here and never leaves. A folder that already is this very member (same mesh,
/// same name) keeps its key and gets fresh certificates: that is how a node renews before its 90 days are over.
///
/// # Errors
/// See [`JoinError`]; the folder is unchanged.
pub async fn join(token: &str, dir: &Path, name: &str, clock: &dyn Clock) -> Result<Joined, JoinError> {
    let token: Token = token.parse()?;
    check_node_name(name).map_err(|fault| TrustError::NodeName { name: name.to_owned(), fault })?;
    let newcomer = Newcomer::prepare(dir, name, &token)?;
    let asked = ask_until_open(&token, &newcomer, clock).await;
    let joined = asked.and_then(|welcome| newcomer.settle(&token, welcome, clock));
    if joined.is_err() && newcomer.present.is_none() {
        identity::abandon(dir);
    }
    joined
}

/// Asks again for a moment where every address refuses the connection: a door opens within half a second of its token.
async fn ask_until_open(token: &Token, newcomer: &Newcomer<'_>, clock: &dyn Clock) -> Result<Welcome, JoinError> {
    for _ in 1..DOOR_TRIES {
        match ask_seeds(token, newcomer, clock).await {
            Err(JoinError::Unreachable { source, .. }) if is_shut(&source) => {}
            told => return told,
        }
        tokio::time::sleep(DOOR_PAUSE).await;
    }
    ask_seeds(token, newcomer, clock).await
}

/// Whether nobody listens, or whoever listens does not let newcomers in at the moment.
fn is_shut(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let is_alert = matches!(inner, Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
    error.kind() == io::ErrorKind::ConnectionRefused || is_alert
}

/// Asks one address after another. A node that knows the token has the last word; otherwise the most telling failure is
/// returned: another root before a closed port.
async fn ask_seeds(token: &Token, newcomer: &Newcomer<'_>, clock: &dyn Clock) -> Result<Welcome, JoinError> {
    let mut telling: Option<JoinError> = None;
    let mut unreachable: Option<JoinError> = None;
    for seed in token.seeds() {
        match ask(seed, token, newcomer, clock).await {
            Ok(welcome) => return Ok(welcome),
            Err(error @ JoinError::Unreachable { .. }) => unreachable = Some(error),
            Err(
                error @ (JoinError::OtherRoot { .. }
                | JoinError::Seed { .. }
                | JoinError::Refused(JoinRefusal::UnknownToken | JoinRefusal::Unavailable)),
            ) => {
                telling.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    let ago_s = clock.unix().as_secs().checked_sub(token.expires_unix());
    Err(match (telling, ago_s, unreachable) {
        (Some(telling), _, _) => telling,
        (None, Some(ago_s), _) => JoinError::Expired { seeds: token.seeds().join(", "), ago_s },
        (None, None, Some(unreachable)) => unreachable,
        (None, None, None) => JoinError::Token(TokenFault::Seeds),
    })
}

/// What an address answered, with the root it proved.
struct Welcome {
    seed: String,
    roots: TrustRoots,
    admission: Admission,
}

async fn ask(seed: &str, token: &Token, newcomer: &Newcomer<'_>, clock: &dyn Clock) -> Result<Welcome, JoinError> {
    let unreachable = |source: io::Error| JoinError::Unreachable { seed: seed.to_owned(), source };
    let connected = timeout(CONNECT_MAX, TcpStream::connect(seed)).await;
    let stream = connected.unwrap_or_else(|elapsed| Err(elapsed.into())).map_err(unreachable)?;
    let talked = timeout(TALK_MAX, talk(stream, seed, token, newcomer, clock)).await;
    talked.unwrap_or_else(|elapsed| Err(unreachable(elapsed.into())))
}

async fn talk(
    stream: TcpStream,
    seed: &str,
    token: &Token,
    newcomer: &Newcomer<'_>,
    clock: &dyn Clock,
) -> Result<Welcome, JoinError> {
    let unreachable = |source: io::Error| JoinError::Unreachable { seed: seed.to_owned(), source };
    let pin = Arc::new(RootPin { pin: token.root, unix: clock.unix(), judged: Mutex::default() });
    let connector = TlsConnector::from(Arc::new(tls(&pin)?));
    let anybody = ServerName::try_from(server_name(None)).map_err(|error| unreachable(io::Error::other(error)))?;
    let connected = connector.connect(anybody, stream).await;
    let roots = match pin.judgement() {
        Some(Ok(roots)) => roots,
        Some(Err(Judgement::OtherRoot(found))) => {
            return Err(JoinError::OtherRoot {
                seed: seed.to_owned(),
                expected: token.root_fingerprint(),
                found: BASE32.encode(&found),
            });
        }
        Some(Err(Judgement::Refused(refusal))) => return Err(JoinError::Seed { seed: seed.to_owned(), refusal }),
        None => return Err(unreachable(connected.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()))),
    };
    let mut stream = connected.map_err(unreachable)?;

    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(ALPN) {
        return Err(JoinError::Answer { seed: seed.to_owned(), fault: AnswerFault::Form });
    }
    let mut exported = [0; 32];
    let export = session.export_keying_material(&mut exported, EXPORTER_LABEL, None);
    export.map_err(TrustError::Tls)?;

    let question = newcomer.question(token, roots.mesh(), &exported);
    send(&mut stream, &question.encode()).await.map_err(unreachable)?;
    let answer = receive(&mut stream).await.map_err(unreachable)?;
    match Answer::decode(&answer) {
        Some(Answer::Admitted(admission)) => Ok(Welcome { seed: seed.to_owned(), roots, admission }),
        Some(Answer::Refused(refusal)) => Err(JoinError::Refused(refusal)),
        None => Err(JoinError::Answer { seed: seed.to_owned(), fault: AnswerFault::Form }),
    }
}

pub(super) fn tls(pin: &Arc<RootPin>) -> Result<ClientConfig, TrustError> {
    let verifier: Arc<dyn ServerCertVerifier> = Arc::<RootPin>::clone(pin);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Who is joining, with a folder that is ready.
struct Newcomer<'a> {
    dir: &'a Path,
    name: &'a str,
    key: Arc<SecretKey>,
    /// The identity that is being renewed.
    present: Option<Identity>,
}

impl<'a> Newcomer<'a> {
    fn prepare(dir: &'a Path, name: &'a str, token: &Token) -> Result<Self, JoinError> {
        if !identity::exists(dir) {
            identity::prepare(dir)?;
            return Ok(Self { dir, name, key: Arc::new(SecretKey::generate()?), present: None });
        }
        let present = Identity::load(dir)?;
        let same_root = present.roots().roots().iter().any(|root| spki_hash(&root.public_key) == token.root);
        if !same_root || present.name() != name {
            let (mesh, name) = (present.mesh().to_owned(), present.name().to_owned());
            return Err(JoinError::OtherIdentity { mesh, name });
        }
        Ok(Self { dir, name, key: Arc::clone(present.key()), present: Some(present) })
    }

    fn question(&self, token: &Token, mesh: &str, exported: &[u8; 32]) -> Question {
        let proof = proof_bytes(exported, token.id, self.name);
        Question {
            id: token.id,
            secret: token.secret.clone(),
            public_key: *self.key.public(),
            proof: self.key.sign(mesh, PROOF_CONTEXT, &proof),
            name: self.name.to_owned(),
        }
    }

    /// Checks what came and writes it down.
    fn settle(&self, token: &Token, welcome: Welcome, clock: &dyn Clock) -> Result<Joined, JoinError> {
        let Welcome { seed, roots, admission: Admission { node, admission, admission_key, peers } } = welcome;
        let misfit = |fault| JoinError::Answer { seed: seed.clone(), fault };
        let chain = [node, admission];
        let admitted = match verify_chain(&roots, &chain, clock.unix().as_secs()) {
            Ok(admitted) => admitted,
            Err(error) => {
                return Err(error
                    .refusal()
                    .map_or_else(|| error.into(), |refusal| misfit(AnswerFault::Chain(refusal))));
            }
        };
        let [node, admission] = &chain;
        let other = || misfit(AnswerFault::Other);
        if admitted.public_key != *self.key.public() || admitted.name != self.name {
            return Err(other());
        }
        let admission_key = match admission_key {
            Some(pkcs8) => {
                let key = SecretKey::from_pkcs8(&pkcs8).ok_or_else(other)?;
                let certified = Certificate::parse(admission).ok().ok_or_else(other)?;
                if certified.public_key != *key.public() || admitted.role != Role::Admit {
                    return Err(other());
                }
                Some(key)
            }
            None => None,
        };
        match &self.present {
            Some(_) => {
                identity::replace_certificates(self.dir, admission, node)?;
                if let Some(key) = &admission_key {
                    identity::store_admission_key(self.dir, key)?;
                }
            }
            None => {
                let root = roots.roots().first().ok_or_else(other)?;
                let parts = Parts {
                    mesh: roots.mesh(),
                    root: root.der(),
                    admission,
                    admission_key: admission_key.as_ref(),
                    node,
                    node_key: &self.key,
                };
                identity::store(self.dir, &parts)?;
            }
        }
        Ok(Joined {
            mesh: roots.mesh().to_owned(),
            node: admitted.node,
            role: admitted.role,
            seeds: token.seeds().to_vec(),
            peers,
        })
    }
}

/// Judges the other side by the token's pin, inside the handshake.
pub(super) struct RootPin {
    pub(super) pin: [u8; 32],
    pub(super) unix: Duration,
    pub(super) judged: Mutex<Option<Result<TrustRoots, Judgement>>>,
}

/// Why the other side is not who the token speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Judgement {
    #[error("another root")]
    OtherRoot([u8; 32]),
    #[error("{0}")]
    Refused(Refusal),
}

impl RootPin {
    fn judge(&self, shown: &[CertificateDer<'_>]) -> Result<TrustRoots, Judgement> {
        let (Some(root), [_, _, _, _]) = (shown.last(), shown) else {
            return Err(Judgement::Refused(Refusal::ChainShape));
        };
        let certificate = Certificate::parse(root).map_err(Judgement::Refused)?;
        let hash = spki_hash(&certificate.public_key);
        if hash != self.pin {
            return Err(Judgement::OtherRoot(hash));
        }
        // The pin fixes the key; the name of the mesh is what that key signed for itself.
        let common_name = certificate.common_name().map_err(Judgement::Refused)?;
        let mesh = common_name.strip_suffix(root_name("").as_str()).ok_or(Judgement::Refused(Refusal::Name))?;
        let roots = TrustRoots::new(mesh, &[root.to_vec()]).map_err(Judgement::Refused)?;
        let verifier = PeerVerifier::new(&roots, Arc::new(FixedClock(self.unix)));
        let peer = verifier.peer(shown.get(..3).unwrap_or_default());
        let peer = peer.map_err(|error| Judgement::Refused(error.refusal().unwrap_or(Refusal::Malformed)))?;
        if peer.role == Role::Admit { Ok(roots) } else { Err(Judgement::Refused(Refusal::Usage)) }
    }

    fn judgement(&self) -> Option<Result<TrustRoots, Judgement>> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for RootPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RootPin").field(&BASE32.encode(&self.pin)).finish()
    }
}

impl ServerCertVerifier for RootPin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown: Vec<_> =
            std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
        let judged = self.judge(&shown);
        *self.judged.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged.clone());
        match judged {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(judgement) => {
                let cause = CertificateError::Other(OtherError(Arc::new(judgement)));
                Err(rustls::Error::InvalidCertificate(cause))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// The moment joining began.
struct FixedClock(Duration);

impl Clock for FixedClock {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn unix(&self) -> Duration {
        self.0
    }
}
