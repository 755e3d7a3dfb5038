//! Rules that a simulator can switch off, to prove that it notices.

/// A rule that a replica can be told to break, so that a simulation can show that it finds the fault.
///
/// For tests only: it exists with the cargo feature `mutations`, which no program turns on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(not(feature = "mutations"), expect(unreachable_pub, reason = "it is public with the feature alone"))]
pub enum Mutation {
    /// All that a peer has seen is credited with its first chunk of ops, not at the end of the conversation.
    CreditPerChunk,
    /// The life goes on after a loss, a restore, or a peer's word that it was used further than we know.
    KeepIncarnation,
    /// Messages for another life of this store are taken.
    UnboundSessions,
    /// Tombstones are collected and the floor stays where it is.
    CollectWithoutFloor,
}
