//! The pairs of others, each with the settings it is started with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use tests::{free_port, has_program};

use super::ground::{Ground, Program};
use super::{Layer, Pair, pair};

/// A pair that may be started.
pub(crate) struct Setup<'a> {
    pub(crate) name: &'static str,
    layer: Layer,
    program: &'static str,
    /// Whether it takes HTTP/2 in clear as well.
    takes_two: bool,
    ground: &'a Ground,
    backend: SocketAddr,
    /// Starts A or B.
    command: fn(&Ends<'_>, Side) -> anyhow::Result<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// In clear, to TLS.
    A,
    /// From TLS, in clear.
    B,
}

/// Where the parts of one pair are.
struct Ends<'a> {
    /// Tells the files of one pair from those of others.
    id: String,
    program: &'static str,
    ground: &'a Ground,
    entry: SocketAddr,
    between: SocketAddr,
    backend: SocketAddr,
    two: Option<Two>,
}

/// Where HTTP/2 in clear goes in, and the way of gRPC, whose backend speaks HTTP/2 as well.
#[derive(Debug, Clone, Copy)]
struct Two {
    plain: SocketAddr,
    grpc: SocketAddr,
    between: SocketAddr,
    backend: SocketAddr,
}

impl Setup<'_> {
    /// Starts B and then A on this machine; calls of gRPC go to `grpc`.
    ///
    /// # Errors
    /// When the program is not there or does not start.
    pub(crate) fn start(&self, grpc: SocketAddr) -> anyhow::Result<Pair> {
        let two = Two { plain: free_port(), grpc: free_port(), between: free_port(), backend: grpc };
        let two = self.takes_two.then_some(two);
        self.start_with((free_port(), free_port(), two), |_, command| command, |_, wait| wait())
    }

    /// Starts B, which listens at `between`, and then A, which listens at `entry`. `place` makes the command one that runs
    /// where that side is to be, and `inside` runs there what waits for it.
    ///
    /// # Errors
    /// When the program is not there or does not start.
    pub(crate) fn start_at(
        &self,
        entry: SocketAddr,
        between: SocketAddr,
        place: impl Fn(Side, Command) -> Command,
        inside: impl Fn(Side, &mut (dyn FnMut() -> anyhow::Result<()> + Send)) -> anyhow::Result<()>,
    ) -> anyhow::Result<Pair> {
        self.start_with((entry, between, None), place, inside)
    }

    fn start_with(
        &self,
        (entry, between, two): (SocketAddr, SocketAddr, Option<Two>),
        place: impl Fn(Side, Command) -> Command,
        inside: impl Fn(Side, &mut (dyn FnMut() -> anyhow::Result<()> + Send)) -> anyhow::Result<()>,
    ) -> anyhow::Result<Pair> {
        anyhow::ensure!(has_program(self.program), "there is no `{}` in PATH", self.program);
        let ends = Ends {
            id: self.name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"),
            program: self.program,
            ground: self.ground,
            entry,
            between,
            backend: self.backend,
            two,
        };
        let mut programs = Vec::new();
        for (side, address) in [(Side::B, between), (Side::A, entry)] {
            let log = self.ground.path(&format!("{}-{side:?}.log", ends.id));
            let mut program = Program::start(place(side, (self.command)(&ends, side)?), &log)?;
            inside(side, &mut || program.listens(address, &log))?;
            programs.push(program);
        }
        programs.reverse();
        Ok(pair(self.name, self.layer, entry, two.map(|two| [two.plain, two.grpc]), programs))
    }
}

impl Ends<'_> {
    fn file(&self, side: Side, ending: &str, text: &str) -> anyhow::Result<PathBuf> {
        self.ground.write(&format!("{}-{side:?}.{ending}", self.id), text)
    }

    fn path(&self, name: &str) -> String {
        self.ground.path(name).display().to_string()
    }
}

/// Every pair of others, whether its program is here or not.
pub(crate) fn all(ground: &Ground, backend: SocketAddr) -> anyhow::Result<Vec<Setup<'_>>> {
    use Layer::{Bytes, Requests};
    type Start = fn(&Ends<'_>, Side) -> anyhow::Result<Command>;
    let kinds: [(&'static str, Layer, &'static str, Start); 7] = [
        ("haproxy h1", Requests, "haproxy", |ends, side| haproxy(ends, side, "http", "")),
        ("haproxy h2", Requests, "haproxy", |ends, side| haproxy(ends, side, "http", " alpn h2")),
        ("haproxy tcp", Bytes, "haproxy", |ends, side| haproxy(ends, side, "tcp", "")),
        ("nginx h1", Requests, "nginx", nginx),
        ("envoy h2", Requests, "envoy", |ends, side| envoy(ends, side, Requests)),
        ("envoy CONNECT over h2", Bytes, "envoy", |ends, side| envoy(ends, side, Bytes)),
        ("caddy", Requests, "caddy", caddy),
    ];
    Ok(kinds
        .into_iter()
        .map(|(name, layer, program, command)| {
            let takes_two = layer == Requests && name != "haproxy h1";
            Setup { name, layer, program, takes_two, ground, backend, command }
        })
        .collect())
}

fn haproxy(ends: &Ends<'_>, side: Side, mode: &str, alpn: &str) -> anyhow::Result<Command> {
    let tls = format!("ssl crt {} ca-file {} verify required{alpn}", ends.path("both.pem"), ends.path("ca.pem"));
    let (bind, server) = match side {
        Side::A => (ends.entry.to_string(), format!("{} {tls}", ends.between)),
        Side::B => (format!("{} {tls}", ends.between), ends.backend.to_string()),
    };
    let reuse = if mode == "http" { "  http-reuse always\n" } else { "" };
    let text = format!(
        "global\n  nbthread 2\n  maxconn 8192\n  \
         ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n  \
         ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256\n\
         defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend in\n  bind {bind}\n  default_backend out\n\
         backend out\n{reuse}  server only {server}\n"
    );
    let ways = match (side, ends.two) {
        (_, None) => String::new(),
        (Side::A, Some(Two { plain, grpc, between, .. })) => format!(
            "frontend plain\n  bind {plain} proto h2\n  default_backend out\n\
             frontend grpc\n  bind {grpc} proto h2\n  default_backend grpc\n\
             backend grpc\n{reuse}  server only {between} {tls}\n"
        ),
        (Side::B, Some(Two { between, backend, .. })) => format!(
            "frontend grpc\n  bind {between} {tls}\n  default_backend grpc\n\
             backend grpc\n{reuse}  server only {backend} proto h2\n"
        ),
    };
    let file = ends.file(side, "cfg", &(text + &ways))?;
    let mut command = Command::new(ends.program);
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

fn nginx(ends: &Ends<'_>, side: Side) -> anyhow::Result<Command> {
    let Ends { entry, between, backend, .. } = ends;
    let (ca, certificate, key) = (ends.path("ca.pem"), ends.path("peer.pem"), ends.path("peer.key"));
    let suite = "Ciphersuites TLS_AES_128_GCM_SHA256";
    let plain = ends.two.map(|two| format!("listen {} http2;\n    ", two.plain)).unwrap_or_default();
    let up = "keepalive 256; keepalive_requests 100000000;";
    let grpc = match (side, ends.two) {
        (_, None) => String::new(),
        (Side::A, Some(two)) => format!(
            "  upstream grpc {{ server {}; {up} }}\n  server {{\n    listen {} http2;\n    keepalive_requests 100000000;\n    \
             location / {{\n      grpc_pass grpcs://grpc;\n      grpc_ssl_certificate {certificate};\n      \
             grpc_ssl_certificate_key {key};\n      grpc_ssl_trusted_certificate {ca};\n      grpc_ssl_verify on;\n      \
             grpc_ssl_name peer;\n      grpc_ssl_protocols TLSv1.3;\n      grpc_ssl_conf_command {suite};\n    }}\n  }}\n",
            two.between, two.grpc
        ),
        (Side::B, Some(two)) => format!(
            "  upstream grpc {{ server {}; {up} }}\n  server {{\n    listen {} ssl http2;\n    keepalive_requests 100000000;\n    \
             ssl_certificate {certificate};\n    ssl_certificate_key {key};\n    ssl_client_certificate {ca};\n    \
             ssl_verify_client on;\n    ssl_protocols TLSv1.3;\n    ssl_conf_command {suite};\n    \
             location / {{\n      grpc_pass grpc://grpc;\n    }}\n  }}\n",
            two.backend, two.between
        ),
    };
    let (upstream, server) = match side {
        Side::A => (
            between,
            format!(
                "listen {entry};\n    {plain}location / {{\n      proxy_pass https://up;\n      proxy_ssl_certificate {certificate};\n      \
                 proxy_ssl_certificate_key {key};\n      proxy_ssl_trusted_certificate {ca};\n      proxy_ssl_verify on;\n      \
                 proxy_ssl_name peer;\n      proxy_ssl_protocols TLSv1.3;\n      proxy_ssl_conf_command {suite};\n"
            ),
        ),
        Side::B => (
            backend,
            format!(
                "listen {between} ssl;\n    ssl_certificate {certificate};\n    ssl_certificate_key {key};\n    \
                 ssl_client_certificate {ca};\n    ssl_verify_client on;\n    ssl_protocols TLSv1.3;\n    \
                 ssl_conf_command {suite};\n    location / {{\n      proxy_pass http://up;\n"
            ),
        ),
    };
    let folder = ends.path(&format!("{}-{side:?}", ends.id));
    std::fs::create_dir_all(&folder)?;
    let text = format!(
        "daemon off;\nworker_processes 2;\npid {folder}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n  \
         fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n  \
         upstream up {{ server {upstream}; {up} }}\n  \
         server {{\n    keepalive_requests 100000000;\n    {server}      proxy_http_version 1.1;\n      \
         proxy_set_header Connection \"\";\n    }}\n  }}\n{grpc}}}\n"
    );
    let file = ends.file(side, "conf", &text)?;
    let mut command = Command::new(ends.program);
    command.arg("-p").arg(&folder).arg("-e").arg("stderr").arg("-c").arg(file);
    Ok(command)
}

fn caddy(ends: &Ends<'_>, side: Side) -> anyhow::Result<Command> {
    let Ends { entry, between, backend, .. } = ends;
    let (ca, certificate, key) = (ends.path("ca.pem"), ends.path("peer.pem"), ends.path("peer.key"));
    let near = |entry: &SocketAddr, between: &SocketAddr| {
        format!(
            "http://:{} {{\n  bind 127.0.0.1\n  reverse_proxy https://{between} {{\n    header_up Host peer\n    transport http {{\n      \
             tls_client_auth {certificate} {key}\n      tls_trust_pool file {ca}\n      tls_server_name peer\n      \
             keepalive_idle_conns_per_host 256\n    }}\n  }}\n}}\n",
            entry.port()
        )
    };
    let far = |between: &SocketAddr, backend: &str| {
        format!(
            "https://peer:{} {{\n  bind 127.0.0.1\n  tls {certificate} {key} {{\n    client_auth {{\n      \
             mode require_and_verify\n      trust_pool file {ca}\n    }}\n  }}\n  reverse_proxy {backend}\n}}\n",
            between.port()
        )
    };
    let mut sites = match side {
        Side::A => near(entry, between),
        Side::B => far(between, &backend.to_string()),
    };
    match (side, ends.two) {
        (_, None) => {}
        (Side::A, Some(two)) => sites += &(near(&two.plain, between) + &near(&two.grpc, &two.between)),
        (Side::B, Some(two)) => sites += &far(&two.between, &format!("h2c://{}", two.backend)),
    }
    let servers = "servers {\n    protocols h1 h2 h2c\n  }";
    let text = format!("{{\n  admin off\n  auto_https off\n  persist_config off\n  {servers}\n}}\n{sites}");
    let file = ends.file(side, "Caddyfile", &text)?;
    let mut command = Command::new(ends.program);
    command.arg("run").arg("--adapter").arg("caddyfile").arg("--config").arg(file);
    command.env("GOMAXPROCS", "2").env("XDG_DATA_HOME", ends.ground.dir()).env("XDG_CONFIG_HOME", ends.ground.dir());
    Ok(command)
}

fn envoy(ends: &Ends<'_>, side: Side, layer: Layer) -> anyhow::Result<Command> {
    let text = envoy_config(ends, side, layer);
    let file = ends.file(side, "json", &serde_json::to_string_pretty(&text)?)?;
    let mut command = Command::new(ends.program);
    command.args(["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "error", "-c"]).arg(file);
    Ok(command)
}

/// The ways of one side.
fn envoy_config(ends: &Ends<'_>, side: Side, layer: Layer) -> serde_json::Value {
    use serde_json::json;
    let mut ways = match side {
        Side::A => vec![envoy_way(ends, side, layer, ("up", ends.entry, ends.between))],
        Side::B => vec![envoy_way(ends, side, layer, ("up", ends.between, ends.backend))],
    };
    match (side, ends.two) {
        (_, None) => {}
        (Side::A, Some(two)) => {
            ways.push(envoy_way(ends, side, layer, ("plain", two.plain, ends.between)));
            ways.push(envoy_way(ends, side, layer, (GRPC_WAY, two.grpc, two.between)));
        }
        (Side::B, Some(two)) => ways.push(envoy_way(ends, side, layer, (GRPC_WAY, two.between, two.backend))),
    }
    let (listeners, clusters): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
    json!({ "static_resources": { "listeners": listeners, "clusters": clusters } })
}

/// The way whose backend speaks HTTP/2.
const GRPC_WAY: &str = "grpc";

/// A listener with a chain of one filter, and a cluster; TLS on the side between the two.
fn envoy_way(
    ends: &Ends<'_>,
    side: Side,
    layer: Layer,
    (name, listen, to): (&str, SocketAddr, SocketAddr),
) -> (serde_json::Value, serde_json::Value) {
    use serde_json::json;
    const API: &str = "type.googleapis.com/envoy.extensions";
    let certificates = json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": { "filename": ends.path("peer.pem") },
            "private_key": { "filename": ends.path("peer.key") },
        }],
        "validation_context": { "trusted_ca": { "filename": ends.path("ca.pem") } },
        "alpn_protocols": ["h2"],
    });
    let tls = |kind: &str, more: serde_json::Value| {
        let mut context = json!({
            "@type": format!("{API}.transport_sockets.tls.v3.{kind}TlsContext"),
            "common_tls_context": certificates,
        });
        if let (Some(context), Some(more)) = (context.as_object_mut(), more.as_object()) {
            context.extend(more.clone());
        }
        json!({ "name": "tls", "typed_config": context })
    };
    let address =
        |at: SocketAddr| json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{ "max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192 }] },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to) } }] }] },
    });
    if let (Side::A, Some(cluster)) = (side, cluster.as_object_mut()) {
        cluster.insert("transport_socket".to_owned(), tls("Upstream", json!({ "sni": "peer" })));
    }
    if let (true, Some(cluster)) = (side == Side::A || name == GRPC_WAY, cluster.as_object_mut()) {
        cluster.insert(
            "typed_extension_protocol_options".to_owned(),
            json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": format!("{API}.upstreams.http.v3.HttpProtocolOptions"),
                    "explicit_http_config": { "http2_protocol_options": {} },
                }
            }),
        );
    }
    let route = match (layer, side) {
        (Layer::Bytes, Side::B) => json!({
            "match": { "connect_matcher": {} },
            "route": { "cluster": name, "timeout": "0s", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] },
        }),
        _ => json!({ "match": { "prefix": "/" }, "route": { "cluster": name } }),
    };
    let mut requests = json!({
        "@type": format!("{API}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "in",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
        "http_filters": [{
            "name": "router",
            "typed_config": { "@type": format!("{API}.filters.http.router.v3.Router") },
        }],
    });
    if let (Layer::Bytes, Some(requests)) = (layer, requests.as_object_mut()) {
        requests.insert("upgrade_configs".to_owned(), json!([{ "upgrade_type": "CONNECT" }]));
        requests.insert("http2_protocol_options".to_owned(), json!({ "allow_connect": true }));
    }
    let filter = match (layer, side) {
        (Layer::Bytes, Side::A) => json!({
            "@type": format!("{API}.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": "in", "cluster": name, "tunneling_config": { "hostname": "app:80" },
        }),
        _ => requests,
    };
    let mut chain = json!({ "filters": [{ "name": "only", "typed_config": filter }] });
    if let (Side::B, Some(chain)) = (side, chain.as_object_mut()) {
        chain.insert("transport_socket".to_owned(), tls("Downstream", json!({ "require_client_certificate": true })));
    }
    (json!({ "name": name, "address": address(listen), "filter_chains": [chain] }), cluster)
}
