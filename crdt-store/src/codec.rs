//! The one place that knows bincode: frames, limits, versions, checksums.
//!
//! A frame is `version u8 · kind u8 · length u32 BE · payload`; a stored record adds a CRC-32C of all that. Decoding
//! demands the exact kind, the exact length and no trailing byte, and never allocates more than what has arrived.
//! bincode is unmaintained, which is why nothing else may call it: replacing it is a change of this file and of the
//! version byte. What is signed does not pass through here, see `op::layout`.

use std::{fmt, marker::PhantomData};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _, SeqAccess, Visitor},
};

/// Bytes before the payload of a frame.
pub const FRAME_HEAD_BYTES: usize = 6;
/// The longest frame, head included.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Version of messages between replicas.
pub const WIRE_VERSION: u8 = 1;
/// Bytes after the payload of a stored frame.
const CHECKSUM_BYTES: usize = 4;
/// Version of records on disk.
pub const STORED_VERSION: u8 = 1;

/// What a frame holds. Numbers stay for ever; new kinds get new ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// First message of a sync conversation.
    Hello = 1,
    /// Ops, with the records of their origins first.
    Ops = 2,
    /// End of one direction, with the coverage it conveys.
    Fin = 3,
    /// All received is durable.
    Ack = 4,
    /// Ops pushed outside a conversation.
    Push = 5,
    /// Hashes of the visible root's buckets, for a peer below the floor.
    Digest = 6,
    /// What that peer holds where the hashes differ.
    Lists = 7,
    /// What of it was deleted, and the tombstone collected.
    Claims = 8,
    /// End of one direction to a peer below the floor, with coverage and floor.
    FinBelow = 9,
    /// Stored: identity, counters, context, root.
    Meta = 32,
    /// Stored: an origin's record and who it is.
    Origin = 33,
    /// Stored: one live op.
    Op = 34,
    /// Stored: an idempotency key's outcome.
    Idempotency = 35,
    /// Stored: a record that the node keeps for itself.
    Record = 36,
    /// Stored: up to where tombstones were collected.
    Floor = 37,
    /// Stored: which changes of a live op do not count any more.
    Marks = 38,
    /// Stored: one change of one document, for the history.
    Revision = 39,
    /// In a bundle: which store it is from and what that had seen.
    BundleHead = 48,
    /// In a bundle: some ops, with the records of their origins first.
    BundleOps = 49,
    /// In a bundle: how many ops there were.
    BundleEnd = 50,
}

/// Bytes are not what they claim to be. From a peer: close, count, go on. From the disk: the folder is damaged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The frame ends before it should.
    #[error("frame is cut short")]
    Truncated,
    /// Another version of the format, most likely from a newer program.
    #[error("format version {found} is not known here")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// Another kind of frame than the place calls for.
    #[error("frame of kind {found} where another was due")]
    Kind {
        /// The kind byte.
        found: u8,
    },
    /// Longer than the limit, or than the bytes that came.
    #[error("frame of {bytes} bytes is over the limit of {max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Bytes follow the end of the value.
    #[error("bytes follow the end of the frame")]
    Trailing,
    /// The checksum does not match.
    #[error("checksum does not match")]
    Checksum,
    /// The payload does not decode.
    #[error("payload does not decode")]
    Malformed(#[source] Box<bincode::error::DecodeError>),
    /// The value does not encode; a mistake of ours.
    #[error("value does not encode")]
    Unencodable(#[source] Box<bincode::error::EncodeError>),
}

/// Length of the whole frame that starts with these bytes; `None` while fewer than [`FRAME_HEAD_BYTES`] are there.
///
/// For reading messages off a stream: read the head, ask, read the rest.
///
/// # Errors
/// [`CodecError::Version`] and [`CodecError::TooLong`].
pub fn frame_length(start: &[u8]) -> Result<Option<usize>, CodecError> {
    let [version, _kind, a, b, c, d, ..] = *start else { return Ok(None) };
    if version != WIRE_VERSION {
        return Err(CodecError::Version { found: version });
    }
    let bytes =
        usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX).saturating_add(FRAME_HEAD_BYTES);
    if bytes > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong { bytes, max: FRAME_BYTES_MAX });
    }
    Ok(Some(bytes))
}

/// Length of the whole stored frame that starts with this head, checksum included.
pub(crate) fn stored_length(head: &[u8; FRAME_HEAD_BYTES]) -> Result<usize, CodecError> {
    let [_version, _kind, a, b, c, d] = *head;
    let bytes =
        usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX).saturating_add(FRAME_HEAD_BYTES);
    if bytes > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong { bytes, max: FRAME_BYTES_MAX });
    }
    Ok(bytes + CHECKSUM_BYTES)
}

/// The kind byte of a frame.
pub(crate) fn frame_kind(frame: &[u8]) -> Option<u8> {
    frame.get(1).copied()
}

/// One message as a frame.
pub(crate) fn encode<T: Serialize>(kind: Kind, value: &T) -> Result<Bytes, CodecError> {
    Ok(frame(WIRE_VERSION, kind, value)?.into())
}

/// The message of this kind in a frame.
pub(crate) fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, CodecError> {
    unframe(WIRE_VERSION, kind, bytes)
}

/// One record for the disk: a frame and its checksum.
pub(crate) fn encode_stored<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = frame(STORED_VERSION, kind, value)?;
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    Ok(bytes)
}

/// The record of this kind, after its checksum was found right.
pub(crate) fn decode_stored<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, CodecError> {
    let (frame, sum) = bytes
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or(CodecError::Truncated)?;
    if crc32c::crc32c(frame).to_be_bytes() != *sum {
        return Err(CodecError::Checksum);
    }
    unframe(STORED_VERSION, kind, frame)
}

/// Checks a stored frame of whatever kind without reading its payload.
pub(crate) fn check_stored(bytes: &[u8]) -> Result<(), CodecError> {
    let (frame, sum) = bytes
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or(CodecError::Truncated)?;
    match frame.first() {
        _ if crc32c::crc32c(frame).to_be_bytes() != *sum => Err(CodecError::Checksum),
        Some(&STORED_VERSION) => Ok(()),
        Some(&found) => Err(CodecError::Version { found }),
        None => Err(CodecError::Truncated),
    }
}

fn frame<T: Serialize>(version: u8, kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    let payload = bincode::serde::encode_to_vec(value, config()).map_err(|e| CodecError::Unencodable(Box::new(e)))?;
    let bytes = payload.len().saturating_add(FRAME_HEAD_BYTES);
    let length = u32::try_from(payload.len()).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
    let Some(length) = length else { return Err(CodecError::TooLong { bytes, max: FRAME_BYTES_MAX }) };
    let mut frame = Vec::with_capacity(bytes + CHECKSUM_BYTES);
    frame.extend_from_slice(&[version, kind as u8]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

fn unframe<T: DeserializeOwned>(version: u8, kind: Kind, bytes: &[u8]) -> Result<T, CodecError> {
    let Some((&[found_version, found_kind, a, b, c, d], payload)) = bytes.split_first_chunk::<FRAME_HEAD_BYTES>()
    else {
        return Err(CodecError::Truncated);
    };
    if found_version != version {
        return Err(CodecError::Version { found: found_version });
    }
    if found_kind != kind as u8 {
        return Err(CodecError::Kind { found: found_kind });
    }
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong { bytes: bytes.len(), max: FRAME_BYTES_MAX });
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    match payload.len().cmp(&length) {
        std::cmp::Ordering::Less => return Err(CodecError::Truncated),
        std::cmp::Ordering::Greater => return Err(CodecError::Trailing),
        std::cmp::Ordering::Equal => {}
    }
    let (value, used) = bincode::serde::decode_from_slice::<T, _>(payload, config())
        .map_err(|error| CodecError::Malformed(Box::new(error)))?;
    if used != payload.len() {
        return Err(CodecError::Trailing);
    }
    Ok(value)
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_big_endian().with_limit::<FRAME_BYTES_MAX>()
}

/// Reads a sequence of at most `N` items; the count is refused before anything is allocated for it.
pub(crate) fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Items<T, const N: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Items<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {N} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            if items.size_hint().is_some_and(|count| count > N) {
                return Err(A::Error::custom("too many items"));
            }
            let mut vec = Vec::new();
            while let Some(item) = items.next_element()? {
                if vec.len() == N {
                    return Err(A::Error::custom("too many items"));
                }
                vec.push(item);
            }
            Ok(vec)
        }
    }

    deserializer.deserialize_seq(Items::<T, N>(PhantomData))
}

/// Serde of `Bytes` and `Vec<u8>` as one run of bytes.
pub(crate) mod blob {
    use super::{Deserializer, Serializer, Visitor, fmt};

    pub(crate) fn serialize<S: Serializer>(bytes: impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes.as_ref())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: From<Vec<u8>>>(deserializer: D) -> Result<T, D::Error> {
        struct Run;

        impl Visitor<'_> for Run {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }

        deserializer.deserialize_byte_buf(Run).map(T::from)
    }
}

/// Serde of a signature, 64 bytes.
pub(crate) mod signature {
    use super::{Deserializer, Serializer, blob};
    use serde::de::Error as _;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 64], serializer: S) -> Result<S::Ok, S::Error> {
        blob::serialize(bytes, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 64], D::Error> {
        let bytes: Vec<u8> = blob::deserialize(deserializer)?;
        <[u8; 64]>::try_from(bytes).ok().ok_or_else(|| D::Error::custom("a signature has 64 bytes"))
    }
}

#[cfg(test)]
mod tests;
