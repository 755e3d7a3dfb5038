//! Which endpoint next: picks, failures seen by this request, and what they mean for later ones.

use std::borrow::Cow;
use std::sync::Arc;

use policy::Requirements;

use super::context::{Outcome, OutcomeKind, ProxyContext};
use super::refuse::{Reason, Refusal};
use crate::config::Protocol;
use crate::pick::{Asked, NoPick, Pick, pick};
use crate::snapshot::{Endpoint, Snapshot};

/// Tries beyond the first. One: a second failure in a row is news for the client, not a reason to load a third.
const RETRIES_MAX: usize = 1;

/// The endpoints one request was sent to in vain.
#[derive(Debug, Default, Clone)]
pub(super) struct Tries {
    /// Out for this request: those that failed, and their neighbours where it was the node that failed.
    out: Vec<Arc<Endpoint>>,
    /// `(instance@node, what was seen)` of those that failed.
    failures: Vec<(String, String)>,
    /// Those among them whose peer failed: the way there may be another at the next try.
    unreached: Vec<Arc<Endpoint>>,
    /// Whether datagrams are to be sent, and not a request or bytes.
    datagrams: bool,
    /// What the node of an instance must be.
    requirements: Option<Arc<Requirements>>,
    /// Whether the client wants to know who the candidates were.
    explained: bool,
}

impl Tries {
    /// None yet, of a request that goes to nodes with these traits only.
    pub(super) fn requiring(requirements: Option<&Arc<Requirements>>) -> Self {
        Self { requirements: requirements.cloned(), ..Self::default() }
    }

    /// The same, where every pick is to tell its candidates if `explained`.
    pub(super) fn explained(self, explained: bool) -> Self {
        Self { explained, ..self }
    }

    /// For datagrams, which only go to endpoints that speak them; all else only goes to the others.
    pub(super) fn for_datagrams() -> Self {
        Self { datagrams: true, ..Self::default() }
    }

    fn is_unfit(&self, endpoint: &Endpoint) -> bool {
        (endpoint.protocol == Protocol::Udp) != self.datagrams
    }

    /// Who is out for this request, those included that do not speak what it needs.
    fn out(&self, snapshot: &Snapshot, service: &str) -> Cow<'_, [Arc<Endpoint>]> {
        let view = snapshot.services.get(service);
        let mut unfit =
            view.into_iter().flat_map(|view| &view.endpoints).filter(|other| self.is_unfit(other)).peekable();
        if unfit.peek().is_none() {
            return Cow::Borrowed(&self.out);
        }
        Cow::Owned(self.out.iter().chain(unfit).cloned().collect())
    }

    /// How many endpoints failed so far.
    pub(super) const fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Whether the request may be sent once more after another failure.
    pub(super) const fn may_go_on(&self) -> bool {
        self.failed() < RETRIES_MAX
    }

    /// The endpoint was too slow for this request, and is out for it alone.
    pub(super) fn leave_out(&mut self, endpoint: &Arc<Endpoint>, seen: &str) {
        self.out.push(Arc::clone(endpoint));
        self.failures.push((label(endpoint), seen.to_owned()));
    }

    /// The endpoint has all the requests it may have from here, and is out for this one.
    pub(super) fn full(&mut self, endpoint: &Arc<Endpoint>) {
        self.out.push(Arc::clone(endpoint));
    }

    /// Whether endpoints are out although none has failed.
    pub(super) const fn met_only_limits(&self) -> bool {
        self.failures.is_empty() && !self.out.is_empty()
    }

    /// Draws an endpoint that has not failed this request.
    ///
    /// # Errors
    /// The refusal that says why there is none.
    pub(super) fn pick(
        &self,
        context: &ProxyContext,
        core: usize,
        snapshot: &Snapshot,
        service: &str,
    ) -> Result<Pick, Refusal> {
        if self.failed() > RETRIES_MAX {
            return Err(self.exhausted(service));
        }
        let chances = [context.chance(core), context.chance(core)];
        let now = context.clock.now();
        let out = self.out(snapshot, service);
        let draw = |tried: &[Arc<Endpoint>]| {
            let requirements = self.requirements.as_ref();
            let asked = Asked { tried, requirements, with_candidates: self.explained };
            pick(snapshot, service, asked, chances, now)
        };
        let picked = draw(&out).or_else(|none| {
            // Nobody else is left. The way to a peer may be another by now, so what is behind one gets the second try too.
            let stays = |endpoint: &&Arc<Endpoint>| !self.unreached.iter().any(|other| Arc::ptr_eq(other, endpoint));
            let here: Vec<_> = out.iter().filter(stays).cloned().collect();
            let is_worth_it = here.len() < out.len() && matches!(none, NoPick::NoneHealthy(_));
            if is_worth_it { draw(&here).map_err(|_same| none) } else { Err(none) }
        });
        if let Ok(pick) = &picked {
            count(service, pick);
        }
        picked.map_err(|none| match none {
            NoPick::UnknownService => Refusal::unknown_service(service, snapshot.services.keys()),
            NoPick::NoneHealthy(reasons) => self.none_healthy(snapshot, service, reasons),
            NoPick::Forbidden(reasons) => forbidden(snapshot, service, reasons),
            NoPick::Unfit(reasons) => unfit(service, reasons),
        })
    }

    /// The endpoint failed: it is out for this request and, for a while, for this node.
    ///
    /// Where its node failed, all endpoints there are out: they are behind the same proxy. Where it was only the way there, for this
    /// request alone.
    pub(super) fn fail(
        &mut self,
        context: &ProxyContext,
        snapshot: &Snapshot,
        endpoint: &Arc<Endpoint>,
        kind: OutcomeKind,
        detail: String,
    ) {
        if kind == OutcomeKind::LinkFailed {
            // The next try goes elsewhere: whether the peer answers over another way is not known. Where there is nobody else
            // it goes there over that.
            self.failures.push((label(endpoint), detail));
            let there: Vec<_> = on_node_of(endpoint, snapshot).cloned().collect();
            self.unreached.extend(there.iter().cloned());
            self.out.extend(there);
            return;
        }
        let at = context.clock.now();
        let until = at.saturating_add(context.config.eject_time);
        let in_a_row = endpoint.stats.failed(until);
        self.out.push(Arc::clone(endpoint));
        self.failures.push((label(endpoint), detail.clone()));
        if kind == OutcomeKind::PeerFailed && endpoint.local.is_none() {
            self.unreached.push(Arc::clone(endpoint));
            for other in on_node_of(endpoint, snapshot).filter(|other| !Arc::ptr_eq(other, endpoint)) {
                other.stats.failed(until);
                self.out.push(Arc::clone(other));
            }
        }
        tracing::debug!(endpoint = label(endpoint), kind = kind.as_str(), detail, in_a_row, "eject");
        context.tell(Outcome { endpoint: Arc::clone(endpoint), kind, detail, in_a_row, at });
    }

    /// The last failure of this request as an answer, for a request that cannot be sent again.
    pub(super) fn refusal(&self, service: &str, is_unsent: bool) -> Refusal {
        let seen = self.failures.last().map_or("it failed", |(_, detail)| detail.as_str());
        if is_unsent {
            return Refusal::new(
                Reason::InstanceFailed,
                format!("an instance of `{service}` could not be asked: {seen}"),
            )
            .candidates(self.failures.clone());
        }
        Refusal::new(
            Reason::InstanceFailed,
            format!("an instance of `{service}` failed while it had the request: {seen}"),
        )
        .hint("a part of the request may have been carried out; methods that may be repeated are sent elsewhere")
        .candidates(self.failures.clone())
    }

    fn exhausted(&self, service: &str) -> Refusal {
        let count = self.failed();
        let first = self.failures.first().map(|(instance, _)| instance);
        let detail = if self.failures.iter().all(|(instance, _)| Some(instance) == first) {
            format!("the only instance of `{service}` failed {count} times in a row")
        } else {
            format!("{count} instances of `{service}` failed one after the other")
        };
        Refusal::new(Reason::NoHealthyInstance, detail)
            .hint("those that failed are left out for a while; ask again")
            .candidates(self.failures.clone())
    }

    fn none_healthy(&self, snapshot: &Snapshot, service: &str, mut reasons: Vec<(String, String)>) -> Refusal {
        let view = snapshot.services.get(service);
        let unfit = view.into_iter().flat_map(|view| &view.endpoints).filter(|other| self.is_unfit(other));
        let unfit: Vec<String> = unfit.map(|endpoint| label(endpoint)).collect();
        for (instance, reason) in &mut reasons {
            if unfit.contains(instance) {
                let speaks = if self.datagrams {
                    "speaks no datagrams"
                } else {
                    "speaks datagrams, and these need a UDP listener"
                };
                speaks.clone_into(reason);
            }
            if let Some((_, seen)) = self.failures.iter().find(|(failed, _)| failed == instance) {
                reason.clone_from(seen);
            }
        }
        let detail = match reasons.len() {
            1 => format!("the only instance of `{service}` cannot take the request"),
            count => format!("none of the {count} instances of `{service}` can take the request"),
        };
        Refusal::new(Reason::NoHealthyInstance, detail)
            .hint(format!("`marram route explain {service}` shows every instance and its state"))
            .candidates(reasons)
    }
}

/// The endpoints of the same service that are behind the same proxy, this one included.
fn on_node_of<'a>(endpoint: &'a Endpoint, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Arc<Endpoint>> {
    let all = snapshot.services.get(&*endpoint.service).into_iter().flat_map(|view| &view.endpoints);
    all.filter(|other| other.node == endpoint.node)
}

/// Decisions that were not as they are while all is well.
fn count(service: &str, pick: &Pick) {
    if pick.is_spilling {
        metrics::counter!("marram_locality_spills_total", "service" => service.to_owned()).increment(1);
    }
    if pick.is_panic {
        metrics::counter!("marram_panic_picks_total", "service" => service.to_owned()).increment(1);
    }
}

/// The request would have to leave the regions it may be answered in.
fn forbidden(snapshot: &Snapshot, service: &str, reasons: Vec<(String, String)>) -> Refusal {
    let allowed: Vec<&str> = snapshot.table.residency(service).into_iter().flatten().map(String::as_str).collect();
    let allowed = if allowed.is_empty() { "no region at all".to_owned() } else { allowed.join(", ") };
    let detail = format!("requests for `{service}` may be answered in {allowed} only, and nobody there can");
    Refusal::new(Reason::Residency, detail)
        .hint(format!("`marram policy effective {service}` shows which Residency says so"))
        .candidates(reasons)
}

/// No node is what the route requires.
fn unfit(service: &str, reasons: Vec<(String, String)>) -> Refusal {
    let detail =
        format!("no instance of `{service}` that could answer is on a node that the route's requirements let it go to");
    Refusal::new(Reason::Unfit, detail)
        .hint("`onUnmatched: pass-through` on the rule lets such requests go to any instance")
        .candidates(reasons)
}

/// Tells that the endpoint was too slow; that alone does not take it out.
pub(super) fn too_slow(context: &ProxyContext, endpoint: &Arc<Endpoint>, detail: &str) {
    context.tell(Outcome {
        endpoint: Arc::clone(endpoint),
        kind: OutcomeKind::TimedOut,
        detail: detail.to_owned(),
        in_a_row: 0,
        at: context.clock.now(),
    });
}

fn label(endpoint: &Endpoint) -> String {
    format!("{}@{}", endpoint.instance, endpoint.node_name)
}
