//! The compiled routes: immutable, shared by every request of a snapshot.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use crate::{
    authorization::Authorization,
    backend::BackendPolicy,
    document::{
        PeerMode,
        route_filter::Filters,
        route_match::{Conditions, Headers, Pattern, is_below},
    },
    host::{host_of, parents, service_of},
    limits::RateLimit,
    priority::Priority,
    requirements::Requirements,
};

/// The name of the route that leads from `SERVICE.mesh` to SERVICE where no `HTTPRoute` is for that host.
pub const DEFAULT_ROUTE: &str = "default";

/// The same, ready to be handed out.
static DEFAULT_ROUTE_NAME: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(DEFAULT_ROUTE));

/// What of a request decides where it goes.
#[derive(Clone, Copy)]
pub struct RequestHead<'r> {
    /// The host asked for, with or without port, in any case.
    pub host: &'r str,
    /// The path as the request carries it, with its query.
    pub path: &'r str,
    /// The method.
    pub method: &'r str,
    /// The headers.
    pub headers: &'r dyn Headers,
}

impl<'r> RequestHead<'r> {
    /// A request without headers.
    #[must_use]
    pub const fn new(method: &'r str, host: &'r str, path: &'r str) -> Self {
        Self { host, path, method, headers: &() }
    }
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, path, method, headers: _ } = self;
        f.debug_struct("RequestHead").field("method", method).field("host", host).field("path", path).finish()
    }
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteDecision {
    /// To an instance of this service.
    Service {
        /// The service's name.
        service: Arc<str>,
        /// How long the whole request may take; `None` leaves it to the node.
        timeout: Option<Duration>,
        /// How long one try at one instance may take; `None` where the request's time is all there is.
        try_timeout: Option<Duration>,
        /// `scope/HTTPRoute/name#rule`, where rule is the rule's name or else its number from 0; or [`DEFAULT_ROUTE`].
        route_name: Arc<str>,
        /// What becomes of the request and its response on the way.
        filters: Option<Arc<Filters>>,
        /// Bytes of the path that the rule matched as a prefix.
        prefix: usize,
        /// What the node of an instance must be.
        requirements: Option<Arc<Requirements>>,
        /// How important it is; `None` leaves it to whoever sends it.
        priority: Option<Priority>,
    },
    /// Back to whoever asked, by [`Filters::redirect`].
    Redirect {
        /// As above.
        route_name: Arc<str>,
        /// Its `redirect` is there.
        filters: Arc<Filters>,
        /// As above.
        prefix: usize,
    },
    /// Nowhere: the host is neither a route's nor `SERVICE.mesh`, or its routes have no rule for the request.
    NoRoute,
}

/// Every route and every backend policy in force at one place. [`RouteTable::default`] is the table of no documents.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    pub(crate) routes: Routes,
    /// What locked routes keep, widest scope first.
    pub(crate) tiers: Vec<Tier>,
    pub(crate) backends: HashMap<Box<str>, BackendPolicy>,
    pub(crate) default_backend: BackendPolicy,
    pub(crate) authorizations: HashMap<Box<str>, Authorization>,
    pub(crate) open: Authorization,
    pub(crate) peer_modes: HashMap<Box<str>, PeerMode>,
    pub(crate) mesh_peer_mode: Option<PeerMode>,
    pub(crate) residencies: HashMap<Box<str>, BTreeSet<String>>,
}

/// Rules by host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    pub(crate) exact: HashMap<Box<str>, HostRules>,
    /// By the suffix without `*.`.
    pub(crate) below: HashMap<Box<str>, HostRules>,
}

/// What the locked routes of one scope keep for themselves and for documents no narrower than they.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tier {
    /// Whose hosts are kept.
    pub(crate) hosts: Routes,
    /// What their rules match is kept.
    pub(crate) requests: Routes,
    /// Where requests that are kept go.
    pub(crate) routes: Routes,
}

/// The rules of one host.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostRules {
    /// Of each path in the order tried.
    pub(crate) exact: HashMap<Box<str>, Vec<Case>>,
    /// Longest first.
    pub(crate) regexes: Vec<(Pattern, Case)>,
    /// Longest first.
    pub(crate) prefixes: Vec<(Box<str>, Case)>,
}

/// A rule for the requests of one path that are as the conditions say.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// `None` for every request.
    pub(crate) conditions: Option<Arc<Conditions>>,
    pub(crate) rule: Arc<Rule>,
}

/// Where the requests that a rule matches go.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: Arc<str>,
    /// None where the rule redirects.
    pub(crate) backends: Vec<Backend>,
    pub(crate) filters: Option<Arc<Filters>>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) try_timeout: Option<Duration>,
    pub(crate) requirements: Option<Arc<Requirements>>,
    pub(crate) priority: Option<Priority>,
}

/// A service with a weight above zero.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) service: Arc<str>,
    /// The weights up to and with this one.
    pub(crate) cumulated: f64,
}

impl RouteTable {
    /// Where `request` goes. `u`, uniform in [0, 1), decides between the backends of a rule by their weights.
    ///
    /// The longest matching host comes first (an exact name before `*.suffix`), then an exact path, then the longest
    /// regular expression, then the longest prefix by whole path elements, then what names a method, then what names
    /// more headers, then more parameters, then the narrower scope, then the name of the document, then the order in it.
    /// A host whose rules do not match the request yields to the next shorter one that is for it. Only where no route at
    /// all is for the host does `SERVICE.mesh` or `SERVICE.mesh.localhost` lead to SERVICE. Hosts compare without case, paths
    /// with it, byte by byte as sent.
    ///
    /// A request that a locked route keeps (all of its hosts, or what its rules match) is routed as if there were no
    /// documents of narrower scope than the lock's; of several locks the widest counts.
    #[must_use]
    pub fn route(&self, request: &RequestHead<'_>, u: f64) -> RouteDecision {
        let Some(host) = host_of(request.host) else { return RouteDecision::NoRoute };
        let asked = Asked::new(request);
        let kept = self.tiers.iter().find(|tier| tier.keeps(&host, &asked));
        let routes = kept.map_or(&self.routes, |tier| &tier.routes);
        let rules = routes.rules_for(&host).filter_map(|rules| rules.find(&asked));
        if let Some(decision) = rules.filter_map(|(rule, prefix)| rule.decide(u, prefix)).next() {
            return decision;
        }
        match service_of(&host) {
            Some(service) if !routes.is_for(&host) => RouteDecision::Service {
                service: Arc::from(service),
                timeout: None,
                try_timeout: None,
                route_name: Arc::clone(&DEFAULT_ROUTE_NAME),
                filters: None,
                prefix: 0,
                requirements: None,
                priority: None,
            },
            Some(_) | None => RouteDecision::NoRoute,
        }
    }

    /// How to balance over the instances of `service`: what the policies for it settle, or the default.
    #[must_use]
    pub fn backend(&self, service: &str) -> &BackendPolicy {
        self.backends.get(service).unwrap_or(&self.default_backend)
    }

    /// The rates that hold for all nodes together, by service.
    pub fn fleet_rates(&self) -> impl Iterator<Item = (&str, &RateLimit)> {
        self.backends
            .iter()
            .filter_map(|(service, backend)| Some((service.as_ref(), backend.limits.fleet_rate.as_ref()?)))
    }

    /// Who may ask `service` for what: every `AuthorizationPolicy` for it, composed. Without one everything is allowed.
    #[must_use]
    pub fn authorization(&self, service: &str) -> &Authorization {
        self.authorizations.get(service).unwrap_or(&self.open)
    }

    /// How strictly connections to `service` must prove who they are: the strictest of every `PeerAuthentication` for it
    /// or for the mesh. `None` where there is none, which leaves it to the node.
    #[must_use]
    pub fn peer_mode(&self, service: &str) -> Option<PeerMode> {
        self.peer_modes.get(service).copied().max(self.mesh_peer_mode)
    }

    /// The regions whose instances may answer requests for `service`: those that every `Residency` for it allows, which
    /// can be none at all. `None` where there is no such document, which is everywhere.
    #[must_use]
    pub fn residency(&self, service: &str) -> Option<&BTreeSet<String>> {
        self.residencies.get(service)
    }

    /// Whether an instance of `service` in `region` may answer requests; a node without a region is in none.
    #[must_use]
    pub fn may_answer_in(&self, service: &str, region: &str) -> bool {
        self.residency(service).is_none_or(|regions| regions.contains(region))
    }

    /// What rules that lead to `service` require of a node, each with the rule's name, in order of the names.
    #[must_use]
    pub fn requirements(&self, service: &str) -> Vec<(Arc<str>, Arc<Requirements>)> {
        let rules = self.routes.exact.values().chain(self.routes.below.values()).flat_map(HostRules::all);
        let leading = rules.filter(|rule| rule.share_of(service) > 0.0);
        let required: BTreeMap<_, _> = leading
            .filter_map(|rule| Some((Arc::clone(&rule.name), Arc::clone(rule.requirements.as_ref()?))))
            .collect();
        required.into_iter().collect()
    }

    /// The hosts that routes are for, `*.suffix` included, in no particular order.
    pub fn hosts(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let exact = self.routes.exact.keys().map(|host| Cow::Borrowed(host.as_ref()));
        exact.chain(self.routes.below.keys().map(|suffix| Cow::Owned(format!("*.{suffix}"))))
    }
}

impl Routes {
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// Whether a rule is for `host`, on any path.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        self.rules_for(host).next().is_some()
    }

    /// The rules of every host pattern that `host` matches, longest pattern first.
    fn rules_for<'t>(&'t self, host: &'t str) -> impl Iterator<Item = &'t HostRules> {
        let below = parents(host).filter_map(|suffix| self.below.get(suffix));
        self.exact.get(host).into_iter().chain(below)
    }
}

/// A request as rules look at it.
struct Asked<'r> {
    path: &'r str,
    query: &'r str,
    method: &'r str,
    headers: &'r dyn Headers,
}

impl<'r> Asked<'r> {
    fn new(request: &RequestHead<'r>) -> Self {
        let target = request.path.split('#').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self { path, query, method: request.method, headers: request.headers }
    }
}

impl Tier {
    fn keeps(&self, host: &str, asked: &Asked<'_>) -> bool {
        self.hosts.is_for(host) || self.requests.rules_for(host).any(|rules| rules.find(asked).is_some())
    }
}

impl HostRules {
    fn all(&self) -> impl Iterator<Item = &Rule> {
        let exact = self.exact.values().flatten();
        let by_regex = self.regexes.iter().map(|(_, case)| case);
        exact.chain(by_regex).chain(self.prefixes.iter().map(|(_, case)| case)).map(|case| &*case.rule)
    }

    /// The rule for a request, with the bytes of the path that it matched as a prefix.
    fn find(&self, asked: &Asked<'_>) -> Option<(&Rule, usize)> {
        let exact = self.exact.get(asked.path).into_iter().flatten().find(|case| case.holds(asked));
        let by_regex = || self.regexes.iter().find(|(regex, case)| regex.matches(asked.path) && case.holds(asked));
        let whole = exact.or_else(|| by_regex().map(|(_, case)| case)).map(|case| (&*case.rule, 0));
        whole.or_else(|| {
            let is_for = |(prefix, case): &&(Box<str>, Case)| is_below(asked.path, prefix) && case.holds(asked);
            self.prefixes.iter().find(is_for).map(|(prefix, case)| (&*case.rule, prefix.len()))
        })
    }
}

impl Case {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let holds = |conditions: &Arc<Conditions>| conditions.hold(asked.method, asked.headers, asked.query);
        self.conditions.as_ref().is_none_or(holds)
    }

    /// What says more of the request first.
    pub(crate) fn by_specificity(&self, other: &Self) -> std::cmp::Ordering {
        let specificity = |case: &Self| case.conditions.as_deref().map(Conditions::specificity);
        specificity(other).cmp(&specificity(self))
    }
}

impl Rule {
    /// The part of the rule's requests that goes to `service`, within 0 and 1.
    pub(crate) fn share_of(&self, service: &str) -> f64 {
        let mut before = 0.0;
        let mut share = 0.0;
        for backend in &self.backends {
            if *backend.service == *service {
                share += backend.cumulated - before;
            }
            before = backend.cumulated;
        }
        if before > 0.0 { share / before } else { 0.0 }
    }

    fn decide(&self, u: f64, prefix: usize) -> Option<RouteDecision> {
        if let Some(filters) = self.filters.as_ref().filter(|filters| filters.redirect.is_some()) {
            let (route_name, filters) = (Arc::clone(&self.name), Arc::clone(filters));
            return Some(RouteDecision::Redirect { route_name, filters, prefix });
        }
        let last = self.backends.last()?;
        let target = if u.is_nan() { 0.0 } else { u.clamp(0.0, 1.0) } * last.cumulated;
        let backend = self.backends.iter().find(|backend| target < backend.cumulated).unwrap_or(last);
        Some(RouteDecision::Service {
            service: Arc::clone(&backend.service),
            timeout: self.timeout,
            try_timeout: self.try_timeout,
            route_name: Arc::clone(&self.name),
            filters: self.filters.clone(),
            prefix,
            requirements: self.requirements.clone(),
            priority: self.priority,
        })
    }
}

#[cfg(test)]
mod tests;
