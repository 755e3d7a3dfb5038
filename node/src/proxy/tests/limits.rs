//! Retry budget, breakers, rate limits, injected faults and hedges, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Request;
use policy::RateLimit;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;

use super::bench::{Bench, echo, instance, nobody, read_head, silent, until};
use super::client::{Client, Reply};
use super::streams::{Streams, http2_instance};
use crate::config::{Protocol, ProxyConfig};
use crate::limits::{Count, FleetShare};
use crate::snapshot::Endpoint;

/// A policy for `hello` with this spec.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: hello }}\n\
         targetRef: {{ kind: Service, name: hello }}\nspec: {{ {spec} }}\n"
    )
}

async fn ask(bench: &Bench, method: &str, headers: &str) -> Reply {
    let mut client = Client::connect(bench.address).await;
    client.ask(format!("{method} / HTTP/1.1\r\nHost: hello.mesh\r\n{headers}\r\n")).await
}

/// A request that is sent and not waited for; its connection stays open.
async fn begin(address: SocketAddr, host: &str) -> Client {
    let mut client = Client::connect(address).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    client
}

fn hint(reply: &Reply) -> String {
    reply.json()["problems"][0]["hint"].as_str().unwrap_or_default().to_owned()
}

fn count(bench: &Bench, count: Count) -> u32 {
    bench.context.published.load().services["hello"].stats.count(count)
}

/// The endpoint gets the next pick, as if the other were full. A report that is old is believed less, so the figure is one of which
/// enough is left after a tenth of a second on a busy machine.
fn favour(bench: &Bench, preferred: &Endpoint, other: &Endpoint) {
    let now = bench.context.clock.now();
    other.stats.report_inflight(u32::MAX, now);
    preferred.stats.report_inflight(0, now);
}

/// An instance that answers a request when it is told to.
async fn held() -> (SocketAddr, Arc<AtomicUsize>, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let told = Arc::clone(&release);
    let (address, connections) = instance(move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            while read_head(&mut stream).await.is_some() {
                told.notified().await;
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, connections, release)
}

#[tokio::test]
async fn a_failure_is_answered_when_the_retry_budget_is_used_up_or_the_client_wants_no_second_try() {
    for (spec, headers, expected) in [
        ("retryConstraint: { budget: { percent: 0 }, minRetryRate: { count: 0 } }", "", "retry budget"),
        ("circuitBreaker: { maxParallelRetries: 0 }", "", "circuitBreaker.maxParallelRetries"),
        ("loadBalancer: {}", "marram-retry: off\r\n", "marram-retry: off"),
    ] {
        let mut bench = Bench::start().await;
        let bad = bench.add_local("hello", nobody(), Protocol::Http);
        let (address, connections) = echo("good").await;
        let good = bench.add_local("hello", address, Protocol::Http);
        bench.apply(&policy(spec));
        favour(&bench, &bad, &good);
        let reply = ask(&bench, "GET", headers).await;
        assert_eq!(reply.problem(502), "instance_failed", "{spec}");
        assert!(hint(&reply).contains(expected), "{reply:?}");
        assert_eq!(connections.load(Ordering::SeqCst), 0, "{spec}");
        let reply = ask(&bench, "GET", "").await;
        assert!(reply.status == 200 && !reply.text().contains("marram-retry"), "the bad one is out: {reply:?}");
    }
}

#[tokio::test]
async fn ten_second_tries_a_second_are_made_and_then_one_in_five() {
    let mut bench = Bench::start().await;
    let (address, _) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    let bad = bench.add_local("hello", nobody(), Protocol::Http);
    let minute = "budget: { interval: 60s }, minRetryRate: { count: 10, interval: 60s }";
    bench.apply(&policy(&format!("retryConstraint: {{ {minute} }}, loadBalancer: {{ draw: Single }}")));
    let mut failed = 0;
    for _ in 0..100 {
        bad.stats.readmit();
        favour(&bench, &bad, &good);
        failed += usize::from(ask(&bench, "GET", "").await.status == 502);
    }
    // k further tries are within a fifth of 100 first ones and themselves up to k = 25.
    assert_eq!(100 - failed, 25);
}

#[tokio::test]
async fn requests_beyond_a_services_limit_are_refused_at_once_and_other_services_are_not() {
    let mut bench = Bench::start().await;
    let (address, _) = silent().await;
    bench.add_local("hello", address, Protocol::Http);
    let (address, _) = echo("other").await;
    bench.add_local("other", address, Protocol::Http);
    bench.apply(&policy("circuitBreaker: { maxParallelRequests: 2 }"));
    let _waiting = (begin(bench.address, "hello.mesh").await, begin(bench.address, "hello.mesh").await);
    until("two are under way", || count(&bench, Count::Requests) == 2).await;
    let reply = ask(&bench, "GET", "").await;
    assert_eq!(reply.problem(503), "overloaded");
    assert_eq!(reply.header("marram-limit"), Some("circuitBreaker.maxParallelRequests"));
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("is 2, set by global/BackendTrafficPolicy/hello"), "{detail}");
    assert_eq!(Client::connect(bench.address).await.get("other.mesh", "/").await.status, 200);
}

#[tokio::test]
async fn one_service_gets_a_quarter_of_the_connections_unless_policy_says_otherwise() {
    let config = ProxyConfig { connections_max: 8, ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, _) = silent().await;
    bench.add_local("hello", address, Protocol::Http);
    let _hanging = [begin(bench.address, "hello.mesh").await, begin(bench.address, "hello.mesh").await];
    until("two are under way", || count(&bench, Count::Requests) == 2).await;
    let reply = ask(&bench, "GET", "").await;
    assert_eq!(reply.problem(503), "overloaded");
    assert!(reply.json()["detail"].as_str().unwrap().contains("a quarter of `proxy.connections_max`"), "{reply:?}");
}

#[tokio::test]
async fn a_request_waits_for_a_connection_where_all_are_in_use_and_is_refused_where_too_many_wait() {
    let mut bench = Bench::start().await;
    let (address, _, release) = held().await;
    bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("circuitBreaker: { maxConnections: 1, maxPendingRequests: 1 }"));
    let mut first = begin(bench.address, "hello.mesh").await;
    until("one is in use", || count(&bench, Count::Connections) == 1).await;
    let mut second = begin(bench.address, "hello.mesh").await;
    until("one waits", || count(&bench, Count::Pending) == 1).await;
    let reply = ask(&bench, "GET", "").await;
    assert_eq!(reply.problem(503), "overloaded");
    assert_eq!(reply.header("marram-limit"), Some("circuitBreaker.maxPendingRequests"));
    for client in [&mut first, &mut second] {
        release.notify_one();
        assert_eq!(client.reply().await.status, 200);
    }
    until("none is in use", || count(&bench, Count::Connections) == 0).await;
}

#[tokio::test]
async fn tunnels_count_as_connections_and_one_too_many_is_refused() {
    let mut bench = Bench::start().await;
    let (address, _) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("circuitBreaker: { maxConnections: 1 }"));
    let connect = "CONNECT hello.mesh:80 HTTP/1.1\r\nHost: hello.mesh\r\n\r\n";
    let mut first = Client::connect(bench.address).await;
    first.send(connect).await;
    assert_eq!(first.head().await.status, 200);
    let reply = Client::connect(bench.address).await.ask(connect).await;
    assert_eq!(reply.problem(503), "overloaded");
    assert_eq!(reply.header("marram-limit"), Some("circuitBreaker.maxConnections"));
    drop(first);
    until("it is free again", || count(&bench, Count::Connections) == 0).await;
}

#[tokio::test]
async fn an_instance_at_its_limit_leaves_requests_to_the_others_until_all_are() {
    let mut bench = Bench::start().await;
    let (address, slow_connections) = silent().await;
    let slow = bench.add_local("hello", address, Protocol::Http);
    let (address, _) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("circuitBreaker: { perEndpoint: { maxParallelRequests: 1 } }"));
    favour(&bench, &slow, &good);
    let _hanging = begin(bench.address, "hello.mesh").await;
    until("it has its one", || slow.stats.own_inflight() == 1).await;
    for _ in 0..10 {
        assert_eq!(ask(&bench, "POST", "Content-Length: 0\r\n").await.status, 200);
        until("the other has none", || good.stats.own_inflight() == 0).await;
    }
    assert_eq!(slow_connections.load(Ordering::SeqCst), 1);
    assert_eq!(slow.stats.totals().1, 0, "a limit is no failure");

    let other = good.stats.begin();
    let reply = ask(&bench, "GET", "").await;
    assert_eq!(reply.problem(503), "overloaded");
    assert_eq!(reply.header("marram-limit"), Some("circuitBreaker.perEndpoint.maxParallelRequests"));
    drop(other);
    assert_eq!(ask(&bench, "GET", "").await.status, 200);
}

#[tokio::test]
async fn requests_beyond_the_rate_are_told_when_to_ask_again() {
    let mut bench = Bench::start().await;
    let (address, asked) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("rateLimit: { local: { requests: 1, interval: 90s, burst: 3 } }"));
    let mut client = Client::connect(bench.address).await;
    for _ in 0..3 {
        assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    }
    let reply = client.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(429), "rate_limited");
    assert_eq!(reply.header("marram-limit"), Some("rateLimit.local"));
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((85..=90).contains(&after), "{after}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn requests_beyond_this_nodes_share_of_a_rate_are_told_so_and_count_as_asked() {
    let mut bench = Bench::start().await;
    let (address, _) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("rateLimit: { global: { requests: 4, interval: 90s, burst: 4 } }"));
    let limit = RateLimit { requests: 4, interval: Duration::from_secs(90), burst: 4 };
    // 1 in 90 s, and one at once.
    bench.share("hello", FleetShare::new(&limit, limit.per_second() / 4.0, 0.0, 3, 2));
    let mut client = Client::connect(bench.address).await;
    assert_eq!(client.get("hello.mesh", "/").await.status, 200);
    let reply = client.get("hello.mesh", "/").await;
    assert_eq!(reply.problem(429), "rate_limited");
    assert_eq!(reply.header("marram-limit"), Some("rateLimit.global"));
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((85..=90).contains(&after), "{after}");
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    for expected in ["4 requests in 1m 30s from all nodes together", "0.011 in 1s", "as one of 3", "set by global/"] {
        assert!(detail.contains(expected), "{detail}");
    }
    assert_eq!(bench.context.published.load().services["hello"].stats.asked(), 2);
}

#[tokio::test]
async fn a_node_that_knows_no_share_has_all_of_the_rate_and_its_own_limit_comes_first() {
    let mut bench = Bench::start().await;
    let (address, _) = echo("a").await;
    bench.add_local("hello", address, Protocol::Http);
    for (local, global, passing, limit, asked) in
        [(5, 3, 3, "rateLimit.global", 5), (3, 5, 3, "rateLimit.local", 3), (9, 9, 9, "rateLimit.local", 9)]
    {
        let hourly = |requests| format!("{{ requests: {requests}, unit: Hour }}");
        let both = format!("rateLimit: {{ local: {}, global: {} }}", hourly(local), hourly(global));
        bench.apply(&policy(&both));
        let mut client = Client::connect(bench.address).await;
        let mut replies = Vec::new();
        for _ in 0..12 {
            replies.push(client.get("hello.mesh", "/").await);
        }
        assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), passing, "{both}");
        assert_eq!(replies[passing].header("marram-limit"), Some(limit), "{both}");
        // What the node's own limit refuses asks for no share.
        assert_eq!(bench.context.published.load().services["hello"].stats.asked(), asked, "{both}");
    }
}

#[tokio::test]
async fn a_grpc_client_hears_of_limits_and_injected_faults_in_its_own_words() {
    let mut bench = Bench::start().await;
    let (address, _) = http2_instance().await;
    let endpoint = bench.add_local("hello", address, Protocol::Http2);
    let call = || {
        let call = Request::post("http://hello.mesh/head").header("content-type", "application/grpc");
        call.header("te", "trailers").body(()).unwrap()
    };
    for (spec, status) in [
        ("faultInjection: { abort: { grpcStatus: 7 } }", "7"),
        ("faultInjection: { abort: { httpStatus: 404 } }", "12"),
        ("circuitBreaker: { maxParallelRequests: 0 }", "14"),
        ("rateLimit: { local: { requests: 1, unit: Hour } }", "8"),
        ("rateLimit: { global: { requests: 1, unit: Hour } }", "8"),
    ] {
        bench.apply(&policy(spec));
        let client = Streams::connect(bench.address).await;
        let mut answer = client.ask(call(), "").await.unwrap();
        if spec.starts_with("rateLimit") {
            answer = client.ask(call(), "").await.unwrap();
            let wait_ms: u64 = answer.header("grpc-retry-pushback-ms").unwrap().parse().unwrap();
            assert!(wait_ms > 3_500_000, "{wait_ms}");
        }
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some(status)), "{spec}: {answer:?}");
    }
    assert_eq!(endpoint.stats.totals().1, 0);
}

#[tokio::test]
async fn injected_faults_are_marked_and_are_no_failure_of_an_instance() {
    let mut bench = Bench::start().await;
    let (address, asked) = echo("a").await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("faultInjection: { abort: { httpStatus: 418 } }"));
    for _ in 0..20 {
        let reply = ask(&bench, "GET", "").await;
        assert_eq!((reply.problem(418).as_str(), reply.header("marram-injected")), ("fault_injected", Some("abort")));
    }
    assert_eq!((asked.load(Ordering::SeqCst), endpoint.stats.totals()), (0, (0, 0)));
    assert!(!endpoint.stats.is_ejected(bench.context.clock.now()));

    bench.apply(&policy("faultInjection: { abort: { grpcStatus: 14 } }"));
    assert_eq!(ask(&bench, "GET", "").await.status, 200, "that is for gRPC alone");

    bench.apply(&policy("faultInjection: { delay: { fixedDelay: 1s } }"));
    let before = bench.context.clock.now();
    let reply = ask(&bench, "GET", "").await;
    assert_eq!((reply.status, reply.header("marram-injected")), (200, Some("delay")), "{reply:?}");
    assert!(bench.context.clock.now() - before >= Duration::from_secs(1));
    let latency = endpoint.stats.latency_ms(before).unwrap();
    assert!(latency < 1000.0, "the delay is not the instance's: {latency}");

    bench.apply(&policy("faultInjection: { abort: { httpStatus: 503, percentage: 50 } }"));
    let mut client = Client::connect(bench.address).await;
    let mut aborted = 0;
    for _ in 0..400 {
        aborted += usize::from(client.get("hello.mesh", "/").await.status == 503);
    }
    // Five standard deviations of 400 throws of a coin.
    assert!((150..=250).contains(&aborted), "{aborted}");
}

#[tokio::test]
async fn a_delay_longer_than_the_requests_time_ends_it_and_blames_nobody() {
    let config = ProxyConfig { request_timeout: Duration::from_millis(100), ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, asked) = echo("a").await;
    let endpoint = bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("faultInjection: { delay: { fixedDelay: 1h } }"));
    let reply = ask(&bench, "GET", "").await;
    assert_eq!((reply.problem(504).as_str(), reply.header("marram-injected")), ("timeout", Some("delay")));
    assert_eq!((asked.load(Ordering::SeqCst), endpoint.stats.totals()), (0, (0, 0)));
}

#[tokio::test]
async fn a_request_that_waits_is_hedged_and_the_first_good_answer_counts() {
    let config = ProxyConfig { request_timeout: Duration::from_millis(1500), ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, slow_asked) = silent().await;
    let slow = bench.add_local("hello", address, Protocol::Http);
    let (address, good_asked) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("hedging: { delay: 30ms }, healthCheck: { passive: { consecutive5XxErrors: 0 } }"));
    favour(&bench, &slow, &good);
    let reply = ask(&bench, "GET", "").await;
    assert!(reply.status == 200 && reply.text().contains("name: good"), "{reply:?}");
    until("both were asked", || slow_asked.load(Ordering::SeqCst) == 1 && good_asked.load(Ordering::SeqCst) == 1).await;
    until("the loser is called off", || slow.stats.own_inflight() == 0).await;
    until("what it took is given back", || count(&bench, Count::Retries) == 0).await;

    // What must not arrive twice waits.
    favour(&bench, &slow, &good);
    let reply = ask(&bench, "POST", "Content-Length: 0\r\n").await;
    assert_eq!(reply.problem(504), "timeout", "{reply:?}");
    assert_eq!(good_asked.load(Ordering::SeqCst), 1);

    // And a hedge takes from the budget.
    bench.apply(&policy(
        "hedging: { delay: 30ms }, retryConstraint: { budget: { percent: 0 }, minRetryRate: { count: 0 } }",
    ));
    favour(&bench, &slow, &good);
    assert_eq!(ask(&bench, "GET", "").await.problem(504), "timeout");
    assert_eq!(good_asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_hedge_that_is_answered_with_an_error_does_not_beat_a_slower_good_answer() {
    let mut bench = Bench::start().await;
    let (address, asked, release) = held().await;
    let slow = bench.add_local("hello", address, Protocol::Http);
    let (address, erring_asked) = instance(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            if stream.write_all(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await.is_err() {
                return;
            }
        }
    })
    .await;
    let erring = bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("hedging: { delay: 10ms }"));
    favour(&bench, &slow, &erring);
    let mut client = begin(bench.address, "hello.mesh").await;
    until("both were asked", || asked.load(Ordering::SeqCst) == 1 && erring_asked.load(Ordering::SeqCst) == 1).await;
    until("the error is known", || erring.stats.latency_ms(bench.context.clock.now()).is_some()).await;
    release.notify_one();
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "held"), "{reply:?}");
}

#[tokio::test]
async fn an_instance_that_hangs_is_left_out_after_a_few_tries_and_then_asked_one_at_a_time() {
    let config = ProxyConfig { request_timeout: Duration::from_millis(250), ..ProxyConfig::default() };
    let mut bench = Bench::with(config, 1).await;
    let (address, _) = silent().await;
    let slow = bench.add_local("hello", address, Protocol::Http);
    let (address, _) = echo("good").await;
    let good = bench.add_local("hello", address, Protocol::Http);
    bench.apply(&policy("loadBalancer: { draw: Single }, healthCheck: { passive: { baseEjectionTime: 2s } }"));
    for _ in 0..5 {
        favour(&bench, &slow, &good);
        assert_eq!(ask(&bench, "GET", "").await.problem(504), "timeout");
    }
    let now = bench.context.clock.now();
    assert!(slow.stats.is_outlier(now));
    favour(&bench, &slow, &good);
    assert_eq!(ask(&bench, "GET", "").await.status, 200);

    until("it is back", || !slow.stats.is_ejected(bench.context.clock.now())).await;
    favour(&bench, &slow, &good);
    let _probing = slow.stats.begin();
    for _ in 0..10 {
        favour(&bench, &slow, &good);
        assert_eq!(ask(&bench, "GET", "").await.status, 200, "one is there already to see how it does");
    }
}

#[tokio::test]
async fn a_client_in_a_hurry_does_not_put_an_instance_out() {
    let mut bench = Bench::start().await;
    let (address, _) = http2_instance().await;
    let endpoint = bench.add_local("hello", address, Protocol::Http2);
    let other = bench.add_local("hello", nobody(), Protocol::Http2);
    other.stats.report_inflight(1_000_000, Duration::ZERO);
    for _ in 0..6 {
        let client = Streams::connect(bench.address).await;
        let call = Request::post("http://hello.mesh/hang").header("content-type", "application/grpc");
        let call = call.header("te", "trailers").header("grpc-timeout", "20m").body(()).unwrap();
        let answer = client.ask(call, "").await.unwrap();
        assert_eq!(answer.header("grpc-status"), Some("4"), "{answer:?}");
    }
    assert!(!endpoint.stats.is_outlier(bench.context.clock.now()));
}
