//! Documents to a route table: what applies here, in order of precedence, with what does not validate left out.

use std::collections::{BTreeMap, HashMap};

use crate::{
    backend::BackendPolicy,
    document::{DocId, Document, TargetRef, backend_traffic},
    in_force::{Layer, Sorted},
    lock::Subject,
    overlay::{Field, merged, overlay},
    problem::{Problem, valid},
    reading::Reading,
    routes,
    scope::Place,
    strictest,
    table::RouteTable,
};

/// What came of compiling.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// What is in force at the place compiled for.
    pub table: RouteTable,
    /// The documents that do not validate, wherever they are for, each with its faults, by id. They are not in force;
    /// those of [`crate::STRICTEST_KINDS`] refuse what they are about instead.
    pub problems: Vec<(DocId, Vec<Problem>)>,
    /// The documents whose time is over, wherever they are for, by id.
    pub expired: Vec<DocId>,
    /// When the next document expires, in milliseconds since 1970: compile again then.
    pub next_expiry_ms: Option<u64>,
    /// The documents in force here that set fields a wider one locks, with those fields; what they say there is ignored.
    pub locked_out: Vec<(DocId, Vec<Problem>)>,
}

/// Compiles the documents whose scope covers `here` and whose time is not over at `now_ms`, milliseconds since 1970.
/// The order of `documents` does not matter; several of one id are concurrent edits of it.
///
/// For a `BackendTrafficPolicy` each field counts for itself: the narrowest scope that sets it wins, and within a scope
/// the first name, unless a wider document locks the field. For an `HTTPRoute` see [`RouteTable::route`]. Documents of
/// [`crate::STRICTEST_KINDS`] compose to the strictest, see [`RouteTable::authorization`], [`RouteTable::peer_mode`] and
/// [`RouteTable::residency`]. Documents of other kinds have no effect; documents that do not validate are listed.
#[must_use]
pub fn compile(documents: &[Document], here: &Place, now_ms: u64) -> Compiled {
    let readings: Vec<Reading> = documents.iter().map(Reading::new).collect();
    compile_readings(&readings, here, now_ms)
}

/// As [`compile`], of documents that were read before.
pub(crate) fn compile_readings<'d>(
    readings: impl IntoIterator<Item = &'d Reading>,
    here: &Place,
    now_ms: u64,
) -> Compiled {
    let sorted = Sorted::new(readings, now_ms);
    let table = table(&sorted, here);
    let locked_out = locked_out(&sorted.at(here));
    let Sorted { problems, expired, next_expiry_ms, .. } = sorted;
    Compiled { table, problems, expired, next_expiry_ms, locked_out }
}

/// What is in force at `here`.
pub(crate) fn table(sorted: &Sorted<'_>, here: &Place) -> RouteTable {
    let applying = sorted.at(here);
    let entries = routes::entries(&applying);
    let mut table = RouteTable {
        routes: routes::routes(&entries),
        tiers: routes::tiers(&entries),
        backends: backends(&applying),
        ..RouteTable::default()
    };
    let covering: Vec<Layer<'_>> = sorted.all_at(here).collect();
    strictest::compose(&covering, &mut table);
    table
}

/// The layers among `applying` that are a `BackendTrafficPolicy` for `service`.
pub(crate) fn backend_layers<'d>(applying: &[Layer<'d>], service: &str) -> Vec<Layer<'d>> {
    applying.iter().copied().filter(|layer| backend_target(layer.reading) == Some(service)).collect()
}

fn backend_target(reading: &Reading) -> Option<&str> {
    let TargetRef { name, .. } = reading.target.as_ref()?;
    (reading.id.kind == "BackendTrafficPolicy").then_some(name.as_str())
}

fn backends(applying: &[Layer<'_>]) -> HashMap<Box<str>, BackendPolicy> {
    let mut by_service: BTreeMap<&str, Vec<Layer<'_>>> = BTreeMap::new();
    for layer in applying {
        if let Some(service) = backend_target(layer.reading) {
            by_service.entry(service).or_default().push(*layer);
        }
    }
    by_service.into_iter().map(|(service, layers)| (Box::from(service), backend(&layers))).collect()
}

/// One policy of several layers, in order of precedence.
fn backend(layers: &[Layer<'_>]) -> BackendPolicy {
    let fields = overlay(layers);
    let spec = valid(|faults| backend_traffic::read(&merged(&fields), faults));
    let settles =
        |field: &Field<'_>, layer: &Layer<'_>| field.value.is_some() && std::ptr::eq(field.reading, layer.reading);
    let sources = layers.iter().filter(|layer| fields.iter().any(|field| settles(field, layer)));
    let sources: Vec<String> = sources.map(|layer| layer.reading.id.to_string()).collect();
    let default = BackendPolicy::default();
    BackendPolicy {
        algorithm: spec.algorithm.unwrap_or(default.algorithm),
        lambda_per_ms: spec.lambda_per_ms.unwrap_or(default.lambda_per_ms),
        epsilon: spec.epsilon.unwrap_or(default.epsilon),
        draw: spec.draw.unwrap_or(default.draw),
        nearest: spec.nearest,
        outlier: spec.health_check.outlier,
        limits: spec.limits,
        locality: spec.locality,
        panic_threshold_percent: spec.health_check.panic_threshold_percent.unwrap_or(default.panic_threshold_percent),
        slow_start: spec.slow_start,
        source: if sources.is_empty() { default.source } else { sources.join(", ") },
    }
}

fn locked_out(applying: &[Layer<'_>]) -> Vec<(DocId, Vec<Problem>)> {
    // Widest first, so that of several locks the widest is told.
    let lockers: Vec<(u8, Subject<'_>)> = (applying.iter().rev())
        .filter(|layer| !layer.reading.locked.is_empty())
        .map(|layer| (layer.breadth, Subject::new(layer.reading)))
        .collect();
    if lockers.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for layer in applying {
        let narrow = Subject::new(layer.reading);
        let mut problems = Vec::new();
        for (_, locker) in lockers.iter().filter(|(breadth, _)| *breadth > layer.breadth) {
            narrow.conflicts(locker, &mut problems);
        }
        if !problems.is_empty() {
            out.push((layer.reading.id.clone(), problems));
        }
    }
    out.sort_by(|(left, _), (right, _)| left.cmp(right));
    out
}

#[cfg(test)]
mod tests;
