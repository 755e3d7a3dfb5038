//! A node dies without a word while requests flow.

use std::time::Duration;

use rustix::process::Signal;
use tests::{App, Fleet, Load, Node, Sent, eventually};

/// Threads that send POSTs; so many can be in flight when the node dies.
const WRITERS: usize = 2;

#[test]
fn killing_a_serving_node_fails_no_idempotent_request_and_it_is_back_soon_after_its_restart() {
    let apps = [App::start("a"), App::start("b")];
    let mut fleet = Fleet::start(3, &|n, config| {
        if let Some(app) = apps.get(n) {
            Node::serve(config, "hello", app.address(), Some(100.0));
        }
    });
    fleet.wait_service("hello", 2);
    let proxy = fleet.nodes[2].proxy;
    let reads = Load::start(proxy, "hello", "GET", 4, Duration::from_millis(5));
    let writes = Load::start(proxy, "hello", "POST", WRITERS, Duration::from_millis(10));
    wait_for(&reads, 200);
    wait_for(&writes, 40);
    assert!(apps[1].requests() > 0, "the node that is to die serves");

    fleet.nodes[1].kill();
    let (_, noticed) = eventually("both others list it as dead, with a reason", Duration::from_secs(10), || {
        for node in [&fleet.nodes[0], &fleet.nodes[2]] {
            let nodes = node.nodes()?;
            let gone = nodes.iter().find(|known| known.name == "n1").ok_or("n1 is not listed")?;
            if gone.state != "dead" || gone.reason.is_empty() {
                return Err(format!("{}: {} because {}", node.name, gone.state, gone.reason));
            }
        }
        Ok(())
    });
    let told = fleet.nodes[2].run(&["nodes"]);
    let row = told.out.lines().find(|line| line.starts_with("n1")).unwrap_or_default();
    assert!(row.contains("dead"), "{}", told.out);
    let explanation = fleet.nodes[2].explain("hello").unwrap();
    assert_eq!(explanation.candidates.len(), 1, "{explanation:?}");
    assert!(explanation.excluded.iter().any(|out| out.node == "n1" && out.reason.contains("dead")), "{explanation:?}");
    wait_for(&reads, reads.count() + 200);

    let served_before = apps[1].requests();
    fleet.nodes[1].start();
    let (_, back) = eventually("it is alive everywhere and serves again", Duration::from_secs(5), || {
        for node in &fleet.nodes {
            let alive = node.members("alive")?;
            if alive.len() != 3 {
                return Err(format!("{} sees {alive:?}\n{}", node.name, node.log_tail(15)));
            }
        }
        if apps[1].requests() > served_before { Ok(()) } else { Err("no request arrived there".to_owned()) }
    });
    wait_for(&reads, reads.count() + 200);

    let (reads, writes) = (reads.stop(), writes.stop());
    let failed: Vec<&Sent> = reads.iter().filter(|sent| !sent.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} GETs: {:#?}\n{}", failed.len(), reads.len(), failed, fleet.logs());
    let failed: Vec<&Sent> = writes.iter().filter(|sent| !sent.is_good()).collect();
    assert!(failed.len() <= WRITERS, "{} of {} POSTs: {:#?}", failed.len(), writes.len(), failed);
    let slowest = reads.iter().map(|sent| sent.took).max().unwrap_or_default();
    println!(
        "{} GETs, slowest {slowest:?}; {} POSTs, {} failed; dead after {noticed:?}, back after {back:?}",
        reads.len(),
        writes.len(),
        failed.len()
    );
}

#[test]
fn a_node_that_freezes_fails_no_idempotent_request_and_is_back_when_it_thaws() {
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(3, &|n, config| {
        if let Some(app) = apps.get(n) {
            Node::serve(config, "hello", app.address(), Some(100.0));
        }
    });
    fleet.wait_service("hello", 2);
    let reads = Load::start(fleet.nodes[2].proxy, "hello", "GET", 4, Duration::from_millis(5));
    wait_for(&reads, 200);
    // Its sockets stay open and nothing answers: nobody is told, everything has to be noticed.
    fleet.nodes[1].signal(Signal::STOP);
    let (_, noticed) = eventually("the others list it as dead", Duration::from_secs(10), || {
        for node in [&fleet.nodes[0], &fleet.nodes[2]] {
            let dead = node.members("dead")?;
            if dead != ["n1"] {
                return Err(format!("{}: {:?}", node.name, node.nodes()?));
            }
        }
        Ok(())
    });
    wait_for(&reads, reads.count() + 200);
    let served_before = apps[1].requests();
    fleet.nodes[1].signal(Signal::CONT);
    let (_, back) = eventually("it is alive everywhere and serves again", Duration::from_secs(10), || {
        for node in &fleet.nodes {
            let alive = node.members("alive")?;
            if alive.len() != 3 {
                return Err(format!("{} sees {alive:?}\n{}", node.name, node.log_tail(15)));
            }
        }
        if apps[1].requests() > served_before {
            return Ok(());
        }
        let explanation = fleet.nodes[2].explain("hello")?;
        Err(format!("no request arrived there: {explanation:#?}\n{}", fleet.logs()))
    });
    let reads = reads.stop();
    let failed: Vec<&Sent> = reads.iter().filter(|sent| !sent.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} GETs: {failed:#?}\n{}", failed.len(), reads.len(), fleet.logs());
    let slowest = reads.iter().map(|sent| sent.took).max().unwrap_or_default();
    println!("{} GETs, slowest {slowest:?}; dead after {noticed:?}, back after {back:?}", reads.len());
}

fn wait_for(load: &Load, count: usize) {
    eventually(&format!("{count} requests have ended"), Duration::from_secs(30), || {
        let ended = load.count();
        if ended >= count { Ok(()) } else { Err(format!("{ended} have")) }
    });
}
