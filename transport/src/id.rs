//! The name of a node: a hash of the key it proves to hold.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::LazyLock;

use aws_lc_rs::digest;
use data_encoding::{BASE32_NOPAD, Encoding};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};

/// Characters of the text form.
const TEXT_LEN: usize = 26;
/// Characters of [`NodeId::short`].
const SHORT_LEN: usize = 16;

/// RFC 4648 base32 without padding, in lower case, so that ids can be typed and stand in host names and URIs.
pub(crate) static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = BASE32_NOPAD.specification();
    specification.symbols = specification.symbols.to_ascii_lowercase();
    specification.encoding().expect("lower-casing the symbols of a valid encoding keeps them distinct")
});

/// Who a node is: the first 16 bytes of SHA-256 over the 32-byte Ed25519 key of its own issuing certificate.
///
/// The order is that of the bytes; of two nodes that dial each other, the connection opened by the lower one stays.
/// Text form: 26 characters of lower-case base32. Serialised as text where the format is for people, else as 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// The id that belongs to a raw Ed25519 public key (32 bytes).
    pub fn from_public_key(key: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, key);
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// An id read from its 16 bytes; whether somebody holds its key is proven by certificates, not here.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first 16 characters of the text form (80 bits): the id inside a gossip cell.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT_LEN);
        text
    }

    /// The id written as an IPv6 address, for libraries that can only name members by address. Nothing listens there.
    pub const fn to_ipv6(self) -> Ipv6Addr {
        Ipv6Addr::from_octets(self.0)
    }

    /// The reverse of [`NodeId::to_ipv6`].
    pub const fn from_ipv6(address: Ipv6Addr) -> Self {
        Self(address.octets())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE32.encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a node id: not 26 characters, not lower-case base32, or with stray bits at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a node id (26 characters of lower-case base32)")]
pub struct NotANodeId;

impl FromStr for NodeId {
    type Err = NotANodeId;

    fn from_str(text: &str) -> Result<Self, NotANodeId> {
        if text.len() != TEXT_LEN {
            return Err(NotANodeId);
        }
        let bytes = BASE32.decode(text.as_bytes()).ok().ok_or(NotANodeId)?;
        bytes.try_into().ok().map(Self).ok_or(NotANodeId)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            text.parse().map_err(D::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_has_26_characters() {
        let id = NodeId::from_public_key(&[7; 32]);
        let text = id.to_string();
        assert_eq!(text.len(), 26);
        assert_eq!(text, text.to_ascii_lowercase());
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(id.short(), &text[..16]);
    }

    #[test]
    fn one_id_has_one_spelling() {
        let text = NodeId::from_public_key(&[7; 32]).to_string();
        let mut stray = text[..25].to_owned();
        stray.push('7');
        for wrong in [text.to_ascii_uppercase(), stray, text[..25].to_owned(), format!("{text}a"), String::new()] {
            assert_eq!(wrong.parse::<NodeId>(), Err(NotANodeId), "{wrong}");
        }
    }

    #[test]
    fn an_address_holds_the_whole_id() {
        let id = NodeId::from_public_key(b"any key");
        assert_eq!(NodeId::from_ipv6(id.to_ipv6()), id);
    }
}
