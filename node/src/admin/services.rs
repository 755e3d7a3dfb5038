//! Services and the instances this node owns.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};

use super::Admin;
use super::body;
#[cfg(test)]
use super::problem::ProblemBody;
use super::problem::{Code, Refusal};
use crate::config::check_registration;
use crate::view::{Registration, ServiceSummary};

/// Every service that any node is known to offer.
#[cfg_attr(test, utoipa::path(get, path = "/v1/services", tag = "services", responses((status = 200, body = Vec<ServiceSummary>))))]
pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<ServiceSummary>> {
    Json(admin.api.services())
}

/// One service with its instances on every node.
#[cfg_attr(test, utoipa::path(get, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path, description = "Name of the service")),
    responses(
        (status = 200, body = ServiceSummary),
        (status = 404, description = "`not_found`", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn one(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Json<ServiceSummary>, Refusal> {
    let services = admin.api.services();
    match services.iter().find(|service| service.name == name) {
        Some(service) => Ok(Json(service.clone())),
        None => Err(unknown_service(&name, services.iter().map(|service| service.name.as_str()))),
    }
}

/// Registers or replaces an instance on this node; it is kept over restarts.
#[cfg_attr(test, utoipa::path(put, path = "/v1/services/{name}/instances/{id}", tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service, a DNS label"),
        ("id" = String, Path, description = "Id of the instance within this node"),
    ),
    request_body = Registration,
    responses(
        (status = 204, description = "On disk and in force here"),
        (status = 401, description = "`token_required`, `token_wrong`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`limit`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "`registration_invalid`: every fault", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`: not registered", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn put(
    State(admin): State<Admin>,
    Path((name, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let registration: Registration = body::json(&headers, body, Code::RegistrationInvalid).await?;
    let problems = check_registration(&name, &id, &registration);
    if !problems.is_empty() {
        return Err(Refusal::faults(Code::RegistrationInvalid, problems));
    }
    admin.api.put_instance(name, id, registration).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes an instance of this node.
#[cfg_attr(test, utoipa::path(delete, path = "/v1/services/{name}/instances/{id}", tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service"),
        ("id" = String, Path, description = "Id of the instance within this node"),
    ),
    responses(
        (status = 204, description = "Gone, here and on disk"),
        (status = 401, description = "`token_required`, `token_wrong`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "`storage_full`: not removed", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn remove(
    State(admin): State<Admin>,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    admin.api.delete_instance(name, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Feeds the ttl check of an instance: it counts as healthy for another `ttl`.
#[cfg_attr(test, utoipa::path(put, path = "/v1/services/{name}/instances/{id}/heartbeat", tag = "services",
    params(
        ("name" = String, Path, description = "Name of the service"),
        ("id" = String, Path, description = "Id of the instance within this node"),
    ),
    responses(
        (status = 204, description = "Heard"),
        (status = 401, description = "`token_required`, `token_wrong`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: no such instance here, or it has no ttl check", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn heartbeat(
    State(admin): State<Admin>,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    admin.api.heartbeat(name, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says what is known instead.
pub(super) fn unknown_service<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Refusal {
    let known: Vec<&str> = known.collect();
    let mut detail = format!("no service `{}` is known here", name.escape_debug());
    match (policy::nearest_name(name, &known), known.as_slice()) {
        (Some(near), _) => detail.push_str(&format!("; did you mean `{near}`?")),
        (None, []) => detail.push_str("; none is"),
        (None, known) => detail.push_str(&format!("; known: {}", known.join(", "))),
    }
    Refusal::new(Code::NotFound, detail)
}
