//! Request bodies: read whole, within a limit and a time, and only of the types that are read here.

use std::error::Error as _;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, header};
use policy::{Document, Limits};
use serde::de::DeserializeOwned;

use super::BODY_BYTES_MAX;
use super::problem::{Code, Refusal};

/// Time for a whole body.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole body.
pub(super) async fn read(body: Body) -> Result<Bytes, Refusal> {
    let whole = axum::body::to_bytes(body, BODY_BYTES_MAX);
    match tokio::time::timeout(READ_TIMEOUT, whole).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error))
            if error.source().is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>) =>
        {
            let detail =
                format!("a body holds at most {} KiB; send the documents in several requests", BODY_BYTES_MAX / 1024);
            Err(Refusal::new(Code::BodyTooLarge, detail))
        }
        Ok(Err(error)) => Err(Refusal::new(Code::Malformed, format!("the body broke off: {error}"))),
        Err(_elapsed) => Err(Refusal::new(Code::RequestTimeout, "the body did not arrive within 10 s")),
    }
}

/// Policy documents: YAML or JSON, one or several; every fault at once.
pub(super) async fn documents(headers: &HeaderMap, body: Body) -> Result<Vec<Document>, Refusal> {
    let known = ["application/json", "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"];
    require_type(headers, &known, "application/yaml")?;
    let bytes = read(body).await?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Refusal::new(Code::Malformed, format!("the body is no UTF-8: {error}")))?;
    policy::accept_documents(text, &Limits::default())
        .map_err(|problems| Refusal::faults(Code::PolicyInvalid, problems))
}

/// A merge patch: any JSON.
pub(super) async fn merge_patch(headers: &HeaderMap, body: Body) -> Result<serde_json::Value, Refusal> {
    require_type(headers, &["application/merge-patch+json", "application/json"], "application/merge-patch+json")?;
    let bytes = read(body).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::new(Code::Malformed, format!("the patch is no JSON: {error}")))
}

/// A JSON body of a known shape; a wrong shape is a fault of its field.
pub(super) async fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, wrong: Code) -> Result<T, Refusal> {
    require_type(headers, &["application/json"], "application/json")?;
    let bytes = read(body).await?;
    match Json::from_bytes(&bytes) {
        Ok(Json(value)) => Ok(value),
        Err(JsonRejection::JsonDataError(error)) => {
            let told = error.source().map(ToString::to_string).unwrap_or_default();
            let (field, message) = match told.split_once(": ") {
                Some((path, message)) if !path.contains(' ') => (path, message),
                _ => ("", told.as_str()),
            };
            let field = if field == "." { "" } else { field };
            Err(Refusal::field(wrong, field, message, None))
        }
        Err(error) => Err(Refusal::new(Code::Malformed, error.body_text())),
    }
}

/// Refuses other media types than `known`; a body without a type is taken for what it should be.
fn require_type(headers: &HeaderMap, known: &[&str], best: &str) -> Result<(), Refusal> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if known.contains(&kind.as_str()) {
        return Ok(());
    }
    let detail = format!("`{kind}` is not read here; send `content-type: {best}`");
    Err(Refusal::new(Code::UnsupportedMediaType, detail))
}
