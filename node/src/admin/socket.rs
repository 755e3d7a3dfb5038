//! Where the admin socket is. The kernel takes at most 107 bytes for the path of a socket.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Name of the socket within a node's folder.
pub const SOCKET_NAME: &str = "admin.sock";
/// Longest path of a socket.
const PATH_BYTES_MAX: usize = 107;

/// There is no place for the socket.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct SocketPathError {
    /// The folder that cannot be used.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// The path of the admin socket of the node in `dir`: `dir/admin.sock`; where that is too long, a name made from the
/// folder's path in the runtime folder (`$XDG_RUNTIME_DIR`, else `/run/user/UID`, else `/tmp/marram-UID`).
///
/// The answer depends on nothing else, so agent and command line find each other.
///
/// # Errors
/// [`SocketPathError`] when `dir` is not there or the runtime folder is not this user's.
pub fn socket_path(dir: &Path) -> Result<PathBuf, SocketPathError> {
    let absolute = dir.canonicalize().map_err(|source| SocketPathError { path: dir.to_owned(), source })?;
    let beside = absolute.join(SOCKET_NAME);
    if beside.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok(beside);
    }
    let runtime = runtime_folder()?;
    Ok(runtime.join(format!("marram-{:016x}.sock", fnv1a(absolute.as_os_str().as_bytes()))))
}

fn runtime_folder() -> Result<PathBuf, SocketPathError> {
    let uid = rustix::process::getuid().as_raw();
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let standing = [given, Some(PathBuf::from(format!("/run/user/{uid}")))];
    if let Some(folder) = standing.into_iter().flatten().find(|folder| folder.as_os_str().len() < 64 && folder.is_dir())
    {
        return Ok(folder);
    }
    own_folder(PathBuf::from(format!("/tmp/marram-{uid}")), uid)
}

/// A folder below `/tmp` that nobody else could have laid there.
fn own_folder(path: PathBuf, uid: u32) -> Result<PathBuf, SocketPathError> {
    let refused = |source| SocketPathError { path: path.clone(), source };
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => return Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(refused(error)),
    }
    let found = fs::symlink_metadata(&path).map_err(refused)?;
    if found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0 {
        return Ok(path);
    }
    Err(refused(io::Error::other("exists and is not a folder of this user with mode 0700")))
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo): a short name for a long path, not a secret.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_folder_holds_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = socket_path(dir.path()).unwrap();
        assert_eq!(path, dir.path().canonicalize().unwrap().join(SOCKET_NAME));
    }

    #[test]
    fn a_long_folder_has_its_socket_in_the_runtime_folder() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        let other = dir.path().join("e".repeat(120));
        fs::create_dir(&long).unwrap();
        fs::create_dir(&other).unwrap();
        let path = socket_path(&long).unwrap();
        assert!(path.as_os_str().len() <= PATH_BYTES_MAX, "{}", path.display());
        assert_eq!(path, socket_path(&long).unwrap());
        assert_ne!(path, socket_path(&other).unwrap());
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = socket_path(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/at/all: "), "{error}");
    }
}
