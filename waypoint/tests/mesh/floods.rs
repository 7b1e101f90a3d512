//! What costs a caller of HTTP/2 little and a server much: many small frames, frames that break the rules,
//! heads that grow. It is answered by the end of the connection, or it costs nobody else anything.

use std::net::SocketAddr;
use std::time::Duration;

use isobar_proto::isobar::v1 as proto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::timeout;

use crate::bed::*;
use crate::edge::{listener_of, open, rules};
use crate::hostile::{DATA, HEADERS, SETTINGS, WINDOW_UPDATE, frame, greeting};

const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const CANCEL: u32 = 8;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// For what comes at once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Streams that a caller from outside uses up before it is ended.
const MANY: u32 = 300;

/// `POST http://svc/`, whose body the endpoint waits for (RFC 7541 appendix A has the numbers).
fn post() -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x84, 0x01, 3];
    block.extend_from_slice(b"svc");
    block
}

/// A field that is not indexed.
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut made = vec![0];
    for text in [name, value] {
        made.push(u8::try_from(text.len()).unwrap());
        made.extend_from_slice(text);
    }
    made
}

fn begin(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &post())
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

fn more(stream: u32, window: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &window.to_be_bytes())
}

fn each(make: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..MANY).flat_map(|n| make(2 * n + 1)).collect()
}

/// The next frame: kind, flags, stream and payload; `None` at the end.
async fn next(from: &mut OwnedReadHalf) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    from.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
    Some((head[3], head[4], stream, payload))
}

/// How a flood was answered.
#[derive(Debug, Default)]
struct Answered {
    /// The code of a goodbye.
    goodbye: Option<u32>,
    /// Streams that were reset.
    resets: u32,
    /// The connection went on: it answered a question after all of it.
    goes_on: bool,
}

/// Sends all of it, and then asks whether anybody is there.
async fn flood(at: SocketAddr, bytes: Vec<u8>) -> Answered {
    let tcp = TcpStream::connect(at).await.unwrap();
    let (mut from, mut to) = tcp.into_split();
    let last = frame(PING, 0, 0, b"the last");
    let writing = async {
        // Whoever is cut off cannot send the rest.
        let _ = to.write_all(&[greeting(), bytes, last].concat()).await;
        to
    };
    let reading = async {
        let mut told = Answered::default();
        while let Some((kind, flags, _, payload)) = next(&mut from).await {
            let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match kind {
                GOAWAY => told.goodbye = Some(code(4)),
                RST_STREAM => told.resets += 1,
                PING if flags & ACK != 0 && payload == b"the last" => {
                    told.goes_on = true;
                    return told;
                }
                _ => {}
            }
        }
        told
    };
    let both = async { tokio::join!(writing, reading) };
    timeout(PATIENCE, both).await.expect("no end").1
}

/// How somebody else is answered meanwhile.
async fn honest(at: SocketAddr) -> String {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let asked = b"GET / HTTP/1.1\r\nhost: svc\r\n\r\n";
    tcp.write_all(asked).await.unwrap();
    let mut answer = vec![0; 12];
    let read = timeout(PATIENCE, tcp.read_exact(&mut answer)).await;
    read.expect("no answer").unwrap();
    String::from_utf8(answer).unwrap()
}

type Wanted = fn(&Answered) -> bool;

fn ended(by: &Answered, codes: &[u32]) -> bool {
    !by.goes_on && by.goodbye.is_none_or(|code| codes.contains(&code))
}

fn calmed(by: &Answered) -> bool {
    ended(by, &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR, STREAM_CLOSED])
}

/// Streams are reset or refused, or their heads answered; that is all that it costs.
fn contained(by: &Answered) -> bool {
    by.goes_on || calmed(by)
}

fn refused(by: &Answered) -> bool {
    ended(
        by,
        &[
            PROTOCOL_ERROR,
            FRAME_SIZE_ERROR,
            COMPRESSION_ERROR,
            FLOW_CONTROL_ERROR,
            STREAM_CLOSED,
        ],
    )
}

/// One field that fills the caller's table, told again and again.
fn bomb() -> Vec<u8> {
    let mut block = post();
    block.extend([0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    block.extend([b'x'; 4000]);
    block.extend([0xbe; 10_000]);
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
}

fn cookies() -> Vec<u8> {
    let mut block = post();
    block.extend(field(b"cookie", b"a=1").repeat(1200));
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
}

type Attacks = Vec<(&'static str, Vec<u8>, Wanted)>;

/// What is allowed once.
fn floods() -> Attacks {
    let whole = |id| frame(HEADERS, END_HEADERS | END_STREAM, id, &post());
    let malformed = [post(), field(b"Upper", b"x")].concat();
    let loose = frame(HEADERS, 0, 1, &post());
    vec![
        (
            "rapid reset",
            each(|id| [begin(id), reset(id)].concat()),
            calmed as Wanted,
        ),
        (
            "window overflows",
            each(|id| [begin(id), more(id, 0x7fff_ffff)].concat()),
            contained,
        ),
        (
            "windows of none",
            each(|id| [begin(id), more(id, 0)].concat()),
            calmed,
        ),
        (
            "streams behind themselves",
            each(|id| {
                let itself = [id.to_be_bytes().to_vec(), vec![0]].concat();
                [begin(id), frame(PRIORITY, 0, id, &itself)].concat()
            }),
            contained,
        ),
        (
            "data after the end",
            each(|id| [whole(id), frame(DATA, 0, id, b"x")].concat()),
            calmed,
        ),
        (
            "malformed heads",
            each(|id| frame(HEADERS, END_HEADERS, id, &malformed)),
            calmed,
        ),
        (
            "endless head",
            [loose.clone(), frame(CONTINUATION, 0, 1, &[]).repeat(10_000)].concat(),
            calmed,
        ),
        (
            "endless head of bytes",
            [loose, frame(CONTINUATION, 0, 1, &[0x82]).repeat(100_000)].concat(),
            calmed,
        ),
        (
            "empty data",
            [begin(1), frame(DATA, 0, 1, &[]).repeat(1_000_000)].concat(),
            calmed,
        ),
        ("a bomb of fields", bomb(), calmed),
        ("cookies", cookies(), contained),
    ]
}

/// What no peer may send.
fn breaches() -> Attacks {
    let loose = frame(HEADERS, 0, 1, &post());
    vec![
        (
            "the connection's window overflows",
            more(0, 0x7fff_ffff),
            refused,
        ),
        ("a stream of ours", begin(2), refused),
        ("an old stream", [begin(5), begin(3)].concat(), refused),
        ("data of no stream", frame(DATA, 0, 1, b"x"), refused),
        ("a frame too long", frame(DATA, 0, 1, &[0; 16_385]), refused),
        (
            "nothing but padding",
            [begin(1), frame(DATA, PADDED, 1, &[5, 0])].concat(),
            refused,
        ),
        (
            "something within a head",
            [loose, frame(PING, 0, 0, &[0; 8])].concat(),
            refused,
        ),
        ("settings in part", frame(SETTINGS, 0, 0, &[0; 5]), refused),
        (
            "an index of no field",
            frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0x0f]),
            refused,
        ),
    ]
}

#[test]
fn floods_and_broken_rules_end_their_connection_and_nothing_else() {
    run_within(Duration::from_secs(600), |bed| async move {
        bed.backend("a", "v1").await;
        let (at, _open) = open(&bed, |port| {
            listener_of(proto::listener::Protocol::Http, port, "svc")
        });
        rules(&bed);
        for (name, bytes, wanted) in floods().into_iter().chain(breaches()) {
            let told = flood(at, bytes).await;
            assert!(wanted(&told), "{name}: {told:?}");
            assert_eq!(honest(at).await, "HTTP/1.1 200", "after {name}");
        }
    });
}
