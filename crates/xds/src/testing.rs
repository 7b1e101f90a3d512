//! A control plane in this process: discovery and certificates over real TLS on loopback, answered
//! by the test step by step.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
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
use isobar_runtime::Scope;
use isobar_tls::{ServerStream, ca::Authority, control};
use isobar_types::Identity;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{Connected, Server};
use tonic::{Request, Response, Status, Streaming};

/// However slow the machine is, a step does not take longer.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    streams: mpsc::Receiver<AdsStream>,
    pub(crate) certificates: mpsc::Receiver<CertificateCall>,
    scope: Scope,
}

/// One discovery stream, seen from the server.
pub(crate) struct AdsStream {
    pub(crate) headers: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

/// One certificate request, seen from the server.
pub(crate) struct CertificateCall {
    pub(crate) headers: MetadataMap,
    pub(crate) request: IstioCertificateRequest,
    pub(crate) answer: tokio::sync::oneshot::Sender<Result<Vec<String>, Status>>,
}

impl ControlPlane {
    /// Starts on a free port, with an authority of its own.
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let authority = Authority::generate("test").unwrap();
        let names = ["127.0.0.1".to_owned()];
        let server = authority
            .issue_server(&names, Duration::from_secs(3600))
            .unwrap();
        let tls = control::server_config(&server).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, incoming) = mpsc::channel(8);
        let (stream_sender, streams) = mpsc::channel(8);
        let (certificate_sender, certificates) = mpsc::channel(64);
        let scope = Scope::new("control-plane");
        scope.spawn("accept", async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                if let Ok(tls) = tls.accept(tcp).await
                    && accepted
                        .send(Ok::<_, std::io::Error>(Tls(tls)))
                        .await
                        .is_err()
                {
                    return;
                }
            }
        });
        scope.spawn("serve", async move {
            Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(Ads(stream_sender)))
                .add_service(IstioCertificateServiceServer::new(Ca(certificate_sender)))
                .serve_with_incoming(ReceiverStream::new(incoming))
                .await
                .unwrap();
        });
        Self {
            address,
            authority,
            streams,
            certificates,
            scope,
        }
    }

    pub(crate) fn write_roots(&self, file: &Path) {
        std::fs::write(file, self.authority.roots()).unwrap();
    }

    pub(crate) async fn stream(&mut self) -> AdsStream {
        patiently("a discovery stream", self.streams.recv())
            .await
            .unwrap()
    }

    pub(crate) async fn certificate_call(&mut self) -> CertificateCall {
        patiently("a certificate request", self.certificates.recv())
            .await
            .unwrap()
    }

    /// Cuts every connection and frees the port.
    pub(crate) async fn stop(self) {
        let Self { scope, streams, .. } = self;
        drop(streams);
        scope.shutdown(Duration::ZERO).await;
    }
}

impl AdsStream {
    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        patiently("a discovery request", self.requests.next())
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn send(&self, type_url: &str, nonce: &str, resources: Vec<Resource>) {
        self.send_with(type_url, nonce, resources, &[]).await;
    }

    pub(crate) async fn send_with(
        &self,
        type_url: &str,
        nonce: &str,
        resources: Vec<Resource>,
        removed: &[&str],
    ) {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            system_version_info: format!("at-{nonce}"),
            resources,
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        };
        self.responses.send(Ok(response)).await.unwrap();
    }

    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }
}

impl CertificateCall {
    pub(crate) fn sign(self, authority: &Authority, identity: &Identity) {
        let parts = authority.sign(&self.request.csr, identity, Duration::from_secs(3600));
        self.answer.send(Ok(parts.unwrap())).unwrap();
    }
}

pub(crate) fn resource(name: &str, version: &str, message: &impl Message) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(prost_types::Any {
            type_url: String::new(),
            value: message.encode_to_vec(),
        }),
        ..Default::default()
    }
}

struct Ads(mpsc::Sender<AdsStream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(8);
        let stream = AdsStream {
            headers: request.metadata().clone(),
            requests: request.into_inner(),
            responses,
        };
        let gone = |_| Status::unavailable("stopped");
        self.0.send(stream).await.map_err(gone)?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

struct Ca(mpsc::Sender<CertificateCall>);

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (answer, wait) = tokio::sync::oneshot::channel();
        let call = CertificateCall {
            headers: request.metadata().clone(),
            request: request.into_inner(),
            answer,
        };
        let gone = || Status::unavailable("stopped");
        self.0.send(call).await.map_err(|_| gone())?;
        let cert_chain = wait.await.map_err(|_| gone())??;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// The accepted stream, with the trait the server wants.
struct Tls(ServerStream<TcpStream>);

impl Connected for Tls {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
