//! Datagrams of flows between two proxies.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | [`Kind`] |
//! | 8 | the flow's number, given by the node of the instance, in network order |
//! | rest | the payload as it was sent; nothing for the last two kinds |
//!
//! The first byte is none that membership packets begin with, which come as datagrams too.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes in front of the payload.
pub(super) const HEAD_BYTES: usize = 9;

/// Where a datagram goes, or what became of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// From the client's node to that of the instance.
    ToInstance = 0x40,
    /// Back.
    ToClient = 0x41,
    /// The instance's node knows no such flow: it was idle, one too many, or of a former life.
    Unknown = 0x42,
    /// The instance takes no datagrams.
    Refused = 0x43,
}

/// Whether a datagram from a peer belongs to a flow, by its first byte.
pub(crate) fn is_of_flow(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| (0x40..0x50).contains(first))
}

/// A datagram for the peer.
pub(super) fn encode(kind: Kind, flow: u64, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    bytes.put_u8(kind as u8);
    bytes.put_u64(flow);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Kind, flow and payload; `None` for what is none of ours.
pub(super) fn decode(bytes: &[u8]) -> Option<(Kind, u64, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let kinds = [Kind::ToInstance, Kind::ToClient, Kind::Unknown, Kind::Refused];
    let kind = kinds.into_iter().find(|known| *known as u8 == *kind)?;
    let (flow, payload) = rest.split_first_chunk::<8>()?;
    Some((kind, u64::from_be_bytes(*flow), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_round_trip_and_what_is_short_or_unknown_is_none() {
        for kind in [Kind::ToInstance, Kind::ToClient, Kind::Unknown, Kind::Refused] {
            let bytes = encode(kind, 0x0102, b"payload");
            assert!(is_of_flow(&bytes));
            assert_eq!(decode(&bytes), Some((kind, 0x0102, &b"payload"[..])));
            assert_eq!(decode(&bytes[..HEAD_BYTES]), Some((kind, 0x0102, &b""[..])));
            assert_eq!(decode(&bytes[..HEAD_BYTES - 1]), None);
        }
        assert_eq!(&encode(Kind::ToClient, 0x0102, b"x")[..], [0x41, 0, 0, 0, 0, 0, 0, 1, 2, b'x']);
        assert_eq!(decode(&[0x44, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert!(!is_of_flow(&[1]) && !is_of_flow(&[]), "membership packets begin with their version");
    }
}
