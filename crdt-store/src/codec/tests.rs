use super::*;

use crate::{
    id::{Incarnation, StoreId},
    sign::OriginRecord,
    wire::{Hello, Push},
};

fn record() -> OriginRecord {
    OriginRecord {
        incarnation: Incarnation::from_bytes([1; 16]),
        public_key: [2; 32],
        chain: vec![vec![3; 40], vec![4; 50]],
        signature: [5; 64],
    }
}

fn push() -> Push {
    let op = crate::SignedOp { bytes: Bytes::from_static(b"op bytes"), signature: [6; 64] };
    Push { origins: vec![record()], ops: vec![op.clone(), op] }
}

#[test]
fn frames_read_back() {
    let bytes = encode(Kind::Push, &push()).expect("encodes");
    assert_eq!(decode::<Push>(Kind::Push, &bytes).expect("decodes"), push());
    assert_eq!(frame_length(&bytes).expect("length"), Some(bytes.len()));
    let stored = encode_stored(Kind::Origin, &record()).expect("encodes");
    assert_eq!(decode_stored::<OriginRecord>(Kind::Origin, &stored).expect("decodes"), record());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = encode(Kind::Push, &push()).expect("encodes");
    let stored = encode_stored(Kind::Push, &push()).expect("encodes");
    for length in 0..bytes.len() {
        assert!(decode::<Push>(Kind::Push, &bytes[..length]).is_err(), "cut at {length}");
    }
    for length in 0..stored.len() {
        assert!(decode_stored::<Push>(Kind::Push, &stored[..length]).is_err(), "stored, cut at {length}");
    }
}

#[test]
fn every_flipped_bit_of_a_stored_record_is_noticed() {
    let stored = encode_stored(Kind::Origin, &record()).expect("encodes");
    for at in 0..stored.len() {
        for bit in 0..8 {
            let mut damaged = stored.clone();
            damaged[at] ^= 1 << bit;
            assert!(decode_stored::<OriginRecord>(Kind::Origin, &damaged).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn trailing_bytes_are_refused_inside_and_outside_the_payload() {
    let mut bytes = encode(Kind::Push, &push()).expect("encodes").to_vec();
    bytes.push(0);
    assert!(matches!(decode::<Push>(Kind::Push, &bytes), Err(CodecError::Trailing)));
    let length = u32::try_from(bytes.len() - FRAME_HEAD_BYTES).expect("small");
    bytes[2..6].copy_from_slice(&length.to_be_bytes());
    assert!(matches!(decode::<Push>(Kind::Push, &bytes), Err(CodecError::Trailing)));
}

#[test]
fn other_versions_and_kinds_are_refused_by_name() {
    let bytes = encode(Kind::Push, &push()).expect("encodes").to_vec();
    let mut newer = bytes.clone();
    newer[0] = 2;
    assert!(matches!(decode::<Push>(Kind::Push, &newer), Err(CodecError::Version { found: 2 })));
    assert!(matches!(frame_length(&newer), Err(CodecError::Version { found: 2 })));
    assert!(matches!(decode::<Push>(Kind::Hello, &bytes), Err(CodecError::Kind { found: 5 })));
}

#[test]
fn oversized_lengths_are_refused_before_anything_is_read() {
    let mut head = vec![WIRE_VERSION, Kind::Push as u8];
    head.extend_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(frame_length(&head), Err(CodecError::TooLong { .. })));
    assert!(matches!(decode::<Push>(Kind::Push, &head), Err(CodecError::Truncated)));
    assert!(frame_length(&head[..5]).expect("too short to say").is_none());
}

#[test]
fn oversized_counts_are_refused_before_anything_is_allocated() {
    // A bincode length of 2^32 items or bytes: marker 253, then eight bytes.
    let huge: Vec<u8> = [&[253][..], &(1_u64 << 32).to_be_bytes()].concat();
    // As count of origins, and, after none of those, as count of ops.
    for payload in [huge.clone(), [&[0][..], &huge].concat()] {
        let mut frame = vec![WIRE_VERSION, Kind::Push as u8];
        frame.extend_from_slice(&u32::try_from(payload.len()).expect("small").to_be_bytes());
        frame.extend_from_slice(&payload);
        assert!(matches!(decode::<Push>(Kind::Push, &frame), Err(CodecError::Malformed(_))));
    }
    // One more than allowed, all there.
    let hello = |floor: usize, records: usize| Hello {
        store: StoreId::global("m"),
        incarnation: Incarnation::from_bytes([0; 16]),
        context: crate::context::Context::new().image(0),
        floor: vec![(Incarnation::from_bytes([0; 16]), 1); floor],
        records: vec![0; records],
        root: [0; 16],
    };
    let origins = crate::context::ORIGINS_MAX;
    for (floor, records, is_fine) in
        [(origins, origins / 8, true), (origins + 1, 0, false), (0, origins / 8 + 1, false)]
    {
        let bytes = encode(Kind::Hello, &hello(floor, records)).expect("encodes");
        let decoded = decode::<Hello>(Kind::Hello, &bytes);
        assert!(decoded.is_ok() == is_fine, "{floor} in the floor, {records} bytes of records: {decoded:?}");
    }
}

#[test]
fn a_frame_over_the_limit_is_not_written() {
    let op = crate::SignedOp { bytes: vec![0; FRAME_BYTES_MAX].into(), signature: [0; 64] };
    let push = Push { origins: vec![], ops: vec![op] };
    assert!(encode(Kind::Push, &push).is_err());
}
