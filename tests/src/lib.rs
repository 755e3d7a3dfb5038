//! Runs fleets of the real `marram` binary on loopback and asks them what their users would ask.
//!
//! [`binary`] builds `marram` once per test run. [`Fleet`] holds folders, free ports and child processes; dropping it
//! ends them. [`eventually`] polls a condition up to a deadline; nothing here sleeps a fixed time to wait.

mod app;
mod fleet;
mod http;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use app::{App, TcpEcho};
pub use fleet::{Fleet, Node, Setup};
pub use http::{Answer, Request, get, send};

/// The path of the `marram` binary, built when first asked for.
///
/// # Panics
/// When it does not build; cargo's own words are on stderr.
#[must_use]
#[expect(clippy::panic, reason = "a test run without the binary has nothing to say")]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
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

/// Polls `condition` every 20 ms until it gives something; returns it with the time it took.
///
/// # Panics
/// When `at_most` has passed, with `what` and the last reason that `condition` gave.
#[expect(clippy::panic, reason = "this is how a test fails")]
#[expect(clippy::disallowed_methods, reason = "a test of real processes measures real time")]
pub fn eventually<T>(what: &str, at_most: Duration, mut condition: impl FnMut() -> Result<T, String>) -> (T, Duration) {
    let began = Instant::now();
    loop {
        let reason = match condition() {
            Ok(value) => return (value, began.elapsed()),
            Err(reason) => reason,
        };
        assert!(began.elapsed() < at_most, "{what}: not within {at_most:?}: {reason}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says in one line that a test was skipped and why, as the test's only output.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped {test}: {reason}");
}

/// Whether this process may make network namespaces and firewall rules.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
