//! What only the API's description is made of; the node builds none of it.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::problem::MEDIA_TYPE;
use crate::view::{Applied, PlanView};

/// Headers that every write takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct WriteHeaders {
    /// ETag the document must still have, in quotes; `*`: it must exist.
    #[param(rename = "If-Match", required = false)]
    if_match: Option<String>,
    /// `*`: the document must not exist.
    #[param(rename = "If-None-Match", required = false)]
    if_none_match: Option<String>,
    /// The same key and the same request within 24 hours are one write; at most 128 bytes.
    #[param(rename = "Idempotency-Key", required = false)]
    idempotency_key: Option<String>,
    /// Why, in the author's words, for the history; at most 256 bytes of UTF-8.
    #[param(rename = "Marram-Reason", required = false)]
    marram_reason: Option<String>,
}

/// The refusals that every policy write knows.
pub(super) struct WriteRefusals;

impl IntoResponses for WriteRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let refusals = [
            ("400", "`malformed`"),
            ("401", "`token_required`, `token_wrong`"),
            ("403", "`denied`: this node only relays"),
            ("404", "`not_found`: no such document or version, where one is needed"),
            ("409", "`limit`, `idempotency_reuse`, for a resolution `no_conflict`; nothing was stored"),
            ("412", "`stale_context`: with both versions; nothing was stored"),
            ("413", "`body_too_large`"),
            ("415", "`unsupported_media_type`"),
            ("422", "`policy_invalid`: every fault; nothing was stored"),
            ("503", "`unavailable`: the node is stopping"),
            ("507", "`storage_full`: nothing was stored, routing goes on"),
        ];
        let described = refusals.into_iter().map(|(status, description)| {
            let content = Content::new(Some(Ref::from_schema_name("ProblemBody")));
            let response = ResponseBuilder::new().description(description).content(MEDIA_TYPE, content).build();
            (status.to_owned(), RefOr::T(response))
        });
        described.collect()
    }
}

/// The answers that every policy write knows when it went well.
pub(super) struct WriteAnswers;

impl IntoResponses for WriteAnswers {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let answers = [
            ("200", "On disk and in force here, and on disk at as many other nodes as were asked for"),
            ("201", "The same, and the document is new"),
            (
                "202",
                "On disk and in force here; fewer other nodes than asked for have confirmed it in time. It spreads",
            ),
        ];
        let described = answers.into_iter().map(|(status, description)| {
            let content = Content::new(Some(Ref::from_schema_name("Applied")));
            let response = ResponseBuilder::new().description(description).content("application/json", content).build();
            (status.to_owned(), RefOr::T(response))
        });
        described.collect()
    }
}

/// What `POST /v1/apply` answers: what was done, or with `dryRun=all` what would be.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ApplyAnswer {
    Applied(Applied),
    Plan(PlanView),
}

/// One fault of a body.
#[derive(ToSchema)]
pub(super) struct FieldFault {
    /// Path of the field, for instance `spec.rules[0].backendRefs[1].weight`.
    field: String,
    /// What is wrong.
    message: String,
    /// The way out, where there is one.
    hint: Option<String>,
}

/// The shape of [`Explanation`] for the API's description; a test holds the two together.
#[derive(ToSchema)]
#[schema(as = Explanation)]
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
pub(super) struct ExcludedBody {
    /// Id within the owning node.
    instance: String,
    /// The owning node's label.
    node: String,
    /// What removed it.
    reason: String,
}
