//! What one node lets happen between itself and one service: how much at once, how often, how often again, and which
//! faults it makes itself.
//!
//! Plain values, as [`crate::BackendPolicy`] carries them; who counts is the data path. A limit of `None` is left to the
//! node, which derives it from its own limits.

use std::time::Duration;

/// Everything a `BackendTrafficPolicy` says of failures and of too much.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ServiceLimits {
    /// How many requests may be sent a second time.
    pub retries: RetryConstraint,
    /// How much may be under way at once.
    pub breaker: CircuitBreaker,
    /// How many requests may begin in a time at this node.
    pub rate: Option<RateLimit>,
    /// How many may begin at all nodes together.
    pub fleet_rate: Option<RateLimit>,
    /// What is made to fail on purpose.
    pub faults: FaultInjection,
    /// When a request that waits is sent a second time beside the first.
    pub hedging: Option<Hedging>,
}

/// How many of the requests for a service may be second tries: the retry budget of Gateway API (GEP-3388).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConstraint {
    /// Of everything sent within `interval`, first tries and further ones, no more than so many in a hundred are further
    /// ones.
    pub percent: u32,
    /// What is looked back at.
    pub interval: Duration,
    /// So many further tries are made whatever the percentage says,
    pub min_count: u32,
    /// within this time.
    pub min_interval: Duration,
}

impl RetryConstraint {
    /// Whether one more is within the percentage, after so many first and further tries.
    #[must_use]
    pub fn is_within_percentage(&self, firsts: u64, further: u64) -> bool {
        let further = further.saturating_add(1);
        further.saturating_mul(100) <= u64::from(self.percent).saturating_mul(firsts.saturating_add(further))
    }
}

impl Default for RetryConstraint {
    fn default() -> Self {
        Self { percent: 20, interval: Duration::from_secs(10), min_count: 10, min_interval: Duration::from_secs(1) }
    }
}

/// How much of one service a node has under way at once. Names and meaning follow Envoy Gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CircuitBreaker {
    /// Connections in use: a request over HTTP/1.1, a tunnel and a switched protocol each take one.
    pub max_connections: Option<u32>,
    /// Requests that wait because all connections are in use.
    pub max_pending_requests: Option<u32>,
    /// Requests from their beginning to the end of their answer.
    pub max_parallel_requests: Option<u32>,
    /// The same, of those that were sent a second time.
    pub max_parallel_retries: Option<u32>,
    /// Connections in use to one instance; `None` for no limit of its own.
    pub endpoint_connections: Option<u32>,
    /// Requests to one instance; `None` for no limit of its own.
    pub endpoint_requests: Option<u32>,
}

impl CircuitBreaker {
    /// Requests and tunnels that one instance may have from here; each takes a connection where `holds_connection`.
    #[must_use]
    pub fn endpoint_limit(&self, holds_connection: bool) -> Option<(u32, &'static str)> {
        let requests = self.endpoint_requests.map(|limit| (limit, "circuitBreaker.perEndpoint.maxParallelRequests"));
        let connections = self.endpoint_connections.filter(|_| holds_connection);
        let connections = connections.map(|limit| (limit, "circuitBreaker.perEndpoint.maxConnections"));
        requests.into_iter().chain(connections).min_by_key(|(limit, _)| *limit)
    }
}

/// A token bucket: `requests` per `interval`, and `burst` of them at once after a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// At least 1.
    pub requests: u32,
    /// Above zero.
    pub interval: Duration,
    /// At least 1.
    pub burst: u32,
}

impl RateLimit {
    /// How many in a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        f64::from(self.requests) / self.interval.as_secs_f64()
    }
}

/// What a node does to requests on purpose, to see how they take it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FaultInjection {
    /// Which requests wait, and how long.
    pub delay: Option<FaultDelay>,
    /// Which requests are answered with an error.
    pub abort: Option<FaultAbort>,
}

/// Some requests wait before they are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultDelay {
    /// How long.
    pub fixed: Duration,
    /// Which part of all requests, within 0 and 1.
    pub share: f64,
}

/// Some requests are answered with an error and not sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultAbort {
    /// What a request is answered with that is not of gRPC, or without a `grpc_status`; within 200 and 599.
    pub http_status: Option<u16>,
    /// What a request of gRPC is answered with; within 0 and 16.
    pub grpc_status: Option<u16>,
    /// Which part of all requests, within 0 and 1.
    pub share: f64,
}

/// A request that may be repeated is sent to a second instance when the first has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hedging {
    /// After this wait.
    pub delay: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_everything_sent_one_in_five_may_be_a_second_try() {
        let rule = RetryConstraint::default();
        for (firsts, further, expected) in
            [(0, 0, false), (3, 0, false), (4, 0, true), (4, 1, false), (800, 199, true), (800, 200, false)]
        {
            assert_eq!(rule.is_within_percentage(firsts, further), expected, "{further} beside {firsts}");
        }
        let none = RetryConstraint { percent: 0, ..rule };
        assert!(!none.is_within_percentage(1_000_000, 0));
        let all = RetryConstraint { percent: 100, ..rule };
        assert!(all.is_within_percentage(0, 1_000_000));
    }

    #[test]
    fn the_tighter_limit_of_an_instance_holds_and_connections_count_where_a_request_holds_one() {
        let both =
            CircuitBreaker { endpoint_connections: Some(3), endpoint_requests: Some(5), ..CircuitBreaker::default() };
        assert_eq!(both.endpoint_limit(true), Some((3, "circuitBreaker.perEndpoint.maxConnections")));
        assert_eq!(both.endpoint_limit(false), Some((5, "circuitBreaker.perEndpoint.maxParallelRequests")));
        assert_eq!(CircuitBreaker::default().endpoint_limit(true), None);
    }
}
