//! A node whose memory is nearly used up refuses new requests and keeps those it has.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use tests::{App, Fleet, Node, eventually, pause};

/// As long as a body may be that is read before it is sent.
const BODY: usize = 64 * 1024;
/// More than enough to use up what the test leaves.
const CLIENTS_MAX: usize = 1500;
/// What the node may use above what it has at rest.
const ROOM: u64 = 24 << 20;

/// A request whose body lacks its last byte.
fn stalled(node: &Node) -> std::io::Result<TcpStream> {
    let mut client = TcpStream::connect(node.proxy)?;
    client.set_write_timeout(Some(Duration::from_secs(5)))?;
    client.write_all(format!("POST / HTTP/1.1\r\nhost: hello.mesh\r\ncontent-length: {BODY}\r\n\r\n").as_bytes())?;
    client.write_all(&vec![b'x'; BODY - 1])?;
    Ok(client)
}

fn resident(node: &Node) -> f64 {
    node.metric("marram_process_resident_memory_bytes", "").unwrap()
}

#[test]
fn many_slow_bodies_use_up_the_memory_and_new_requests_are_refused_before_the_limit() {
    let app = App::start("a");
    let mut fleet = Fleet::start(1, &|_, config| Node::serve(config, "hello", app.address(), None));
    fleet.wait_service("hello", 1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in whole bytes")]
    let limit = resident(&fleet.nodes[0]) as u64 + ROOM;
    fleet.nodes[0].terminate();
    fleet.nodes[0].configure(|config| config.proxy.memory_max = limit);
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    fleet.wait_service("hello", 1);
    let node = &fleet.nodes[0];

    let mut clients = Vec::new();
    let refused = (0..CLIENTS_MAX).find_map(|number| {
        clients.extend(stalled(node).ok());
        // As from many slow clients: what comes within two looks at the memory is bounded by nothing.
        pause(Duration::from_millis(2));
        let answer = (number % 10 == 0).then(|| node.get("hello", "/").unwrap());
        answer.filter(|answer| answer.status != 200)
    });
    let refused = refused.unwrap_or_else(|| panic!("never refused, {} of {limit} bytes resident", resident(node)));
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("short_of_memory")), "{refused:?}");
    let used = resident(node);
    #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
    let limit = limit as f64;
    assert!(used < limit, "{used} of {limit} bytes, with {} clients", clients.len());
    assert!(node.metric("marram_memory_short", "").unwrap() > 0.5);
    assert!(node.metric("marram_proxy_refused_total", "reason=\"short_of_memory\"").unwrap() >= 1.0);

    // One that was taken before goes on to its end.
    let mut oldest = clients.remove(0);
    oldest.write_all(b"x").unwrap();
    let mut head = [0; 15];
    oldest.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    std::io::Read::read_exact(&mut oldest, &mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");

    drop((clients, oldest));
    eventually("requests are taken again", Duration::from_secs(10), || {
        let answer = node.get("hello", "/")?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}
