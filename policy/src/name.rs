//! DNS labels: the one shape of names that scopes, services, documents and rules share.

/// Longest label, in bytes (RFC 1035, section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// Longest name of several labels, in bytes (RFC 1035, section 2.3.4, without the root's dot).
pub(crate) const NAME_BYTES_MAX: usize = 253;

/// Whether `text` is one DNS label: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or a digit.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    (1..=LABEL_BYTES_MAX).contains(&text.len())
        && text.as_bytes().iter().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether `text` is a name: DNS labels joined by dots, at most 253 bytes.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && text.split('.').all(is_label)
}

/// `text` bent into a label or name, for a hint; `None` where nothing sensible remains.
pub(crate) fn bend(text: &str, dots: bool) -> Option<String> {
    let keep = |letter: char| match letter.to_ascii_lowercase() {
        lower if lower.is_ascii_lowercase() || lower.is_ascii_digit() => lower,
        '.' if dots => '.',
        _ => '-',
    };
    let bent: String = text.chars().take(NAME_BYTES_MAX).map(keep).collect();
    let bent = bent.trim_matches(['-', '.']).to_owned();
    let fits = if dots { is_name(&bent) } else { is_label(&bent) };
    (fits && bent != text).then_some(bent)
}
