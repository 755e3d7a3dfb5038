//! `HTTPRoute` documents to host and path tables, with what locked documents keep for themselves.

use std::{
    collections::{BTreeMap, hash_map::Entry as MapEntry},
    sync::Arc,
};

use crate::{
    document::{
        DocId,
        http_route::{PathMatch, RuleSpec},
    },
    host::HostPattern,
    in_force::Layer,
    lock::locks,
    overlay::Why,
    reading::{Reading, Route},
    table::{Backend, HostRules, Routes, Rule, Tier},
};

/// One host and path with the rule that a document has for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'d> {
    pub(crate) host: &'d HostPattern,
    pub(crate) path: &'d PathMatch,
    pub(crate) layer: Layer<'d>,
    /// The rule's number in its document.
    pub(crate) index: usize,
    pub(crate) rule: &'d Arc<Rule>,
}

/// The entries for one host and path: who gets it, and who does not.
#[derive(Debug)]
pub(crate) struct Contest<'e, 'd> {
    pub(crate) winner: &'e Entry<'d>,
    /// The document whose lock settles or protects it.
    pub(crate) locked_by: Option<&'d Reading>,
    pub(crate) overridden: Vec<(&'e Entry<'d>, Why<'d>)>,
}

/// Every entry of the routes among `applying`, in order of precedence: narrower scope, then locked before open, then
/// name, then the order in the document.
pub(crate) fn entries<'d>(applying: &[Layer<'d>]) -> Vec<Entry<'d>> {
    let mut layers: Vec<(Layer<'d>, &'d Route)> =
        applying.iter().filter_map(|layer| Some((*layer, layer.reading.route()?))).collect();
    layers.sort_by_key(|(layer, _)| (layer.breadth, !locks(layer.reading, "rules")));
    let mut entries = Vec::new();
    for (layer, route) in layers {
        for (index, (paths, rule)) in route.rules.iter().enumerate() {
            for host in &route.hostnames {
                for path in paths {
                    entries.push(Entry { host, path, layer, index, rule });
                }
            }
        }
    }
    entries
}

/// The table of all `entries`, which are in order of precedence.
pub(crate) fn routes<'e, 'd: 'e>(entries: impl IntoIterator<Item = &'e Entry<'d>>) -> Routes {
    let mut routes = Routes::default();
    for Entry { host, path, rule, .. } in entries {
        let rules = match host {
            HostPattern::Exact(host) => routes.exact.entry(Box::from(host.as_str())).or_default(),
            HostPattern::Below(suffix) => routes.below.entry(Box::from(suffix.as_str())).or_default(),
        };
        insert(rules, path, rule);
    }
    for rules in routes.exact.values_mut().chain(routes.below.values_mut()) {
        // The sort is stable, so of equal prefixes the one of highest precedence stays.
        rules.prefixes.sort_by(|(left, _), (right, _)| right.len().cmp(&left.len()).then_with(|| left.cmp(right)));
        rules.prefixes.dedup_by(|(later, _), (earlier, _)| later == earlier);
    }
    routes
}

/// What locked documents keep, widest first: for a request that is theirs, narrower documents are as if they were not.
pub(crate) fn tiers(entries: &[Entry<'_>]) -> Vec<Tier> {
    let mut tiers = Vec::new();
    if entries.iter().all(|entry| entry.layer.reading.locked.is_empty()) {
        return tiers;
    }
    for breadth in (1..=BREADTH_MAX).rev() {
        let of = |lock: &'static str| {
            entries.iter().filter(move |entry| entry.layer.breadth == breadth && locks(entry.layer.reading, lock))
        };
        let tier = Tier {
            hosts: routes(of("hostnames")),
            requests: routes(of("rules")),
            routes: routes(entries.iter().filter(|entry| entry.layer.breadth >= breadth)),
        };
        if !tier.hosts.is_empty() || !tier.requests.is_empty() {
            tiers.push(tier);
        }
    }
    tiers
}

/// Who gets each host and path, in their order.
pub(crate) fn contests<'e, 'd>(entries: &'e [Entry<'d>]) -> Vec<Contest<'e, 'd>> {
    let mut by_place: BTreeMap<(&HostPattern, &PathMatch), Vec<&Entry<'d>>> = BTreeMap::new();
    for entry in entries {
        by_place.entry((entry.host, entry.path)).or_default().push(entry);
    }
    let locks_any = |reading| locks(reading, "hostnames") || locks(reading, "rules");
    let keepers: Vec<&Entry<'d>> = entries.iter().filter(|entry| locks_any(entry.layer.reading)).collect();
    by_place.into_values().filter_map(|rivals| contest(&rivals, &keepers)).collect()
}

fn contest<'e, 'd>(rivals: &[&'e Entry<'d>], keepers: &[&'e Entry<'d>]) -> Option<Contest<'e, 'd>> {
    let first = rivals.first()?;
    // Of equal scopes the first: `max_by_key` gives the last of equals.
    let lock = keepers.iter().rev().filter(|keeper| keeps(keeper, first)).max_by_key(|keeper| keeper.layer.breadth);
    let floor = lock.map_or(0, |lock| lock.layer.breadth);
    let winner = rivals.iter().find(|rival| rival.layer.breadth >= floor)?;
    let mut overridden = Vec::new();
    for rival in rivals.iter().filter(|rival| !std::ptr::eq(**rival, *winner)) {
        let why = match lock {
            Some(lock) if rival.layer.breadth < floor => Why::Locked(lock.layer.reading),
            Some(_) | None if rival.layer.breadth > winner.layer.breadth => Why::Narrower,
            Some(_) | None => Why::EarlierName,
        };
        overridden.push((*rival, why));
    }
    Some(Contest { winner, locked_by: lock.map(|lock| lock.layer.reading), overridden })
}

/// Whether `keeper` is locked for every request that `entry` is for.
fn keeps(keeper: &Entry<'_>, entry: &Entry<'_>) -> bool {
    keeper.host.covers(entry.host)
        && (locks(keeper.layer.reading, "hostnames")
            || (locks(keeper.layer.reading, "rules") && keeper.path.covers(entry.path)))
}

fn insert(rules: &mut HostRules, path: &PathMatch, rule: &Arc<Rule>) {
    match path {
        PathMatch::Prefix(prefix) => rules.prefixes.push((Box::from(prefix.as_str()), Arc::clone(rule))),
        PathMatch::Exact(path) => {
            if let MapEntry::Vacant(vacant) = rules.exact.entry(Box::from(path.as_str())) {
                vacant.insert(Arc::clone(rule));
            }
        }
    }
}

pub(crate) fn rule(id: &DocId, index: usize, spec: &RuleSpec) -> Rule {
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

/// [`crate::Scope::breadth`] of everywhere.
const BREADTH_MAX: u8 = 3;
