//! Namespaces, an application that echoes, and its callers.

use std::fs::File;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use isobar_net::{DialOptions, ListenOptions, NetNs, dial, listen};
use isobar_runtime::Scope;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);
pub(crate) const NODE: &str = "10.0.0.1";
pub(crate) const POD: &str = "10.0.0.2";
pub(crate) const PEER: &str = "10.0.0.3";

pub(crate) fn tool(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The IPv6 address of whoever has this IPv4 address.
pub(crate) fn v6(ip: &str) -> String {
    format!("fd00::{}", ip.rsplit('.').next().unwrap())
}

/// The bridge between all places; the test's own namespace is the node.
pub(crate) fn bridge() {
    tool("ip", "link set lo up");
    tool("ip", "link add br0 type bridge");
    tool("ip", &format!("addr add {NODE}/24 dev br0"));
    tool("ip", &format!("addr add {}/64 dev br0 nodad", v6(NODE)));
    tool("ip", "link set br0 up");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

/// A namespace on the bridge.
pub(crate) struct Place {
    pub(crate) netns: NetNs,
    pub(crate) path: PathBuf,
    _held: File,
}

impl Place {
    pub(crate) fn new(name: &str, ip: &str) -> Self {
        let held = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let path = PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            held.as_raw_fd()
        ));
        let place = Self {
            netns: NetNs::open(&path).unwrap(),
            path,
            _held: held,
        };
        let netns = place.path.display();
        tool(
            "ip",
            &format!("link add v-{name} type veth peer name eth0 netns {netns}"),
        );
        tool("ip", &format!("link set v-{name} master br0 up"));
        place.inside("ip", "link set lo up");
        place.inside("ip", &format!("addr add {ip}/24 dev eth0"));
        place.inside("ip", &format!("addr add {}/64 dev eth0 nodad", v6(ip)));
        place.inside("ip", "link set eth0 up");
        place.inside("ip", &format!("route add default via {NODE}"));
        place.inside("ip", &format!("-6 route add default via {}", v6(NODE)));
        place
    }

    /// Runs a tool inside.
    pub(crate) fn inside(&self, program: &str, arguments: &str) {
        self.netns.enter(|| tool(program, arguments)).unwrap();
    }

    /// What a tool prints inside.
    pub(crate) fn printed(&self, program: &str, arguments: &str) -> String {
        let output = self
            .netns
            .enter(|| Command::new(program).args(arguments.split(' ')).output())
            .unwrap()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// An application on `port` of every address: tells each caller who it seems to be, then
    /// echoes.
    pub(crate) fn serve(&self, scope: &Scope, port: u16) {
        let listener = listen(&ListenOptions {
            netns: Some(self.netns.clone()),
            ..ListenOptions::new(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        })
        .unwrap();
        scope.spawn("application", async move {
            // One task for all: the scope's end ends every connection.
            let connections = Scope::new("connections");
            loop {
                let (mut stream, from) = listener.accept().await.unwrap();
                connections.spawn("connection", async move {
                    let hello = format!("{}\n", from.ip().to_canonical());
                    if stream.write_all(hello.as_bytes()).await.is_ok() {
                        let (mut read, mut write) = stream.split();
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    }
                });
            }
        });
    }

    /// Calls an application from here.
    pub(crate) async fn call(&self, to: &str) -> Call {
        call(Some(self.netns.clone()), to).await
    }
}

/// Calls an application; `from` is the node if none.
pub(crate) async fn call(from: Option<NetNs>, to: &str) -> Call {
    let options = DialOptions {
        netns: from,
        timeout: LIMIT,
        ..DialOptions::default()
    };
    let stream = dial(&options, to.parse().unwrap()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut seen = String::new();
    tokio::time::timeout(LIMIT, stream.read_line(&mut seen))
        .await
        .expect("the application greets")
        .unwrap();
    let mut call = Call {
        stream,
        seen: seen.trim().to_owned(),
    };
    call.echo().await;
    call
}

/// An open connection to an application.
pub(crate) struct Call {
    stream: BufReader<TcpStream>,
    /// The caller's address as the application sees it.
    pub(crate) seen: String,
}

impl Call {
    /// Sends and gets back.
    pub(crate) async fn echo(&mut self) {
        let mut back = [0; 4];
        let round = async {
            self.stream.write_all(b"ping").await?;
            self.stream.read_exact(&mut back).await
        };
        tokio::time::timeout(LIMIT, round)
            .await
            .expect("an answer in time")
            .expect("an open connection");
        assert_eq!(&back, b"ping");
    }
}
