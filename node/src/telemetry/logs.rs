//! Logs: one line per event on stderr, written by a thread of their own so that a stuck terminal stops nobody.
//!
//! Levels: error: a person must act; warn: we coped; info: life and verdicts of the node; debug: per connection;
//! trace: per packet. One line per finished request goes to the target `access` at level info.
//! `MARRAM_LOG` holds a filter, for instance `info,access=off` or `warn,transport::swim=debug`.

use std::io::{self, IsTerminal as _};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::access::{self, AccessLog};

/// Environment variable with the filter.
pub const FILTER_VARIABLE: &str = "MARRAM_LOG";
/// Filter in force when the variable is not set: our events, and only warnings of the libraries below; of h2 not even those, as
/// it warns of each frame that a client should not have sent.
pub const FILTER_DEFAULT: &str =
    "info,quinn=warn,quinn_proto=warn,rustls=warn,chitchat=warn,sled=warn,hyper=warn,h2=error";

/// Lines that may wait for stderr; one more is dropped and counted.
const QUEUE_LINES: usize = 4096;
/// Bytes after which lines are written although more wait.
const WRITE_BYTES: usize = 64 * 1024;
/// How long lines gather after some were written; far less than it takes to fill the queue.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end of the program waits for the last lines.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal unless `NO_COLOR` is set.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logging did not start. The program can go on without.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The filter does not parse.
    #[error("MARRAM_LOG: {reason}\n  hint: write LEVEL or TARGET=LEVEL, joined by commas: info,access=off")]
    Filter {
        /// What the parser said.
        reason: String,
    },
    /// Logging was started before in this process.
    #[error("logging is already set up")]
    AlreadySet,
    /// The system gave no thread for the writer.
    #[error("no thread for the log: {0}")]
    Thread(io::Error),
}

/// Writes what is still queued when dropped; keep it until the end of the program.
#[derive(Debug)]
#[must_use = "dropping it ends the program's last log lines early"]
pub struct LogGuard {
    lines: SyncSender<Message>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, finished) = mpsc::sync_channel(1);
        if self.lines.send(Message::Flush(done)).is_ok() {
            // Past the wait the lines are lost: the program ends because somebody asked it to.
            let _flushed_in_time = finished.recv_timeout(FLUSH_WAIT).is_ok();
        }
    }
}

/// Starts logging for the whole process; `filter` is the content of `MARRAM_LOG`.
///
/// # Errors
/// [`LogError`] when the filter does not parse or logging was started before.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<LogGuard, LogError> {
    let filter = parse_filter(filter)?;
    let (lines, queue) = mpsc::sync_channel(QUEUE_LINES);
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&queue, io::stderr()))
        .map_err(LogError::Thread)?;
    let writer = Lines { queue: lines.clone() };
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if filter.would_enable(access::TARGET, &tracing::Level::INFO) {
        access::start(AccessLog { lines: writer.clone(), format, has_colour: colour });
    }
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let layer = tracing_subscriber::fmt::layer().with_ansi(colour).with_writer(writer);
            registry.with(layer).try_init()
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
            registry.with(layer.with_span_list(false).with_writer(writer)).try_init()
        }
    };
    started.map_err(|_already| LogError::AlreadySet)?;
    Ok(LogGuard { lines })
}

fn parse_filter(text: Option<&str>) -> Result<Targets, LogError> {
    let text = text.filter(|text| !text.trim().is_empty()).unwrap_or(FILTER_DEFAULT);
    text.parse().map_err(|error: tracing_subscriber::filter::ParseError| LogError::Filter { reason: error.to_string() })
}

/// What the writing thread is handed.
#[derive(Debug)]
pub(super) enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Writes lines until nobody is left who could log: the first at once, those that follow closely together, so that a busy
/// proxy pays neither for a call of the system nor for waking this thread with every request.
fn write_lines(queue: &Receiver<Message>, mut out: impl io::Write) {
    let mut text = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => text.extend_from_slice(&line),
                Message::Flush(done) => waiting.push(done),
            }
            next = if text.len() < WRITE_BYTES { queue.try_recv().ok() } else { None };
        }
        // A closed stderr is no reason to stop serving.
        drop(out.write_all(&text));
        text.clear();
        text.shrink_to(WRITE_BYTES);
        let somebody_waits = !waiting.is_empty();
        for done in waiting {
            // Who waited may have given up.
            done.try_send(()).ok();
        }
        if !somebody_waits {
            thread::park_timeout(GATHER);
        }
    }
}

/// Hands each finished line to the thread that writes.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    queue: SyncSender<Message>,
}

impl Lines {
    #[cfg(test)]
    pub(super) const fn new(queue: SyncSender<Message>) -> Self {
        Self { queue }
    }

    /// Hands on a finished line.
    pub(super) fn send(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            metrics::counter!("marram_log_dropped_lines_total").increment(1);
        }
    }
}

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// What was written, call by call.
    #[derive(Debug, Clone, Default)]
    struct Written(std::sync::Arc<std::sync::Mutex<Vec<Vec<u8>>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_wait_are_written_together_in_their_order_and_whoever_waits_is_told_after() {
        let (lines, queue) = mpsc::sync_channel(16);
        for line in ["first\n", "second\n", "third\n"] {
            lines.send(Message::Line(line.into())).unwrap();
        }
        let (done, finished) = mpsc::sync_channel(1);
        lines.send(Message::Flush(done)).unwrap();
        drop(lines);
        let written = Written::default();
        write_lines(&queue, written.clone());
        assert_eq!(*written.0.lock().unwrap(), [b"first\nsecond\nthird\n".to_vec()]);
        assert_eq!(finished.try_recv(), Ok(()));
    }

    #[test]
    fn more_lines_than_fit_are_written_in_several_calls_and_none_is_lost() {
        let (lines, queue) = mpsc::sync_channel(16);
        for _ in 0..5 {
            lines.send(Message::Line(vec![b'x'; WRITE_BYTES / 2])).unwrap();
        }
        drop(lines);
        let written = Written::default();
        write_lines(&queue, written.clone());
        let sizes: Vec<usize> = written.0.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [WRITE_BYTES, WRITE_BYTES, WRITE_BYTES / 2]);
    }

    #[test]
    fn an_empty_filter_means_the_default() {
        let default = parse_filter(None).unwrap().to_string();
        assert_eq!(parse_filter(Some(" ")).unwrap().to_string(), default);
        assert!(default.contains("info"), "{default}");
    }

    #[test]
    fn a_wrong_filter_is_refused_with_a_hint() {
        let error = parse_filter(Some("access=loud")).unwrap_err().to_string();
        assert!(error.starts_with("MARRAM_LOG: "), "{error}");
        assert!(error.contains("hint: "), "{error}");
    }

    #[test]
    fn a_full_queue_drops_the_line_and_goes_on() {
        let (lines, queue) = mpsc::sync_channel(1);
        let mut writer = Lines { queue: lines };
        assert_eq!(writer.write(b"first\n").unwrap(), 6);
        assert_eq!(writer.write(b"second\n").unwrap(), 7);
        assert!(matches!(queue.try_recv(), Ok(Message::Line(line)) if line == b"first\n"));
        assert!(queue.try_recv().is_err());
    }
}
