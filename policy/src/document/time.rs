//! Points in time as documents write them: RFC 3339 text.

/// The point in time that `text` names, in milliseconds since 1970; `None` where it is none, or before 1970.
pub(crate) fn unix_ms_of(text: &str) -> Option<u64> {
    // The parser takes more than RFC 3339 has: a zone in brackets, dates without hyphens, years of six digits.
    let is_plain = text.len() <= TEXT_BYTES_MAX && text.as_bytes().get(4) == Some(&b'-') && !text.contains('[');
    let at: jiff::Timestamp = text.parse().ok().filter(|_| is_plain)?;
    u64::try_from(at.as_millisecond()).ok()
}

/// With nine digits after the second and an offset.
const TEXT_BYTES_MAX: usize = 35;

#[cfg(test)]
mod tests {
    use super::unix_ms_of;

    #[test]
    fn a_time_is_read_with_its_offset_and_nothing_else_is_a_time() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T01:00:00.250+01:00", Some(250)),
            ("2026-12-01T18:00:00Z", Some(1_796_148_000_000)),
            ("2026-12-01t18:00:00z", Some(1_796_148_000_000)),
            ("1969-12-31T23:59:59Z", None),
            ("2026-12-01T18:00:00", None),
            ("2026-12-01", None),
            ("2026-02-30T00:00:00Z", None),
            ("20261201T180000Z", None),
            ("+002026-12-01T18:00:00Z", None),
            ("2026-12-01T18:00:00Z[UTC]", None),
            ("tomorrow", None),
            ("2h", None),
            ("", None),
        ] {
            assert_eq!(unix_ms_of(text), expected, "{text}");
        }
    }
}
