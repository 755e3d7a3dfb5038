//! Names for local applications, asked with `dig` and by hand, and used by programs that know nothing of the mesh.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use node::config::{ListenerConfig, ListenerProtocol, Protocol};
use tests::{App, Fleet, Node, TcpEcho, eventually, free_port, has_program, run_command, skip};

/// What `dig` prints for these words, asked of `server`.
fn dig(server: SocketAddr, words: &[&str]) -> String {
    let port = server.port().to_string();
    let mut command = Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port, "+noall", "+comments", "+answer", "+authority", "+time=5", "+tries=1"]);
    let said = run_command(command.args(words));
    assert_eq!(said.code, 0, "{said:?}");
    said.out
}

/// The whole message for a query of type A, over UDP.
fn ask(server: SocketAddr, name: &str) -> Result<Vec<u8>, String> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|fault| fault.to_string())?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(|fault| fault.to_string())?;
    socket.send_to(&query(name), server).map_err(|fault| fault.to_string())?;
    let mut answer = vec![0; 1500];
    let length = socket.recv(&mut answer).map_err(|fault| fault.to_string())?;
    answer.truncate(length);
    Ok(answer)
}

fn query(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Two nodes; the first offers `hello` and `db`, the second has a listener for `db`. Where each answers names.
fn fleet(app: &App, echo: &TcpEcho, listener: SocketAddr) -> (Fleet, [SocketAddr; 2]) {
    let names = [free_port(), free_port()];
    let fleet = Fleet::start(2, &|n, config| {
        config.dns.bind = names[n];
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
            Node::serve(config, "db", echo.address(), None);
            config.services[1].protocol = Protocol::Tcp;
        } else {
            config.listeners.push(ListenerConfig {
                service: "db".to_owned(),
                address: listener,
                protocol: ListenerProtocol::Tcp,
            });
        }
    });
    fleet.wait_service("hello", 1);
    fleet.wait_service("db", 1);
    (fleet, names)
}

#[test]
fn dig_is_told_addresses_ports_and_candidates_and_that_there_is_nothing() {
    if !has_program("dig") {
        return skip("dig_is_told_addresses_ports_and_candidates_and_that_there_is_nothing", "dig is not installed");
    }
    let (app, echo, listener) = (App::start("a"), TcpEcho::start("e"), free_port());
    let (fleet, names) = fleet(&app, &echo, listener);
    let (proxy, port) = (fleet.nodes[1].proxy.port(), listener.port());
    for over in ["+notcp", "+tcp"] {
        for (words, expected) in [
            (&["hello.mesh", "A"][..], vec!["status: NOERROR", "flags: qr aa rd;", "\tIN\tA\t127.0.0.1\n"]),
            (&["hello.mesh", "AAAA"], vec!["status: NOERROR", "ANSWER: 0", "AUTHORITY: 1", "\tIN\tSOA\tlocalhost."]),
            (&["HELLO.mesh", "SRV"], vec!["status: NOERROR", &format!("\tIN\tSRV\t0 0 {proxy} hello.mesh.")]),
            (&["_pg._tcp.db.mesh", "SRV"], vec!["status: NOERROR", &format!("\tIN\tSRV\t0 0 {port} db.mesh.")]),
            (&["hello.mesh", "TXT"], vec!["status: NOERROR", "node=n0", "P=1.000"]),
            (&["nobody.mesh", "A"], vec!["status: NXDOMAIN", "AUTHORITY: 1", "\t5\tIN\tSOA\t"]),
            (&["mesh", "SOA"], vec!["status: NOERROR", "ANSWER: 1"]),
            (&["example.org", "A"], vec!["status: REFUSED"]),
        ] {
            let said = dig(names[1], &[&[over], words].concat());
            for text in expected {
                assert!(said.contains(text), "{over} {words:?}: no {text:?} in\n{said}");
            }
            assert!(!said.contains("malformed"), "{said}");
        }
    }
    let raw = dig(names[0], &["db.mesh", "A"]);
    assert!(raw.contains("ANSWER: 0") && raw.contains("status: NOERROR"), "no listener for raw bytes: {raw}");
    let counted = fleet.nodes[1].metric("marram_dns_queries_total", "nxdomain").unwrap();
    assert!(counted >= 2.0, "{counted}");
}

#[test]
fn a_node_that_is_cut_off_and_has_just_started_answers_for_what_it_has() {
    let (app, echo, listener) = (App::start("a"), TcpEcho::start("e"), free_port());
    let (mut fleet, names) = fleet(&app, &echo, listener);
    fleet.nodes[1].kill();
    fleet.nodes[0].kill();
    for (n, name, address) in [(0, "hello.mesh", [127, 0, 0, 1]), (1, "db.mesh", [127, 0, 0, 1])] {
        fleet.nodes[n].start();
        eventually("the name has its address again", Duration::from_secs(20), || {
            let answer = ask(names[n], name)?;
            if answer.ends_with(&address) { Ok(()) } else { Err(format!("{answer:?}")) }
        });
        // Alone: the other one is down.
        fleet.nodes[n].kill();
    }
}

#[test]
fn curl_finds_a_service_by_its_name() {
    if !has_program("curl") || !has_program("unshare") || !tests::is_root() {
        return skip("curl_finds_a_service_by_its_name", "needs curl, and root for its own /etc/resolv.conf");
    }
    let (app, echo, listener) = (App::start("a"), TcpEcho::start("e"), free_port());
    let (fleet, _) = fleet(&app, &echo, listener);
    // resolv.conf has no place for a port, so this agent answers on the usual one, at an address of its own.
    let resolver: SocketAddr = "127.53.7.1:53".parse().unwrap();
    let mut second = fleet;
    second.nodes[1].kill();
    second.nodes[1].configure(|config| config.dns.bind = resolver);
    second.nodes[1].start();
    eventually("names are answered", Duration::from_secs(20), || {
        let answer = ask(resolver, "hello.mesh")?;
        if answer.ends_with(&[127, 0, 0, 1]) { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let conf = second.root().join("resolv.conf");
    std::fs::write(&conf, "nameserver 127.53.7.1\n").unwrap();
    let url = format!("http://hello.mesh:{}/", second.nodes[1].proxy.port());
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec curl --silent --show-error --max-time 10 --noproxy '*' {url}",
        conf.display()
    );
    let said = run_command(Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script]));
    assert_eq!((said.code, said.out.as_str()), (0, "hello from a"), "{said:?}");
}

#[test]
fn queries_that_are_none_and_connections_that_are_too_many_leave_the_others_alone() {
    let (app, echo, listener) = (App::start("a"), TcpEcho::start("e"), free_port());
    let (fleet, names) = fleet(&app, &echo, listener);
    let server = names[0];
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for junk in [&b""[..], b"x", &[0xff; 12], &[0; 2000]] {
        socket.send_to(junk, server).unwrap();
    }
    // More connections than there may be at once, all silent.
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(server).unwrap()).collect();
    eventually("connections beyond the limit are closed", Duration::from_secs(10), || {
        let closed = fleet.nodes[0].metric("marram_dns_dropped_total", "connections_max")?;
        if closed >= 8.0 { Ok(()) } else { Err(closed.to_string()) }
    });
    assert!(ask(server, "hello.mesh").unwrap().ends_with(&[127, 0, 0, 1]), "datagrams are answered meanwhile");
    drop(silent);
    eventually("connections are taken again", Duration::from_secs(10), || {
        let over = |fault: std::io::Error| fault.to_string();
        let mut stream = TcpStream::connect(server).map_err(over)?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(over)?;
        let query = query("hello.mesh");
        stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).map_err(over)?;
        // In two pieces, and twice over one connection.
        for _ in 0..2 {
            let (first, rest) = query.split_at(5);
            stream.write_all(first).and_then(|()| stream.write_all(rest)).map_err(over)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).map_err(over)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).map_err(over)?;
            if !answer.ends_with(&[127, 0, 0, 1]) {
                return Err(format!("{answer:?}"));
            }
            stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).map_err(over)?;
        }
        Ok(())
    });
}
