//! How long an endpoint takes to answer, and what a wait without an answer says of it.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

use super::attempt::{Answer, Outgoing};
use super::context::ProxyContext;
use crate::snapshot::Endpoint;

/// The wait for one endpoint's answer. However it ends, the endpoint's latency learns from it: dropped without an answer,
/// as when the client left or the time was over, it is known that an answer takes at least so long.
///
/// An answer counts from the moment the request went over a connection: the one request that had to make the connection
/// would be a peak that keeps the others away for seconds.
///
/// A request whose body streams is not measured: that takes as long as its client sends.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    context: &'a ProxyContext,
    endpoint: Option<&'a Arc<Endpoint>>,
    began: Duration,
    /// Whether policy compares endpoints by it.
    is_compared: bool,
}

impl<'a> Wait<'a> {
    pub(super) fn begin(
        context: &'a ProxyContext,
        endpoint: &'a Arc<Endpoint>,
        outgoing: &Outgoing,
        is_compared: bool,
    ) -> Self {
        let endpoint = outgoing.upload().is_none().then_some(endpoint);
        Self { context, endpoint, began: context.clock.now(), is_compared }
    }

    /// Ends the wait with an answer.
    pub(super) fn answered(mut self, answer: &Answer) {
        let Some(endpoint) = self.endpoint.take() else { return };
        let (took, now) = (answer.took, self.context.clock.now());
        let is_refusal = is_refusal(answer.response.status());
        endpoint
            .stats
            .learn_latency(|known| if is_refusal { known.erred(took, now) } else { known.answered(took, now) });
        if self.is_compared && !is_refusal {
            endpoint.stats.answered_within(took);
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(endpoint) = self.endpoint {
            let now = self.context.clock.now();
            let waited = now.saturating_sub(self.began);
            endpoint.stats.learn_latency(|known| known.waited(waited, now));
        }
    }
}

/// An answer that says the instance could not do it, which may come quicker than doing it.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}
