//! Files that hold secrets: who may read them, and how they are replaced whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::error::{FileFault, TrustError};

pub(crate) const DIR_MODE: u32 = 0o700;
pub(crate) const KEY_MODE: u32 = 0o600;
const OPEN_MODE: u32 = 0o644;

/// Largest file this module reads.
const FILE_LEN_MAX: u64 = 16 * 1024;

/// Who may read a file once it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// The owner alone; checked again on every read.
    Owner,
    /// Anybody; certificates are no secret.
    Anybody,
}

/// Makes the folder (0700) when it is missing; refuses one that others can look into. An empty one is closed to them.
pub(crate) fn prepare_dir(path: &Path) -> Result<(), TrustError> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_none() && mode(path)? & !DIR_MODE & 0o777 != 0 {
                let closed = fs::Permissions::from_mode(DIR_MODE);
                fs::set_permissions(path, closed).map_err(TrustError::io(path))?;
            }
            check_dir(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(DIR_MODE).create(path).map_err(TrustError::io(path))?;
            // The umask can only take bits away, so what was made is at most 0700.
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_dir(parent)?;
            }
            Ok(())
        }
        Err(source) => Err(TrustError::Io { path: path.to_owned(), source }),
    }
}

/// Refuses a folder that others can look into.
pub(crate) fn check_dir(path: &Path) -> Result<(), TrustError> {
    check_mode(path, mode(path)?, DIR_MODE)
}

/// Writes a file so that after a power cut either the old or the new one is there, never a part.
pub(crate) fn write(path: &Path, bytes: &[u8], audience: Audience) -> Result<(), TrustError> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = Path::new(&staged);
    write_staged(staged, bytes, audience).map_err(TrustError::io(staged))?;
    fs::rename(staged, path).map_err(TrustError::io(path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn write_staged(path: &Path, bytes: &[u8], audience: Audience) -> io::Result<()> {
    // A leftover of an interrupted write may have other permissions; a new file has those asked for.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mode = match audience {
        Audience::Owner => KEY_MODE,
        Audience::Anybody => OPEN_MODE,
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes names in the folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), TrustError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|dir| dir.sync_all()).map_err(TrustError::io(path))
}

/// Reads a small file whole; for [`Audience::Owner`] only when nobody else could.
pub(crate) fn read(path: &Path, audience: Audience) -> Result<Zeroizing<Vec<u8>>, TrustError> {
    let file = File::open(path).map_err(TrustError::io(path))?;
    let metadata = file.metadata().map_err(TrustError::io(path))?;
    if audience == Audience::Owner {
        check_mode(path, metadata.permissions().mode(), KEY_MODE)?;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(TrustError::io(path))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= FILE_LEN_MAX) {
        Ok(bytes)
    } else {
        Err(TrustError::file(path, FileFault::TooLarge(FILE_LEN_MAX)))
    }
}

/// Reads a small text file.
pub(crate) fn read_text(path: &Path, audience: Audience) -> Result<Zeroizing<String>, TrustError> {
    let bytes = read(path, audience)?;
    let text = std::str::from_utf8(&bytes).ok().ok_or_else(|| TrustError::file(path, FileFault::NotText))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The PEM text of one object.
pub(crate) fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(BASE64.encode(der));
    let mut text = Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

pub(crate) const PEM_CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const PEM_KEY: &str = "PRIVATE KEY";

fn mode(path: &Path) -> Result<u32, TrustError> {
    Ok(fs::metadata(path).map_err(TrustError::io(path))?.permissions().mode())
}

fn check_mode(path: &Path, mode: u32, wanted: u32) -> Result<(), TrustError> {
    let mode = mode & 0o777;
    if mode & !wanted == 0 { Ok(()) } else { Err(TrustError::Mode { path: path.to_owned(), mode, wanted }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_kept_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(dir.path().join("secret.new"), b"left by an interrupted write").unwrap();
        write(&path, b"one", Audience::Owner).unwrap();
        write(&path, b"two", Audience::Owner).unwrap();
        assert_eq!(read(&path, Audience::Owner).unwrap().as_slice(), b"two");
        assert_eq!(mode(&path).unwrap() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write(&path, b"one", Audience::Owner).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let message = read(&path, Audience::Owner).unwrap_err().to_string();
        assert!(message.contains(&format!("chmod 600 {}", path.display())), "{message}");
        assert!(read(&path, Audience::Anybody).is_ok());
    }

    #[test]
    fn a_full_folder_open_to_others_is_refused_and_an_empty_one_closed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("node");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        prepare_dir(&folder).unwrap();
        assert_eq!(mode(&folder).unwrap() & 0o777, 0o700);
        fs::write(folder.join("file"), b"x").unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let message = prepare_dir(&folder).unwrap_err().to_string();
        assert!(message.contains("chmod 700"), "{message}");
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, vec![b'x'; 20_000]).unwrap();
        assert!(matches!(read(&path, Audience::Anybody), Err(TrustError::File { fault: FileFault::TooLarge(_), .. })));
    }
}
