//! The end of an interval: the endpoints of a service are compared, and those that differ are left out.

use std::sync::Arc;
use std::time::Duration;

use policy::Outlier;

use super::may_leave_out;
use super::peers::{Finding, Seen, judge};
use crate::snapshot::{Endpoint, ServiceView, Snapshot};

/// An endpoint that was left out by comparison with its peers.
#[derive(Debug, Clone)]
pub struct Ejection {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// Why.
    pub finding: Finding,
    /// For how long.
    pub out_for: Duration,
}

/// Ends the intervals that are over at `now`, for each service its own, and leaves out whoever they show to be an outlier.
/// Early and repeated calls change nothing. For one thread, the control thread: it need not be exact when it comes.
pub fn turn(snapshot: &Snapshot, now: Duration) -> Vec<Ejection> {
    let mut out = Vec::new();
    for (service, view) in &snapshot.services {
        let rule = &snapshot.table.backend(service).outlier;
        if view.stats.ends_interval(rule.interval, now) {
            compare(view, rule, now, &mut out);
        }
    }
    out
}

/// Who is out already is not judged, and does not count for the others: it has had its verdict, and has no say while it
/// gets no requests.
fn compare(view: &ServiceView, rule: &Outlier, now: Duration, ejections: &mut Vec<Ejection>) {
    let all = view.endpoints.iter().map(|endpoint| (endpoint, endpoint.stats.take_window(endpoint.distance_ms)));
    let (endpoints, seen): (Vec<&Arc<Endpoint>>, Vec<Seen>) =
        all.filter(|(endpoint, _)| !endpoint.stats.is_ejected(now)).unzip();
    let mut found = Vec::new();
    for (endpoint, verdict) in endpoints.into_iter().zip(judge(&seen, rule)) {
        endpoint.stats.note_interval(&verdict);
        found.extend(verdict.finding.map(|finding| (endpoint, finding)));
    }
    // The worst first, as not all of them may be left out.
    found.sort_by(|(_, a), (_, b)| {
        let (a, b) = (a.excess(), b.excess());
        b.0.cmp(&a.0).then(b.1.total_cmp(&a.1))
    });
    let out = view.endpoints.iter().filter(|endpoint| endpoint.stats.is_outlier(now)).count();
    let allowed = (out..).take_while(|out| may_leave_out(*out, view.endpoints.len(), rule));
    for (_, (endpoint, finding)) in allowed.zip(found) {
        let out_for = endpoint.stats.leave_out(finding, rule, now);
        ejections.push(Ejection { endpoint: Arc::clone(endpoint), finding, out_for });
    }
}

#[cfg(test)]
mod tests;
