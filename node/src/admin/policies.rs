//! Policy documents: read, written under a condition, patched, deleted, applied together.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use crdt_store::Dot;
use policy::{DocId, Document, Problem};
use serde::Deserialize;
use serde_json::Value;

use super::asked::{Waiting, options};
use super::problem::{Code, Refusal, Version};
use super::{Admin, body};
#[cfg(test)]
use super::{
    described::{ApplyAnswer, WriteAnswers, WriteHeaders, WriteRefusals},
    problem::ProblemBody,
};
use crate::api::{ApiError, Condition, Write, WriteOptions};
use crate::view::{Applied, PolicyView, Replicated};

/// Which documents to list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub(super) struct Filter {
    /// Only this kind.
    kind: Option<String>,
    /// Only this scope.
    scope: Option<String>,
}

/// Which version of a document.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub(super) struct When {
    /// As this write left it, `incarnation:counter`; default: as it is.
    at: Option<String>,
}

/// How `POST /v1/apply` is to be done.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Query))]
pub(super) struct Applying {
    /// `all`: check everything, tell what it would do, and store nothing.
    #[serde(rename = "dryRun")]
    dry_run: Option<String>,
    /// Other nodes that are to have it on disk before it is answered: a number, `majority` or `all`; default 0.
    wait: Option<String>,
    /// The longest wait, at most 25s; default `5s`. Then the answer is 202 with the nodes that have it.
    timeout: Option<String>,
}

/// Every live document, unknown kinds included.
#[cfg_attr(test, utoipa::path(get, path = "/v1/policies", tag = "policy", params(Filter), responses(
    (status = 200, body = Vec<PolicyView>),
    (status = 400, description = "`malformed`: unknown parameter", body = ProblemBody, content_type = "application/problem+json"),
)))]
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

/// One document, with its ETag; with `?at=` as an earlier write left it.
#[cfg_attr(test, utoipa::path(get, path = "/v1/policies/{scope}/{kind}/{name}", tag = "policy",
    params(Address, When),
    responses(
        (status = 200, body = PolicyView, headers(("ETag" = String, description = "Hash of the document's live writes; not for an earlier version"))),
        (status = 400, description = "`malformed`: `at` is no write", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn one(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    Query(when): Query<When>,
) -> Result<Response, Refusal> {
    let dot = when.at.as_deref().map(|text| dot("at", text)).transpose()?;
    let policy = admin.api.policy(at.id(), dot).await?;
    let etag = policy.etag.clone();
    Ok(with_etag(Json(policy).into_response(), &etag))
}

/// Writes one document. With `If-Match` only if it still has that ETag, with `If-None-Match: *` only if it does not exist.
#[cfg_attr(test, utoipa::path(put, path = "/v1/policies/{scope}/{kind}/{name}", tag = "policy",
    params(Address, Waiting, WriteHeaders),
    request_body(content((Object = "application/yaml"), (Object = "application/json")), description = "The document"),
    responses(WriteAnswers, WriteRefusals)))]
pub(super) async fn put(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    Query(waiting): Query<Waiting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let documents = body::documents(&headers, body).await?;
    let document = the_one_at(documents, &at)?;
    let options = options(&admin, &headers, &waiting, Some(&at.id())).await?;
    let mine = document.to_json();
    write(&admin, Write::Apply(vec![document]), options, Some((at.id(), mine))).await
}

/// Changes fields of one document that exists, by RFC 7396: what is `null` is removed, what is not named stays.
#[cfg_attr(test, utoipa::path(patch, path = "/v1/policies/{scope}/{kind}/{name}", tag = "policy",
    params(Address, Waiting, WriteHeaders),
    request_body(content((Object = "application/merge-patch+json"), (Object = "application/json")), description = "The merge patch"),
    responses(WriteAnswers, WriteRefusals)))]
pub(super) async fn patch(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    Query(waiting): Query<Waiting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let patch = body::merge_patch(&headers, body).await?;
    let options = options(&admin, &headers, &waiting, Some(&at.id())).await?;
    let mine = match (&options.condition, admin.api.policy(at.id(), None).await) {
        (Condition::Match(_), Ok(current)) => policy::merge_patch(&current.document, &patch),
        _ => Value::Null,
    };
    write(&admin, Write::Patch { id: at.id(), patch }, options, Some((at.id(), mine))).await
}

/// Deletes one document, under the same conditions as a write.
#[cfg_attr(
    test,
    utoipa::path(
        delete,
        path = "/v1/policies/{scope}/{kind}/{name}",
        tag = "policy",
        params(Address, Waiting, WriteHeaders),
        responses(WriteAnswers, WriteRefusals)
    )
)]
pub(super) async fn remove(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    Query(waiting): Query<Waiting>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let options = options(&admin, &headers, &waiting, Some(&at.id())).await?;
    write(&admin, Write::Delete(at.id()), options, Some((at.id(), Value::Null))).await
}

/// Writes several documents as one change: all or nothing. A single one may come with a condition.
#[cfg_attr(test, utoipa::path(post, path = "/v1/apply", tag = "policy",
    params(Applying, WriteHeaders),
    request_body(content((Object = "application/yaml"), (Object = "application/json")), description = "One or several documents"),
    responses(WriteAnswers, WriteRefusals, (status = 200, description = "On disk and in force here; with `dryRun=all` what it would do", body = ApplyAnswer))))]
pub(super) async fn apply(
    State(admin): State<Admin>,
    Query(applying): Query<Applying>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Applying { dry_run, wait, timeout } = applying;
    let documents = body::documents(&headers, body).await?;
    let single = match documents.as_slice() {
        [only] => Some((only.id(), only.to_json())),
        _ => None,
    };
    let waiting = Waiting { wait, timeout };
    let options = options(&admin, &headers, &waiting, single.as_ref().map(|(id, _)| id)).await?;
    match dry_run.as_deref() {
        None => write(&admin, Write::Apply(documents), options, single).await.map(as_ok),
        Some("all") => Ok(Json(admin.api.plan(documents).await?).into_response()),
        Some(other) => {
            let detail = format!("dryRun=`{}`: only `all` is known", other.escape_debug());
            Err(Refusal::new(Code::Malformed, detail))
        }
    }
}

/// Where a document stands.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Path))]
pub(super) struct Address {
    /// `global`, `region:R`, `zone:R.Z` or `node:N`.
    scope: String,
    /// Kind of the document.
    kind: String,
    /// Name within scope and kind.
    name: String,
}

impl Address {
    /// The document's id.
    pub(super) fn id(&self) -> DocId {
        DocId { scope: self.scope.clone(), kind: self.kind.clone(), name: self.name.clone() }
    }
}

/// Carries a write out; `single` is the one document it is about, with what it asks for.
pub(super) async fn write(
    admin: &Admin,
    write: Write,
    options: WriteOptions,
    single: Option<(DocId, Value)>,
) -> Result<Response, Refusal> {
    let condition = options.condition.clone();
    match (admin.api.write(write, options).await, single) {
        (Ok(applied), _) => Ok(written(applied)),
        (Err(ApiError::Stale { current }), Some((id, mine))) => Err(stale(admin, id, current, &condition, mine).await),
        (Err(error), _) => Err(error.into()),
    }
}

/// A write named `incarnation:counter` in a field or parameter.
pub(super) fn dot(field: &str, text: &str) -> Result<Dot, Refusal> {
    let wrong = |_fault| {
        let detail = format!(
            "{field}: `{}` is no write; one reads INCARNATION:COUNTER, as the history lists them",
            text.escape_debug()
        );
        Refusal::new(Code::Malformed, detail)
    };
    text.parse().map_err(wrong)
}

/// The body of a PUT is one document, and the one its path names.
pub(super) fn the_one_at(documents: Vec<Document>, at: &Address) -> Result<Document, Refusal> {
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

/// Both versions and what differs, so that the author can decide without another request.
async fn stale(admin: &Admin, id: DocId, current: String, condition: &Condition, mine: Value) -> Refusal {
    let current = match admin.api.policy(id, None).await {
        Ok(now) => Version { etag: now.etag, document: now.document },
        Err(_) => Version { etag: current, document: Value::Null },
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
    let status = match (&applied.replicated_to, created) {
        (Some(replicated), _) if !Replicated::is_reached(replicated) => StatusCode::ACCEPTED,
        (_, true) => StatusCode::CREATED,
        (_, false) => StatusCode::OK,
    };
    let response = (status, Json(applied)).into_response();
    with_etag(response, &etag)
}

/// Several documents are not "created" as a whole.
fn as_ok(mut response: Response) -> Response {
    if response.status() == StatusCode::CREATED {
        *response.status_mut() = StatusCode::OK;
    }
    response
}

fn with_etag(mut response: Response, etag: &str) -> Response {
    if etag.is_empty() {
        return response;
    }
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}
