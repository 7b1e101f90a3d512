//! What feeds our waypoint: the messages of a scene over discovery, a certificate, and one changed
//! resource whenever it is asked for.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{Stream, StreamExt as _};
use isobar_control_plane::Told;
use isobar_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use isobar_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use isobar_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use isobar_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use isobar_proto::istio::workload::address::Type;
use isobar_proto::type_url;
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_tls::control::server_config;
use isobar_types::Identity;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Server;
use tonic::{Request, Response, Status, Streaming};

use super::scene::{ACCOUNT, NAMESPACE, WAYPOINT};
use crate::discovery::secured;

const LIFE: Duration = Duration::from_secs(24 * 3600);
const LARGEST: usize = 1 << 30;

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;
type Resources = BTreeMap<&'static str, Vec<Resource>>;

/// A control plane for one waypoint; ends with this value.
pub(super) struct Feed {
    pub(super) address: SocketAddr,
    /// PEM.
    pub(super) roots: String,
    told: Arc<Mutex<Resources>>,
    open: Arc<Mutex<Option<Responses>>>,
    _scope: Scope,
}

impl Feed {
    pub(super) async fn start(told: &Told, authority: Arc<Authority>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let certificate = authority.issue_server(&[address.ip().to_string()], LIFE)?;
        let scope = Scope::new("feed");
        let incoming = secured(listener, server_config(&certificate)?, &scope);
        let told = Arc::new(Mutex::new(resources(told, 0)));
        let open = Arc::default();
        let ads = Ads {
            told: Arc::clone(&told),
            open: Arc::clone(&open),
            scope: Scope::new("streams"),
        };
        let roots = authority.roots().to_owned();
        let served = Server::builder()
            .add_service(
                AggregatedDiscoveryServiceServer::new(ads).max_encoding_message_size(LARGEST),
            )
            .add_service(IstioCertificateServiceServer::new(Certificates(authority)))
            .serve_with_incoming(incoming);
        scope.spawn("serve", async move { drop(served.await) });
        Ok(Self {
            address,
            roots,
            told,
            open,
            _scope: scope,
        })
    }

    /// Sends the routes of another version of the same scene.
    pub(super) async fn push_routes(&self, told: &Told, version: u32) -> Result<()> {
        let mut all = resources(told, version);
        let routes = all.remove(type_url::VIRTUAL_SERVICE).unwrap_or_default();
        locked(&self.told).insert(type_url::VIRTUAL_SERVICE, routes.clone());
        let open = locked(&self.open).clone();
        let open = open.context("the waypoint is not connected")?;
        let nonce = format!("push-{version}");
        let response = response(type_url::VIRTUAL_SERVICE, &nonce, routes);
        open.send(Ok(response))
            .await
            .context("the waypoint has gone")
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Ads {
    told: Arc<Mutex<Resources>>,
    open: Arc<Mutex<Option<Responses>>>,
    scope: Scope,
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
        *locked(&self.open) = Some(responses.clone());
        let mut requests = request.into_inner();
        let told = Arc::clone(&self.told);
        self.scope.spawn("stream", async move {
            while let Some(Ok(request)) = requests.next().await {
                if let Some(error) = &request.error_detail {
                    eprintln!("refused {}: {}", request.type_url, error.message);
                }
                if !request.response_nonce.is_empty() {
                    continue;
                }
                let all = locked(&told).get(&*request.type_url).cloned();
                let first = response(&request.type_url, "first", all.unwrap_or_default());
                if responses.send(Ok(first)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct Certificates(Arc<Authority>);

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let identity = Identity::new("cluster.local", NAMESPACE, ACCOUNT);
        let signed = self.0.sign(&request.get_ref().csr, &identity, LIFE);
        let cert_chain = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

fn response(type_url: &str, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        system_version_info: nonce.to_owned(),
        resources,
        removed_resources: Vec::new(),
    }
}

/// What the waypoint gets, by type.
fn resources(told: &Told, version: u32) -> Resources {
    let mut all = Resources::new();
    let Some(own) = told.waypoints.get(&format!("{NAMESPACE}/{WAYPOINT}")) else {
        return all;
    };
    let mut put = |kind: &'static str, name: String, message: &dyn Encoded| {
        let value = message.bytes();
        let resource = Resource {
            name,
            version: version.to_string(),
            resource: Some(prost_types::Any {
                type_url: kind.to_owned(),
                value,
            }),
            ..Resource::default()
        };
        all.entry(kind).or_default().push(resource);
    };
    for address in &told.addresses {
        let name = match &address.r#type {
            Some(Type::Workload(workload)) => workload.uid.clone(),
            Some(Type::Service(service)) => format!("{}/{}", service.namespace, service.hostname),
            None => continue,
        };
        put(type_url::ADDRESS, name, address);
    }
    let name = format!("{NAMESPACE}/{WAYPOINT}");
    put(type_url::WAYPOINT, name, &own.waypoint);
    for m in &own.virtual_services {
        let name = format!("{}/{}", m.namespace, m.name);
        put(type_url::VIRTUAL_SERVICE, name, m);
    }
    for m in &own.destination_rules {
        let name = format!("{}/{}", m.namespace, m.name);
        put(type_url::DESTINATION_RULE, name, m);
    }
    for m in &own.authorizations {
        let name = format!("{}/{}", m.namespace, m.name);
        put(type_url::WAYPOINT_AUTHORIZATION, name, m);
    }
    for m in &own.labels {
        put(type_url::WORKLOAD_LABELS, m.uid.clone(), m);
    }
    all
}

/// A message of any type.
trait Encoded {
    fn bytes(&self) -> Vec<u8>;
}

impl<M: Message> Encoded for M {
    fn bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}
