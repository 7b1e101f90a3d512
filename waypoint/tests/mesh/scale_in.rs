//! Copies of a waypoint that go away: what can finish does, what cannot is told.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use isobar_runtime::LocalScope;
use isobar_waypoint::run::drain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::bed::*;

/// Streams on each of four copies.
const STREAMS: usize = 125;
const LIMIT: Duration = Duration::from_secs(2);

/// A gRPC back end: each stream gets its first message at once and its status when it is released.
struct Streaming {
    early: watch::Sender<bool>,
    late: watch::Sender<bool>,
}

impl Streaming {
    async fn start(bed: &Bed) -> Self {
        let listener = TcpListener::bind("127.0.1.9:0").await.unwrap();
        bed.known_backend("streaming", "v1", listener.local_addr().unwrap());
        let (early, on_early) = watch::channel(false);
        let (late, on_late) = watch::channel(false);
        let scope = bed.scope.clone();
        bed.scope.spawn("streaming", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let watched = (on_early.clone(), on_late.clone());
                scope.spawn("streams", streams(scope.clone(), tcp, watched));
            }
        });
        Self { early, late }
    }
}

async fn streams(
    scope: Rc<LocalScope>,
    tcp: TcpStream,
    (early, late): (watch::Receiver<bool>, watch::Receiver<bool>),
) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(10_000);
    let mut connection = builder.handshake::<_, Bytes>(tcp).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let is_early = request.uri().path() == "/early";
        let mut released = if is_early {
            early.clone()
        } else {
            late.clone()
        };
        scope.spawn("stream", async move {
            let head = Response::builder().header("content-type", "application/grpc");
            let mut stream = respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            stream
                .send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false)
                .unwrap();
            released.wait_for(|released| *released).await.unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            // Whoever is gone needs no status.
            let _ = stream.send_trailers(trailers);
        });
    }
}

/// An open stream that has had its first message.
struct Open {
    copy: usize,
    early: bool,
    body: h2::RecvStream,
    /// Open: only the back end ends the stream.
    _upload: h2::SendStream<Bytes>,
}

impl Open {
    /// How it ended: a gRPC status, or what went wrong.
    async fn end(mut self) -> (usize, bool, Result<String, String>) {
        let end = async {
            while let Some(data) = self.body.data().await {
                data.map_err(|error| error.to_string())?;
            }
            let trailers = self.body.trailers().await;
            let trailers = trailers.map_err(|error| error.to_string())?;
            let trailers = trailers.ok_or("no trailers")?;
            let status = trailers.get("grpc-status").ok_or("no status")?;
            Ok(status.to_str().unwrap().to_owned())
        };
        let end = end.await;
        (self.copy, self.early, end)
    }
}

async fn open(bed: &Bed, copy: usize, at: std::net::SocketAddr) -> Vec<Open> {
    let stream = bed.tunnel_at(at, "client", VIP).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    bed.scope.spawn("client", async move {
        // Its streams see how it ends.
        let _ = connection.await;
    });
    let mut all = Vec::new();
    for index in 0..STREAMS {
        let early = index % 2 == 0;
        let path = if early { "early" } else { "late" };
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://svc:8080/{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        sender = sender.ready().await.unwrap();
        let (response, upload) = sender.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap().len(), 6);
        all.push(Open {
            copy,
            early,
            body,
            _upload: upload,
        });
    }
    all
}

#[test]
fn scaling_in_ends_streams_with_a_status() {
    run(|bed| async move {
        let backend = Streaming::start(&bed).await;
        let (mut copies, mut streams) = (Vec::new(), Vec::new());
        for copy in 0..4 {
            let (worker, at) = bed.copy();
            streams.extend(open(&bed, copy, at).await);
            copies.push((worker, at));
        }
        assert_eq!(streams.len(), 4 * STREAMS);
        let stays = copies.remove(0);
        let drains = copies.iter().map(|(worker, _)| drain(worker, LIMIT));
        let draining = async {
            let all = futures_util::future::join_all(drains);
            let release = async {
                tokio::task::yield_now().await;
                backend.early.send(true).unwrap();
            };
            let (orderly, ()) = tokio::join!(all, release);
            assert!(orderly.iter().all(|orderly| *orderly), "something was cut");
            for (_, at) in &copies {
                let gone = bed.tunnel_at(*at, "client", VIP).await;
                assert!(gone.is_err(), "a copy that has gone takes a tunnel");
            }
            // The copy that stays has noticed nothing.
            assert_eq!(stays.0.live.len(), STREAMS / 2);
            backend.late.send(true).unwrap();
        };
        let ends = futures_util::future::join_all(streams.into_iter().map(Open::end));
        let ((), ends) = tokio::join!(draining, ends);
        for (copy, early, end) in ends {
            let wanted = if early || copy == 0 { "0" } else { "14" };
            assert_eq!(end.as_deref(), Ok(wanted), "copy {copy}, early: {early}");
        }
    });
}
