//! Ways in which a file of a database goes bad.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rand::RngExt as _;
use rand::rngs::StdRng;

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Cut off at some place.
    Truncate,
    /// Zeroes from some place to the end.
    ZeroTail,
    /// Between one and 64 bits anywhere turned over.
    FlipBits,
    /// 4 KiB of noise somewhere.
    Garbage,
    /// 4 KiB of zeroes somewhere.
    Zeroes,
    /// Gone.
    Remove,
}

impl Kind {
    /// Every kind.
    pub(super) const ALL: [Self; 6] =
        [Self::Truncate, Self::ZeroTail, Self::FlipBits, Self::Garbage, Self::Zeroes, Self::Remove];

    /// Its name in the report.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Truncate => "truncate",
            Self::ZeroTail => "zero-tail",
            Self::FlipBits => "flip-bits",
            Self::Garbage => "garbage-4k",
            Self::Zeroes => "zeroes-4k",
            Self::Remove => "remove",
        }
    }
}

const BLOCK: usize = 4096;
const FLIPS_MAX: u32 = 64;

/// Damages one file below `folder`, mostly the largest; says what was done to which.
pub(super) fn damage(folder: &Path, kind: Kind, random: &mut StdRng) -> io::Result<String> {
    let mut files = files_below(folder)?;
    // The largest last; equal sizes in the order of their names, so that a seed means the same twice.
    files.sort_by_key(|(path, bytes)| (*bytes, path.clone()));
    let place = if random.random_bool(0.7) {
        files.len().saturating_sub(1)
    } else {
        random.random_range(0..files.len().max(1))
    };
    let Some((path, _)) = files.get(place) else {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("no file below {}", folder.display())));
    };
    let bytes = fs::read(path)?;
    let (bad, what) = spoil(bytes, kind, random);
    match bad {
        Some(bad) => OpenOptions::new().write(true).truncate(true).open(path)?.write_all(&bad)?,
        None => fs::remove_file(path)?,
    }
    let name = path.strip_prefix(folder).unwrap_or(path);
    Ok(format!("{}: {what}", name.display()))
}

/// The bytes after the damage, `None` for a file that is gone, and words for it.
fn spoil(mut bytes: Vec<u8>, kind: Kind, random: &mut StdRng) -> (Option<Vec<u8>>, String) {
    let length = bytes.len();
    let at = random.random_range(0..length.max(1));
    let what = match kind {
        Kind::Truncate => {
            bytes.truncate(at);
            format!("cut to {at} of {length} bytes")
        }
        Kind::ZeroTail => {
            bytes.iter_mut().skip(at).for_each(|byte| *byte = 0);
            format!("zero from {at} to {length}")
        }
        Kind::FlipBits => {
            let flips = random.random_range(1..=FLIPS_MAX);
            for _ in 0..flips {
                let bit = random.random_range(0..8);
                if let Some(byte) = bytes.get_mut(random.random_range(0..length.max(1))) {
                    *byte ^= 1 << bit;
                }
            }
            format!("{flips} bits flipped of {length} bytes")
        }
        Kind::Garbage => {
            bytes.iter_mut().skip(at).take(BLOCK).for_each(|byte| *byte = random.random());
            format!("noise at {at} of {length} bytes")
        }
        Kind::Zeroes => {
            bytes.iter_mut().skip(at).take(BLOCK).for_each(|byte| *byte = 0);
            format!("zeroes at {at} of {length} bytes")
        }
        Kind::Remove => return (None, format!("removed, it had {length} bytes")),
    };
    (Some(bytes), what)
}

/// Every regular file below `folder` with its size.
fn files_below(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else if about.is_file() {
            found.push((entry.path(), about.len()));
        }
    }
    Ok(found)
}

/// Copies a folder with everything in it.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for (path, _) in files_below(from)? {
        let target = to.join(path.strip_prefix(from).unwrap_or(&path));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(&path, target)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn spoiled(kind: Kind, seed: u64) -> Option<Vec<u8>> {
        spoil(vec![0x5a; 20_000], kind, &mut StdRng::seed_from_u64(seed)).0
    }

    #[test]
    fn every_kind_changes_a_file_and_the_seed_decides_how() {
        for kind in Kind::ALL {
            let bad = spoiled(kind, 7);
            assert_ne!(bad.as_deref(), Some([0x5a; 20_000].as_slice()), "{kind:?}");
            assert_eq!(bad, spoiled(kind, 7), "{kind:?}");
            if kind != Kind::Remove {
                assert_ne!(bad, spoiled(kind, 8), "{kind:?}");
            }
        }
    }

    #[test]
    fn damage_keeps_to_what_its_name_says() {
        let bad = |kind| spoiled(kind, 3).unwrap_or_default();
        let changed = |bytes: &[u8]| bytes.iter().filter(|byte| **byte != 0x5a).count();
        assert_eq!((bad(Kind::Truncate).len() < 20_000, changed(&bad(Kind::Truncate))), (true, 0));
        assert_eq!(changed(&bad(Kind::Zeroes)), BLOCK);
        assert!(changed(&bad(Kind::FlipBits)) <= 64);
        let tail = bad(Kind::ZeroTail);
        assert_eq!(tail.iter().rev().take_while(|byte| **byte == 0).count(), changed(&tail));
        assert_eq!(spoiled(Kind::Remove, 3), None);
    }

    #[test]
    fn an_empty_file_and_a_folder_below_are_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        fs::write(folder.path().join("below/file"), b"").unwrap();
        let copied = folder.path().join("copy");
        copy(&folder.path().join("below"), &copied).unwrap();
        assert!(copied.join("file").is_file());
        for kind in Kind::ALL {
            fs::write(folder.path().join("below/file"), b"").unwrap();
            damage(folder.path(), kind, &mut StdRng::seed_from_u64(1)).unwrap();
        }
    }
}
