use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Export;
use crate::eventually;

/// A running Envoy with one worker; ends with this value.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    folder: TempDir,
    log: PathBuf,
    listeners: BTreeMap<String, SocketAddr>,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // By its id; it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    /// Starts it with this configuration and waits until it serves. What it was told and says goes
    /// to `differential-NAME` in the target folder. To be called from a `LocalSet`.
    ///
    /// # Errors
    /// When there is no Envoy (`make setup` installs it), or it does not serve.
    pub async fn start(name: &str, export: Export) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let bootstrap = json!({
            "node": {"id": "oracle", "cluster": "oracle"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "bootstrap_extensions": export.extensions(),
            "static_resources": {"listeners": export.listeners, "clusters": export.clusters},
        });
        let output = target_folder().join(format!("differential-{name}"));
        std::fs::create_dir_all(&output)?;
        // What Envoy was told stays for whoever looks into a difference.
        let config = output.join("envoy.json");
        std::fs::write(&config, serde_json::to_string_pretty(&bootstrap)?)?;
        let log = output.join("envoy.log");
        let log_file = File::create(&log)?;
        let child = Command::new(program()?)
            .arg("--config-path")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(folder.path().join("admin"))
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warning",
            ])
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .context("envoy does not start")?;
        let mut envoy = Self {
            child,
            folder,
            log,
            listeners: BTreeMap::new(),
        };
        let told = envoy.ready().await;
        envoy.listeners = told.with_context(|| format!("envoy: {}", envoy.last_words()))?;
        Ok(envoy)
    }

    async fn ready(&mut self) -> Result<BTreeMap<String, SocketAddr>> {
        let file = self.folder.path().join("admin");
        let child = std::cell::RefCell::new(&mut self.child);
        let gone = || {
            child
                .borrow_mut()
                .try_wait()
                .is_ok_and(|ended| ended.is_some())
        };
        eventually("envoy serves", || async {
            if gone() {
                // Nothing more will come.
                return Ok(None);
            }
            let admin: SocketAddr = std::fs::read_to_string(&file)?.trim().parse()?;
            let ready = get(admin, "/ready").await?;
            if ready.trim() != "LIVE" {
                bail!("it is {ready}");
            }
            let text = get(admin, "/listeners?format=json").await?;
            Ok(Some(addresses(&serde_json::from_str(&text)?)))
        })
        .await?
        .context("it has ended")
    }

    /// Where the listener of that name is.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.listeners[listener]
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn addresses(told: &Value) -> BTreeMap<String, SocketAddr> {
    let listeners = told["listener_statuses"].as_array();
    let entries = listeners.into_iter().flatten().filter_map(|one| {
        let at = &one["local_address"]["socket_address"];
        let text = format!("{}:{}", at["address"].as_str()?, at["port_value"]);
        Some((one["name"].as_str()?.to_owned(), text.parse().ok()?))
    });
    entries.collect()
}

async fn get(at: SocketAddr, path: &str) -> Result<String> {
    let tcp = tokio::net::TcpStream::connect(at).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    // Its request sees how it ends.
    drop(tokio::task::spawn_local(async move {
        let _ = connection.await;
    }));
    let request = http::Request::get(path).header("host", "admin");
    let response = sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// The program itself: what is on the path is a script that would outlive its own end.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        return Ok(path.into());
    }
    let libraries = root().join(".venv/lib");
    let found = std::fs::read_dir(&libraries)
        .into_iter()
        .flatten()
        .flatten();
    found
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.exists())
        .with_context(|| format!("no envoy below {}: run make setup", libraries.display()))
}

fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
