//! `HTTPRoute` documents to tables by host and path, with what locked documents keep for themselves.

use std::{
    collections::{BTreeMap, hash_map::Entry as MapEntry},
    sync::Arc,
};

use crate::{
    document::{
        DocId,
        http_route::RuleSpec,
        route_match::{PathMatch, RouteMatch},
    },
    host::HostPattern,
    in_force::Layer,
    lock::locks,
    overlay::Why,
    reading::{Reading, Route},
    table::{Backend, Case, HostRules, Routes, Rule, Tier},
};

/// One host and match with the rule that a document has for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'d> {
    pub(crate) host: &'d HostPattern,
    pub(crate) matched: &'d RouteMatch,
    pub(crate) layer: Layer<'d>,
    /// The rule's number in its document.
    pub(crate) index: usize,
    pub(crate) rule: &'d Arc<Rule>,
}

/// The entries for one host and match: who gets its requests, and who does not.
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
        for (index, (matches, rule)) in route.rules.iter().enumerate() {
            for host in &route.hostnames {
                for matched in matches {
                    entries.push(Entry { host, matched, layer, index, rule });
                }
            }
        }
    }
    entries
}

/// The table of all `entries`, which are in order of precedence.
pub(crate) fn routes<'e, 'd: 'e>(entries: impl IntoIterator<Item = &'e Entry<'d>>) -> Routes {
    let mut routes = Routes::default();
    for Entry { host, matched, rule, .. } in entries {
        let rules = match host {
            HostPattern::Exact(host) => routes.exact.entry(Box::from(host.as_str())).or_default(),
            HostPattern::Below(suffix) => routes.below.entry(Box::from(suffix.as_str())).or_default(),
        };
        insert(rules, matched, rule);
    }
    routes.exact.values_mut().chain(routes.below.values_mut()).for_each(sort);
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

/// Who gets the requests of each host and match, in their order.
pub(crate) fn contests<'e, 'd>(entries: &'e [Entry<'d>]) -> Vec<Contest<'e, 'd>> {
    let mut by_place: BTreeMap<(&HostPattern, &RouteMatch), Vec<&Entry<'d>>> = BTreeMap::new();
    for entry in entries {
        by_place.entry((entry.host, entry.matched)).or_default().push(entry);
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
            || (locks(keeper.layer.reading, "rules") && keeper.matched.covers(entry.matched)))
}

fn insert(rules: &mut HostRules, matched: &RouteMatch, rule: &Arc<Rule>) {
    let conditions = (!matched.conditions.are_none()).then(|| Arc::new(matched.conditions.clone()));
    let case = Case { conditions, rule: Arc::clone(rule) };
    match &matched.path {
        PathMatch::Prefix(prefix) => rules.prefixes.push((Box::from(prefix.as_str()), case)),
        PathMatch::Regex(pattern) => rules.regexes.push((pattern.clone(), case)),
        PathMatch::Exact(path) => match rules.exact.entry(Box::from(path.as_str())) {
            MapEntry::Vacant(vacant) => {
                vacant.insert(vec![case]);
            }
            MapEntry::Occupied(cases) => cases.into_mut().push(case),
        },
    }
}

/// Longer paths first, and for one path what says more of the request; the sorts are stable, so of equals the one of
/// highest precedence comes first, and the others go.
fn sort(rules: &mut HostRules) {
    rules.prefixes.sort_by(|(left, one), (right, other)| {
        (right.len().cmp(&left.len())).then_with(|| left.cmp(right)).then_with(|| one.by_specificity(other))
    });
    first_of_equals(&mut rules.prefixes, |(left, _), (right, _)| left == right, |(_, case)| case);
    rules.regexes.sort_by(|(left, one), (right, other)| {
        let length = right.written().len().cmp(&left.written().len());
        length.then_with(|| left.cmp(right)).then_with(|| one.by_specificity(other))
    });
    first_of_equals(&mut rules.regexes, |(left, _), (right, _)| left == right, |(_, case)| case);
    for cases in rules.exact.values_mut() {
        cases.sort_by(Case::by_specificity);
        first_of_equals(cases, |_, _| true, |case| case);
        cases.shrink_to_fit();
    }
}

/// Leaves of the items with the same path and the same conditions only the first; those of one path stand together.
fn first_of_equals<T>(items: &mut Vec<T>, same_path: impl Fn(&T, &T) -> bool, case: impl Fn(&T) -> &Case) {
    let mut kept: Vec<T> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        let mut rivals = kept.iter().rev().take_while(|known| same_path(known, &item));
        if rivals.all(|known| case(known).conditions != case(&item).conditions) {
            kept.push(item);
        }
    }
    *items = kept;
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
    let filters = (!spec.filters.are_none()).then(|| Arc::new(spec.filters.clone()));
    Rule {
        name: Arc::from(name),
        backends,
        filters,
        timeout: spec.timeout,
        try_timeout: spec.try_timeout,
        requirements: spec.requirements.clone().map(Arc::new),
        priority: spec.priority,
    }
}

/// [`crate::Scope::breadth`] of everywhere.
const BREADTH_MAX: u8 = 3;
