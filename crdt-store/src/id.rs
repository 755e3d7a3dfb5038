//! Names of things: a life of a store, one write, one document, one version of a document.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};

/// One life of one store: 16 random bytes, minted when the database is new, damaged or was restored from a copy.
///
/// It is the actor of all causal bookkeeping and is never reused, because two writes under one [`Dot`] would never
/// converge. Text form: 26 characters of lower-case base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation([u8; 16]);

impl Incarnation {
    /// Wraps 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_string();
        f.write_str(text.get(..8).unwrap_or(&text))
    }
}

impl FromStr for Incarnation {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let refuse = || BadId { what: "incarnation", text: shorten(text) };
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok().ok_or_else(refuse)?;
        Ok(Self(bytes.try_into().ok().ok_or_else(refuse)?))
    }
}

/// The stamp of one op: which life of which store wrote it, and its number there, counted from 1.
///
/// Text form: `INCARNATION:COUNTER`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// The writing store.
    pub origin: Incarnation,
    /// Its count of ops, from 1; below 2^63.
    pub counter: u64,
}

impl Dot {
    /// A dot from its parts.
    #[must_use]
    pub const fn new(origin: Incarnation, counter: u64) -> Self {
        Self { origin, counter }
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.origin, self.counter)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.origin, self.counter)
    }
}

impl FromStr for Dot {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let refuse = || BadId { what: "dot", text: shorten(text) };
        let (origin, counter) = text.split_once(':').ok_or_else(refuse)?;
        Ok(Self { origin: origin.parse()?, counter: counter.parse().ok().ok_or_else(refuse)? })
    }
}

/// What a document is called: kind, scope and name, all plain text that the store does not interpret.
///
/// Text form: `scope/kind/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DocKey {
    /// What sort of document, for example `HTTPRoute`. Unknown kinds are stored and passed on.
    pub kind: String,
    /// Where it holds, for example `global` or `region:eu`.
    pub scope: String,
    /// Its name within kind and scope.
    pub name: String,
}

impl DocKey {
    /// A key from its parts; limits are checked when it is written.
    pub fn new(kind: impl Into<String>, scope: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: kind.into(), scope: scope.into(), name: name.into() }
    }
}

impl fmt::Display for DocKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.scope, self.kind, self.name)
    }
}

/// A key in one piece, for keeping thousands of them: the parts with a NUL between, which none of them holds.
///
/// Packed keys order as keys do, for NUL is below every character that a part may have.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PackedKey(Box<str>);

impl PackedKey {
    /// The key itself.
    pub(crate) fn key(&self) -> DocKey {
        let mut parts = self.0.splitn(3, '\0').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        DocKey { kind: part(), scope: part(), name: part() }
    }
}

impl From<&DocKey> for PackedKey {
    fn from(key: &DocKey) -> Self {
        Self([key.kind.as_str(), &key.scope, &key.name].join("\0").into_boxed_str())
    }
}

/// Which version of a document: a hash of the dots that are live in it.
///
/// Two replicas that hold the same version give the same tag. Text form: 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ETag(pub(crate) [u8; 16]);

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ETag {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let refuse = || BadId { what: "etag", text: shorten(text) };
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().ok_or_else(refuse)?;
        Ok(Self(bytes.try_into().ok().ok_or_else(refuse)?))
    }
}

/// Which replicated store an op belongs to: a mesh and a store within it.
///
/// Both are in every signed op and every conversation, so an op of one mesh is worth nothing in another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreId {
    /// The mesh's name, at most 255 bytes.
    pub mesh: String,
    /// The store's name within the mesh, at most 255 bytes; this version has one, `global`.
    pub store: String,
}

impl StoreId {
    /// The store `global` of a mesh.
    #[must_use]
    pub fn global(mesh: &str) -> Self {
        Self { mesh: mesh.to_owned(), store: "global".to_owned() }
    }
}

/// The text is not the written form of the id that was asked for; the caller passed on what a person typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}")]
pub struct BadId {
    what: &'static str,
    text: String,
}

/// SHA-256 of the parts, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The first `N` bytes of a hash.
pub(crate) fn head<const N: usize>(hash: &[u8; 32]) -> [u8; N] {
    const { assert!(N <= 32, "a SHA-256 hash has 32 bytes") };
    let mut first = [0; N];
    first.copy_from_slice(hash.split_at(N).0);
    first
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form() {
        let dot = Dot::new(Incarnation::from_bytes([7; 16]), 42);
        assert_eq!(dot.to_string().parse::<Dot>(), Ok(dot));
        assert_eq!(dot.origin.to_string().len(), 26);
        let tag = ETag([9; 16]);
        assert_eq!(tag.to_string().parse::<ETag>(), Ok(tag));
    }

    #[test]
    fn packed_keys_order_and_unpack_as_keys_do() {
        let parts = ["a", "ab", "b", "ä", "a-", "a!", "z"];
        let mut keys = Vec::new();
        for (kind, scope) in parts.iter().flat_map(|kind| parts.map(|scope| (kind, scope))) {
            keys.extend(parts.map(|name| DocKey::new(*kind, scope, name)));
        }
        keys.sort();
        let packed: Vec<PackedKey> = keys.iter().map(PackedKey::from).collect();
        assert!(packed.is_sorted());
        assert_eq!(packed.iter().map(PackedKey::key).collect::<Vec<_>>(), keys);
    }

    #[test]
    fn junk_is_refused_as_an_id() {
        for text in ["", ":", "x:1", "a:b:c", "ööö:1", &"a".repeat(10_000)] {
            assert!(text.parse::<Dot>().is_err(), "{text} was taken for a dot");
            assert!(text.parse::<ETag>().is_err(), "{text} was taken for an etag");
        }
    }
}
