//! Tokens: what an operator hands to a newcomer, and the files that remember what is left of each.
//!
//! Text: `marram1.ROOT.ID.SECRET@HOST:PORT,...` with the root's fingerprint (52 characters of base32), the id (16, which
//! begins with the end of the token's life), the secret (26) and up to 8 addresses. The file `DIR/tokens/ID` keeps a
//! hash of the secret; the secret itself exists only in the text.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use super::error::{FileFault, TrustError};
use super::files::{self, Audience};
use super::identity::Identity;
use super::name::Role;
use super::roots::spki_hash;
use super::seal::random;
use crate::id::BASE32;

const PREFIX: &str = "marram1";
const TEXT_LEN_MAX: usize = 1024;
const SEEDS_MAX: usize = 8;
const HOST_LEN_MAX: usize = 253;
const LIFE_S_MAX: u64 = 30 * 86_400;
const USES_MAX: u32 = 1_000;
/// Most token files in the folder.
const TOKENS_MAX: usize = 256;
/// How long the file of an expired token stays, so that who comes late hears why.
const EXPIRED_KEPT_S: u64 = 7 * 86_400;

pub(crate) const SECRET_LEN: usize = 16;
const TOKEN_ID_LEN: usize = 10;

/// Which token: the second its life ends (5 bytes, big endian), then 5 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TokenId(pub(crate) [u8; TOKEN_ID_LEN]);

impl TokenId {
    fn new(expires_unix: u64) -> Result<Self, TrustError> {
        let mut bytes = [0; TOKEN_ID_LEN];
        let [_, _, _, end @ ..] = expires_unix.to_be_bytes();
        for (to, from) in bytes.iter_mut().zip(end.into_iter().chain(random::<5>()?)) {
            *to = from;
        }
        Ok(Self(bytes))
    }

    fn expires_unix(self) -> u64 {
        self.0.iter().take(5).fold(0, |unix, byte| (unix << 8) | u64::from(*byte))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32.encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no token. Nothing was sent anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFault {
    /// Does not begin with `marram1.`: something else was pasted, or the token is of another version.
    #[error("a token begins with `{PREFIX}.`")]
    Prefix,
    /// Not of the form `marram1.ROOT.ID.SECRET@ADDRESSES`; often cut off when copied.
    #[error("a token has the form {PREFIX}.ROOT.ID.SECRET@HOST:PORT; this one may be cut off")]
    Shape,
    /// The fingerprint of the root has a typing error.
    #[error("the root fingerprint in the token is damaged")]
    Root,
    /// The id has a typing error.
    #[error("the id in the token is damaged")]
    Id,
    /// The secret has a typing error.
    #[error("the secret in the token is damaged")]
    Secret,
    /// An address is not `host:port`, or there are none or too many.
    #[error("the addresses in the token are not 1 to {SEEDS_MAX} of the form host:port")]
    Seeds,
}

/// A token as the newcomer holds it. `Debug` hides the secret; there is no `Display`, so that it is not logged by accident.
#[derive(Clone)]
pub struct Token {
    pub(crate) root: [u8; 32],
    pub(crate) id: TokenId,
    pub(crate) secret: Zeroizing<[u8; SECRET_LEN]>,
    seeds: Vec<String>,
}

impl Token {
    /// The fingerprint of the root it is for, as [`super::TrustRoots::fingerprint`] gives it.
    pub fn root_fingerprint(&self) -> String {
        BASE32.encode(&self.root)
    }

    /// When it ends, in seconds since 1970. A hint: the node that made it decides.
    pub fn expires_unix(&self) -> u64 {
        self.id.expires_unix()
    }

    /// Where it can be redeemed, each `host:port`.
    pub fn seeds(&self) -> &[String] {
        &self.seeds
    }

    fn text(&self) -> String {
        let secret = Zeroizing::new(BASE32.encode(&*self.secret));
        format!("{PREFIX}.{}.{}.{}@{}", self.root_fingerprint(), self.id, *secret, self.seeds.join(","))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("root", &self.root_fingerprint())
            .field("id", &self.id)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = TokenFault;

    fn from_str(text: &str) -> Result<Self, TokenFault> {
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('.')).ok_or(TokenFault::Prefix)?;
        if text.len() > TEXT_LEN_MAX {
            return Err(TokenFault::Shape);
        }
        let (keys, seeds) = rest.split_once('@').ok_or(TokenFault::Shape)?;
        let parts: Vec<&str> = keys.split('.').collect();
        let [root, id, secret] = parts.as_slice() else {
            return Err(TokenFault::Shape);
        };
        let seeds: Vec<String> = seeds.split(',').map(str::to_owned).collect();
        if !seeds_fit(&seeds) {
            return Err(TokenFault::Seeds);
        }
        Ok(Self {
            root: decode(root).ok_or(TokenFault::Root)?,
            id: TokenId(decode(id).ok_or(TokenFault::Id)?),
            secret: Zeroizing::new(decode(secret).ok_or(TokenFault::Secret)?),
            seeds,
        })
    }
}

/// Makes a token and its file `DIR/tokens/ID`. Works beside a running agent, which opens its door within a second.
///
/// `ttl` is 1 s to 30 days, `uses` 1 to 1,000; `seeds` are the addresses (host:port) at which this very node can be
/// reached, as only the node that made a token redeems it. Returns the token's text, the only copy of its secret.
///
/// # Errors
/// [`TrustError::NotAdmitting`] on a node without the admission key; arguments outside their limits; disk faults.
pub fn create_token(
    dir: &Path,
    ttl: Duration,
    uses: u32,
    role: Role,
    seeds: &[String],
    now_unix: u64,
) -> Result<String, TrustError> {
    let identity = Identity::load(dir)?;
    identity.admission()?;
    let life_s = ttl.as_secs();
    if !(1..=LIFE_S_MAX).contains(&life_s) {
        return Err(TrustError::TokenLife(life_s));
    }
    if !(1..=USES_MAX).contains(&uses) {
        return Err(TrustError::TokenUses(uses));
    }
    if !seeds_fit(seeds) {
        return Err(TrustError::TokenSeeds(seeds.join(",")));
    }
    let root = identity.roots().roots().first().map(|root| spki_hash(&root.public_key));
    let expires_unix = now_unix.saturating_add(life_s);
    let token = Token {
        root: root.unwrap_or_default(),
        id: TokenId::new(expires_unix)?,
        secret: Zeroizing::new(random()?),
        seeds: seeds.to_vec(),
    };
    let book = TokenBook::open(dir)?;
    let lock = book.lock()?;
    book.sweep(&lock, now_unix)?;
    let record = Record { secret_hash: secret_hash(token.id, &token.secret), role, expires_unix, uses };
    book.store(&lock, token.id, &record)?;
    Ok(token.text())
}

/// What is left of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    secret_hash: [u8; 32],
    pub(crate) role: Role,
    pub(crate) expires_unix: u64,
    pub(crate) uses: u32,
}

impl Record {
    /// Compares in constant time.
    pub(crate) fn is_secret(&self, id: TokenId, secret: &[u8; SECRET_LEN]) -> bool {
        verify_slices_are_equal(&self.secret_hash, &secret_hash(id, secret)).is_ok()
    }

    fn text(&self) -> String {
        format!(
            "{RECORD_HEADER}\nsecret-sha256 {}\nrole {}\nexpires {}\nuses {}\n",
            BASE32.encode(&self.secret_hash),
            self.role,
            self.expires_unix,
            self.uses
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name);
        field(RECORD_HEADER).filter(|rest| rest.is_empty())?;
        let record = Self {
            secret_hash: decode(field("secret-sha256 ")?)?,
            role: field("role ")?.parse().ok()?,
            expires_unix: field("expires ")?.parse().ok()?,
            uses: field("uses ")?.parse().ok()?,
        };
        lines.next().is_none().then_some(record)
    }
}

const RECORD_HEADER: &str = "marram token 1";

/// The folder of tokens. Whoever changes it holds its lock, across threads and processes.
#[derive(Debug, Clone)]
pub(crate) struct TokenBook {
    dir: PathBuf,
}

/// Held while token files change; released when dropped.
#[derive(Debug)]
pub(crate) struct TokenLock {
    _file: File,
}

impl TokenBook {
    pub(crate) fn open(dir: &Path) -> Result<Self, TrustError> {
        let dir = dir.join("tokens");
        files::prepare_dir(&dir)?;
        Ok(Self { dir })
    }

    /// Waits for the lock; blocks the thread for as long as another one writes a file.
    pub(crate) fn lock(&self) -> Result<TokenLock, TrustError> {
        let path = self.dir.join(".lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(files::KEY_MODE).open(&path);
        let file = open.map_err(TrustError::io(&path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| TrustError::io(&path)(error.into()))?;
        Ok(TokenLock { _file: file })
    }

    /// What is left of a token; `None` when it was never made here, or was deleted.
    pub(crate) fn find(&self, id: TokenId) -> Result<Option<Record>, TrustError> {
        let path = self.path(id);
        match files::read_text(&path, Audience::Owner) {
            Ok(text) => Record::parse(&text).map(Some).ok_or_else(|| TrustError::file(path, FileFault::NotText)),
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes one use, durably: when this returns, the use is gone whatever happens next. False when none was left.
    pub(crate) fn take_use(&self, lock: &TokenLock, id: TokenId) -> Result<bool, TrustError> {
        let Some(mut record) = self.find(id)? else {
            return Ok(false);
        };
        let Some(left) = record.uses.checked_sub(1) else {
            return Ok(false);
        };
        record.uses = left;
        self.store(lock, id, &record)?;
        Ok(true)
    }

    /// Whether any token's life has not ended. One that is used up counts until then, so that a second newcomer with it
    /// hears "used" rather than meeting a closed door. The ids say it; no file is opened.
    pub(crate) fn any_unexpired(&self, now_unix: u64) -> Result<bool, TrustError> {
        Ok(self.ids()?.into_iter().any(|id| now_unix < id.expires_unix()))
    }

    fn store(&self, _: &TokenLock, id: TokenId, record: &Record) -> Result<(), TrustError> {
        files::write(&self.path(id), record.text().as_bytes(), Audience::Owner)
    }

    /// Forgets tokens that ended long ago, and refuses when there are too many others.
    fn sweep(&self, _: &TokenLock, now_unix: u64) -> Result<(), TrustError> {
        let mut kept = 0;
        for id in self.ids()? {
            if now_unix > id.expires_unix().saturating_add(EXPIRED_KEPT_S) {
                let path = self.path(id);
                fs::remove_file(&path).map_err(TrustError::io(&path))?;
            } else {
                kept += 1;
            }
        }
        if kept < TOKENS_MAX { Ok(()) } else { Err(TrustError::TooManyTokens(kept)) }
    }

    fn ids(&self) -> Result<Vec<TokenId>, TrustError> {
        let entries = fs::read_dir(&self.dir).map_err(TrustError::io(&self.dir))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| decode(&name).map(TokenId)).take(10 * TOKENS_MAX).collect())
    }

    fn path(&self, id: TokenId) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

fn secret_hash(id: TokenId, secret: &[u8; SECRET_LEN]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [b"marram token\0".as_slice(), &id.0, secret] {
        context.update(part);
    }
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    hash
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE32.decode(text.as_bytes()).ok()?.try_into().ok()
}

fn seeds_fit(seeds: &[String]) -> bool {
    let text_len: usize = seeds.iter().map(|seed| seed.len() + 1).sum();
    (1..=SEEDS_MAX).contains(&seeds.len())
        && text_len < TEXT_LEN_MAX - 128
        && seeds.iter().all(|seed| is_host_port(seed))
}

/// `name:port`, `1.2.3.4:port` or `[2001:db8::1]:port`.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let plain = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= HOST_LEN_MAX && plain(host),
    };
    host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            root: [1; 32],
            id: TokenId::new(1_800_000_000).unwrap(),
            secret: Zeroizing::new([3; SECRET_LEN]),
            seeds: vec!["a.example:7440".to_owned(), "[::1]:7440".to_owned()],
        }
    }

    #[test]
    fn token_text_round_trips_and_says_when_it_ends() {
        let text = token().text();
        let read: Token = format!(" {text}\n").parse().unwrap();
        assert_eq!(read.text(), text);
        assert_eq!(read.expires_unix(), 1_800_000_000);
        assert_eq!(read.seeds(), ["a.example:7440", "[::1]:7440"]);
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let token = token();
        assert!(!format!("{token:?}").contains(&BASE32.encode(&*token.secret)));
    }

    #[test]
    fn each_damage_to_a_token_is_named() {
        let text = token().text();
        let parts: Vec<&str> = text.split(['.', '@']).collect();
        let (root, id, secret) = (parts[1], parts[2], parts[3]);
        let cases = [
            (String::new(), TokenFault::Prefix),
            ("hello".to_owned(), TokenFault::Prefix),
            (format!("marram2.{root}.{id}.{secret}@h:1"), TokenFault::Prefix),
            (format!("marram1.{root}.{id}.{secret}"), TokenFault::Shape),
            (format!("marram1.{root}.{id}@h:1"), TokenFault::Shape),
            (format!("marram1.{root}.{id}.{secret}.x@h:1"), TokenFault::Shape),
            (format!("marram1.{}.{id}.{secret}@h:1", &root[1..]), TokenFault::Root),
            (format!("marram1.{root}.{}.{secret}@h:1", &id[1..]), TokenFault::Id),
            (format!("marram1.{root}.{id}.{}@h:1", &secret[1..]), TokenFault::Secret),
            (format!("marram1.{root}.{id}.{}@h:1", secret.to_uppercase()), TokenFault::Secret),
            (format!("marram1.{root}.{id}.{secret}@"), TokenFault::Seeds),
            (format!("marram1.{root}.{id}.{secret}@h"), TokenFault::Seeds),
            (format!("marram1.{root}.{id}.{secret}@h:0"), TokenFault::Seeds),
            (format!("marram1.{root}.{id}.{secret}@h:99999"), TokenFault::Seeds),
            (format!("marram1.{root}.{id}.{secret}@[zz]:1"), TokenFault::Seeds),
            (format!("marram1.{root}.{id}.{secret}@h:1,,h:2"), TokenFault::Seeds),
            (format!("marram1.{root}.{id}.{secret}@{}", ["h:1"; 9].join(",")), TokenFault::Seeds),
            (format!("marram1.{root}.{id}.{secret}@{}:1", "h".repeat(2_000)), TokenFault::Shape),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Token>().err(), Some(expected), "{text}");
        }
    }

    #[test]
    fn uses_never_go_below_zero() {
        let dir = tempfile::tempdir().unwrap();
        let book = TokenBook::open(dir.path()).unwrap();
        let lock = book.lock().unwrap();
        let id = TokenId::new(2_000).unwrap();
        assert!(!book.take_use(&lock, id).unwrap(), "a token never made has no uses");
        let record = Record { secret_hash: [9; 32], role: Role::Gateway, expires_unix: 2_000, uses: 2 };
        book.store(&lock, id, &record).unwrap();
        assert_eq!(book.find(id).unwrap(), Some(record));
        let taken: Vec<bool> = (0..5).map(|_| book.take_use(&lock, id).unwrap()).collect();
        assert_eq!(taken, [true, true, false, false, false]);
        assert!(book.any_unexpired(1_999).unwrap());
        assert!(!book.any_unexpired(2_000).unwrap());
    }

    #[test]
    fn long_expired_tokens_are_swept_and_the_folder_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let book = TokenBook::open(dir.path()).unwrap();
        let lock = book.lock().unwrap();
        let record = Record { secret_hash: [9; 32], role: Role::Member, expires_unix: 2_000, uses: 1 };
        for _ in 0..TOKENS_MAX {
            book.store(&lock, TokenId::new(2_000).unwrap(), &record).unwrap();
        }
        assert!(matches!(book.sweep(&lock, 3_000), Err(TrustError::TooManyTokens(_))));
        book.sweep(&lock, 2_001 + EXPIRED_KEPT_S).unwrap();
        assert_eq!(book.ids().unwrap(), []);
    }

    #[test]
    fn a_token_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let book = TokenBook::open(dir.path()).unwrap();
        let id = TokenId::new(2_000).unwrap();
        let record = Record { secret_hash: [9; 32], role: Role::Member, expires_unix: 2_000, uses: 1 };
        book.store(&book.lock().unwrap(), id, &record).unwrap();
        fs::set_permissions(book.path(id), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(book.find(id), Err(TrustError::Mode { .. })));
    }
}
