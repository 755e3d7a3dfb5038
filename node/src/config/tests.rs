use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use toml::Value;

use super::*;

/// One node that uses every field there is.
const FULL: &str = r#"
region = "eu"
zone = "hall-1"
labels = { rack = "7" }
location = { lat = 48.1, lon = 11.6 }
[mesh]
advertise = "gw1.example.org:7440"
seeds = ["10.0.0.5:7440", "[fd00::5]:7440"]
leaf_life = "12h"
data_threads = 1
[gossip]
preset = "metered"
[[service]]
name = "hello"
id = "one"
port = 8081
capacity = 12.5
labels = { version = "2" }
checks = [{ type = "http", path = "/healthz" }, { type = "tcp", fall = 3 }, { type = "ttl", ttl = "30s" }]
[[listener]]
service = "db"
address = "127.0.0.1:15432"
protocol = "tcp"
"#;

fn faults_of(text: &str) -> String {
    Config::parse("node.toml", text).unwrap_err().to_string()
}

fn documentation() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_empty_file_is_the_default_configuration() {
    assert_eq!(Config::parse("node.toml", "").unwrap(), Config::default());
    assert_eq!(Config::default().check(), []);
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let text = documentation();
    let block = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(Config::parse("docs/config.md", block).unwrap(), Config::default());
    let written: Value = toml::from_str(block).unwrap();
    let defaults = Value::try_from(Config::default()).unwrap();
    let missing: Vec<String> = names(&defaults).difference(&names(&written)).cloned().collect();
    assert_eq!(missing, ["listener", "service"], "fields missing from the block of defaults");
}

#[test]
fn the_documented_examples_are_valid() {
    for block in documentation().split("```toml\n").skip(1) {
        let block = block.split("```").next().unwrap();
        Config::parse("docs/config.md", block).unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
}

#[test]
fn every_field_is_documented() {
    let text = documentation();
    let full = Config::parse("node.toml", FULL).unwrap();
    let value = Value::try_from(full).unwrap();
    for name in names(&value) {
        let is_free = name.contains("labels.")
            || ["mesh", "gossip", "admin", "proxy", "dns", "transparent", "store", "service", "listener"]
                .contains(&name.as_str());
        assert!(is_free || text.contains(&format!("`{name}`")), "docs/config.md does not mention `{name}`");
    }
}

/// Dotted names of all fields, list elements under their list's name.
fn names(value: &Value) -> BTreeSet<String> {
    fn collect(value: &Value, path: &str, into: &mut BTreeSet<String>) {
        match value {
            Value::Table(table) => {
                for (key, value) in table {
                    let name = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    into.insert(name.clone());
                    collect(value, &name, into);
                }
            }
            Value::Array(elements) => elements.iter().for_each(|element| collect(element, path, into)),
            Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
        }
    }
    let mut all = BTreeSet::new();
    collect(value, "", &mut all);
    all
}

#[test]
fn a_configuration_printed_and_read_again_is_the_same() {
    let full = Config::parse("node.toml", FULL).unwrap();
    for config in [full, Config::default()] {
        let (whole, brief) = (config.to_toml(), config.to_toml_brief());
        assert_eq!(Config::parse("printed", &whole).unwrap(), config, "{whole}");
        assert_eq!(Config::parse("printed", &brief).unwrap(), config, "{brief}");
    }
    assert_eq!(Config::default().to_toml_brief(), "");
}

#[test]
fn a_brief_file_holds_only_what_differs() {
    let mut config = Config { region: "eu".to_owned(), ..Config::default() };
    config.mesh.bind.set_port(7441);
    assert_eq!(config.to_toml_brief(), "region = \"eu\"\n\n[mesh]\nbind = \"0.0.0.0:7441\"\n");
}

#[test]
fn an_unknown_field_is_named_with_its_line_and_the_nearest_name() {
    let text = "region = \"eu\"\n\n\n\n\n\n[gosip]\npreset = \"lan\"\n";
    assert_eq!(faults_of(text), "node.toml: line 7: unknown field `gosip`\n  hint: did you mean `gossip`?");
    let text = "[proxy]\nbind = \"127.0.0.1:1\"\nconection_max = 5\n";
    assert_eq!(
        faults_of(text),
        "node.toml: line 3: unknown field `proxy.conection_max`\n  hint: did you mean `connections_max`?"
    );
    let text = "[gossip]\nquux = 1\n";
    assert_eq!(faults_of(text), "node.toml: line 2: unknown field `gossip.quux`\n  hint: known here: preset");
}

#[test]
fn faults_of_every_kind_are_listed_in_one_answer() {
    let text = r#"regoin = "eu"
[mesh]
leaf_life = "5 parsecs"
bind = "localhost:7440"
[gossip]
preset = "wan"
[proxy]
head_bytes_max = "16KiB"
"#;
    assert_eq!(
        faults_of(text),
        "node.toml: line 1: unknown field `regoin`
  hint: did you mean `region`?
error: node.toml: line 3: field `mesh.leaf_life`: invalid value: string \"5 parsecs\", expected a duration
  hint: a duration is text with a unit: \"300ms\", \"10s\", \"24h\"
error: node.toml: line 4: field `mesh.bind`: invalid socket address syntax
  hint: write IP:PORT, for instance \"127.0.0.1:7070\"; a name is not taken here
error: node.toml: line 6: field `gossip.preset`: `wan` is not known here
  hint: did you mean `lan`?
error: node.toml: line 8: field `proxy.head_bytes_max`: invalid type: string \"16KiB\", expected usize"
    );
}

#[test]
fn faults_of_meaning_carry_the_line_of_their_field() {
    let text = r#"[mesh]
leaf_life = "5s"
advertise = "gw1"
[admin]
bind = "0.0.0.0:7070"
[location]
lat = 91.0
lon = 0.0
[[service]]
name = "Hello"
port = 7080
capacity = 0.0
[[service]]
name = "hello"
port = 0
checks = [{ type = "ttl", ttl = "10ms" }]
"#;
    assert_eq!(
        faults_of(text),
        "node.toml: line 2: field `mesh.leaf_life`: 5s is under 10s
  hint: 24h suits nearly everybody; seconds are for tests
error: node.toml: line 3: field `mesh.advertise`: `gw1` names no port
  hint: write HOST:PORT, for instance 10.0.0.5:7440 or gw1.example.org:7440
error: node.toml: line 5: field `admin.bind`: 0.0.0.0 is not a loopback address
  hint: use 127.0.0.1 or [::1]; from elsewhere, go through ssh or the socket DIR/admin.sock
error: node.toml: line 7: field `location.lat`: 91 is outside -90..=90
  hint: degrees, north is positive
error: node.toml: line 10: field `service[0].name`: `Hello` is not a DNS label
  hint: lower-case letters, digits and inner hyphens, at most 63
error: node.toml: line 11: field `service[0].port`: 127.0.0.1:7080 is this node's own `proxy.bind`: requests would go in circles
  hint: name the port of the application itself
error: node.toml: line 12: field `service[0].capacity`: 0 is not above 0 and at most 1000000
  hint: concurrent requests it serves well; leave it out to have 64 per core
error: node.toml: line 15: field `service[1].port`: 0 is no port to connect to
  hint: name the port the process listens on
error: node.toml: line 16: field `service[1].checks[0].ttl`: 10ms is under 1s
  hint: allow for at least two missed heartbeats"
    );
}

#[test]
fn ports_taken_twice_and_instances_named_twice_are_faults() {
    let text = r#"[admin]
bind = "127.0.0.1:7080"
[[service]]
name = "a"
port = 8081
[[service]]
name = "a"
port = 8081
[[listener]]
service = "a"
address = "127.0.0.1:7440"
"#;
    let faults = faults_of(text);
    for expected in [
        "field `proxy.bind`: 127.0.0.1:7080 is already taken by `admin.bind`",
        "line 6: field `service[1].id`: a second instance `8081` of service `a`",
        "line 11: field `listener[0].address`: 127.0.0.1:7440 is already taken by `mesh.bind`",
    ] {
        assert!(faults.contains(expected), "{expected}\nis not in\n{faults}");
    }
}

#[test]
fn a_fault_within_a_list_is_told_once() {
    let text = "[[service]]\nname = \"a\"\nprot = 8081\n[[service]]\nname = \"b\"\nport = \"x\"\n";
    let error = Config::parse("node.toml", text).unwrap_err();
    let fields: Vec<&str> = error.faults().iter().map(|fault| fault.problem.message.as_str()).collect();
    assert!(fields.contains(&"unknown field `service[0].prot`"), "{fields:?}");
    assert_eq!(fields.iter().filter(|message| message.contains("expected u16")).count(), 1, "{fields:?}");
}

#[test]
fn unknown_fields_of_checks_are_named() {
    let text = "[[service]]\nname = \"a\"\nport = 1\nchecks = [{ type = \"http\", pth = \"/\" }]\n";
    let faults = faults_of(text);
    assert!(faults.contains("unknown field `service[0].checks[0].pth`"), "{faults}");
    assert!(faults.contains("did you mean `path`?"), "{faults}");
}

#[test]
fn text_that_is_no_toml_is_told_with_its_line() {
    let faults = faults_of("region = \"eu\"\nzone = \n");
    assert!(faults.starts_with("node.toml: line 2: "), "{faults}");
    assert!(faults.contains("  hint: "), "{faults}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load_dir(Path::new("/nowhere")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/node.toml: "), "{error}");
}

#[test]
fn registrations_are_checked_like_the_file() {
    let registration = crate::view::Registration {
        port: 0,
        address: Some("0.0.0.0".parse().unwrap()),
        protocol: Protocol::Http,
        capacity: Some(f64::NAN),
        labels: BTreeMap::new(),
        checks: Vec::new(),
    };
    let fields: Vec<String> =
        check_registration("Shop", "a b", &registration).into_iter().map(|problem| problem.field).collect();
    assert_eq!(fields, ["name", "id", "port", "address", "capacity"]);
}

#[test]
fn a_protocol_is_named_by_either_word_and_keeps_its_place_in_records() {
    for (word, protocol, place) in [
        ("http", Protocol::Http, 0),
        ("tcp", Protocol::Tcp, 1),
        ("http2", Protocol::Http2, 2),
        ("kubernetes.io/h2c", Protocol::Http2, 2),
        ("udp", Protocol::Udp, 3),
    ] {
        let read: Protocol = serde_json::from_str(&format!("\"{word}\"")).unwrap();
        assert_eq!(read, protocol, "{word}");
        // Peers and registrations on disk say the place, and not the word.
        assert_eq!(crate::codec::encode(1, &read).unwrap(), [1, place], "{word}");
        assert_eq!(Protocol::from_place(u32::from(place)), Some(protocol), "{word}");
        assert_eq!(crate::codec::decode::<Protocol>(1, &[1, place]).unwrap(), protocol, "{word}");
    }
}

#[test]
fn dns_labels_are_lower_case_and_short() {
    for good in ["a", "hall-3", "0", &"x".repeat(63)] {
        assert!(is_dns_label(good), "{good}");
    }
    for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"x".repeat(64)] {
        assert!(!is_dns_label(bad), "{bad}");
    }
}
