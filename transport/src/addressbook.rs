//! Where nodes were last seen: what a node needs to find the mesh again after a long partition or its own restart.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::id::NodeId;

/// What is remembered of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The name its operator gave it; at most 255 bytes are kept.
    pub name: String,
    /// Where it was reached, the latest first; at most four.
    pub addresses: Vec<SocketAddr>,
    /// When it was last reached, seconds since 1970.
    pub last_seen_unix: u64,
}

/// Nodes and their last addresses: at most 10,000; past that the one not seen for longest is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressBook {
    entries: BTreeMap<NodeId, Entry>,
}

/// The bytes are not an address book, or not one of a version known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an address book")]
pub struct NotAnAddressBook;

impl AddressBook {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node was reached at `address`. Returns true when there is something new to keep on disk: a new node, name or
    /// address, or an hour since it was last noted.
    pub fn seen(&mut self, node: NodeId, name: &str, address: SocketAddr, now_unix: u64) -> bool {
        let is_new_node = !self.entries.contains_key(&node);
        if is_new_node && self.entries.len() >= ENTRIES_MAX {
            self.drop_oldest();
        }
        let entry = self.entries.entry(node).or_default();
        let name = short_name(name);
        let is_news = is_new_node
            || entry.addresses.first() != Some(&address)
            || entry.name != name
            || now_unix >= entry.last_seen_unix.saturating_add(NOTE_AFTER_S);
        if is_news {
            name.clone_into(&mut entry.name);
            entry.addresses.retain(|known| *known != address);
            entry.addresses.insert(0, address);
            entry.addresses.truncate(ADDRESSES_MAX);
            entry.last_seen_unix = entry.last_seen_unix.max(now_unix);
        }
        is_news
    }

    /// Forgets a node, as when it was expelled.
    pub fn forget(&mut self, node: &NodeId) {
        self.entries.remove(node);
    }

    /// What is remembered of a node.
    pub fn entry(&self, node: &NodeId) -> Option<&Entry> {
        self.entries.get(node)
    }

    /// All nodes in order of their ids.
    pub fn entries(&self) -> impl Iterator<Item = (&NodeId, &Entry)> {
        self.entries.iter()
    }

    /// Who else goes by this name, for refusing a second one.
    pub fn named(&self, name: &str) -> Option<NodeId> {
        self.entries.iter().find(|(_, entry)| entry.name == name).map(|(node, _)| *node)
    }

    /// How many nodes are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The nodes to try to reach, those seen last first, without those for which `is_live` holds.
    pub fn to_try(&self, is_live: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        let absent = self.entries.iter().filter(|(node, _)| !is_live(node));
        let mut nodes: Vec<(u64, NodeId)> = absent.map(|(node, entry)| (entry.last_seen_unix, *node)).collect();
        nodes.sort_unstable_by(|a, b| b.cmp(a));
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// Takes an entry as read from disk; one of a node known already is ignored.
    pub fn insert(&mut self, node: NodeId, entry: Entry) {
        if self.entries.contains_key(&node) {
            return;
        }
        if self.entries.len() >= ENTRIES_MAX {
            self.drop_oldest();
        }
        self.entries.insert(node, entry);
    }

    /// The whole book as bytes: version 1, count, then each node with its entry.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for (node, entry) in &self.entries {
            out.extend_from_slice(node.as_bytes());
            entry.write(&mut out);
        }
        out
    }

    /// Reads a whole book.
    ///
    /// # Errors
    /// [`NotAnAddressBook`] when the bytes are cut, too many, or of another version; start empty then.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAnAddressBook> {
        let mut reader = Reader(bytes);
        let book = Self::read(&mut reader).ok_or(NotAnAddressBook)?;
        if reader.0.is_empty() { Ok(book) } else { Err(NotAnAddressBook) }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let [version] = reader.array()?;
        let count = usize::try_from(u32::from_be_bytes(reader.array()?)).ok()?;
        if version != VERSION || count > ENTRIES_MAX {
            return None;
        }
        let read_one = |_| Some((NodeId::from_bytes(reader.array()?), Entry::read(reader)?));
        Some(Self { entries: (0..count).map(read_one).collect::<Option<_>>()? })
    }

    fn drop_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_seen_unix).map(|(node, _)| *node);
        if let Some(oldest) = oldest {
            self.entries.remove(&oldest);
        }
    }
}

impl Entry {
    /// One entry as bytes, for a store that keeps one record a node.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.write(&mut out);
        out
    }

    /// Reads one entry.
    ///
    /// # Errors
    /// [`NotAnAddressBook`] when the bytes are cut, too many, or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotAnAddressBook> {
        let mut reader = Reader(bytes);
        if reader.array() != Some([VERSION]) {
            return Err(NotAnAddressBook);
        }
        let entry = Self::read(&mut reader).ok_or(NotAnAddressBook)?;
        if reader.0.is_empty() { Ok(entry) } else { Err(NotAnAddressBook) }
    }

    /// `last seen 8 | name length 1 | name | addresses 1 | each: 4 or 6, address, port 2`, big-endian.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.last_seen_unix.to_be_bytes());
        let name = short_name(&self.name);
        out.push(u8::try_from(name.len()).unwrap_or(0));
        out.extend_from_slice(name.as_bytes());
        let addresses = self.addresses.get(..ADDRESSES_MAX).unwrap_or(&self.addresses);
        out.push(u8::try_from(addresses.len()).unwrap_or(0));
        for address in addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend_from_slice(&ip.octets());
                }
            }
            out.extend_from_slice(&address.port().to_be_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let last_seen_unix = u64::from_be_bytes(reader.array()?);
        let [length] = reader.array()?;
        let name = std::str::from_utf8(reader.take(usize::from(length))?).ok()?.to_owned();
        let [count] = reader.array()?;
        if usize::from(count) > ADDRESSES_MAX {
            return None;
        }
        let addresses = (0..count).map(|_| reader.address()).collect::<Option<_>>()?;
        Some(Self { name, addresses, last_seen_unix })
    }
}

/// Reads from the front; `None` when the bytes run out.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = match self.array()? {
            [4] => IpAddr::V4(Ipv4Addr::from_octets(self.array()?)),
            [6] => IpAddr::V6(Ipv6Addr::from_octets(self.array()?)),
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(self.array()?)))
    }
}

/// The name cut to what its length byte can say, at a character's end.
fn short_name(name: &str) -> &str {
    let end = name.floor_char_boundary(NAME_MAX);
    name.get(..end).unwrap_or(name)
}

const VERSION: u8 = 1;
const ENTRIES_MAX: usize = 10_000;
const ADDRESSES_MAX: usize = 4;
const NAME_MAX: usize = 255;
/// An unchanged entry is worth writing again after an hour.
const NOTE_AFTER_S: u64 = 3600;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn node(number: usize) -> NodeId {
        NodeId::from_bytes((number as u128).to_be_bytes())
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn book() -> AddressBook {
        let mut book = AddressBook::new();
        book.seen(node(1), "one", address(1), NOW);
        book.seen(node(2), "zwölf", "[fd00::7]:7440".parse().unwrap(), NOW + 5);
        book.seen(node(2), "zwölf", address(2), NOW + 6);
        book
    }

    #[test]
    fn a_book_survives_its_bytes() {
        let book = book();
        assert_eq!(AddressBook::from_bytes(&book.to_bytes()), Ok(book.clone()));
        let entry = book.entry(&node(2)).unwrap();
        assert_eq!(Entry::from_bytes(&entry.to_bytes()).as_ref(), Ok(entry));
    }

    #[test]
    fn bytes_of_version_1_still_decode() {
        let golden = include_bytes!("../testdata/address-book-v1.bin");
        assert_eq!(AddressBook::from_bytes(golden), Ok(book()));
        assert_eq!(book().to_bytes(), golden);
    }

    #[test]
    fn cut_and_lengthened_bytes_are_refused() {
        let bytes = book().to_bytes();
        for length in 0..bytes.len() {
            assert_eq!(AddressBook::from_bytes(&bytes[..length]), Err(NotAnAddressBook), "{length}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(AddressBook::from_bytes(&longer), Err(NotAnAddressBook));
        let mut other = bytes;
        other[0] = 2;
        assert_eq!(AddressBook::from_bytes(&other), Err(NotAnAddressBook));
        assert_eq!(Entry::from_bytes(&[]), Err(NotAnAddressBook));
        assert_eq!(AddressBook::from_bytes(&[1, 255, 255, 255, 255]), Err(NotAnAddressBook));
    }

    #[test]
    fn only_news_is_worth_keeping() {
        let mut book = book();
        assert!(!book.seen(node(1), "one", address(1), NOW + 60));
        assert!(book.seen(node(1), "one", address(1), NOW + 3600));
        assert!(book.seen(node(1), "uno", address(1), NOW + 3601));
        assert!(book.seen(node(1), "uno", address(9), NOW + 3602));
        assert_eq!(book.entry(&node(1)).unwrap().addresses, vec![address(9), address(1)]);
    }

    #[test]
    fn four_addresses_are_kept_the_latest_first() {
        let mut book = AddressBook::new();
        for port in 1..=9 {
            book.seen(node(1), "one", address(port), NOW);
        }
        assert_eq!(book.entry(&node(1)).unwrap().addresses, [9, 8, 7, 6].map(address));
    }

    #[test]
    fn the_node_not_seen_for_longest_is_dropped_at_the_limit() {
        let mut book = AddressBook::new();
        for number in 0..=ENTRIES_MAX {
            // Node 500 is the oldest.
            let seen = if number == 500 { NOW - 1 } else { NOW + number as u64 };
            book.seen(node(number), "n", address(1), seen);
        }
        assert_eq!(book.len(), ENTRIES_MAX);
        assert_eq!(book.entry(&node(500)), None);
        assert!(book.entry(&node(ENTRIES_MAX)).is_some());
    }

    #[test]
    fn those_seen_last_are_tried_first_and_the_live_not_at_all() {
        let mut book = book();
        book.seen(node(3), "three", address(3), NOW + 60);
        assert_eq!(book.to_try(|node| *node == self::node(3)), vec![node(2), node(1)]);
        assert_eq!(book.named("zwölf"), Some(node(2)));
        book.forget(&node(2));
        assert_eq!(book.named("zwölf"), None);
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let mut book = AddressBook::new();
        book.seen(node(1), &"ö".repeat(200), address(1), NOW);
        assert_eq!(book.entry(&node(1)).unwrap().name, "ö".repeat(127));
        assert_eq!(AddressBook::from_bytes(&book.to_bytes()), Ok(book));
    }
}
