//! What a change of documents would touch: services, nodes, and how much of today's traffic.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::BackendPolicy,
    compile::table,
    document::{DocId, Document, route_filter::Filters, route_match::RouteMatch},
    host::HostPattern,
    in_force::Sorted,
    priority::Priority,
    reading::Reading,
    requirements::Requirements,
    routes::{self, Contest},
    scope::{Place, Scope},
    table::{RouteTable, Rule},
};

/// How much of all requests one node sends to one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    /// The service asked.
    pub service: String,
    /// The node that sends the requests, by its name.
    pub node: String,
    /// Part of all requests of the mesh, within 0 and 1.
    pub share: f64,
}

/// What going from one set of documents to another touches.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Impact {
    /// The services touched, by name.
    pub services: Vec<Touched>,
    /// The part of all requests that is touched, within 0 and 1.
    pub traffic_share_total: f64,
    /// The documents that are new or changed and expire, by id.
    pub expires: Vec<Expiry>,
}

/// One service for which something changes at some nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Touched {
    /// Its name.
    pub service: String,
    /// The nodes at which something changes, by name.
    pub nodes: Vec<String>,
    /// What changes, in this order: `routes`, `algorithm`, `halfDistance`, `epsilon`, `draw`, `nearest`,
    /// `healthCheck`, `limits`, `authorization`, `mtls`, `residency`.
    pub what: Vec<String>,
    /// The part of all requests that these nodes send to this service.
    pub traffic_share: f64,
}

/// When a document stops being in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// The document.
    pub document: DocId,
    /// In milliseconds since 1970; may be over already.
    pub at_ms: u64,
}

/// What changes, and at which nodes, by service.
type Changes = BTreeMap<String, (BTreeSet<&'static str>, BTreeSet<String>)>;

/// What going from the documents `before` to `after` touches at `places`, each a node's name with where it is, given the
/// traffic of late and the time `now_ms`, milliseconds since 1970.
///
/// A service is touched at a node when something that decides about its requests there differs: how it is balanced, who
/// may ask it, where it may answer, or which requests lead to it. That a request is no longer led elsewhere first, or
/// now is, counts as well; so this errs on the side of naming too much. Known services are those that a document or
/// `services` names.
#[must_use]
pub fn impact(
    before: &[Document],
    after: &[Document],
    places: &[(String, Place)],
    services: &[ServiceTraffic],
    now_ms: u64,
) -> Impact {
    let read = |documents: &[Document]| documents.iter().map(Reading::new).collect::<Vec<_>>();
    let (old, new) = (read(before), read(after));
    let (old, new) = (Sorted::new(&old, now_ms), Sorted::new(&new, now_ms));
    let scopes: BTreeSet<String> = old.scopes().chain(new.scopes()).map(Scope::to_string).collect();
    let scopes: Vec<Scope> = scopes.iter().filter_map(|scope| scope.parse().ok()).collect();
    // Places that the same scopes cover see the same policy.
    let mut alike: BTreeMap<Vec<bool>, Vec<&(String, Place)>> = BTreeMap::new();
    for place in places {
        alike.entry(scopes.iter().map(|scope| scope.covers(&place.1)).collect()).or_default().push(place);
    }
    let mut changes = Changes::new();
    for group in alike.values() {
        let Some((_, place)) = group.first() else { continue };
        let (old, new) = (View::new(&old, place), View::new(&new, place));
        for (service, what) in differences(&old, &new, services) {
            let (all, nodes) = changes.entry(service).or_default();
            all.extend(what);
            nodes.extend(group.iter().map(|(node, _)| node.clone()));
        }
    }
    let services: Vec<Touched> = changes
        .into_iter()
        .map(|(service, (what, nodes))| {
            let counts = |traffic: &&ServiceTraffic| traffic.service == service && nodes.contains(&traffic.node);
            let traffic_share = services.iter().filter(counts).map(|traffic| traffic.share).sum();
            let what = WHAT.iter().filter(|word| what.contains(**word)).map(|word| (*word).to_owned()).collect();
            Touched { service, nodes: nodes.into_iter().collect(), what, traffic_share }
        })
        .collect();
    let traffic_share_total = services.iter().map(|touched| touched.traffic_share).sum();
    Impact { services, traffic_share_total, expires: expires(before, after) }
}

fn expires(before: &[Document], after: &[Document]) -> Vec<Expiry> {
    let mut expires: Vec<Expiry> = (after.iter())
        .filter(|document| !before.contains(document))
        .filter_map(|document| Some(Expiry { document: document.id(), at_ms: document.metadata.expires_at_ms()? }))
        .collect();
    expires.sort_by(|left, right| (&left.document, left.at_ms).cmp(&(&right.document, right.at_ms)));
    expires
}

/// Policy at one place, in the form in which two are compared.
struct View {
    table: RouteTable,
    routes: BTreeMap<(HostPattern, RouteMatch), Led>,
}

/// Where the requests of one match lead, and what becomes of them.
#[derive(Debug, PartialEq)]
struct Led {
    /// Services in the order drawn, each with its part.
    services: Vec<(String, f64)>,
    timeouts: [Option<Duration>; 2],
    filters: Option<Arc<Filters>>,
    requirements: Option<Arc<Requirements>>,
    priority: Option<Priority>,
    is_locked: bool,
}

impl View {
    fn new(sorted: &Sorted<'_>, here: &Place) -> Self {
        let entries = routes::entries(&sorted.at(here));
        let contests = routes::contests(&entries).into_iter();
        let routes = contests.map(|Contest { winner, locked_by, .. }| {
            let led = Led::new(winner.rule, locked_by.is_some());
            ((winner.host.clone(), winner.matched.clone()), led)
        });
        Self { routes: routes.collect(), table: table(sorted, here) }
    }

    /// The services that policy says something of.
    fn services(&self) -> impl Iterator<Item = &str> {
        let table = &self.table;
        let keyed = table.backends.keys().chain(table.authorizations.keys());
        let keyed = keyed.chain(table.peer_modes.keys()).chain(table.residencies.keys()).map(AsRef::as_ref);
        keyed.chain(self.routes.values().flat_map(|led| led.services.iter().map(|(service, _)| service.as_str())))
    }
}

impl Led {
    fn new(rule: &Rule, is_locked: bool) -> Self {
        let services = rule.backends.iter().map(|backend| backend.service.to_string());
        let services = services.map(|service| (rule.share_of(&service), service));
        let services = services.map(|(share, service)| (service, share)).collect();
        let timeouts = [rule.timeout, rule.try_timeout];
        let (filters, requirements) = (rule.filters.clone(), rule.requirements.clone());
        Self { services, timeouts, filters, requirements, priority: rule.priority, is_locked }
    }
}

/// The services for which something differs between two views of one place, each with what.
fn differences(old: &View, new: &View, traffic: &[ServiceTraffic]) -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut found: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for service in rerouted(old, new) {
        found.entry(service).or_default().insert("routes");
    }
    let asked = traffic.iter().map(|traffic| traffic.service.as_str());
    let services: BTreeSet<&str> = old.services().chain(new.services()).chain(asked).collect();
    for service in services {
        let what = service_differences(&old.table, &new.table, service);
        if !what.is_empty() {
            found.entry(service.to_owned()).or_default().extend(what);
        }
    }
    found
}

fn service_differences(old: &RouteTable, new: &RouteTable, service: &str) -> Vec<&'static str> {
    let BackendPolicy {
        algorithm,
        lambda_per_ms,
        epsilon,
        draw,
        nearest,
        outlier,
        limits,
        locality,
        panic_threshold_percent,
        slow_start,
        source: _,
    } = old.backend(service);
    let next = new.backend(service);
    let differs = |left: f64, right: f64| left.to_bits() != right.to_bits();
    // By its own name a service is reached only where no route is for that host.
    let own_names = [format!("{service}.mesh"), format!("{service}.mesh.localhost")];
    let claimed = |table: &RouteTable| own_names.each_ref().map(|host| table.routes.is_for(host));
    let all = [
        ("routes", claimed(old) != claimed(new)),
        ("algorithm", *algorithm != next.algorithm),
        ("halfDistance", differs(*lambda_per_ms, next.lambda_per_ms)),
        ("epsilon", differs(*epsilon, next.epsilon)),
        ("draw", *draw != next.draw),
        ("nearest", *nearest != next.nearest),
        ("slowStart", *slow_start != next.slow_start),
        ("locality", *locality != next.locality),
        ("healthCheck", *outlier != next.outlier || *panic_threshold_percent != next.panic_threshold_percent),
        ("limits", *limits != next.limits),
        ("authorization", old.authorization(service) != new.authorization(service)),
        ("mtls", old.peer_mode(service) != new.peer_mode(service)),
        ("residency", old.residency(service) != new.residency(service)),
    ];
    all.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}

/// The services that get other requests than before.
fn rerouted(old: &View, new: &View) -> BTreeSet<String> {
    let mut services = BTreeSet::new();
    let places: BTreeSet<&(HostPattern, RouteMatch)> = old.routes.keys().chain(new.routes.keys()).collect();
    for place in places {
        let (was, is) = (old.routes.get(place), new.routes.get(place));
        if was == is {
            continue;
        }
        services.extend(was.into_iter().chain(is).flat_map(Led::names));
        // What comes or goes, or is kept by a lock, takes requests from its neighbours or gives them back.
        if was.map(|led| led.is_locked) != is.map(|led| led.is_locked) || was.is_none() || is.is_none() {
            services.extend(neighbours(place, old).chain(neighbours(place, new)));
        }
    }
    services
}

impl Led {
    fn names(&self) -> impl Iterator<Item = String> {
        let mirrors = self.filters.iter().flat_map(|filters| &filters.mirrors).map(|mirror| mirror.service.clone());
        self.services.iter().map(|(service, _)| service.clone()).chain(mirrors)
    }
}

/// The services that requests for `place` could lead to by another entry.
fn neighbours<'v>(place: &'v (HostPattern, RouteMatch), view: &'v View) -> impl Iterator<Item = String> + 'v {
    let (host, matched) = place;
    let meets = move |(other_host, other): &(HostPattern, RouteMatch)| {
        (host.covers(other_host) || other_host.covers(host)) && matched.meets(other)
    };
    view.routes.iter().filter(move |(other, _)| meets(other)).flat_map(|(_, led)| led.names())
}

/// What may change, in the order told.
const WHAT: [&str; 13] = [
    "routes",
    "algorithm",
    "halfDistance",
    "epsilon",
    "draw",
    "nearest",
    "slowStart",
    "locality",
    "healthCheck",
    "limits",
    "authorization",
    "mtls",
    "residency",
];

#[cfg(test)]
mod tests;
