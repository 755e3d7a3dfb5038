//! The routing decision, explained.

use axum::Json;
use axum::extract::{Path, State};
use policy::explain::Explanation;
use utoipa::ToSchema;

use super::Admin;
use super::problem::{ProblemBody, Refusal};
use super::services::unknown_service;

/// How the next request for a service would be decided: candidates with C, L, d, w and P, and who is out and why.
#[utoipa::path(get, path = "/v1/explain/{service}", tag = "services",
    params(("service" = String, Path, description = "Name of the service")),
    responses(
        (status = 200, body = ExplanationBody),
        (status = 404, description = "`not_found`: nobody offers it; the detail says what is known", body = ProblemBody, content_type = "application/problem+json"),
    ))]
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

/// The shape of [`Explanation`] for the API's description; a test holds the two together.
#[derive(ToSchema)]
#[schema(as = Explanation)]
#[expect(dead_code, reason = "a description for machines; nobody builds one")]
pub(super) struct ExplanationBody {
    /// The service asked about.
    service: String,
    /// `EdgeDecay`.
    algorithm: String,
    /// Distance decay per millisecond.
    lambda_per_ms: f64,
    /// What is added to every load.
    epsilon: f64,
    /// `Single` or `BestOfTwo`. With `BestOfTwo` P is the probability of the first of two draws, of which the cheaper is taken.
    draw: String,
    /// The documents that settle this, or `default`.
    policy: String,
    /// The node whose view this is.
    as_known_by: String,
    /// `true` while so many instances are out by the verdicts of this node that these do not count; else absent.
    panic: bool,
    /// What this node may take of a rate that all nodes share; absent where policy sets none.
    fleet_rate: Option<FleetRateBody>,
    /// What each locality gets; absent where policy tells none apart.
    localities: Vec<LocalityBody>,
    /// What rules that lead to the service require of a node; absent where none does.
    requirements: Vec<RequirementsBody>,
    /// Who takes part in the draw.
    candidates: Vec<CandidateBody>,
    /// Who does not, and why.
    excluded: Vec<ExcludedBody>,
}

/// One candidate with every number of its decision.
#[derive(ToSchema)]
#[schema(as = ExplainedCandidate)]
#[expect(dead_code, reason = "a description for machines; nobody builds one")]
pub(super) struct CandidateBody {
    /// Id within the owning node.
    instance: String,
    /// The owning node's label.
    node: String,
    /// The owning node's zone.
    zone: String,
    /// The locality it is of; absent where policy tells none apart.
    locality: Option<String>,
    /// C, in concurrent requests.
    capacity: f64,
    /// Requests in flight, estimated.
    inflight: f64,
    /// L = inflight / C.
    load: f64,
    /// d, round trip in milliseconds.
    distance_ms: f64,
    /// `local`, `rtt`, `vivaldi`, `great-circle` or `unknown`.
    distance_source: String,
    /// w = C / (L + epsilon) * exp(-lambda * d).
    weight: f64,
    /// P = w / sum of w: of the draw, or of the first of two. With localities P within its own times the share of that.
    probability: f64,
    /// The part of its weight that a newcomer has, contained in C; absent where it has all of it.
    slow_start: Option<f64>,
    /// How long it takes to answer as seen from this node; `null` where no answer has come yet.
    latency_ms: Option<f64>,
    /// Its part of the picks of late, 0..=1; `null` where there were none.
    observed_share: Option<f64>,
    /// How often it was picked of late.
    picks: u64,
    /// What `picks` should come to; `null` with `BestOfTwo`, where that is not known.
    expected_picks: Option<f64>,
    /// `ok`, or a word for what holds it back without excluding it.
    state: String,
    /// `declared`, `learned` or `cores`.
    capacity_source: String,
}

/// One node's part of a rate that all nodes share.
#[derive(ToSchema)]
#[schema(as = ExplainedFleetRate)]
#[expect(dead_code, reason = "a description for machines; nobody builds one")]
pub(super) struct FleetRateBody {
    /// Requests per second that may begin at all nodes together.
    limit_per_s: f64,
    /// Requests per second that may begin here.
    share_per_s: f64,
    /// Requests per second that ask to begin here, averaged; the limit at most.
    demand_per_s: f64,
    /// The nodes that share, as seen here, this one among them.
    nodes: usize,
    /// Those of them that ask for more than the little that each may always take.
    asking: usize,
}

/// One locality with its part of the requests.
#[derive(ToSchema)]
#[schema(as = ExplainedLocality)]
#[expect(dead_code, reason = "a description for machines; nobody builds one")]
pub(super) struct LocalityBody {
    /// `REGION/ZONE`, `REGION/*` or `*` of a split; `own zone`, `own region` or `anywhere` for a tier.
    name: String,
    /// What a split gives it while all is well, in percent; `null` for a tier.
    percent: Option<u32>,
    /// Instances that can be drawn; one whose owner is suspected counts a quarter.
    sound: f64,
    /// Instances that should be there.
    known: f64,
    /// What it gets now, 0..=1.
    share: f64,
    /// How many candidates are its, one locality's after the other's.
    candidates: usize,
}

/// What one rule requires of a node.
#[derive(ToSchema)]
#[schema(as = ExplainedRequirements)]
#[expect(dead_code, reason = "a description for machines; nobody builds one")]
pub(super) struct RequirementsBody {
    /// The rule's name.
    route: String,
    /// Each as `gpu >= 1`.
    requires: Vec<String>,
    /// Whether a request that nobody meets goes to anybody; else it is refused.
    passes_through: bool,
    /// Those that its requests skip, each with what is missing.
    skipped: Vec<ExcludedBody>,
}

/// One instance that does not take part.
#[derive(ToSchema)]
#[schema(as = Excluded)]
#[expect(dead_code, reason = "a description for machines; nobody builds one")]
pub(super) struct ExcludedBody {
    /// Id within the owning node.
    instance: String,
    /// The owning node's label.
    node: String,
    /// What removed it.
    reason: String,
}
