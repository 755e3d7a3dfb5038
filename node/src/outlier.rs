//! Instances that answer, but with errors: when one is left out, and for how long.
//!
//! A process that fails every request fails them fast, and a fast answer attracts. So a few errors in a row put it out
//! for a while; when it comes back, its first answer decides: good, and all is forgotten; an error, and it is out for
//! twice as long. What each node sees counts for this node alone: one client's bad requests must not take an instance
//! from the whole mesh. No answer in the time that policy or configuration sets is an error like any other: an instance
//! that hangs would cost every request sent there its whole time.
//!
//! What fails now and then, or is slow, shows only beside others: once in each interval the endpoints of a service are
//! compared ([`judge`]), by what this node counted of each ([`Window`]).

use std::time::Duration;

use policy::Outlier;

mod peers;
mod turn;
mod window;

pub use peers::{Finding, Seen, Verdict, judge};
pub use turn::{Ejection, turn};
pub use window::Window;

/// The longest time an instance is left out at once.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// Errors in a row of one instance. Fits in 64 bits ([`Self::to_bits`]), for an atomic; the default is none.
///
/// `now` is monotonic, from any fixed start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streak {
    errors: u16,
    /// Times it was left out without a good answer since.
    ejections: u8,
    /// When the first of the errors came, modulo 49 days.
    first_ms: u32,
}

impl Streak {
    /// An error at `now`: the streak as it is then, and for how long the instance is to be left out, if it is.
    #[must_use]
    pub fn erred(self, now: Duration, rule: &Outlier) -> (Self, Option<Duration>) {
        if rule.consecutive_errors == 0 {
            // Whoever came back from being left out for something else has still to answer well.
            return (Self { errors: 0, ..self }, None);
        }
        let now_ms = wrapped_ms(now);
        let since = Duration::from_millis(u64::from(now_ms.wrapping_sub(self.first_ms)));
        let begins = self.errors == 0 || since > rule.interval;
        let (errors, first_ms) = if begins { (1, now_ms) } else { (self.errors.saturating_add(1), self.first_ms) };
        let limit = if self.ejections > 0 { 1 } else { rule.consecutive_errors };
        if u32::from(errors) < limit {
            return (Self { errors, first_ms, ..self }, None);
        }
        let (streak, out_for) = Self { first_ms, ..self }.left_out(0, rule);
        (streak, Some(out_for))
    }

    /// It is left out: the streak as it is then, and for how long. It was left out `times` before for what it is left out
    /// for now, though it may have answered well since.
    #[must_use]
    pub fn left_out(self, times: u32, rule: &Outlier) -> (Self, Duration) {
        let times = u8::try_from(times).unwrap_or(u8::MAX).max(self.ejections);
        let doubled = rule.base_ejection.saturating_mul(2_u32.saturating_pow(u32::from(times)));
        let out_for = doubled.min(EJECTION_MAX.max(rule.base_ejection));
        (Self { errors: 0, ejections: times.saturating_add(1), ..self }, out_for)
    }

    /// Whether it was left out, and has not answered well since.
    #[must_use]
    pub const fn was_left_out(self) -> bool {
        self.ejections > 0
    }

    /// The value in 64 bits; those of the default are zero.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.first_ms) << 32 | u64::from(self.ejections) << 16 | u64::from(self.errors)
    }

    /// The value that gave these bits.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let part = |shift: u32, mask: u64| bits >> shift & mask;
        Self {
            errors: u16::try_from(part(0, 0xffff)).unwrap_or(0),
            ejections: u8::try_from(part(16, 0xff)).unwrap_or(0),
            first_ms: u32::try_from(part(32, 0xffff_ffff)).unwrap_or(0),
        }
    }
}

/// Whether one more of `all` instances may be left out for errors when `out` of them are.
#[must_use]
pub fn may_leave_out(out: usize, all: usize, rule: &Outlier) -> bool {
    let percent = usize::try_from(rule.max_ejection_percent).unwrap_or(100);
    // Never the last one, whatever the part.
    out + 1 < all.max(1) && (out + 1) * 100 <= all * percent
}

fn wrapped_ms(now: Duration) -> u32 {
    u32::try_from(now.as_millis() & u128::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn after(streak: Streak, times: &[Duration], rule: &Outlier) -> (Streak, Vec<Option<Duration>>) {
        let mut streak = streak;
        let mut told = Vec::new();
        for at in times {
            let (next, out) = Streak::from_bits(streak.to_bits()).erred(*at, rule);
            streak = next;
            told.push(out);
        }
        (streak, told)
    }

    #[test]
    fn five_errors_in_a_row_within_ten_seconds_leave_it_out_for_ten() {
        let rule = Outlier::default();
        let second = |n: u64| NOW + Duration::from_secs(n);
        let out = Some(Duration::from_secs(10));
        let (_, told) = after(Streak::default(), &[0, 1, 2, 3, 4].map(second), &rule);
        assert_eq!(told, [None, None, None, None, out]);
        let (_, told) = after(Streak::default(), &[0, 3, 6, 9, 12, 15, 16, 17, 18].map(second), &rule);
        let none = None;
        assert_eq!(
            told,
            [none, none, none, none, none, none, none, none, out],
            "the fifth came too late, one streak on"
        );
    }

    #[test]
    fn one_that_comes_back_and_errs_at_once_is_out_for_twice_as_long_up_to_a_limit() {
        let rule = Outlier { consecutive_errors: 1, ..Outlier::default() };
        let (streak, told) = after(Streak::default(), &[NOW; 7], &rule);
        let seconds: Vec<u64> = told.into_iter().flatten().map(|out| out.as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300]);
        let five = Outlier::default();
        assert_eq!(streak.erred(NOW, &five).1, Some(Duration::from_secs(300)), "its first error after that decides");
        assert_eq!(Streak::default().erred(NOW, &five).1, None, "after a good answer all is forgotten");
    }

    #[test]
    fn nobody_is_left_out_where_policy_says_never() {
        let never = Outlier { consecutive_errors: 0, ..Outlier::default() };
        let (streak, told) = after(Streak::default(), &[NOW; 20], &never);
        assert_eq!((streak, told), (Streak::default(), vec![None; 20]));
    }

    #[test]
    fn an_error_after_a_return_is_no_good_answer_whatever_the_number_in_a_row() {
        let never = Outlier { consecutive_errors: 0, ..Outlier::default() };
        let (streak, _) = Streak::default().left_out(0, &never);
        let (streak, out_for) = streak.erred(NOW, &never);
        assert!(streak.was_left_out() && out_for.is_none());
    }

    #[test]
    fn no_more_than_a_part_is_left_out_and_never_the_last_one() {
        let rule = Outlier::default();
        for (out, all, expected) in
            [(0, 1, false), (0, 2, true), (1, 2, false), (0, 3, true), (1, 3, false), (1, 4, true)]
        {
            assert_eq!(may_leave_out(out, all, &rule), expected, "{out} of {all}");
        }
        let everybody = Outlier { max_ejection_percent: 100, ..rule };
        assert!(may_leave_out(2, 4, &everybody));
        assert!(!may_leave_out(3, 4, &everybody));
        assert!(!may_leave_out(0, 4, &Outlier { max_ejection_percent: 0, ..rule }));
    }
}
