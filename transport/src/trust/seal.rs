//! The root key at rest: useless without the recovery code or passphrase that only people keep.
//!
//! The file is text: a version line, the key derivation with its rounds, salt, nonce, and the sealed key.
//! PBKDF2-HMAC-SHA-256 (RFC 8018) slows down guessing; AES-256-GCM seals, with all lines before it as associated data,
//! so that no setting can be changed without notice.

use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{pbkdf2, rand};
use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::error::{FileFault, TrustError};
use super::files::{self, Audience};
use super::key::SecretKey;
use super::roots::spki_hash;
use crate::id::BASE32;

/// Rounds for new files: the floor OWASP's password storage guidance gave for PBKDF2-HMAC-SHA-256 in 2023.
const ROUNDS: u32 = 600_000;
/// Most rounds accepted from a file, some seconds of work.
const ROUNDS_MAX: u32 = 10_000_000;
const SALT_LEN: usize = 16;
/// Shortest passphrase in bytes.
const PASSPHRASE_LEN_MIN: usize = 12;
/// Bytes of a recovery code: 128 bits, beyond guessing at any number of rounds.
const CODE_LEN: usize = 16;

const HEADER: &str = "marram sealed root key 1";
const KDF: &str = "pbkdf2-hmac-sha256";

/// The root's private key, opened. Needed only to renew the admission certificate; keep it in memory briefly.
pub struct RootKey {
    pub(crate) key: SecretKey,
}

impl RootKey {
    /// The fingerprint that tokens carry: SHA-256 of the key's SPKI in base32, 52 characters.
    pub fn fingerprint(&self) -> String {
        BASE32.encode(&spki_hash(self.key.public()))
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RootKey").field(&self.fingerprint()).finish()
    }
}

/// Opens `DIR/root.key.sealed` with the recovery code (dashes, blanks and capitals do not matter) or the passphrase.
///
/// # Errors
/// [`TrustError::RootStaysSealed`] for a wrong secret or an altered file; a missing, damaged or exposed file.
pub fn open_root(dir: &Path, secret: &str) -> Result<RootKey, TrustError> {
    let path = sealed_path(dir);
    let text = files::read_text(&path, Audience::Owner)?;
    let opened = open(&text, secret).ok_or_else(|| TrustError::file(&path, FileFault::NotText))?;
    let key = opened.and_then(|pkcs8| SecretKey::from_pkcs8(&pkcs8)).ok_or(TrustError::RootStaysSealed)?;
    Ok(RootKey { key })
}

/// Refuses a folder with a sealed root: it may be the only copy of another mesh's.
pub(crate) fn check_no_root(dir: &Path) -> Result<(), TrustError> {
    let path = sealed_path(dir);
    if path.exists() { Err(TrustError::RootExists(path)) } else { Ok(()) }
}

/// Seals the root key into the folder, by the passphrase or else by a new recovery code, which is returned. The file
/// gets its name by [`publish_root`], once there is an identity to go with it.
pub(crate) fn seal_root(dir: &Path, key: &SecretKey, passphrase: Option<&str>) -> Result<Option<String>, TrustError> {
    let (secret, code) = match passphrase {
        Some(passphrase) if passphrase.len() < PASSPHRASE_LEN_MIN => {
            return Err(TrustError::PassphraseTooShort(PASSPHRASE_LEN_MIN));
        }
        Some(passphrase) => (Zeroizing::new(passphrase.to_owned()), None),
        None => {
            let code = Zeroizing::new(BASE32.encode(&random::<CODE_LEN>()?));
            let shown = grouped(&code);
            (code, Some(shown))
        }
    };
    let text = seal(&secret, key.pkcs8(), ROUNDS)?;
    files::write(&pending_path(dir), text.as_bytes(), Audience::Owner)?;
    Ok(code)
}

/// Gives the sealed root its name.
pub(crate) fn publish_root(dir: &Path) -> Result<(), TrustError> {
    let path = sealed_path(dir);
    std::fs::rename(pending_path(dir), &path).map_err(TrustError::io(&path))?;
    files::sync_dir(dir)
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], TrustError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok().ok_or(TrustError::Crypto("give random bytes"))?;
    Ok(bytes)
}

fn sealed_path(dir: &Path) -> PathBuf {
    dir.join("root.key.sealed")
}

fn pending_path(dir: &Path) -> PathBuf {
    dir.join("root.key.pending")
}

fn seal(secret: &str, plain: &[u8], rounds: u32) -> Result<String, TrustError> {
    let salt = random::<SALT_LEN>()?;
    let nonce = random::<NONCE_LEN>()?;
    let head =
        format!("{HEADER}\nkdf {KDF} {rounds}\nsalt {}\nnonce {}\n", BASE64.encode(&salt), BASE64.encode(&nonce));
    let failed = || TrustError::Crypto("seal the root key");
    let key = sealing_key(secret, &salt, rounds).ok_or_else(failed)?;
    let mut bytes = Zeroizing::new(plain.to_vec());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head.as_bytes()), &mut *bytes)
        .ok()
        .ok_or_else(failed)?;
    Ok(format!("{head}sealed {}\n", BASE64.encode(&bytes)))
}

/// What was sealed: `None` for a text that is no sealed key, `Some(None)` when the secret does not open it.
fn open(text: &str, secret: &str) -> Option<Option<Zeroizing<Vec<u8>>>> {
    let sealed = Sealed::parse(text)?;
    // A passphrase that happens to look like a code is also tried as it was typed.
    let candidates = [normal_code(secret), Some(Zeroizing::new(secret.to_owned()))];
    Some(candidates.iter().flatten().find_map(|secret| sealed.open(secret)))
}

struct Sealed<'a> {
    head: &'a str,
    rounds: u32,
    salt: Vec<u8>,
    nonce: [u8; NONCE_LEN],
    sealed: Vec<u8>,
}

impl<'a> Sealed<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (head, sealed) = text.split_at_checked(text.find("\nsealed ")? + 1)?;
        let sealed = sealed.strip_prefix("sealed ")?;
        let mut lines = head.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name);
        field(HEADER).filter(|rest| rest.is_empty())?;
        let rounds = field("kdf ")?.strip_prefix(KDF)?.trim().parse().ok()?;
        let salt = BASE64.decode(field("salt ")?.as_bytes()).ok()?;
        let nonce = BASE64.decode(field("nonce ")?.as_bytes()).ok()?.try_into().ok()?;
        let sealed = BASE64.decode(sealed.trim_end().as_bytes()).ok()?;
        if lines.next().is_some() || rounds > ROUNDS_MAX {
            return None;
        }
        Some(Self { head, rounds, salt, nonce, sealed })
    }

    fn open(&self, secret: &str) -> Option<Zeroizing<Vec<u8>>> {
        let key = sealing_key(secret, &self.salt, self.rounds)?;
        let mut bytes = Zeroizing::new(self.sealed.clone());
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let len = key.open_in_place(nonce, Aad::from(self.head.as_bytes()), &mut bytes).ok()?.len();
        bytes.truncate(len);
        Some(bytes)
    }
}

fn sealing_key(secret: &str, salt: &[u8], rounds: u32) -> Option<LessSafeKey> {
    let mut key = Zeroizing::new([0; 32]);
    let rounds = NonZeroU32::new(rounds)?;
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, secret.as_bytes(), &mut *key);
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).ok()?))
}

/// A recovery code as it was made, when the text can be one.
fn normal_code(text: &str) -> Option<Zeroizing<String>> {
    let kept = text.chars().filter(|c| !c.is_whitespace() && *c != '-');
    let code = Zeroizing::new(kept.map(|c| c.to_ascii_lowercase()).collect::<String>());
    let is_code = BASE32.decode(code.as_bytes()).is_ok_and(|bytes| bytes.len() == CODE_LEN);
    (is_code && code.as_str() != text).then_some(code)
}

fn grouped(code: &str) -> String {
    let groups: Vec<String> =
        code.as_bytes().chunks(5).map(|group| String::from_utf8_lossy(group).into_owned()).collect();
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_key_opens_with_its_code_only_however_it_is_typed() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let code = seal_root(dir.path(), &key, None).unwrap().unwrap();
        publish_root(dir.path()).unwrap();
        assert_eq!(code.len(), 26 + 5, "{code}");
        assert_eq!(open_root(dir.path(), &code).unwrap().key.public(), key.public());
        assert!(matches!(open_root(dir.path(), "aaaaa"), Err(TrustError::RootStaysSealed)));

        let text = seal(&code.replace('-', ""), b"the key", 2).unwrap();
        let opens = |typed: &str| open(&text, typed).unwrap().is_some();
        for typed in [code.clone(), code.to_uppercase(), code.replace('-', " "), code.replace('-', "")] {
            assert!(opens(&typed), "{typed}");
        }
        assert!(!opens(&grouped(&BASE32.encode(&[7; CODE_LEN]))));
        assert!(!opens(&code[1..]));
        assert!(!opens(""));
    }

    #[test]
    fn passphrase_opens_exactly_as_typed() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        assert!(matches!(seal_root(dir.path(), &key, Some("short")), Err(TrustError::PassphraseTooShort(_))));
        let text = seal("Correct Horse 9", b"the key", 2).unwrap();
        assert!(open(&text, "Correct Horse 9").unwrap().is_some());
        assert!(open(&text, "correct horse 9").unwrap().is_none());
        assert!(open("something else", "Correct Horse 9").is_none());
    }

    #[test]
    fn any_altered_character_keeps_the_key_sealed() {
        let text = seal("secret", b"the key", 2).unwrap();
        assert_eq!(Sealed::parse(&text).unwrap().open("secret").unwrap().as_slice(), b"the key");
        for at in 0..text.len() - 1 {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'1' { b'2' } else { b'1' };
            let altered = String::from_utf8(altered).unwrap();
            let opened = Sealed::parse(&altered).filter(|sealed| sealed.rounds < 1_000).and_then(|s| s.open("secret"));
            assert!(opened.is_none(), "byte {at} of {text}");
        }
    }

    #[test]
    fn private_key_is_nowhere_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        seal_root(dir.path(), &key, None).unwrap();
        let file = std::fs::read(pending_path(dir.path())).unwrap();
        let seed = &key.pkcs8()[16..48];
        assert!(!file.windows(8).any(|window| window == &BASE64.encode(seed).as_bytes()[..8]));
    }
}
