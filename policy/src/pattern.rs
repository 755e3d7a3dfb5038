//! Texts that rules compare with: a whole text, or one with a `*` at its beginning or end.

/// What a text is compared with. A `*` stands for any run of letters, also none, and may only be the first or the last
/// letter: what such a pattern matches can be read off it, and comparing takes one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TextPattern {
    /// Every text.
    Any,
    /// This text.
    Exact(String),
    /// Texts that begin so.
    Prefix(String),
    /// Texts that end so.
    Suffix(String),
}

impl TextPattern {
    /// Reads `text`, `text*`, `*text` or `*`; `None` where a `*` stands elsewhere.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Any,
            (Some(end), _) => Self::Suffix(end.to_owned()),
            (None, Some(start)) => Self::Prefix(start.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
        };
        (!pattern.literal().contains('*')).then_some(pattern)
    }

    /// The part without the `*`.
    pub(crate) fn literal(&self) -> &str {
        match self {
            Self::Any => "",
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => text,
        }
    }

    /// Whether `text` is as the pattern says; case counts.
    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(whole) => text == whole,
            Self::Prefix(start) => text.starts_with(start.as_str()),
            Self::Suffix(end) => text.ends_with(end.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TextPattern;

    #[test]
    fn a_star_stands_for_a_beginning_an_end_or_everything() {
        for (pattern, text, expected) in [
            ("/a", "/a", true),
            ("/a", "/a/b", false),
            ("/a*", "/a", true),
            ("/a*", "/ab/c", true),
            ("/a*", "/", false),
            ("*/a", "/b/a", true),
            ("*/a", "/a/b", false),
            ("*", "", true),
            ("", "x", false),
        ] {
            assert_eq!(TextPattern::read(pattern).unwrap().matches(text), expected, "{pattern} {text}");
        }
        for pattern in ["/a*b", "*/a*", "**", "***"] {
            assert_eq!(TextPattern::read(pattern), None, "{pattern}");
        }
    }
}
