//! Which requests a rule of an `HTTPRoute` is for.

use std::{borrow::Cow, fmt};

use regex_lite::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};

use super::{
    fields::{Fields, item, shown},
    http_route::path_fault,
};
use crate::problem::Faults;

/// What a request must be for a rule: its path, and all of the conditions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RouteMatch {
    pub(crate) path: PathMatch,
    pub(crate) conditions: Conditions,
}

/// Which paths a rule is for. Case counts; the query does not take part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PathMatch {
    /// The path and nothing else.
    Exact(String),
    /// The path and what is below it, by whole elements; without a final slash, so that `/` is empty.
    Prefix(String),
    /// Paths that match as a whole.
    Regex(Pattern),
}

/// What a request must be besides its path. None at all is every request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Conditions {
    pub(crate) method: Option<String>,
    /// By names in lower case, each once, in their order.
    pub(crate) headers: Vec<(String, ValueMatch)>,
    /// By names as they are, each once, in their order.
    pub(crate) query: Vec<(String, ValueMatch)>,
}

/// What a header or a parameter must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ValueMatch {
    /// This text; case counts.
    Exact(String),
    /// Texts that match as a whole.
    Regex(Pattern),
}

/// A regular expression that matches whole texts, compared by how it is written.
#[derive(Clone)]
pub(crate) struct Pattern {
    written: String,
    compiled: Regex,
}

/// What of a request besides host and path rules may look at.
pub trait Headers {
    /// Whether a value of the header `name`, given in lower case, passes `test`.
    fn any(&self, name: &str, test: &dyn Fn(&str) -> bool) -> bool;
}

/// No headers.
impl Headers for () {
    fn any(&self, _name: &str, _test: &dyn Fn(&str) -> bool) -> bool {
        false
    }
}

/// Names in lower case, each with a value.
impl Headers for &[(&str, &str)] {
    fn any(&self, name: &str, test: &dyn Fn(&str) -> bool) -> bool {
        self.iter().any(|(known, value)| *known == name && test(value))
    }
}

impl RouteMatch {
    /// Every path, whatever the request is.
    pub(crate) const ALL: Self = Self {
        path: PathMatch::Prefix(String::new()),
        conditions: Conditions { method: None, headers: Vec::new(), query: Vec::new() },
    };

    /// Whether every request that `other` is for is one that this is for, as far as that can be read off them.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.path.covers(&other.path) && self.conditions.cover(&other.conditions)
    }

    /// Whether some request may be for both. True where that cannot be told.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        let paths = match (&self.path, &other.path) {
            (PathMatch::Regex(_), _) | (_, PathMatch::Regex(_)) => true,
            (one, other) => one.covers(other) || other.covers(one),
        };
        let methods = (self.conditions.method.iter().zip(&other.conditions.method)).all(|(one, other)| one == other);
        paths && methods
    }

    /// As it stands in a document.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let (form, path) = match &self.path {
            PathMatch::Exact(path) => ("Exact", path.as_str()),
            PathMatch::Prefix(prefix) if prefix.is_empty() => ("PathPrefix", "/"),
            PathMatch::Prefix(prefix) => ("PathPrefix", prefix.as_str()),
            PathMatch::Regex(pattern) => (REGEX, pattern.written.as_str()),
        };
        fields.insert("path".to_owned(), json!({ "type": form, "value": path }));
        let Conditions { method, headers, query } = &self.conditions;
        if let Some(method) = method {
            fields.insert("method".to_owned(), json!(method));
        }
        for (field, values) in [("headers", headers), ("queryParams", query)] {
            if !values.is_empty() {
                fields.insert(field.to_owned(), values.iter().map(ValueMatch::to_json).collect());
            }
        }
        fields
    }
}

impl PathMatch {
    /// Whether every path that `other` is for is one that this is for; false where that cannot be read off them.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(prefix), _) if prefix.is_empty() => true,
            (Self::Prefix(prefix), Self::Prefix(path) | Self::Exact(path)) => is_below(path, prefix),
            (Self::Exact(path), Self::Exact(inner)) => path == inner,
            (Self::Regex(pattern), Self::Exact(path)) => pattern.matches(path),
            (Self::Regex(pattern), Self::Regex(inner)) => pattern == inner,
            (Self::Exact(_), Self::Prefix(_) | Self::Regex(_))
            | (Self::Regex(_), Self::Prefix(_))
            | (Self::Prefix(_), Self::Regex(_)) => false,
        }
    }
}

/// Whether `path` is `prefix` or lies below it by whole elements. A prefix has no final slash; the root is empty.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty())
}

impl Conditions {
    pub(crate) const fn are_none(&self) -> bool {
        self.method.is_none() && self.headers.is_empty() && self.query.is_empty()
    }

    /// The order in which Gateway API tries rules for one path: a method before none, more headers before fewer, then
    /// more parameters.
    pub(crate) const fn specificity(&self) -> (bool, usize, usize) {
        (self.method.is_some(), self.headers.len(), self.query.len())
    }

    /// Whether a request is as they say; `query` is what follows `?`, without it.
    pub(crate) fn hold(&self, method: &str, headers: &dyn Headers, query: &str) -> bool {
        let has = |(name, value): &(String, ValueMatch)| headers.any(name, &|text| value.matches(text));
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.headers.iter().all(has)
            && self.query.iter().all(|(name, value)| parameter(query, name).is_some_and(|text| value.matches(&text)))
    }

    /// Whether whatever `other` holds for, these hold for.
    fn cover(&self, other: &Self) -> bool {
        self.method.as_ref().is_none_or(|method| other.method.as_ref() == Some(method))
            && self.headers.iter().all(|header| other.headers.contains(header))
            && self.query.iter().all(|parameter| other.query.contains(parameter))
    }
}

/// The first value of the parameter `name`, decoded as forms are.
fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    form_urlencoded::parse(query.as_bytes()).find(|(known, _)| known == name).map(|(_, value)| value)
}

impl ValueMatch {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(whole) => text == whole,
            Self::Regex(pattern) => pattern.matches(text),
        }
    }

    fn to_json((name, value): &(String, Self)) -> Value {
        match value {
            Self::Exact(text) => json!({ "type": "Exact", "name": name, "value": text }),
            Self::Regex(pattern) => json!({ "type": REGEX, "name": name, "value": pattern.written }),
        }
    }
}

impl Pattern {
    /// Reads an expression; what is wrong with it where it is none, or where it would take more than [`REGEX_SIZE_MAX`].
    pub(crate) fn read(written: &str) -> Result<Self, String> {
        if written.len() > REGEX_BYTES_MAX {
            return Err(format!("is longer than {REGEX_BYTES_MAX} bytes"));
        }
        // The whole text has to match; a group keeps alternatives together.
        let whole = format!("^(?:{written})$");
        let compiled = RegexBuilder::new(&whole).size_limit(REGEX_SIZE_MAX).build();
        // On its own it must be one as well, or `)(` would pass.
        let alone = RegexBuilder::new(written).size_limit(REGEX_SIZE_MAX).build();
        match (compiled, alone) {
            (Ok(compiled), Ok(_)) => Ok(Self { written: written.to_owned(), compiled }),
            (Err(fault), _) | (_, Err(fault)) => Err(format!("is not a regular expression: {fault}")),
        }
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        text.len() <= REGEX_TEXT_MAX && self.compiled.is_match(text)
    }

    pub(crate) fn written(&self) -> &str {
        &self.written
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.written.cmp(&other.written)
    }
}

/// Reads one item of `matches`.
pub(super) fn read(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<RouteMatch> {
    let fields = Fields::open(value, path, &["path", "method", "headers", "queryParams"], faults)?;
    let path = match fields.get("path") {
        Some(value) => read_path(value, &fields.at("path"), faults),
        None => Some(RouteMatch::ALL.path),
    };
    let method = fields.word("method", &METHODS.map(|method| (method, method)), &[], faults).map(str::to_owned);
    let headers = values(&fields, "headers", Names::Headers, faults);
    let query = values(&fields, "queryParams", Names::Parameters, faults);
    Some(RouteMatch { path: path?, conditions: Conditions { method, headers, query } })
}

fn read_path(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<PathMatch> {
    let fields = Fields::open(value, path, &["type", "value"], faults)?;
    let forms = [("PathPrefix", Form::Prefix), ("Exact", Form::Exact), (REGEX, Form::Regex)];
    let form = match fields.get("type") {
        None => Some(Form::Prefix),
        Some(_) => fields.word("type", &forms, &[], faults),
    };
    let value = match fields.get("value") {
        None => Some("/"),
        Some(_) => fields.text("value", faults),
    };
    let value = value?;
    if form == Some(Form::Regex) {
        return pattern(value, &fields.at("value"), faults).map(PathMatch::Regex);
    }
    if let Some((fault, hint)) = path_fault(value) {
        faults.hint(&fields.at("value"), format_args!("`{}` {fault}", shown(value)), hint);
        return None;
    }
    Some(match form? {
        Form::Exact => PathMatch::Exact(value.to_owned()),
        Form::Prefix | Form::Regex => PathMatch::Prefix(value.strip_suffix('/').unwrap_or(value).to_owned()),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Prefix,
    Exact,
    Regex,
}

/// Whose names: headers have letters of their own, and no case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Headers,
    Parameters,
}

fn values(fields: &Fields<'_>, field: &str, names: Names, faults: &mut Faults<'_>) -> Vec<(String, ValueMatch)> {
    let path = fields.at(field);
    let mut found: Vec<(String, ValueMatch)> = Vec::new();
    for (index, value) in fields.list(field, VALUES_MAX, faults).unwrap_or_default().iter().enumerate() {
        let path = item(&path, index);
        let Some(fields) = Fields::open(value, &path, &["type", "name", "value"], faults) else { continue };
        fields.require("name", "name it", faults);
        fields.require("value", "say what it has to be", faults);
        let name = fields.text("name", faults).and_then(|name| match names {
            Names::Headers => header_name(name, &fields.at("name"), faults),
            Names::Parameters => Some(name.to_owned()),
        });
        let forms = [("Exact", Form::Exact), (REGEX, Form::Regex)];
        let form = match fields.get("type") {
            None => Some(Form::Exact),
            Some(_) => fields.word("type", &forms, &[], faults),
        };
        let (Some(name), Some(form), Some(text)) = (name, form, fields.text("value", faults)) else { continue };
        let value = match form {
            Form::Regex => pattern(text, &fields.at("value"), faults).map(ValueMatch::Regex),
            Form::Exact | Form::Prefix => Some(ValueMatch::Exact(text.to_owned())),
        };
        if found.iter().any(|(known, _)| *known == name) {
            faults.hint(&fields.at("name"), format_args!("`{}` stands here twice", shown(&name)), "keep one of them");
        } else if let Some(value) = value {
            found.push((name, value));
        }
    }
    found.sort();
    found
}

/// A header's name in lower case; those that end at each hop or name the host are not for rules.
pub(super) fn header_name(name: &str, path: &str, faults: &mut Faults<'_>) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if lower.is_empty() || lower.len() > HEADER_NAME_MAX || !lower.bytes().all(is_token) {
        faults.hint(path, format_args!("`{}` is not a header's name", shown(name)), "letters, digits and -");
        return None;
    }
    if lower == "host" {
        faults.hint(path, "`host` is not matched here", "`hostnames` says which hosts the route is for");
        return None;
    }
    Some(lower)
}

fn pattern(text: &str, path: &str, faults: &mut Faults<'_>) -> Option<Pattern> {
    match Pattern::read(text) {
        Ok(pattern) => Some(pattern),
        Err(fault) => {
            let hint = "the syntax is that of RE2, without look-around and back-references; the whole text must match";
            faults.hint(path, format_args!("`{}` {fault}", shown(text)), hint);
            None
        }
    }
}

const REGEX: &str = "RegularExpression";
/// As in Gateway API.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// Headers, or parameters, of one match; as in Gateway API.
const VALUES_MAX: usize = 16;
const HEADER_NAME_MAX: usize = 256;
/// Bytes of a regular expression.
const REGEX_BYTES_MAX: usize = 512;
/// Bytes that one may take once compiled.
const REGEX_SIZE_MAX: usize = 64 * 1024;
/// Longer texts match no expression: matching takes time with expression times text.
const REGEX_TEXT_MAX: usize = 4096;

#[cfg(test)]
mod tests;
