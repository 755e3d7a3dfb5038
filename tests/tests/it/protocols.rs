//! What else than HTTP/1.1 requests and plain bytes passes through two agents: switched protocols, HTTP/2 and gRPC, with
//! clients that choose their frames and with those that people have.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, Request, Response};
use node::config::{Config, Protocol};
use rustix::process::Signal;
use tests::{App, Fleet, Node, Said, eventually, has_program, run_command, skip};

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

/// Adds an HTTP/2 instance of `service`.
pub(crate) fn offer(config: &mut Config, service: &str, address: SocketAddr) {
    Node::serve(config, service, address, None);
    if let Some(last) = config.services.last_mut() {
        last.protocol = Protocol::Http2;
    }
}

/// An instance that speaks HTTP/2 only: it sends back each piece of a body as it comes, and a status at the end.
pub(crate) fn streaming() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await?;
                    while let Some(accepted) = connection.accept().await {
                        let (request, respond) = accepted?;
                        tokio::spawn(send_back(request, respond));
                    }
                    Ok::<(), h2::Error>(())
                });
            }
        });
    });
    address
}

async fn send_back(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(head, false)?;
    while let Some(piece) = piece(&mut body).await? {
        stream.send_data(piece, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(trailers)
}

/// The next piece of a body.
pub(crate) async fn piece(body: &mut h2::RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let Some(piece) = body.data().await.transpose()? else { return Ok(None) };
    body.flow_control().release_capacity(piece.len())?;
    Ok(Some(piece))
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn call(service: &str) -> Request<()> {
    let call = Request::post(format!("http://{service}.mesh/demo/both")).header("te", "trailers");
    call.header("content-type", "application/grpc").body(()).unwrap()
}

#[test]
fn streams_of_one_connection_reach_other_services_and_a_node_that_stops_finishes_them() {
    let (streams, app) = (streaming(), App::start("a"));
    let mut fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            offer(config, "streams", streams);
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.wait_service("streams", 1);
    fleet.wait_service("hello", 1);
    runtime().block_on(async {
        for at in [0, 1] {
            let proxy = fleet.nodes[at].proxy;
            let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut sender = sender.ready().await.unwrap();
            let (response, mut sending) = sender.send_request(call("streams"), false).unwrap();
            let mut response = response.await.unwrap();
            for number in 0..200 {
                let message = Bytes::from(format!("message {number}"));
                sending.send_data(message.clone(), false).unwrap();
                assert_eq!(piece(response.body_mut()).await.unwrap().unwrap(), message);
            }
            let hello = Request::get("http://hello.mesh/").body(()).unwrap();
            let (answer, _) = sender.send_request(hello, true).unwrap();
            let mut answer = answer.await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, hyper::Version::HTTP_2));
            assert_eq!(piece(answer.body_mut()).await.unwrap().unwrap(), "hello from a");
            let (unknown, _) = sender.send_request(call("nobody"), true).unwrap();
            let unknown = unknown.await.unwrap();
            assert_eq!((unknown.status().as_u16(), &unknown.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
            // The node is told to stop while the call is open: no new one, but this one to its end.
            fleet.nodes[at].signal(Signal::TERM);
            let hello = || Request::get("http://hello.mesh/").body(()).unwrap();
            while let Ok(mut ready) = sender.clone().ready().await
                && let Ok((answer, _)) = ready.send_request(hello(), true)
                && answer.await.is_ok()
            {}
            sending.send_data("last".into(), true).unwrap();
            assert_eq!(piece(response.body_mut()).await.unwrap().unwrap(), "last");
            assert_eq!(piece(response.body_mut()).await.unwrap(), None);
            let trailers = response.body_mut().trailers().await.unwrap().unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            connection.await.unwrap().unwrap();
            assert_eq!(fleet.nodes[at].ended(Duration::from_secs(20)), Some(0));
            if at == 0 {
                fleet.nodes[at].start();
                fleet.nodes[at].wait_ready();
                eventually("both nodes reach the service again", Duration::from_secs(30), || {
                    let answer = fleet.nodes[1].get("hello", "/")?;
                    if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
                });
            }
        }
    });
}

#[test]
fn curl_speaks_http2_through_both_nodes() {
    if !has_program("curl") || !run_command(Command::new("curl").arg("--version")).out.contains("HTTP2") {
        return skip("curl_speaks_http2_through_both_nodes", "no curl with HTTP/2");
    }
    let app = App::start("a");
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.wait_service("hello", 1);
    for node in &fleet.nodes {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--http2-prior-knowledge"]);
        command.args(["--write-out", " %{http_code} %{http_version}", "--header", "host: hello.mesh"]);
        let said: Said = run_command(command.args(["--data", "x=y"]).arg(format!("http://{}/head", node.proxy)));
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.out.starts_with("POST /head HTTP/1.1\r\n") && said.out.ends_with(" 200 2"), "{said:?}");
        assert!(said.out.contains("via: 2 hello.mesh\r\n"), "{said:?}");
        // So large that over HTTP/1.1 curl would ask first.
        let large = fleet.root().join("large");
        std::fs::write(&large, vec![b'x'; 3 << 20]).unwrap();
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--http2-prior-knowledge"]);
        command.args(["--write-out", " %{http_code} %{http_version}", "--header", "host: hello.mesh", "--data-binary"]);
        let said = run_command(command.arg(format!("@{}", large.display())).arg(format!("http://{}/", node.proxy)));
        assert_eq!((said.code, said.out.as_str()), (0, "hello from a 200 2"), "{said:?}");
    }
}

/// The interpreter that has what `tests/clients/requirements.txt` names.
fn python() -> Option<PathBuf> {
    let made = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ci/clients/bin/python");
    let given = std::env::var_os("MARRAM_TEST_PYTHON").map(PathBuf::from);
    given.or(Some(made)).filter(|python| python.is_file())
}

#[test]
fn clients_of_grpc_and_websocket_work_through_both_nodes() {
    const CALLS: &str = "2000";
    // So many in a row through the caller's node and its peer; the first node has the servers to itself.
    const CALLS_FAR: &str = "10000";
    let Some(python) = python() else {
        return skip("clients_of_grpc_and_websocket_work_through_both_nodes", "no target/ci/clients; .ci/run makes it");
    };
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/clients.py");
    let mut servers =
        Command::new(&python).arg(&script).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ports = String::new();
    BufReader::new(servers.stdout.as_mut().unwrap()).read_line(&mut ports).unwrap();
    let ports: serde_json::Value = serde_json::from_str(&ports).unwrap();
    let address =
        |name: &str| SocketAddr::from(([127, 0, 0, 1], u16::try_from(ports[name].as_u64().unwrap()).unwrap()));
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            offer(config, "grpc", address("grpc"));
            Node::serve(config, "websocket", address("websocket"), None);
        }
    });
    fleet.wait_service("grpc", 1);
    fleet.wait_service("websocket", 1);
    for (node, unary) in fleet.nodes.iter().zip([CALLS, CALLS_FAR]) {
        let mut command = Command::new(&python);
        let said = run_command(command.arg(&script).arg("call").arg(node.proxy.to_string()).args([unary, CALLS]));
        assert_eq!(said.code, 0, "{}: {said:?}\n{}", node.name, fleet.logs());
        eprintln!("{}: {}", node.name, said.out.trim());
        eventually("nothing is left in flight", Duration::from_secs(5), || {
            let count = node.metric("marram_inflight", "")?;
            if count < 1.0 { Ok(()) } else { Err(count.to_string()) }
        });
    }
    // It ends with its standard input.
    drop(servers.stdin.take());
    servers.wait().unwrap();
}

#[test]
fn h2load_gets_every_answer_through_both_nodes() {
    if !has_program("h2load") {
        return skip("h2load_gets_every_answer_through_both_nodes", "no h2load (Debian's nghttp2-client)");
    }
    let app = App::start("a");
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.wait_service("hello", 1);
    for node in &fleet.nodes {
        let url = format!("http://{}/", node.proxy);
        // Over HTTP/1.1 it writes what stands for `:authority` into `Host`.
        for words in [&["-m", "10"][..], &["--h1"]] {
            let mut command = Command::new("h2load");
            command.args(["-n", "4000", "-c", "10", "-H", ":authority: hello.mesh"]).args(words);
            let said = run_command(command.arg(&url));
            let is_whole = said.out.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout")
                && said.out.contains("status codes: 4000 2xx, 0 3xx, 0 4xx, 0 5xx");
            assert!(said.code == 0 && is_whole, "{} {words:?}: {said:?}", node.name);
            let speed = said.out.lines().find(|line| line.starts_with("finished in")).unwrap_or_default();
            eprintln!("{} {words:?}: {speed}", node.name);
        }
    }
}
