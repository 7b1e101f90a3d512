//! Differences from Envoy that are wanted, each with its reason.

use std::cell::Cell;
use std::path::Path;

use serde::Deserialize;

use crate::observed::Difference;

/// One accepted difference.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Divergence {
    /// Scenarios it is about; `*` stands for anything.
    scenarios: String,
    /// The field; `*` stands for anything.
    field: String,
    /// Only where ours is this; `*` stands for anything.
    #[serde(default)]
    ours: Option<String>,
    /// Only where Envoy's is this.
    #[serde(default)]
    envoys: Option<String>,
    /// Depends on which thread of Envoy is faster: it need not show.
    #[serde(default)]
    at_times: bool,
    /// Why it is wanted.
    reason: String,
    #[serde(skip)]
    used: Cell<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    divergence: Vec<Divergence>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Divergences(Vec<Divergence>);

impl Divergences {
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let file: File =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let without = file.divergence.iter().find(|one| one.reason.len() < 20);
        assert!(without.is_none(), "an entry without a reason: {without:?}");
        Self(file.divergence)
    }

    /// True if this difference is wanted.
    pub(crate) fn accepts(&self, scenario: &str, difference: &Difference) -> bool {
        let is = |pattern: &Option<String>, value: &Option<String>| {
            pattern
                .as_ref()
                .is_none_or(|pattern| fits(pattern, value.as_deref().unwrap_or("")))
        };
        let found = self.0.iter().find(|one| {
            fits(&one.scenarios, scenario)
                && fits(&one.field, &difference.field)
                && is(&one.ours, &difference.ours)
                && is(&one.envoys, &difference.envoys)
        });
        if let Some(one) = found {
            one.used.set(one.used.get() + 1);
        }
        found.is_some()
    }

    /// Entries that no scenario needed.
    pub(crate) fn unused(&self) -> Vec<String> {
        let unused = self
            .0
            .iter()
            .filter(|one| one.used.get() == 0 && !one.at_times);
        unused
            .map(|one| format!("{} {}: {}", one.scenarios, one.field, one.reason))
            .collect()
    }
}

/// `*` takes any text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(previous) = last.replace(part) {
            match rest.find(previous) {
                Some(at) => rest = &rest[at + previous.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |part| rest.ends_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_take_anything() {
        for (pattern, text, does) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("*", "", true),
            ("try*:version", "try0:version", true),
        ] {
            assert_eq!(fits(pattern, text), does, "{pattern} {text}");
        }
    }

    #[test]
    fn an_entry_that_nothing_needs_is_told() {
        let text = "[[divergence]]\nscenarios = \"a/*\"\nfield = \"status\"\nenvoys = \"503\"\nreason = \"r\"\n";
        let file: File = toml::from_str(text).unwrap();
        let all = Divergences(file.divergence);
        let difference = Difference {
            field: "status".into(),
            ours: Some("200".into()),
            envoys: Some("404".into()),
        };
        assert!(!all.accepts("a/b", &difference));
        assert_eq!(all.unused().len(), 1);
        let difference = Difference {
            envoys: Some("503".into()),
            ..difference
        };
        assert!(all.accepts("a/b", &difference));
        assert!(all.unused().is_empty());
    }
}
