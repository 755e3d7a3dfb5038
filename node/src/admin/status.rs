//! Reads about the node as a whole.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

#[cfg(test)]
use super::problem::ProblemBody;
use super::problem::{Code, Refusal};
use super::{Admin, DESCRIPTION};
use crate::view::{NodeView, ProblemView, Status};

/// The node in short: mesh, members, policy root, links, ends of certificates.
#[cfg_attr(test, utoipa::path(get, path = "/v1/status", tag = "node", responses((status = 200, body = Status))))]
pub(super) async fn status(State(admin): State<Admin>) -> Json<Status> {
    Json(admin.api.status())
}

/// Every known node, with its state and the reason for it.
#[cfg_attr(test, utoipa::path(get, path = "/v1/nodes", tag = "node", responses((status = 200, body = Vec<NodeView>))))]
pub(super) async fn nodes(State(admin): State<Admin>) -> Json<Vec<NodeView>> {
    Json(admin.api.nodes())
}

/// What is wrong and what is done about it meanwhile; empty when all is well.
#[cfg_attr(test, utoipa::path(get, path = "/v1/problems", tag = "node", responses((status = 200, body = Vec<ProblemView>))))]
pub(super) async fn problems(State(admin): State<Admin>) -> Json<Vec<ProblemView>> {
    Json(admin.api.problems())
}

/// Metrics in Prometheus' text format.
#[cfg_attr(test, utoipa::path(get, path = "/metrics", tag = "probes", responses((status = 200, body = String, content_type = "text/plain"))))]
pub(super) async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let text = admin.metrics.render(&admin.api.status(), admin.api.problems().len(), admin.api.in_flight());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// The process lives.
#[cfg_attr(test, utoipa::path(get, path = "/healthz", tag = "probes", responses((status = 200, body = String, content_type = "text/plain"))))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The node takes work: it listens, its store is open, it is not draining.
#[cfg_attr(test, utoipa::path(get, path = "/readyz", tag = "probes", responses(
    (status = 200, body = String, content_type = "text/plain"),
    (status = 503, description = "`unavailable`: what is missing", body = ProblemBody, content_type = "application/problem+json"),
)))]
pub(super) async fn readyz(State(admin): State<Admin>) -> Result<&'static str, Refusal> {
    admin.api.is_ready().map(|()| "ready\n").map_err(|reason| Refusal::new(Code::Unavailable, reason))
}

/// This description.
#[cfg_attr(test, utoipa::path(get, path = "/openapi.json", tag = "probes", responses((status = 200, description = "OpenAPI 3.1", body = Object))))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION)
}
