//! A disk without space: policy writes are refused, requests go on, and it heals without a restart.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{App, Fleet, Node, Said, binary, eventually, is_root, run_command, skip};

/// Starts the agent in a mount namespace of its own, where its store is a disk of 4 MiB in memory.
fn start_on_a_small_disk(node: &mut Node) {
    let store = node.dir.join("store");
    fs::create_dir_all(&store).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("mount -t tmpfs -o size=4m,mode=0700 marram-it \"$0\" && exec \"$@\"").arg(store).arg(binary());
    node.start_by(command);
}

fn document(number: usize) -> String {
    let spec = json!({ "filling": format!("{number}-").repeat(6_000) });
    json!({ "apiVersion": "marram.dev/v1", "kind": "Ballast", "metadata": { "name": format!("b-{number}") }, "spec": spec }).to_string()
}

fn names(node: &Node) -> Vec<String> {
    let all = node.ask("/v1/policies?kind=Ballast").unwrap();
    let mut names: Vec<String> =
        (all.as_array().unwrap().iter()).filter_map(|policy| policy["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_refuses_policy_writes_with_507_and_nothing_else() {
    const NAME: &str = "a_full_disk_refuses_policy_writes_with_507_and_nothing_else";
    if !is_root() {
        skip(NAME, "only root may mount a small disk");
        return;
    }
    let tried: Said = run_command(Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]));
    if tried.code != 0 {
        skip(NAME, &format!("no private mounts here: {}", tried.err.trim()));
        return;
    }
    let app = App::start("a");
    let mut fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.nodes[0].kill();
    fs::remove_dir_all(fleet.nodes[0].dir.join("store")).ok();
    start_on_a_small_disk(&mut fleet.nodes[0]);
    fleet.wait_whole();
    fleet.wait_service("hello", 1);
    let [node, peer] = fleet.nodes.as_slice() else { unreachable!() };
    let mut acknowledged = Vec::new();
    for number in 0..3 {
        assert_eq!(node.write("POST", "/v1/apply", &document(number)).status, 200);
        acknowledged.push(format!("b-{number}"));
    }

    let store = PathBuf::from(format!("/proc/{}/root{}", node.pid().unwrap(), node.dir.join("store").display()));
    let ballast = store.join("ballast");
    fill(&ballast);
    // A write may still fit into what the database has claimed before; what was acknowledged has to be kept.
    let refused = (3..200).find_map(|number| {
        let answer = node.write("POST", "/v1/apply", &document(number));
        if answer.status == 200 {
            acknowledged.push(format!("b-{number}"));
            return None;
        }
        Some(answer)
    });
    let refused = refused.expect("at last the disk is full");
    assert_eq!(refused.status, 507, "{refused:?}");
    assert_eq!(refused.json()["code"], "storage_full", "{refused:?}");
    acknowledged.sort();
    assert_eq!(names(node), acknowledged, "what was refused is not there");
    for attempt in 0..3 {
        let again = node.write("POST", "/v1/apply", &document(900 + attempt));
        assert_eq!(again.status, 507, "{again:?}");
    }
    let registration = node.write("PUT", "/v1/services/new/instances/x", r#"{ "port": 1 }"#);
    assert!(registration.status == 507 || registration.status == 204, "{registration:?}");
    for client in [node, peer] {
        for _ in 0..20 {
            assert_eq!(client.get("hello", "/").unwrap().status, 200, "routing goes on");
        }
    }
    eventually("it says so itself", Duration::from_secs(2), || {
        let status = node.ask("/v1/status")?;
        let problems = node.ask("/v1/problems")?;
        let told = problems.as_array().is_some_and(|all| all.iter().any(|one| one["code"] == "storage_full"));
        if status["policy"]["writable"] == false && told { Ok(()) } else { Err(format!("{status} {problems}")) }
    });
    assert_eq!(node.run(&["status"]).code, 3);
    assert_eq!(names(peer), acknowledged, "nothing of what was refused got to the others");

    fs::remove_file(&ballast).unwrap();
    let healed = node.write("POST", "/v1/apply", &document(500));
    assert_eq!(healed.status, 200, "without a restart: {healed:?}\n{}", node.log_tail(20));
    acknowledged.push("b-500".to_owned());
    acknowledged.sort();
    eventually("the others hear of it", Duration::from_secs(5), || {
        let known = names(peer);
        if known == acknowledged { Ok(()) } else { Err(format!("{known:?}")) }
    });
    eventually("all is well again", Duration::from_secs(5), || {
        let said = node.run(&["status"]);
        if said.code == 0 { Ok(()) } else { Err(format!("{said:?}")) }
    });
    assert_eq!(node.ask("/v1/problems").unwrap(), Value::Array(Vec::new()));
    assert!(!node.log_tail(1_000).contains("panicked at"), "{}", node.log_tail(60));
}

/// Writes until there is no space left.
fn fill(path: &std::path::Path) {
    let mut file = File::create(path).unwrap();
    let chunk = [0x55; 4096];
    while file.write_all(&chunk).is_ok() {}
}
