use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use isobar_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use isobar_tls::ca::{Authority, AuthorityError};
use isobar_types::Identity;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Pace, Refusal, Roster, Rules};
use crate::auth::{Authenticator, Caller, address};
use crate::metrics::Metrics;

/// Longest life of a certificate, and the life of one that asks for none.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How long a request waits for the pod it is about to appear.
const PATIENCE: Duration = Duration::from_secs(2);

/// Hands out certificates.
pub(crate) struct CertificateService {
    pub(crate) authorities: watch::Receiver<Arc<Authority>>,
    pub(crate) authenticator: Authenticator,
    pub(crate) rules: Rules,
    pub(crate) rosters: watch::Receiver<Arc<Roster>>,
    pub(crate) metrics: Metrics,
    pub(crate) pace: Pace,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let result = self.create(request).await;
        self.metrics.certificate(result.is_ok());
        result.map(Response::new)
    }
}

impl CertificateService {
    async fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        let caller = self
            .authenticator
            .authenticate(request.metadata(), address(&request))
            .await
            .inspect_err(|status| {
                tracing::warn!(reason = status.message(), "certificate refused");
            })?;
        self.pace.ask(&caller, Instant::now()).map_err(|wait| {
            tracing::warn!(
                caller = %caller.identity,
                node = caller.node.as_deref().unwrap_or("-"),
                "certificate refused: the caller asks too often",
            );
            Status::resource_exhausted(format!(
                "too many certificate requests of {}: ask again in {} ms",
                caller.identity,
                wait.as_millis(),
            ))
        })?;
        let request = request.into_inner();
        let requested = impersonated(&request)?;
        let identity = self
            .authorise(&caller, requested)
            .await
            .map_err(|refusal| {
                tracing::warn!(
                    caller = %caller.identity,
                    requested = requested.unwrap_or("its own"),
                    reason = %refusal,
                    "certificate refused",
                );
                Status::permission_denied(refusal.to_string())
            })?;
        let ttl = life(request.validity_duration);
        let authority = self.authorities.borrow().clone();
        let cert_chain = authority
            .sign(&request.csr, &identity, ttl)
            .map_err(|error| signing_status(&error))?;
        tracing::info!(
            target: "audit",
            caller = %caller.identity,
            node = caller.node.as_deref().unwrap_or("-"),
            %identity,
            ttl_seconds = ttl.as_secs(),
            "certificate issued",
        );
        Ok(IstioCertificateResponse { cert_chain })
    }

    /// A pod that has just been created may not have been read yet: wait a little for it, which is
    /// cheaper than the client's retry.
    async fn authorise(
        &self,
        caller: &Caller,
        requested: Option<&str>,
    ) -> Result<Identity, Refusal> {
        let mut rosters = self.rosters.clone();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let roster = rosters.borrow_and_update().clone();
            let refusal = match self.rules.authorise(caller, requested, &roster) {
                Ok(identity) => return Ok(identity),
                Err(refusal) => refusal,
            };
            if !refusal.may_pass_soon() {
                return Err(refusal);
            }
            match tokio::time::timeout_at(deadline, rosters.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(refusal),
            }
        }
    }
}

/// The identity asked for on behalf of a pod, if any.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<&str>, Status> {
    use prost_types::value::Kind;

    let value = request
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"))
        .and_then(|value| value.kind.as_ref());
    match value {
        None | Some(Kind::NullValue(_)) => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        Some(_) => Err(Status::invalid_argument(
            "ImpersonatedIdentity is not a text",
        )),
    }
}

/// The life asked for in seconds, at most a day; without one, a day.
fn life(seconds: i64) -> Duration {
    match u64::try_from(seconds) {
        Ok(0) | Err(_) => LONGEST,
        Ok(seconds) => Duration::from_secs(seconds).min(LONGEST),
    }
}

fn signing_status(error: &AuthorityError) -> Status {
    match error {
        AuthorityError::Request(_) | AuthorityError::Name(_) => {
            Status::invalid_argument(error.to_string())
        }
        _ => {
            tracing::error!(%error, "signing failed");
            Status::internal("the certificate could not be signed")
        }
    }
}

#[cfg(test)]
mod tests {
    use isobar_telemetry::Registry;
    use isobar_types::NamespacedName;

    use super::super::PodRecord;
    use super::*;
    use crate::auth::{BoundPod, TokenRefused, TokenReviewer};

    struct Nobody;

    #[tonic::async_trait]
    impl TokenReviewer for Nobody {
        async fn review(
            &self,
            _: &str,
            _: Option<std::net::IpAddr>,
        ) -> Result<Caller, TokenRefused> {
            Err(TokenRefused::Invalid("nobody".into()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_about_to_appear_is_waited_for() {
        let account: Arc<[NamespacedName]> = vec![NamespacedName::parse("s/zt").unwrap()].into();
        let (sender, rosters) = watch::channel(Arc::new(Roster::default()));
        let service = CertificateService {
            authorities: watch::channel(Arc::new(Authority::generate("test").unwrap())).1,
            authenticator: Authenticator::new(Arc::new(Nobody), account.clone()),
            rules: Rules {
                trust_domain: "cluster.local".into(),
                node_accounts: account,
            },
            rosters,
            metrics: Metrics::new(&Registry::new()),
            pace: Pace::default(),
        };
        let caller = Caller {
            identity: Identity::new("cluster.local", "s", "zt"),
            pod: Some(BoundPod {
                name: "zt-1".into(),
                uid: "u".into(),
            }),
            node: Some("node-1".into()),
        };
        let wanted = Some("spiffe://cluster.local/ns/shop/sa/cart");
        // The request waits before the pod is there: the first is polled first.
        let (got, ()) = tokio::join!(service.authorise(&caller, wanted), async {
            let mut roster = Roster::default();
            let pod = PodRecord {
                uid: "c".into(),
                node: "node-1".into(),
                account: "cart".into(),
            };
            roster.insert("shop", "cart-1", pod);
            sender.send_replace(Arc::new(roster));
        });
        assert_eq!(&*got.unwrap().service_account, "cart");
        let never = Some("spiffe://cluster.local/ns/shop/sa/pay");
        assert!(service.authorise(&caller, never).await.is_err());
    }

    #[test]
    fn lives_are_clamped_to_a_day() {
        assert_eq!(life(0), LONGEST);
        assert_eq!(life(-5), LONGEST);
        assert_eq!(life(i64::MAX), LONGEST);
        assert_eq!(life(600), Duration::from_secs(600));
    }
}
