//! SIGTERM: what is under way is finished, nobody is sent there any more, and the others are told.

use std::thread;
use std::time::Duration;

use node::view::PolicyView;
use rustix::process::Signal;
use serde_json::json;
use tests::{App, Fleet, Load, Node, Sent, Stopwatch, eventually, get, pause};

#[test]
fn a_node_told_to_stop_finishes_what_it_has_and_says_goodbye() {
    let apps = [App::start("a"), App::start("b")];
    let mut fleet = Fleet::start(3, &|n, config| {
        if let Some(app) = apps.get(n) {
            Node::serve(config, "hello", app.address(), None);
        }
        if n == 0 {
            Node::serve(config, "slow", apps[0].address(), None);
        }
    });
    fleet.wait_service("hello", 2);
    fleet.wait_service("slow", 1);
    let load = Load::start(fleet.nodes[2].proxy, "hello", "GET", 2, Duration::from_millis(5));
    // From another node, and from an application beside it.
    let (remote, local) = (fleet.nodes[2].proxy, fleet.nodes[0].proxy);
    let slow =
        [remote, local].map(|proxy| thread::spawn(move || get(proxy, "/slow?ms=2000", &[("host", "slow.mesh")])));
    eventually("both slow requests are in flight", Duration::from_secs(5), || {
        let known = fleet.nodes[0].ask("/v1/services/slow")?;
        if known["instances"][0]["inflight"] == 2 { Ok(()) } else { Err(known.to_string()) }
    });

    let watch = Stopwatch::start();
    fleet.nodes[0].signal(Signal::TERM);
    eventually("it says that it takes no more work", Duration::from_millis(500), || {
        let answer = get(fleet.nodes[0].admin, "/readyz", &[])?;
        if answer.status == 503 && answer.body.contains("draining") { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    for node in &fleet.nodes[1..] {
        eventually("the others do not draw it any more", Duration::from_secs(1), || {
            let explanation = node.explain("hello")?;
            let drawn: Vec<&str> = explanation.candidates.iter().map(|candidate| candidate.node.as_str()).collect();
            if drawn == ["n1"] { Ok(()) } else { Err(format!("{}: {explanation:?}", node.name)) }
        });
        eventually("the others list it as left", Duration::from_secs(1), || {
            let left = node.members("left")?;
            if left == ["n0"] { Ok(()) } else { Err(format!("{}: {left:?}\n{}", node.name, node.log_tail(15))) }
        });
    }
    assert!(watch.elapsed() < Duration::from_secs(2), "all that while the slow requests run: {:?}", watch.elapsed());
    for request in slow {
        let answer = request.join().unwrap().unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello from a"), "{answer:?}");
    }
    assert_eq!(fleet.nodes[0].ended(Duration::from_secs(5)), Some(0), "{}", fleet.nodes[0].log_tail(20));
    let sent = load.stop();
    let failed: Vec<&Sent> = sent.iter().filter(|sent| !sent.is_good()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}\n{}", failed.len(), sent.len(), fleet.logs());
    let reason = fleet.nodes[1].nodes().unwrap().into_iter().find(|known| known.name == "n0").unwrap();
    assert_eq!(reason.state, "left", "it stays so after its process has ended: {reason:?}");

    fleet.nodes[0].start();
    fleet.wait_whole();
    fleet.wait_service("hello", 2);
}

#[test]
fn an_idle_node_stops_at_once_and_a_slow_request_is_cut_after_the_drain_time() {
    let app = App::start("a");
    let mut fleet = Fleet::start(1, &|_, config| {
        config.proxy.drain_timeout = Duration::from_secs(1);
        Node::serve(config, "hello", app.address(), None);
    });
    fleet.wait_service("hello", 1);
    let watch = Stopwatch::start();
    assert_eq!(fleet.nodes[0].terminate(), Some(0));
    assert!(watch.elapsed() < Duration::from_secs(3), "nothing was in flight: {:?}", watch.elapsed());

    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    let proxy = fleet.nodes[0].proxy;
    let slow = thread::spawn(move || get(proxy, "/slow?ms=15000", &[("host", "hello.mesh")]));
    eventually("the slow request is in flight", Duration::from_secs(5), || {
        let known = fleet.nodes[0].ask("/v1/services/hello")?;
        if known["instances"][0]["inflight"] == 1 { Ok(()) } else { Err(known.to_string()) }
    });
    let watch = Stopwatch::start();
    assert_eq!(fleet.nodes[0].terminate(), Some(0));
    let took = watch.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&took), "{took:?}");
    let answer = slow.join().unwrap();
    assert!(answer.as_ref().ok().is_none_or(|answer| answer.status >= 500), "{answer:?}");
}

#[test]
fn a_node_told_to_stop_right_after_a_write_waits_until_another_has_it_on_disk() {
    const DOCUMENTS: usize = 20;
    let mut fleet = Fleet::start(2, &|_, _| {});
    let _same = fleet.wait_roots_equal(Duration::from_secs(5));
    // Nothing gets through to the other node, and what is written is more than the kernel would keep for it.
    fleet.nodes[1].signal(Signal::STOP);
    let text = "x".repeat(30_000);
    for number in 0..DOCUMENTS {
        let name = format!("note-{number}");
        let document = json!({
            "apiVersion": "marram.dev/v1",
            "kind": "Note",
            "metadata": { "name": name, "scope": "global" },
            "spec": { "text": text },
        });
        let answer = fleet.nodes[0].write("PUT", &format!("/v1/policies/global/Note/{name}"), &document.to_string());
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let watch = Stopwatch::start();
    fleet.nodes[0].signal(Signal::TERM);
    while watch.elapsed() < Duration::from_millis(1500) {
        assert!(fleet.nodes[0].is_running(), "gone after {:?} with the only copy", watch.elapsed());
        pause(Duration::from_millis(20));
    }
    fleet.nodes[1].signal(Signal::CONT);
    assert_eq!(fleet.nodes[0].ended(Duration::from_secs(10)), Some(0), "{}", fleet.nodes[0].log_tail(20));
    assert!(watch.elapsed() < Duration::from_secs(6), "it does not wait for ever: {:?}", watch.elapsed());
    let there: Vec<PolicyView> = serde_json::from_value(fleet.nodes[1].ask("/v1/policies").unwrap()).unwrap();
    assert_eq!(there.len(), DOCUMENTS, "{}", fleet.logs());
}

#[test]
fn a_node_whose_peers_do_not_answer_stops_all_the_same_and_says_what_nobody_has() {
    let mut fleet = Fleet::start(2, &|_, _| {});
    let _same = fleet.wait_roots_equal(Duration::from_secs(5));
    fleet.nodes[1].signal(Signal::STOP);
    let note = r#"{"apiVersion":"marram.dev/v1","kind":"Note","metadata":{"name":"last","scope":"global"},"spec":{}}"#;
    let answer = fleet.nodes[0].write("PUT", "/v1/policies/global/Note/last", note);
    assert_eq!(answer.status, 201, "{answer:?}");
    let watch = Stopwatch::start();
    assert_eq!(fleet.nodes[0].terminate(), Some(0));
    assert!(watch.elapsed() < Duration::from_secs(8), "{:?}", watch.elapsed());
    let log = fleet.nodes[0].log_tail(20);
    assert!(log.contains("no other node has confirmed the newest policy of this one"), "{log}");

    // It stands on the disk and spreads when there is somebody again.
    fleet.nodes[1].signal(Signal::CONT);
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    let _met = fleet.wait_roots_equal(Duration::from_secs(10));
    let there: Vec<PolicyView> = serde_json::from_value(fleet.nodes[1].ask("/v1/policies").unwrap()).unwrap();
    assert_eq!(there.len(), 1, "{}", fleet.logs());
}
