//! Fleets on a virtual network: deaths, losses, deafness, partitions.

use std::time::Duration;

use super::super::*;
use super::sim::Sim;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn one_of_three_killed_is_dead_at_the_others_within_ten_seconds() {
    for seed in 0..20 {
        let mut sim = Sim::settled(seed, 3, &SwimConfig::lan());
        sim.run_for(Duration::from_millis(seed * 143));
        let killed_at = sim.now;
        sim.kill(1);
        assert!(sim.run_until(killed_at + 10 * SECOND, |sim| sim.count_view(1, Liveness::Dead) == 2), "seed {seed}");
        let death = sim.deaths()[0];
        assert!(death.reason.contains("no ack to") || death.reason.contains("suspected by"), "{}", death.reason);
    }
}

#[test]
fn one_of_two_killed_is_dead_at_the_other_within_ten_seconds() {
    for seed in 0..10 {
        let mut sim = Sim::settled(seed, 2, &SwimConfig::lan());
        let killed_at = sim.now;
        sim.kill(1);
        assert!(sim.run_until(killed_at + 10 * SECOND, |sim| sim.count_view(1, Liveness::Dead) == 1), "seed {seed}");
    }
}

#[test]
fn a_restarted_node_is_alive_everywhere_within_two_seconds() {
    let config = SwimConfig::lan();
    for seed in 0..10 {
        for count in [2, 3, 5] {
            let mut sim = Sim::settled(seed, count, &config);
            sim.kill(1);
            sim.run_for(15 * SECOND);
            assert_eq!(sim.count_view(1, Liveness::Dead), count - 1);
            let restarted_at = sim.now;
            sim.restart(1, &config);
            let all = sim.run_until(restarted_at + 2 * SECOND, |sim| sim.all_agree(Liveness::Alive));
            assert!(all, "seed {seed}, {count} nodes: {:?}", sim.disagreement(Liveness::Alive));
            assert!(!sim.nodes[1].incarnations.is_empty(), "it must have taken a higher incarnation");
        }
    }
}

#[test]
fn a_restart_faster_than_its_detection_ends_alive() {
    let config = SwimConfig::lan();
    let mut sim = Sim::settled(3, 5, &config);
    sim.kill(1);
    sim.run_for(3 * SECOND);
    sim.restart(1, &config);
    sim.run_for(15 * SECOND);
    assert!(sim.all_agree(Liveness::Alive), "{:?}", sim.disagreement(Liveness::Alive));
    assert_eq!(sim.deaths().len(), 0, "{:?}", sim.deaths());
}

#[test]
fn a_death_among_fifty_is_known_to_all_within_twelve_seconds() {
    let mut slowest = Duration::ZERO;
    for seed in 0..10 {
        let mut sim = Sim::settled(seed, 50, &SwimConfig::lan());
        let killed_at = sim.now;
        sim.kill(7);
        let all = sim.run_until(killed_at + 12 * SECOND, |sim| sim.count_view(7, Liveness::Dead) == 49);
        assert!(all, "seed {seed}: {} of 49 know", sim.count_view(7, Liveness::Dead));
        slowest = slowest.max(sim.now - killed_at);
        assert!(sim.deaths().iter().all(|death| death.node == 7));
    }
    assert!(slowest > 4 * SECOND, "a suspect must have its four seconds");
}

/// Rumours passed on a few times once missed a node in ten runs of a hundred, which then waited 17 s.
#[test]
fn a_death_among_ten_is_known_to_all_within_ten_seconds() {
    for seed in 0..60 {
        let mut sim = Sim::settled(seed, 10, &SwimConfig::lan());
        sim.run_for(Duration::from_millis(seed * 143));
        let killed_at = sim.now;
        sim.kill(1);
        let all = sim.run_until(killed_at + 10 * SECOND, |sim| sim.count_view(1, Liveness::Dead) == 9);
        assert!(all, "seed {seed}: {} of 9 know", sim.count_view(1, Liveness::Dead));
    }
}

#[test]
fn five_percent_loss_for_five_minutes_kills_nobody() {
    let mut sim = Sim::settled(0, 50, &SwimConfig::lan());
    sim.loss = 0.05;
    sim.run_for(300 * SECOND);
    assert!(sim.deaths().is_empty(), "{:?}", sim.deaths());
}

#[test]
fn deaf_accusers_kill_no_healthy_node() {
    let mut sim = Sim::settled(0, 100, &SwimConfig::lan());
    for sick in 0..4 {
        sim.nodes[sick].deaf = Some((4 * SECOND, SECOND / 2));
    }
    sim.run_for(300 * SECOND);
    let deaths = sim.deaths();
    let among_healthy = deaths.iter().filter(|verdict| verdict.node >= 4 && verdict.observer >= 4);
    let false_deaths: Vec<_> = among_healthy.collect();
    assert!(false_deaths.is_empty(), "{false_deaths:?}");
}

#[test]
fn a_healed_partition_is_whole_again_within_five_seconds() {
    for (seed, count, cut) in [(1, 5, 2), (2, 20, 10), (3, 50, 20)] {
        let mut sim = Sim::settled(seed, count, &SwimConfig::lan());
        for node in 0..cut {
            sim.nodes[node].group = 1;
        }
        sim.run_for(60 * SECOND);
        assert_eq!(sim.view(0, cut), Some(Liveness::Dead));
        assert_eq!(sim.view(cut, 0), Some(Liveness::Dead));
        assert_eq!(sim.view(0, 1), Some(Liveness::Alive));
        let healed_at = sim.now;
        for node in 0..cut {
            sim.nodes[node].group = 0;
        }
        let whole = sim.run_until(healed_at + 5 * SECOND, |sim| sim.all_agree(Liveness::Alive));
        assert!(whole, "{count} nodes: {:?}", sim.disagreement(Liveness::Alive));
    }
}

#[test]
fn one_broken_path_makes_nobody_dead_while_others_can_relay() {
    let mut sim = Sim::settled(5, 6, &SwimConfig::lan());
    sim.loss = 0.2;
    sim.run_for(120 * SECOND);
    assert!(sim.deaths().is_empty(), "{:?}", sim.deaths());
}

#[test]
fn half_a_fleet_that_dies_at_once_is_found_dead_by_the_rest() {
    let mut sim = Sim::settled(8, 30, &SwimConfig::lan());
    for node in 15..30 {
        sim.kill(node);
    }
    let killed_at = sim.now;
    let found =
        sim.run_until(killed_at + 60 * SECOND, |sim| (15..30).all(|node| sim.count_view(node, Liveness::Dead) == 15));
    assert!(found, "{:?}", (15..30).map(|node| sim.count_view(node, Liveness::Dead)).collect::<Vec<_>>());
    assert!(sim.deaths().iter().all(|death| death.node >= 15), "{:?}", sim.deaths());
}

#[test]
fn a_death_is_found_through_loss_too() {
    for seed in 0..5 {
        let mut sim = Sim::settled(seed, 30, &SwimConfig::lan());
        sim.loss = 0.05;
        let killed_at = sim.now;
        sim.kill(4);
        assert!(sim.run_until(killed_at + 15 * SECOND, |sim| sim.count_view(4, Liveness::Dead) == 29), "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut sim = Sim::new(seed, 20, &SwimConfig::lan());
        sim.loss = 0.1;
        sim.run_for(30 * SECOND);
        sim.kill(3);
        sim.run_for(30 * SECOND);
        sim.trace()
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

#[test]
fn a_quiet_fleet_sends_about_two_packets_a_node_and_second() {
    let mut sim = Sim::settled(1, 50, &SwimConfig::lan());
    let before = sim.packets;
    sim.run_for(60 * SECOND);
    let per_node = (sim.packets - before) / 50;
    assert!((114..132).contains(&per_node), "{per_node} in 60 s");
}

#[test]
fn a_goodbye_reaches_all_without_a_death() {
    let mut sim = Sim::settled(1, 40, &SwimConfig::lan());
    sim.leave(9);
    sim.run_for(3 * SECOND);
    sim.kill(9);
    sim.run_for(20 * SECOND);
    assert_eq!(sim.count_view(9, Liveness::Left), 39);
    assert!(sim.deaths().is_empty(), "{:?}", sim.deaths());
}

#[test]
fn whoever_left_and_restarts_is_alive_again() {
    let config = SwimConfig::lan();
    let mut sim = Sim::settled(1, 5, &config);
    sim.leave(2);
    sim.run_for(SECOND);
    sim.kill(2);
    sim.run_for(20 * SECOND);
    let restarted_at = sim.now;
    sim.restart(2, &config);
    let all = sim.run_until(restarted_at + 2 * SECOND, |sim| sim.all_agree(Liveness::Alive));
    assert!(all, "{:?}", sim.disagreement(Liveness::Alive));
}

#[test]
#[ignore = "prints figures; takes a minute"]
fn figures() {
    for count in [3, 5, 10, 50, 100, 200] {
        let mut all: Vec<u128> = (0..20)
            .map(|seed| {
                let mut sim = Sim::settled(seed, count, &SwimConfig::lan());
                sim.run_for(Duration::from_millis(seed * 143));
                let killed_at = sim.now;
                sim.kill(1);
                sim.run_until(killed_at + 60 * SECOND, |sim| sim.count_view(1, Liveness::Dead) == count - 1);
                (sim.now - killed_at).as_millis()
            })
            .collect();
        all.sort_unstable();
        println!("{count} nodes: all know after median {} ms, max {} ms", all[10], all[19]);
    }
    for loss in [0.02, 0.05, 0.10] {
        let mut sim = Sim::settled(1, 100, &SwimConfig::lan());
        sim.loss = loss;
        let before = sim.packets;
        sim.run_for(300 * SECOND);
        println!("loss {loss}: {} deaths, {} packets", sim.deaths().len(), (sim.packets - before) / 100);
    }
    for (sick, stall) in [(4, 4), (4, 12), (8, 4), (8, 12)] {
        let mut sim = Sim::settled(1, 200, &SwimConfig::lan());
        for node in 0..sick {
            sim.nodes[node].deaf = Some((stall * SECOND, SECOND / 2));
        }
        sim.run_for(300 * SECOND);
        let deaths = sim.deaths();
        let healthy = deaths.iter().filter(|verdict| verdict.node >= sick && verdict.observer >= sick).count();
        println!("{sick} deaf for {stall} s: {healthy} false deaths among healthy, {} in all", deaths.len());
    }
}
