//! Child processes: the `marram` binary and the programs of others.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{binary, eventually};

/// What a verb of `marram` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none; shows it.
    #[must_use]
    #[expect(clippy::panic, reason = "this is how a test fails")]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|fault| panic!("{fault}: {self:?}"))
    }
}

/// Runs a verb of `marram` to its end.
///
/// # Panics
/// When the binary does not run, or has not ended after a minute.
#[must_use]
pub fn run(words: &[impl AsRef<OsStr>]) -> Said {
    run_command(Command::new(binary()).args(words))
}

/// Runs a program to its end, without the variables that `marram` reads.
///
/// # Panics
/// When it does not run, or has not ended after a minute.
#[must_use]
#[expect(clippy::expect_used, reason = "this is how a test fails")]
pub fn run_command(command: &mut Command) -> Said {
    command.env_remove("MARRAM_ADMIN").env_remove("MARRAM_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start(command);
    let out = read_all(process.0.stdout.take().expect("a piped output"));
    let err = read_all(process.0.stderr.take().expect("a piped output"));
    let code = process.ended(Duration::from_secs(60)).unwrap_or(-1);
    Said { code, out: out.join().unwrap_or_default(), err: err.join().unwrap_or_default() }
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What a killed process said is told as far as it goes.
        from.read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A child process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts `command`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[expect(clippy::expect_used, reason = "this is how a test fails")]
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("the process starts"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, signal).ok();
        }
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits for its end without closing its standard input; returns the exit code, `None` when a signal ended it.
    ///
    /// # Panics
    /// When it has not ended after `at_most`.
    pub fn ended(&mut self, at_most: Duration) -> Option<i32> {
        let (code, _) = eventually("the process ends", at_most, || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            Ok(None) => Err("it still runs".to_owned()),
            Err(fault) => Err(fault.to_string()),
        });
        code
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
