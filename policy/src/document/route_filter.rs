//! What a rule of an `HTTPRoute` does to the requests it is for, beside choosing a service.

use serde_json::Value;

use super::{
    fields::{Fields, item, shown},
    http_route::{label, path_fault},
    route_match::{PathMatch, RouteMatch, header_name},
};
use crate::problem::Faults;

/// The filters of one rule. [`Filters::default`] is none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filters {
    /// For the request, before it is sent.
    pub request_headers: HeaderChanges,
    /// For the response, before it is handed to whoever asked.
    pub response_headers: HeaderChanges,
    /// Where whoever asked is sent instead; then no instance is asked.
    pub redirect: Option<Redirect>,
    /// What the instance is asked for instead.
    pub rewrite: Option<Rewrite>,
    /// Who else gets the request, without anybody waiting for the answer.
    pub mirrors: Vec<Mirror>,
}

/// Changes of headers: first those removed go, then values are set in place of all others, then added to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderChanges {
    /// Names in lower case.
    pub remove: Vec<String>,
    /// Names in lower case and values.
    pub set: Vec<(String, String)>,
    /// Names in lower case and values.
    pub add: Vec<(String, String)>,
}

/// An answer that names another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; `None` for `http`, by which the request came.
    pub scheme: Option<String>,
    /// `None` for the host asked for.
    pub hostname: Option<String>,
    /// `None` for the scheme's own where `scheme` is given, else for the one asked for.
    pub port: Option<u16>,
    /// `None` for the path asked for.
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Another host or path for the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// What `Host` says; `None` for what was asked for.
    pub hostname: Option<String>,
    /// `None` for the path asked for.
    pub path: Option<PathChange>,
}

/// Another path, without the query, which stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// This one.
    Full(String),
    /// This one in place of the prefix that the rule matched.
    Prefix(String),
}

/// A copy of some requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// The service that gets them.
    pub service: String,
    /// The part of the requests, within 0 and 1.
    pub share: f64,
}

impl Filters {
    /// Whether there is none.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

impl HeaderChanges {
    /// Whether nothing changes.
    #[must_use]
    pub const fn are_none(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

impl Redirect {
    /// Where a request for `authority` (host, with or without port) and `target` (path and query) is sent, when the rule
    /// matched `prefix` bytes of the path.
    #[must_use]
    pub fn location(&self, authority: &str, target: &str, prefix: usize) -> String {
        let (host, asked_port) = split_port(authority);
        let host = self.hostname.as_deref().unwrap_or(host);
        let port = self.port.map(|port| port.to_string());
        let port = port.or_else(|| self.scheme.is_none().then(|| asked_port.map(str::to_owned)).flatten());
        let scheme = self.scheme.as_deref().unwrap_or("http");
        let is_own = matches!((scheme, port.as_deref()), ("http", Some("80")) | ("https", Some("443")));
        let port = port.filter(|_| !is_own).map_or_else(String::new, |port| format!(":{port}"));
        format!("{scheme}://{host}{port}{}", changed(self.path.as_ref(), target, prefix))
    }
}

impl Rewrite {
    /// The path and query for the instance, of `target` (path and query), when the rule matched `prefix` bytes of the
    /// path.
    #[must_use]
    pub fn target(&self, target: &str, prefix: usize) -> String {
        changed(self.path.as_ref(), target, prefix)
    }
}

fn changed(change: Option<&PathChange>, target: &str, prefix: usize) -> String {
    let end = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    match change {
        None => target.to_owned(),
        Some(PathChange::Full(full)) => format!("{full}{query}"),
        Some(PathChange::Prefix(new)) => {
            let rest = path.get(prefix..).unwrap_or_default();
            let new = new.strip_suffix('/').unwrap_or(new);
            let path =
                if rest.is_empty() || rest.starts_with('/') { format!("{new}{rest}") } else { format!("{new}/{rest}") };
            format!("{}{query}", if path.is_empty() { "/" } else { &path })
        }
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (host, Some(port)),
        Some(_) | None => (authority, None),
    }
}

/// Reads the `filters` of a rule that is for `matches`.
pub(super) fn read(rule: &Fields<'_>, matches: &[RouteMatch], faults: &mut Faults<'_>) -> Filters {
    let mut filters = Filters::default();
    let mut seen: Vec<Type> = Vec::new();
    let path = rule.at("filters");
    for (index, value) in rule.list("filters", FILTERS_MAX, faults).unwrap_or_default().iter().enumerate() {
        let path = item(&path, index);
        let known = TYPES.map(|(_, _, field)| field);
        let known: Vec<&str> = std::iter::once("type").chain(known).collect();
        let Some(fields) = Fields::open(value, &path, &known, faults) else { continue };
        fields.require("type", "say which filter it is, as `type: URLRewrite`", faults);
        let words = TYPES.map(|(word, of, _)| (word, of));
        let Some(of) = fields.word("type", &words, &["ExtensionRef", "CORS"], faults) else { continue };
        if of != Type::Mirror && seen.contains(&of) {
            faults.hint(&fields.at("type"), "this filter stands here twice", "put both into one");
            continue;
        }
        seen.push(of);
        one(&fields, of, matches, &mut filters, faults);
    }
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        faults.hint(&path, "a request is redirected or rewritten, not both", "keep one of the two filters");
    }
    filters
}

fn one(fields: &Fields<'_>, of: Type, matches: &[RouteMatch], filters: &mut Filters, faults: &mut Faults<'_>) {
    let Some((word, _, field)) = TYPES.iter().find(|(_, known, _)| *known == of) else { return };
    let Some(value) = fields.require(field, &format!("{word} says what to do in `{field}`"), faults) else { return };
    let path = fields.at(field);
    for (other, _, other_field) in TYPES.iter().filter(|(_, known, _)| *known != of) {
        if fields.get(other_field).is_some() {
            let hint = format!("a filter of type {other} is an item of its own");
            faults.hint(&fields.at(other_field), format_args!("does not belong to {word}"), hint);
        }
    }
    match of {
        Type::RequestHeaders => filters.request_headers = header_changes(value, &path, faults),
        Type::ResponseHeaders => filters.response_headers = header_changes(value, &path, faults),
        Type::Redirect => filters.redirect = redirect(value, &path, matches, faults),
        Type::Rewrite => filters.rewrite = rewrite(value, &path, matches, faults),
        Type::Mirror => filters.mirrors.extend(mirror(value, &path, faults)),
    }
}

fn header_changes(value: &Value, path: &str, faults: &mut Faults<'_>) -> HeaderChanges {
    let Some(fields) = Fields::open(value, path, &["set", "add", "remove"], faults) else {
        return HeaderChanges::default();
    };
    let mut remove = Vec::new();
    let path = fields.at("remove");
    for (index, value) in fields.list("remove", HEADERS_MAX, faults).unwrap_or_default().iter().enumerate() {
        let path = item(&path, index);
        let Some(name) = super::fields::text(value, &path, faults) else { continue };
        remove.extend(free_name(name, &path, faults));
    }
    let [set, add] = ["set", "add"].map(|field| named_values(&fields, field, faults));
    HeaderChanges { remove, set, add }
}

fn named_values(fields: &Fields<'_>, field: &str, faults: &mut Faults<'_>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let path = fields.at(field);
    for (index, value) in fields.list(field, HEADERS_MAX, faults).unwrap_or_default().iter().enumerate() {
        let Some(fields) = Fields::open(value, &item(&path, index), &["name", "value"], faults) else { continue };
        fields.require("name", "name the header", faults);
        fields.require("value", "say what it is to be", faults);
        let name = fields.text("name", faults).and_then(|name| free_name(name, &fields.at("name"), faults));
        let (Some(name), Some(value)) = (name, fields.text("value", faults)) else { continue };
        let is_text = |byte: u8| byte == b'\t' || (b' '..0x7f).contains(&byte);
        if value.len() > HEADER_VALUE_MAX || !value.bytes().all(is_text) || value.trim() != value {
            let hint = format!("printable ASCII, {HEADER_VALUE_MAX} bytes at most, without spaces around it");
            faults.hint(&fields.at("value"), format_args!("`{}` is not a header's value", shown(value)), hint);
            continue;
        }
        found.push((name, value.to_owned()));
    }
    found
}

/// The name of a header that a rule may change: not those that say where a message ends or who speaks.
fn free_name(name: &str, path: &str, faults: &mut Faults<'_>) -> Option<String> {
    let name = header_name(name, path, faults)?;
    if KEPT.contains(&name.as_str()) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        let hint = "headers that frame a message, belong to one connection or carry the mesh's own word are left alone";
        faults.hint(path, format_args!("`{name}` is not for a rule to change"), hint);
        return None;
    }
    Some(name)
}

fn redirect(value: &Value, path: &str, matches: &[RouteMatch], faults: &mut Faults<'_>) -> Option<Redirect> {
    let fields = Fields::open(value, path, &["scheme", "hostname", "path", "port", "statusCode"], faults)?;
    let scheme = fields.word("scheme", &[("http", "http"), ("https", "https")], &[], faults).map(str::to_owned);
    let hostname = hostname(&fields, faults);
    let port = fields.whole("port", 1, 65_535, faults).and_then(|port| u16::try_from(port).ok());
    let status = match fields.whole("statusCode", 301, 308, faults) {
        None => 302,
        Some(status) if STATUSES.contains(&status) => u16::try_from(status).unwrap_or(302),
        Some(status) => {
            let hint = "301 and 308 for good, 302 and 307 for now, 303 to be asked for by GET";
            faults.hint(&fields.at("statusCode"), format_args!("{status} does not redirect"), hint);
            302
        }
    };
    Some(Redirect { scheme, hostname, port, path: path_change(&fields, matches, faults), status })
}

fn rewrite(value: &Value, path: &str, matches: &[RouteMatch], faults: &mut Faults<'_>) -> Option<Rewrite> {
    let fields = Fields::open(value, path, &["hostname", "path"], faults)?;
    Some(Rewrite { hostname: hostname(&fields, faults), path: path_change(&fields, matches, faults) })
}

fn hostname(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Option<String> {
    let name = fields.text("hostname", faults)?;
    if crate::name::is_name(name) {
        return Some(name.to_owned());
    }
    let hint = "write it in small letters and without a port, as `shop.example`";
    faults.hint(&fields.at("hostname"), format_args!("`{}` is not a host's name", shown(name)), hint);
    None
}

fn path_change(fields: &Fields<'_>, matches: &[RouteMatch], faults: &mut Faults<'_>) -> Option<PathChange> {
    let value = fields.get("path")?;
    let fields = Fields::open(value, &fields.at("path"), &["type", "replaceFullPath", "replacePrefixMatch"], faults)?;
    fields.require("type", "ReplaceFullPath or ReplacePrefixMatch", faults);
    let words = [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")];
    let field = fields.word("type", &words, &[], faults)?;
    fields.require(field, "say which path it is to be", faults);
    let path = fields.text(field, faults)?;
    if let Some((fault, hint)) = path_fault(path) {
        faults.hint(&fields.at(field), format_args!("`{}` {fault}", shown(path)), hint);
        return None;
    }
    if field == "replaceFullPath" {
        return Some(PathChange::Full(path.to_owned()));
    }
    if !matches.iter().all(|one| matches!(one.path, PathMatch::Prefix(_))) {
        let hint = "every match of the rule must be a PathPrefix; use ReplaceFullPath for others";
        faults.hint(&fields.at("type"), "there is no prefix to replace", hint);
        return None;
    }
    Some(PathChange::Prefix(path.to_owned()))
}

fn mirror(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<Mirror> {
    let fields = Fields::open(value, path, &["backendRef", "percent", "fraction"], faults)?;
    let backend = fields.require("backendRef", "name the service, as `backendRef: { name: shadow }`", faults)?;
    let backend = Fields::open(backend, &fields.at("backendRef"), &["name"], faults)?;
    backend.require("name", "name the service", faults);
    let service = label(&backend, "name", faults)?;
    let percent = fields.whole("percent", 0, 100, faults).map(|percent| f64::from(percent) / 100.0);
    let fraction = fields.get("fraction").and_then(|value| {
        let fields = Fields::open(value, &fields.at("fraction"), &["numerator", "denominator"], faults)?;
        fields.require("numerator", "how many of the denominator", faults);
        let denominator = match fields.get("denominator") {
            None => 100,
            Some(_) => fields.whole("denominator", 1, FRACTION_MAX, faults)?,
        };
        let numerator = fields.whole("numerator", 0, denominator, faults)?;
        Some(f64::from(numerator) / f64::from(denominator))
    });
    if percent.is_some() && fraction.is_some() {
        faults.hint(&fields.at("fraction"), "stands beside `percent`", "keep one of them");
    }
    Some(Mirror { service, share: percent.or(fraction).unwrap_or(1.0) })
}

/// Which filter an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    RequestHeaders,
    ResponseHeaders,
    Redirect,
    Rewrite,
    Mirror,
}

/// The words of Gateway API, each with its field.
const TYPES: [(&str, Type, &str); 5] = [
    ("RequestHeaderModifier", Type::RequestHeaders, "requestHeaderModifier"),
    ("ResponseHeaderModifier", Type::ResponseHeaders, "responseHeaderModifier"),
    ("RequestRedirect", Type::Redirect, "requestRedirect"),
    ("URLRewrite", Type::Rewrite, "urlRewrite"),
    ("RequestMirror", Type::Mirror, "requestMirror"),
];
/// As in Gateway API.
const FILTERS_MAX: usize = 16;
const HEADERS_MAX: usize = 16;
const HEADER_VALUE_MAX: usize = 4096;
const FRACTION_MAX: u32 = 1_000_000;
const STATUSES: [u32; 5] = [301, 302, 303, 307, 308];
/// Headers that say where a message ends, or belong to one connection.
const KEPT: [&str; 9] =
    ["connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "via"];
/// What proxies say to each other, and what the mesh says.
const KEPT_PREFIXES: [&str; 2] = ["marram-", "proxy-"];

#[cfg(test)]
mod tests;
