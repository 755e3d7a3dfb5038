//! One prober at a time: what a packet does.

use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::message::{Body, Packet, Status, Update};
use super::super::*;
use super::sim::{Sim, coord, id};

const SECOND: Duration = Duration::from_secs(1);
const NOW: Duration = Duration::from_secs(100);

struct One {
    swim: Swim,
    rng: StdRng,
}

impl One {
    fn new(incarnation: u32) -> Self {
        Self { swim: Swim::new(id(0), incarnation, SwimConfig::lan()), rng: StdRng::seed_from_u64(1) }
    }

    /// A prober that has found nodes 1 to `count` alive.
    fn with_alive(count: usize) -> Self {
        let mut one = Self::new(0);
        for node in 1..=count {
            one.swim.handle_peer(NOW, id(node), PeerChange::Discovered);
            let probe = one.probe_to(node).expect("a newcomer is probed at once");
            one.hear(node, 0, Body::Ack { sequence: probe }, &[]);
        }
        one.outputs();
        one
    }

    fn outputs(&mut self) -> Vec<SwimOutput> {
        std::iter::from_fn(|| self.swim.poll_output()).collect()
    }

    fn packets(&mut self) -> Vec<(NodeId, Packet)> {
        let sends = self.outputs().into_iter().filter_map(|output| match output {
            SwimOutput::Send { to, bytes } => Some((to, Packet::decode(&bytes).unwrap())),
            _ => None,
        });
        sends.collect()
    }

    fn probe_to(&mut self, node: usize) -> Option<u32> {
        self.packets().into_iter().find_map(|(to, packet)| match packet.body {
            Body::Probe { sequence } if to == id(node) => Some(sequence),
            _ => None,
        })
    }

    fn hear(&mut self, from: usize, incarnation: u32, body: Body, updates: &[Update]) {
        let bytes = packet(from, incarnation, body, updates).encode();
        self.swim.handle_packet(NOW, id(from), &bytes, &mut self.rng);
    }

    fn view(&self, node: usize) -> Option<Liveness> {
        self.swim.member(&id(node)).map(|member| member.liveness)
    }
}

use crate::id::NodeId;

fn packet(from: usize, incarnation: u32, body: Body, updates: &[Update]) -> Packet {
    let status = Some(Status { load: 300, coord: Some(coord(0.25)) });
    Packet { cell: CellId::default(), from: id(from), incarnation, status, body, updates: updates.to_vec() }
}

fn update(liveness: Liveness, node: usize, incarnation: u32, by: usize) -> Update {
    Update { liveness, node: id(node), incarnation, by: id(by) }
}

#[test]
fn a_member_is_joining_until_it_answers_a_probe() {
    let mut one = One::new(0);
    one.swim.handle_peer(NOW, id(1), PeerChange::Discovered);
    assert_eq!(one.view(1), Some(Liveness::Joining));
    let sequence = one.probe_to(1).unwrap();
    let bytes = packet(1, 0, Body::Ack { sequence }, &[]).encode();
    one.swim.handle_packet(NOW + Duration::from_millis(3), id(1), &bytes, &mut one.rng);
    assert_eq!(one.view(1), Some(Liveness::Alive));
    let outputs = one.outputs();
    let rtt = SwimOutput::Rtt { node: id(1), rtt: Duration::from_millis(3), coord: Some(coord(0.25)), load: 300 };
    assert!(outputs.contains(&rtt), "{outputs:?}");
    let member = one.swim.member(&id(1)).unwrap();
    assert_eq!(member.reason.to_string(), "answered a probe after 3.0 ms");
    assert_eq!((member.load, member.last_ack), (Some(300), Some(NOW + Duration::from_millis(3))));
}

#[test]
fn suspicion_is_refuted_by_higher_incarnation() {
    let mut one = One::with_alive(5);
    one.hear(2, 0, Body::News, &[update(Liveness::Suspect, 1, 0, 2)]);
    assert_eq!(one.view(1), Some(Liveness::Suspect));
    // The same incarnation says nothing new, even from the suspect itself.
    one.hear(1, 0, Body::News, &[]);
    assert_eq!(one.view(1), Some(Liveness::Suspect));
    one.hear(1, 1, Body::News, &[]);
    assert_eq!(one.view(1), Some(Liveness::Alive));
    assert_eq!(one.swim.member(&id(1)).unwrap().reason, VerdictReason::Refuted { incarnation: 1 });
    // An accusation of the old incarnation comes too late.
    one.hear(3, 0, Body::News, &[update(Liveness::Suspect, 1, 0, 3), update(Liveness::Dead, 1, 0, 3)]);
    assert_eq!(one.view(1), Some(Liveness::Alive));
}

#[test]
fn a_node_objects_to_its_own_suspicion_at_once() {
    let mut one = One::with_alive(5);
    one.hear(2, 0, Body::News, &[update(Liveness::Suspect, 0, 0, 3)]);
    assert_eq!(one.swim.incarnation(), 1);
    assert_eq!(one.swim.health(), 1);
    let outputs = one.outputs();
    assert!(outputs.contains(&SwimOutput::Incarnation(1)));
    let told: Vec<NodeId> = outputs
        .iter()
        .filter_map(|output| match output {
            SwimOutput::Send { to, bytes } => {
                let packet = Packet::decode(bytes).unwrap();
                assert_eq!(packet.incarnation, 1);
                packet.updates.contains(&update(Liveness::Alive, 0, 1, 0)).then_some(*to)
            }
            _ => None,
        })
        .collect();
    assert!(told.contains(&id(2)) && told.contains(&id(3)), "teller and accuser hear it: {told:?}");
}

#[test]
fn death_loses_to_a_newer_incarnation_and_to_nothing_else() {
    let mut one = One::with_alive(5);
    one.hear(2, 0, Body::News, &[update(Liveness::Dead, 1, 0, 2)]);
    assert_eq!(one.view(1), Some(Liveness::Dead));
    one.hear(3, 0, Body::News, &[update(Liveness::Alive, 1, 0, 1)]);
    assert_eq!(one.view(1), Some(Liveness::Dead));
    one.outputs();
    one.hear(3, 0, Body::News, &[update(Liveness::Alive, 1, 1, 1)]);
    assert_eq!(one.view(1), Some(Liveness::Joining), "alive for others; for us once it answers");
    let sequence = one.probe_to(1).unwrap();
    one.hear(1, 1, Body::Ack { sequence }, &[]);
    assert_eq!(one.view(1), Some(Liveness::Alive));
}

#[test]
fn a_dead_member_that_probes_hears_that_it_is_dead() {
    let mut one = One::with_alive(3);
    one.hear(2, 0, Body::News, &[update(Liveness::Dead, 1, 0, 2)]);
    one.outputs();
    one.hear(1, 0, Body::Probe { sequence: 5 }, &[]);
    let (to, ack) = one.packets().remove(0);
    assert_eq!((to, ack.body), (id(1), Body::Ack { sequence: 5 }));
    assert_eq!(ack.updates[0].liveness, Liveness::Dead);
    assert_eq!(ack.updates[0].node, id(1));
}

#[test]
fn a_restarted_node_takes_a_higher_incarnation_than_its_earlier_life() {
    let mut one = One::with_alive(3);
    one.hear(1, 0, Body::News, &[update(Liveness::Alive, 0, 7, 0)]);
    assert_eq!(one.swim.incarnation(), 8);
    one.hear(1, 0, Body::News, &[update(Liveness::Dead, 0, 8, 2)]);
    assert_eq!(one.swim.incarnation(), 9);
    one.hear(1, 0, Body::News, &[update(Liveness::Dead, 0, 3, 2)]);
    assert_eq!(one.swim.incarnation(), 9);
}

#[test]
fn bad_bytes_are_counted_and_change_nothing() {
    let mut one = One::with_alive(2);
    let good = packet(1, 5, Body::Probe { sequence: 1 }, &[]);
    let stranger_cell = Packet { cell: CellId::from_name("other"), ..good.clone() };
    let mut newer = good.encode().to_vec();
    newer[0] = 200;
    one.swim.handle_packet(NOW, id(1), b"", &mut one.rng);
    one.swim.handle_packet(NOW, id(1), &[1; 40], &mut one.rng);
    one.swim.handle_packet(NOW, id(1), &newer, &mut one.rng);
    one.swim.handle_packet(NOW, id(1), &stranger_cell.encode(), &mut one.rng);
    one.swim.handle_packet(NOW, id(2), &good.encode(), &mut one.rng);
    let counters = *one.swim.counters();
    assert_eq!(counters.malformed, 2);
    assert_eq!((counters.unknown_version, counters.wrong_cell, counters.wrong_sender), (1, 1, 1));
    assert_eq!(one.swim.member(&id(1)).unwrap().incarnation, 0);
    assert!(one.outputs().is_empty());
}

#[test]
fn an_incarnation_out_of_reach_is_refused() {
    let mut one = One::with_alive(2);
    one.hear(1, 0, Body::News, &[update(Liveness::Suspect, 0, u32::MAX, 1), update(Liveness::Alive, 2, u32::MAX, 2)]);
    assert_eq!(one.swim.counters().implausible_updates, 2);
    assert_eq!(one.swim.incarnation(), 0);
    assert_eq!(one.swim.member(&id(2)).unwrap().incarnation, 0);
}

#[test]
fn an_ack_of_another_or_of_nothing_is_stray() {
    let mut one = One::new(0);
    one.swim.handle_peer(NOW, id(1), PeerChange::Discovered);
    let sequence = one.probe_to(1).unwrap();
    one.hear(2, 0, Body::Ack { sequence }, &[]);
    one.hear(1, 0, Body::Ack { sequence: sequence + 1000 }, &[]);
    assert_eq!(one.swim.counters().stray_acks, 2);
    assert_eq!(one.view(1), Some(Liveness::Joining));
}

#[test]
fn a_relay_tells_what_it_heard_and_says_so_when_it_heard_nothing() {
    let mut one = One::with_alive(3);
    let patience = Duration::from_millis(500);
    one.hear(1, 0, Body::Ask { sequence: 40, target: id(2), patience }, &[]);
    let sequence = one.probe_to(2).unwrap();
    one.hear(2, 0, Body::Ack { sequence }, &[]);
    let relayed: Vec<_> = one.packets().into_iter().map(|(to, packet)| (to, packet.body)).collect();
    assert_eq!(relayed, vec![(id(1), Body::Relayed { sequence: 40, target: id(2) })]);

    one.hear(1, 0, Body::Ask { sequence: 41, target: id(3), patience }, &[]);
    one.outputs();
    one.swim.handle_timeout(NOW + Duration::from_millis(399), &mut one.rng);
    assert!(!one.packets().iter().any(|(_, packet)| matches!(packet.body, Body::Nack { .. })));
    one.swim.handle_timeout(NOW + Duration::from_millis(400), &mut one.rng);
    let nack = Body::Nack { sequence: 41, target: id(3) };
    assert!(one.packets().iter().any(|(to, packet)| *to == id(1) && packet.body == nack));
}

#[test]
fn early_and_repeated_timeouts_change_nothing() {
    let mut one = One::with_alive(3);
    let due = one.swim.poll_timeout().unwrap();
    one.swim.handle_timeout(due, &mut one.rng);
    assert!(!one.outputs().is_empty());
    one.swim.handle_timeout(due, &mut one.rng);
    assert!(one.outputs().is_empty());
}

#[test]
fn a_pause_of_ones_own_accuses_nobody() {
    let mut one = One::with_alive(3);
    one.hear(2, 0, Body::News, &[update(Liveness::Suspect, 1, 0, 2)]);
    one.swim.handle_timeout(NOW + 60 * SECOND, &mut one.rng);
    assert_eq!(one.view(1), Some(Liveness::Suspect), "it gets its time once we run again");
    assert_eq!(one.view(2), Some(Liveness::Alive));
    assert_eq!(one.view(3), Some(Liveness::Alive));
}

#[test]
fn the_member_list_is_bounded_and_the_longest_gone_leave_first() {
    let config = SwimConfig { members_max: 4, ..SwimConfig::lan() };
    let mut one = One { swim: Swim::new(id(0), 0, config), ..One::new(0) };
    for node in 1..=6 {
        one.swim.handle_peer(NOW + SECOND * u32::try_from(node).unwrap(), id(node), PeerChange::Discovered);
    }
    assert_eq!(one.swim.members().count(), 4);
    assert_eq!(one.view(1), None);
    assert_eq!(one.view(6), Some(Liveness::Joining));
}

#[test]
fn who_is_removed_is_gone_without_a_verdict() {
    let mut one = One::with_alive(2);
    one.swim.handle_peer(NOW, id(1), PeerChange::Removed);
    assert_eq!(one.view(1), None);
    assert!(one.outputs().is_empty());
}

#[test]
fn strangers_named_as_accusers_do_not_count() {
    let mut one = One::with_alive(5);
    one.hear(2, 0, Body::News, &[update(Liveness::Suspect, 1, 0, 77)]);
    assert_eq!(one.view(1), Some(Liveness::Alive));
}

#[test]
fn load_and_coordinate_ride_on_every_packet() {
    let mut one = One::with_alive(1);
    one.swim.set_local(777, coord(0.5));
    one.hear(1, 0, Body::Probe { sequence: 9 }, &[]);
    let (_, ack) = one.packets().remove(0);
    assert_eq!(ack.status, Some(Status { load: 777, coord: Some(coord(0.5)) }));
}

#[test]
fn a_forged_flood_of_names_stays_bounded() {
    let mut sim = Sim::settled(1, 3, &SwimConfig::lan());
    for round in 0..200 {
        let updates: Vec<Update> =
            (0..20).map(|n| update(Liveness::Alive, 100 + round * 20 + n, 1, 100 + round * 20 + n)).collect();
        let bytes = packet(1, 0, Body::News, &updates).encode();
        sim.inject(0, 1, &bytes);
    }
    assert!(sim.nodes[0].swim.members().count() <= SwimConfig::lan().members_max);
    assert_eq!(sim.view(0, 1), Some(Liveness::Alive));
    assert_eq!(sim.view(0, 2), Some(Liveness::Alive));
}

fn any_body() -> impl Strategy<Value = Body> {
    let millis = |ms: u16| Duration::from_millis(u64::from(ms));
    prop_oneof![
        (0_u32..40).prop_map(|sequence| Body::Probe { sequence }),
        (0_u32..40).prop_map(|sequence| Body::Ack { sequence }),
        (0_u32..40, 0_usize..8, any::<u16>()).prop_map(move |(sequence, target, patience)| Body::Ask {
            sequence,
            target: id(target),
            patience: millis(patience)
        }),
        (0_u32..40, 0_usize..8).prop_map(|(sequence, target)| Body::Relayed { sequence, target: id(target) }),
        (0_u32..40, 0_usize..8).prop_map(|(sequence, target)| Body::Nack { sequence, target: id(target) }),
        Just(Body::News),
    ]
}

fn any_update() -> impl Strategy<Value = Update> {
    let liveness =
        prop_oneof![Just(Liveness::Alive), Just(Liveness::Suspect), Just(Liveness::Dead), Just(Liveness::Left)];
    let incarnation = prop_oneof![0_u32..4, Just(u32::MAX)];
    (liveness, 0_usize..8, incarnation, 0_usize..8)
        .prop_map(|(liveness, node, incarnation, by)| update(liveness, node, incarnation, by))
}

proptest! {
    /// Whatever well-formed packets come, in whatever order and with time standing still or leaping: no panic, an
    /// incarnation that never falls, and outputs that stay in proportion.
    #[test]
    fn any_sequence_of_packets_is_survived(
        steps in proptest::collection::vec(
            (1_usize..8, 0_u32..4, any_body(), proptest::collection::vec(any_update(), 0..5), 0_u64..3000),
            1..60,
        )
    ) {
        let mut one = One::new(0);
        let mut now = NOW;
        let mut incarnation = 0;
        for (from, of_sender, body, updates, pause_ms) in steps {
            now += Duration::from_millis(pause_ms);
            let bytes = packet(from, of_sender, body, &updates).encode();
            one.swim.handle_timeout(now, &mut one.rng);
            one.swim.handle_packet(now, id(from), &bytes, &mut one.rng);
            let outputs = one.outputs();
            prop_assert!(outputs.len() < 100, "{}", outputs.len());
            prop_assert!(one.swim.incarnation() >= incarnation);
            incarnation = one.swim.incarnation();
            let suspects = one.swim.members().filter(|member| member.liveness == Liveness::Suspect);
            prop_assert!(suspects.into_iter().all(|member| member.suspicion.is_some()));
        }
    }
}

#[test]
fn an_ack_past_every_timeout_proves_life_but_is_no_round_trip() {
    // A node was stopped for seconds and answered every waiting probe at once: it then looked half a second away, and
    // got no requests long after it was back.
    let mut one = One::new(0);
    one.swim.handle_peer(NOW, id(1), PeerChange::Discovered);
    let sequence = one.probe_to(1).expect("a newcomer is probed at once");
    let bytes = packet(1, 0, Body::Ack { sequence }, &[]).encode();
    one.swim.handle_packet(NOW + 5 * SECOND, id(1), &bytes, &mut one.rng);
    let member = one.swim.member(&id(1)).expect("it is known");
    assert_eq!((member.liveness, member.last_ack), (Liveness::Alive, Some(NOW + 5 * SECOND)));
    assert!(!one.outputs().iter().any(|output| matches!(output, SwimOutput::Rtt { .. })), "5 s told as a round trip");
}
