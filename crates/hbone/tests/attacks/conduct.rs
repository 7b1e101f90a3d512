//! Frames that break RFC 9113, and what has to be answered to each.

use super::bed::{Bed, HOLD, Mode};
use super::wire::*;

/// What a frame leads to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The connection goes on, the frame changes nothing.
    Ignored,
    /// The request is malformed: its stream is reset, or the connection ends.
    Malformed,
    /// The connection ends with one of these codes.
    End(&'static [u32]),
}

fn padded(kind: u8, flags: u8, stream: u32, padding: u8, rest: &[u8]) -> Vec<u8> {
    frame(kind, flags | PADDED, stream, &[&[padding], rest].concat())
}

type Cases = Vec<(&'static str, Vec<u8>, Outcome)>;

/// Cases on a connection with stream 1 open.
fn cases() -> Cases {
    let groups = [frames(), order(), unknown(), heads()];
    groups.into_iter().flatten().collect()
}

/// Frames that are not as long, or not where, they must be.
fn frames() -> Cases {
    use Outcome::{End, Ignored};
    let mut head_above_limit = frame(DATA, 0, 1, &[]);
    head_above_limit[..3].copy_from_slice(&[0x10, 0, 1]);
    vec![
        (
            "frame above our limit",
            head_above_limit,
            End(&[FRAME_SIZE_ERROR]),
        ),
        (
            "ping of 7 bytes",
            frame(PING, 0, 0, &[0; 7]),
            End(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
        ),
        (
            "ping on a stream",
            frame(PING, 0, 1, &[0; 8]),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "window update of 3 bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            End(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
        ),
        (
            "window update of zero",
            window_update(0, 0),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "reset of 3 bytes",
            frame(RST_STREAM, 0, 1, &[0; 3]),
            End(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
        ),
        (
            "reset of stream zero",
            reset(0, CANCEL),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "data on stream zero",
            frame(DATA, 0, 0, b"x"),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "padding as long as the frame",
            padded(DATA, 0, 1, 4, b"abc"),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "padding that just fits",
            padded(DATA, 0, 1, 3, b"abc"),
            Ignored,
        ),
    ]
}

/// Frames that may not come here.
fn order() -> Cases {
    use Outcome::End;
    let block = connect_block(HOLD);
    vec![
        (
            "push promise of a client",
            frame(
                PUSH_PROMISE,
                END_HEADERS,
                1,
                &[&[0, 0, 0, 2][..], &block].concat(),
            ),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &block),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "headers cut by a ping",
            [frame(HEADERS, 0, 3, &block), frame(PING, 0, 0, &[0; 8])].concat(),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "continuation of another stream",
            [
                frame(HEADERS, 0, 3, &block),
                frame(CONTINUATION, END_HEADERS, 5, &[]),
            ]
            .concat(),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "HPACK that is none",
            frame(HEADERS, END_HEADERS, 3, &[0xff; 20]),
            End(&[COMPRESSION_ERROR, PROTOCOL_ERROR]),
        ),
    ]
}

/// Settings out of range, and what is to be ignored.
fn unknown() -> Cases {
    use Outcome::{End, Ignored};
    vec![
        (
            "push switched to 2",
            frame(SETTINGS, 0, 0, &setting(2, 2)),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "frame size below the least",
            frame(SETTINGS, 0, 0, &setting(5, 100)),
            End(&[PROTOCOL_ERROR]),
        ),
        (
            "unknown setting",
            frame(SETTINGS, 0, 0, &setting(0xfe, 7)),
            Ignored,
        ),
        ("unknown type", frame(0x33, 0xff, 1, b"abc"), Ignored),
        (
            "reserved bit of the stream id",
            frame(DATA, 0, 0x8000_0001, b"x"),
            Ignored,
        ),
        ("unknown flags", frame(DATA, 0xf2, 1, b"x"), Ignored),
        (
            "ack of a ping never sent",
            frame(PING, ACK, 0, &[9; 8]),
            Ignored,
        ),
    ]
}

/// Requests that are none.
fn heads() -> Cases {
    use Outcome::Malformed;
    let with = |name: Result<u8, &[u8]>, value: &[u8]| {
        let mut block = connect_block(HOLD);
        literal(&mut block, name, value);
        frame(HEADERS, END_HEADERS, 3, &block)
    };
    let uppercase = with(Err(b"Upper"), b"x");
    let two_authorities = with(Ok(1), b"10.0.0.2:80");
    let connection_header = with(Err(b"connection"), b"close");
    vec![
        ("upper case in a name", uppercase, Malformed),
        ("two authorities", two_authorities, Malformed),
        ("a connection header", connection_header, Malformed),
        (
            "a stream that depends on itself",
            frame(PRIORITY, 0, 3, &[0, 0, 0, 3, 1]),
            Malformed,
        ),
    ]
}

#[tokio::test]
async fn at_17_frames_that_break_the_rules() {
    let mut bed = Bed::new(Mode::Usual).await;
    for (name, bytes, expected) in cases() {
        let mut raw = bed.raw().await;
        raw.serves(1).await;
        assert!(raw.send(&bytes).await, "{name}");
        match expected {
            Outcome::Ignored => raw.serves(7).await,
            Outcome::Malformed => {
                let answer = loop {
                    let frame = raw.next().await.unwrap_or_else(|| panic!("{name}"));
                    if matches!(frame.kind, RST_STREAM | GOAWAY) {
                        break frame;
                    }
                };
                assert_eq!(answer.code(), PROTOCOL_ERROR, "{name}");
                if answer.kind == RST_STREAM {
                    raw.serves(7).await;
                }
                println!(
                    "{name}: {}",
                    if answer.kind == GOAWAY {
                        "connection"
                    } else {
                        "stream"
                    }
                );
            }
            Outcome::End(codes) => {
                let code = raw.goodbye().await;
                assert!(code.is_some_and(|c| codes.contains(&c)), "{name}: {code:?}");
            }
        }
        drop(raw);
        let (reason, text) = bed.end().await;
        assert_ne!(reason, "internal", "{name}: {text}");
    }
    bed.all_back().await;
}
