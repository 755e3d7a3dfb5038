use std::collections::BTreeMap;

use chitchat::{ChitchatMessage, Deserializable};
use proptest::prelude::*;

use super::super::tests::forge::{Delta, Entry, ack, bomb, syn, syn_ack};
use super::*;

const CLUSTER: &str = "shop/eu-1";

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

/// A receiver, node 1 in its life 10, that holds what it is told to.
#[derive(Default)]
struct View(BTreeMap<StateId, Held>);

impl VersionView for View {
    fn cluster_id(&self) -> &str {
        CLUSTER
    }

    fn generation(&self) -> u64 {
        10
    }

    fn own_version(&self) -> u64 {
        57
    }

    fn states(&self) -> usize {
        self.0.len()
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.0.keys().any(|state| state.node == node)
    }

    fn holds(&self, state: StateId) -> bool {
        self.0.contains_key(&state)
    }

    fn held(&self, state: StateId) -> Held {
        self.0.get(&state).copied().unwrap_or_default()
    }
}

fn view() -> View {
    let states = [(node(1), 10), (node(2), 20), (node(3), 30)];
    View(states.into_iter().map(|(node, generation)| (StateId { node, generation }, Held::default())).collect())
}

/// Node 2 sends to node 1.
fn judge(bytes: &[u8]) -> Result<(), Refused> {
    guard(node(2), node(1), bytes, &view())
}

/// The guard must refuse what the real crate would have decoded and applied.
fn check_hostile(bytes: &[u8], expected: Refused) {
    assert!(ChitchatMessage::deserialize(&mut &*bytes).is_ok(), "chitchat would not even decode this");
    assert_eq!(judge(bytes), Err(expected));
}

fn members() -> Vec<Entry> {
    vec![Entry::new(node(1), 10, 3), Entry::new(node(2), 20, 9), Entry::new(node(3), 30, 10_000)]
}

#[test]
fn good_messages_of_every_kind_pass_and_decode() {
    let delta = Delta::new().node(node(2), 20).value("m/id", "x", 1).value("l/hello", "0.5", 2).node(node(3), 30);
    let delta = delta.max_version(7);
    for bytes in [
        syn(&members(), CLUSTER),
        syn_ack(&members(), &delta.plain()),
        syn_ack(&members(), &delta.zstd()),
        ack(&delta.zstd()),
        ack(&Delta::new().plain()),
    ] {
        assert_eq!(judge(&bytes), Ok(()));
        let mut rest = &*bytes;
        assert!(ChitchatMessage::deserialize(&mut rest).is_ok());
        assert!(rest.is_empty());
    }
}

// The four packets below stopped or misled nodes that ran chitchat 0.11.2 without a guard.

#[test]
fn a_key_that_is_not_ascii_is_refused() {
    // `&key[0..1]` in chitchat's listeners panics in every node that applies this.
    for poison in ["éclair", "\u{1f4a3}", "m/\u{e9}", "a b", "\n", ""] {
        check_hostile(&ack(&Delta::new().node(node(3), 30).value(poison, "x", 1).zstd()), Refused::NonAsciiKey);
    }
}

#[test]
fn news_about_oneself_is_refused() {
    // chitchat applies deltas about its own state: one packet rewrote a node's values at that very node.
    for generation in [10, 11, 1 << 40] {
        let delta = Delta::new().node(node(1), generation).value("m/id", "forged", 9_000).plain();
        check_hostile(&ack(&delta), Refused::AboutMe);
    }
    // One version beyond what this node has told is not its own either.
    let beyond = [
        Delta::new().node(node(1), 10).value("m/id", "forged", 58),
        Delta::new().node(node(1), 10).value("m/id", "told", 57).max_version(58),
    ];
    for delta in beyond {
        check_hostile(&ack(&delta.plain()), Refused::AboutMe);
    }
    // What peers remember of an earlier life is honest; refusing it would leave a restarted node deaf.
    let earlier = Delta::new().node(node(1), 9).value("m/id", "old", 4).plain();
    assert_eq!(judge(&ack(&earlier)), Ok(()));
}

#[test]
fn an_answer_about_oneself_that_was_overtaken_is_refused_and_no_forgery() {
    // A peer answers a digest of version 40 after it has heard of 57 elsewhere.
    let delta = Delta::new().node(node(1), 10).value("m/id", "told", 41).value("l", "told", 57).plain();
    check_hostile(&ack(&delta), Refused::KnownToMe);
    let without_values = Delta::new().node(node(1), 10).max_version(57).plain();
    check_hostile(&ack(&without_values), Refused::KnownToMe);
}

#[test]
fn a_version_that_goes_back_is_refused() {
    // Version 9,000 and then a maximum of 5,000 fails an assertion and ends the gossip task for good.
    let delta = Delta::new().node(node(3), 30).value("a", "x", 9_000).max_version(5_000);
    check_hostile(&ack(&delta.plain()), Refused::VersionBack);
    check_hostile(&syn_ack(&members(), &delta.zstd()), Refused::VersionBack);
    let beyond = Delta::new().node(node(2), 20).value("a", "x", 10).plain();
    check_hostile(&syn_ack(&members(), &beyond), Refused::VersionBack);
    let absurd = Delta::new().node(node(3), 30).value("a", "x", u64::MAX).plain();
    check_hostile(&ack(&absurd), Refused::VersionBack);
    let repeated = Delta::new().node(node(3), 30).value("a", "x", 4).value("b", "x", 4).plain();
    assert_eq!(judge(&ack(&repeated)), Err(Refused::VersionBack));
}

#[test]
fn a_bomb_of_three_thousand_zstd_blocks_is_refused_before_it_inflates() {
    // 2,954 blocks of 64 KiB in one message of 65 KB took a process from 4 to 195 MB.
    let bytes = ack(&bomb(2_954));
    assert!(bytes.len() <= MESSAGE_MAX, "{}", bytes.len());
    assert_eq!(judge(&bytes), Err(Refused::TooBig));
    let empty_blocks = [2_u8, 0, 0].repeat(10_000);
    assert_eq!(judge(&ack(&empty_blocks)), Err(Refused::TooBig));
}

#[test]
fn a_block_that_lies_about_its_size_is_refused() {
    let mut honest = Delta::new().node(node(2), 20).value("key", &"x".repeat(300), 1).zstd();
    assert_eq!(judge(&ack(&honest)), Ok(()));
    // Frame header: magic 4, descriptor 1, content size 2 (less 256).
    honest[3 + 5] ^= 1;
    assert_eq!(judge(&ack(&honest)), Err(Refused::Malformed));
}

#[test]
fn more_members_than_a_cell_holds_are_refused() {
    let crowd = |count: u8, lives: u64| -> Vec<Entry> {
        let entry = move |number| (0..lives).map(move |life| Entry::new(node(number), 20 + life, 1));
        (2..2 + count).flat_map(entry).collect()
    };
    assert_eq!(judge(&syn(&crowd(150, 1), CLUSTER)), Ok(()));
    check_hostile(&syn(&crowd(151, 1), CLUSTER), Refused::TooManyMembers);
    // Earlier lives count against what is held: three here, one of them named again.
    assert_eq!(judge(&syn(&crowd(149, 4), CLUSTER)), Ok(()));
    check_hostile(&syn(&crowd(150, 4), CLUSTER), Refused::TooManyMembers);
    let mut full = view();
    for generation in 0..597 {
        full.0.insert(StateId { node: node(9), generation }, Held::default());
    }
    assert_eq!(guard(node(2), node(1), &syn(&members(), CLUSTER), &full), Ok(()));
    let with_a_stranger = [members(), vec![Entry::new(node(4), 1, 1)]].concat();
    assert_eq!(guard(node(2), node(1), &syn(&with_a_stranger, CLUSTER), &full), Err(Refused::TooManyMembers));
}

#[test]
fn whoever_is_no_member_by_its_own_account_is_refused() {
    let without_sender = vec![Entry::new(node(3), 30, 1)];
    check_hostile(&syn(&without_sender, CLUSTER), Refused::Stranger);
    let bytes = ack(&Delta::new().plain());
    assert_eq!(guard(node(8), node(1), &bytes, &view()), Err(Refused::Stranger));
}

#[test]
fn another_cell_is_refused() {
    check_hostile(&syn(&members(), "shop/us-1"), Refused::WrongCluster);
    check_hostile(&[0x53, 0xb0, 0, 3], Refused::WrongCluster);
}

#[test]
fn keys_values_and_states_have_their_limits() {
    let value = |key: &str, value: &str| ack(&Delta::new().node(node(3), 30).value(key, value, 1).zstd());
    assert_eq!(judge(&value(&"k".repeat(64), &"v".repeat(VALUE_MAX))), Ok(()));
    check_hostile(&value(&"k".repeat(65), "v"), Refused::TooBig);
    check_hostile(&value("k", &"v".repeat(VALUE_MAX + 1)), Refused::TooBig);
    let mut full = view();
    let state = StateId { node: node(3), generation: 30 };
    full.0.insert(state, Held { keys: STATE_KEYS_MAX, bytes: 0 });
    assert_eq!(guard(node(2), node(1), &value("k", "v"), &full), Err(Refused::TooBig));
    full.0.insert(state, Held { keys: 0, bytes: STATE_BYTES_MAX - 1 });
    assert_eq!(guard(node(2), node(1), &value("k", "v"), &full), Err(Refused::TooBig));
}

#[test]
fn a_name_that_does_not_belong_to_its_address_is_malformed() {
    let mut bytes = syn(&members(), CLUSTER);
    // Magic 2, version 1, kind 1, count 2, length 2, then the first name.
    bytes[8] = if bytes[8] == b'a' { b'b' } else { b'a' };
    check_hostile(&bytes, Refused::Malformed);
}

#[test]
fn a_delta_must_agree_with_its_digest_and_name_each_state_once() {
    let unnamed = Delta::new().node(node(4), 1).value("a", "x", 1).plain();
    check_hostile(&syn_ack(&members(), &unnamed), Refused::Malformed);
    let twice = Delta::new().node(node(3), 30).node(node(3), 30).plain();
    assert_eq!(judge(&ack(&twice)), Err(Refused::Malformed));
    let headless = Delta::new().value("a", "x", 1).plain();
    assert_eq!(judge(&ack(&headless)), Err(Refused::Malformed));
    let twins = [members(), members()].concat();
    assert_eq!(judge(&syn(&twins, CLUSTER)), Err(Refused::Malformed));
}

#[test]
fn every_cut_and_every_trailing_byte_is_refused() {
    let delta = Delta::new().node(node(2), 20).value("m/id", "x", 1).plain();
    for bytes in [syn(&members(), CLUSTER), syn_ack(&members(), &delta), ack(&delta)] {
        for length in 0..bytes.len() {
            assert!(judge(&bytes[..length]).is_err(), "{length}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(judge(&longer), Err(Refused::Malformed));
    }
    assert_eq!(judge(&[0; MESSAGE_MAX + 1]), Err(Refused::TooBig));
}

proptest! {
    #[test]
    fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0_u8..4) {
        let with_head = [&[0x53, 0xb0, 0, kind], &*bytes].concat();
        prop_assert!(judge(&bytes).is_err());
        prop_assert!(judge(&with_head).is_err() || with_head.len() > 4);
    }

    /// Whatever passes the guard, chitchat can decode.
    #[test]
    fn one_changed_byte_is_refused_or_harmless(at in 0_usize..400, to in any::<u8>()) {
        let delta = Delta::new().node(node(2), 20).value("m/id", "hello", 1).node(node(3), 30).max_version(7);
        for mut bytes in [syn_ack(&members(), &delta.plain()), syn_ack(&members(), &delta.zstd())] {
            let at = at % bytes.len();
            bytes[at] = to;
            if judge(&bytes).is_ok() {
                prop_assert!(ChitchatMessage::deserialize(&mut &*bytes).is_ok());
            }
        }
    }
}
