//! Processes that know nothing of the mesh, led through the agent by rules that go with it. In a network namespace of its
//! own, for the rules would touch the whole machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use node::config::Protocol;
use rustix::process::Signal;
use tests::{App, Fleet, Node, Process, Said, eventually, free_port, has_program, is_root, run_command, skip};

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "MARRAM_TEST_NETNS";
/// A user that runs nothing else here.
const USER: u32 = 54_321;

#[test]
fn connections_of_a_user_go_through_the_agent_and_are_free_again_when_it_is_killed() {
    const NAME: &str = "connections_of_a_user_go_through_the_agent_and_are_free_again_when_it_is_killed";
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    if run_command(Command::new("sh").args(["-c", "nc -h 2>&1 | grep -q -- -N"])).code != 0 {
        return skip(NAME, "needs the nc of OpenBSD, which can end its side (-N)");
    }
    if !is_root() || !["unshare", "ip", "nft", "curl", "dig", "nc"].iter().all(|program| has_program(program)) {
        return skip(NAME, "needs root, unshare, ip, nft, curl, dig and nc");
    }
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "ip link set lo up && nft list ruleset >/dev/null || exit 77; exec {} --exact transparent::{NAME} --nocapture",
        own.display()
    );
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &script]).env(INSIDE, "1").env("MARRAM_TEST_BINARY", tests::binary());
    let out = said.reopen().unwrap();
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    let code = Process::start(&mut command).ended(Duration::from_secs(300));
    let said = std::fs::read_to_string(said.path()).unwrap();
    if code == Some(77) {
        return skip(NAME, &format!("no network namespace or no nftables here: {}", said.trim()));
    }
    eprintln!("{said}");
    assert!(code == Some(0) && said.contains("1 passed"), "inside: {code:?}");
}

/// `curl` as the user; what it says, or its exit code.
fn curl(words: &[&str]) -> Result<String, String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "10", "--noproxy", "*"]).args(words);
    let said = run_command(command.uid(USER).gid(USER).current_dir("/"));
    if said.code == 0 { Ok(said.out) } else { Err(format!("{}: {}", said.code, said.err)) }
}

fn address_of(names: SocketAddr, name: &str) -> Ipv4Addr {
    let port = names.port().to_string();
    let (address, _) = eventually("the name has an address", Duration::from_secs(20), || {
        let said = run_command(Command::new("dig").args(["@127.0.0.1", "-p", &port, "+short", "+time=2", name, "A"]));
        said.out.trim().parse::<Ipv4Addr>().map_err(|fault| format!("{fault}: {said:?}"))
    });
    address
}

/// A machine behind a wire, with a server that answers one connection.
fn afar() -> Process {
    let mut far = Command::new("unshare");
    let serve = "ip link set lo up; until ip addr add 198.51.100.2/24 dev far 2>/dev/null; do sleep 0.05; done; ip link set far up; \
                 while :; do printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 9\\r\\n\\r\\nfrom afar' | nc -l -N 198.51.100.2 80; done";
    let far = Process::start(far.args(["--net", "sh", "-c", serve]).stdin(Stdio::null()).stdout(Stdio::null()));
    let wire = format!(
        "ip link add near type veth peer name far && ip addr add 198.51.100.1/24 dev near && ip link set near up && \
         ip link set far netns {}",
        far.pid()
    );
    // The other namespace is there a moment after its process.
    eventually("a wire", Duration::from_secs(5), || {
        let own = std::fs::read_link("/proc/self/ns/net").map_err(|fault| fault.to_string())?;
        let there = std::fs::read_link(format!("/proc/{}/ns/net", far.pid())).map_err(|fault| fault.to_string())?;
        if own == there { Err("not there".to_owned()) } else { Ok(()) }
    });
    let said = run_command(Command::new("sh").args(["-c", &wire]));
    assert_eq!(said.code, 0, "{said:?}");
    far
}

fn tproxy(node: &Node, direct: &App) {
    let passed = |to: &str| node.metric("marram_transparent_connections_total", to).unwrap();
    let _far = afar();
    let (near, far) = (format!("http://{}/", direct.address()), "http://198.51.100.2/");
    let get = |to: &str| curl(&["--connect-timeout", "2", to]);
    let away = || get(far).and_then(|text| if text == "from afar" { Ok(()) } else { Err(text) });
    eventually("the far machine answers", Duration::from_secs(10), away);
    let before = passed("passed");
    let said = node.run(&["transparent", "on", "--uid", &USER.to_string(), "--mode", "tproxy"]);
    assert_eq!(said.code, 0, "{said:?}");
    let status = node.run(&["transparent", "status"]);
    assert!(status.out.contains("by TPROXY"), "{status:?}");
    eventually("the far machine answers through the agent", Duration::from_secs(10), away);
    assert_eq!(get(&near).as_deref(), Ok("hello from direct"));
    assert!(passed("passed") >= before + 2.0, "both went through the agent");

    // A server of that user answers who comes to it, and not the agent.
    let mut server = Command::new("sh");
    let serve =
        "while :; do printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok' | nc -l -N 198.51.100.1 8099; done";
    let _server =
        Process::start(server.args(["-c", serve]).uid(USER).gid(USER).stdin(Stdio::null()).stdout(Stdio::null()));
    eventually("who comes to a server of the user is answered", Duration::from_secs(10), || {
        let said = run_command(Command::new("curl").args(["-s", "--max-time", "2", "http://198.51.100.1:8099/"]));
        if said.out == "ok" { Ok(()) } else { Err(format!("{said:?}")) }
    });

    assert_eq!(node.run(&["transparent", "off"]).out, "off\n");
    let rules = run_command(Command::new("ip").args(["-4", "rule"]));
    assert!(!rules.out.contains("0x6d617272"), "{rules:?}");
    let before = passed("");
    eventually("the far machine is reached straight again", Duration::from_secs(10), away);
    assert!((passed("") - before).abs() < 0.5, "nothing goes through the agent any more");
}

fn inside() {
    let (hello, raw, direct) = (App::start("hello"), App::start("raw"), App::start("direct"));
    let names = free_port();
    let mut fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", hello.address(), None);
            Node::serve(config, "raw", raw.address(), None);
            config.services[1].protocol = Protocol::Tcp;
        } else {
            config.dns.bind = names;
            config.dns.virtual_addresses = true;
            config.transparent.enabled = true;
            config.transparent.bind = free_port();
        }
    });
    fleet.wait_service("hello", 1);
    fleet.wait_service("raw", 1);
    let addresses = ["hello.mesh", "raw.mesh"].map(|name| address_of(names, name));
    assert_ne!(addresses[0], addresses[1]);
    let named = format!("hello.mesh:80:{}", addresses[0]);
    let hello = || curl(&["--resolve", &named, "http://hello.mesh/"]);
    let bytes = || curl(&[&format!("http://{}:5432/", addresses[1])]);
    let away = format!("http://{}/", direct.address());
    let passed = |node: &Node, to: &str| node.metric("marram_transparent_connections_total", to).unwrap();
    let verb = |node: &Node, words: &[&str]| -> Said { node.run(&[&["transparent"], words].concat()) };
    let user = USER.to_string();
    let on = |node: &Node| {
        let said = verb(node, &["on", "--uid", &user]);
        assert_eq!(said.code, 0, "{said:?}");
    };

    // Before: nobody listens there. A dry run changes nothing, and the agent's own user is refused.
    assert!(hello().is_err() && bytes().is_err());
    let dry = verb(&fleet.nodes[1], &["on", "--uid", &user, "--dry-run"]);
    assert!(dry.code == 0 && dry.out.contains(&format!("meta skuid {user} redirect")), "{dry:?}");
    assert!(hello().is_err());
    let own = verb(&fleet.nodes[1], &["on", "--uid", "0"]);
    assert!(own.code == 1 && own.err.contains("the agent's own"), "{own:?}");
    let none = verb(&fleet.nodes[0], &["on", "--uid", &user]);
    assert!(none.code == 1 && none.err.contains("transparent.enabled"), "{none:?}");

    // On: by name and port as the application knows them, and everywhere else as before.
    on(&fleet.nodes[1]);
    assert_eq!(hello().as_deref(), Ok("hello from hello"));
    assert_eq!(bytes().as_deref(), Ok("hello from raw"));
    assert_eq!(curl(&[&away]).as_deref(), Ok("hello from direct"));
    let nobody = curl(&["http://127.0.0.1:9/"]).unwrap_err();
    assert!(nobody.starts_with("7:") || nobody.contains("reset"), "nobody listens there, and it is told so: {nobody}");
    assert!(passed(&fleet.nodes[1], "service") >= 2.0 && passed(&fleet.nodes[1], "passed") >= 1.0);
    let before = passed(&fleet.nodes[1], "");
    let other = run_command(Command::new("curl").args(["--silent", "--noproxy", "*", &away]));
    assert_eq!(other.out, "hello from direct");
    assert!((passed(&fleet.nodes[1], "") - before).abs() < 0.5, "another user is not led through the agent");
    // The listener itself leads nowhere.
    let listener = fleet.nodes[1].run(&["config", "print"]).out;
    let listener =
        listener.split("[transparent]").nth(1).unwrap().lines().find(|line| line.starts_with("bind")).unwrap();
    let port = listener.rsplit(':').next().unwrap().trim_matches('"').to_owned();
    assert!(run_command(Command::new("curl").args(["--silent", &format!("http://127.0.0.1:{port}/")])).code != 0);
    let twice = verb(&fleet.nodes[1], &["on", "--uid", &user]);
    assert!(twice.code == 1 && twice.err.contains("on already"), "{twice:?}");
    let status = verb(&fleet.nodes[1], &["status"]);
    assert!(status.out.starts_with(&format!("on: connections of uid {user} ")), "{status:?}");

    // Off.
    assert_eq!(verb(&fleet.nodes[1], &["off"]).out, "off\n");
    assert!(hello().is_err());
    assert_eq!(verb(&fleet.nodes[1], &["status"]).out, "off\n");
    assert_eq!(verb(&fleet.nodes[1], &["off"]).out, "off already\n");

    // By TPROXY: the same, also for what is not on this machine, and answers to others stay what they are.
    tproxy(&fleet.nodes[1], &direct);

    // The agent is killed without a word: the application reaches what it reached before.
    on(&fleet.nodes[1]);
    assert_eq!(hello().as_deref(), Ok("hello from hello"));
    fleet.nodes[1].kill();
    let free = || curl(&[&away]).and_then(|text| if text == "hello from direct" { Ok(()) } else { Err(text) });
    let ((), took) = eventually("connections go straight again", Duration::from_secs(10), free);
    eprintln!("free {took:?} after the agent was killed");
    assert!(run_command(Command::new("nft").args(["list", "table", "ip", "marram"])).code != 0);

    // The holder is killed: the same, and the agent goes on.
    fleet.nodes[1].start();
    fleet.nodes[1].wait_ready();
    fleet.wait_service("hello", 1);
    on(&fleet.nodes[1]);
    assert_eq!(hello().as_deref(), Ok("hello from hello"), "the address is the same after a restart");
    let status = verb(&fleet.nodes[1], &["status"]).out;
    let holder: i32 = status.trim().rsplit(' ').next().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(holder).unwrap(), Signal::KILL).unwrap();
    eventually("connections go straight again", Duration::from_secs(10), || {
        let through = passed(&fleet.nodes[1], "passed");
        free()?;
        if passed(&fleet.nodes[1], "passed") > through { Err("still led".to_owned()) } else { Ok(()) }
    });
    assert_eq!(verb(&fleet.nodes[1], &["status"]).out, "off\n");
    assert!(fleet.nodes[1].is_running());
}
