use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use isobar_runtime::Lifetime;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

use super::allowance::Allowance;
use super::catalog::Catalog;
use super::clients::{ClientState, Clients};
use super::codec::{RequestDecoder, body};
use super::kind::Kind;
use super::session::Session;
use super::stream::{Driver, end_of_stream, responses};
use crate::auth::{Authenticator, Caller, address};
use crate::metrics::Metrics;

const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The discovery service. Written by hand instead of generated, to put bytes that sessions share on
/// the wire as they are.
#[derive(Clone)]
pub(crate) struct DiscoveryService {
    pub(crate) authenticator: Authenticator,
    pub(crate) catalogs: watch::Receiver<Arc<Catalog>>,
    pub(crate) clients: Clients,
    pub(crate) life: Lifetime,
    pub(crate) metrics: Metrics,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl NamedService for DiscoveryService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl tower::Service<http::Request<Body>> for DiscoveryService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented(
                    "only incremental aggregated discovery is served",
                )
                .into_http());
            }
            let (parts, content) = request.into_parts();
            let headers = MetadataMap::from_headers(parts.headers);
            let request = Request::from_parts(headers, parts.extensions, content);
            Ok(match service.open(request).await {
                Ok(body) => {
                    let mut response = http::Response::new(body);
                    let kind = http::HeaderValue::from_static("application/grpc");
                    let headers = response.headers_mut();
                    headers.insert(http::header::CONTENT_TYPE, kind);
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

impl DiscoveryService {
    async fn open(&self, request: Request<Body>) -> Result<Body, Status> {
        let caller = self
            .authenticator
            .authenticate(request.metadata(), address(&request))
            .await
            .inspect_err(|status| {
                tracing::warn!(reason = status.message(), "discovery stream refused");
            })?;
        let peer = request
            .extensions()
            .get::<crate::server::PeerAddress>()
            .map(|peer| peer.0.to_string())
            .unwrap_or_default();
        let catalog = self.catalogs.borrow().clone();
        let scope = catalog.scope_of(&caller);
        let node = self.authenticator.is_node(&caller.identity);
        let kind = client_kind(node, scope.waypoint.is_some());
        tracing::info!(identity = %caller.identity, kind, peer, "discovery stream opened");
        let expected = if scope.waypoint.is_some() {
            Kind::WAYPOINT
        } else {
            Kind::NODE
        };
        let now = Instant::now();
        let allowance = Allowance::of(node, scope.waypoint.is_some());
        let state = client_state(&caller, kind, peer, now);
        let registration = self.clients.register(state, allowance).map_err(|crowd| {
            tracing::warn!(identity = %caller.identity, "discovery stream refused: {crowd}");
            Status::resource_exhausted(format!("{}: {crowd}", caller.identity))
        })?;
        let limit = Some(allowance.longest);
        let requests = Streaming::new_request(RequestDecoder, request.into_inner(), None, limit);
        self.metrics.clients(1);
        let driver = Driver {
            session: Session::new(scope.clone(), expected, now),
            registration,
            allowance,
            scope,
            caller,
            catalogs: self.catalogs.clone(),
            requests,
            life: self.life.clone(),
            metrics: self.metrics.clone(),
            end: end_of_stream(now),
        };
        Ok(body(responses(driver)))
    }
}

const fn client_kind(node: bool, waypoint: bool) -> &'static str {
    if node {
        "ztunnel"
    } else if waypoint {
        "waypoint"
    } else {
        "proxy"
    }
}

fn client_state(caller: &Caller, kind: &'static str, peer: String, now: Instant) -> ClientState {
    ClientState {
        identity: caller.identity.to_string(),
        kind,
        node: caller.node.clone().unwrap_or_default(),
        namespace: caller.identity.namespace.to_string(),
        pod: caller
            .pod
            .as_ref()
            .map(|pod| pod.name.clone())
            .unwrap_or_default(),
        gateway: String::new(),
        version: String::new(),
        peer,
        connected: now,
        connected_at: jiff::Timestamp::now().to_string(),
        revision: 0,
        confirmed: 0,
        kinds: Vec::new(),
    }
}
