//! An instance that can do so many requests at once, and connections to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::load::{connect, now, read_head};

/// Names the time that a request takes in a slot, in microseconds.
const WORK_HEADER: &str = "x-work-us";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A server with slots and a queue; it lives as long as its runtime.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) address: SocketAddr,
    pub(super) slots: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    free: Semaphore,
    slower: AtomicU32,
    assigned: AtomicU32,
    done: AtomicU64,
    overrun_us: AtomicU64,
}

/// A request that somebody outside has assigned to an instance, until its answer is there.
#[derive(Debug)]
pub(super) struct Assigned(Arc<State>);

impl Drop for Assigned {
    fn drop(&mut self) {
        self.0.assigned.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Instance {
    pub(super) async fn start(slots: u16, at: Ipv4Addr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((at, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            free: Semaphore::new(usize::from(slots)),
            slower: AtomicU32::new(1),
            assigned: AtomicU32::new(0),
            done: AtomicU64::new(0),
            overrun_us: AtomicU64::new(0),
        });
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Ok(Self { address, slots, state })
    }

    /// Everything takes so many times as long from now on.
    pub(super) fn slow_down(&self, times: u32) {
        self.state.slower.store(times, Ordering::Relaxed);
    }

    pub(super) fn assign(&self) -> Assigned {
        self.state.assigned.fetch_add(1, Ordering::Relaxed);
        Assigned(Arc::clone(&self.state))
    }

    /// How long the next request takes on average that would take `work` where nobody else is.
    pub(super) fn cost(&self, work: Duration) -> Duration {
        let rounds = f64::from(self.state.assigned.load(Ordering::Relaxed) + 1) / f64::from(self.slots);
        work.mul_f64(rounds.max(1.0) * f64::from(self.state.slower.load(Ordering::Relaxed)))
    }

    /// How much longer than asked for a request took in its slot, on average.
    pub(super) fn mean_overrun(&self) -> Duration {
        let done = self.state.done.load(Ordering::Relaxed).max(1);
        Duration::from_micros(self.state.overrun_us.load(Ordering::Relaxed) / done)
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if !read_head(&mut stream, &mut bytes).await? {
            return Ok(());
        }
        let work = asked_for(&bytes).context("a request without its work")? * state.slower.load(Ordering::Relaxed);
        {
            let _slot = state.free.acquire().await?;
            let began = now();
            tokio::time::sleep(work).await;
            let overrun = began.elapsed().saturating_sub(work);
            state.overrun_us.fetch_add(u64::try_from(overrun.as_micros())?, Ordering::Relaxed);
            state.done.fetch_add(1, Ordering::Relaxed);
        }
        stream.write_all(ANSWER).await?;
    }
}

fn asked_for(head: &[u8]) -> Option<Duration> {
    let head = std::str::from_utf8(head).ok()?;
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(WORK_HEADER))?;
    let (_, value) = line.split_once(':')?;
    Some(Duration::from_micros(value.trim().parse().ok()?))
}

/// Kept connections to one place.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<TcpStream>>>);

impl Pool {
    /// Makes a request of so much work over a kept connection, or a new one where none is free.
    pub(super) async fn ask(&self, address: SocketAddr, work: Duration) -> anyhow::Result<()> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut stream = match kept {
            Some(stream) => stream,
            None => connect(address).await?,
        };
        let host = super::SERVICE;
        let request = format!("GET / HTTP/1.1\r\nhost: {host}.mesh\r\n{WORK_HEADER}: {}\r\n\r\n", work.as_micros());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(1024);
        while !answer.ends_with(b"\r\n\r\nok") {
            anyhow::ensure!(stream.read_buf(&mut answer).await? > 0, "connection closed");
            anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        Ok(())
    }
}
