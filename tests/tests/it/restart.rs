//! Restarts that nobody notices: one node with its sockets held by somebody else, and all nodes in turn under load.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tests::{App, Fleet, HeldSockets, Load, Node, Sent, Stopwatch, eventually, get, pause};

/// Every request that the application did not answer.
fn failed(sent: &[Sent]) -> Vec<&Sent> {
    sent.iter().filter(|sent| !sent.is_good()).collect()
}

/// Restarts a node on sockets that stay open; returns how long it took until it was ready.
fn restart(node: &mut Node, held: &HeldSockets) -> Duration {
    let watch = Stopwatch::start();
    assert_eq!(node.terminate(), Some(0), "{}", node.log_tail(20));
    node.start_on(held);
    node.wait_ready();
    watch.elapsed()
}

#[test]
fn connections_wait_in_a_socket_that_is_held_while_the_agent_restarts() {
    let app = App::start("a");
    let mut fleet = Fleet::start(1, &|_, config| Node::serve(config, "hello", app.address(), None));
    fleet.wait_service("hello", 1);
    let node = &mut fleet.nodes[0];
    assert_eq!(node.terminate(), Some(0));
    let held = HeldSockets::of(node);
    node.start_on(&held);
    node.wait_ready();

    let load = Load::start(node.proxy, "hello", "GET", 4, Duration::from_millis(5));
    for _ in 0..3 {
        let before = load.count();
        eventually("some requests between restarts", Duration::from_secs(10), || {
            if load.count() > before + 50 { Ok(()) } else { Err(load.count().to_string()) }
        });
        restart(node, &held);
    }
    // The admin socket is held as well: who asks while nobody serves is answered later.
    node.terminate();
    let admin = node.admin;
    let asked = thread::spawn(move || get(admin, "/readyz", &[]));
    node.start_on(&held);
    assert!(asked.join().unwrap().is_ok());

    let sent = load.stop();
    let failed = failed(&sent);
    assert!(failed.is_empty(), "{} of {}: {failed:#?}\n{}", failed.len(), sent.len(), fleet.logs());
}

#[test]
fn a_held_socket_that_nothing_in_the_configuration_serves_is_named() {
    let mut fleet = Fleet::start(1, &|_, _| {});
    let node = &mut fleet.nodes[0];
    assert_eq!(node.terminate(), Some(0));
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = elsewhere.local_addr().unwrap();
    let held = HeldSockets { proxy: elsewhere, admin: TcpListener::bind(node.admin).unwrap() };
    node.start_on(&held);
    assert_eq!(node.ended(Duration::from_secs(10)), Some(1));
    let log = node.log_tail(10);
    assert!(log.contains(&format!("listens on {address}")) && log.contains("hint:"), "{log}");
}

#[test]
fn all_nodes_restarted_in_turn_under_load_lose_no_request() {
    const NODES: usize = 3;
    let apps: Vec<App> = (0..NODES).map(|n| App::start(&format!("app-{n}"))).collect();
    let mut fleet = Fleet::start(NODES, &|n, config| Node::serve(config, "hello", apps[n].address(), None));
    fleet.wait_service("hello", NODES);
    let held: Vec<HeldSockets> = fleet
        .nodes
        .iter_mut()
        .map(|node| {
            assert_eq!(node.terminate(), Some(0));
            let held = HeldSockets::of(node);
            node.start_on(&held);
            held
        })
        .collect();
    fleet.wait_whole();
    fleet.wait_service("hello", NODES);

    // About 300 requests a second in all, at every node, each on a connection of its own.
    let loads: Vec<Load> =
        fleet.nodes.iter().map(|node| Load::start(node.proxy, "hello", "GET", 1, Duration::from_millis(9))).collect();
    for (n, held) in held.iter().enumerate() {
        restart(&mut fleet.nodes[n], held);
        fleet.wait_whole();
        fleet.wait_service("hello", NODES);
    }
    let sent: Vec<Sent> = loads.into_iter().flat_map(Load::stop).collect();
    let failed = failed(&sent);
    assert!(failed.is_empty(), "{} of {}: {failed:#?}\n{}", failed.len(), sent.len(), fleet.logs());
    assert!(sent.len() > 300, "the load went on: {}", sent.len());
}

#[test]
fn a_second_sigterm_cuts_the_waits_of_a_stop_short() {
    let app = App::start("a");
    let mut fleet = Fleet::start(1, &|_, config| {
        config.proxy.drain_timeout = Duration::from_secs(30);
        Node::serve(config, "hello", app.address(), None);
    });
    fleet.wait_service("hello", 1);
    let node = &mut fleet.nodes[0];
    let proxy = node.proxy;
    let slow = thread::spawn(move || get(proxy, "/slow?ms=15000", &[("host", "hello.mesh")]));
    eventually("the slow request is in flight", Duration::from_secs(5), || {
        let known = node.ask("/v1/services/hello")?;
        if known["instances"][0]["inflight"] == 1 { Ok(()) } else { Err(known.to_string()) }
    });
    let watch = Stopwatch::start();
    node.signal(Signal::TERM);
    while watch.elapsed() < Duration::from_secs(1) {
        assert!(node.is_running(), "the first one lets the request end");
        pause(Duration::from_millis(20));
    }
    node.signal(Signal::TERM);
    assert_eq!(node.ended(Duration::from_secs(3)), Some(0), "{}", node.log_tail(20));
    let answer = slow.join().unwrap();
    assert!(answer.as_ref().ok().is_none_or(|answer| answer.status >= 500), "{answer:?}");
    let log = node.log_tail(10);
    assert!(log.contains("told to stop a second time"), "{log}");
    // Ended in order all the same: the store is closed and opens again.
    node.start();
    node.wait_ready();
}
