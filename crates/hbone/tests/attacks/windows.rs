//! Flow control used as a weapon, and the small writes that look like one and are none.

use std::time::{Duration, Instant};

use super::bed::{Bed, Before, ECHO, HOLD, Mode, NEVER_READ, PAUSE, SEND_FOR_EVER};
use super::floods::NOISE;
use super::wire::*;

#[tokio::test]
async fn at_08_empty_and_tiny_data() {
    let mut bed = Bed::new(Mode::Usual).await;
    let mut raw = bed.raw().await;
    assert!(raw.send(&connect(1, NEVER_READ)).await);
    // Some empty frames harm nobody.
    assert!(raw.send(&frame(DATA, 0, 1, &[]).repeat(16)).await);
    raw.serves(3).await;
    raw.push(&frame(DATA, 0, 1, &[]).repeat(5000), PATIENCE)
        .await;
    assert_eq!(raw.goodbye().await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(bed.end().await.0, "peer_abuse");

    // Single bytes that nobody reads: fine up to the budget, and bounded by it.
    let before = Before::of(&bed);
    let mut raw = bed.raw().await;
    assert!(raw.send(&connect(1, NEVER_READ)).await);
    let byte = frame(DATA, 0, 1, b"x");
    // In waves: what arrives within one turn of the loop has a budget of its own.
    for wave in 0..9 {
        assert!(raw.send(&byte.repeat(5000)).await);
        raw.serves(3 + 2 * wave).await;
    }
    let kept = before.costs(&bed, "AT-08", raw.sent, NOISE);
    println!(
        "AT-08: 45000 unread single bytes, {} bytes of memory each",
        kept / 45_000
    );
    drop(raw);
    bed.all_back().await;
}

/// One byte at a time over 100 streams to readers that pause: people typing, not an attack.
#[tokio::test]
async fn r_21_interactive_tunnels_survive_the_guards() {
    let mut bed = Bed::new(Mode::Usual).await;
    let mut raw = bed.raw().await;
    let ids: Vec<u32> = (0..100).map(|n| 1 + 2 * n).collect();
    let opens: Vec<u8> = ids.iter().flat_map(|id| connect(*id, PAUSE)).collect();
    assert!(raw.send(&opens).await);
    // 200 a second on each stream for the 2 s in which nobody reads, then as many again.
    let round: Vec<u8> = ids
        .iter()
        .flat_map(|id| frame(DATA, 0, *id, b"x"))
        .collect();
    let start = Instant::now();
    for _ in 0..400 {
        assert!(raw.send(&round).await);
    }
    raw.serves(1001).await;
    let early = start.elapsed();
    tokio::time::sleep(Duration::from_millis(2500).saturating_sub(early)).await;
    for n in 0..400 {
        assert!(raw.send(&round).await);
        if n % 100 == 0 {
            raw.serves(2001 + n).await;
        }
    }
    raw.serves(3001).await;
    println!(
        "R-21: 80000 single bytes over 100 streams, 40000 of them unread at once: no guard tripped"
    );
    // The long form: ten minutes at the same pace.
    let minutes = form([0, 10]);
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    for minute in 0..minutes {
        for _ in 0..12_000 {
            pace.tick().await;
            assert!(raw.send(&round).await);
        }
        raw.serves(4001 + 2 * minute).await;
        progress("R-21, minutes", minute + 1, minutes);
    }
    println!("R-21: {minutes} min more at 200 a second on each stream");
    assert!(bed.open().await.0 == 1);
}

#[tokio::test]
async fn at_09_dribbled_windows_hold_little_memory() {
    let mut bed = Bed::new(Mode::Usual).await;
    let before = Before::of(&bed);
    // Streams start with no window at all, then get one byte at a time.
    let mut raw = bed.raw_with(&setting(4, 0)).await;
    let opens: Vec<u8> = (0..100)
        .flat_map(|n| connect(1 + 2 * n, SEND_FOR_EVER))
        .collect();
    assert!(raw.send(&opens).await);
    for _ in 0..20 {
        let dribble: Vec<u8> = (0..100).flat_map(|n| window_update(1 + 2 * n, 1)).collect();
        assert!(raw.send(&dribble).await);
        for _ in 0..100 {
            let data = raw.next_of(DATA).await.expect("the connection has ended");
            assert_eq!(data.payload.len(), 1);
        }
    }
    let growth = before.costs(&bed, "AT-09", raw.sent, 100 * 128 * 1024);
    println!("AT-09: {} bytes a stream", growth / 100);
    drop(raw);
    bed.all_back().await;
}

#[tokio::test]
async fn at_10_a_window_that_never_opens_stops_us_and_nobody_else() {
    let mut bed = Bed::new(Mode::Usual).await;
    let before = Before::of(&bed);
    // Streams may have all they like, the connection stays at 64 KiB.
    let mut raw = bed.raw_with(&setting(4, 0x7fff_ffff)).await;
    let opens: Vec<u8> = (0..100)
        .flat_map(|n| connect(1 + 2 * n, SEND_FOR_EVER))
        .collect();
    assert!(raw.send(&opens).await);
    let mut bytes = 0;
    while bytes < 65_535 {
        bytes += raw.next_of(DATA).await.unwrap().payload.len();
    }
    assert_eq!(bytes, 65_535);
    let mut honest = bed.raw().await;
    honest.serves(1).await;
    let growth = before.costs(&bed, "AT-10", raw.sent, 100 * 128 * 1024);
    println!("AT-10: {} bytes a stream", growth / 100);
    drop((raw, honest));
    bed.all_back().await;
}

/// The most an identity can make us hold for sending: open windows, and it reads nothing. Its streams
/// share one budget, over all its connections, and each has a frame of its own beyond it.
#[tokio::test]
async fn r_08_a_peer_that_never_reads_holds_a_bounded_amount() {
    let mut bed = Bed::new(Mode::Usual).await;
    let before = Before::of(&bed);
    let opens: Vec<u8> = (0..200)
        .flat_map(|n| connect(1 + 2 * n, SEND_FOR_EVER))
        .collect();
    let mut held = Vec::new();
    for (streams, most) in [(200, 12 << 20), (400, 18 << 20)] {
        let mut raw = bed.raw_with(&setting(4, 0x7fff_ffff)).await;
        assert!(raw.send(&window_update(0, 0x7000_0000)).await);
        assert!(raw.send(&opens).await);
        held.push(raw);
        let mut honest = bed.raw_of("back").await;
        honest.serves(1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = held.iter().map(|raw| raw.sent).sum();
        let growth = before.costs(&bed, "R-08 unread", sent, most);
        println!(
            "R-08: {} KiB for {streams} streams that are not read",
            growth / 1024
        );
        held.push(honest);
    }
    drop(held);
    bed.all_back().await;
}

#[tokio::test]
async fn at_11_one_stream_cannot_eat_the_connection() {
    let mut bed = Bed::new(Mode::Usual).await;
    let mut raw = bed.raw().await;
    // The connection's window opens by a frame of its own (RFC 9113 section 6.9.2), which may still be on its way.
    let opened = raw.next_of(WINDOW_UPDATE).await.unwrap();
    assert!(opened.stream == 0 && opened.code() > 8 << 20);
    assert!(raw.send(&connect(1, NEVER_READ)).await);
    // A whole stream window into a stream that nobody reads.
    let block = frame(DATA, 0, 1, &vec![0; 16_384]);
    assert!(raw.send(&block.repeat(256)).await);
    assert!(raw.send(&connect(3, ECHO)).await);
    let mut echoed = 0;
    for _ in 0..64 {
        assert!(raw.send(&frame(DATA, 0, 3, &[1; 16_000])).await);
        assert!(
            raw.send(&[window_update(0, 16_000), window_update(3, 16_000)].concat())
                .await
        );
        let goal = echoed + 16_000;
        while echoed < goal {
            echoed += raw.next_of(DATA).await.unwrap().payload.len();
        }
    }
    // One byte beyond the stream's window is an error of that stream alone.
    assert!(raw.send(&frame(DATA, 0, 1, b"x")).await);
    let reset = raw.next_of(RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code()), (1, FLOW_CONTROL_ERROR));
    raw.serves(5).await;
    drop(raw);
    bed.all_back().await;
}

#[tokio::test]
async fn at_12_windows_that_overflow() {
    let mut bed = Bed::new(Mode::Usual).await;
    let mut raw = bed.raw().await;
    assert!(raw.send(&connect(1, HOLD)).await);
    assert!(raw.send(&window_update(1, 0x7fff_ffff)).await);
    let reset = raw.next_of(RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code()), (1, FLOW_CONTROL_ERROR));
    raw.serves(3).await;
    assert!(raw.send(&window_update(0, 0x7fff_ffff)).await);
    assert_eq!(raw.goodbye().await, Some(FLOW_CONTROL_ERROR));

    // A stream's window at its maximum, then SETTINGS that push it beyond.
    let mut raw = bed.raw().await;
    assert!(raw.send(&connect(1, HOLD)).await);
    assert!(raw.send(&window_update(1, 0x7fff_ffff - 65_535)).await);
    assert!(raw.send(&frame(SETTINGS, 0, 0, &setting(4, 65_536))).await);
    assert_eq!(raw.goodbye().await, Some(FLOW_CONTROL_ERROR));
    let mut raw = bed.raw().await;
    assert!(
        raw.send(&frame(SETTINGS, 0, 0, &setting(4, 0x8000_0000)))
            .await
    );
    assert!(matches!(
        raw.goodbye().await,
        Some(FLOW_CONTROL_ERROR | PROTOCOL_ERROR)
    ));

    // Windows that become negative only wait.
    let mut raw = bed.raw().await;
    assert!(raw.send(&connect(1, SEND_FOR_EVER)).await);
    let mut bytes = 0;
    while bytes < 65_535 {
        bytes += raw.next_of(DATA).await.unwrap().payload.len();
    }
    assert!(raw.send(&frame(SETTINGS, 0, 0, &setting(4, 0))).await);
    assert!(raw.send(&window_update(0, 100)).await);
    raw.serves(3).await;
    assert!(raw.send(&window_update(1, 65_536)).await);
    assert_eq!(raw.next_of(DATA).await.unwrap().payload.len(), 1);
    drop(raw);
    bed.all_back().await;
}
