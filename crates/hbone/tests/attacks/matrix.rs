//! Every pair of frames in every state of a stream, then random triples: nothing may leak.

use std::time::Duration;

use super::bed::{Bed, HOLD, Mode, REFUSE};
use super::floods::NOISE;
use super::wire::*;

/// Random triples tried.
const TRIPLES: u32 = 5000;
/// Connections at a time.
const WIDTH: usize = 16;

/// One frame of each type for stream `id`, well-formed as far as that goes, and two odd ones.
fn frames(id: u32) -> Vec<Vec<u8>> {
    let block = connect_block(HOLD);
    vec![
        frame(DATA, 0, id, b"abc"),
        frame(DATA, END_STREAM, id, b"abc"),
        frame(HEADERS, END_HEADERS, id, &block),
        frame(HEADERS, END_HEADERS | END_STREAM, id, &block),
        frame(HEADERS, 0, id, &block),
        frame(PRIORITY, 0, id, &[0, 0, 0, 9, 1]),
        reset(id, CANCEL),
        frame(SETTINGS, 0, 0, &setting(4, 70_000)),
        frame(SETTINGS, ACK, 0, &[]),
        frame(
            PUSH_PROMISE,
            END_HEADERS,
            id,
            &[&[0, 0, 0, 2][..], &block].concat(),
        ),
        frame(PING, 0, 0, &[5; 8]),
        frame(GOAWAY, 0, 0, &[0; 8]),
        window_update(id, 1000),
        window_update(0, 1000),
        frame(CONTINUATION, END_HEADERS, id, &[]),
        frame(0xaa, 0, id, b"odd"),
    ]
}

/// What brings stream 5 into each state.
fn states() -> Vec<(&'static str, Vec<u8>)> {
    let block = connect_block(HOLD);
    vec![
        ("idle", Vec::new()),
        ("open", connect(5, HOLD)),
        (
            "half closed",
            frame(HEADERS, END_HEADERS | END_STREAM, 5, &block),
        ),
        ("closed by the server", connect(5, REFUSE)),
        ("reset", [connect(5, HOLD), reset(5, CANCEL)].concat()),
    ]
}

/// Sends, says that it is over, and reads what comes: some orderly end, in time, and codes that
/// RFC 9113 knows.
async fn run(mut raw: Raw, bytes: Vec<u8>) {
    // With a PING behind it, so that there is something to wait for if all is well.
    let ping = frame(PING, 0, 0, b"the last");
    raw.push(&[bytes, ping].concat(), PATIENCE).await;
    while let Some(frame) = raw.next().await {
        if matches!(frame.kind, GOAWAY | RST_STREAM) {
            assert!(frame.code() <= 13, "{frame:?}");
        }
        if frame.kind == PING && frame.flags & ACK != 0 && frame.payload == b"the last" {
            return;
        }
    }
}

/// Cheap and reproducible.
fn dice(state: &mut u32) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state as usize
}

async fn run_all(bed: &mut Bed, cases: Vec<Vec<u8>>) {
    let mut cases = cases.into_iter();
    for n in 0.. {
        let batch: Vec<_> = cases.by_ref().take(WIDTH).collect();
        if batch.is_empty() {
            return;
        }
        // Another identity each time: resets on purpose count against one.
        let certificate = bed.certificate(&format!("front{n}"));
        let mut tasks = Vec::new();
        for bytes in batch {
            let raw = bed.tls_as(&certificate).await.expect("a handshake failed");
            let hello = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
            tasks.push(run(raw, [hello, bytes].concat()));
        }
        let count = tasks.len();
        for task in tasks {
            task.await;
        }
        for _ in 0..count {
            let (reason, text) = bed.end().await;
            assert_ne!(reason, "internal", "{text}");
        }
    }
}

#[tokio::test]
async fn at_31_pairs_and_triples_of_frames_leave_nothing_behind() {
    let mut bed = Bed::new(Mode::Usual).await;
    let frames = frames(5);
    let mut pairs = Vec::new();
    for (_, state) in states() {
        for first in &frames {
            for second in &frames {
                pairs.push([&state[..], first, second].concat());
            }
        }
    }
    let count = pairs.len();
    run_all(&mut bed, pairs).await;
    bed.all_back().await;
    let (memory, descriptors) = (bed.memory(), bed.descriptors());
    let mut seed = 0x9e37_79b9;
    let states = states();
    let triples = (0..TRIPLES).map(|_| {
        let mut case = states[dice(&mut seed) % states.len()].1.clone();
        for _ in 0..3 {
            case.extend(&frames[dice(&mut seed) % frames.len()]);
        }
        case
    });
    run_all(&mut bed, triples.collect()).await;
    bed.all_back().await;
    let growth = bed.memory().saturating_sub(memory);
    println!("AT-31: {count} pairs, {TRIPLES} triples; {growth} bytes more after the triples");
    assert!(growth < 2 * NOISE, "{growth}");
    assert_eq!(bed.descriptors(), descriptors);
    // Nobody is worse off.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut raw = bed.raw_of("back").await;
    raw.serves(1).await;
}
