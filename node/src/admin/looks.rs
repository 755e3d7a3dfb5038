//! Looking before and after: differences, what is in force where, how far peers are.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use serde::Deserialize;

#[cfg(test)]
use super::problem::ProblemBody;
use super::problem::Refusal;
use super::{Admin, body};
use crate::view::{DocumentDiff, EffectiveView, SyncStatus};

/// Where to look.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub(super) struct Where {
    /// Label of a node; default: the one that answers.
    node: Option<String>,
}

/// What writing these documents would change, field by field; nothing is stored.
#[cfg_attr(test, utoipa::path(post, path = "/v1/diff", tag = "policy",
    request_body(content((Object = "application/yaml"), (Object = "application/json")), description = "One or several documents"),
    responses(
        (status = 200, body = Vec<DocumentDiff>),
        (status = 400, description = "`malformed`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "`token_required`, `token_wrong`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "`policy_invalid`: every fault of every document", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn diff(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<DocumentDiff>>, Refusal> {
    let documents = body::documents(&headers, body).await?;
    Ok(Json(admin.api.diff(documents).await?))
}

/// What policy comes to for a service at a node: every field, the document it comes from, and what is overridden by it.
#[cfg_attr(test, utoipa::path(get, path = "/v1/effective/{service}", tag = "policy",
    params(("service" = String, Path, description = "Name of the service"), Where),
    responses(
        (status = 200, body = EffectiveView),
        (status = 404, description = "`not_found`: no such node; the detail says which are known", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn effective(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    Query(place): Query<Where>,
) -> Result<Json<EffectiveView>, Refusal> {
    Ok(Json(admin.api.effective(service, place.node).await?))
}

/// How far this node and its peers have seen the same.
#[cfg_attr(test, utoipa::path(get, path = "/v1/sync/status", tag = "policy", responses((status = 200, body = SyncStatus))))]
pub(super) async fn sync_status(State(admin): State<Admin>) -> Result<Json<SyncStatus>, Refusal> {
    Ok(Json(admin.api.sync_status().await?))
}
