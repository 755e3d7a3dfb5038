//! Whether UDP gets through to a peer, as far as its links have shown, and what follows for dialling.
//!
//! QUIC is used wherever it works. TCP comes in when a QUIC handshake has had its time without an answer, or when an
//! established QUIC link falls silent; then QUIC is tried again, after 10 s at first and at most every minute, and
//! takes over as soon as it works. Both ends judge for themselves: whoever finds UDP blocked opens the TCP link, and
//! the other one accepts that verdict, as its own packets may be getting through.

use std::time::Duration;

use super::config::{LinksConfig, Transport};
use crate::carrier::Carrier;
use crate::frame::Purpose;

/// What QUIC is given when both are dialled because UDP may be blocked: where it works, it should be it.
const HEAD_START_IN_DOUBT: Duration = Duration::from_millis(100);
/// Packets without an answer before a link counts as silent; one or two may have been acknowledgements, which get none.
const UNANSWERED_MIN: u64 = 3;
/// How long a new QUIC link is believed in: a TCP link that comes up meanwhile was dialled before it was there.
pub(crate) const FRESH: Duration = Duration::from_secs(5);

/// Which carriers a dial tries, and after what pause each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Approach {
    pub(crate) quic: Option<Duration>,
    pub(crate) tcp: Option<Duration>,
}

impl Approach {
    /// To an address of which nothing is known.
    pub(crate) const fn to_stranger(config: &LinksConfig) -> Self {
        match config.transport {
            Transport::Auto => Self { quic: Some(Duration::ZERO), tcp: Some(config.tcp_head_start) },
            Transport::Quic => Self::QUIC,
            Transport::Tcp => Self::TCP,
        }
    }

    /// QUIC alone.
    pub(crate) const QUIC: Self = Self { quic: Some(Duration::ZERO), tcp: None };

    /// TCP alone.
    pub(crate) const TCP: Self = Self { quic: None, tcp: Some(Duration::ZERO) };
}

/// What is known of UDP to one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It works, or nothing speaks against it. A silent link leads out.
    #[default]
    Open,
    /// A link has fallen silent. A sign of life or a link that comes up leads out.
    Suspected,
    /// The peer is reached over TCP. A QUIC link that comes up leads out.
    Blocked {
        /// When QUIC is to be tried again.
        retry_at: Duration,
        /// How long that took.
        pause: Duration,
    },
}

impl Reach {
    /// How to dial this peer. `is_linked`: whether there is a control link that works.
    pub(crate) const fn approach(self, config: &LinksConfig, purpose: Purpose, is_linked: bool) -> Approach {
        if !matches!(config.transport, Transport::Auto) {
            return Approach::to_stranger(config);
        }
        match (self, purpose) {
            // Somebody waits for it, and the control link has shown what works.
            (Self::Open, Purpose::Data) if is_linked => Approach::QUIC,
            (Self::Open, _) => Approach::to_stranger(config),
            (Self::Blocked { .. }, Purpose::Data) if is_linked => Approach::TCP,
            (Self::Suspected | Self::Blocked { .. }, _) => {
                Approach { quic: Some(Duration::ZERO), tcp: Some(HEAD_START_IN_DOUBT) }
            }
        }
    }

    /// A control link is in use now. `chance` in `0..1` spreads the next try of a fleet.
    pub(crate) fn handle_link(&mut self, carrier: Carrier, config: &LinksConfig, now: Duration, chance: f64) {
        *self = match (carrier, *self) {
            (Carrier::Quic, _) => Self::Open,
            (Carrier::Tcp, Self::Blocked { retry_at, pause }) => Self::Blocked { retry_at, pause },
            (Carrier::Tcp, Self::Open | Self::Suspected) => Self::blocked(config.udp_retry_min, now, chance),
        };
    }

    /// All QUIC links of the peer have fallen silent, or one has been heard again. Whether that is news.
    pub(crate) fn handle_silence(&mut self, is_silent: bool) -> bool {
        match (*self, is_silent) {
            (Self::Open, true) => {
                *self = Self::Suspected;
                true
            }
            (Self::Suspected, false) => {
                *self = Self::Open;
                true
            }
            (Self::Open, false) | (Self::Suspected, true) | (Self::Blocked { .. }, _) => false,
        }
    }

    /// Whether QUIC is to be tried again. If so, the next try is put off already.
    pub(crate) fn take_retry(&mut self, config: &LinksConfig, now: Duration, chance: f64) -> bool {
        match *self {
            Self::Blocked { retry_at, pause } if now >= retry_at => {
                *self = Self::blocked((pause * 2).min(config.udp_retry_max), now, chance);
                true
            }
            Self::Open | Self::Suspected | Self::Blocked { .. } => false,
        }
    }

    pub(crate) const fn is_suspected(self) -> bool {
        matches!(self, Self::Suspected)
    }

    fn blocked(pause: Duration, now: Duration, chance: f64) -> Self {
        Self::Blocked { retry_at: now + pause.mul_f64(0.75 + 0.25 * chance.clamp(0.0, 1.0)), pause }
    }
}

/// Notices when packets of a QUIC connection get no answer any more.
#[derive(Debug, Default)]
pub(crate) struct SilenceWatch {
    /// Packets sent when the last one was heard.
    sent: u64,
    heard: u64,
    heard_at: Option<Duration>,
    unanswered_since: Option<Duration>,
}

impl SilenceWatch {
    /// Takes the totals of a connection.
    pub(crate) fn observe(&mut self, now: Duration, sent: u64, heard: u64) {
        if heard != self.heard || self.heard_at.is_none() {
            *self = Self { sent, heard, heard_at: Some(now), unanswered_since: None };
        } else if sent >= self.sent + UNANSWERED_MIN {
            // The first of them went out before it was noticed, so the silence is a little older than this.
            self.unanswered_since.get_or_insert(now);
        }
    }

    /// Whether nothing has answered for so long.
    pub(crate) fn is_silent(&self, now: Duration, limit: Duration) -> bool {
        self.unanswered_since.is_some_and(|since| now.saturating_sub(since) >= limit)
    }

    /// When the peer was last heard.
    pub(crate) const fn heard_at(&self) -> Option<Duration> {
        self.heard_at
    }

    /// Whether the peer was heard within this time.
    pub(crate) fn is_heard(&self, now: Duration, limit: Duration) -> bool {
        self.heard_at.is_some_and(|at| now.saturating_sub(at) < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn tcp_only(delay: Duration) -> Approach {
        Approach { quic: None, tcp: Some(delay) }
    }

    #[test]
    fn quic_has_a_head_start_until_udp_is_known_to_be_blocked() {
        let config = LinksConfig::default();
        let mut reach = Reach::default();
        let head_start = Approach { quic: Some(Duration::ZERO), tcp: Some(config.tcp_head_start) };
        assert_eq!(reach.approach(&config, Purpose::Control, false), head_start);
        assert_eq!(reach.approach(&config, Purpose::Data, false), head_start);
        assert_eq!(reach.approach(&config, Purpose::Data, true), Approach::QUIC);
        reach.handle_link(Carrier::Tcp, &config, at(0), 0.0);
        assert_eq!(reach.approach(&config, Purpose::Data, true), tcp_only(Duration::ZERO));
        let both = Approach { quic: Some(Duration::ZERO), tcp: Some(HEAD_START_IN_DOUBT) };
        assert_eq!(reach.approach(&config, Purpose::Control, false), both, "without a link anything may have changed");
        reach.handle_link(Carrier::Quic, &config, at(1), 0.0);
        assert_eq!(reach.approach(&config, Purpose::Data, true), Approach::QUIC);
    }

    #[test]
    fn a_setting_for_one_carrier_is_kept_to_whatever_links_have_shown() {
        for (transport, expected) in [(Transport::Quic, Approach::QUIC), (Transport::Tcp, tcp_only(Duration::ZERO))] {
            let config = LinksConfig { transport, ..LinksConfig::default() };
            for reach in [Reach::Open, Reach::Suspected, Reach::Blocked { retry_at: at(0), pause: at(0) }] {
                for purpose in [Purpose::Control, Purpose::Data] {
                    assert_eq!(reach.approach(&config, purpose, true), expected, "{reach:?}");
                }
            }
        }
    }

    #[test]
    fn quic_is_tried_again_after_pauses_that_double_up_to_a_minute() {
        let config = LinksConfig::default();
        let mut reach = Reach::default();
        reach.handle_link(Carrier::Tcp, &config, at(0), 1.0);
        let mut tries = Vec::new();
        for second in 0..=300 {
            if reach.take_retry(&config, at(second * 1000), 1.0) {
                tries.push(second);
            }
            // A second TCP link puts nothing off.
            reach.handle_link(Carrier::Tcp, &config, at(second * 1000), 1.0);
        }
        assert_eq!(tries, [10, 30, 70, 130, 190, 250]);
        reach.handle_link(Carrier::Quic, &config, at(0), 1.0);
        assert!(!reach.take_retry(&config, at(1_000_000), 1.0));
    }

    #[test]
    fn silence_is_packets_without_an_answer_and_not_the_lack_of_packets() {
        let limit = at(2000);
        let mut watch = SilenceWatch::default();
        watch.observe(at(0), 10, 10);
        watch.observe(at(10_000), 12, 10);
        assert!(!watch.is_silent(at(10_000), limit), "two acknowledgements get no answer");
        watch.observe(at(10_500), 13, 10);
        watch.observe(at(12_400), 20, 10);
        assert!(!watch.is_silent(at(12_400), limit));
        assert!(watch.is_silent(at(12_500), limit) && !watch.is_heard(at(12_500), limit));
        watch.observe(at(12_600), 21, 11);
        assert!(!watch.is_silent(at(60_000), limit) && watch.is_heard(at(13_000), limit));
    }

    #[test]
    fn suspicion_ends_with_a_sign_of_life_and_is_told_once() {
        let mut reach = Reach::default();
        assert!(reach.handle_silence(true) && !reach.handle_silence(true) && reach.is_suspected());
        assert!(reach.handle_silence(false) && !reach.handle_silence(false));
        let mut blocked = Reach::Blocked { retry_at: at(5), pause: at(5) };
        assert!(!blocked.handle_silence(true) && !blocked.handle_silence(false));
    }
}
