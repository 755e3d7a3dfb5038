//! Ports for listeners that come and go within a test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// First port handed out; all lie below the kernel's range for outgoing connections (from 32768), so that no client can
/// take the port of an agent that is just starting again, and below those that `marram demo` takes (from 20000).
const FIRST: u16 = 10_000;
/// How many there are.
const COUNT: u16 = 10_000;

/// A loopback address whose port is free for both TCP and UDP. Each call gives another one, and two test processes at
/// the same time begin far apart.
///
/// # Panics
/// When no port is free.
#[must_use]
#[expect(clippy::panic, reason = "this is how a test fails")]
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id().wrapping_mul(613) % u32::from(COUNT)).unwrap_or(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + start.wrapping_add(step) % COUNT));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no loopback port is free for both TCP and UDP");
}
