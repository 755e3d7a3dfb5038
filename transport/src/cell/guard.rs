//! Reads chitchat's bytes before chitchat does, and refuses what would hurt it.
//!
//! chitchat 0.11.2 trusts its peers: a key whose first character is not ASCII panics (`&key[0..1]` in its listeners), a
//! maximum version below the versions before it fails an assertion, nothing bounds what a stream of zstd blocks inflates
//! to, a digest past 49 KiB makes the next answer panic, and deltas about oneself are applied. Any of these stops the
//! gossip task for good while the process goes on. So every message is walked here once, with limits, by a reader that
//! neither panics nor allocates more than [`INFLATED_MAX`] bytes.
//!
//! Wire form, little-endian, as read in the sources of 0.11.2:
//! ```text
//! message  magic u16 = 45139 | version u8 = 0 | kind u8 | Syn: digest, cluster | SynAck: digest, delta | Ack: delta
//! digest   count u16 | each: id, heartbeat u64, last collected version u64, maximum version u64
//! id       name, generation u64, 6u8, IPv6 address 16, port u16            name, cluster, key, value: length u16, UTF-8
//! delta    blocks: 1u8 zstd or 2u8 plain, length u16, bytes | 0u8         the blocks inflate to operations:
//!   0u8 node  id, last collected version u64, from version u64
//!   1u8 value key, value, version u64, status u8 (set, deleted, deleted later)
//!   2u8 maximum version u64
//! ```

use std::collections::{BTreeMap, BTreeSet};

use zstd::zstd_safe;

use super::key::{Key, is_printable};
use crate::id::NodeId;

/// Why a message was refused before chitchat saw it. Nothing in the message was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A key that is not printable ASCII, or empty.
    #[error("a key that is not printable ASCII")]
    NonAsciiKey,
    /// More members, or more of their earlier lives, than a cell holds.
    #[error("more members than a cell holds")]
    TooManyMembers,
    /// The message, what it inflates to, a key, a value, or what a member would then hold is over its limit.
    #[error("too big")]
    TooBig,
    /// Versions of one member that do not rise, or pass the maximum that the sender claims.
    #[error("versions that go back or beyond their maximum")]
    VersionBack,
    /// News about this very node that it did not write: under a later life, or newer than what it has told itself.
    #[error("forged news about the node that receives it")]
    AboutMe,
    /// News about this very node that it has told itself: an answer to a question of a moment ago, overtaken meanwhile.
    #[error("old news about the node that receives it")]
    KnownToMe,
    /// A message of another mesh or cell, or one that says we are in another.
    #[error("another cell")]
    WrongCluster,
    /// Bytes that chitchat 0.11.2 would not have written.
    #[error("malformed")]
    Malformed,
    /// The sender, as proven by its certificate, is not a member by its own account.
    #[error("the sender is no member of the cell")]
    Stranger,
}

impl Refused {
    /// All reasons, for counters.
    pub const ALL: [Self; 9] = [
        Self::NonAsciiKey,
        Self::TooManyMembers,
        Self::TooBig,
        Self::VersionBack,
        Self::AboutMe,
        Self::KnownToMe,
        Self::WrongCluster,
        Self::Malformed,
        Self::Stranger,
    ];

    /// A word for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NonAsciiKey => "non_ascii_key",
            Self::TooManyMembers => "too_many_members",
            Self::TooBig => "too_big",
            Self::VersionBack => "version_back",
            Self::AboutMe => "about_me",
            Self::KnownToMe => "known_to_me",
            Self::WrongCluster => "wrong_cluster",
            Self::Malformed => "malformed",
            Self::Stranger => "stranger",
        }
    }
}

/// One life of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId {
    /// The node.
    pub node: NodeId,
    /// Which of its lives; rises with every start.
    pub generation: u64,
}

/// How much of a state is held already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Keys, deleted ones included.
    pub keys: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

/// What the receiver holds, as far as the guard must know.
pub trait VersionView {
    /// Name of the cell: `<mesh>/<cell>`.
    fn cluster_id(&self) -> &str;
    /// The receiver's own life.
    fn generation(&self) -> u64;
    /// The newest version that the receiver has told of itself in that life.
    fn own_version(&self) -> u64;
    /// States held, of all lives of all members.
    fn states(&self) -> usize;
    /// Whether any life of this node is held.
    fn is_member(&self, node: NodeId) -> bool;
    /// Whether this life is held.
    fn holds(&self, state: StateId) -> bool;
    /// How much is held of one life; nothing when it is not held.
    fn held(&self, state: StateId) -> Held;
}

/// Checks one message that the link proved to come from `from`. Reads at most 64 KiB and inflates at most 256 KiB.
///
/// # Errors
/// [`Refused`] with the first reason found; the message must not reach chitchat.
pub fn guard(from: NodeId, me: NodeId, bytes: &[u8], seen: &impl VersionView) -> Result<(), Refused> {
    inspect(from, me, bytes, seen).map(|_| ())
}

/// As [`guard`]; tells besides what the message says of the receiver's own lives.
pub(super) fn inspect(from: NodeId, me: NodeId, bytes: &[u8], seen: &impl VersionView) -> Result<Option<u64>, Refused> {
    if bytes.len() > MESSAGE_MAX {
        return Err(Refused::TooBig);
    }
    let mut reader = Reader(bytes);
    if reader.u16()? != MAGIC || reader.u8()? != 0 {
        return Err(Refused::Malformed);
    }
    let mut digest = None;
    match reader.u8()? {
        SYN => {
            let read = Digest::read(&mut reader)?;
            let cluster = reader.text()?;
            reader.end()?;
            if cluster != seen.cluster_id() {
                return Err(Refused::WrongCluster);
            }
            digest = Some(read.checked(from, seen)?);
        }
        SYN_ACK => {
            let read = Digest::read(&mut reader)?.checked(from, seen)?;
            read_delta(&mut reader, me, Some(&read), seen)?;
            digest = Some(read);
        }
        ACK if !seen.is_member(from) => return Err(Refused::Stranger),
        ACK => read_delta(&mut reader, me, None, seen)?,
        // The answer of a member of another cell; chitchat would only log it.
        BAD_CLUSTER => return Err(Refused::WrongCluster),
        _ => return Err(Refused::Malformed),
    }
    Ok(digest.and_then(|digest| digest.newest_life_of(me)))
}

/// Maximum version of each state that the sender holds.
struct Digest(BTreeMap<StateId, u64>);

impl Digest {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Refused> {
        let count = usize::from(reader.u16()?);
        if count > STATES_MAX {
            return Err(Refused::TooManyMembers);
        }
        let mut states = BTreeMap::new();
        for _ in 0..count {
            let id = reader.id()?;
            let (heartbeat, collected, version) = (reader.u64()?, reader.u64()?, reader.u64()?);
            if heartbeat > HEARTBEAT_MAX || collected > VERSION_MAX || version > VERSION_MAX {
                return Err(Refused::VersionBack);
            }
            if states.insert(id, version).is_some() {
                return Err(Refused::Malformed);
            }
        }
        Ok(Self(states))
    }

    fn checked(self, from: NodeId, seen: &impl VersionView) -> Result<Self, Refused> {
        let members: BTreeSet<NodeId> = self.0.keys().map(|state| state.node).collect();
        // chitchat keeps every state a digest names, so strangers' names count against what is held already.
        let new = self.0.keys().filter(|state| !seen.holds(**state)).count();
        if members.len() > MEMBERS_MAX || new + seen.states() > STATES_MAX {
            return Err(Refused::TooManyMembers);
        }
        if members.contains(&from) { Ok(self) } else { Err(Refused::Stranger) }
    }

    fn newest_life_of(&self, node: NodeId) -> Option<u64> {
        self.0.keys().filter(|state| state.node == node).map(|state| state.generation).max()
    }
}

fn read_delta(
    reader: &mut Reader<'_>,
    me: NodeId,
    digest: Option<&Digest>,
    seen: &impl VersionView,
) -> Result<(), Refused> {
    let inflated = inflate(reader)?;
    reader.end()?;
    let mut operations = Reader(&inflated);
    let mut walk = Walk { me, digest, seen, states: BTreeSet::new(), current: None, knows_me: false };
    while !operations.0.is_empty() {
        walk.operation(&mut operations)?;
    }
    // Nothing new, but chitchat would apply it; what else is in the message comes again with the next one.
    if walk.knows_me { Err(Refused::KnownToMe) } else { Ok(()) }
}

/// Inflates the blocks of a stream, as far as the limits allow.
fn inflate(reader: &mut Reader<'_>) -> Result<Vec<u8>, Refused> {
    let mut inflated = Vec::new();
    for _ in 0..BLOCKS_MAX {
        let kind = reader.u8()?;
        if kind == BLOCKS_END {
            return Ok(inflated);
        }
        let length = usize::from(reader.u16()?);
        let block = reader.take(length)?;
        let room = (INFLATED_MAX - inflated.len()).min(BLOCK_INFLATED_MAX);
        match kind {
            BLOCK_ZSTD => inflate_block(block, room, &mut inflated)?,
            BLOCK_PLAIN if block.len() <= room => inflated.extend_from_slice(block),
            BLOCK_PLAIN => return Err(Refused::TooBig),
            _ => return Err(Refused::Malformed),
        }
    }
    Err(Refused::TooBig)
}

fn inflate_block(block: &[u8], room: usize, inflated: &mut Vec<u8>) -> Result<(), Refused> {
    // What chitchat writes states its size; a block that does not is another writer's.
    let Ok(Some(claimed)) = zstd_safe::get_frame_content_size(block) else { return Err(Refused::Malformed) };
    let claimed = usize::try_from(claimed).unwrap_or(usize::MAX);
    if claimed > room {
        return Err(Refused::TooBig);
    }
    let bytes = zstd::bulk::decompress(block, claimed).ok().ok_or(Refused::Malformed)?;
    inflated.extend_from_slice(&bytes);
    Ok(())
}

/// Where the walk through a delta stands.
struct Walk<'a, V> {
    me: NodeId,
    digest: Option<&'a Digest>,
    seen: &'a V,
    states: BTreeSet<StateId>,
    current: Option<Current>,
    /// Whether it speaks of the receiver's present life.
    knows_me: bool,
}

/// The state that operations now speak of.
struct Current {
    /// The newest version that the receiver has told, where it is the receiver's own state: above it is forged.
    told: Option<u64>,
    /// Versions seen so far must stay below what comes next.
    version: u64,
    /// What the sender's digest says is its maximum.
    version_max: u64,
    held: Held,
}

impl<V: VersionView> Walk<'_, V> {
    fn operation(&mut self, reader: &mut Reader<'_>) -> Result<(), Refused> {
        match reader.u8()? {
            NODE => self.node(reader),
            VALUE => self.value(reader),
            MAX_VERSION => self.max_version(reader),
            _ => Err(Refused::Malformed),
        }
    }

    fn node(&mut self, reader: &mut Reader<'_>) -> Result<(), Refused> {
        let state = reader.id()?;
        let (collected, from_version) = (reader.u64()?, reader.u64()?);
        // News of an earlier life of this node is what peers remember of it: harmless, and not to be refused, or a
        // restarted node would hear nobody.
        let is_me = state.node == self.me && state.generation >= self.seen.generation();
        let is_present = is_me && state.generation == self.seen.generation();
        let told = is_present.then(|| self.seen.own_version());
        if is_me && told.is_none_or(|told| collected.max(from_version) > told) {
            return Err(Refused::AboutMe);
        }
        self.knows_me |= is_present;
        if collected > VERSION_MAX || from_version > VERSION_MAX {
            return Err(Refused::VersionBack);
        }
        if !self.states.insert(state) {
            return Err(Refused::Malformed);
        }
        if self.states.len() > STATES_MAX {
            return Err(Refused::TooManyMembers);
        }
        let claimed = match self.digest {
            Some(digest) => digest.0.get(&state).copied().ok_or(Refused::Malformed)?,
            None => VERSION_MAX,
        };
        let held = self.seen.held(state);
        self.current = Some(Current { told, version: 0, version_max: claimed, held });
        Ok(())
    }

    fn value(&mut self, reader: &mut Reader<'_>) -> Result<(), Refused> {
        let key = reader.bytes()?;
        let value = reader.text()?;
        let (version, status) = (reader.u64()?, reader.u8()?);
        let current = self.current.as_mut().ok_or(Refused::Malformed)?;
        if key.is_empty() || !is_printable(key) {
            return Err(Refused::NonAsciiKey);
        }
        if key.len() > Key::LEN_MAX || value.len() > VALUE_MAX {
            return Err(Refused::TooBig);
        }
        if status > STATUS_MAX {
            return Err(Refused::Malformed);
        }
        current.raise(version, false)?;
        current.held.keys += 1;
        current.held.bytes += key.len() + value.len();
        let fits = current.held.keys <= STATE_KEYS_MAX && current.held.bytes <= STATE_BYTES_MAX;
        if fits { Ok(()) } else { Err(Refused::TooBig) }
    }

    fn max_version(&mut self, reader: &mut Reader<'_>) -> Result<(), Refused> {
        let version = reader.u64()?;
        self.current.as_mut().ok_or(Refused::Malformed)?.raise(version, true)
    }
}

impl Current {
    /// Versions rise strictly; a closing maximum may repeat the last one.
    fn raise(&mut self, version: u64, may_repeat: bool) -> Result<(), Refused> {
        if self.told.is_some_and(|told| version > told) {
            return Err(Refused::AboutMe);
        }
        let rises = version > self.version || may_repeat && version == self.version;
        if !rises || version > self.version_max {
            return Err(Refused::VersionBack);
        }
        self.version = version;
        Ok(())
    }
}

/// Reads from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Refused> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Refused::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Refused::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Refused> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Refused> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refused> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Refused> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }

    fn text(&mut self) -> Result<&'a str, Refused> {
        std::str::from_utf8(self.bytes()?).ok().ok_or(Refused::Malformed)
    }

    /// The name of a member must be the one that belongs to its address, which is its node id.
    fn id(&mut self) -> Result<StateId, Refused> {
        let name = self.text()?;
        let generation = self.u64()?;
        if self.u8()? != IPV6 {
            return Err(Refused::Malformed);
        }
        let node = NodeId::from_bytes(self.array()?);
        if self.u16()? != GOSSIP_PORT || node.short() != name || generation > GENERATION_MAX {
            return Err(Refused::Malformed);
        }
        Ok(StateId { node, generation })
    }

    fn end(&self) -> Result<(), Refused> {
        if self.0.is_empty() { Ok(()) } else { Err(Refused::Malformed) }
    }
}

/// The port in every synthetic address; nothing listens there.
pub(super) const GOSSIP_PORT: u16 = 1;

const MAGIC: u16 = 45_139;
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
const BAD_CLUSTER: u8 = 3;
const BLOCKS_END: u8 = 0;
const BLOCK_ZSTD: u8 = 1;
const BLOCK_PLAIN: u8 = 2;
const NODE: u8 = 0;
const VALUE: u8 = 1;
const MAX_VERSION: u8 = 2;
const STATUS_MAX: u8 = 2;
const IPV6: u8 = 6;

/// chitchat fills a message up to 65,507 bytes, give or take its head.
const MESSAGE_MAX: usize = 65_536;
/// What all blocks of one message may inflate to.
const INFLATED_MAX: usize = 256 * 1024;
/// What chitchat has room for in one block.
const BLOCK_INFLATED_MAX: usize = 65_535;
/// chitchat writes blocks of 16 KiB.
const BLOCKS_MAX: usize = 64;
/// Nodes in one cell.
const MEMBERS_MAX: usize = 150;
/// States held of all lives of all members: the dead are remembered for minutes. At 69 bytes each the digest stays at
/// 41 KiB; past 49 KiB (65,507 less one block of 16 KiB) chitchat panics when it answers.
const STATES_MAX: usize = 600;
/// Longest value, bytes.
pub(super) const VALUE_MAX: usize = 16 * 1024;
/// Keys of one state, deleted ones included.
const STATE_KEYS_MAX: usize = 2048;
/// Bytes of keys and values of one state. Replaced values count twice for a moment, so this is well above what one
/// member may set.
const STATE_BYTES_MAX: usize = 128 * 1024;
/// Limits no honest counter reaches; they leave room to go on after a forged one. The same at all nodes, so that one
/// message is not good here and bad there.
const VERSION_MAX: u64 = 1 << 48;
const HEARTBEAT_MAX: u64 = 1 << 48;
const GENERATION_MAX: u64 = 1 << 62;

#[cfg(test)]
mod tests;
