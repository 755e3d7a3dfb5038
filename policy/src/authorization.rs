//! Who may ask a service for what: every `AuthorizationPolicy` that covers a place, composed to the strictest.
//!
//! A request is refused when any rule of any DENY document matches it. Where a scope has ALLOW documents for the
//! service, one of them must match; and that holds for every scope that covers the place, so that a narrower document
//! never widens what a wider one permits. Concurrent edits of one document count each: whichever of them a person will
//! settle on, what is allowed here is allowed then.

use std::{borrow::Cow, sync::Arc};

use crate::{
    document::{
        Document,
        authorization::{Action, AuthzRule, Operation},
    },
    in_force::{Layer, Standing},
    pattern::TextPattern,
    reading::Says,
};

/// What of a request decides whether it is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuthzRequest<'r> {
    /// The SPIFFE ID that the caller has proven; `None` where it has proven none. Then it matches no `principals` of
    /// an ALLOW and all of a DENY: nobody escapes a DENY by not saying who they are.
    pub principal: Option<&'r str>,
    /// The method; `None` for a connection that carries no HTTP, which matches no `methods` of an ALLOW and all of a
    /// DENY.
    pub method: Option<&'r str>,
    /// The path as the request carries it, without which it is as without a method. What follows `?` or `#` does not
    /// take part. It is looked at as sent and as a lenient server would read it (`/a/../b`, `//b` and `/%62` are `/b`):
    /// an ALLOW must match both, a DENY either.
    pub path: Option<&'r str>,
    /// The port asked for.
    pub port: u16,
}

/// What became of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthzDecision<'t> {
    /// Whether the request may go on.
    pub allowed: bool,
    /// What decided: `scope/AuthorizationPolicy/name#rule` (the rule's name or number) of the DENY that matched or of
    /// the ALLOW that matched in the narrowest scope; the ALLOW documents of the scope in which none matched, joined by
    /// a comma and a blank; the document that could not be read; or [`OPEN`] where no document says anything.
    pub rule: &'t str,
}

/// What decides where no `AuthorizationPolicy` is for a service.
pub const OPEN: &str = "default";

/// Every `AuthorizationPolicy` for one service at one place. The default allows everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Authorization {
    /// Documents that do not validate; they refuse everything, as what they would refuse is not known.
    closed: Vec<Arc<str>>,
    deny: Vec<NamedRule>,
    /// Narrowest first.
    scopes: Vec<ScopeAllows>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedRule {
    name: Arc<str>,
    rule: Arc<AuthzRule>,
}

/// The ALLOW documents of one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ScopeAllows {
    breadth: u8,
    /// Their ids, joined.
    names: String,
    documents: Vec<AllowDocument>,
}

/// One ALLOW document: the rules of each of its concurrent edits that allows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AllowDocument {
    siblings: Vec<Vec<NamedRule>>,
    /// No concurrent edit of it does anything but allow for this service, so that it is sure to be there whichever a
    /// person settles on.
    is_certain: bool,
}

impl Authorization {
    /// Whether `request` is allowed, and by what.
    #[must_use]
    pub fn decide(&self, request: &AuthzRequest<'_>) -> AuthzDecision<'_> {
        if let Some(rule) = self.closed.first() {
            return AuthzDecision { allowed: false, rule };
        }
        let paths = request.path.map(Paths::new);
        let matches = |rule: &&NamedRule, action| rule.rule.matches(request, paths.as_ref(), action);
        if let Some(rule) = self.deny.iter().find(|rule| matches(rule, Action::Deny)) {
            return AuthzDecision { allowed: false, rule: &rule.name };
        }
        let mut allowed_by = None;
        for scope in &self.scopes {
            match scope.allows(|rules| rules.iter().find(|rule| matches(rule, Action::Allow))) {
                Some(rule) => allowed_by = allowed_by.or(Some(rule.name.as_ref())),
                None => return AuthzDecision { allowed: false, rule: &scope.names },
            }
        }
        AuthzDecision { allowed: true, rule: allowed_by.unwrap_or(OPEN) }
    }

    /// Adds `layer`, a document about this service. `siblings` is how many concurrent edits of it there are in all, and
    /// layers come in order, the edits of one document after each other.
    pub(crate) fn add(&mut self, layer: &Layer<'_>, siblings: usize) {
        let reading = layer.reading;
        match layer.standing {
            Standing::Expired => return,
            Standing::Faulty => {
                self.closed.push(Arc::from(format!("{} cannot be read here", reading.id)));
                return;
            }
            Standing::InForce => {}
        }
        match &reading.says {
            Says::Authorization { denies: true, rules } => self.deny.extend(rules.iter().cloned()),
            Says::Authorization { denies: false, rules } => self.allow(layer, rules.clone(), siblings),
            Says::Route(_) | Says::PeerMode(_) | Says::Regions(_) | Says::Fields => {}
        }
    }

    fn allow(&mut self, layer: &Layer<'_>, rules: Vec<NamedRule>, siblings: usize) {
        let name = layer.reading.id.to_string();
        if self.scopes.last().is_none_or(|scope| scope.breadth != layer.breadth) {
            self.scopes.push(ScopeAllows { breadth: layer.breadth, names: String::new(), documents: Vec::new() });
        }
        let Some(scope) = self.scopes.last_mut() else { return };
        let is_same = scope.names.rsplit(", ").next() == Some(name.as_str());
        match scope.documents.last_mut().filter(|_| is_same) {
            Some(document) => document.siblings.push(rules),
            None => {
                if !scope.names.is_empty() {
                    scope.names.push_str(", ");
                }
                scope.names.push_str(&name);
                scope.documents.push(AllowDocument { siblings: vec![rules], is_certain: false });
            }
        }
        if let Some(document) = scope.documents.last_mut() {
            document.is_certain = document.siblings.len() == siblings;
        }
    }
}

impl ScopeAllows {
    /// The rule that allows, or `None` where it depends on a conflict or nothing does. `matching` finds the rule that
    /// matches among several.
    ///
    /// Think of every way to settle the conflicts. A document whose every edit allows the request is enough in all of
    /// them. Without one, there is a way in which no document allows it; that way refuses it unless it has no ALLOW
    /// document at all, which is when no edit exists that allows something but not this request.
    fn allows<'t>(&'t self, matching: impl Fn(&'t [NamedRule]) -> Option<&'t NamedRule>) -> Option<&'t NamedRule> {
        let all = |document: &'t AllowDocument| {
            let mut found = document.siblings.iter().map(|rules| matching(rules));
            let first = found.next().flatten()?;
            found.all(|rule| rule.is_some()).then_some(first)
        };
        let certain = self.documents.iter().filter(|document| document.is_certain).find_map(all);
        certain.or_else(|| {
            let mut rules = self.documents.iter().map(all);
            let first = rules.next().flatten()?;
            rules.all(|rule| rule.is_some()).then_some(first)
        })
    }
}

impl AuthzRule {
    fn matches(&self, request: &AuthzRequest<'_>, paths: Option<&Paths<'_>>, action: Action) -> bool {
        let unknown = action == Action::Deny;
        let principal = self.principals.as_ref().is_none_or(|patterns| match request.principal {
            Some(principal) => patterns.iter().any(|pattern| pattern.matches(principal)),
            None => unknown,
        });
        let operations = self.operations.as_ref();
        principal
            && operations
                .is_none_or(|operations| operations.iter().any(|operation| operation.matches(request, paths, action)))
    }
}

impl Operation {
    fn matches(&self, request: &AuthzRequest<'_>, paths: Option<&Paths<'_>>, action: Action) -> bool {
        let unknown = action == Action::Deny;
        let method = self.methods.as_ref().is_none_or(|methods| match (request.method, action) {
            (Some(asked), Action::Allow) => methods.iter().any(|method| method == asked),
            // Some servers read methods without regard to case.
            (Some(asked), Action::Deny) => methods.iter().any(|method| method.eq_ignore_ascii_case(asked)),
            (None, _) => unknown,
        });
        let path =
            self.paths.as_ref().is_none_or(|patterns| paths.map_or(unknown, |paths| paths.are(patterns, action)));
        method && path && self.ports.as_ref().is_none_or(|ports| ports.contains(&request.port))
    }
}

/// A path in the two forms that count.
#[derive(Debug)]
struct Paths<'r> {
    sent: &'r str,
    read: Cow<'r, str>,
}

impl<'r> Paths<'r> {
    fn new(path: &'r str) -> Self {
        let sent = path.split(['?', '#']).next().unwrap_or_default();
        Self { sent, read: lenient(sent) }
    }

    fn are(&self, patterns: &[TextPattern], action: Action) -> bool {
        let any = |path: &str| patterns.iter().any(|pattern| pattern.matches(path));
        match action {
            Action::Allow => any(self.sent) && any(&self.read),
            Action::Deny => any(self.sent) || any(&self.read),
        }
    }
}

/// `path` as a lenient server reads it: escapes decoded once, backslashes as slashes, without parameters after `;`,
/// empty and relative elements resolved.
fn lenient(path: &str) -> Cow<'_, str> {
    if !path.contains(['%', '\\', ';']) && !path.contains("//") && !path.contains("/.") {
        return Cow::Borrowed(path);
    }
    let decoded = decoded(path).replace('\\', "/");
    let mut elements: Vec<&str> = Vec::new();
    for element in decoded.split('/') {
        match element.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                elements.pop();
            }
            element => elements.push(element),
        }
    }
    let end = if decoded.ends_with('/') && !elements.is_empty() { "/" } else { "" };
    Cow::Owned(format!("/{}{end}", elements.join("/")))
}

fn decoded(path: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        match (byte, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(u8::MAX));
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl NamedRule {
    /// The rule of number `index` of `document`.
    pub(crate) fn new(document: &Document, index: usize, rule: AuthzRule) -> Self {
        let id = document.id();
        let name = rule.name.as_ref().map_or_else(|| format!("{id}#{index}"), |name| format!("{id}#{name}"));
        Self { name: Arc::from(name), rule: Arc::new(rule) }
    }
}

#[cfg(test)]
mod tests;
