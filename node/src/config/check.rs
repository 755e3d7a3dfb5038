//! What a `node.toml` means, beyond what its types say: ranges, clashes and relations, all found in one pass.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use policy::Problem;

use super::{CheckConfig, Config, ListenerProtocol, MeshConfig, Protocol, ProxyConfig, ServiceConfig};
use crate::view::Registration;

/// Shorter leaf certificates would be renewed faster than a slow link can redial.
const LEAF_LIFE_MIN: Duration = Duration::from_secs(10);
/// A leaf cannot outlive the node's own issuing certificate.
const LEAF_LIFE_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// The core number is one byte of our connection ids.
const DATA_THREADS_MAX: usize = 255;
const SEEDS_MAX: usize = 64;
const SERVICES_MAX: usize = 256;
const LISTENERS_MAX: usize = 256;
const LABELS_MAX: usize = 32;
const LABEL_BYTES_MAX: usize = 63;
const CHECKS_MAX: usize = 8;
const CAPACITY_MAX: f64 = 1e6;
const CONNECTIONS_MAX: usize = 1_000_000;
/// Each has a file descriptor at the node of its instance.
const FLOWS_MAX: usize = 100_000;
const HEAD_BYTES_MIN: usize = 1024;
const HEAD_BYTES_MAX: usize = 64 * 1024;
const TOMBSTONE_AGE_MIN: Duration = Duration::from_secs(1);
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(100);

impl Config {
    /// Everything that is wrong with the values, each with its field, fault and way out; empty when all is well.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut found = Found::default();
        self.check_place(&mut found);
        check_mesh(&self.mesh, &mut found);
        check_proxy(&self.proxy, &mut found);
        self.check_store(&mut found);
        self.check_admin(&mut found);
        self.check_transparent(&mut found);
        self.check_services(&mut found);
        self.check_listeners(&mut found);
        self.check_clashes(&mut found);
        found.problems
    }

    fn check_place(&self, found: &mut Found) {
        for (field, value) in [("region", &self.region), ("zone", &self.zone)] {
            if !value.is_empty() && !is_dns_label(value) {
                found.add(field, format!("`{value}` is not a DNS label"), Some(LABEL_HINT));
            }
        }
        if let Some(location) = self.location {
            if !(-90.0..=90.0).contains(&location.lat) {
                found.add(
                    "location.lat",
                    format!("{} is outside -90..=90", location.lat),
                    Some("degrees, north is positive"),
                );
            }
            if !(-180.0..=180.0).contains(&location.lon) {
                found.add(
                    "location.lon",
                    format!("{} is outside -180..=180", location.lon),
                    Some("degrees, east is positive"),
                );
            }
        }
        check_labels("labels", &self.labels, found);
    }

    fn check_admin(&self, found: &mut Found) {
        if !self.admin.bind.ip().is_loopback() {
            let hint = "use 127.0.0.1 or [::1]; from elsewhere, go through ssh or the socket DIR/admin.sock";
            found.add("admin.bind", format!("{} is not a loopback address", self.admin.bind.ip()), Some(hint));
        }
    }

    fn check_store(&self, found: &mut Found) {
        let age = self.store.tombstone_age;
        if age < TOMBSTONE_AGE_MIN {
            let message = format!("{} is under 1s", humantime::format_duration(age));
            found.add("store.tombstone_age", message, Some("7d suits nodes that are away over a weekend"));
        }
    }

    fn check_transparent(&self, found: &mut Found) {
        if self.transparent.bind.ip() != IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) {
            let message = format!("{} is not 127.0.0.1", self.transparent.bind.ip());
            found.add("transparent.bind", message, Some("the kernel leads redirected connections there"));
        }
    }

    fn check_services(&self, found: &mut Found) {
        found.at_most("service", self.services.len(), SERVICES_MAX);
        let mut seen = HashSet::new();
        for (index, service) in self.services.iter().enumerate() {
            let field = format!("service[{index}]");
            let id = service.instance_id();
            check_instance(&field, service, found);
            if !seen.insert((service.name.as_str(), id.clone())) {
                let message = format!("a second instance `{id}` of service `{}`", service.name);
                found.add(&format!("{field}.id"), message, Some("give each instance of a service its own `id`"));
            }
        }
    }

    fn check_listeners(&self, found: &mut Found) {
        found.at_most("listener", self.listeners.len(), LISTENERS_MAX);
        for (index, listener) in self.listeners.iter().enumerate() {
            let field = format!("listener[{index}].service");
            check_name(&field, &listener.service, found);
        }
    }

    /// Two of our own sockets on one port, or a service that is one of them.
    fn check_clashes(&self, found: &mut Found) {
        let (tcp, udp) = (ListenerProtocol::Tcp, ListenerProtocol::Udp);
        let mut fixed = vec![("admin.bind", self.admin.bind), ("proxy.bind", self.proxy.bind)];
        fixed.extend(self.transparent.enabled.then_some(("transparent.bind", self.transparent.bind)));
        self.check_clashes_of(tcp, &fixed, found);
        self.check_clashes_of(udp, &[], found);
    }

    /// The same among sockets of one protocol; the mesh and the names have a port of each.
    fn check_clashes_of(&self, protocol: ListenerProtocol, fixed: &[(&str, SocketAddr)], found: &mut Found) {
        let mut own: Vec<(String, SocketAddr)> = vec![("mesh.bind".to_owned(), self.mesh.bind)];
        own.extend(fixed.iter().map(|(field, address)| ((*field).to_owned(), *address)));
        own.extend(self.dns.enabled.then(|| ("dns.bind".to_owned(), self.dns.bind)));
        let listeners = self.listeners.iter().enumerate().filter(|(_, listener)| listener.protocol == protocol);
        own.extend(listeners.map(|(i, l)| (format!("listener[{i}].address"), l.address)));
        for (index, (field, address)) in own.iter().enumerate() {
            if let Some((other, _)) = own.iter().take(index).find(|(_, earlier)| overlap(*earlier, *address)) {
                found.add(
                    field,
                    format!("{address} is already taken by `{other}`"),
                    Some("give one of them another port"),
                );
            }
        }
        let is_udp = |service: &ServiceConfig| service.protocol == Protocol::Udp;
        let services = self.services.iter().enumerate();
        for (index, service) in services.filter(|(_, s)| is_udp(s) == (protocol == ListenerProtocol::Udp)) {
            let address = service.socket_addr();
            if let Some((other, _)) = own.iter().find(|(_, socket)| overlap(*socket, address)) {
                let field = format!("service[{index}].port");
                let message = format!("{address} is this node's own `{other}`: requests would go in circles");
                found.add(&field, message, Some("name the port of the application itself"));
            }
        }
    }
}

/// Everything that is wrong with a registration over the API, with fields named as in its body.
#[must_use]
pub fn check_registration(service: &str, id: &str, registration: &Registration) -> Vec<Problem> {
    let mut found = Found::default();
    let instance = ServiceConfig {
        name: service.to_owned(),
        id: Some(id.to_owned()),
        address: registration.address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        port: registration.port,
        protocol: registration.protocol,
        capacity: registration.capacity,
        labels: registration.labels.clone(),
        checks: registration.checks.clone(),
    };
    check_instance("", &instance, &mut found);
    found.problems
}

/// Lower-case letters, digits and inner hyphens, 1 to 63 of them.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

const LABEL_HINT: &str = "lower-case letters, digits and inner hyphens, at most 63";

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
}

impl Found {
    fn add(&mut self, field: &str, message: String, hint: Option<&str>) {
        let field = field.strip_prefix('.').unwrap_or(field).to_owned();
        self.problems.push(Problem { field, message, hint: hint.map(str::to_owned) });
    }

    fn at_most(&mut self, field: &str, count: usize, most: usize) {
        if count > most {
            self.add(field, format!("{count} entries, at most {most} are taken"), None);
        }
    }

    fn positive(&mut self, field: &str, value: Duration) {
        if value.is_zero() {
            self.add(
                field,
                "must be longer than 0s".to_owned(),
                Some("a duration is text with a unit: 300ms, 10s, 24h"),
            );
        }
    }

    fn within(&mut self, field: &str, value: usize, least: usize, most: usize) {
        if !(least..=most).contains(&value) {
            self.add(field, format!("{value} is outside {least}..={most}"), None);
        }
    }
}

fn check_mesh(mesh: &MeshConfig, found: &mut Found) {
    if let Some(advertise) = &mesh.advertise {
        check_host_port("mesh.advertise", advertise, found);
    }
    found.at_most("mesh.seeds", mesh.seeds.len(), SEEDS_MAX);
    for (index, seed) in mesh.seeds.iter().enumerate() {
        check_host_port(&format!("mesh.seeds[{index}]"), seed, found);
    }
    let life = humantime::format_duration(mesh.leaf_life);
    if mesh.leaf_life < LEAF_LIFE_MIN {
        found.add(
            "mesh.leaf_life",
            format!("{life} is under 10s"),
            Some("24h suits nearly everybody; seconds are for tests"),
        );
    }
    if mesh.leaf_life > LEAF_LIFE_MAX {
        found.add(
            "mesh.leaf_life",
            format!("{life} is over 90 days, the life of a node's admission"),
            Some("24h suits nearly everybody"),
        );
    }
    found.within("mesh.data_threads", mesh.data_threads, 0, DATA_THREADS_MAX);
}

/// The least that `proxy.memory_max` may be.
const MEMORY_MIN: u64 = 32 << 20;

fn check_proxy(proxy: &ProxyConfig, found: &mut Found) {
    found.within("proxy.connections_max", proxy.connections_max, 1, CONNECTIONS_MAX);
    if (1..MEMORY_MIN).contains(&proxy.memory_max) {
        found.add(
            "proxy.memory_max",
            format!("{} is under 32 MiB (33554432), which an agent needs at rest", proxy.memory_max),
            Some("0 takes what the cgroup or the machine gives"),
        );
    }
    found.within("proxy.head_bytes_max", proxy.head_bytes_max, HEAD_BYTES_MIN, HEAD_BYTES_MAX);
    found.within("proxy.udp_flows_max", proxy.udp_flows_max, 1, FLOWS_MAX);
    for (field, value) in [
        ("proxy.udp_flow_timeout", proxy.udp_flow_timeout),
        ("proxy.head_timeout", proxy.head_timeout),
        ("proxy.connect_timeout", proxy.connect_timeout),
        ("proxy.request_timeout", proxy.request_timeout),
        ("proxy.idle_timeout", proxy.idle_timeout),
        ("proxy.drain_timeout", proxy.drain_timeout),
        ("proxy.eject_time", proxy.eject_time),
    ] {
        found.positive(field, value);
    }
    if proxy.connect_timeout > proxy.request_timeout {
        let message = format!(
            "{} is over `proxy.request_timeout` ({}): no second candidate could be tried",
            humantime::format_duration(proxy.connect_timeout),
            humantime::format_duration(proxy.request_timeout)
        );
        found.add("proxy.connect_timeout", message, Some("1s suits processes on the same machine"));
    }
}

fn check_instance(field: &str, instance: &ServiceConfig, found: &mut Found) {
    check_name(&format!("{field}.name"), &instance.name, found);
    let id = instance.instance_id();
    if !is_instance_id(&id) {
        let hint = "letters, digits, dots, underscores and hyphens, at most 63";
        found.add(&format!("{field}.id"), format!("`{id}` is not an instance id"), Some(hint));
    }
    if instance.port == 0 {
        found.add(
            &format!("{field}.port"),
            "0 is no port to connect to".to_owned(),
            Some("name the port the process listens on"),
        );
    }
    if instance.address.is_unspecified() || instance.address.is_multicast() {
        let message = format!("{} is no address to connect to", instance.address);
        found.add(&format!("{field}.address"), message, Some("127.0.0.1 reaches a process on this machine"));
    }
    if let Some(capacity) = instance.capacity
        && !(capacity.is_finite() && capacity > 0.0 && capacity <= CAPACITY_MAX)
    {
        let hint = "concurrent requests it serves well; leave it out to have 64 per core";
        found.add(&format!("{field}.capacity"), format!("{capacity} is not above 0 and at most 1000000"), Some(hint));
    }
    check_labels(&format!("{field}.labels"), &instance.labels, found);
    found.at_most(&format!("{field}.checks"), instance.checks.len(), CHECKS_MAX);
    for (index, check) in instance.checks.iter().enumerate() {
        check_check(&format!("{field}.checks[{index}]"), check, found);
    }
}

fn check_check(field: &str, check: &CheckConfig, found: &mut Found) {
    let mut timing = |interval: Duration, timeout: Duration, fall: u32, rise: u32| {
        if interval < CHECK_INTERVAL_MIN {
            let message = format!("{} is under 100ms", humantime::format_duration(interval));
            found.add(&format!("{field}.interval"), message, Some("2s is the default"));
        }
        found.positive(&format!("{field}.timeout"), timeout);
        for (name, count) in [("fall", fall), ("rise", rise)] {
            if count == 0 {
                found.add(&format!("{field}.{name}"), "must be at least 1".to_owned(), None);
            }
        }
    };
    match check {
        CheckConfig::Http { path, interval, timeout, fall, rise } => {
            timing(*interval, *timeout, *fall, *rise);
            if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
                let message = format!("`{}` is not a path", path.escape_debug());
                found.add(&format!("{field}.path"), message, Some("a path begins with / and holds no blanks"));
            }
        }
        CheckConfig::Tcp { interval, timeout, fall, rise } => timing(*interval, *timeout, *fall, *rise),
        CheckConfig::Ttl { ttl } => {
            if *ttl < Duration::from_secs(1) {
                let message = format!("{} is under 1s", humantime::format_duration(*ttl));
                found.add(&format!("{field}.ttl"), message, Some("allow for at least two missed heartbeats"));
            }
        }
    }
}

fn check_labels(field: &str, labels: &BTreeMap<String, String>, found: &mut Found) {
    found.at_most(field, labels.len(), LABELS_MAX);
    let is_plain = |text: &str| text.len() <= LABEL_BYTES_MAX && text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
    for (key, value) in labels {
        if key.is_empty() || !is_plain(key) || !is_plain(value) {
            let message =
                format!("label `{}` is empty, longer than 63 bytes or not printable ASCII", key.escape_debug());
            found.add(field, message, None);
        }
    }
}

fn check_name(field: &str, name: &str, found: &mut Found) {
    if !is_dns_label(name) {
        found.add(field, format!("`{}` is not a DNS label", name.escape_debug()), Some(LABEL_HINT));
    }
}

fn check_host_port(field: &str, text: &str, found: &mut Found) {
    let hint = Some("write HOST:PORT, for instance 10.0.0.5:7440 or gw1.example.org:7440");
    let Some((host, port)) = text.rsplit_once(':') else {
        found.add(field, format!("`{text}` names no port"), hint);
        return;
    };
    if port.parse::<u16>().ok().is_none_or(|port| port == 0) {
        found.add(field, format!("`{port}` is not a port"), hint);
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let unspecified = bare.unwrap_or(host).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    if host.is_empty() || unspecified || (bare.is_none() && host.contains(':')) {
        found.add(field, format!("`{host}` is not a host that peers can reach"), hint);
    }
}

fn is_instance_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=63).contains(&id.len()) && id.bytes().all(plain)
}

/// Whether two TCP listeners could not both stand: the same port on the same address, or on all addresses.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_address = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same_address
}
