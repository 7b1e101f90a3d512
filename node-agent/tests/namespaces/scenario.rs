//! One pod's life: plain, enrolled, damaged, leaving, back again, gone.

use std::net::SocketAddr;

use std::sync::Arc;
use std::time::Duration;

use isobar_net::{DialOptions, SeqPacketListener, UdpOptions, dial, udp};
use isobar_node_agent::agent::{Agent, clean_up};
use isobar_node_agent::backend::{Backend, Canon, Choice};
use isobar_node_agent::board::{Board, PodView, Standing};
use isobar_node_agent::desire::NodeDefaults;
use isobar_node_agent::metrics::Metrics;
use isobar_node_agent::pod::{Services, Timing};
use isobar_node_agent::probes::Probes;
use isobar_node_agent::report::Reports;
use isobar_node_agent::zds::Zds;
use isobar_objects::{Object, ObjectSet, OverlayWriter, Pod, Published, StaticSource};
use isobar_runtime::Scope;
use isobar_telemetry::Registry;
use serde_json::json;
use tokio::sync::watch;

use crate::network::{LIMIT, PEER, POD, Place, bridge, call, tool, v6};
use crate::proxy::Proxy;
use crate::untracked::untracked;

/// A port of the pod that no probe goes to.
pub(crate) const UNPROBED: u16 = 8081;
const UID: &str = "11111111-2222-3333-4444-555555555555";

/// Objects, and the folders that survive an agent.
struct World {
    dir: tempfile::TempDir,
    objects: watch::Sender<Arc<Published>>,
    choice: Choice,
    /// Pods have conditions.
    conditions: bool,
}

/// A running agent.
struct Running {
    services: Arc<Services>,
    board: Arc<Board>,
    scope: Scope,
}

impl World {
    fn new(choice: Choice, pod: &Place) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pods")).unwrap();
        let record = json!({"uid": UID, "namespace": "shop", "name": "cart",
            "serviceAccount": "cart", "netns": pod.path, "ips": [POD, v6(POD)]});
        std::fs::write(
            dir.path().join(format!("pods/{UID}.json")),
            record.to_string(),
        )
        .unwrap();
        let world = Self {
            dir,
            objects: StaticSource::new(ObjectSet::default()).sender(),
            choice,
            conditions: false,
        };
        world.label("none");
        world
    }

    fn label(&self, mode: &str) {
        self.annotate(mode, &json!({}));
    }

    /// The pod with this label, and annotations of its owner's beside the agent's.
    fn annotate(&self, mode: &str, own: &serde_json::Value) {
        let mut annotations = self.annotation();
        for (key, value) in own.as_object().unwrap() {
            annotations[key] = value.clone();
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "shop",
            "name": "cart", "uid": UID, "labels": {"istio.io/dataplane-mode": mode},
            "annotations": annotations},
            "spec": {"containers": [{"name": "c", "image": "i",
                "readinessProbe": {"tcpSocket": {"port": 8080}}}]}}))
        .unwrap();
        self.objects.send_replace(Arc::new(Published {
            objects: Arc::new(ObjectSet::of([Object::from(pod)])),
            findings: Arc::default(),
            synced: true,
            ..Published::default()
        }));
    }

    /// What the agent wrote to the pod's object.
    fn written(&self) -> serde_json::Value {
        let file = self.path("overlay/pod.shop.cart.patch.json");
        std::fs::read(file)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Status and reason of the pod's condition.
    fn condition(&self) -> String {
        let all = self.written()["status"]["conditions"].take();
        let text = |key: &str| all[0][key].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("status"), text("reason"))
    }

    /// The pod's annotations as the agent wrote them.
    fn annotation(&self) -> serde_json::Value {
        let patch = self.written();
        let mut all = patch["metadata"]["annotations"].clone();
        if let Some(map) = all.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        if all.is_null() { json!({}) } else { all }
    }

    fn ready(&self) -> Option<String> {
        std::fs::read_to_string(self.path(&format!("pods/{UID}.ready"))).ok()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.path("z.sock")
    }

    async fn agent(&self) -> Running {
        let scratch = Canon::scratch().unwrap();
        let backend = Backend::choose(self.choice, &scratch).unwrap();
        let (zds, board) = (Zds::default(), Arc::new(Board::default()));
        let services = Arc::new(Services {
            probes: Probes::new(backend),
            canon: Arc::new(Canon::new(backend, scratch)),
            writer: Arc::new(OverlayWriter::new(self.path("overlay")).unwrap()),
            reports: Reports {
                conditions: self.conditions,
                ..Reports::default()
            },
            metrics: Metrics::register(&Registry::new(), Arc::clone(&board), zds.clone()),
            board: Arc::clone(&board),
            zds: zds.clone(),
            timing: Timing {
                verify: Duration::from_secs(1),
                grace: Duration::from_millis(200),
                drain: Duration::from_secs(60),
                ..Timing::default()
            },
            pods_dir: self.path("pods"),
            proc: "/proc".into(),
        });
        let scope = Scope::new("agent");
        let objects = self.objects.subscribe();
        let node = NodeDefaults::default();
        let agent = Agent::start(Arc::clone(&services), node, objects, None).await;
        let listener = SeqPacketListener::bind(&self.socket()).unwrap();
        scope.spawn("zds", zds.serve(listener, scope.lifetime()));
        scope.spawn("agent", agent.run(scope.lifetime()));
        Running {
            services,
            board,
            scope,
        }
    }
}

impl Running {
    /// Stops it; what it shared with its tasks is left to clean up with.
    async fn stop(self) -> Arc<Services> {
        assert!(self.scope.shutdown(LIMIT).await);
        self.services
    }

    fn pod(&self) -> Option<PodView> {
        self.board.all().into_iter().next()
    }

    async fn stands(&self, wanted: Standing) -> PodView {
        let found = eventually(|| self.pod().filter(|pod| pod.standing == wanted)).await;
        found.unwrap_or_else(|| panic!("not {wanted:?} but {:#?}", self.pod()))
    }
}

/// Asks again until there is an answer or the time is over.
pub(crate) async fn eventually<T>(ask: impl Fn() -> Option<T>) -> Option<T> {
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if tokio::time::Instant::now() > end {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn to(ip: &str, port: u16) -> String {
    format!("{ip}:{port}")
}

pub(crate) async fn all(choice: Choice) {
    bridge();
    let (pod, peer) = (Place::new("pod", POD), Place::new("peer", PEER));
    let applications = Scope::new("applications");
    pod.serve(&applications, 8080);
    pod.serve(&applications, UNPROBED);
    peer.serve(&applications, 9090);
    let world = World::new(choice, &pod);

    // Before anything: connections in both directions, which nothing that follows may cut.
    let mut old_out = pod.call(&to(PEER, 9090)).await;
    let mut old_in = peer.call(&to(POD, 8080)).await;

    let agent = world.agent().await;
    agent.stands(Standing::Plain).await;
    assert_eq!(world.ready().as_deref(), Some("plain"));

    // Without a node proxy nothing is captured, and nobody is told that it is.
    world.label("ambient");
    agent.stands(Standing::Enrolling).await;
    assert_eq!(pod.call(&to(PEER, 9090)).await.seen, POD);
    assert_eq!(world.annotation(), json!({}));

    let (sessions, proxy) = (Scope::new("sessions"), Proxy::default());
    proxy.connect(&sessions, &world.socket());
    agent.stands(Standing::Enrolled).await;
    assert_eq!(world.ready().as_deref(), Some("enrolled"));
    let enabled = json!({"ambient.istio.io/redirection": "enabled"});
    assert_eq!(world.annotation(), enabled);
    assert!(proxy.notes.take().contains(&format!("add {UID}")));
    old_out.echo().await;
    old_in.echo().await;
    assert!(
        proxy.notes.take().is_empty(),
        "open connections were captured"
    );
    enrolled(&pod, &peer, &proxy).await;

    untracked(&pod, &peer, &proxy, choice).await;
    wished_otherwise(&world, &agent, &pod, &proxy).await;
    damaged(&agent, &pod, &peer, &proxy, choice).await;
    leaving(&world, &agent, &pod, &peer, &proxy).await;
    old_out.echo().await;
    old_in.echo().await;

    // An agent that starts anew finds the pod as it is and tells its proxy first thing.
    world.label("ambient");
    agent.stands(Standing::Enrolled).await;
    let mut open = pod.call(&to(PEER, 9090)).await;
    proxy.notes.take();
    agent.stop().await;
    open.echo().await;
    // Meanwhile somebody removes the node's own rules.
    tool("nft", "flush ruleset");
    world.label("ambient");
    let agent = world.agent().await;
    proxy.connect(&sessions, &world.socket());
    agent.stands(Standing::Enrolled).await;
    let notes = proxy.notes.take();
    assert_eq!(
        notes[..2],
        [format!("add {UID}"), "end of snapshot".to_owned()]
    );
    open.echo().await;
    pod.call(&to(PEER, 9090)).await;
    assert!(proxy.notes.contain("outbound 10.0.0.3:9090"));
    assert_eq!(call(None, &to(POD, 8080)).await.seen, "169.254.7.127");
    assert_eq!(agent.pod().unwrap().repairs, 0);

    // Only on request are the rules taken away with the agent.
    let services = agent.stop().await;
    clean_up(&services, &world.path("pods")).await.unwrap();
    assert_eq!(world.annotation(), json!({}));
    nothing_is_left(&pod);
    let node = std::process::Command::new("nft")
        .args(["list", "ruleset"])
        .output();
    let node = String::from_utf8_lossy(&node.unwrap().stdout).to_lowercase();
    assert!(!node.contains("probe"), "{node}");
    let agent = world.agent().await;
    proxy.connect(&sessions, &world.socket());
    agent.stands(Standing::Enrolled).await;

    // The sandbox goes.
    std::fs::remove_file(world.path(&format!("pods/{UID}.json"))).unwrap();
    eventually(|| agent.board.all().is_empty().then_some(()))
        .await
        .unwrap();
    assert!(proxy.notes.contain(&format!("del {UID}")));
    assert_eq!((world.annotation(), world.ready()), (json!({}), None));
    agent.stop().await;
    sessions.shutdown(Duration::ZERO).await;
    applications.shutdown(Duration::ZERO).await;
}

/// A pod's condition says when no node proxy serves it. Callers keep to tunnels: what they sent in
/// the clear would be captured too.
pub(crate) async fn unserved() {
    bridge();
    let pod = Place::new("pod", POD);
    let mut world = World::new(Choice::Auto, &pod);
    world.conditions = true;
    world.label("ambient");
    let says = async |wanted: &str| {
        let found = eventually(|| (world.condition() == wanted).then_some(())).await;
        assert!(found.is_some(), "not {wanted} but {}", world.condition());
    };
    let agent = world.agent().await;
    says("False NoNodeProxy").await;
    assert_eq!(world.annotation(), json!({}));
    let proxy = Proxy::default();
    for _ in 0..2 {
        let sessions = Scope::new("sessions");
        proxy.connect(&sessions, &world.socket());
        agent.stands(Standing::Enrolled).await;
        says("True Redirected").await;
        sessions.shutdown(Duration::ZERO).await;
        says("False NoNodeProxy").await;
        let enabled = json!({"ambient.istio.io/redirection": "enabled"});
        assert_eq!(world.annotation(), enabled);
    }
    agent.stop().await;
}

/// An agent that writes with another tool than the one before it takes its pods over.
pub(crate) async fn another_tool(before: Choice, after: Choice) {
    bridge();
    let (pod, peer) = (Place::new("pod", POD), Place::new("peer", PEER));
    let applications = Scope::new("applications");
    pod.serve(&applications, 8080);
    peer.serve(&applications, 9090);
    let mut world = World::new(before, &pod);
    world.label("ambient");
    let (sessions, proxy) = (Scope::new("sessions"), Proxy::default());
    let agent = world.agent().await;
    proxy.connect(&sessions, &world.socket());
    agent.stands(Standing::Enrolled).await;
    let mut open = pod.call(&to(PEER, 9090)).await;
    agent.stop().await;
    world.choice = after;
    world.label("ambient");
    let agent = world.agent().await;
    proxy.connect(&sessions, &world.socket());
    agent.stands(Standing::Enrolled).await;
    open.echo().await;
    enrolled_again(&pod, &proxy).await;
    let left = match before {
        Choice::Iptables => pod.printed("iptables-save", "-t nat"),
        _ => pod.printed("nft", "list table inet isobar"),
    };
    assert!(!left.to_lowercase().contains("isobar"), "{left}");
    world.label("none");
    agent.stands(Standing::Draining).await;
    open.echo().await;
    drop(open);
    agent.stands(Standing::Plain).await;
    nothing_is_left(&pod);
    agent.stop().await;
    sessions.shutdown(Duration::ZERO).await;
    applications.shutdown(Duration::ZERO).await;
}

async fn enrolled_again(pod: &Place, proxy: &Proxy) {
    proxy.notes.take();
    pod.call(&to(PEER, 9090)).await;
    assert_eq!(proxy.notes.take(), ["outbound 10.0.0.3:9090"]);
    assert_eq!(call(None, &to(POD, 8080)).await.seen, "169.254.7.127");
}

/// What is captured of an enrolled pod, and what is not.
async fn enrolled(pod: &Place, peer: &Place, proxy: &Proxy) {
    let notes = &proxy.notes;
    assert_eq!(pod.call(&to(PEER, 9090)).await.seen, POD);
    assert_eq!(notes.take(), ["outbound 10.0.0.3:9090"]);

    assert_eq!(peer.call(&to(POD, 8080)).await.seen, PEER);
    assert_eq!(notes.take(), ["inbound 10.0.0.2:8080"]);

    assert_eq!(peer.call(&to(POD, 15008)).await.seen, PEER);
    assert_eq!(notes.take(), ["tunnel"]);

    // Loopback and the pod's own address.
    assert_eq!(pod.call(&to("127.0.0.1", 8080)).await.seen, "127.0.0.1");
    assert_eq!(pod.call(&to(POD, 8080)).await.seen, POD);
    // Probes from the node.
    assert_eq!(call(None, &to(POD, 8080)).await.seen, "169.254.7.127");
    // The node's calls to others are its own.
    assert_eq!(call(None, &to(PEER, 9090)).await.seen, "10.0.0.1");
    assert!(notes.take().is_empty());
    // Where nothing is probed the node is a caller like any other.
    assert_eq!(call(None, &to(POD, UNPROBED)).await.seen, "10.0.0.1");
    assert_eq!(notes.take(), ["inbound 10.0.0.2:8081"]);

    assert_eq!(name_from(pod).await, "named");

    // The same over IPv6.
    let (pod6, peer6) = (v6(POD), v6(PEER));
    assert_eq!(pod.call(&to6(&peer6, 9090)).await.seen, pod6);
    assert_eq!(notes.take(), ["outbound [fd00::3]:9090"]);
    assert_eq!(peer.call(&to6(&pod6, 8080)).await.seen, peer6);
    assert_eq!(notes.take(), ["inbound [fd00::2]:8080"]);
    assert_eq!(pod.call("[::1]:8080").await.seen, "::1");
    assert_eq!(pod.call(&to6(&pod6, 8080)).await.seen, pod6);
    let probe = call(None, &to6(&pod6, 8080)).await.seen;
    assert_eq!(probe, "fd16:9254:7127:1337:ffff:ffff:ffff:ffff");
    assert!(notes.take().is_empty());
}

fn to6(ip: &str, port: u16) -> String {
    format!("[{ip}]:{port}")
}

/// Asks a name server that does not exist: who answers is the proxy.
async fn name_from(pod: &Place) -> String {
    let socket = udp(&UdpOptions {
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        netns: Some(pod.netns.clone()),
        mark: None,
        reuse_port: false,
    })
    .unwrap();
    socket.connect((PEER, 53)).await.unwrap();
    socket.send(b"who?").await.unwrap();
    let mut buffer = [0; 16];
    let length = tokio::time::timeout(LIMIT, socket.recv(&mut buffer))
        .await
        .expect("an answer")
        .unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// What the pod's owner changes is followed, and is nobody's damage.
async fn wished_otherwise(world: &World, agent: &Running, pod: &Place, proxy: &Proxy) {
    let names = async |captured: bool| {
        let own = json!({"ambient.istio.io/dns-capture": captured.to_string()});
        world.annotate("ambient", &own);
        let written = || {
            let rules = pod.printed("nft", "list ruleset");
            (rules.contains("15053") == captured).then_some(())
        };
        assert!(eventually(written).await.is_some());
        let view = agent.stands(Standing::Enrolled).await;
        assert_eq!(view.repairs, 0);
    };
    names(false).await;
    names(true).await;
    assert_eq!(name_from(pod).await, "named");
    proxy.notes.take();
}

/// Rules and routes that somebody removes come back. Captured connections live through it as long
/// as address translation itself was not taken away.
async fn damaged(agent: &Running, pod: &Place, peer: &Place, proxy: &Proxy, choice: Choice) {
    let mut out = pod.call(&to(PEER, 9090)).await;
    let mut into = peer.call(&to(POD, 8080)).await;
    let repaired = async |count: u64| {
        let whole = || {
            let view = agent.pod()?;
            (view.repairs >= count && view.standing == Standing::Enrolled).then_some(())
        };
        let found = eventually(whole).await;
        assert!(found.is_some(), "repair {count}: {:#?}", agent.pod());
    };
    match choice {
        Choice::Iptables => pod.inside("iptables", "-t nat -F ISOBAR_OUTPUT"),
        _ => pod.inside("nft", "flush chain inet isobar nat-output"),
    }
    repaired(1).await;
    out.echo().await;
    into.echo().await;
    pod.inside("ip", "rule del pref 32764");
    repaired(2).await;
    out.echo().await;
    into.echo().await;
    pod.inside("ip", "route flush table 100");
    repaired(3).await;
    into.echo().await;
    proxy.notes.take();
    enrolled(pod, peer, proxy).await;

    pod.inside("nft", "flush ruleset");
    repaired(4).await;
    enrolled(pod, peer, proxy).await;

    // A rule of others that ends the chain: with nftables ours are chains of their own.
    pod.inside("iptables", "-t nat -I OUTPUT 1 -p tcp -j ACCEPT");
    if choice == Choice::Iptables {
        repaired(5).await;
    }
    enrolled(pod, peer, proxy).await;
    pod.inside("iptables", "-t nat -D OUTPUT -p tcp -j ACCEPT");
}

/// Leaving cuts nothing, coming back in the middle cuts nothing, and in the end nothing is left.
async fn leaving(world: &World, agent: &Running, pod: &Place, peer: &Place, proxy: &Proxy) {
    let mut open = [
        pod.call(&to(PEER, 9090)).await,
        peer.call(&to(POD, 8080)).await,
        peer.call(&to(POD, 15008)).await,
    ];
    for _ in 0..2 {
        world.label("none");
        let view = agent.stands(Standing::Draining).await;
        assert_eq!(world.annotation(), json!({}));
        assert!(view.connections >= 3, "{view:#?}");
        assert!(
            eventually(|| (world.ready()? == "plain").then_some(()))
                .await
                .is_some()
        );
        for call in &mut open {
            call.echo().await;
        }
        proxy.notes.take();
        // New connections go their own way; a tunnel from a caller that is late still works.
        assert_eq!(pod.call(&to(PEER, 9090)).await.seen, POD);
        assert_eq!(peer.call(&to(POD, 8080)).await.seen, PEER);
        assert!(proxy.notes.take().is_empty());
        assert_eq!(peer.call(&to(POD, 15008)).await.seen, PEER);
        assert_eq!(proxy.notes.take(), ["tunnel"]);

        world.label("ambient");
        agent.stands(Standing::Enrolled).await;
        for call in &mut open {
            call.echo().await;
        }
        assert_eq!(pod.call(&to(PEER, 9090)).await.seen, POD);
        assert_eq!(proxy.notes.take(), ["outbound 10.0.0.3:9090"]);
    }
    world.label("none");
    agent.stands(Standing::Draining).await;
    for call in &mut open {
        call.echo().await;
    }
    drop(open);
    agent.stands(Standing::Plain).await;
    assert_eq!(world.ready().as_deref(), Some("plain"));
    assert!(proxy.notes.contain(&format!("del {UID}")));
    nothing_is_left(pod);
    let options = DialOptions {
        netns: Some(peer.netns.clone()),
        ..DialOptions::default()
    };
    let closed = dial(&options, to(POD, 15008).parse().unwrap()).await;
    assert!(closed.is_err(), "the tunnel port is still open");
}

fn nothing_is_left(pod: &Place) {
    assert_eq!(pod.printed("nft", "list tables inet"), "");
    assert!(!pod.printed("iptables-save", "-t nat").contains("ISOBAR"));
    assert!(!pod.printed("ip", "rule show").contains("32764"));
    assert_eq!(pod.printed("ip", "route show table 100"), "");
}
