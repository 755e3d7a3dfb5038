//! What a rule asks of the node that an instance runs on.

use std::fmt;

/// What a node is, as it tells it: a number or a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trait<'a> {
    /// As cores, bytes of memory, graphics processors.
    Number(f64),
    /// As the architecture, or a label's value.
    Text(&'a str),
}

/// What becomes of a request whose requirements no instance meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnmatched {
    /// It is refused.
    #[default]
    Deny,
    /// It goes to any instance, as if nothing had been required.
    PassThrough,
}

/// Everything that one rule requires.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirements {
    /// All of them must be met.
    pub all: Vec<Requirement>,
    /// What happens where nobody meets them.
    pub on_unmatched: OnUnmatched,
}

/// One thing required of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    /// `arch`, `os`, `cores`, `memory`, `gpu`, or else the name of a label.
    pub name: String,
    /// What must be true of it.
    pub test: Test,
}

/// How a trait is compared.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// A number, or a label that reads as one, of at least so much.
    AtLeast(f64),
    /// Just this text.
    Equals(String),
    /// A list, its items separated by commas, with this one among them.
    Contains(String),
}

impl Requirements {
    /// Whether a node meets all of them; `tell` gives what it says of a name.
    pub fn are_met<'a>(&self, tell: impl Fn(&str) -> Option<Trait<'a>>) -> bool {
        self.all.iter().all(|one| one.is_met(tell(&one.name)))
    }

    /// The first that a node does not meet, for people: `needs gpu >= 1, node has 0`. `None` where it meets all.
    pub fn unmet<'a>(&self, tell: impl Fn(&str) -> Option<Trait<'a>>) -> Option<String> {
        let (one, told) = self.all.iter().map(|one| (one, tell(&one.name))).find(|(one, told)| !one.is_met(*told))?;
        Some(match told {
            Some(Trait::Number(number)) => format!("needs {one}, node has {number}"),
            Some(Trait::Text(text)) => format!("needs {one}, node has `{text}`"),
            None => format!("needs {one}, node does not say"),
        })
    }
}

impl Requirement {
    fn is_met(&self, told: Option<Trait<'_>>) -> bool {
        match (&self.test, told) {
            (_, None) => false,
            (Test::AtLeast(least), Some(Trait::Number(number))) => number >= *least,
            (Test::AtLeast(least), Some(Trait::Text(text))) => text.parse().is_ok_and(|number: f64| number >= *least),
            (Test::Equals(wanted), Some(Trait::Text(text))) => text == wanted,
            (Test::Contains(wanted), Some(Trait::Text(text))) => text.split(',').any(|item| item.trim() == wanted),
            (Test::Equals(_) | Test::Contains(_), Some(Trait::Number(_))) => false,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, test } = self;
        match test {
            Test::AtLeast(number) => write!(f, "{name} >= {number}"),
            Test::Equals(text) => write!(f, "{name} = {text}"),
            Test::Contains(text) => write!(f, "{name} with {text} in it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node<'a>(name: &str) -> Option<Trait<'a>> {
        match name {
            "gpu" => Some(Trait::Number(0.0)),
            "cores" => Some(Trait::Number(4.0)),
            "arch" => Some(Trait::Text("aarch64")),
            "sensors" => Some(Trait::Text("lidar, thermal")),
            "rack" => Some(Trait::Text("7")),
            _ => None,
        }
    }

    #[test]
    fn each_test_compares_its_own_way_and_what_is_not_met_is_said() {
        let (least, is, has) =
            (Test::AtLeast, |s: &str| Test::Equals(s.to_owned()), |s: &str| Test::Contains(s.to_owned()));
        for (name, test, expected) in [
            ("cores", least(4.0), None),
            ("gpu", least(1.0), Some("needs gpu >= 1, node has 0")),
            ("rack", least(6.5), None),
            ("rack", least(8.0), Some("needs rack >= 8, node has `7`")),
            ("arch", least(1.0), Some("needs arch >= 1, node has `aarch64`")),
            ("arch", is("aarch64"), None),
            ("arch", is("x86_64"), Some("needs arch = x86_64, node has `aarch64`")),
            ("cores", is("4"), Some("needs cores = 4, node has 4")),
            ("sensors", has("thermal"), None),
            ("sensors", has("therm"), Some("needs sensors with therm in it, node has `lidar, thermal`")),
            ("line", is("a"), Some("needs line = a, node does not say")),
        ] {
            let all = vec![Requirement { name: name.to_owned(), test }];
            let requirements = Requirements { all, on_unmatched: OnUnmatched::Deny };
            assert_eq!(requirements.unmet(node).as_deref(), expected);
            assert_eq!(requirements.are_met(node), expected.is_none());
        }
    }

    #[test]
    fn of_several_all_must_be_met_and_none_are_met_by_everybody() {
        let one = |name: &str, least| Requirement { name: name.to_owned(), test: Test::AtLeast(least) };
        let both = Requirements { all: vec![one("cores", 2.0), one("gpu", 1.0)], on_unmatched: OnUnmatched::Deny };
        assert_eq!(both.unmet(node).unwrap(), "needs gpu >= 1, node has 0");
        let nothing = Requirements { all: Vec::new(), on_unmatched: OnUnmatched::Deny };
        assert!(nothing.are_met(node));
    }
}
