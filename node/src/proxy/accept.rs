//! Taking connections: a permit first, then the socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use super::context::ProxyContext;
use super::{http, tcp};

/// Pause after the system had no socket to give.
const PAUSE: Duration = Duration::from_millis(100);

impl ProxyContext {
    /// Serves HTTP to applications until the proxy drains. To be spawned on the runtime of `core`.
    pub async fn serve_http(self: Arc<Self>, core: usize, listener: TcpListener) {
        while let Some((stream, permit)) = self.next_connection(&listener, "http").await {
            let context = Arc::clone(&self);
            tokio::spawn(async move {
                http::connection(&context, core, stream).await;
                drop(permit);
            });
        }
    }

    /// Serves raw TCP for one service until the proxy drains. To be spawned on the runtime of `core`.
    pub async fn serve_tcp(self: Arc<Self>, core: usize, listener: TcpListener, service: String) {
        while let Some((stream, permit)) = self.next_connection(&listener, "tcp").await {
            let (context, service) = (Arc::clone(&self), service.clone());
            tokio::spawn(async move {
                tcp::connection(&context, core, stream, &service).await;
                drop(permit);
            });
        }
    }

    /// The next connection with its permit; `None` when the proxy drains.
    ///
    /// At the limit nothing is accepted: clients wait in the system's queue, and that is counted.
    pub(super) async fn next_connection(
        &self,
        listener: &TcpListener,
        kind: &'static str,
    ) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        tokio::select! {
            biased;
            () = self.until_draining() => None,
            accepted = self.accept(listener, kind) => accepted,
        }
    }

    async fn accept(&self, listener: &TcpListener, kind: &'static str) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        let connections = Arc::clone(&self.connections);
        let permit = match Arc::clone(&connections).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_none_left) => {
                metrics::counter!("marram_proxy_refused_total", "reason" => "connections_max").increment(1);
                connections.acquire_owned().await.ok()?
            }
        };
        loop {
            match listener.accept().await {
                Ok((stream, _from)) => {
                    metrics::counter!("marram_proxy_connections_total", "kind" => kind).increment(1);
                    // Without it small answers wait for acknowledgements; a socket that refuses the option still works.
                    stream.set_nodelay(true).ok();
                    return Some((stream, permit));
                }
                // The client was gone again before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    metrics::counter!("marram_proxy_refused_total", "reason" => "accept_failed").increment(1);
                    tracing::warn!(%error, kind, "cannot accept connections, trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
