//! The admin API: HTTP on `DIR/admin.sock` and on a loopback TCP port.
//!
//! Everything it tells and does goes through [`NodeApi`]. Over the socket, file permissions decide
//! who may talk. Over TCP, reads are free to local processes, writes need the admin token, and the Host header must name
//! this machine, so that no web page can reach it by a name of its own. `docs/admin-api.md` lists every endpoint.

mod asked;
mod body;
mod conflicts;
#[cfg(test)]
#[expect(dead_code, reason = "a description for machines; nobody builds one")]
mod described;
mod explain;
mod gate;
mod history;
mod looks;
mod policies;
mod problem;
mod server;
mod services;
mod socket;
mod status;
mod token;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::NodeApi;
use crate::telemetry::MetricsHandle;

pub use problem::{Code, ProblemBody, Version};
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
    watchers: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Over which listener a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Tcp,
    Socket,
}

/// What `GET /openapi.json` answers: made from the handlers' attributes, kept in the repository, held to them by a test.
const DESCRIPTION: &str = include_str!("../../openapi.json");

/// Makes what serves the routes and, for the tests, what describes them out of one list.
macro_rules! routes {
    ($($path:literal => $($method:ident $module:ident::$handler:ident),+;)+) => {
        fn routes() -> Router<Admin> {
            Router::new()$(.route($path, MethodRouter::new()$(.$method($module::$handler))+))+
        }

        #[cfg(test)]
        const ROUTES: &[(&str, &str, &str)] = &[$($((stringify!($method), $path, stringify!($handler))),+),+];

        #[cfg(test)]
        #[derive(utoipa::OpenApi)]
        #[openapi(
            info(
                title = "Marram admin API",
                description = "Reads are free to local processes. Writes over TCP need `Authorization: Bearer $(cat DIR/admin.token)`; over DIR/admin.sock they need none. Every refusal is RFC 9457 problem JSON."
            ),
            paths($($($module::$handler),+),+)
        )]
        struct Description;
    };
}

routes! {
    "/v1/status" => get status::status;
    "/v1/nodes" => get status::nodes;
    "/v1/services" => get services::list;
    "/v1/services/{name}" => get services::one;
    "/v1/services/{name}/instances/{id}" => put services::put, delete services::remove;
    "/v1/services/{name}/instances/{id}/heartbeat" => put services::heartbeat;
    "/v1/explain/{service}" => get explain::explain;
    "/v1/policies" => get policies::list;
    "/v1/policies/{scope}/{kind}/{name}" =>
        get policies::one, put policies::put, patch policies::patch, delete policies::remove;
    "/v1/policies/{scope}/{kind}/{name}/history" => get history::history;
    "/v1/policies/{scope}/{kind}/{name}/rollback" => post history::rollback;
    "/v1/policies/{scope}/{kind}/{name}/resolve" => post conflicts::resolve;
    "/v1/apply" => post policies::apply;
    "/v1/diff" => post looks::diff;
    "/v1/conflicts" => get conflicts::list;
    "/v1/effective/{service}" => get looks::effective;
    "/v1/sync/status" => get looks::sync_status;
    "/v1/problems" => get status::problems;
    "/v1/watch" => get watch::watch;
    "/metrics" => get status::metrics;
    "/healthz" => get status::healthz;
    "/readyz" => get status::readyz;
    "/openapi.json" => get status::openapi;
}

fn router(admin: Admin) -> Router {
    routes()
        .fallback(gate::no_such_path)
        .method_not_allowed_fallback(gate::no_such_method)
        .layer(axum::middleware::from_fn_with_state(admin.clone(), gate::guard))
        .with_state(admin)
}
