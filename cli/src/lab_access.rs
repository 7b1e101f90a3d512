//! Which lab is meant, and how to ask something inside it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use isobar_lab::{Lab, LabRoot, Target};
use isobar_runtime::Scope;
use serde_json::Value;

const DIAL: Duration = Duration::from_secs(5);
const PAGE: Duration = Duration::from_secs(30);
/// Where the control plane's pages are.
pub(crate) const CONTROL_PLANE: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(172, 30, 0, 1)), 15014);
/// Where a proxy's admin pages are, from its own network.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// The lab that is named, or the only one that runs.
pub(crate) fn chosen(named: Option<&str>) -> anyhow::Result<Lab> {
    let root = LabRoot::from_env();
    Ok(Lab::connect(&root, &name(&root, named, true)?)?)
}

/// Name of the lab that is meant; with `running` only labs that run count.
pub(crate) fn name(root: &LabRoot, named: Option<&str>, running: bool) -> anyhow::Result<String> {
    if let Some(name) = named.filter(|name| !name.is_empty()) {
        return Ok(name.to_owned());
    }
    let labs = isobar_lab::list(root)?;
    let mut names: Vec<String> = labs
        .into_iter()
        .filter(|lab| lab.running || !running)
        .map(|lab| lab.name)
        .collect();
    match names.len() {
        0 => bail!("no lab is running; `isobar lab up -f DIR` starts one"),
        1 => Ok(names.remove(0)),
        _ => bail!(
            "several labs are running: {}; choose one with --lab NAME",
            names.join(", ")
        ),
    }
}

/// A JSON page of a process of the lab.
pub(crate) async fn page(
    lab: &Lab,
    from: Target,
    to: SocketAddr,
    path: &str,
) -> anyhow::Result<Value> {
    let place = from.to_string();
    let get = async {
        let stream = lab.dial(from, to, DIAL).await?;
        stream.set_nonblocking(true)?;
        get(tokio::net::TcpStream::from_std(stream)?, path).await
    };
    let body = tokio::time::timeout(PAGE, get)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {PAGE:?}"))
        .and_then(|result| result)
        .with_context(|| format!("asking {to} at {place} for {path}"))?;
    Ok(serde_json::from_slice(&body)?)
}

async fn get(stream: tokio::net::TcpStream, path: &str) -> anyhow::Result<bytes::Bytes> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let scope = Scope::new("page");
    scope.spawn("connection", async move {
        // What goes wrong is told by the request.
        let _ = connection.await;
    });
    let request = http::Request::get(path)
        .header(http::header::HOST, "localhost")
        .body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    scope.shutdown(Duration::ZERO).await;
    if !status.is_success() {
        bail!("{status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

/// `NAMESPACE/NAME` if a namespace is given and the name holds none.
pub(crate) fn qualified(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) if !name.contains('/') && !name.contains(':') => {
            format!("{namespace}/{name}")
        }
        _ => name.to_owned(),
    }
}
