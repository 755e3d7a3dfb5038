//! What there is under a name of the zone `mesh`. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::VirtualAddresses;
use crate::config::{Config, ListenerProtocol, Protocol};
use crate::pick;
use crate::snapshot::{ServiceView, Snapshot};

/// The zone's one label.
pub(super) const ZONE: &str = "mesh";
/// Candidates that a TXT answer names, the most probable ones first.
const CANDIDATES_MAX: usize = 8;

/// One record, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    /// A port of the name that stands in `target`.
    Srv {
        port: u16,
        target: String,
    },
    Txt(String),
    Soa,
    Ns,
}

/// What the zone says to a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// It is of another zone.
    Outside,
    /// There is no such name.
    NoName,
    /// Every record under the name; none where there are only names below it.
    Name(Vec<Data>),
}

/// Where applications of this machine reach services, as far as the configuration settles it.
#[derive(Debug)]
pub struct Zone {
    listeners: Vec<(String, Way)>,
    proxy: SocketAddr,
    virtual_addresses: Option<Arc<VirtualAddresses>>,
}

/// A local address that leads to a service; without a port where it is reached at any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    protocol: ListenerProtocol,
    address: IpAddr,
    port: Option<u16>,
}

impl Zone {
    /// The zone of a node with this configuration.
    #[must_use]
    pub fn new(config: &Config, virtual_addresses: &Arc<VirtualAddresses>) -> Self {
        let listeners = config.listeners.iter().map(|listener| {
            let way = Way::to(listener.protocol, listener.address);
            (listener.service.clone(), way)
        });
        Self {
            listeners: listeners.collect(),
            proxy: config.proxy.bind,
            virtual_addresses: config.dns.virtual_addresses.then(|| Arc::clone(virtual_addresses)),
        }
    }

    /// What there is under a name, its labels in lower case and without the root, at `now`, monotonic.
    pub(super) fn look_up(&self, name: &[String], snapshot: &Snapshot, now: Duration) -> Said {
        let Some((zone, below)) = name.split_last() else { return Said::Outside };
        if zone != ZONE {
            return Said::Outside;
        }
        match below {
            [] => Said::Name(vec![Data::Soa, Data::Ns]),
            [service] if self.is_known(snapshot, service) => Said::Name(self.service(snapshot, service, now)),
            [protocol, service] if protocol_of(protocol).is_some() && self.is_known(snapshot, service) => {
                Said::Name(Vec::new())
            }
            [named, protocol, service] if named.starts_with('_') && self.is_known(snapshot, service) => {
                match protocol_of(protocol) {
                    Some(protocol) => Said::Name(self.ports(snapshot, service, Some(protocol))),
                    None => Said::NoName,
                }
            }
            _ => self.host(name, snapshot),
        }
    }

    /// Somebody offers the service, whether or not it is well at the moment, or this node has a listener for it. A name
    /// does not go because its instances do: clients would remember that it is gone after they have come back.
    fn is_known(&self, snapshot: &Snapshot, service: &str) -> bool {
        snapshot.services.contains_key(service) || self.listeners.iter().any(|(name, _)| name == service)
    }

    fn service(&self, snapshot: &Snapshot, service: &str, now: Duration) -> Vec<Data> {
        let mut records = addresses(&self.ways(snapshot, service));
        records.extend(self.ports(snapshot, service, None));
        records.extend(candidates(snapshot, service, now));
        records
    }

    fn ports(&self, snapshot: &Snapshot, service: &str, protocol: Option<ListenerProtocol>) -> Vec<Data> {
        let target = format!("{service}.{ZONE}");
        let ways = self.ways(snapshot, service).into_iter();
        ways.filter(|way| protocol.is_none_or(|wanted| way.protocol == wanted))
            .filter_map(|way| Some(Data::Srv { port: way.port?, target: target.clone() }))
            .collect()
    }

    /// A host of an `HTTPRoute`, which the HTTP proxy serves.
    fn host(&self, name: &[String], snapshot: &Snapshot) -> Said {
        let host = name.join(".");
        let is_for = |pattern: &str| match pattern.strip_prefix('*') {
            Some(suffix) => host.strip_suffix(suffix).is_some_and(|rest| !rest.is_empty()),
            None => pattern == host,
        };
        if !snapshot.table.hosts().any(|pattern| is_for(&pattern)) {
            return Said::NoName;
        }
        let way = Way::to(ListenerProtocol::Tcp, self.proxy);
        let mut records = addresses(&[way]);
        records.extend(way.port.map(|port| Data::Srv { port, target: host.clone() }));
        Said::Name(records)
    }

    /// The listeners of the service, else its own address, else the HTTP proxy where it can serve it. A service of raw
    /// bytes has no address then: at that of the proxy, the client would meet whoever listens on its port.
    fn ways(&self, snapshot: &Snapshot, service: &str) -> Vec<Way> {
        let own: Vec<Way> = self.listeners.iter().filter(|(name, _)| name == service).map(|(_, way)| *way).collect();
        if !own.is_empty() {
            return own;
        }
        let Some(view) = snapshot.services.get(service).filter(|view| !is_udp_only(view)) else { return Vec::new() };
        if let Some(address) = self.virtual_addresses.as_ref().and_then(|addresses| addresses.of(service)) {
            return vec![Way { protocol: ListenerProtocol::Tcp, address: IpAddr::V4(address), port: None }];
        }
        if speaks_http(view) { vec![Way::to(ListenerProtocol::Tcp, self.proxy)] } else { Vec::new() }
    }
}

impl Way {
    /// A socket that listens on every address is reached on loopback.
    fn to(protocol: ListenerProtocol, socket: SocketAddr) -> Self {
        let address = match socket.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        Self { protocol, address, port: Some(socket.port()) }
    }
}

fn addresses(ways: &[Way]) -> Vec<Data> {
    let mut records = Vec::new();
    for way in ways {
        let record = match way.address {
            IpAddr::V4(ip) => Data::A(ip),
            IpAddr::V6(ip) => Data::Aaaa(ip),
        };
        if !records.contains(&record) {
            records.push(record);
        }
    }
    records
}

/// What every instance of the service speaks, those included that are out; `None` for what this version does not know.
fn protocols(view: &ServiceView) -> impl Iterator<Item = Option<Protocol>> {
    let well = view.endpoints.iter().map(|endpoint| Some(endpoint.protocol));
    well.chain(view.excluded.iter().map(|out| out.protocol))
}

fn speaks_http(view: &ServiceView) -> bool {
    protocols(view).any(|protocol| matches!(protocol, Some(Protocol::Http | Protocol::Http2)))
}

fn is_udp_only(view: &ServiceView) -> bool {
    protocols(view).all(|protocol| protocol == Some(Protocol::Udp))
}

fn protocol_of(label: &str) -> Option<ListenerProtocol> {
    match label {
        "_tcp" => Some(ListenerProtocol::Tcp),
        "_udp" => Some(ListenerProtocol::Udp),
        _ => None,
    }
}

/// One text for each instance that may be drawn now.
fn candidates(snapshot: &Snapshot, service: &str, now: Duration) -> Vec<Data> {
    let mut shares = pick::shares(snapshot, service, now);
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let texts = shares.iter().take(CANDIDATES_MAX).map(|(endpoint, share)| {
        let (instance, node, zone) = (&endpoint.instance, &endpoint.node_name, &endpoint.zone);
        let (distance, capacity) = (endpoint.distance_ms, endpoint.capacity.requests());
        Data::Txt(format!("instance={instance} node={node} zone={zone} d={distance:.1}ms C={capacity} P={share:.3}"))
    });
    texts.collect()
}
