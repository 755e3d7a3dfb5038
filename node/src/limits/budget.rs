//! The retry budget: how many of the last requests were second tries.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use policy::RetryConstraint;

use super::whole_ns;

/// How many parts a window has: what is looked back at is the window, less at most one part of it.
const SLOTS: usize = 10;
/// Bits of a slot for its number, first tries and further ones; together 64.
const FIRST_BITS: u32 = 28;
const FURTHER_BITS: u32 = 20;
const NUMBER_MASK: u64 = 0xffff;

/// Counts what was sent to one service. A further try is allowed while further tries are within the percentage of
/// everything sent in the interval (Gateway API, GEP-3388), or below the least number in its own interval.
#[derive(Debug, Default)]
pub struct RetryBudget {
    sent: Window,
    /// Further tries alone, in the other interval.
    further: Window,
}

impl RetryBudget {
    /// A request is sent for the first time.
    pub fn begun(&self, rule: &RetryConstraint, now: Duration) {
        self.sent.add(rule.interval, now, One::First);
    }

    /// Whether it may be sent once more; then that is counted.
    pub fn take(&self, rule: &RetryConstraint, now: Duration) -> bool {
        let (firsts, further) = self.sent.sums(rule.interval, now);
        let lately = self.further.sums(rule.min_interval, now).1;
        if !rule.is_within_percentage(firsts, further) && lately >= u64::from(rule.min_count) {
            return false;
        }
        self.sent.add(rule.interval, now, One::Further);
        self.further.add(rule.min_interval, now, One::Further);
        true
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum One {
    First,
    Further,
}

/// Two sums over the last `interval`, in slots that are used again and again. A slot holds the number of its turn (modulo
/// 65,536), so one that nobody touched since counts nothing.
#[derive(Debug)]
struct Window {
    slots: [AtomicU64; SLOTS],
}

impl Default for Window {
    fn default() -> Self {
        // No slot has this number at the start, whatever the time.
        Self { slots: array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Window {
    fn add(&self, interval: Duration, now: Duration, one: One) {
        let turn = turn(interval, now);
        let Some(slot) = usize::try_from(turn % SLOTS as u64).ok().and_then(|at| self.slots.get(at)) else { return };
        slot.update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            let (number, firsts, further) = parts(bits);
            let (firsts, further) = if number == mark(turn) { (firsts, further) } else { (0, 0) };
            let (firsts, further) = match one {
                One::First => (firsts + 1, further),
                One::Further => (firsts, further + 1),
            };
            whole(mark(turn), firsts, further)
        });
    }

    fn sums(&self, interval: Duration, now: Duration) -> (u64, u64) {
        let turn = turn(interval, now);
        let marks = array::from_fn::<u64, SLOTS, _>(|back| mark(turn.saturating_sub(back as u64)));
        let mut sums = (0, 0);
        for slot in &self.slots {
            let (number, firsts, further) = parts(slot.load(Ordering::Relaxed));
            if marks.contains(&number) {
                sums = (sums.0 + firsts, sums.1 + further);
            }
        }
        sums
    }
}

/// Which turn of its slot it is; the first is not zero, which an unused slot has.
fn turn(interval: Duration, now: Duration) -> u64 {
    let part = (whole_ns(interval) / SLOTS as u64).max(1);
    (whole_ns(now) / part).saturating_add(SLOTS as u64)
}

/// The turn as a slot holds it, never zero.
const fn mark(turn: u64) -> u64 {
    let mark = turn & NUMBER_MASK;
    if mark == 0 { NUMBER_MASK } else { mark }
}

const fn parts(bits: u64) -> (u64, u64, u64) {
    let further = bits & ((1 << FURTHER_BITS) - 1);
    let firsts = bits >> FURTHER_BITS & ((1 << FIRST_BITS) - 1);
    (bits >> (FIRST_BITS + FURTHER_BITS), firsts, further)
}

/// Sums that do not fit stay at their most.
fn whole(number: u64, firsts: u64, further: u64) -> u64 {
    let firsts = firsts.min((1 << FIRST_BITS) - 1);
    let further = further.min((1 << FURTHER_BITS) - 1);
    number << (FIRST_BITS + FURTHER_BITS) | firsts << FURTHER_BITS | further
}
