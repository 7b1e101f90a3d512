//! gRPC: HTTP/2 from end to end, balanced by call, with trailers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use isobar_runtime::Scope;
use isobar_tests::eventually;
use tokio::net::TcpListener;

use super::Scene;
use crate::fixture::run;

const GRPC_PORT: u16 = 9090;

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// A gRPC server: every call is answered with three messages and the status in trailers.
fn serve(name: &'static str, listener: TcpListener, calls: Arc<AtomicUsize>) -> Scope {
    let scope = Scope::new("grpc-server");
    scope.spawn("accept", async move {
        let connections = Scope::new("grpc-connections");
        while let Ok((stream, _)) = listener.accept().await {
            let calls = Arc::clone(&calls);
            connections.spawn("connection", async move {
                let service = service_fn(move |request| {
                    calls.fetch_add(1, Ordering::SeqCst);
                    answer(name, request)
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                // How a caller ends a connection is its own affair.
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    scope
}

type Messages =
    StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<Messages>, Infallible> {
    // A call whose messages break off is answered all the same.
    let _ = request.into_body().collect().await;
    let mut message = vec![0, 0, 0, 0];
    message.push(u8::try_from(name.len()).unwrap());
    message.extend(name.as_bytes());
    let message = Bytes::from(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames: Vec<Result<_, Infallible>> = vec![
        Ok(Frame::data(message.clone())),
        Ok(Frame::data(message.clone())),
        Ok(Frame::data(message)),
        Ok(Frame::trailers(trailers)),
    ];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}

/// An HTTP/2 connection from the client pod, and what drives it.
async fn connect(scene: &Scene) -> Result<(Sender, Scope)> {
    let stream = scene.caller.connect(scene.to(GRPC_PORT)).await?;
    let (sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let scope = Scope::new("grpc-client");
    scope.spawn("connection", async move {
        // How it ended shows in the call that was under way.
        let _ = driver.await;
    });
    Ok((sender, scope))
}

/// One call: who answered, and the status of the trailers.
async fn call(sender: &mut Sender) -> Result<(String, String)> {
    let request = Request::post("http://app:9090/hello.Greeter/Say")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 0])))?;
    let response = sender.send_request(request).await?;
    ensure!(response.status() == 200, "{response:?}");
    if let Some(status) = response.headers().get("grpc-status") {
        anyhow::bail!("no messages, grpc-status {status:?}");
    }
    let collected = response.into_body().collect().await?;
    let trailers = collected.trailers().cloned().context("no trailers")?;
    let body = collected.to_bytes();
    ensure!(body.len() == 21, "{body:?}");
    let status = trailers.get("grpc-status").context("no grpc-status")?;
    let name = String::from_utf8_lossy(&body[5..7]).into_owned();
    Ok((name, status.to_str()?.to_owned()))
}

#[test]
fn s081_calls_are_balanced_one_by_one_and_keep_their_trailers() {
    run(async {
        let scene = Scene::start(&["v1", "v2"], &[]).await?;
        let calls = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
        let mut servers = Vec::new();
        for (version, calls) in ["v1", "v2"].into_iter().zip(&calls) {
            let pod = scene.mesh.caller(&format!("shop/{version}")).await?;
            servers.push(serve(version, pod.listen(GRPC_PORT)?, Arc::clone(calls)));
        }
        eventually("both answer", async || {
            let (mut sender, _driver) = connect(&scene).await?;
            for _ in 0..10 {
                call(&mut sender).await?;
            }
            for calls in &calls {
                ensure!(calls.load(Ordering::SeqCst) > 0, "one was not asked");
            }
            Ok(())
        })
        .await?;
        let (mut sender, _driver) = connect(&scene).await?;
        let mut first = 0;
        for _ in 0..100 {
            let (name, status) = call(&mut sender).await?;
            ensure!(status == "0", "{name}: {status}");
            first += usize::from(name == "v1");
        }
        ensure!(
            (20..=80).contains(&first),
            "{first} of 100 on one connection"
        );
        scene.mesh.down()
    });
}
