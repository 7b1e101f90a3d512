//! A server in a process of its own, so that its memory, time and descriptors can be read.

use std::cell::Cell;
use std::io::{BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use isobar_hbone::{
    Admission, Connect, Http2, Limits, Plain, ServerOptions, Timeouts, TunnelStream, relay, serve,
};
use isobar_runtime::{LifetimeOwner, LocalScope};
use isobar_tls::ca::Authority;
use isobar_tls::{WorkloadCertificate, client_config, server_config};
use isobar_types::Identity;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::client;
use super::wire::{self, PATIENCE, Raw};

/// What the server does with a request, by the port of its authority.
pub(crate) use super::wire::HOLD;
pub(crate) const NEVER_ANSWER: u16 = 2;
pub(crate) const ECHO: u16 = 3;
pub(crate) const NEVER_READ: u16 = 4;
pub(crate) const SEND_FOR_EVER: u16 = 5;
pub(crate) const REFUSE: u16 = 6;
pub(crate) const PANIC: u16 = 7;
pub(crate) const PAUSE: u16 = 8;

const DAY: Duration = Duration::from_secs(24 * 3600);
const FOLDER: &str = "ISOBAR_TEST_FOLDER";
const MODE: &str = "ISOBAR_TEST_MODE";
const CLIENT: &str = "client";

pub(crate) fn id(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

/// Limits of the server under test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As shipped.
    Usual,
    /// Time limits of a second and less; few connections, streams and handshakes.
    Tight,
}

pub(crate) const TIGHT: Limits = Limits {
    handshakes: 64,
    handshakes_per_source: 32,
    connections_per_peer: 20,
    streams_per_peer: 50,
};
/// In tight mode.
pub(crate) const DEADLINE: Duration = Duration::from_millis(800);

fn options(mode: &str) -> ServerOptions {
    if mode != "tight" {
        return ServerOptions::default();
    }
    ServerOptions {
        http2: Http2::default(),
        timeouts: Timeouts {
            tls: DEADLINE,
            settings: DEADLINE,
            ping_interval: DEADLINE / 4,
            ping_timeout: DEADLINE,
            ..Timeouts::default()
        },
        admission: Admission::new(TIGHT),
        source: None,
    }
}

/// The other process: serves until its input closes.
#[test]
fn server_process() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        // Only when started as such.
        return;
    };
    let mode = std::env::var(MODE).unwrap();
    isobar_net::raise_open_files().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let folder = Path::new(&folder);
    if mode == CLIENT {
        local.block_on(&runtime, client::hold(folder));
    } else {
        local.block_on(&runtime, serve_for_ever(folder, &mode));
    }
}

async fn serve_for_ever(folder: &Path, mode: &str) {
    let authority = Authority::load_or_create(folder).unwrap();
    let tls = server_config(&authority.issue_workload(&id("cart"), DAY).unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    println!("\n@at {}", listener.local_addr().unwrap());
    let options = options(mode);
    let life = LifetimeOwner::new();
    let connections = Rc::new(LocalScope::new("connections"));
    let streams = Rc::new(Cell::new(0_usize));
    let mut stdin = BufReader::new(tokio::io::stdin()).lines();
    loop {
        let (tcp, from) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            line = stdin.next_line() => match line {
                Ok(Some(_)) => {
                    println!("\n@open {} {}", connections.len(), streams.get());
                    continue;
                }
                _ => return,
            },
        };
        tcp.set_nodelay(true).unwrap();
        let (tls, life) = (tls.clone(), life.lifetime());
        let options = ServerOptions {
            source: Some(from.ip()),
            ..options.clone()
        };
        let streams = Rc::clone(&streams);
        connections.spawn("connection", async move {
            let handle = |connect: Connect| {
                streams.set(streams.get() + 1);
                let streams = Rc::clone(&streams);
                async move {
                    let count = Count(streams);
                    answer(connect).await;
                    drop(count);
                }
            };
            let end = Box::pin(serve(tcp, &tls, &options, &life, handle)).await;
            match end {
                Ok(()) => println!("\n@end complete -"),
                Err(error) => println!("\n@end {} {error}", error.reason()),
            }
        });
    }
}

struct Count(Rc<Cell<usize>>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn answer(mut connect: Connect) {
    let port = connect.headers().authority.port();
    match port {
        NEVER_ANSWER => {
            connect.gone().await;
            return connect.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
        }
        REFUSE => return connect.refuse(http::StatusCode::SERVICE_UNAVAILABLE),
        PANIC => panic!("on purpose"),
        _ => {}
    }
    let Ok(stream) = connect.accept(None) else {
        return;
    };
    // A stream that fails ends its task; the parent looks at what is left over.
    let _ = carry(port, stream).await;
}

async fn carry(port: u16, mut stream: TunnelStream) -> std::io::Result<()> {
    match port {
        NEVER_READ | PAUSE => {
            // An application that takes a kilobyte and then nothing, or nothing for 2 s.
            let (app, mut other) = tokio::io::duplex(1024);
            let reads = async {
                if port == NEVER_READ {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
                while other.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
            };
            let mut app = Plain::new(app);
            tokio::select! {
                _ = relay(&mut stream, &mut app) => {}
                () = reads => {}
            }
        }
        SEND_FOR_EVER => loop {
            static BLOCK: [u8; 4096] = [7; 4096];
            stream.write_all(&BLOCK).await?;
        },
        ECHO => {
            let (mut read, mut write) = tokio::io::split(stream);
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await?;
        }
        _ => while stream.read(&mut [0; 16]).await? > 0 {},
    }
    Ok(())
}

/// A connection from an address that no other has: callers are pods, each with its own.
pub(crate) async fn dial(to: SocketAddr) -> std::io::Result<TcpStream> {
    static CALLERS: AtomicU32 = AtomicU32::new(0);
    let caller = CALLERS.fetch_add(1, Ordering::Relaxed) % (1 << 16);
    let socket = TcpSocket::new_v4()?;
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + caller);
    socket.bind((address, 0).into())?;
    socket.connect(to).await
}

/// The server as its attacker's test sees it.
pub(crate) struct Bed {
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    _folder: TempDir,
}

impl Bed {
    pub(crate) async fn new(mode: Mode) -> Self {
        let text = if mode == Mode::Tight {
            "tight"
        } else {
            "usual"
        };
        let mut bed = Self::start(text);
        let at = line(&mut bed.lines, "@at ").await;
        bed.address = at.parse().unwrap();
        // The first connection fills the process' own caches.
        bed.raw_of("warm").await.serves(1).await;
        bed.end().await;
        bed
    }

    /// The other process as a client.
    pub(crate) fn client() -> Self {
        Self::start(CLIENT)
    }

    /// Tells a client to open this many tunnels with so many streams each, and waits for it.
    pub(crate) async fn hold(&mut self, server: SocketAddr, tunnels: usize, streams: usize) {
        writeln!(self.stdin, "{server} {tunnels} {streams}").unwrap();
        line(&mut self.lines, "@held").await;
    }

    fn start(mode: &str) -> Self {
        isobar_net::raise_open_files().unwrap();
        let folder = TempDir::new().unwrap();
        let authority = Authority::load_or_create(folder.path()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["bed::server_process", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(MODE, mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = read_all(child.stdout.take().unwrap());
        Self {
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            authority,
            child,
            stdin,
            lines,
            _folder: folder,
        }
    }

    pub(crate) fn certificate(&self, account: &str) -> Arc<WorkloadCertificate> {
        Arc::new(self.authority.issue_workload(&id(account), DAY).unwrap())
    }

    /// A connection after its TLS handshake; nothing of HTTP/2 is sent.
    pub(crate) async fn tls(&self, account: &str) -> Raw {
        self.tls_as(&self.certificate(account)).await.unwrap()
    }

    pub(crate) async fn tls_as(&self, certificate: &WorkloadCertificate) -> Option<Raw> {
        let tcp = dial(self.address).await.unwrap();
        self.tls_over(tcp, certificate).await
    }

    pub(crate) async fn tls_over(
        &self,
        tcp: TcpStream,
        certificate: &WorkloadCertificate,
    ) -> Option<Raw> {
        let config = client_config(certificate, &[id("cart")]).unwrap();
        tcp.set_nodelay(true).unwrap();
        let (io, _) = config.connect(tcp).await.ok()?;
        Some(Raw::new(io))
    }

    /// A connection with preface and SETTINGS exchanged.
    pub(crate) async fn raw(&self) -> Raw {
        self.raw_with(&[]).await
    }

    pub(crate) async fn raw_with(&self, settings: &[u8]) -> Raw {
        hello(self.tls("front").await, settings).await
    }

    /// As [`Self::raw`], for somebody else.
    pub(crate) async fn raw_of(&self, account: &str) -> Raw {
        hello(self.tls(account).await, &[]).await
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id())
    }

    /// The server's threads.
    pub(crate) fn threads(&self) -> Vec<i32> {
        let tasks = std::fs::read_dir(self.proc("task")).unwrap();
        let name = |task: std::fs::DirEntry| task.file_name().into_string().unwrap();
        tasks
            .map(|task| name(task.unwrap()).parse().unwrap())
            .collect()
    }

    /// How the next connection to end ended: reason and text.
    pub(crate) async fn end(&mut self) -> (String, String) {
        let text = line(&mut self.lines, "@end ").await;
        let (reason, text) = text.split_once(' ').unwrap();
        (reason.to_owned(), text.to_owned())
    }

    /// Lets go of what the server has told so far. Who ends tens of thousands of connections must: the
    /// server waits once nobody has room for what it tells.
    pub(crate) fn forget(&mut self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// Connections and streams the server has open.
    pub(crate) async fn open(&mut self) -> (usize, usize) {
        self.stdin.write_all(b"?\n").unwrap();
        let text = line(&mut self.lines, "@open ").await;
        let (connections, streams) = text.split_once(' ').unwrap();
        (connections.parse().unwrap(), streams.parse().unwrap())
    }

    /// Waits until the server has nothing open.
    pub(crate) async fn all_back(&mut self) {
        let gone = async {
            while self.open().await != (0, 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), gone)
            .await
            .expect("connections or streams are left over");
    }

    /// Resident bytes of the server.
    pub(crate) fn memory(&self) -> usize {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Open descriptors of the server.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// CPU time of the server.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(self.proc("task")).unwrap();
        tasks
            .map(|task| schedstat(&task.unwrap().path().join("schedstat")))
            .sum()
    }
}

/// CPU time of the calling thread, which is the attacker.
pub(crate) fn own_cpu() -> Duration {
    schedstat(Path::new("/proc/thread-self/schedstat"))
}

fn schedstat(path: &Path) -> Duration {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let nanos = text.split_whitespace().next().unwrap_or("0");
    Duration::from_nanos(nanos.parse().unwrap())
}

impl Drop for Bed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn hello(mut raw: Raw, settings: &[u8]) -> Raw {
    let hello = wire::frame(wire::SETTINGS, 0, 0, settings);
    assert!(raw.send(&[wire::PREFACE, &hello[..]].concat()).await);
    raw.next_of(wire::SETTINGS).await.unwrap();
    let ack = wire::frame(wire::SETTINGS, wire::ACK, 0, &[]);
    assert!(raw.send(&ack).await);
    raw
}

/// What the server says, read as it comes: it must not wait for us.
fn read_all(stdout: std::process::ChildStdout) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel(1 << 16);
    std::thread::spawn(move || {
        for line in std::io::BufReader::new(stdout).lines() {
            if !line.is_ok_and(|line| tell.blocking_send(line).is_ok()) {
                return;
            }
        }
    });
    told
}

async fn line(lines: &mut mpsc::Receiver<String>, prefix: &str) -> String {
    let reading = async {
        loop {
            let line = lines.recv().await.expect("the server died");
            if let Some(rest) = line.strip_prefix(prefix) {
                return rest.to_owned();
            }
        }
    };
    timeout(PATIENCE, reading)
        .await
        .expect("the server tells nothing")
}

/// Memory and CPU before an attack.
pub(crate) struct Before {
    memory: usize,
    cpu: Duration,
    own: Duration,
}

impl Before {
    pub(crate) fn of(bed: &Bed) -> Self {
        Self {
            memory: bed.memory(),
            cpu: bed.cpu(),
            own: own_cpu(),
        }
    }

    /// Prints what the attack has cost and returns bytes of growth. Memory may grow by `free`, or
    /// ten times what was sent; CPU by ten times the attacker's.
    pub(crate) fn costs(&self, bed: &Bed, what: &str, sent: usize, free: usize) -> usize {
        let growth = bed.memory().saturating_sub(self.memory);
        let (theirs, ours) = (own_cpu() - self.own, bed.cpu() - self.cpu);
        println!(
            "{what}: {growth} bytes kept for {sent} sent; server {ours:?} of CPU, attacker {theirs:?}"
        );
        assert!(growth <= free.max(10 * sent), "{growth} bytes are kept");
        // Below that, process start and the clock's grain decide.
        let floor = Duration::from_millis(100);
        assert!(
            ours <= floor.max(10 * theirs),
            "{ours:?} against {theirs:?}"
        );
        growth
    }
}
