//! A client of HTTP/2 that sends any frame, right or wrong.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How every connection begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames (RFC 9113 section 6).
pub mod kind {
    /// Bytes of a body.
    pub const DATA: u8 = 0;
    /// Header fields.
    pub const HEADERS: u8 = 1;
    /// What nobody looks at any more.
    pub const PRIORITY: u8 = 2;
    /// The end of a stream.
    pub const RST_STREAM: u8 = 3;
    /// Settings.
    pub const SETTINGS: u8 = 4;
    /// An answer nobody asked for.
    pub const PUSH_PROMISE: u8 = 5;
    /// Are you there?
    pub const PING: u8 = 6;
    /// The end of a connection.
    pub const GOAWAY: u8 = 7;
    /// More room.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More header fields.
    pub const CONTINUATION: u8 = 9;
}

/// Flag of DATA and HEADERS: nothing follows on this stream.
pub const END_STREAM: u8 = 1;
/// Flag of SETTINGS and PING: an answer.
pub const ACK: u8 = 1;
/// Flag of HEADERS and CONTINUATION: no more fields follow.
pub const END_HEADERS: u8 = 4;
/// Flag of DATA and HEADERS: padding follows.
pub const PADDED: u8 = 8;
/// Flag of HEADERS: a priority comes first.
pub const PRIORITY: u8 = 32;

/// A frame as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The 32 bits at the beginning of the payload, or behind it so far in.
    #[must_use]
    pub fn word(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(u32::MAX, u32::from_be_bytes)
    }

    /// The status in the header fields of an answer that is the first of its connection.
    #[must_use]
    pub fn status(&self) -> u16 {
        /// Bits of a digit in the code of RFC 7541 appendix B: `0` to `2` have five, the others six.
        fn digits(bytes: &[u8]) -> u16 {
            let bits = bytes.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (32 - 8 * bytes.len());
            let mut at = 0;
            (0..3).fold(0, |status, _| {
                let five = (bits << at) >> 27;
                let (digit, width) = if five < 3 { (five, 5) } else { (((bits << at) >> 26).wrapping_sub(25 - 3), 6) };
                at += width;
                status * 10 + u16::try_from(digit).unwrap_or(0)
            })
        }
        let block = match self.payload.as_slice() {
            // The table was made smaller first.
            [0x20..=0x3e, block @ ..] => block,
            block => block,
        };
        match block {
            [byte @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500].get(usize::from(byte - 0x88)).copied(),
            [0x48 | 0x08, 3, digits @ ..] => {
                digits.get(..3).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok())
            }
            [0x48 | 0x08, length @ 0x82..=0x83, code @ ..] => code.get(..usize::from(length & 0x7f)).map(digits),
            _ => None,
        }
        .unwrap_or(0)
    }
}

/// What became of bytes that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// They are on their way.
    All,
    /// The server does not read them.
    Stuck,
    /// The server has ended the connection.
    Cut,
}

/// The bytes of a frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let [_, high, middle, low] = length;
    let mut bytes = vec![high, middle, low, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Header fields in their plainest coding: each literal, none remembered. Names and values of at most 126 bytes.
#[must_use]
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap_or(126).min(126));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A connection to the server under test.
#[derive(Debug)]
pub struct Frames {
    stream: TcpStream,
}

impl Frames {
    /// Connects without a word.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("somebody listens");
        stream.set_nodelay(true).expect("a socket takes options");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket takes options");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a socket takes options");
        Self { stream }
    }

    /// Connects and begins with these settings.
    #[must_use]
    pub fn open(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut frames = Self::connect(address);
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        frames.send(&[PREFACE, &frame(kind::SETTINGS, 0, 0, &payload)].concat());
        frames
    }

    /// Sends bytes; the server may be gone before it has read all of them.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).ok();
    }

    /// Sends bytes for at most `limit`; says whether all are gone.
    pub fn try_send(&mut self, bytes: &[u8], limit: Duration) -> Gone {
        self.stream.set_write_timeout(Some(limit)).ok();
        match self.stream.write_all(bytes) {
            Ok(()) => Gone::All,
            Err(fault) if fault.kind() == std::io::ErrorKind::WouldBlock => Gone::Stuck,
            Err(_end) => Gone::Cut,
        }
    }

    /// The next frame; `None` at the end of the connection.
    ///
    /// # Errors
    /// Nothing came for 20 s.
    pub fn read(&mut self) -> Result<Option<Frame>, String> {
        let mut head = [0; 9];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(fault) if fault.kind() == std::io::ErrorKind::WouldBlock => return Err("nothing came".into()),
            Err(_end) => return Ok(None),
        }
        let [high, middle, low, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        if self.stream.read_exact(&mut payload).is_err() {
            return Ok(None);
        }
        Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff, payload }))
    }
}
