//! What a rule makes of a path before a request goes on.

use crate::path::{Normalization, PathError, rewritten};
use crate::pattern::Pattern;
use crate::text::TextMatch;

/// Changes of path and authority before forwarding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// New path, or new form of the matched prefix.
    pub uri: Option<String>,
    /// New authority.
    pub authority: Option<String>,
    /// Search and replace on the path; replacement in RE2 form (`\1`).
    pub regex: Option<(Pattern, String)>,
}

impl Rewrite {
    /// The new path (without query) in normal form, if it changes. `matched` is the URI match that took
    /// the request.
    ///
    /// # Errors
    /// As [`crate::path::rewritten`].
    pub fn path(
        &self,
        path: &str,
        matched: Option<&TextMatch>,
        how: Normalization,
    ) -> Result<Option<String>, PathError> {
        let (made, words) = match (&self.regex, &self.uri) {
            (Some((pattern, replacement)), _) => {
                let made = String::from_utf8(pattern.replace_all(path, replacement));
                (made.ok(), replacement)
            }
            (None, Some(uri)) => (Some(with_prefix(uri, path, matched)), uri),
            (None, None) => return Ok(None),
        };
        // Nothing is no path: it stays as it was.
        let made = made.filter(|made| !made.is_empty());
        made.map(|made| rewritten(made, words, how)).transpose()
    }
}

/// `path` with `new` for what was matched of it: the prefix, or all of it; where the match says
/// nothing about the path, the first slash.
pub(crate) fn with_prefix(new: &str, path: &str, matched: Option<&TextMatch>) -> String {
    if let Some(TextMatch::PathPrefix(prefix)) = matched {
        let rest = path.get(prefix.len()..).unwrap_or("");
        let whole = format!("{}{rest}", new.trim_end_matches('/'));
        return if whole.is_empty() { "/".into() } else { whole };
    }
    let prefix = match matched {
        Some(TextMatch::Prefix(prefix)) => prefix.len(),
        None | Some(TextMatch::Present) => 1,
        Some(TextMatch::Exact(_) | TextMatch::Regex(_) | TextMatch::PathPrefix(_)) => path.len(),
    };
    let rest = path.get(prefix..).unwrap_or("");
    format!("{new}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewrite_changes_what_was_matched_and_leads_nowhere_else() {
        let rewrite = Rewrite {
            uri: Some("/new".into()),
            ..Rewrite::default()
        };
        let prefix = TextMatch::Prefix("/old".into());
        let exact = TextMatch::Exact("/old/x".into());
        let made = |rewrite: &Rewrite, path: &str, matched: Option<&TextMatch>| {
            let made = rewrite.path(path, matched, Normalization::Base);
            made.map(Option::unwrap)
        };
        let is = |path: &str| Ok(path.to_owned());
        assert_eq!(made(&rewrite, "/old/x", Some(&prefix)), is("/new/x"));
        assert_eq!(made(&rewrite, "/old/x", Some(&exact)), is("/new"));
        assert_eq!(made(&rewrite, "/x", None), is("/newx"));
        let below = TextMatch::PathPrefix("/old".into());
        assert_eq!(made(&rewrite, "/old", Some(&below)), is("/new"));
        assert_eq!(made(&rewrite, "/old/x", Some(&below)), is("/new/x"));
        let strip = Rewrite {
            uri: Some("/".into()),
            ..Rewrite::default()
        };
        assert_eq!(made(&strip, "/old", Some(&below)), is("/"));
        assert_eq!(made(&strip, "/old/x", Some(&below)), is("/x"));
        let nothing = Rewrite::default();
        assert_eq!(nothing.path("/x", None, Normalization::Base), Ok(None));
        // A rest that would lead out of what the rule wrote.
        assert_eq!(
            made(&strip, "/old../x", Some(&prefix)),
            Err(PathError::Climbs)
        );
        assert_eq!(made(&strip, "/old./x", Some(&prefix)), is("/x"));
        let by_pattern = Rewrite {
            regex: Some((Pattern::search("^/old(.*)$").unwrap(), r"/\1".into())),
            ..Rewrite::default()
        };
        assert_eq!(made(&by_pattern, "/older", None), is("/er"));
        let to_nothing = Rewrite {
            regex: Some((Pattern::search("^/old(.*)$").unwrap(), r"\1".into())),
            ..Rewrite::default()
        };
        assert_eq!(to_nothing.path("/old", None, Normalization::Base), Ok(None));
        assert_eq!(made(&to_nothing, "/old/x", None), is("/x"));
        let climbs = made(&by_pattern, "/old../x", None);
        assert_eq!(climbs, Err(PathError::Climbs));
    }
}
