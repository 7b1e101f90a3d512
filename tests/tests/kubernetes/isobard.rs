//! The control plane as a program of its own beside an API server.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use isobar_tests::{ApiServer, binaries};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Far more than a start takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(50);

/// A control plane; ended when dropped.
pub(crate) struct Isobard {
    child: Child,
    monitoring: SocketAddr,
    log: PathBuf,
}

impl Isobard {
    /// Starts one over the server, with a folder `name` for its state, and waits until it is ready.
    /// `{webhook}` in arguments becomes an address of its own.
    pub(crate) async fn start(server: &ApiServer, name: &str, more: &[&str]) -> Result<Self> {
        let [monitoring, listen, webhook] = free()?;
        let folder = server.folder().join(name);
        std::fs::create_dir_all(&folder)?;
        let log = server.folder().join(format!("{name}.log"));
        let file = std::fs::File::create(&log)?;
        let state = folder.to_string_lossy().into_owned();
        let own = [
            "--kubernetes".to_owned(),
            format!("--state-dir={state}"),
            format!("--listen={listen}"),
            format!("--monitoring={monitoring}"),
            "--tls-san=127.0.0.1".to_owned(),
        ];
        let more = more
            .iter()
            .map(|arg| arg.replace("{webhook}", &webhook.to_string()));
        // Without this a test that is killed leaves it running.
        let child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(binaries()?.join("isobard"))
            .args(own.into_iter().chain(more))
            .env("KUBECONFIG", server.admin()?)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting isobard")?;
        let mut one = Self {
            child,
            monitoring,
            log,
        };
        let started = Instant::now();
        while let Err(error) = one.page("/ready").await {
            let has_ended = !matches!(one.child.try_wait(), Ok(None));
            if has_ended || started.elapsed() > PATIENCE {
                bail!(
                    "isobard is not ready (ended: {has_ended}): {error:#}\n{}",
                    one.said()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(one)
    }

    /// A page of its monitoring port.
    pub(crate) async fn page(&self, path: &str) -> Result<String> {
        get(self.monitoring, path).await
    }

    /// The same as JSON.
    pub(crate) async fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.page(path).await?)?)
    }

    /// Tells it to end, and waits until it has.
    pub(crate) async fn end(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status()?;
        ensure!(told.success(), "kill {pid}");
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(started.elapsed() < PATIENCE, "it does not end");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Its log.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Isobard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of a page that is answered with 200.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut tcp = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

/// Addresses that nobody listens on now, all different.
fn free() -> Result<[SocketAddr; 3]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let held = [listen()?, listen()?, listen()?];
    let mut found = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3];
    for (address, listener) in found.iter_mut().zip(&held) {
        *address = listener.local_addr()?;
    }
    Ok(found)
}

/// The authority of a folder, as a secret would have it: its own issuer, trusted beside `more`.
pub(crate) fn plug_in(folder: &Path, more: &str) -> Result<String> {
    let made = tempfile::tempdir()?;
    let authority = isobar_tls::ca::Authority::load_or_create(made.path())?;
    std::fs::create_dir_all(folder)?;
    let roots = format!("{}{more}", authority.roots());
    std::fs::write(folder.join("root-cert.pem"), &roots)?;
    std::fs::write(folder.join("ca-cert.pem"), authority.roots())?;
    let key = std::fs::read(made.path().join("ca-key.pem"))?;
    std::fs::write(folder.join("ca-key.pem"), key)?;
    Ok(roots)
}
