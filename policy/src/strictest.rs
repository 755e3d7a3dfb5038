//! What is permitted at a place: documents composed to the strictest over every scope that covers it.
//!
//! A document that does not validate here, mostly because a newer version wrote it, counts as strictly as it could be
//! meant: everything refused, mutual TLS only, no region. Several documents of one id are concurrent edits of it and
//! count each. So whatever is added to the documents never permits more, except that an ALLOW document may permit what
//! other ALLOW documents of its own scope do not.

use std::collections::{BTreeSet, HashMap};

use crate::{
    document::{DocId, PeerMode},
    in_force::{Layer, Standing},
    reading::Says,
    table::RouteTable,
};

/// Puts what `covering`, every document that covers a place in order of precedence, permits there into `table`.
pub(crate) fn compose(covering: &[Layer<'_>], table: &mut RouteTable) {
    let mut siblings: HashMap<&DocId, usize> = HashMap::new();
    for layer in covering.iter().filter(|layer| layer.reading.id.kind == "AuthorizationPolicy") {
        *siblings.entry(&layer.reading.id).or_default() += 1;
    }
    for layer in covering {
        let reading = layer.reading;
        let Some(target) = &reading.target else { continue };
        let service = || Box::from(target.name.as_str());
        match (reading.id.kind.as_str(), target.kind.as_str()) {
            ("AuthorizationPolicy", "Service") => {
                let edits = siblings.get(&reading.id).copied().unwrap_or_default();
                table.authorizations.entry(service()).or_default().add(layer, edits);
            }
            ("PeerAuthentication", "Service") => {
                let Some(mode) = mode(layer) else { continue };
                let composed = table.peer_modes.entry(service()).or_insert(mode);
                *composed = mode.max(*composed);
            }
            ("PeerAuthentication", "Mesh") => table.mesh_peer_mode = table.mesh_peer_mode.max(mode(layer)),
            ("Residency", "Service") => {
                let Some(regions) = regions(layer) else { continue };
                let composed = table.residencies.entry(service()).or_insert_with(|| regions.clone());
                composed.retain(|region| regions.contains(region));
            }
            _ => {}
        }
    }
}

/// The mode that a document asks for; `None` once its time is over.
pub(crate) fn mode(layer: &Layer<'_>) -> Option<PeerMode> {
    match layer.standing {
        Standing::InForce => match &layer.reading.says {
            Says::PeerMode(mode) => *mode,
            Says::Route(_) | Says::Authorization { .. } | Says::Regions(_) | Says::Fields => None,
        },
        Standing::Faulty => Some(PeerMode::Strict),
        Standing::Expired => None,
    }
}

/// The regions that a document allows; `None` once its time is over.
pub(crate) fn regions(layer: &Layer<'_>) -> Option<BTreeSet<String>> {
    match layer.standing {
        Standing::InForce => match &layer.reading.says {
            Says::Regions(regions) => Some(regions.clone()),
            Says::Route(_) | Says::Authorization { .. } | Says::PeerMode(_) | Says::Fields => None,
        },
        Standing::Faulty => Some(BTreeSet::new()),
        Standing::Expired => None,
    }
}

#[cfg(test)]
mod tests;
