//! The routing decision, explained.

use axum::Json;
use axum::extract::{Path, State};
use policy::explain::Explanation;

use super::Admin;
use super::problem::Refusal;
use super::services::unknown_service;
#[cfg(test)]
use super::{described::ExplanationBody, problem::ProblemBody};

/// How the next request for a service would be decided: candidates with C, L, d, w and P, and who is out and why.
#[cfg_attr(test, utoipa::path(get, path = "/v1/explain/{service}", tag = "services",
    params(("service" = String, Path, description = "Name of the service")),
    responses(
        (status = 200, body = ExplanationBody),
        (status = 404, description = "`not_found`: nobody offers it; the detail says what is known", body = ProblemBody, content_type = "application/problem+json"),
    )))]
pub(super) async fn explain(
    State(admin): State<Admin>,
    Path(service): Path<String>,
) -> Result<Json<Explanation>, Refusal> {
    match admin.api.explain(&service) {
        Some(explanation) => Ok(Json(explanation)),
        None => {
            let services = admin.api.services();
            Err(unknown_service(&service, services.iter().map(|known| known.name.as_str())))
        }
    }
}
