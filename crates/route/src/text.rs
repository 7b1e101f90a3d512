use std::fmt;

use isobar_proto::isobar::v1 as proto;

use crate::pattern::{Pattern, PatternError};

/// A compiled match on one value of a request (VirtualService `StringMatch`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// The value is this.
    Exact(String),
    /// The value starts with this.
    Prefix(String),
    /// The value starts with these path elements; no slash at the end.
    PathPrefix(String),
    /// The whole value matches.
    Regex(Pattern),
    /// The value is there.
    Present,
}

impl fmt::Display for TextMatch {
    /// For people: `= VALUE`, `prefix VALUE`, `regex VALUE` or `present`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "= {text}"),
            Self::Prefix(text) => write!(f, "prefix {text}"),
            Self::PathPrefix(text) => write!(f, "below {text}/"),
            Self::Regex(pattern) => write!(f, "regex {pattern}"),
            Self::Present => f.write_str("present"),
        }
    }
}

impl TextMatch {
    /// Compiles; a match of no type, and the pattern `*`, mean "present" as in Istio.
    ///
    /// # Errors
    /// When the regular expression is refused.
    pub fn compile(from: &proto::StringMatch) -> Result<Self, PatternError> {
        use proto::string_match::MatchType;
        Ok(match &from.match_type {
            Some(MatchType::Exact(text)) => Self::Exact(text.clone()),
            Some(MatchType::Prefix(text)) => Self::Prefix(text.clone()),
            Some(MatchType::PathPrefix(text)) => {
                Self::PathPrefix(text.trim_end_matches('/').to_owned())
            }
            Some(MatchType::Regex(text)) if text == "*" => Self::Present,
            Some(MatchType::Regex(text)) => Self::Regex(Pattern::full(text)?),
            Some(MatchType::Present(_)) | None => Self::Present,
        })
    }

    /// True if a value that is there matches.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::PathPrefix(text) => value
                .strip_prefix(text.as_bytes())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")),
            Self::Regex(pattern) => pattern.matches(value),
            Self::Present => true,
        }
    }

    /// As [`Self::matches`], but ASCII case does not count for exact and prefix.
    #[must_use]
    pub fn matches_ignoring_case(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes().eq_ignore_ascii_case(value),
            Self::Prefix(text) => value
                .get(..text.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(text.as_bytes())),
            Self::PathPrefix(text) => {
                value
                    .split_at_checked(text.len())
                    .is_some_and(|(head, rest)| {
                        head.eq_ignore_ascii_case(text.as_bytes())
                            && (rest.is_empty() || rest.starts_with(b"/"))
                    })
            }
            Self::Regex(_) | Self::Present => self.matches(value),
        }
    }
}

/// A compiled star form of an AuthorizationPolicy: `a`, `a*`, `*a`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// There and not empty.
    Present,
}

impl ValueMatch {
    /// Compiles; `None` for a match of no type, which nothing can honour.
    #[must_use]
    pub fn compile(from: &proto::ValueMatch) -> Option<Self> {
        use proto::value_match::MatchType;
        Some(match from.match_type.as_ref()? {
            MatchType::Exact(text) => Self::Exact(text.clone()),
            MatchType::Prefix(text) => Self::Prefix(text.clone()),
            MatchType::Suffix(text) => Self::Suffix(text.clone()),
            MatchType::Present(_) => Self::Present,
        })
    }

    /// True if the value matches, by bytes.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
            Self::Present => !value.is_empty(),
        }
    }

    /// True if the value matches where ASCII case does not count.
    #[must_use]
    pub fn matches_ignoring_case(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes().eq_ignore_ascii_case(value),
            Self::Prefix(text) => value
                .get(..text.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(text.as_bytes())),
            Self::Suffix(text) => value
                .len()
                .checked_sub(text.len())
                .is_some_and(|at| value[at..].eq_ignore_ascii_case(text.as_bytes())),
            Self::Present => !value.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::string_match::MatchType;

    #[test]
    fn a_path_prefix_ends_with_an_element() {
        let below = |prefix: &str| {
            let from = MatchType::PathPrefix(prefix.into());
            TextMatch::compile(&proto::StringMatch {
                match_type: Some(from),
            })
            .unwrap()
        };
        for (prefix, path, does) in [
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a", true),
            ("/a", "/A", false),
            ("/", "/x", true),
            ("/", "/", true),
        ] {
            assert_eq!(
                below(prefix).matches(path.as_bytes()),
                does,
                "{prefix} {path}"
            );
        }
        assert!(below("/a").matches_ignoring_case(b"/A/b"));
        assert!(!below("/a").matches_ignoring_case(b"/Ab"));
    }

    #[test]
    fn matches_are_shown_to_people_and_a_star_is_whatever_is_there() {
        let made = |kind| {
            let from = proto::StringMatch { match_type: kind };
            TextMatch::compile(&from).unwrap().to_string()
        };
        for (kind, shown) in [
            (Some(MatchType::Exact("a".into())), "= a"),
            (Some(MatchType::Prefix("a".into())), "prefix a"),
            (Some(MatchType::PathPrefix("/a/".into())), "below /a/"),
            (Some(MatchType::Regex("*".into())), "present"),
            (Some(MatchType::Present(true)), "present"),
            (None, "present"),
        ] {
            assert_eq!(made(kind), shown);
        }
        assert!(made(Some(MatchType::Regex("a.*".into()))).starts_with("regex "));
    }

    #[test]
    fn what_is_empty_is_not_there() {
        assert!(ValueMatch::Present.matches(b"x") && !ValueMatch::Present.matches(b""));
        assert!(ValueMatch::Present.matches_ignoring_case(b"x"));
        assert!(!ValueMatch::Present.matches_ignoring_case(b""));
    }
}
