use std::convert::Infallible;
use std::future::Future;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, yield_now};

use super::*;
use crate::message::PIECE;

mod spare;

const TERMS: Terms = Terms {
    piece: PIECE,
    idle: Duration::from_secs(60),
    last: false,
};

/// A connection, where it rests, and the endpoint's end of it.
struct Bed {
    idle: Idle,
    line: Rc<Line>,
    far: DuplexStream,
    heard: Vec<u8>,
    scope: Rc<LocalScope>,
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Bed) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let scope = Rc::new(LocalScope::new("test"));
        let (near, far) = duplex(64 * 1024);
        let idle = Idle::default();
        let line = Line::begin(Box::new(near), &idle, &scope);
        let bed = Bed {
            idle,
            line,
            far,
            heard: Vec::new(),
            scope,
        };
        let within = tokio::time::timeout(Duration::from_secs(3600), test(bed)).await;
        within.expect("the test took too long");
    });
}

impl Bed {
    /// Waits until the endpoint has heard this, from the end of what it had heard before.
    async fn hears(&mut self, what: &str) {
        while self.heard.len() < what.len() {
            let mut room = [0; 4096];
            let count = self.far.read(&mut room).await.unwrap();
            assert!(
                count > 0,
                "heard {:?}",
                String::from_utf8_lossy(&self.heard)
            );
            self.heard.extend_from_slice(&room[..count]);
        }
        let heard: Vec<u8> = self.heard.drain(..what.len()).collect();
        assert_eq!(String::from_utf8_lossy(&heard), what);
    }

    async fn says(&mut self, what: &str) {
        self.far.write_all(what.as_bytes()).await.unwrap();
    }

    /// True if the endpoint sees the connection end.
    async fn sees_the_end(&mut self) -> bool {
        let read = tokio::time::timeout(Duration::from_secs(1), self.far.read(&mut [0; 16])).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    /// The connection, if it rests and takes another request.
    async fn kept(&mut self) -> bool {
        for _ in 0..8 {
            yield_now().await;
        }
        let kept = self.idle.borrow_mut().pop();
        kept.is_some_and(|line| line.is_good(Instant::now()) && line.wake_up())
    }

    /// Sends a GET, which the endpoint answers with this.
    async fn get(&mut self, answer: &str) -> Result<Response<Reply>, Error> {
        let line = self.line.clone();
        let request = Request::get("/").header("host", "svc");
        let (sent, ()) = tokio::join!(line.send(request.body(none()).unwrap(), TERMS), async {
            self.hears("GET / HTTP/1.1\r\nhost: svc\r\n\r\n").await;
            self.says(answer).await;
        });
        sent
    }

    /// Begins an upload, which the endpoint answers with this before any of it comes.
    async fn upload(&mut self, answer: &str) -> (Tell, Response<Reply>) {
        let (tell, frames) = mpsc::channel(8);
        let request = Request::post("/").body(told(frames)).unwrap();
        let line = self.line.clone();
        let (sent, ()) = tokio::join!(line.send(request, TERMS), async {
            self.hears("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            self.says(answer).await;
        });
        (tell, sent.unwrap())
    }
}

fn none() -> impl Body<Data = Bytes, Error = RequestError> {
    Empty::new().map_err(|never: Infallible| match never {})
}

fn whole(body: &'static str) -> impl Body<Data = Bytes, Error = RequestError> {
    Full::new(Bytes::from_static(body.as_bytes())).map_err(|never: Infallible| match never {})
}

/// A body that comes as a test says, its length unknown.
type Frames = mpsc::Receiver<Result<Frame<Bytes>, RequestError>>;
type Tell = mpsc::Sender<Result<Frame<Bytes>, RequestError>>;

fn told(frames: Frames) -> impl Body<Data = Bytes, Error = RequestError> {
    StreamBody::new(Box::pin(stream::unfold(frames, |mut frames| async {
        let frame = frames.recv().await?;
        Some((frame, frames))
    })))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, RequestError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

/// Reads a body to its end: its data, and its trailers.
async fn read(mut body: Reply) -> Result<(String, Option<::http::HeaderMap>), Error> {
    let (mut seen, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => seen.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    assert!(body.is_end_stream());
    Ok((String::from_utf8_lossy(&seen).into_owned(), trailers))
}

#[test]
fn a_connection_is_used_again_after_every_kind_of_whole_answer() {
    run(async |mut bed| {
        let long = "y".repeat(100_000);
        let chunks = "4\r\nwiki\r\n5;x\r\npedia\r\n0\r\nx-t: 1\r\n\r\n";
        for (fields, body, seen) in [
            ("content-length: 4", "body", "body"),
            ("content-length: 0", "", ""),
            ("content-length: 100000", &*long, &*long),
            ("transfer-encoding: chunked", chunks, "wikipedia"),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
            let response = bed.get(&head).await;
            let (answer, ()) = tokio::join!(read(response.unwrap().into_body()), bed.says(body));
            let (answer, trailers) = answer.unwrap();
            assert!(answer == seen, "{fields}");
            assert_eq!(trailers.is_some(), fields.contains("chunked"));
            assert!(bed.kept().await, "{fields}");
        }
        for status in ["204 No Content", "304 Not Modified"] {
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: 9\r\n\r\n");
            let response = bed.get(&head).await.unwrap();
            assert!(response.into_body().is_end_stream());
            assert!(bed.kept().await, "{status}");
        }
        assert_eq!(bed.line.uses.get(), 6);
    });
}

#[test]
fn what_came_with_the_head_is_told_at_once_and_frees_the_connection() {
    run(async |mut bed| {
        let all = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody";
        let response = bed.get(all).await.unwrap();
        assert_eq!(response.body().size_hint().exact(), Some(4));
        assert!(
            bed.kept().await,
            "nobody has read it, and nothing is to come"
        );
        assert_eq!(read(response.into_body()).await.unwrap().0, "body");
    });
}

#[test]
fn a_connection_is_not_used_again_where_its_endpoint_does_not_want_it() {
    for answer in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok HTTP/1.1 200 OK\r\n\r\n",
    ] {
        run(async |mut bed| {
            let response = bed.get(answer).await.unwrap();
            assert_eq!(read(response.into_body()).await.unwrap().0, "ok");
            assert!(!bed.kept().await, "{answer:?}");
            assert!(bed.sees_the_end().await, "{answer:?}");
        });
    }
}

#[test]
fn a_body_without_a_length_goes_on_to_the_end_of_the_connection() {
    run(async |mut bed| {
        let response = bed.get("HTTP/1.1 200 OK\r\n\r\nsome").await.unwrap();
        bed.says("thing").await;
        drop(std::mem::replace(&mut bed.far, duplex(1).0));
        assert_eq!(read(response.into_body()).await.unwrap().0, "something");
        assert!(!bed.kept().await);
    });
}

#[test]
fn an_answer_that_ends_too_early_is_an_error() {
    for (fields, body) in [
        ("content-length: 9", "some"),
        ("transfer-encoding: chunked", "4\r\nsome\r\n"),
        ("transfer-encoding: chunked", "4\r\nso"),
        ("transfer-encoding: chunked", "4\r\nsome\r\n0\r\n"),
    ] {
        run(async |mut bed| {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}");
            let response = bed.get(&head).await.unwrap();
            drop(std::mem::replace(&mut bed.far, duplex(1).0));
            let ended = read(response.into_body()).await.unwrap_err();
            assert!(
                matches!(ended, Error::Message(message::Error::Incomplete)),
                "{head:?} gave {ended}"
            );
            assert!(!bed.kept().await);
        });
    }
    run(async |mut bed| {
        let request = Request::get("/").body(none()).unwrap();
        let line = bed.line.clone();
        let (sent, ()) = tokio::join!(line.send(request, TERMS), async {
            bed.hears("GET / HTTP/1.1\r\n\r\n").await;
            bed.says("HTTP/1.1 200").await;
            drop(std::mem::replace(&mut bed.far, duplex(1).0));
        });
        assert!(matches!(
            sent.unwrap_err(),
            Error::Message(message::Error::Incomplete)
        ));
    });
}

#[test]
fn answers_to_head_have_no_body() {
    run(async |mut bed| {
        let request = Request::head("/").body(none()).unwrap();
        let line = bed.line.clone();
        let (sent, ()) = tokio::join!(line.send(request, TERMS), async {
            bed.hears("HEAD / HTTP/1.1\r\n\r\n").await;
            bed.says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
                .await;
        });
        let response = sent.unwrap();
        assert_eq!(response.headers()["content-length"], "9");
        assert!(response.into_body().is_end_stream());
        assert!(bed.kept().await);
    });
}

#[test]
fn a_connection_that_rests_is_not_used_once_its_endpoint_has_ended_it_or_spoken() {
    for unasked in ["", "HTTP/1.1 408 Too Late\r\n\r\n"] {
        run(async |mut bed| {
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            drop(bed.get(ok).await.unwrap());
            bed.says(unasked).await;
            if unasked.is_empty() {
                drop(std::mem::replace(&mut bed.far, duplex(1).0));
            }
            assert!(!bed.kept().await, "{unasked:?}");
        });
    }
}

#[test]
fn a_connection_that_rested_for_too_long_is_not_good_and_ends_with_its_last_holder() {
    run(async |mut bed| {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        drop(bed.get(ok).await.unwrap());
        let later = Instant::now() + TERMS.idle;
        assert!(bed.line.is_good(Instant::now()) && !bed.line.is_good(later));
        bed.idle.borrow_mut().clear();
        let other = duplex(1).0;
        bed.line = Line::begin(Box::new(other), &bed.idle, &bed.scope);
        assert!(bed.sees_the_end().await);
    });
}

#[test]
fn nobody_waits_for_an_answer_that_nobody_wants() {
    run(async |mut bed| {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsome";
        drop(bed.get(head).await.unwrap());
        assert!(bed.sees_the_end().await);
        assert!(!bed.kept().await);
    });
    run(async |mut bed| {
        let request = Request::get("/").body(none()).unwrap();
        let line = bed.line.clone();
        let mut sent = Box::pin(line.send(request, TERMS));
        assert!(futures_util::poll!(&mut sent).is_pending());
        bed.hears("GET / HTTP/1.1\r\n\r\n").await;
        drop(sent);
        assert!(bed.sees_the_end().await);
    });
}

#[test]
fn bodies_go_with_their_length_or_in_chunks() {
    run(async |mut bed| {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let post = || Request::post("/x?y");
        let line = bed.line.clone();
        let (sent, ()) = tokio::join!(
            line.send(post().body(whole("body")).unwrap(), TERMS),
            async {
                bed.hears("POST /x?y HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody")
                    .await;
                bed.says(ok).await;
            }
        );
        drop(sent.unwrap());
        assert!(bed.kept().await);
        let (tell, frames) = mpsc::channel(8);
        let mut trailers = ::http::HeaderMap::new();
        for (name, value) in [("x-t", "1"), ("x-u", "2"), ("host", "evil")] {
            trailers.insert(name, value.parse().unwrap());
        }
        for frame in [
            data("some"),
            data(""),
            data("thing"),
            Ok(Frame::trailers(trailers)),
        ] {
            tell.send(frame).await.unwrap();
        }
        let request = post()
            .header("trailer", "X-T, host")
            .body(told(frames))
            .unwrap();
        let line = bed.line.clone();
        let (sent, ()) = tokio::join!(line.send(request, TERMS), async {
            bed.hears(
                "POST /x?y HTTP/1.1\r\ntrailer: X-T, host\r\ntransfer-encoding: chunked\r\n\r\n\
                 4\r\nsome\r\n5\r\nthing\r\n0\r\nx-t: 1\r\n\r\n",
            )
            .await;
            bed.says(ok).await;
        });
        drop(sent.unwrap());
        assert!(bed.kept().await);
    });
}

#[test]
fn what_is_large_goes_whole() {
    run(async |mut bed| {
        let large: &'static str = Box::leak("z".repeat(200_000).into_boxed_str());
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        for chunked in [false, true] {
            let (tell, frames) = mpsc::channel(8);
            tell.send(data(large)).await.unwrap();
            drop(tell);
            let mut request = Request::post("/").body(told(frames)).unwrap();
            let head = if chunked {
                "transfer-encoding: chunked\r\n\r\n30d40\r\n"
            } else {
                let length = "200000".parse().unwrap();
                request.headers_mut().insert("content-length", length);
                "content-length: 200000\r\n\r\n"
            };
            let end = if chunked { "\r\n0\r\n\r\n" } else { "" };
            let line = bed.line.clone();
            let (sent, ()) = tokio::join!(line.send(request, TERMS), async {
                bed.hears(&format!("POST / HTTP/1.1\r\n{head}{large}{end}"))
                    .await;
                bed.says(ok).await;
            });
            drop(sent.unwrap());
            assert!(bed.kept().await);
        }
    });
}

#[test]
fn no_request_is_longer_or_shorter_than_its_head_says() {
    for (body, short) in [("too much", false), ("", true), ("x", true)] {
        run(async |mut bed| {
            let (tell, frames) = mpsc::channel(8);
            tell.send(data(body)).await.unwrap();
            drop(tell);
            let request = Request::post("/").header("content-length", "4");
            let request = request.body(told(frames)).unwrap();
            let sent = bed.line.clone().send(request, TERMS).await;
            assert!(
                matches!(sent.unwrap_err(), Error::Length),
                "{body:?} {short}"
            );
            let mut all = Vec::new();
            bed.far.read_to_end(&mut all).await.unwrap();
            assert!(!all.ends_with(b"too much"));
        });
    }
    // Without a body there is no length that the endpoint would wait for.
    run(async |mut bed| {
        let request = Request::get("/").header("content-length", "4");
        let line = bed.line.clone();
        let request = request.body(none()).unwrap();
        let (sent, ()) = tokio::join!(line.send(request, TERMS), async {
            bed.hears("GET / HTTP/1.1\r\n\r\n").await;
            bed.says("HTTP/1.1 204 None\r\n\r\n").await;
        });
        sent.unwrap();
    });
}

#[test]
fn a_body_goes_on_after_an_early_answer_and_nothing_follows_it() {
    run(async |mut bed| {
        let (tell, answer) = bed
            .upload("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        assert_eq!(read(answer.into_body()).await.unwrap().0, "ok");
        assert!(!bed.kept().await, "the request is not through");
        tell.send(data("more")).await.unwrap();
        bed.hears("4\r\nmore\r\n").await;
        drop(tell);
        bed.hears("0\r\n\r\n").await;
        // The endpoint may not have read it: it would be the next request's begin.
        assert!(!bed.kept().await);
        assert!(bed.sees_the_end().await);
    });
}

#[test]
fn a_body_that_breaks_off_ends_the_exchange() {
    // Before the answer.
    run(async |mut bed| {
        let (tell, frames) = mpsc::channel(8);
        tell.send(data("some")).await.unwrap();
        tell.send(Err(RequestError::Superseded)).await.unwrap();
        let request = Request::post("/").body(told(frames)).unwrap();
        let sent = bed.line.clone().send(request, TERMS).await;
        assert!(matches!(sent.unwrap_err(), Error::Request(_)));
        let mut all = Vec::new();
        bed.far.read_to_end(&mut all).await.unwrap();
        assert!(!all.ends_with(b"0\r\n\r\n"), "it would look whole");
    });
    // While the answer is read.
    run(async |mut bed| {
        let (tell, answer) = bed
            .upload("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
            .await;
        let mut body = Box::pin(read(answer.into_body()));
        assert!(futures_util::poll!(&mut body).is_pending());
        tell.send(Err(RequestError::Withdrawn)).await.unwrap();
        assert!(matches!(body.await.unwrap_err(), Error::Request(_)));
        assert!(bed.sees_the_end().await);
        assert!(!bed.kept().await);
    });
}

#[test]
fn an_upload_ends_with_the_answer_that_nobody_wants() {
    run(async |mut bed| {
        let (tell, answer) = bed
            .upload("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
            .await;
        drop(answer);
        tell.closed().await;
        assert!(bed.sees_the_end().await);
    });
}

#[test]
fn a_last_word_counts_though_the_endpoint_takes_no_more() {
    run(async |mut bed| {
        let (tell, frames) = mpsc::channel(8);
        let request = Request::post("/").body(told(frames)).unwrap();
        let line = bed.line.clone();
        let mut sent = Box::pin(line.send(request, TERMS));
        assert!(futures_util::poll!(&mut sent).is_pending());
        bed.says("HTTP/1.1 413 Too Much\r\ncontent-length: 0\r\n\r\n")
            .await;
        drop(std::mem::replace(&mut bed.far, duplex(1).0));
        tell.send(data("more")).await.unwrap();
        assert_eq!(sent.await.unwrap().status(), 413);
        assert!(!bed.kept().await);
    });
}

#[test]
fn a_connection_that_switches_is_handed_over_with_what_follows() {
    run(async |mut bed| {
        let head = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\nfirst";
        let mut response = bed.get(head).await.unwrap();
        assert_eq!(response.status(), 101);
        let Reply::Switched(stream) = response.body_mut() else {
            panic!("it is {:?}", response.body());
        };
        let mut stream = stream.take().unwrap().0;
        bed.says(" next").await;
        let mut seen = [0; 10];
        stream.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"first next");
        stream.write_all(b"back").await.unwrap();
        bed.hears("back").await;
        assert!(!bed.kept().await);
    });
}

#[test]
fn pieces_are_as_large_as_they_may_be_and_small_ones_keep_no_buffer() {
    run(async |mut bed| {
        let size = 5 * PIECE;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
        let mut body = bed.get(&head).await.unwrap().into_body();
        bed.says("few").await;
        let mut next = async || {
            let frame = poll_fn(|cx| body.poll_frame(cx)).await;
            frame.map(|frame| frame.unwrap().into_data().unwrap())
        };
        let few = next().await.unwrap();
        assert_eq!(few, "few");
        assert!(few.try_into_mut().unwrap().capacity() < 100);
        let mut pieces = Vec::new();
        let rest = "r".repeat(size - 3);
        let ((), ()) = tokio::join!(bed.says(&rest), async {
            while let Some(piece) = next().await {
                pieces.push(piece.len());
            }
        });
        assert_eq!(pieces.iter().sum::<usize>(), size - 3);
        assert_eq!(pieces.iter().max(), Some(&PIECE));
    });
}

#[test]
fn a_connection_takes_no_request_after_its_last() {
    run(async |mut bed| {
        let last = Terms {
            last: true,
            ..TERMS
        };
        let line = bed.line.clone();
        let request = Request::get("/").body(none()).unwrap();
        let (sent, ()) = tokio::join!(line.send(request, last), async {
            bed.hears("GET / HTTP/1.1\r\n\r\n").await;
            bed.says("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await;
        });
        drop(sent.unwrap());
        assert!(!bed.kept().await);
        assert!(bed.sees_the_end().await);
    });
}
