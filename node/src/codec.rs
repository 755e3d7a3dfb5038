//! The node's one place that turns its own records into bytes and back.
//!
//! Layout: one version byte, then bincode (standard, varint) of the value, nothing after it. Decoding takes a limit on
//! the bytes and refuses what is longer, cut short, followed by more, or of another version.

use bincode::config::{Configuration, Limit, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest record that is decoded, in bytes.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Longer than any record may be.
    #[error("{0} bytes are more than the {RECORD_BYTES_MAX} a record may have")]
    TooLong(usize),
    /// Written by another version of the format; the record is left alone.
    #[error("format version {found} where this node knows {known}")]
    Version {
        /// The version byte.
        found: u8,
        /// The version this node knows.
        known: u8,
    },
    /// Cut short, followed by more, or not this record at all.
    #[error("malformed record")]
    Malformed,
}

type Limited = Configuration<bincode::config::LittleEndian, Varint, Limit<RECORD_BYTES_MAX>>;

fn config() -> Limited {
    bincode::config::standard().with_limit::<RECORD_BYTES_MAX>()
}

/// The bytes of `value` behind `version`.
///
/// # Errors
/// [`CodecError::TooLong`] when the value does not fit a record.
pub fn encode<T: Serialize>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![version];
    let body = bincode::serde::encode_to_vec(value, config()).map_err(|_fault| CodecError::Malformed)?;
    bytes.extend(body);
    if bytes.len() > RECORD_BYTES_MAX { Err(CodecError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Reads a value that [`encode`] wrote with the same `version`.
///
/// # Errors
/// Every [`CodecError`]; nothing is allocated beyond what has arrived.
pub fn decode<T: DeserializeOwned>(version: u8, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CodecError::TooLong(bytes.len()));
    }
    let Some((&found, body)) = bytes.split_first() else { return Err(CodecError::Malformed) };
    if found != version {
        return Err(CodecError::Version { found, known: version });
    }
    let (value, used) = bincode::serde::decode_from_slice(body, config()).map_err(|_fault| CodecError::Malformed)?;
    if used == body.len() { Ok(value) } else { Err(CodecError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_round_trips_and_every_cut_of_it_is_refused() {
        let value = (String::from("hello"), vec![1_u32, 2, 3], Some(0.5_f64));
        let bytes = encode(1, &value).unwrap();
        assert_eq!(decode::<(String, Vec<u32>, Option<f64>)>(1, &bytes), Ok(value));
        for cut in 0..bytes.len() {
            assert_eq!(decode::<(String, Vec<u32>, Option<f64>)>(1, &bytes[..cut]), Err(CodecError::Malformed));
        }
    }

    #[test]
    fn trailing_bytes_and_other_versions_are_refused() {
        let mut bytes = encode(1, &7_u32).unwrap();
        assert_eq!(decode::<u32>(2, &bytes), Err(CodecError::Version { found: 1, known: 2 }));
        bytes.push(0);
        assert_eq!(decode::<u32>(1, &bytes), Err(CodecError::Malformed));
    }

    #[test]
    fn a_length_that_promises_more_than_arrived_is_refused_without_allocating_it() {
        // A varint length of 2^60 in front of nothing.
        let bytes = [1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10];
        assert_eq!(decode::<Vec<u8>>(1, &bytes), Err(CodecError::Malformed));
    }
}
