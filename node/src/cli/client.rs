//! The client of the admin API: one request per connection, over TCP or a unix socket, with a limit on everything.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, IF_MATCH, IF_NONE_MATCH};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::CliError;
use super::target::Target;
use crate::admin::ProblemBody;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A little more than the node gives its handlers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// A fleet of thousands of nodes is told in less.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Talks to one node.
#[derive(Debug, Clone)]
pub(super) struct Client {
    target: Target,
    authorization: Option<String>,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Call {
    method: Method,
    path: String,
    body: Option<(&'static str, Bytes)>,
    headers: Vec<(HeaderName, String)>,
}

impl Call {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, headers: Vec::new() }
    }

    pub(super) fn body(mut self, media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        self.body = Some((media_type, bytes.into()));
        self
    }

    /// Only if the document still has this ETag.
    pub(super) fn if_match(mut self, etag: Option<&str>) -> Self {
        self.headers.extend(etag.map(|etag| (IF_MATCH, format!("\"{}\"", etag.trim_matches('"')))));
        self
    }

    /// One more header, where there is something to say.
    pub(super) fn header(mut self, name: &'static str, value: Option<&str>) -> Self {
        self.headers.extend(value.map(|value| (HeaderName::from_static(name), value.to_owned())));
        self
    }

    /// Only if the document does not exist.
    pub(super) fn create_only(mut self, create_only: bool) -> Self {
        self.headers.extend(create_only.then(|| (IF_NONE_MATCH, "*".to_owned())));
        self
    }
}

/// What came back, when it was no refusal.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Client {
    pub(super) const fn new(target: Target, authorization: Option<String>) -> Self {
        Self { target, authorization }
    }

    /// GET and read the JSON.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.send(Call::new(Method::GET, path))
    }

    /// Sends a request and reads the JSON that comes back.
    ///
    /// # Errors
    /// [`CliError::Unreachable`], [`CliError::Refused`] with the node's own words, or [`CliError::Unexpected`].
    pub(super) fn send<T: DeserializeOwned>(&self, call: Call) -> Result<T, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
        let answer = runtime.block_on(self.exchange(call))?;
        self.read(&answer)
    }

    fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, CliError> {
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).map_err(|error| self.unexpected(error.to_string()));
        }
        match serde_json::from_slice::<ProblemBody>(&answer.body) {
            Ok(problem) => Err(CliError::Refused(Box::new(problem))),
            Err(_other) => Err(self.unexpected(format!("status {}", answer.status))),
        }
    }

    fn unexpected(&self, reason: String) -> CliError {
        CliError::Unexpected { target: self.target.to_string(), reason }
    }

    fn unreachable(&self, reason: String) -> CliError {
        CliError::Unreachable { target: self.target.to_string(), reason }
    }

    async fn exchange(&self, call: Call) -> Result<Answer, CliError> {
        let request = self.request(call)?;
        match &self.target {
            Target::Tcp { host, port } => {
                let stream = self.within(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await?;
                self.within(ANSWER_TIMEOUT, over(stream, request)).await
            }
            Target::Socket(path) => {
                let stream = self.within(CONNECT_TIMEOUT, UnixStream::connect(path)).await?;
                self.within(ANSWER_TIMEOUT, over(stream, request)).await
            }
        }
    }

    async fn within<T, E: ToString>(
        &self,
        limit: Duration,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CliError> {
        match tokio::time::timeout(limit, step).await {
            Ok(done) => done.map_err(|error| self.unreachable(error.to_string())),
            Err(_elapsed) => Err(self.unreachable(format!("no answer within {} s", limit.as_secs()))),
        }
    }

    fn request(&self, call: Call) -> Result<Request<Full<Bytes>>, CliError> {
        let host = match &self.target {
            Target::Tcp { .. } => self.target.to_string().trim_start_matches("http://").to_owned(),
            Target::Socket(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(call.method).uri(call.path).header(HOST, host);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let body = match call.body {
            Some((media_type, bytes)) => {
                request = request.header(CONTENT_TYPE, media_type);
                Full::new(bytes)
            }
            None => Full::default(),
        };
        request.body(body).map_err(|error| CliError::Usage {
            message: format!("cannot be asked: {error}"),
            hint: "names hold letters, digits, dots and hyphens",
        })
    }
}

async fn over<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    driver.abort();
    Ok(Answer { status, body: body.to_bytes() })
}

/// A path segment, with everything escaped that is not plainly a name.
pub(super) fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
