//! How important a request is when a node has too much to do.

/// What is refused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// First: what can be done later.
    Bulk,
    /// What nobody said anything of.
    #[default]
    Normal,
    /// Last.
    Critical,
}

impl Priority {
    /// Every word with what it means.
    pub const WORDS: [(&'static str, Self); 3] =
        [("critical", Self::Critical), ("normal", Self::Normal), ("bulk", Self::Bulk)];

    /// What `word` means; `None` for any other word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, priority)| *priority)
    }

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Normal => "normal",
            Self::Critical => "critical",
        }
    }

    /// Whether a request of this priority is taken where it makes `in_flight` and the node bears `most`: bulk up to seven
    /// tenths, normal ones up to nine, so that there is room for the critical ones, which this never refuses.
    #[must_use]
    pub const fn is_taken(self, in_flight: usize, most: usize) -> bool {
        let kept_free = match self {
            Self::Bulk => most / 10 * 3,
            Self::Normal => most / 10,
            Self::Critical => return true,
        };
        in_flight <= most.saturating_sub(kept_free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_is_refused_first_then_normal_and_critical_never() {
        for (in_flight, most, expected) in [
            (1, 1, [true, true, true]),
            (9, 9, [true, true, true]),
            (70, 100, [true, true, true]),
            (71, 100, [false, true, true]),
            (90, 100, [false, true, true]),
            (91, 100, [false, false, true]),
            (500, 100, [false, false, true]),
        ] {
            let taken = [Priority::Bulk, Priority::Normal, Priority::Critical].map(|one| one.is_taken(in_flight, most));
            assert_eq!(taken, expected, "{in_flight} of {most}");
        }
    }

    #[test]
    fn words_are_few_and_anything_else_is_none() {
        for (word, priority) in Priority::WORDS {
            assert_eq!((Priority::of(word), priority.as_str()), (Some(priority), word));
        }
        assert_eq!([Priority::of("Critical"), Priority::of("")], [None, None]);
    }
}
