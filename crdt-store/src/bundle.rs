//! A store in a portable file: every live op as it was signed, with the records of their origins.
//!
//! ```text
//! "marram-bundle" · version u8 = 1
//! head frame · ops frames, oldest op first · end frame      each a stored frame with its own CRC-32C
//! SHA-256 of all before
//! ```
//!
//! A bundle is a bag of ops, not a copy of a replica: whoever merges it checks every signature and credits each op's own
//! dot, as if a peer had sent them one by one. What the head says about the writer's context is never credited; it only
//! tells whether a database that should be newer has lost something.
//!
//! Reading holds one frame in memory, whatever the file claims.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::{
    backend::folder,
    codec::{self, CodecError, FRAME_BYTES_MAX, FRAME_HEAD_BYTES, Kind},
    context::{Context, ContextImage},
    error::{Refusal, StoreError},
    id::{Dot, StoreId},
    op::SignedOp,
    replica::{Replica, pair},
    sign::OriginRecord,
    wire::Push,
};

const MAGIC: &[u8] = b"marram-bundle";
const VERSION: u8 = 1;
const HASH_BYTES: usize = 32;
/// A frame of ops is closed once it holds this many bytes; one more op of the largest size still fits a frame.
const CHUNK_BYTES: usize = 128 << 10;
/// And once it holds this many ops.
const CHUNK_OPS: usize = 1_024;

/// An op, with the record of its origin where that comes with it.
pub type BundledOp = (Option<OriginRecord>, SignedOp);

/// What a bundle says about itself, first of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleHead {
    /// The mesh and store that its ops belong to.
    pub store: StoreId,
    /// How many ops follow.
    pub ops: u64,
    /// The visible root of the replica that wrote it.
    pub root: [u8; 16],
    /// All that this replica had seen.
    seen: ContextImage,
}

impl BundleHead {
    /// All that the replica that wrote the bundle had seen; `None` where that is not in its canonical form.
    #[must_use]
    pub fn seen(&self) -> Option<Context> {
        Context::from_image(&self.seen).ok()
    }
}

/// The last frame: a bundle cut at the border of two frames lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct BundleEnd {
    ops: u64,
}

/// A bundle could not be written, read or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The system refused. Of a file being written nothing is left in its place.
    #[error("bundle: {doing} failed")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is not an intact bundle; nothing of it was merged. Write it again where it came from.
    #[error("bundle is damaged at byte {offset}: {fault}")]
    Damaged {
        /// Where, in bytes from the start: the first byte of the frame or part at fault.
        offset: u64,
        /// What is wrong.
        #[source]
        fault: BundleFault,
    },
    /// The bundle was written by a newer program; use that one.
    #[error("bundle has format version {version}, which is not known here")]
    Newer {
        /// Its version.
        version: u8,
    },
    /// The bundle is from another mesh or store; nothing of it was merged.
    #[error("bundle belongs to store `{found}`")]
    OtherStore {
        /// The mesh and store it is from.
        found: String,
    },
    /// The store could not keep what the bundle brings; what was merged before stays.
    #[error("store failed while merging a bundle")]
    Store(#[source] StoreError),
}

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleFault {
    /// It does not begin as a bundle does.
    #[error("this is not a bundle")]
    NotABundle,
    /// It ends too early.
    #[error("the file ends here")]
    Cut,
    /// A frame does not read.
    #[error("{0}")]
    Frame(#[source] CodecError),
    /// It holds another number of ops than it says.
    #[error("{found} ops where {stated} were due")]
    Count {
        /// How many there are.
        found: u64,
        /// How many there should be.
        stated: u64,
    },
    /// The hash at the end is another one.
    #[error("the hash over the whole file is wrong")]
    Hash,
    /// Bytes follow the end.
    #[error("bytes follow the end of the bundle")]
    Trailing,
}

/// Writes everything live in a replica; returns how many ops that is.
///
/// # Errors
/// [`BundleError::Io`] from `out`, and [`BundleError::Store`] for a record that does not fit a frame.
pub fn write_bundle(replica: &Replica, out: &mut impl Write) -> Result<u64, BundleError> {
    let mut dots = replica.live_dots();
    dots.sort_unstable();
    let ops = u64::try_from(dots.len()).unwrap_or(u64::MAX);
    let mut out = Hashing { out, hash: digest::Context::new(&digest::SHA256) };
    out.raw(MAGIC)?;
    out.raw(&[VERSION])?;
    let head = BundleHead {
        store: replica.store_id().clone(),
        ops,
        root: replica.root(),
        seen: replica.context().image(usize::MAX),
    };
    out.frame(Kind::BundleHead, &head)?;
    let mut told = BTreeSet::new();
    let mut chunk = Push::default();
    let mut bytes = 0;
    for (_, dot) in dots {
        let Some(signed) = replica.signed_op(dot) else { continue };
        if told.insert(dot.origin)
            && let Some(record) = replica.origin_record(&dot.origin)
        {
            bytes += crate::sign::CHAIN_BYTES_MAX;
            chunk.origins.push(record.clone());
        }
        bytes += signed.weight();
        chunk.ops.push(signed.clone());
        if bytes >= CHUNK_BYTES || chunk.ops.len() >= CHUNK_OPS {
            out.frame(Kind::BundleOps, &std::mem::take(&mut chunk))?;
            bytes = 0;
        }
    }
    if !chunk.ops.is_empty() {
        out.frame(Kind::BundleOps, &chunk)?;
    }
    out.frame(Kind::BundleEnd, &BundleEnd { ops })?;
    let hash = out.hash.finish();
    out.out.write_all(hash.as_ref()).map_err(writing)?;
    Ok(ops)
}

/// Writes a replica's bundle to a file, durably: whoever reads it finds the old one or the new one, whole.
///
/// # Errors
/// As [`write_bundle`]; then the old file, or none, is there.
pub fn save_bundle(replica: &Replica, path: &Path) -> Result<u64, BundleError> {
    let fresh = folder::beside(path, "new");
    let save = || {
        let mut file = BufWriter::with_capacity(64 << 10, File::create(&fresh).map_err(writing)?);
        let ops = write_bundle(replica, &mut file)?;
        let file = file.into_inner().map_err(|error| writing(error.into_error()))?;
        file.sync_all().map_err(writing)?;
        std::fs::rename(&fresh, path).map_err(writing)?;
        folder::sync(folder::parent(path)).map_err(writing)?;
        Ok(ops)
    };
    let saved = save();
    if saved.is_err() {
        // What is left of the attempt would only take room.
        std::fs::remove_file(&fresh).ok();
    }
    saved
}

/// What came of merging a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Imported {
    /// Ops in the bundle.
    pub ops: usize,
    /// Ops that were not here before and are live now.
    pub new: usize,
    /// Ops not taken, and why; no dot where the bytes did not even read.
    pub refused: Vec<(Option<Dot>, Refusal)>,
}

/// Checks a whole bundle, then merges its ops as a peer's; `now_ms` are milliseconds since 1970.
///
/// # Errors
/// [`BundleError`]; but for [`BundleError::Store`] nothing was merged.
pub fn merge_bundle(
    replica: &mut Replica,
    source: &mut (impl Read + Seek),
    now_ms: u64,
) -> Result<Imported, BundleError> {
    let mut check = BundleReader::open(&mut *source)?;
    if check.head().store != *replica.store_id() {
        let StoreId { mesh, store } = &check.head().store;
        return Err(BundleError::OtherStore { found: format!("{mesh}/{store}") });
    }
    while check.next_ops()?.is_some() {}
    source.seek(SeekFrom::Start(0)).map_err(reading)?;
    let mut bundle = BundleReader::open(source)?;
    let mut imported = Imported::default();
    while let Some(ops) = bundle.next_ops()? {
        imported.ops += ops.len();
        let merged = replica.merge(ops, now_ms).map_err(BundleError::Store)?;
        imported.new += merged.new_ops.len();
        imported.refused.extend(merged.refused);
    }
    Ok(imported)
}

/// Reads a bundle frame by frame.
pub struct BundleReader<R> {
    source: BufReader<R>,
    hash: digest::Context,
    offset: u64,
    head: BundleHead,
    /// Ops read so far.
    ops: u64,
    is_over: bool,
}

impl<R> fmt::Debug for BundleReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleReader").field("offset", &self.offset).field("ops", &self.ops).finish_non_exhaustive()
    }
}

impl<R: Read> BundleReader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn open(source: R) -> Result<Self, BundleError> {
        let head = BundleHead { store: StoreId::global(""), ops: 0, root: [0; 16], seen: ContextImage::default() };
        let source = BufReader::with_capacity(64 << 10, source);
        let hash = digest::Context::new(&digest::SHA256);
        let mut reader = Self { source, hash, offset: 0, head, ops: 0, is_over: false };
        let mut start = [0; MAGIC.len() + 1];
        let Ok(start) = reader.fill(&mut start).map(|()| start) else {
            return Err(BundleError::Damaged { offset: 0, fault: BundleFault::NotABundle });
        };
        let Some((&version, magic)) = start.split_last() else {
            return Err(BundleError::Damaged { offset: 0, fault: BundleFault::NotABundle });
        };
        if magic != MAGIC {
            return Err(BundleError::Damaged { offset: 0, fault: BundleFault::NotABundle });
        }
        if version != VERSION {
            return Err(BundleError::Newer { version });
        }
        let (offset, frame) = reader.frame()?;
        reader.head = codec::decode_stored(Kind::BundleHead, &frame).map_err(|error| frame_fault(offset, error))?;
        Ok(reader)
    }

    /// What the bundle says about itself; proven by its own checksum.
    #[must_use]
    pub const fn head(&self) -> &BundleHead {
        &self.head
    }

    /// The next ops, each with the record of its origin where this frame brings it; `None` once all were read and the
    /// hash over the whole was found right.
    ///
    /// # Errors
    /// [`BundleError`]; what was read before is then not proven to be all.
    pub fn next_ops(&mut self) -> Result<Option<Vec<BundledOp>>, BundleError> {
        if self.is_over {
            return Ok(None);
        }
        let (offset, frame) = self.frame()?;
        if codec::frame_kind(&frame) == Some(Kind::BundleOps as u8) {
            let ops: Push =
                codec::decode_stored(Kind::BundleOps, &frame).map_err(|error| frame_fault(offset, error))?;
            self.ops = self.ops.saturating_add(u64::try_from(ops.ops.len()).unwrap_or(u64::MAX));
            return Ok(Some(pair(ops.origins, ops.ops)));
        }
        let end: BundleEnd =
            codec::decode_stored(Kind::BundleEnd, &frame).map_err(|error| frame_fault(offset, error))?;
        for stated in [end.ops, self.head.ops] {
            if stated != self.ops {
                return Err(BundleError::Damaged { offset, fault: BundleFault::Count { found: self.ops, stated } });
            }
        }
        self.finish()?;
        Ok(None)
    }

    fn finish(&mut self) -> Result<(), BundleError> {
        let due = self.hash.clone().finish();
        let offset = self.offset;
        let mut hash = [0; HASH_BYTES];
        self.fill(&mut hash)?;
        if hash != due.as_ref() {
            return Err(BundleError::Damaged { offset, fault: BundleFault::Hash });
        }
        if self.source.read(&mut [0]).map_err(reading)? != 0 {
            return Err(BundleError::Damaged { offset: self.offset, fault: BundleFault::Trailing });
        }
        self.is_over = true;
        Ok(())
    }

    /// The next frame and where it begins. Memory grows with what is there, not with what the head promises.
    fn frame(&mut self) -> Result<(u64, Vec<u8>), BundleError> {
        let offset = self.offset;
        let mut head = [0; FRAME_HEAD_BYTES];
        self.fill(&mut head)?;
        let length = match codec::stored_length(&head) {
            Ok(length) => length,
            Err(error) => return Err(frame_fault(offset, error)),
        };
        let mut frame = head.to_vec();
        let rest = length.saturating_sub(FRAME_HEAD_BYTES);
        let limit = u64::try_from(rest).unwrap_or(u64::MAX);
        let read = (&mut self.source).take(limit).read_to_end(&mut frame).map_err(reading)?;
        if read < rest {
            let offset = self.offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            return Err(BundleError::Damaged { offset, fault: BundleFault::Cut });
        }
        self.took(frame.split_at(FRAME_HEAD_BYTES).1);
        Ok((offset, frame))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BundleError> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest) {
                Ok(0) => {
                    let offset = self.offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
                    return Err(BundleError::Damaged { offset, fault: BundleFault::Cut });
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(reading(error)),
            }
        }
        self.took(bytes);
        Ok(())
    }

    fn took(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.offset = self.offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }
}

/// A writer that hashes what it writes.
struct Hashing<'w, W> {
    out: &'w mut W,
    hash: digest::Context,
}

impl<W: Write> Hashing<'_, W> {
    fn raw(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(writing)
    }

    fn frame<T: Serialize>(&mut self, kind: Kind, value: &T) -> Result<(), BundleError> {
        let frame = codec::encode_stored(kind, value).map_err(|error| {
            tracing::error!(%error, "part of a bundle does not encode");
            BundleError::Store(StoreError::TooLarge { what: "bytes of one part of a bundle", max: FRAME_BYTES_MAX })
        })?;
        self.raw(&frame)
    }
}

fn frame_fault(offset: u64, error: CodecError) -> BundleError {
    match error {
        CodecError::Version { found } => BundleError::Newer { version: found },
        error => BundleError::Damaged { offset, fault: BundleFault::Frame(error) },
    }
}

fn reading(source: io::Error) -> BundleError {
    BundleError::Io { doing: "reading", source }
}

fn writing(source: io::Error) -> BundleError {
    BundleError::Io { doing: "writing", source }
}

#[cfg(test)]
mod tests;
