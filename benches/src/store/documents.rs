//! The documents that both hold: about 600 B of text in two sections, no two alike.

use std::collections::BTreeMap;

use crdt_store::{DocKey, Edit};

/// Kind of every document.
pub(super) const KIND: &str = "HTTPRoute";
/// Scope of every document.
pub(super) const SCOPE: &str = "global";
/// Bytes of the two sections.
const METADATA_BYTES: usize = 80;
const SPEC_BYTES: usize = 520;

pub(super) fn name(number: usize) -> String {
    format!("route-{number:05}")
}

pub(super) fn key(number: usize) -> DocKey {
    DocKey::new(KIND, SCOPE, name(number))
}

/// The sections of one version of a document.
pub(super) fn metadata(number: usize, version: usize) -> Vec<u8> {
    text(format!("{{\"name\":\"{}\",\"revision\":{version},\"note\":\"", name(number)), number, 0, METADATA_BYTES)
}

pub(super) fn spec(number: usize, version: usize) -> Vec<u8> {
    text("{\"rules\":[{\"matches\":\"".to_owned(), number, version, SPEC_BYTES)
}

pub(super) fn edit(number: usize, version: usize) -> Edit {
    let body = BTreeMap::from([
        ("metadata".to_owned(), metadata(number, version)),
        ("spec".to_owned(), spec(number, version)),
    ]);
    Edit::put(key(number), body)
}

/// Text that begins as told and goes on with letters that do not repeat (splitmix64), so that nothing compresses well.
fn text(start: String, number: usize, version: usize, bytes: usize) -> Vec<u8> {
    let mut text = start.into_bytes();
    let mut state = u64::try_from(number * 1_000_003 + version).unwrap_or_default();
    while text.len() < bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        text.extend((mixed ^ (mixed >> 31)).to_be_bytes().map(|byte| b'a' + byte % 26));
    }
    text.truncate(bytes);
    text
}
