//! Requests through a whole worker whose endpoints are in memory, on a clock that goes on by itself.

mod decided;
mod limited;
mod placed;
mod retried;
mod withdrawn;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload as wire;
use isobar_route::Keepalive;
use isobar_runtime::LocalScope;
use isobar_telemetry::Registry;
use isobar_types::Identity;
use tokio::io::DuplexStream;
use tokio::sync::Semaphore;

use super::*;
use crate::access_log::AccessLog;
use crate::attribution::Peer;
use crate::metrics::Metrics;
use crate::run;
use crate::session::Worker;
use crate::stream::AnyStream;
use crate::target::resolve;
use crate::testing::*;
use crate::upstream::{Dial, DialFailure};

/// What an endpoint does with a request.
#[derive(Debug, Clone, Copy)]
enum Reply {
    Status(u16),
    /// 200 with this gRPC status in the head.
    Grpc(&'static str),
    /// Nobody can be reached.
    Unreachable,
    /// It takes for ever to be reached.
    Far,
    /// The connection ends.
    Close,
    /// Nothing is said.
    Silence,
    /// 200, once the test lets it.
    Held,
}

/// What a test says of who is asked, when so many were asked before.
type Replies = Box<dyn Fn(&str, usize) -> Reply>;

/// Endpoints that do as a test says.
struct Script {
    reply: Replies,
    asked: RefCell<Vec<(String, usize)>>,
    connections: Cell<usize>,
    released: Semaphore,
    scope: Rc<LocalScope>,
    h2: Cell<bool>,
}

struct Backends(Rc<Script>);

impl Dial for Backends {
    fn dial<'a>(
        &'a self,
        to: &'a Endpoint,
        _: Option<Keepalive>,
    ) -> LocalBoxFuture<'a, Result<AnyStream, DialFailure>> {
        let (script, uid) = (self.0.clone(), to.workload.uid.to_string());
        Box::pin(async move {
            let before = script.asked.borrow().len();
            match (script.reply)(&uid, before) {
                Reply::Unreachable => {
                    script.asked.borrow_mut().push((uid, 0));
                    return Err(DialFailure {
                        reason: Reason::UpstreamRefused,
                        detail: "nobody is there".to_owned(),
                    });
                }
                Reply::Far => return std::future::pending().await,
                _ => {}
            }
            script.connections.set(script.connections.get() + 1);
            let (near, far) = tokio::io::duplex(64 * 1024);
            let serving = script.clone().serve(uid, far);
            script.scope.spawn("backend", serving);
            Ok(Box::new(near) as AnyStream)
        })
    }
}

impl Script {
    async fn serve(self: Rc<Self>, uid: String, stream: DuplexStream) {
        let (h2, scope) = (self.h2.get(), self.scope.clone());
        let service = hyper::service::service_fn(move |request: ::http::Request<Incoming>| {
            let (script, uid) = (self.clone(), uid.clone());
            async move { script.answer(uid, request).await }
        });
        let io = TokioIo::new(stream);
        // How it ends is for the waypoint to see.
        if h2 {
            let server = hyper::server::conn::http2::Builder::new(LocalExecutor(scope));
            let _ = server.serve_connection(io, service).await;
        } else {
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(io, service).await;
        }
    }

    async fn answer(
        &self,
        uid: String,
        request: ::http::Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let before = self.asked.borrow().len();
        let reply = (self.reply)(&uid, before);
        let body = request.into_body().collect().await;
        let size = body.map_or(0, |body| body.to_bytes().len());
        self.asked.borrow_mut().push((uid, size));
        let response = Response::builder();
        let response = match reply {
            Reply::Status(code) => response.status(code),
            Reply::Grpc(status) => response.header("grpc-status", status),
            Reply::Unreachable | Reply::Far | Reply::Close => {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            Reply::Silence => std::future::pending().await,
            Reply::Held => {
                self.released.acquire().await.unwrap().forget();
                response
            }
        };
        Ok(response.body(Full::default()).unwrap())
    }
}

struct Bed {
    mesh: Mesh,
    worker: Rc<Worker>,
    script: Rc<Script>,
    registry: Registry,
    lines: Receiver<String>,
}

/// A whole response.
struct Answer {
    status: u16,
    headers: ::http::HeaderMap,
    body: String,
}

/// Runs a test about these pods of the service, each of which answers as `reply` says.
fn run<F: Future<Output = ()>>(
    pods: &[&str],
    reply: impl Fn(&str, usize) -> Reply + 'static,
    test: impl FnOnce(Rc<Bed>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let bed = Rc::new(Bed::of(pods, Box::new(reply)));
        let long = Duration::from_secs(100_000_000);
        let within = tokio::time::timeout(long, test(bed)).await;
        within.expect("the test took too long");
    });
}

impl Bed {
    fn of(names: &[&str], reply: Replies) -> Self {
        let mesh = Mesh::new();
        let caller = wire::Workload {
            service_account: "caller".into(),
            ..in_locality(stranger("caller", "10.0.0.9"), "r", "z", "s")
        };
        mesh.pods([caller]);
        mesh.pods(pods(names));
        let scope = Rc::new(LocalScope::new("test"));
        let script = Rc::new(Script {
            reply,
            asked: RefCell::default(),
            connections: Cell::default(),
            released: Semaphore::new(0),
            scope: scope.clone(),
            h2: Cell::default(),
        });
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let (log, lines) = AccessLog::to_queue();
        let dialer = Rc::new(Backends(script.clone()));
        Self {
            worker: run::worker(mesh.world.clone(), metrics, log, dialer, scope),
            mesh,
            script,
            registry,
            lines,
        }
    }

    /// All requests to the service, tried again as said.
    fn retries(&self, retries: proto::Retries) {
        self.route(|route| route.retries = Some(retries));
    }

    fn route(&self, change: impl FnOnce(&mut proto::HttpRoute)) {
        let to = proto::WeightedDestination {
            destination: Some(proto::Destination {
                service: Some(service_ref()),
                ..Default::default()
            }),
            weight: 1,
            ..Default::default()
        };
        let forward = proto::HttpForward {
            destinations: vec![to],
        };
        let mut route = proto::HttpRoute {
            action: Some(proto::http_route::Action::Forward(forward)),
            ..Default::default()
        };
        change(&mut route);
        let service = proto::VirtualService {
            namespace: "default".into(),
            name: "routes".into(),
            parents: vec![service_ref()],
            http: vec![route],
            ..Default::default()
        };
        let set = |t: &mut isobar_route::Draft| t.upsert_virtual_service(&service).unwrap();
        self.mesh.tables(set);
    }

    fn rule(&self, policy: proto::TrafficPolicy) {
        let rule = rule(policy);
        let set = |t: &mut isobar_route::Draft| t.upsert_destination_rule(&rule).unwrap();
        self.mesh.tables(set);
    }

    /// A connection of a caller.
    fn open(&self) -> DuplexStream {
        let own = &self.mesh.world.own;
        let peer = Peer {
            identity: Some(Identity::new("cluster.local", "default", "caller")),
            address: SocketAddr::from(([10, 0, 0, 9], 4711)),
            foreign: false,
        };
        let addressed = resolve(&self.mesh.view(), own, VIP, "default").unwrap();
        let session = Session::new(self.worker.clone(), peer, addressed);
        let (near, far) = tokio::io::duplex(1024 * 1024);
        let serving = crate::http::serve1(session, far);
        self.worker.scope.spawn("caller", serving);
        near
    }

    async fn client(&self) -> SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.open());
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        self.worker.scope.spawn("client", async move {
            // The tests see how it ends.
            let _ = connection.await;
        });
        sender
    }

    async fn get(&self) -> Answer {
        self.send(0).await
    }

    /// Sends so many bytes with the header that rules make a key of.
    async fn send(&self, size: usize) -> Answer {
        let body = Full::new(Bytes::from(vec![7; size]));
        let request = ::http::Request::post("/").header("host", "svc");
        let request = request.header("x-key", "k").body(body).unwrap();
        let response = self.client().await.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }
    }

    /// Begins a request whose answer is for later.
    fn begin(self: &Rc<Self>) -> tokio::task::JoinHandle<Answer> {
        let bed = self.clone();
        tokio::task::spawn_local(async move { bed.get().await })
    }

    fn asked(&self) -> usize {
        self.script.asked.borrow().len()
    }

    /// Who was asked, in order.
    fn who(&self) -> Vec<String> {
        let asked = self.script.asked.borrow();
        asked.iter().map(|(uid, _)| uid.clone()).collect()
    }

    /// Lets what is under way come as far as it can: time goes on only when nobody has anything to do.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// The next access line.
    async fn line(&self) -> String {
        loop {
            if let Ok(line) = self.lines.try_recv() {
                return line;
            }
            self.settle().await;
        }
    }

    /// What was counted of a metric, by the value of one of its labels.
    fn counted(&self, metric: &str, label: &str) -> Vec<String> {
        let text = self.registry.encode();
        let of_metric = text.lines().filter_map(|line| line.strip_prefix(metric));
        let label = format!("{label}=\"");
        let pairs = of_metric.filter_map(|line| {
            let (_, value) = line.split_once(&label)?;
            let (value, rest) = value.split_once('"')?;
            let (_, count) = rest.rsplit_once(' ')?;
            Some(format!("{value} {count}"))
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort();
        pairs
    }

    fn outcomes(&self) -> Vec<String> {
        self.counted("isobar_upstream_retries_total", "outcome")
    }

    fn overflows(&self) -> Vec<String> {
        self.counted("isobar_upstream_overflows_total", "limit")
    }

    /// What is under way to the service.
    fn load(&self, load: Load) -> u32 {
        let service = self.mesh.known_service(HOST);
        let key = (service.key.clone(), None, 8080);
        let cluster = self.mesh.world.clusters.find(&key);
        cluster.map_or(0, |cluster| cluster.count(load))
    }
}

fn again(attempts: i32, on: &str) -> proto::Retries {
    proto::Retries {
        attempts,
        retry_on: on.into(),
        ..Default::default()
    }
}

fn time(millis: i64) -> Option<prost_types::Duration> {
    let nanos = i32::try_from(millis % 1000 * 1_000_000).unwrap();
    let seconds = millis / 1000;
    Some(prost_types::Duration { seconds, nanos })
}
