//! HTTP/1.1 that streams, through two agents and with `curl`: events, bodies of unknown length, and the wait for permission.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tests::{App, Fleet, Node, Recorder, Script, Stopwatch, has_program, run_command, skip};

/// An instance that begins a stream of events, says on the channel that it has sent the first one, and sends the second
/// one only when it is told to.
fn events() -> (SocketAddr, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (next, told) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            send_events(stream, &told).ok();
        }
    });
    (address, next)
}

fn send_events(mut stream: TcpStream, told: &mpsc::Receiver<()>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
    stream.write_all(b"d\r\ndata: first\n\n\r\n")?;
    // A minute is for a test that has failed: the client never saw the first event.
    told.recv_timeout(Duration::from_secs(60)).ok();
    stream.write_all(b"e\r\ndata: second\n\n\r\n0\r\n\r\n")
}

#[test]
fn an_event_arrives_while_its_stream_is_open() {
    if !has_program("curl") {
        return skip("an_event_arrives_while_its_stream_is_open", "curl is not installed");
    }
    let (address, next) = events();
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "events", address, None);
        }
    });
    fleet.wait_service("events", 1);
    for node in &fleet.nodes {
        let (sender, lines) = mpsc::channel();
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--no-buffer", "--max-time", "50", "-H", "host: events.mesh"]);
        let mut child = command.arg(format!("http://{}/", node.proxy)).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let line = || lines.recv_timeout(Duration::from_secs(20));
        assert_eq!(line().as_deref(), Ok("data: first"), "{}: before the second one was sent", node.name);
        assert_eq!(child.try_wait().unwrap(), None, "the stream is open");
        next.send(()).unwrap();
        assert_eq!([line().unwrap(), line().unwrap()], ["", "data: second"], "{}", node.name);
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn bodies_of_unknown_length_trailers_and_the_wait_for_permission_cross_both_nodes() {
    if !has_program("curl") {
        return skip(
            "bodies_of_unknown_length_trailers_and_the_wait_for_permission_cross_both_nodes",
            "curl is not installed",
        );
    }
    let app = App::start("a");
    let answering = trailing();
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
            Node::serve(config, "trailing", answering, None);
        }
    });
    fleet.wait_service("trailing", 1);
    fleet.wait_service("hello", 1);
    let body = fleet.root().join("body");
    std::fs::write(&body, vec![b'x'; 300_000]).unwrap();
    let heads = fleet.root().join("heads");
    for node in &fleet.nodes {
        let curl = |words: &[&str], service: &str| {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--max-time", "20", "-H", &format!("host: {service}.mesh")]);
            // Trailers are written there as well.
            command.arg("--dump-header").arg(&heads).args(words);
            let said = run_command(command.arg(format!("http://{}/", node.proxy)));
            assert_eq!(said.code, 0, "{words:?}: {said:?}");
            said
        };
        let file = format!("@{}", body.display());
        // Sent in chunks, and only after the instance's node has said that it may.
        let words = ["te: trailers", "connection: te", "transfer-encoding: chunked", "expect: 100-continue"];
        let words: Vec<&str> = words.iter().flat_map(|header| ["-H", header]).chain(["--data-binary", &file]).collect();
        let said = curl(&words, "trailing");
        assert_eq!(said.out, "300000", "{}: {}", node.name, said.err);
        let heads = std::fs::read_to_string(&heads).unwrap();
        assert!(heads.starts_with("HTTP/1.1 100 Continue\r\n"), "{}: {heads}", node.name);
        assert!(heads.contains("x-sum: 300000\r\n"), "{}: the trailer: {heads}", node.name);
        let said = curl(&["-H", "expect: 100-continue", "--data-binary", &file], "hello");
        assert_eq!(said.out, "hello from a", "{}: {}", node.name, said.err);
    }
}

/// An instance that counts a chunked body, and says the count in its answer and in a trailer.
fn trailing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || count_body(stream));
        }
    });
    address
}

fn count_body(mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if head.to_lowercase().contains("expect: 100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut count = 0;
    loop {
        let mut size = String::new();
        lines.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
        let mut piece = vec![0; size + 2];
        lines.read_exact(&mut piece)?;
        count += size;
        if size == 0 {
            break;
        }
    }
    let answer = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n{:x}\r\n{count}\r\n0\r\nx-sum: {count}\r\n\r\n",
        count.to_string().len()
    );
    stream.write_all(answer.as_bytes())
}

/// `netcat` ends its side and waits for the answer, as old line-by-line protocols do.
#[test]
fn netcat_ends_its_side_first_and_still_gets_the_answer() {
    const NAME: &str = "netcat_ends_its_side_first_and_still_gets_the_answer";
    if !has_program("nc") {
        return skip(NAME, "nc is not installed");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut whole = String::new();
                stream.read_to_string(&mut whole)?;
                stream.write_all(whole.to_uppercase().as_bytes())
            });
        }
    });
    let way_in = tests::free_port();
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "shout", address, None);
            config.services[0].protocol = node::config::Protocol::Tcp;
        } else {
            config.listeners.push(node::config::ListenerConfig {
                service: "shout".to_owned(),
                address: way_in,
                protocol: node::config::ListenerProtocol::Tcp,
            });
        }
    });
    fleet.wait_service("shout", 1);
    let script = format!("printf 'half closed' | nc -N -w 20 127.0.0.1 {}", way_in.port());
    let said = run_command(Command::new("sh").args(["-c", &script]));
    if said.err.contains("invalid option") {
        return skip(NAME, "this nc cannot end its side (-N)");
    }
    assert_eq!((said.code, said.out.as_str()), (0, "HALF CLOSED"), "{said:?}");
}

/// Large enough to fill every buffer on the way.
const LARGE: usize = 24 << 20;
/// What the others ask for.
const SMALL: usize = 256 << 10;

/// 31 readers at once, each eight answers over one connection; how long all took together.
fn thirty_one_read(address: SocketAddr) -> Result<Duration, String> {
    let watch = Stopwatch::start();
    let readers: Vec<_> = (0..31)
        .map(|_| {
            std::thread::spawn(move || -> Result<(), String> {
                let mut stream = open(address, "/small").map_err(|error| error.to_string())?;
                for turn in 0..8 {
                    let read = read_answer(&mut stream, SMALL).map_err(|error| format!("answer {turn}: {error}"))?;
                    assert!(read.iter().all(|byte| *byte == b's'));
                    ask_for(&mut stream, "/small").map_err(|error| error.to_string())?;
                }
                Ok(())
            })
        })
        .collect();
    for reader in readers {
        reader.join().map_err(|_panic| "a reader panicked".to_owned())??;
    }
    Ok(watch.elapsed())
}

fn open(address: SocketAddr, path: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    ask_for(&mut stream, path)?;
    Ok(stream)
}

fn ask_for(stream: &mut TcpStream, path: &str) -> std::io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: large.mesh\r\n\r\n").as_bytes())
}

fn read_answer(stream: &mut TcpStream, length: usize) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

#[test]
fn a_reader_that_stands_still_stops_none_of_thirty_one_others_and_gets_its_own_in_the_end() {
    let recorder = Recorder::start(|path| {
        let (byte, length) = if path == "/large" { (b'l', LARGE) } else { (b's', SMALL) };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        Script::bytes([head.into_bytes(), vec![byte; length]].concat())
    });
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "large", recorder.address(), None);
        }
    });
    fleet.wait_service("large", 1);
    for node in &fleet.nodes {
        let alone = thirty_one_read(node.proxy).unwrap();
        let mut stalled = open(node.proxy, "/large").unwrap();
        let beside = thirty_one_read(node.proxy).unwrap();
        eprintln!("{}: {alone:.2?} without, {beside:.2?} beside one that reads nothing", node.name);
        let body = read_answer(&mut stalled, LARGE).unwrap();
        assert!(body.iter().all(|byte| *byte == b'l'), "{}", node.name);
    }
}
