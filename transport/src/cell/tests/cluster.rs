//! Real chitchat instances over in-memory queues, on a clock that jumps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};

use super::forge::{Delta, Entry, ack, bomb, syn_ack};
use crate::cell::{Cell, CellConfig, Change, Key, KnownPeers, Refused};
use crate::clock::Clock;
use crate::id::NodeId;

struct TokioClock;

impl Clock for TokioClock {
    #[expect(clippy::disallowed_methods, reason = "the virtual clock of the test's own runtime")]
    fn now(&self) -> Duration {
        // Any fixed instant would do as a start; the runtime's first is not kept, so a process-wide one is.
        static START: std::sync::OnceLock<tokio::time::Instant> = std::sync::OnceLock::new();
        let now = tokio::time::Instant::now();
        now.saturating_duration_since(*START.get_or_init(|| now))
    }

    fn unix(&self) -> Duration {
        self.now()
    }
}

type Inboxes = Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<(NodeId, Bytes)>>>>;

/// Cells and the queues between them.
#[derive(Default)]
struct Net {
    inboxes: Inboxes,
    cells: BTreeMap<u8, Cell>,
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

impl Net {
    fn of(numbers: std::ops::RangeInclusive<u8>) -> Self {
        let mut net = Self::default();
        for number in numbers {
            net.start(number, 10);
        }
        net
    }

    fn start(&mut self, number: u8, generation: u64) {
        let (outbound, mut outgoing) = mpsc::channel::<(NodeId, Bytes)>(64);
        let (inbox, inbound) = mpsc::channel(64);
        self.inboxes.lock().unwrap().insert(node(number), inbox);
        let inboxes = self.inboxes.clone();
        tokio::spawn(async move {
            while let Some((to, bytes)) = outgoing.recv().await {
                if let Some(inbox) = inboxes.lock().unwrap().get(&to) {
                    drop(inbox.try_send((node(number), bytes)));
                }
            }
        });
        let inboxes = self.inboxes.clone();
        let known: KnownPeers = Arc::new(move || inboxes.lock().unwrap().keys().copied().collect());
        let config = CellConfig::lan(node(number), generation, "shop", "eu-1");
        let cell = Cell::start(config, outbound, inbound, known, Arc::new(TokioClock));
        cell.put(key("m/id"), &format!("node {number} life {generation}"));
        self.cells.insert(number, cell);
    }

    fn stop(&mut self, number: u8) {
        self.inboxes.lock().unwrap().remove(&node(number));
        self.cells.remove(&number);
    }

    fn inject(&self, from: u8, to: u8, bytes: Vec<u8>) {
        let inboxes = self.inboxes.lock().unwrap();
        inboxes[&node(to)].try_send((node(from), Bytes::from(bytes))).unwrap();
    }

    fn value(&self, at: u8, of: u8, name: &str) -> Option<String> {
        let snapshot = self.cells[&at].snapshot();
        let (_, _, values) = snapshot.into_iter().find(|(holder, ..)| *holder == node(of))?;
        values.into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn all_hold(&self, of: u8, name: &str, expected: Option<&str>) -> bool {
        self.cells.keys().all(|at| self.value(*at, of, name).as_deref() == expected)
    }

    /// Polls a condition in virtual time until it holds, and fails when it does not within `seconds`.
    async fn within(&self, seconds: u64, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..seconds * 20 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let snapshots: Vec<_> = self.cells.iter().map(|(at, cell)| (at, cell.snapshot(), cell.counters())).collect();
        panic!("not within {seconds} s: {what}\n{snapshots:#?}");
    }

    fn refusals(&self) -> u64 {
        self.cells.values().flat_map(|cell| cell.counters().refused).map(|(_, count)| count).sum()
    }
}

fn drain(changes: &mut broadcast::Receiver<Change>) -> Vec<Change> {
    std::iter::from_fn(|| changes.try_recv().ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_key_reaches_all_and_all_see_all() {
    let net = Net::of(1..=5);
    net.within(5, "all see all", |net| (1..=5).all(|of| net.all_hold(of, "m/id", Some(&format!("node {of} life 10")))))
        .await;
    net.cells[&3].put(key("l/hello"), "0.25");
    net.within(3, "the key reaches all", |net| net.all_hold(3, "l/hello", Some("0.25"))).await;
    net.cells[&3].remove(&key("l/hello"));
    net.within(3, "its removal reaches all", |net| net.all_hold(3, "l/hello", None)).await;
    assert_eq!(net.refusals(), 0);
    let health = net.cells[&1].health();
    assert_eq!((health.members, health.restarts, health.loop_alive), (5, 0, true));
    assert_eq!(health.digest_bytes, 2 + 5 * (16 + 53));
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_once_and_in_order() {
    let net = Net::of(1..=2);
    net.within(5, "both see both", |net| (1..=2).all(|of| net.value(3 - of, of, "m/id").is_some())).await;
    let mut changes = net.cells[&1].subscribe();
    net.cells[&2].put(key("a"), "1");
    net.within(3, "a arrives", |net| net.value(1, 2, "a").is_some()).await;
    net.cells[&2].put(key("a"), "2");
    net.within(3, "a changes", |net| net.value(1, 2, "a").as_deref() == Some("2")).await;
    net.cells[&2].remove(&key("a"));
    net.within(3, "a goes", |net| net.value(1, 2, "a").is_none()).await;
    let change = |value: Option<&str>| Change {
        node: node(2),
        generation: 10,
        key: "a".to_owned(),
        value: value.map(Arc::from),
    };
    assert_eq!(drain(&mut changes), [change(Some("1")), change(Some("2")), change(None)]);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_member_wins_over_its_earlier_life_and_hears_everybody() {
    let mut net = Net::of(1..=3);
    net.within(5, "all see all", |net| (1..=3).all(|of| net.all_hold(of, "m/id", Some(&format!("node {of} life 10")))))
        .await;
    net.stop(2);
    tokio::time::sleep(Duration::from_secs(3)).await;
    net.start(2, 11);
    net.within(5, "all hold the new life", |net| net.all_hold(2, "m/id", Some("node 2 life 11"))).await;
    net.within(5, "it hears the others", |net| net.value(2, 1, "m/id").is_some() && net.value(2, 3, "m/id").is_some())
        .await;
    assert_eq!(net.refusals(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_four_hostile_packets_are_refused_counted_and_change_nothing() {
    let net = Net::of(1..=3);
    net.within(5, "all see all", |net| net.all_hold(3, "m/id", Some("node 3 life 10"))).await;
    let poison = ack(&Delta::new().node(node(3), 10).value("\u{e9}", "x", 500).zstd());
    let about_you = ack(&Delta::new().node(node(1), 10).value("m/id", "forged", 500).plain());
    let going_back = ack(&Delta::new().node(node(3), 10).value("a", "x", 9_000).max_version(5_000).plain());
    let packets = [
        (poison, Refused::NonAsciiKey),
        (about_you, Refused::AboutMe),
        (going_back, Refused::VersionBack),
        (ack(&bomb(2_954)), Refused::TooBig),
    ];
    for (bytes, reason) in packets {
        net.inject(2, 1, bytes);
        net.within(2, reason.label(), |net| net.cells[&1].counters().refused_for(reason) == 1).await;
    }
    net.cells[&3].put(key("after"), "all");
    net.within(3, "gossip goes on", |net| net.all_hold(3, "after", Some("all"))).await;
    assert_eq!(net.value(1, 1, "m/id").as_deref(), Some("node 1 life 10"));
    assert_eq!(net.value(1, 3, "a"), None);
    assert_eq!(net.cells[&1].health().restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn junk_and_strangers_are_counted_and_gossip_goes_on() {
    let net = Net::of(1..=2);
    net.within(5, "both see both", |net| net.all_hold(2, "m/id", Some("node 2 life 10"))).await;
    net.inject(2, 1, vec![1, 2, 3]);
    net.inject(9, 1, ack(&Delta::new().plain()));
    net.within(2, "both refused", |net| {
        let counters = net.cells[&1].counters();
        counters.refused_for(Refused::Malformed) == 1 && counters.refused_for(Refused::Stranger) == 1
    })
    .await;
    net.cells[&2].put(key("after"), "junk");
    net.within(3, "gossip goes on", |net| net.all_hold(2, "after", Some("junk"))).await;
}

/// A panic inside chitchat once left processes that served but no longer gossiped.
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_gossip_loop_is_noticed_and_the_loop_restarted() {
    let net = Net::of(1..=3);
    net.within(5, "all see all", |net| (1..=3).all(|of| net.all_hold(of, "m/id", Some(&format!("node {of} life 10")))))
        .await;
    let mut changes = net.cells[&1].subscribe();
    let chitchat = net.cells[&1].shared.chitchat.lock().unwrap().clone().unwrap();
    chitchat.lock().await.subscribe_event("bomb", |_| panic!("a bug of chitchat's, for the test")).forever();
    net.cells[&2].put(key("bomb"), "x");
    net.within(5, "the loop runs again", |net| {
        let health = net.cells[&1].health();
        health.restarts == 1 && health.loop_alive && health.generation == 11
    })
    .await;
    net.within(10, "all hear its values again", |net| {
        net.cells.values().all(|cell| {
            cell.snapshot().iter().any(|(of, life, values)| *of == node(1) && *life == 11 && !values.is_empty())
        })
    })
    .await;
    net.cells[&3].put(key("after"), "panic");
    net.within(5, "it hears others again", |net| net.all_hold(3, "after", Some("panic"))).await;
    // The last known values stayed in force: nobody else's value was ever withdrawn.
    let withdrawn: BTreeSet<NodeId> =
        drain(&mut changes).into_iter().filter(|change| change.value.is_none()).map(|change| change.node).collect();
    assert_eq!(withdrawn, BTreeSet::new());
}

/// A member writes another's state at the others: the guard cannot know. The victim sees news of itself, takes a new
/// life, and its own word is heard again.
#[tokio::test(start_paused = true)]
async fn a_forged_state_is_outdone_by_its_owner() {
    let net = Net::of(1..=3);
    net.within(5, "all see all", |net| net.all_hold(1, "m/id", Some("node 1 life 10"))).await;
    let digest = [Entry::new(node(2), 10, 1), Entry::new(node(1), 10, 900)];
    let forged = syn_ack(&digest, &Delta::new().node(node(1), 10).value("m/id", "forged", 900).plain());
    net.inject(2, 3, forged);
    net.within(2, "the forgery takes", |net| net.value(3, 1, "m/id").as_deref() == Some("forged")).await;
    net.within(30, "its owner is heard", |net| net.all_hold(1, "m/id", Some("node 1 life 10"))).await;
    assert!(net.cells[&1].health().generation > 10);
    assert!(net.cells[&1].counters().refused_for(Refused::AboutMe) >= 3);
}

#[tokio::test(start_paused = true)]
async fn own_values_have_their_limits() {
    let net = Net::of(1..=1);
    let cell = &net.cells[&1];
    assert!(!cell.put(key("long"), &"x".repeat(16 * 1024 + 1)));
    assert!(cell.put(key("a"), &"x".repeat(16 * 1024)));
    assert!(cell.put(key("b"), &"x".repeat(16 * 1024)));
    assert!(!cell.put(key("c"), &"x".repeat(16 * 1024)));
    assert!(cell.put(key("a"), "short"), "a value may shrink at the limit");
    assert!(cell.put(key("c"), &"x".repeat(16 * 1024)));
    assert_eq!(cell.counters().puts_refused, 2);
}

#[tokio::test(start_paused = true)]
async fn gossip_stops_with_its_last_handle() {
    let mut net = Net::of(1..=2);
    net.within(5, "both see both", |net| net.all_hold(1, "m/id", Some("node 1 life 10"))).await;
    let inbox = net.inboxes.lock().unwrap()[&node(1)].clone();
    net.stop(1);
    net.within(5, "its queue is closed", |_| inbox.is_closed()).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_to_the_links_drops_and_counts() {
    let (outbound, _never_read) = mpsc::channel(1);
    let (_inbox, inbound) = mpsc::channel(1);
    let known: KnownPeers = Arc::new(|| vec![node(2), node(3)]);
    let config = CellConfig::lan(node(1), 1, "shop", "eu-1");
    let cell = Cell::start(config, outbound, inbound, known, Arc::new(TokioClock));
    cell.put(key("a"), "1");
    for _ in 0..100 {
        if cell.counters().outbound_dropped > 3 {
            assert!(cell.health().loop_alive);
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("nothing was dropped: {:?}", cell.counters());
}
