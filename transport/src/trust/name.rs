//! The words a certificate carries beside keys: names of meshes and nodes, and roles.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest mesh name in bytes: with ` admission` after it, it still fits the 64 characters of a certificate's name.
const MESH_LEN_MAX: usize = 48;
/// Longest node name in bytes, the length of a DNS label.
const NODE_LEN_MAX: usize = 63;

/// What a node may do besides carrying traffic. Fixed by its certificate when it joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds the admission key: lets newcomers in, and may author policy.
    Admit,
    /// The default: may author policy.
    Member,
    /// Relays traffic, gossip and policy, and authors none.
    Gateway,
}

impl Role {
    /// The word in certificates, tokens and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Member => "member",
            Self::Gateway => "gateway",
        }
    }

    /// Whether policy signed by such a node is accepted by others.
    pub const fn may_author(self) -> bool {
        match self {
            Self::Admit | Self::Member => true,
            Self::Gateway => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The word is none of the roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown role `{0}` (roles are admit, member, gateway)")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "admit" => Ok(Self::Admit),
            "member" => Ok(Self::Member),
            "gateway" => Ok(Self::Gateway),
            other => Err(UnknownRole(other.chars().take(NODE_LEN_MAX).collect())),
        }
    }
}

/// Why a name cannot stand in a certificate, a URI and a host name at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameFault {
    /// The name has no characters.
    #[error("is empty")]
    Empty,
    /// The name has more bytes than the limit given here.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// This character is outside `a-z 0-9 . _ -`.
    #[error("holds {0:?}, which is none of a-z, 0-9, `.`, `_`, `-`")]
    Character(char),
    /// The first or last character is not a letter or digit.
    #[error("has to begin and end with a letter or digit")]
    Edge,
}

/// Checks the name of a mesh, which is also its SPIFFE trust domain.
///
/// # Errors
/// The first fault found.
pub fn check_mesh_name(name: &str) -> Result<(), NameFault> {
    check(name, MESH_LEN_MAX)
}

/// Checks the name an operator gives to a node; services and namespaces in SPIFFE paths follow the same rule.
///
/// # Errors
/// The first fault found.
pub fn check_node_name(name: &str) -> Result<(), NameFault> {
    check(name, NODE_LEN_MAX)
}

fn check(name: &str, len_max: usize) -> Result<(), NameFault> {
    let (Some(first), Some(last)) = (name.chars().next(), name.chars().next_back()) else {
        return Err(NameFault::Empty);
    };
    if name.len() > len_max {
        return Err(NameFault::TooLong(len_max));
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(stray) = name.chars().find(|&c| !plain(c) && !matches!(c, '.' | '_' | '-')) {
        return Err(NameFault::Character(stray));
    }
    if !plain(first) || !plain(last) {
        return Err(NameFault::Edge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_certificates_uris_and_host_names() {
        let long = "a".repeat(64);
        let cases = [
            ("edge-7.lab_2", Ok(())),
            ("7", Ok(())),
            ("", Err(NameFault::Empty)),
            (long.as_str(), Err(NameFault::TooLong(63))),
            ("Edge", Err(NameFault::Character('E'))),
            ("a/b", Err(NameFault::Character('/'))),
            ("a b", Err(NameFault::Character(' '))),
            ("-a", Err(NameFault::Edge)),
            ("a.", Err(NameFault::Edge)),
        ];
        for (name, expected) in cases {
            assert_eq!(check_node_name(name), expected, "{name:?}");
        }
    }

    #[test]
    fn roles_are_read_back_from_their_words() {
        for role in [Role::Admit, Role::Member, Role::Gateway] {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!("root".parse::<Role>(), Err(UnknownRole("root".to_owned())));
    }
}
