//! Tokens: what lets a node in, and what does not.

use std::time::Duration;

use tests::{Fleet, Node, Said, Shared, eventually, run};

static DOOR: Shared<Fleet> = Shared::new();

/// One node that admits, with a token alive so that its door is open.
fn door() -> Fleet {
    let fleet = Fleet::start(1, &|_, _| {});
    let _keeps_the_door_open = fleet.nodes[0].token(&["--ttl", "1h"]);
    wait_for_door(&fleet.nodes[0]);
    fleet
}

fn wait_for_door(node: &Node) {
    eventually("the door for newcomers is open", Duration::from_secs(5), || {
        std::net::TcpStream::connect(node.mesh).map(drop).map_err(|fault| fault.to_string())
    });
}

fn join(node: &Node, token: &str) -> Said {
    run(&node.options(&["join", token]))
}

/// The refusal leaves nothing behind that would stop another try in the same folder.
fn assert_refused(node: &Node, said: &Said, code: i32, words: &str) {
    assert_eq!(said.code, code, "{said:?}");
    assert!(said.err.contains(words), "{words}: {said:?}");
    assert!(!node.dir.join("node.toml").exists() && !node.dir.join("identity/node.pem").exists(), "{words}");
}

/// A newcomer with a name of its own, as tests share the mesh.
fn newcomer(fleet: &Fleet, name: &str) -> Node {
    let mut node = fleet.newcomer();
    node.name = name.to_owned();
    node.dir = fleet.root().join(name);
    node
}

#[test]
fn a_token_can_be_used_as_soon_as_it_is_made() {
    let fleet = Fleet::start(1, &|_, _| {});
    let node = newcomer(&fleet, "quick");
    let token = fleet.nodes[0].token(&[]);
    let said = join(&node, &token);
    assert_eq!(said.code, 0, "{said:?}");
}

#[test]
fn an_expired_token_is_refused_as_such() {
    let fleet = DOOR.get(door);
    let token = fleet.nodes[0].token(&["--ttl", "1s", "--uses", "100"]);
    // Every try takes a name and a folder of its own, for an early one may still get in.
    let mut tries = 0;
    let ((node, said), _) = eventually("the token is over", Duration::from_secs(5), || {
        tries += 1;
        let node = newcomer(&fleet, &format!("late-{tries}"));
        let said = join(&node, &token);
        if said.code == 0 || said.err.contains("used up") { Err(said.err) } else { Ok((node, said)) }
    });
    assert_refused(&node, &said, 6, "expired");
}

#[test]
fn a_token_lets_in_as_many_as_it_says() {
    let fleet = DOOR.get(door);
    let token = fleet.nodes[0].token(&["--uses", "2"]);
    for name in ["first", "second"] {
        let said = join(&newcomer(&fleet, name), &token);
        assert_eq!(said.code, 0, "{name}: {said:?}");
    }
    let third = newcomer(&fleet, "third");
    assert_refused(&third, &join(&third, &token), 6, "used up");
    let good = fleet.nodes[0].token(&[]);
    let said = join(&third, &good);
    assert_eq!(said.code, 0, "the same folder, another token: {said:?}");
}

#[test]
fn a_token_of_another_mesh_is_refused_before_its_secret_is_sent() {
    let fleet = DOOR.get(door);
    let other = Fleet::start(1, &|_, _| {});
    let _keeps_the_door_open = other.nodes[0].token(&[]);
    wait_for_door(&other.nodes[0]);
    let token = fleet.nodes[0].token(&[]);
    let (secret, _) = token.rsplit_once('@').unwrap();
    let misled = format!("{secret}@{}", other.nodes[0].mesh);
    let node = newcomer(&fleet, "astray");
    let said = join(&node, &misled);
    assert_refused(&node, &said, 6, "belongs to another mesh");
    assert!(said.err.contains("the secret was not sent"), "{said:?}");
    assert_eq!(join(&node, &token).code, 0, "the token is still good");
}

#[test]
fn a_token_with_a_wrong_secret_or_form_is_refused() {
    let fleet = DOOR.get(door);
    let node = newcomer(&fleet, "guesser");
    let token = fleet.nodes[0].token(&[]);
    let (head, seeds) = token.rsplit_once('@').unwrap();
    let (pinned, secret) = head.rsplit_once('.').unwrap();
    let swapped: String = secret.chars().rev().collect();
    let said = join(&node, &format!("{pinned}.{swapped}@{seeds}"));
    assert!(said.code == 6 || said.code == 2, "{said:?}");
    assert!(!said.err.contains(secret) && !said.err.contains(&swapped), "secrets are not repeated: {said:?}");
    for junk in ["", "marram1", "marram1.x.y.z@127.0.0.1:1", &token[1..]] {
        assert_refused(&node, &join(&node, junk), 6, "error: ");
    }
    assert_eq!(join(&node, &token).code, 0);
}

#[test]
fn a_second_node_of_a_name_is_refused() {
    let fleet = DOOR.get(door);
    let mut node = newcomer(&fleet, "n0");
    node.dir = fleet.root().join("twin");
    assert_refused(&node, &join(&node, &fleet.nodes[0].token(&[])), 6, "another node already has this name");
    let token = fleet.nodes[0].token(&["--uses", "2"]);
    let taken = newcomer(&fleet, "taken");
    assert_eq!(join(&taken, &token).code, 0);
    // Its agent has not even started; the name is kept for it all the same.
    let mut twin = newcomer(&fleet, "taken");
    twin.dir = fleet.root().join("taken-twin");
    assert_refused(&twin, &join(&twin, &token), 6, "another node already has this name");
}

#[test]
fn only_a_node_that_admits_makes_tokens() {
    let mut fleet = Fleet::start(1, &|_, _| {});
    fleet.add(&[], &|_, _| {});
    let said = fleet.nodes[1].run(&["token", "create"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("may not admit"), "{said:?}");
    fleet.add(&["--role", "admit"], &|_, _| {});
    fleet.wait_whole();
    let token = fleet.nodes[2].token(&[]);
    wait_for_door(&fleet.nodes[2]);
    let said = join(&newcomer(&fleet, "by-the-third"), &token);
    assert_eq!(said.code, 0, "a node of the role admit lets others in: {said:?}");
}

#[test]
fn nobody_there_is_told_apart_from_a_refusal() {
    let mut fleet = Fleet::start(1, &|_, _| {});
    let token = fleet.nodes[0].token(&[]);
    fleet.nodes[0].kill();
    let node = newcomer(&fleet, "lonely");
    assert_refused(&node, &join(&node, &token), 5, &fleet.nodes[0].mesh.to_string());
}
