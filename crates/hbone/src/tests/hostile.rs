//! The other way round: servers that attack their client.

#[expect(dead_code, reason = "shared with the attacks on the server")]
#[path = "../../tests/attacks/wire.rs"]
mod wire;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isobar_tls::ServerTls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::rig::{Rig, headers, key, local};
use crate::{Connect, PoolOptions, Timeouts, TunnelError, TunnelStream};
use wire::*;

/// Time for the answer to CONNECT in these tests.
const ANSWER: Duration = Duration::from_millis(500);

async fn echo(connect: Connect) {
    if let Ok(stream) = connect.accept(None) {
        let (mut read, mut write) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

/// Behaves until the first request, then answers it with `attack` and what `then` repeats.
async fn attack(
    tls: ServerTls,
    tcp: TcpStream,
    settings: Vec<u8>,
    attack: Vec<u8>,
) -> std::io::Result<()> {
    let (mut io, _) = tls.accept(tcp).await.map_err(std::io::Error::other)?;
    let mut preface = [0; PREFACE.len()];
    io.read_exact(&mut preface).await?;
    io.write_all(&frame(SETTINGS, 0, 0, &settings)).await?;
    io.flush().await?;
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        io.read_exact(&mut payload).await?;
        let answer = match (head[3], head[4] & ACK) {
            (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
            (PING, 0) => frame(PING, ACK, 0, &payload),
            (HEADERS, _) => attack.clone(),
            _ => continue,
        };
        io.write_all(&answer).await?;
        io.flush().await?;
    }
}

struct Case {
    name: &'static str,
    settings: Vec<u8>,
    attack: Vec<u8>,
    /// The request may be answered with a stream, which then has to end.
    opens: bool,
}

fn case(name: &'static str, attack: Vec<u8>) -> Case {
    Case {
        name,
        settings: Vec::new(),
        attack,
        opens: false,
    }
}

fn opening(name: &'static str, after: &[u8]) -> Case {
    // :status 200
    let ok = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    Case {
        opens: true,
        ..case(name, [&ok[..], after].concat())
    }
}

fn goaway(last: u32, code: u32) -> Vec<u8> {
    let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
    frame(GOAWAY, 0, 0, &payload)
}

fn cases() -> Vec<Case> {
    let early = frame(HEADERS, END_HEADERS, 1, &[0x08, 3, b'1', b'0', b'3']);
    vec![
        Case {
            settings: setting(3, 0),
            ..case("no streams allowed", Vec::new())
        },
        case("goaway of all, then silence", goaway(0x7fff_ffff, 0)),
        case("goaway of none", goaway(0, 2)),
        case("early hints without end", early.repeat(20_000)),
        case("pings", frame(PING, 0, 0, &[3; 8]).repeat(5000)),
        case("settings", frame(SETTINGS, 0, 0, &[]).repeat(5000)),
        case(
            "priorities",
            frame(PRIORITY, 0, 3, &[0, 0, 0, 5, 1]).repeat(2000),
        ),
        case("unknown frames", frame(0xbb, 0, 1, b"x").repeat(2000)),
        case("window updates", window_update(0, 1).repeat(20_000)),
        case("window overflow", window_update(0, 0x7fff_ffff)),
        case(
            "push",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x88]),
        ),
        case(
            "an answer nobody asked for",
            frame(HEADERS, END_HEADERS, 2, &[0x88]),
        ),
        case(
            "a stream of the future",
            frame(HEADERS, END_HEADERS, 99, &[0x88]),
        ),
        case("data before headers", frame(DATA, 0, 1, b"x")),
        case(
            "continuations",
            [
                frame(HEADERS, 0, 1, &[]),
                frame(CONTINUATION, 0, 1, &[]).repeat(50),
            ]
            .concat(),
        ),
        case(
            "a header block of 200 KB",
            frame(HEADERS, END_HEADERS, 1, &vec![0; 200_000]),
        ),
        case("no HPACK", frame(HEADERS, END_HEADERS, 1, &[0xff; 9])),
        case("silence", Vec::new()),
        case("plain text", b"HTTP/1.1 200 OK\r\n\r\n".repeat(100)),
        opening("a reset after the headers", &reset(1, CANCEL)),
        opening("an end with the headers", &frame(DATA, END_STREAM, 1, &[])),
        opening(
            "trailers",
            &frame(HEADERS, END_HEADERS | END_STREAM, 1, &[]),
        ),
        opening("empty data", &frame(DATA, 0, 1, &[]).repeat(5000)),
        opening(
            "unread single bytes",
            &frame(DATA, 0, 1, b"x").repeat(70_000),
        ),
        opening(
            "more than the window",
            &frame(DATA, 0, 1, &[0; 16_384]).repeat(260),
        ),
        opening("a goaway under the stream", &goaway(0, 2)),
    ]
}

/// Waits for the end of a stream, whatever it is. It is read only after a while.
async fn ends(mut stream: TunnelStream) -> usize {
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut bytes = Vec::new();
    // An end, or a break: both are fine.
    let reading = timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    assert!(reading.is_ok(), "the stream goes on for ever");
    bytes.len()
}

async fn suffer(rig: &Rig, honest: SocketAddr, case: Case) {
    let tls = rig.server_tls("cart");
    let Case {
        name,
        settings,
        attack: bytes,
        opens,
    } = case;
    let hostile = rig
        .raw(move |tcp| {
            let attacking = attack(tls.clone(), tcp, settings.clone(), bytes.clone());
            // Ends when the client has had enough.
            async move { drop(attacking.await) }
        })
        .await;
    let accepted = *rig.accepted.borrow();
    let start = Instant::now();
    match rig.pool.open(&key(hostile), &headers()).await {
        Ok(stream) => {
            assert!(opens, "{name}: opened");
            let bytes = ends(stream).await;
            println!(
                "AT-30 {name}: a stream of {bytes} bytes, {:?}",
                start.elapsed()
            );
        }
        Err(error) => {
            assert!(
                !opens || matches!(error, TunnelError::Lost { .. }),
                "{name}: {error}"
            );
            println!("AT-30 {name}: {error}, {:?}", start.elapsed());
        }
    }
    assert!(start.elapsed() < 20 * ANSWER, "{name}");
    let dials = *rig.accepted.borrow() - accepted;
    assert!(dials <= 2, "{name}: {dials} dials for one request");
    // Whoever else is in the pool is not affected.
    let mut stream = rig.pool.open(&key(honest), &headers()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test]
async fn at_30_hostile_upstreams_hurt_only_themselves() {
    local(async {
        let timeouts = Timeouts {
            connect: ANSWER,
            settings: 4 * ANSWER,
            ..Timeouts::default()
        };
        let rig = Rig::with(PoolOptions {
            timeouts,
            ..PoolOptions::default()
        });
        let honest = rig.serve(echo).await;
        for case in cases() {
            suffer(&rig, honest, case).await;
        }
        // The honest server's connection is the one of the beginning.
        assert_eq!(rig.ends.borrow().len(), 0);
        rig.until(|rig| rig.pool.streams() == 0).await;
    })
    .await;
}
