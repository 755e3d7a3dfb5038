//! Two network namespaces with a bad line between them: it delays, loses, and carries only so much.
//!
//! Each namespace has a TUN device; what one sends is read here and written to the other when its time has come. So
//! every protocol over IP meets the same line, and no kernel module is needed that a small machine may not have.
//! What holds for a packet is decided by [`Line`], without a device.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::chance::Chance;

/// What a line is like, in each direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LineSettings {
    /// From one end to the other.
    pub delay: Duration,
    /// Of 10,000 packets so many are lost, each by chance of its own.
    pub lost_of_10000: u64,
    /// What it carries.
    pub bits_per_second: u64,
    /// Packets that may wait to be carried; those beyond are lost.
    pub queue: usize,
    /// Decides which packets are lost.
    pub seed: u64,
}

/// One direction of a line: a queue that empties at the line's rate, and then a delay.
#[derive(Debug)]
pub struct Line {
    settings: LineSettings,
    chance: Chance,
    /// When everything taken so far has been put on the wire.
    free_at: Duration,
    under_way: VecDeque<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    /// When its last bit leaves the queue.
    leaves: Duration,
    packet: Vec<u8>,
}

impl Line {
    /// An idle line.
    #[must_use]
    pub fn new(settings: LineSettings) -> Self {
        let chance = Chance::new(settings.seed);
        Self { settings, chance, free_at: Duration::ZERO, under_way: VecDeque::new() }
    }

    /// Takes a packet at `now`; false for one that is lost.
    pub fn take(&mut self, packet: Vec<u8>, now: Duration) -> bool {
        let waiting = self.under_way.len() - self.under_way.partition_point(|under_way| under_way.leaves <= now);
        if waiting >= self.settings.queue || self.chance.below(10_000) < self.settings.lost_of_10000 {
            return false;
        }
        let bits = u64::try_from(packet.len()).unwrap_or(u64::MAX).saturating_mul(8);
        let nanos = bits.saturating_mul(1_000_000_000) / self.settings.bits_per_second.max(1);
        self.free_at = self.free_at.max(now) + Duration::from_nanos(nanos);
        self.under_way.push_back(UnderWay { leaves: self.free_at, packet });
        true
    }

    /// The next packet that has arrived by `now`.
    pub fn arrived(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.under_way.pop_front().map(|under_way| under_way.packet)
    }

    /// When the next packet arrives.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.under_way.front().map(|under_way| under_way.leaves + self.settings.delay)
    }
}

/// Two namespaces and the line between them; dropping it removes all of it.
#[derive(Debug)]
pub struct Wan {
    /// One end.
    pub left: NetNs,
    /// The other.
    pub right: NetNs,
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Wan {
    /// Makes the namespaces and starts the line.
    ///
    /// # Errors
    /// Without root, `ip` or `/dev/net/tun`.
    pub fn start(settings: LineSettings) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces take root");
        let id = std::process::id();
        let (left, left_device) = NetNs::make(&format!("mw{id}l"), LEFT)?;
        let (right, right_device) = NetNs::make(&format!("mw{id}r"), RIGHT)?;
        let mut wan = Self {
            left,
            right,
            stop: Arc::default(),
            lost: Arc::default(),
            carried: Arc::default(),
            threads: Vec::new(),
        };
        let (left_device, right_device) = (Arc::new(left_device), Arc::new(right_device));
        for (from, to, turn) in [(&left_device, &right_device, 0), (&right_device, &left_device, 1)] {
            let line = Line::new(LineSettings { seed: settings.seed.wrapping_mul(2).wrapping_add(turn), ..settings });
            let carrier = Carrier {
                line,
                from: Arc::clone(from),
                to: Arc::clone(to),
                stop: Arc::clone(&wan.stop),
                lost: Arc::clone(&wan.lost),
                carried: Arc::clone(&wan.carried),
            };
            let thread = std::thread::Builder::new().name(format!("line {turn}")).spawn(move || carrier.run())?;
            wan.threads.push(thread);
        }
        Ok(wan)
    }

    /// Packets carried and packets lost so far, of both directions.
    #[must_use]
    pub fn packets(&self) -> (u64, u64) {
        (self.carried.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// One direction at work.
struct Carrier {
    line: Line,
    from: Arc<File>,
    to: Arc<File>,
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
}

impl Carrier {
    fn run(mut self) {
        let began = now();
        let mut bytes = vec![0; PACKET_MAX];
        while !self.stop.load(Ordering::Relaxed) {
            self.wait(began.elapsed());
            while let Ok(length) = (&*self.from).read(&mut bytes) {
                let packet = bytes.get(..length).unwrap_or_default().to_vec();
                if !self.line.take(packet, began.elapsed()) {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            while let Some(packet) = self.line.arrived(began.elapsed()) {
                match (&*self.to).write(&packet) {
                    Ok(length) if length == packet.len() => self.carried.fetch_add(1, Ordering::Relaxed),
                    // A full queue of the device loses packets as any device does.
                    Ok(_) | Err(_) => self.lost.fetch_add(1, Ordering::Relaxed),
                };
            }
        }
    }

    /// Until a packet comes in or one is to go out, and not longer than a stop may wait.
    fn wait(&self, now: Duration) {
        let least = self.line.next().map_or(STOP_WITHIN, |next| next.saturating_sub(now).min(STOP_WITHIN));
        let Ok(timeout) = Timespec::try_from(least) else { return };
        poll(&mut [PollFd::from_borrowed_fd(self.from.as_fd(), PollFlags::IN)], Some(&timeout)).ok();
    }
}

/// A network namespace with one device and its own loopback; removed when dropped.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    address: Ipv4Addr,
}

impl NetNs {
    fn make(name: &str, address: Ipv4Addr) -> Result<(Self, File)> {
        // What a killed run of the same process id left behind.
        ip(&["netns", "del", name]).ok();
        ip(&["netns", "add", name])?;
        let made = Self { name: name.to_owned(), address };
        let device = tun(name)?;
        ip(&["link", "set", name, "netns", name])?;
        ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", name])?;
        ip(&["-n", name, "link", "set", name, "txqueuelen", "1000", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok((made, device))
    }

    /// Its address on the line.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The same program with the same arguments and variables, started inside.
    #[must_use]
    pub fn command(&self, of: &Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(of.get_program()).args(of.get_args());
        command.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    /// Runs `work` on a thread of its own inside; sockets that it makes and processes that it starts are inside too.
    ///
    /// # Errors
    /// When the thread cannot enter; what `work` says else.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            let namespace: OwnedFd = File::open(format!("/var/run/netns/{}", self.name))?.into();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]).ok();
    }
}

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("run `ip` (apt-get install iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Opens a new TUN device of this name, without packet information in front of packets.
fn tun(name: &str) -> Result<File> {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits())?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun");
    let file = file.context("open /dev/net/tun")?;
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    ensure!(name.len() < request.name.len(), "{name}: longer than the name of a device may be");
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    set_interface(&file, request)?;
    Ok(file)
}

/// What `TUNSETIFF` takes: `struct ifreq` of `linux/if.h`.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

#[expect(unsafe_code, reason = "no library call makes a TUN device")]
fn set_interface(file: &File, request: InterfaceRequest) -> Result<()> {
    // SAFETY: the request has the size and layout of the `struct ifreq` that this number of ioctl reads, and nothing keeps it.
    let set = unsafe { rustix::ioctl::Setter::<TUNSETIFF, InterfaceRequest>::new(request) };
    // SAFETY: as above; the file is `/dev/net/tun`.
    unsafe { rustix::ioctl::ioctl(file, set) }.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => anyhow::anyhow!("making a TUN device takes root"),
        _ => anyhow::Error::from(error).context("TUNSETIFF"),
    })
}

#[expect(clippy::disallowed_methods, reason = "a line delays in real time")]
fn now() -> Instant {
    Instant::now()
}

const LEFT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// `_IOW('T', 202, int)` of `linux/if_tun.h`.
const TUNSETIFF: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<i32>(b'T', 202);
/// Layer 3.
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
/// Longest packet that a device hands over.
const PACKET_MAX: usize = 65_536;
const STOP_WITHIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
