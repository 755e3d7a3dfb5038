//! Leaf certificates end and are renewed without anybody noticing.

use std::time::Duration;

use tests::{App, Fleet, Load, Node, Sent, eventually};

#[test]
fn leaves_of_ten_seconds_are_renewed_again_and_again_under_requests() {
    let app = App::start("a");
    let fleet = Fleet::start(3, &|n, config| {
        config.mesh.leaf_life = Duration::from_secs(10);
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.wait_service("hello", 1);
    let load = Load::start(fleet.nodes[1].proxy, "hello", "GET", 2, Duration::from_millis(10));
    let ends = |node: &Node| -> Result<u64, String> {
        let status = node.ask("/v1/status")?;
        status["leaf_not_after"].as_u64().ok_or_else(|| status.to_string())
    };
    let first: Vec<u64> = fleet.nodes.iter().map(|node| ends(node).unwrap()).collect();
    let (_, took) = eventually("every leaf was renewed for 20 s and more", Duration::from_secs(40), || {
        for (node, first) in fleet.nodes.iter().zip(&first) {
            let alive = node.members("alive")?;
            assert_eq!(alive.len(), 3, "{}: nobody is given up because of a certificate\n{}", node.name, fleet.logs());
            let now = ends(node)?;
            if now < first + 20 {
                return Err(format!("{}: {first} then {now}", node.name));
            }
        }
        Ok(())
    });
    assert!(took > Duration::from_secs(10), "the first leaves have ended by now: {took:?}");
    let sent = load.stop();
    let failed: Vec<&Sent> = sent.iter().filter(|sent| !sent.is_good()).collect();
    assert!(sent.len() > 200 && failed.is_empty(), "{} of {}: {failed:#?}\n{}", failed.len(), sent.len(), fleet.logs());
    for node in &fleet.nodes {
        let refused = node.metric("marram_certificates_refused_total", "expired").unwrap();
        assert!(refused < 0.5, "{}: {refused} handshakes came with an ended leaf\n{}", node.name, node.log_tail(30));
    }
}
