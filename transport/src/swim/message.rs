//! The bytes of a packet.
//!
//! ```text
//! version 1 | kind 1 | cell 8 | sender 16 | sender's incarnation 4
//! | status length 1 | status (version 1 | load 2 | coordinate 44)
//! | body: probe, ack: sequence 4 | relayed, nack: sequence 4, target 16 | ask: sequence 4, target 16, patience ms 2
//! | updates 1 | each: liveness 1, node 16, incarnation 4, told by 16
//! ```
//! Numbers are big-endian. A status of an unknown version is skipped by its length, so coordinates can change without
//! a new packet version. Nothing may follow the updates.

use std::time::Duration;

use bytes::Bytes;

use super::config::CellId;
use super::member::Liveness;
use crate::id::NodeId;
use crate::vivaldi::Coord;

/// A packet never grows past this, so that it fits a QUIC datagram on any path.
pub(super) const PACKET_MAX: usize = 1178;
/// Updates in one packet.
pub(super) const UPDATES_MAX: usize = 20;

/// One packet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Packet {
    pub(super) cell: CellId,
    pub(super) from: NodeId,
    pub(super) incarnation: u32,
    pub(super) status: Option<Status>,
    pub(super) body: Body,
    pub(super) updates: Vec<Update>,
}

/// How the sender is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Status {
    pub(super) load: u16,
    pub(super) coord: Option<Coord>,
}

/// What the packet wants or answers. `sequence` is the asker's own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// Answer with an ack.
    Probe { sequence: u32 },
    /// The answer.
    Ack { sequence: u32 },
    /// Probe `target` for me and tell me within `patience`.
    Ask { sequence: u32, target: NodeId, patience: Duration },
    /// The target answered me.
    Relayed { sequence: u32, target: NodeId },
    /// The target has not answered me so far.
    Nack { sequence: u32, target: NodeId },
    /// Nothing but updates.
    News,
}

/// What somebody says of a member. `by` is the accuser of a suspect, who found a dead one, else the member itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) liveness: Liveness,
    pub(super) node: NodeId,
    pub(super) incarnation: u32,
    pub(super) by: NodeId,
}

/// Why bytes are not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// A version this node does not speak.
    Version,
    /// Too short, too long, or with a value outside its range.
    Malformed,
}

impl Packet {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(PACKET_MAX);
        out.extend_from_slice(&[VERSION, self.body.kind()]);
        out.extend_from_slice(self.cell.as_bytes());
        out.extend_from_slice(self.from.as_bytes());
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        encode_status(self.status.as_ref(), &mut out);
        self.body.encode(&mut out);
        let updates = self.updates.get(..UPDATES_MAX).unwrap_or(&self.updates);
        out.push(u8::try_from(updates.len()).unwrap_or(0));
        for update in updates {
            update.encode(&mut out);
        }
        Bytes::from(out)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.len() > PACKET_MAX {
            return Err(Unreadable::Malformed);
        }
        let mut reader = Reader(bytes);
        if reader.byte().ok_or(Unreadable::Malformed)? != VERSION {
            return Err(Unreadable::Version);
        }
        let packet = Self::read(&mut reader).ok_or(Unreadable::Malformed)?;
        if reader.0.is_empty() { Ok(packet) } else { Err(Unreadable::Malformed) }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let kind = reader.byte()?;
        let cell = CellId::from_bytes(reader.array()?);
        let from = reader.node()?;
        let incarnation = reader.number()?;
        let status = read_status(reader)?;
        let body = Body::read(kind, reader)?;
        let count = usize::from(reader.byte()?);
        if count > UPDATES_MAX {
            return None;
        }
        let updates = (0..count).map(|_| Update::read(reader)).collect::<Option<_>>()?;
        Some(Self { cell, from, incarnation, status, body, updates })
    }
}

impl Body {
    const fn kind(&self) -> u8 {
        match self {
            Self::Probe { .. } => 0,
            Self::Ack { .. } => 1,
            Self::Ask { .. } => 2,
            Self::Relayed { .. } => 3,
            Self::Nack { .. } => 4,
            Self::News => 5,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Probe { sequence } | Self::Ack { sequence } => out.extend_from_slice(&sequence.to_be_bytes()),
            Self::Ask { sequence, target, patience } => {
                let patience = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
                out.extend_from_slice(&sequence.to_be_bytes());
                out.extend_from_slice(target.as_bytes());
                out.extend_from_slice(&patience.to_be_bytes());
            }
            Self::Relayed { sequence, target } | Self::Nack { sequence, target } => {
                out.extend_from_slice(&sequence.to_be_bytes());
                out.extend_from_slice(target.as_bytes());
            }
            Self::News => {}
        }
    }

    fn read(kind: u8, reader: &mut Reader<'_>) -> Option<Self> {
        Some(match kind {
            0 => Self::Probe { sequence: reader.number()? },
            1 => Self::Ack { sequence: reader.number()? },
            2 => Self::Ask {
                sequence: reader.number()?,
                target: reader.node()?,
                patience: Duration::from_millis(u64::from(u16::from_be_bytes(reader.array()?))),
            },
            3 => Self::Relayed { sequence: reader.number()?, target: reader.node()? },
            4 => Self::Nack { sequence: reader.number()?, target: reader.node()? },
            5 => Self::News,
            _ => return None,
        })
    }
}

impl Update {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.liveness {
            Liveness::Joining | Liveness::Alive => 0,
            Liveness::Suspect => 1,
            Liveness::Dead => 2,
            Liveness::Left => 3,
        });
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        out.extend_from_slice(self.by.as_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let liveness = match reader.byte()? {
            0 => Liveness::Alive,
            1 => Liveness::Suspect,
            2 => Liveness::Dead,
            3 => Liveness::Left,
            _ => return None,
        };
        Some(Self { liveness, node: reader.node()?, incarnation: reader.number()?, by: reader.node()? })
    }
}

fn encode_status(status: Option<&Status>, out: &mut Vec<u8>) {
    let Some(status) = status else {
        out.push(0);
        return;
    };
    let coord = status.coord.unwrap_or_default();
    out.extend_from_slice(&[STATUS_LEN, STATUS_VERSION]);
    out.extend_from_slice(&status.load.to_be_bytes());
    out.extend_from_slice(&coord.to_bytes());
}

/// `None`: malformed. `Some(None)`: absent, or of a version not known here.
fn read_status(reader: &mut Reader<'_>) -> Option<Option<Status>> {
    let length = reader.byte()?;
    let mut status = Reader(reader.take(usize::from(length))?);
    if length == 0 || status.byte()? != STATUS_VERSION {
        return Some(None);
    }
    let load = u16::from_be_bytes(status.array()?);
    let coord = Coord::from_bytes(&status.array()?);
    Some(Some(Status { load, coord }))
}

/// Reads from the front; `None` when the bytes run out.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn node(&mut self) -> Option<NodeId> {
        self.array().map(NodeId::from_bytes)
    }
}

const VERSION: u8 = 1;
const STATUS_VERSION: u8 = 1;
/// Version, load, coordinate.
const STATUS_LEN: u8 = 47;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 16])
    }

    fn full() -> Packet {
        let update = Update { liveness: Liveness::Dead, node: node(4), incarnation: 9, by: node(5) };
        Packet {
            cell: CellId::from_name("shop/eu-1"),
            from: node(1),
            incarnation: 3,
            status: Some(Status { load: 640, coord: Some(Coord::origin()) }),
            body: Body::Ask { sequence: 77, target: node(2), patience: Duration::from_millis(720) },
            updates: vec![update; UPDATES_MAX],
        }
    }

    #[test]
    fn every_kind_round_trips() {
        let sequence = 7;
        let target = node(9);
        for body in [
            Body::Probe { sequence },
            Body::Ack { sequence },
            Body::Ask { sequence, target, patience: Duration::from_millis(300) },
            Body::Relayed { sequence, target },
            Body::Nack { sequence, target },
            Body::News,
        ] {
            for liveness in [Liveness::Alive, Liveness::Suspect, Liveness::Dead, Liveness::Left] {
                let updates = vec![Update { liveness, node: node(4), incarnation: 9, by: node(5) }];
                let packet = Packet { body, updates, ..full() };
                assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            }
        }
    }

    #[test]
    fn the_fullest_packet_fits() {
        assert!(full().encode().len() <= PACKET_MAX);
    }

    #[test]
    fn bytes_of_version_1_still_decode() {
        let golden = include_bytes!("../../testdata/swim-packet-v1.bin");
        assert_eq!(Packet::decode(golden), Ok(full()));
        assert_eq!(full().encode().as_ref(), golden);
    }

    #[test]
    fn a_status_of_an_unknown_version_is_skipped() {
        let mut bytes = full().encode().to_vec();
        bytes[31] = 9;
        assert_eq!(Packet::decode(&bytes), Ok(Packet { status: None, ..full() }));
    }

    #[test]
    fn a_coordinate_that_cannot_be_true_is_no_coordinate() {
        let mut bytes = full().encode().to_vec();
        bytes[34..38].copy_from_slice(&f32::NAN.to_be_bytes());
        assert_eq!(Packet::decode(&bytes).unwrap().status, Some(Status { load: 640, coord: None }));
    }

    #[test]
    fn every_cut_and_every_trailing_byte_is_malformed() {
        let bytes = full().encode();
        for length in 1..bytes.len() {
            assert_eq!(Packet::decode(&bytes[..length]), Err(Unreadable::Malformed), "{length}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Packet::decode(&longer), Err(Unreadable::Malformed));
        assert_eq!(Packet::decode(&[2, 0]), Err(Unreadable::Version));
        assert_eq!(Packet::decode(&[0; PACKET_MAX + 1]), Err(Unreadable::Malformed));
    }

    proptest! {
        #[test]
        fn junk_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300)) {
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert!(packet.updates.len() <= UPDATES_MAX);
            }
        }

        #[test]
        fn one_changed_byte_never_panics(at in 0_usize..800, to in any::<u8>()) {
            let mut bytes = full().encode().to_vec();
            bytes[at] = to;
            drop(Packet::decode(&bytes));
        }
    }
}
