//! How long one place takes to answer, quick to believe the worst and slow to forget it.

use std::time::Duration;

/// Milliseconds within which a peak falls to 1/e of what it was above the answers since.
const DECAY_MS: f64 = 10_000.0;
/// What nothing but errors counts as at least where no answer is known.
const PENALTY: Duration = Duration::from_millis(250);

/// A moving average of latency that rises at once to a peak and decays with a time constant of ten seconds: the peak
/// EWMA of Finagle's load balancer (`com.twitter.finagle.loadbalancer.PeakEwma`), which Linkerd uses too.
///
/// [`Default`] is a place of which nothing is known. Without answers the estimate falls towards zero, so that a place
/// that was slow once is tried again after a while: one ten times slower than the others after 23 s without a request.
///
/// What is no good answer never makes a place look quicker, however fast it came; which of the methods is right:
///
/// | what happened | method |
/// |---|---|
/// | an answer | [`Self::answered`] |
/// | an answer that says the place could not do it | [`Self::erred`] |
/// | nobody waited any longer | [`Self::waited`] |
/// | no answer, and the place is to blame | none: whoever leaves it out for a while forgets what it was before ([`Default`]) |
///
/// `now` is monotonic, from any fixed start; a `now` before the last one counts as that one. Values are kept in
/// milliseconds and fit in 64 bits ([`Self::to_bits`]), for an atomic: 32 bits of latency, and the time of the last
/// answer modulo 49 days, so an estimate that nobody touched for weeks may be older than it looks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PeakEwma {
    /// At `at_ms`; zero where nothing is known.
    latency_ms: f32,
    at_ms: u32,
}

impl PeakEwma {
    /// An answer came after `latency`: above the estimate it is the estimate; below, the estimate moves towards it, by
    /// the more the longer ago the last one came.
    #[must_use]
    pub fn answered(self, latency: Duration, now: Duration) -> Self {
        let latency_ms = millis(latency);
        let kept = self.kept(now);
        let known_ms = f64::from(self.latency_ms);
        let decayed_ms = known_ms * kept;
        if latency_ms >= decayed_ms {
            self.at(latency_ms, now)
        } else {
            self.at(decayed_ms + latency_ms * (1.0 - kept), now)
        }
    }

    /// The place answered after `waited` that it could not do it. The estimate stays where it was at the last answer, or
    /// rises to `waited`: a place that only refuses keeps its rank and cannot win by being quick at it. Where nothing
    /// was known it counts as slow, 250 ms at least.
    #[must_use]
    pub fn erred(self, waited: Duration, now: Duration) -> Self {
        let held_ms = if self.is_known() { f64::from(self.latency_ms) } else { millis(PENALTY) };
        self.at(held_ms.max(millis(waited)), now)
    }

    /// Nobody waited any longer, after `waited`: all that is known is that an answer takes at least that long. A short
    /// wait tells nothing of a place that is not known.
    #[must_use]
    pub fn waited(self, waited: Duration, now: Duration) -> Self {
        let least_ms = self.latency_ms(now).unwrap_or(millis(PENALTY));
        if millis(waited) >= least_ms { self.at(millis(waited), now) } else { self }
    }

    /// The estimate at `now` in milliseconds, above zero; `None` where nothing is known.
    #[inline]
    #[must_use]
    pub fn latency_ms(self, now: Duration) -> Option<f64> {
        self.is_known().then(|| (f64::from(self.latency_ms) * self.kept(now)).max(LEAST_MS))
    }

    /// The value in 64 bits; those of the default are zero.
    #[inline]
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.latency_ms.to_bits()) << 32 | u64::from(self.at_ms)
    }

    /// The value that gave these bits. Bits of no value give one of which nothing is known.
    #[inline]
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let [high, low] = [bits >> 32, bits & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(0));
        let latency_ms = f32::from_bits(high);
        if latency_ms.is_finite() && latency_ms > 0.0 { Self { latency_ms, at_ms: low } } else { Self::default() }
    }

    #[inline]
    fn is_known(self) -> bool {
        self.latency_ms > 0.0
    }

    /// How much of the estimate is left at `now`: within 0 and 1.
    #[inline]
    fn kept(self, now: Duration) -> f64 {
        let since_ms = wrapped_ms(now).wrapping_sub(self.at_ms);
        // More than half of the circle ahead is behind: another thread was a moment later than this one.
        let since_ms = if since_ms > u32::MAX / 2 { 0 } else { since_ms };
        // As exact as the latency itself is kept: this is asked for every candidate of every decision.
        #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough")]
        let rate = (-1.0 / DECAY_MS) as f32;
        #[expect(clippy::cast_precision_loss, reason = "seven digits are enough")]
        let exponent = since_ms as f32 * rate;
        f64::from(exponent.exp())
    }

    fn at(self, latency_ms: f64, now: Duration) -> Self {
        let now_ms = wrapped_ms(now);
        let is_later = now_ms.wrapping_sub(self.at_ms) <= u32::MAX / 2;
        #[expect(clippy::cast_possible_truncation, reason = "bounded to what fits; a ten-millionth is lost")]
        let latency_ms = latency_ms.clamp(LEAST_MS, MOST_MS) as f32;
        Self { latency_ms, at_ms: if is_later || !self.is_known() { now_ms } else { self.at_ms } }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Without 128 bits, which [`Duration::as_millis`] takes: this is asked for every candidate of every decision.
#[inline]
fn wrapped_ms(now: Duration) -> u32 {
    let ms = now.as_secs().wrapping_mul(1000).wrapping_add(u64::from(now.subsec_millis()));
    u32::try_from(ms & u64::from(u32::MAX)).unwrap_or(0)
}

/// A microsecond: nothing answers sooner, and quotients of two estimates stay numbers.
const LEAST_MS: f64 = 1e-3;
/// A month.
const MOST_MS: f64 = 2.6e9;

#[cfg(test)]
mod tests;
