//! The questions a scenario asks a node, over the socket in the node's folder: one request a connection, no retries.
//!
//! Bodies are read leniently and only as far as needed, as any program of a user's would.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A node's admin API behind its socket.
#[derive(Debug, Clone)]
pub struct Admin {
    socket: PathBuf,
}

/// `GET /v1/status`, as far as scenarios look.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Members by liveness.
    pub members: Members,
    /// The policy store.
    pub policy: Policy,
}

/// Members by liveness, the answering node included.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Members {
    /// Answering.
    pub alive: usize,
    /// Silent, not yet given up.
    pub suspect: usize,
    /// Given up.
    pub dead: usize,
}

/// The policy store in short.
#[derive(Debug, Clone, Deserialize)]
pub struct Policy {
    /// Hash over everything visible.
    pub root: String,
    /// Live documents.
    pub documents: usize,
    /// Documents with concurrent edits.
    pub conflicts: usize,
}

/// One element of `GET /v1/nodes`.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// The operator's label.
    pub name: String,
    /// `alive`, `suspect`, `dead`, `joining` or `left`.
    pub state: String,
    /// Why, as a sentence.
    pub reason: String,
}

/// One element of `GET /v1/policies`.
#[derive(Debug, Clone, Deserialize)]
pub struct Document {
    /// Scope of the document.
    pub scope: String,
    /// Kind of the document.
    pub kind: String,
    /// Name within scope and kind.
    pub name: String,
    /// The document itself.
    pub document: serde_json::Value,
    /// Somebody deleted it while somebody else edited it; the edit stayed.
    #[serde(default)]
    pub deleted_concurrently: bool,
}

/// One element of `GET /v1/conflicts`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Conflict {
    /// Name of the document.
    pub name: String,
    /// The section both sides wrote.
    pub section: String,
    /// Every side.
    pub sides: Vec<Side>,
}

/// One side of a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Side {
    /// The write.
    pub dot: String,
    /// The node that wrote it.
    pub author: String,
    /// True for the side in force.
    pub in_force: bool,
    /// What it wrote.
    pub value: serde_json::Value,
}

impl Admin {
    /// The API behind `socket`; nothing is opened yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where the socket is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The node in short.
    ///
    /// # Errors
    /// When the node does not answer within 2 s, or not with 200 and such a body.
    pub async fn status(&self) -> Result<Status> {
        self.get("/v1/status").await
    }

    /// Every node it knows.
    ///
    /// # Errors
    /// As [`Admin::status`].
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        self.get("/v1/nodes").await
    }

    /// Every live policy document.
    ///
    /// # Errors
    /// As [`Admin::status`].
    pub async fn policies(&self) -> Result<Vec<Document>> {
        self.get("/v1/policies").await
    }

    /// Concurrent edits that a person should look at.
    ///
    /// # Errors
    /// As [`Admin::status`].
    pub async fn conflicts(&self) -> Result<Vec<Conflict>> {
        self.get("/v1/conflicts").await
    }

    /// Whether the node takes work.
    pub async fn is_ready(&self) -> bool {
        self.send(Method::GET, "/readyz", "text/plain", Bytes::new()).await.is_ok_and(|(status, _)| status.is_success())
    }

    /// Writes policy documents, durable when it returns.
    ///
    /// # Errors
    /// As [`Admin::status`]; the message holds the answer's body, which names every fault.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let body = Bytes::copy_from_slice(yaml.as_bytes());
        self.expect(Method::POST, "/v1/apply", "application/yaml", body).await.map(drop)
    }

    /// Deletes a policy document of scope `global`, durable when it returns.
    ///
    /// # Errors
    /// As [`Admin::apply`].
    pub async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        let path = format!("/v1/policies/global/{kind}/{name}");
        self.expect(Method::DELETE, &path, "application/json", Bytes::new()).await.map(drop)
    }

    /// Settles the conflicts of a policy document of scope `global` by taking the side that `dot` wrote.
    ///
    /// # Errors
    /// As [`Admin::apply`].
    pub async fn resolve(&self, kind: &str, name: &str, dot: &str) -> Result<()> {
        let path = format!("/v1/policies/global/{kind}/{name}/resolve");
        let body = serde_json::json!({ "take": dot }).to_string();
        self.expect(Method::POST, &path, "application/json", Bytes::from(body)).await.map(drop)
    }

    /// Registers an instance of `service` on this node.
    ///
    /// # Errors
    /// As [`Admin::status`].
    pub async fn register(&self, service: &str, id: &str, registration: &serde_json::Value) -> Result<()> {
        let path = format!("/v1/services/{service}/instances/{id}");
        self.expect(Method::PUT, &path, "application/json", Bytes::from(registration.to_string())).await.map(drop)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let body = self.expect(Method::GET, path, "application/json", Bytes::new()).await?;
        serde_json::from_slice(&body).with_context(|| format!("GET {path}: a body of another shape"))
    }

    async fn expect(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<Bytes> {
        let (status, answer) = self.send(method.clone(), path, content_type, body).await?;
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(answer)
    }

    async fn send(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let asking = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(HOST, "localhost")
                .header(CONTENT_TYPE, content_type)
                .body(Full::new(body))?;
            let answered = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = Limited::new(response.into_body(), ANSWER_MAX)
                    .collect()
                    .await
                    .map_err(anyhow::Error::from_boxed)?;
                anyhow::Ok((status, body.to_bytes()))
            };
            tokio::pin!(answered);
            tokio::select! {
                answer = &mut answered => answer,
                // The connection may end before the answer has been looked at.
                _ = connection => answered.await,
            }
        };
        timeout(ANSWER_TIME, asking)
            .await
            .with_context(|| format!("{}: no answer within {ANSWER_TIME:?}", self.socket.display()))?
            .with_context(|| format!("{}: not reachable", self.socket.display()))
    }
}

const ANSWER_TIME: Duration = Duration::from_secs(2);
const ANSWER_MAX: usize = 4 * 1024 * 1024;
