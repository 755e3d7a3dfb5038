//! A blocking HTTP client that takes every status for an answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer with its whole body as text.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none; shows it.
    #[must_use]
    #[expect(clippy::panic, reason = "this is how a test fails")]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|fault| panic!("{fault}: {}", self.body))
    }
}

/// A request to send.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// `GET` when empty.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Header lines, `host` included where it matters.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, if any.
    pub body: Option<&'a str>,
}

/// `GET path` of the server at `address`, with these headers.
///
/// # Errors
/// Why there was no answer.
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
    send(address, &Request { path, headers, ..Request::default() })
}

/// Sends `request` to the server at `address` on a connection of its own and waits up to 20 s for the answer.
///
/// # Errors
/// Why there was no answer; an answer of any status is none of them.
pub fn send(address: SocketAddr, request: &Request<'_>) -> Result<Answer, String> {
    send_within(address, request, Duration::from_secs(20))
}

/// Sends bytes as they are and reads what comes back until the server closes, at most 20 s.
///
/// # Errors
/// Why there was no answer.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Result<String, String> {
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(bytes)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    exchange().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|fault| fault.to_string())
}

/// Like [`send`] with another limit.
///
/// # Errors
/// Why there was no answer; an answer of any status is none of them.
pub fn send_within(address: SocketAddr, request: &Request<'_>, limit: Duration) -> Result<Answer, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(limit))
        .max_idle_connections(0)
        .build()
        .into();
    let method = if request.method.is_empty() { "GET" } else { request.method };
    let mut building = ureq::http::Request::builder().method(method).uri(format!("http://{address}{}", request.path));
    for (name, value) in request.headers {
        building = building.header(*name, *value);
    }
    let body = request.body.unwrap_or_default().to_owned();
    let ready = building.body(body).map_err(|fault| fault.to_string())?;
    let answer = agent.run(ready).map_err(|fault| fault.to_string())?;
    let status = answer.status().as_u16();
    let headers = answer.headers().iter();
    let headers =
        headers.map(|(k, v)| (k.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned())).collect();
    let body = answer.into_body().read_to_string().map_err(|fault| fault.to_string())?;
    Ok(Answer { status, headers, body })
}
