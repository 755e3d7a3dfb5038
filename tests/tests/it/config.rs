//! Folders and configurations that an agent refuses, and what it says.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use node::config::{ListenerConfig, ListenerProtocol};
use tests::{Fleet, Node, Said, run};

/// A folder made by `init`, with nothing running in it.
fn made() -> (Fleet, Node) {
    let fleet = Fleet::launch(0, &|_, _| {});
    let node = fleet.newcomer();
    let said = run(&node.options(&["init", "--mesh", "it"]));
    assert_eq!(said.code, 0, "{said:?}");
    (fleet, node)
}

/// Runs the agent, which must end by itself.
fn agent(node: &Node) -> Said {
    node.run(&["agent"])
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn an_unknown_field_is_refused_with_its_path_and_the_nearest_name() {
    let (_fleet, node) = made();
    let path = node.dir.join("node.toml");
    let good = fs::read_to_string(&path).unwrap();
    let bad = "[proxy]\nrequest_timout = \"5s\"\n[gossip]\npreset = \"lam\"\n[[service]]\nname = \"x\"\nport = 1\ncapcity = 3\n";
    fs::write(&path, bad).unwrap();
    for said in [agent(&node), node.run(&["config", "check"])] {
        assert_eq!(said.code, 7, "{said:?}");
        for words in [
            "node.toml: line 2: unknown field `proxy.request_timout`",
            "did you mean `request_timeout`?",
            "gossip.preset",
            "did you mean `lan`?",
            "service[0].capcity",
            "did you mean `capacity`?",
        ] {
            assert!(said.err.contains(words), "{words}: {}", said.err);
        }
    }
    fs::write(&path, good).unwrap();
    assert_eq!(node.run(&["config", "check"]).code, 0);
    let printed = node.run(&["config", "print"]);
    assert!(printed.code == 0 && printed.out.contains("leaf_life"), "{printed:?}");
}

#[test]
fn values_out_of_range_are_refused_all_at_once() {
    let (_fleet, node) = made();
    node.configure(|config| {
        config.admin.bind = "0.0.0.0:7070".parse().unwrap();
        config.proxy.head_bytes_max = 1;
        config.mesh.leaf_life = std::time::Duration::from_secs(1);
    });
    let said = agent(&node);
    assert_eq!(said.code, 7, "{said:?}");
    for words in ["admin.bind", "not a loopback address", "proxy.head_bytes_max", "mesh.leaf_life", "hint:"] {
        assert!(said.err.contains(words), "{words}: {}", said.err);
    }
}

#[test]
fn a_taken_port_is_named_together_with_its_option() {
    let (_fleet, node) = made();
    let other = tests::free_port();
    node.configure(|config| {
        config.mesh.bind = node.mesh;
        config.listeners.push(ListenerConfig {
            service: "redis".to_owned(),
            address: other,
            protocol: ListenerProtocol::Tcp,
        });
    });
    let refused = |taken: String, option: &str| {
        let said = agent(&node);
        assert_eq!(said.code, 1, "{said:?}");
        for words in [taken.as_str(), option] {
            assert!(said.err.contains(words), "{words}: {}", said.err);
        }
    };
    for (address, option) in [(node.admin, "admin.bind"), (node.proxy, "proxy.bind"), (other, "[[listener]]")] {
        let _taken = TcpListener::bind(address).unwrap();
        refused(address.to_string(), option);
    }
    let _taken = UdpSocket::bind(node.mesh).unwrap();
    refused(node.mesh.port().to_string(), "mesh.bind");
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let (_fleet, node) = made();
    for (path, wrong, right) in
        [("identity/node.key", 0o644, 0o600), ("identity/admission.key", 0o640, 0o600), ("", 0o755, 0o700)]
    {
        let path = node.dir.join(path);
        set_mode(&path, wrong);
        let said = agent(&node);
        assert_eq!(said.code, 1, "{path:?}: {said:?}");
        assert!(said.err.contains(&format!("mode {wrong:04o}")), "{path:?}: {said:?}");
        assert!(said.err.contains(&format!("chmod {right:o}")), "{path:?}: {said:?}");
        set_mode(&path, right);
    }
    let token = node.dir.join("admin.token");
    set_mode(&token, 0o644);
    let said = agent(&node);
    assert!(said.code == 1 && said.err.contains("chmod 600"), "{said:?}");
}

#[test]
fn one_folder_takes_one_agent() {
    let fleet = Fleet::start(1, &|_, _| {});
    let node = &fleet.nodes[0];
    let said = agent(node);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("another agent runs in"), "{said:?}");
    assert!(said.err.contains("one agent per folder"), "{said:?}");
    assert_eq!(node.run(&["status"]).code, 0, "the first one goes on");
}

#[test]
fn a_folder_without_a_node_is_told_apart() {
    let fleet = Fleet::launch(0, &|_, _| {});
    let node = fleet.newcomer();
    let said = agent(&node);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("node.toml"), "{said:?}");
    fs::create_dir(&node.dir).unwrap();
    set_mode(&node.dir, 0o700);
    fs::write(node.dir.join("node.toml"), "").unwrap();
    let said = agent(&node);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("no identity here"), "{said:?}");
}

#[test]
fn a_folder_too_deep_for_a_socket_works_all_the_same() {
    let fleet = Fleet::launch(0, &|_, _| {});
    let mut node = fleet.newcomer();
    node.dir = fleet.root().join("d".repeat(60)).join("e".repeat(60));
    fs::create_dir(node.dir.parent().unwrap()).unwrap();
    let made = run(&node.options(&["init", "--mesh", "it"]));
    assert_eq!(made.code, 0, "{made:?}");
    node.configure(|config| config.mesh.bind = node.mesh);
    node.start();
    node.wait_ready();
    let said = node.run(&["status"]);
    assert_eq!(said.code, 0, "the verbs find the socket where the agent put it: {said:?}");
}
