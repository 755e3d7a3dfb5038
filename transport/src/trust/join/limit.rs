//! How many wrong secrets one source may try.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Wrong tries a source has in each window.
pub(super) const TRIES_MAX: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Most sources remembered; beyond it the half whose windows began first is forgotten.
const SOURCES_MAX: usize = 4096;

/// Counts wrong tries by source address, an IPv6 /64 being one source. A window begins with a source's first wrong try.
#[derive(Debug, Default)]
pub(super) struct TryLimiter {
    sources: BTreeMap<IpAddr, Tries>,
}

#[derive(Debug, Clone, Copy)]
struct Tries {
    since: Duration,
    wrong: u32,
}

impl TryLimiter {
    /// Whether this source has used up its tries.
    pub(super) fn is_blocked(&self, source: IpAddr, now: Duration) -> bool {
        let tries = self.sources.get(&network(source));
        tries.is_some_and(|tries| tries.wrong >= TRIES_MAX && now.saturating_sub(tries.since) < WINDOW)
    }

    /// Notes a wrong try; true when it was the last one allowed.
    pub(super) fn wrong(&mut self, source: IpAddr, now: Duration) -> bool {
        let source = network(source);
        if !self.sources.contains_key(&source) && self.sources.len() >= SOURCES_MAX {
            self.make_room(now);
        }
        let tries = self.sources.entry(source).or_insert(Tries { since: now, wrong: 0 });
        if now.saturating_sub(tries.since) >= WINDOW {
            *tries = Tries { since: now, wrong: 0 };
        }
        tries.wrong = tries.wrong.saturating_add(1);
        tries.wrong >= TRIES_MAX
    }

    fn make_room(&mut self, now: Duration) {
        self.sources.retain(|_, tries| now.saturating_sub(tries.since) < WINDOW);
        if self.sources.len() >= SOURCES_MAX {
            // Half of them at once, so that a flood of sources pays for sorting only now and then.
            let mut begun: Vec<Duration> = self.sources.values().map(|tries| tries.since).collect();
            let (_, middle, _) = begun.select_nth_unstable(SOURCES_MAX / 2);
            let middle = *middle;
            self.sources.retain(|_, tries| tries.since > middle);
        }
    }
}

/// One household or host: an IPv4 address, or the /64 that a single IPv6 host usually has to itself.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn five_wrong_tries_block_one_source_for_a_minute() {
        let mut limiter = TryLimiter::default();
        let at = Duration::from_secs;
        let last: Vec<bool> = (0..5).map(|second| limiter.wrong(A, at(second))).collect();
        assert_eq!(last, [false, false, false, false, true]);
        assert!(limiter.is_blocked(A, at(59)));
        assert!(!limiter.is_blocked(B, at(5)));
        assert!(!limiter.is_blocked(A, at(60)));
        assert!(!limiter.wrong(A, at(61)), "a new window begins");
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let mut limiter = TryLimiter::default();
        for host in 0..5_u128 {
            let address = Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | host);
            limiter.wrong(address.into(), Duration::ZERO);
        }
        assert!(limiter.is_blocked("2001:db8::99".parse().unwrap(), Duration::ZERO));
        assert!(!limiter.is_blocked("2001:db8:0:1::1".parse().unwrap(), Duration::ZERO));
    }

    #[test]
    fn sources_remembered_are_bounded() {
        let mut limiter = TryLimiter::default();
        for host in 0..10_000_u32 {
            limiter.wrong(IpAddr::V4(host.into()), Duration::from_millis(host.into()));
            assert!(limiter.sources.len() <= SOURCES_MAX, "{host}");
        }
        assert!(limiter.sources.len() >= SOURCES_MAX / 2 - 1);
        assert!(limiter.sources.contains_key(&IpAddr::V4(9_999_u32.into())));
    }

    #[test]
    fn a_flood_within_one_moment_is_bounded_too() {
        let mut limiter = TryLimiter::default();
        for host in 0..10_000_u32 {
            limiter.wrong(IpAddr::V4(host.into()), Duration::ZERO);
            assert!(limiter.sources.len() <= SOURCES_MAX, "{host}");
        }
    }
}
