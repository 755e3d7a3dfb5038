//! The demo's own service: one tiny HTTP server beside each node.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Starts the service of node `name` on a free loopback port and returns the port.
///
/// It answers every path with `hello from NAME`; it lives as long as the runtime.
pub(super) async fn start(name: &str) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let greeting: Arc<str> = format!("hello from {name}\n").into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let greeting = Arc::clone(&greeting);
            tokio::spawn(async move {
                let answer = service_fn(move |_request| {
                    let body = Full::new(Bytes::copy_from_slice(greeting.as_bytes()));
                    async move { Ok::<_, Infallible>(Response::new(body)) }
                });
                // A client that goes away is its own business.
                http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await.ok();
            });
        }
    });
    Ok(port)
}
