//! Who does not belong to the mesh is turned away, counted, and disturbs nobody.

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use tests::{App, Fleet, Load, Node, eventually};

#[test]
fn a_node_of_another_mesh_is_refused_both_ways_and_counted_while_the_mesh_goes_on() {
    // The same name, another root: to everything but the certificates it looks like a member.
    let mut stranger = Fleet::launch(1, &|_, _| {});
    stranger.nodes[0].wait_ready();
    let strange = stranger.nodes[0].mesh;
    let app = App::start("a");
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
            config.mesh.seeds.push(strange.to_string());
        }
    });
    fleet.wait_service("hello", 1);
    let load = Load::start(fleet.nodes[1].proxy, "hello", "GET", 1, Duration::from_millis(10));
    let rises = |what: &str, metric: &str, labels: &str| {
        let before = fleet.nodes[0].metric(metric, labels).unwrap();
        eventually(what, Duration::from_secs(10), || {
            let now = fleet.nodes[0].metric(metric, labels)?;
            if now > before { Ok(()) } else { Err(format!("{before} then {now}\n{}", fleet.nodes[0].log_tail(10))) }
        });
    };
    rises("the stranger it dials is refused for its certificate", "marram_certificates_refused_total", "untrusted");

    stranger.nodes[0].kill();
    stranger.nodes[0].configure(|config| config.mesh.seeds.push(fleet.nodes[0].mesh.to_string()));
    stranger.nodes[0].start();
    rises("the stranger that dials it is refused", "marram_handshakes_refused_total", "");

    for node in &fleet.nodes {
        let nodes = node.nodes().unwrap();
        assert_eq!(nodes.len(), 2, "{nodes:?}");
        assert!(nodes.iter().all(|known| known.state == "alive"), "{nodes:?}");
        let status = node.ask("/v1/status").unwrap();
        let strange = strange.to_string();
        assert!(
            status["links"].as_array().unwrap().iter().all(|link| link["remote"] != strange.as_str()),
            "{status:#}"
        );
    }
    stranger.nodes[0].wait_ready();
    let alone = stranger.nodes[0].nodes().unwrap();
    assert_eq!(alone.len(), 1, "it learned of nobody: {alone:?}");
    assert_eq!(stranger.nodes[0].ask("/v1/services").unwrap().as_array().map(Vec::len), Some(0));
    let sent = load.stop();
    assert!(!sent.is_empty() && sent.iter().all(tests::Sent::is_good), "{sent:?}");
}

#[test]
fn junk_on_the_mesh_port_disturbs_nobody() {
    let app = App::start("a");
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.wait_service("hello", 1);
    // An open door for newcomers takes TCP as well.
    let _token = fleet.nodes[0].token(&[]);
    let load = Load::start(fleet.nodes[1].proxy, "hello", "GET", 1, Duration::from_millis(10));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for round in 0..2_000_usize {
        let mut packet = Vec::with_capacity(1_400);
        while packet.len() < 1 + round % 1_400 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            packet.extend(state.to_le_bytes());
        }
        if round % 2 == 0 {
            // A long header of QUIC version 1, as of an Initial.
            packet.splice(..1, [0xC3, 0, 0, 0, 1, 8]);
        }
        socket.send_to(&packet, fleet.nodes[0].mesh).unwrap();
    }
    eventually("the door is open", Duration::from_secs(5), || {
        let mut visitor = TcpStream::connect(fleet.nodes[0].mesh).map_err(|fault| fault.to_string())?;
        visitor.write_all(&[0x16, 3, 1, 0xFF, 0xFF, 1, 2, 3]).map_err(|fault| fault.to_string())
    });
    let after = load.count();
    eventually("requests go on", Duration::from_secs(5), || {
        if load.count() > after + 20 { Ok(()) } else { Err("no".to_owned()) }
    });
    let sent = load.stop();
    assert!(sent.iter().all(tests::Sent::is_good), "{sent:?}");
    for node in &fleet.nodes {
        assert_eq!(node.members("alive").unwrap().len(), 2);
        assert!(!node.log_tail(1_000).contains("panicked"), "{}", node.log_tail(50));
    }
}
