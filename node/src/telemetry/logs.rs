//! Logs: one line per event on stderr, written by a thread of their own so that a stuck terminal stops nobody.
//!
//! Levels: error: a person must act; warn: we coped; info: life and verdicts of the node; debug: per connection;
//! trace: per packet. One line per finished request goes to the target `access` at level info.
//! `MARRAM_LOG` holds a filter, for instance `info,access=off` or `warn,transport::swim=debug`.

use std::io::{self, IsTerminal as _};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{mem, thread};

use memchr::memchr_iter;
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

/// Bytes of lines that may wait for stderr, some four thousand lines of requests; a line more is dropped and counted.
const QUEUE_BYTES: usize = 1024 * 1024;
/// Bytes that are written at once, and kept for lines to come.
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
    lines: Lines,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, finished) = mpsc::sync_channel(1);
        self.lines.tell_when_written(done);
        // Past the wait the lines are lost: the program ends because somebody asked it to.
        let _flushed_in_time = finished.recv_timeout(FLUSH_WAIT).is_ok();
    }
}

/// Starts logging for the whole process; `filter` is the content of `MARRAM_LOG`.
///
/// # Errors
/// [`LogError`] when the filter does not parse or logging was started before.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<LogGuard, LogError> {
    let filter = parse_filter(filter)?;
    let lines = Lines::default();
    let writer = lines.clone();
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
    let queue = lines.clone();
    let write = move || {
        let mut spare = Vec::new();
        loop {
            spare = queue.write_next(spare, &mut io::stderr());
        }
    };
    thread::Builder::new().name("log".to_owned()).spawn(write).map_err(LogError::Thread)?;
    Ok(LogGuard { lines })
}

fn parse_filter(text: Option<&str>) -> Result<Targets, LogError> {
    let text = text.filter(|text| !text.trim().is_empty()).unwrap_or(FILTER_DEFAULT);
    text.parse().map_err(|error: tracing_subscriber::filter::ParseError| LogError::Filter { reason: error.to_string() })
}

/// Lines on their way to the thread that writes them.
///
/// They lie one behind the other in one piece of memory: a busy proxy would pay more for a piece for each, made by one thread
/// and given back by another, than for the line itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    is_filled: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    text: Vec<u8>,
    /// Who is told when all that is written.
    told: Vec<SyncSender<()>>,
    /// The thread that writes sleeps until it is woken.
    is_asleep: bool,
}

impl Lines {
    /// Hands on a finished line.
    pub(super) fn send(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.text.len() + line.len() > QUEUE_BYTES {
            drop(waiting);
            count_dropped(1);
            return;
        }
        waiting.text.extend_from_slice(line);
        self.wake(waiting);
    }

    fn tell_when_written(&self, done: SyncSender<()>) {
        let mut waiting = self.lock();
        waiting.told.push(done);
        self.wake(waiting);
    }

    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let is_asleep = mem::take(&mut waiting.is_asleep);
        drop(waiting);
        if is_asleep {
            self.queue.is_filled.notify_one();
        }
    }

    /// Waits for lines and writes all there are; lines to come gather in `spare`. Returns what the next call takes for that.
    ///
    /// The first line goes out at once, those that follow closely together: a busy proxy pays neither for a call of the system
    /// nor for waking this thread with every request.
    fn write_next(&self, spare: Vec<u8>, out: &mut impl io::Write) -> Vec<u8> {
        let mut waiting = self.lock();
        while waiting.text.is_empty() && waiting.told.is_empty() {
            waiting.is_asleep = true;
            waiting = self.queue.is_filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let mut text = mem::replace(&mut waiting.text, spare);
        let told = mem::take(&mut waiting.told);
        drop(waiting);
        for piece in text.chunks(WRITE_BYTES) {
            // A closed stderr is no reason to stop serving.
            if out.write_all(piece).is_err() {
                count_dropped(memchr_iter(b'\n', piece).count());
            }
        }
        text.clear();
        text.shrink_to(WRITE_BYTES);
        if told.is_empty() {
            thread::park_timeout(GATHER);
        }
        for done in told {
            // Who waited may have given up.
            done.try_send(()).ok();
        }
        text
    }

    /// The lines themselves; nothing here panics half-way.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().text).into_owned()
    }
}

fn count_dropped(lines: usize) {
    metrics::counter!("marram_log_dropped_lines_total").increment(lines as u64);
}

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line);
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

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// What was written, call by call.
    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<Vec<Vec<u8>>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// How many lines were counted as dropped while something was done.
    fn dropped_in(what: impl FnOnce()) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, what);
        let text = recorder.handle().render();
        let count = text.lines().find_map(|line| line.strip_prefix("marram_log_dropped_lines_total "));
        count.unwrap_or_default().to_owned()
    }

    #[test]
    fn lines_that_wait_are_written_together_in_their_order_and_whoever_waits_is_told_after() {
        let lines = Lines::default();
        for line in ["first\n", "second\n", "third\n"] {
            lines.send(line.as_bytes());
        }
        let (done, finished) = mpsc::sync_channel(1);
        lines.tell_when_written(done);
        assert!(finished.try_recv().is_err());
        let mut written = Written::default();
        lines.write_next(Vec::new(), &mut written);
        assert_eq!(*written.0.lock().unwrap(), [b"first\nsecond\nthird\n".to_vec()]);
        assert_eq!(finished.try_recv(), Ok(()));
    }

    #[test]
    fn a_line_wakes_the_thread_that_writes() {
        let (lines, written) = (Lines::default(), Written::default());
        let (queue, mut out) = (lines.clone(), written.clone());
        let within_ten_seconds = |is_so: &dyn Fn() -> bool| {
            (0..10_000).any(|_| {
                thread::park_timeout(Duration::from_millis(1));
                is_so()
            })
        };
        let writer = thread::spawn(move || (0..3).fold(Vec::new(), |spare, _| queue.write_next(spare, &mut out)));
        for count in 1..=3 {
            assert!(within_ten_seconds(&|| lines.lock().is_asleep), "it sleeps while nothing is there");
            lines.send(b"line\n");
            let is_written = || written.0.lock().unwrap().len() == count;
            assert!(within_ten_seconds(&is_written), "line {count}");
        }
        writer.join().unwrap();
        assert_eq!(written.0.lock().unwrap().concat(), b"line\n".repeat(3));
    }

    #[test]
    fn a_stderr_that_takes_nothing_stops_nobody_and_what_it_refuses_is_counted() {
        struct Closed;
        impl io::Write for Closed {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        lines.send(b"first\nsecond\n");
        let (done, finished) = mpsc::sync_channel(1);
        lines.tell_when_written(done);
        let dropped = dropped_in(|| {
            lines.write_next(Vec::new(), &mut Closed);
        });
        assert_eq!((finished.try_recv(), lines.text().as_str(), dropped.as_str()), (Ok(()), "", "2"));
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
        let mut lines = Lines::default();
        let line = [b'x'; QUEUE_BYTES / 4];
        for _ in 0..4 {
            assert_eq!(lines.write(&line).unwrap(), line.len());
        }
        let dropped = dropped_in(|| assert_eq!(lines.write(b"one more\n").unwrap(), 9));
        assert_eq!(dropped, "1");
        let mut written = Written::default();
        let spare = lines.write_next(Vec::new(), &mut written);
        assert!(spare.capacity() <= WRITE_BYTES, "what a burst took is given back");
        lines.send(b"later\n");
        lines.write_next(spare, &mut written);
        let written = written.0.lock().unwrap();
        assert!(written.iter().all(|piece| piece.len() <= WRITE_BYTES));
        assert_eq!(written.concat(), [&[b'x'; QUEUE_BYTES][..], b"later\n"].concat());
    }
}
