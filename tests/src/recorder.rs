//! An application that keeps every byte it gets, and answers with whatever bytes a test wants.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the application sends when it has a request.
#[derive(Debug, Clone)]
pub struct Script {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Whether it closes the connection behind them.
    pub closes: bool,
    /// Whether it answers as soon as it has the head, and does not read the body.
    pub is_early: bool,
}

impl Script {
    /// These bytes; the connection stays.
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), closes: false, is_early: false }
    }

    /// An ordinary answer that says which path was asked for.
    #[must_use]
    pub fn saying(path: &str) -> Self {
        Self::bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()))
    }

    /// The same with the connection closed behind it.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// The same as soon as the head is there.
    #[must_use]
    pub fn early(mut self) -> Self {
        (self.is_early, self.closes) = (true, true);
        self
    }
}

/// A request as it arrived, whole.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Method and target.
    pub asked: String,
    /// The head, its empty line included.
    pub head: String,
    /// The body as it was framed: with the chunk lines of a chunked one.
    pub body: Vec<u8>,
}

/// Such an application. Its threads end with their connections.
#[derive(Debug)]
pub struct Recorder {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: Mutex<Vec<Recorded>>,
    bytes: AtomicUsize,
}

impl Recorder {
    /// Starts one on a free port; `script` has the answer for a path.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start(script: impl Fn(&str) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::new(Seen::default());
        let (inside, script) = (Arc::clone(&seen), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (inside, script) = (Arc::clone(&inside), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, &inside, &*script));
            }
        });
        Self { address, seen }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The whole requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Recorded> {
        self.seen.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes that arrived and belong to no whole request.
    #[must_use]
    pub fn stray_bytes(&self) -> usize {
        let whole: usize = self.requests().iter().map(|request| request.head.len() + request.body.len()).sum();
        self.seen.bytes.load(Ordering::SeqCst).saturating_sub(whole)
    }
}

fn serve(mut stream: TcpStream, seen: &Seen, script: &dyn Fn(&str) -> Script) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut bytes = Vec::new();
    loop {
        let end = read_until(&mut stream, seen, &mut bytes, 0, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(bytes.get(..end)?).into_owned();
        let asked = head.split(" HTTP/1").next()?.to_owned();
        let answer = script(asked.split(' ').nth(1)?);
        if answer.is_early {
            stream.write_all(&answer.bytes).ok()?;
            return stream.shutdown(Shutdown::Both).ok();
        }
        let end = end + body_bytes(&mut stream, seen, &mut bytes, end, &head.to_ascii_lowercase())?;
        let body = bytes.get(head.len()..end)?.to_vec();
        bytes.drain(..end);
        seen.requests.lock().unwrap_or_else(PoisonError::into_inner).push(Recorded { asked, head, body });
        stream.write_all(&answer.bytes).ok()?;
        if answer.closes {
            return stream.shutdown(Shutdown::Both).ok();
        }
    }
}

/// Reads the body behind a head and returns its length.
fn body_bytes(stream: &mut TcpStream, seen: &Seen, bytes: &mut Vec<u8>, start: usize, head: &str) -> Option<usize> {
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
    if field("transfer-encoding:").is_some() {
        let mut at = start;
        loop {
            let line = read_until(stream, seen, bytes, at, b"\r\n")?;
            let text = String::from_utf8_lossy(bytes.get(at..line)?).into_owned();
            let size = usize::from_str_radix(text.trim(), 16).ok()?;
            if size == 0 {
                at = line;
                break;
            }
            at = line + size + 2;
            while bytes.len() < at {
                read_more(stream, seen, bytes)?;
            }
        }
        // Trailers, up to an empty line.
        loop {
            let line = read_until(stream, seen, bytes, at, b"\r\n")?;
            let is_empty = line == at + 2;
            at = line;
            if is_empty {
                return Some(at - start);
            }
        }
    }
    let length = field("content-length:").map_or(Some(0), |length| length.parse().ok())?;
    while bytes.len() < start + length {
        read_more(stream, seen, bytes)?;
    }
    Some(length)
}

/// Reads until `end` is found at or behind `start`; returns where it ends.
fn read_until(stream: &mut TcpStream, seen: &Seen, bytes: &mut Vec<u8>, start: usize, end: &[u8]) -> Option<usize> {
    loop {
        let rest = bytes.get(start..).unwrap_or_default();
        if let Some(at) = rest.windows(end.len()).position(|window| window == end) {
            return Some(start + at + end.len());
        }
        read_more(stream, seen, bytes)?;
    }
}

fn read_more(stream: &mut TcpStream, seen: &Seen, bytes: &mut Vec<u8>) -> Option<()> {
    let mut piece = [0; 16 * 1024];
    let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
    seen.bytes.fetch_add(count, Ordering::SeqCst);
    bytes.extend_from_slice(piece.get(..count)?);
    Some(())
}
