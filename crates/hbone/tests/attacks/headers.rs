//! Header blocks that are large, endless, or grow when unpacked.

use super::bed::{Bed, Before, ECHO, HOLD, Mode};
use super::floods::NOISE;
use super::wire::*;

const CAP: usize = 16 * 1024;

#[tokio::test]
async fn at_03_continuations_without_end() {
    let mut bed = Bed::new(Mode::Usual).await;
    let open = |stream| frame(HEADERS, 0, stream, &connect_block(HOLD));
    let mut filler = Vec::new();
    while filler.len() < 4000 {
        literal(&mut filler, Err(b"x"), &[b'y'; 100]);
    }
    for (name, piece, most) in [
        ("long", filler, CAP / 4000 + 6),
        ("empty", Vec::new(), 7),
        ("one byte", vec![0], 7),
    ] {
        let before = Before::of(&bed);
        let mut raw = bed.raw().await;
        assert!(raw.send(&open(1)).await);
        let flood = frame(CONTINUATION, 0, 1, &piece).repeat(most);
        raw.push(&flood, PATIENCE).await;
        assert_eq!(raw.goodbye().await, Some(ENHANCE_YOUR_CALM), "{name}");
        let (reason, text) = bed.end().await;
        println!("{name}: at most {most} frames, {text}");
        assert_eq!(reason, "peer_abuse", "{name}");
        before.costs(&bed, name, raw.sent, NOISE);
    }
    // One frame header that announces too much is enough; its payload is never waited for.
    let mut raw = bed.raw().await;
    let head = &frame(HEADERS, END_HEADERS, 1, &vec![0; 200_000])[..9];
    assert!(raw.send(head).await);
    assert_eq!(raw.goodbye().await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(bed.end().await.0, "peer_abuse");
    bed.all_back().await;
}

#[tokio::test]
async fn at_06_header_bombs() {
    let mut bed = Bed::new(Mode::Usual).await;
    // One entry of 3,000 bytes put into the table, then named again and again, a byte each.
    let mut bomb = connect_block(HOLD);
    bomb.push(0x40);
    bomb.push(1);
    bomb.push(b'x');
    let mut value = Vec::new();
    literal(&mut value, Ok(0), &[b'y'; 3000]);
    bomb.extend(&value[1..]);
    let mut small = bomb.clone();
    small.extend([0xbe; 40]);
    bomb.extend([0xbe; 8000]);
    let mut cookies = connect_block(HOLD);
    for _ in 0..2000 {
        literal(&mut cookies, Ok(32), b"a=b");
    }
    let before = Before::of(&bed);
    let mut sent = 0;
    for (name, block, ends) in [
        ("twice the cap", small, false),
        ("many times the cap", bomb, true),
        ("cookies", cookies, false),
    ] {
        let mut raw = bed.raw().await;
        assert!(raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await);
        if ends {
            let code = raw.goodbye().await;
            assert!(
                matches!(code, Some(ENHANCE_YOUR_CALM | COMPRESSION_ERROR)),
                "{name}: {code:?}"
            );
        } else {
            let answer = loop {
                let frame = raw.next().await.expect("the connection has ended");
                if matches!(frame.kind, HEADERS | RST_STREAM) {
                    break frame;
                }
            };
            println!("{name}: {answer:?}");
            raw.serves(3).await;
        }
        sent += raw.sent;
        drop(raw);
        println!("{name}: {:?}", bed.end().await);
    }
    bed.all_back().await;
    before.costs(&bed, "AT-06", sent, NOISE);
}

#[tokio::test]
async fn at_07_the_header_table_stays_small() {
    let mut bed = Bed::new(Mode::Usual).await;
    let before = Before::of(&bed);
    let mut raw = bed.raw().await;
    // 50 requests, each putting 8 KiB into a table of 4.
    for n in 0..50_u32 {
        let mut block = connect_block(ECHO);
        for i in 0..8 {
            block.push(0x40);
            let mut entry = Vec::new();
            literal(
                &mut entry,
                Err(format!("x{n}-{i}").as_bytes()),
                &[b'z'; 1000],
            );
            block.extend(&entry[1..]);
        }
        assert!(
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * n, &block))
                .await
        );
    }
    raw.serves(1001).await;
    before.costs(&bed, "AT-07", raw.sent, NOISE);
    // An entry that is long gone.
    let mut block = connect_block(HOLD);
    block.extend([0xff, 0x80, 0x02]);
    assert!(raw.send(&frame(HEADERS, END_HEADERS, 1003, &block)).await);
    assert!(matches!(
        raw.goodbye().await,
        Some(COMPRESSION_ERROR | PROTOCOL_ERROR)
    ));
    // A table larger than we offered.
    let mut raw = bed.raw().await;
    let mut block = vec![0x3f, 0xe2, 0x1f];
    block.extend(connect_block(HOLD));
    assert!(raw.send(&frame(HEADERS, END_HEADERS, 1, &block)).await);
    assert!(matches!(
        raw.goodbye().await,
        Some(COMPRESSION_ERROR | PROTOCOL_ERROR)
    ));
    bed.all_back().await;
}
