//! What should happen to a request: documents, validation, compilation and every routing decision.
//!
//! This crate has no runtime, no clock and no I/O. Text, time and chance come in as arguments; what comes out are
//! values. It knows nothing of other nodes: which candidates exist, how loaded and how far they are, is told to it.
//!
//! Where to start:
//! - text to documents: [`accept_documents`] (or [`parse_documents`] and [`validate`] apart);
//! - documents to what the replicated store holds and back: [`Document::to_sections`], [`Document::from_sections`];
//! - documents to decisions: [`compile`] gives a [`RouteTable`], [`RouteTable::route`] names the service and
//!   [`RouteTable::backend`] how to balance over its instances; [`RouteTable::authorization`],
//!   [`RouteTable::peer_mode`] and [`RouteTable::residency`] say what is permitted;
//! - the same, again and again while single documents change: [`Library`];
//! - what holds and whose word it is: [`effective`]; what a change would touch: [`impact`]; what a narrower document may
//!   not say: [`locked_conflicts`]; edits and differences: [`merge_patch`], [`diff`], [`three_way`];
//! - instances to one instance: [`nearest`], [`weigh`], [`choose`], which is one [`draw`] or the better of two; by parts
//!   for localities: [`Localities`], [`weigh_parts`], [`choose_within`]; for newcomers: [`slow_start_factor`];
//! - what the better of two knows of each: [`inflight_estimate`], [`PeakEwma`];
//! - what the node of an instance must be: [`Requirements`];
//! - which part of a rate that all nodes share is one node's: [`fair_share`];
//! - why it went there: [`explain`].
//!
//! ```
//! use policy::{Candidate, Capacity, Limits, Place, RequestHead, RouteDecision, accept_documents, compile, draw, weigh};
//!
//! let text = "
//! apiVersion: marram.dev/v1
//! kind: BackendTrafficPolicy
//! metadata: { name: hello, scope: global }
//! targetRef: { kind: Service, name: hello }
//! spec: { loadBalancer: { algorithm: EdgeDecay, halfDistance: 40ms } }
//! ";
//! let documents = accept_documents(text, &Limits::default()).expect("the document is valid");
//! let table = compile(&documents, &Place::default(), 0).table;
//!
//! let request = RequestHead::new("GET", "hello.mesh", "/");
//! let RouteDecision::Service { service, .. } = table.route(&request, 0.5) else { unreachable!("a default route") };
//! let capacity = Capacity::new(100.0).expect("above zero");
//! let candidates = [Candidate::with_inflight(capacity, 30.0, 0.0), Candidate::with_inflight(capacity, 30.0, 40.0)];
//! let mut weighed = Vec::new();
//! weigh(table.backend(&service), &candidates, &mut weighed);
//! assert!((weighed[0].probability - 2.0 / 3.0).abs() < 1e-9, "the far one counts half");
//! assert_eq!(draw(&weighed, 0.9), Some(1));
//! ```
//!
//! What is deliberately absent: any access to the data path. What of retries, limits and faults a document settles comes
//! out as values ([`ServiceLimits`]); whoever has the request counts, and enforces.

mod authorization;
mod backend;
mod choose;
mod compile;
mod diff;
mod document;
mod draw;
mod effective;
pub mod explain;
mod fair_share;
mod host;
mod impact;
mod in_force;
mod inflight;
mod library;
mod limits;
mod locality;
mod lock;
mod name;
mod outlier;
mod overlay;
mod patch;
mod pattern;
mod peak_ewma;
mod priority;
mod problem;
mod reading;
mod requirements;
mod routes;
mod scope;
mod slow_start;
mod strictest;
mod table;
mod validate;
mod weigh;

pub use authorization::{Authorization, AuthzDecision, AuthzRequest, OPEN};
pub use backend::{Algorithm, BackendPolicy, Draw, EPSILON_DEFAULT, HALF_DISTANCE_DEFAULT_MS};
pub use choose::{Choice, Contender, choose};
pub use compile::{Compiled, compile};
pub use diff::{FieldChange, SideChange, diff, three_way};
pub use document::{
    API_VERSION, DocId, Document, KNOWN_KINDS, Limits, Metadata, PeerMode, STRICTEST_KINDS, TargetRef,
    accept_documents, parse_documents,
    route_filter::{Filters, HeaderChanges, Mirror, PathChange, Redirect, Rewrite},
    route_match::Headers,
};
pub use draw::{draw, draw_excluding};
pub use effective::{Effective, EffectiveKind, FieldSource, Overridden, effective};
pub use fair_share::{fair_share, floor_share};
pub use impact::{Expiry, Impact, ServiceTraffic, Touched, impact};
pub use inflight::{Report, inflight_estimate, inflight_from_own};
pub use library::{Filed, Library};
pub use limits::{
    CircuitBreaker, FaultAbort, FaultDelay, FaultInjection, Hedging, RateLimit, RetryConstraint, ServiceLimits,
};
pub use locality::{
    Distribution, FAILOVER_THRESHOLD_DEFAULT, Health, Localities, Locality, LocalityPolicy, Part, Tier, choose_within,
    weigh_parts,
};
pub use lock::locked_conflicts;
pub use name::{is_label, is_name};
pub use outlier::{FailurePercentage, Outlier, Slowness, SuccessRate};
pub use patch::merge_patch;
pub use peak_ewma::PeakEwma;
pub use priority::Priority;
pub use problem::{Problem, nearest_name};
pub use reading::Reading;
pub use requirements::{OnUnmatched, Requirement, Requirements, Test, Trait};
pub use scope::{Place, Scope, ScopeError};
pub use slow_start::slow_start_factor;
pub use table::{DEFAULT_ROUTE, RequestHead, RouteDecision, RouteTable};
pub use validate::{notes, validate};
pub use weigh::{Candidate, Capacity, CapacityError, DISTANCE_MS_MAX, LOAD_MAX, Weighed, nearest, weigh};
