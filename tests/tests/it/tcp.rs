//! Raw TCP through listeners, with an echo and with the clients that people have.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use node::config::{Config, ListenerConfig, ListenerProtocol, Protocol};
use tests::{App, Fleet, Node, Process, Said, TcpEcho, eventually, free_port, has_program, is_root, run_command, skip};

/// Adds a TCP instance of `service`.
fn offer(config: &mut Config, service: &str, address: SocketAddr) {
    Node::serve(config, service, address, None);
    if let Some(last) = config.services.last_mut() {
        last.protocol = Protocol::Tcp;
    }
}

/// Two nodes: the first has an instance of `service` at `address`; both listen for it.
fn fleet_for(service: &str, address: SocketAddr) -> (Fleet, [SocketAddr; 2]) {
    let listeners = [free_port(), free_port()];
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            offer(config, service, address);
        }
        config.listeners.push(ListenerConfig {
            service: service.to_owned(),
            address: listeners[n],
            protocol: ListenerProtocol::Tcp,
        });
    });
    fleet.wait_service(service, 1);
    (fleet, listeners)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

#[test]
fn bytes_pass_both_ways_and_one_side_may_end_before_the_other() {
    let echo = TcpEcho::start("e");
    let (fleet, listeners) = fleet_for("echo", echo.address());
    for listener in listeners {
        let mut stream = connect(listener);
        stream.write_all(b"ping").unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"e:ping");
        stream.write_all(b" pong").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b" pong", "what was under way arrives after the client has ended its side");
    }
    let mut sent = Vec::new();
    for n in 0..(4_u32 << 18) {
        sent.extend(n.to_le_bytes());
    }
    let mut stream = connect(listeners[1]);
    let mut writer = stream.try_clone().unwrap();
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got.strip_prefix(b"e:").is_some_and(|rest| rest == sent), "{} bytes of {}", got.len(), sent.len() + 2);
    let explained = fleet.nodes[1].explain("echo").unwrap();
    assert!(explained.candidates[0].picks >= 2, "tunnels are drawn by the same formula: {explained:?}");
}

#[test]
fn a_server_that_ends_first_is_heard_and_one_that_is_gone_closes_at_once() {
    let app = App::start("a");
    let (fleet, listeners) = fleet_for("web", app.address());
    for listener in listeners {
        let mut stream = connect(listener);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: any\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
    let mut open = connect(listeners[1]);
    open.write_all(b"GET / HTTP/1.1\r\nhost: any\r\n\r\n").unwrap();
    open.read_exact(&mut [0; 15]).unwrap();
    drop(app);
    // Both ends of the connection know: the rest of the answer, then the end or a reset, but no silence.
    let mut rest = Vec::new();
    let ended = open.read_to_end(&mut rest);
    assert!(ended.as_ref().err().is_none_or(|fault| fault.kind() == std::io::ErrorKind::ConnectionReset), "{ended:?}");
    let mut refused = connect(listeners[1]);
    let ended = refused.read_to_end(&mut Vec::new());
    assert!(ended.as_ref().err().is_none_or(|fault| fault.kind() == std::io::ErrorKind::ConnectionReset), "{ended:?}");
    let http = fleet.nodes[1].get("web", "/").unwrap();
    assert!(http.status == 502 || http.status == 503, "HTTP to a service of raw TCP: {http:?}");
}

#[test]
fn a_killed_node_costs_only_the_connections_that_were_open_through_it() {
    let echoes = [TcpEcho::start("a"), TcpEcho::start("b")];
    let listener = free_port();
    let mut fleet = Fleet::start(3, &|n, config| {
        if let Some(echo) = echoes.get(n) {
            offer(config, "echo", echo.address());
        } else {
            config.listeners.push(ListenerConfig {
                service: "echo".to_owned(),
                address: listener,
                protocol: ListenerProtocol::Tcp,
            });
        }
    });
    fleet.wait_service("echo", 2);
    // Tunnels count as in flight, so a second one goes elsewhere soon; some are open to each.
    let mut open: Vec<(u8, TcpStream)> = Vec::new();
    eventually("tunnels are open to both", Duration::from_secs(10), || {
        let mut stream = connect(listener);
        let mut name = [0; 2];
        stream.read_exact(&mut name).map_err(|fault| fault.to_string())?;
        open.push((name[0], stream));
        let both = b"ab".iter().all(|name| open.iter().any(|(other, _)| other == name));
        if both { Ok(()) } else { Err(format!("{} tunnels", open.len())) }
    });
    fleet.nodes[1].kill();
    for _ in 0..20 {
        let mut stream = connect(listener);
        stream.write_all(b"x").unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).expect("a new connection goes to the node that is left");
        assert_eq!(&answer, b"a:x");
    }
    for (name, stream) in &mut open {
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        if *name == b'a' {
            stream.write_all(b"still").unwrap();
            stream.read_exact(&mut [0; 5]).expect("the others go on");
        } else {
            let ended = stream.read(&mut [0; 1]);
            let silent = ended.as_ref().err().is_some_and(|fault| fault.kind() == std::io::ErrorKind::WouldBlock);
            assert!(
                !silent && ended.as_ref().ok().is_none_or(|count| *count == 0),
                "it is ended, not left hanging: {ended:?}"
            );
        }
    }
}

#[test]
fn redis_cli_works_through_a_listener() {
    if !has_program("redis-server") || !has_program("redis-cli") {
        skip("redis_cli_works_through_a_listener", "redis-server and redis-cli are not installed");
        return;
    }
    let address = free_port();
    let mut server = Command::new("redis-server");
    server.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/tmp"]);
    server.args(["--port", &address.port().to_string()]).stdout(Stdio::null());
    let _server = Process::start(&mut server);
    eventually("redis listens", Duration::from_secs(10), || {
        TcpStream::connect(address).map_err(|fault| fault.to_string())
    });
    let (_fleet, listeners) = fleet_for("redis", address);
    let cli = |listener: SocketAddr, words: &[&str]| -> Said {
        let port = listener.port().to_string();
        let said = run_command(Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &port]).args(words));
        assert_eq!(said.code, 0, "{said:?}");
        said
    };
    for (n, listener) in listeners.into_iter().enumerate() {
        let key = format!("key-{n}");
        assert_eq!(cli(listener, &["SET", &key, "value"]).out, "OK\n");
        assert_eq!(cli(listener, &["GET", &key]).out, "value\n");
    }
    assert_eq!(cli(listeners[1], &["GET", "key-0"]).out, "value\n", "both lead to the same server");
}

#[test]
fn psql_works_through_a_listener() {
    if !["initdb", "postgres", "psql"].iter().all(|program| has_program(program)) {
        skip("psql_works_through_a_listener", "initdb, postgres and psql are not installed");
        return;
    }
    let folder = tempfile::Builder::new().prefix("marram-it-pg-").tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    // PostgreSQL refuses to run as root; any other user will do.
    let as_user = |command: &mut Command| {
        if is_root() {
            command.uid(65534).gid(65534);
        }
    };
    if is_root() {
        for path in [folder.path(), &data] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
        }
    }
    let mut initdb = Command::new("initdb");
    initdb.args(["--auth", "trust", "--no-sync", "--username", "marram", "-D"]).arg(&data).current_dir(folder.path());
    as_user(&mut initdb);
    let said = run_command(&mut initdb);
    if said.code != 0 {
        skip("psql_works_through_a_listener", &format!("initdb does not work here: {}", said.err.trim()));
        return;
    }
    let address = free_port();
    let mut server = Command::new("postgres");
    server.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-F", "-k"]).arg(folder.path()).current_dir(folder.path());
    server.args(["-p", &address.port().to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    as_user(&mut server);
    let _server = Process::start(&mut server);
    let sql = |listener: SocketAddr, statement: &str| -> Said {
        let target = format!("host=127.0.0.1 port={} user=marram dbname=postgres", listener.port());
        run_command(Command::new("psql").args([&target, "-X", "-A", "-t", "-c", statement]))
    };
    eventually("postgres answers", Duration::from_secs(30), || {
        let said = sql(address, "select 1");
        if said.code == 0 { Ok(()) } else { Err(said.err) }
    });
    let (_fleet, listeners) = fleet_for("db", address);
    let made =
        sql(listeners[0], "create table t as select n, repeat('x', 100) as text from generate_series(1, 10000) n");
    assert_eq!(made.code, 0, "{made:?}");
    let counted = sql(listeners[1], "select count(*), sum(n) from t");
    assert_eq!((counted.code, counted.out.as_str()), (0, "10000|50005000\n"), "{counted:?}");
    let all = sql(listeners[1], "select n, text from t order by n");
    assert_eq!((all.code, all.out.lines().count()), (0, 10000), "{}", all.err);
}
