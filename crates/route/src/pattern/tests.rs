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

#[test]
fn limits_are_reached_before_they_are_passed() {
    assert!(full(&"a".repeat(1024), &"a".repeat(1024)));
    assert!(full("a{1000}", &"a".repeat(1000)));
    assert!(full("a{2,}", "aaa") && !full("a{2,}", "a"));
    assert!(Pattern::full("a{1,1001}").is_err());
}

#[test]
fn a_hyphen_is_a_range_where_re2_reads_one() {
    for (pattern, yes, no) in [
        ("[+--]", "+,-", "a."),
        ("[--9]", "-./5", "a"),
        ("[a-]", "a-", "b"),
        ("[-a]", "a-", "b"),
        ("[a-c-e]", "abc-e", "d"),
        (r"[\d-z]", "5-z", "a"),
        (r"[\x41-\x43]", "ABC", "D-"),
        (r"[\--9]", "-.5", "a"),
        (r"[\p{Greek}-z]", "α-z", "ay"),
        (r"[\s-]", " \t-", "a"),
        (r"[\S]", "a-", " \t"),
        (r"[\W]", "-. ", "a_7"),
        ("[!-^]", "!9A]^", "_a"),
    ] {
        for (values, holds) in [(yes, true), (no, false)] {
            for value in values.chars() {
                let held = full(pattern, &value.to_string());
                assert_eq!(held, holds, "{pattern} {value}");
            }
        }
    }
    for backwards in ["[a--]", "[z-a]"] {
        assert!(Pattern::full(backwards).is_err(), "{backwards}");
    }
}

#[test]
fn named_classes_may_be_turned_round() {
    assert!(full("[[:^alpha:]]+", "12") && !full("[[:^alpha:]]", "a"));
}

#[test]
fn a_backslash_before_anything_else_stays() {
    let pattern = Pattern::search("b(.)").unwrap();
    for (replacement, result) in [(r"[\1]", "a[c]"), (r"\\1", r"a\1"), (r"\x", r"a\x")] {
        let replaced = pattern.replace_all("abc", replacement);
        assert_eq!(String::from_utf8_lossy(&replaced), result, "{replacement}");
    }
}

#[test]
fn a_pattern_is_what_was_written() {
    let (one, other) = (Pattern::full("a+").unwrap(), Pattern::full("b+").unwrap());
    assert_eq!((one.text(), &*one.to_string()), ("a+", "a+"));
    assert_eq!(one, one.clone());
    assert_ne!(one, other);
    let problem = |text: &str| Pattern::full(text).unwrap_err().problem;
    let open = "an opening parenthesis without a closing one";
    assert_eq!(problem("(a"), open);
    // The last line of what the engine says.
    let unknown = problem(r"\p{Nobody}");
    assert!(unknown.contains("property") && !unknown.starts_with("error"));
    assert_eq!(unknown.lines().count(), 1);
}
