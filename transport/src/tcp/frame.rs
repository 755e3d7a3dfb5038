//! Frames inside a TLS connection: which stream, what of it, and the bytes.
//!
//! Layout, numbers in network order:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | [`Kind`] |
//! | 7 | the stream, or 0 where the kind speaks of the whole connection; the code of a `Close` |
//! | 4 | a number whose meaning depends on the kind: length of what follows, code, or credit |
//! | length | what follows a `Data`, `Datagram` or `Close` |

use bytes::BufMut;

/// Kind, stream and number.
pub(crate) const HEADER_LEN: usize = 12;
/// Longest payload of a `Data` frame: with its header it fills one TLS record.
pub(crate) const DATA_BYTES_MAX: usize = 16 * 1024 - HEADER_LEN;
/// Longest datagram.
pub(crate) const DATAGRAM_BYTES_MAX: usize = DATA_BYTES_MAX;
/// Longest reason of a `Close`.
pub(crate) const REASON_BYTES_MAX: usize = 256;
/// Streams have 56 bits.
const ID_MAX: u64 = (1 << 56) - 1;

/// What a frame does. The numbers are part of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A stream begins; its number is the next of its sort.
    Open = 1,
    /// Bytes of a stream.
    Data = 2,
    /// The last byte of a stream was sent.
    Fin = 3,
    /// The sender breaks a stream off; the number is its code.
    Reset = 4,
    /// The receiver wants no more of a stream; the number is its code.
    Stop = 5,
    /// So many more bytes may be sent on a stream.
    Credit = 6,
    /// Everything up to the `Fin` of a stream has arrived.
    Ack = 7,
    /// So many more bytes may be sent on the connection.
    ConnectionCredit = 8,
    /// So many more streams may be opened; the stream is 0 for those that go both ways, 1 for the others.
    StreamCredit = 9,
    /// A packet of its own.
    Datagram = 10,
    /// To be answered with a `Pong` of the same number.
    Ping = 11,
    /// The answer.
    Pong = 12,
    /// The connection ends; in place of the stream stands the code, and the reason follows.
    Close = 13,
}

impl Kind {
    const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Open,
            2 => Self::Data,
            3 => Self::Fin,
            4 => Self::Reset,
            5 => Self::Stop,
            6 => Self::Credit,
            7 => Self::Ack,
            8 => Self::ConnectionCredit,
            9 => Self::StreamCredit,
            10 => Self::Datagram,
            11 => Self::Ping,
            12 => Self::Pong,
            13 => Self::Close,
            _ => return None,
        })
    }

    /// Longest payload of a frame of this kind, if it has one; its number is then the length.
    const fn payload_max(self) -> Option<usize> {
        match self {
            Self::Data => Some(DATA_BYTES_MAX),
            Self::Datagram => Some(DATAGRAM_BYTES_MAX),
            Self::Close => Some(REASON_BYTES_MAX),
            _ => None,
        }
    }
}

/// What a peer did that no peer of this version does. Each closes the connection and is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TcpFault {
    /// The first byte of a frame names no kind.
    #[error("unknown kind of frame")]
    UnknownKind,
    /// A frame claims to be longer than its kind may be, or is empty where that makes no sense.
    #[error("length of a frame is out of bounds")]
    BadLength,
    /// A frame speaks of a stream that was never opened, cannot be opened like this, or does not go that way.
    #[error("frame for a stream that is not there")]
    UnknownStream,
    /// More streams were opened than were allowed.
    #[error("more streams than allowed")]
    TooManyStreams,
    /// More bytes were sent than were allowed.
    #[error("more bytes than allowed")]
    OverCredit,
    /// Bytes or an end came after the end of a stream.
    #[error("frame after the end of its stream")]
    AfterEnd,
    /// Credit that adds up to more than a peer can mean.
    #[error("credit out of bounds")]
    BadCredit,
}

impl TcpFault {
    /// Every fault, in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::UnknownKind,
        Self::BadLength,
        Self::UnknownStream,
        Self::TooManyStreams,
        Self::OverCredit,
        Self::AfterEnd,
        Self::BadCredit,
    ];

    /// The name used as a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownKind => "unknown_kind",
            Self::BadLength => "bad_length",
            Self::UnknownStream => "unknown_stream",
            Self::TooManyStreams => "too_many_streams",
            Self::OverCredit => "over_credit",
            Self::AfterEnd => "after_end",
            Self::BadCredit => "bad_credit",
        }
    }
}

/// The beginning of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) value: u32,
}

impl Header {
    /// Appends the twelve bytes.
    pub(crate) fn put(self, out: &mut Vec<u8>) {
        out.put_u64((u64::from(self.kind as u8) << 56) | (self.id & ID_MAX));
        out.put_u32(self.value);
    }

    fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, TcpFault> {
        let [kind, a, b, c, d, e, f, g, value @ ..] = bytes;
        let kind = Kind::from_wire(kind).ok_or(TcpFault::UnknownKind)?;
        let id = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
        Ok(Self { kind, id, value: u32::from_be_bytes(value) })
    }
}

/// What the reader finds next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// A frame begins. Its payload, if its kind has one, follows in pieces.
    Header(Header),
    /// A piece of the payload of the frame that began last.
    Payload { bytes: &'a [u8], is_last: bool },
}

/// Cuts the bytes of a connection into frames, however they arrive. It keeps at most one header; payload is handed on
/// as it comes, so nothing a peer claims is allocated.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    header: [u8; HEADER_LEN],
    header_len: usize,
    payload_left: Option<usize>,
}

impl FrameReader {
    /// The next item in `bytes`, which is shortened by what was taken; `None` when all of it was taken.
    ///
    /// # Errors
    /// A frame that no peer of this version sends; the connection is of no use after that.
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Item<'a>>, TcpFault> {
        if let Some(left) = self.payload_left {
            if bytes.is_empty() && left > 0 {
                return Ok(None);
            }
            let (piece, rest) = bytes.split_at(left.min(bytes.len()));
            *bytes = rest;
            let left = left - piece.len();
            self.payload_left = (left > 0).then_some(left);
            return Ok(Some(Item::Payload { bytes: piece, is_last: left == 0 }));
        }
        let missing = self.header.get_mut(self.header_len..).unwrap_or_default();
        let (piece, rest) = bytes.split_at(missing.len().min(bytes.len()));
        *bytes = rest;
        for (to, from) in missing.iter_mut().zip(piece) {
            *to = *from;
        }
        self.header_len += piece.len();
        // An unknown kind is refused at its first byte, before the rest is waited for.
        if self.header_len > 0 && Kind::from_wire(self.header[0]).is_none() {
            return Err(TcpFault::UnknownKind);
        }
        if self.header_len < HEADER_LEN {
            return Ok(None);
        }
        self.header_len = 0;
        let header = Header::decode(self.header)?;
        if let Some(max) = header.kind.payload_max() {
            let length = usize::try_from(header.value).unwrap_or(usize::MAX);
            if length > max || (length == 0 && header.kind == Kind::Data) {
                return Err(TcpFault::BadLength);
            }
            self.payload_left = Some(length);
        }
        Ok(Some(Item::Header(header)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: Kind, id: u64, value: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Header { kind, id, value }.put(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Everything in `bytes`, when they come in pieces of `step`.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<(Header, Vec<u8>)>, TcpFault> {
        let (mut reader, mut frames) = (FrameReader::default(), Vec::<(Header, Vec<u8>)>::new());
        for mut piece in bytes.chunks(step) {
            while let Some(item) = reader.next(&mut piece)? {
                match item {
                    Item::Header(header) => frames.push((header, Vec::new())),
                    Item::Payload { bytes, .. } => frames.last_mut().expect("a header first").1.extend(bytes),
                }
            }
        }
        Ok(frames)
    }

    #[test]
    fn the_bytes_of_version_one_stay() {
        assert_eq!(frame(Kind::Data, 5, 2, b"ab"), [2, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, b'a', b'b']);
        assert_eq!(frame(Kind::Reset, 0x0102, 258, b""), [4, 0, 0, 0, 0, 0, 1, 2, 0, 0, 1, 2]);
    }

    #[test]
    fn frames_come_out_the_same_in_whatever_pieces_they_arrive() {
        let bytes = [
            frame(Kind::Open, 4, 0, b""),
            frame(Kind::Data, 4, 5, b"hello"),
            frame(Kind::Datagram, 0, 0, b""),
            frame(Kind::Close, 7, 3, b"bye"),
        ]
        .concat();
        let whole = read(&bytes, bytes.len()).expect("sound frames");
        assert_eq!(whole.len(), 4);
        assert_eq!((whole[1].1.as_slice(), whole[3].1.as_slice()), (&b"hello"[..], &b"bye"[..]));
        for step in 1..bytes.len() {
            assert_eq!(read(&bytes, step).as_ref(), Ok(&whole), "in pieces of {step}");
        }
    }

    #[test]
    fn what_no_peer_sends_is_refused_at_its_header() {
        let too_long = u32::try_from(DATA_BYTES_MAX + 1).expect("small");
        for (bytes, expected) in [
            (vec![0], TcpFault::UnknownKind),
            (vec![14], TcpFault::UnknownKind),
            (b"GET / HTTP/1.1\r\n".to_vec(), TcpFault::UnknownKind),
            (frame(Kind::Data, 4, too_long, b""), TcpFault::BadLength),
            (frame(Kind::Data, 4, u32::MAX, b""), TcpFault::BadLength),
            (frame(Kind::Data, 4, 0, b""), TcpFault::BadLength),
            (frame(Kind::Datagram, 0, too_long, b""), TcpFault::BadLength),
            (frame(Kind::Close, 0, 257, b""), TcpFault::BadLength),
        ] {
            assert_eq!(read(&bytes, 5), Err(expected), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, step in 1_usize..64) {
            read(&bytes, step).ok();
        }
    }
}
