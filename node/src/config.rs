//! `node.toml`: the empty file is a working node, every field has a default, unknown fields are refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use check::{check_registration, is_dns_label};
pub use fault::{ConfigError, Fault};

mod check;
mod fault;
mod load;
mod print;
#[cfg(test)]
mod tests;

/// Name of the file within a node's folder.
pub const FILE_NAME: &str = "node.toml";

/// The whole of `node.toml`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Large place, for instance `eu-west`; scopes `region:R` refer to it. Default: empty.
    pub region: String,
    /// Small place within the region, for instance `hall-3`; also the gossip cell. Default: empty.
    pub zone: String,
    /// Where this node stands, for the great-circle distance until a round trip is measured. Default: unknown.
    pub location: Option<Location>,
    /// Free labels shown by `marram nodes -o wide`. Default: none.
    pub labels: BTreeMap<String, String>,
    /// How peers reach this node.
    pub mesh: MeshConfig,
    /// Membership and gossip.
    pub gossip: GossipConfig,
    /// The admin API.
    pub admin: AdminConfig,
    /// The proxy for local applications.
    pub proxy: ProxyConfig,
    /// Names for local applications.
    pub dns: DnsConfig,
    /// Connections that the kernel leads to this node.
    pub transparent: TransparentConfig,
    /// The policy store.
    pub store: StoreConfig,
    /// Services of this node, the same as `PUT /v1/services/{name}/instances/{id}`.
    #[serde(rename = "service")]
    pub services: Vec<ServiceConfig>,
    /// A local TCP or UDP port per service, for programs that speak no HTTP.
    #[serde(rename = "listener")]
    pub listeners: Vec<ListenerConfig>,
}

/// A point on the globe in degrees.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// North is positive, -90..=90.
    pub lat: f64,
    /// East is positive, -180..=180.
    pub lon: f64,
}

/// How peers reach this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Address and port for node-to-node QUIC (UDP), and for links and joining over TCP. Default: `0.0.0.0:7440`.
    pub bind: SocketAddr,
    /// What carries links: `auto` (QUIC, and TCP where UDP does not get through), `quic`, or `tcp`. Default: `auto`.
    pub transport: MeshTransport,
    /// `HOST:PORT` under which peers find this node. Default: the address of the route to the peers, with the port of `bind`.
    pub advertise: Option<String>,
    /// Peers to start from, `HOST:PORT` each; `join` fills it. Later the address book knows more. Default: none.
    pub seeds: Vec<String>,
    /// Life of a leaf certificate; renewed at half of it. Shorter means stolen keys die sooner, longer survives a stopped clock. Default: `24h`.
    #[serde(with = "humantime_serde")]
    pub leaf_life: Duration,
    /// Data threads, each with its own runtime and sockets. 0 means the cores this process may use, at most 2. Default: 0.
    pub data_threads: usize,
}

/// What carries the links between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshTransport {
    /// QUIC where it works, TCP where UDP does not get through.
    #[default]
    Auto,
    /// QUIC alone.
    Quic,
    /// TLS over TCP alone.
    Tcp,
}

impl From<MeshTransport> for transport::Transport {
    fn from(transport: MeshTransport) -> Self {
        match transport {
            MeshTransport::Auto => Self::Auto,
            MeshTransport::Quic => Self::Quic,
            MeshTransport::Tcp => Self::Tcp,
        }
    }
}

/// Membership and gossip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GossipConfig {
    /// `lan`: probe every 1 s, gossip every 1 s. `metered`: probe every 5 s, gossip every 10 s, for links that are paid by the byte. Default: `lan`.
    pub preset: GossipPreset,
}

/// Timing of membership and gossip as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GossipPreset {
    /// Fast: seconds to notice a death.
    #[default]
    Lan,
    /// Sparing with bytes: half a minute to notice a death.
    Metered,
}

/// The admin API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// TCP address of the admin API; loopback only. Default: `127.0.0.1:7070`.
    pub bind: SocketAddr,
}

/// The proxy for local applications. Its limits and timeouts stand in one table in `docs/config.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// HTTP proxy by Host header, absolute-form and CONNECT. Default: `127.0.0.1:7080`.
    pub bind: SocketAddr,
    /// Client connections at once over all listeners; one more waits in the accept queue. Default: 4096.
    pub connections_max: usize,
    /// Bytes of a request head; a longer one is answered 431. Default: 16 KiB.
    pub head_bytes_max: usize,
    /// Time for a client to send a whole request head; then 408 and close. Default: `10s`.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// Time to connect to a local instance; then the next candidate. Default: `1s`.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Time from the whole request to the response head when no `HTTPRoute` sets one; then 504. Default: `60s`.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// A kept-alive connection or a TCP tunnel without a byte is closed after this. Default: `300s`.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// After SIGTERM, requests in flight may finish for this long. Default: `10s`.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// How long an endpoint that gave no connection or no answer is not drawn by this node. Default: `5s`.
    #[serde(with = "humantime_serde")]
    pub eject_time: Duration,
    /// Resident bytes of the agent; from 85 % of it on new requests are answered 503, below 75 % they are taken again. 0 means what the cgroup or the machine gives. Default: 0.
    pub memory_max: u64,
    /// A client's flow of datagrams without one is forgotten after this. Default: `60s`.
    #[serde(with = "humantime_serde")]
    pub udp_flow_timeout: Duration,
    /// Flows of datagrams at once, for each UDP listener and for all instances of this node; for one more the one that was idle for longest is closed. Default: 1024.
    pub udp_flows_max: usize,
}

/// Names for local applications: `SERVICE.mesh`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Whether names are answered at all. Default: true.
    pub enabled: bool,
    /// UDP and TCP address. A taken one is told in the log and tried again; the node runs on. Default: `127.0.0.1:7053`.
    pub bind: SocketAddr,
    /// Whether a service without a listener gets a loopback address of its own, which only processes behind `marram transparent` reach, on any port. Default: false, the address of the HTTP proxy.
    pub virtual_addresses: bool,
}

/// Connections that the kernel leads to this node, by the rules of `marram transparent`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransparentConfig {
    /// Whether there is a listener for them. Default: false.
    pub enabled: bool,
    /// Its address, on 127.0.0.1, where the kernel leads them. Default: `127.0.0.1:7081`.
    pub bind: SocketAddr,
}

/// The policy store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// How long a deletion is remembered. A node that was away for less catches up by the writes alone; one that was away for longer compares what it holds, which costs some kilobytes more. Nothing deleted comes back either way. Default: `7d`.
    #[serde(with = "humantime_serde")]
    pub tombstone_age: Duration,
}

/// What an instance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// Bytes.
    Tcp,
    /// HTTP/2 in clear by prior knowledge, as gRPC servers do; Gateway API calls it `kubernetes.io/h2c`.
    // Records say a protocol by its place in this list; new ones come last.
    #[serde(alias = "kubernetes.io/h2c")]
    Http2,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// The protocol with this place in the list, as records say it; `None` for one of a later version.
    #[must_use]
    pub fn from_place(place: u32) -> Option<Self> {
        [Self::Http, Self::Tcp, Self::Http2, Self::Udp].into_iter().find(|known| *known as u32 == place)
    }

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Http2 => "http2",
            Self::Udp => "udp",
        }
    }
}

/// One instance of a service on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The service's name, a DNS label.
    pub name: String,
    /// Id of the instance within this node. Default: the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where the process listens. Default: `127.0.0.1`.
    #[serde(default = "loopback")]
    #[cfg_attr(test, schema(value_type = String))]
    pub address: IpAddr,
    /// The port it listens on.
    pub port: u16,
    /// What it speaks. Default: `http`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Concurrent requests it serves well. Default: 64 x cores / instances of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<f64>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Health checks; all must pass. None means: healthy until a connect fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckConfig>,
}

impl ServiceConfig {
    /// The instance id: as given, else the port.
    #[must_use]
    pub fn instance_id(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.port.to_string())
    }

    /// Where to connect.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// One health check of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum CheckConfig {
    /// GET `path` must answer 200..=399.
    Http {
        /// Path and query.
        #[serde(default = "root_path")]
        path: String,
        /// Time between checks. Default `2s`.
        #[serde(with = "humantime_serde", default = "check_interval")]
        #[cfg_attr(test, schema(value_type = String))]
        interval: Duration,
        /// Time for one check. Default `1s`.
        #[serde(with = "humantime_serde", default = "check_timeout")]
        #[cfg_attr(test, schema(value_type = String))]
        timeout: Duration,
        /// Failures in a row until unhealthy. Default 2.
        #[serde(default = "two")]
        fall: u32,
        /// Successes in a row until healthy. Default 1.
        #[serde(default = "one")]
        rise: u32,
    },
    /// A TCP connect must succeed.
    Tcp {
        /// Time between checks. Default `2s`.
        #[serde(with = "humantime_serde", default = "check_interval")]
        #[cfg_attr(test, schema(value_type = String))]
        interval: Duration,
        /// Time for one check. Default `1s`.
        #[serde(with = "humantime_serde", default = "check_timeout")]
        #[cfg_attr(test, schema(value_type = String))]
        timeout: Duration,
        /// Failures in a row until unhealthy. Default 2.
        #[serde(default = "two")]
        fall: u32,
        /// Successes in a row until healthy. Default 1.
        #[serde(default = "one")]
        rise: u32,
    },
    /// The application must call `PUT /v1/services/{name}/instances/{id}/heartbeat` within `ttl`, else it is unhealthy.
    Ttl {
        /// Longest silence.
        #[serde(with = "humantime_serde")]
        #[cfg_attr(test, schema(value_type = String))]
        ttl: Duration,
    },
}

/// A local port that leads to one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// The service's name.
    pub service: String,
    /// Local address and port.
    pub address: SocketAddr,
    /// `tcp` for connections, `udp` for datagrams. Default: `tcp`.
    #[serde(default)]
    pub protocol: ListenerProtocol,
}

/// What a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7440),
            transport: MeshTransport::Auto,
            advertise: None,
            seeds: Vec::new(),
            leaf_life: Duration::from_secs(24 * 3600),
            data_threads: 0,
        }
    }
}

impl Default for GossipConfig {
    fn default() -> Self {
        Self { preset: GossipPreset::Lan }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { bind: SocketAddr::new(loopback(), 7070) }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self { enabled: true, bind: SocketAddr::new(loopback(), 7053), virtual_addresses: false }
    }
}

impl Default for TransparentConfig {
    fn default() -> Self {
        Self { enabled: false, bind: SocketAddr::new(loopback(), 7081) }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { tombstone_age: Duration::from_millis(crdt_store::TOMBSTONE_AGE_MS) }
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::new(loopback(), 7080),
            connections_max: 4096,
            head_bytes_max: 16 * 1024,
            head_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(10),
            eject_time: Duration::from_secs(5),
            memory_max: 0,
            udp_flow_timeout: Duration::from_secs(60),
            udp_flows_max: 1024,
        }
    }
}

fn loopback() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

fn root_path() -> String {
    "/".to_owned()
}

fn check_interval() -> Duration {
    Duration::from_secs(2)
}

fn check_timeout() -> Duration {
    Duration::from_secs(1)
}

fn two() -> u32 {
    2
}

fn one() -> u32 {
    1
}
