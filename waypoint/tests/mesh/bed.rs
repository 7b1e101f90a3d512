//! What the tests stand on: an authority, a waypoint worker, back ends and a caller.

mod client;
mod names;
mod objects;
mod scripted;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use isobar_hbone::{Authority, ConnectHeaders, Pool, PoolOptions, TunnelKey, TunnelStream};
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::{security, workload as wire};
use isobar_runtime::LocalScope;
use isobar_telemetry::Registry;
use isobar_tls::{WorkloadCertificate, ca};
use isobar_types::{Identity, Str};
use isobar_waypoint::access_log::AccessLog;
use isobar_waypoint::listener;
use isobar_waypoint::metrics::Metrics;
use isobar_waypoint::run::{Fetch, worker};
use isobar_waypoint::session::Worker;
use isobar_waypoint::upstream::{Dial, HboneDialer, PlainDialer};
use isobar_waypoint::world::{Own, World};
use isobar_xds::{CertError, CertSource};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

pub(crate) use client::{Answer, Client};
pub(crate) use objects::{
    allow_account, deny_path, forward, on_account, on_prefix, pods_deny, service_ref, subsets, to,
    virtual_service,
};

pub(crate) use scripted::Reply;

pub(crate) const HOST: &str = "svc.default.svc.cluster.local";
pub(crate) const VIP: &str = "10.96.0.1:8080";
pub(crate) const WAYPOINT_HOST: &str = "wp.default.svc.cluster.local";

/// Signs whatever is asked for.
struct Certs(ca::Authority);

impl CertSource for Certs {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<Arc<WorkloadCertificate>, CertError>> {
        let day = Duration::from_secs(3600);
        let made = self.0.issue_workload(identity, day);
        Box::pin(async move { Ok(Arc::new(made.expect("a certificate"))) })
    }
}

/// A running waypoint and what is around it.
pub(crate) struct Bed {
    pub(crate) worker: Rc<Worker>,
    pub(crate) scope: Rc<LocalScope>,
    pub(crate) registry: Registry,
    pub(crate) lines: Receiver<String>,
    pub(crate) at: SocketAddr,
    pub(crate) certificates: Arc<dyn CertSource>,
    backends: RefCell<Vec<Backend>>,
    /// Policies that select back ends: one by its name, or all.
    policies: RefCell<Vec<(Option<&'static str>, String)>>,
    hbone: bool,
    /// What its name server knows.
    pub(crate) zone: names::Zone,
}

struct Backend {
    name: &'static str,
    address: SocketAddr,
    version: &'static str,
}

pub(crate) fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account)
}

/// Runs a test on one worker thread.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Bed) -> F) {
    run_within(Duration::from_secs(60), test);
}

/// As [`run`], for tests that let time pass.
pub(crate) fn run_within<F: Future<Output = ()>>(limit: Duration, test: impl FnOnce(Bed) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let bed = Bed::start(None);
        tokio::time::timeout(limit, test(bed))
            .await
            .expect("the test took too long");
    });
}

impl Bed {
    /// A bed whose back ends are reached over HBONE on `port`.
    pub(crate) fn over_hbone(port: u16) -> Self {
        Self::start(Some(port))
    }

    fn start(hbone: Option<u16>) -> Self {
        let certificates: Arc<dyn CertSource> =
            Arc::new(Certs(ca::Authority::generate("test").unwrap()));
        let own = Own {
            identity: identity("wp"),
            pod: "wp-1".into(),
            ip: IpAddr::from([127, 0, 0, 1]),
            network: "".into(),
            cluster_id: "Kubernetes".into(),
        };
        let scope = Rc::new(LocalScope::new("test"));
        let (names, zone) = names::serve(&scope);
        let world = World {
            names,
            ..World::new(own)
        };
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let (log, lines) = AccessLog::to_queue();
        let dialer: Rc<dyn Dial> = match hbone {
            None => Rc::new(PlainDialer::default()),
            Some(port) => {
                let tunnels = HboneDialer::tunnels(Rc::new(Fetch(certificates.clone())));
                Rc::new(HboneDialer::new(world.own.clone(), tunnels).on_port(port))
            }
        };
        let worker = worker(world, metrics, log, dialer, scope.clone());
        let listener = listener::listen(SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
        let at = listener.local_addr().unwrap();
        scope.spawn(
            "accept",
            listener::accept(worker.clone(), listener, certificates.clone()),
        );
        let bed = Self {
            worker,
            scope,
            registry,
            lines,
            at,
            certificates,
            backends: RefCell::default(),
            policies: RefCell::default(),
            hbone: hbone.is_some(),
            zone,
        };
        bed.describe("");
        bed
    }

    /// Another waypoint of the same world, which can end by itself.
    pub(crate) fn copy(&self) -> (Rc<Worker>, SocketAddr) {
        let scope = Rc::new(LocalScope::new("copy"));
        let worker = worker(
            self.worker.world.clone(),
            self.worker.metrics.clone(),
            self.worker.access_log.clone(),
            Rc::new(PlainDialer::default()),
            scope.clone(),
        );
        let listener = listener::listen(SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
        let at = listener.local_addr().unwrap();
        let accept = listener::accept(worker.clone(), listener, self.certificates.clone());
        scope.spawn("accept", accept);
        (worker, at)
    }

    /// Tells the waypoint who it is: of a namespace, or of one account.
    pub(crate) fn describe(&self, account: &str) {
        self.tables(|draft| {
            draft
                .set_waypoint(&proto::Waypoint {
                    namespace: "default".into(),
                    name: "wp".into(),
                    traffic: proto::waypoint::Traffic::All.into(),
                    hostname: WAYPOINT_HOST.into(),
                    for_service_account: account.into(),
                    ..proto::Waypoint::default()
                })
                .unwrap();
        });
    }

    /// Changes the tables.
    pub(crate) fn tables(&self, change: impl FnOnce(&mut isobar_route::Draft)) {
        let feed = &self.worker.world.feed;
        let mut draft = feed.load().draft();
        change(&mut draft);
        feed.publish(draft.finish());
    }

    /// Starts a back end on its own loopback address and tells the mesh.
    pub(crate) async fn backend(&self, name: &'static str, version: &'static str) -> SocketAddr {
        let count = u8::try_from(self.backends.borrow().len()).unwrap();
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 1, 1 + count], 0)))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        self.scope
            .spawn("backend", serve(name, listener, self.scope.clone()));
        self.known_backend(name, version, address);
        address
    }

    /// Tells the mesh of a back end that somebody else serves.
    pub(crate) fn known_backend(
        &self,
        name: &'static str,
        version: &'static str,
        address: SocketAddr,
    ) {
        self.backends.borrow_mut().push(Backend {
            name,
            address,
            version,
        });
        self.publish_mesh(wire::AppProtocol::Unknown);
    }

    /// Publishes services and workloads; `protocol` is what the service port declares.
    pub(crate) fn publish_mesh(&self, protocol: wire::AppProtocol) {
        let mut draft = self.worker.world.store.load().draft();
        let service = service(protocol, Some(gateway()));
        draft
            .upsert_address(&address(wire::address::Type::Service(service)))
            .unwrap();
        let client = wire::Workload {
            uid: "client".into(),
            name: "client".into(),
            namespace: "default".into(),
            service_account: "client".into(),
            addresses: vec![vec![127, 0, 0, 1]],
            workload_name: "client".into(),
            canonical_name: "client".into(),
            ..Default::default()
        };
        draft
            .upsert_address(&address(wire::address::Type::Workload(client)))
            .unwrap();
        let key = format!("default/{HOST}");
        for backend in self.backends.borrow().iter() {
            let IpAddr::V4(ip) = backend.address.ip() else {
                unreachable!("back ends listen on IPv4")
            };
            let port = wire::Port {
                service_port: 8080,
                target_port: u32::from(backend.address.port()),
                app_protocol: 0,
            };
            let workload = wire::Workload {
                uid: backend.name.into(),
                name: backend.name.into(),
                namespace: "default".into(),
                service_account: "server".into(),
                addresses: vec![ip.octets().to_vec()],
                workload_name: backend.name.into(),
                canonical_name: "svc".into(),
                tunnel_protocol: i32::from(self.hbone),
                waypoint: Some(gateway()),
                authorization_policies: self.policies_of(backend.name),
                services: BTreeMap::from([(key.clone(), wire::PortList { ports: vec![port] })]),
                ..Default::default()
            };
            draft
                .upsert_address(&address(wire::address::Type::Workload(workload)))
                .unwrap();
            self.tables(|tables| {
                tables.upsert_labels(&proto::WorkloadLabels {
                    uid: backend.name.into(),
                    labels: BTreeMap::from([("version".into(), backend.version.into())]),
                });
            });
        }
        self.worker.world.store.publish(draft.finish());
    }

    /// Tells the mesh of a service `other` with the one port 9080, at `address`.
    pub(crate) fn other_service(&self, address: SocketAddr) -> proto::ServiceRef {
        let host = "other.default.svc.cluster.local";
        let service = wire::Service {
            name: "other".into(),
            hostname: host.into(),
            addresses: vec![wire::NetworkAddress {
                network: String::new(),
                address: vec![10, 96, 0, 2],
                length: None,
            }],
            ports: vec![wire::Port {
                service_port: 9080,
                target_port: 0,
                app_protocol: 0,
            }],
            ..service(wire::AppProtocol::Unknown, None)
        };
        let IpAddr::V4(ip) = address.ip() else {
            unreachable!("back ends listen on IPv4")
        };
        let port = wire::Port {
            service_port: 9080,
            target_port: u32::from(address.port()),
            app_protocol: 0,
        };
        let workload = wire::Workload {
            uid: "other".into(),
            name: "other".into(),
            namespace: "default".into(),
            addresses: vec![ip.octets().to_vec()],
            services: BTreeMap::from([(
                format!("default/{host}"),
                wire::PortList { ports: vec![port] },
            )]),
            ..Default::default()
        };
        let mut draft = self.worker.world.store.load().draft();
        for kind in [
            wire::address::Type::Service(service),
            wire::address::Type::Workload(workload),
        ] {
            draft.upsert_address(&self::address(kind)).unwrap();
        }
        self.worker.world.store.publish(draft.finish());
        proto::ServiceRef {
            namespace: "default".into(),
            hostname: host.into(),
        }
    }

    /// Takes the service away from the waypoint.
    pub(crate) fn unbind(&self) {
        self.release(Vec::new());
    }

    /// As [`Self::unbind`], but not every proxy knows yet.
    pub(crate) fn begin_to_unbind(&self) {
        self.release(vec![gateway()]);
    }

    fn release(&self, also_waypoints: Vec<wire::GatewayAddress>) {
        let mut draft = self.worker.world.store.load().draft();
        let mut service = service(wire::AppProtocol::Unknown, None);
        service.also_waypoints = also_waypoints;
        draft
            .upsert_address(&address(wire::address::Type::Service(service)))
            .unwrap();
        self.worker.world.store.publish(draft.finish());
    }

    /// Tells the mesh that a policy selects every back end.
    pub(crate) fn selected_by(&self, policy: &str) {
        self.policies.borrow_mut().push((None, policy.to_owned()));
        self.publish_mesh(wire::AppProtocol::Unknown);
    }

    /// Tells the mesh that a policy selects one back end.
    pub(crate) fn selects(&self, policy: &str, backend: &'static str) {
        let entry = (Some(backend), policy.to_owned());
        self.policies.borrow_mut().push(entry);
        self.publish_mesh(wire::AppProtocol::Unknown);
    }

    fn policies_of(&self, backend: &str) -> Vec<String> {
        let all = self.policies.borrow();
        let own = all
            .iter()
            .filter(|(of, _)| of.is_none_or(|of| of == backend));
        own.map(|(_, policy)| policy.clone()).collect()
    }

    /// Publishes a policy of node proxies.
    pub(crate) fn on_pods(&self, policy: &security::Authorization) {
        let mut draft = self.worker.world.store.load().draft();
        draft.upsert_authorization(policy).unwrap();
        self.worker.world.store.publish(draft.finish());
    }

    /// Removes a back end from the mesh.
    pub(crate) fn remove_backend(&self, name: &str) {
        self.backends.borrow_mut().retain(|b| b.name != name);
        let mut draft = self.worker.world.store.load().draft();
        draft.remove_address(name);
        self.worker.world.store.publish(draft.finish());
    }

    /// Opens a tunnel as `account` of namespace default.
    pub(crate) async fn tunnel(
        &self,
        account: &str,
        authority: &str,
    ) -> Result<TunnelStream, String> {
        self.tunnel_at(self.at, account, authority).await
    }

    /// The same through a copy of the waypoint.
    pub(crate) async fn tunnel_at(
        &self,
        to: SocketAddr,
        account: &str,
        authority: &str,
    ) -> Result<TunnelStream, String> {
        let certificates = Rc::new(Fetch(self.certificates.clone()));
        let pool = Pool::new(PoolOptions::default(), certificates);
        let key = TunnelKey {
            source: identity(account),
            expect: vec![identity("wp")],
            to,
            from: IpAddr::from([127, 0, 0, 1]),
            workload: "".into(),
        };
        let authority = Authority::parse(authority).ok_or("not an authority")?;
        let headers = ConnectHeaders::new(authority);
        let stream = pool.open(&key, &headers).await.map_err(|e| e.to_string())?;
        // The pool ends its tunnels when it is dropped; it lives as long as the test.
        std::mem::forget(pool);
        Ok(stream)
    }

    /// An HTTP/1.1 connection through the waypoint to the service.
    pub(crate) async fn client(&self, account: &str) -> Client {
        self.client_to(account, VIP).await
    }

    /// As [`Self::client`], to any authority.
    pub(crate) async fn client_to(&self, account: &str, authority: &str) -> Client {
        let stream = self.tunnel(account, authority).await.unwrap();
        self.client_over(stream).await
    }

    /// An HTTP/1.1 connection over a stream that stands.
    pub(crate) async fn client_over<S>(&self, stream: S) -> Client
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        self.scope.spawn("client", async move {
            // Its requests see how it ends.
            let _ = connection.await;
        });
        Client::over(sender)
    }

    /// The next access line.
    pub(crate) async fn line(&self) -> String {
        loop {
            if let Ok(line) = self.lines.try_recv() {
                return line;
            }
            tokio::task::yield_now().await;
        }
    }
}

fn service(protocol: wire::AppProtocol, waypoint: Option<wire::GatewayAddress>) -> wire::Service {
    wire::Service {
        name: "svc".into(),
        namespace: "default".into(),
        hostname: HOST.into(),
        addresses: vec![wire::NetworkAddress {
            network: String::new(),
            address: vec![10, 96, 0, 1],
            length: None,
        }],
        ports: vec![wire::Port {
            service_port: 8080,
            target_port: 0,
            app_protocol: protocol.into(),
        }],
        waypoint,
        ..Default::default()
    }
}

fn gateway() -> wire::GatewayAddress {
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(
            wire::NamespacedHostname {
                namespace: "default".into(),
                hostname: WAYPOINT_HOST.into(),
            },
        )),
        hbone_mtls_port: 15008,
    }
}

fn address(kind: wire::address::Type) -> wire::Address {
    wire::Address { r#type: Some(kind) }
}

/// Answers `NAME PATH` and repeats the request's headers as `x-got-…`.
pub(crate) async fn serve(name: &'static str, listener: TcpListener, scope: Rc<LocalScope>) {
    while let Ok((tcp, _)) = listener.accept().await {
        scope.spawn("backend connection", connection(name, tcp));
    }
}

async fn connection(name: &'static str, tcp: TcpStream) {
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let size = body.collect().await.map_or(0, |b| b.to_bytes().len());
        let mut response = http::Response::builder();
        for (key, value) in &parts.headers {
            response = response.header(format!("x-got-{key}"), value);
        }
        let status = if parts.uri.path() == "/fail" {
            500
        } else {
            200
        };
        let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
        let text = format!("{name} {path} {size}");
        let body = Full::new(Bytes::from(text));
        Ok::<_, Infallible>(response.status(status).body(body).unwrap())
    });
    let mut first = [0; 1];
    let h2 = tcp.peek(&mut first).await.is_ok() && first[0] == b'P' && {
        let mut preface = [0; 3];
        tcp.peek(&mut preface).await.is_ok() && &preface == b"PRI"
    };
    // Ends with its peer.
    if h2 {
        let executor = Local;
        let _ = hyper::server::conn::http2::Builder::new(executor)
            .serve_connection(TokioIo::new(tcp), service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(tcp), service)
            .await;
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}

/// The node's proxy of a back end: ends tunnels as `account` and passes them on to `to`.
pub(crate) async fn node_proxy(bed: &Bed, listener: TcpListener, account: &str, to: SocketAddr) {
    let certificate = bed.certificates.fetch(&identity(account)).await.unwrap();
    let scope = bed.scope.clone();
    bed.scope.spawn("node proxy", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tunnels(&scope, &certificate, tcp, to);
        }
    });
}

/// The same for one connection that was accepted.
pub(crate) async fn node_proxy_on(bed: &Bed, tcp: TcpStream, account: &str, to: SocketAddr) {
    let certificate = bed.certificates.fetch(&identity(account)).await.unwrap();
    tunnels(&bed.scope, &certificate, tcp, to);
}

fn tunnels(scope: &LocalScope, certificate: &WorkloadCertificate, tcp: TcpStream, to: SocketAddr) {
    let life = scope.lifetime();
    let tls = isobar_tls::server_config(certificate);
    scope.spawn("node proxy connection", async move {
        let options = isobar_hbone::ServerOptions::default();
        // How it ends is for the waypoint to see.
        let _ = isobar_hbone::serve(tcp, &tls, &options, &life, move |connect| async move {
            assert_eq!(connect.peer().identity(), &identity("wp"));
            let mut far = TcpStream::connect(to).await.unwrap();
            let mut near = connect.accept(None).unwrap();
            isobar_hbone::relay(&mut near, &mut far).await;
        })
        .await;
    });
}

/// Names a count map by the first word of each answer.
pub(crate) fn tally(answers: &[Answer]) -> BTreeMap<Str, usize> {
    let mut counts: BTreeMap<Str, usize> = BTreeMap::new();
    for answer in answers {
        let name = answer.body.split(' ').next().unwrap_or("");
        *counts.entry(name.into()).or_default() += 1;
    }
    counts
}
