//! Which lab is meant, and how to ask something inside it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use isobar_lab::{Lab, LabRoot, LabStatus, LabSummary, Target};
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

/// As [`chosen`], for what only a mesh can answer.
pub(crate) async fn chosen_mesh(named: Option<&str>) -> anyhow::Result<(Lab, LabStatus)> {
    let lab = chosen(named)?;
    let status = lab.status().await?;
    check_mesh(&status)?;
    Ok((lab, status))
}

fn check_mesh(status: &LabStatus) -> anyhow::Result<()> {
    if !status.mesh {
        bail!(
            "lab {} runs without the mesh (--no-mesh): it has no control plane, proxies or waypoints",
            status.name
        );
    }
    Ok(())
}

/// Name of the lab that is meant; with `running` only labs that run count.
pub(crate) fn name(root: &LabRoot, named: Option<&str>, running: bool) -> anyhow::Result<String> {
    if let Some(name) = named.filter(|name| !name.is_empty()) {
        return Ok(name.to_owned());
    }
    let labs = isobar_lab::list(root)?;
    meant(&labs, running)
}

fn meant(labs: &[LabSummary], running: bool) -> anyhow::Result<String> {
    let fitting: Vec<&LabSummary> = labs.iter().filter(|lab| lab.running || !running).collect();
    let names: Vec<&str> = fitting.iter().map(|lab| &*lab.name).collect();
    match names[..] {
        [] => bail!("no lab is running; `isobar lab up -f DIR` starts one"),
        [name] => Ok(name.to_owned()),
        _ => bail!(
            "{}: {}; choose one with --lab NAME",
            if fitting.iter().all(|lab| lab.running) {
                "several labs are running"
            } else {
                "there are several labs, running or left over"
            },
            names.join(", ")
        ),
    }
}

/// ` --lab NAME` for a command that is printed, if the command needs it to mean this lab.
pub(crate) fn flag(root: &LabRoot, name: &str, was_named: bool) -> String {
    let labs = isobar_lab::list(root).unwrap_or_default();
    let alone = labs.iter().all(|lab| lab.name == name || !lab.running);
    if alone && !was_named {
        String::new()
    } else {
        format!(" --lab {name}")
    }
}

/// A JSON page of a process of the lab.
pub(crate) async fn page(
    lab: &Lab,
    from: Target,
    to: SocketAddr,
    path: &str,
) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(
        &text_page(lab, from, to, path).await?,
    )?)
}

/// A page of a process of the lab, as it is.
pub(crate) async fn text_page(
    lab: &Lab,
    from: Target,
    to: SocketAddr,
    path: &str,
) -> anyhow::Result<String> {
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
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Asks for one page.
pub(crate) async fn get(stream: tokio::net::TcpStream, path: &str) -> anyhow::Result<bytes::Bytes> {
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

/// `NAMESPACE/NAME` if a namespace is given and the name holds none. A kind before the name, as in
/// `pod/NAME`, is left out: pods and Deployments are looked for by name alone.
pub(crate) fn qualified(namespace: Option<&str>, name: &str) -> String {
    let kinds = ["pod/", "pods/", "deployment/", "deploy/"];
    let name = kinds
        .iter()
        .find_map(|kind| name.strip_prefix(kind))
        .unwrap_or(name);
    match namespace {
        Some(namespace) if !name.contains('/') && !name.contains(':') => {
            format!("{namespace}/{name}")
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lab(name: &str, running: bool) -> LabSummary {
        LabSummary {
            name: name.to_owned(),
            running,
            pid: None,
            state_dir: name.into(),
        }
    }

    #[test]
    fn names_with_and_without_kind_and_namespace() {
        for (namespace, name, full) in [
            (Some("hello"), "httpbin", "hello/httpbin"),
            (Some("hello"), "pod/httpbin", "hello/httpbin"),
            (None, "deployment/web", "web"),
            (None, "shop/web", "shop/web"),
            (Some("hello"), "shop/web", "shop/web"),
            (Some("hello"), "node:node-1", "node:node-1"),
        ] {
            assert_eq!(qualified(namespace, name), full);
        }
    }

    #[test]
    fn the_lab_that_is_meant() {
        let labs = [lab("a", true), lab("b", false)];
        assert_eq!(meant(&labs, true).unwrap(), "a");
        let text = meant(&labs, false).unwrap_err().to_string();
        assert!(text.starts_with("there are several labs"), "{text}");
        let text = meant(&[lab("a", true), lab("c", true)], true).unwrap_err();
        assert!(
            text.to_string()
                .starts_with("several labs are running: a, c")
        );
        assert!(meant(&[], true).unwrap_err().to_string().contains("lab up"));
    }

    #[test]
    fn a_lab_without_the_mesh_says_so() {
        let status = |mesh: bool| -> LabStatus {
            serde_json::from_value(json!({"name": "plain", "ready": true, "mesh": mesh,
                "objects": [], "state_dir": "/", "nodes": [], "components": [], "pods": [],
                "services": [], "findings": []}))
            .unwrap()
        };
        assert!(check_mesh(&status(true)).is_ok());
        let text = check_mesh(&status(false)).unwrap_err().to_string();
        assert!(
            text.contains("plain") && text.contains("--no-mesh"),
            "{text}"
        );
    }
}
