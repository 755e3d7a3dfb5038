//! Bytes as frames of every kind, and as an op's canonical layout.

use std::fmt::Debug;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::MESH;
use crate::{
    codec::{self, FRAME_BYTES_MAX, Kind, STORED_VERSION, WIRE_VERSION},
    context::{Context, ContextImage},
    id::StoreId,
    op::{self, Limits},
    replica::fuzz_stored,
    wire::{Ack, Claims, Digest, Fin, FinBelow, Hello, Lists, Ops, Push},
};

/// Decodes `data` as frames of every kind: as it came, and as the payload of a frame with the right head and checksum.
///
/// # Panics
/// A finding: what decoded does not encode, or encodes to something else.
pub fn codec(data: &[u8]) {
    if let Ok(Some(length)) = codec::frame_length(data) {
        assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes was let through");
    }
    message::<Hello>(Kind::Hello, data, &|hello| context(&hello.context));
    message::<Ops>(Kind::Ops, data, &|_| ());
    message::<Fin>(Kind::Fin, data, &|fin| fin.cover.iter().for_each(context));
    message::<Ack>(Kind::Ack, data, &|ack| context(&ack.context));
    message::<Push>(Kind::Push, data, &|_| ());
    message::<Digest>(Kind::Digest, data, &|_| ());
    message::<Lists>(Kind::Lists, data, &|_| ());
    message::<Claims>(Kind::Claims, data, &|_| ());
    message::<FinBelow>(Kind::FinBelow, data, &|fin| context(&fin.cover));
    fuzz_stored(data);
    canonical(data);
}

/// One kind of message, framed as it came and framed rightly.
fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: Kind, data: &[u8], inspect: &dyn Fn(&T)) {
    for bytes in [data.to_vec(), framed(WIRE_VERSION, kind, data)] {
        let Ok(value) = codec::decode::<T>(kind, &bytes) else { continue };
        inspect(&value);
        let again = codec::encode(kind, &value).expect("what decoded encodes, for its shortest form is not longer");
        assert_eq!(codec::decode::<T>(kind, &again).ok().as_ref(), Some(&value), "decode after encode");
    }
}

/// One kind of stored record, as it came and with head and checksum put right.
pub(crate) fn record<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: Kind, data: &[u8]) {
    let mut right = framed(STORED_VERSION, kind, data);
    let sum = crc32c::crc32c(&right);
    right.extend_from_slice(&sum.to_be_bytes());
    for bytes in [data, &right] {
        let Ok(value) = codec::decode_stored::<T>(kind, bytes) else { continue };
        let again = codec::encode_stored(kind, &value).expect("what decoded encodes");
        assert_eq!(codec::decode_stored::<T>(kind, &again).ok().as_ref(), Some(&value), "decode after encode");
    }
}

pub(crate) fn framed(version: u8, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![version, kind as u8];
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn context(image: &ContextImage) {
    let Ok(context) = Context::from_image(image) else { return };
    assert_eq!(context.image(usize::MAX), *image, "an accepted context is in its canonical form");
    let mut twice = context.clone();
    twice.merge(&context);
    assert_eq!(twice, context, "merging is idempotent");
    assert!(twice.covers(&context), "a context covers itself");
    assert_eq!(twice.hash(), context.hash(), "equal contexts have equal hashes");
    let nothing = Context::new();
    assert_eq!(context.growth(&nothing).as_ref(), Some(image), "since nothing was seen, all of it is new");
    assert_eq!(Context::grown(&nothing, image), Ok(context), "a growth reads back");
}

fn canonical(data: &[u8]) {
    let store = StoreId::global(MESH);
    let bytes = Bytes::copy_from_slice(data);
    let named = op::dot_of(&bytes);
    for limits in [Limits::default(), Limits::none()] {
        let Ok(op) = op::decode(&store, &bytes, &limits) else { continue };
        assert_eq!(op::encode(&store, &op), data, "an accepted op is in its canonical form");
        assert_eq!(named, Some(op.dot), "the dot read ahead is the op's");
    }
}
