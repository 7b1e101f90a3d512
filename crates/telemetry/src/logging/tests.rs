use super::*;
use crate::access::{Connection, Direction, Party};
use isobar_types::{Identity, Reason};
use std::time::Duration;

fn capture(format: LogFormat, emit: impl FnOnce()) -> Vec<String> {
    let (output, next) = Output::captured();
    let subscriber = tracing_subscriber::registry().with(LineLayer::new(format, output));
    tracing::subscriber::with_default(subscriber, emit);
    std::iter::from_fn(next).collect()
}

fn front() -> Identity {
    "spiffe://cluster.local/ns/web/sa/front".parse().unwrap()
}

fn connection(source: &Identity) -> Connection<'_> {
    Connection {
        direction: Direction::Outbound,
        source_address: "10.1.2.9:41822".parse().unwrap(),
        source: Party {
            workload: Some("front-6d"),
            namespace: Some("web"),
            identity: Some(source),
            cluster: None,
        },
        destination_address: Some("10.1.7.20:15008".parse().unwrap()),
        hbone_address: Some("10.1.7.20:8080"),
        service: None,
        destination: Party::default(),
        bytes_sent: 412,
        bytes_received: 9021,
        duration: Duration::from_micros(13_900),
        reason: Reason::Complete,
        error: None,
    }
}

#[test]
fn access_line_has_istios_keys_in_order() {
    let lines = capture(LogFormat::Text, || connection(&front()).log());
    let columns: Vec<_> = lines[0].split('\t').collect();
    assert_eq!(columns[1..4], ["info", "access", "connection complete"]);
    assert_eq!(
        columns[4],
        "src.addr=10.1.2.9:41822 src.workload=\"front-6d\" src.namespace=\"web\" \
         src.identity=\"spiffe://cluster.local/ns/web/sa/front\" dst.addr=10.1.7.20:15008 \
         dst.hbone_addr=10.1.7.20:8080 direction=\"outbound\" bytes_sent=412 bytes_recv=9021 \
         duration=\"13ms\" reason=\"complete\""
    );
    assert!(
        columns[0].ends_with('Z') && columns[0].len() == 27,
        "{}",
        columns[0]
    );
}

#[test]
fn a_failed_connection_is_an_error() {
    let source = front();
    let mut failed = connection(&source);
    failed.reason = Reason::PolicyDenied;
    failed.error = Some("denied\nby x");
    let lines = capture(LogFormat::Json, || failed.log());
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["scope"], "access");
    assert_eq!(line["bytes_recv"], 9021);
    assert_eq!(line["error"], "denied\nby x");
    assert_eq!(lines.len(), 1);
}

#[test]
fn spans_follow_the_target_and_text_stays_on_one_line() {
    let lines = capture(LogFormat::Text, || {
        let span = tracing::info_span!("conn", id = 7);
        let _inside = span.enter();
        tracing::warn!(peer = "a\tb", "odd\nthing");
    });
    let columns: Vec<_> = lines[0].split('\t').collect();
    assert!(
        columns[2].ends_with("logging::tests:conn{id=7}"),
        "{}",
        columns[2]
    );
    assert_eq!(columns[3..], ["odd\\nthing", "peer=\"a\\tb\""]);
}

#[test]
fn values_are_written_as_the_library_does() {
    for text in [
        "", "plain ~!", "it's", "a\"b", "a\\b", "a\tb", "\u{fc}", "\u{7f}",
    ] {
        let lines = capture(LogFormat::Text, || {
            tracing::warn!(text, less = -7, most = u64::MAX, "said");
        });
        let expected = format!("text={text:?} less=-7 most={}", u64::MAX);
        assert_eq!(lines[0].split('\t').next_back(), Some(&*expected));
    }
}

#[test]
fn filter_takes_both_separators_and_later_directives_win() {
    let mut filter = Filter::parse("").unwrap();
    assert_eq!(filter.to_string(), "info");
    filter.add("debug,access=off,ztunnel::xds:trace").unwrap();
    assert_eq!(filter.to_string(), "access=off,ztunnel::xds=trace,debug");
    let targets = filter.targets();
    let trace = tracing::Level::TRACE;
    assert!(targets.would_enable("isobar_xds::client", &trace));
    assert!(targets.would_enable("ztunnel::xds", &trace));
    assert!(!targets.would_enable("access", &tracing::Level::ERROR));
    assert!(!targets.would_enable("isobar_hbone", &trace));

    let before = filter.clone();
    for bad in ["loud", "access=", "a=b=c", "warn,x:y"] {
        assert!(filter.add(bad).is_err(), "{bad}");
    }
    assert_eq!(filter, before);
}

#[test]
fn r_26_hostile_text_is_escaped_in_both_forms() {
    let hostile = "a\r\n2026\tinfo\x1b[2J\u{9b}1m\u{202e}\u{2028}\u{7f}z";
    for format in [LogFormat::Text, LogFormat::Json] {
        let lines = capture(format, || {
            tracing::warn!(name = hostile, shown = %hostile, error = hostile, "{hostile}");
        });
        assert_eq!(lines.len(), 1);
        let bad = |c: char| c.is_control() && c != '\t' || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!lines[0].contains(bad), "{:?}", lines[0]);
        if format == LogFormat::Text {
            assert_eq!(lines[0].matches('\t').count(), 4, "{:?}", lines[0]);
        }
    }
    let long = "x".repeat(1 << 20);
    let lines = capture(LogFormat::Json, || tracing::warn!(long, "{long}"));
    assert!(lines[0].len() < 40_000);
    println!(
        "R-26: a line of 2 MiB is written in {} bytes",
        lines[0].len()
    );
}

#[test]
fn what_a_program_was_built_without_is_known_of_a_filter() {
    let most = tracing::level_filters::LevelFilter::DEBUG;
    for (text, exceeds) in [
        ("debug", false),
        ("info,h2=debug", false),
        ("trace", true),
        ("warn,h2=trace", true),
        ("off", false),
    ] {
        assert_eq!(
            Filter::parse(text).unwrap().exceeds(most),
            exceeds,
            "{text}"
        );
    }
}
