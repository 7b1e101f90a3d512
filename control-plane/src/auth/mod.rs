//! Who is calling: bound service account tokens, reviewed behind an interface.

mod gate;
mod jwks;
mod kubernetes;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use isobar_types::{Identity, NamespacedName};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

pub(crate) use jwks::JwksReviewer;
pub(crate) use kubernetes::ClusterReviewer;

use crate::server::PeerAddress;

/// An authenticated caller. Everything in it comes from its verified token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The account the token speaks for, in the mesh's trust domain.
    pub(crate) identity: Identity,
    /// The pod the token is bound to.
    pub(crate) pod: Option<BoundPod>,
    /// The node that pod runs on.
    pub(crate) node: Option<String>,
}

/// The pod a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BoundPod {
    /// Pod name.
    pub(crate) name: String,
    /// Kubernetes UID.
    pub(crate) uid: String,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefused {
    /// The token itself is wrong: signature, time, audience, form.
    #[error("{0}")]
    Invalid(String),
    /// The token could not be reviewed now.
    #[error("tokens cannot be reviewed: {0}")]
    Unavailable(String),
}

/// Says who a bearer token speaks for: a key set in a file, or an API server.
#[async_trait]
pub(crate) trait TokenReviewer: Send + Sync {
    /// Reviews a token that was shown from that address.
    async fn review(&self, token: &str, from: Option<IpAddr>) -> Result<Caller, TokenRefused>;
}

/// Authenticates requests.
#[derive(Clone)]
pub(crate) struct Authenticator {
    reviewer: Arc<dyn TokenReviewer>,
    node_accounts: Arc<[NamespacedName]>,
}

impl Authenticator {
    /// Accepts what `reviewer` accepts; `node_accounts` are the accounts of node proxies.
    pub(crate) fn new(
        reviewer: Arc<dyn TokenReviewer>,
        node_accounts: Arc<[NamespacedName]>,
    ) -> Self {
        Self {
            reviewer,
            node_accounts,
        }
    }

    /// The caller of a request with this metadata, which came from that address.
    pub(crate) async fn authenticate(
        &self,
        metadata: &MetadataMap,
        from: Option<IpAddr>,
    ) -> Result<Caller, Status> {
        let token = bearer(metadata)?;
        self.reviewer
            .review(token, from)
            .await
            .map_err(|refused| match refused {
                TokenRefused::Invalid(_) => Status::unauthenticated(refused.to_string()),
                TokenRefused::Unavailable(_) => Status::unavailable(refused.to_string()),
            })
    }

    /// True for the account of node proxies.
    pub(crate) fn is_node(&self, identity: &Identity) -> bool {
        self.node_accounts.iter().any(|account| {
            account.namespace == identity.namespace && account.name == identity.service_account
        })
    }
}

/// The address that a request came from.
pub(crate) fn address<T>(request: &Request<T>) -> Option<IpAddr> {
    let peer = request.extensions().get::<PeerAddress>();
    peer.map(|peer| peer.0.ip())
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Status> {
    let value = metadata
        .get("authorization")
        .ok_or_else(|| Status::unauthenticated("no token: the authorization header is missing"))?;
    let text = value
        .to_str()
        .map_err(|_| Status::unauthenticated("the authorization header is not text"))?;
    let token = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => {
            return Err(Status::unauthenticated(
                "the authorization header is not a bearer token",
            ));
        }
    };
    if token.is_empty() {
        return Err(Status::unauthenticated("the bearer token is empty"));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_are_read() {
        let mut metadata = MetadataMap::new();
        assert!(bearer(&metadata).is_err());
        for (value, expect) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc", Some("abc")),
            ("Basic abc", None),
            ("Bearer ", None),
            ("abc", None),
        ] {
            metadata.insert("authorization", value.parse().unwrap());
            assert_eq!(bearer(&metadata).ok(), expect, "{value:?}");
        }
    }
}
