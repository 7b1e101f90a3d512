//! HTTP/2 of the load generator as fast as it goes. The frames of one kind of request are made by hand: a
//! general client costs more than the proxies that are measured, and what it costs is missing on two cores.
//! Requests are indexed (RFC 7541 §6.1) from the second on, as those of ordinary clients are.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::GRPC;
use super::caller::{Load, Protocol};
use super::server::{CONNECTION_WINDOW, MESSAGE, STREAM_WINDOW};

/// Settings (RFC 9113 §6.5.2).
const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Octets of a frame's head (RFC 9113 §4.1).
pub(super) const HEAD: usize = 9;
/// The connection's window at its start (RFC 9113 §6.9.2).
pub(super) const INITIAL_WINDOW: u32 = 65_535;
/// Octets of the peer's table of fields unless it says otherwise (RFC 9113 §6.5.2): requests index into that.
const TABLE: u32 = 4096;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;

/// `END_STREAM` of DATA and HEADERS, `ACK` of SETTINGS and PING.
pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// `:status: 200` of the static table.
pub(super) const STATUS_200: u8 = 0x88;

/// Who says when requests go out, and is told what became of them.
pub(super) trait Pace {
    /// The time of the next request, unless there is none any more.
    fn another(&self) -> Option<Instant>;
    /// One request's end.
    fn note(&self, start: Instant, outcome: &Result<()>);
}

/// Keeps `streams` requests going on one connection until `pace` has no more.
///
/// # Errors
/// When the connection breaks, or the peer does what a load never sees: each request that was under way is
/// noted as failed.
pub(super) async fn run(
    mut tcp: impl AsyncRead + AsyncWrite + Unpin,
    load: &Load,
    streams: usize,
    pace: &impl Pace,
) -> Result<()> {
    let mut connection = Connection::new(load)?;
    for _ in 0..streams {
        connection.ask(pace);
    }
    let outcome = connection.serve(&mut tcp, pace).await;
    if let Err(error) = &outcome {
        for open in &connection.open {
            pace.note(open.start, &Err(anyhow::anyhow!("{error:#}")));
        }
    }
    outcome
}

/// A request that is under way.
struct Open {
    stream: u32,
    start: Instant,
    good: bool,
    body: usize,
}

struct Connection {
    /// Field block of the first request, and of every other one.
    blocks: [Vec<u8>; 2],
    /// What follows a request's head.
    message: Option<&'static [u8]>,
    /// Octets of body that an answer has.
    size: usize,
    next_stream: u32,
    open: Vec<Open>,
    /// Octets of DATA that the peer was not given back yet.
    taken: u32,
    out: Vec<u8>,
}

impl Connection {
    fn new(load: &Load) -> Result<Self> {
        let message = (load.protocol == Protocol::Grpc).then_some(MESSAGE);
        let size = match message {
            Some(message) => message.len(),
            None => {
                let last = load.path.rsplit('/').next().unwrap_or_default();
                last.parse().context("the path does not end with a size")?
            }
        };
        let mut out = PREFACE.to_vec();
        greet(&mut out, &[]);
        Ok(Self {
            blocks: blocks(&load.path, message.is_some())?,
            message,
            size,
            next_stream: 1,
            open: Vec::new(),
            taken: 0,
            out,
        })
    }

    fn ask(&mut self, pace: &impl Pace) {
        let Some(start) = pace.another() else { return };
        let stream = self.next_stream;
        self.next_stream += 2;
        let block = &self.blocks[usize::from(stream > 1)];
        let end = if self.message.is_none() {
            END_STREAM
        } else {
            0
        };
        frame(&mut self.out, HEADERS, END_HEADERS | end, stream, block);
        if let Some(message) = self.message {
            frame(&mut self.out, DATA, END_STREAM, stream, message);
        }
        self.open.push(Open {
            stream,
            start,
            good: false,
            body: 0,
        });
    }

    async fn serve(
        &mut self,
        tcp: &mut (impl AsyncRead + AsyncWrite + Unpin),
        pace: &impl Pace,
    ) -> Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        let mut filled = 0;
        while !self.open.is_empty() {
            tcp.write_all(&self.out).await?;
            self.out.clear();
            let count = tcp.read(&mut buffer[filled..]).await?;
            ensure!(count > 0, "the connection ended");
            filled += count;
            let mut at = 0;
            while let Some((kind, flags, stream, payload)) = parse(&buffer[at..filled]) {
                at += HEAD + payload.len();
                self.take(kind, flags, stream, payload, pace)?;
            }
            buffer.copy_within(at..filled, 0);
            filled -= at;
        }
        Ok(())
    }

    fn take(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        pace: &impl Pace,
    ) -> Result<()> {
        match kind {
            DATA => {
                self.give_back(payload.len());
                let content = unpadded(flags, payload)?;
                self.of(stream)?.body += content.len();
                self.ended(flags, stream, pace)
            }
            HEADERS => {
                ensure!(flags & END_HEADERS != 0, "an answer's head in parts");
                let block = unpadded(flags, payload)?;
                let skip = if flags & PRIORITY == 0 { 0 } else { 5 };
                let first = status(block.get(skip..).unwrap_or_default());
                let open = self.of(stream)?;
                // What comes after a body is a trailer.
                open.good |= open.body == 0 && first == Some(STATUS_200);
                self.ended(flags, stream, pace)
            }
            RST_STREAM => {
                let at = self.open.iter().position(|open| open.stream == stream);
                let open = at.map(|at| self.open.swap_remove(at));
                let open = open.context("an end of no request")?;
                pace.note(open.start, &Err(anyhow::anyhow!("reset by the peer")));
                self.ask(pace);
                Ok(())
            }
            SETTINGS if flags & ACK == 0 => {
                for (setting, value) in settings(payload) {
                    ensure!(
                        setting != HEADER_TABLE_SIZE || value >= TABLE,
                        "the peer keeps a smaller table of fields than {TABLE} octets"
                    );
                }
                frame(&mut self.out, SETTINGS, ACK, 0, &[]);
                Ok(())
            }
            PING if flags & ACK == 0 => {
                frame(&mut self.out, PING, ACK, 0, payload);
                Ok(())
            }
            GOAWAY => bail!("the peer goes away"),
            _ => Ok(()),
        }
    }

    fn of(&mut self, stream: u32) -> Result<&mut Open> {
        let open = self.open.iter_mut().find(|open| open.stream == stream);
        open.with_context(|| format!("stream {stream} is not open"))
    }

    /// The peer may send so much again, told once it is much.
    fn give_back(&mut self, octets: usize) {
        self.taken += u32::try_from(octets).unwrap_or_default();
        if self.taken >= CONNECTION_WINDOW / 2 {
            frame(
                &mut self.out,
                WINDOW_UPDATE,
                0,
                0,
                &self.taken.to_be_bytes(),
            );
            self.taken = 0;
        }
    }

    fn ended(&mut self, flags: u8, stream: u32, pace: &impl Pace) -> Result<()> {
        if flags & END_STREAM == 0 {
            return Ok(());
        }
        let at = self.open.iter().position(|open| open.stream == stream);
        let open = self
            .open
            .swap_remove(at.context("an end without a request")?);
        let outcome = if !open.good {
            Err(anyhow::anyhow!("another status than 200"))
        } else if open.body != self.size {
            Err(anyhow::anyhow!(
                "{} octets of body, not {}",
                open.body,
                self.size
            ))
        } else {
            Ok(())
        };
        pace.note(open.start, &outcome);
        self.ask(pace);
        Ok(())
    }
}

/// The first octet of a field block behind changes of the table's size (RFC 7541 §6.3).
fn status(mut block: &[u8]) -> Option<u8> {
    while let [first, rest @ ..] = block
        && first & 0xe0 == 0x20
    {
        block = rest;
        if first & 0x1f == 0x1f {
            let end = block.iter().position(|octet| octet & 0x80 == 0)?;
            block = &block[end + 1..];
        }
    }
    block.first().copied()
}

fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (&padding, rest) = payload.split_first().context("no padding's length")?;
    let end = rest.len().checked_sub(usize::from(padding));
    Ok(&rest[..end.context("more padding than frame")?])
}

/// Kind, flags, stream and payload of the first frame, once it is whole.
pub(super) fn parse(bytes: &[u8]) -> Option<(u8, u8, u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Some((head[3], head[4], stream, rest.get(..length)?))
}

/// What either side begins with: `more` settings, and windows that never fill.
pub(super) fn greet(out: &mut Vec<u8>, more: &[(u16, u32)]) {
    let mut payload = Vec::new();
    for (setting, value) in more.iter().chain(&[(INITIAL_WINDOW_SIZE, STREAM_WINDOW)]) {
        payload.extend(setting.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(out, SETTINGS, 0, 0, &payload);
    let room = CONNECTION_WINDOW - INITIAL_WINDOW;
    frame(out, WINDOW_UPDATE, 0, 0, &room.to_be_bytes());
}

/// The settings of a frame, with their values.
pub(super) fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    payload.as_chunks::<6>().0.iter().map(|setting| {
        let [a, b, value @ ..] = *setting;
        (u16::from_be_bytes([a, b]), u32::from_be_bytes(value))
    })
}

pub(super) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or_default();
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The field blocks of the first request, which fills the peer's table, and of all others.
fn blocks(path: &str, grpc: bool) -> Result<[Vec<u8>; 2]> {
    // `:method` and `:scheme: http` of the static table (RFC 7541, appendix A).
    let mut first = vec![if grpc { 0x83 } else { 0x82 }, 0x86];
    let mut again = first.clone();
    // With the index of a name that the static table has.
    let mut fields = vec![
        (4, "", path),
        (1, "", "bench"),
        (58, "", "bench"),
        (0, "x-noise", "1"),
    ];
    if grpc {
        fields.extend([(31, "", GRPC), (0, "te", "trailers")]);
    }
    for (at, (index, name, value)) in fields.iter().enumerate() {
        first.push(0x40 | index);
        for text in [name, value].into_iter().filter(|text| !text.is_empty()) {
            let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
            first.push(length.with_context(|| format!("{text} is too long"))?);
            first.extend_from_slice(text.as_bytes());
        }
        // The newest field has the least index.
        let index = u8::try_from(62 + fields.len() - 1 - at)?;
        again.push(0x80 | index);
    }
    Ok([first, again])
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::net::Ipv4Addr;
    use std::rc::Rc;

    use tokio::net::TcpListener;

    use super::*;
    use crate::l7::caller::connect;
    use crate::l7::hbone::Door;
    use crate::l7::server;

    /// So many requests, and their outcomes.
    struct Count {
        left: Cell<u32>,
        outcomes: RefCell<Vec<Option<String>>>,
    }

    impl Pace for Count {
        fn another(&self) -> Option<Instant> {
            let left = self.left.get().checked_sub(1)?;
            self.left.set(left);
            Some(Instant::now())
        }

        fn note(&self, _: Instant, outcome: &Result<()>) {
            let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
            self.outcomes.borrow_mut().push(error);
        }
    }

    async fn outcomes(protocol: Protocol, path: &str, size: usize) -> Vec<Option<String>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let pace = Count {
            left: Cell::new(20),
            outcomes: RefCell::default(),
        };
        let load = Load {
            protocol,
            door: Door::plain(to),
            path: path.to_owned(),
            connections: 1,
            streams: 4,
            seconds: 0.0,
            rate: 0,
        };
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let scope = Rc::new(isobar_runtime::LocalScope::new("server"));
                scope.spawn(
                    "accept",
                    server::accept(scope.clone(), listener, Rc::new(Cell::new(size))),
                );
                let tcp = connect(to).await.unwrap();
                run(tcp, &load, 4, &pace).await.unwrap();
            })
            .await;
        pace.outcomes.into_inner()
    }

    #[tokio::test]
    async fn requests_and_answers_by_hand_belong_together() {
        for (protocol, path, size) in [
            (Protocol::Http2, "/r1/1024", 1024),
            (Protocol::Http2, "/r1/65536", 65_536),
            (Protocol::Grpc, "/grpc.Echo/Say", 1),
        ] {
            let told = outcomes(protocol, path, size).await;
            assert_eq!(told, vec![None; 20], "{path}");
        }
    }

    /// With fields of the peer's table, from the second request on.
    #[tokio::test]
    async fn an_ordinary_server_understands_every_request() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let tcp = connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (mut client, mut server) = (tcp, h2::server::handshake(server));
        let [first, again] = blocks("/r1/7", true).unwrap();
        let mut out = PREFACE.to_vec();
        frame(&mut out, SETTINGS, 0, 0, &[]);
        frame(&mut out, HEADERS, END_HEADERS | END_STREAM, 1, &first);
        frame(&mut out, HEADERS, END_HEADERS | END_STREAM, 3, &again);
        client.write_all(&out).await.unwrap();
        let mut server = (&mut server).await.unwrap();
        for _ in 0..2 {
            let (request, _) = server.accept().await.unwrap().unwrap();
            assert_eq!(request.method(), "POST");
            assert_eq!(request.uri(), "http://bench/r1/7");
            let field = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(field("user-agent"), "bench");
            assert_eq!(field("x-noise"), "1");
            assert_eq!(field("content-type"), GRPC);
            assert_eq!(field("te"), "trailers");
        }
    }

    #[tokio::test]
    async fn bodies_of_another_size_are_failures() {
        let told = outcomes(Protocol::Http2, "/r1/1024", 1000).await;
        assert_eq!(told.len(), 20);
        assert!(told.iter().all(Option::is_some), "{told:?}");
    }

    #[test]
    fn the_status_stands_behind_changes_of_the_table() {
        assert_eq!(status(&[STATUS_200, 1]), Some(STATUS_200));
        assert_eq!(
            status(&[0x20, 0x3f, 0xe1, 0x1f, STATUS_200]),
            Some(STATUS_200)
        );
        assert_eq!(status(&[0x48, 3]), Some(0x48));
        assert_eq!(status(&[0x3f, 0x80]), None);
        assert_eq!(status(&[]), None);
    }
}
