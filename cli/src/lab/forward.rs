use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anstream::println;
use anyhow::{Context, Result};
use isobar_lab::{Lab, Target};
use isobar_runtime::Scope;
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for a connection inside the lab.
const LIMIT: Duration = Duration::from_secs(10);

/// Listens on this machine's loopback and carries each connection into the lab, until interrupted.
pub(super) async fn run(lab: Lab, namespace: &str, target: &str, ports: &str) -> Result<()> {
    let (local, remote) = ports.split_once(':').unwrap_or((ports, ports));
    let number = |text: &str| {
        text.parse::<u16>()
            .with_context(|| format!("{text:?} is not a port; write LOCAL:REMOTE"))
    };
    let (local, remote) = (number(local)?, number(remote)?);
    let pod = pod_of(&lab, namespace, target).await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local))
        .await
        .with_context(|| format!("listening on port {local}; choose another as LOCAL:{remote}"))?;
    println!(
        "http://{} is port {remote} of {pod}; Ctrl-C ends it",
        listener.local_addr()?
    );
    let scope = Scope::new("forward");
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        };
        let (lab, pod) = (lab.clone(), pod.clone());
        scope.spawn("connection", async move {
            if let Err(error) = carry(&lab, &pod, remote, stream).await {
                eprintln!("{error:#}");
            }
        });
    }
}

/// From inside the pod to its own loopback: as the kubelet does, past the mesh.
async fn carry(lab: &Lab, pod: &str, port: u16, mut stream: TcpStream) -> Result<()> {
    let to = SocketAddr::from((IpAddr::from(Ipv4Addr::LOCALHOST), port));
    let inner = lab
        .dial(Target::pod(pod), to, LIMIT)
        .await
        .with_context(|| format!("connecting to port {port} of {pod}"))?;
    inner.set_nonblocking(true)?;
    let mut inner = TcpStream::from_std(inner)?;
    // An end in the middle is the browser's or the application's own doing.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
    Ok(())
}

/// The pod meant: itself, or the first ready one behind `svc/NAME`.
async fn pod_of(lab: &Lab, namespace: &str, target: &str) -> Result<String> {
    let status = lab.status().await?;
    let Some(service) = target
        .strip_prefix("svc/")
        .or_else(|| target.strip_prefix("service/"))
    else {
        let pod = target.strip_prefix("pod/").unwrap_or(target);
        return Ok(format!("{namespace}/{pod}"));
    };
    let service = status
        .services
        .iter()
        .find(|s| s.namespace == namespace && s.name == service)
        .with_context(|| {
            format!("no service {namespace}/{service}; `isobar lab status` lists them")
        })?;
    let pod = status
        .pods
        .iter()
        .find(|p| p.ip.is_some_and(|ip| service.endpoints.contains(&ip)))
        .with_context(|| format!("service {namespace}/{} has no ready pod", service.name))?;
    Ok(format!("{}/{}", pod.namespace, pod.name))
}
