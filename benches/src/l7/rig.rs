//! One proxy with one scene, and the application that all proxies share.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use isobar_tests::envoy::{Envoy, Export};
use isobar_tests::eventually_within;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use super::Contender;
use super::caller::{Load, Measured, connect, read_reply};
use super::feed::Feed;
use super::scene::{ACCOUNT, NAMESPACE, Scene, WAYPOINT};
use super::server::endpoints;
use crate::cores::give_own;
use crate::cost::{Usage, usage_of_process};

/// For a proxy to serve: thousands of routes take their time.
const START: Duration = Duration::from_secs(60);
/// For a proxy to end before it is killed.
const ENDING: Duration = Duration::from_secs(10);
/// Between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// The application; ends with this value.
pub(super) struct Application {
    child: Child,
    /// What it is told, and what it says to that.
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    pub(super) endpoints: Vec<SocketAddr>,
}

/// A program of ours that ends with its handle.
fn own_program(role: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

impl Application {
    pub(super) async fn start() -> Result<Self> {
        let mut child = own_program("http-server")?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the application does not start")?;
        let input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line).await?;
        let port: u16 = line.trim().parse().context("the application's port")?;
        Ok(Self {
            child,
            talk: Mutex::new((input, output)),
            endpoints: endpoints(port).collect(),
        })
    }

    /// Requests of HTTP/2 are answered with bodies of this size from now on.
    pub(super) async fn answer_with(&self, size: usize) -> Result<()> {
        let (input, output) = &mut *self.talk.lock().await;
        let wanted = format!("{size}\n");
        input.write_all(wanted.as_bytes()).await?;
        let mut said = String::new();
        output.read_line(&mut said).await?;
        ensure!(said == wanted, "the application says {said:?}");
        Ok(())
    }

    pub(super) fn used(&self) -> Usage {
        self.child
            .id()
            .map_or_else(Usage::default, usage_of_process)
    }
}

/// A proxy that runs; ends with this value.
pub(super) struct Rig {
    pub(super) contender: Contender,
    pub(super) scene: Scene,
    doors: BTreeMap<&'static str, SocketAddr>,
    proxy: Proxy,
    endpoints: Vec<SocketAddr>,
    folder: TempDir,
}

impl Drop for Rig {
    /// Ends our proxy as its operator would: a program that was built to tell how often it ran each of
    /// its functions (`make profile`) writes that as it ends.
    fn drop(&mut self) {
        let Proxy::Ours { child, .. } = &mut self.proxy else {
            return;
        };
        let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) else {
            return;
        };
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        for _ in 0..ENDING.as_millis() / LOOK.as_millis() {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

enum Proxy {
    Ours {
        child: Child,
        feed: Box<Feed>,
    },
    Envoy(Envoy),
    /// The application itself.
    None,
}

impl Rig {
    pub(super) async fn start(
        contender: Contender,
        scene: &Scene,
        application: &Application,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let endpoints = application.endpoints.clone();
        let (proxy, doors) = match contender {
            Contender::Ours => ours(scene, &endpoints, folder.path()).await?,
            Contender::Envoy => envoy(scene, &endpoints, folder.path()).await?,
            Contender::NoProxy => {
                let doors = scene
                    .called
                    .iter()
                    .map(|called| (called.name, endpoints[0]));
                (Proxy::None, doors.collect())
            }
        };
        let mut rig = Self {
            contender,
            scene: scene.clone(),
            doors,
            proxy,
            endpoints,
            folder,
        };
        if let Some(id) = rig.id() {
            give_own(id)?;
        }
        let ready = rig.ready().await;
        ready.with_context(|| format!("{}, {}: {}", contender.name(), scene.name, rig.log()))?;
        Ok(rig)
    }

    async fn ready(&mut self) -> Result<()> {
        if let Proxy::Ours { child, .. } = &mut self.proxy
            && let Some(status) = child.try_wait()?
        {
            bail!("it has ended: {status}");
        }
        for called in self.scene.called.iter().filter(|c| c.name == "web") {
            let path = called.path(1);
            eventually_within("it serves", START, async || {
                get(self.door(called.name)?, &path).await
            })
            .await?;
        }
        Ok(())
    }

    fn log(&self) -> String {
        match &self.proxy {
            Proxy::Envoy(envoy) => envoy.last_words(),
            Proxy::Ours { .. } | Proxy::None => {
                std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
            }
        }
    }

    /// Where requests for a service go.
    pub(super) fn door(&self, service: &str) -> Result<SocketAddr> {
        let door = self.doors.get(service).copied();
        door.with_context(|| format!("no service {service}"))
    }

    /// What the proxy has used so far.
    pub(super) fn used(&self) -> Usage {
        self.id().map_or_else(Usage::default, usage_of_process)
    }

    /// The proxy's process.
    fn id(&self) -> Option<u32> {
        match &self.proxy {
            Proxy::Ours { child, .. } => child.id(),
            Proxy::Envoy(envoy) => Some(envoy.id()),
            Proxy::None => None,
        }
    }

    /// Starts a load, which runs on its own.
    pub(super) fn start_load(&self, load: &Load) -> Result<Child> {
        let protocol = clap::ValueEnum::to_possible_value(&load.protocol);
        let protocol = protocol.context("a protocol without a name")?;
        let words = [
            ("--protocol", protocol.get_name().to_owned()),
            ("--to", load.to.to_string()),
            ("--path", load.path.clone()),
            ("--connections", load.connections.to_string()),
            ("--streams", load.streams.to_string()),
            ("--seconds", load.seconds.to_string()),
            ("--rate", load.rate.to_string()),
        ];
        let mut command = own_program("http-client")?;
        for (flag, value) in words {
            command.args([flag, &value]);
        }
        let child = command.stdout(Stdio::piped()).spawn();
        child.context("the load generator does not start")
    }

    /// Replaces the routes by another version of them; tells when they were with the proxy.
    pub(super) async fn push(&self, version: u32) -> Result<Instant> {
        let told = self.scene.told(&self.endpoints, version)?;
        let now = Instant::now();
        match &self.proxy {
            Proxy::Ours { feed, .. } => {
                feed.push_routes(&told, version).await?;
                Ok(now)
            }
            Proxy::Envoy(_) => {
                // From the moment the file is there: writing it is nobody's cost.
                export(&self.scene, &told).write_routes(self.folder.path(), version)?;
                Ok(Instant::now())
            }
            Proxy::None => Ok(now),
        }
    }
}

/// What a load says once it is over.
pub(super) async fn measured(load: Child) -> Result<Measured> {
    let output = load.wait_with_output().await?;
    ensure!(
        output.status.success(),
        "the load generator: {}",
        output.status
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Asks once, on a new connection.
async fn get(to: SocketAddr, path: &str) -> Result<()> {
    let mut tcp = connect(to).await?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
    tcp.write_all(head.as_bytes()).await?;
    let reply = async { read_reply(&mut tcp, &mut vec![0; 16 * 1024]).await };
    tokio::time::timeout(Duration::from_secs(5), reply).await?
}

type Started = (Proxy, BTreeMap<&'static str, SocketAddr>);

async fn ours(scene: &Scene, endpoints: &[SocketAddr], folder: &Path) -> Result<Started> {
    let feed = Feed::start(&scene.told(endpoints, 0)?).await?;
    let mut doors = BTreeMap::new();
    for called in &scene.called {
        doors.insert(called.name, free_address()?);
    }
    let plaintext: Vec<String> = scene
        .called
        .iter()
        .map(|called| format!("{}={}", doors[called.name], called.authority()))
        .collect();
    let server = format!("https://{}", feed.address);
    let log = if scene.access_log { "on" } else { "off" };
    let child = Command::new(isobar_tests::binaries()?.join("waypoint"))
        .arg("proxy")
        .env_clear()
        .envs([
            ("POD_NAME", "wp-1"),
            ("POD_NAMESPACE", NAMESPACE),
            ("SERVICE_ACCOUNT", ACCOUNT),
            ("GATEWAY_NAME", WAYPOINT),
            ("INSTANCE_IP", "127.0.0.1"),
            ("XDS_ADDRESS", &*server),
            ("XDS_ROOT_CA", &*feed.roots),
            ("CA_ROOT_CA", &*feed.roots),
            ("AUTH_TOKEN", "bench"),
            ("WORKER_THREADS", "1"),
            ("ACCESS_LOG", log),
            ("RUST_LOG", "warn"),
            ("HBONE_PORT", "0"),
            ("ADMIN_PORT", "0"),
            ("STATS_PORT", "0"),
            ("READINESS_PORT", "0"),
            ("ISOBAR_PLAINTEXT", &*plaintext.join(",")),
        ])
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("log"))?)
        .spawn()
        .context("waypoint does not start")?;
    let feed = Box::new(feed);
    Ok((Proxy::Ours { child, feed }, doors))
}

/// An address nobody listens on, most likely for the next moment too.
fn free_address() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

async fn envoy(scene: &Scene, endpoints: &[SocketAddr], folder: &Path) -> Result<Started> {
    let mut export = export(scene, &scene.told(endpoints, 0)?);
    export.read_routes_from(folder)?;
    if scene.access_log {
        export.log_requests(Path::new("/dev/null"));
    }
    let envoy = Envoy::start(&format!("bench-{}", scene.name), export).await?;
    let doors = scene.called.iter().map(|called| {
        let listener = called.call().listener(&scene.name);
        (called.name, envoy.address(&listener))
    });
    let doors = doors.collect();
    Ok((Proxy::Envoy(envoy), doors))
}

fn export(scene: &Scene, told: &isobar_control_plane::Told) -> Export {
    let mut export = Export::default();
    let calls = scene.called.iter().map(super::scene::Called::call);
    export.add(&scene.name, told, &format!("{NAMESPACE}/{WAYPOINT}"), calls);
    export
}
