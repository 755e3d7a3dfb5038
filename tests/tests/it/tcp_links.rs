//! Links over TCP where UDP does not get through: from the start, and while requests flow.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use node::config::{ListenerConfig, ListenerProtocol, MeshTransport, Protocol};
use node::view::{LinkView, Status};
use tests::{
    App, Fleet, Load, Node, Sent, Stopwatch, TcpEcho, eventually, free_port, has_program, is_root, run_command, skip,
};

use crate::policy::{apply, in_force, traffic};
use crate::protocols;

/// What carries the links of a node, each once.
fn transports(node: &Node) -> Result<Vec<String>, String> {
    carriers(node, |_| true)
}

fn carriers(node: &Node, is_meant: impl Fn(&LinkView) -> bool) -> Result<Vec<String>, String> {
    let status: Status = serde_json::from_value(node.ask("/v1/status")?).map_err(|fault| fault.to_string())?;
    let mut found: Vec<String> = status.links.into_iter().filter(is_meant).map(|link| link.transport).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// What carries the control links of a node. Requests of the proxy keep the streams they have, whatever carries them, until
/// these have been silent for a while.
fn control_transports(node: &Node) -> Result<Vec<String>, String> {
    carriers(node, |link| link.purpose == "control")
}

#[test]
fn nodes_without_udp_agree_and_carry_requests_streams_and_raw_tcp_with_the_codes_of_refusals() {
    let (app, echo, streams) = (App::start("a"), TcpEcho::start("e"), protocols::streaming());
    let (dead, listener) = (free_port(), free_port());
    let fleet = Fleet::start(3, &|n, config| {
        config.mesh.transport = MeshTransport::Tcp;
        match n {
            0 => {
                Node::serve(config, "hello", app.address(), Some(100.0));
                protocols::offer(config, "streams", streams);
            }
            1 => {
                Node::serve(config, "hello", dead, Some(100.0));
                Node::serve(config, "echo", echo.address(), None);
                if let Some(last) = config.services.last_mut() {
                    last.protocol = Protocol::Tcp;
                }
            }
            _ => config.listeners.push(ListenerConfig {
                service: "echo".to_owned(),
                address: listener,
                protocol: ListenerProtocol::Tcp,
            }),
        }
    });
    for (service, count) in [("hello", 2), ("streams", 1), ("echo", 1)] {
        fleet.wait_service(service, count);
    }
    for node in &fleet.nodes {
        assert_eq!(transports(node).unwrap(), ["tcp"], "{}", node.name);
        let said = node.run(&["status"]);
        assert!(said.out.contains("OVER") && said.out.contains("tcp"), "{}", said.out);
    }

    // Each is drawn whatever its answers took: one of them has to refuse.
    let single = traffic("hello", "hello", 0.001).replace("lambda:", "draw: Single, lambda:");
    apply(&fleet.nodes[1], &single);
    eventually("the write is in force everywhere", Duration::from_secs(5), || {
        fleet.nodes.iter().try_for_each(|node| in_force(node, "hello", 0.001))
    });
    let (_root, _took) = fleet.wait_roots_equal(Duration::from_secs(5));

    // One of the two instances is gone: its node says so with a code before anything was sent, and the other answers.
    let client = &fleet.nodes[2];
    for _ in 0..100 {
        let answer = client.get("hello", "/").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello from a"), "{answer:?}");
    }
    assert!(
        client.metric("marram_retries_total", "hello").unwrap() > 0.0,
        "the refusing instance was drawn and refused"
    );

    protocols::runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(client.proxy).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let (response, mut sending) = sender.send_request(protocols::call("streams"), false).unwrap();
        let mut response = response.await.unwrap();
        for number in 0..500 {
            let message = Bytes::from(format!("message {number}"));
            sending.send_data(message.clone(), number == 499).unwrap();
            assert_eq!(protocols::piece(response.body_mut()).await.unwrap().unwrap(), message);
        }
        assert_eq!(protocols::piece(response.body_mut()).await.unwrap(), None);
        assert_eq!(response.body_mut().trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });

    let sent: Vec<u8> = (0..(1_u32 << 20)).flat_map(u32::to_le_bytes).collect();
    let mut stream = TcpStream::connect(listener).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got.strip_prefix(b"e:").is_some_and(|rest| rest == sent), "{} bytes of {}", got.len(), sent.len() + 2);
}

/// Drops the UDP packets of these ports on the loopback for as long as it lives.
struct BlockedUdp(Vec<Vec<String>>);

/// How the comment of its rules begins; the id of the process that made them follows.
const MARK: &str = "marram-it-";

impl BlockedUdp {
    fn new(ports: &[u16]) -> Option<Self> {
        Self::remove_left_over();
        let mark = format!("{MARK}{}", std::process::id());
        let mut blocked = Self(Vec::new());
        for port in ports {
            for side in ["--sport", "--dport"] {
                let port = port.to_string();
                let packets = ["-i", "lo", "-p", "udp", side, &port];
                let rest = ["-m", "comment", "--comment", &mark, "-j", "DROP"];
                let rule: Vec<String> = packets.into_iter().chain(rest).map(str::to_owned).collect();
                if run_command(Command::new("iptables").args(["-w", "-I", "INPUT"]).args(&rule)).code != 0 {
                    return None;
                }
                blocked.0.push(rule);
            }
        }
        Some(blocked)
    }

    /// Removes the rules of runs that were killed before they did it themselves.
    fn remove_left_over() {
        let listed = run_command(Command::new("iptables").args(["-w", "-S", "INPUT"]));
        for line in listed.out.lines() {
            let mut words = line.split_whitespace();
            let maker = words.clone().find_map(|word| word.strip_prefix(MARK));
            if maker.is_some_and(|id| !Path::new("/proc").join(id).exists()) && words.next() == Some("-A") {
                drop(run_command(Command::new("iptables").args(["-w", "-D"]).args(words)));
            }
        }
    }
}

impl Drop for BlockedUdp {
    fn drop(&mut self) {
        for rule in &self.0 {
            let removed = run_command(Command::new("iptables").args(["-w", "-D", "INPUT"]).args(rule));
            assert!(removed.code == 0 || std::thread::panicking(), "{}", removed.err);
        }
    }
}

#[test]
fn udp_that_is_blocked_while_requests_flow_moves_links_to_tcp_within_seconds_and_back() {
    const NAME: &str = "udp_that_is_blocked_while_requests_flow_moves_links_to_tcp_within_seconds_and_back";
    if !is_root() || !has_program("iptables") {
        return skip(NAME, "needs root and iptables");
    }
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(3, &|n, config| {
        if let Some(app) = apps.get(n) {
            Node::serve(config, "hello", app.address(), Some(100.0));
        }
    });
    fleet.wait_service("hello", 2);
    let client = &fleet.nodes[2];
    eventually("all links are over quic and not new", Duration::from_secs(15), || {
        let ages = client.metric("marram_process_uptime_seconds", "")?;
        if transports(client)? == ["quic"] && ages > 8.0 { Ok(()) } else { Err(format!("{ages} s")) }
    });
    let load = Load::start(client.proxy, "hello", "GET", 4, Duration::from_millis(5));
    let posts = Load::start(client.proxy, "hello", "POST", 2, Duration::from_millis(10));
    eventually(
        "requests flow",
        Duration::from_secs(10),
        || if load.count() > 200 { Ok(()) } else { Err(String::new()) },
    );

    let ports: Vec<u16> = fleet.nodes.iter().map(|node| node.mesh.port()).collect();
    let Some(blocked) = BlockedUdp::new(&ports) else { return skip(NAME, "iptables does not take rules") };
    let watch = Stopwatch::start();
    let (_, moved) = eventually("all links are over tcp", Duration::from_secs(20), || {
        let all = fleet.nodes.iter().map(transports).collect::<Result<Vec<_>, _>>()?;
        if all.iter().all(|found| found == &["tcp"]) { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let served = load.count();
    eventually("requests flow over tcp", Duration::from_secs(10), || {
        if load.count() > served + 400 { Ok(()) } else { Err(load.count().to_string()) }
    });
    assert_eq!(client.members("alive").unwrap().len(), 3, "nobody was taken for dead\n{}", fleet.logs());
    drop(blocked);
    let unblocked = watch.elapsed();
    let (_, back) = eventually("all control links are over quic again", Duration::from_secs(60), || {
        let all = fleet.nodes.iter().map(control_transports).collect::<Result<Vec<_>, _>>()?;
        if all.iter().all(|found| found == &["quic"]) { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let (reads, writes) = (load.stop(), posts.stop());
    let bad = |sent: &[Sent]| sent.iter().filter(|one| !one.is_good()).count();
    let slowest = reads.iter().map(|sent| sent.took).max().unwrap_or_default();
    println!(
        "all on tcp {moved:?} after the block, control on quic {back:?} after its end (blocked {unblocked:?}); GETs {} failed {} slowest {slowest:?}; POSTs {} failed {}",
        reads.len(),
        bad(&reads),
        writes.len(),
        bad(&writes),
    );
    assert!(moved < Duration::from_secs(15), "{moved:?}");
}

/// An application that answers with as many bytes as the path says; it serves until the process ends.
fn sized() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve_sized(stream));
        }
    });
    address
}

/// Until the connection ends.
fn serve_sized(mut stream: TcpStream) -> Option<()> {
    let mut asked = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        asked.extend_from_slice(piece.get(..read)?);
        if asked.ends_with(b"\r\n\r\n") {
            let size: usize = std::str::from_utf8(&asked).ok()?.split(['/', ' ']).nth(2)?.parse().ok()?;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
            stream.write_all(&[head.as_bytes(), &vec![b'y'; size]].concat()).ok()?;
            asked.clear();
        }
    }
}

#[test]
fn long_answers_of_a_near_peer_come_over_tcp_beside_the_quic_links() {
    let app = sized();
    let fleet = Fleet::start(2, &|n, config| {
        if n == 1 {
            Node::serve(config, "sized", app, Some(100.0));
        }
    });
    fleet.wait_service("sized", 1);
    let client = &fleet.nodes[0];
    let ask = |size: usize| {
        let answer = tests::get(client.proxy, &format!("/{size}"), &[("Host", "sized.mesh")])?;
        if answer.status == 200 && answer.body.len() == size { Ok(()) } else { Err(format!("{}", answer.status)) }
    };
    for _ in 0..50 {
        ask(1000).unwrap();
    }
    assert_eq!(transports(client).unwrap(), ["quic"], "short answers come over quic");
    eventually("a data link over tcp", Duration::from_secs(30), || {
        ask(1_000_000)?;
        let data = carriers(client, |link| link.purpose == "data")?;
        if data.iter().any(|found| found == "tcp") { Ok(()) } else { Err(format!("{data:?}")) }
    });
    for _ in 0..20 {
        ask(1_000_000).unwrap();
    }
    for node in &fleet.nodes {
        assert_eq!(control_transports(node).unwrap(), ["quic"]);
    }
}
