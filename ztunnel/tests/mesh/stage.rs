//! Two served pods, `client` and `server`, and an `outsider`; the server's service is `web`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isobar_hbone::{
    Authority, Certificates, ConnectHeaders, Pool, PoolOptions, TunnelError, TunnelKey,
};
use isobar_net::{DialOptions, NetNs};
use isobar_proto::istio::workload as wire;
use isobar_runtime::{Scope, Worker};
use isobar_tls::WorkloadCertificate;
use isobar_types::Identity;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wire::address::Type;
use ztunnel::proxy::World;

use crate::rig::{LIMIT, Mesh, Place, VIP, network, service};

pub(crate) struct Stage {
    pub(crate) mesh: Mesh,
    pub(crate) client: Place,
    pub(crate) server: Place,
    pub(crate) outsider: Place,
    pub(crate) workers: Vec<Worker>,
    pub(crate) lines: Lines,
    pub(crate) apps: Scope,
    /// Open before any pod was served.
    pub(crate) descriptors: usize,
}

impl Stage {
    /// Everything known and served.
    pub(crate) async fn new(workers: Vec<Worker>) -> Self {
        Self::with(workers, &[]).await
    }

    /// As [`Stage::new`], with or without tunnels between the pods.
    pub(crate) async fn with_tunnels(workers: Vec<Worker>, tunnels: bool) -> Self {
        let same_node = if tunnels { "false" } else { "true" };
        Self::with(workers, &[("ISOBAR_SAME_NODE", same_node)]).await
    }

    /// As [`Stage::new`], with more settings.
    pub(crate) async fn with(workers: Vec<Worker>, settings: &[(&str, &str)]) -> Self {
        network();
        // Each worker keeps its own namespace open from now on.
        for worker in &workers {
            let settle = || async { NetNs::settle().unwrap() };
            worker.call(settle).await.unwrap();
        }
        let lines = Lines::capture();
        let mut stage = Self {
            descriptors: 0,
            mesh: Mesh::new(workers.clone(), settings),
            client: Place::new("client", "10.0.0.2"),
            server: Place::new("server", "10.0.0.3"),
            outsider: Place::new("outsider", "10.0.0.4"),
            workers,
            lines,
            apps: Scope::new("apps"),
        };
        stage.server.echo(&stage.apps, 8080);
        stage.outsider.echo(&stage.apps, 8080);
        stage.descriptors = open_descriptors();
        stage.populate();
        for place in [&stage.client, &stage.server] {
            place.redirect();
            stage.serve(place).await;
        }
        let follower = stage.mesh.pods.clone();
        stage.apps.spawn(
            "recheck",
            follower.recheck(stage.mesh.store.clone(), stage.apps.lifetime()),
        );
        stage
    }

    pub(crate) async fn serve(&self, place: &Place) {
        let netns = Some(place.netns.clone());
        let info = place.info();
        let served = self.mesh.pods.serve(place.name, &info, netns);
        served.await.unwrap();
    }

    fn populate(&self) {
        let mut server = self.server.workload();
        let ports = wire::PortList {
            ports: vec![wire::Port {
                service_port: 80,
                target_port: 8080,
                ..wire::Port::default()
            }],
        };
        server
            .services
            .insert("ns/web.ns.svc.cluster.local".into(), ports);
        self.mesh.put([
            Type::Workload(self.client.workload()),
            Type::Workload(server),
            Type::Service(service("web", VIP, 8080)),
        ]);
    }

    pub(crate) fn metrics(&self) -> String {
        self.mesh.registry.encode()
    }

    /// Asks the server's proxy for `authority` as a peer of its own would, from outside any pod's
    /// redirection; says who it is. `Err` is the status of the refusal.
    pub(crate) async fn knock(&self, identity: &str, authority: &str) -> Result<String, u16> {
        let key = TunnelKey {
            source: Identity::new("cluster.local", "ns", identity),
            expect: vec![Identity::new("cluster.local", "ns", "server")],
            to: "10.0.0.3:15008".parse().unwrap(),
            from: self.outsider.ip,
            workload: "".into(),
        };
        let headers = ConnectHeaders::new(Authority::parse(authority).unwrap());
        let dial = DialOptions {
            netns: Some(self.outsider.netns.clone()),
            ..DialOptions::default()
        };
        let world = self.mesh.world.clone();
        let knocked = self.workers[0].call(move || async move {
            let options = PoolOptions {
                dial,
                ..PoolOptions::default()
            };
            let pool = Pool::new(options, Rc::new(FromWorld(world)));
            let mut stream = match Box::pin(pool.open(&key, &headers)).await {
                Ok(stream) => stream,
                Err(TunnelError::Refused { status, .. }) => return Err(status),
                Err(error) => panic!("{error}"),
            };
            stream.write_all(b"knock").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            Ok(answer)
        });
        tokio::time::timeout(LIMIT, knocked).await.unwrap().unwrap()
    }
}

struct FromWorld(Arc<World>);

impl Certificates for FromWorld {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<WorkloadCertificate>, String>> + 'a>> {
        Box::pin(async move {
            let fetched = self.0.certificates.fetch(identity).await;
            fetched.map_err(|error| error.to_string())
        })
    }
}

/// Those of this process but for pipes, of which a worker keeps a few once it has carried bulk: whether it
/// has to is for the machine's other work to say.
pub(crate) fn open_descriptors() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = all.filter_map(|one| std::fs::read_link(one.path()).ok());
    targets
        .filter(|target| !target.to_string_lossy().starts_with("pipe:"))
        .count()
}

/// What this process has logged about connections.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

impl Lines {
    fn capture() -> Self {
        use tracing_subscriber::layer::SubscriberExt as _;
        let lines = Self::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::set_global_default(subscriber).unwrap();
        lines
    }

    /// Waits for a line of a finished connection whose fields contain these texts.
    pub(crate) async fn wait(&self, wanted: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut found = None;
        let what = format!("a line with {wanted:?}");
        until(&what, || {
            let lines = self.0.lock().unwrap();
            found = lines
                .iter()
                .find(|line| {
                    wanted
                        .iter()
                        .all(|(key, text)| line.get(*key).is_some_and(|value| value.contains(text)))
                })
                .cloned();
            found.is_some()
        })
        .await;
        found.unwrap()
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Fields(BTreeMap<String, String>);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name().to_owned(), format!("{value:?}"));
            }
        }
        if event.metadata().target() == "access" {
            let mut fields = Fields(BTreeMap::new());
            event.record(&mut fields);
            let level = event.metadata().level().to_string();
            fields.0.insert("level".into(), level);
            self.0.lock().unwrap().push(fields.0);
        }
    }
}

/// A connection to the server's application that has been greeted.
pub(crate) async fn greeted(from: &Place, greeting: &str) -> TcpStream {
    let mut tcp = from.connect("10.0.0.3:8080").await.unwrap();
    let mut got = vec![0; greeting.len()];
    tokio::time::timeout(LIMIT, tcp.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, greeting.as_bytes());
    tcp
}

pub(crate) async fn echoes(tcp: &mut TcpStream) {
    tcp.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    tokio::time::timeout(LIMIT, tcp.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
}

pub(crate) async fn ends_soon(tcp: &mut TcpStream) -> Duration {
    let started = Instant::now();
    let mut byte = [0];
    let read = tokio::time::timeout(LIMIT, tcp.read(&mut byte))
        .await
        .unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    let took = started.elapsed();
    // The bar of one second is for a machine that does nothing else.
    assert!(took < Duration::from_secs(5), "{took:?}");
    took
}

/// Whether long forms of tests are asked for.
fn long() -> bool {
    std::env::var_os("ISOBAR_TEST_LONG").is_some()
}

/// The short or the long form of a figure.
pub(crate) fn form<T: Copy>(of: [T; 2]) -> T {
    of[usize::from(long())]
}

/// Tells the person who waits for a long form.
pub(crate) fn progress(bar: &str, round: usize, rounds: usize) {
    use std::io::Write as _;

    if long() {
        // Not `eprintln!`, which the test harness keeps for itself.
        let _ = writeln!(std::io::stderr(), "{bar}: {round} of {rounds}");
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(LIMIT, waited).await.is_ok(),
        "not so: {what}"
    );
}
