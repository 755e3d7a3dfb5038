//! Policy documents: read, written under a condition, applied together, in conflict.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use policy::{Document, Problem};
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;

use super::Admin;
use super::body;
use super::problem::{Code, ProblemBody, Refusal, Version};
use crate::api::{ApiError, Condition};
use crate::view::{Applied, ConflictView, PolicyView};

/// Which documents to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only this kind.
    kind: Option<String>,
    /// Only this scope.
    scope: Option<String>,
}

/// Every live document, unknown kinds included.
#[utoipa::path(get, path = "/v1/policies", tag = "policy", params(Filter), responses(
    (status = 200, body = Vec<PolicyView>),
    (status = 400, description = "`malformed`: unknown parameter", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    State(admin): State<Admin>,
    Query(filter): Query<Filter>,
) -> Result<Json<Vec<PolicyView>>, Refusal> {
    let mut policies = admin.api.policies().await?;
    policies.retain(|policy| {
        filter.kind.as_ref().is_none_or(|kind| *kind == policy.kind)
            && filter.scope.as_ref().is_none_or(|scope| *scope == policy.scope)
    });
    Ok(Json(policies))
}

/// One document, with its ETag.
#[utoipa::path(get, path = "/v1/policies/{scope}/{kind}/{name}", tag = "policy",
    params(Address),
    responses(
        (status = 200, body = PolicyView, headers(("ETag" = String, description = "Hash of the document's live writes"))),
        (status = 404, description = "`not_found`", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub(super) async fn one(State(admin): State<Admin>, Path(at): Path<Address>) -> Result<Response, Refusal> {
    let policy = admin.api.policy(at.scope, at.kind, at.name).await?;
    let etag = policy.etag.clone();
    Ok(with_etag(Json(policy).into_response(), &etag))
}

/// Writes one document. With `If-Match` only if it still has that ETag, with `If-None-Match: *` only if it does not exist.
#[utoipa::path(put, path = "/v1/policies/{scope}/{kind}/{name}", tag = "policy",
    params(Address,
        ("If-Match" = Option<String>, Header, description = "ETag the document must still have"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: the document must not exist"),
    ),
    request_body(content((Object = "application/yaml"), (Object = "application/json")), description = "The document"),
    responses(
        (status = 200, description = "On disk and in force here", body = Applied),
        (status = 201, description = "Created, on disk and in force here", body = Applied),
        (status = 400, description = "`malformed`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "`token_required`, `token_wrong`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "`denied`: this node only relays", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`limit`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 412, description = "`stale_context`: with both versions", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "`policy_invalid`: every fault; nothing was stored", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`: nothing was stored, routing goes on", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub(super) async fn put(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let documents = body::documents(&headers, body).await?;
    let document = the_one_at(documents, &at)?;
    let condition = condition(&admin, &headers, &at).await?;
    let mine = document.to_json();
    match admin.api.apply(vec![document], condition.clone()).await {
        Ok(applied) => Ok(written(applied)),
        Err(ApiError::Stale { current }) => Err(stale(&admin, &at, current, &condition, mine).await),
        Err(error) => Err(error.into()),
    }
}

/// Deletes one document, under the same conditions as a write.
#[utoipa::path(delete, path = "/v1/policies/{scope}/{kind}/{name}", tag = "policy",
    params(Address, ("If-Match" = Option<String>, Header, description = "ETag the document must still have")),
    responses(
        (status = 200, description = "Deleted, on disk and in force here", body = Applied),
        (status = 401, description = "`token_required`, `token_wrong`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "`denied`: this node only relays", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 412, description = "`stale_context`: with both versions", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`: not deleted", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub(super) async fn remove(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let condition = condition(&admin, &headers, &at).await?;
    let Address { scope, kind, name } = at.clone();
    match admin.api.delete_policy(scope, kind, name, condition.clone()).await {
        Ok(applied) => Ok(Json(applied).into_response()),
        Err(ApiError::Stale { current }) => Err(stale(&admin, &at, current, &condition, Value::Null).await),
        Err(error) => Err(error.into()),
    }
}

/// Writes several documents as one change: all or nothing.
#[utoipa::path(post, path = "/v1/apply", tag = "policy",
    request_body(content((Object = "application/yaml"), (Object = "application/json")), description = "One or several documents"),
    responses(
        (status = 200, description = "On disk and in force here", body = Applied),
        (status = 400, description = "`malformed`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 401, description = "`token_required`, `token_wrong`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "`denied`: this node only relays", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`limit`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "`policy_invalid`: every fault of every document; nothing was stored", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`: nothing was stored, routing goes on", body = ProblemBody, content_type = "application/problem+json"),
    ))]
pub(super) async fn apply(
    State(admin): State<Admin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Applied>, Refusal> {
    let documents = body::documents(&headers, body).await?;
    Ok(Json(admin.api.apply(documents, Condition::Any).await?))
}

/// Concurrent edits of one section that a person should look at; each side, and which one is in force.
#[utoipa::path(get, path = "/v1/conflicts", tag = "policy", responses((status = 200, body = Vec<ConflictView>)))]
pub(super) async fn conflicts(State(admin): State<Admin>) -> Result<Json<Vec<ConflictView>>, Refusal> {
    Ok(Json(admin.api.conflicts().await?))
}

/// Where a document stands.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Address {
    /// `global`, `region:R`, `zone:R.Z` or `node:N`.
    scope: String,
    /// Kind of the document.
    kind: String,
    /// Name within scope and kind.
    name: String,
}

/// The body of a PUT is one document, and the one its path names.
fn the_one_at(documents: Vec<Document>, at: &Address) -> Result<Document, Refusal> {
    let count = documents.len();
    let mut documents = documents.into_iter();
    let (Some(document), None) = (documents.next(), documents.next()) else {
        let hint = Some("POST /v1/apply takes several");
        return Err(Refusal::field(Code::PolicyInvalid, "document", format!("{count} documents for one path"), hint));
    };
    let said = [
        ("metadata.scope", &document.metadata.scope, &at.scope),
        ("kind", &document.kind, &at.kind),
        ("metadata.name", &document.metadata.name, &at.name),
    ];
    let problems: Vec<Problem> = said
        .into_iter()
        .filter(|(_, said, path)| said != path)
        .map(|(field, said, path)| {
            let hint = "path and document must name the same".to_owned();
            Problem::new(field, format!("the document says `{said}`, the path `{path}`"), Some(hint))
        })
        .collect();
    if problems.is_empty() { Ok(document) } else { Err(Refusal::faults(Code::PolicyInvalid, problems)) }
}

/// The condition that the headers state.
async fn condition(admin: &Admin, headers: &HeaderMap, at: &Address) -> Result<Condition, Refusal> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default().trim());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Condition::Any),
        (None, Some("*")) => Ok(Condition::Absent),
        (Some("*"), None) => {
            // "The document exists": said with the ETag it has now, so that a race cannot slip between.
            let Address { scope, kind, name } = at.clone();
            let missing =
                |_error| Refusal::new(Code::StaleContext, "If-Match: * asks for a document that does not exist");
            Ok(Condition::Match(admin.api.policy(scope, kind, name).await.map_err(missing)?.etag))
        }
        (Some(etag), None) => match etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')) {
            Some(etag) if !etag.is_empty() && !etag.contains('"') => Ok(Condition::Match(etag.to_owned())),
            _ => Err(Refusal::new(Code::Malformed, "If-Match takes one ETag in quotes, as answered, or *")),
        },
        (None, Some(_)) => Err(Refusal::new(Code::Malformed, "If-None-Match takes only * here")),
        (Some(_), Some(_)) => Err(Refusal::new(Code::Malformed, "If-Match and If-None-Match exclude each other")),
    }
}

/// Both versions, so that the author can decide without another request.
async fn stale(admin: &Admin, at: &Address, current: String, condition: &Condition, mine: Value) -> Refusal {
    let Address { scope, kind, name } = at.clone();
    let now = admin.api.policy(scope, kind, name).await.ok();
    let current = match now {
        Some(now) => Version { etag: now.etag, document: now.document },
        None => Version { etag: current, document: Value::Null },
    };
    let (relied_on, detail) = match condition {
        Condition::Match(etag) => (etag.clone(), "the document changed since that ETag was read; nothing was stored"),
        Condition::Absent => (String::new(), "the document exists already; nothing was stored"),
        Condition::Any => (String::new(), "the document changed meanwhile; nothing was stored"),
    };
    Refusal::new(Code::StaleContext, detail).with_versions(current, Version { etag: relied_on, document: mine })
}

fn written(applied: Applied) -> Response {
    let first = applied.documents.first();
    let created = first.is_some_and(|document| document.change == "created");
    let etag = first.map(|document| document.etag.clone()).unwrap_or_default();
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    with_etag((status, Json(applied)).into_response(), &etag)
}

fn with_etag(mut response: Response, etag: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}
