//! The compiled routes: immutable, shared by every request of a snapshot.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use crate::{
    backend::BackendPolicy,
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
    pub(crate) exact: HashMap<Box<str>, HostRules>,
    /// By the suffix without `*.`.
    pub(crate) below: HashMap<Box<str>, HostRules>,
    pub(crate) backends: HashMap<Box<str>, BackendPolicy>,
    pub(crate) default_backend: BackendPolicy,
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
    #[must_use]
    pub fn route(&self, request: &RequestHead<'_>, u: f64) -> RouteDecision {
        let Some(host) = host_of(request.host) else { return RouteDecision::NoRoute };
        let path = request.path.split(['?', '#']).next().unwrap_or_default();
        let mut claimed = false;
        for rules in self.rules_for(&host) {
            claimed = true;
            if let Some(decision) = rules.find(path).and_then(|rule| rule.decide(u)) {
                return decision;
            }
        }
        match service_of(&host) {
            Some(service) if !claimed => RouteDecision::Service {
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

    /// The hosts that routes are for, `*.suffix` included, in no particular order.
    pub fn hosts(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let exact = self.exact.keys().map(|host| Cow::Borrowed(host.as_ref()));
        exact.chain(self.below.keys().map(|suffix| Cow::Owned(format!("*.{suffix}"))))
    }

    /// The rules of every host pattern that `host` matches, longest pattern first.
    fn rules_for<'t>(&'t self, host: &'t str) -> impl Iterator<Item = &'t HostRules> {
        let below = parents(host).filter_map(|suffix| self.below.get(suffix));
        self.exact.get(host).into_iter().chain(below)
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

/// Whether `path` is `prefix` or lies below it by whole elements. A prefix has no final slash; the root is empty.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty())
}

#[cfg(test)]
mod tests;
