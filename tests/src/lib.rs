//! Runs fleets of the real `marram` binary on loopback and asks them what their users would ask.
//!
//! [`binary`] builds `marram` once per test run. [`Fleet`] holds folders, free ports and child processes; dropping it
//! ends them. [`eventually`] polls a condition up to a deadline and [`Load`] sends requests at a steady pace; nothing
//! here sleeps a fixed time to wait for something to have happened.

mod app;
mod fleet;
pub mod frames;
mod http;
mod load;
mod namespace;
mod ports;
mod process;
mod recorder;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

pub use app::{App, TcpEcho};
pub use fleet::{Fleet, HeldSockets, Node, Setup};
pub use http::{Answer, Request, get, raw, send, send_within};
pub use load::{Load, Sent};
pub use namespace::Cable;
pub use ports::free_port;
pub use process::{Process, Said, run, run_command};
pub use recorder::{Recorded, Recorder, Script};

/// The path of the `marram` binary: as [`use_binary`] said, else built when first asked for.
///
/// # Panics
/// When it does not build; cargo's own words are on stderr.
#[must_use]
#[expect(clippy::panic, reason = "a test run without the binary has nothing to say")]
pub fn binary() -> &'static Path {
    BINARY.get_or_init(|| {
        if let Some(given) = std::env::var_os("MARRAM_TEST_BINARY") {
            return given.into();
        }
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "node", "--bin", "marram", "--message-format", "json"])
            .arg("--manifest-path")
            .arg(manifest)
            .stderr(std::process::Stdio::inherit())
            .output();
        let output = match output {
            Ok(output) if output.status.success() => output,
            other => panic!("cargo build of marram failed: {other:?}"),
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let built = text.lines().rev().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            message.get("executable")?.as_str().map(PathBuf::from)
        });
        built.unwrap_or_else(|| panic!("cargo named no executable"))
    })
}

/// Measures real time, as tests of real processes have to.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "a test of real processes measures real time")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Takes a binary that is there already: benchmarks measure the static release. Without effect after [`binary`].
pub fn use_binary(path: &Path) {
    BINARY.get_or_init(|| path.to_owned());
}

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Polls `condition` every 20 ms until it gives something; returns it with the time it took.
///
/// # Panics
/// When `at_most` has passed, with `what` and the last reason that `condition` gave.
pub fn eventually<T>(what: &str, at_most: Duration, mut condition: impl FnMut() -> Result<T, String>) -> (T, Duration) {
    let watch = Stopwatch::start();
    loop {
        let reason = match condition() {
            Ok(value) => return (value, watch.elapsed()),
            Err(reason) => reason,
        };
        assert!(watch.elapsed() < at_most, "{what}: not within {at_most:?}: {reason}");
        pause(Duration::from_millis(20));
    }
}

/// Lets time pass between two polls or two requests; never used to wait for something to have happened.
#[expect(clippy::disallowed_methods, reason = "paces a poll or a load, and has no runtime to block")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// What several tests use together: made by the first, dropped after the last that runs at the same time.
#[derive(Debug)]
pub struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    /// What the others use now, else what `make` makes.
    pub fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.upgrade().unwrap_or_else(|| {
            let made = Arc::new(make());
            *held = Arc::downgrade(&made);
            made
        })
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Says in one line that a test was skipped and why; the line is seen also when the test's own output is not.
pub fn skip(test: &str, reason: &str) {
    // Nobody is left to tell when stderr is closed.
    writeln!(std::io::stderr(), "skipped {test}: {reason}").ok();
}

/// Whether this process may make network namespaces, mounts and firewall rules.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program of that name is on the search path.
#[must_use]
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}
