//! A backend and a load generator that cost as little as they can: fixed bytes over kept connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a response body.
const BODY_BYTES: usize = 1024;

/// Starts a server on a thread of its own that answers every request with 1 KiB; it lives as long as the process.
pub(crate) fn backend() -> anyhow::Result<SocketAddr> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("backend".to_owned()).spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            tell.send(listener.local_addr()?).ok();
            let answer: Arc<[u8]> = response().into();
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(answer_all(stream, Arc::clone(&answer)));
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

/// Sends `GET /` with `host` over `connections` kept connections for `duration`, each with one request at a time.
pub(crate) fn run(address: SocketAddr, host: &str, connections: usize, duration: Duration) -> anyhow::Result<Outcome> {
    let request: Arc<[u8]> = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes().into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = Arc::new(AtomicBool::new(false));
        let began = now();
        let workers: Vec<_> =
            (0..connections).map(|_| tokio::spawn(worker(address, Arc::clone(&request), Arc::clone(&stop)))).collect();
        tokio::time::sleep(duration).await;
        stop.store(true, Ordering::Relaxed);
        let took = began.elapsed();
        let mut outcome = Outcome { requests: 0, failures: 0, took, latency: histogram()? };
        for worker in workers {
            let (latency, failures) = worker.await??;
            outcome.requests += latency.len();
            outcome.failures += failures;
            outcome.latency.add(latency)?;
        }
        Ok(outcome)
    })
}

async fn worker(
    address: SocketAddr,
    request: Arc<[u8]>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<(Histogram<u64>, u64)> {
    let (mut latency, mut failures) = (histogram()?, 0);
    let mut stream = connect(address).await?;
    let mut bytes = Vec::with_capacity(4096);
    while !stop.load(Ordering::Relaxed) {
        let began = now();
        match exchange(&mut stream, &request, &mut bytes).await {
            Ok(()) => latency.saturating_record(u64::try_from(began.elapsed().as_micros())?),
            Err(_) => {
                failures += 1;
                stream = connect(address).await?;
            }
        }
    }
    Ok((latency, failures))
}

async fn exchange(stream: &mut TcpStream, request: &[u8], bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    stream.write_all(request).await?;
    bytes.clear();
    loop {
        anyhow::ensure!(stream.read_buf(bytes).await? > 0, "connection closed");
        if let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n")
            && bytes.len() >= head + 4 + BODY_BYTES
        {
            anyhow::ensure!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(bytes));
            return Ok(());
        }
    }
}

async fn answer_all(mut stream: TcpStream, answer: Arc<[u8]>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if !read_head(&mut stream, &mut bytes).await? {
            return Ok(());
        }
        stream.write_all(&answer).await?;
    }
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

fn response() -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY_BYTES}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + BODY_BYTES, b'x');
    bytes
}

pub(crate) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
