//! Namespaces, the made-up mesh, and applications.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use isobar_net::{ListenOptions, NetNs, listen};
use isobar_proto::istio::{security, workload as wire};
use isobar_runtime::{Scope, Worker};
use isobar_telemetry::Registry;
use isobar_tls::WorkloadCertificate;
use isobar_tls::ca::Authority;
use isobar_types::Identity;
use isobar_xds::{CertError, CertSource, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use ztunnel::config::Environment;
use ztunnel::dns::{Resolver, Upstreams};
use ztunnel::metrics::Metrics;
use ztunnel::pods::Pods;
use ztunnel::proxy::{Descriptors, Neighbours, World};
use ztunnel::zds::PodInfo;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);
pub(crate) const VIP: &str = "10.96.0.1";
pub(crate) const NAMESERVER: &str = "10.0.0.1:5300";

const RULES: &str = "
table ip mesh {
  chain mark_in { type filter hook prerouting priority mangle; meta mark & 0xfff == 0x539 ct mark set 0x111; }
  chain mark_out { type route hook output priority mangle; ct mark 0x111 meta mark set 0x111; }
  chain pre { type nat hook prerouting priority dstnat;
    tcp dport != 15008 meta mark & 0xfff != 0x539 ip daddr != 127.0.0.1 meta l4proto tcp redirect to :15006; }
  chain out { type nat hook output priority -100;
    meta l4proto udp udp dport 53 meta mark & 0xfff != 0x539 redirect to :15053;
    meta mark & 0xfff == 0x111 accept;
    oifname lo ip daddr != 127.0.0.1 accept;
    meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 redirect to :15001; }
}";

/// A pod's network namespace.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) ip: IpAddr,
    pub(crate) netns: NetNs,
    pub(crate) path: String,
    pub(crate) held: File,
}

pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The network all pods hang on.
pub(crate) fn network() {
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["link", "add", "br0", "type", "bridge"]);
    run("ip", &["addr", "add", "10.0.0.1/24", "dev", "br0"]);
    run("ip", &["link", "set", "br0", "up"]);
}

impl Place {
    pub(crate) fn new(name: &'static str, ip: &str) -> Self {
        let held = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd());
        let place = Self {
            name,
            ip: ip.parse().unwrap(),
            netns: NetNs::open(path.as_ref()).unwrap(),
            path,
            held,
        };
        let outside = format!("v-{name}");
        let link = [
            "link", "add", &outside, "type", "veth", "peer", "name", "eth0",
        ];
        run("ip", &[&link[..], &["netns", &place.path]].concat());
        run("ip", &["link", "set", &outside, "master", "br0", "up"]);
        place.inside("ip", &["link", "set", "lo", "up"]);
        place.inside("ip", &["addr", "add", &format!("{ip}/24"), "dev", "eth0"]);
        place.inside("ip", &["link", "set", "eth0", "up"]);
        place.inside("ip", &["route", "add", "default", "via", "10.0.0.1"]);
        place
    }

    /// Redirects as the node agent does.
    pub(crate) fn redirect(&self) {
        self.inside("nft", &[RULES]);
        let rule = [
            "rule",
            "add",
            "fwmark",
            "0x111/0xfff",
            "lookup",
            "100",
            "pref",
            "32764",
        ];
        self.inside("ip", &rule);
        self.inside(
            "ip",
            &[
                "route",
                "add",
                "local",
                "0.0.0.0/0",
                "dev",
                "lo",
                "table",
                "100",
            ],
        );
    }

    pub(crate) fn inside(&self, program: &str, args: &[&str]) {
        let netns = format!("--net={}", self.path);
        run("nsenter", &[&[netns.as_str(), program], args].concat());
    }

    /// Connects as an application of this pod.
    pub(crate) async fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let socket = self.netns.enter(tokio::net::TcpSocket::new_v4).unwrap()?;
        tokio::time::timeout(LIMIT, socket.connect(to))
            .await
            .unwrap()
    }

    /// Says `text` and returns the whole answer; empty if the connection ended without one.
    pub(crate) async fn ask(&self, to: &str, text: &str) -> String {
        let Ok(mut tcp) = self.connect(to).await else {
            return String::new();
        };
        let mut answer = String::new();
        let exchange = async {
            tcp.write_all(text.as_bytes()).await?;
            tcp.shutdown().await?;
            tcp.read_to_string(&mut answer).await
        };
        // A refusal shows as an empty answer.
        let _ = tokio::time::timeout(LIMIT, exchange).await.unwrap();
        answer
    }

    /// An application on `port` that answers with its client's address and what it was told.
    pub(crate) fn echo(&self, scope: &Scope, port: u16) {
        let listener = listen(&ListenOptions {
            netns: Some(self.netns.clone()),
            ..ListenOptions::new(SocketAddr::new(self.ip, port))
        })
        .unwrap();
        scope.spawn("echo", async move {
            let clients = Scope::new("clients");
            loop {
                let (mut tcp, peer) = listener.accept().await.unwrap();
                clients.spawn("client", async move {
                    let mut buffer = vec![0; 65_536];
                    let hello = format!("{}:", peer.ip());
                    if tcp.write_all(hello.as_bytes()).await.is_err() {
                        return;
                    }
                    while let Ok(n @ 1..) = tcp.read(&mut buffer).await {
                        if tcp.write_all(&buffer[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }

    pub(crate) fn info(&self) -> PodInfo {
        PodInfo {
            name: self.name.into(),
            namespace: "ns".into(),
            service_account: self.name.into(),
        }
    }

    pub(crate) fn workload(&self) -> wire::Workload {
        let IpAddr::V4(ip) = self.ip else { panic!() };
        wire::Workload {
            uid: format!("Kubernetes//Pod/ns/{}", self.name),
            name: self.name.into(),
            namespace: "ns".into(),
            service_account: self.name.into(),
            addresses: vec![ip.octets().to_vec()],
            node: "node".into(),
            tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
            canonical_name: self.name.into(),
            workload_name: self.name.into(),
            ..wire::Workload::default()
        }
    }
}

/// A service of one port 80, at `vip`.
pub(crate) fn service(name: &str, vip: &str, target: u32) -> wire::Service {
    let vip: std::net::Ipv4Addr = vip.parse().unwrap();
    wire::Service {
        name: name.into(),
        namespace: "ns".into(),
        hostname: format!("{name}.ns.svc.cluster.local"),
        addresses: vec![wire::NetworkAddress {
            network: String::new(),
            address: vip.octets().to_vec(),
            length: None,
        }],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: target,
            ..wire::Port::default()
        }],
        canonical: true,
        ..wire::Service::default()
    }
}

/// A namespace-wide DENY of `one`.
pub(crate) fn deny(name: &str, one: security::Match) -> security::Authorization {
    security::Authorization {
        name: name.into(),
        namespace: "ns".into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule {
            clauses: vec![security::Clause { matches: vec![one] }],
        }],
        ..security::Authorization::default()
    }
}

pub(crate) struct Mesh {
    pub(crate) world: Arc<World>,
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) pods: Pods,
}

struct Certificates(Authority);

impl CertSource for Certificates {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Arc<WorkloadCertificate>, CertError>> {
        let ttl = Duration::from_secs(3600);
        let issued = self.0.issue_workload(identity, ttl).unwrap();
        async move { Ok(Arc::new(issued)) }.boxed()
    }
}

impl Mesh {
    pub(crate) fn new(workers: Vec<Worker>, settings: &[(&str, &str)]) -> Self {
        let own = [("NODE_NAME", "node")];
        let config = Environment::new(own.iter().chain(settings).copied(), 2);
        let config = Arc::new(config.parse().unwrap());
        let store = Store::default();
        let registry = Registry::new();
        let upstreams = Upstreams::new(&[NAMESERVER.parse().unwrap()], &[]);
        let dns = Resolver::new(config.dns.clone().unwrap(), upstreams, &registry);
        let world = Arc::new(World {
            config: Arc::clone(&config),
            store: store.clone(),
            on_demand: None,
            certificates: Arc::new(Certificates(Authority::generate("test").unwrap())),
            metrics: Metrics::new(&registry),
            dns: Some(dns),
            descriptors: Descriptors::of_process(),
            neighbours: Neighbours::default(),
            admission: isobar_hbone::Admission::default(),
        });
        let pods = Pods::new(world.clone(), workers);
        Self {
            world,
            store,
            registry,
            pods,
        }
    }

    pub(crate) fn put(&self, objects: impl IntoIterator<Item = wire::address::Type>) {
        let mut draft = self.store.load().draft();
        for object in objects {
            let address = wire::Address {
                r#type: Some(object),
            };
            draft.upsert_address(&address).unwrap();
        }
        self.store.publish(draft.finish());
    }

    pub(crate) fn policy(&self, policy: &security::Authorization) {
        let mut draft = self.store.load().draft();
        draft.upsert_authorization(policy).unwrap();
        self.store.publish(draft.finish());
    }

    /// Says whether the namespace may reach the mesh only.
    pub(crate) fn keep_to_registry(&self, only: bool) {
        use isobar_proto::isobar::v1 as isobar;

        let egress = isobar::Egress {
            namespace: "ns".into(),
            registry_only: only,
        };
        let policy = isobar::OutboundPolicy {
            kind: Some(isobar::outbound_policy::Kind::Egress(egress)),
        };
        let mut draft = self.store.load().draft();
        draft.upsert_outbound_policy(&policy).unwrap();
        self.store.publish(draft.finish());
    }

    pub(crate) fn remove_policy(&self, key: &str) {
        let mut draft = self.store.load().draft();
        assert!(draft.remove_authorization(key));
        self.store.publish(draft.finish());
    }
}
