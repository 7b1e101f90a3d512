use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use isobar_lab::{Lab, Target};
use isobar_runtime::Scope;
use serde_json::Value;
use tokio::net::TcpStream;

/// Longest wait for a page.
const LIMIT: Duration = Duration::from_secs(10);
/// The control plane's debug pages, on the network between the nodes.
const CONTROL_PLANE: ([u8; 4], u16) = ([172, 30, 0, 1], 15014);

/// A JSON page of the control plane.
pub(crate) async fn control_plane(lab: &Lab, path: &str) -> Result<Value> {
    get(lab, Target::Outer, CONTROL_PLANE.into(), path)
        .await
        .context("asking the control plane; `isobar lab logs isobard` may tell more")
}

/// A JSON page of a proxy's admin port, in its own network namespace.
pub(crate) async fn admin(lab: &Lab, of: Target, path: &str) -> Result<Value> {
    let name = of.to_string();
    get(lab, of, ([127, 0, 0, 1], 15000).into(), path)
        .await
        .with_context(|| format!("asking the proxy of {name}"))
}

async fn get(lab: &Lab, from: Target, to: SocketAddr, path: &str) -> Result<Value> {
    let stream = lab.dial(from, to, LIMIT).await?;
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream)?;
    let body = tokio::time::timeout(LIMIT, exchange(stream, to, path))
        .await
        .with_context(|| format!("no answer within {LIMIT:?}"))??;
    serde_json::from_slice(&body).with_context(|| format!("{path} is not JSON"))
}

async fn exchange(stream: TcpStream, to: SocketAddr, path: &str) -> Result<Bytes> {
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    let scope = Scope::new("page");
    scope.spawn("connection", async move {
        // How it ended shows in the request.
        let _ = driver.await;
    });
    let request = Request::get(path)
        .header("host", to.to_string())
        .body(Empty::<Bytes>::new())?;
    let reply = sender.send_request(request).await?;
    let status = reply.status();
    let body = reply.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{path}: {status} {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}
