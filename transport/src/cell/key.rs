//! Names of values.

use std::fmt;

/// The name of a value in the cell: 1 to 64 printable ASCII characters without spaces.
///
/// Not a matter of taste: a key that begins with anything else ends the gossip task of every member that hears of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// The text is empty, longer than 64 bytes, or has a character that is not printable ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key (1 to 64 printable ASCII characters without spaces)")]
pub struct NotAKey;

impl Key {
    /// Longest key, bytes.
    pub const LEN_MAX: usize = 64;

    /// Checks a key.
    ///
    /// # Errors
    /// [`NotAKey`] when it is empty, too long, or not printable ASCII.
    pub fn new(text: impl Into<String>) -> Result<Self, NotAKey> {
        let text = text.into();
        let fits = (1..=Self::LEN_MAX).contains(&text.len());
        if fits && is_printable(text.as_bytes()) { Ok(Self(text)) } else { Err(NotAKey) }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether a key holds nothing but `!` to `~`.
pub(super) fn is_printable(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_short_printable_ascii() {
        for good in ["a", "m/id", "l/hello~1", &"k".repeat(64)] {
            assert_eq!(Key::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "é", "a b", "a\n", "a\u{7f}", &"k".repeat(65)] {
            assert_eq!(Key::new(bad), Err(NotAKey), "{bad:?}");
        }
    }
}
