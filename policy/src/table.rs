//! The compiled routes: immutable, shared by every request of a snapshot.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{
    authorization::Authorization,
    backend::BackendPolicy,
    document::{PeerMode, http_route::is_below},
    host::{host_of, parents, service_of},
};

/// The name of the route that leads from `SERVICE.mesh` to SERVICE where no `HTTPRoute` is for that host.
pub const DEFAULT_ROUTE: &str = "default";

/// What of a request decides where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHead<'r> {
    /// The host asked for, with or without port, in any case.
    pub host: &'r str,
    /// The path as the request carries it; what follows `?` or `#` does not take part.
    pub path: &'r str,
    /// The method. No rule of this version looks at it.
    pub method: &'r str,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteDecision {
    /// To an instance of this service.
    Service {
        /// The service's name.
        service: Arc<str>,
        /// How long the whole request may take; `None` leaves it to the node.
        timeout: Option<Duration>,
        /// `scope/HTTPRoute/name#rule`, where rule is the rule's name or else its number from 0; or [`DEFAULT_ROUTE`].
        route_name: Arc<str>,
    },
    /// Nowhere: the host is neither a route's nor `SERVICE.mesh`, or its routes have no rule for the path.
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
    pub(crate) exact: HashMap<Box<str>, Arc<Rule>>,
    /// Longest first.
    pub(crate) prefixes: Vec<(Box<str>, Arc<Rule>)>,
}

/// Where the requests that a rule matches go.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: Arc<str>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) timeout: Option<Duration>,
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
    /// prefix by whole path elements, then the narrower scope, then the name of the document, then the order in it. A
    /// host whose rules do not match the path yields to the next shorter one that is for it. Only where no route at all
    /// is for the host does `SERVICE.mesh` or `SERVICE.mesh.localhost` lead to SERVICE. Hosts compare without case, paths
    /// with it, byte by byte as sent.
    ///
    /// A request that a locked route keeps (all of its hosts, or what its rules match) is routed as if there were no
    /// documents of narrower scope than the lock's; of several locks the widest counts.
    #[must_use]
    pub fn route(&self, request: &RequestHead<'_>, u: f64) -> RouteDecision {
        let Some(host) = host_of(request.host) else { return RouteDecision::NoRoute };
        let path = request.path.split(['?', '#']).next().unwrap_or_default();
        let kept = self.tiers.iter().find(|tier| tier.keeps(&host, path));
        let routes = kept.map_or(&self.routes, |tier| &tier.routes);
        let rules = routes.rules_for(&host).filter_map(|rules| rules.find(path));
        if let Some(decision) = rules.filter_map(|rule| rule.decide(u)).next() {
            return decision;
        }
        match service_of(&host) {
            Some(service) if !routes.is_for(&host) => RouteDecision::Service {
                service: Arc::from(service),
                timeout: None,
                route_name: Arc::from(DEFAULT_ROUTE),
            },
            Some(_) | None => RouteDecision::NoRoute,
        }
    }

    /// How to balance over the instances of `service`: what the policies for it settle, or the default.
    #[must_use]
    pub fn backend(&self, service: &str) -> &BackendPolicy {
        self.backends.get(service).unwrap_or(&self.default_backend)
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

impl Tier {
    fn keeps(&self, host: &str, path: &str) -> bool {
        self.hosts.is_for(host) || self.requests.rules_for(host).any(|rules| rules.find(path).is_some())
    }
}

impl HostRules {
    fn find(&self, path: &str) -> Option<&Rule> {
        let exact = self.exact.get(path);
        let by_prefix = || self.prefixes.iter().find(|(prefix, _)| is_below(path, prefix)).map(|(_, rule)| rule);
        exact.or_else(by_prefix).map(Arc::as_ref)
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

    fn decide(&self, u: f64) -> Option<RouteDecision> {
        let last = self.backends.last()?;
        let target = if u.is_nan() { 0.0 } else { u.clamp(0.0, 1.0) } * last.cumulated;
        let backend = self.backends.iter().find(|backend| target < backend.cumulated).unwrap_or(last);
        Some(RouteDecision::Service {
            service: Arc::clone(&backend.service),
            timeout: self.timeout,
            route_name: Arc::clone(&self.name),
        })
    }
}

#[cfg(test)]
mod tests;
