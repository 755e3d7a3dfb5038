//! One connection of the load generator: asks, reads, and opens a new connection after a failure. Nothing is asked twice.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::LoadConfig;
use crate::echo::ANSWERED_BY;

/// A good answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Who answered, when the answer tells.
    pub(super) answered_by: Option<String>,
}

/// No answer, or not a good one.
#[derive(Debug)]
pub(super) struct Failed {
    /// A status code or one of a few words; a key for counting.
    pub(super) cause: String,
    /// For a person.
    pub(super) detail: String,
}

/// A connection and the request to send over it.
#[derive(Debug)]
pub(super) struct Client {
    authority: Arc<str>,
    request: Request<()>,
    timeout: Duration,
    sender: Option<SendRequest<Empty<Bytes>>>,
    /// The task that drives the connection; ends with this client.
    driver: JoinSet<()>,
}

impl Client {
    pub(super) fn new(config: &LoadConfig) -> Result<Self> {
        let host = config.url.host().context("the url has no host")?;
        let authority = format!("{host}:{}", config.url.port_u16().unwrap_or(80));
        let named = config.host.clone().unwrap_or_else(|| authority.clone());
        let path = config.url.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(HOST, HeaderValue::from_str(&named).context("the host is not a header value")?)
            .body(())?;
        Ok(Self { authority: authority.into(), request, timeout: config.timeout, sender: None, driver: JoinSet::new() })
    }

    /// Sends the request once. After a failure the connection is closed.
    pub(super) async fn ask(&mut self) -> Result<Answer, Failed> {
        let limit = self.timeout;
        let result = match timeout(limit, self.ask_without_limit()).await {
            Ok(result) => result,
            Err(_) => Err(Failed { cause: "timeout".to_owned(), detail: format!("no whole answer within {limit:?}") }),
        };
        if result.as_ref().is_err_and(|failed| failed.cause.parse::<u16>().is_err()) {
            self.sender = None;
            self.driver.abort_all();
        }
        result
    }

    async fn ask_without_limit(&mut self) -> Result<Answer, Failed> {
        let request = self.request.clone().map(|()| Empty::new());
        let sender = self.connected().await?;
        let response = sender.send_request(request).await.map_err(|error| failed("broken", &error))?;
        judge(response).await
    }

    async fn connected(&mut self) -> Result<&mut SendRequest<Empty<Bytes>>, Failed> {
        // A connection whose other end has said goodbye is not used again: that is no failure of a request.
        let usable = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.driver.abort_all();
            while self.driver.try_join_next().is_some() {}
            let stream = TcpStream::connect(&*self.authority).await.map_err(|error| failed("connect", &error))?;
            stream.set_nodelay(true).map_err(|error| failed("connect", &error))?;
            let (sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed("connect", &error))?;
            self.driver.spawn(async move {
                // Its errors reach the request as well, which reports them.
                connection.await.ok();
            });
            self.sender = Some(sender);
        }
        self.sender.as_mut().ok_or_else(|| Failed { cause: "connect".to_owned(), detail: "no connection".to_owned() })
    }
}

async fn judge(response: Response<Incoming>) -> Result<Answer, Failed> {
    let status = response.status();
    let named = response.headers().get(ANSWERED_BY).and_then(|name| name.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), BODY_MAX)
        .collect()
        .await
        .map_err(|error| Failed { cause: "body".to_owned(), detail: format!("after status {status}: {error}") })?;
    let body = body.to_bytes();
    if status.is_success() {
        return Ok(Answer { status, answered_by: named.or_else(|| greeter(&body)) });
    }
    let shown: String = String::from_utf8_lossy(&body).chars().take(DETAIL_CHARS).collect();
    Err(Failed { cause: status.as_str().to_owned(), detail: shown })
}

/// The NAME of `hello from NAME (PATH)`, for a mesh that passes on no header of the service.
fn greeter(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (name, _) = text.strip_prefix("hello from ")?.split_once(" (")?;
    Some(name.to_owned())
}

fn failed(cause: &str, error: &dyn std::error::Error) -> Failed {
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        detail.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    Failed { cause: cause.to_owned(), detail }
}

const BODY_MAX: usize = 1024 * 1024;
const DETAIL_CHARS: usize = 400;
