use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use isobar_proto::istio::v1::auth::IstioCertificateRequest;
use isobar_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use isobar_tls::{PeerTrust, WorkloadCertificate, csr};
use isobar_types::Identity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::Mutex;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{CertError, Requester};
use crate::channel::{ConnectError, chain, connect, headers, read_roots};
use crate::config::{CaConfig, Server};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Key of the request's metadata under which a node proxy names the pod's identity.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Asks the control plane's authority for certificates. A new key for each request.
pub struct CaClient {
    server: Server,
    ttl: Duration,
    impersonate: bool,
    peers: PeerTrust,
    /// The connection and the roots it trusts. An async lock as a queue: the first of several
    /// requests connects, at most for the connect time limits, the others wait for its result.
    channel: Mutex<Option<(String, Channel)>>,
}

impl CaClient {
    /// A client; connects at the first request.
    #[must_use]
    pub fn new(config: CaConfig) -> Self {
        Self {
            ttl: config.ttl,
            impersonate: config.impersonate,
            peers: PeerTrust::default(),
            server: config.into(),
            channel: Mutex::new(None),
        }
    }

    /// Peers of the certificates asked for from now on are judged by this.
    #[must_use]
    pub fn with_peer_trust(mut self, peers: PeerTrust) -> Self {
        self.peers = peers;
        self
    }

    async fn channel(&self) -> Result<Channel, ConnectError> {
        let roots = read_roots(&self.server.roots).await?;
        let mut channel = self.channel.lock().await;
        if let Some((trusted, open)) = &*channel
            && *trusted == roots
        {
            return Ok(open.clone());
        }
        let open = connect(&self.server, &roots).await?;
        *channel = Some((roots, open.clone()));
        Ok(open)
    }

    async fn ask(&self, identity: &Identity) -> Result<WorkloadCertificate, CertError> {
        let unreachable = |error: &ConnectError| CertError::Unreachable {
            identity: identity.clone(),
            detail: chain(error),
        };
        let unusable = |detail: String| CertError::Unusable {
            identity: identity.clone(),
            detail,
        };
        let (csr, key) = csr::generate(identity).map_err(|e| unusable(e.to_string()))?;
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: self.impersonate.then(|| impersonation(identity)),
        });
        headers(&self.server, request.metadata_mut())
            .await
            .map_err(|e| unreachable(&e))?;
        let channel = self.channel().await.map_err(|e| unreachable(&e))?;
        let response = IstioCertificateServiceClient::new(channel)
            .create_certificate(request)
            .await
            .map_err(|status| self.refusal(identity, &status))?;
        let parts = response.into_inner().cert_chain;
        WorkloadCertificate::trusting(identity, &parts, &key, &self.peers)
            .map_err(|e| unusable(e.to_string()))
    }

    fn refusal(&self, identity: &Identity, status: &Status) -> CertError {
        let identity = identity.clone();
        let detail = format!(
            "{}: {:?}: {}",
            self.server.address,
            status.code(),
            status.message()
        );
        match status.code() {
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => {
                CertError::Unreachable { identity, detail }
            }
            _ => CertError::Refused { identity, detail },
        }
    }
}

impl Requester for CaClient {
    fn request<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> BoxFuture<'a, Result<WorkloadCertificate, CertError>> {
        Box::pin(async move {
            tokio::time::timeout(REQUEST_TIMEOUT, self.ask(identity))
                .await
                .unwrap_or_else(|_| {
                    Err(CertError::Unreachable {
                        identity: identity.clone(),
                        detail: format!(
                            "{}: no answer within {REQUEST_TIMEOUT:?}",
                            self.server.address
                        ),
                    })
                })
        })
    }
}

fn impersonation(identity: &Identity) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(identity.to_string())),
    };
    Struct {
        fields: BTreeMap::from([(IMPERSONATED.to_owned(), value)]),
    }
}
