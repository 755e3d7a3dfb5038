//! A steady load of requests, and what became of each.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::http::{Answer, Request, send_within};
use crate::{Stopwatch, pause};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of one request.
#[derive(Debug, Clone)]
pub struct Sent {
    /// When it was sent, counted from the start of the load.
    pub at: Duration,
    /// How long it took.
    pub took: Duration,
    /// The answer, or why there was none.
    pub answer: Result<Answer, String>,
}

impl Sent {
    /// Whether the application answered it.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| answer.status == 200)
    }
}

/// Threads that send requests until they are stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    sent: Arc<Mutex<Vec<Sent>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// `threads` threads, each with a request of `method` for `service` at `proxy`, then `pace` of silence, again and
    /// again, each request on a connection of its own and with 10 s to be answered.
    #[must_use]
    pub fn start(proxy: SocketAddr, service: &str, method: &'static str, threads: usize, pace: Duration) -> Self {
        let (stop, count, sent) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { stop, count, sent, threads: Vec::new() };
        let watch = Stopwatch::start();
        for _ in 0..threads {
            let (stop, count, sent) = (Arc::clone(&load.stop), Arc::clone(&load.count), Arc::clone(&load.sent));
            let host = format!("{service}.mesh");
            load.threads.push(std::thread::spawn(move || {
                let headers = [("host", host.as_str())];
                let body = (method == "POST").then_some("amount=1");
                while !stop.load(Ordering::Relaxed) {
                    let at = watch.elapsed();
                    let answer = send_within(proxy, &Request { method, path: "/", headers: &headers, body }, PATIENCE);
                    let one = Sent { at, took: watch.elapsed().saturating_sub(at), answer };
                    sent.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                    count.fetch_add(1, Ordering::Relaxed);
                    pause(pace);
                }
            }));
        }
        load
    }

    /// Requests that have ended so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Lets the requests under way end and returns all.
    #[must_use]
    pub fn stop(mut self) -> Vec<Sent> {
        self.halt();
        std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there has been printed already.
            thread.join().ok();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.halt();
    }
}
