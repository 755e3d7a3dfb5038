//! Whether new work is refused for want of memory: before the kernel ends the process, and only while that helps.
//!
//! Pure. The limit is `proxy.memory_max`, else what the cgroup or the machine gives.

/// Work is refused from this share of the limit on, in percent: the rest is for what is in flight already.
const REFUSE_AT: u64 = 85;
/// And taken again below this one, so that it does not change with every request.
const TAKE_AT: u64 = 75;

/// The decision, with what it was before.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    limit_bytes: u64,
    is_refusing: bool,
}

impl Pressure {
    /// For a limit in bytes; 0 means that none is known, and nothing is ever refused.
    #[must_use]
    pub const fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, is_refusing: false }
    }

    /// The limit in bytes.
    #[must_use]
    pub const fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Takes in the resident memory and the requests in flight, and says whether new work is refused.
    ///
    /// Memory that is held while nothing is in flight would not come back by refusing: an allocator may keep it, and a
    /// node that refused for ever would be of no use.
    pub const fn look(&mut self, resident_bytes: u64, in_flight: usize) -> bool {
        let percent = if self.is_refusing { TAKE_AT } else { REFUSE_AT };
        let is_high = resident_bytes >= self.limit_bytes / 100 * percent;
        self.is_refusing = self.limit_bytes > 0 && in_flight > 0 && is_high;
        self.is_refusing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_refused_at_85_percent_and_taken_again_below_75() {
        let mut pressure = Pressure::new(1000);
        let looks = [(849, false), (850, true), (800, true), (750, true), (749, false), (849, false), (900, true)];
        for (resident, refused) in looks {
            assert_eq!(pressure.look(resident, 5), refused, "{resident}");
        }
    }

    #[test]
    fn with_nothing_in_flight_work_is_taken_whatever_is_held() {
        let mut pressure = Pressure::new(1000);
        assert!(pressure.look(990, 1));
        assert!(!pressure.look(990, 0));
        assert!(pressure.look(990, 1));
    }

    #[test]
    fn without_a_limit_nothing_is_refused() {
        assert!(!Pressure::new(0).look(u64::MAX, 1000));
    }
}
