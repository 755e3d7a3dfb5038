//! The head of a service stream between two proxies: which instance is meant, for whom, and how far it may still go.
//!
//! Laid out by hand, integers in network order: version, protocol, hops (one byte each), deadline in milliseconds
//! (u32), trace (16 bytes), then service, instance and source, each as u16 length and UTF-8. Nothing may follow.
//! The receiver answers one [`ACCEPTED`] byte, or resets the stream with a [`ResetCode`].

use bytes::{BufMut, Bytes, BytesMut};

use crate::config::Protocol;

/// Version of the layout; another version is refused.
pub const HEAD_VERSION: u8 = 1;
/// The answer to a head that is served.
pub(super) const ACCEPTED: u8 = 0xA5;
/// A stream may cross this many proxies.
pub const HOPS_MAX: u8 = 4;
/// Longest name of a service or an instance in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Longest identity of a source in bytes; a SPIFFE ID may be this long.
const SOURCE_BYTES_MAX: usize = 2048;

/// What a stream is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHead {
    /// The name requests ask for.
    pub service: String,
    /// The instance at the receiving node.
    pub instance: String,
    /// What follows the accepted byte.
    pub content: Content,
    /// SPIFFE ID on whose behalf the sender speaks.
    pub source: String,
    /// Proxies crossed so far, the sender included.
    pub hops: u8,
    /// Milliseconds the sender will wait; 0 where nobody waits for an end.
    pub deadline_ms: u32,
    /// Trace of the request that opened the stream, zero where there is none.
    pub trace: [u8; 16],
}

/// What a stream carries after the accepted byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Content {
    /// HTTP/1.1 requests one after the other; of trailers those that were announced.
    Http = 0,
    /// Bytes.
    Tcp = 1,
    /// Nothing: the sender only asks whether the receiver still answers. Service and instance are empty.
    Probe = 2,
    /// A flow of datagrams, which come beside the stream; the stream only opens it.
    Udp = 4,
    /// Requests for an instance of HTTP/2, written like those of HTTP/1.1 but with all their trailers. (3 was an HTTP/2
    /// connection.)
    Http2 = 5,
}

impl From<Protocol> for Content {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http => Self::Http,
            Protocol::Http2 => Self::Http2,
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// Why a head was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// It ends before its last field.
    #[error("service head is truncated")]
    Truncated,
    /// Bytes follow its last field.
    #[error("service head has bytes after its end")]
    Trailing,
    /// A version this build does not know.
    #[error("service head has version {0}, this build reads {HEAD_VERSION}")]
    Version(u8),
    /// A content this build does not know.
    #[error("service head asks for unknown content {0}")]
    Content(u8),
    /// A name is empty, too long or not text.
    #[error("service head has a bad {0}")]
    Field(&'static str),
}

/// Why the receiver of a head reset the stream; nothing of what followed was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetCode {
    /// The head could not be read.
    BadHead = 0x20,
    /// No such instance here.
    UnknownInstance = 0x21,
    /// The instance takes no connection.
    ConnectFailed = 0x22,
    /// This node is about to stop.
    Draining = 0x23,
    /// Too many proxies crossed.
    Loop = 0x24,
    /// Too many streams at once, or no memory for another one.
    Overloaded = 0x25,
}

impl ResetCode {
    /// The code for a number from the wire.
    #[must_use]
    pub fn from_wire(code: u32) -> Option<Self> {
        [Self::BadHead, Self::UnknownInstance, Self::ConnectFailed, Self::Draining, Self::Loop, Self::Overloaded]
            .into_iter()
            .find(|known| *known as u32 == code)
    }

    /// What it means for a person, as the end of a sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::BadHead => "its node could not read our stream head",
            Self::UnknownInstance => "its node no longer has this instance",
            Self::ConnectFailed => "it refused the connection of its own node",
            Self::Draining => "its node is draining",
            Self::Loop => "its node saw too many hops",
            Self::Overloaded => "its node has no room for another stream",
        }
    }
}

impl ServiceHead {
    /// The bytes of this head.
    ///
    /// # Errors
    /// [`HeadError::Field`] when a name is empty or too long to be sent.
    pub fn encode(&self) -> Result<Bytes, HeadError> {
        let names = self.content != Content::Probe;
        check_text("service", &self.service, NAME_BYTES_MAX, names)?;
        check_text("instance", &self.instance, NAME_BYTES_MAX, names)?;
        check_text("source", &self.source, SOURCE_BYTES_MAX, true)?;
        let mut out = BytesMut::with_capacity(32 + self.service.len() + self.instance.len() + self.source.len());
        out.put_u8(HEAD_VERSION);
        out.put_u8(self.content as u8);
        out.put_u8(self.hops);
        out.put_u32(self.deadline_ms);
        out.put_slice(&self.trace);
        put_text(&mut out, &self.service);
        put_text(&mut out, &self.instance);
        put_text(&mut out, &self.source);
        Ok(out.freeze())
    }

    /// Reads a head that must fill `bytes` exactly.
    ///
    /// # Errors
    /// [`HeadError`] says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut rest = bytes;
        let version = take_u8(&mut rest)?;
        if version != HEAD_VERSION {
            return Err(HeadError::Version(version));
        }
        let content = match take_u8(&mut rest)? {
            0 => Content::Http,
            1 => Content::Tcp,
            2 => Content::Probe,
            4 => Content::Udp,
            5 => Content::Http2,
            other => return Err(HeadError::Content(other)),
        };
        let hops = take_u8(&mut rest)?;
        let deadline_ms = u32::from_be_bytes(take_array(&mut rest)?);
        let trace = take_array(&mut rest)?;
        let names = content != Content::Probe;
        let service = take_text(&mut rest, "service", NAME_BYTES_MAX, names)?;
        let instance = take_text(&mut rest, "instance", NAME_BYTES_MAX, names)?;
        let source = take_text(&mut rest, "source", SOURCE_BYTES_MAX, true)?;
        if !rest.is_empty() {
            return Err(HeadError::Trailing);
        }
        Ok(Self { service, instance, content, source, hops, deadline_ms, trace })
    }
}

fn check_text(field: &'static str, text: &str, bytes_max: usize, wanted: bool) -> Result<(), HeadError> {
    if (wanted && text.is_empty()) || text.len() > bytes_max { Err(HeadError::Field(field)) } else { Ok(()) }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.put_slice(text.as_bytes());
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], HeadError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(HeadError::Truncated)?;
    *rest = left;
    Ok(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], HeadError> {
    let (taken, left) = rest.split_first_chunk::<N>().ok_or(HeadError::Truncated)?;
    *rest = left;
    Ok(*taken)
}

fn take_u8(rest: &mut &[u8]) -> Result<u8, HeadError> {
    take_array::<1>(rest).map(|[byte]| byte)
}

fn take_text(rest: &mut &[u8], field: &'static str, bytes_max: usize, wanted: bool) -> Result<String, HeadError> {
    let length = usize::from(u16::from_be_bytes(take_array(rest)?));
    if length > bytes_max {
        return Err(HeadError::Field(field));
    }
    let text = str::from_utf8(take(rest, length)?).map_err(|_invalid| HeadError::Field(field))?;
    check_text(field, text, bytes_max, wanted)?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> ServiceHead {
        ServiceHead {
            service: "hello".into(),
            instance: "8080".into(),
            content: Content::Http,
            source: "spiffe://demo/node/abc".into(),
            hops: 1,
            deadline_ms: 60_000,
            trace: [7; 16],
        }
    }

    #[test]
    fn a_head_comes_back_as_it_was_sent() {
        for content in [Content::Http, Content::Tcp, Content::Udp, Content::Http2] {
            let sent = ServiceHead { content, ..head() };
            assert_eq!(ServiceHead::decode(&sent.encode().unwrap()), Ok(sent));
        }
        let probe = ServiceHead { service: String::new(), instance: String::new(), content: Content::Probe, ..head() };
        assert_eq!(ServiceHead::decode(&probe.encode().unwrap()), Ok(probe));
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let bytes = ServiceHead { trace: [0; 16], ..head() }.encode().unwrap();
        let mut expected = vec![1, 0, 1, 0, 0, 0xEA, 0x60];
        expected.extend([0; 16]);
        expected.extend(b"\x00\x05hello\x00\x048080\x00\x16spiffe://demo/node/abc");
        assert_eq!(bytes.as_ref(), expected);
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = head().encode().unwrap();
        for length in 0..bytes.len() {
            assert_eq!(ServiceHead::decode(&bytes[..length]), Err(HeadError::Truncated), "{length} bytes");
        }
    }

    #[test]
    fn trailing_bytes_unknown_versions_and_contents_are_refused() {
        let bytes = head().encode().unwrap();
        let with = |index: usize, value: u8| {
            let mut changed = bytes.to_vec();
            changed[index] = value;
            ServiceHead::decode(&changed)
        };
        assert_eq!(with(0, 2), Err(HeadError::Version(2)));
        for content in [3, 9] {
            assert_eq!(with(1, content), Err(HeadError::Content(content)));
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(ServiceHead::decode(&longer), Err(HeadError::Trailing));
    }

    #[test]
    fn oversized_empty_and_garbled_names_are_refused() {
        let long = ServiceHead { service: "x".repeat(256), ..head() };
        assert_eq!(long.encode(), Err(HeadError::Field("service")));
        let empty = ServiceHead { instance: String::new(), ..head() };
        assert_eq!(empty.encode(), Err(HeadError::Field("instance")));
        let mut oversized = head().encode().unwrap().to_vec();
        oversized[23] = 0xFF;
        assert_eq!(ServiceHead::decode(&oversized), Err(HeadError::Field("service")));
        let mut garbled = head().encode().unwrap().to_vec();
        garbled[25] = 0xFF;
        assert_eq!(ServiceHead::decode(&garbled), Err(HeadError::Field("service")));
    }

    #[test]
    fn reset_codes_survive_the_wire() {
        assert_eq!(ResetCode::from_wire(ResetCode::Draining as u32), Some(ResetCode::Draining));
        assert_eq!(ResetCode::from_wire(0), None);
    }
}
