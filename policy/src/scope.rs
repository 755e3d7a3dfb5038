//! Which nodes a document is for: everywhere, a region, a zone or one node.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::name::is_label;

/// The part of the mesh a document applies to. Written `global`, `region:R`, `zone:R.Z` or `node:N`, where R, Z and N
/// are DNS labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every node.
    Global,
    /// Every node of one region.
    Region(String),
    /// Every node of one zone of a region.
    Zone {
        /// The region the zone is in.
        region: String,
        /// The zone's name within its region.
        zone: String,
    },
    /// One node, by the name its operator gave it.
    Node(String),
}

impl Scope {
    /// Whether a document of this scope applies at `place`.
    #[must_use]
    pub fn covers(&self, place: &Place) -> bool {
        match self {
            Self::Global => true,
            Self::Region(region) => *region == place.region,
            Self::Zone { region, zone } => *region == place.region && *zone == place.zone,
            Self::Node(node) => *node == place.node_name,
        }
    }

    /// Whether every place that `other` covers is covered by this one too. Which region a node is in, a scope does not
    /// say: only its own node and everywhere contain a node.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Global, _) => true,
            (Self::Region(region), Self::Region(inner) | Self::Zone { region: inner, .. }) => region == inner,
            (Self::Zone { .. }, Self::Zone { .. }) | (Self::Node(_), Self::Node(_)) => self == other,
            (Self::Region(_) | Self::Zone { .. } | Self::Node(_), _) => false,
        }
    }

    /// 0 for a node, 1 for a zone, 2 for a region, 3 for everywhere: the smaller, the narrower, and narrower wins.
    #[must_use]
    pub fn breadth(&self) -> u8 {
        match self {
            Self::Node(_) => 0,
            Self::Zone { .. } => 1,
            Self::Region(_) => 2,
            Self::Global => 3,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Region(region) => write!(f, "region:{region}"),
            Self::Zone { region, zone } => write!(f, "zone:{region}.{zone}"),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text == "global" {
            return Ok(Self::Global);
        }
        let (word, rest) = text.split_once(':').ok_or(ScopeError::Form)?;
        let label = |text: &str| if is_label(text) { Ok(text.to_owned()) } else { Err(ScopeError::Label) };
        match word {
            "region" => Ok(Self::Region(label(rest)?)),
            "node" => Ok(Self::Node(label(rest)?)),
            "zone" => {
                let (region, zone) = rest.split_once('.').ok_or(ScopeError::Zone)?;
                Ok(Self::Zone { region: label(region)?, zone: label(zone)? })
            }
            _ => Err(ScopeError::Form),
        }
    }
}

/// Why a text is not a scope. The author of the document is to correct it; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// Neither `global` nor one of the three words with a colon.
    #[error("is not one of global, region:R, zone:R.Z and node:N")]
    Form,
    /// A zone without its region.
    #[error("names a zone without its region")]
    Zone,
    /// A part that is not a DNS label.
    #[error("has a part that is not a DNS label")]
    Label,
}

/// Where a node is: what scopes are compared with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Place {
    /// The name its operator gave the node.
    pub node_name: String,
    /// The region it is in; empty where none was given, which no `region:` scope covers.
    pub region: String,
    /// The zone within the region; empty where none was given.
    pub zone: String,
}

#[cfg(test)]
mod tests {
    use super::{Place, Scope, ScopeError};

    fn place() -> Place {
        Place { node_name: "gw-a".into(), region: "eu".into(), zone: "z1".into() }
    }

    #[test]
    fn scopes_are_read_written_and_compared_with_a_place() {
        for (text, covers, breadth) in [
            ("global", true, 3),
            ("region:eu", true, 2),
            ("region:us", false, 2),
            ("zone:eu.z1", true, 1),
            ("zone:eu.z2", false, 1),
            ("zone:us.z1", false, 1),
            ("node:gw-a", true, 0),
            ("node:gw-b", false, 0),
        ] {
            let scope: Scope = text.parse().unwrap();
            assert_eq!(scope.to_string(), text);
            assert_eq!(scope.covers(&place()), covers, "{text}");
            assert_eq!(scope.breadth(), breadth, "{text}");
        }
    }

    #[test]
    fn a_scope_contains_what_lies_within_it() {
        let scopes = ["global", "region:eu", "zone:eu.z1", "zone:us.z1", "node:n1"];
        let contained = [
            ("global", vec!["global", "region:eu", "zone:eu.z1", "zone:us.z1", "node:n1"]),
            ("region:eu", vec!["region:eu", "zone:eu.z1"]),
            ("zone:eu.z1", vec!["zone:eu.z1"]),
            ("zone:us.z1", vec!["zone:us.z1"]),
            ("node:n1", vec!["node:n1"]),
        ];
        for (outer, expected) in contained {
            let outer: Scope = outer.parse().unwrap();
            let found = scopes.iter().filter(|inner| outer.contains(&inner.parse().unwrap()));
            assert_eq!(found.copied().collect::<Vec<_>>(), expected, "{outer}");
        }
    }

    #[test]
    fn what_is_not_a_scope_says_why() {
        for (text, error) in [
            ("", ScopeError::Form),
            ("Global", ScopeError::Form),
            ("regions:eu", ScopeError::Form),
            ("region:", ScopeError::Label),
            ("region:EU", ScopeError::Label),
            ("region:-eu", ScopeError::Label),
            ("zone:z1", ScopeError::Zone),
            ("zone:eu.z1.b", ScopeError::Label),
            ("node:a.b", ScopeError::Label),
            ("node:a/b", ScopeError::Label),
        ] {
            assert_eq!(text.parse::<Scope>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_place_without_region_is_covered_only_globally_and_by_its_name() {
        let place = Place { node_name: "gw-a".into(), ..Place::default() };
        assert!(Scope::Global.covers(&place));
        assert!(Scope::Node("gw-a".into()).covers(&place));
        assert!(!Scope::Region("eu".into()).covers(&place));
    }
}
