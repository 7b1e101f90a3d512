//! Bodies over HTTP/2 in many small pieces, as gRPC has them: nobody loses a stream to the pieces of another
//! that wait for a reader.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use isobar_proto::istio::workload::AppProtocol;
use isobar_runtime::LocalScope;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::bed::*;

/// A message as gRPC has small ones.
const PIECE: &[u8] = b"\0\0\0\0\x0afifteen..";
/// More of them than HTTP/2 libraries let wait on a connection by themselves.
const MANY: usize = 60_000;
const LONG: Duration = Duration::from_secs(50);

/// What a back end does with a request, by its path: `/many` is answered in pieces, the body of `/slow` is
/// read only once `go` says so, others are answered at once.
#[derive(Clone, Default)]
struct Script {
    go: Rc<tokio::sync::Notify>,
    connections: Rc<Cell<usize>>,
}

async fn back_end(bed: &Bed) -> Script {
    let listener = TcpListener::bind("127.0.1.9:0").await.unwrap();
    bed.known_backend("pieces", "v1", listener.local_addr().unwrap());
    bed.publish_mesh(AppProtocol::Grpc);
    let (script, scope) = (Script::default(), bed.scope.clone());
    let told = script.clone();
    bed.scope.spawn("pieces", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            told.connections.set(told.connections.get() + 1);
            scope.spawn("connection", serve(scope.clone(), tcp, told.clone()));
        }
    });
    script
}

async fn serve(scope: Rc<LocalScope>, tcp: TcpStream, script: Script) {
    let mut builder = h2::server::Builder::new();
    builder
        .data_frame_budget(1 << 30)
        .initial_connection_window_size(1 << 24);
    let mut connection = builder.handshake(tcp).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let script = script.clone();
        scope.spawn("stream", async move {
            let path = request.uri().path().to_owned();
            let head = Response::builder().header("content-type", "application/grpc");
            let mut out = respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            match &*path {
                "/many" => {
                    // Whoever takes no more of it says so by a reset.
                    let _ = pieces(&mut out).await;
                }
                "/slow" => {
                    script.go.notified().await;
                    let count = count(request.into_body()).await.unwrap();
                    let text = Bytes::from(count.to_string());
                    out.reserve_capacity(text.len());
                    out.send_data(text, true).unwrap();
                }
                _ => out.send_data(Bytes::new(), true).unwrap(),
            }
        });
    }
}

/// Sends many pieces, and says so; `None` if the other side does not want them.
async fn pieces(out: &mut SendStream<Bytes>) -> Option<()> {
    for left in (0..MANY).rev() {
        out.reserve_capacity(PIECE.len());
        while out.capacity() < PIECE.len() {
            std::future::poll_fn(|cx| out.poll_capacity(cx))
                .await?
                .ok()?;
        }
        out.send_data(Bytes::from_static(PIECE), left == 0).ok()?;
    }
    Some(())
}

/// Octets of a body.
async fn count(mut body: RecvStream) -> Result<usize, h2::Error> {
    let mut count = 0;
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
        count += length;
    }
    Ok(count)
}

async fn caller(bed: &Bed) -> SendRequest<Bytes> {
    let stream = bed.tunnel("client", VIP).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder
        .data_frame_budget(1 << 30)
        .initial_connection_window_size(1 << 20);
    let (client, connection) = builder.handshake(stream).await.unwrap();
    bed.scope.spawn("client", async move {
        // Its streams see how it ends.
        let _ = connection.await;
    });
    client
}

fn ask(path: &str) -> Request<()> {
    let request = Request::post(format!("http://svc:8080{path}"));
    let request = request.header("content-type", "application/grpc");
    request.body(()).unwrap()
}

async fn answer(client: &mut SendRequest<Bytes>, path: &str) -> Result<RecvStream, h2::Error> {
    let (response, _) = client.send_request(ask(path), true)?;
    Ok(timeout(LONG, response).await.unwrap()?.into_body())
}

#[test]
fn a_reader_that_keeps_up_gets_all_pieces() {
    run(|bed| async move {
        let _script = back_end(&bed).await;
        let mut client = caller(&bed).await;
        let body = answer(&mut client, "/many").await.unwrap();
        let count = timeout(LONG, count(body)).await.unwrap();
        assert_eq!(count.unwrap(), MANY * PIECE.len());
    });
}

#[test]
fn a_caller_that_does_not_read_costs_others_nothing() {
    run(|bed| async move {
        let script = back_end(&bed).await;
        let (mut idle, mut busy) = (caller(&bed).await, caller(&bed).await);
        let unread = answer(&mut idle, "/many").await.unwrap();
        let early = answer(&mut busy, "/many").await.unwrap();
        let all = timeout(LONG, count(early)).await.unwrap();
        assert_eq!(all.unwrap(), MANY * PIECE.len(), "beside one that waits");
        for _ in 0..3 {
            let body = answer(&mut busy, "/").await.unwrap();
            assert_eq!(count(body).await.unwrap(), 0);
        }
        assert_eq!(script.connections.get(), 1, "all were on one connection");
        let all = timeout(LONG, count(unread)).await.unwrap();
        assert_eq!(all.unwrap(), MANY * PIECE.len(), "once it is read");
    });
}

#[test]
fn an_endpoint_that_does_not_read_costs_other_streams_nothing() {
    run(|bed| async move {
        let script = back_end(&bed).await;
        let mut client = caller(&bed).await;
        let (response, mut upload) = client.send_request(ask("/slow"), false).unwrap();
        let scope = bed.scope.clone();
        scope.spawn("upload", async move {
            let _ = pieces(&mut upload).await;
        });
        let body = timeout(LONG, response).await.unwrap().unwrap().into_body();
        for _ in 0..200 {
            let other = answer(&mut client, "/").await.unwrap();
            assert_eq!(count(other).await.unwrap(), 0);
        }
        script.go.notify_one();
        let length = timeout(LONG, count(body)).await.unwrap().unwrap();
        assert_eq!(length, (MANY * PIECE.len()).to_string().len());
    });
}

/// Each waits as a frame of its own otherwise, where the caller does not read.
#[test]
fn pieces_of_one_octet_leave_together() {
    run(|bed| async move {
        let listener = TcpListener::bind("127.0.1.9:0").await.unwrap();
        bed.known_backend("octets", "v1", listener.local_addr().unwrap());
        bed.publish_mesh(AppProtocol::Http11);
        bed.scope.spawn("octets", async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let all = [&head[..], &b"1\r\nx\r\n".repeat(MANY), b"0\r\n\r\n"].concat();
            tcp.write_all(&all).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut client = caller(&bed).await;
        let mut body = answer(&mut client, "/").await.unwrap();
        let (mut octets, mut frames) = (0, 0);
        while let Some(data) = timeout(LONG, body.data()).await.unwrap() {
            let length = data.unwrap().len();
            body.flow_control().release_capacity(length).unwrap();
            octets += length;
            frames += 1;
        }
        assert_eq!(octets, MANY);
        assert!(frames < MANY / 100, "{frames}");
    });
}
