use super::*;

fn full(pattern: &str, value: &str) -> bool {
    Pattern::full(pattern).unwrap().matches(value.as_bytes())
}

#[test]
fn the_whole_value_has_to_match() {
    assert!(full("/a.*", "/abc"));
    assert!(!full("a", "ab"));
    assert!(!full("a|b", "ab"));
    assert!(full("a|ab", "ab"));
    assert!(full("(?i)/HELLO", "/hello"));
}

#[test]
fn classes_are_ascii_and_never_nest() {
    assert!(full(r"\d+", "42"));
    assert!(!full(r"\d", "٣"));
    assert!(!full(r"\w", "é"));
    assert!(full("[a&&b]+", "a&b"));
    assert!(full("[a~~b]+", "~b"));
    assert!(full("[[a]", "["));
    assert!(full("[[a]b]", "[b]"));
    assert!(full("[[:alpha:]]+", "abc"));
    assert!(full(r"[\w.-]+", "a.b-c"));
    assert!(full("[]a]+", "]a"));
    assert!(full(r"[^\D]", "7"));
    assert!(full("[^/]+", "abc"));
}

#[test]
fn literal_forms() {
    assert!(full(r"\Qa.b\E+", "a.bbb"));
    assert!(full("a{,3}", "a{,3}"));
    assert!(full("{id}", "{id}"));
    assert!(full(r"\<a\>", "<a>"));
    assert!(full(r"a#b c", "a#b c"));
    assert!(full(r"\x{41}\x42", "AB"));
}

#[test]
fn what_re2_lacks_is_refused() {
    for bad in [
        r"(?=a)", r"(?!a)", r"(?<=a)b", r"(?<!a)b", r"(a)\1", "(?x) a", r"\C", r"\Z", r"\u0041",
        "a**", "a{1001}", "a{2}{3}", "a)|(b", "(a", "[a", "a\\", "*a", "(?u)a",
    ] {
        assert!(Pattern::full(bad).is_err(), "{bad}");
    }
    assert!(Pattern::full(&"a".repeat(1025)).is_err());
    assert!(Pattern::full("((a{1000}){1000}){1000}").is_err());
}

#[test]
fn the_error_names_the_pattern() {
    let error = Pattern::full("a(").unwrap_err();
    assert!(error.to_string().contains(r#""a(""#), "{error}");
}

#[test]
fn rewriting_uses_re2_group_names() {
    let pattern = Pattern::search("^/service/([^/]+)(/.*)$").unwrap();
    assert_eq!(
        pattern.replace_all("/service/foo/v1/api", r"\2/instance/\1$"),
        b"/v1/api/instance/foo$"
    );
}
