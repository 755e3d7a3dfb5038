//! What stands at the beginning of every stream between two nodes, and the codes they end with.
//!
//! Layout of the beginning, numbers in network order:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | [`WIRE_VERSION`] |
//! | 1 | [`StreamKind`] |
//! | 4 | length of the head, at most [`HEAD_BYTES_MAX`] |
//! | length | the head; what it says depends on the kind, and this crate reads only that of `Hello` |
//!
//! The first unidirectional stream in each direction carries [`Hello`] and nothing else. A stream that begins in any
//! other way ends the connection it came on, see [`FrameRefusal`].

use bytes::{BufMut, Bytes, BytesMut};

/// The only version of the layout so far. A peer that speaks another is refused.
pub const WIRE_VERSION: u8 = 1;
/// Longest head, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest message of a unidirectional stream, in bytes, without its head.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Version, kind and length.
pub(crate) const PREFIX_LEN: usize = 6;
/// Longest name of a cell in a [`Hello`], in bytes.
const CELL_BYTES_MAX: usize = 128;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StreamKind {
    /// Who opened the connection and what for. First unidirectional stream in each direction, handled by the links.
    Hello = 0,
    /// One proxied connection or pooled requests. Bidirectional.
    Service = 1,
    /// One conversation between two stores. Bidirectional.
    Sync = 2,
    /// One gossip message. Unidirectional.
    Gossip = 3,
    /// Freshly written changes. Unidirectional.
    Push = 4,
}

impl StreamKind {
    /// The kind with this number on the wire.
    ///
    /// # Errors
    /// [`FrameRefusal::UnknownKind`] for a number nobody has given a meaning.
    pub const fn from_wire(number: u8) -> Result<Self, FrameRefusal> {
        match number {
            0 => Ok(Self::Hello),
            1 => Ok(Self::Service),
            2 => Ok(Self::Sync),
            3 => Ok(Self::Gossip),
            4 => Ok(Self::Push),
            _ => Err(FrameRefusal::UnknownKind),
        }
    }

    /// Whether streams of this kind carry one message in one direction.
    pub const fn is_message(self) -> bool {
        match self {
            Self::Gossip | Self::Push => true,
            Self::Hello | Self::Service | Self::Sync => false,
        }
    }

    /// Whether streams of this kind go both ways.
    pub const fn is_conversation(self) -> bool {
        match self {
            Self::Service | Self::Sync => true,
            Self::Hello | Self::Gossip | Self::Push => false,
        }
    }
}

/// Why the beginning of a stream, or a message, was refused. The connection it came on is closed and this is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum FrameRefusal {
    /// The first byte is not [`WIRE_VERSION`].
    #[error("unknown wire version")]
    UnknownVersion,
    /// The second byte names no [`StreamKind`].
    #[error("unknown stream kind")]
    UnknownKind,
    /// A known kind where it does not belong: a message on a bidirectional stream, a second hello.
    #[error("stream kind does not belong on this stream")]
    MisplacedKind,
    /// The head claims to be longer than the limit.
    #[error("head is longer than the limit")]
    HeadTooLong,
    /// The stream ended before its head did.
    #[error("stream ended inside its head")]
    Truncated,
    /// The head, or a whole message, did not arrive in time.
    #[error("head or message did not arrive in time")]
    TooSlow,
    /// The message is longer than the limit.
    #[error("message is longer than the limit")]
    MessageTooLong,
    /// The hello does not parse.
    #[error("hello does not parse")]
    BadHello,
}

impl FrameRefusal {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 8] = [
        Self::UnknownVersion,
        Self::UnknownKind,
        Self::MisplacedKind,
        Self::HeadTooLong,
        Self::Truncated,
        Self::TooSlow,
        Self::MessageTooLong,
        Self::BadHello,
    ];

    /// The name used as a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownVersion => "unknown_version",
            Self::UnknownKind => "unknown_kind",
            Self::MisplacedKind => "misplaced_kind",
            Self::HeadTooLong => "head_too_long",
            Self::Truncated => "truncated",
            Self::TooSlow => "too_slow",
            Self::MessageTooLong => "message_too_long",
            Self::BadHello => "bad_hello",
        }
    }

    /// The code the connection is closed with.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::UnknownVersion => CloseCode::UnknownVersion,
            Self::UnknownKind => CloseCode::UnknownKind,
            Self::MisplacedKind => CloseCode::MisplacedKind,
            Self::HeadTooLong => CloseCode::HeadTooLong,
            Self::Truncated => CloseCode::Truncated,
            Self::TooSlow => CloseCode::TooSlow,
            Self::MessageTooLong => CloseCode::MessageTooLong,
            Self::BadHello => CloseCode::BadHello,
        }
    }
}

/// Why a whole connection was closed, as its peer reads it. The numbers are part of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum CloseCode {
    /// The node stops.
    Shutdown = 0,
    /// Both nodes dialled and the other connection stays, or a newer one of the same opener took over.
    Duplicate = 1,
    /// The peer has started again and this connection belongs to its former life.
    Superseded = 2,
    /// A certificate of either side has expired.
    Expired = 3,
    /// No stream for a while.
    Idle = 4,
    /// The peer was forgotten, or its operator asked for the close.
    Forgotten = 5,
    /// The node that answered is not the one that was dialled.
    WrongPeer = 6,
    /// The limit of connections is reached.
    TooManyConnections = 7,
    /// The certificate chain does not name a node of this mesh.
    BadIdentity = 8,
    /// No packet of the connection got an answer for a while, and the peer is reached over TCP.
    Silent = 9,
    /// See [`FrameRefusal::UnknownVersion`].
    UnknownVersion = 16,
    /// See [`FrameRefusal::UnknownKind`].
    UnknownKind = 17,
    /// See [`FrameRefusal::MisplacedKind`].
    MisplacedKind = 18,
    /// See [`FrameRefusal::HeadTooLong`].
    HeadTooLong = 19,
    /// See [`FrameRefusal::Truncated`].
    Truncated = 20,
    /// See [`FrameRefusal::TooSlow`].
    TooSlow = 21,
    /// See [`FrameRefusal::MessageTooLong`].
    MessageTooLong = 22,
    /// See [`FrameRefusal::BadHello`].
    BadHello = 23,
    /// What came over TCP are no frames of this version, or break its rules.
    BadFrame = 24,
}

impl CloseCode {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// What the opener wants a connection for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Gossip, probes and store conversations; one per pair of nodes.
    Control,
    /// Streams of services; one per core of the opener that needs it.
    Data,
}

/// The first thing each side says on a connection.
///
/// Head layout: purpose (1 byte), generation (8), length of the cell's name (1), the name in UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for; the answer repeats it.
    pub purpose: Purpose,
    /// How often the speaker's node has been started; a higher one ends the connections of all lower ones.
    pub generation: u64,
    /// The gossip cell the speaker belongs to.
    pub cell: String,
}

impl Hello {
    /// The whole stream that carries this hello.
    pub(crate) fn encode(&self) -> Bytes {
        let cell = truncate_to_char(&self.cell, CELL_BYTES_MAX);
        let mut head = BytesMut::with_capacity(10 + cell.len());
        head.put_u8(match self.purpose {
            Purpose::Control => 0,
            Purpose::Data => 1,
        });
        head.put_u64(self.generation);
        head.put_u8(u8::try_from(cell.len()).unwrap_or(0));
        head.put_slice(cell.as_bytes());
        encode_beginning(StreamKind::Hello, &head)
    }

    /// Reads the head of a hello.
    ///
    /// # Errors
    /// [`FrameRefusal::BadHello`] when it is not exactly the layout above.
    pub(crate) fn decode(head: &[u8]) -> Result<Self, FrameRefusal> {
        let (&purpose, rest) = head.split_first().ok_or(FrameRefusal::BadHello)?;
        let purpose = match purpose {
            0 => Purpose::Control,
            1 => Purpose::Data,
            _ => return Err(FrameRefusal::BadHello),
        };
        let (generation, rest) = rest.split_first_chunk::<8>().ok_or(FrameRefusal::BadHello)?;
        let (&cell_len, cell) = rest.split_first().ok_or(FrameRefusal::BadHello)?;
        if cell.len() != usize::from(cell_len) || cell.len() > CELL_BYTES_MAX {
            return Err(FrameRefusal::BadHello);
        }
        let cell = str::from_utf8(cell).ok().ok_or(FrameRefusal::BadHello)?;
        Ok(Self { purpose, generation: u64::from_be_bytes(*generation), cell: cell.to_owned() })
    }
}

/// The beginning of a stream: prefix and head. The caller has checked the head against [`HEAD_BYTES_MAX`].
pub(crate) fn encode_beginning(kind: StreamKind, head: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_LEN + head.len());
    bytes.put_u8(WIRE_VERSION);
    bytes.put_u8(kind as u8);
    bytes.put_u32(u32::try_from(head.len()).unwrap_or(u32::MAX));
    bytes.put_slice(head);
    bytes.freeze()
}

/// Reads a prefix: the kind of the stream and the length of the head that follows.
///
/// # Errors
/// Version, kind and length are refused in this order; nothing is allocated for a head that is too long.
pub(crate) fn decode_prefix(
    prefix: [u8; PREFIX_LEN],
    head_bytes_max: usize,
) -> Result<(StreamKind, usize), FrameRefusal> {
    let [version, kind, length @ ..] = prefix;
    if version != WIRE_VERSION {
        return Err(FrameRefusal::UnknownVersion);
    }
    let kind = StreamKind::from_wire(kind)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > head_bytes_max {
        return Err(FrameRefusal::HeadTooLong);
    }
    Ok((kind, length))
}

/// The longest prefix of `text` that has at most `bytes_max` bytes and ends between characters.
fn truncate_to_char(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(version: u8, kind: u8, length: u32) -> [u8; PREFIX_LEN] {
        let [a, b, c, d] = length.to_be_bytes();
        [version, kind, a, b, c, d]
    }

    #[test]
    fn the_bytes_of_version_one_stay() {
        assert_eq!(&encode_beginning(StreamKind::Sync, b"ab")[..], [1, 2, 0, 0, 0, 2, b'a', b'b']);
        let hello = Hello { purpose: Purpose::Data, generation: 258, cell: "eu/a".into() };
        assert_eq!(&hello.encode()[..], [1, 0, 0, 0, 0, 14, 1, 0, 0, 0, 0, 0, 0, 1, 2, 4, b'e', b'u', b'/', b'a']);
    }

    #[test]
    fn prefixes_are_judged_by_version_then_kind_then_length() {
        for (input, expected) in [
            (prefix(1, 1, 0), Ok((StreamKind::Service, 0))),
            (prefix(1, 4, 100), Ok((StreamKind::Push, 100))),
            (prefix(1, 3, 101), Err(FrameRefusal::HeadTooLong)),
            (prefix(1, 3, u32::MAX), Err(FrameRefusal::HeadTooLong)),
            (prefix(1, 5, u32::MAX), Err(FrameRefusal::UnknownKind)),
            (prefix(0, 9, 0), Err(FrameRefusal::UnknownVersion)),
            (prefix(2, 1, 0), Err(FrameRefusal::UnknownVersion)),
        ] {
            assert_eq!(decode_prefix(input, 100), expected, "{input:?}");
        }
    }

    #[test]
    fn a_hello_with_any_byte_too_few_or_too_many_is_refused() {
        let whole = Hello { purpose: Purpose::Control, generation: 3, cell: "eu".into() }.encode().slice(PREFIX_LEN..);
        assert!(Hello::decode(&whole).is_ok());
        for len in 0..whole.len() {
            assert_eq!(Hello::decode(&whole[..len]), Err(FrameRefusal::BadHello), "{len} bytes");
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(Hello::decode(&longer), Err(FrameRefusal::BadHello));
    }

    #[test]
    fn close_codes_of_frames_are_all_different() {
        let mut codes: Vec<u32> = FrameRefusal::ALL.iter().map(|refusal| refusal.close_code().code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), FrameRefusal::ALL.len());
    }

    proptest! {
        #[test]
        fn hellos_round_trip(control: bool, generation: u64, cell in ".{0,40}") {
            let purpose = if control { Purpose::Control } else { Purpose::Data };
            let cell = truncate_to_char(&cell, CELL_BYTES_MAX).to_owned();
            let hello = Hello { purpose, generation, cell };
            prop_assert_eq!(Hello::decode(&hello.encode()[PREFIX_LEN..]), Ok(hello));
        }

        #[test]
        fn no_bytes_make_a_hello_panic(bytes: Vec<u8>) {
            let decoded = Hello::decode(&bytes);
            prop_assert!(decoded.is_ok() || decoded == Err(FrameRefusal::BadHello));
        }
    }
}
