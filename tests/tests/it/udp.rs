//! Datagrams through listeners of real agents: flows, what is lost and counted, and instances that go.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use node::config::{Config, ListenerConfig, ListenerProtocol, Protocol};
use tests::{Fleet, Node, eventually, free_port};

/// Sends each datagram back behind its name and the port it came from. Dropping it closes its socket.
struct UdpEcho {
    address: SocketAddr,
    is_stopped: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl UdpEcho {
    fn start(name: &str) -> Self {
        // Nobody takes such a port until the test binds it again.
        let socket = UdpSocket::bind(free_port()).unwrap();
        let address = socket.local_addr().unwrap();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (name, stopped) = (name.to_owned(), Arc::clone(&is_stopped));
        let serving = std::thread::spawn(move || {
            let mut payload = vec![0; 65_535];
            while let Ok((length, from)) = socket.recv_from(&mut payload) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let mut answer = format!("{name}:{}:", from.port()).into_bytes();
                answer.extend(&payload[..length]);
                socket.send_to(&answer, from).ok();
            }
        });
        Self { address, is_stopped, serving: Some(serving) }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"wake", self.address).ok();
        self.serving.take().map(JoinHandle::join);
    }
}

fn offer(config: &mut Config, address: SocketAddr) {
    Node::serve(config, "echo", address, None);
    config.services.last_mut().unwrap().protocol = Protocol::Udp;
}

fn listen(config: &mut Config, address: SocketAddr) {
    let service = "echo".to_owned();
    config.listeners.push(ListenerConfig { service, address, protocol: ListenerProtocol::Udp });
}

/// Two nodes, both with a listener; the first has the instance.
fn fleet(echo: &UdpEcho, setup: &dyn Fn(usize, &mut Config)) -> (Fleet, [SocketAddr; 2]) {
    let listeners = [free_port(), free_port()];
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            offer(config, echo.address);
        }
        listen(config, listeners[n]);
        setup(n, config);
    });
    fleet.wait_service("echo", 1);
    (fleet, listeners)
}

/// A client of a listener.
struct Client(UdpSocket);

impl Client {
    fn to(listener: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(listener).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        Self(socket)
    }

    fn send(&self, payload: &[u8]) {
        // A listener that is gone is told to the next call, and that one is not what these tests look at.
        self.0.send(payload).ok();
    }

    fn receive(&self) -> Result<String, String> {
        let mut answer = vec![0; 65_535];
        let length = self.0.recv(&mut answer).map_err(|fault| fault.to_string())?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// Sends until something comes back: the answer's name and port.
    fn ask(&self, payload: &str, at_most: Duration) -> (String, String) {
        let (answer, _) = eventually("an answer", at_most, || {
            self.send(payload.as_bytes());
            self.receive()
        });
        let mut parts = answer.split(':');
        (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned())
    }
}

#[test]
fn answers_go_back_to_the_client_that_asked_and_what_is_lost_is_counted() {
    let echo = UdpEcho::start("e");
    let (fleet, listeners) = fleet(&echo, &|_, _| {});
    for (node, listener) in fleet.nodes.iter().zip(listeners) {
        let clients: Vec<Client> = (0..10).map(|_| Client::to(listener)).collect();
        let mut ports = BTreeSet::new();
        for (n, client) in clients.iter().enumerate() {
            ports.insert(client.ask(&format!("first of {n}"), Duration::from_secs(10)).1);
        }
        assert_eq!(ports.len(), 10, "each client is a flow of its own: {ports:?}");
        // All at once: each gets its own back, from the same port as before.
        for round in 0..20 {
            for (n, client) in clients.iter().enumerate() {
                client.send(format!("round {round} of {n}").as_bytes());
            }
            for (n, client) in clients.iter().enumerate() {
                let wanted = format!(":round {round} of {n}");
                eventually("the answer to this round", Duration::from_secs(10), || {
                    let answer = client.receive()?;
                    let port = answer.split(':').nth(1).unwrap_or_default();
                    assert!(ports.contains(port), "the flow stays the same: {answer}");
                    if answer.ends_with(&wanted) { Ok(()) } else { Err(answer) }
                });
            }
        }
        let flows = node.metric("marram_udp_flows", "listener").unwrap();
        assert!((flows - 10.0).abs() < 0.5, "{flows}");
        assert!(node.metric("marram_udp_datagrams_total", "client").unwrap() >= 210.0);
    }
    let inbound = fleet.nodes[0].metric("marram_udp_flows", "instance").unwrap();
    assert!((inbound - 10.0).abs() < 0.5, "those of the other node: {inbound}");

    // 1,000 through both nodes, 20 under way at a time.
    let client = Client::to(listeners[1]);
    client.ask("open", Duration::from_secs(10));
    let mut received = 0;
    for batch in 0..50 {
        for n in 0..20 {
            client.send(format!("{} {}", batch * 20 + n, "x".repeat(900)).as_bytes());
        }
        let got =
            std::iter::from_fn(|| client.receive().ok().filter(|answer| answer.contains(":0 ") || answer.len() > 900));
        received += got.take(20).count();
    }
    eprintln!("1,000 datagrams of 900 bytes through two nodes: {received} came back");
    assert!(received >= 990, "{received} of 1,000");
    let dropped: f64 = fleet.nodes.iter().map(|node| node.metric("marram_udp_dropped_total", "").unwrap()).sum();
    assert!(dropped < 10.5, "nearly nothing: {dropped}");
    assert!(fleet.nodes[1].metric("marram_udp_datagrams_total", "client").unwrap() >= 1210.0);

    // What fits no packet: between two nodes lost and counted, on one node of any length.
    let large = vec![b'x'; 20_000];
    let before = fleet.nodes[1].metric("marram_udp_dropped_total", "too_large").unwrap();
    client.send(&large);
    client.ask("after the large one", Duration::from_secs(10));
    let after = fleet.nodes[1].metric("marram_udp_dropped_total", "too_large").unwrap();
    assert!((after - before - 1.0).abs() < 0.5, "{before} {after}");
    let near = Client::to(listeners[0]);
    near.ask("open", Duration::from_secs(10));
    near.send(&large);
    let (answer, _) = eventually("the large one", Duration::from_secs(10), || near.receive());
    assert!(answer.len() > 20_000, "{} bytes", answer.len());

    // Requests and connections have nothing to do there.
    let http = fleet.nodes[1].get("echo", "/").unwrap();
    assert!(http.status == 503 && http.body.contains("speaks datagrams"), "{http:?}");
}

#[test]
fn a_flow_moves_when_its_instance_ends_and_when_its_node_dies() {
    let mut echoes = [Some(UdpEcho::start("n0")), Some(UdpEcho::start("n1"))];
    let addresses = [echoes[0].as_ref().unwrap().address, echoes[1].as_ref().unwrap().address];
    let listener = free_port();
    let mut fleet = Fleet::start(3, &|n, config| match addresses.get(n) {
        Some(address) => offer(config, *address),
        None => listen(config, listener),
    });
    fleet.wait_service("echo", 2);
    let client = Client::to(listener);
    let (first, _) = client.ask("x", Duration::from_secs(10));
    for _ in 0..20 {
        assert_eq!(client.ask("x", Duration::from_secs(10)).0, first, "it stays with its instance");
    }
    // The process ends; its node and the other instance are well.
    let ended = usize::from(first == "n1");
    echoes[ended] = None;
    let other = eventually("the other instance answers", Duration::from_secs(15), || {
        let (name, _) = client.ask("x", Duration::from_secs(15));
        if name == first { Err(name) } else { Ok(name) }
    });
    eprintln!("moved from an ended instance after {:?}", other.1);
    let refused = fleet.nodes[ended].metric("marram_udp_dropped_total", "instance_refused").unwrap();
    assert!(refused >= 1.0, "{refused}");
    // It comes back at its address, and then the node of the other one is killed.
    let socket = UdpSocket::bind(addresses[ended]).unwrap();
    std::thread::spawn(move || {
        let mut payload = [0; 2000];
        while let Ok((length, from)) = socket.recv_from(&mut payload) {
            let mut answer = b"again:0:".to_vec();
            answer.extend(&payload[..length]);
            socket.send_to(&answer, from).ok();
        }
    });
    fleet.nodes[1 - ended].kill();
    let (name, _) = client.ask("x", Duration::from_secs(30));
    assert_eq!(name, "again");
}

#[test]
fn a_flow_is_forgotten_when_it_is_idle_or_one_too_many_and_opened_again() {
    let echo = UdpEcho::start("e");
    // The instance's node forgets first.
    let (fleet, listeners) = fleet(&echo, &|n, config| {
        config.proxy.udp_flow_timeout = Duration::from_secs(if n == 0 { 1 } else { 4 });
        config.proxy.udp_flows_max = 2;
    });
    let client = Client::to(listeners[1]);
    client.ask("x", Duration::from_secs(10));
    eventually("the instance's node has forgotten the flow", Duration::from_secs(10), || {
        let flows = fleet.nodes[0].metric("marram_udp_flows", "instance")?;
        if flows < 0.5 { Ok(()) } else { Err(flows.to_string()) }
    });
    client.ask("x", Duration::from_secs(10));
    assert!(fleet.nodes[0].metric("marram_udp_dropped_total", "unknown_flow").unwrap() >= 1.0);
    eventually("its own node has, too", Duration::from_secs(15), || {
        let flows = fleet.nodes[1].metric("marram_udp_flows", "listener")?;
        if flows < 0.5 { Ok(()) } else { Err(flows.to_string()) }
    });
    let clients: Vec<Client> = (0..3).map(|_| Client::to(listeners[1])).collect();
    for client in &clients {
        client.ask("x", Duration::from_secs(10));
    }
    let flows = fleet.nodes[1].metric("marram_udp_flows", "listener").unwrap();
    assert!((flows - 2.0).abs() < 0.5, "{flows}");
    assert!(fleet.nodes[1].metric("marram_udp_flows_closed_total", "flows_max").unwrap() >= 1.0);
    clients[0].ask("x", Duration::from_secs(10));
}
