//! The access log: one line per finished request, in the form of the other lines.
//!
//! It is written by itself and not as an event of `tracing`: at tens of thousands of requests a second the general way
//! cost each one more than a tenth of its time.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::logs::{Lines, LogFormat};

/// Target of these lines in a filter.
pub(super) const TARGET: &str = "access";

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
    pub(crate) duration_ms: f64,
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

/// Writes the line that `line` makes, where the log is on; `unix` is the time.
pub(crate) fn write<'a>(unix: Duration, line: impl FnOnce() -> AccessLine<'a>) {
    if let Some(log) = LOG.get() {
        log.lines.send(log.shown(unix, &line()));
    }
}

impl AccessLog {
    fn shown(&self, unix: Duration, line: &AccessLine<'_>) -> Vec<u8> {
        let at = i64::try_from(unix.as_micros()).ok().and_then(|us| Timestamp::from_microsecond(us).ok());
        let at = at.unwrap_or_default();
        let mut text = String::with_capacity(384);
        // Writing to a string does not fail.
        let written = match self.format {
            LogFormat::Text => self.put_text(&mut text, at, line),
            LogFormat::Json => put_json(&mut text, at, line),
        };
        debug_assert!(written.is_ok(), "{written:?}");
        text.push('\n');
        text.into_bytes()
    }

    fn put_text(&self, text: &mut String, at: Timestamp, line: &AccessLine<'_>) -> std::fmt::Result {
        if self.has_colour {
            write!(text, "\x1b[2m{at:.6}\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2m{TARGET}:\x1b[0m request")?;
        } else {
            write!(text, "{at:.6}  INFO {TARGET}: request")?;
        }
        let AccessLine { direction, method, service, host, path, status, bytes, duration_ms, via, .. } = line;
        write!(text, " direction=\"{direction}\" method=\"{method}\" service={service:?} host={host:?} path={path:?}")?;
        write!(text, " status={status} bytes={bytes} duration_ms={duration_ms:?} via={via:?}")?;
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
        write!(text, " broken={}", line.broken)
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

fn put_json(text: &mut String, at: Timestamp, line: &AccessLine<'_>) -> std::fmt::Result {
    let timestamp = format!("{at:.6}");
    let line = JsonLine { timestamp: &timestamp, level: "INFO", message: "request", line, target: TARGET };
    let json = serde_json::to_string(&line).map_err(|_no_such_type| std::fmt::Error)?;
    text.push_str(&json);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LINE: AccessLine<'_> = AccessLine {
        direction: "outbound",
        method: "GET",
        service: "hello",
        host: "hello.mesh",
        path: "/a\"\n",
        status: 200,
        bytes: 5,
        duration_ms: 1.25,
        via: "a->b",
        p: Some(0.5),
        retries: 1,
        not_retried: None,
        hedged: Some(true),
        injected: None,
        broken: false,
    };

    fn shown(format: LogFormat, has_colour: bool) -> String {
        let (queue, _lines) = mpsc::sync_channel(1);
        let log = AccessLog { lines: Lines::new(queue), format, has_colour };
        String::from_utf8(log.shown(Duration::from_micros(1_764_249_600_000_001), &LINE)).unwrap()
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
