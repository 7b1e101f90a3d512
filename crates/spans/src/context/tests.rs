use http::HeaderMap;
use proptest::prelude::*;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const ALL: u32 = 1_000_000;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    assert!(headers.get_all(name).iter().count() < 2, "{name}");
    headers.get(name).map(|value| value.to_str().unwrap())
}

/// What is in the `traceparent` that goes on, which has to be of that context.
fn goes_on(headers: &HeaderMap, context: &Context) -> bool {
    let sampled = u8::from(context.is_sampled());
    let expect = format!("00-{:032x}-{:016x}-0{sampled}", context.trace, context.span);
    text(headers, "traceparent") == Some(&*expect)
}

#[test]
fn the_caller_is_the_parent() {
    for (flags, sampled) in [("01", true), ("00", false), ("ff", true), ("02", false)] {
        let parent = format!("00-{TRACE}-{SPAN}-{flags}");
        let mut headers = headers(&[("traceparent", &parent), ("tracestate", "a=1,b=2")]);
        let context = begin(&mut headers, if sampled { 0 } else { ALL });
        assert_eq!(format!("{:x}", context.trace), TRACE[1..]);
        assert_eq!(context.parent, Some(0xb7ad_6b71_6920_3331));
        assert_ne!(Some(context.span), context.parent);
        assert_eq!(context.is_sampled(), sampled, "{flags}");
        assert!(goes_on(&headers, &context));
        assert_eq!(text(&headers, "tracestate"), Some("a=1,b=2"));
        assert_eq!(context.state, if sampled { "a=1,b=2" } else { "" });
        assert!(headers["traceparent"].is_sensitive());
    }
}

#[test]
fn versions_to_come_count_by_their_first_fields() {
    for (value, counts) in [
        (format!("cc-{TRACE}-{SPAN}-01"), true),
        (format!("cc-{TRACE}-{SPAN}-01-what=ever"), true),
        (format!("cc-{TRACE}-{SPAN}-01.what"), false),
        (format!("00-{TRACE}-{SPAN}-01-what"), false),
        (format!("ff-{TRACE}-{SPAN}-01"), false),
    ] {
        let mut headers = headers(&[("traceparent", &value)]);
        let context = begin(&mut headers, 0);
        assert_eq!(context.parent.is_some(), counts, "{value}");
        assert!(goes_on(&headers, &context));
    }
}

#[test]
fn what_is_malformed_begins_a_new_trace() {
    let good = format!("00-{TRACE}-{SPAN}-01");
    let zeros = "0".repeat(32);
    for values in [
        vec![String::new()],
        vec!["00".to_owned()],
        vec![good.to_uppercase()],
        vec![format!("00-{zeros}-{SPAN}-01")],
        vec![format!("00-{TRACE}-{}-01", &zeros[..16])],
        vec![format!("00-{TRACE}-{SPAN}-0g")],
        vec![format!("00-{TRACE}_{SPAN}-01")],
        vec![format!("0x-{TRACE}-{SPAN}-01")],
        vec![format!(" {good}")],
        vec![format!("{good},{good}")],
        vec![good.clone(), good.clone()],
    ] {
        let b3 = format!("{TRACE}-{SPAN}-1");
        let mut fields: Vec<(&'static str, &str)> = vec![("tracestate", "a=1"), ("b3", &b3)];
        fields.extend(values.iter().map(|value| ("traceparent", &**value)));
        let mut headers = headers(&fields);
        let context = begin(&mut headers, 0);
        assert_eq!(context.parent, None, "{values:?}");
        assert_ne!(format!("{:032x}", context.trace), TRACE);
        assert!(!context.is_sampled());
        assert!(goes_on(&headers, &context));
        assert_eq!(text(&headers, "tracestate"), None);
        let expect = format!("{:032x}-{:016x}-0", context.trace, context.span);
        assert_eq!(text(&headers, "b3"), Some(&*expect));
    }
}

#[test]
fn a_state_goes_on_within_bounds_and_with_its_parent_only() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let (most, more) = (format!("a={}", "b".repeat(510)), "c=1");
    let entries = vec!["a=1"; 33].join(",");
    for (states, goes_on) in [
        (vec!["a=1", "b=2"], true),
        (vec![&*most], true),
        (vec![&*most, more], false),
        (vec![&*entries], false),
        (vec![], false),
    ] {
        let mut fields: Vec<(&'static str, &str)> = vec![("traceparent", &parent)];
        fields.extend(states.iter().map(|state| ("tracestate", *state)));
        let mut all = headers(&fields);
        let context = begin(&mut all, 0);
        assert_eq!(all.contains_key("tracestate"), goes_on, "{states:?}");
        assert_eq!(!context.state.is_empty(), goes_on);
    }
    let b3 = format!("{TRACE}-{SPAN}-1");
    let mut all = headers(&[("b3", &b3), ("tracestate", "a=1")]);
    begin(&mut all, 0);
    assert!(!all.contains_key("tracestate"));
}

#[test]
fn b3_goes_on_in_its_own_form_beside_the_other() {
    let value = format!("{TRACE}-{SPAN}-1-{SPAN}");
    let mut one = headers(&[("b3", &value)]);
    let context = begin(&mut one, 0);
    assert!(context.is_sampled() && goes_on(&one, &context));
    let expect = format!("{TRACE}-{:016x}-1-{SPAN}", context.span);
    assert_eq!(text(&one, "b3"), Some(&*expect));
    assert!(!one.contains_key("x-b3-traceid"));

    let mut many = headers(&[
        ("x-b3-traceid", &TRACE[16..]),
        ("x-b3-spanid", SPAN),
        ("x-b3-parentspanid", "00000000000000ff"),
        ("x-b3-sampled", "0"),
    ]);
    let context = begin(&mut many, ALL);
    assert!(!context.is_sampled() && goes_on(&many, &context));
    let padded = format!("{}{}", "0".repeat(16), &TRACE[16..]);
    assert_eq!(text(&many, "x-b3-traceid"), Some(&*padded));
    assert_eq!(
        text(&many, "x-b3-spanid"),
        Some(&*format!("{:016x}", context.span))
    );
    assert_eq!(text(&many, "x-b3-parentspanid"), Some(SPAN));
    assert_eq!(text(&many, "x-b3-sampled"), Some("0"));
    assert!(!many.contains_key("b3"));
}

#[test]
fn a_decision_alone_counts_and_debug_stays_debug() {
    for (name, value, sampled) in [
        ("b3", "0", Some(false)),
        ("b3", "1", Some(true)),
        ("b3", "d", Some(true)),
        ("b3", "x", None),
        ("x-b3-sampled", "1", Some(true)),
        ("x-b3-sampled", "true", Some(true)),
        ("x-b3-sampled", "false", Some(false)),
        ("x-b3-sampled", "maybe", None),
        ("x-b3-flags", "1", Some(true)),
    ] {
        for usual in [0, ALL] {
            let mut headers = headers(&[(name, value)]);
            let context = begin(&mut headers, usual);
            assert_eq!(context.parent, None);
            assert_eq!(
                context.is_sampled(),
                sampled.unwrap_or(usual > 0),
                "{name}: {value}"
            );
        }
    }
    let mut debug = headers(&[("x-b3-flags", "1")]);
    begin(&mut debug, 0);
    assert_eq!(text(&debug, "x-b3-flags"), Some("1"));
    assert!(!debug.contains_key("x-b3-sampled"));
}

#[test]
fn malformed_b3_begins_a_new_trace() {
    let zeros = "0".repeat(16);
    for value in [
        String::new(),
        TRACE.to_owned(),
        format!("{TRACE}-"),
        format!("{}-{SPAN}", &TRACE[1..]),
        format!("{TRACE}-{}", &SPAN[1..]),
        format!("{zeros}-{SPAN}"),
        format!("{TRACE}-{zeros}"),
        format!("{TRACE}-{SPAN}-2"),
        format!("{TRACE}-{SPAN}-1-x"),
        format!("{TRACE}-{SPAN}-1-{SPAN}-1"),
    ] {
        let mut headers = headers(&[("b3", &value)]);
        let context = begin(&mut headers, 0);
        assert_eq!(context.parent, None, "{value}");
        assert!(goes_on(&headers, &context));
    }
    let half = headers(&[("x-b3-traceid", TRACE), ("x-b3-sampled", "1")]);
    let twice = headers(&[
        ("x-b3-traceid", TRACE),
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
    ]);
    for mut headers in [half, twice] {
        let context = begin(&mut headers, 0);
        assert!(context.parent.is_none() && !context.is_sampled());
        assert!(goes_on(&headers, &context));
    }
}

#[test]
fn so_many_of_a_million_are_sampled() {
    for per_million in [0, 10_000, 500_000, ALL] {
        let mut count = 0;
        for _ in 0..20_000 {
            let chosen = begin(&mut HeaderMap::new(), per_million).is_sampled();
            count += u32::from(chosen);
        }
        // Five standard deviations of 20,000 draws at most.
        let expect = per_million / 50;
        assert!(
            count.abs_diff(expect) <= if per_million % ALL == 0 { 0 } else { 360 },
            "{count}"
        );
    }
    assert!(!is_chosen(u128::MAX, 0));
    assert!(is_chosen(u128::MAX, 1));
    assert!(is_chosen(1 << 100, ALL));
    assert!(!is_chosen(u128::MAX << RANDOM_BITS, ALL - 1));
}

proptest! {
    /// Whatever callers write, what goes on is one whole context, and theirs only where it was whole.
    #[test]
    fn whatever_comes_one_context_goes_on(
        fields in prop::collection::vec((0_usize..8, "[ -~]{0,64}|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-0[01]"), 0..6),
    ) {
        const NAMES: [&str; 8] = [
            "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled",
            "x-b3-flags",
        ];
        let fields: Vec<_> = fields.iter().map(|(at, value)| (NAMES[*at], value.trim())).collect();
        let mut all = headers(&fields);
        let context = begin(&mut all, 500_000);
        prop_assert!(goes_on(&all, &context));
        prop_assert!(context.trace != 0 && context.span != 0);
        // The next one reads the same.
        let mut next = all.clone();
        let after = begin(&mut next, 500_000);
        prop_assert_eq!(after.trace, context.trace);
        prop_assert_eq!(after.parent, Some(context.span));
        prop_assert_eq!(after.is_sampled(), context.is_sampled());
        // So does one that knows B3 only.
        let b3 = NAMES[2..].iter().any(|name| all.contains_key(*name));
        if b3 {
            all.remove("traceparent");
            let mut next = all;
            let after = begin(&mut next, 500_000);
            prop_assert_eq!(after.trace, context.trace);
            prop_assert_eq!(after.parent, Some(context.span));
            prop_assert_eq!(after.is_sampled(), context.is_sampled());
        }
    }
}
