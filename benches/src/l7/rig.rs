//! One proxy with one scene, and the application that all proxies share.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use isobar_tests::envoy::{Envoy, Export};
use isobar_tests::eventually_within;
use isobar_tls::ca::Authority;
use isobar_types::ports;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;

use super::Contender;
use super::caller::{Load, Measured, read_reply};
use super::feed::Feed;
use super::hbone::{Door, Entrance, Mesh};
use super::scene::{ACCOUNT, Called, NAMESPACE, Scene, WAYPOINT};
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
    /// Where that is so, it is reached by tunnels only.
    mesh: Option<Mesh>,
}

/// A program of ours that ends with its handle.
fn own_program(role: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

impl Application {
    pub(super) async fn start(mesh: Option<Mesh>) -> Result<Self> {
        let mut command = own_program("http-server")?;
        if let Some(mesh) = &mesh {
            command.arg("--mesh").arg(mesh.folder());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the application does not start")?;
        let input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line).await?;
        let endpoints = line.split_whitespace().map(str::parse::<SocketAddr>);
        let endpoints: Vec<_> = endpoints.collect::<Result<_, _>>()?;
        ensure!(!endpoints.is_empty(), "the application has no address");
        Ok(Self {
            child,
            talk: Mutex::new((input, output)),
            endpoints,
            mesh,
        })
    }

    /// The way to it with nothing between.
    fn door(&self) -> Door {
        let to = self.endpoints[0];
        match &self.mesh {
            Some(mesh) => mesh.door(to, (to.ip(), ports::HBONE).into()),
            None => Door::plain(to),
        }
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
    doors: Doors,
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
            Contender::Ours => ours(scene, application, folder.path()).await?,
            Contender::Envoy => envoy(scene, application, folder.path()).await?,
            Contender::NoProxy => {
                let called = scene.called.iter();
                let doors = called.map(|called| (called.name, application.door()));
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
            let (path, entrance) = (called.path(1), self.door(called.name)?.entrance()?);
            eventually_within("it serves", START, async || get(&entrance, &path).await).await?;
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
    pub(super) fn door(&self, service: &str) -> Result<Door> {
        let door = self.doors.get(service).cloned();
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
            ("--path", load.path.clone()),
            ("--connections", load.connections.to_string()),
            ("--streams", load.streams.to_string()),
            ("--seconds", load.seconds.to_string()),
            ("--rate", load.rate.to_string()),
        ];
        let mut command = own_program("http-client")?;
        command.args(load.door.arguments());
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
async fn get(to: &Entrance, path: &str) -> Result<()> {
    let mut tcp = to.open().await?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
    tcp.write_all(head.as_bytes()).await?;
    let reply = async { read_reply(&mut tcp, &mut vec![0; 16 * 1024]).await };
    tokio::time::timeout(Duration::from_secs(5), reply).await?
}

/// Ways to services by their names.
type Doors = BTreeMap<&'static str, Door>;
type Started = (Proxy, Doors);

/// Where our waypoint is reached, and the variables that make it so.
fn doors(scene: &Scene, mesh: Option<&Mesh>) -> Result<(Doors, [(&'static str, String); 2])> {
    let mut doors = Doors::new();
    let (mut tunnels, mut plaintext) = (0, Vec::new());
    if let Some(mesh) = mesh {
        let at = free_address()?;
        let all = scene.addresses();
        doors.extend(all.map(|(called, to)| (called.name, mesh.door(to, at))));
        tunnels = at.port();
    } else {
        for called in &scene.called {
            let at = free_address()?;
            doors.insert(called.name, Door::plain(at));
            plaintext.push(format!("{at}={}", called.authority()));
        }
    }
    let told = [
        ("HBONE_PORT", tunnels.to_string()),
        ("ISOBAR_PLAINTEXT", plaintext.join(",")),
    ];
    Ok((doors, told))
}

async fn ours(scene: &Scene, application: &Application, folder: &Path) -> Result<Started> {
    let mesh = application.mesh.as_ref();
    let authority = match mesh {
        Some(mesh) => Arc::clone(&mesh.authority),
        None => Arc::new(Authority::generate("bench")?),
    };
    let feed = Feed::start(&scene.told(&application.endpoints, 0)?, authority).await?;
    let (doors, entrances) = doors(scene, mesh)?;
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
            ("ADMIN_PORT", "0"),
            ("STATS_PORT", "0"),
            ("READINESS_PORT", "0"),
        ])
        .envs(entrances)
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

async fn envoy(scene: &Scene, application: &Application, folder: &Path) -> Result<Started> {
    let mut export = export(scene, &scene.told(&application.endpoints, 0)?);
    export.read_routes_from(folder)?;
    if scene.access_log {
        export.log_requests(Path::new("/dev/null"));
    }
    let listener = |called: &Called| called.call().listener(&scene.name);
    if let Some(mesh) = &application.mesh {
        let ways = scene.addresses();
        let ways = ways.map(|(called, to)| (to, listener(called)));
        export.through_tunnels(mesh.of_waypoint()?.of_mesh(), ports::HBONE, ways);
    }
    let envoy = Envoy::start(&format!("bench-{}", scene.name), export).await?;
    let doors = scene.addresses().map(|(called, to)| {
        let door = match &application.mesh {
            Some(mesh) => mesh.door(to, envoy.address(Export::TUNNELS)),
            None => Door::plain(envoy.address(&listener(called))),
        };
        (called.name, door)
    });
    let doors = doors.collect();
    Ok((Proxy::Envoy(envoy), doors))
}

fn export(scene: &Scene, told: &isobar_control_plane::Told) -> Export {
    let mut export = Export::default();
    let calls = scene.called.iter().map(Called::call);
    export.add(&scene.name, told, &format!("{NAMESPACE}/{WAYPOINT}"), calls);
    export
}
