//! One try, and where policy wants it a second one beside the first when that has not answered in time.
//!
//! The first good answer counts, and the other try is dropped: that closes its connection or resets its stream, which is
//! how an instance hears that nobody waits any more. The second try is one of the service's retry budget, and the last of
//! the request.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::attempt::{Blame, Failure, Outgoing};
use super::body::{Late, within};
use super::forward::{Arrived, Came, Job};
use super::record::Record;
use super::retry::Tries;
use super::stopwatch::is_refusal;
use crate::pick::Pick;
use crate::snapshot::{Endpoint, InFlight};

/// One try of a request.
pub(super) struct Try {
    pub(super) pick: Pick,
    /// The request as it is counted at the picked endpoint.
    pub(super) mine: InFlight,
    pub(super) outgoing: Outgoing,
    /// How long it may take.
    pub(super) limit: Duration,
}

impl Job<'_> {
    /// Makes a try, and one beside it where policy wants that; what came of it, and of which endpoint. What came of
    /// another one is judged already.
    pub(super) async fn one_or_two(&self, tries: &mut Tries, one: Try, record: &mut Record) -> (Pick, Came) {
        self.note_way(&one.pick, record);
        let delay = self
            .hedging_delay()
            .filter(|delay| one.outgoing.is_repeatable && self.may_retry && *delay < one.limit && tries.failed() == 0);
        let Some((delay, copy)) = delay.and_then(|delay| Some((delay, one.outgoing.copy()?))) else {
            let Try { pick, mine, outgoing, limit } = one;
            let upload = outgoing.upload();
            // Pinned here: moved into `within` it would be in this future twice.
            let came = {
                let trying = pin!(self.attempt(&pick.endpoint, mine, outgoing, limit, record.started()));
                within(limit, self.context.config.idle_timeout, upload.as_ref(), trying).await
            };
            let came = match came {
                Ok(came) => Some(came),
                Err(Late::NoAnswer) => None,
                Err(Late::BodyNotTaken) => Some(Err(Failure::not_taken(self.context.config.idle_timeout))),
            };
            return (pick, came);
        };
        // Boxed, as every request would else be as large as two.
        Box::pin(self.race(tries, one, copy, delay, record)).await
    }

    async fn race(
        &self,
        tries: &mut Tries,
        one: Try,
        copy: Outgoing,
        delay: Duration,
        record: &mut Record,
    ) -> (Pick, Came) {
        let Try { pick, mine, outgoing, limit } = one;
        let started = record.started();
        let endpoint = Arc::clone(&pick.endpoint);
        let mut first = pin!(at_most(limit, self.attempt(&endpoint, mine, outgoing, limit, started)));
        tokio::select! {
            biased;
            came = &mut first => return (pick, came),
            () = sleep(delay) => {}
        }
        let Some((second_pick, mine)) = self.beside(tries, &pick, record) else { return (pick, first.await) };
        let second_endpoint = Arc::clone(&second_pick.endpoint);
        let left = limit.saturating_sub(delay);
        let mut second = pin!(at_most(left, self.attempt(&second_endpoint, mine, copy, left, started)));
        let (first_ended, came) = tokio::select! {
            biased;
            came = &mut first => (true, came),
            came = &mut second => (false, came),
        };
        if is_good(&came) {
            let winner = if first_ended { pick } else { second_pick };
            self.end_race(&winner, &endpoint, record);
            return (winner, came);
        }
        let (ended, other) = if first_ended { (pick, second_pick) } else { (second_pick, pick) };
        let other_came = if first_ended { second.await } else { first.await };
        // A bad answer is better than none, and of two the later one counts.
        let is_kept = matches!((&came, &other_came), (Some(Ok(_)), Some(Err(_)) | None));
        let (kept, kept_came, dropped, dropped_came) =
            if is_kept { (ended, came, other, other_came) } else { (other, other_came, ended, came) };
        self.settle(tries, &dropped.endpoint, dropped_came);
        self.end_race(&kept, &endpoint, record);
        (kept, kept_came)
    }

    fn end_race(&self, winner: &Pick, first: &Arc<Endpoint>, record: &mut Record) {
        self.count_hedge(if Arc::ptr_eq(&winner.endpoint, first) { "lost" } else { "won" });
        self.note_way(winner, record);
    }

    /// The endpoint for a try beside the one at `first`, with the request counted there; `None` where there is none or the
    /// budget does not allow it.
    fn beside(&self, tries: &Tries, first: &Pick, record: &mut Record) -> Option<(Pick, InFlight)> {
        let mut beside = tries.clone();
        beside.full(&first.endpoint);
        let (pick, mine) = self.choose(&mut beside).ok()?;
        if self.admission().second_try(record, true).is_err() {
            self.count_hedge("denied");
            return None;
        }
        record.hedged = true;
        Some((pick, mine))
    }

    /// What the try that nobody waits for any more says of its endpoint.
    fn settle(&self, tries: &mut Tries, endpoint: &Arc<Endpoint>, came: Came) {
        match came {
            Some(Ok(Arrived { answer, .. })) => {
                self.judge(endpoint, answer.response.status(), self.context.clock.now());
            }
            Some(Err(failure)) => {
                if let Blame::Endpoint(kind) = failure.blame {
                    tries.fail(self.context, self.snapshot, endpoint, kind, failure.detail);
                }
            }
            None => tries.leave_out(endpoint, "it gave no answer in time"),
        }
    }

    fn hedging_delay(&self) -> Option<Duration> {
        self.snapshot.table.backend(self.service).limits.hedging.map(|hedging| hedging.delay)
    }

    fn count_hedge(&self, result: &'static str) {
        let labels = [("service", self.service.to_owned()), ("result", result.to_owned())];
        metrics::counter!("marram_hedges_total", &labels).increment(1);
    }
}

/// What came within `limit` of a request whose body is at hand.
async fn at_most(limit: Duration, sending: impl Future<Output = Result<Arrived, Failure>>) -> Came {
    timeout(limit, sending).await.ok()
}

/// Whether nothing better can come.
fn is_good(came: &Came) -> bool {
    matches!(came, Some(Ok(Arrived { answer, .. })) if !is_refusal(answer.response.status()))
}
