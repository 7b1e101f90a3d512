//! Many small frames, each cheap for whoever sends it.

use std::time::Duration;

use super::bed::{Bed, Before, HOLD, Mode, NEVER_ANSWER};
use super::wire::*;

/// Bytes that a process may gain between two looks without anybody attacking it.
pub(crate) const NOISE: usize = 2 << 20;

#[tokio::test]
async fn at_01_rapid_reset_closes_the_connection() {
    let mut bed = Bed::new(Mode::Usual).await;
    let before = Before::of(&bed);
    let mut raw = bed.raw().await;
    let mut pairs = Vec::new();
    for stream in (1..500).step_by(2) {
        pairs.extend(connect(stream, NEVER_ANSWER));
        pairs.extend(reset(stream, CANCEL));
    }
    // 250 pairs, and not one more, are enough.
    raw.push(&pairs, PATIENCE).await;
    assert_eq!(raw.goodbye().await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(bed.end().await.0, "peer_abuse");
    bed.all_back().await;
    before.costs(&bed, "AT-01", raw.sent, NOISE);
}

/// Ways to make the server reset a stream, 256 times over.
fn provocations() -> Vec<(&'static str, Vec<u8>)> {
    let mut loud = connect_block(NEVER_ANSWER);
    literal(&mut loud, Err(b"Upper"), b"x");
    let ids = || (1..512).step_by(2);
    let each = |make: &dyn Fn(u32) -> Vec<u8>| ids().flat_map(make).collect::<Vec<u8>>();
    let then = |stream: u32, more: Vec<u8>| [connect(stream, NEVER_ANSWER), more].concat();
    let block = connect_block(NEVER_ANSWER);
    vec![
        (
            "overflow",
            each(&|id| then(id, window_update(id, 0x7fff_ffff))),
        ),
        ("zero", each(&|id| then(id, window_update(id, 0)))),
        (
            "self",
            each(&|id| {
                then(
                    id,
                    frame(
                        PRIORITY,
                        0,
                        id,
                        &[id.to_be_bytes().to_vec(), vec![0]].concat(),
                    ),
                )
            }),
        ),
        (
            "late data",
            each(&|id| {
                let whole = frame(HEADERS, END_HEADERS | END_STREAM, id, &block);
                [whole, frame(DATA, 0, id, b"x")].concat()
            }),
        ),
        (
            "late headers",
            each(&|id| {
                let whole = frame(HEADERS, END_HEADERS | END_STREAM, id, &block);
                [whole.clone(), whole].concat()
            }),
        ),
        (
            "malformed",
            each(&|id| frame(HEADERS, END_HEADERS, id, &loud)),
        ),
        // The first 200 are held, the others refused.
        (
            "refused",
            (1..1200)
                .step_by(2)
                .flat_map(|id| connect(id, HOLD))
                .collect(),
        ),
    ]
}

#[tokio::test]
async fn at_02_made_resets_close_the_connection() {
    let mut bed = Bed::new(Mode::Usual).await;
    for (name, frames) in provocations() {
        let before = Before::of(&bed);
        let mut raw = bed.raw().await;
        raw.push(&frames, PATIENCE).await;
        let code = raw.goodbye().await;
        assert!(
            matches!(
                code,
                Some(ENHANCE_YOUR_CALM | PROTOCOL_ERROR | STREAM_CLOSED)
            ),
            "{name}: {code:?}"
        );
        let (reason, text) = bed.end().await;
        println!("{name}: code {code:?}, {reason}, {text}");
        bed.all_back().await;
        before.costs(&bed, name, raw.sent, NOISE);
    }
}

#[tokio::test]
async fn at_04_ping_floods_end_whether_read_or_not() {
    let mut bed = Bed::new(Mode::Tight).await;
    let before = Before::of(&bed);
    let pings = frame(PING, 0, 0, &[1; 8]).repeat(5000);
    let mut raw = bed.raw().await;
    raw.push(&pings, PATIENCE).await;
    assert_eq!(raw.goodbye().await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(bed.end().await.0, "peer_abuse");

    // Unread: the answers fill the sockets, then the server stops reading.
    let mut deaf = Vec::new();
    let mut sent = raw.sent;
    for _ in 0..8 {
        let mut raw = bed.raw().await;
        sent += raw.push(&pings, Duration::from_millis(200)).await;
        deaf.push(raw);
    }
    before.costs(&bed, "AT-04", sent, NOISE);
    for _ in 0..8 {
        let (reason, text) = bed.end().await;
        assert!(
            reason == "peer_abuse" || reason == "downstream_reset",
            "{text}"
        );
    }
    bed.all_back().await;
}

#[tokio::test]
async fn at_05_settings_and_goaway_floods() {
    let mut bed = Bed::new(Mode::Usual).await;
    let before = Before::of(&bed);
    let mut sent = 0;
    let many_entries = setting(0x99, 1).repeat(2000);
    let flip: Vec<u8> = (0..2000)
        .flat_map(|i| {
            frame(
                SETTINGS,
                0,
                0,
                &setting(1, if i % 2 == 0 { 0 } else { 65536 }),
            )
        })
        .collect();
    let debug = [[0; 8].to_vec(), vec![b'x'; 8000]].concat();
    for (name, frames) in [
        ("empty settings", frame(SETTINGS, 0, 0, &[]).repeat(3000)),
        (
            "many entries",
            frame(SETTINGS, 0, 0, &many_entries).repeat(1500),
        ),
        ("table flip-flop", flip),
        ("acks of nothing", frame(SETTINGS, ACK, 0, &[]).repeat(3000)),
        ("odd length", frame(SETTINGS, 0, 0, &[0; 7])),
        ("on a stream", frame(SETTINGS, 0, 1, &[])),
        ("goaways", frame(GOAWAY, 0, 0, &debug).repeat(3000)),
        ("goaway on a stream", frame(GOAWAY, 0, 1, &[0; 8])),
        ("short goaway", frame(GOAWAY, 0, 0, &[0; 4])),
    ] {
        let mut raw = bed.raw().await;
        raw.push(&frames, PATIENCE).await;
        let code = raw.goodbye().await;
        let (reason, text) = bed.end().await;
        println!("{name}: code {code:?}, {reason}: {text}");
        assert_ne!(reason, "internal", "{name}");
        sent += raw.sent;
        bed.all_back().await;
    }
    before.costs(&bed, "AT-05", sent, NOISE);
}

#[tokio::test]
async fn at_13_priority_and_unknown_frames_are_ignored_then_refused() {
    let mut bed = Bed::new(Mode::Usual).await;
    // 3 depends on 5, 5 on 3.
    let circle = [
        frame(PRIORITY, 0, 3, &[0, 0, 0, 5, 1]),
        frame(PRIORITY, 0, 5, &[0, 0, 0, 3, 1]),
    ]
    .concat();
    for (name, frames) in [
        ("PRIORITY", circle.repeat(2)),
        ("unknown", frame(0xbb, 0xff, 3, b"whatever").repeat(4)),
        ("window", window_update(0, 1).repeat(4)),
    ] {
        let mut raw = bed.raw().await;
        assert!(raw.send(&frames).await);
        raw.serves(7).await;
        raw.push(&frames.repeat(400), PATIENCE).await;
        assert_eq!(raw.goodbye().await, Some(ENHANCE_YOUR_CALM), "{name}");
        assert_eq!(bed.end().await.0, "peer_abuse", "{name}");
    }
    bed.all_back().await;
}

/// A peer that misbehaves again and again is not let in any more, whoever else is.
#[tokio::test]
async fn at_01_scores_add_up_over_the_connections_of_an_identity() {
    let mut bed = Bed::new(Mode::Usual).await;
    let flood = frame(PRIORITY, 0, 3, &[0, 0, 0, 5, 1]).repeat(1100);
    let mut connections = 0;
    let turned = loop {
        let mut raw = bed.tls("front").await;
        let hello = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[]), flood.clone()].concat();
        raw.push(&hello, PATIENCE).await;
        raw.goodbye().await;
        let (reason, text) = bed.end().await;
        assert_eq!(reason, "peer_abuse");
        if text.contains("shut out") {
            break connections;
        }
        connections += 1;
        assert!(connections < 30);
    };
    println!("shut out after {turned} connections");
    assert!((9..=20).contains(&turned));
    // Told in HTTP/2, so that it is not taken for a broken network.
    let mut raw = bed.tls("front").await;
    assert_eq!(raw.goodbye().await, Some(ENHANCE_YOUR_CALM));
    let mut other = bed.raw_of("back").await;
    other.serves(1).await;
}
