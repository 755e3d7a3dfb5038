//! The listeners of the admin API and their connections.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Admin, AdminToken, Listener, SocketPathError, TokenError, WATCHERS_MAX, router, socket_path};
use crate::api::NodeApi;
use crate::telemetry::MetricsHandle;

/// Connections at once per listener; one more waits in the accept queue.
const CONNECTIONS_MAX: usize = 128;
/// Time for a request head, and for the next one on a kept connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header fields of a request.
const HEADERS_MAX: usize = 64;
/// After the stop, requests in flight may finish for this long.
const DRAIN: Duration = Duration::from_secs(2);
/// Time between two foldings of histogram samples.
const UPKEEP: Duration = Duration::from_secs(5);
/// A pause after accept failed, for instance because no file descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the admin API does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Somebody else listens there.
    #[error("admin.bind: {address} is in use\n  hint: choose another port with `admin.bind` in node.toml")]
    PortInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("admin.bind: {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket file cannot be made.
    #[error("{}: {source}", path.display())]
    Socket {
        /// The path of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An agent answers on the socket already.
    #[error("{}: another agent answers here\n  hint: one agent per folder; stop it or use another --dir", path.display())]
    Running {
        /// The path of the socket.
        path: PathBuf,
    },
    /// There is no place for the socket.
    #[error(transparent)]
    SocketPath(#[from] SocketPathError),
    /// The admin token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// The bound listeners of the admin API. [`AdminServer::run`] serves them; dropping it removes the socket file.
#[derive(Debug)]
pub struct AdminServer {
    tcp: TcpListener,
    address: SocketAddr,
    unix: UnixListener,
    path: PathBuf,
    router: Router,
    metrics: MetricsHandle,
    stopped: CancellationToken,
}

impl AdminServer {
    /// Listens on `bind` and on the socket of `dir`; makes `dir/admin.token` where there is none. Call it within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`AdminError`] names the address or file and the way out.
    pub async fn bind(
        dir: &Path,
        bind: SocketAddr,
        api: Arc<dyn NodeApi>,
        metrics: MetricsHandle,
    ) -> Result<Self, AdminError> {
        Self::bind_or_take(dir, bind, None, api, metrics).await
    }

    /// The same with a socket that listens on `bind` already.
    ///
    /// # Errors
    /// [`AdminError`] names the address or file and the way out.
    pub async fn bind_or_take(
        dir: &Path,
        bind: SocketAddr,
        passed: Option<std::net::TcpListener>,
        api: Arc<dyn NodeApi>,
        metrics: MetricsHandle,
    ) -> Result<Self, AdminError> {
        let token = AdminToken::load_or_create(dir)?;
        let tcp = match passed {
            Some(passed) => TcpListener::from_std(passed),
            None => TcpListener::bind(bind).await,
        };
        let tcp = tcp.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => AdminError::PortInUse { address: bind },
            _ => AdminError::Bind { address: bind, source },
        })?;
        let address = tcp.local_addr().map_err(|source| AdminError::Bind { address: bind, source })?;
        let path = socket_path(dir)?;
        let unix = bind_socket(&path).await?;
        let stopped = CancellationToken::new();
        let admin = Admin {
            api,
            metrics: metrics.clone(),
            token,
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            stop: stopped.clone(),
        };
        Ok(Self { tcp, address, unix, path, router: router(admin), metrics, stopped })
    }

    /// Where the TCP listener is.
    #[must_use]
    pub fn tcp_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where the socket is.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        &self.path
    }

    /// Serves until `stop`, then lets requests in flight finish for 2 s. May be called again after a panic.
    pub async fn run(&self, stop: CancellationToken) {
        let connections = TaskTracker::new();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.accept_tcp(&connections, &stop) => {}
            () = self.accept_socket(&connections, &stop) => {}
            () = self.keep_up() => {}
        }
        self.stopped.cancel();
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "admin connections did not end in time");
        }
    }

    async fn accept_tcp(&self, connections: &TaskTracker, stop: &CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let service = self.router.clone().layer(Extension(Listener::Tcp));
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            match self.tcp.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, service.clone(), stop.clone(), permit));
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn accept_socket(&self, connections: &TaskTracker, stop: &CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let service = self.router.clone().layer(Extension(Listener::Socket));
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            match self.unix.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, service.clone(), stop.clone(), permit));
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn keep_up(&self) {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            self.metrics.upkeep();
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stopped.cancel();
        // A socket file left behind is replaced by the next agent.
        drop(fs::remove_file(&self.path));
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "admin API: accept");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn serve<S>(stream: S, router: Router, stop: CancellationToken, permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection");
    }
    drop(permit);
}

/// Replaces a socket file that nobody answers on.
async fn bind_socket(path: &Path) -> Result<UnixListener, AdminError> {
    let failed = |source| AdminError::Socket { path: path.to_owned(), source };
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(AdminError::Running { path: path.to_owned() });
        }
        fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // The folder is 0700 already; this holds where the socket stands in a runtime folder.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}
