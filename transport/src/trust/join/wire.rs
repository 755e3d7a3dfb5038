//! The two messages of joining, laid out by hand: each starts with a version byte, every length is checked before its
//! bytes are taken, and nothing may follow the last field.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::super::token::{SECRET_LEN, TokenId};
use crate::id::NodeId;

/// Largest message in bytes, either way.
pub(super) const FRAME_LEN_MAX: usize = 4096;

const VERSION: u8 = 1;
const ADMITTED: u8 = 0;
/// Most peers named in an answer.
const PEERS_MAX: usize = 32;

/// Why a newcomer was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// The question was not in a form this version knows.
    #[error("the question was not understood; versions may differ")]
    Malformed,
    /// No such token was made here, or it was deleted.
    #[error("this token is not known here: it was made by another node, or deleted")]
    UnknownToken,
    /// The id is right, the secret is not.
    #[error("the secret of this token is wrong")]
    WrongSecret,
    /// The life of the token is over.
    #[error("this token has expired; make a new one with `marram token create`")]
    Expired,
    /// The token was redeemed as often as it may be.
    #[error("this token is used up; make a new one with `marram token create`")]
    Used,
    /// Another node of the mesh has this name.
    #[error("another node already has this name; choose another one")]
    NameTaken,
    /// The name does not fit the rules for names.
    #[error("this name does not fit: 1 to 63 of a-z, 0-9, `.`, `_`, `-`, beginning and ending with a letter or digit")]
    NameUnfit,
    /// The newcomer did not prove that it holds its key in this session.
    #[error("the proof that the newcomer holds its key does not fit this session")]
    Proof,
    /// Too many wrong tries came from this address.
    #[error("too many wrong tries from this address; wait a minute")]
    TooManyTries,
    /// The node could not read or write its own files; nothing is said about the token. Its log tells more.
    #[error("the node that redeems this token has trouble with its own files; see its log")]
    Unavailable,
}

impl JoinRefusal {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::UnknownToken,
        Self::WrongSecret,
        Self::Expired,
        Self::Used,
        Self::NameTaken,
        Self::NameUnfit,
        Self::Proof,
        Self::TooManyTries,
        Self::Unavailable,
    ];

    /// The word for metrics and logs.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownToken => "unknown_token",
            Self::WrongSecret => "wrong_secret",
            Self::Expired => "expired",
            Self::Used => "used",
            Self::NameTaken => "name_taken",
            Self::NameUnfit => "name_unfit",
            Self::Proof => "proof",
            Self::TooManyTries => "too_many_tries",
            Self::Unavailable => "unavailable",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Malformed => 1,
            Self::UnknownToken => 2,
            Self::WrongSecret => 3,
            Self::Expired => 4,
            Self::Used => 5,
            Self::NameTaken => 6,
            Self::NameUnfit => 7,
            Self::Proof => 8,
            Self::TooManyTries => 9,
            Self::Unavailable => 10,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// What a newcomer asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) id: TokenId,
    pub(super) secret: Zeroizing<[u8; SECRET_LEN]>,
    pub(super) public_key: [u8; 32],
    pub(super) proof: [u8; 64],
    pub(super) name: String,
}

impl Question {
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(vec![VERSION]);
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&*self.secret);
        bytes.extend_from_slice(&self.public_key);
        bytes.extend_from_slice(&self.proof);
        put_short(&mut bytes, self.name.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes)?;
        let question = Self {
            id: TokenId(reader.array()?),
            secret: Zeroizing::new(reader.array()?),
            public_key: reader.array()?,
            proof: reader.array()?,
            name: reader.short_text()?,
        };
        reader.end(question)
    }
}

/// What the node answers.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Admitted(Admission),
    Refused(JoinRefusal),
}

/// What a newcomer becomes a member with.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Admission {
    pub(super) node: Vec<u8>,
    pub(super) admission: Vec<u8>,
    /// PKCS#8, only for the role `admit`.
    pub(super) admission_key: Option<Zeroizing<Vec<u8>>>,
    pub(super) peers: Vec<(NodeId, String)>,
}

impl Answer {
    /// As many peers as fit are named.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(vec![VERSION]);
        let admission = match self {
            Self::Refused(refusal) => {
                bytes.push(refusal.code());
                return bytes;
            }
            Self::Admitted(admission) => admission,
        };
        bytes.push(ADMITTED);
        put_long(&mut bytes, &admission.node);
        put_long(&mut bytes, &admission.admission);
        put_long(&mut bytes, admission.admission_key.as_ref().map_or(&[], |key| key.as_slice()));
        for (node, address) in admission.peers.iter().take(PEERS_MAX) {
            if address.len() > 255 || bytes.len() + 17 + address.len() > FRAME_LEN_MAX {
                continue;
            }
            bytes.extend_from_slice(node.as_bytes());
            put_short(&mut bytes, address.as_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes)?;
        let [status] = reader.array()?;
        if status != ADMITTED {
            return reader.end(Self::Refused(JoinRefusal::from_code(status)?));
        }
        let node = reader.long()?.to_vec();
        let admission = reader.long()?.to_vec();
        let key = reader.long()?;
        let admission_key = (!key.is_empty()).then(|| Zeroizing::new(key.to_vec()));
        let mut peers = Vec::new();
        while !reader.rest.is_empty() {
            if peers.len() == PEERS_MAX {
                return None;
            }
            peers.push((NodeId::from_bytes(reader.array()?), reader.short_text()?));
        }
        Some(Self::Admitted(Admission { node, admission, admission_key, peers }))
    }
}

/// Sends one message behind its length (4 bytes, big endian).
pub(super) async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= FRAME_LEN_MAX);
    let len = len.ok_or(io::ErrorKind::InvalidInput)?;
    let framed = Zeroizing::new([&len.to_be_bytes(), bytes].concat());
    stream.write_all(&framed).await?;
    stream.flush().await
}

/// Receives one message; `InvalidData` when it announces more than may be.
pub(super) async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).await?;
    let len = usize::try_from(u32::from_be_bytes(len)).ok().filter(|len| *len <= FRAME_LEN_MAX);
    let mut bytes = Zeroizing::new(vec![0; len.ok_or(io::ErrorKind::InvalidData)?]);
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Fields here are bounded by what fits a frame; what does not would be cut and then refused by the reader.
fn put_short(bytes: &mut Vec<u8>, field: &[u8]) {
    let len = u8::try_from(field.len()).unwrap_or(u8::MAX);
    bytes.push(len);
    bytes.extend(field.iter().take(len.into()));
}

fn put_long(bytes: &mut Vec<u8>, field: &[u8]) {
    let len = u16::try_from(field.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend(field.iter().take(len.into()));
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `None` for another version.
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Self { rest: bytes };
        let [version] = reader.array()?;
        (version == VERSION).then_some(reader)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn short_text(&mut self) -> Option<String> {
        let [len] = self.array()?;
        let text = std::str::from_utf8(self.take(len.into())?).ok()?;
        Some(text.to_owned())
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let len = u16::from_be_bytes(self.array()?);
        self.take(len.into())
    }

    fn end<T>(self, value: T) -> Option<T> {
        self.rest.is_empty().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn question() -> Question {
        Question {
            id: TokenId([1; 10]),
            secret: Zeroizing::new([2; 16]),
            public_key: [3; 32],
            proof: [4; 64],
            name: "edge-7".to_owned(),
        }
    }

    fn admission() -> Admission {
        Admission {
            node: vec![5; 400],
            admission: vec![6; 350],
            admission_key: Some(Zeroizing::new(vec![7; 85])),
            peers: vec![(NodeId::from_bytes([8; 16]), "10.0.0.1:7440".to_owned())],
        }
    }

    #[test]
    fn messages_round_trip_and_nothing_may_be_missing_or_follow() {
        let bytes = question().encode();
        assert!(Question::decode(&bytes).unwrap() == question());
        for len in 0..bytes.len() {
            assert!(Question::decode(&bytes[..len]).is_none(), "{len}");
        }
        assert!(Question::decode(&[bytes.as_slice(), &[0]].concat()).is_none());

        let bytes = Answer::Admitted(admission()).encode();
        assert!(Answer::decode(&bytes).unwrap() == Answer::Admitted(admission()));
        assert!(Answer::decode(&bytes[..bytes.len() - 1]).is_none());
        for refusal in JoinRefusal::ALL {
            let bytes = Answer::Refused(refusal).encode();
            assert!(Answer::decode(&bytes).unwrap() == Answer::Refused(refusal));
        }
    }

    #[test]
    fn other_versions_and_codes_are_not_guessed_at() {
        let mut bytes = question().encode();
        bytes[0] = 2;
        assert!(Question::decode(&bytes).is_none());
        assert!(Answer::decode(&[VERSION, 200]).is_none());
    }

    #[test]
    fn an_answer_fits_its_frame_however_many_peers_are_known() {
        let peer = (NodeId::from_bytes([8; 16]), "h".repeat(240));
        let answer = Answer::Admitted(Admission { peers: vec![peer; 500], ..admission() });
        let bytes = answer.encode();
        assert!(bytes.len() <= FRAME_LEN_MAX, "{}", bytes.len());
        let Some(Answer::Admitted(read)) = Answer::decode(&bytes) else { panic!("unreadable") };
        assert!(read.peers.len() > 8, "{}", read.peers.len());
    }

    #[tokio::test]
    async fn an_announced_giant_is_refused_before_it_is_allocated() {
        let mut stream: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(receive(&mut stream).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ignored = Question::decode(&bytes);
            let _ignored = Answer::decode(&bytes);
        }
    }
}
