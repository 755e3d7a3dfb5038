//! How messages of HTTP/1.1 are written: fields, and bodies in their coding (RFC 9112 sections 6 and 7).

use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::header::{CONTENT_LENGTH, HeaderMap, TRAILER};

use super::headers::{MARRAM_LENGTH, has_token};
use crate::config::Protocol;

/// Pieces of a body up to this length are copied behind what is written before them; longer ones are written as they are.
const COPY_BYTES_MAX: usize = 8 * 1024;
/// The digits of the longest chunk's size, and the ends of its lines.
const CHUNK_LINES: usize = 20;

/// Bytes of a body that are moved before other tasks get their turn.
pub(super) const TURN_BYTES: usize = 256 * 1024;

/// How the end of a body is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// There is none.
    Nothing,
    /// By its length; so much of it is to come.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// Which trailers go behind the bodies of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trailing {
    /// Those that the head announced: an application of HTTP/1.1 may not expect others (RFC 9110 section 6.5.1).
    Announced,
    /// All, to a proxy that passes them on to an application of HTTP/2.
    All,
}

impl From<Protocol> for Trailing {
    /// By what the instance speaks, on the way between two proxies.
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http | Protocol::Tcp | Protocol::Udp => Self::Announced,
            Protocol::Http2 => Self::All,
        }
    }
}

/// The trailers that may stand behind one body.
#[derive(Debug)]
pub(super) enum Trailers {
    /// None: whoever reads it has not said that it wants them.
    Unwanted,
    /// Those that `Trailer` in this head announced.
    Announced(HeaderMap),
    /// All.
    All,
}

impl Trailers {
    fn may_have(&self, name: &str) -> bool {
        match self {
            Self::Unwanted => false,
            Self::Announced(head) => has_token(head, &TRAILER, name),
            Self::All => true,
        }
    }
}

/// The body is longer or shorter than it was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not as long as it was announced")]
pub(super) struct WrongLength;

impl Coding {
    /// Writes a piece of a body to `out`, or returns it where it is long enough to be written without a copy, right behind
    /// `out`.
    ///
    /// # Errors
    /// [`WrongLength`] where it is more than was announced.
    pub(super) fn put(&mut self, out: &mut BytesMut, data: Bytes) -> Result<Bytes, WrongLength> {
        match self {
            Self::Nothing => return Ok(Bytes::new()),
            Self::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or(WrongLength)?,
            Self::UntilClose => {}
            // An empty chunk would be the last one.
            Self::Chunked if data.is_empty() => return Ok(data),
            Self::Chunked => {
                out.reserve(data.len() + CHUNK_LINES);
                put_size(out, data.len());
                out.put_slice(&data);
                out.put_slice(b"\r\n");
                return Ok(Bytes::new());
            }
        }
        if data.len() > COPY_BYTES_MAX {
            return Ok(data);
        }
        out.put_slice(&data);
        Ok(Bytes::new())
    }

    /// Writes the end of a body, and of `trailers` those that are `wanted`.
    ///
    /// # Errors
    /// [`WrongLength`] where more was announced.
    pub(super) fn end(self, out: &mut BytesMut, wanted: &Trailers, trailers: &HeaderMap) -> Result<(), WrongLength> {
        match self {
            Self::Length(1..) => Err(WrongLength),
            Self::Length(0) | Self::Nothing | Self::UntilClose => Ok(()),
            Self::Chunked => {
                out.put_slice(b"0\r\n");
                for (name, value) in trailers {
                    if wanted.may_have(name.as_str()) {
                        put_field(out, name.as_str(), value.as_bytes());
                    }
                }
                out.put_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

/// Writes the fields of a head, without the empty line behind them.
pub(super) fn put_fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        put_field(out, name.as_str(), value.as_bytes());
    }
}

/// The same for a message that is written in chunks whatever its `Content-Length` says: a peer restores that.
pub(super) fn put_fields_of_chunked(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        let name = if *name == CONTENT_LENGTH { &MARRAM_LENGTH } else { name };
        put_field(out, name.as_str(), value.as_bytes());
    }
}

fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// A chunk's size in hexadecimal, and the end of its line.
fn put_size(out: &mut BytesMut, size: usize) {
    let digits = size.checked_ilog2().map_or(1, |log| log / 4 + 1);
    for place in (0..digits).rev() {
        let digit = (size >> (place * 4)) & 0xf;
        out.put_u8(*b"0123456789abcdef".get(digit).unwrap_or(&b'0'));
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn chunks_have_their_size_before_them_and_an_end() {
        let mut out = BytesMut::new();
        let mut coding = Coding::Chunked;
        for size in [1, 15, 16, 255, 4096] {
            assert_eq!(coding.put(&mut out, vec![b'x'; size].into()), Ok(Bytes::new()));
            let text = String::from_utf8(out.split().to_vec()).unwrap();
            assert_eq!(text, format!("{size:x}\r\n{}\r\n", "x".repeat(size)));
        }
        coding.put(&mut out, Bytes::new()).unwrap();
        assert!(out.is_empty(), "an empty piece is not the end");
        let mut head = HeaderMap::new();
        head.insert(TRAILER, HeaderValue::from_static("x-sum"));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        trailers.insert("x-other", HeaderValue::from_static("2"));
        for (wanted, expected) in [
            (Trailers::Announced(head), "0\r\nx-sum: 1\r\n\r\n"),
            (Trailers::Unwanted, "0\r\n\r\n"),
            (Trailers::All, "0\r\nx-sum: 1\r\nx-other: 2\r\n\r\n"),
        ] {
            coding.end(&mut out, &wanted, &trailers).unwrap();
            assert_eq!(out.split(), expected, "{wanted:?}");
        }
    }

    #[test]
    fn a_length_is_kept_to_the_byte() {
        let mut out = BytesMut::new();
        let mut coding = Coding::Length(3);
        coding.put(&mut out, Bytes::from_static(b"ab")).unwrap();
        assert_eq!(coding.end(&mut out, &Trailers::All, &HeaderMap::new()), Err(WrongLength));
        assert_eq!(coding.put(&mut out, Bytes::from_static(b"cd")), Err(WrongLength));
        coding.put(&mut out, Bytes::from_static(b"c")).unwrap();
        assert_eq!(coding.end(&mut out, &Trailers::All, &HeaderMap::new()), Ok(()));
        assert_eq!(&out[..], b"abc");
    }

    #[test]
    fn long_pieces_are_not_copied() {
        let mut out = BytesMut::new();
        let long = Bytes::from(vec![0; COPY_BYTES_MAX + 1]);
        assert_eq!(Coding::UntilClose.put(&mut out, long.clone()), Ok(long));
        assert!(out.is_empty());
    }
}
