//! Newcomers at the TCP port that links use: they are known by their application protocol and passed on.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::server::Accepted;
use tokio::sync::{Mutex, mpsc};

/// Newcomers waiting to be seen; more are turned away.
const WAITING_MAX: usize = 16;

/// Where the listener of the links hands newcomers to whoever admits them. Shut until somebody opens it.
#[derive(Debug)]
pub struct JoinDoor {
    addr: SocketAddr,
    is_open: AtomicBool,
    arrivals: mpsc::Sender<Arrival>,
    waiting: Mutex<mpsc::Receiver<Arrival>>,
}

/// Somebody who has said nothing but that it wants to join.
pub(crate) struct Arrival {
    pub(crate) accepted: Accepted,
    pub(crate) stream: std::net::TcpStream,
    pub(crate) source: IpAddr,
}

impl JoinDoor {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        let (arrivals, waiting) = mpsc::channel(WAITING_MAX);
        Self { addr, is_open: AtomicBool::new(false), arrivals, waiting: Mutex::new(waiting) }
    }

    /// Where newcomers come to.
    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    pub(crate) fn set_open(&self, is_open: bool) {
        self.is_open.store(is_open, Ordering::Release);
    }

    /// Passes somebody on; `false` when too many are waiting.
    pub(crate) fn announce(&self, arrival: Arrival) -> bool {
        self.arrivals.try_send(arrival).is_ok()
    }

    /// Waits for the next newcomer. Dropping the future loses nobody.
    pub(crate) async fn next(&self) -> Option<Arrival> {
        self.waiting.lock().await.recv().await
    }
}
