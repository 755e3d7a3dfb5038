//! Host names: the ones routes are written for, and the ones requests carry.

use std::{borrow::Cow, fmt, net::Ipv4Addr};

use crate::name::{NAME_BYTES_MAX, is_label, is_name};

/// A host a route is written for, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum HostPattern {
    /// This host and no other.
    Exact(String),
    /// Every host below this one, however deep, but not itself: `*.suffix` as Gateway API reads it.
    Below(String),
}

impl HostPattern {
    /// Reads `name` or `*.suffix`; an `Err` says what is wrong and what may help.
    pub(crate) fn read(text: &str) -> Result<Self, (&'static str, Option<String>)> {
        let (name, wildcard) = match text.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        if let Some((host, port)) = name.rsplit_once(':')
            && port.bytes().all(|byte| byte.is_ascii_digit())
        {
            let star = if wildcard { "*." } else { "" };
            return Err(("has a port", Some(format!("write `{star}{host}`; a route is for a host on any port"))));
        }
        if name.parse::<Ipv4Addr>().is_ok() {
            return Err(("is an address", Some("a route is for a host name".to_owned())));
        }
        if is_name(name) {
            return Ok(if wildcard { Self::Below(name.to_owned()) } else { Self::Exact(name.to_owned()) });
        }
        if is_name(&name.to_ascii_lowercase()) {
            return Err(("has upper-case letters", Some(format!("write `{}`", text.to_ascii_lowercase()))));
        }
        if name.contains('*') {
            return Err(("has a `*` that is not the whole first label", Some("write `*.suffix`".to_owned())));
        }
        Err(("is not a host name", Some("write DNS labels joined by dots, or `*.suffix`".to_owned())))
    }
}

impl HostPattern {
    /// Whether every host that `other` is for is one that this is for.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(host), Self::Exact(inner)) => host == inner,
            (Self::Below(suffix), Self::Exact(inner)) => parents(inner).any(|above| above == suffix),
            (Self::Below(suffix), Self::Below(inner)) => suffix == inner || parents(inner).any(|above| above == suffix),
            (Self::Exact(_), Self::Below(_)) => false,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// The host of a request without port and final dot, in lower case. `None` for what cannot be a host name: nothing, or
/// more than 253 bytes.
pub(crate) fn host_of(authority: &str) -> Option<Cow<'_, str>> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > NAME_BYTES_MAX {
        return None;
    }
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(Cow::Owned(host.to_ascii_lowercase()));
    }
    Some(Cow::Borrowed(host))
}

/// The service that `SERVICE.mesh` or `SERVICE.mesh.localhost` names, where SERVICE is one label.
pub(crate) fn service_of(host: &str) -> Option<&str> {
    let host = host.strip_suffix(".localhost").unwrap_or(host);
    host.strip_suffix(".mesh").filter(|service| is_label(service))
}

/// The names above `host`, longest first: for `a.b.mesh` these are `b.mesh` and `mesh`.
pub(crate) fn parents(host: &str) -> impl Iterator<Item = &str> {
    host.match_indices('.').filter_map(|(dot, _)| host.get(dot + 1..))
}

#[cfg(test)]
mod tests {
    use super::{HostPattern, host_of, parents, service_of};

    #[test]
    fn a_request_host_loses_port_final_dot_and_case() {
        for (given, expected) in [
            ("hello.mesh", Some("hello.mesh")),
            ("Hello.MESH:7080", Some("hello.mesh")),
            ("hello.mesh.", Some("hello.mesh")),
            ("hello.mesh.:80", Some("hello.mesh")),
            ("hello.mesh:", Some("hello.mesh")),
            ("", None),
            (":80", None),
            ("[::1]:80", Some("[::1]")),
        ] {
            assert_eq!(host_of(given).as_deref(), expected, "{given}");
        }
        assert_eq!(host_of(&"a".repeat(254)), None);
    }

    #[test]
    fn a_mesh_host_names_its_service() {
        for (host, expected) in [
            ("hello.mesh", Some("hello")),
            ("hello.mesh.localhost", Some("hello")),
            ("v2.hello.mesh", None),
            (".mesh", None),
            ("mesh", None),
            ("hello.localhost", None),
            ("hello.mesh.example", None),
            ("-hello.mesh", None),
        ] {
            assert_eq!(service_of(host), expected, "{host}");
        }
    }

    #[test]
    fn parents_go_from_long_to_short() {
        assert_eq!(parents("a.b.mesh").collect::<Vec<_>>(), ["b.mesh", "mesh"]);
        assert_eq!(parents("mesh").count(), 0);
        assert_eq!(parents("mesh.").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn patterns_are_exact_or_below_and_faults_say_what_to_write() {
        assert_eq!(HostPattern::read("a.mesh"), Ok(HostPattern::Exact("a.mesh".into())));
        assert_eq!(HostPattern::read("*.mesh"), Ok(HostPattern::Below("mesh".into())));
        for (text, fault) in [
            ("A.mesh", "has upper-case letters"),
            ("a.mesh:80", "has a port"),
            ("*.mesh:80", "has a port"),
            ("10.0.0.1", "is an address"),
            ("*", "has a `*` that is not the whole first label"),
            ("a.*.mesh", "has a `*` that is not the whole first label"),
            ("*a.mesh", "has a `*` that is not the whole first label"),
            ("", "is not a host name"),
            ("a..mesh", "is not a host name"),
            ("a_b.mesh", "is not a host name"),
            ("*.", "is not a host name"),
        ] {
            assert_eq!(HostPattern::read(text).map_err(|(fault, _)| fault), Err(fault), "{text}");
        }
    }
}
