//! The demo service: an HTTP/1.1 server that says who answered, and a TCP echo.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz` | `ok` |
//! | `GET /slow?ms=N` | the greeting after N milliseconds, at most 60,000 |
//! | `POST`, `PUT` on any path | the request's body and content type |
//! | anything else | `hello from NAME (PATH)` |
//!
//! Every answer carries `x-answered-by: NAME`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// What to serve and where.
#[derive(Debug, Clone)]
pub struct EchoConfig {
    /// Address of the HTTP service; port 0 picks a free one, see [`EchoServer::http`].
    pub bind: SocketAddr,
    /// Who answers; at most what fits a header value, other characters are replaced by `?` there.
    pub name: String,
    /// Address of the TCP echo, if wanted; port 0 picks a free one.
    pub tcp: Option<SocketAddr>,
    /// Time each HTTP answer takes at least, `/healthz` excepted.
    pub delay: Duration,
}

/// A running demo service; dropping it stops it and closes its connections.
#[derive(Debug)]
pub struct EchoServer {
    http: SocketAddr,
    tcp: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

impl EchoServer {
    /// Where HTTP is served.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where TCP is echoed.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Serves until the tasks end, which they do only when the server is dropped elsewhere; for `select!`.
    pub async fn wait(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Binds and serves on the current runtime. At most 1,024 connections are served at once on each port; further ones
/// wait in the kernel's accept queue.
///
/// # Errors
/// When an address cannot be bound; the message names it.
pub async fn serve(config: EchoConfig) -> io::Result<EchoServer> {
    let http = bind(config.bind).await?;
    let tcp = match config.tcp {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let mut server = EchoServer {
        http: http.local_addr()?,
        tcp: tcp.as_ref().map(TcpListener::local_addr).transpose()?,
        tasks: JoinSet::new(),
    };
    server.tasks.spawn(accept(http, Arc::new(Answerer::new(&config)), serve_http));
    if let Some(tcp) = tcp {
        server.tasks.spawn(accept(tcp, Arc::new(()), |_, stream| echo_tcp(stream)));
    }
    Ok(server)
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// Accepts for ever; the connections live in this task's own set, so that they end with it.
async fn accept<S, F>(listener: TcpListener, shared: Arc<S>, serve: impl Fn(Arc<S>, TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed, so a permit always comes.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small; waiting for more bytes would only add delay. Failing to set it costs speed alone.
                stream.set_nodelay(true).ok();
                let served = serve(Arc::clone(&shared), stream);
                connections.spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            // Out of descriptors, most likely: give others time to close theirs.
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

#[derive(Debug)]
struct Answerer {
    name: String,
    header: HeaderValue,
    delay: Duration,
}

impl Answerer {
    fn new(config: &EchoConfig) -> Self {
        let plain: String =
            config.name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        let header = HeaderValue::from_str(&plain).unwrap_or_else(|_| HeaderValue::from_static("?"));
        Self { name: config.name.clone(), header, delay: config.delay }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let mut response = match (request.method(), request.uri().path()) {
            (_, "/healthz") => text(StatusCode::OK, "ok\n".to_owned()),
            (&(Method::POST | Method::PUT), _) => {
                sleep_unless_zero(self.delay).await;
                echo_body(request).await
            }
            (_, path) => {
                let slow = if path == "/slow" { asked_delay(request.uri().query()) } else { Duration::ZERO };
                sleep_unless_zero(self.delay + slow).await;
                text(StatusCode::OK, format!("hello from {} ({path})\n", self.name))
            }
        };
        response.headers_mut().insert(ANSWERED_BY, self.header.clone());
        Ok(response)
    }
}

async fn serve_http(answerer: Arc<Answerer>, stream: TcpStream) {
    let service = service_fn(move |request| {
        let answerer = Arc::clone(&answerer);
        async move { answerer.answer(request).await }
    });
    // A client that breaks off or speaks something else ends its own connection and nothing more.
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

async fn echo_body(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    match Limited::new(request.into_body(), BODY_MAX).collect().await {
        Ok(body) => {
            let mut response = Response::new(Full::new(body.to_bytes()));
            if let Some(content_type) = content_type {
                response.headers_mut().insert(CONTENT_TYPE, content_type);
            }
            response
        }
        Err(error) if error.is::<LengthLimitError>() => {
            text(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {BODY_MAX} bytes\n"))
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("body not readable: {error}\n")),
    }
}

async fn echo_tcp(mut stream: TcpStream) {
    let mut buffer = vec![0; TCP_BUFFER];
    while let Ok(Ok(read @ 1..)) = timeout(IDLE_MAX, stream.read(&mut buffer)).await {
        let Some(bytes) = buffer.get(..read) else { return };
        if stream.write_all(bytes).await.is_err() {
            return;
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The `ms` of a query, bounded; zero when absent or not a number.
fn asked_delay(query: Option<&str>) -> Duration {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let asked = pairs.filter(|(key, _)| *key == "ms").find_map(|(_, value)| value.parse().ok());
    Duration::from_millis(asked.unwrap_or(0)).min(SLOW_MAX)
}

async fn sleep_unless_zero(delay: Duration) {
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

/// Header that names who answered.
pub const ANSWERED_BY: HeaderName = HeaderName::from_static("x-answered-by");
const CONNECTIONS_MAX: usize = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BODY_MAX: usize = 1024 * 1024;
const SLOW_MAX: Duration = Duration::from_secs(60);
const IDLE_MAX: Duration = Duration::from_secs(300);
const TCP_BUFFER: usize = 16 * 1024;

#[cfg(test)]
mod tests;
