//! The record of one request or tunnel: in flight while it lives, one access line and its metrics when it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};

use super::context::{Busy, ProxyContext};
pub(super) use super::meters::Direction;
use crate::limits::Taken;
use crate::snapshot::{InFlight, LocalInstance};
use crate::telemetry::access::{self, AccessLine};

/// A request, a connection, a second try.
const HELD_MAX: usize = 3;

/// One request to a local instance in flight.
#[derive(Debug)]
pub(super) struct LocalInFlight {
    instance: Arc<LocalInstance>,
}

impl LocalInFlight {
    /// Counts one more; returns the new figure too.
    pub(super) fn begin(instance: &Arc<LocalInstance>) -> (Self, u32) {
        let before = instance.inflight.fetch_add(1, Ordering::Relaxed);
        (Self { instance: Arc::clone(instance) }, before.saturating_add(1))
    }
}

impl Drop for LocalInFlight {
    fn drop(&mut self) {
        self.instance.inflight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of a request; dropping it writes the access line.
#[derive(Debug)]
pub(crate) struct Record {
    busy: Busy,
    /// The data thread that keeps count of it.
    core: usize,
    direction: Direction,
    started: Duration,
    method: Method,
    path: String,
    host: String,
    /// `None` until the request was matched to a service that somebody offers.
    pub(super) service: Option<Arc<str>>,
    /// What the client was told.
    pub(super) status: Option<StatusCode>,
    /// The peer it came from, or the way it took.
    pub(super) via: Option<HeaderValue>,
    /// Probability of the endpoint at the draw.
    pub(super) probability: Option<f64>,
    /// Tries beyond the first.
    pub(super) retries: u32,
    /// Why a request that failed was not tried again, where policy or client forbade it.
    pub(super) not_retried: Option<&'static str>,
    /// Sent to a second instance while the first had not answered.
    pub(super) hedged: bool,
    /// What was done to the request on purpose.
    pub(super) injected: Option<&'static str>,
    /// What the request has of its service's limits, until its end.
    held: [Option<Taken>; HELD_MAX],
    bytes: u64,
    /// Sent by the client of a tunnel.
    bytes_there: u64,
    is_broken: bool,
    endpoint: Option<InFlight>,
    local: Option<LocalInFlight>,
}

impl Record {
    /// A request that has just come in. Queries are left out of the path: they carry what nobody wants in a log.
    pub(super) fn new(
        context: &Arc<ProxyContext>,
        core: usize,
        direction: Direction,
        method: &Method,
        host: String,
        path: &str,
    ) -> Self {
        Self {
            busy: context.begin(),
            core,
            direction,
            started: context.clock.now(),
            method: method.clone(),
            path: path.to_owned(),
            host,
            service: None,
            status: None,
            via: None,
            probability: None,
            retries: 0,
            not_retried: None,
            hedged: false,
            injected: None,
            held: [const { None }; HELD_MAX],
            bytes: 0,
            bytes_there: 0,
            is_broken: false,
            endpoint: None,
            local: None,
        }
    }

    /// When the request came in.
    pub(super) const fn started(&self) -> Duration {
        self.started
    }

    /// The endpoint the request is at, instead of any earlier one.
    pub(super) fn at(&mut self, endpoint: Option<InFlight>, local: Option<LocalInFlight>) {
        self.endpoint = endpoint;
        self.local = local;
    }

    /// The request has this of its service's limits until its end.
    pub(super) fn hold(&mut self, taken: Taken) {
        if let Some(free) = self.held.iter_mut().find(|held| held.is_none()) {
            *free = Some(taken);
        }
    }

    /// More bytes of the body were handed on.
    pub(super) const fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// So many bytes went through a tunnel, to the instance and back.
    pub(super) const fn tunnelled(&mut self, there: u64, back: u64) {
        self.bytes_there += there;
        self.bytes += back;
    }

    /// The body broke off.
    pub(super) const fn broken(&mut self) {
        self.is_broken = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Nothing is what refusals, mirrored requests and checks carry; it tells nothing of the others.
        let carried = self.bytes.max(self.bytes_there);
        if let Some(endpoint) = self.endpoint.as_ref().filter(|_| carried > 0) {
            endpoint.carried(carried);
        }
        let context = self.busy.context();
        let now = context.clock.now();
        let duration = now.saturating_sub(self.started);
        let series = (self.service.as_deref().unwrap_or("none"), self.direction);
        context.meters(self.core).finished(series, self.status, duration, now);
        let direction = self.direction.as_str();
        access::write(context.clock.unix(), || AccessLine {
            direction,
            method: self.method.as_str(),
            service: self.service.as_deref().unwrap_or_default(),
            host: &self.host,
            path: &self.path,
            status: self.status.map_or(0, |status| status.as_u16()),
            bytes: self.bytes,
            duration,
            via: self.via.as_ref().and_then(|via| via.to_str().ok()).unwrap_or_default(),
            p: self.probability,
            retries: self.retries,
            not_retried: self.not_retried,
            hedged: self.hedged.then_some(true),
            injected: self.injected,
            broken: self.is_broken,
        });
    }
}
