//! How much of its weight a newcomer has: it grows, so that empty caches and cold code meet few requests first.

use std::time::Duration;

/// The part of its weight an instance begins with.
const LEAST: f64 = 0.1;

/// The part of its weight that an instance has which has been here for `age`: in proportion to `window`, from a tenth to all.
///
/// This is the formula of Envoy's slow start, max(`min_weight_percent`, (age / window)^(1 / aggression)), with its
/// defaults: an aggression of 1 and at least 10 %.
#[must_use]
pub fn slow_start_factor(age: Duration, window: Duration) -> f64 {
    if age >= window { 1.0 } else { (age.as_secs_f64() / window.as_secs_f64()).max(LEAST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_of_a_newcomer_grows_from_a_tenth_to_all_of_it() {
        let window = Duration::from_secs(30);
        for (seconds, expected) in
            [(0, 0.1), (1, 0.1), (3, 0.1), (6, 0.2), (15, 0.5), (29, 29.0 / 30.0), (30, 1.0), (99, 1.0)]
        {
            let factor = slow_start_factor(Duration::from_secs(seconds), window);
            assert!((factor - expected).abs() < 1e-12, "{seconds} s: {factor}");
        }
        assert!((slow_start_factor(Duration::ZERO, Duration::ZERO) - 1.0).abs() < 1e-12, "no window, no wait");
    }
}
