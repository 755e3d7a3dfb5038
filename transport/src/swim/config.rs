//! The figures of the prober.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest;

/// Which cell a packet belongs to: the first 8 bytes of SHA-256 over `<mesh>/<cell>`. Packets of another cell are
/// counted and dropped.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId([u8; 8]);

impl CellId {
    /// The id of a cell, from its full name.
    pub fn from_name(name: &str) -> Self {
        let hash = digest::digest(&digest::SHA256, name.as_bytes());
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// An id read from its bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The 8 bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Debug for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// How often, how long and how many. [`SwimConfig::lan`] is the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwimConfig {
    /// The cell whose packets are heard.
    pub cell: CellId,
    /// One member is probed per period. Shorter finds deaths sooner and costs two packets more a second.
    pub period: Duration,
    /// A direct probe waits four filtered round trips, but at least this long.
    pub timeout_min: Duration,
    /// A direct probe waits at most this long; also where the round trip is not known yet.
    pub timeout_max: Duration,
    /// Members asked to probe in our place when the direct probe was not answered.
    pub indirect: usize,
    /// A relay that heard nothing says so after this share of the asker's patience, in percent.
    pub nack_percent: u32,
    /// Highest score of local health; periods and timeouts are stretched by `1 + score`.
    pub health_max: u32,
    /// A suspect has at least this long to object.
    pub suspicion_min: Duration,
    /// A suspect with a single accuser has this long to object; accusers that agree shorten it to the minimum.
    pub suspicion_max: Duration,
    /// Accusers beyond the first that bring the wait down to the minimum. None are wanted where fewer could exist.
    pub confirmations: usize,
    /// An update is passed on `retransmit * log10(members + 1)` times, rounded up.
    pub retransmit: u32,
    /// Members that are dead or have not joined are probed besides, this many in a period, so that a healed partition
    /// or a restart is seen at once.
    pub reprobes: usize,
    /// Probes outside the period (somebody appeared) per period; more wait for their turn.
    pub burst: usize,
    /// Members remembered. Past that the longest dead goes, then the longest joining; where neither exists the
    /// newcomer is refused and counted.
    pub members_max: usize,
    /// How long the dead and those that never answered are remembered.
    pub dead_keep: Duration,
    /// How long those who said goodbye are remembered.
    pub left_keep: Duration,
}

impl SwimConfig {
    /// For nodes that are milliseconds apart: a death is known everywhere in 5 to 10 s.
    pub fn lan() -> Self {
        Self {
            cell: CellId::default(),
            period: Duration::from_secs(1),
            timeout_min: Duration::from_millis(100),
            timeout_max: Duration::from_millis(800),
            indirect: 3,
            nack_percent: 80,
            health_max: 7,
            suspicion_min: Duration::from_secs(4),
            suspicion_max: Duration::from_secs(24),
            confirmations: 2,
            retransmit: 4,
            reprobes: 3,
            burst: 256,
            members_max: 1024,
            dead_keep: Duration::from_secs(24 * 3600),
            left_keep: Duration::from_secs(600),
        }
    }

    /// For sites far apart: a death is known in about 30 s, at a fifth of the packets.
    pub fn wan() -> Self {
        Self {
            period: Duration::from_secs(5),
            timeout_min: Duration::from_millis(500),
            timeout_max: Duration::from_secs(3),
            suspicion_min: Duration::from_secs(20),
            suspicion_max: Duration::from_secs(120),
            ..Self::lan()
        }
    }

    /// For links paid by volume: like [`SwimConfig::wan`], with one probe of absent members per period.
    pub fn metered() -> Self {
        Self { reprobes: 1, ..Self::wan() }
    }

    /// The same figures for another cell.
    #[must_use]
    pub fn with_cell(self, cell: CellId) -> Self {
        Self { cell, ..self }
    }
}

impl Default for SwimConfig {
    fn default() -> Self {
        Self::lan()
    }
}
