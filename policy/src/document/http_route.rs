//! The spec of `HTTPRoute`: which service answers which host and path.

use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, LIST_MOST, item, shown, text};
use crate::{
    host::HostPattern,
    name::{bend, is_label},
    problem::{Faults, nearest_name},
};

/// What one document says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct HttpRouteSpec {
    pub(crate) hostnames: Vec<HostPattern>,
    pub(crate) rules: Vec<RuleSpec>,
}

/// One rule: these paths go to those services.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct RuleSpec {
    pub(crate) name: Option<String>,
    /// At least one; a rule without matches matches every path.
    pub(crate) matches: Vec<PathMatch>,
    /// Service and weight; at least one weight is above zero.
    pub(crate) backends: Vec<(String, u32)>,
    pub(crate) timeout: Option<Duration>,
}

/// Which paths a rule is for. Case counts; the query does not take part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PathMatch {
    /// The path and nothing else.
    Exact(String),
    /// The path and what is below it, by whole elements; without a final slash, so that `/` is empty.
    Prefix(String),
}

impl PathMatch {
    /// Whether every path that `other` is for is one that this is for.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(prefix), Self::Prefix(path) | Self::Exact(path)) => is_below(path, prefix),
            (Self::Exact(path), Self::Exact(inner)) => path == inner,
            (Self::Exact(_), Self::Prefix(_)) => false,
        }
    }
}

/// Whether `path` is `prefix` or lies below it by whole elements. A prefix has no final slash; the root is empty.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty())
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
        let Some(fields) = Fields::open(value, &path, &["name", "matches", "backendRefs", "timeouts"], faults) else {
            continue;
        };
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
        matches.extend(path_match(value, &item(&path, index), faults));
    }
    if fields.get("matches").is_none_or(|value| value.as_array().is_some_and(Vec::is_empty)) {
        matches.push(PathMatch::Prefix(String::new()));
    }
    let backends = backends(fields, faults);
    let timeouts = fields.get("timeouts");
    let timeouts = timeouts.and_then(|value| Fields::open(value, &fields.at("timeouts"), &["request"], faults));
    let timeout = timeouts.and_then(|timeouts| timeouts.duration("request", TIMEOUT_MOST, faults));
    RuleSpec { name, matches, backends, timeout }
}

fn path_match(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<PathMatch> {
    let fields = Fields::open(value, path, &["path"], faults)?;
    let Some(value) = fields.get("path") else { return Some(PathMatch::Prefix(String::new())) };
    let fields = Fields::open(value, &fields.at("path"), &["type", "value"], faults)?;
    let exact = match fields.get("type") {
        None => Some(false),
        Some(_) => fields.text("type", faults).and_then(|word| match word {
            "PathPrefix" => Some(false),
            "Exact" => Some(true),
            _ => {
                let hint = nearest_name(word, &["PathPrefix", "Exact"])
                    .map_or("this version carries PathPrefix and Exact".to_owned(), |name| {
                        format!("did you mean `{name}`?")
                    });
                faults.hint(&fields.at("type"), format_args!("`{}` is not a known word", shown(word)), hint);
                None
            }
        }),
    };
    let value = match fields.get("value") {
        None => Some("/"),
        Some(_) => fields.text("value", faults),
    };
    let value = value?;
    if let Some((fault, hint)) = path_fault(value) {
        faults.hint(&fields.at("value"), format_args!("`{}` {fault}", shown(value)), hint);
        return None;
    }
    Some(if exact? {
        PathMatch::Exact(value.to_owned())
    } else {
        PathMatch::Prefix(value.strip_suffix('/').unwrap_or(value).to_owned())
    })
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

/// As in Gateway API.
const WEIGHT_MOST: u32 = 1_000_000;
const TIMEOUT_MOST: Duration = Duration::from_secs(24 * 3600);
const PATH_BYTES_MAX: usize = 1024;
