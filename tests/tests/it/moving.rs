//! A node's address changes while requests are under way.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tests::{App, Cable, Fleet, Load, Node, Sent, Stopwatch, eventually, pause, run, skip};

const A: usize = 0;
const B: usize = 1;
/// The mesh port of both nodes.
const PORT: u16 = 7440;
/// Links this old are no longer among those that both ends dialled at once.
const SETTLED: Duration = Duration::from_secs(11);
/// How long the load goes on after a change.
const AFTER: Duration = Duration::from_secs(6);

/// Makes the agent at one end of the cable, which binds every address and is found by the route, as on a machine whose
/// address comes from DHCP.
fn settle(cable: &Cable, fleet: &mut Fleet, end: usize, address: [u8; 4], app: Option<SocketAddr>) {
    let mut node = fleet.newcomer();
    node.mesh = SocketAddr::from((address, PORT));
    let token = fleet.nodes.first().map(|first| cable.at(A, || first.token(&[])));
    cable.at(end, || match &token {
        None => assert_eq!(run(&node.options(&["init", "--mesh", "it"])).code, 0),
        Some(token) => {
            eventually("it joins", Duration::from_secs(10), || {
                let said = run(&node.options(&["join", token]));
                if said.code == 0 { Ok(()) } else { Err(said.err) }
            });
        }
    });
    node.configure(|config| {
        config.mesh.bind = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        config.mesh.advertise = None;
        if let Some(app) = app {
            Node::serve(config, "hello", app, None);
        }
    });
    cable.at(end, || node.start());
    fleet.nodes.push(node);
}

/// Waits until `from` has told the other node that it is reached at this address, and nobody took anybody for dead.
fn wait_told(cable: &Cable, fleet: &Fleet, from: usize, address: [u8; 4]) {
    let (teller, other) = (&fleet.nodes[from], &fleet.nodes[1 - from]);
    let wanted = SocketAddr::from((address, PORT)).to_string();
    eventually("the other node knows the new address", Duration::from_secs(10), || {
        let nodes = cable.at(1 - from, || other.nodes())?;
        let known = nodes.iter().find(|known| known.name == teller.name).ok_or("not known")?;
        if known.address == wanted { Ok(()) } else { Err(format!("{known:?}")) }
    });
    for (end, node) in fleet.nodes.iter().enumerate() {
        let dead = cable.at(end, || node.metric("marram_membership_verdicts_total", "state=\"dead\"")).unwrap();
        assert!(dead < 0.5, "{} took the other for dead\n{}", node.name, fleet.logs());
    }
}

/// Lets the load go on for so long.
fn go_on(time: Duration) {
    let watch = Stopwatch::start();
    while watch.elapsed() < time {
        pause(Duration::from_millis(100));
    }
}

#[test]
fn an_address_change_of_the_node_that_asks_and_of_the_node_that_answers_loses_no_request() {
    let addresses = ["10.77.0.1/24", "10.77.0.2/24"];
    let cable = match Cable::lay(addresses) {
        Ok(cable) => cable,
        Err(reason) => return skip("an_address_change_loses_no_request", reason),
    };
    let app = cable.at(B, || App::start("b"));
    let mut fleet = Fleet::launch(0, &|_, _| {});
    settle(&cable, &mut fleet, A, [10, 77, 0, 1], None);
    settle(&cable, &mut fleet, B, [10, 77, 0, 2], Some(app.address()));
    for (end, node) in fleet.nodes.iter().enumerate() {
        let (_, took) = eventually("the service is known", Duration::from_secs(20), || {
            let found = cable.at(end, || node.explain("hello"))?.candidates.len();
            if found == 1 { Ok(()) } else { Err(format!("{found}\n{}", fleet.logs())) }
        });
        assert!(took < Duration::from_secs(20));
    }
    let proxy = fleet.nodes[A].proxy;
    let load = cable.at(A, || Load::start(proxy, "hello", "GET", 4, Duration::from_millis(5)));
    let watch = Stopwatch::start();
    go_on(SETTLED);

    let moved_a = watch.elapsed();
    cable.readdress(A, addresses[A], "10.77.0.11/24");
    wait_told(&cable, &fleet, A, [10, 77, 0, 11]);
    go_on(SETTLED);
    let migrations = cable.at(B, || fleet.nodes[B].metric("marram_migrations_total", "")).unwrap();
    assert!(migrations >= 1.0, "the connections that A had opened went on: {migrations}\n{}", fleet.logs());

    let moved_b = watch.elapsed();
    cable.readdress(B, addresses[B], "10.77.0.12/24");
    wait_told(&cable, &fleet, B, [10, 77, 0, 12]);
    go_on(AFTER);
    let sent = load.stop();
    for (what, from, until) in [("A", moved_a, moved_b), ("B", moved_b, watch.elapsed())] {
        let within: Vec<&Sent> = sent.iter().filter(|sent| (from..until).contains(&sent.at)).collect();
        let failed: Vec<_> = within.iter().filter(|sent| !sent.is_good()).collect();
        let slowest = within.iter().map(|sent| sent.took).max().unwrap_or_default();
        println!("{what} moved: {} requests, {} failed, the slowest took {slowest:?}", within.len(), failed.len());
        assert!(failed.is_empty(), "{what} moved: {} of {}: {failed:#?}\n{}", failed.len(), within.len(), fleet.logs());
        assert!(within.len() > 300, "the load went on: {}", within.len());
    }
    // It wakes its own listener to end, which is there.
    cable.at(B, move || drop(app));
}
