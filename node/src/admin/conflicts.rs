//! Conflicts: looked at and settled.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use policy::Limits;
use serde::Deserialize;
use serde_json::Value;

use super::asked::{Waiting, options};
#[cfg(test)]
use super::described::{WriteAnswers, WriteHeaders, WriteRefusals};
use super::policies::{Address, dot, the_one_at, write};
use super::problem::{Code, Refusal};
use super::{Admin, body};
use crate::api::{Settle, Write};
use crate::view::ConflictView;

/// Body of a resolution: one of the two.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct Resolution {
    /// The side to take, `incarnation:counter`: what it says of each section it is in conflict about, or, of a side that
    /// deleted the document, its deletion.
    #[serde(default)]
    take: Option<String>,
    /// The whole document as it is to be.
    #[serde(default)]
    #[cfg_attr(test, schema(value_type = Option<Object>))]
    document: Option<Value>,
}

/// Concurrent edits that a person should look at: every side, what they have in common, what each changed, and which one
/// is in force, the same on every node.
#[cfg_attr(test, utoipa::path(get, path = "/v1/conflicts", tag = "policy", responses((status = 200, body = Vec<ConflictView>))))]
pub(super) async fn list(State(admin): State<Admin>) -> Result<Json<Vec<ConflictView>>, Refusal> {
    Ok(Json(admin.api.conflicts().await?))
}

/// Settles everything that is in conflict in one document, on every node.
#[cfg_attr(test, utoipa::path(post, path = "/v1/policies/{scope}/{kind}/{name}/resolve", tag = "policy",
    params(Address, Waiting, WriteHeaders),
    request_body = Resolution,
    responses(WriteAnswers, WriteRefusals)))]
pub(super) async fn resolve(
    State(admin): State<Admin>,
    Path(at): Path<Address>,
    Query(waiting): Query<Waiting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let asked: Resolution = body::json(&headers, body, Code::PolicyInvalid).await?;
    let (settle, mine) = match (asked.take, asked.document) {
        (Some(take), None) => (Settle::Take(dot("take", &take)?), Value::Null),
        (None, Some(document)) => {
            let documents = policy::accept_documents(&document.to_string(), &Limits::default())
                .map_err(|problems| Refusal::faults(Code::PolicyInvalid, problems))?;
            let document = the_one_at(documents, &at)?;
            let mine = document.to_json();
            (Settle::With(Box::new(document)), mine)
        }
        (None, None) | (Some(_), Some(_)) => {
            let hint = "`take` names a side that GET /v1/conflicts lists, `document` is the whole document";
            return Err(Refusal::field(Code::PolicyInvalid, "take", "give one of `take` and `document`", Some(hint)));
        }
    };
    let options = options(&admin, &headers, &waiting, Some(&at.id())).await?;
    write(&admin, Write::Resolve { id: at.id(), settle }, options, Some((at.id(), mine))).await
}
