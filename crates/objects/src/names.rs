//! Rules for names, labels and the like, as Kubernetes has them.

/// RFC 1123 label: lower-case letters, digits and `-`, at most 63, letters or digits at both ends.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= 63 && has_label_shape(text)
}

fn has_label_shape(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().all(|byte| inside(byte) || byte == b'-')
        && text.bytes().next().is_some_and(inside)
        && text.bytes().next_back().is_some_and(inside)
}

/// RFC 1123 subdomain: labels joined by dots, at most 253.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Name of an object: as [`is_subdomain`], but Kubernetes does not limit the parts between dots.
pub(crate) fn is_object_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(has_label_shape)
}

/// Why a text is no [`is_label`], where its length is the only reason.
pub(crate) fn too_long_label(text: &str) -> Option<String> {
    (text.len() > 63 && has_label_shape(text)).then(|| {
        format!(
            "{text:?} is longer than 63 characters: it has {}",
            text.len()
        )
    })
}

/// Host name, case ignored, one trailing dot allowed.
pub(crate) fn is_hostname(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    is_subdomain(&text.to_ascii_lowercase())
}

/// Key of a label or annotation: an optional DNS prefix and `/`, then a name.
pub(crate) fn is_qualified(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(|prefix| is_subdomain(&prefix.to_ascii_lowercase())) && is_word(name, false)
}

/// Value of a label: empty, or at most 63 letters, digits, `-`, `_`, `.`.
pub(crate) fn is_label_value(text: &str) -> bool {
    is_word(text, true)
}

fn is_word(text: &str, may_be_empty: bool) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric();
    if text.is_empty() {
        return may_be_empty;
    }
    text.len() <= 63
        && text
            .bytes()
            .all(|byte| inside(byte) || matches!(byte, b'-' | b'_' | b'.'))
        && text.bytes().next().is_some_and(inside)
        && text.bytes().next_back().is_some_and(inside)
}

/// Name of an HTTP header: a token of RFC 9110.
pub(crate) fn is_header(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// The word nearest to `word`, if one is near enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| -> Vec<char> {
        let kept = text.chars().filter(|c| c.is_alphanumeric());
        kept.flat_map(char::to_lowercase).collect()
    };
    let wanted = plain(word);
    let reach = (wanted.len() / 3).clamp(1, 4);
    words
        .into_iter()
        .map(|candidate| (distance(&wanted, &plain(candidate)), candidate))
        .filter(|(far, _)| *far <= reach)
        .min_by_key(|(far, _)| *far)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words; swapping two neighbours is one.
fn distance(left: &[char], right: &[char]) -> usize {
    // Three rows are enough; long words are none of ours.
    if left.len().abs_diff(right.len()) > 8 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, &a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &b) in right.iter().enumerate() {
            let mut cost = (last[j] + usize::from(a != b))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && a == right[j - 1] && left[i - 1] == b {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_label("a-1") && !is_label("A") && !is_label("-a") && !is_label(""));
        assert!(is_subdomain("a.b-c.d") && !is_subdomain("a..b"));
        let long = "a".repeat(64);
        assert!(!is_label(&long) && !is_subdomain(&long) && is_object_name(&long));
        assert!(!is_object_name(&"a".repeat(254)) && !is_object_name("a..b"));
        assert!(too_long_label(&long).is_some() && too_long_label("A").is_none());
        assert!(is_hostname("Svc.Example.com.") && !is_hostname("a_b"));
        assert!(is_qualified("istio.io/use-waypoint") && is_qualified("app"));
        assert!(!is_qualified("a/b/c") && !is_qualified("/x") && !is_qualified(""));
        assert!(is_label_value("") && is_label_value("v1.2_x") && !is_label_value("a b"));
        assert!(is_header("x-user") && !is_header("x user") && !is_header(""));
    }

    #[test]
    fn suggestions_are_near_or_absent() {
        let words = ["weight", "destination", "headers", "matchLabels"];
        assert_eq!(nearest("wieght", words), Some("weight"));
        assert_eq!(nearest("match_labels", words), Some("matchLabels"));
        assert_eq!(nearest("destnation", words), Some("destination"));
        assert_eq!(nearest("foo", words), None);
    }
}
