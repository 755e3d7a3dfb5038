//! Network namespaces joined by a cable, for nodes whose addresses change. Needs root and the program `ip`.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::run_command;
use crate::{has_program, is_root};

/// Two network namespaces with a veth pair between them; they go when this is dropped.
#[derive(Debug)]
pub struct Cable {
    ends: [String; 2],
}

/// The network device at each end.
const DEVICE: &str = "cable";

impl Cable {
    /// Lays one, with `addresses` such as `10.77.0.1/24` at its ends and a default route into it; the error says what is
    /// missing.
    ///
    /// # Errors
    /// Where this process may not, or the program is not there.
    ///
    /// # Panics
    /// When `ip` fails all the same.
    pub fn lay(addresses: [&str; 2]) -> Result<Self, &'static str> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !is_root() {
            return Err("it needs root for network namespaces");
        }
        if !has_program("ip") {
            return Err("there is no program `ip`");
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cable = Self { ends: ["a", "b"].map(|end| format!("marram-{}-{number}-{end}", std::process::id())) };
        for end in &cable.ends {
            ip(&["netns", "add", end]);
        }
        let [a, b] = &cable.ends;
        ip(&["-n", a, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", b]);
        for (end, address) in cable.ends.iter().zip(addresses) {
            ip(&["-n", end, "link", "set", "lo", "up"]);
            ip(&["-n", end, "link", "set", DEVICE, "up"]);
            ip(&["-n", end, "addr", "add", address, "dev", DEVICE]);
            ip(&["-n", end, "route", "add", "default", "dev", DEVICE]);
            // Otherwise the second address of a device goes with its first.
            let keep = "echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries";
            let said = run_command(Command::new("ip").args(["netns", "exec", end, "sh", "-c", keep]));
            assert_eq!(said.code, 0, "{}", said.err);
        }
        Ok(cable)
    }

    /// Gives end number `end` the address `new` and takes `old` from it.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn readdress(&self, end: usize, old: &str, new: &str) {
        let name = self.name(end);
        ip(&["-n", name, "addr", "add", new, "dev", DEVICE]);
        ip(&["-n", name, "addr", "del", old, "dev", DEVICE]);
    }

    /// Runs `work` at end number `end`: sockets it makes, threads it starts and processes it runs are there.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `work` panics.
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn at<T: Send>(&self, end: usize, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name(end));
        let there = move || {
            let namespace = File::open(path).expect("the namespace is there");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
            work()
        };
        let ended = std::thread::scope(|scope| scope.spawn(there).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    fn name(&self, end: usize) -> &str {
        self.ends.get(end).expect("a cable has two ends")
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in &self.ends {
            // What is left behind is named after this process.
            drop(run_command(Command::new("ip").args(["netns", "del", end])));
        }
    }
}

fn ip(words: &[&str]) {
    let said = run_command(Command::new("ip").args(words));
    assert_eq!(said.code, 0, "ip {}: {}", words.join(" "), said.err);
}
