//! A backend and a load generator that cost as little as they can: fixed bytes over kept connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(crate) mod two;

/// Bytes of a response body, unless the path asks for another number.
const BODY_BYTES: usize = 1024;
/// Longest body that is asked for.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Starts a server on a thread of its own that answers every request with 1 KiB, or with N bytes where the path is `/N`; it
/// lives as long as the process.
pub(crate) fn backend() -> anyhow::Result<SocketAddr> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("backend".to_owned()).spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            tell.send(listener.local_addr()?).ok();
            let body: Arc<[u8]> = vec![b'x'; BODY_BYTES_MAX].into();
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(answer_all(stream, Arc::clone(&body)));
            }
        })
    })?;
    told.recv().context("the backend listens")
}

/// What a run of requests came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) took: Duration,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }

    /// A quantile of the latency in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of one request")]
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// What is asked, again and again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking<'a> {
    /// The service's host name.
    pub(crate) host: &'a str,
    /// Bytes of the body that is asked for.
    pub(crate) body_bytes: usize,
    /// Whether a connection is kept for the next request; else each takes a new one.
    pub(crate) is_kept: bool,
}

impl<'a> Asking<'a> {
    /// For 1 KiB over kept connections.
    pub(crate) const fn small(host: &'a str) -> Self {
        Self { host, body_bytes: BODY_BYTES, is_kept: true }
    }

    fn request(&self) -> Arc<[u8]> {
        let Self { host, body_bytes, is_kept } = self;
        let connection = if *is_kept { "" } else { "Connection: close\r\n" };
        format!("GET /{body_bytes} HTTP/1.1\r\nHost: {host}\r\n{connection}\r\n").into_bytes().into()
    }
}

/// Asks over `connections` connections for `duration`, each with one request at a time.
pub(crate) fn run(
    address: SocketAddr,
    asking: Asking<'_>,
    connections: usize,
    duration: Duration,
) -> anyhow::Result<Outcome> {
    let request = asking.request();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let began = now();
        let client = Client { address, request, body_bytes: asking.body_bytes, is_kept: asking.is_kept };
        let workers: Vec<_> =
            (0..connections).map(|_| tokio::spawn(worker(client.clone(), Arc::clone(&stop)))).collect();
        tokio::time::sleep(duration).await;
        stop.store(true, Ordering::Relaxed);
        let took = began.elapsed();
        gathered(workers, took).await
    })
}

/// Asks again and again; ends with how long answers took, and how many failed.
type Worker = JoinHandle<anyhow::Result<(Histogram<u64>, u64)>>;

/// What all workers of a run came to.
async fn gathered(workers: Vec<Worker>, took: Duration) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome { requests: 0, failures: 0, took, latency: histogram()? };
    for worker in workers {
        let (latency, failures) = worker.await??;
        outcome.requests += latency.len();
        outcome.failures += failures;
        outcome.latency.add(latency)?;
    }
    Ok(outcome)
}

/// Opens `connections` connections, asks once over each, and keeps them open while `look` looks.
pub(crate) fn hold<T>(
    address: SocketAddr,
    asking: Asking<'_>,
    connections: usize,
    look: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let client = Client { address, request: asking.request(), body_bytes: asking.body_bytes, is_kept: asking.is_kept };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kept = runtime.block_on(async {
        let mut kept = Vec::with_capacity(connections);
        let mut bytes = Vec::with_capacity(READ_BYTES);
        for _ in 0..connections {
            let mut stream = connect(address).await?;
            client.exchange(&mut stream, &mut bytes).await?;
            kept.push(stream);
        }
        anyhow::Ok(kept)
    })?;
    let seen = look();
    drop(kept);
    seen
}

/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// What a reader has at once.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug, Clone)]
struct Client {
    address: SocketAddr,
    request: Arc<[u8]>,
    body_bytes: usize,
    is_kept: bool,
}

impl Client {
    /// One request and its whole answer.
    async fn exchange(&self, stream: &mut TcpStream, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
        stream.write_all(&self.request).await?;
        bytes.clear();
        let mut missing = loop {
            anyhow::ensure!(stream.read_buf(bytes).await? > 0, "connection closed");
            if let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                anyhow::ensure!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(bytes));
                break (head + 4 + self.body_bytes).saturating_sub(bytes.len());
            }
        };
        while missing > 0 {
            bytes.clear();
            let read = stream.read_buf(bytes).await?;
            anyhow::ensure!(read > 0, "connection closed");
            missing = missing.saturating_sub(read);
        }
        Ok(())
    }
}

async fn worker(client: Client, stop: Arc<AtomicBool>) -> anyhow::Result<(Histogram<u64>, u64)> {
    let (mut latency, mut failures) = (histogram()?, 0);
    let mut kept = None;
    let mut bytes = Vec::with_capacity(READ_BYTES);
    while !stop.load(Ordering::Relaxed) {
        let began = now();
        let asked = async {
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => connect(client.address).await?,
            };
            client.exchange(&mut stream, &mut bytes).await?;
            anyhow::Ok(stream)
        };
        match timeout(ANSWER_MAX, asked).await.unwrap_or_else(|elapsed| Err(elapsed.into())) {
            Ok(stream) => {
                latency.saturating_record(u64::try_from(began.elapsed().as_micros())?);
                kept = client.is_kept.then_some(stream);
            }
            Err(_) => {
                failures += 1;
                // A refusal comes at once; a client that hammers would measure nothing else.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    Ok((latency, failures))
}

async fn answer_all(mut stream: TcpStream, body: Arc<[u8]>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::with_capacity(4096);
    let mut answer = Vec::new();
    loop {
        if !read_head(&mut stream, &mut bytes).await? {
            return Ok(());
        }
        let body = body.get(..asked_bytes(&bytes)).context("at most 1 MiB is asked for")?;
        answer.clear();
        answer.extend_from_slice(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes());
        answer.extend_from_slice(body);
        stream.write_all(&answer).await?;
    }
}

/// The number in the path of a request's head, or 1 KiB.
fn asked_bytes(head: &[u8]) -> usize {
    let path = head.split(|byte| *byte == b' ').nth(1);
    let number = path.and_then(|path| std::str::from_utf8(path.strip_prefix(b"/")?).ok()?.parse().ok());
    number.unwrap_or(BODY_BYTES)
}

/// Reads the head of one request that has no body; false at the end of the connection.
pub(crate) async fn read_head(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> anyhow::Result<bool> {
    bytes.clear();
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read_buf(bytes).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
