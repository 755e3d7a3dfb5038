//! The series of finished requests, looked up once for many of them.
//!
//! A look-up makes a key of several labels, copies it and hashes it; for each request that was one part in forty of its
//! processor time. A handle is kept for [`KEPT`] and not for ever: the recorder forgets a histogram into which nothing was
//! recorded for [`IDLE`], and what is recorded into a forgotten one is lost. Something is recorded right after a look-up, so
//! a handle is not forgotten before its time is over, but for a scrape between these two.

use std::collections::HashMap;
use std::time::Duration;

use hyper::StatusCode;
use metrics::{Counter, Histogram};

use crate::telemetry::metrics::IDLE;

/// How long a handle is used before it is looked up again.
const KEPT: Duration = Duration::from_secs(60);
const _: () = assert!(KEPT.as_secs() < IDLE.as_secs(), "a kept handle would write into nothing");
/// Services with handles; where there is one more all are looked up again.
const SERVICES_MAX: usize = 1024;

/// Which side of the mesh a request is seen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From an application of this machine into the mesh.
    Outbound,
    /// From a peer to an instance of this machine.
    Inbound,
}

impl Direction {
    /// The label's value.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Handles of one data thread.
#[derive(Default)]
pub(super) struct Meters {
    outbound: HashMap<String, Meter>,
    inbound: HashMap<String, Meter>,
}

/// What is recorded of the requests of one service in one direction.
struct Meter {
    since: Duration,
    duration: Histogram,
    /// By the class of the code.
    finished: [Option<Counter>; CLASSES.len()],
}

/// Values of the label `code_class`; the first is that of a request without an answer.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Meters {
    /// Records a request of `service` that took `duration` and ended at `now`.
    pub(super) fn finished(
        &mut self,
        (service, direction): (&str, Direction),
        status: Option<StatusCode>,
        duration: Duration,
        now: Duration,
    ) {
        let meters = match direction {
            Direction::Outbound => &mut self.outbound,
            Direction::Inbound => &mut self.inbound,
        };
        let is_good = |meter: &&mut Meter| now.saturating_sub(meter.since) < KEPT;
        if let Some(meter) = meters.get_mut(service).filter(is_good) {
            return meter.record(service, direction, status, duration);
        }
        if meters.len() >= SERVICES_MAX {
            meters.clear();
        }
        let mut meter = Meter::of(service, direction, now);
        meter.record(service, direction, status, duration);
        meters.insert(service.to_owned(), meter);
    }
}

impl Meter {
    fn of(service: &str, direction: Direction, now: Duration) -> Self {
        let duration = metrics::histogram!(
            "marram_request_duration_seconds",
            "service" => service.to_owned(), "direction" => direction.as_str()
        );
        Self { since: now, duration, finished: [const { None }; CLASSES.len()] }
    }

    fn record(&mut self, service: &str, direction: Direction, status: Option<StatusCode>, duration: Duration) {
        self.duration.record(duration.as_secs_f64());
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100).clamp(1, CLASSES.len() - 1));
        let Some((slot, class)) = self.finished.get_mut(class).zip(CLASSES.get(class)) else { return };
        let counter = slot.get_or_insert_with(|| {
            metrics::counter!(
                "marram_requests_total",
                "service" => service.to_owned(), "direction" => direction.as_str(), "code_class" => *class
            )
        });
        counter.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn requests_are_counted_by_service_direction_and_class_whether_their_series_was_at_hand_or_not() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let mut meters = Meters::default();
        metrics::with_local_recorder(&recorder, || {
            for (service, direction) in
                [("a", Direction::Outbound), ("a", Direction::Inbound), ("b", Direction::Outbound)]
            {
                for code in [200, 204, 304, 503, 999] {
                    meters.finished((service, direction), StatusCode::from_u16(code).ok(), SECOND, SECOND);
                }
                meters.finished((service, direction), None, SECOND, SECOND);
            }
        });
        let text = recorder.handle().render();
        for (labels, count) in [
            ("service=\"a\",direction=\"outbound\",code_class=\"2xx\"", 2),
            ("service=\"a\",direction=\"inbound\",code_class=\"3xx\"", 1),
            ("service=\"a\",direction=\"inbound\",code_class=\"5xx\"", 2),
            ("service=\"b\",direction=\"outbound\",code_class=\"none\"", 1),
        ] {
            assert!(text.contains(&format!("marram_requests_total{{{labels}}} {count}\n")), "{labels} {count}: {text}");
        }
        assert!(
            text.contains("marram_request_duration_seconds_count{service=\"a\",direction=\"inbound\"} 6\n"),
            "{text}"
        );
    }

    #[test]
    fn a_series_is_looked_up_again_after_its_time_because_the_recorder_may_have_forgotten_it() {
        let (before, after) = (PrometheusBuilder::new().build_recorder(), PrometheusBuilder::new().build_recorder());
        let mut meters = Meters::default();
        let mut at = |recorder, now| {
            metrics::with_local_recorder(recorder, || {
                meters.finished(("a", Direction::Outbound), Some(StatusCode::OK), SECOND, now);
            });
        };
        at(&before, SECOND);
        at(&after, SECOND * 2);
        at(&after, SECOND + KEPT);
        let counted = |text: String| {
            text.contains("marram_requests_total{service=\"a\",direction=\"outbound\",code_class=\"2xx\"} 2\n")
        };
        assert!(counted(before.handle().render()), "the second by the handle of the first");
        assert!(after.handle().render().contains("code_class=\"2xx\"} 1\n"), "and the third by a new one");
    }

    #[test]
    fn handles_do_not_pile_up_with_services_that_come_and_go() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let mut meters = Meters::default();
        metrics::with_local_recorder(&recorder, || {
            for number in 0..=SERVICES_MAX {
                meters.finished((&number.to_string(), Direction::Inbound), None, SECOND, SECOND);
            }
        });
        assert_eq!(meters.inbound.len(), 1);
    }
}
