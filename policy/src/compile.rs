//! Documents to a route table: what applies here, in order of precedence, with what does not validate left out.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::{
    backend::BackendPolicy,
    document::{
        DocId, Document, SourceLines,
        backend_traffic::{self, BackendTrafficSpec},
        http_route::{self, PathMatch, RuleSpec},
    },
    host::HostPattern,
    problem::{Faults, Problem},
    scope::{Place, Scope},
    table::{Backend, HostRules, RouteTable, Rule},
    validate::validate,
};

/// What came of compiling.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// What is in force at the place compiled for.
    pub table: RouteTable,
    /// The documents that are not in force because they do not validate, wherever they are for, each with its faults.
    pub problems: Vec<(DocId, Vec<Problem>)>,
}

/// Compiles the documents whose scope covers `here`. The order of `documents` does not matter.
///
/// For a `BackendTrafficPolicy` each field counts for itself: the narrowest scope that sets it wins, and within a scope
/// the first name. For an `HTTPRoute` see [`RouteTable::route`]. Documents of other kinds have no effect; documents that
/// do not validate are skipped and listed.
#[must_use]
pub fn compile(documents: &[Document], here: &Place) -> Compiled {
    let mut problems = Vec::new();
    let mut applying = Vec::new();
    for document in documents {
        match (validate(document), document.metadata.scope.parse::<Scope>()) {
            (Err(faults), _) => problems.push((document.id(), faults)),
            (Ok(()), Ok(scope)) if scope.covers(here) => applying.push((scope.breadth(), document)),
            (Ok(()), Ok(_) | Err(_)) => {}
        }
    }
    applying.sort_by(|(left_breadth, left), (right_breadth, right)| {
        (left_breadth, &left.metadata.name).cmp(&(right_breadth, &right.metadata.name))
    });
    let applying: Vec<&Document> = applying.into_iter().map(|(_, document)| document).collect();
    let mut table = RouteTable { backends: backends(&applying), ..RouteTable::default() };
    routes(&applying, &mut table);
    Compiled { table, problems }
}

/// `applying` in order of precedence.
fn backends(applying: &[&Document]) -> HashMap<Box<str>, BackendPolicy> {
    let mut by_service: BTreeMap<&str, Vec<(DocId, BackendTrafficSpec)>> = BTreeMap::new();
    for document in applying.iter().filter(|document| document.kind == "BackendTrafficPolicy") {
        let Some(target) = &document.target_ref else { continue };
        let spec = valid(|faults| backend_traffic::read(&document.spec, faults));
        by_service.entry(&target.name).or_default().push((document.id(), spec));
    }
    by_service.into_iter().map(|(service, layers)| (Box::from(service), layered(&layers))).collect()
}

/// One policy of several layers, the first of which comes first.
fn layered(layers: &[(DocId, BackendTrafficSpec)]) -> BackendPolicy {
    let mut sources: Vec<usize> = Vec::new();
    let default = BackendPolicy::default();
    let algorithm = first(layers, &mut sources, |spec| spec.algorithm).unwrap_or(default.algorithm);
    let lambda_per_ms = first(layers, &mut sources, |spec| spec.lambda_per_ms).unwrap_or(default.lambda_per_ms);
    let epsilon = first(layers, &mut sources, |spec| spec.epsilon).unwrap_or(default.epsilon);
    let draw = first(layers, &mut sources, |spec| spec.draw).unwrap_or(default.draw);
    let nearest = first(layers, &mut sources, |spec| spec.nearest);
    sources.sort_unstable();
    sources.dedup();
    let sources: Vec<String> =
        sources.into_iter().filter_map(|index| layers.get(index)).map(|(id, _)| id.to_string()).collect();
    let source = if sources.is_empty() { default.source } else { sources.join(", ") };
    BackendPolicy { algorithm, lambda_per_ms, epsilon, draw, nearest, source }
}

/// The field of the first layer that sets it; that layer's number joins `sources`.
fn first<T>(
    layers: &[(DocId, BackendTrafficSpec)],
    sources: &mut Vec<usize>,
    field: impl Fn(&BackendTrafficSpec) -> Option<T>,
) -> Option<T> {
    let (index, value) = layers.iter().enumerate().find_map(|(index, (_, spec))| Some((index, field(spec)?)))?;
    sources.push(index);
    Some(value)
}

/// `applying` in order of precedence, so that the first rule for a host and path is the one that stays.
fn routes(applying: &[&Document], table: &mut RouteTable) {
    for document in applying.iter().filter(|document| document.kind == "HTTPRoute") {
        let spec = valid(|faults| http_route::read(&document.spec, faults));
        let id = document.id();
        for (index, rule_spec) in spec.rules.iter().enumerate() {
            let rule = Arc::new(rule(&id, index, rule_spec));
            for host in &spec.hostnames {
                let rules = match host {
                    HostPattern::Exact(host) => table.exact.entry(Box::from(host.as_str())).or_default(),
                    HostPattern::Below(suffix) => table.below.entry(Box::from(suffix.as_str())).or_default(),
                };
                rule_spec.matches.iter().for_each(|path| insert(rules, path, &rule));
            }
        }
    }
    for rules in table.exact.values_mut().chain(table.below.values_mut()) {
        // The sort is stable, so of equal prefixes the one of highest precedence stays.
        rules.prefixes.sort_by(|(left, _), (right, _)| right.len().cmp(&left.len()).then_with(|| left.cmp(right)));
        rules.prefixes.dedup_by(|(later, _), (earlier, _)| later == earlier);
    }
}

fn insert(rules: &mut HostRules, path: &PathMatch, rule: &Arc<Rule>) {
    match path {
        PathMatch::Prefix(prefix) => rules.prefixes.push((Box::from(prefix.as_str()), Arc::clone(rule))),
        PathMatch::Exact(path) => {
            if let Entry::Vacant(vacant) = rules.exact.entry(Box::from(path.as_str())) {
                vacant.insert(Arc::clone(rule));
            }
        }
    }
}

fn rule(id: &DocId, index: usize, spec: &RuleSpec) -> Rule {
    let name = match &spec.name {
        Some(name) => format!("{id}#{name}"),
        None => format!("{id}#{index}"),
    };
    let mut cumulated = 0.0;
    let mut backends = Vec::with_capacity(spec.backends.len());
    for (service, weight) in spec.backends.iter().filter(|(_, weight)| *weight > 0) {
        cumulated += f64::from(*weight);
        backends.push(Backend { service: Arc::from(service.as_str()), cumulated });
    }
    Rule { name: Arc::from(name), backends, timeout: spec.timeout }
}

/// What `read` makes of a spec that has been validated, so that there are no faults to look at.
fn valid<T>(read: impl FnOnce(&mut Faults<'_>) -> T) -> T {
    read(&mut Faults::new(&SourceLines::default()))
}

#[cfg(test)]
mod tests;
