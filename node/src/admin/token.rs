//! The secret that writes over TCP must show: `DIR/admin.token`, readable by the node's user only.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::BASE64URL_NOPAD;
use rand::TryRng as _;

/// Name of the file within a node's folder.
pub const FILE_NAME: &str = "admin.token";

/// 256 bits in base64url: 43 characters.
const TEXT_LEN: usize = 43;

/// The admin token; never printed.
#[derive(Clone)]
pub struct AdminToken(String);

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(..)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the node's user may read the file. Nothing was changed.
    #[error("{}: mode {mode:o} lets others read the admin token\n  hint: chmod 600 {}", path.display(), path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else than a token.
    #[error("{}: not an admin token\n  hint: remove the file; the agent writes a new one", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl AdminToken {
    /// The token of the folder `dir`; makes the file, mode 0600, where there is none.
    ///
    /// # Errors
    /// [`TokenError`]; a file that others may read is refused.
    pub fn load_or_create(dir: &Path) -> Result<Self, TokenError> {
        let path = dir.join(FILE_NAME);
        match Self::create(&path) {
            Ok(token) => Ok(token),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Self::load(dir),
            Err(source) => Err(TokenError::Io { path, source }),
        }
    }

    /// The token of the folder `dir`.
    ///
    /// # Errors
    /// [`TokenError`]; a file that others may read is refused.
    pub fn load(dir: &Path) -> Result<Self, TokenError> {
        let path = dir.join(FILE_NAME);
        let read = || -> io::Result<(u32, String)> {
            Ok((fs::metadata(&path)?.permissions().mode() & 0o777, fs::read_to_string(&path)?))
        };
        let (mode, text) = read().map_err(|source| TokenError::Io { path: path.clone(), source })?;
        if mode & 0o077 != 0 {
            return Err(TokenError::Open { path, mode });
        }
        let text = text.trim();
        let plain = text.len() == TEXT_LEN && BASE64URL_NOPAD.decode(text.as_bytes()).is_ok();
        if plain { Ok(Self(text.to_owned())) } else { Err(TokenError::Malformed { path }) }
    }

    fn create(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut secret = [0; 32];
        rand::rngs::SysRng.try_fill_bytes(&mut secret).map_err(io::Error::other)?;
        let token = Self(BASE64URL_NOPAD.encode(&secret));
        file.write_all(format!("{}\n", token.0).as_bytes())?;
        file.sync_all()?;
        Ok(token)
    }

    /// Whether `shown` is this token; takes the same time wherever the two differ.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        let mine = self.0.as_bytes();
        let differing = mine.iter().zip(shown).fold(0_u8, |all, (a, b)| black_box(all | (a ^ b)));
        mine.len() == shown.len() && differing == 0
    }

    /// The value of the `Authorization` header.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let made = AdminToken::load_or_create(dir.path()).unwrap();
        let read = AdminToken::load_or_create(dir.path()).unwrap();
        assert_eq!(made.0, read.0);
        assert_eq!(made.0.len(), TEXT_LEN);
        let mode = fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{mode:o}");
        assert_eq!(format!("{made:?}"), "AdminToken(..)");
    }

    #[test]
    fn only_the_whole_token_is_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let token = AdminToken::load_or_create(dir.path()).unwrap();
        assert!(token.is(token.0.as_bytes()));
        assert!(!token.is(b""));
        assert!(!token.is(&token.0.as_bytes()[..42]));
        assert!(!token.is(format!("{}x", token.0).as_bytes()));
        assert!(!token.is(token.0.to_lowercase().as_bytes()) || token.0 == token.0.to_lowercase());
    }

    #[test]
    fn a_file_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        AdminToken::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = AdminToken::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("mode 644"), "{error}");
        assert!(error.to_string().contains("hint: chmod 600"), "{error}");
    }

    #[test]
    fn a_file_with_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "secret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(AdminToken::load_or_create(dir.path()), Err(TokenError::Malformed { .. })));
    }
}
