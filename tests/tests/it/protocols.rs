//! What else than HTTP/1.1 requests and plain bytes passes through two agents: switched protocols.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tests::{Fleet, Node};

/// An instance that switches to sending back in capitals, and says `BYE` when the client has ended its side.
fn shouting() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || shout(stream));
        }
    });
    address
}

fn shout(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if !head.to_lowercase().contains("upgrade: shout\r\n") {
        return stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nupgrade: shout\r\ncontent-length: 0\r\n\r\n");
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\n")?;
    let mut piece = [0; 4096];
    loop {
        let count = lines.read(&mut piece)?;
        if count == 0 {
            stream.write_all(b"BYE")?;
            return stream.shutdown(Shutdown::Both);
        }
        stream.write_all(&piece[..count].to_ascii_uppercase())?;
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn a_switched_protocol_passes_both_ways_and_one_side_may_end_before_the_other() {
    let address = shouting();
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "shout", address, None);
        }
    });
    fleet.wait_service("shout", 1);
    for node in &fleet.nodes {
        let mut stream = connect(node.proxy);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: shout.mesh\r\n\r\n").unwrap();
        let refused = read_head(&mut stream);
        assert!(refused.starts_with("HTTP/1.1 426 ") && !refused.contains("upgrade:"), "{refused}");
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: shout.mesh\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\nearly ")
            .unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: shout\r\n"), "{head}");
        let sent = "0123456789abcdef".repeat(64 * 1024);
        let mut writer = stream.try_clone().unwrap();
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(bytes.as_bytes()).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        writing.join().unwrap();
        let expected = format!("EARLY {}BYE", sent.to_uppercase());
        assert!(got == expected, "{} bytes of {}", got.len(), expected.len());
    }
}
