/// What two hosts have in common, each whole, `*.suffix` or `*`: the more exact of them.
pub(in super::super) fn meet(one: &str, other: &str) -> Option<String> {
    let ends = |host: &str, pattern: &str| match (host.strip_prefix('*'), pattern.strip_prefix('*'))
    {
        // A name, as a whole.
        (_, None) => host == pattern,
        (None, Some(end)) => host.len() > end.len() && host.ends_with(end),
        (Some(own), Some(end)) => own.ends_with(end),
    };
    let (one, other) = (one.to_ascii_lowercase(), other.to_ascii_lowercase());
    if ends(&one, &other) {
        Some(one)
    } else if ends(&other, &one) {
        Some(other)
    } else {
        None
    }
}

/// How exact a host is.
pub(super) fn exactness(host: &str) -> usize {
    match host.strip_prefix('*') {
        None => usize::MAX,
        Some(end) => end.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::meet;

    #[test]
    fn hosts_meet_in_the_more_exact_one() {
        for (one, other, both) in [
            ("*", "*", Some("*")),
            ("*", "A.example", Some("a.example")),
            ("a.example", "*.example", Some("a.example")),
            ("*.example", "*.a.example", Some("*.a.example")),
            ("example", "*.example", None),
            ("a.example", "b.example", None),
            ("*.a.example", "*.b.example", None),
            ("*.a.example", "x.b.example", None),
        ] {
            assert_eq!(meet(one, other).as_deref(), both, "{one} {other}");
            assert_eq!(meet(other, one).as_deref(), both, "{other} {one}");
        }
    }
}
