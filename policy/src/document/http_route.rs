//! The spec of `HTTPRoute`: which service answers which requests.

use std::time::Duration;

use serde_json::Value;

use super::{
    fields::{Fields, LIST_MOST, item, shown, text},
    requirements,
    route_filter::{self, Filters},
    route_match::{self, RouteMatch},
};
use crate::{
    host::HostPattern,
    name::{bend, is_label},
    priority::Priority,
    problem::Faults,
    requirements::Requirements,
};

/// What one document says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct HttpRouteSpec {
    pub(crate) hostnames: Vec<HostPattern>,
    pub(crate) rules: Vec<RuleSpec>,
}

/// One rule: these requests go to those services.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct RuleSpec {
    pub(crate) name: Option<String>,
    /// At least one; a rule without matches matches every request.
    pub(crate) matches: Vec<RouteMatch>,
    /// Service and weight; at least one weight is above zero. None where the rule redirects.
    pub(crate) backends: Vec<(String, u32)>,
    pub(crate) filters: Filters,
    pub(crate) timeout: Option<Duration>,
    /// For one try at one instance.
    pub(crate) try_timeout: Option<Duration>,
    pub(crate) requirements: Option<Requirements>,
    pub(crate) priority: Option<Priority>,
}

/// Reads the spec at `spec`; complete where it leaves no faults.
pub(crate) fn read(spec: &Value, faults: &mut Faults<'_>) -> HttpRouteSpec {
    let mut read = HttpRouteSpec::default();
    let Some(fields) = Fields::open(spec, "spec", &["hostnames", "rules"], faults) else { return read };
    read.hostnames = hostnames(&fields, faults);
    read.rules = rules(&fields, faults);
    read
}

fn hostnames(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Vec<HostPattern> {
    let hint = "list the hosts this route is for, as `shop.mesh` or `*.shop.mesh`";
    fields.require("hostnames", hint, faults);
    let mut hosts = Vec::new();
    let path = fields.at("hostnames");
    for (index, value) in fields.at_least_one("hostnames", hint, faults).iter().enumerate() {
        let path = item(&path, index);
        let Some(host) = text(value, &path, faults) else { continue };
        match HostPattern::read(host) {
            Ok(host) => hosts.push(host),
            Err((fault, hint)) => faults.push(&path, format_args!("`{}` {fault}", shown(host)), hint),
        }
    }
    hosts
}

fn rules(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Vec<RuleSpec> {
    let hint = "add a rule with `backendRefs`";
    fields.require("rules", hint, faults);
    let mut rules: Vec<RuleSpec> = Vec::new();
    let path = fields.at("rules");
    for (index, value) in fields.at_least_one("rules", hint, faults).iter().enumerate() {
        let path = item(&path, index);
        let Some(fields) = Fields::open(value, &path, &RULE, faults) else { continue };
        let rule = rule(&fields, faults);
        if rule.name.is_some() && rules.iter().any(|other| other.name == rule.name) {
            faults.hint(&fields.at("name"), "another rule of this document has this name", "rename one of them");
        }
        rules.push(rule);
    }
    rules
}

fn rule(fields: &Fields<'_>, faults: &mut Faults<'_>) -> RuleSpec {
    let name = label(fields, "name", faults);
    let mut matches = Vec::new();
    let path = fields.at("matches");
    for (index, value) in fields.list("matches", LIST_MOST, faults).unwrap_or_default().iter().enumerate() {
        matches.extend(route_match::read(value, &item(&path, index), faults));
    }
    if fields.get("matches").is_none_or(|value| value.as_array().is_some_and(Vec::is_empty)) {
        matches.push(RouteMatch::ALL);
    }
    let filters = route_filter::read(fields, &matches, faults);
    let backends = if filters.redirect.is_some() { no_backends(fields, faults) } else { backends(fields, faults) };
    let (timeout, try_timeout) = timeouts(fields, faults);
    let requirements = requirements::read(fields, faults);
    let priority = fields.word("priority", &Priority::WORDS, &[], faults);
    RuleSpec { name, matches, backends, filters, timeout, try_timeout, requirements, priority }
}

fn no_backends(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Vec<(String, u32)> {
    if fields.get("backendRefs").is_some() {
        faults.hint(&fields.at("backendRefs"), "nobody is asked where the rule redirects", "leave it out");
    }
    Vec::new()
}

/// For the whole request, and for one try.
fn timeouts(fields: &Fields<'_>, faults: &mut Faults<'_>) -> (Option<Duration>, Option<Duration>) {
    let Some(value) = fields.get("timeouts") else { return (None, None) };
    let Some(fields) = Fields::open(value, &fields.at("timeouts"), &["request", "backendRequest"], faults) else {
        return (None, None);
    };
    let whole = fields.duration("request", TIMEOUT_MOST, faults);
    let one = fields.duration("backendRequest", TIMEOUT_MOST, faults);
    if let (Some(whole), Some(one)) = (whole, one)
        && one > whole
    {
        let hint = "a try ends with the request at the latest";
        faults.hint(&fields.at("backendRequest"), "is longer than `request`", hint);
    }
    (whole, one)
}

/// What keeps `path` from ever matching a request, as Gateway API lists it, with the way out.
pub(super) fn path_fault(path: &str) -> Option<(&'static str, &'static str)> {
    let element = |name: &str| path.split('/').any(|element| element == name);
    if !path.starts_with('/') {
        Some(("does not begin with `/`", "a path begins with `/`"))
    } else if path.len() > PATH_BYTES_MAX {
        Some(("is longer than 1024 bytes", "match a shorter prefix"))
    } else if path.contains("//") {
        Some(("has an empty element", "write one `/` where there are two"))
    } else if element(".") || element("..") {
        Some(("has a relative element", "write the path without `.` and `..`"))
    } else if path.contains(['?', '#']) {
        Some(("is more than a path", "leave out the query and the fragment; they do not take part"))
    } else if path.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        Some(("has bytes that a path cannot have", "percent-encode them, as requests do"))
    } else {
        None
    }
}

fn backends(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Vec<(String, u32)> {
    let hint = "name at least one service, as `backendRefs: [ { name: shop } ]`";
    fields.require("backendRefs", hint, faults);
    let path = fields.at("backendRefs");
    let found = faults.len();
    let mut backends = Vec::new();
    for (index, value) in fields.at_least_one("backendRefs", hint, faults).iter().enumerate() {
        let path = item(&path, index);
        let Some(fields) = Fields::open(value, &path, &["name", "weight"], faults) else { continue };
        fields.require("name", "name the service", faults);
        let name = label(&fields, "name", faults);
        let weight = match fields.get("weight") {
            None => Some(1),
            Some(_) => fields.whole("weight", 0, WEIGHT_MOST, faults),
        };
        if let (Some(name), Some(weight)) = (name, weight) {
            backends.push((name, weight));
        }
    }
    if faults.len() == found && !backends.is_empty() && backends.iter().all(|(_, weight)| *weight == 0) {
        faults.hint(&path, "every weight is 0, so nothing would answer", "give one of them a weight above 0");
    }
    backends
}

pub(super) fn label(fields: &Fields<'_>, name: &str, faults: &mut Faults<'_>) -> Option<String> {
    let text = fields.text(name, faults)?;
    if is_label(text) {
        return Some(text.to_owned());
    }
    let hint = bend(text, false).map(|name| format!("write `{name}`"));
    faults.push(&fields.at(name), format_args!("`{}` is not a DNS label", shown(text)), hint);
    None
}

const RULE: [&str; 8] =
    ["name", "matches", "filters", "backendRefs", "timeouts", "requirements", "onUnmatched", "priority"];
/// As in Gateway API.
const WEIGHT_MOST: u32 = 1_000_000;
const TIMEOUT_MOST: Duration = Duration::from_secs(24 * 3600);
const PATH_BYTES_MAX: usize = 1024;
