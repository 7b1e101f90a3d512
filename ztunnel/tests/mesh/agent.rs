//! A scripted node agent, and what a real pod host does on its word.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use isobar_net::{ListenOptions, SeqPacket, SeqPacketListener, listen};
use isobar_proto::istio::workload::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, workload_request::Payload, workload_response,
};
use isobar_runtime::{LifetimeOwner, Scope, Worker};
use isobar_telemetry::Ready;
use prost::Message as _;
use tokio::net::TcpStream;
use ztunnel::pods::PendingPods;
use ztunnel::zds::Client;

use crate::rig::{LIMIT, Mesh, Place, network};
use crate::stage::until;

/// The listening end.
pub(crate) struct Agent {
    listener: SeqPacketListener,
    pub(crate) path: PathBuf,
    _dir: tempfile::TempDir,
}

/// One connected proxy.
pub(crate) struct Proxy(SeqPacket);

impl Agent {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztunnel.sock");
        Self {
            listener: SeqPacketListener::bind(&path).unwrap(),
            path,
            _dir: dir,
        }
    }

    /// The next proxy that connects and says hello.
    pub(crate) async fn accept(&self) -> Proxy {
        let wait = 3 * LIMIT;
        let accepted = tokio::time::timeout(wait, self.listener.accept()).await;
        let proxy = Proxy(accepted.expect("a proxy connects").unwrap());
        assert_eq!(proxy.receive().await.unwrap(), [0x08, 0x01]);
        proxy
    }
}

impl Proxy {
    async fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 1024];
        let packet = tokio::time::timeout(LIMIT, self.0.recv(&mut buffer)).await;
        let packet = packet.expect("an answer in time").unwrap()?;
        Some(buffer[..packet.len].to_vec())
    }

    async fn ask(&self, payload: Payload, place: Option<&Place>) -> Result<(), String> {
        let request = WorkloadRequest {
            payload: Some(payload),
        };
        let fds: Vec<_> = place.iter().map(|p| p.held.as_fd()).collect();
        self.0.send(&request.encode_to_vec(), &fds).await.unwrap();
        let answer = self.receive().await.expect("an answer");
        let answer = WorkloadResponse::decode(&answer[..]).unwrap();
        let Some(workload_response::Payload::Ack(ack)) = answer.payload else {
            panic!("no ack")
        };
        if ack.error.is_empty() {
            Ok(())
        } else {
            Err(ack.error)
        }
    }

    pub(crate) async fn add(&self, uid: &str, place: &Place) -> Result<(), String> {
        let info = place.info();
        let add = AddWorkload {
            uid: uid.into(),
            workload_info: Some(WorkloadInfo {
                name: info.name,
                namespace: info.namespace,
                service_account: info.service_account,
            }),
        };
        self.ask(Payload::Add(add), Some(place)).await
    }

    pub(crate) async fn keep(&self, uid: &str) {
        let keep = KeepWorkload { uid: uid.into() };
        self.ask(Payload::Keep(keep), None).await.unwrap();
    }

    pub(crate) async fn del(&self, uid: &str) {
        let del = DelWorkload { uid: uid.into() };
        self.ask(Payload::Del(del), None).await.unwrap();
    }

    pub(crate) async fn snapshot(&self) {
        let sent = Payload::SnapshotSent(SnapshotSent {});
        self.ask(sent, None).await.unwrap();
    }
}

/// Real pods under a scripted agent.
struct Node {
    mesh: Mesh,
    agent: Agent,
    ready: Ready,
    scope: Scope,
    life: LifetimeOwner,
}

impl Node {
    fn new(workers: Vec<Worker>) -> Self {
        network();
        let (mesh, agent, ready) = (Mesh::new(workers, &[]), Agent::new(), Ready::new());
        let client = Client::new(
            agent.path.clone(),
            mesh.pods.clone(),
            ready.gate("workload proxy manager"),
            PendingPods::default(),
        );
        let (scope, life) = (Scope::new("node"), LifetimeOwner::new());
        let lifetime = life.lifetime();
        scope.spawn("zds", async move { client.run(lifetime).await.unwrap() });
        Self {
            mesh,
            agent,
            ready,
            scope,
            life,
        }
    }

    fn value(&self, metric: &str) -> u64 {
        let text = self.mesh.registry.encode();
        let line = text.lines().find(|l| l.starts_with(metric)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    async fn becomes_ready(&self) {
        let wait = tokio::time::timeout(LIMIT, self.ready.wait());
        wait.await.expect("ready");
    }

    async fn end(self) {
        self.life.drain();
        assert!(self.scope.shutdown(LIMIT).await);
    }
}

async fn listens(place: &Place) -> bool {
    place.connect(&format!("{}:15008", place.ip)).await.is_ok()
}

fn sockets(place: &Place) -> Vec<String> {
    let mut table = String::new();
    for file in ["tcp", "tcp6"] {
        let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        table.push_str(&place.netns.enter(read).unwrap().unwrap_or_default());
    }
    let listening = table
        .lines()
        .filter(|l| l.split_whitespace().nth(3) == Some("0A"));
    let mut inodes: Vec<_> = listening
        .filter_map(|l| l.split_whitespace().nth(9).map(str::to_owned))
        .collect();
    inodes.sort();
    inodes
}

pub(crate) async fn twice(workers: Vec<Worker>) {
    let node = Node::new(workers);
    let pod = Place::new("pod", "10.0.0.5");
    let proxy = node.agent.accept().await;
    proxy.add("u1", &pod).await.unwrap();
    let before = sockets(&pod);
    assert!(before.len() >= 6, "{before:?}");
    proxy.add("u1", &pod).await.unwrap();
    assert_eq!(sockets(&pod), before);
    assert_eq!(node.value("workload_manager_proxies_started_total"), 1);
    proxy.snapshot().await;
    proxy.add("u1", &pod).await.unwrap();
    assert_eq!(sockets(&pod), before);
    node.end().await;
}

pub(crate) async fn moved(workers: Vec<Worker>) {
    let node = Node::new(workers);
    let (old, new) = (Place::new("old", "10.0.0.5"), Place::new("new", "10.0.0.6"));
    let proxy = node.agent.accept().await;
    proxy.add("u1", &old).await.unwrap();
    proxy.snapshot().await;
    assert!(listens(&old).await);
    let mut open = TcpStream::from_std({
        let connect = || std::net::TcpStream::connect("10.0.0.5:15008");
        let tcp = old.netns.enter(connect).unwrap().unwrap();
        tcp.set_nonblocking(true).unwrap();
        tcp
    })
    .unwrap();
    proxy.add("u1", &new).await.unwrap();
    assert!(listens(&new).await);
    assert!(!listens(&old).await);
    assert!(sockets(&old).is_empty());
    crate::stage::ends_soon(&mut open).await;
    assert_eq!(node.value("workload_manager_active_proxy_count"), 1);
    node.end().await;
}

pub(crate) async fn missing(workers: Vec<Worker>) {
    let node = Node::new(workers);
    let (kept, gone) = (
        Place::new("kept", "10.0.0.5"),
        Place::new("gone", "10.0.0.6"),
    );
    let proxy = node.agent.accept().await;
    proxy.add("kept", &kept).await.unwrap();
    proxy.add("gone", &gone).await.unwrap();
    proxy.snapshot().await;
    drop(proxy);
    let proxy = node.agent.accept().await;
    proxy.keep("kept").await;
    assert!(listens(&gone).await);
    let asked = Instant::now();
    proxy.snapshot().await;
    // The answer comes once the pod is gone.
    assert!(!listens(&gone).await);
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert!(listens(&kept).await);
    proxy.del("kept").await;
    assert!(!listens(&kept).await);
    proxy.del("unknown").await;
    node.end().await;
}

pub(crate) async fn away(workers: Vec<Worker>) {
    let node = Node::new(workers);
    let pod = Place::new("pod", "10.0.0.5");
    let proxy = node.agent.accept().await;
    proxy.add("u1", &pod).await.unwrap();
    proxy.snapshot().await;
    node.becomes_ready().await;
    drop(proxy);
    until("not ready without the agent", || !node.ready.is_ready()).await;
    assert_eq!(node.ready.pending(), ["workload proxy manager"]);
    assert!(listens(&pod).await);
    let proxy = node.agent.accept().await;
    proxy.keep("u1").await;
    assert!(!node.ready.is_ready());
    proxy.snapshot().await;
    node.becomes_ready().await;
    assert!(listens(&pod).await);
    node.end().await;
}

pub(crate) async fn taken(workers: Vec<Worker>) {
    let node = Node::new(workers);
    let pod = Place::new("pod", "10.0.0.5");
    let squatter = listen(&ListenOptions {
        netns: Some(pod.netns.clone()),
        ..ListenOptions::new("0.0.0.0:15008".parse().unwrap())
    })
    .unwrap();
    let proxy = node.agent.accept().await;
    let error = proxy.add("u1", &pod).await.unwrap_err();
    assert!(error.contains("15008"), "{error}");
    proxy.snapshot().await;
    assert!(!node.ready.is_ready());
    drop(squatter);
    let free = Instant::now();
    node.becomes_ready().await;
    assert!(
        free.elapsed() < Duration::from_secs(12),
        "{:?}",
        free.elapsed()
    );
    assert!(listens(&pod).await);
    node.end().await;
}
