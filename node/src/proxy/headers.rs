//! Which headers cross the proxy, and the `marram-*` headers it speaks itself.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderName,
    HeaderValue, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use hyper::{HeaderMap, Version};
use policy::Priority;

/// Everything with this prefix belongs to the mesh and never comes from an application.
const PREFIX: &str = "marram-";

/// Response: from which node to which, `from->to`.
pub(crate) const MARRAM_VIA: HeaderName = HeaderName::from_static("marram-via");
/// Request, from an application: how important it is.
pub(crate) const MARRAM_PRIORITY: HeaderName = HeaderName::from_static("marram-priority");
/// Request, from an application: `1` asks for the decision.
pub(crate) const MARRAM_EXPLAIN: HeaderName = HeaderName::from_static("marram-explain");
/// Response: the decision as compact JSON.
pub(crate) const MARRAM_DECISION: HeaderName = HeaderName::from_static("marram-decision");
/// Request, from an application: `off` keeps the request from being sent a second time.
pub(crate) const MARRAM_RETRY: HeaderName = HeaderName::from_static("marram-retry");
/// Response: the limit of a policy that the request ran into.
pub(crate) const MARRAM_LIMIT: HeaderName = HeaderName::from_static("marram-limit");
/// Response: what a policy did to the request on purpose, `delay` or `abort`.
pub(crate) const MARRAM_INJECTED: HeaderName = HeaderName::from_static("marram-injected");
/// Request between proxies: how many proxies it crossed.
pub(crate) const MARRAM_HOPS: HeaderName = HeaderName::from_static("marram-hops");
/// Request between proxies: milliseconds the sender still waits.
pub(crate) const MARRAM_DEADLINE: HeaderName = HeaderName::from_static("marram-deadline-ms");
/// Response between proxies: requests in flight to the instance.
pub(crate) const MARRAM_INFLIGHT: HeaderName = HeaderName::from_static("marram-inflight");
/// Response between proxies: this is not the instance's answer, it failed; see [`Fault`].
pub(crate) const MARRAM_FAULT: HeaderName = HeaderName::from_static("marram-fault");

/// Response between proxies: what was seen of a fault.
pub(crate) const MARRAM_FAULT_DETAIL: HeaderName = HeaderName::from_static("marram-fault-detail");

/// Message between proxies: what its `Content-Length` says where it is written in chunks, as trailers may follow.
pub(crate) const MARRAM_LENGTH: HeaderName = HeaderName::from_static("marram-length");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers that speak of one connection only (RFC 9110 section 7.6.1), and their forerunners.
const HOP_BY_HOP: [HeaderName; 6] = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE];

/// Headers that have a meaning before a body only.
const NOT_IN_TRAILERS: [HeaderName; 8] =
    [HOST, CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, COOKIE, AUTHORIZATION, PROXY_AUTHORIZATION];

/// How an instance failed at its own node, told to the calling proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing of the request reached the instance.
    Unsent,
    /// The instance closed after at least a part of the request was sent.
    Closed,
    /// Its node gave up waiting.
    TimedOut,
    /// Too many hops.
    Loop,
    /// The request itself broke off.
    Client,
}

impl Fault {
    /// The header's value.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Unsent => "unsent",
            Self::Closed => "closed",
            Self::TimedOut => "timed-out",
            Self::Loop => "loop",
            Self::Client => "client",
        }
    }

    /// The fault a response between proxies reports, if any. An unknown word counts as the careful one.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(MARRAM_FAULT)?;
        let known = [Self::Unsent, Self::Closed, Self::TimedOut, Self::Loop, Self::Client];
        Some(known.into_iter().find(|fault| fault.as_str().as_bytes() == value.as_bytes()).unwrap_or(Self::Closed))
    }
}

/// What one request says between two proxies, beside the stream's head, which is written once for many requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestNote {
    /// Proxies crossed, the sender included.
    pub(crate) hops: u8,
    /// How long the sender still waits for the response head.
    pub(crate) deadline: Option<Duration>,
}

impl RequestNote {
    /// Writes the note into the headers of a request to a peer. On whose behalf it goes the stream's head says, and one hop is
    /// what nothing means.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        if self.hops != 1 {
            headers.insert(MARRAM_HOPS, HeaderValue::from(u16::from(self.hops)));
        }
        if let Some(deadline) = self.deadline {
            let ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            headers.insert(MARRAM_DEADLINE, HeaderValue::from(ms));
        }
    }

    /// Takes the note of a peer out of a request's headers; what is missing counts as one hop and no deadline.
    pub(crate) fn take(headers: &mut HeaderMap) -> Self {
        let mut number = |name: &HeaderName| headers.remove(name)?.to_str().ok()?.parse::<u64>().ok();
        Self {
            hops: number(&MARRAM_HOPS).map_or(1, |hops| u8::try_from(hops).unwrap_or(u8::MAX)),
            deadline: number(&MARRAM_DEADLINE).map(Duration::from_millis),
        }
    }
}

/// Says again in `Content-Length` how long a message is that a peer has written in chunks; returns it.
pub(crate) fn restore_length(headers: &mut HeaderMap) -> Option<u64> {
    let length = headers.remove(MARRAM_LENGTH)?;
    let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let bytes = digits.parse().ok()?;
    headers.insert(CONTENT_LENGTH, length);
    Some(bytes)
}

/// Takes the instance's requests in flight, as its owner told it with a response, out of the headers.
pub(crate) fn take_inflight(headers: &mut HeaderMap) -> Option<u32> {
    headers.remove(MARRAM_INFLIGHT)?.to_str().ok()?.parse().ok()
}

/// What an application says to the proxy alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// It asks for the decision.
    pub(crate) explain: bool,
    /// It leaves it to the proxy to send the request once more.
    pub(crate) may_retry: bool,
    /// How important the request is; a word that is none counts as nothing said.
    pub(crate) priority: Option<Priority>,
}

impl Wishes {
    /// Reads them from the headers of a request.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        // Most requests have none, and a look at every name is cheaper than three questions to the map.
        if !headers.keys().any(is_marram) {
            return Self { explain: false, may_retry: true, priority: None };
        }
        Self {
            explain: headers.get(MARRAM_EXPLAIN).is_some_and(|value| value == "1"),
            may_retry: headers.get(MARRAM_RETRY).is_none_or(|value| value != "off"),
            priority: headers.get(MARRAM_PRIORITY).and_then(|word| Priority::of(word.to_str().ok()?)),
        }
    }
}

/// Whether a header is one of the mesh.
fn is_marram(name: &HeaderName) -> bool {
    name.as_str().starts_with(PREFIX)
}

/// Removes everything an application may not say to the mesh, and the mesh may not say to an application.
pub(crate) fn strip_marram(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_marram(name)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// Whether a header speaks of one connection only.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// Removes the headers that speak of one connection only (RFC 9110 section 7.6.1), those named by `Connection` included.
///
/// `Host` and `Content-Length` stay even when `Connection` names them: they frame and address the message itself.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none, and a look at every name is cheaper than seven questions to the map.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The same for a request, except that the wish for trailers goes on, as both sides of this proxy pass trailers.
pub(crate) fn strip_request(headers: &mut HeaderMap) {
    let (mut wishes, mut connections, mut others) = (0, 0, false);
    for (name, value) in headers.iter() {
        match *name {
            TE if value == "trailers" => wishes += 1,
            CONNECTION if value == "te" => connections += 1,
            _ => others = others || is_hop_by_hop(name),
        }
    }
    // Most requests have none, and every call of gRPC has these.
    match (wishes, connections, others) {
        (0, 0, false) | (1, 1, false) => return,
        (1, 0, false) => {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
            return;
        }
        _ => {}
    }
    let wants_trailers = has_token(headers, &TE, "trailers");
    strip_hop_by_hop(headers);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Removes from trailers what has a meaning before the body only, or for one connection, or between proxies
/// (RFC 9110 section 6.5.1): who merges trailers into the headers would act on it.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    if !trailers.keys().any(|name| is_marram(name) || is_hop_by_hop(name) || NOT_IN_TRAILERS.contains(name)) {
        return;
    }
    strip_marram(trailers);
    strip_hop_by_hop(trailers);
    for name in NOT_IN_TRAILERS {
        trailers.remove(name);
    }
}

/// Makes one `Cookie` of several: only HTTP/2 may send them apart (RFC 9113 section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// The protocols a request asks to switch to, as far as the wish may go on to an instance.
///
/// Only HTTP/1.1 can switch, and only when `Connection` says so too (RFC 9110 section 7.8). `h2c` is never passed on:
/// behind such a switch an application could send requests that no proxy has read.
pub(crate) fn wanted_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || !has_token(headers, &CONNECTION, "upgrade") {
        return None;
    }
    let protocols: Vec<&str> = headers
        .get_all(UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !protocol.eq_ignore_ascii_case("h2c"))
        .collect();
    if protocols.is_empty() { None } else { HeaderValue::from_str(&protocols.join(", ")).ok() }
}

/// Writes the wish, or the answer to it, on a message whose hop-by-hop headers were removed.
pub(crate) fn write_upgrade(headers: &mut HeaderMap, protocols: HeaderValue) {
    headers.insert(UPGRADE, protocols);
    headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Removes what a request says to this proxy alone: the expectation, which the proxy meets itself, and its credentials.
pub(crate) fn strip_proxy_only(headers: &mut HeaderMap) {
    if headers.keys().any(|name| *name == EXPECT || *name == PROXY_AUTHORIZATION) {
        headers.remove(EXPECT);
        headers.remove(PROXY_AUTHORIZATION);
    }
}

/// Whether a comma-separated header names `token`, without regard to case.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(token))
}

/// How often a request already crossed a proxy on its way to `service`, by the `Via` headers that applications pass on.
pub(crate) fn times_via(headers: &HeaderMap, service: &str) -> usize {
    if !headers.contains_key(VIA) {
        return 0;
    }
    let ours = via_name(service);
    headers
        .get_all(VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter(|entry| entry.split_ascii_whitespace().nth(1) == Some(ours.as_str()))
        .count()
}

/// Adds this proxy to `Via` (RFC 9110 section 7.6.3), which is how a loop through applications is seen.
pub(crate) fn add_via(headers: &mut HeaderMap, version: Version, service: &str) {
    let version = if version == Version::HTTP_2 { "2" } else { "1.1" };
    let value = [version, " ", service, VIA_SUFFIX].concat();
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        headers.append(VIA, value);
    }
}

/// What follows a service's name in `Via`.
const VIA_SUFFIX: &str = ".mesh";

fn via_name(service: &str) -> String {
    [service, VIA_SUFFIX].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn connection_headers_and_those_they_name_are_removed() {
        let mut headers = map(&[
            ("connection", "X-One, close"),
            ("connection", "host, content-length"),
            ("x-one", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("host", "a.mesh"),
            ("content-length", "3"),
            ("x-two", "2"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "x-two"]);
    }

    #[test]
    fn the_wish_for_trailers_is_passed_on() {
        let wished = [("te", "trailers"), ("connection", "te")];
        for asked in [
            &[("te", "gzip, trailers;q=0.5"), ("connection", "te")][..],
            &wished,
            &[("te", "trailers")],
            &[("te", "trailers"), ("connection", "te, x-hop"), ("x-hop", "1")],
            &[("te", "trailers"), ("connection", "te"), ("upgrade", "websocket"), ("keep-alive", "1")],
            &[("te", "trailers"), ("te", "gzip"), ("transfer-encoding", "chunked")],
        ] {
            let mut headers = map(asked);
            strip_request(&mut headers);
            assert_eq!(headers, map(&wished), "{asked:?}");
        }
        for asked in [&[("connection", "te")][..], &[("te", "gzip"), ("connection", "te")], &[("upgrade", "x")]] {
            let mut headers = map(asked);
            strip_request(&mut headers);
            assert_eq!(headers, map(&[]), "{asked:?}");
        }
    }

    #[test]
    fn a_wish_to_switch_goes_on_only_when_it_is_whole_and_never_to_http2() {
        let wanted = |pairs: &[(&'static str, &'static str)], version| wanted_upgrade(version, &map(pairs));
        let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(wanted(&websocket, Version::HTTP_11).unwrap(), "websocket");
        assert_eq!(wanted(&websocket, Version::HTTP_10), None);
        assert_eq!(wanted(&[("upgrade", "websocket")], Version::HTTP_11), None, "`connection` does not say so");
        assert_eq!(wanted(&[("connection", "upgrade")], Version::HTTP_11), None, "nothing to switch to");
        let mixed = [("connection", "upgrade, http2-settings"), ("upgrade", "H2C, a/1"), ("upgrade", "b")];
        assert_eq!(wanted(&mixed, Version::HTTP_11).unwrap(), "a/1, b");
        assert_eq!(wanted(&mixed[..2], Version::HTTP_11).unwrap(), "a/1");
        assert_eq!(wanted(&[("connection", "upgrade"), ("upgrade", "h2c")], Version::HTTP_11), None);
    }

    #[test]
    fn cookies_that_came_apart_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2; c=3")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3"), ("x", "y")]));
    }

    #[test]
    fn every_marram_header_is_stripped() {
        let mut headers = map(&[("marram-hops", "0"), ("Marram-Anything", "x"), ("x-marram", "stays")]);
        strip_marram(&mut headers);
        assert_eq!(headers, map(&[("x-marram", "stays")]));
    }

    #[test]
    fn trailers_cannot_frame_address_or_speak_for_the_mesh() {
        let mut trailers = map(&[
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "other.mesh"),
            ("authorization", "x"),
            ("marram-source", "x"),
            ("grpc-status", "0"),
            ("x-sum", "1"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("grpc-status", "0"), ("x-sum", "1")]));
    }

    #[test]
    fn a_note_survives_the_way_between_proxies() {
        let note = RequestNote { hops: 2, deadline: Some(Duration::from_millis(1500)) };
        let mut headers = HeaderMap::new();
        note.write(&mut headers);
        assert_eq!((RequestNote::take(&mut headers), headers.len()), (note, 0));
        let mut headers = HeaderMap::new();
        let first = RequestNote { hops: 1, deadline: None };
        first.write(&mut headers);
        assert_eq!((headers.len(), RequestNote::take(&mut headers)), (0, first), "the first hop needs no word");
        let mut junk = map(&[("marram-hops", "900"), ("marram-deadline-ms", "soon")]);
        assert_eq!(RequestNote::take(&mut junk), RequestNote { hops: 255, deadline: None });
    }

    #[test]
    fn a_length_that_a_peer_tells_is_digits_or_nothing() {
        for (told, expected) in
            [("12", Some(12)), ("+12", None), ("", None), ("1e3", None), ("99999999999999999999", None)]
        {
            let mut headers = map(&[("marram-length", told)]);
            assert_eq!(restore_length(&mut headers), expected, "{told:?}");
            assert_eq!(headers.get(CONTENT_LENGTH).is_some(), expected.is_some(), "{told:?}");
            assert!(!headers.contains_key(MARRAM_LENGTH));
        }
    }

    #[test]
    fn loops_are_counted_for_the_same_service_only() {
        let headers = map(&[("via", "1.1 hello.mesh, 1.0 other.mesh"), ("via", "1.1 hello.mesh (marram)")]);
        assert_eq!(times_via(&headers, "hello"), 2);
        assert_eq!(times_via(&headers, "third"), 0);
    }

    #[test]
    fn a_fault_nobody_knows_counts_as_the_careful_one() {
        assert_eq!(Fault::of(&map(&[])), None);
        assert_eq!(Fault::of(&map(&[("marram-fault", "unsent")])), Some(Fault::Unsent));
        assert_eq!(Fault::of(&map(&[("marram-fault", "new-word")])), Some(Fault::Closed));
    }
}
