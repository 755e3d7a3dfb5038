//! A node with too much to do refuses what is least important first.

use std::thread;
use std::time::Duration;

use tests::{App, Fleet, Node, eventually, get};

use crate::policy::apply;

/// Seven tenths are 14, nine tenths are 18.
const CONNECTIONS_MAX: usize = 20;

const RULES: &str = "
apiVersion: marram.dev/v1
kind: HTTPRoute
metadata: { name: jobs }
spec:
  hostnames: [ jobs.mesh ]
  rules: [ { backendRefs: [ { name: hello } ], priority: bulk } ]
---
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: hello }
targetRef: { kind: Service, name: hello }
spec: { circuitBreaker: { maxConnections: 20, maxParallelRequests: 20 } }
";

#[test]
fn bulk_is_refused_first_then_normal_requests_and_critical_ones_never() {
    let app = App::start("a");
    let fleet = Fleet::start(1, &|_, config| {
        config.proxy.connections_max = CONNECTIONS_MAX;
        Node::serve(config, "hello", app.address(), None);
    });
    fleet.wait_service("hello", 1);
    apply(&fleet.nodes[0], RULES);
    let proxy = fleet.nodes[0].proxy;
    let status = |host: &str, priority: &str| {
        let answer = get(proxy, "/", &[("host", host), ("marram-priority", priority)]).unwrap();
        assert!(answer.status == 200 || answer.json()["code"] == "shed", "{answer:?}");
        answer.status
    };
    let all = || {
        ["critical", "normal", "bulk", "nonsense"]
            .map(|word| status("hello.mesh", word))
            .into_iter()
            .chain([status("jobs.mesh", "critical")])
            .collect::<Vec<_>>()
    };
    assert_eq!(all(), [200; 5], "idle");
    let slow =
        || get(proxy, "/slow?ms=9000", &[("host", "hello.mesh"), ("marram-priority", "critical")]).unwrap().status;
    let busy = |wanted: f64| {
        eventually(&format!("{wanted} are in flight"), Duration::from_secs(5), || {
            let now = fleet.nodes[0].metric("marram_inflight", "")?;
            if now >= wanted { Ok(()) } else { Err(now.to_string()) }
        });
    };
    thread::scope(|scope| {
        let first: Vec<_> = (0..14).map(|_| scope.spawn(slow)).collect();
        busy(14.0);
        assert_eq!(all(), [200, 200, 503, 200, 503], "the fifteenth is too much for bulk, as the rule says it is");
        let more: Vec<_> = (0..4).map(|_| scope.spawn(slow)).collect();
        busy(18.0);
        assert_eq!(all(), [200, 503, 503, 503, 503], "the nineteenth is for critical ones");
        for one in first.into_iter().chain(more) {
            assert_eq!(one.join().unwrap(), 200, "what is under way goes on");
        }
    });
    assert_eq!(all(), [200; 5], "idle again");
    let shed =
        |priority: &str| fleet.nodes[0].metric("marram_requests_shed_total", &format!("\"{priority}\"")).unwrap();
    assert_eq!(format!("{} {}", shed("bulk"), shed("normal")), "4 2");
}
