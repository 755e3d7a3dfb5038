//! The spec of `AuthorizationPolicy`: who may ask a service for what.

use serde_json::Value;

use super::{
    fields::{Fields, LIST_MOST, item, shown, text},
    http_route::{label, path_fault},
};
use crate::{pattern::TextPattern, problem::Faults};

/// What one document says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AuthorizationSpec {
    pub(crate) action: Option<Action>,
    /// A request is the document's business when one of them matches.
    pub(crate) rules: Vec<AuthzRule>,
}

/// What becomes of a request that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is allowed, as far as this document goes.
    Allow,
    /// It is refused, whatever else allows it.
    Deny,
}

/// Matches requests by one of these principals for one of these operations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AuthzRule {
    pub(crate) name: Option<String>,
    /// `None` is everybody, with or without a proven identity.
    pub(crate) principals: Option<Vec<TextPattern>>,
    /// `None` is every operation.
    pub(crate) operations: Option<Vec<Operation>>,
}

/// What is asked for; what is `None` does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Operation {
    pub(crate) methods: Option<Vec<String>>,
    pub(crate) paths: Option<Vec<TextPattern>>,
    pub(crate) ports: Option<Vec<u16>>,
}

/// Reads the spec at `spec`; complete where it leaves no faults.
pub(crate) fn read(spec: &Value, faults: &mut Faults<'_>) -> AuthorizationSpec {
    let mut read = AuthorizationSpec::default();
    let Some(fields) = Fields::open(spec, "spec", &["action", "rules"], faults) else { return read };
    fields.require("action", "write `action: ALLOW` or `action: DENY`", faults);
    read.action = fields.word("action", &[("ALLOW", Action::Allow), ("DENY", Action::Deny)], &["AUDIT"], faults);
    let hint = "list who may do what; `rules: [ {} ]` is everybody everything, `rules: []` with ALLOW nobody nothing";
    fields.require("rules", hint, faults);
    let path = fields.at("rules");
    let values = fields.list("rules", LIST_MOST, faults);
    for (index, value) in values.unwrap_or_default().iter().enumerate() {
        let Some(rule) = rule(value, &item(&path, index), faults) else { continue };
        if rule.name.is_some() && read.rules.iter().any(|other| other.name == rule.name) {
            let path = format!("{}.name", item(&path, index));
            faults.hint(&path, "another rule of this document has this name", "rename one of them");
        }
        read.rules.push(rule);
    }
    if read.action == Some(Action::Deny) && values.is_some_and(<[Value]>::is_empty) {
        faults.hint(&path, "is empty, so that nothing is denied", "`rules: [ {} ]` denies everything");
    }
    read
}

fn rule(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<AuthzRule> {
    let fields = Fields::open(value, path, &["name", "from", "to"], faults)?;
    let name = label(&fields, "name", faults);
    let mut rule = AuthzRule { name, principals: None, operations: None };
    if fields.get("from").is_some() {
        let mut principals = Vec::new();
        let hint = "leave `from` out for everybody";
        for (index, value) in fields.at_least_one("from", hint, faults).iter().enumerate() {
            let path = item(&fields.at("from"), index);
            let Some(source) = Fields::open(value, &path, &["principals"], faults) else { continue };
            source.require("principals", "list who, as `spiffe://MESH/svc/NAME` or `spiffe://MESH/svc/*`", faults);
            principals.extend(patterns(&source, "principals", principal_fault, faults).unwrap_or_default());
        }
        rule.principals = Some(principals);
    }
    if fields.get("to").is_some() {
        let mut operations = Vec::new();
        let hint = "leave `to` out for every operation";
        for (index, value) in fields.at_least_one("to", hint, faults).iter().enumerate() {
            operations.extend(operation(value, &item(&fields.at("to"), index), faults));
        }
        rule.operations = Some(operations);
    }
    Some(rule)
}

fn operation(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<Operation> {
    let fields = Fields::open(value, path, &["methods", "paths", "ports"], faults)?;
    if ["methods", "paths", "ports"].iter().all(|name| fields.get(name).is_none()) {
        faults.hint(path, "names neither methods nor paths nor ports", "leave `to` out for every operation");
        return None;
    }
    let paths = patterns(&fields, "paths", pattern_path_fault, faults);
    Some(Operation { methods: methods(&fields, faults), paths, ports: ports(&fields, faults) })
}

fn methods(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Option<Vec<String>> {
    fields.get("methods")?;
    let mut methods = Vec::new();
    for (index, value) in fields.at_least_one("methods", "leave it out for every method", faults).iter().enumerate() {
        let path = item(&fields.at("methods"), index);
        let Some(method) = text(value, &path, faults) else { continue };
        let is_word = |text: &str| text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        let upper = method.to_ascii_uppercase();
        if (1..=METHOD_BYTES_MAX).contains(&method.len()) && is_word(method) {
            methods.push(method.to_owned());
        } else if !method.is_empty() && method.len() <= METHOD_BYTES_MAX && is_word(&upper) {
            faults.hint(&path, format_args!("`{method}` has lower-case letters"), format!("write `{upper}`"));
        } else {
            let hint = "write it as `GET`; leave `methods` out for every method";
            faults.hint(&path, format_args!("`{}` is not a method", shown(method)), hint);
        }
    }
    Some(methods)
}

fn ports(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Option<Vec<u16>> {
    fields.get("ports")?;
    let mut ports = Vec::new();
    for (index, value) in fields.at_least_one("ports", "leave it out for every port", faults).iter().enumerate() {
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        match port {
            Some(port) => ports.push(port),
            None => {
                let path = item(&fields.at("ports"), index);
                faults.hint(&path, format_args!("{} is not a port", shown(&value.to_string())), "1 to 65535, a number");
            }
        }
    }
    Some(ports)
}

/// The patterns in `name`, each of which `fault` looks at.
fn patterns(
    fields: &Fields<'_>,
    name: &str,
    fault: impl Fn(&TextPattern) -> Option<(&'static str, String)>,
    faults: &mut Faults<'_>,
) -> Option<Vec<TextPattern>> {
    fields.get(name)?;
    let mut patterns = Vec::new();
    for (index, value) in fields.at_least_one(name, "list at least one", faults).iter().enumerate() {
        let path = item(&fields.at(name), index);
        let Some(written) = text(value, &path, faults) else { continue };
        let Some(pattern) = TextPattern::read(written) else {
            let hint = "a `*` may be the first or the last letter";
            faults.hint(&path, format_args!("`{}` has a `*` in between", shown(written)), hint);
            continue;
        };
        match fault(&pattern) {
            None => patterns.push(pattern),
            Some((fault, hint)) => faults.hint(&path, format_args!("`{}` {fault}", shown(written)), hint),
        }
    }
    Some(patterns)
}

/// What keeps a pattern from ever matching a SPIFFE ID, as `spiffe://TRUST-DOMAIN/PATH`.
fn principal_fault(pattern: &TextPattern) -> Option<(&'static str, String)> {
    let literal = pattern.literal();
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b':');
    let begins = !matches!(pattern, TextPattern::Suffix(_) | TextPattern::Any);
    let whole = matches!(pattern, TextPattern::Exact(_));
    let is_empty_element = literal.strip_prefix(SCHEME).unwrap_or(literal).contains("//");
    if literal.len() > PRINCIPAL_BYTES_MAX {
        Some(("is longer than 2048 bytes", "match its beginning, with a `*` at the end".to_owned()))
    } else if !literal.bytes().all(letter) {
        Some(("has letters that a SPIFFE ID does not have", "letters, digits and - _ . in its elements".to_owned()))
    } else if begins && !literal.starts_with(SCHEME) {
        let hint = if literal.is_empty() { format!("write `{SCHEME}MESH/svc/NAME`") } else { bent(literal, whole) };
        Some(("does not begin with `spiffe://`", hint))
    } else if is_empty_element || (whole && literal.ends_with('/')) || (whole && literal == SCHEME) {
        Some(("has an empty element", format!("write `{SCHEME}MESH/svc/NAME`")))
    } else {
        None
    }
}

fn bent(literal: &str, whole: bool) -> String {
    let star = if whole { "" } else { "*" };
    format!("write `{SCHEME}{}{star}`", shown(literal.trim_start_matches('/')))
}

fn pattern_path_fault(pattern: &TextPattern) -> Option<(&'static str, String)> {
    let literal = pattern.literal();
    let fault = match pattern {
        TextPattern::Any => None,
        TextPattern::Exact(_) | TextPattern::Prefix(_) => path_fault(literal),
        // Its beginning is open, so an element may be cut; what is in it must be possible all the same.
        TextPattern::Suffix(_) => path_fault(&format!("/x{literal}")),
    };
    fault.map(|(fault, hint)| (fault, hint.to_owned()))
}

const SCHEME: &str = "spiffe://";
/// As the SPIFFE standard limits an ID.
const PRINCIPAL_BYTES_MAX: usize = 2048;
const METHOD_BYTES_MAX: usize = 32;
