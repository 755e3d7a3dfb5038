//! The access log: one line per finished request, in the form of the other lines.
//!
//! It is written by itself and not as an event of `tracing`: at tens of thousands of requests a second the general way
//! cost each one more than a tenth of its time.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::logs::{Lines, LogFormat};

/// Target of these lines in a filter.
pub(super) const TARGET: &str = "access";
/// Bytes that a thread keeps for its next line.
const TEXT_BYTES_KEPT: usize = 1024;

static LOG: OnceLock<AccessLog> = OnceLock::new();

/// Where the lines go, and how they look.
#[derive(Debug)]
pub(super) struct AccessLog {
    pub(super) lines: Lines,
    pub(super) format: LogFormat,
    pub(super) has_colour: bool,
}

/// One finished request or tunnel.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AccessLine<'a> {
    pub(crate) direction: &'static str,
    pub(crate) method: &'a str,
    pub(crate) service: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    #[serde(rename = "duration_ms", serialize_with = "as_millis")]
    pub(crate) duration: Duration,
    pub(crate) via: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p: Option<f64>,
    pub(crate) retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_retried: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hedged: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) injected: Option<&'static str>,
    pub(crate) broken: bool,
}

/// Sets where the lines go; the first call counts.
pub(super) fn start(log: AccessLog) {
    LOG.get_or_init(|| log);
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread has from one line for the next.
#[derive(Debug, Default)]
struct Scratch {
    text: String,
    second: Second,
}

/// A time down to its second, written out.
#[derive(Debug, Default)]
struct Second {
    unix: u64,
    text: String,
}

impl Second {
    /// The time `unix` in RFC 3339 with microseconds, in two parts.
    fn shown(&mut self, unix: Duration) -> (&str, Micros) {
        if self.text.is_empty() || self.unix != unix.as_secs() {
            let second = i64::try_from(unix.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok());
            self.text = second.unwrap_or_default().to_string();
            // What comes after the seconds.
            self.text.truncate(self.text.len().saturating_sub(1));
            self.unix = unix.as_secs();
        }
        (&self.text, Micros(unix.subsec_micros()))
    }
}

/// What stands behind a second.
#[derive(Debug, Clone, Copy)]
struct Micros(u32);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ".{:06}Z", self.0)
    }
}

/// Milliseconds to a microsecond, as a floating point number of them is written.
#[derive(Debug, Clone, Copy)]
struct Millis(Duration);

impl Millis {
    /// Whole ones, and microseconds; rounded to the nearest.
    fn parts(self) -> (u64, u64) {
        let below_second = u64::from((self.0.subsec_nanos() + 500) / 1000);
        let micros = self.0.as_secs().saturating_mul(1_000_000).saturating_add(below_second);
        (micros / 1000, micros % 1000)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, micros) = self.parts();
        match micros {
            micros if micros % 100 == 0 => write!(f, "{whole}.{}", micros / 100),
            micros if micros % 10 == 0 => write!(f, "{whole}.{:02}", micros / 10),
            micros => write!(f, "{whole}.{micros:03}"),
        }
    }
}

fn as_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let (whole, micros) = Millis(*duration).parts();
    #[expect(clippy::cast_precision_loss, reason = "exact for as long as a request can last")]
    let micros = whole.saturating_mul(1000).saturating_add(micros) as f64;
    serializer.serialize_f64(micros / 1e3)
}

/// Puts text in quotes, escaped as Rust does.
fn put_quoted(text: &mut String, value: &str) -> fmt::Result {
    if value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        text.push('"');
        text.push_str(value);
        text.push('"');
        return Ok(());
    }
    write!(text, "{value:?}")
}

/// Writes the line that `line` makes, where the log is on; `unix` is the time.
pub(crate) fn write<'a>(unix: Duration, line: impl FnOnce() -> AccessLine<'a>) {
    if let Some(log) = LOG.get() {
        SCRATCH.with_borrow_mut(|scratch| log.write(scratch, unix, &line()));
    }
}

impl AccessLog {
    fn write(&self, scratch: &mut Scratch, unix: Duration, line: &AccessLine<'_>) {
        let Scratch { text, second } = scratch;
        text.clear();
        let at = second.shown(unix);
        // Writing to a string does not fail.
        let written = match self.format {
            LogFormat::Text => self.put_text(text, at, line),
            LogFormat::Json => put_json(text, at, line),
        };
        debug_assert!(written.is_ok(), "{written:?}");
        text.push('\n');
        self.lines.send(text.as_bytes());
        text.shrink_to(TEXT_BYTES_KEPT);
    }

    fn put_text(&self, text: &mut String, at: (&str, Micros), line: &AccessLine<'_>) -> fmt::Result {
        let (second, micros) = at;
        if self.has_colour {
            write!(text, "\x1b[2m{second}{micros}\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2m{TARGET}:\x1b[0m request")?;
        } else {
            text.push_str(second);
            write!(text, "{micros}  INFO {TARGET}: request")?;
        }
        for (name, value) in [
            (" direction=", line.direction),
            (" method=", line.method),
            (" service=", line.service),
            (" host=", line.host),
            (" path=", line.path),
        ] {
            text.push_str(name);
            put_quoted(text, value)?;
        }
        let AccessLine { status, bytes, .. } = line;
        write!(text, " status={status} bytes={bytes} duration_ms={} via=", Millis(line.duration))?;
        put_quoted(text, line.via)?;
        if let Some(p) = line.p {
            write!(text, " p={p:?}")?;
        }
        write!(text, " retries={}", line.retries)?;
        for (name, word) in [("not_retried", line.not_retried), ("injected", line.injected)] {
            if let Some(word) = word {
                write!(text, " {name}=\"{word}\"")?;
            }
        }
        if let Some(hedged) = line.hedged {
            write!(text, " hedged={hedged}")?;
        }
        text.push_str(if line.broken { " broken=true" } else { " broken=false" });
        Ok(())
    }
}

/// As `tracing` writes it.
#[derive(Serialize)]
struct JsonLine<'a> {
    timestamp: &'a str,
    level: &'static str,
    message: &'static str,
    #[serde(flatten)]
    line: &'a AccessLine<'a>,
    target: &'static str,
}

fn put_json(text: &mut String, (second, micros): (&str, Micros), line: &AccessLine<'_>) -> fmt::Result {
    let timestamp = format!("{second}{micros}");
    let line = JsonLine { timestamp: &timestamp, level: "INFO", message: "request", line, target: TARGET };
    let json = serde_json::to_string(&line).map_err(|_no_such_type| fmt::Error)?;
    text.push_str(&json);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: AccessLine<'_> = AccessLine {
        direction: "outbound",
        method: "GET",
        service: "hello",
        host: "hello.mesh",
        path: "/a\"\n",
        status: 200,
        bytes: 5,
        duration: Duration::from_micros(1250),
        via: "a->b",
        p: Some(0.5),
        retries: 1,
        not_retried: None,
        hedged: Some(true),
        injected: None,
        broken: false,
    };

    fn shown(format: LogFormat, has_colour: bool) -> String {
        let log = AccessLog { lines: Lines::default(), format, has_colour };
        log.write(&mut Scratch::default(), Duration::from_micros(1_764_249_600_000_001), &LINE);
        log.lines.text()
    }

    #[test]
    fn a_time_is_written_as_the_other_lines_write_it_whichever_second_was_written_before() {
        let mut second = Second::default();
        for micros in [0, 999_999, 1_000_000, 1_764_249_600_000_001, 1_764_249_600_120_000, 1_764_249_599_999_999] {
            let (text, rest) = second.shown(Duration::from_micros(micros));
            let expected = Timestamp::from_microsecond(i64::try_from(micros).unwrap()).unwrap();
            assert_eq!(format!("{text}{rest}"), format!("{expected:.6}"));
        }
    }

    #[test]
    fn a_duration_is_written_as_the_number_of_milliseconds_that_it_is() {
        for nanos in [
            0,
            499,
            500,
            512_548_500,
            1_000,
            10_000,
            100_000,
            999_499,
            1_000_000,
            1_250_000,
            20_030_000,
            3_600_000_000_001,
        ] {
            let duration = Duration::from_nanos(nanos);
            let expected = serde_json::to_value(AccessLine { duration, ..LINE }).unwrap();
            assert_eq!(format!("{}", Millis(duration)), format!("{:?}", expected["duration_ms"].as_f64().unwrap()));
        }
    }

    #[test]
    fn text_is_quoted_as_rust_does() {
        for value in ["", "/plain path~", "a\"b", "back\\slash", "line\nfeed", "\u{7f}", "\u{fc}"] {
            let mut text = String::new();
            put_quoted(&mut text, value).unwrap();
            assert_eq!(text, format!("{value:?}"));
        }
    }

    #[test]
    fn a_line_for_people_has_every_field_and_stays_one_line_whatever_a_path_holds() {
        let fields = "request direction=\"outbound\" method=\"GET\" service=\"hello\" host=\"hello.mesh\" \
                      path=\"/a\\\"\\n\" status=200 bytes=5 duration_ms=1.25 via=\"a->b\" p=0.5 retries=1 hedged=true \
                      broken=false\n";
        assert_eq!(shown(LogFormat::Text, false), format!("2025-11-27T13:20:00.000001Z  INFO access: {fields}"));
        assert!(shown(LogFormat::Text, true).contains(" INFO\x1b[0m"));
    }

    #[test]
    fn a_line_for_machines_is_an_object_with_the_fields_of_every_line() {
        let line: serde_json::Value = serde_json::from_str(&shown(LogFormat::Json, true)).unwrap();
        for (field, value) in [("level", "INFO"), ("target", "access"), ("message", "request"), ("path", "/a\"\n")] {
            assert_eq!(line[field], value, "{line}");
        }
        assert_eq!((&line["timestamp"], &line["p"]), (&"2025-11-27T13:20:00.000001Z".into(), &0.5.into()));
        assert!(line.get("injected").is_none(), "{line}");
    }
}
