//! A caller that takes a request back in the middle of its body: no endpoint may take what came for all of
//! it, whatever reason the caller gives.

use std::rc::Rc;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use isobar_proto::istio::workload::AppProtocol;
use isobar_runtime::LocalScope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::bed::*;

const HALF: &[u8] = b"half of it";

/// What a back end saw of a body.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Half,
    Whole,
    Broken,
}

/// The first says that there is nothing wrong, and libraries take it for the end of a body.
const REASONS: [Reason; 3] = [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR];

/// A back end, what it sees, and whether it answers before a body is over.
struct Watching {
    seen: Receiver<Seen>,
}

impl Watching {
    async fn start(bed: &Bed, speaks: AppProtocol, early: bool) -> Self {
        let listener = TcpListener::bind("127.0.1.9:0").await.unwrap();
        bed.known_backend("watching", "v1", listener.local_addr().unwrap());
        bed.publish_mesh(speaks);
        let (tell, seen) = channel(4);
        let scope = bed.scope.clone();
        bed.scope.spawn("watching", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                if speaks == AppProtocol::Http2 {
                    scope.spawn("http2", http2(scope.clone(), tcp, tell.clone(), early));
                } else {
                    scope.spawn("http1", http1(tcp, tell.clone(), early));
                }
            }
        });
        Self { seen }
    }

    async fn next(&mut self) -> Seen {
        self.seen.recv().await.unwrap()
    }
}

async fn http2(scope: Rc<LocalScope>, tcp: TcpStream, tell: Sender<Seen>, early: bool) {
    let mut connection = h2::server::handshake(tcp).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let tell = tell.clone();
        scope.spawn("stream", async move {
            let head = Response::new(());
            let _open = early.then(|| respond.send_response(head, false).unwrap());
            let mut body = request.into_body();
            let mut so_far = 0;
            let end = loop {
                match body.data().await {
                    Some(Ok(data)) => {
                        so_far += data.len();
                        if so_far == HALF.len() {
                            tell.try_send(Seen::Half).unwrap();
                        }
                    }
                    Some(Err(_)) => break Seen::Broken,
                    None => break Seen::Whole,
                }
            };
            tell.try_send(end).unwrap();
        });
    }
}

async fn http1(mut tcp: TcpStream, tell: Sender<Seen>, early: bool) {
    let (mut text, mut told) = (Vec::new(), false);
    while tcp.read_buf(&mut text).await.is_ok_and(|count| count > 0) {
        if !told && text.windows(HALF.len()).any(|part| part == HALF) {
            told = true;
            if early {
                let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                tcp.write_all(head).await.unwrap();
            }
            tell.try_send(Seen::Half).unwrap();
        }
    }
    let whole = text.ends_with(b"0\r\n\r\n");
    tell.try_send(if whole { Seen::Whole } else { Seen::Broken })
        .unwrap();
}

fn taken_back(speaks: AppProtocol, early: bool) {
    for reason in REASONS {
        run(|bed| async move {
            let mut watching = Watching::start(&bed, speaks, early).await;
            let stream = bed.tunnel("client", VIP).await.unwrap();
            let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
            bed.scope.spawn("client", async move {
                // Its streams see how it ends.
                let _ = connection.await;
            });
            let request = Request::post("http://svc:8080/up").body(()).unwrap();
            let (response, mut upload) = client.send_request(request, false).unwrap();
            upload.send_data(Bytes::from_static(HALF), false).unwrap();
            assert_eq!(watching.next().await, Seen::Half);
            let answer = if early {
                Some(response.await.unwrap())
            } else {
                None
            };
            upload.send_reset(reason);
            let end = watching.next().await;
            assert_eq!(end, Seen::Broken, "{speaks:?}, {reason:?}, early: {early}");
            drop(answer);
            assert!(bed.line().await.contains(" DC "), "the caller ended it");
        });
    }
}

#[test]
fn half_a_body_is_not_the_whole_to_an_endpoint_of_http1() {
    taken_back(AppProtocol::Http11, false);
}

#[test]
fn half_a_body_is_not_the_whole_to_an_endpoint_of_http2() {
    taken_back(AppProtocol::Http2, false);
}

#[test]
fn nor_once_the_endpoint_has_begun_to_answer() {
    taken_back(AppProtocol::Http11, true);
    taken_back(AppProtocol::Http2, true);
}
