//! Connections that the kernel has led here instead of where their process wanted to go.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use super::context::ProxyContext;
use super::copy::copy_both;
use super::{http, tcp};
use crate::config::Protocol;
use crate::dns::VirtualAddresses;
use crate::dns::virtual_address::is_virtual;
use crate::snapshot::Snapshot;

/// Time to reach where the process wanted to go; systems themselves wait for a minute or two.
const CONNECT_MAX: Duration = Duration::from_secs(60);
/// A connection that is only passed on is never closed for being silent: the process did not ask for that.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Silence after which the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

impl ProxyContext {
    /// Serves redirected connections until the proxy drains. To be spawned on the runtime of `core`.
    pub async fn serve_transparent(self: Arc<Self>, core: usize, listener: TcpListener, names: Arc<VirtualAddresses>) {
        let Ok(own) = listener.local_addr() else { return };
        while let Some((stream, permit)) = self.next_connection(&listener, "transparent").await {
            let (context, names) = (Arc::clone(&self), Arc::clone(&names));
            tokio::spawn(async move {
                connection(&context, core, stream, own, &names).await;
                drop(permit);
            });
        }
    }
}

async fn connection(
    context: &Arc<ProxyContext>,
    core: usize,
    client: TcpStream,
    own: SocketAddr,
    names: &VirtualAddresses,
) {
    let Some(wanted) = wanted(&client, own) else {
        // It came here by its own will.
        return count("refused");
    };
    let IpAddr::V4(address) = wanted.ip() else { return pass(client, wanted).await };
    if !is_virtual(address) {
        return pass(client, wanted).await;
    }
    let snapshot = context.published.load();
    let Some(service) = service_at(&snapshot, names, address) else {
        tracing::info!(%address, "connection to an address that no service has");
        return count("refused");
    };
    let speaks_http = speaks_http(&snapshot, &service);
    drop(snapshot);
    count("service");
    if speaks_http {
        http::connection(context, core, client).await;
    } else {
        tcp::connection(context, core, client, &service).await;
    }
}

/// Where the process wanted to go; `None` for a connection that came to `own`, the listener, by its own will.
fn wanted(client: &TcpStream, own: SocketAddr) -> Option<SocketAddr> {
    let here = client.local_addr().ok()?;
    if here != own {
        // Handed over by TPROXY, which leaves the destination as it was.
        return Some(here);
    }
    let wanted = SockRef::from(client).original_dst_v4().ok()?.as_socket()?;
    (wanted != own).then_some(wanted)
}

/// The service that has the address. A process may remember it from before this agent was started: names are given
/// their addresses again then, in their order.
fn service_at(snapshot: &Snapshot, names: &VirtualAddresses, address: std::net::Ipv4Addr) -> Option<String> {
    let given_now = || snapshot.services.keys().find(|name| names.of(name) == Some(address)).cloned();
    names.service_at(address).or_else(given_now)
}

fn speaks_http(snapshot: &Snapshot, service: &str) -> bool {
    let view = snapshot.services.get(service);
    let mut endpoints = view.into_iter().flat_map(|view| &view.endpoints);
    endpoints.any(|endpoint| matches!(endpoint.protocol, Protocol::Http | Protocol::Http2))
}

/// Hands the connection on, unchanged, to where the process wanted to go.
async fn pass(mut client: TcpStream, wanted: SocketAddr) {
    let reached = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(wanted)).await;
    let Ok(Ok(mut there)) = reached else {
        count("unreachable");
        // A reset, as the process would have got without us; an orderly end would look like an answer.
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).ok();
        return;
    };
    count("passed");
    there.set_nodelay(true).ok();
    for side in [SockRef::from(&client), SockRef::from(&there)] {
        side.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE)).ok();
    }
    let copied = copy_both(&mut client, &mut there, Vec::new(), NEVER).await;
    if let Err(error) = copied.end {
        tracing::debug!(%error, %wanted, "passed connection ended");
    }
}

fn count(to: &'static str) {
    metrics::counter!("marram_transparent_connections_total", "to" => to).increment(1);
}
