//! What a document was, and back to it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::asked::{Waiting, options};
use super::policies::{Address, dot, write};
use super::problem::{Code, Refusal};
use super::{Admin, body};
#[cfg(test)]
use super::{
    described::{WriteAnswers, WriteHeaders, WriteRefusals},
    problem::ProblemBody,
};
use crate::api::Write;
use crate::view::RevisionView;

/// Body of a rollback.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Rollback {
    /// The earlier write whose result is to be restored, `incarnation:counter`.
    to: String,
}

/// What was written of one document, newest first: the last 30 days or 20 writes, as far as this node saw them.
#[cfg_attr(test, utoipa::path(get, path = "/v1/policies/{scope}/{kind}/{name}/history", tag = "policy", params(Address), responses(
    (status = 200, body = Vec<RevisionView>),
    (status = 404, description = "`not_found`", body = ProblemBody, content_type = "application/problem+json"),
)))]
pub(super) async fn history(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
) -> Result<Json<Vec<RevisionView>>, Refusal> {
    Ok(Json(admin.api.history(at.id()).await?))
}

/// Restores what an earlier write left, as a new write; a document that was deleted meanwhile exists again.
#[cfg_attr(test, utoipa::path(post, path = "/v1/policies/{scope}/{kind}/{name}/rollback", tag = "policy",
    params(Address, Waiting, WriteHeaders),
    request_body = Rollback,
    responses(WriteAnswers, WriteRefusals)))]
pub(super) async fn rollback(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    Query(waiting): Query<Waiting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let asked: Rollback = body::json(&headers, body, Code::PolicyInvalid).await?;
    let to = dot("to", &asked.to)?;
    let options = options(&admin, &headers, &waiting, Some(&at.id())).await?;
    let earlier = admin.api.policy(at.id(), Some(to)).await.map_or(Value::Null, |policy| policy.document);
    write(&admin, Write::Rollback { id: at.id(), to }, options, Some((at.id(), earlier))).await
}
