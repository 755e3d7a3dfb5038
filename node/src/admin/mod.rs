//! The admin API: HTTP on `DIR/admin.sock` and on a loopback TCP port.
//!
//! Everything it tells and does goes through [`NodeApi`]. Over the socket, file permissions decide
//! who may talk. Over TCP, reads are free to local processes, writes need the admin token, and the Host header must name
//! this machine, so that no web page can reach it by a name of its own. `docs/admin-api.md` lists every endpoint.

mod asked;
mod body;
mod conflicts;
mod explain;
mod gate;
mod history;
#[expect(unused_qualifications, reason = "written by the path macro, which names parameter types through their module")]
mod looks;
#[expect(unused_qualifications, reason = "written by the path macro, which names parameter types through their module")]
mod policies;
mod problem;
mod server;
mod services;
mod socket;
mod status;
mod token;
#[expect(unused_qualifications, reason = "written by the path macro, which names parameter types through their module")]
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::NodeApi;
use crate::telemetry::MetricsHandle;

pub use problem::{Code, FieldFault, ProblemBody, Version};
pub use server::{AdminError, AdminServer};
pub use socket::{SOCKET_NAME, SocketPathError, socket_path};
pub use token::{AdminToken, FILE_NAME as TOKEN_FILE_NAME, TokenError};

/// Bytes of a request body; a longer one is answered 413.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// Event streams open at once; one more is answered 503.
pub const WATCHERS_MAX: usize = 32;

/// What every handler can reach.
#[derive(Clone)]
struct Admin {
    api: Arc<dyn NodeApi>,
    metrics: MetricsHandle,
    token: AdminToken,
    openapi: Arc<str>,
    watchers: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Over which listener a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Tcp,
    Socket,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Marram admin API",
    description = "Reads are free to local processes. Writes over TCP need `Authorization: Bearer $(cat DIR/admin.token)`; over DIR/admin.sock they need none. Every refusal is RFC 9457 problem JSON."
))]
struct Description;

/// The OpenAPI description of the API as it is built.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented_routes().into_openapi()
}

fn documented_routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status::status))
        .routes(routes!(status::nodes))
        .routes(routes!(services::list))
        .routes(routes!(services::one))
        .routes(routes!(services::put, services::remove))
        .routes(routes!(services::heartbeat))
        .routes(routes!(explain::explain))
        .routes(routes!(policies::list))
        .routes(routes!(policies::one, policies::put, policies::patch, policies::remove))
        .routes(routes!(history::history))
        .routes(routes!(history::rollback))
        .routes(routes!(conflicts::resolve))
        .routes(routes!(policies::apply))
        .routes(routes!(looks::diff))
        .routes(routes!(conflicts::list))
        .routes(routes!(looks::effective))
        .routes(routes!(looks::sync_status))
        .routes(routes!(status::problems))
        .routes(routes!(watch::watch))
        .routes(routes!(status::metrics))
        .routes(routes!(status::healthz))
        .routes(routes!(status::readyz))
        .routes(routes!(status::openapi))
}

fn router(admin: Admin) -> Router {
    let (routes, _) = documented_routes().split_for_parts();
    routes
        .fallback(gate::no_such_path)
        .method_not_allowed_fallback(gate::no_such_method)
        .layer(axum::middleware::from_fn_with_state(admin.clone(), gate::guard))
        .with_state(admin)
}
