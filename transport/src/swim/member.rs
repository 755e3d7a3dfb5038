//! One node as seen from here.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::suspicion::Suspicion;
use crate::id::NodeId;
use crate::rtt::RttFilter;
use crate::vivaldi::Coord;

/// What is believed of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// Known by name, not yet answered a probe of ours: gets no traffic. An answer makes it alive.
    Joining,
    /// Answers probes, ours or those of others.
    Alive,
    /// Did not answer; has until a deadline to object with a newer incarnation.
    Suspect,
    /// Did not object. Only a newer incarnation brings it back.
    Dead,
    /// Said goodbye. Only a newer incarnation brings it back.
    Left,
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Joining => "joining",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        })
    }
}

/// What a member did not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Direct probes without an answer in a row, over all periods.
    pub direct: u32,
    /// Members asked to probe in our place in the last period.
    pub relays: u32,
    /// How many of those told that they heard nothing either.
    pub nacks: u32,
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no ack to {}", counted(self.direct, "probe"))?;
        if self.relays == 0 {
            return f.write_str(", nobody else to ask");
        }
        write!(f, " nor through {} ({} heard nothing either)", counted(self.relays, "relay"), self.nacks)
    }
}

/// Why a member is what it is. `Display` gives a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerdictReason {
    /// Somebody told of it, or its link came up; it was not probed with success yet.
    Discovered,
    /// It answered a probe of ours.
    Acked {
        /// After this time.
        rtt: Duration,
    },
    /// It did not answer.
    Accused {
        /// What it did not answer here; `None` when only others accuse it.
        own: Option<ProbeFailure>,
        /// Other members that say so.
        by: Vec<NodeId>,
    },
    /// It was accused and did not object in time.
    Expired {
        /// What it did not answer here; `None` when only others accused it.
        own: Option<ProbeFailure>,
        /// Other members that said so.
        by: Vec<NodeId>,
        /// How long it had to object.
        waited: Duration,
    },
    /// Another member found it dead.
    Declared {
        /// That member.
        by: NodeId,
        /// What it did not answer here; `None` when it was not asked here since its last answer.
        own: Option<ProbeFailure>,
    },
    /// It objected to a suspicion.
    Refuted {
        /// With this incarnation.
        incarnation: u32,
    },
    /// It was dead or had left, and shows itself with a newer incarnation.
    Returned {
        /// This one.
        incarnation: u32,
    },
    /// It said goodbye.
    Goodbye,
}

impl fmt::Display for VerdictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovered => f.write_str("known, has not answered a probe yet"),
            Self::Acked { rtt } => write!(f, "answered a probe after {:.1} ms", rtt.as_secs_f64() * 1e3),
            Self::Accused { own, by } => write_accusation(f, own.as_ref(), by),
            Self::Expired { own, by, waited } => {
                write_accusation(f, own.as_ref(), by)?;
                write!(f, "; did not object for {:.1} s", waited.as_secs_f64())
            }
            Self::Declared { by, own: None } => write!(f, "found dead by {}", Brief(by)),
            Self::Declared { by, own: Some(own) } => write!(f, "found dead by {}; here {own}", Brief(by)),
            Self::Refuted { incarnation } => write!(f, "objected with incarnation {incarnation}"),
            Self::Returned { incarnation } => {
                write!(f, "came back with incarnation {incarnation}, has not answered a probe yet")
            }
            Self::Goodbye => f.write_str("said goodbye"),
        }
    }
}

/// A member and all that the prober knows of it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// What is believed of it.
    pub liveness: Liveness,
    /// Its newest known incarnation.
    pub incarnation: u32,
    /// Since when it is so.
    pub since: Duration,
    /// Why.
    pub reason: VerdictReason,
    /// When it last answered a probe of ours.
    pub last_ack: Option<Duration>,
    /// The load it last told, in its own unit.
    pub load: Option<u16>,
    /// The coordinate it last told.
    pub coord: Option<Coord>,
    /// Round trips and losses of the probes from here.
    pub round_trips: RttFilter,
    pub(super) suspicion: Option<Suspicion>,
    /// What it has not answered since its last answer.
    pub(super) failure: ProbeFailure,
}

impl Member {
    pub(super) fn new(node: NodeId, incarnation: u32, now: Duration) -> Self {
        Self {
            node,
            liveness: Liveness::Joining,
            incarnation,
            since: now,
            reason: VerdictReason::Discovered,
            last_ack: None,
            load: None,
            coord: None,
            round_trips: RttFilter::new(),
            suspicion: None,
            failure: ProbeFailure::default(),
        }
    }

    /// Whether it takes its turn among those that are probed every round.
    pub(super) fn is_probed(&self) -> bool {
        matches!(self.liveness, Liveness::Alive | Liveness::Suspect)
    }

    /// Whether it is probed besides, in case it is back.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.liveness, Liveness::Joining | Liveness::Dead)
    }

    /// The failure to name in a verdict: `None` when the member answered everything asked here.
    #[must_use]
    pub fn own_failure(&self) -> Option<ProbeFailure> {
        (self.failure.direct > 0).then_some(self.failure)
    }
}

fn write_accusation(f: &mut fmt::Formatter<'_>, own: Option<&ProbeFailure>, by: &[NodeId]) -> fmt::Result {
    if let Some(own) = own {
        write!(f, "{own}")?;
    }
    let mut separator = if own.is_some() { "; suspected by " } else { "suspected by " };
    for accuser in by {
        write!(f, "{separator}{}", Brief(accuser))?;
        separator = ", ";
    }
    Ok(())
}

fn counted(number: u32, noun: &str) -> String {
    match (number, noun) {
        (1, _) => format!("1 {noun}"),
        (_, "relay") => format!("{number} relays"),
        _ => format!("{number} {noun}s"),
    }
}

/// The first eight characters of an id: enough for a person to find the node.
struct Brief<'a>(&'a NodeId);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.get(..8).unwrap_or(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_sentences_with_counts() {
        let by = vec![NodeId::from_bytes([1; 16]), NodeId::from_bytes([2; 16])];
        let own = Some(ProbeFailure { direct: 3, relays: 2, nacks: 1 });
        let check = |reason: VerdictReason, expected: &str| assert_eq!(reason.to_string(), expected);
        check(
            VerdictReason::Expired { own, by: by.clone(), waited: Duration::from_millis(4012) },
            "no ack to 3 probes nor through 2 relays (1 heard nothing either); suspected by aeaqcaib, aibaeaqc; \
             did not object for 4.0 s",
        );
        check(VerdictReason::Accused { own: None, by }, "suspected by aeaqcaib, aibaeaqc");
        let alone = Some(ProbeFailure { direct: 1, relays: 0, nacks: 0 });
        check(VerdictReason::Accused { own: alone, by: Vec::new() }, "no ack to 1 probe, nobody else to ask");
        check(
            VerdictReason::Declared { by: NodeId::from_bytes([1; 16]), own: alone },
            "found dead by aeaqcaib; here no ack to 1 probe, nobody else to ask",
        );
        check(VerdictReason::Acked { rtt: Duration::from_micros(1234) }, "answered a probe after 1.2 ms");
    }
}
