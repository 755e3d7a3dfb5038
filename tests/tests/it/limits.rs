//! What goes wrong behind a node, and what of it the node's clients feel: too many second tries, one slow service beside
//! others, too many requests, an instance that hangs, fast errors, faults made on purpose.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tests::{Answer, App, Fleet, Load, Node, Request, Stopwatch, eventually, get, send_within};

use crate::policy::apply;

/// A policy for `service` with this spec.
fn policy(service: &str, spec: &str) -> String {
    format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {service} }}\n\
         targetRef: {{ kind: Service, name: {service} }}\nspec: {{ {spec} }}\n"
    )
}

fn ask(node: &Node, service: &str, path: &str) -> Answer {
    get(node.proxy, path, &[("host", &format!("{service}.mesh"))]).unwrap()
}

/// A process that takes connections and never answers.
fn silent() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Requests for `service`, sent and left waiting, each on a connection of its own.
fn left_waiting(proxy: SocketAddr, service: &str, count: usize) -> Vec<TcpStream> {
    let send = |_| {
        let mut stream = TcpStream::connect(proxy).unwrap();
        std::io::Write::write_all(&mut stream, format!("GET / HTTP/1.1\r\nHost: {service}.mesh\r\n\r\n").as_bytes())
            .unwrap();
        stream
    };
    (0..count).map(send).collect()
}

#[test]
fn when_every_first_try_fails_only_as_many_second_tries_are_made_as_the_budget_holds() {
    // Of each pair one dies with every request that it gets.
    let dying = dying();
    let good = App::start("good");
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            config.proxy.eject_time = Duration::from_millis(1);
        } else {
            Node::serve(config, "pair", dying, None);
            Node::serve(config, "pair", good.address(), None);
        }
    });
    fleet.wait_service("pair", 2);
    let node = &fleet.nodes[0];
    let spec = "loadBalancer: { draw: Single }, \
                retryConstraint: { budget: { percent: 10, interval: 60s }, minRetryRate: { count: 5, interval: 60s } }";
    apply(node, &policy("pair", spec));
    eventually("the budget is in force", Duration::from_secs(5), || {
        let told = node.explain("pair")?.policy;
        if told.contains("pair") { Ok(()) } else { Err(told) }
    });
    let before = good.requests();
    let mut failed = Vec::new();
    for _ in 0..200 {
        let answer = ask(node, "pair", "/");
        if answer.status != 200 {
            failed.push(answer);
        }
    }
    let retried = node.metric("marram_retries_total", "service=\"pair\"").unwrap();
    let denied = node.metric("marram_retries_denied_total", "reason=\"budget\"").unwrap();
    // 22 of 222 sent are one in ten.
    assert!((5.0..=22.0).contains(&retried), "{retried} second tries for 200 requests");
    assert!(denied > 0.0, "{} failed, {retried} were sent again", failed.len());
    assert_eq!(denied.to_string(), failed.len().to_string(), "what is not sent again is answered");
    let answer = &failed[0];
    assert_eq!((answer.status, &answer.json()["code"]), (502, &"instance_failed".into()), "{answer:?}");
    assert!(answer.body.contains("retry budget"), "{answer:?}");
    assert_eq!(good.requests() - before, 200 - failed.len() as u64);
}

/// An instance that keeps what it is sent, and never answers.
fn holding() -> SocketAddr {
    let listener = silent();
    let address = listener.local_addr().unwrap();
    // The queue of the system alone is too short for so many.
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    address
}

/// An instance that reads a request and closes.
fn dying() -> SocketAddr {
    let listener = silent();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::Read::read(&mut stream, &mut [0; 4096]).ok());
        }
    });
    address
}

#[test]
fn a_service_whose_requests_all_hang_leaves_room_for_the_others_here_and_behind_the_same_peer() {
    let slow = holding();
    let good = App::start("good");
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            // A quarter of it is more than all streams to one peer, which are 240 for each data thread.
            config.mesh.data_threads = 1;
            config.proxy.connections_max = 1200;
        } else {
            Node::serve(config, "slow", slow, None);
            Node::serve(config, "good", good.address(), None);
        }
    });
    fleet.wait_service("slow", 1);
    fleet.wait_service("good", 1);
    let node = &fleet.nodes[0];
    assert_eq!(ask(node, "good", "/").status, 200);
    let waiting = left_waiting(node.proxy, "slow", 400);
    eventually("one too many for the slow one is refused", Duration::from_secs(20), || {
        let answer = send_within(
            node.proxy,
            &Request { path: "/", headers: &[("host", "slow.mesh")], ..Request::default() },
            Duration::from_secs(1),
        )?;
        assert_eq!((answer.status, answer.header("marram-limit")), (503, Some("circuitBreaker.maxParallelRequests")));
        assert!(answer.body.contains("`circuitBreaker.maxParallelRequests` is 300, the default"), "{answer:?}");
        Ok(())
    });
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        let watch = Stopwatch::start();
        let answer = ask(node, "good", "/");
        slowest = slowest.max(watch.elapsed());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let refused = node.metric("marram_limits_reached_total", "limit=\"circuitBreaker.maxParallelRequests\"").unwrap();
    assert!(refused >= 100.0, "{refused}");
    drop(waiting);
}

#[test]
fn an_instance_that_hangs_costs_a_few_requests_one_try_and_no_request_its_whole_time() {
    const REQUESTS: usize = 500;
    let (silent, good) = (silent(), App::start("good"));
    let fleet = Fleet::start(2, &|n, config| {
        if n == 1 {
            Node::serve(config, "half", silent.local_addr().unwrap(), None);
            Node::serve(config, "half", good.address(), None);
        }
    });
    fleet.wait_service("half", 2);
    let node = &fleet.nodes[0];
    let route = "
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: half }
spec:
  hostnames: [ half.mesh ]
  rules: [ { backendRefs: [ { name: half } ], timeouts: { request: 10s, backendRequest: 400ms } } ]
---
";
    apply(node, &format!("{route}{}", policy("half", "loadBalancer: { draw: Single }")));
    eventually("the rule is in force", Duration::from_secs(5), || {
        let told = node.explain("half")?.policy;
        if told.contains("half") { Ok(()) } else { Err(told) }
    });
    let load = Load::start(node.proxy, "half", "GET", 8, Duration::ZERO);
    eventually("all were sent", Duration::from_secs(60), || match load.count() {
        count if count >= REQUESTS => Ok(()),
        count => Err(format!("{count}")),
    });
    let sent = load.stop();
    let bad: Vec<_> = sent.iter().filter(|one| !one.is_good()).collect();
    let slow = sent.iter().filter(|one| one.took >= Duration::from_millis(400)).count();
    let longest = sent.iter().map(|one| one.took).max().unwrap_or_default();
    println!("{slow} of {} waited for the one that hangs, the longest {longest:?}, {} failed", sent.len(), bad.len());
    assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), sent.len(), bad.first());
    // Five in a row, and those that were on their way to it meanwhile.
    assert!((5..=5 + 8).contains(&slow), "{slow} of {} waited", sent.len());
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    let told = format!("{:?}", node.explain("half").unwrap());
    assert!(told.contains("ejected here for answering with errors"), "{told}");
}

#[test]
fn a_fast_refusal_does_not_attract_requests() {
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(2, &|n, config| {
        if n == 1 {
            apps.iter().for_each(|app| Node::serve(config, "pair", app.address(), None));
        }
    });
    fleet.wait_service("pair", 2);
    let node = &fleet.nodes[0];
    // Both are known, then one refuses at once where the other takes its time.
    (0..40).for_each(|_| assert_eq!(ask(node, "pair", "/slow?ms=5").status, 200));
    apps[0].set_status(429);
    let refused = (0..300).filter(|_| ask(node, "pair", "/slow?ms=5").status == 429).count();
    println!("{refused} of 300 were refused");
    // One in two by P, give or take what chance does; one that attracted would get nearly all.
    assert!(refused <= 200, "{refused} of 300 went to the one that refuses: more than its half");
}

#[test]
fn requests_beyond_the_rate_are_answered_429_and_injected_faults_are_marked() {
    let app = App::start("a");
    let fleet = Fleet::start(1, &|_, config| Node::serve(config, "app", app.address(), None));
    fleet.wait_service("app", 1);
    let node = &fleet.nodes[0];
    apply(node, &policy("app", "rateLimit: { local: { requests: 20, unit: Hour } }"));
    let mut codes = Vec::new();
    eventually("the rate is met", Duration::from_secs(10), || {
        let answer = ask(node, "app", "/");
        codes.push(answer.status);
        if answer.status == 200 {
            return Err("not yet".to_owned());
        }
        assert_eq!((answer.status, &answer.json()["code"]), (429, &"rate_limited".into()), "{answer:?}");
        let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=180).contains(&after), "{after}");
        Ok(())
    });
    assert!(codes.len() > 20, "{codes:?}");
    assert!(node.metric("marram_limits_reached_total", "limit=\"rateLimit.local\"").unwrap() >= 1.0);

    let before = app.requests();
    apply(node, &policy("app", "faultInjection: { abort: { httpStatus: 503, percentage: 100 } }"));
    eventually("faults are injected", Duration::from_secs(10), || {
        let answer = ask(node, "app", "/");
        if answer.header("marram-injected") == Some("abort") { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let asked = app.requests();
    for _ in 0..20 {
        let answer = ask(node, "app", "/");
        assert_eq!((answer.status, &answer.json()["code"]), (503, &"fault_injected".into()), "{answer:?}");
    }
    assert_eq!(app.requests(), asked, "{before}");
    assert!(node.metric("marram_faults_injected_total", "fault=\"abort\"").unwrap() >= 20.0);
    assert!(node.metric("marram_ejections_total", "").unwrap() < 1.0, "an injected fault is nobody's failure");
}

#[test]
fn a_rate_of_all_nodes_is_shared_by_what_is_asked_of_each() {
    const RATE: f64 = 200.0;
    let app = App::start("a");
    let fleet = Fleet::start(3, &|n, config| {
        if n == 0 {
            Node::serve(config, "app", app.address(), None);
        }
    });
    fleet.wait_service("app", 1);
    apply(&fleet.nodes[0], &policy("app", "rateLimit: { global: { requests: 200, unit: Second, burst: 20 } }"));
    eventually("it is in force, and as nobody asks all have the same", Duration::from_secs(10), || {
        for node in &fleet.nodes {
            let told = node.explain("app")?.fleet_rate.ok_or("no rate")?;
            if told.nodes != 3 || (told.share_per_s - RATE / 3.0).abs() > 1.0 {
                return Err(format!("{}: {told:?}", node.name));
            }
        }
        Ok(())
    });
    // More than there is, very unequal: about 30 in a second, and twice as much as the machine can do.
    let small = Load::start(fleet.nodes[1].proxy, "app", "GET", 1, Duration::from_millis(30));
    let big = [0, 2].map(|n| Load::start(fleet.nodes[n].proxy, "app", "GET", 2, Duration::from_millis(4)));
    eventually("who asks for little has it, and the others share the rest", Duration::from_secs(20), || {
        let rate = |node: &Node| node.explain("app")?.fleet_rate.ok_or_else(|| "no rate".to_owned());
        let rates = fleet.nodes.iter().map(rate).collect::<Result<Vec<_>, String>>()?;
        let [one, little, other] = rates.as_slice() else { return Err(format!("{rates:?}")) };
        let is_fair = little.share_per_s >= little.demand_per_s
            && one.share_per_s > RATE / 3.0 + 5.0
            && (one.share_per_s - other.share_per_s).abs() < 10.0;
        if is_fair { Ok(()) } else { Err(format!("{rates:?}")) }
    });
    let (watch, before) = (Stopwatch::start(), app.requests());
    eventually("some seconds pass", Duration::from_secs(10), || {
        if watch.elapsed() >= Duration::from_millis(2500) { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let served = f64::from(u32::try_from(app.requests() - before).unwrap()) / watch.elapsed().as_secs_f64();
    let since = watch.elapsed();
    let refused = |sent: Vec<tests::Sent>| {
        let answers: Vec<Answer> = sent.into_iter().rev().take(100).map(|one| one.answer.unwrap()).collect();
        let refused: Vec<Answer> = answers.iter().filter(|answer| answer.status == 429).cloned().collect();
        assert!(answers.iter().all(|answer| [200, 429].contains(&answer.status)), "{answers:?}");
        refused
    };
    let big: Vec<Answer> = big.into_iter().flat_map(|load| refused(load.stop())).collect();
    let small = refused(small.stop());
    println!(
        "{served:.1} in a second over {since:?}; of the last 100 each {} and {} were refused",
        big.len(),
        small.len()
    );
    assert!((RATE * 0.7..=RATE * 1.1).contains(&served), "{served}");
    assert!(big.len() > 10, "{}", big.len());
    assert!(small.len() < 50, "who asks for little has it: {}", small.len());
    let answer = &big[0];
    assert_eq!((answer.header("marram-limit"), answer.header("retry-after")), (Some("rateLimit.global"), Some("1")));
    assert!(answer.body.contains("as one of 3"), "{answer:?}");
    assert!(fleet.nodes[0].metric("marram_rate_limit_share", "service=\"app\"").unwrap() > 65.0);
    assert!(fleet.nodes[0].metric("marram_limits_reached_total", "limit=\"rateLimit.global\"").unwrap() > 1.0);
}

#[test]
fn a_hedged_request_takes_the_quicker_of_two_instances() {
    // Half of the requests are hedged here, far more than a budget is for.
    const PLENTY: &str = "retryConstraint: { minRetryRate: { count: 1000, interval: 1s } }";
    let (silent, good) = (silent(), App::start("good"));
    let fleet = Fleet::start(2, &|n, config| {
        if n == 1 {
            Node::serve(config, "half", silent.local_addr().unwrap(), None);
            Node::serve(config, "half", good.address(), None);
        }
    });
    fleet.wait_service("half", 2);
    let node = &fleet.nodes[0];
    apply(node, &policy("half", &format!("loadBalancer: {{ draw: Single }}, hedging: {{ delay: 50ms }}, {PLENTY}")));
    eventually("a hedge has won", Duration::from_secs(20), || {
        let watch = Stopwatch::start();
        let limit = Duration::from_secs(3);
        let headers = [("host", "half.mesh")];
        // Before the policy is in force a request may wait for ever.
        let answer = send_within(node.proxy, &Request { path: "/", headers: &headers, ..Request::default() }, limit)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        let won = node.metric("marram_hedges_total", "result=\"won\"")?;
        if won >= 1.0 { Ok(()) } else { Err(format!("{won} won, {:?}", watch.elapsed())) }
    });
    let watch = Stopwatch::start();
    for _ in 0..20 {
        assert_eq!(ask(node, "half", "/").status, 200);
    }
    assert!(watch.elapsed() < Duration::from_secs(10), "{:?}", watch.elapsed());
}
