use std::time::Duration;

use super::{Balancer, SCENARIOS, Scenario, run};

fn scenario(name: &str) -> &'static Scenario {
    Scenario::named(name).unwrap_or_else(|| panic!("no scenario {name}"))
}

#[test]
fn a_seed_gives_the_same_run_and_another_seed_another() {
    let short = Duration::from_millis(300);
    for balancer in Balancer::ALL {
        let once = run(scenario("two-zones"), balancer, short, 7);
        assert_eq!(once, run(scenario("two-zones"), balancer, short, 7), "{balancer}");
        assert_ne!(once, run(scenario("two-zones"), balancer, short, 8), "{balancer}");
    }
}

#[test]
fn every_balancer_gets_the_same_requests() {
    for scenario in &SCENARIOS {
        let counts = Balancer::ALL.map(|balancer| run(scenario, balancer, Duration::from_millis(200), 3).count());
        assert!(counts[0] > 100, "{}: {counts:?}", scenario.name);
        assert!(counts.iter().all(|count| *count == counts[0]), "{}: {counts:?}", scenario.name);
    }
}

#[test]
fn one_client_and_idle_servers_take_the_round_trip_and_the_work() {
    // At a thousandth of what the servers can do nobody queues: 10 ms of work and half a millisecond on the way, whatever
    // the balancer.
    let idle = Scenario { utilisation: 0.001, clients: 1, ..*scenario("equal-0.6") };
    for balancer in Balancer::ALL {
        let taken = run(&idle, balancer, Duration::from_secs(400), 1);
        let (p50, p99) = (taken.quantile_ms(500), taken.quantile_ms(990));
        // The median of an exponential is ln 2 of its mean, the 99th percentile ln 100.
        assert!((p50 - 7.43).abs() < 0.8 && (p99 - 46.6).abs() < 6.0, "{balancer}: p50 {p50}, p99 {p99}");
    }
}

/// How much longer than under the oracle 99 of 100 requests take at most, for one seed.
fn ratio(name: &str, balancer: Balancer) -> f64 {
    let p99 = |balancer| run(scenario(name), balancer, Duration::from_secs(8), 1).quantile_ms(990);
    p99(balancer) / p99(Balancer::Oracle)
}

#[test]
fn the_best_of_two_stays_near_the_oracle() {
    for (name, most) in [("equal-0.9", 1.3), ("unequal", 1.5), ("slow-server", 1.5), ("two-zones", 1.5)] {
        let ratio = ratio(name, Balancer::BestOfTwo);
        assert!(ratio < most, "{name}: p99 is {ratio:.2} times that of the oracle");
    }
}

#[test]
fn the_simulation_tells_a_worse_way_to_choose() {
    // Or else the test above says nothing.
    let ratio = ratio("equal-0.9", Balancer::Capacity);
    assert!(ratio > 2.0, "random by capacity: p99 is only {ratio:.2} times that of the oracle");
}
