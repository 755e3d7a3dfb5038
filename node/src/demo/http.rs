//! One kept-alive HTTP/1.1 connection as a client, with a deadline on everything.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

const ANSWER_MAX: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A connection that is opened when first needed and again after it broke.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, open: None }
    }

    /// Sends `request` and reads the whole answer.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
        match tokio::time::timeout(ANSWER_MAX, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.open = None;
                bail!("{}: no answer in {} s", self.address, ANSWER_MAX.as_secs())
            }
        }
    }

    /// `GET path` with the body read as JSON.
    pub(super) async fn json<T: DeserializeOwned>(&mut self, path: &str) -> anyhow::Result<T> {
        let request = Request::get(path).header("host", self.address.to_string()).body(Full::default())?;
        let answer = self.send(request).await?;
        if !answer.status().is_success() {
            bail!("GET {path}: {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
        }
        serde_json::from_slice(answer.body()).with_context(|| format!("GET {path}: unexpected body"))
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
        let sender = match &mut self.open {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.open.insert(connect(self.address).await?),
        };
        sender.ready().await?;
        match sender.send_request(request).await {
            Ok(answer) => whole(answer).await,
            Err(fault) => {
                self.open = None;
                Err(fault.into())
            }
        }
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // The end of the connection shows at the next request.
        connection.await.ok();
    });
    Ok(sender)
}

async fn whole(answer: Response<Incoming>) -> anyhow::Result<Response<Bytes>> {
    let (parts, body) = answer.into_parts();
    match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(collected) => Ok(Response::from_parts(parts, collected.to_bytes())),
        Err(fault) => bail!("read the answer: {fault}"),
    }
}
