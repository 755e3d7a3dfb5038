//! Small applications for services to point at, on threads of the test's own process.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{free_port, pause};

/// An HTTP/1.1 server that answers every request with `hello from NAME`.
///
/// `/slow?ms=N` takes that long, `/head` answers with the request's own head, `/health` says 200 or 503. Dropping it is
/// a crash: listener and connections are closed at once.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    shared: Arc<Inside>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Inside {
    name: String,
    requests: AtomicU64,
    is_stopped: AtomicBool,
    is_unwell: AtomicBool,
    /// The status it answers with; 0 for 200.
    status: AtomicU16,
    connections: Mutex<Vec<TcpStream>>,
}

impl App {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start(name: &str) -> Self {
        // Another process may take a port between the look and the use of it.
        let listener = std::iter::repeat_with(|| TcpListener::bind(free_port())).flatten().next();
        Self::serve_on(name, listener.expect("an endless iterator ends with a port"))
    }

    /// Starts one that listens on `address`.
    ///
    /// # Panics
    /// When the address is taken.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start_at(name: &str, address: SocketAddr) -> Self {
        Self::serve_on(name, TcpListener::bind(address).expect("a free port"))
    }

    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    fn serve_on(name: &str, listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Inside { name: name.to_owned(), ..Inside::default() });
        let inside = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if inside.is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                inside.connections.lock().unwrap_or_else(PoisonError::into_inner).extend(stream.try_clone());
                let inside = Arc::clone(&inside);
                std::thread::spawn(move || serve(stream, &inside));
            }
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests it has answered, those for `/health` left out.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Whether every request but `/health` is answered with 500 from now on.
    pub fn set_failing(&self, is_failing: bool) {
        self.set_status(if is_failing { 500 } else { 200 });
    }

    /// What every request but `/health` is answered with from now on, whatever it asks for.
    pub fn set_status(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// What `/health` says from now on.
    pub fn set_healthy(&self, is_healthy: bool) {
        self.shared.is_unwell.store(!is_healthy, Ordering::Relaxed);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        // Wakes the accept loop, which then drops the listener.
        TcpStream::connect(self.address).ok();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
        for connection in self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

fn serve(mut stream: TcpStream, inside: &Inside) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
    let mut bytes = Vec::new();
    loop {
        let end = head_end(&mut stream, &mut bytes)?;
        let head = String::from_utf8_lossy(bytes.get(..end)?).into_owned();
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().parse::<usize>())
            })
            .and_then(Result::ok)
            .unwrap_or(0);
        while bytes.len() < end + length {
            read_more(&mut stream, &mut bytes)?;
        }
        bytes.drain(..end + length);
        let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked\r\n");
        if inside.is_stopped.load(Ordering::Relaxed) {
            return None;
        }
        let path = head.split_whitespace().nth(1).unwrap_or("/").to_owned();
        if let Some(ms) = path.strip_prefix("/slow?ms=").and_then(|ms| ms.parse().ok()) {
            pause(Duration::from_millis(ms));
        }
        let status = match path.as_str() {
            "/health" if inside.is_unwell.load(Ordering::Relaxed) => 503,
            "/health" => 200,
            _ => {
                inside.requests.fetch_add(1, Ordering::Relaxed);
                inside.status.load(Ordering::Relaxed).max(200)
            }
        };
        let body = if path == "/head" { head } else { format!("hello from {}", inside.name) };
        let reason = if status == 200 { "OK" } else { "As Told" };
        let answer = format!("HTTP/1.1 {status} {reason}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).ok()?;
        if is_chunked {
            skip_chunks(&mut stream, &mut bytes)?;
        }
    }
}

/// Reads to the end of a chunked body, which is known by its last line alone.
fn skip_chunks(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    const LAST: &[u8] = b"0\r\n\r\n";
    while !bytes.ends_with(LAST) {
        bytes.drain(..bytes.len().saturating_sub(LAST.len()));
        read_more(stream, bytes)?;
    }
    bytes.clear();
    Some(())
}

fn head_end(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<usize> {
    let mut seen = 0;
    loop {
        if let Some(at) = bytes.get(seen..)?.windows(4).position(|window| window == b"\r\n\r\n") {
            return Some(seen + at + 4);
        }
        seen = bytes.len().saturating_sub(3);
        read_more(stream, bytes)?;
    }
}

fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut chunk = [0; 4096];
    match stream.read(&mut chunk) {
        Ok(count) if count > 0 => {
            bytes.extend(chunk.get(..count)?);
            Some(())
        }
        _ => None,
    }
}

/// A TCP server that sends back what it receives, with its name and a colon in front of the first bytes.
#[derive(Debug)]
pub struct TcpEcho {
    address: SocketAddr,
}

impl TcpEcho {
    /// Starts one on a free port; it lives as long as the test process.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let name = name.to_owned();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let name = name.clone();
                std::thread::spawn(move || {
                    let mut from = stream.try_clone().ok()?;
                    stream.write_all(format!("{name}:").as_bytes()).ok()?;
                    std::io::copy(&mut from, &mut stream).ok()?;
                    stream.shutdown(Shutdown::Write).ok()
                });
            }
        });
        Self { address }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
