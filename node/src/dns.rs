//! Names for local applications: answers for `SERVICE.mesh` on one UDP and one TCP port, from the newest snapshot.
//!
//! `zone` says what there is under a name, `wire` turns that into messages, both pure; this file has the sockets and
//! their limits. It runs on a data thread and asks nobody: a node that is cut off, or whose control thread hangs, goes
//! on answering.
//!
//! | limit | at the limit |
//! |---|---|
//! | [`QUERIES_PER_SECOND`] over UDP and TCP together | dropped, counted |
//! | [`CONNECTIONS_MAX`] TCP connections | one more is closed at once, counted |
//! | [`IDLE_MAX`] without a query on a TCP connection | closed |
//! | what the asker takes in one datagram | the answer is cut and says so; over TCP there is more |

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tracing::{info, warn};
use transport::Clock;

use crate::config::Config;
use crate::snapshot::Published;

mod bucket;
#[cfg(test)]
mod tests;
pub mod virtual_address;
mod wire;
mod zone;

use bucket::Bucket;
pub use virtual_address::VirtualAddresses;
use wire::{Dropped, Over};
pub use zone::Zone;

/// Queries answered in a second; as many may come at once after a quiet one.
pub const QUERIES_PER_SECOND: u32 = 10_000;
/// TCP connections at once.
pub const CONNECTIONS_MAX: usize = 32;
/// Longest silence on a TCP connection.
pub const IDLE_MAX: Duration = Duration::from_secs(10);
/// Longest query that is looked at; no question about one name comes near it.
const QUERY_BYTES_MAX: usize = 4096;
/// Time between two attempts to get the address.
const BIND_RETRY: Duration = Duration::from_secs(10);
/// Pause after the system had no socket or no memory to give.
const PAUSE: Duration = Duration::from_millis(100);

/// The name server of one node.
pub struct Dns {
    bind: SocketAddr,
    zone: Zone,
    published: Arc<Published>,
    clock: Arc<dyn Clock>,
    bucket: Mutex<Bucket>,
    connections: Arc<Semaphore>,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").field("bind", &self.bind).field("zone", &self.zone).finish_non_exhaustive()
    }
}

impl Dns {
    /// A name server that has not begun to serve; `None` where the configuration wants none.
    #[must_use]
    pub fn new(
        config: &Config,
        virtual_addresses: &Arc<VirtualAddresses>,
        published: Arc<Published>,
        clock: Arc<dyn Clock>,
    ) -> Option<Arc<Self>> {
        config.dns.enabled.then(|| {
            Arc::new(Self {
                bind: config.dns.bind,
                zone: Zone::new(config, virtual_addresses),
                published,
                bucket: Mutex::new(Bucket::full(QUERIES_PER_SECOND, clock.now())),
                clock,
                connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            })
        })
    }

    /// Serves for ever. An address that is taken keeps no node from starting: it is said once, and tried again.
    pub async fn run(self: Arc<Self>) {
        let mut is_told = false;
        loop {
            metrics::gauge!("marram_dns_up").set(0.0);
            match self.sockets().await {
                Ok((udp, tcp)) => {
                    info!(address = %self.bind, "answering names");
                    metrics::gauge!("marram_dns_up").set(1.0);
                    tokio::join!(self.serve_udp(&udp), self.serve_tcp(&tcp));
                }
                Err(fault) if !is_told => {
                    is_told = true;
                    warn!(address = %self.bind, %fault, "no names are answered, trying again: `dns.bind` is another address, `dns.enabled = false` does without");
                }
                Err(_still) => {}
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    }

    async fn sockets(&self) -> io::Result<(UdpSocket, TcpListener)> {
        let udp = UdpSocket::bind(self.bind).await?;
        let tcp = TcpListener::bind(udp.local_addr()?).await?;
        Ok((udp, tcp))
    }

    /// One query after the other: what comes faster waits in the socket's buffer, and the kernel drops what does not fit.
    async fn serve_udp(&self, socket: &UdpSocket) {
        let mut query = [0; QUERY_BYTES_MAX];
        loop {
            let (length, from) = match socket.recv_from(&mut query).await {
                Ok(received) => received,
                Err(fault) => {
                    tracing::debug!(%fault, "no datagram received");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(answer) = self.answer(query.get(..length).unwrap_or_default(), Over::Udp) else { continue };
            // Waiting for room would let one asker hold up the others; it asks again.
            if socket.try_send_to(&answer, from).is_err() {
                drop_query(Dropped::NotSent);
            }
        }
    }

    async fn serve_tcp(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _from)) => stream,
                Err(fault) => {
                    tracing::debug!(%fault, "no connection accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
                drop_query(Dropped::Connections);
                continue;
            };
            let dns = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(fault) = dns.connection(stream).await {
                    tracing::debug!(%fault, "connection ended");
                }
                drop(permit);
            });
        }
    }

    /// Queries one after the other, each behind its length (RFC 7766).
    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut query = vec![0; QUERY_BYTES_MAX];
        loop {
            let length = usize::from(tokio::time::timeout(IDLE_MAX, stream.read_u16()).await??);
            let Some(query) = query.get_mut(..length) else { return Err(io::ErrorKind::InvalidData.into()) };
            tokio::time::timeout(IDLE_MAX, stream.read_exact(query)).await??;
            let Some(answer) = self.answer(query, Over::Tcp) else { return Ok(()) };
            let mut message = Vec::with_capacity(answer.len() + 2);
            message.extend(u16::try_from(answer.len()).unwrap_or(u16::MAX).to_be_bytes());
            message.extend(answer);
            tokio::time::timeout(IDLE_MAX, stream.write_all(&message)).await??;
        }
    }

    fn answer(&self, query: &[u8], over: Over) -> Option<Vec<u8>> {
        let now = self.clock.now();
        if !self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now) {
            drop_query(Dropped::Rate);
            return None;
        }
        let snapshot = self.published.load();
        match wire::reply(query, over, snapshot.version, |name| self.zone.look_up(name, &snapshot, now)) {
            Ok(reply) => {
                metrics::counter!("marram_dns_queries_total", "result" => reply.result).increment(1);
                Some(reply.bytes)
            }
            Err(dropped) => {
                drop_query(dropped);
                None
            }
        }
    }
}

fn drop_query(reason: Dropped) {
    metrics::counter!("marram_dns_dropped_total", "reason" => reason.as_str()).increment(1);
}
