//! A port of a pod of a cluster, on this machine: done by kubectl, which everybody has who has a
//! cluster.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use isobar_types::ports;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::arguments::Global;
use crate::lab_access::get;

/// Until kubectl listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// For one page.
const PAGE: Duration = Duration::from_secs(30);

/// A forwarded port; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// Where it is here.
    pub(crate) address: SocketAddr,
    child: Child,
    /// A line for each connection comes here; kubectl ends when nobody takes them.
    out: BufReader<ChildStdout>,
}

impl Forwarded {
    /// Forwards a free port, or `local`, to `port` of a pod.
    pub(crate) async fn start(
        global: &Global,
        namespace: &str,
        pod: &str,
        (local, port): (u16, u16),
    ) -> anyhow::Result<Self> {
        let program = std::env::var_os("KUBECTL").unwrap_or_else(|| OsString::from("kubectl"));
        let mut command = Command::new(&program);
        if let Some(file) = &global.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &global.context {
            command.arg("--context").arg(context);
        }
        let here = if local == 0 {
            String::new()
        } else {
            local.to_string()
        };
        command
            .args(["port-forward", "--address", "127.0.0.1", "-n", namespace])
            .args([&format!("pod/{pod}"), &format!("{here}:{port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| {
            let name = program.display();
            format!("starting {name}, which forwards ports in a cluster (KUBECTL names another)")
        })?;
        let out = child.stdout.take().context("kubectl's output")?;
        let mut line = String::new();
        let mut lines = BufReader::new(out);
        let heard = tokio::time::timeout(PATIENCE, lines.read_line(&mut line)).await;
        match (heard, told(&line)) {
            (Ok(Ok(_)), Some(address)) => Ok(Self {
                address,
                child,
                out: lines,
            }),
            (Err(_), _) => bail!("kubectl forwards nothing after {PATIENCE:?}"),
            _ => {
                let mut error = String::new();
                if let Some(mut err) = child.stderr.take() {
                    // What it says is only a help here.
                    let _ = err.read_to_string(&mut error).await;
                }
                bail!(
                    "kubectl cannot forward to pod {namespace}/{pod}: {}",
                    error.trim()
                )
            }
        }
    }

    /// Waits until kubectl ends by itself.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        tokio::io::copy(&mut self.out, &mut tokio::io::sink()).await?;
        let status = self.child.wait().await?;
        bail!("kubectl ended: {status}")
    }
}

/// An admin page of a pod, which it shows to its own loopback only.
pub(crate) async fn admin_page(
    global: &Global,
    namespace: &str,
    pod: &str,
    path: &str,
) -> anyhow::Result<String> {
    let forwarded = Forwarded::start(global, namespace, pod, (0, ports::ADMIN)).await?;
    let asking = async {
        let stream = tokio::net::TcpStream::connect(forwarded.address).await?;
        get(stream, path).await
    };
    let body = tokio::time::timeout(PAGE, asking)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {PAGE:?}"))
        .and_then(|answer| answer)
        .with_context(|| format!("asking pod {namespace}/{pod} for {path}"))?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// The address in `Forwarding from 127.0.0.1:40123 -> 15000`.
fn told(line: &str) -> Option<SocketAddr> {
    let rest = line.strip_prefix("Forwarding from ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_says_where_it_listens() {
        let line = "Forwarding from 127.0.0.1:40123 -> 15000\n";
        assert_eq!(told(line), Some(SocketAddr::from(([127, 0, 0, 1], 40123))));
        assert_eq!(told("error: x"), None);
    }
}
