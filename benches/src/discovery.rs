//! A made-up control plane of any size: the same workloads for whichever proxy asks, and a change
//! of one in a hundred of them on request.

mod accepted;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use isobar_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use isobar_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use isobar_proto::istio::workload::{self as wire, Address, Service, Workload};
use isobar_proto::type_url::ADDRESS;
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_tls::control::{ControlServer, server_config};
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Server;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use accepted::Accepted;

const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Endpoints of each service.
const ENDPOINTS: u32 = 10;
type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// What to serve, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Discovery {
    /// Workloads; a service for every ten of them comes on top.
    #[arg(long)]
    workloads: u32,
    /// Where proxies connect to. On the next port a connection asks for a change: the milliseconds
    /// until the proxy has acknowledged it are written to it.
    #[arg(long)]
    listen: SocketAddr,
    /// Folder of the authority; the root certificate is written there.
    #[arg(long)]
    authority: PathBuf,
}

/// What one proxy is connected to.
struct Ads {
    workloads: u32,
    /// Changes asked for: taken by the stream that is open.
    changes: Arc<Mutex<mpsc::Receiver<TcpStream>>>,
    scope: Scope,
}

impl Discovery {
    /// Serves until it is killed.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let authority = Authority::load_or_create(&self.authority)?;
        let certificate = authority.issue_server(&[self.listen.ip().to_string()], LIFE)?;
        let tls = server_config(&certificate)?;
        let listener = TcpListener::bind(self.listen).await?;
        let asked =
            TcpListener::bind(SocketAddr::new(self.listen.ip(), self.listen.port() + 1)).await?;
        println!("open");
        let (ask, changes) = mpsc::channel(1);
        let scope = Scope::new("discovery");
        scope.spawn("changes", async move {
            while let Ok((tcp, _)) = asked.accept().await {
                if ask.send(tcp).await.is_err() {
                    return;
                }
            }
        });
        let incoming = secured(listener, tls, &scope);
        let ads = Ads {
            workloads: self.workloads,
            changes: Arc::new(Mutex::new(changes)),
            scope,
        };
        Server::builder()
            .add_service(
                AggregatedDiscoveryServiceServer::new(ads).max_encoding_message_size(1 << 30),
            )
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    }
}

/// Connections of a listener, in TLS.
pub(crate) fn secured(
    listener: TcpListener,
    tls: ControlServer,
    scope: &Scope,
) -> ReceiverStream<std::io::Result<Accepted>> {
    let (accepted, incoming) = mpsc::channel(8);
    scope.spawn("accept", async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // A change is to be timed, not the wait for an acknowledgement of TCP's.
            let _ = tcp.set_nodelay(true);
            if let Ok(tls) = tls.accept(tcp).await
                && accepted.send(Ok(Accepted(tls))).await.is_err()
            {
                return;
            }
        }
    });
    ReceiverStream::new(incoming)
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(8);
        let (workloads, changes) = (self.workloads, self.changes.clone());
        let requests = request.into_inner();
        self.scope.spawn("stream", async move {
            // An error is the end of the proxy, which is how a measurement ends.
            let _ = serve(workloads, &changes, requests, responses).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

async fn serve(
    workloads: u32,
    changes: &Mutex<mpsc::Receiver<TcpStream>>,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: Responses,
) -> anyhow::Result<()> {
    let mut changes = changes.lock().await;
    let mut version = 0;
    let mut waiting: Option<(TcpStream, Instant, String)> = None;
    loop {
        tokio::select! {
            request = requests.next() => {
                let Some(request) = request.transpose()? else { return Ok(()) };
                if let Some((tcp, since, _)) =
                    waiting.take_if(|(_, _, nonce)| *nonce == request.response_nonce)
                {
                    answer(tcp, since, &request).await?;
                }
                if request.response_nonce.is_empty() {
                    let resources = if request.type_url == ADDRESS {
                        everything(workloads)
                    } else {
                        Vec::new()
                    };
                    send(&responses, &request.type_url, "first", resources).await?;
                }
            }
            asked = changes.recv() => {
                let Some(tcp) = asked else { return Ok(()) };
                version += 1;
                let nonce = format!("change-{version}");
                let changed = (0..workloads).step_by(100).map(|n| pod(n, version)).collect();
                waiting = Some((tcp, Instant::now(), nonce.clone()));
                send(&responses, ADDRESS, &nonce, changed).await?;
            }
        }
    }
}

async fn answer(
    mut tcp: TcpStream,
    since: Instant,
    request: &DeltaDiscoveryRequest,
) -> anyhow::Result<()> {
    let took = since.elapsed().as_secs_f64() * 1000.0;
    let text = match &request.error_detail {
        Some(error) => format!("refused: {}\n", error.message),
        None => format!("{took:.3}\n"),
    };
    tcp.write_all(text.as_bytes()).await?;
    Ok(())
}

async fn send(
    responses: &Responses,
    type_url: &str,
    nonce: &str,
    resources: Vec<Resource>,
) -> anyhow::Result<()> {
    let response = DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        system_version_info: nonce.to_owned(),
        resources,
        removed_resources: Vec::new(),
    };
    responses.send(Ok(response)).await?;
    Ok(())
}

fn everything(workloads: u32) -> Vec<Resource> {
    let services = (0..workloads.div_ceil(ENDPOINTS)).map(service);
    let pods = (0..workloads).map(|n| pod(n, 0));
    services.chain(pods).chain([own()]).collect()
}

/// The workload that the proxy works for, so that it carries connections.
fn own() -> Resource {
    let uid = "Kubernetes//Pod/bench/bench".to_owned();
    let message = Workload {
        uid: uid.clone(),
        addresses: vec![Ipv4Addr::new(10, 255, 255, 1).octets().to_vec()],
        name: "bench".to_owned(),
        namespace: "bench".to_owned(),
        service_account: "bench".to_owned(),
        node: "bench".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        ..Default::default()
    };
    resource(uid, 0, wire::address::Type::Workload(message))
}

fn namespace(service: u32) -> String {
    format!("ns-{}", service / 20)
}

fn hostname(service: u32) -> String {
    format!("svc-{service}.{}.svc.cluster.local", namespace(service))
}

fn service(n: u32) -> Resource {
    let address = Ipv4Addr::from(0x0a60_0000 + n);
    let message = Service {
        name: format!("svc-{n}"),
        namespace: namespace(n),
        hostname: hostname(n),
        addresses: vec![wire::NetworkAddress {
            address: address.octets().to_vec(),
            ..Default::default()
        }],
        ports: vec![port()],
        canonical: true,
        ..Default::default()
    };
    let name = format!("{}/{}", namespace(n), hostname(n));
    resource(name, 0, wire::address::Type::Service(message))
}

fn port() -> wire::Port {
    wire::Port {
        service_port: 80,
        target_port: 8080,
        ..Default::default()
    }
}

/// As an istiod tells of a pod. A version above 0 has one field changed.
fn pod(n: u32, version: u32) -> Resource {
    let of = n / ENDPOINTS;
    let name = format!("svc-{of}-7c9f8d6b5-{n:06}");
    let uid = format!("Kubernetes//Pod/{}/{name}", namespace(of));
    let key = format!("{}/{}", namespace(of), hostname(of));
    let message = Workload {
        uid: uid.clone(),
        addresses: vec![Ipv4Addr::from(0x0b00_0000 + n).octets().to_vec()],
        namespace: namespace(of),
        service_account: format!("svc-{of}"),
        node: format!("worker-{}", n % 500),
        canonical_name: format!("svc-{of}"),
        canonical_revision: format!("v{version}"),
        workload_type: wire::WorkloadType::Deployment.into(),
        workload_name: format!("svc-{of}"),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        cluster_id: "Kubernetes".to_owned(),
        services: [(
            key,
            wire::PortList {
                ports: vec![port()],
            },
        )]
        .into(),
        name,
        ..Default::default()
    };
    resource(uid, version, wire::address::Type::Workload(message))
}

fn resource(name: String, version: u32, kind: wire::address::Type) -> Resource {
    let message = Address { r#type: Some(kind) };
    Resource {
        name,
        version: version.to_string(),
        resource: Some(prost_types::Any {
            type_url: ADDRESS.to_owned(),
            value: message.encode_to_vec(),
        }),
        ..Default::default()
    }
}
